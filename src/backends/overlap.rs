//! Refuses places that lie inside each other: a backend under the mount would
//! wait for itself (restic#5234, rclone#4103).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{BackendError, ErrorKind};

/// Whether one of two directories is, or lies inside, the other. Symlinks are
/// resolved; bind mounts too, since ancestors are compared by device and inode.
///
/// # Errors
/// When an existing part of a path cannot be read.
pub fn overlaps(a: &Path, b: &Path) -> std::io::Result<bool> {
    Ok(contains(a, b)? || contains(b, a)?)
}

/// The deepest existing directory of a path, symlinks resolved.
fn existing(path: &Path) -> std::io::Result<PathBuf> {
    let mut at = std::path::absolute(path)?;
    loop {
        match at.canonicalize() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && at.pop() => {}
            other => return other,
        }
    }
}

fn contains(outer: &Path, inner: &Path) -> std::io::Result<bool> {
    let Ok(outer) = std::fs::metadata(outer) else { return Ok(false) };
    let inner = existing(inner)?;
    for at in inner.ancestors() {
        let meta = std::fs::metadata(at)?;
        if (meta.dev(), meta.ino()) == (outer.dev(), outer.ino()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a backend directory that overlaps the volume or the mountpoint.
///
/// # Errors
/// `Invalid`, saying which two.
pub fn refuse_overlap(backend: &Path, volume: &Path, mountpoint: Option<&Path>) -> Result<(), BackendError> {
    let places = [("volume folder", Some(volume)), ("mountpoint", mountpoint)];
    for (what, place) in places.into_iter().filter_map(|(what, place)| Some((what, place?))) {
        let clash = overlaps(backend, place).map_err(|e| {
            let text = format!("cannot compare {} with {}: {e}", backend.display(), place.display());
            BackendError::new(ErrorKind::Invalid, text).caused_by(e)
        })?;
        if clash {
            let text = format!(
                "the backend {} and the {what} {} lie inside each other: choose another directory",
                backend.display(),
                place.display()
            );
            return Err(BackendError::new(ErrorKind::Invalid, text));
        }
    }
    Ok(())
}
