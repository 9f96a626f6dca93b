//! Which volume a path lies in, from the mount table alone: a stat on a dead
//! mount would hang or fail.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::error::CliError;
use super::exit::Code;
use super::output::shown;
use crate::types::Name;

/// A mount of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    pub mountpoint: PathBuf,
    /// The volume's folder.
    pub volume: PathBuf,
}

/// A path in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub volume: PathBuf,
    /// Names from the root.
    pub names: Vec<Name>,
    pub mountpoint: Option<PathBuf>,
}

struct Entry {
    mountpoint: PathBuf,
    kind: Vec<u8>,
    source: PathBuf,
}

/// `\040` and the like (proc(5), mountinfo).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = code {
            out.push(byte);
            at += 4;
        } else {
            out.push(field[at]);
            at += 1;
        }
    }
    out
}

fn entries(table: &[u8]) -> Vec<Entry> {
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-")?;
            Some(Entry {
                mountpoint: path(fields.get(4)?),
                kind: fields.get(dash + 1)?.to_vec(),
                source: path(fields.get(dash + 2)?),
            })
        })
        .collect()
}

fn find_in(table: &[u8], path: &Path) -> Option<Mounted> {
    // Of several mounts at one place the last is on top.
    let entry = entries(table)
        .into_iter()
        .filter(|entry| path.starts_with(&entry.mountpoint))
        .fold(None::<Entry>, |best, entry| match best {
            Some(best) if best.mountpoint.as_os_str().len() > entry.mountpoint.as_os_str().len() => Some(best),
            _ => Some(entry),
        })?;
    (entry.kind == b"fuse.cairn").then_some(Mounted { mountpoint: entry.mountpoint, volume: entry.source })
}

fn table() -> Result<Vec<u8>, CliError> {
    std::fs::read("/proc/self/mountinfo").map_err(|e| CliError::failed(format!("/proc/self/mountinfo: {e}")))
}

/// Removes `.` and `..` by their text, and makes a path absolute.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    let path = std::path::absolute(path).map_err(|e| CliError::usage(format!("{}: {e}", shown(path))))?;
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// The mount that a path lies in, if it lies in one of ours. The text of the
/// path decides first; links outside are resolved only when it does not.
pub(super) fn mount_of(path: &Path) -> Result<Option<(Mounted, PathBuf)>, CliError> {
    let table = table()?;
    let absolute = absolute(path)?;
    if let Some(mounted) = find_in(&table, &absolute) {
        // Links to directories below the mountpoint lead where the kernel leads.
        let resolved = absolute
            .parent()
            .filter(|parent| parent.starts_with(&mounted.mountpoint))
            .and_then(|parent| Some(parent.canonicalize().ok()?.join(absolute.file_name()?)))
            .unwrap_or(absolute);
        return Ok(find_in(&table, &resolved).map(|mounted| (mounted, resolved)));
    }
    let Some((parent, name)) = absolute.parent().zip(absolute.file_name()) else { return Ok(None) };
    let Ok(parent) = parent.canonicalize() else { return Ok(None) };
    let resolved = parent.join(name);
    if let Some(mounted) = find_in(&table, &resolved) {
        return Ok(Some((mounted, resolved)));
    }
    // A link whose own name is outside and which leads to a mount.
    match resolved.canonicalize() {
        Ok(target) => Ok(find_in(&table, &target).map(|mounted| (mounted, target))),
        Err(_) => Ok(None),
    }
}

/// Where a volume is mounted, if it is.
pub(super) fn mountpoint_of(volume: &Path) -> Result<Option<PathBuf>, CliError> {
    let wanted = volume.canonicalize().unwrap_or_else(|_| volume.to_owned());
    let found = entries(&table()?).into_iter().rev().find(|entry| {
        entry.kind == b"fuse.cairn" && (entry.source == wanted || entry.source == volume)
    });
    Ok(found.map(|entry| entry.mountpoint))
}

/// Names of a path below a root.
pub(super) fn names(path: &Path) -> Result<Vec<Name>, CliError> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Name::new(name.as_bytes()).map_err(|e| {
                CliError::usage(format!("{}: {e}", shown(path)))
            })),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            Component::ParentDir => Some(Err(CliError::usage(format!("{}: `..` leads out of the volume", shown(path))))),
        })
        .collect()
}

/// The volume and names of a path: in a mount, or with `--volume` from its root.
pub(super) fn place(path: &Path, volume: Option<&Path>) -> Result<Place, CliError> {
    if let Some(volume) = volume {
        return Ok(Place { volume: folder(Some(volume))?, names: names(path)?, mountpoint: None });
    }
    match mount_of(path)? {
        Some((mounted, resolved)) => {
            let below = resolved.strip_prefix(&mounted.mountpoint).unwrap_or(Path::new(""));
            Ok(Place { names: names(below)?, volume: mounted.volume, mountpoint: Some(mounted.mountpoint) })
        }
        None => Err(CliError::new(Code::NotFound, format!("{} is not in a mounted cairn volume", shown(path)))
            .hint("name a path below a mountpoint, or the volume with --volume DIR and the path from its root")),
    }
}

/// The volume of verbs that name none (`$CAIRN_VOLUME`, else
/// `$XDG_DATA_HOME/cairn/default`), or the one named by its folder, its
/// mountpoint, or a path below.
pub(super) fn folder(named: Option<&Path>) -> Result<PathBuf, CliError> {
    let Some(path) = named else { return absolute(&default_volume()) };
    if let Some((mounted, _)) = mount_of(path)? {
        return Ok(mounted.volume);
    }
    let clean = absolute(path)?;
    Ok(clean.canonicalize().unwrap_or(clean))
}

/// `$CAIRN_VOLUME`, else `$XDG_DATA_HOME/cairn/default`.
fn default_volume() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    variable("CAIRN_VOLUME").unwrap_or_else(|| {
        let home = || variable("HOME").unwrap_or_else(|| "/".into()).join(".local/share");
        variable("XDG_DATA_HOME").unwrap_or_else(home).join("cairn/default")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 0:50 / /mnt/my\\040files rw,nosuid shared:1 - fuse.cairn /srv/my\\040vol rw,user_id=0
41 40 0:51 / /mnt/my\\040files/inner rw - tmpfs tmpfs rw
42 22 0:52 / /mnt/my\\040filesystem rw - fuse.cairn /srv/other rw
";

    #[test]
    fn the_longest_mountpoint_decides() {
        let found = |path: &str| find_in(TABLE, Path::new(path)).map(|m| m.volume);
        assert_eq!(found("/mnt/my files/a/b"), Some("/srv/my vol".into()));
        assert_eq!(found("/mnt/my filesystem"), Some("/srv/other".into()));
        assert_eq!(found("/mnt/my files/inner/x"), None);
        assert_eq!(found("/mnt"), None);
    }

    #[test]
    fn a_newline_in_a_mountpoint_is_read_back() {
        assert_eq!(unescape(b"a\\012b\\134c\\"), b"a\nb\\c\\");
    }

    #[test]
    fn a_path_cannot_leave_the_volume() {
        assert!(names(Path::new("/a/../../b")).is_err());
        assert_eq!(names(Path::new("/a/./b")).unwrap().len(), 2);
    }
}
