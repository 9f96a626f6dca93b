//! Finds the newest complete checkpoint on a backend and loads it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::checkpointer::name_prefix;
use super::files::Source;
use super::{Policy, ReplicationError};
use crate::backends::{Backend, BackendSpec};
use crate::metadata::checkpoint::{Manifest, load_checkpoint};
use crate::metadata::{Change, Namespace};
use crate::runtime::{Bridge, failpoint};
use crate::types::{Cid, VolumeId};

/// Where to recover from.
pub struct RecoverSource {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Which volume, when several lie there.
    pub volume: Option<VolumeId>,
}

/// What was recovered.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The manifest that was loaded.
    pub manifest: Manifest,
    /// Its CID.
    pub cid: Cid,
    /// The volume's policy.
    pub policy: Policy,
    /// Its policies by name.
    pub definitions: BTreeMap<String, String>,
    /// Its backends, without secrets.
    pub backends: Vec<BackendSpec>,
    /// Rows loaded.
    pub rows: u64,
    /// Newer manifests that were incomplete, with the reason.
    pub skipped: Vec<String>,
}

/// Finds the newest complete manifest, verifies it, and loads base and deltas
/// into an empty tree (local copies dropped: the local disk is new). The files
/// are kept in `checkpoints`, where the volume goes on from them.
///
/// # Errors
/// `NoCheckpoint`; of the backend and the engine.
pub fn recover(
    source: &RecoverSource,
    namespace: &Namespace,
    checkpoints: &Path,
    bridge: &Bridge,
) -> Result<Recovered, ReplicationError> {
    let from = Source { backend: &source.backend, bridge };
    let location = source.backend.location();
    let none =
        |reason: String| ReplicationError::NoCheckpoint { location: location.clone(), reason };
    let names = from.call(source.backend.names("volumes/"))?;
    let mut volumes: BTreeMap<String, Vec<(String, Cid)>> = BTreeMap::new();
    for (name, id) in names {
        if let Some(volume) = name.split('/').nth(1) {
            volumes.entry(volume.to_owned()).or_default().push((name, id));
        }
    }
    let wanted = match (&source.volume, volumes.len()) {
        (Some(volume), _) => volume.to_string(),
        (None, 1) => volumes.keys().next().cloned().unwrap_or_default(),
        (None, 0) => return Err(none("no volume has written its metadata there".into())),
        (None, _) => {
            let ids: Vec<&str> = volumes.keys().map(String::as_str).collect();
            return Err(none(format!(
                "several volumes lie there ({}); choose one with --volume-id",
                ids.join(", ")
            )));
        }
    };
    let mut manifests = volumes.remove(&wanted).unwrap_or_default();
    manifests.retain(|(name, _)| {
        wanted.parse().is_ok_and(|volume: VolumeId| name.starts_with(&name_prefix(&volume)))
    });
    manifests.sort();
    fs::create_dir_all(checkpoints)?;
    let mut skipped = Vec::new();
    for (name, id) in manifests.into_iter().rev() {
        match fetch(&from, &id, checkpoints) {
            Ok(manifest) => {
                failpoint::reach("recover.fetched");
                return load(namespace, manifest, id, checkpoints, skipped);
            }
            Err(error) => skipped.push(format!("{name}: {error}")),
        }
    }
    let reason =
        if skipped.is_empty() { format!("none of volume {wanted}") } else { skipped.join("; ") };
    Err(none(reason))
}

fn fetch(from: &Source<'_>, id: &Cid, checkpoints: &Path) -> Result<Manifest, ReplicationError> {
    let bytes = from.block(id)?;
    let manifest = Manifest::decode(&bytes)?;
    for file in manifest.files() {
        let path = checkpoints.join(Manifest::local_name(file));
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let root = file.cid.parse().map_err(std::io::Error::other)?;
        from.file(root, file.bytes, &path)?;
    }
    let path = checkpoints.join(format!("manifest-{:012}.json", manifest.sequence));
    fs::write(&path, &bytes)?;
    File::open(&path)?.sync_all()?;
    Ok(manifest)
}

fn load(
    namespace: &Namespace,
    manifest: Manifest,
    id: Cid,
    checkpoints: &Path,
    skipped: Vec<String>,
) -> Result<Recovered, ReplicationError> {
    let base = checkpoints.join(format!("base-{:012}", manifest.base.sequence));
    let deltas: Vec<_> =
        manifest.deltas.iter().map(|file| checkpoints.join(Manifest::local_name(file))).collect();
    let mut rows = load_checkpoint(&base, &deltas)?.map(|change| match change? {
        Change::Content(root, Some(mut record)) => {
            record.copies.retain(|copy| !copy.backend.is_local());
            Ok(Change::Content(root, Some(record)))
        }
        other => Ok(other),
    });
    let count = namespace.load_rows(&mut rows)?;
    failpoint::reach("recover.loaded");
    namespace.note_checkpoint(manifest.sequence)?;
    let policy =
        manifest.policy.parse().map_err(|e| ReplicationError::Io(std::io::Error::other(e)))?;
    let backends = manifest
        .backends
        .iter()
        .filter_map(|(id, url)| Some(BackendSpec { id: id.parse().ok()?, url: url.clone() }))
        .map(|spec| spec.without_auth())
        .collect();
    let definitions = manifest.policies.clone();
    Ok(Recovered { cid: id, policy, definitions, backends, rows: count, skipped, manifest })
}
