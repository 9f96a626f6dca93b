use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::events::Keeper;
use super::identity::{Identity, Lock};
use super::policy::{mark, mount_rule};
use crate::api::{ErrorCode, Failure};
use crate::backends::{
    Backend, BackendError, BackendSpec, ErrorKind, open_in, refuse_overlap, wrap,
};
use crate::config::{Config, LocalChange, LocalRole, MemoryPlan, TEMPLATE};
use crate::content::Profile;
use crate::metadata::{
    BackendRecord, CopyRecord, CopyState, EmbeddedEngine, Engine, EventKind, EventLog, EventRecord,
    MetadataError, Namespace, VerifyMethod,
};
use crate::replication::machine::MachineOptions;
use crate::replication::{
    BackendCollector, Checkpointer, CheckpointerOptions, EventFiles, Events, Evictor, Policy,
    Progress, RecoverSource, Recovered, Registry, ReplicationError, Replicator, ReplicatorOptions,
    recover, recover_events,
};
use crate::runtime::{Bridge, Clock, Shutdown, SystemClock, failpoint, within};
use crate::store::{LocalStore, StoreOptions};
use crate::types::{AccessTimes, BackendId, Ino, Timestamp, VolumeId};
use crate::vfs::{EngineIndex, Vfs, VfsOptions, VfsParts};

/// A backend that does not open in this time is opened by a probe later.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a volume that is closed waits for its last checkpoint to reach the
/// backends; the next opening goes on with it.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);
/// Folder of a volume for what is known of places with packs: a cache.
const PLACES: &str = "places";

/// How a volume is opened.
#[derive(Debug, Clone, Default)]
pub struct VolumeMode {
    /// No changes of files.
    pub read_only: bool,
    /// Of what a read moves the time of access.
    pub access_times: AccessTimes,
    /// Replaces parts of the stored policy, for this opening only.
    pub policy_override: String,
    /// Where it will be mounted, to refuse overlaps.
    pub mountpoint: Option<PathBuf>,
}

/// What a new volume starts with.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// URLs of backends.
    pub backends: Vec<String>,
    /// The policy.
    pub policy: Policy,
    /// The profile.
    pub profile: Profile,
    /// What the local store is.
    pub local: LocalChange,
}

/// What a recovery needs.
#[derive(Debug, Clone)]
pub struct RecoverOptions {
    /// URL of the backend that has everything.
    pub from: String,
    /// Which volume, when several lie there.
    pub volume_id: Option<VolumeId>,
    /// What the local store is.
    pub local: LocalChange,
}

/// An open volume.
pub struct Volume {
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    pub(super) config: Config,
    pub(super) memory: MemoryPlan,
    pub(super) bridge: Bridge,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) namespace: Arc<Namespace>,
    pub(super) store: Arc<LocalStore>,
    pub(super) registry: Arc<Registry>,
    pub(super) replicator: Arc<Replicator>,
    pub(super) checkpointer: Arc<Checkpointer>,
    /// Collects on backends.
    pub(super) collector: Arc<BackendCollector>,
    /// Makes room in a local store that is a cache.
    pub(super) evictor: Arc<Evictor>,
    pub(super) vfs: Arc<Vfs>,
    /// Takes what happens.
    pub(super) events: Events,
    /// Has what happened.
    pub(super) log: Arc<EventLog>,
    /// As `cairn.toml` has it now.
    pub(super) policy: RwLock<Policy>,
    /// What this opening puts over it.
    pub(super) policy_override: String,
    /// Ends the background work once everything is written.
    pub(super) shutdown: Shutdown,
    /// Opened for a mount, whose threads do what verbs leave to be done.
    mounted: bool,
    lock: Lock,
}

pub(super) fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Failed, error.to_string())
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Usage, error.to_string())
}

/// Why the metadata cannot be used.
fn unusable(volume: &Path, error: &MetadataError) -> Failure {
    let text = format!("{}: {error}", volume.join("meta").display());
    match error {
        MetadataError::Unopenable(_) => Failure::new(ErrorCode::Damaged, text),
        MetadataError::Damaged { .. } => Failure::new(
            ErrorCode::Damaged,
            format!("{text}; or `cairn recover --from` a backend, into a new folder"),
        ),
        _ => Failure::new(ErrorCode::Failed, text),
    }
}

/// Reads backend URLs; each gets an id of its own.
pub(super) fn parse_backends(
    urls: &[String],
    existing: &[BackendSpec],
) -> Result<Vec<BackendSpec>, Failure> {
    let mut specs = existing.to_vec();
    for url in urls {
        let taken: Vec<_> = specs.iter().map(|spec| spec.id.clone()).collect();
        let spec = BackendSpec::parse(url, &taken).map_err(usage)?;
        if !specs.iter().any(|known| known.url == spec.url) {
            specs.push(spec);
        }
    }
    Ok(specs)
}

impl Volume {
    /// Makes a volume: its folder, identity, settings, and its backends' places.
    ///
    /// # Errors
    /// `Usage` for a folder with other things in it, a bad URL, an overlap.
    pub fn create(dir: &Path, options: &CreateOptions) -> Result<Identity, Failure> {
        Self::prepare_folder(dir)?;
        let specs = parse_backends(&options.backends, &[])?;
        check_local(&options.local, LocalRole::Replica, specs.len())?;
        for spec in &specs {
            reach(spec, dir, None, true)?.map_err(|e| {
                Failure::new(ErrorCode::Failed, format!("backend {}: {e}", spec.id))
            })?;
        }
        let identity =
            Identity::new(VolumeId::random(), options.profile.name.to_owned(), SystemClock.now());
        Self::write_settings(dir, &specs, &options.policy, &BTreeMap::new())?;
        Config::set_local(dir, &options.local).map_err(failed)?;
        identity.store(dir)?;
        Ok(identity)
    }

    fn prepare_folder(dir: &Path) -> Result<(), Failure> {
        if Identity::exists(dir) {
            let text = format!("{} is a cairn volume already", dir.display());
            return Err(Failure::new(ErrorCode::Usage, text));
        }
        let io = |e| failed(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(io)?;
        let occupied =
            std::fs::read_dir(dir).map_err(failed)?.filter_map(Result::ok).any(|entry| {
                // What an earlier try that failed may have left.
                !matches!(
                    entry.file_name().to_str(),
                    Some("lock" | "cairn.toml" | "daemon.log" | "lost+found")
                )
            });
        if occupied {
            let text =
                format!("{} has other files in it: name an empty or new folder", dir.display());
            return Err(Failure::new(ErrorCode::Usage, text));
        }
        // It holds every file's bytes, whatever the modes inside of the mount say.
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(io)?;
        Ok(())
    }

    fn write_settings(
        dir: &Path,
        specs: &[BackendSpec],
        policy: &Policy,
        definitions: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        std::fs::write(Config::path(dir), TEMPLATE).map_err(failed)?;
        Config::set_policy(dir, policy).map_err(failed)?;
        for (name, text) in definitions {
            Config::set_definition(dir, name, Some(text)).map_err(failed)?;
        }
        Config::set_backends(dir, specs).map_err(failed)
    }

    /// Opens a volume and starts its background work. Backends that do not
    /// answer are opened again later: they never stop a mount.
    ///
    /// # Errors
    /// `NotFound`, `Busy`; `Failed` for damage that needs `fsck` or `recover`.
    pub fn open(dir: &Path, mode: &VolumeMode) -> Result<Self, Failure> {
        let identity = Identity::load(dir)?;
        let lock = Lock::take(dir)?;
        let (config, _) = Config::load(dir).map_err(usage)?;
        let memory = MemoryPlan::of(&config).map_err(usage)?;
        let policy = config.policy();
        let mount_policy = policy.overridden_by(&mode.policy_override).map_err(usage)?;
        let profile: Profile = identity.profile.parse().map_err(failed)?;
        let bridge = Bridge::start(2).map_err(failed)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let shutdown = Shutdown::default();
        let engine: Arc<dyn Engine> = Arc::new(
            EmbeddedEngine::open_sized(&dir.join("meta"), memory.engine_cache, memory.memtable())
                .map_err(|e| unusable(dir, &e))?,
        );
        let namespace = Namespace::open(Arc::clone(&engine), clock.now());
        let namespace = Arc::new(namespace.map_err(|e| unusable(dir, &e))?);
        // The store cuts what the index does not name: that must not come back.
        engine.persist().map_err(failed)?;
        let log = EventLog::open(&dir.join("events"), Arc::clone(&namespace)).map_err(failed)?;
        let log = Arc::new(log);
        let events = Events::new(Arc::clone(&namespace), Arc::clone(&clock));
        let events = events.map_err(|e| unusable(dir, &e))?;
        let cache = config.store.role == LocalRole::Cache;
        // While records may still say that all is here, nothing goes.
        let evicts = cache && (!mode.read_only || namespace.is_cache_noted().map_err(failed)?);
        let options = StoreOptions {
            pack_bytes: config.store.pack_bytes.0,
            cache_bytes: memory.node_cache,
            verified_entries: memory.verified_entries(),
            budget: evicts.then_some(config.store.cache_bytes.0),
            ..StoreOptions::default()
        };
        let index = Arc::new(EngineIndex { engine });
        let store = Arc::new(LocalStore::open(&dir.join("store"), index, options).map_err(failed)?);
        let grace = Duration::from_secs(config.replication.grace_s);
        let registry = Arc::new(Registry::new(local_domain(dir)?, grace, Arc::clone(&clock)));
        let paused = namespace.is_queue_paused().map_err(failed)?;
        registry.fleet().write().set_paused(None, paused);
        registry.fleet().write().set_local_cache(cache);
        registry.fleet().write().set_newest_proofs(namespace.stats().newest);
        let new_role = !mode.read_only && take_role(&namespace, cache, &events)?;
        let mut known: BTreeMap<BackendId, BackendRecord> =
            namespace.backend_records().map_err(failed)?.into_iter().collect();
        let call_deadline = Duration::from_secs(config.replication.call_deadline_s);
        for spec in &config.backends {
            let record = known.remove(&spec.id).unwrap_or_default();
            let as_set = if record.read_only { &spec.read_only() } else { spec };
            let opened = reach(as_set, dir, mode.mountpoint.as_deref(), false)?;
            let opened =
                opened.map(|backend| wrap::standard(backend, call_deadline, &spec.settings()));
            if let Err(error) = &opened {
                tracing::warn!(backend = %spec.id, %error, "a backend is not in reach; it is tried again");
            }
            registry.add(spec.clone(), record, opened);
        }
        let definitions = config.policies.clone();
        let level_deadline = Duration::from_secs(config.replication.level_deadline_s);
        super::spending::resume(&namespace, &registry);
        let replicator = Replicator::start(
            Arc::clone(&namespace),
            Arc::clone(&store),
            Arc::clone(&registry),
            bridge.clone(),
            Arc::clone(&clock),
            shutdown.clone(),
            ReplicatorOptions {
                call_deadline,
                level_deadline,
                probe_interval: Duration::from_secs(config.replication.probe_interval_s),
                retry_interval: Duration::from_secs(config.replication.retry_interval_s),
                sending_bytes: memory.sending as usize,
                ahead_bytes: memory.ahead,
                events: events.clone(),
                scrub_bytes_per_second: config.replication.scrub_bytes_per_second.0,
                places_dir: Some(dir.join(PLACES)),
                machine: MachineOptions {
                    check_interval: Duration::from_secs(config.replication.check_interval_s),
                    proof_age: Duration::from_secs(config.replication.proof_age_s),
                    dedup_proof: Duration::from_secs(config.replication.dedup_proof_s),
                    sample_contents: config.replication.sample_contents.min(4096) as usize,
                    scrub_period: Duration::from_hours(24 * config.replication.scrub_days.max(1)),
                    cost_ceiling: config.capacity.ceiling().map_err(usage)?,
                    seed: fastrand::u64(..),
                    ..MachineOptions::default()
                },
                ..ReplicatorOptions::default()
            },
        )
        .map_err(failed)?;
        replicator.policies().define(&policy, &definitions).map_err(usage)?;
        if new_role {
            if !cache {
                look_here(&namespace, &store, clock.now())?;
            }
            // What counts is another number now, and what lacks is queued.
            replicator.replan().map_err(failed)?;
            namespace.note_cache(cache).map_err(failed)?;
        }
        let mark = mark(&policy, &definitions);
        if !mode.read_only && namespace.noted_policies().map_err(failed)? != Some(mark) {
            // Changed by hand, or of a version that kept no numbers.
            namespace.request_walk(Ino::ROOT).map_err(failed)?;
            namespace.note_policies(mark).map_err(failed)?;
        }
        let checkpointer = Checkpointer::start(
            Arc::clone(&namespace),
            Arc::clone(&registry),
            policy.clone(),
            bridge.clone(),
            Arc::clone(&clock),
            shutdown.clone(),
            CheckpointerOptions {
                dir: dir.join("checkpoints"),
                volume: identity.id,
                writer: identity.writer,
                profile: identity.profile.clone(),
                delta_interval: Duration::from_secs(config.checkpoint.delta_interval_s.max(1)),
                base_interval: Duration::from_secs(config.checkpoint.base_interval_s.max(1)),
                base_bytes: config.checkpoint.base_bytes.0,
                max_deltas: config.checkpoint.max_deltas as usize,
                level_deadline,
                definitions,
            },
        )
        .map_err(|error| match error {
            ReplicationError::Behind { .. } => Failure::new(ErrorCode::Damaged, error.to_string()),
            other => failed(other),
        })?;
        let vfs = Vfs::open(VfsParts {
            namespace: Arc::clone(&namespace),
            store: Arc::clone(&store),
            replicator: Arc::clone(&replicator),
            checkpointer: Arc::clone(&checkpointer),
            clock: Arc::clone(&clock),
            options: VfsOptions {
                profile,
                policy: mount_policy,
                mount_rule: mount_rule(&mode.policy_override),
                read_only: mode.read_only,
                access_times: mode.access_times,
                dirty_bytes: memory.dirty,
                memory_file_bytes: config.mount.memory_file_bytes.0,
                hash_threads: config.mount.hash_threads as usize,
                commit_bytes: memory.commits,
                held_bytes: memory.held(),
                cached_rows: memory.cached_rows(),
                cached_directories: memory.cached_directories(),
                volume_dir: std::os::unix::ffi::OsStrExt::as_bytes(dir.as_os_str()).to_vec(),
            },
        })
        .map_err(failed)?;
        let keeper = Keeper {
            events: events.clone(),
            log: Arc::clone(&log),
            files: EventFiles::new(
                Arc::clone(&registry),
                bridge.clone(),
                shutdown.clone(),
                identity.id,
            ),
            config: config.events.clone(),
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
        };
        keeper.start().map_err(failed)?;
        let collector = Arc::new(BackendCollector::new(
            &replicator,
            Arc::clone(&checkpointer),
            dir.join("collect"),
            identity.id,
        ));
        let evictor = Arc::new(Evictor::new(&replicator, Arc::clone(&store)));
        let volume = Self {
            dir: dir.to_owned(),
            identity,
            config,
            memory,
            bridge,
            clock,
            namespace,
            store,
            registry,
            replicator,
            checkpointer,
            collector,
            evictor,
            vfs,
            events,
            log,
            policy: RwLock::new(policy),
            policy_override: mode.policy_override.clone(),
            shutdown,
            mounted: mode.mountpoint.is_some(),
            lock,
        };
        if !mode.read_only
            && let Err(error) = volume.clear_spool()
        {
            tracing::warn!(%error, "what an export or import left is still there; the next mount tries again");
        }
        Ok(volume)
    }

    /// The filesystem, for programs that use the library without a mount.
    #[must_use]
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }

    /// Whether a mount's threads run.
    pub(super) fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// The mount is gone: who wants the volume waits until it is closed.
    pub(super) fn say_ending(&self) {
        if let Err(error) = self.lock.say_ending() {
            tracing::warn!(%error, "a mount that follows at once will be refused");
        }
    }

    /// The blocks, for exports.
    #[must_use]
    pub fn replicator(&self) -> &Arc<Replicator> {
        &self.replicator
    }

    /// The volume's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Commits everything and waits for the queue; false when some is left.
    ///
    /// # Errors
    /// Of committing.
    pub fn drain(
        &self,
        deadline: Option<Duration>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<bool, Failure> {
        self.vfs.commit_all().map_err(failed)?;
        Ok(self.replicator.drain(deadline, progress))
    }

    /// Commits, writes a last checkpoint, and stops. What is pending stays in
    /// the durable queue; the next opening goes on with it.
    ///
    /// # Errors
    /// Of the last commit or checkpoint; the volume is closed all the same.
    pub fn close(self) -> Result<(), Failure> {
        let committed = self.vfs.close();
        failpoint::reach("daemon.end.committed");
        self.events.flush();
        let written = self.checkpointer.checkpoint_within(false, LAST_CHECKPOINT);
        failpoint::reach("daemon.end.checkpointed");
        super::spending::keep(
            &self.namespace,
            &self.registry,
            &mut super::spending::Spending::new(),
        );
        let persisted = self.namespace.engine().persist();
        failpoint::reach("daemon.end.persisted");
        self.shutdown.trigger();
        self.events.hurry();
        let Self {
            namespace,
            store,
            registry,
            replicator,
            checkpointer,
            collector,
            evictor,
            vfs,
            events,
            log,
            ..
        } = self;
        replicator.stop();
        drop((vfs, collector, evictor, replicator, checkpointer, registry, store, events, log));
        // The background threads end; then the engine's files are free again.
        let pause = Shutdown::default();
        for _ in 0..200 {
            if Arc::strong_count(&namespace) == 1 || pause.wait(Duration::from_millis(25)) {
                break;
            }
        }
        drop(namespace);
        committed.map_err(failed)?;
        written.map_err(failed)?;
        persisted.map_err(failed)
    }

    /// Makes a volume from what a backend holds.
    ///
    /// # Errors
    /// `Usage` for an occupied folder; `NotFound` when there is no complete
    /// checkpoint.
    pub fn recover(dir: &Path, options: &RecoverOptions) -> Result<Recovered, Failure> {
        check_local(&options.local, LocalRole::Replica, 1)?;
        Self::prepare_folder(dir)?;
        let spec = BackendSpec::parse(&options.from, &[]).map_err(usage)?;
        let backend = reach(&spec, dir, None, false)?.map_err(failed)?;
        let lock = Lock::take(dir)?;
        let clock = SystemClock;
        let bridge = Bridge::start(2).map_err(failed)?;
        let (recovered, specs) = {
            let engine: Arc<dyn Engine> =
                Arc::new(EmbeddedEngine::open(&dir.join("meta"), 64 << 20).map_err(failed)?);
            let namespace = Namespace::open(Arc::clone(&engine), clock.now()).map_err(failed)?;
            let source = RecoverSource { backend, volume: options.volume_id };
            let checkpoints = dir.join("checkpoints");
            let result = recover(&source, &namespace, &checkpoints, &bridge);
            let result = result.and_then(|recovered| {
                let places = (checkpoints.as_path(), &*dir.join("events"));
                recover_events(&source.backend, &recovered.manifest, places, &namespace, &bridge)?;
                Ok(recovered)
            });
            let recovered = match result {
                Ok(recovered) => recovered,
                Err(error) => {
                    drop(namespace);
                    drop(engine);
                    for left in ["meta", "checkpoints", "events"] {
                        match std::fs::remove_dir_all(dir.join(left)) {
                            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                                return Err(failed(e));
                            }
                            _ => {}
                        }
                    }
                    return Err(Failure::new(ErrorCode::NotFound, error.to_string()));
                }
            };
            let event = EventRecord::new(clock.now(), EventKind::Recover, spec.id.as_str())
                .detail(format!("checkpoint {}", recovered.manifest.sequence));
            namespace.append_event(&event).map_err(failed)?;
            let places = Places::known(&options.from, &spec, recovered.backends.clone())?;
            places.note(&namespace, clock.now()).map_err(failed)?;
            engine.persist().map_err(failed)?;
            (recovered, places.specs)
        };
        Self::write_settings(dir, &specs, &recovered.policy, &recovered.definitions)?;
        Config::set_local(dir, &options.local).map_err(failed)?;
        failpoint::reach("recover.settled");
        let identity = Identity::new(
            recovered.manifest.volume,
            recovered.manifest.profile.clone(),
            clock.now(),
        );
        identity.store(dir)?;
        failpoint::reach("recover.identified");
        drop(lock);
        // Policies are found again, all is judged anew (the local copies are gone), and
        // written as a new base by this life's writer.
        let volume = Self::open(dir, &VolumeMode::default())?;
        volume.vfs.converge(Ino::ROOT, &mut |_| {}).map_err(failed)?;
        volume.replicator.replan().map_err(failed)?;
        failpoint::reach("recover.replanned");
        volume.checkpointer.checkpoint(true).map_err(failed)?;
        volume.close()?;
        Ok(recovered)
    }
}

/// The backends of a volume that is made again.
struct Places {
    specs: Vec<BackendSpec>,
    /// The one that has another address than the checkpoint says.
    moved: Option<BackendId>,
    /// What was known at its new address: the same place by another name.
    dropped: Vec<BackendId>,
}

impl Places {
    /// The backends that a checkpoint names, with the one that it was read `from`: known by
    /// the id that the user gave, or by its place; else it is one more.
    fn known(from: &str, spec: &BackendSpec, mut specs: Vec<BackendSpec>) -> Result<Self, Failure> {
        let (mut moved, mut dropped) = (None, Vec::new());
        let given = BackendSpec::given_id(from).map_err(usage)?;
        if let Some(known) = specs.iter_mut().find(|known| Some(&known.id) == given.as_ref()) {
            if known.is_same_place(spec) {
                *known = known.with_auth_of(spec);
            } else {
                let id = known.id.clone();
                *known = known.moved_to(spec);
                let twins = specs.iter().filter(|twin| twin.is_same_place(spec) && twin.id != id);
                dropped.extend(twins.map(|twin| twin.id.clone()));
                specs.retain(|spec| !dropped.contains(&spec.id));
                moved = Some(id);
            }
        } else if let Some(known) = specs.iter_mut().find(|known| known.is_same_place(spec)) {
            *known = known.with_auth_of(spec);
        } else {
            let taken: Vec<_> = specs.iter().map(|known| known.id.clone()).collect();
            let one_more = BackendSpec::parse(from, &taken).map_err(usage)?;
            let known = taken.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                backend = %one_more.id, %known,
                "the volume does not know this place: it is one more backend; was it one of \
                 those that are known, at another address, recover into a new folder with id=ID \
                 in the URL"
            );
            specs.push(one_more);
        }
        Ok(Self { specs, moved, dropped })
    }

    /// What they held before is looked at before it counts.
    fn note(&self, namespace: &Namespace, now: Timestamp) -> Result<(), MetadataError> {
        for id in &self.dropped {
            namespace.forget_backend(id)?;
            namespace.set_backend_record(id, None)?;
        }
        let Some(moved) = &self.moved else { return Ok(()) };
        let known = namespace.backend_records()?.into_iter().find(|(id, _)| id == moved);
        let known = known.map_or_else(BackendRecord::default, |(_, record)| record);
        let record = BackendRecord { trusted_since: now, ..known };
        namespace.set_backend_record(moved, Some(&record))
    }
}

/// Opens a backend that does not overlap the volume. The outer error is that of
/// an overlap, or of the path; the inner one says that it is not in reach now, as
/// one whose disk hangs.
///
/// # Errors
/// `Usage` for an overlap.
pub(super) fn reach(
    spec: &BackendSpec,
    volume: &Path,
    mountpoint: Option<&Path>,
    create: bool,
) -> Result<Result<Arc<dyn Backend>, BackendError>, Failure> {
    let (wanted, volume) = (spec.clone(), volume.to_owned());
    let mountpoint = mountpoint.map(Path::to_owned);
    let work = move || {
        if let Some(path) = wanted.path() {
            match refuse_overlap(&path, &volume, mountpoint.as_deref()) {
                // A dead disk says nothing, and must not be in the way of the others.
                Err(error) if error.kind == ErrorKind::Unavailable && !create => {
                    return Ok(Err(error));
                }
                refused => refused.map_err(usage)?,
            }
        }
        Ok(open_in(&wanted, create, Some(&volume.join(PLACES))))
    };
    within(OPEN_DEADLINE, work).map_err(failed)?.unwrap_or_else(|| {
        let text = format!("no answer within {OPEN_DEADLINE:?}: does its disk hang?");
        Ok(Err(BackendError::new(ErrorKind::Timeout, text)))
    })
}

/// Whether the local store may become what is asked for. Without a backend nothing
/// could ever leave a cache, and no write be acknowledged.
///
/// # Errors
/// `Usage`, with what to do.
pub(crate) fn check_local(
    change: &LocalChange,
    now: LocalRole,
    backends: usize,
) -> Result<(), Failure> {
    let role = change.check(now).map_err(usage)?;
    if role == LocalRole::Cache && change.role.is_some() && backends == 0 {
        return Err(usage(
            "a cache keeps what backends have, and this volume has none: name one (--backend URL), or leave the local store a replica",
        ));
    }
    Ok(())
}

/// Brings the records in line with what the local store is now; true when it was
/// something else. Before a cache lets go of anything no record says that it is here;
/// a crash amid this repeats it.
fn take_role(namespace: &Namespace, cache: bool, events: &Events) -> Result<bool, Failure> {
    if namespace.is_cache_noted().map_err(failed)? == cache {
        return Ok(false);
    }
    if cache {
        namespace.forget_backend(&BackendId::local()).map_err(failed)?;
    }
    let detail = if cache {
        "a cache now: what lies there is no copy"
    } else {
        "a replica again: what is not there is brought"
    };
    events.emit_at(EventKind::LocalRole, &BackendId::local(), "store", detail);
    Ok(true)
}

/// After a cache some contents are all here, perhaps nowhere else: each whose root is
/// here has a copy that is to be looked at before it counts.
fn look_here(namespace: &Namespace, store: &LocalStore, at: Timestamp) -> Result<(), Failure> {
    let looked = namespace.update_all_contents(&mut |root, record, _| {
        let known = record.copies.iter().any(|copy| copy.backend.is_local());
        if record.refs > 0 && !known && store.contains(root).unwrap_or(true) {
            let (backend, method) = (BackendId::local(), VerifyMethod::None);
            record.copies.push(CopyRecord { backend, state: CopyState::Lost, at, method });
        }
    });
    looked.map(drop).map_err(failed)
}

/// The local store's failure domain: its device.
fn local_domain(dir: &Path) -> Result<String, Failure> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(dir).map_err(failed)?.dev();
    Ok(format!("device:{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}
