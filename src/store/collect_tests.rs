use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    store.begin_collection(Duration::ZERO).run(live, &mut || Ok(())).unwrap()
}

#[test]
fn what_was_written_lately_is_kept_and_the_rest_of_the_dead_goes() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let file = seal(&store, 1, 16);
    // A commit may be between its blocks and its root: the first collection spares them.
    assert_eq!(collect(&store, &|_| false), CollectReport::default());
    let segment = store.locate(&file[0]).unwrap().unwrap().segment;
    let path = store.segment_path(segment);
    let before = std::fs::metadata(&path).unwrap().blocks();
    let live: Vec<Cid> = file.iter().step_by(2).copied().collect();
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
    drop(store.begin_collection(Duration::ZERO));
    let collection = store.begin_collection(Duration::ZERO);
    assert!(store.contains(&file[1]).unwrap());
    let ticket = store.append(&[block(1002, LEAF as usize)]).unwrap();
    store.sync(ticket).unwrap();
    let report = collection.run(&|_| false, &mut || Ok(())).unwrap();
    assert_eq!(report.blocks_removed, 2);
    assert!(store.get(&file[1]).unwrap().is_some() && store.get(&file[2]).unwrap().is_some());
}

#[test]
fn a_hold_keeps_all_that_is_written_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let hold = store.hold();
    let file = seal(&store, 1, 2);
    for _ in 0..3 {
        assert_eq!(collect(&store, &|_| false).blocks_removed, 0);
    }
    drop(hold);
    collect(&store, &|_| false);
    collect(&store, &|_| false);
    assert!(!store.contains(&file[0]).unwrap());
}

#[test]
fn the_index_is_persisted_before_bytes_go_and_an_error_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let file = seal(&store, 1, 2);
    let path = store.segment_path(store.locate(&file[0]).unwrap().unwrap().segment);
    drop(store.begin_collection(Duration::ZERO));
    let collection = store.begin_collection(Duration::ZERO);
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
    collect(&store, &|_| false);
    let report = collect(&store, &|_| false);
    assert_eq!(report.segments_removed as usize, before - 1);
    assert_eq!(packs(), 1);
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
        drop(store.begin_collection(Duration::ZERO));
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
