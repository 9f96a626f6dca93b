//! `cairn quota`.

use std::os::unix::ffi::OsStrExt;

use super::arguments::{QuotaPath, QuotaVerb};
use super::client::Target;
use super::output::Output;
use crate::api::{Command, Failure};

fn target(of: QuotaPath) -> Result<(Target, Vec<u8>), Failure> {
    match of.volume {
        Some(volume) => {
            Ok((Target::of_volume(Some(volume))?, of.path.as_os_str().as_bytes().to_vec()))
        }
        None => Target::of_path(&of.path),
    }
}

pub(super) fn quota(verb: QuotaVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        QuotaVerb::Set { target: of, size, inodes } => {
            let (target, path) = target(of)?;
            let bytes = size.map(|size| size.0);
            let value = target.send(&Command::QuotaSet { path, bytes, inodes }, output)?;
            output.quotas(&value, std::slice::from_ref(&value));
        }
        QuotaVerb::Show { target: of } => {
            let (target, path) = target(of)?;
            show(&target, &Command::QuotaShow { path }, output)?;
        }
        QuotaVerb::Ls { target: of } => {
            let (target, path) = target(of)?;
            show(&target, &Command::QuotaList { path }, output)?;
        }
        QuotaVerb::Remove { target: of } => {
            let (target, path) = target(of)?;
            let value = target.send(&Command::QuotaRemove { path }, output)?;
            output.fields(&value, &["path"]);
        }
    }
    Ok(())
}

fn show(target: &Target, command: &Command, output: &Output) -> Result<(), Failure> {
    let value = target.send(command, output)?;
    let quotas = value["quotas"].as_array().map_or(&[][..], Vec::as_slice);
    output.quotas(&value, quotas);
    if quotas.is_empty() {
        output.note("there is no quota; `cairn quota set PATH --size 10GiB` sets one");
    }
    Ok(())
}
