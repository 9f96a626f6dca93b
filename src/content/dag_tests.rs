use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

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
    let mut changed = BTreeMap::new();
    for (index, bytes) in new.chunks(chunk).enumerate() {
        let before = old.chunks(chunk).nth(index);
        if before != Some(bytes) {
            let (link, block) = leaf(profile, bytes);
            let block = block.unwrap_or_else(|| Bytes::copy_from_slice(bytes));
            blocks.borrow_mut().insert(link.cid, block);
            changed.insert(index as u64, link);
        }
    }
    let old_root = (!old.is_empty()).then_some(&root);
    rebuild(profile, old_root, new.len() as u64, &changed, &mut loader(blocks), &mut |id, data| {
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
        tail in proptest::collection::vec(0u8..3, 0..120),
        edits in proptest::collection::vec((0usize..300, 0u8..9), 0..4),
    ) {
        let profile = tiny(raw);
        let mut new = old.clone();
        new.truncate(cut);
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
    let changed = BTreeMap::from([(2048, leaf(&profile, &[7u8; 4096]).0)]);
    let size = (2 << 30) + 4096;
    let rebuilt =
        rebuild(&profile, Some(&root), size, &changed, &mut loader(&blocks), sink).unwrap();
    // The new third node of level 1 and the root; the two full nodes are kept.
    assert_eq!((rebuilt.nodes_hashed, rebuilt.nodes_loaded), (2, 1));
    let changed = BTreeMap::from([(5, leaf(&profile, &vec![7u8; 1 << 20]).0)]);
    let again = rebuild(&profile, Some(&rebuilt.root), size, &changed, &mut loader(&blocks), sink);
    let again = again.unwrap();
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
