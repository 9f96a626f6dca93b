//! Sealed event files at the backends: each a content, found by a name
//! `volumes/<volume>/events-<first>-<last>`. They come late and one by one; what a
//! backend has of the last day or so is in the checkpoint.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::files::{Source, upload};
use super::{Registry, ReplicationError};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::metadata::checkpoint::{Manifest, load_events};
use crate::metadata::{EventFile, EventLog, Namespace, check_event_file, check_events_of};
use crate::runtime::{Bridge, Shutdown};
use crate::types::{BackendId, Cid, VolumeId};

/// Deadline of one call.
const CALL: Duration = Duration::from_mins(2);
/// A backend that failed is left alone for so long.
const PAUSE: Duration = Duration::from_mins(1);

/// Brings sealed files to every backend, and takes the names of old ones away.
pub struct EventFiles {
    registry: Arc<Registry>,
    bridge: Bridge,
    shutdown: Shutdown,
    volume: VolumeId,
    state: Mutex<HashMap<BackendId, Known>>,
}

/// What is known of a backend.
enum Known {
    /// It has these, and no other.
    Has(Vec<EventFile>),
    /// Something failed.
    Failed(Instant),
}

pub(super) fn prefix(volume: &VolumeId) -> String {
    format!("volumes/{volume}/events-")
}

fn name_of(volume: &VolumeId, file: &EventFile) -> String {
    format!("{}{:020}-{:020}", prefix(volume), file.first, file.last)
}

fn file_of(volume: &VolumeId, name: &str) -> Option<EventFile> {
    let rest = name.strip_prefix(&prefix(volume))?;
    EventFile::from_name(&format!("events-{rest}.parquet"), 0)
}

impl EventFiles {
    /// For the files of a volume.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        bridge: Bridge,
        shutdown: Shutdown,
        volume: VolumeId,
    ) -> Self {
        Self { registry, bridge, shutdown, volume, state: Mutex::default() }
    }

    /// Looks at every backend in reach once. Asks none that has all.
    pub fn bring(&self, log: &EventLog) {
        let files = log.files();
        let ids: Vec<BackendId> = self.registry.specs().into_iter().map(|spec| spec.id).collect();
        self.state.lock().retain(|id, _| ids.contains(id));
        for id in ids {
            let due = match self.state.lock().get(&id) {
                None => !files.is_empty(),
                Some(Known::Has(has)) => *has != files,
                Some(Known::Failed(at)) => at.elapsed() >= PAUSE,
            };
            let Some(backend) = self.registry.get(&id).filter(|_| due) else { continue };
            if backend.capabilities().read_only || self.shutdown.is_triggered() {
                continue;
            }
            let tracker = self.registry.tracker(&id);
            let _upload = tracker.as_ref().map(|tracker| tracker.upload());
            let known = match self.bring_to(&backend, log.dir(), &files) {
                Ok(()) => Known::Has(files.clone()),
                Err(error) => {
                    tracing::warn!(%error, backend = %id, "event files wait for a backend");
                    Known::Failed(Instant::now())
                }
            };
            self.state.lock().insert(id, known);
        }
    }

    fn call<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        match self.bridge.wait(CALL, future) {
            Ok(result) => Ok(result?),
            Err(e) => Err(BackendError::new(ErrorKind::Timeout, e.to_string()).into()),
        }
    }

    fn bring_to(
        &self,
        backend: &Arc<dyn Backend>,
        dir: &Path,
        files: &[EventFile],
    ) -> Result<(), ReplicationError> {
        let names = self.call(backend.names(&prefix(&self.volume)))?;
        let there: BTreeSet<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        for file in files {
            let name = name_of(&self.volume, file);
            if there.contains(name.as_str()) {
                continue;
            }
            if self.shutdown.is_triggered() {
                return Err(ReplicationError::ShuttingDown);
            }
            let path = dir.join(file.name());
            if let Err(error) = check_event_file(&path) {
                // Its time was over just now; or it is damaged, and not passed on.
                tracing::warn!(%error, "an event file is not sent");
                continue;
            }
            let root = upload(&self.bridge, backend, &path)?;
            self.call(backend.put_name(&name, &root))?;
        }
        // What is older than all that is kept here went by its age or size.
        let Some(first) = files.first().map(|file| file.first) else { return Ok(()) };
        let old = |name: &str| file_of(&self.volume, name).is_some_and(|file| file.last < first);
        for (name, _) in names.iter().filter(|(name, _)| old(name)) {
            self.call(backend.delete_name(name))?;
        }
        Ok(())
    }
}

/// Takes up the events of a volume that was just recovered: its event files into
/// `dir`, and those of the checkpoint that no file has. What is not whole is left
/// out, and said: events are no part of the state.
///
/// # Errors
/// `Io`; `Metadata` of the engine.
pub fn recover_events(
    backend: &Arc<dyn Backend>,
    manifest: &Manifest,
    (checkpoints, dir): (&Path, &Path),
    namespace: &Namespace,
    bridge: &Bridge,
) -> Result<(), ReplicationError> {
    fs::create_dir_all(dir)?;
    let source = Source { backend, bridge };
    let mut sealed = 0;
    let names = source.call(backend.names(&prefix(&manifest.volume)));
    let names = names.unwrap_or_else(|error| {
        tracing::warn!(%error, "the backend does not list its event files");
        Vec::new()
    });
    for (name, root) in names {
        let Some(file) = file_of(&manifest.volume, &name) else { continue };
        match bring_back(&source, &root, (dir, &file)) {
            Ok(()) => sealed = sealed.max(file.last.saturating_add(1)),
            Err(error) => tracing::warn!(name, %error, "an event file is passed over"),
        }
    }
    let base = checkpoints.join(format!("base-{:012}", manifest.base.sequence));
    let deltas: Vec<_> =
        manifest.deltas.iter().map(|file| checkpoints.join(Manifest::local_name(file))).collect();
    // A base's events may be of before the last file: rows that a file has are left.
    namespace.load_events(sealed, &mut load_events(&base, deltas)?)?;
    Ok(())
}

/// Brings a file of a volume from the first backend that has it whole, in the place of
/// the one in `dir`, which stays when none has.
///
/// # Errors
/// `Io`, of the last backend that was asked; `NotFound` of none.
pub fn repair_event_file(
    registry: &Registry,
    bridge: &Bridge,
    volume: &VolumeId,
    (dir, file): (&Path, &EventFile),
) -> Result<BackendId, ReplicationError> {
    let mut last = None;
    for id in registry.specs().into_iter().map(|spec| spec.id) {
        let Some(backend) = registry.get(&id) else { continue };
        let source = Source { backend: &backend, bridge };
        let found = source.call(backend.names(&name_of(volume, file)));
        let brought = found.and_then(|names| match names.first() {
            Some((_, root)) => bring_back(&source, root, (dir, file)),
            None => Err(missing(file)),
        });
        match brought {
            Ok(()) => return Ok(id),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| missing(file)))
}

fn missing(file: &EventFile) -> ReplicationError {
    let text = format!("no backend in reach has {}", file.name());
    BackendError::new(ErrorKind::NotFound, text).into()
}

fn bring_back(
    source: &Source<'_>,
    root: &Cid,
    (dir, file): (&Path, &EventFile),
) -> Result<(), ReplicationError> {
    let path = dir.join(file.name());
    let temporary = path.with_extension("parquet.tmp");
    source.whole_file(root, &temporary)?;
    if let Err(error) = check_events_of(&temporary, file) {
        fs::remove_file(&temporary)?;
        return Err(error.into());
    }
    fs::rename(&temporary, &path)?;
    // The name is durable with its folder.
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}
