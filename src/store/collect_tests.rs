use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::*;
use crate::types::{Block, Cid, Ino};

const LEAF: u64 = 65_536;

fn open(dir: &Path, index: &Arc<MemoryIndex>) -> LocalStore {
    let options =
        StoreOptions { pack_bytes: 64 << 10, cache_bytes: 4096, ..StoreOptions::default() };
    LocalStore::open(dir, Arc::clone(index) as Arc<dyn BlockIndex>, options).unwrap()
}

fn block(n: u32, len: usize) -> Block {
    Block::raw(Bytes::from(n.to_le_bytes().repeat(len / 4)))
}

struct NoBase;
impl BaseReader for NoBase {
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        panic!("nothing is below")
    }
}

/// Seals a file of `count` leaves; their names.
fn seal(store: &LocalStore, ino: u64, count: u32) -> Vec<Cid> {
    let options = StagingOptions { memory_limit: 0, leaf_size: LEAF };
    let mut staging = Staging::empty(&store.staging_dir(), Ino(ino), options);
    let mut leaves = Vec::new();
    for i in 0..count {
        let leaf = block(ino as u32 * 1000 + i, LEAF as usize);
        staging.write_at(u64::from(i) * LEAF, &leaf.data, &NoBase).unwrap();
        leaves.push(SealedLeaf { cid: leaf.cid, offset: u64::from(i) * LEAF, len: LEAF as u32 });
    }
    store.seal(&mut [(&mut staging, leaves.clone())]).unwrap();
    leaves.into_iter().map(|leaf| leaf.cid).collect()
}

fn collect(store: &LocalStore, live: &dyn Fn(&Cid) -> bool) -> CollectReport {
    store.begin_collection().unwrap().run(live, &mut || Ok(())).unwrap()
}

#[test]
fn what_was_written_lately_is_kept_and_the_rest_of_the_dead_goes() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let commit = store.begin_commit();
    let file = seal(&store, 1, 16);
    // A commit is between its blocks and its root, however many collections run beside it.
    for _ in 0..3 {
        assert_eq!(collect(&store, &|_| false), CollectReport::default());
    }
    let later = store.begin_commit();
    assert_eq!(collect(&store, &|_| false), CollectReport::default());
    assert!(file.iter().all(|cid| store.contains(cid).unwrap()));
    drop(commit);
    let segment = store.locate(&file[0]).unwrap().unwrap().segment;
    let path = store.segment_path(segment);
    let before = std::fs::metadata(&path).unwrap().blocks();
    let live: Vec<Cid> = file.iter().step_by(2).copied().collect();
    // One that began later has found them.
    assert_eq!(collect(&store, &|_| false), CollectReport::default());
    drop(later);
    let report = collect(&store, &|cid| live.contains(cid));
    assert_eq!((report.blocks_removed, report.segments_removed), (8, 0));
    // The disk may take a block for the list of extents.
    assert!(report.bytes_freed >= 7 * LEAF, "{report:?}");
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
    for cid in &file {
        assert_eq!(store.get(cid).unwrap().is_some(), live.contains(cid));
    }
    let report = collect(&store, &|_| false);
    assert_eq!((report.blocks_removed, report.segments_removed), (8, 1));
    assert!(!path.exists());
}

#[test]
fn a_duplicate_met_while_the_mark_runs_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let file = seal(&store, 1, 4);
    let collection = store.begin_collection().unwrap();
    assert!(store.contains(&file[1]).unwrap());
    let ticket = store.append(&[block(1002, LEAF as usize)]).unwrap();
    store.sync(ticket).unwrap();
    let report = collection.run(&|_| false, &mut || Ok(())).unwrap();
    assert_eq!(report.blocks_removed, 2);
    assert!(store.get(&file[1]).unwrap().is_some() && store.get(&file[2]).unwrap().is_some());
}

#[test]
fn beside_a_hold_nothing_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let file = seal(&store, 1, 2);
    // Also by a collection that has begun before.
    let collection = store.begin_collection().unwrap();
    let hold = store.hold();
    let report = collection.run(&|_| false, &mut || Ok(())).unwrap();
    assert!(report.more && report.blocks_removed == 0 && report.segments_removed == 0);
    assert!(store.begin_collection().is_none());
    assert!(store.contains(&file[0]).unwrap());
    drop(hold);
    assert_eq!(collect(&store, &|_| false).blocks_removed, 2);
}

#[test]
fn live_blocks_move_out_of_a_pack_that_is_mostly_dead() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let options = StoreOptions { pack_bytes: 4 << 20, ..StoreOptions::default() };
    let store = LocalStore::open(dir.path(), Arc::clone(&index) as Arc<dyn BlockIndex>, options);
    let store = store.unwrap();
    // Two packs of 1 KiB blocks; none spans a page.
    for n in 0..9000 {
        store.append(&[block(n, 1024)]).unwrap();
    }
    let ticket = store.append(&[block(9000, 1024)]).unwrap();
    store.sync(ticket).unwrap();
    let live: Vec<Cid> = (0..9000).step_by(10).map(|n| block(n, 1024).cid).collect();
    let used = || store.usage().unwrap().used_bytes;
    let on_disk = || -> u64 {
        let packs = std::fs::read_dir(dir.path().join("packs")).unwrap();
        packs.map(|pack| pack.unwrap().metadata().unwrap().blocks() * 512).sum()
    };
    let (before, counted) = (on_disk(), used());
    let report = collect(&store, &|cid| live.contains(cid));
    assert!(report.bytes_moved > 400 * 1024, "{report:?}");
    let report = collect(&store, &|cid| live.contains(cid));
    assert_eq!(report.segments_removed, 2, "{report:?}");
    assert!(on_disk() + (7 << 20) < before, "{before} to {}", on_disk());
    assert!(used() + (7 << 20) < counted);
    for n in (0..9000).step_by(10) {
        assert_eq!(store.get(&block(n, 1024).cid).unwrap(), Some(block(n, 1024).data));
    }
    drop(store);
    let store = open(dir.path(), &index);
    store.verify(true, &mut |p| panic!("{}", p.error), &mut |_, _| {}).unwrap();
}

#[test]
fn a_pack_that_is_still_written_is_left_when_most_of_it_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = LocalStore::open(
        dir.path(),
        Arc::clone(&index) as Arc<dyn BlockIndex>,
        StoreOptions::default(),
    );
    let store = store.unwrap();
    for n in 0..3000 {
        store.append(&[block(n, 1024)]).unwrap();
    }
    let ticket = store.append(&[block(3000, 1024)]).unwrap();
    store.sync(ticket).unwrap();
    let live = block(17, 1024);
    let is_live = |cid: &Cid| *cid == live.cid;
    let runs = (0..3).map(|_| collect(&store, &is_live)).collect::<Vec<_>>();
    assert_eq!(runs.iter().map(|run| run.more).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!((runs[1].blocks_removed, runs[2].segments_removed), (3000, 1), "{runs:?}");
    assert_eq!(store.get(&live.cid).unwrap(), Some(live.data));
}

#[test]
fn bytes_that_were_sealed_again_elsewhere_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let first = seal(&store, 1, 64);
    let path = store.segment_path(store.locate(&first[0]).unwrap().unwrap().segment);
    let before = std::fs::metadata(&path).unwrap().blocks();
    // The same leaves but one, in a new file: the index names the new places.
    let options = StagingOptions { memory_limit: 0, leaf_size: LEAF };
    let mut again = Staging::empty(&store.staging_dir(), Ino(2), options);
    let mut leaves = Vec::new();
    for i in 0..64 {
        let leaf = block(if i == 7 { 5555 } else { 1000 + i }, LEAF as usize);
        again.write_at(u64::from(i) * LEAF, &leaf.data, &NoBase).unwrap();
        leaves.push(SealedLeaf { cid: leaf.cid, offset: u64::from(i) * LEAF, len: LEAF as u32 });
    }
    store.seal(&mut [(&mut again, leaves)]).unwrap();
    drop(again);
    let report = collect(&store, &|_| true);
    assert!(report.bytes_freed >= 62 * LEAF, "{report:?}");
    assert!(std::fs::metadata(&path).unwrap().blocks() <= before / 30);
    store.verify(true, &mut |p| panic!("{}", p.error), &mut |_, _| {}).unwrap();
    assert!(store.get(&first[7]).unwrap().is_some());
}

#[test]
fn the_file_of_a_staging_whose_commit_failed_stays() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let options = StagingOptions { memory_limit: 0, leaf_size: LEAF };
    let mut staging = Staging::empty(&store.staging_dir(), Ino(1), options);
    let data = block(1, LEAF as usize);
    staging.write_at(0, &data.data, &NoBase).unwrap();
    let leaf = SealedLeaf { cid: data.cid, offset: 0, len: LEAF as u32 };
    store.seal(&mut [(&mut staging, vec![leaf.clone()])]).unwrap();
    assert_eq!(collect(&store, &|_| false), CollectReport::default());
    // Tried again, and now its row is there.
    store.seal(&mut [(&mut staging, vec![leaf])]).unwrap();
    drop(staging);
    collect(&store, &|_| true);
    assert_eq!(store.get(&data.cid).unwrap(), Some(data.data));
}

#[test]
fn the_index_is_persisted_before_bytes_go_and_an_error_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let file = seal(&store, 1, 2);
    let path = store.segment_path(store.locate(&file[0]).unwrap().unwrap().segment);
    let collection = store.begin_collection().unwrap();
    let result = collection.run(&|_| false, &mut || Err(StoreError::Index("no".into())));
    assert!(matches!(result, Err(StoreError::Index(_))));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[..LEAF as usize], block(1000, LEAF as usize).data);
}

#[test]
fn full_packs_go_when_their_blocks_are_dead_and_the_open_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    for n in 0..100 {
        let ticket = store.append(&[block(n, 4096)]).unwrap();
        store.sync(ticket).unwrap();
    }
    let packs = || std::fs::read_dir(dir.path().join("packs")).unwrap().count();
    let before = packs();
    assert!(before > 4);
    let report = collect(&store, &|_| false);
    assert_eq!(report.segments_removed as usize, before - 1);
    assert_eq!(packs(), 1);
    assert!(!report.more);
    drop(store);
    let store = open(dir.path(), &index);
    store.verify(true, &mut |p| panic!("{}", p.error), &mut |_, _| {}).unwrap();
    let left = index.page(None, 1000).unwrap();
    assert!(left.iter().all(|(cid, _)| store.get(cid).unwrap().is_some()) && !left.is_empty());
}

#[test]
fn readers_beside_a_collection_see_a_block_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let done = AtomicBool::new(false);
    let files: Vec<Vec<Cid>> = (1..6).map(|ino| seal(&store, ino, 8)).collect();
    let mut removed = Vec::new();
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, files, done) = (&store, &files, &done);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(reader);
                while !done.load(Ordering::Relaxed) {
                    let cid = files[rng.usize(0..files.len())][rng.usize(0..8)];
                    let mut word = [0; 4];
                    if store.read(&cid, 4096, &mut word).unwrap() {
                        let n = u32::from_le_bytes(word);
                        assert_eq!(block(n, LEAF as usize).cid, cid, "bytes that were punched");
                    }
                }
            });
        }
        for step in 0..8 {
            let dead: Vec<Cid> = files.iter().map(|file| file[step]).collect();
            let gone: Vec<Cid> = files.iter().flat_map(|file| file[..step].to_vec()).collect();
            let report = collect(&store, &|cid| !dead.contains(cid) && !gone.contains(cid));
            removed.push(report.blocks_removed);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(removed, [5; 8]);
    assert_eq!(index.page(None, 10).unwrap().len(), 0);
}
