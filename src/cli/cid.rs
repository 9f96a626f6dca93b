//! `cairn cid`: in a mount the volume answers; elsewhere the disk is read.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::content::{
    DirectoryEntry, Link, Profile, build_directory, escape_name, import_file, symlink,
};

pub(super) fn cid(
    paths: &[PathBuf],
    profile: &str,
    no_hidden: bool,
    output: &Output,
) -> Result<(), Failure> {
    let profile: Profile = profile.parse().map_err(|e: crate::content::UnknownProfile| {
        Failure::new(ErrorCode::Usage, e.to_string())
    })?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for path in paths {
        let cid = match Target::try_of_path(path)? {
            Some((target, inner)) => {
                let value = target.send(&Command::Cid { path: inner }, output)?;
                value["cid"].as_str().unwrap_or_default().to_owned()
            }
            None => of_disk(path, &profile, no_hidden)?
                .ok_or_else(|| {
                    let text = format!(
                        "{} is a device, pipe or socket: UnixFS has no form for it",
                        path.display()
                    );
                    Failure::new(ErrorCode::Usage, text)
                })?
                .cid
                .to_string(),
        };
        lines.push(format!("{cid}  {}", path.display().to_string().escape_debug()));
        rows.push(json!({ "path": path.display().to_string(), "cid": cid }));
    }
    output.lines(&json!(rows), &lines);
    Ok(())
}

struct Frame {
    name: String,
    rest: Vec<PathBuf>,
    built: Vec<DirectoryEntry>,
}

fn failure(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
}

fn leaf_of(path: &Path, profile: &Profile) -> Result<Option<Link>, Failure> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(ErrorCode::NotFound, format!("{}: {e}", path.display()))
        }
        _ => failure(path, e),
    })?;
    if meta.is_symlink() {
        let target = std::fs::read_link(path).map_err(|e| failure(path, e))?;
        return Ok(Some(symlink(profile, target.as_os_str().as_bytes()).0));
    }
    if !meta.is_file() {
        return Ok(None);
    }
    let mut file = File::open(path).map_err(|e| failure(path, e))?;
    import_file(profile, &mut file, &mut |_, _| Ok(())).map(Some).map_err(|e| failure(path, e))
}

fn frame(path: &Path, name: String, no_hidden: bool) -> Result<Frame, Failure> {
    let mut rest = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| failure(path, e))? {
        let entry = entry.map_err(|e| failure(path, e))?;
        if !(no_hidden && entry.file_name().as_bytes().starts_with(b".")) {
            rest.push(entry.path());
        }
    }
    Ok(Frame { name, rest, built: Vec::new() })
}

/// The CID of a path on the disk; `None` for special nodes.
fn of_disk(path: &Path, profile: &Profile, no_hidden: bool) -> Result<Option<Link>, Failure> {
    let directory = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    if !directory(path) {
        return leaf_of(path, profile);
    }
    let mut stack = vec![frame(path, String::new(), no_hidden)?];
    loop {
        let Some(top) = stack.last_mut() else { return Ok(None) };
        if let Some(child) = top.rest.pop() {
            let name = escape_name(child.file_name().unwrap_or_default().as_bytes());
            if directory(&child) {
                stack.push(frame(&child, name, no_hidden)?);
            } else if let Some(link) = leaf_of(&child, profile)? {
                top.built.push(DirectoryEntry { name, link });
            }
            continue;
        }
        let Some(done) = stack.pop() else { return Ok(None) };
        let link = build_directory(profile, done.built, &mut |_, _| Ok(()))
            .map_err(|e| failure(path, e))?;
        match stack.last_mut() {
            Some(parent) => parent.built.push(DirectoryEntry { name: done.name, link }),
            None => return Ok(Some(link)),
        }
    }
}
