use proptest::prelude::*;

use super::*;
use crate::types::Ino;

struct Slice(Vec<u8>);

impl BaseReader for Slice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Truncate(u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Spill,
    Adopt,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..70_000, 1usize..9_000, 1u8..255).prop_map(|(at, len, b)| Op::Write(at, len, b)),
        2 => (0u64..70_000).prop_map(Op::Truncate),
        1 => (0u64..70_000, 1u64..20_000, any::<bool>()).prop_map(|(a, l, k)| Op::Zero(a, l, k)),
        1 => (0u64..70_000, 1u64..20_000, any::<bool>()).prop_map(|(a, l, k)| Op::Allocate(a, l, k)),
        1 => Just(Op::Spill),
        1 => Just(Op::Adopt),
    ]
}

/// Holes and data alternate up to the end, and what is in no data is zero.
fn check_holes(staging: &Staging, model: &[u8], base: &Slice) {
    let len = model.len() as u64;
    let (mut at, mut hole) = (0, 0);
    while let Some(data) = staging.seek(at, false, base).unwrap() {
        assert!(data >= at && data < len);
        assert!(model[hole as usize..data as usize].iter().all(|byte| *byte == 0));
        hole = staging.seek(data, true, base).unwrap().unwrap();
        assert!(hole > data && hole <= len);
        at = hole;
    }
    assert!(model[hole as usize..].iter().all(|byte| *byte == 0));
    assert_eq!(staging.seek(len, true, base).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn staging_behaves_like_a_vector(
        base in proptest::collection::vec(1u8..255, 0..50_000),
        memory_limit in prop_oneof![Just(0u64), Just(16_384), Just(1 << 20)],
        ops in proptest::collection::vec(op(), 1..24),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = StagingOptions { memory_limit, leaf_size: 16_384 };
        let mut model = base.clone();
        let reader = Slice(base.clone());
        let store = dir.path().join("staging");
        std::fs::create_dir(&store).unwrap();
        let dir = store.as_path();
        let mut staging = Staging::over(dir, Ino(7), base.len() as u64, options);
        for op in ops {
            let before: Vec<u64> = (0..6).map(|leaf| staging.generation(leaf)).collect();
            let was = model.clone();
            let adopted = matches!(op, Op::Adopt);
            match op {
                Op::Write(at, len, byte) => {
                    let end = at as usize + len;
                    if model.len() < end { model.resize(end, 0); }
                    model[at as usize..end].fill(byte);
                    staging.write_at(at, &vec![byte; len], &reader).unwrap();
                }
                Op::Truncate(len) => {
                    model.resize(len as usize, 0);
                    staging.set_len(len, &reader).unwrap();
                }
                Op::Zero(at, len, keep) => {
                    let end = (at + len) as usize;
                    if !keep && model.len() < end { model.resize(end, 0); }
                    let stop = end.min(model.len());
                    if (at as usize) < stop { model[at as usize..stop].fill(0); }
                    staging.zero_range(at..at + len, keep, &reader).unwrap();
                }
                Op::Allocate(at, len, keep) => {
                    if !keep && model.len() < (at + len) as usize { model.resize((at + len) as usize, 0); }
                    staging.allocate(at..at + len, keep, &reader).unwrap();
                }
                Op::Spill => staging.spill().unwrap(),
                Op::Adopt => {
                    staging.sync().unwrap();
                    let sizes = (staging.len(), staging.base_size(), staging.original_size());
                    let pages = staging.pages();
                    drop(staging);
                    staging = Staging::adopt(dir, Ino(7), sizes, &pages, options).unwrap();
                }
            }
            prop_assert_eq!(staging.len(), model.len() as u64);
            let mut read = vec![9; model.len() + 10];
            let n = staging.read_at(0, &mut read, &reader).unwrap();
            prop_assert_eq!(&read[..n], &model[..]);
            // A generation that stands means bytes that stand; a reader beside the writer sees them.
            for (leaf, generation) in before.iter().enumerate() {
                if *generation == staging.generation(leaf as u64) && !adopted {
                    let old = was.chunks(16_384).nth(leaf);
                    prop_assert_eq!(old, model.chunks(16_384).nth(leaf));
                }
                if let Some(reader) = staging.leaf_reader(leaf as u64) {
                    let bytes = reader.read().unwrap();
                    prop_assert_eq!(Some(&bytes[..]), model.chunks(16_384).nth(leaf));
                }
            }
            check_holes(&staging, &model, &reader);
            prop_assert!(staging.data_bytes(0).unwrap() <= staging.len());
        }
        // Every leaf that differs from the base is dirty, and completes to the model's bytes.
        let dirty = staging.leaves_to_commit(false).unwrap();
        for (index, bytes) in model.chunks(16_384).enumerate() {
            let index = index as u64;
            if dirty.zeros.iter().any(|run| run.contains(&index)) {
                prop_assert!(bytes.len() == 16_384 && bytes.iter().all(|byte| *byte == 0));
                prop_assert!(!dirty.data.contains(&index));
            } else if dirty.data.contains(&index) {
                let mut leaf = Vec::new();
                staging.complete_leaf(index, &reader).unwrap();
                staging.read_leaf(index, &mut leaf).unwrap();
                prop_assert_eq!(&leaf[..], bytes);
            } else {
                prop_assert_eq!(base.chunks(16_384).nth(index as usize), Some(bytes));
            }
        }
    }
}

#[test]
fn a_record_finds_its_bytes_after_the_file_became_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let index = std::sync::Arc::new(MemoryIndex::default());
    let store = LocalStore::open(dir.path(), index, StoreOptions::default()).unwrap();
    let options = StagingOptions { memory_limit: 0, leaf_size: 16_384 };
    let base = Slice(vec![1; 40_000]);
    let mut staging = Staging::over(&store.staging_dir(), Ino(7), 40_000, options);
    staging.write_at(20_000, &[2; 5000], &base).unwrap();
    staging.sync().unwrap();
    let (sizes, pages) = ((40_000, 40_000, 40_000), staging.pages());
    staging.complete_leaf(1, &base).unwrap();
    let mut leaf = Vec::new();
    staging.read_leaf(1, &mut leaf).unwrap();
    let cid = crate::types::cid::of_raw(&leaf);
    let sealed = vec![SealedLeaf { cid, offset: 16_384, len: 16_384 }];
    store.seal(&mut [(&mut staging, sealed)]).unwrap();
    staging.discard_unless_sealed().unwrap();

    let mut again = Staging::adopt(&store.staging_dir(), Ino(7), sizes, &pages, options).unwrap();
    let mut read = vec![0; 40_000];
    again.read_at(0, &mut read, &base).unwrap();
    let mut expected = vec![1; 40_000];
    expected[20_000..25_000].fill(2);
    assert_eq!(read, expected);
    // Its next change is not a change of the segment.
    again.write_at(20_000, &[3; 5000], &base).unwrap();
    assert_eq!(store.get(&cid).unwrap().unwrap(), leaf);
}

#[test]
fn cutting_into_a_leaf_makes_it_dirty_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let options = StagingOptions { memory_limit: 0, leaf_size: 8192 };
    let base = Slice(vec![1; 30_000]);
    let mut staging = Staging::over(dir.path(), Ino(7), 30_000, options);
    staging.set_len(10_000, &base).unwrap();
    assert_eq!(staging.dirty_runs().as_slice(), std::slice::from_ref(&(1..2)));
    staging.sync().unwrap();
    let sizes = (staging.len(), staging.base_size(), staging.original_size());
    let again = Staging::adopt(dir.path(), Ino(7), sizes, &staging.pages(), options).unwrap();
    assert_eq!(again.dirty_runs(), staging.dirty_runs());
    staging.set_len(8192, &base).unwrap();
    assert!(staging.dirty_runs().is_empty());
}

#[test]
fn offsets_beyond_the_largest_file_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = StagingOptions { memory_limit: 100, leaf_size: 8192 };
    let base = Slice(Vec::new());
    let mut staging = Staging::empty(dir.path(), Ino(7), options);
    for end in [Staging::MAX_LEN, u64::MAX - 1] {
        assert!(matches!(staging.write_at(end, b"ab", &base), Err(StoreError::TooLarge)));
        assert!(matches!(staging.set_len(end + 1, &base), Err(StoreError::TooLarge)));
        let range = end..u64::MAX;
        assert!(matches!(staging.allocate(range, false, &base), Err(StoreError::TooLarge)));
    }
    assert!(staging.is_empty() && staging.is_in_memory());
}
