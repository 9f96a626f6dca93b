//! Refuses places that lie inside each other: a backend under the mount would
//! wait for itself (restic#5234, rclone#4103).

use std::io::{Error, ErrorKind as IoKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{BackendError, ErrorKind};

/// Whether one of two directories is, or lies inside, the other. Either may
/// not exist yet. Symlinks are resolved, and bind mounts in two ways: ancestors
/// are compared by device and inode, and places by their path inside their own
/// filesystem (`/proc/self/mountinfo`), which also sees a bind mount of a
/// folder inside the other place.
///
/// # Errors
/// When an existing part of a path cannot be read.
pub fn overlaps(a: &Path, b: &Path) -> std::io::Result<bool> {
    let (a, b) = (Resolved::of(a)?, Resolved::of(b)?);
    if a.path.starts_with(&b.path) || b.path.starts_with(&a.path) {
        return Ok(true);
    }
    if a.contains(&b)? || b.contains(&a)? {
        return Ok(true);
    }
    let mounts = match std::fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => mounts(&text),
        // Without /proc the comparison by inode has to do.
        Err(error) if error.kind() == IoKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let (Some((one, inner)), Some((two, outer))) =
        (inside(&a.path, &mounts), inside(&b.path, &mounts))
    else {
        return Ok(false);
    };
    Ok(one == two && (inner.starts_with(&outer) || outer.starts_with(&inner)))
}

/// A path without symlinks: what exists of it is resolved, the rest appended.
struct Resolved {
    path: PathBuf,
    existing: PathBuf,
}

impl Resolved {
    fn of(path: &Path) -> std::io::Result<Self> {
        let mut existing = std::path::absolute(path)?;
        let mut missing = PathBuf::new();
        loop {
            match existing.canonicalize() {
                Ok(found) => {
                    let path = if missing.as_os_str().is_empty() {
                        found.clone()
                    } else {
                        found.join(&missing)
                    };
                    return Ok(Self { path, existing: found });
                }
                Err(error) if error.kind() == IoKind::NotFound => {
                    // `..` after what does not exist would lead elsewhere.
                    let Some(name) = existing.file_name().map(ToOwned::to_owned) else {
                        return Err(Error::new(
                            error.kind(),
                            "a path through `..` that does not exist",
                        ));
                    };
                    missing = if missing.as_os_str().is_empty() {
                        PathBuf::from(name)
                    } else {
                        Path::new(&name).join(&missing)
                    };
                    existing.pop();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether an ancestor of `inner` is this directory.
    fn contains(&self, inner: &Self) -> std::io::Result<bool> {
        if self.path != self.existing {
            return Ok(false);
        }
        let outer = std::fs::metadata(&self.path)?;
        for at in inner.existing.ancestors() {
            let meta = std::fs::metadata(at)?;
            if (meta.dev(), meta.ino()) == (outer.dev(), outer.ino()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// One line of mountinfo (`proc_pid_mountinfo(5)`, fields 3 to 5).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    /// The folder of the filesystem that is mounted.
    root: PathBuf,
    point: PathBuf,
}

fn mounts(text: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.to_owned();
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        Some(Mount { device, root, point })
    };
    text.lines().filter_map(parse).collect()
}

/// Undoes `\040` for space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let code = field.get(i + 1..i + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[i], code) {
            (b'\\', Some(code)) => {
                out.push(code);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// The device and the path inside its filesystem.
fn inside<'m>(path: &Path, mounts: &'m [Mount]) -> Option<(&'m str, PathBuf)> {
    // Of several mounts on one point the last line is the visible one.
    let mount = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())?;
    let rest = path.strip_prefix(&mount.point).ok()?;
    Some((&mount.device, mount.root.join(rest)))
}

/// Refuses a backend directory that overlaps the volume or the mountpoint.
///
/// # Errors
/// `Invalid`, saying which two; `Unavailable` when the disk of one does not say where it is.
pub fn refuse_overlap(
    backend: &Path,
    volume: &Path,
    mountpoint: Option<&Path>,
) -> Result<(), BackendError> {
    let places = [("volume folder", Some(volume)), ("mountpoint", mountpoint)];
    for (what, place) in places.into_iter().filter_map(|(what, place)| Some((what, place?))) {
        let clash = overlaps(backend, place).map_err(|error| {
            let (one, two) = (backend.display(), place.display());
            let message =
                format!("cannot tell whether {one} and {two} lie inside each other: {error}");
            BackendError::new(ErrorKind::Unavailable, message).caused_by(error)
        })?;
        if clash {
            let message = format!(
                "the backend {} and the {what} {} lie inside each other: choose another directory",
                backend.display(),
                place.display()
            );
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_seen_through_symlinks_and_before_a_place_exists() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir_all(mount.join("inner")).unwrap();
        std::os::unix::fs::symlink(&mount, dir.path().join("alias")).unwrap();
        assert!(overlaps(&dir.path().join("alias/inner/new/er"), &mount).unwrap());
        assert!(overlaps(&mount, &dir.path().join("alias/inner")).unwrap());
        assert!(overlaps(&mount, &mount).unwrap());
        assert!(overlaps(&dir.path().join("no/such"), &dir.path().join("no")).unwrap());
        assert!(!overlaps(&dir.path().join("other"), &mount).unwrap());
        assert!(!overlaps(&dir.path().join("mount2"), &mount).unwrap());
    }

    #[test]
    fn a_bind_mount_of_a_folder_inside_the_other_place_is_seen() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    30 22 8:1 /real/vol/sub /mnt/a\\040b rw - ext4 /dev/sda1 rw\n\
                    31 22 8:2 / /mnt/disk rw - ext4 /dev/sdb1 rw\n";
        let mounts = mounts(text);
        let place = |path: &str| inside(Path::new(path), &mounts).unwrap();
        assert_eq!(place("/mnt/a b/x"), ("8:1", "/real/vol/sub/x".into()));
        assert_eq!(place("/real/vol"), ("8:1", "/real/vol".into()));
        assert_eq!(place("/mnt/disk/real/vol"), ("8:2", "/real/vol".into()));
    }

    #[test]
    fn the_message_of_an_overlap_names_both_places() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let error = refuse_overlap(&volume.join("b"), &volume, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("volume folder"), "{error}");
        let mount = dir.path().join("mnt");
        let error = refuse_overlap(dir.path(), &dir.path().join("../v"), Some(&mount)).unwrap_err();
        assert!(error.message.contains("mountpoint"), "{error}");
        refuse_overlap(&dir.path().join("b"), &volume, Some(&mount)).unwrap();
    }
}
