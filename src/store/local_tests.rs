use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::types::{Block, Cid, Ino, cid};

fn block(n: u32) -> Block {
    Block::raw(Bytes::from(n.to_le_bytes().repeat(100)))
}

fn open(dir: &std::path::Path, index: &Arc<MemoryIndex>) -> LocalStore {
    let options = StoreOptions { pack_bytes: 4096, ..StoreOptions::default() };
    LocalStore::open(dir, Arc::clone(index) as Arc<dyn BlockIndex>, options).unwrap()
}

#[test]
fn synced_blocks_survive_and_unsynced_tails_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let blocks: Vec<Block> = (0..40).map(block).collect();
    let ticket = store.append(&blocks[..30]).unwrap();
    store.sync(ticket).unwrap();
    store.append(&blocks[30..]).unwrap();
    assert_eq!(store.get(&blocks[39].cid).unwrap(), Some(blocks[39].data.clone()));
    drop(store);
    let store = open(dir.path(), &index);
    for kept in &blocks[..30] {
        assert_eq!(store.get(&kept.cid).unwrap(), Some(kept.data.clone()));
    }
    for lost in &blocks[30..] {
        assert_eq!(store.get(&lost.cid).unwrap(), None);
    }
    // The store goes on after the cut.
    let ticket = store.append(&blocks[30..]).unwrap();
    store.sync(ticket).unwrap();
    let mut problems = 0;
    store.verify(true, &mut |_| problems += 1, &mut |_, _| {}).unwrap();
    assert_eq!(problems, 0);
}

#[test]
fn what_rotted_here_is_written_anew_when_a_file_has_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let ticket = store.append(&[block(1), block(2)]).unwrap();
    store.sync(ticket).unwrap();
    drop(store);
    let [bad, good] = [1, 2].map(|n| index.get(&block(n).cid).unwrap().unwrap());
    let path = dir.path().join("packs").join(format!("{}.car", bad.segment));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[bad.offset as usize + 5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = open(dir.path(), &index);
    let ticket = store.append(&[block(1), block(2), block(3)]).unwrap();
    store.sync(ticket).unwrap();
    assert_ne!(index.get(&block(1).cid).unwrap().unwrap(), bad);
    assert_eq!(index.get(&block(2).cid).unwrap().unwrap(), good, "it is not written twice");
    drop(store);
    let store = open(dir.path(), &index);
    for n in 1..=3 {
        assert_eq!(store.get(&block(n).cid).unwrap(), Some(block(n).data));
    }
}

#[test]
fn a_flipped_byte_is_noticed_at_first_use_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let ticket = store.append(&[block(1)]).unwrap();
    store.sync(ticket).unwrap();
    drop(store);
    let place = index.get(&block(1).cid).unwrap().unwrap();
    let path = dir.path().join("packs").join(format!("{}.car", place.segment));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[place.offset as usize + 5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = open(dir.path(), &index);
    assert!(matches!(store.get(&block(1).cid), Err(StoreError::Corrupt { .. })));
    let mut buf = [0; 4];
    assert!(matches!(store.read(&block(1).cid, 0, &mut buf), Err(StoreError::Corrupt { .. })));
    store.repair(&block(1)).unwrap();
    assert_eq!(store.get(&block(1).cid).unwrap(), Some(block(1).data));
}

#[test]
fn a_staging_file_becomes_a_segment_without_a_copy() {
    struct Nothing;
    impl BaseReader for Nothing {
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
            Err(StoreError::Poisoned)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let options = StagingOptions { memory_limit: 0, leaf_size: 8192 };
    let mut staging = Staging::empty(&store.staging_dir(), Ino(3), options);
    let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    staging.write_at(0, &bytes, &Nothing).unwrap();
    let leaves: Vec<SealedLeaf> = bytes
        .chunks(8192)
        .enumerate()
        .map(|(i, part)| SealedLeaf {
            cid: cid::of_raw(part),
            offset: i as u64 * 8192,
            len: part.len() as u32,
        })
        .collect();
    store.seal(&mut [(&mut staging, leaves.clone())]).unwrap();
    assert_eq!(std::fs::read_dir(store.staging_dir()).unwrap().count(), 0);
    drop(store);
    let store = open(dir.path(), &index);
    for (leaf, part) in leaves.iter().zip(bytes.chunks(8192)) {
        assert_eq!(store.get(&leaf.cid).unwrap().unwrap(), part);
    }
}

#[test]
fn a_pack_is_the_same_bytes_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let small = |text: &str| Block::raw(Bytes::copy_from_slice(text.as_bytes()));
    let ticket = store.append(&[small("one"), small("two"), small("three")]).unwrap();
    store.sync(ticket).unwrap();
    let pack = std::fs::read_dir(dir.path().join("packs")).unwrap().next().unwrap().unwrap().path();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/pack-1.car");
    let bytes = std::fs::read(pack).unwrap();
    if !std::path::Path::new(golden).exists() && std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() {
        std::fs::write(golden, &bytes).unwrap();
    }
    assert_eq!(bytes, std::fs::read(golden).unwrap());
}

#[test]
fn threads_share_group_commits() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = Arc::new(open(dir.path(), &index));
    std::thread::scope(|scope| {
        for t in 0..8u32 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..20 {
                    let ticket = store.append(&[block(t * 100 + i)]).unwrap();
                    store.sync(ticket).unwrap();
                    assert!(store.locate(&block(t * 100 + i).cid).unwrap().is_some());
                }
            });
        }
    });
    let all: Vec<(Cid, Location)> = index.page(None, 1000).unwrap();
    assert_eq!(all.len(), 160);
}

#[tokio::test]
async fn a_pack_is_a_valid_car_when_full_and_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    let blocks: Vec<Block> = (0..40).map(block).collect();
    for some in blocks.chunks(7) {
        store.sync(store.append(some).unwrap()).unwrap();
    }
    store.append(&(40..45).map(block).collect::<Vec<_>>()).unwrap();
    drop(store);
    drop(open(dir.path(), &index));
    let mut found = std::collections::HashSet::new();
    let mut packs = 0;
    for entry in std::fs::read_dir(dir.path().join("packs")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mut reader = iroh_car::CarReader::new(&bytes[..]).await.unwrap();
        assert_eq!(reader.header().roots(), [cid::of_raw(b"")]);
        while let Some((id, data)) = reader.next_block().await.unwrap() {
            assert!(Block { cid: id, data: Bytes::from(data) }.is_intact());
            found.insert(id);
        }
        packs += 1;
    }
    assert!(packs > 2);
    assert!(blocks.iter().all(|block| found.contains(&block.cid)));
    for mark in index.marks().unwrap() {
        let path = dir.path().join("packs").join(format!("{}.car", mark.segment));
        assert_eq!(std::fs::metadata(path).unwrap().len(), mark.len, "an unindexed tail");
    }
}

#[test]
fn a_block_whose_file_is_gone_is_not_taken_for_a_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let index = Arc::new(MemoryIndex::default());
    let store = open(dir.path(), &index);
    store.sync(store.append(&[block(1)]).unwrap()).unwrap();
    drop(store);
    let pack = index.get(&block(1).cid).unwrap().unwrap().segment;
    std::fs::remove_file(dir.path().join("packs").join(format!("{pack}.car"))).unwrap();
    let store = open(dir.path(), &index);
    assert!(!store.contains(&block(1).cid).unwrap());
    assert!(matches!(store.get(&block(1).cid), Err(StoreError::SegmentMissing { .. })));
    let mut missing = 0;
    store.verify(false, &mut |_| missing += 1, &mut |_, _| {}).unwrap();
    assert_eq!(missing, 1);
    store.sync(store.append(&[block(1)]).unwrap()).unwrap();
    assert_eq!(store.get(&block(1).cid).unwrap(), Some(block(1).data));
}

#[test]
fn packs_that_no_index_knows_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &Arc::default());
    store.sync(store.append(&[block(1), block(2)]).unwrap()).unwrap();
    drop(store);
    // The index is lost; the blocks must not go with it.
    drop(open(dir.path(), &Arc::default()));
    let packs: Vec<_> = std::fs::read_dir(dir.path().join("packs")).unwrap().collect();
    assert_eq!(packs.len(), 1);
}

#[test]
fn usage_follows_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &Arc::default());
    let before = store.usage().unwrap();
    store.append(&(0..100).map(block).collect::<Vec<_>>()).unwrap();
    let after = store.usage().unwrap();
    assert!(after.used_bytes >= before.used_bytes + 100 * 400);
    assert!(after.available_bytes > 0 && after.capacity_bytes >= after.available_bytes);
}
