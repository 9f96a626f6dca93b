//! Manifests in the volume's `checkpoints` folder.

use std::fs;
use std::path::{Path, PathBuf};

use super::ReplicationError;
use crate::metadata::MetadataError;
use crate::metadata::checkpoint::{BaseEntry, Manifest};
use crate::runtime::failpoint;
use crate::types::{Cid, cid};

/// The newest local manifest. One that is damaged, or whose files are not all
/// there, leaves its number and nothing else: without files the next write is a
/// base, so that no row is missing that only the damaged one told of.
pub(super) fn newest_local(dir: &Path) -> Result<Option<(Manifest, Cid)>, ReplicationError> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    names.sort();
    let mut damaged: Option<u64> = None;
    for path in names.into_iter().rev() {
        let bytes = fs::read(&path)?;
        match Manifest::decode(&bytes) {
            Ok(manifest) => {
                let whole = damaged.is_none() && is_whole(dir, &manifest);
                if whole {
                    return Ok(Some((manifest, cid::of_raw(&bytes))));
                }
                tracing::warn!(path = %path.display(), "a checkpoint is incomplete here; a new base is written");
                let hollow = Manifest {
                    sequence: manifest.sequence.max(damaged.unwrap_or(0)),
                    deltas: Vec::new(),
                    base: BaseEntry { sequence: 0, files: Vec::new() },
                    ..manifest
                };
                return Ok(Some((hollow, cid::of_raw(&bytes))));
            }
            Err(error @ MetadataError::TooNew { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a manifest is damaged; a new base is written");
                damaged = damaged.max(number_of(&path));
            }
        }
    }
    Ok(None)
}

fn is_whole(dir: &Path, manifest: &Manifest) -> bool {
    manifest.files().all(|file| {
        let local = fs::metadata(dir.join(Manifest::local_name(file)));
        local.is_ok_and(|meta| meta.len() == file.bytes)
    })
}

/// The sequence in `base-`, `delta-` and `manifest-` names.
fn number_of(path: &Path) -> Option<u64> {
    let (_, rest) = path.file_name()?.to_str()?.split_once('-')?;
    rest.get(..12)?.parse().ok()
}

/// The sequence of the newest manifest, whole or not; 0 when there is none.
pub(super) fn newest_number(dir: &Path) -> Result<u64, ReplicationError> {
    let mut newest = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "json") {
            newest = newest.max(number_of(&path).unwrap_or(0));
        }
    }
    Ok(newest)
}

/// The highest sequence that any name in the folder has: none of them is used again.
pub(super) fn highest_local(dir: &Path) -> Result<u64, ReplicationError> {
    let mut highest = 0;
    for entry in fs::read_dir(dir)? {
        highest = highest.max(number_of(&entry?.path()).unwrap_or(0));
    }
    Ok(highest)
}

/// Removes local files of bases before `sequence`; the base before the current
/// one stays.
pub(super) fn remove_before(dir: &Path, sequence: u64) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if number_of(&path).is_none_or(|number| number >= sequence) {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "an old checkpoint stays");
        }
        failpoint::reach("checkpoint.old.removing");
    }
}
