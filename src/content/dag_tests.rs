use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::slice::from_ref;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::types::Cid;

type Blocks = RefCell<HashMap<Cid, Bytes>>;

fn tiny(raw: bool) -> Profile {
    let base = if raw { Profile::UNIXFS_V1_2025 } else { Profile::UNIXFS_V0_2015 };
    Profile { chunk_size: 4, max_links: 3, ..base }
}

fn import(profile: &Profile, bytes: &[u8], blocks: &Blocks) -> Link {
    import_file(profile, &mut &bytes[..], &mut |id, data| {
        blocks.borrow_mut().insert(id, data);
        Ok(())
    })
    .unwrap()
}

fn loader(blocks: &Blocks) -> impl FnMut(&Cid) -> Result<Bytes, ContentError> + '_ {
    |id| blocks.borrow().get(id).cloned().ok_or(ContentError::Missing(*id))
}

fn read_back(root: &Link, blocks: &Blocks) -> Vec<u8> {
    let mut out = Vec::new();
    leaves(root, 0..root.size, &mut loader(blocks), &mut |span| {
        let block = blocks.borrow()[&span.cid].clone();
        match parse_node(&span.cid, &block)? {
            Node::Raw(data) | Node::File { data, .. } => out.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
        Ok(())
    })
    .unwrap();
    out
}

/// Changes `old` into `new` the way a committer does: only leaves that differ.
fn edit(profile: &Profile, old: &[u8], new: &[u8], blocks: &Blocks) -> Rebuilt {
    let chunk = profile.chunk_size as usize;
    let root = import(profile, old, blocks);
    let (mut changed, zeros) = (Changed::default(), Zeros::new(profile));
    for (index, bytes) in new.chunks(chunk).enumerate() {
        let before = old.chunks(chunk).nth(index);
        if before != Some(bytes) {
            let (link, block) = leaf(profile, bytes);
            let block = block.unwrap_or_else(|| Bytes::copy_from_slice(bytes));
            blocks.borrow_mut().insert(link.cid, block);
            let index = index as u64;
            match changed.zeros.last_mut() {
                _ if bytes.len() < chunk || bytes.iter().any(|byte| *byte != 0) => {
                    changed.leaves.insert(index, link);
                }
                Some(run) if run.end == index => run.end += 1,
                _ => changed.zeros.push(index..index + 1),
            }
        }
    }
    let old_root = (!old.is_empty()).then_some(&root);
    let changes = (&changed, &zeros);
    rebuild(profile, old_root, new.len() as u64, changes, &mut loader(blocks), &mut |id, data| {
        blocks.borrow_mut().insert(id, data);
        Ok(())
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_rebuilt_tree_is_the_imported_tree(
        raw: bool,
        old in proptest::collection::vec(0u8..3, 0..200),
        cut in 0usize..200,
        gap in prop_oneof![Just(0usize), 0usize..200],
        tail in proptest::collection::vec(0u8..3, 0..120),
        edits in proptest::collection::vec((0usize..300, 0u8..9), 0..4),
    ) {
        let profile = tiny(raw);
        let mut new = old.clone();
        new.truncate(cut);
        new.resize(new.len() + gap, 0);
        new.extend_from_slice(&tail);
        for (at, byte) in edits {
            if at < new.len() {
                new[at] = byte;
            }
        }
        let blocks = Blocks::default();
        let rebuilt = edit(&profile, &old, &new, &blocks);
        let fresh = Blocks::default();
        prop_assert_eq!(rebuilt.root, import(&profile, &new, &fresh));
        prop_assert_eq!(read_back(&rebuilt.root, &blocks), new);
        let mut builder = FileBuilder::new(profile);
        for bytes in fresh_chunks(&profile, &rebuilt, &blocks) {
            builder.push(leaf(&profile, &bytes).0, &mut |_, _| Ok(())).unwrap();
        }
        let (_, counted) = builder.finish_counted(&mut |_, _| Ok(())).unwrap();
        prop_assert_eq!(counted, rebuilt.blocks);
    }

    #[test]
    fn holes_are_the_leaves_of_zeros(
        raw: bool,
        parts in proptest::collection::vec((0usize..60, 0u8..2), 0..6),
        offset in 0u64..200,
        ranges in proptest::collection::vec((0u64..40, 1u64..60), 0..3),
    ) {
        let profile = tiny(raw);
        let chunk = u64::from(profile.chunk_size);
        let bytes: Vec<u8> = parts.iter().flat_map(|(n, byte)| vec![*byte; *n]).collect();
        let blocks = Blocks::default();
        let root = import(&profile, &bytes, &blocks);
        let zeros = Zeros::new(&profile);
        // A last leaf that is not full is known for zeros only when it is raw.
        let known = |leaf: &[u8]| raw || leaf.len() as u64 == chunk;
        let is_hole: Vec<bool> = bytes
            .chunks(chunk as usize)
            .flat_map(|leaf| vec![known(leaf) && leaf.iter().all(|b| *b == 0); leaf.len()])
            .collect();
        let naive = |from: u64, hole: bool| {
            let found = (from as usize..bytes.len()).find(|at| is_hole[*at] == hole);
            let end = (hole && from < root.size).then_some(root.size);
            found.map(|at| at as u64).or(end)
        };
        for hole in [true, false] {
            let found = seek(&root, offset, hole, &zeros, &mut loader(&blocks)).unwrap();
            prop_assert_eq!(found, naive(offset, hole), "hole {} from {}", hole, offset);
        }
        let mut at = 0;
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(gap, len)| {
                let start = at + gap;
                at = start + len;
                start..at
            })
            .collect();
        let counted = holes(&root, &ranges, &zeros, &mut loader(&blocks)).unwrap();
        let inside = |at: u64| ranges.iter().any(|range| range.contains(&at));
        let expected = (0..root.size).filter(|at| inside(*at) && is_hole[*at as usize]).count();
        prop_assert_eq!(counted, expected as u64);
    }
}

/// 16 TiB of zeros with one leaf in the middle: what a sparse file is.
#[test]
fn a_tree_of_16_tib_of_zeros_is_built_read_and_counted_by_its_paths() {
    let profile = Profile::UNIXFS_V1_2025;
    let (blocks, zeros) = (Blocks::default(), Zeros::new(&profile));
    let leaves = 1u64 << 24;
    let one = leaf(&profile, &vec![7u8; 1 << 20]).0;
    let changed = Changed {
        leaves: BTreeMap::from([(leaves / 2, one)]),
        zeros: vec![0..leaves / 2, leaves / 2 + 1..leaves],
    };
    let sent = std::cell::Cell::new(0);
    let rebuilt = rebuild(
        &profile,
        None,
        1 << 44,
        (&changed, &zeros),
        &mut loader(&blocks),
        &mut |id, data| {
            sent.set(sent.get() + 1);
            blocks.borrow_mut().insert(id, data);
            Ok(())
        },
    )
    .unwrap();
    assert!(sent.get() < 8 && rebuilt.nodes_hashed == 3, "{rebuilt:?}");
    assert_eq!(rebuilt.blocks, leaves + (leaves >> 10) + (leaves >> 20) + 1);
    let loads = std::cell::Cell::new(0);
    let mut load = |id: &Cid| {
        loads.set(loads.get() + 1);
        blocks.borrow().get(id).cloned().ok_or(ContentError::Missing(*id))
    };
    let (root, data) = (rebuilt.root, (leaves / 2) << 20);
    assert_eq!(seek(&root, 0, false, &zeros, &mut load).unwrap(), Some(data));
    assert_eq!(seek(&root, data, true, &zeros, &mut load).unwrap(), Some(data + (1 << 20)));
    assert_eq!(seek(&root, data + (1 << 20), false, &zeros, &mut load).unwrap(), None);
    let counted = holes(&root, from_ref(&(0..1 << 44)), &zeros, &mut load).unwrap();
    assert_eq!(counted, (1 << 44) - (1 << 20));
    assert!(loads.get() < 16, "{} nodes were loaded", loads.get());
    // A hole is punched over all of it, and it shrinks.
    let changed =
        Changed { leaves: BTreeMap::new(), zeros: std::iter::once(0..leaves / 4).collect() };
    let size = 1 << 42;
    let smaller = rebuild(
        &profile,
        Some(&root),
        size,
        (&changed, &zeros),
        &mut loader(&blocks),
        &mut |id, data| {
            blocks.borrow_mut().insert(id, data);
            Ok(())
        },
    )
    .unwrap();
    let load = &mut |id: &Cid| match zeros.full(2) {
        Some(full) if full.cid != *id => Ok(blocks.borrow()[id].clone()),
        _ => panic!("a tree of zeros was loaded"),
    };
    assert_eq!(smaller.nodes_hashed, 1);
    assert_eq!(holes(&smaller.root, from_ref(&(0..size)), &zeros, load).unwrap(), size);
}

fn fresh_chunks(profile: &Profile, rebuilt: &Rebuilt, blocks: &Blocks) -> Vec<Vec<u8>> {
    let bytes = read_back(&rebuilt.root, blocks);
    bytes.chunks(profile.chunk_size as usize).map(<[u8]>::to_vec).collect()
}

#[test]
fn appending_to_a_gibibyte_hashes_only_the_nodes_above_the_new_leaf() {
    let profile = Profile::UNIXFS_V1_2025;
    let blocks = Blocks::default();
    let mut builder = FileBuilder::new(profile);
    let sink = &mut |id: Cid, data: Bytes| {
        blocks.borrow_mut().insert(id, data);
        Ok(())
    };
    let zeros = leaf(&profile, &vec![0u8; 1 << 20]).0;
    for _ in 0..2048 {
        builder.push(zeros, sink).unwrap();
    }
    let root = builder.finish(sink).unwrap();
    let known = Zeros::new(&profile);
    let changed = |index, bytes: &[u8]| Changed {
        leaves: BTreeMap::from([(index, leaf(&profile, bytes).0)]),
        ..Changed::default()
    };
    let tail = changed(2048, &[7u8; 4096]);
    let size = (2 << 30) + 4096;
    let rebuilt =
        rebuild(&profile, Some(&root), size, (&tail, &known), &mut loader(&blocks), sink).unwrap();
    // The new third node of level 1 and the root; the two full nodes are kept.
    assert_eq!((rebuilt.nodes_hashed, rebuilt.nodes_loaded), (2, 1));
    let middle = changed(5, &vec![7u8; 1 << 20]);
    let (old, changes) = (Some(&rebuilt.root), (&middle, &known));
    let again = rebuild(&profile, old, size, changes, &mut loader(&blocks), sink).unwrap();
    assert_eq!((again.nodes_hashed, again.nodes_loaded), (2, 2));
}

#[test]
fn a_walk_visits_children_first_and_each_block_once() {
    let profile = tiny(true);
    let blocks = Blocks::default();
    let root = import(&profile, &[1; 64], &blocks);
    let mut order = Vec::new();
    walk_post_order(&root.cid, &mut |_| Ok(true), &mut loader(&blocks), &mut |id, block| {
        for child in parse_node(id, block)?.children() {
            assert!(order.contains(&child));
        }
        order.push(*id);
        Ok(())
    })
    .unwrap();
    assert_eq!(order.len(), blocks.borrow().len());
    assert_eq!(order.last(), Some(&root.cid));
}
