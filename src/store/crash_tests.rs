//! A power cut at every sync of a random history.
//!
//! After each: the index is any state from its last persist on, and every block
//! that it names reads back; every staged record reads back; the store goes on.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::disk::Disk;
use super::file_pool::PooledDisk;
use super::sim::SimDisk;
use super::*;
use crate::types::{Block, Cid, Ino};

const ROOT: &str = "/volume/store";
const LEAF: u64 = 8192;

/// What `StagedRecord` keeps: sizes and pages.
type Record = ((u64, u64, u64), Vec<(u64, Vec<u8>)>);

#[derive(Debug, Clone)]
enum Row {
    Index(IndexChange),
    Staged(Ino, Option<Record>),
}

/// Metadata and index in one log that is persisted now and then.
#[derive(Default)]
struct Engine {
    memory: MemoryIndex,
    log: Mutex<Vec<Row>>,
    persisted: Mutex<usize>,
}

impl Engine {
    fn push(&self, row: Row) {
        self.log.lock().push(row);
    }

    fn persist(&self, disk: &SimDisk) -> Result<(), StoreError> {
        if disk.is_off() {
            return Err(StoreError::Poisoned);
        }
        *self.persisted.lock() = self.log.lock().len();
        Ok(())
    }

    /// What a crash leaves: the persisted rows, and any beginning of the rest.
    fn after_crash(&self, rng: &mut fastrand::Rng) -> Self {
        let log = self.log.lock();
        let kept = rng.usize(*self.persisted.lock()..=log.len());
        let rows = log[..kept].to_vec();
        let memory = MemoryIndex::default();
        for row in &rows {
            if let Row::Index(change) = row {
                memory.apply(std::slice::from_ref(change)).unwrap();
            }
        }
        Self { memory, log: Mutex::new(rows), persisted: Mutex::new(kept) }
    }

    fn records(&self) -> HashMap<Ino, Record> {
        let mut records = HashMap::new();
        for row in self.log.lock().iter() {
            match row {
                Row::Staged(ino, Some(record)) => drop(records.insert(*ino, record.clone())),
                Row::Staged(ino, None) => drop(records.remove(ino)),
                Row::Index(_) => {}
            }
        }
        records
    }
}

impl BlockIndex for Engine {
    fn get(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        self.memory.get(cid)
    }
    fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError> {
        changes.iter().for_each(|change| self.push(Row::Index(change.clone())));
        self.memory.apply(changes)
    }
    fn page(&self, after: Option<&Cid>, limit: usize) -> Result<Vec<(Cid, Location)>, StoreError> {
        self.memory.page(after, limit)
    }
    fn marks(&self) -> Result<Vec<IndexMark>, StoreError> {
        self.memory.marks()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(u32, u32),
    Sync,
    /// Stages a file of so many bytes; synced and recorded, or not.
    Stage(u64, u64, bool),
    /// Seals what is staged and forgets the record.
    Commit,
    Discard,
    Persist,
    /// Collects blocks whose number leaves this rest by 4; with 3, everything.
    Collect(u32),
    Repair(u32),
    /// Keeps a block from elsewhere, as a cache does.
    Keep(u32),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u32..30, 1u32..12).prop_map(|(first, count)| Op::Append(first, count)),
        3 => Just(Op::Sync),
        3 => (0u64..4, 1u64..40_000, any::<bool>()).prop_map(|(i, n, s)| Op::Stage(i, n, s)),
        3 => Just(Op::Commit),
        1 => Just(Op::Discard),
        2 => Just(Op::Persist),
        1 => (0u32..4).prop_map(Op::Collect),
        1 => (0u32..30).prop_map(Op::Repair),
        1 => (0u32..42).prop_map(Op::Keep),
        1 => Just(Op::Restart),
    ]
}

fn block(n: u32) -> Block {
    Block::raw(Bytes::from(n.to_le_bytes().repeat(50 + n as usize * 20)))
}

fn file_bytes(ino: u64, len: u64) -> Vec<u8> {
    // Some leaves are equal between files, so that duplicates are met.
    (0..len).map(|i| ((i / LEAF + ino / 2) * 37 + i % 251) as u8).collect()
}

fn options() -> StoreOptions {
    let budget = Some(64 << 20);
    StoreOptions { pack_bytes: 8192, verified_entries: 64, cache_bytes: 0, open_files: 8, budget }
}

struct NoBase;
impl BaseReader for NoBase {
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        panic!("nothing is below")
    }
}

/// Enough that none is closed for another.
const ALL_OPEN: usize = 1000;

struct World {
    disk: SimDisk,
    /// The same with so many open files at most.
    pooled: Arc<dyn Disk>,
    open_files: usize,
    engine: Arc<Engine>,
    store: LocalStore,
    ticket: PackTicket,
    waiting: Vec<Cid>,
    staged: HashMap<u64, Staging>,
}

impl World {
    fn open(disk: SimDisk, engine: Arc<Engine>, open_files: usize) -> Result<Self, StoreError> {
        let pooled: Arc<dyn Disk> = Arc::new(PooledDisk::new(Arc::new(disk.clone()), open_files));
        let store =
            LocalStore::open_on(pooled.clone(), Path::new(ROOT), engine.clone(), &options())?;
        let (ticket, waiting, staged) = (PackTicket::default(), Vec::new(), HashMap::new());
        Ok(Self { disk, pooled, open_files, engine, store, ticket, waiting, staged })
    }

    fn run(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::Append(first, count) => {
                let blocks: Vec<Block> = (*first..first + count).map(block).collect();
                self.ticket = self.ticket.max(self.store.append(&blocks)?);
                for block in blocks {
                    assert_eq!(self.store.get(&block.cid)?, Some(block.data));
                    self.waiting.push(block.cid);
                }
            }
            Op::Sync => {
                self.store.sync(self.ticket)?;
                for cid in self.waiting.drain(..) {
                    assert!(self.engine.get(&cid)?.is_some(), "synced and not indexed");
                }
            }
            Op::Stage(ino, len, sync) => {
                if let Some(old) = self.staged.remove(ino) {
                    self.engine.push(Row::Staged(Ino(*ino), None));
                    old.discard()?;
                }
                let options = StagingOptions { memory_limit: 1000, leaf_size: LEAF };
                let (disk, dir) = (self.pooled.clone(), self.store.staging_dir());
                let mut staging = Staging::on(disk, &dir, Ino(*ino), 0, options);
                staging.write_at(0, &file_bytes(*ino, *len), &NoBase)?;
                if *sync {
                    staging.sync()?;
                    let sizes = (*len, 0, 0);
                    let record = Some((sizes, staging.pages()));
                    self.engine.push(Row::Staged(Ino(*ino), record));
                }
                self.staged.insert(*ino, staging);
            }
            Op::Commit => {
                let mut batch = Vec::new();
                for staging in self.staged.values_mut() {
                    let bytes = file_bytes(staging.ino.0, staging.len());
                    let leaves = bytes.chunks(LEAF as usize).enumerate().map(|(i, part)| {
                        let cid = Block::raw(Bytes::copy_from_slice(part)).cid;
                        SealedLeaf { cid, offset: i as u64 * LEAF, len: part.len() as u32 }
                    });
                    batch.push((leaves.collect::<Vec<_>>(), staging));
                }
                let mut batch: Vec<_> = batch.into_iter().map(|(l, s)| (s, l)).collect();
                self.store.seal(&mut batch)?;
                for (_, leaves) in &batch {
                    for leaf in leaves {
                        assert!(self.store.get(&leaf.cid)?.is_some());
                        assert!(self.engine.get(&leaf.cid)?.is_some(), "sealed and not indexed");
                    }
                }
                for (ino, staging) in self.staged.drain() {
                    self.engine.push(Row::Staged(Ino(ino), None));
                    staging.discard()?;
                }
            }
            Op::Discard => {
                for (ino, staging) in self.staged.drain() {
                    self.engine.push(Row::Staged(Ino(ino), None));
                    staging.discard()?;
                }
            }
            Op::Persist => self.engine.persist(&self.disk)?,
            Op::Collect(rest) => {
                let dead = (0..42).filter(|n| n % 4 == *rest).map(|n| block(n).cid);
                let dead: Vec<Cid> = dead.collect();
                let is_dead = |cid: &Cid| *rest == 3 || dead.contains(cid);
                let collection = self.store.begin_collection().unwrap();
                let mut persist = || self.engine.persist(&self.disk);
                collection.run(&|cid| !is_dead(cid), &mut persist)?;
                self.waiting.retain(|cid| !is_dead(cid));
            }
            Op::Repair(n) => self.store.repair(&block(*n))?,
            Op::Keep(n) => {
                self.store.keep(&block(*n))?;
                assert_eq!(self.store.get(&block(*n).cid)?, Some(block(*n).data));
            }
            Op::Restart => {
                // Ends in order, without a crash; records of live stagings go with them.
                for (ino, staging) in self.staged.drain() {
                    self.engine.push(Row::Staged(Ino(ino), None));
                    staging.discard()?;
                }
                self.engine.persist(&self.disk)?;
                *self = Self::open(self.disk.clone(), self.engine.clone(), self.open_files)?;
                self.check();
            }
        }
        Ok(())
    }

    /// All that the index and the records name is there, and right.
    fn check(&self) {
        for (cid, _) in self.engine.page(None, 10_000).unwrap() {
            let data = self.store.get(&cid).unwrap_or_else(|e| panic!("{e}"));
            assert!(Block { cid, data: data.expect("indexed and not here") }.is_intact());
        }
        let problem = &mut |problem: VerifyProblem| panic!("{}", problem.error);
        self.store.verify(true, problem, &mut |_, _| {}).unwrap();
        let records = self.engine.records();
        let mut keep = Vec::new();
        for (ino, (sizes, pages)) in &records {
            let options = StagingOptions { memory_limit: 1000, leaf_size: LEAF };
            let (disk, dir) = (Arc::new(self.disk.clone()), self.store.staging_dir());
            let staging = Staging::adopt_on(disk, &dir, *ino, *sizes, pages, options)
                .unwrap_or_else(|e| panic!("record of inode {ino} has no bytes: {e}"));
            let mut bytes = vec![0; sizes.0 as usize + 1];
            let count = staging.read_at(0, &mut bytes, &NoBase).unwrap();
            assert!(bytes[..count] == file_bytes(ino.0, sizes.0), "inode {ino} is torn");
            keep.push(staging.id());
        }
        self.store.discard_staging_except(&keep).unwrap();
    }
}

/// Runs a history; the power goes at sync `cut`. How many syncs there were.
fn live(ops: &[Op], cut: Option<u64>, seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let disk = SimDisk::default();
    let open_files = if rng.bool() { ALL_OPEN } else { rng.usize(1..4) };
    if let Some(cut) = cut {
        disk.cut_at(cut);
    }
    let engine = Arc::new(Engine::default());
    let mut latest = engine.clone();
    let result = World::open(disk.clone(), engine, open_files).and_then(|mut world| {
        ops.iter().try_for_each(|op| {
            let result = world.run(op);
            latest = world.engine.clone();
            result
        })
    });
    let syncs = disk.syncs();
    if let Err(error) = &result {
        assert!(disk.is_off(), "without a cut: {error}");
    }
    // A second cut during the recovery from the first.
    for again in [true, false] {
        disk.crash(&mut rng);
        let engine = Arc::new(latest.after_crash(&mut rng));
        latest = engine.clone();
        if again {
            disk.cut_at(disk.syncs() + 2);
        }
        let Ok(mut world) = World::open(disk.clone(), engine, open_files) else {
            assert!(disk.is_off());
            continue;
        };
        world.check();
        // Goes on: what is written now is there after the next crash.
        let on =
            [Op::Append(0, 30), Op::Sync, Op::Stage(9, 20_000, false), Op::Commit, Op::Persist];
        let result = on.iter().try_for_each(|op| world.run(op));
        assert!(result.is_ok() || disk.is_off());
        if result.is_ok() {
            world.check();
        }
    }
    syncs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_power_cut_at_any_sync_loses_nothing_that_the_index_names(
        ops in proptest::collection::vec(op(), 1..14),
        seed in any::<u64>(),
    ) {
        let syncs = live(&ops, None, seed);
        for cut in 1..=syncs {
            live(&ops, Some(cut), seed ^ cut);
        }
    }
}

#[test]
fn a_failed_sync_poisons_the_store_until_it_is_opened_again() {
    let disk = SimDisk::default();
    let mut world = World::open(disk.clone(), Arc::new(Engine::default()), ALL_OPEN).unwrap();
    world.run(&Op::Append(0, 3)).unwrap();
    world.run(&Op::Sync).unwrap();
    world.run(&Op::Append(5, 3)).unwrap();
    disk.fail_syncs(true);
    assert!(matches!(world.run(&Op::Sync), Err(StoreError::Io { .. })));
    disk.fail_syncs(false);
    assert!(matches!(world.run(&Op::Sync), Err(StoreError::Poisoned)));
    assert!(matches!(world.run(&Op::Append(9, 1)), Err(StoreError::Poisoned)));
    world.run(&Op::Stage(1, 10_000, false)).unwrap();
    assert!(matches!(world.run(&Op::Commit), Err(StoreError::Poisoned)));
    // What was durable before is served.
    assert_eq!(world.store.get(&block(1).cid).unwrap(), Some(block(1).data));
    disk.crash(&mut fastrand::Rng::with_seed(1));
    let world = World::open(disk, world.engine.clone(), ALL_OPEN).unwrap();
    assert_eq!(world.store.get(&block(1).cid).unwrap(), Some(block(1).data));
    assert!(!world.store.contains(&block(6).cid).unwrap());
}

#[test]
fn a_sync_that_fails_when_a_file_is_closed_for_another_is_told_to_all_who_rely_on_it() {
    let disk = SimDisk::default();
    let mut world = World::open(disk.clone(), Arc::new(Engine::default()), 1).unwrap();
    world.run(&Op::Append(0, 3)).unwrap();
    disk.fail_syncs(true);
    // The pack is closed for the first file, that for the second.
    world.run(&Op::Stage(1, 10_000, false)).unwrap();
    world.run(&Op::Stage(2, 10_000, false)).unwrap();
    disk.fail_syncs(false);
    let lost = world.staged.get_mut(&1).unwrap();
    assert!(matches!(lost.check_poison(), Err(StoreError::Poisoned)), "before it is hashed");
    assert!(matches!(lost.sync(), Err(StoreError::Poisoned)));
    let leaf = |n: u64| {
        let bytes = Bytes::copy_from_slice(&file_bytes(n, 10_000)[..LEAF as usize]);
        vec![SealedLeaf { cid: Block::raw(bytes).cid, offset: 0, len: LEAF as u32 }]
    };
    assert!(matches!(world.store.seal(&mut [(lost, leaf(1))]), Err(StoreError::Poisoned)));
    // Another file is as good as ever.
    let good = world.staged.get_mut(&2).unwrap();
    good.check_poison().unwrap();
    world.store.seal(&mut [(good, leaf(2))]).unwrap();
    // The pack was lost: nothing of it is acknowledged, and the store says so.
    assert!(matches!(world.run(&Op::Sync), Err(StoreError::Io { .. })));
    assert!(matches!(world.run(&Op::Append(9, 1)), Err(StoreError::Poisoned)));
    assert!(world.engine.get(&block(1).cid).unwrap().is_none());
}

#[test]
fn a_staging_that_could_not_be_indexed_is_as_before_and_seals_later() {
    let disk = SimDisk::default();
    let mut world = World::open(disk.clone(), Arc::new(Engine::default()), ALL_OPEN).unwrap();
    world.run(&Op::Stage(1, 20_000, true)).unwrap();
    let before = disk.names();
    let staging = world.staged.get_mut(&1).unwrap();
    let good = SealedLeaf {
        cid: Block::raw(Bytes::from(file_bytes(1, 20_000)[..8192].to_vec())).cid,
        offset: 0,
        len: 8192,
    };
    let outside = SealedLeaf { offset: 16_384, ..good.clone() };
    assert!(world.store.seal(&mut [(&mut *staging, vec![outside])]).is_err());
    assert_eq!(disk.names(), before);
    world.store.seal(&mut [(&mut *staging, vec![good.clone()])]).unwrap();
    assert!(disk.exists(&world.store.segment_path(staging.id)));
    // A change after the seal goes to a copy: the sealed leaf stays.
    let sealed = world.store.locate(&good.cid).unwrap().unwrap().segment;
    staging.write_at(0, &[9; 100], &NoBase).unwrap();
    assert_ne!(staging.id, sealed);
    let mut bytes = vec![0; 20_000];
    staging.read_at(0, &mut bytes, &NoBase).unwrap();
    assert_eq!(bytes[..100], [9; 100]);
    assert_eq!(bytes[100..], file_bytes(1, 20_000)[100..]);
    assert!(world.store.get(&good.cid).unwrap().is_some());
    world.check();
}
