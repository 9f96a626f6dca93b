//! Writes checkpoints and replicates them.
//!
//! One writer at a time takes all changes so far into a delta (or a base),
//! makes it and the manifest durable locally, and clears the marks; callers of
//! [`Checkpointer::acknowledge`] that came meanwhile share the next one. A
//! thread a backend brings the newest manifest there: files, then the manifest
//! block, then the name that points to it; a backend that was away catches up by
//! the same loop. Locks: `state`, never held over a file or a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::fence::Fence;
use super::files::{Source, upload};
use super::local_manifests::{highest_local, newest_local, newest_number, remove_before};
use super::looks::Looks;
use super::machine::DomainSet;
use super::{Level, OnDegraded, Policy, Registry, ReplicationError};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::content::{Profile, import_file};
use crate::metadata::Namespace;
use crate::metadata::checkpoint::{
    BaseEntry, BaseWriter, DeltaWriter, FileEntry, Manifest, WrittenFile,
};
use crate::runtime::{Bridge, Clock, Shutdown, failpoint};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, VolumeId, WriterId, cid};

/// Manifest names that a backend keeps.
const KEPT_NAMES: usize = 8;
/// How often who waits looks at the places.
const LOOK: Duration = Duration::from_millis(500);
/// Until a backend with a checkpoint that is not ours is looked at again.
const REFUSED_PAUSE: Duration = Duration::from_mins(1);

/// Times and limits of checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointerOptions {
    /// The volume's `checkpoints` folder (plain Parquet files for people and `DuckDB`).
    pub dir: PathBuf,
    /// Whose metadata this is.
    pub volume: VolumeId,
    /// Which life of the volume writes.
    pub writer: WriterId,
    /// Content profile name, for the manifest.
    pub profile: String,
    /// A delta at least this often while there are changes.
    pub delta_interval: Duration,
    /// A new base after this long with changes.
    pub base_interval: Duration,
    /// A new base when the deltas exceed this many bytes.
    pub base_bytes: u64,
    /// A new base when there are this many deltas.
    pub max_deltas: usize,
    /// How long an acknowledgement waits for backends.
    pub level_deadline: Duration,
    /// The volume's policies by name (they are in the manifest).
    pub definitions: BTreeMap<String, String>,
}

/// The last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Rises by one with each manifest; 0 when there is none.
    pub sequence: u64,
    /// CID of the manifest.
    pub cid: Option<String>,
    /// Seconds since it was written.
    pub age_s: u64,
    /// Places that hold it whole, the local one included.
    pub copies: u32,
    /// Backends that no metadata is written to, with the reason.
    pub refused: Vec<String>,
}

#[derive(Default)]
struct State {
    manifest: Option<Arc<Manifest>>,
    manifest_cid: Option<Cid>,
    base_written: Option<Instant>,
    /// Newest sequence that each backend holds whole.
    complete: BTreeMap<BackendId, u64>,
    /// Backends that no metadata is written to, and why.
    refused: BTreeMap<BackendId, String>,
    /// Backends with a thread.
    served: BTreeSet<BackendId>,
    /// Group commit: writes begun and ended, and whether one runs.
    begun: u64,
    ended: u64,
    running: bool,
    policy: Policy,
    definitions: BTreeMap<String, String>,
    /// Sequences up to this are taken, here or at a backend.
    floor: u64,
    /// Why the last write failed, for those who waited for it.
    failed: Option<(u64, String)>,
}

/// Writes base and deltas, and replicates them.
pub struct Checkpointer {
    namespace: Arc<Namespace>,
    registry: Arc<Registry>,
    bridge: Bridge,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    options: CheckpointerOptions,
    fence: Arc<Fence>,
    looks: Looks,
    state: Mutex<State>,
    changed: Condvar,
    /// As `changed`, for who holds no thread.
    events: watch::Sender<u64>,
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Names of a volume's manifests on a backend.
pub(super) fn name_prefix(volume: &VolumeId) -> String {
    format!("volumes/{volume}/manifest-")
}

impl Checkpointer {
    /// Reads the newest local manifest and starts the interval thread.
    ///
    /// # Errors
    /// `Io`; `Metadata` when a local manifest is of a newer format; `Behind`.
    pub fn start(
        namespace: Arc<Namespace>,
        registry: Arc<Registry>,
        policy: Policy,
        bridge: Bridge,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
        options: CheckpointerOptions,
    ) -> Result<Arc<Self>, ReplicationError> {
        fs::create_dir_all(&options.dir)?;
        let known = namespace.noted_checkpoint()?;
        let found = newest_number(&options.dir)?;
        if found > known {
            let location = options.dir.display().to_string();
            return Err(ReplicationError::Behind { known, found, location });
        }
        let floor = known.max(highest_local(&options.dir)?);
        let definitions = options.definitions.clone();
        let mut state = State { policy, definitions, floor, ..State::default() };
        if let Some((manifest, id)) = newest_local(&options.dir)? {
            state.manifest = Some(Arc::new(manifest));
            state.manifest_cid = Some(id);
        }
        let fence = Arc::new(Fence::new(options.volume));
        registry.set_fence(Arc::clone(&fence));
        let checkpointer = Arc::new(Self {
            namespace,
            registry,
            bridge,
            clock,
            shutdown,
            fence,
            looks: Looks::default(),
            options,
            state: Mutex::new(state),
            changed: Condvar::new(),
            events: watch::Sender::new(0),
        });
        let ticker = Arc::clone(&checkpointer);
        std::thread::Builder::new().name("cairn-checkpoint".into()).spawn(move || ticker.tick())?;
        checkpointer.serve_backends();
        Ok(checkpointer)
    }

    fn notify(&self) {
        self.changed.notify_all();
        self.events.send_modify(|events| *events = events.wrapping_add(1));
    }

    fn tick(self: Arc<Self>) {
        loop {
            let stopped = self.shutdown.wait(self.options.delta_interval);
            if stopped {
                self.notify();
                return;
            }
            self.serve_backends();
            match self.namespace.has_marks() {
                Ok(true) => {
                    if let Err(error) = self.write_shared(false) {
                        tracing::error!(%error, "a checkpoint failed; it is tried again");
                    }
                }
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the metadata cannot be read"),
            }
        }
    }

    /// Starts a thread for each backend that has none.
    pub fn serve_backends(self: &Arc<Self>) {
        for spec in self.registry.specs() {
            if self.state.lock().served.insert(spec.id.clone()) {
                let worker = Arc::clone(self);
                let id = spec.id.clone();
                let started = std::thread::Builder::new()
                    .name("cairn-metadata".into())
                    .spawn(move || worker.serve(&id));
                if let Err(error) = started {
                    tracing::error!(%error, backend = %spec.id, "no thread for the metadata of a backend");
                    self.state.lock().served.remove(&spec.id);
                }
            }
        }
    }

    /// Brings the newest manifest to one backend, for as long as it is there.
    fn serve(&self, id: &BackendId) {
        loop {
            if self.shutdown.is_triggered() {
                return;
            }
            let due = {
                let mut state = self.state.lock();
                let have = state.complete.get(id).copied().unwrap_or(0);
                let due = state
                    .manifest
                    .clone()
                    .filter(|m| m.sequence > have && !m.base.files.is_empty())
                    .zip(state.manifest_cid);
                if due.is_none() {
                    self.changed.wait_for(&mut state, Duration::from_secs(1));
                }
                due.map(|due| (due, have))
            };
            if !self.registry.specs().iter().any(|spec| spec.id == *id) {
                self.state.lock().served.remove(id);
                return;
            }
            let Some(((manifest, manifest_cid), have)) = due else {
                self.look_again(id);
                continue;
            };
            let done = match self.registry.get(id) {
                Some(backend) if backend.capabilities().read_only => {
                    Err(BackendError::new(ErrorKind::ReadOnly, "read-only").into())
                }
                Some(backend) => {
                    let tracker = self.registry.tracker(id);
                    let _upload = tracker.as_ref().map(|tracker| tracker.upload());
                    self.upload((id, &backend), &manifest, &manifest_cid, have)
                }
                None => Err(BackendError::new(ErrorKind::Unavailable, "not in reach").into()),
            };
            match done {
                Ok(true) => {
                    let mut state = self.state.lock();
                    state.complete.insert(id.clone(), manifest.sequence);
                    state.refused.remove(id);
                    drop(state);
                    self.notify();
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%error, backend = %id, "the metadata waits for a backend");
                    // Of one that is down it is known why.
                    if let ReplicationError::Backend(error) = &error
                        && self.registry.get(id).is_some()
                    {
                        self.registry.failed(id, error);
                    }
                    self.notify();
                    let refused = matches!(
                        error,
                        ReplicationError::Behind { .. } | ReplicationError::Fenced { .. }
                    );
                    let pause = if refused {
                        tracing::error!(%error, backend = %id, "no metadata is written there");
                        self.state.lock().refused.insert(id.clone(), error.to_string());
                        REFUSED_PAUSE
                    } else {
                        Duration::from_millis(500)
                    };
                    if self.shutdown.wait(pause) {
                        return;
                    }
                }
            }
        }
    }

    /// Has a checkpoint that a backend lost brought there again.
    fn look_again(&self, id: &BackendId) {
        let (held, have) = {
            let state = self.state.lock();
            let held = state.manifest.clone().zip(state.manifest_cid);
            (held, state.complete.get(id).copied())
        };
        let Some((manifest, cid)) = held.filter(|(m, _)| Some(m.sequence) == have) else { return };
        let ways = (self.registry.as_ref(), &self.bridge);
        if self.looks.is_lost(id, ways, (&manifest, &cid), self.clock.now()) {
            self.state.lock().complete.remove(id);
        }
    }

    /// A backend is back: it may be another disk.
    pub fn doubt(&self, id: &BackendId) {
        self.looks.doubt(id);
        self.notify();
    }

    fn call<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        match self.bridge.wait(Duration::from_mins(10), future) {
            Ok(result) => Ok(result?),
            Err(e) => Err(BackendError::new(ErrorKind::Timeout, e.to_string()).into()),
        }
    }

    /// Brings a manifest and its files to a backend. False: it could not be
    /// this one, and a new base was written instead.
    fn upload(
        &self,
        (id, backend): (&BackendId, &Arc<dyn Backend>),
        manifest: &Manifest,
        manifest_cid: &Cid,
        have: u64,
    ) -> Result<bool, ReplicationError> {
        let source = Source { backend, bridge: &self.bridge };
        let is_there = have == 0 && self.refuse_to_bury(backend, manifest, manifest_cid)?;
        if !is_there {
            self.fence.hold(id, &source)?;
        }
        // A backend that holds manifest `have` whole holds all files up to it.
        for file in manifest.files().filter(|file| file.sequence > have) {
            let path = self.options.dir.join(Manifest::local_name(file));
            match upload(&self.bridge, backend, &path) {
                Ok(id) if id.to_string() == file.cid => {}
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {
                    tracing::error!(path = %path.display(), "a checkpoint is damaged here; a new base is written");
                    return self.begin_anew(manifest);
                }
            }
        }
        failpoint::reach("checkpoint.upload.files");
        let block = Block { cid: *manifest_cid, data: Bytes::from(manifest.encode()?) };
        self.call(backend.put(&block))?;
        failpoint::reach("checkpoint.upload.manifest");
        if is_there {
            return Ok(true);
        }
        self.fence.hold(id, &source)?;
        let prefix = name_prefix(&manifest.volume);
        self.call(backend.put_name(&format!("{prefix}{:020}", manifest.sequence), manifest_cid))?;
        failpoint::reach("checkpoint.upload.named");
        if manifest.sequence.is_multiple_of(4) || have == 0 {
            let names = self.call(backend.names(&prefix))?;
            for (old, _) in names.iter().rev().skip(KEPT_NAMES) {
                self.call(backend.delete_name(old))?;
                failpoint::reach("checkpoint.upload.trimmed");
            }
        }
        Ok(true)
    }

    /// Refuses a backend that has a checkpoint which this tree does not know:
    /// a newer name here would bury it. True when this manifest is the newest there.
    fn refuse_to_bury(
        &self,
        backend: &Arc<dyn Backend>,
        manifest: &Manifest,
        manifest_cid: &Cid,
    ) -> Result<bool, ReplicationError> {
        let prefix = name_prefix(&manifest.volume);
        let names = self.call(backend.names(&prefix))?;
        let number = |name: &str| name.strip_prefix(&prefix)?.parse::<u64>().ok();
        let newest = names.iter().filter_map(|(name, id)| Some((number(name)?, *id))).max();
        match newest {
            Some((found, id))
                if found > manifest.sequence
                    || (found == manifest.sequence && id != *manifest_cid) =>
            {
                let location = backend.location();
                Err(ReplicationError::Behind { known: manifest.sequence, found, location })
            }
            Some((found, _)) => Ok(found == manifest.sequence),
            None => Ok(false),
        }
    }

    /// Writes a base unless one was written after `seen`; its upload is next.
    fn begin_anew(&self, seen: &Manifest) -> Result<bool, ReplicationError> {
        let done = {
            let state = self.state.lock();
            let base = state.manifest.as_ref().map_or(0, |manifest| manifest.base.sequence);
            base > seen.sequence
        };
        if !done {
            self.write_shared(true)?;
        }
        Ok(false)
    }

    /// Returns when all changes committed before the call are in a delta that
    /// is durable on as many places as the level asks of the metadata
    /// (`LOCAL_DURABILITY`: the engine is persisted, no delta). Calls at the same
    /// time share one delta.
    ///
    /// # Errors
    /// `Metadata`, `Io`; `BelowLevel` when the policy says fail.
    pub fn acknowledge(self: &Arc<Self>, policy: &Policy) -> Result<(), ReplicationError> {
        match self.record(policy)? {
            Some(sequence) => self.bridge.block_on(self.reached(sequence, policy)),
            None => Ok(()),
        }
    }

    /// The local part of [`Checkpointer::acknowledge`]; `None` when there is no
    /// other, else the sequence that backends must have.
    ///
    /// # Errors
    /// `Metadata`, `Io`.
    pub fn record(&self, policy: &Policy) -> Result<Option<u64>, ReplicationError> {
        self.namespace.engine().persist()?;
        if policy.level == Level::LocalDurability || self.registry.is_empty() {
            return Ok(None);
        }
        self.write_shared(false).map(Some)
    }

    /// The other part: waits until the level's places have `sequence`. Holds no
    /// thread.
    ///
    /// # Errors
    /// `BelowLevel` when the policy says fail.
    pub fn reached(
        self: &Arc<Self>,
        sequence: u64,
        policy: &Policy,
    ) -> impl Future<Output = Result<(), ReplicationError>> + Send + use<> {
        let (this, policy) = (Arc::clone(self), policy.clone());
        async move {
            let start = Instant::now();
            let mut changes = this.events.subscribe();
            loop {
                let (have, want) = {
                    let state = this.state.lock();
                    (this.copies_of(&state, sequence), this.wanted(&state, &policy))
                };
                if have >= want {
                    return Ok(());
                }
                let over = this.shutdown.is_triggered();
                if over || start.elapsed() >= this.options.level_deadline {
                    return match policy.on_degraded {
                        OnDegraded::Queue => Ok(()),
                        OnDegraded::Fail => {
                            let reason = "the metadata waits for backends".to_owned();
                            Err(ReplicationError::BelowLevel { have, want, reason })
                        }
                    };
                }
                // An error says that nothing changes any more; it is late then.
                drop(tokio::time::timeout(LOOK, changes.changed()).await);
            }
        }
    }

    /// The metadata's quorum is `max(3, N/2 + 1)` of N places in reach, clipped
    /// to N.
    fn wanted(&self, state: &State, policy: &Policy) -> usize {
        if policy.level == Level::All && policy.on_degraded == OnDegraded::Fail {
            // Every place, not every one that happens to be in reach.
            return self.registry.places().configured(&DomainSet::default(), policy);
        }
        let places = self.registry.places_now().saturating_sub(state.refused.len()).max(1);
        let local_counts = !self.registry.is_local_cache();
        match policy.level {
            Level::LocalDurability => usize::from(local_counts),
            Level::Progressive => 1,
            Level::Single | Level::Tiered => {
                policy.copies_to_wait_for(places, local_counts).min(places)
            }
            Level::Quorum => 3.max(places / 2 + 1).min(places),
            Level::All => places,
        }
    }

    fn copies_of(&self, state: &State, sequence: u64) -> usize {
        let holders = state.complete.iter().filter(|(_, held)| **held >= sequence);
        let mut domains: BTreeSet<String> =
            holders.filter_map(|(id, _)| self.registry.counted_domain_of(id)).collect();
        // Who loses a cache loses the metadata beside it, too.
        domains.extend(self.registry.counted_domain_of(&BackendId::local()));
        domains.len()
    }

    /// Writes a delta now (`base`: a new base), and waits for the backends in
    /// reach.
    ///
    /// # Errors
    /// `Metadata`, `Io`.
    pub fn checkpoint(&self, base: bool) -> Result<CheckpointStatus, ReplicationError> {
        self.checkpoint_within(base, self.options.level_deadline)
    }

    /// As [`Checkpointer::checkpoint`], and waits for backends no longer than this.
    ///
    /// # Errors
    /// `Metadata`, `Io`.
    pub fn checkpoint_within(
        &self,
        base: bool,
        most: Duration,
    ) -> Result<CheckpointStatus, ReplicationError> {
        self.namespace.engine().persist()?;
        let sequence = self.write_shared(base)?;
        let start = Instant::now();
        let mut state = self.state.lock();
        while start.elapsed() < most {
            let lagging = self.registry.places().all.iter().any(|c| {
                c.available
                    && !c.id.is_local()
                    && !state.refused.contains_key(&c.id)
                    && state.complete.get(&c.id).is_none_or(|held| *held < sequence)
            });
            if !lagging {
                break;
            }
            self.changed.wait_for(&mut state, LOOK.min(most));
        }
        drop(state);
        Ok(self.status())
    }

    /// Writes what has changed into a delta, durable locally. Waits for nobody.
    ///
    /// # Errors
    /// `Metadata`, `Io`.
    pub fn write_local(&self) -> Result<u64, ReplicationError> {
        self.namespace.engine().persist()?;
        self.write_shared(false)
    }

    /// Waits for the next delta that the interval writes, so that it has all
    /// changes committed before the call; when there are none, the last
    /// checkpoint has them already. `None` when the deadline passed.
    ///
    /// # Errors
    /// `Metadata`.
    pub fn wait_for_regular(
        &self,
        deadline: Duration,
    ) -> Result<Option<CheckpointStatus>, ReplicationError> {
        let start = Instant::now();
        let mut state = self.state.lock();
        let mine = state.begun + 1;
        while state.ended < mine && (state.running || self.namespace.has_marks()?) {
            if start.elapsed() >= deadline || self.shutdown.is_triggered() {
                return Ok(None);
            }
            self.changed.wait_for(&mut state, Duration::from_millis(250));
        }
        drop(state);
        Ok(Some(self.status()))
    }

    /// Whether a backend has the newest checkpoint.
    #[must_use]
    pub fn is_complete_at(&self, id: &BackendId) -> bool {
        let state = self.state.lock();
        let has = |sequence| state.complete.get(id).is_some_and(|held| *held >= sequence);
        state.manifest.as_ref().is_none_or(|manifest| has(manifest.sequence))
    }

    /// Sequence of the newest checkpoint that a backend holds whole, as far as this
    /// opening knows.
    pub(super) fn held_by(&self, id: &BackendId) -> u64 {
        self.state.lock().complete.get(id).copied().unwrap_or(0)
    }

    /// Why no metadata is written to a backend.
    pub(super) fn refusal_of(&self, id: &BackendId) -> Option<String> {
        self.state.lock().refused.get(id).cloned()
    }

    /// Whether this opening may change backends.
    pub(super) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The last checkpoint. Asks nobody.
    pub fn status(&self) -> CheckpointStatus {
        let state = self.state.lock();
        let Some(manifest) = &state.manifest else { return CheckpointStatus::default() };
        let age = self.clock.now().seconds.saturating_sub(manifest.created.seconds);
        let holders = state.complete.values().filter(|held| **held >= manifest.sequence).count();
        let here = u32::from(!self.registry.is_local_cache());
        CheckpointStatus {
            sequence: manifest.sequence,
            cid: state.manifest_cid.map(|id| id.to_string()),
            age_s: u64::try_from(age).unwrap_or(0),
            copies: u32::try_from(holders).unwrap_or(u32::MAX).saturating_add(here),
            refused: state.refused.iter().map(|(id, why)| format!("{id}: {why}")).collect(),
        }
    }

    /// The volume's policies changed (they are in the manifest).
    pub fn set_policies(&self, policy: Policy, definitions: BTreeMap<String, String>) {
        let mut state = self.state.lock();
        (state.policy, state.definitions) = (policy, definitions);
    }

    /// Writes, or shares a write that begins after this call. Returns a
    /// sequence that covers everything before the call.
    fn write_shared(&self, base: bool) -> Result<u64, ReplicationError> {
        let mut state = self.state.lock();
        let mine = state.begun + 1;
        loop {
            if let Some((number, reason)) = &state.failed
                && *number >= mine
            {
                return Err(ReplicationError::Io(std::io::Error::other(reason.clone())));
            }
            if state.ended >= mine && !base {
                return Ok(state.manifest.as_ref().map_or(0, |manifest| manifest.sequence));
            }
            if state.running {
                self.changed.wait(&mut state);
                continue;
            }
            state.running = true;
            state.begun += 1;
            let number = state.begun;
            let previous = state.manifest.clone();
            let need_base = base || self.needs_base(&state);
            let policies = (state.policy.clone(), state.definitions.clone());
            let newest = previous.as_ref().map_or(0, |manifest| manifest.sequence);
            let sequence = newest.max(state.floor) + 1;
            drop(state);
            let result = self.write(previous.as_deref(), need_base, sequence, policies);
            state = self.state.lock();
            state.running = false;
            self.notify();
            match result {
                Ok(written) => {
                    state.ended = number;
                    if let Some((manifest, id)) = written {
                        if manifest.base.sequence == manifest.sequence {
                            state.base_written = Some(Instant::now());
                        }
                        state.manifest = Some(Arc::new(manifest));
                        state.manifest_cid = Some(id);
                    }
                    return Ok(state.manifest.as_ref().map_or(0, |manifest| manifest.sequence));
                }
                Err(error) => {
                    state.failed = Some((number, error.to_string()));
                    return Err(error);
                }
            }
        }
    }

    fn needs_base(&self, state: &State) -> bool {
        let Some(manifest) = &state.manifest else { return true };
        if manifest.base.files.is_empty() {
            return true;
        }
        let bytes: u64 = manifest.deltas.iter().map(|delta| delta.bytes).sum();
        let old = state.base_written.is_some_and(|at| at.elapsed() >= self.options.base_interval);
        let grown =
            bytes >= self.options.base_bytes || manifest.deltas.len() >= self.options.max_deltas;
        grown || (old && !manifest.deltas.is_empty())
    }

    /// One base or delta with its manifest, durable locally. `None` when there
    /// was nothing to write.
    fn write(
        &self,
        previous: Option<&Manifest>,
        base: bool,
        sequence: u64,
        (policy, policies): (Policy, BTreeMap<String, String>),
    ) -> Result<Option<(Manifest, Cid)>, ReplicationError> {
        if !base && !self.namespace.has_marks()? {
            return Ok(None);
        }
        let start = Instant::now();
        let dir = &self.options.dir;
        self.namespace.note_checkpoint(sequence)?;
        failpoint::reach("checkpoint.write.noted");
        let (token, base_entry, deltas) = match previous {
            Some(previous) if !base => {
                let path = dir.join(format!("delta-{sequence:012}.parquet"));
                let mut writer = DeltaWriter::create(path, sequence)?;
                let token =
                    self.namespace.snapshot_rows(true, &mut |change| writer.push(&change))?;
                let mut deltas = previous.deltas.clone();
                deltas.push(entry(&writer.finish()?, sequence)?);
                failpoint::reach("checkpoint.delta.written");
                (token, previous.base.clone(), deltas)
            }
            _ => {
                let folder = dir.join(format!("base-{sequence:012}"));
                fs::create_dir_all(&folder)?;
                sync_dir(dir)?;
                failpoint::reach("checkpoint.base.begun");
                let mut writer = BaseWriter::create(&folder, sequence)?;
                let token =
                    self.namespace.snapshot_rows(false, &mut |change| writer.push(&change))?;
                let files = writer
                    .finish()?
                    .iter()
                    .map(|file| entry(file, sequence))
                    .collect::<Result<_, _>>()?;
                failpoint::reach("checkpoint.base.written");
                (token, BaseEntry { sequence, files }, Vec::new())
            }
        };
        let stats = self.namespace.stats();
        let mut versions = previous.map(|manifest| manifest.versions.clone()).unwrap_or_default();
        versions.insert(self.options.writer.to_string(), sequence);
        let manifest = Manifest {
            format: Manifest::format_for(&policies),
            volume: self.options.volume,
            sequence,
            previous: self.state.lock().manifest_cid.map(|id| id.to_string()),
            base: base_entry,
            deltas,
            policy: policy.to_string(),
            policies,
            profile: self.options.profile.clone(),
            backends: self
                .registry
                .specs()
                .into_iter()
                .map(|s| (s.id.to_string(), s.without_auth().url))
                .collect(),
            writer: self.options.writer,
            versions,
            created: self.clock.now(),
            files: stats.files,
            bytes: stats.bytes,
        };
        let bytes = manifest.encode()?;
        let path = dir.join(format!("manifest-{sequence:012}.json"));
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        failpoint::reach("checkpoint.manifest.written");
        fs::rename(&temporary, &path)?;
        sync_dir(dir)?;
        failpoint::reach("checkpoint.manifest.named");
        self.namespace.clear_marks(&token)?;
        failpoint::reach("checkpoint.marks.cleared");
        let metrics = telemetry::metrics();
        metrics.checkpoint_deltas_written.inc();
        let new = manifest.files().filter(|file| file.sequence == sequence);
        let new: u64 = new.map(|file| file.bytes).sum();
        metrics.checkpoint_bytes_written.inc_by(new + bytes.len() as u64);
        metrics.checkpoint_seconds.observe(start.elapsed().as_secs_f64());
        if base {
            remove_before(dir, previous.map_or(0, |manifest| manifest.base.sequence));
            failpoint::reach("checkpoint.old.removed");
        }
        Ok(Some((manifest, cid::of_raw(&bytes))))
    }
}

/// Whether a local file is not there.
fn is_missing(error: &ReplicationError) -> bool {
    matches!(error, ReplicationError::Io(e) if e.kind() == std::io::ErrorKind::NotFound)
}

fn entry(file: &WrittenFile, sequence: u64) -> Result<FileEntry, ReplicationError> {
    let link =
        import_file(&Profile::UNIXFS_V1_2025, &mut File::open(&file.path)?, &mut |_, _| Ok(()))
            .map_err(|e| ReplicationError::Io(std::io::Error::other(e)))?;
    Ok(FileEntry {
        table: file.table.clone(),
        cid: link.cid.to_string(),
        bytes: file.bytes,
        rows: file.rows,
        sequence,
    })
}
