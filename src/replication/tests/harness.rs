use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use crate::backends::{Backend, BackendSpec, MemoryBackend};
use crate::content::{Profile, import_file};
use crate::metadata::{
    BackendRecord, ContentCommit, ContentRecord, CopyRecord, CopyState, Engine, MemoryEngine,
    Namespace, NewNode, PinState, QueueRecord, VerifyMethod,
};
use crate::replication::machine::MachineOptions;
use crate::replication::{Policy, Registry, Replicator, ReplicatorOptions};
use crate::runtime::{Bridge, Clock, Shutdown, SystemClock};
use crate::store::{BlockIndex, LocalStore, MemoryIndex, StoreOptions};
use crate::types::{BackendId, Block, Cid, FileKind, Ino, Name, Timestamp};

/// Leaves of 32 bytes, four a node: deep DAGs from little data.
pub const TINY: Profile = Profile { chunk_size: 32, max_links: 4, ..Profile::UNIXFS_V1_2025 };

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume without its upper layers.
pub struct World {
    pub dir: TempDir,
    pub engine: Arc<MemoryEngine>,
    pub namespace: Arc<Namespace>,
    pub index: Arc<MemoryIndex>,
    pub store: Arc<LocalStore>,
    pub registry: Arc<Registry>,
    pub bridge: Bridge,
    pub clock: Arc<dyn Clock>,
    pub options: ReplicatorOptions,
    pub profile: Profile,
    /// The local store is a cache of so many bytes.
    budget: Option<u64>,
    replicator: Option<Arc<Replicator>>,
    files: u32,
}

impl World {
    pub fn new() -> Self {
        Self::of(None)
    }

    /// The local store is a cache; its files have leaves of 16 KiB, eight a node.
    pub fn with_cache(budget: u64, names: &[&str]) -> (Self, Vec<Arc<MemoryBackend>>) {
        let mut world = Self::of(Some(budget));
        world.profile = Profile { chunk_size: 16 << 10, max_links: 8, ..Profile::UNIXFS_V1_2025 };
        world.registry.fleet().write().set_local_cache(true);
        let places: Vec<_> = names.iter().map(|name| world.add_memory(name)).collect();
        world.start();
        (world, places)
    }

    fn of(budget: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::default());
        let index = Arc::new(MemoryIndex::default());
        let namespace = open(&engine);
        Self {
            store: Arc::new(open_store(&dir, &index, budget)),
            profile: TINY,
            budget,
            namespace,
            dir,
            engine,
            index,
            registry: Arc::new(Registry::new(
                "device:here".into(),
                Duration::from_mins(15),
                Arc::new(SystemClock),
            )),
            bridge: Bridge::start(2).unwrap(),
            clock: Arc::new(SystemClock),
            options: ReplicatorOptions {
                machine: MachineOptions {
                    backoff: (Duration::from_millis(2), Duration::from_millis(20)),
                    ..MachineOptions::default()
                },
                probe_interval: Duration::from_millis(60),
                retry_interval: Duration::from_millis(10),
                call_deadline: Duration::from_secs(5),
                ..ReplicatorOptions::default()
            },
            replicator: None,
            files: 0,
        }
    }

    /// A volume with these places in memory, started.
    pub fn with(names: &[&str]) -> (Self, Vec<Arc<MemoryBackend>>) {
        let mut world = Self::new();
        let places: Vec<_> = names.iter().map(|name| world.add_memory(name)).collect();
        world.start();
        (world, places)
    }

    pub fn add_memory(&self, name: &str) -> Arc<MemoryBackend> {
        let place = Arc::new(MemoryBackend::new(name));
        place.set_durable(true);
        self.add(name, Arc::clone(&place) as Arc<dyn Backend>);
        place
    }

    pub fn add(&self, name: &str, backend: Arc<dyn Backend>) {
        self.registry.add(spec(name), BackendRecord::default(), Ok(backend));
    }

    pub fn start(&mut self) {
        let replicator = Replicator::start(
            Arc::clone(&self.namespace),
            Arc::clone(&self.store),
            Arc::clone(&self.registry),
            self.bridge.clone(),
            Arc::clone(&self.clock),
            Shutdown::default(),
            self.options.clone(),
        );
        self.replicator = Some(replicator.unwrap());
    }

    pub fn replicator(&self) -> &Arc<Replicator> {
        self.replicator.as_ref().unwrap()
    }

    /// Stops; returns when no thread of the replicator is left.
    pub fn stop(&mut self) {
        self.replicator = None;
        let namespace = Arc::clone(&self.namespace);
        eventually("all threads end", || Arc::strong_count(&namespace) <= 2);
    }

    /// All that is only in memory is lost.
    pub fn crash(&mut self) {
        self.stop();
        self.namespace = open(&self.engine);
        self.store = Arc::new(open_store(&self.dir, &self.index, self.budget));
    }

    /// The local disk is replaced: its blocks are gone.
    pub fn lose_local_blocks(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        self.index = Arc::new(MemoryIndex::default());
        self.store = Arc::new(open_store(&self.dir, &self.index, self.budget));
    }

    /// Commits a file with these bytes; its root.
    pub fn commit(&mut self, data: &[u8], policy: &Policy) -> Cid {
        let mut blocks = Vec::new();
        let link = import_file(&self.profile, &mut &data[..], &mut |cid, data: Bytes| {
            blocks.push(Block { cid, data });
            Ok(())
        })
        .unwrap();
        let ticket = self.store.append(&blocks).unwrap();
        self.store.sync(ticket).unwrap();
        self.files += 1;
        let now = self.clock.now();
        let node = NewNode {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            umask: None,
            rdev: 0,
            target: Vec::new(),
            now,
        };
        let name = Name::new(format!("file-{}", self.files)).unwrap();
        let created = self.namespace.create(Ino::ROOT, &name, &node).unwrap();
        let local = CopyRecord {
            backend: BackendId::local(),
            state: CopyState::Verified,
            at: now,
            method: VerifyMethod::Written,
        };
        let copies = if self.budget.is_some() { Vec::new() } else { vec![local] };
        let replicator = self.replicator.as_ref();
        let pin =
            replicator.map_or(PinState::BelowMin, |replicator| replicator.judge(policy, &copies));
        let record = ContentRecord {
            size: link.size,
            tsize: link.tsize,
            blocks: blocks.len() as u64,
            refs: 0,
            profile: self.profile.name.to_owned(),
            min: policy.min,
            target: policy.target,
            max: policy.max,
            pin,
            copies,
            holes: 0,
            policies: self.number_of(policy),
            created_s: 0,
            accessed_s: 0,
        };
        let commit = ContentCommit {
            shared: false,
            ino: created.ino,
            version: created.inode.version,
            root: Some(link.cid),
            record,
            enqueue: true,
            size: link.size,
            mtime: now,
        };
        assert_eq!(self.namespace.commit_contents(&[commit]).unwrap(), [true]);
        if let Some(replicator) = replicator {
            replicator.submit(&[link.cid]);
        }
        link.cid
    }

    /// The number of a policy, before the start, too.
    fn number_of(&self, policy: &Policy) -> Vec<u32> {
        let text = policy.to_string();
        if let Some(replicator) = &self.replicator {
            return vec![replicator.policy_number(&text).unwrap()];
        }
        let known = self.namespace.policy_expressions().unwrap();
        if let Some((number, _)) = known.iter().find(|(_, known)| *known == text) {
            return vec![*number];
        }
        let number = u32::try_from(known.len()).unwrap() + 1;
        self.namespace.keep_policy(number, &text).unwrap();
        vec![number]
    }

    pub fn record(&self, root: &Cid) -> ContentRecord {
        self.namespace.content(root).unwrap().unwrap()
    }

    pub fn row(&self, root: &Cid) -> Option<QueueRecord> {
        let rows = self.namespace.queue_page(None, usize::MAX).unwrap();
        rows.into_iter().find(|(id, _)| id == root).map(|(_, row)| row)
    }

    pub fn state_at(&self, root: &Cid, backend: &str) -> Option<CopyState> {
        let record = self.record(root);
        record.copies.iter().find(|c| c.backend.as_str() == backend).map(|copy| copy.state)
    }

    pub fn until_verified(&self, root: &Cid, backend: &str) {
        eventually("the copy is verified", || {
            self.state_at(root, backend) == Some(CopyState::Verified)
        });
    }

    pub fn until_drained(&self) {
        eventually("the queue is empty", || self.namespace.stats().queued == 0);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.replicator = None;
    }
}

/// A spec whose URL no probe can open again: only the given backend comes back.
pub fn spec(name: &str) -> BackendSpec {
    BackendSpec { id: name.parse().unwrap(), url: format!("file:///nonexistent/{name}") }
}

fn open(engine: &Arc<MemoryEngine>) -> Arc<Namespace> {
    let engine = Arc::clone(engine) as Arc<dyn Engine>;
    Arc::new(Namespace::open(engine, Timestamp::default()).unwrap())
}

pub fn open_store(dir: &TempDir, index: &Arc<MemoryIndex>, budget: Option<u64>) -> LocalStore {
    let index = Arc::clone(index) as Arc<dyn BlockIndex>;
    let options = StoreOptions { budget, ..StoreOptions::default() };
    LocalStore::open(dir.path(), index, options).unwrap()
}

/// Waits for a condition, bounded.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let (start, pace) = (Instant::now(), Shutdown::default());
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        assert!(!pace.wait(Duration::from_millis(2)));
    }
}

pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

pub fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

/// The blocks of a content, from the local store.
pub fn blocks(world: &World, root: &Cid) -> Vec<Cid> {
    let mut all = Vec::new();
    crate::content::walk_post_order(
        root,
        &mut |_| Ok(true),
        &mut |id| Ok(world.store.get(id).unwrap().unwrap()),
        &mut |id, _| {
            all.push(*id);
            Ok(())
        },
    )
    .unwrap();
    all
}
