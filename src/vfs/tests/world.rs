//! A volume on a ground that can be left without warning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::log_engine::LogEngine;
use crate::backends::{Backend, BackendSpec};
use crate::content::Profile;
use crate::metadata::{BackendRecord, EmbeddedEngine, Engine, Namespace, NewNode};
use crate::replication::{
    Checkpointer, CheckpointerOptions, Policy, Registry, Replicator, ReplicatorOptions,
};
use crate::runtime::{Bridge, Clock, Shutdown};
use crate::store::sim::SimDisk;
use crate::store::{LocalStore, StoreOptions};
use crate::types::{AccessTimes, FileKind, Timestamp, VolumeId, WriterId};
use crate::vfs::{EngineIndex, Vfs, VfsOptions, VfsParts};

/// What a new directory is made of.
pub fn directory(now: Timestamp) -> NewNode {
    NewNode {
        kind: FileKind::Directory,
        mode: 0o755,
        umask: None,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Vec::new(),
        now,
    }
}

/// Leaves of four pages, four a node: deep DAGs from little data.
pub const SMALL: Profile = Profile { chunk_size: 16_384, max_links: 4, ..Profile::UNIXFS_V1_2025 };

/// How long threads may take to end on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Each look is a microsecond later than the one before.
#[derive(Default)]
pub struct TickingClock(AtomicI64);

impl TickingClock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TickingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(1_700_000_000_000_000_000 + self.0.fetch_add(1000, Ordering::SeqCst))
    }
}

/// What the volume lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The memory engine and a disk that loses what was not synced.
    Simulated,
    /// The embedded engine and the machine's disk.
    Embedded,
}

enum Disk {
    Simulated(SimDisk, Arc<LogEngine>),
    Real,
}

/// The open parts; dropped together.
struct Open {
    vfs: Arc<Vfs>,
    engine: Weak<dyn Engine>,
    namespace: Arc<Namespace>,
    shutdown: Shutdown,
}

pub struct World {
    dir: TempDir,
    bridge: Bridge,
    pub clock: Arc<TickingClock>,
    pub options: VfsOptions,
    disk: Disk,
    /// A backend beside the local store; who waits for its copies is told at once
    /// when they are not there.
    place: Option<Arc<dyn Backend>>,
    open: Option<Open>,
}

impl World {
    pub fn new(ground: Ground, policy: &str, memory_file_bytes: u64, dirty_bytes: u64) -> Self {
        let disk = match ground {
            Ground::Simulated => {
                let disk = SimDisk::default();
                let engine = Arc::new(LogEngine::new(disk.clone()));
                Disk::Simulated(disk, engine)
            }
            Ground::Embedded => Disk::Real,
        };
        let policy: Policy = policy.parse().unwrap();
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            bridge: Bridge::start(1).unwrap(),
            clock: Arc::default(),
            options: VfsOptions {
                profile: SMALL,
                policy,
                mount_rule: String::new(),
                read_only: false,
                access_times: AccessTimes::None,
                dirty_bytes,
                memory_file_bytes,
                hash_threads: 2,
                commit_bytes: 1 << 20,
                held_bytes: 1 << 20,
                cached_rows: 64,
                cached_directories: 64,
                volume_dir: b"/volume".to_vec(),
            },
            disk,
            place: None,
            open: None,
        };
        world.open();
        world
    }

    /// With another profile: for sizes as they are in use.
    pub fn with_profile(profile: Profile, policy: &str) -> Self {
        let mut world = Self::new(Ground::Embedded, policy, 128 << 10, 64 << 20);
        world.close();
        world.options.profile = profile;
        world.open();
        world
    }

    pub fn with_place(place: Arc<dyn Backend>, policy: &str) -> Self {
        Self::with_place_and_profile(place, policy, SMALL)
    }

    pub fn with_place_and_profile(place: Arc<dyn Backend>, policy: &str, profile: Profile) -> Self {
        let mut world = Self::new(Ground::Simulated, policy, 1024, 64 << 20);
        world.close();
        world.place = Some(place);
        world.options.profile = profile;
        world.open();
        world
    }

    /// From now on reads move times.
    pub fn move_access_times(&mut self) {
        self.close();
        self.options.access_times = AccessTimes::All;
        self.open();
    }

    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.open.as_ref().unwrap().vfs
    }

    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.open.as_ref().unwrap().namespace
    }

    pub fn disk(&self) -> Option<&SimDisk> {
        match &self.disk {
            Disk::Simulated(disk, _) => Some(disk),
            Disk::Real => None,
        }
    }

    /// Whether the power went.
    pub fn is_off(&self) -> bool {
        self.disk().is_some_and(SimDisk::is_off)
    }

    fn open(&mut self) {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let engine: Arc<dyn Engine> = match &self.disk {
            Disk::Simulated(_, engine) => engine.clone(),
            Disk::Real => Arc::new(self.open_engine()),
        };
        let weak = Arc::downgrade(&engine);
        let namespace = Arc::new(Namespace::open(engine.clone(), clock.now()).unwrap());
        engine.persist().unwrap();
        let index = Arc::new(EngineIndex { engine });
        let options =
            StoreOptions { pack_bytes: 128 << 10, cache_bytes: 64 << 10, ..Default::default() };
        let store = Arc::new(match &self.disk {
            Disk::Simulated(disk, _) => {
                let disk = Arc::new(disk.clone());
                LocalStore::open_on(disk, &PathBuf::from("/volume/store"), index, &options).unwrap()
            }
            Disk::Real => LocalStore::open(&self.path("store"), index, options).unwrap(),
        });
        let registry = Arc::new(Registry::new(
            "device:here".into(),
            Duration::from_mins(15),
            Arc::clone(&clock) as Arc<dyn Clock>,
        ));
        let mut options = ReplicatorOptions::default();
        if let Some(place) = &self.place {
            let spec = BackendSpec { id: "b".parse().unwrap(), url: "memory:".into() };
            registry.add(spec, BackendRecord::default(), Ok(Arc::clone(place)));
            options.level_deadline = Duration::ZERO;
            options.probe_interval = Duration::from_millis(60);
            options.retry_interval = Duration::from_millis(10);
        }
        let shutdown = Shutdown::default();
        let replicator = Replicator::start(
            Arc::clone(&namespace),
            Arc::clone(&store),
            Arc::clone(&registry),
            self.bridge.clone(),
            Arc::clone(&clock),
            shutdown.clone(),
            options,
        )
        .unwrap();
        replicator.policies().define(&self.options.policy, &BTreeMap::new()).unwrap();
        let checkpointer = Checkpointer::start(
            Arc::clone(&namespace),
            registry,
            self.options.policy.clone(),
            self.bridge.clone(),
            Arc::clone(&clock),
            shutdown.clone(),
            CheckpointerOptions {
                dir: self.path("checkpoints"),
                volume: VolumeId::random(),
                writer: WriterId::random(),
                profile: self.options.profile.name.to_owned(),
                delta_interval: Duration::from_hours(1),
                base_interval: Duration::from_hours(1),
                base_bytes: 1 << 30,
                max_deltas: 1 << 20,
                definitions: BTreeMap::new(),
                level_deadline: Duration::from_secs(10),
            },
        )
        .unwrap();
        let options = self.options.clone();
        let parts = VfsParts {
            namespace: Arc::clone(&namespace),
            store,
            replicator,
            checkpointer,
            clock,
            options,
        };
        let vfs = Vfs::open(parts).unwrap();
        self.open = Some(Open { vfs, engine: weak, namespace, shutdown });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lengths of the files in the store's staging and segments, on a real disk.
    pub fn store_files(&self) -> Vec<u64> {
        let mut folders = vec![self.path("store/staging"), self.path("store/segments")];
        let mut lengths = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    lengths.push(entry.metadata().unwrap().len());
                }
            }
        }
        lengths
    }

    /// The thread that let go of it last may still be closing its files.
    fn open_engine(&self) -> EmbeddedEngine {
        let (start, pace) = (Instant::now(), Shutdown::default());
        loop {
            match EmbeddedEngine::open(&self.path("meta"), 1 << 20) {
                Err(error) if error.to_string().contains("in use") => {
                    assert!(start.elapsed() < PATIENCE, "{error}");
                    assert!(!pace.wait(Duration::from_millis(1)));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    /// Drops all that is in memory; returns when no thread is left.
    fn leave(&mut self) {
        let Some(Open { vfs, engine, namespace, shutdown }) = self.open.take() else { return };
        vfs.committer.abandon();
        shutdown.trigger();
        drop((vfs, namespace));
        let own = matches!(&self.disk, Disk::Simulated(..));
        let (start, pace) = (Instant::now(), Shutdown::default());
        while engine.strong_count() > usize::from(own) {
            assert!(start.elapsed() < PATIENCE, "a thread does not end");
            assert!(!pace.wait(Duration::from_millis(1)));
        }
    }

    /// A clean end.
    pub fn close(&mut self) {
        self.vfs().close().unwrap();
        self.namespace().engine().persist().unwrap();
        self.leave();
    }

    pub fn reopen(&mut self) {
        self.close();
        self.open();
    }

    /// The process dies; what it gave to the system stays.
    pub fn kill(&mut self) {
        self.leave();
        if let Disk::Simulated(_, engine) = &mut self.disk {
            *engine = Arc::new(engine.after_kill());
        }
        self.open();
    }

    /// The machine loses its power.
    pub fn cut_power(&mut self, random: &mut fastrand::Rng) {
        self.disk().unwrap().cut();
        self.leave();
        let Disk::Simulated(disk, engine) = &mut self.disk else { unreachable!() };
        disk.crash(random);
        *engine = Arc::new(engine.after_cut(random));
        self.open();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.leave();
        }
    }
}
