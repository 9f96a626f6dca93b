//! `cairn cid`: in a mount the volume answers; elsewhere the disk is read.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde_json::json;

use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::content::{
    DirectoryEntry, Link, Profile, UnknownProfile, build_directory, escape_name, import_file,
    symlink,
};
use crate::types::printable;

pub(super) fn cid(
    paths: &[PathBuf],
    profile: Option<&str>,
    no_hidden: bool,
    output: &Output,
) -> Result<(), Failure> {
    let asked: Option<Profile> = profile
        .map(str::parse)
        .transpose()
        .map_err(|e: UnknownProfile| Failure::new(ErrorCode::Usage, e.to_string()))?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for path in paths {
        // What the mount says is under the volume's profile and has every name.
        let known = if asked.is_none() && !no_hidden { of_mount(path)? } else { None };
        let cid = match known {
            Some(cid) => cid,
            None => of_disk(path, &asked.unwrap_or(Profile::UNIXFS_V1_2025), no_hidden)?
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
        lines.push(format!("{cid}  {}", printable(&path.display().to_string())));
        rows.push(json!({ "path": path.display().to_string(), "cid": cid }));
    }
    output.lines(&json!(rows), &lines);
    Ok(())
}

/// What a mount says of a path in it; `None` outside of every mount. By the
/// attribute, which anybody may ask who may read the file; of links, of which
/// the kernel asks no `user.` attribute, by the daemon.
fn of_mount(path: &Path) -> Result<Option<String>, Failure> {
    let Some((target, inner)) = Target::try_of_path(path)? else { return Ok(None) };
    let mut value = [0; 256];
    match rustix::fs::lgetxattr(path, "user.cairn.cid", &mut value[..]) {
        Ok(len) => Ok(Some(String::from_utf8_lossy(&value[..len]).into_owned())),
        Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {
            let answer = target.send(&Command::Cid { path: inner }, &Output::new(true))?;
            Ok(Some(answer["cid"].as_str().unwrap_or_default().to_owned()))
        }
        Err(Errno::NOENT) => Err(Failure::new(
            ErrorCode::NotFound,
            format!("{}: there is no such file", path.display()),
        )),
        Err(error) => Err(failure(path, error)),
    }
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
