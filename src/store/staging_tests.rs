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
        let mut staging = Staging::over(dir.path(), Ino(7), base.len() as u64, options);
        for op in ops {
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
                    staging = Staging::adopt(dir.path(), Ino(7), sizes, &pages, options).unwrap();
                }
            }
            prop_assert_eq!(staging.len(), model.len() as u64);
            let mut read = vec![9; model.len() + 10];
            let n = staging.read_at(0, &mut read, &reader).unwrap();
            prop_assert_eq!(&read[..n], &model[..]);
        }
        // Every leaf that differs from the base is dirty, and completes to the model's bytes.
        let dirty = staging.dirty_leaves();
        for (index, bytes) in model.chunks(16_384).enumerate() {
            if dirty.contains(&(index as u64)) {
                let mut leaf = Vec::new();
                staging.complete_leaf(index as u64, &reader).unwrap();
                staging.read_leaf(index as u64, &mut leaf).unwrap();
                prop_assert_eq!(&leaf[..], bytes);
            } else {
                prop_assert_eq!(base.chunks(16_384).nth(index), Some(bytes));
            }
        }
    }
}
