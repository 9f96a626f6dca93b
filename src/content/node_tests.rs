//! What a decoder must refuse, what a walk must not do, and what other tools
//! made that has to be read.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;

use super::dag_pb::{PbLink, TYPE_DIRECTORY, TYPE_FILE, TYPE_HAMT, TYPE_SYMLINK, UnixFs, encode};
use super::*;
use crate::types::{Timestamp, cid};

type Blocks = RefCell<HashMap<Cid, Bytes>>;

fn loader(blocks: &Blocks) -> impl FnMut(&Cid) -> Result<Bytes, ContentError> + '_ {
    |id| blocks.borrow().get(id).cloned().ok_or(ContentError::Missing(*id))
}

fn keep(blocks: &Blocks) -> impl FnMut(Cid, Bytes) -> Result<(), ContentError> + '_ {
    |id, data| {
        blocks.borrow_mut().insert(id, data);
        Ok(())
    }
}

fn put(blocks: &Blocks, data: Vec<u8>) -> Cid {
    let id = cid::of_dag_pb(&data);
    blocks.borrow_mut().insert(id, Bytes::from(data));
    id
}

fn parse(data: &[u8]) -> Result<Node, ContentError> {
    parse_node(&cid::of_dag_pb(data), &Bytes::copy_from_slice(data))
}

fn refused(data: &[u8], word: &str) {
    let error = parse(data).expect_err(word).to_string();
    assert!(error.contains(word), "{error} should say {word}");
}

fn link(name: &[u8], tsize: u64) -> PbLink {
    PbLink { cid: cid::of_raw(name), name: name.to_vec(), tsize }
}

fn unixfs(kind: u64) -> UnixFs {
    UnixFs { kind, ..UnixFs::default() }
}

fn shard(names: &[&str], bitmap: &[u8], fanout: u64) -> Vec<u8> {
    let links: Vec<PbLink> = names.iter().map(|name| link(name.as_bytes(), 1)).collect();
    let message = UnixFs {
        data: Some(Bytes::copy_from_slice(bitmap)),
        hash_type: Some(0x22),
        fanout: Some(fanout),
        ..unixfs(TYPE_HAMT)
    };
    encode(&links, &message)
}

#[test]
fn dag_pb_that_is_not_exact_is_refused() {
    refused(&[], "without data");
    refused(&[0x0a, 0x05, 1], "are left");
    refused(&[0x0a, 0x82, 0x00, 8, 1], "over-long");
    refused(&[0x0a], "truncated");
    refused(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "over 64 bits");
    refused(&[0x0a, 2, 8, 1, 0x0a, 2, 8, 1], "two data");
    refused(&[0x1a, 0], "unknown field 3");
    refused(&[0x0b], "wire type");
    refused(&[0x12, 0, 0x0a, 2, 8, 1], "without a CID");
    refused(&[0x12, 4, 0x12, 0, 0x0a, 0, 0x0a, 2, 8, 1], "field 1 after field 2");
    refused(&[0x12, 3, 0x0a, 1, 7, 0x0a, 2, 8, 1], "link CID");
    let mut trailing = vec![0x12, 0x27, 0x0a, 0x25];
    trailing.extend_from_slice(&cid::of_raw(b"x").to_bytes());
    trailing.extend_from_slice(&[9, 0x0a, 2, 8, 1]);
    refused(&trailing, "after it");
}

#[test]
fn links_may_follow_the_data_but_not_surround_it() {
    let whole = encode(&[link(b"a", 1)], &unixfs(TYPE_DIRECTORY));
    let (field, data) = whole.split_at(whole.len() - 4);
    let swapped = [data, field].concat();
    assert_eq!(parse(&swapped).unwrap().children(), [cid::of_raw(b"a")]);
    refused(&[field, data, field].concat(), "around the data");
}

#[test]
fn unixfs_that_breaks_its_rules_is_refused() {
    let wrap = |message: &[u8]| [&[0x0a, message.len() as u8], message].concat();
    refused(&wrap(&[]), "without a type");
    refused(&wrap(&[8, 9]), "type 9");
    refused(&wrap(&[8, 3]), "type 3");
    refused(&wrap(&[8, 1, 8, 1]), "twice");
    refused(&wrap(&[8, 1, 0x4a, 0]), "unknown field 9");
    refused(&wrap(&[8, 2, 0x38, 0xff, 0xff, 0xff, 0xff, 0x1f]), "over 32 bits");
    refused(&wrap(&[8, 2, 0x42, 0]), "without seconds");
    refused(&wrap(&[8, 2, 0x42, 7, 8, 1, 0x15, 0, 0, 0, 0]), "0 nanoseconds");
    refused(&wrap(&[8, 2, 0x42, 7, 8, 1, 0x15, 0, 0xca, 0x9a, 0x3b]), "1000000000 nanoseconds");
    let file = UnixFs { block_sizes: vec![1, 2], ..unixfs(TYPE_FILE) };
    refused(&encode(&[link(b"", 1)], &file), "1 links, 2 block sizes");
    let file = UnixFs { block_sizes: vec![u64::MAX, 2], ..unixfs(TYPE_FILE) };
    refused(&encode(&[link(b"", 1), link(b"", 1)], &file), "over 64 bits");
    let file = UnixFs { file_size: Some(5), block_sizes: vec![4], ..unixfs(TYPE_FILE) };
    refused(&encode(&[link(b"", 1)], &file), "file size 5");
    refused(&encode(&[link(b"", 1)], &unixfs(TYPE_SYMLINK)), "symlink with links");
    refused(&encode(&[link(b"\xff", 1)], &unixfs(TYPE_DIRECTORY)), "not UTF-8");
    let cbor = cid::v1(cid::DAG_CBOR, &cid::sha256(b"\xa0"));
    let error = parse_node(&cbor, &Bytes::from_static(b"\xa0")).unwrap_err();
    assert!(matches!(error, ContentError::UnsupportedCodec { codec: 0x71, .. }), "{error}");
}

#[test]
fn shards_that_break_their_rules_are_refused() {
    assert!(parse(&shard(&["03name", "04"], &[0b1_1000], 256)).is_ok());
    assert!(parse(&shard(&["03name"], &[0, 0, 0b1000], 256)).is_ok(), "zeros may stay");
    assert!(parse(&shard(&["003name"], &[0b1000], 1024)).is_ok(), "three digits");
    refused(&shard(&["03name"], &[0b1000], 2048), "fanout of 2048");
    refused(&shard(&["03name"], &[0b1000], 100), "fanout of 100");
    refused(&shard(&["03name"], &[0b1000], 0), "fanout of 0");
    refused(&shard(&["03name"], &[0b1001], 256), "2 bits");
    refused(&shard(&["03name"], &[0b1], 256), "not in the bitmap");
    refused(&shard(&["FFname"], &[0b1], 256), "not in the bitmap");
    refused(&shard(&["3"], &[0b1], 256), "without a bucket");
    refused(&shard(&["0gname"], &[0b1], 256), "without a bucket");
    refused(&shard(&["0aname"], &[4, 0], 256), "without a bucket");
    refused(&shard(&["04b", "03a"], &[0b1_1000], 256), "out of order");
    refused(&shard(&["03a", "03b"], &[0b1_1000], 256), "out of order");
    refused(&shard(&["03a"], &[0b1000; 33], 256), "bitmap of 33");
    let message = UnixFs { fanout: Some(256), hash_type: Some(0x12), ..unixfs(TYPE_HAMT) };
    refused(&encode(&[], &message), "murmur3");
}

#[test]
fn mode_and_mtime_of_unixfs_1_5_are_read_and_encoded_as_others_do() {
    let agreed = [
        (Some(0o755), None, "bafybeibafgs3hlupvxflkxt53usw3eanu7odf2t63evgg65oycg33lo3gu"),
        (
            None,
            Some((1_700_000_000, 123_456_789)),
            "bafybeicfpn4ar4qpi6ss7jo2e4tmcwocjh2zepfvi64ag6tvmncrykd5oe",
        ),
        (None, Some((-1, 0)), "bafybeia5nonn3m476to2u3uctvzkluebcypvrkxcpganodamujkfxs6yiu"),
    ];
    for (mode, mtime, expected) in agreed {
        // Where implementations agree: one leaf, wrapped into the node.
        let text = Bytes::from_static(b"hello world");
        let message = |data, sizes: Vec<u64>| UnixFs {
            data,
            file_size: Some(11),
            block_sizes: sizes,
            mode,
            mtime,
            ..unixfs(TYPE_FILE)
        };
        let raw = PbLink { cid: cid::of_raw(&text), name: Vec::new(), tsize: 11 };
        let forms =
            [encode(&[], &message(Some(text), vec![])), encode(&[raw], &message(None, vec![11]))];
        let found = forms.iter().find(|block| cid::of_dag_pb(block).to_string() == expected);
        let node = parse(found.expect("one of the forms has the published CID")).unwrap();
        let mtime = mtime.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
        assert_eq!(node.metadata(), UnixFsMetadata { mode, mtime });
    }
}

fn numbered(count: usize) -> Vec<DirectoryEntry> {
    let link = leaf(&Profile::UNIXFS_V1_2025, b"x").0;
    (0..count).map(|i| DirectoryEntry { name: format!("name {i} \n"), link }).collect()
}

#[test]
fn a_sharded_directory_reads_back_whole() {
    for profile in [Profile::UNIXFS_V1_2025, Profile::UNIXFS_V0_2015] {
        let blocks = Blocks::default();
        let root = build_directory(&profile, numbered(9000), &mut keep(&blocks)).unwrap();
        assert!(matches!(
            parse_node(&root.cid, &blocks.borrow()[&root.cid]).unwrap(),
            Node::Shard { .. }
        ));
        let mut found = BTreeMap::new();
        read_directory(&root.cid, &mut loader(&blocks), &mut |entry| {
            assert!(found.insert(entry.name, entry.link.cid).is_none());
            Ok(())
        })
        .unwrap();
        let expected: BTreeMap<_, _> =
            numbered(9000).into_iter().map(|entry| (entry.name, entry.link.cid)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_directory_with_a_name_twice_is_refused() {
    let twice = [numbered(2), numbered(1)].concat();
    let error = build_directory(&Profile::UNIXFS_V1_2025, twice, &mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, ContentError::DuplicateName(name) if name == "name 0 \n"));
}

#[test]
fn a_walk_is_pruned_where_it_is_told() {
    let profile = Profile { chunk_size: 4, max_links: 3, ..Profile::UNIXFS_V1_2025 };
    let blocks = Blocks::default();
    let bytes: Vec<u8> = (0..60).collect();
    let root = import_file(&profile, &mut &bytes[..], &mut keep(&blocks)).unwrap();
    let top = parse_node(&root.cid, &blocks.borrow()[&root.cid]).unwrap().children();
    let mut visited = Vec::new();
    walk_post_order(&root.cid, &mut |id| Ok(*id != top[0]), &mut loader(&blocks), &mut |id, _| {
        visited.push(*id);
        Ok(())
    })
    .unwrap();
    assert!(!visited.contains(&top[0]));
    assert!(visited.len() < blocks.borrow().len() - 9, "what is below the pruned node is left out");
    assert_eq!(visited.last(), Some(&root.cid));
}

#[test]
fn a_missing_block_stops_a_walk_with_its_cid() {
    let profile = Profile { chunk_size: 4, max_links: 3, ..Profile::UNIXFS_V1_2025 };
    let blocks = Blocks::default();
    let root = import_file(&profile, &mut &[5u8; 30][..], &mut keep(&blocks)).unwrap();
    let lost = leaf(&profile, &[5; 4]).0.cid;
    blocks.borrow_mut().remove(&lost);
    let error =
        walk_post_order(&root.cid, &mut |_| Ok(true), &mut loader(&blocks), &mut |_, _| Ok(()));
    assert!(matches!(error, Err(ContentError::Missing(id)) if id == lost));
}

#[test]
fn identity_children_are_read_but_not_visited() {
    let inline =
        Cid::new_v1(cid::RAW, multihash::Multihash::wrap(cid::IDENTITY, b"inline").unwrap());
    let links = [PbLink { cid: inline, name: Vec::new(), tsize: 6 }];
    let message = UnixFs { file_size: Some(6), block_sizes: vec![6], ..unixfs(TYPE_FILE) };
    let blocks = Blocks::default();
    let root = put(&blocks, encode(&links, &message));
    let mut visited = Vec::new();
    walk_post_order(&root, &mut |_| Ok(true), &mut loader(&blocks), &mut |id, _| {
        visited.push(*id);
        Ok(())
    })
    .unwrap();
    assert_eq!(visited, [root]);
    let measured = measure_file(&root, &mut loader(&blocks), &mut |id| panic!("{id}")).unwrap();
    assert_eq!((measured.link.size, measured.blocks, measured.profile), (6, 2, None));
}

/// A node whose children are `width` times the same child.
fn fan(blocks: &Blocks, child: &Link, width: usize) -> Link {
    let links = vec![PbLink { cid: child.cid, name: Vec::new(), tsize: child.tsize }; width];
    let message = UnixFs {
        file_size: Some(child.size * width as u64),
        block_sizes: vec![child.size; width],
        ..unixfs(TYPE_FILE)
    };
    Link { cid: put(blocks, encode(&links, &message)), size: child.size * width as u64, tsize: 0 }
}

#[test]
fn a_small_dag_cannot_ask_for_endless_work() {
    let blocks = Blocks::default();
    let mut node = leaf(&Profile::UNIXFS_V1_2025, b"").0;
    for _ in 0..40 {
        node = fan(&blocks, &node, 100);
    }
    let mut spans = 0;
    leaves(&node, 0..u64::MAX, &mut loader(&blocks), &mut |_| {
        spans += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(spans, 0);
    let error = measure_file(&node.cid, &mut loader(&blocks), &mut |_| Ok(0)).unwrap_err();
    assert!(matches!(error, ContentError::Malformed { .. }), "100^40 blocks do not fit: {error}");
    for _ in 0..40 {
        node = fan(&blocks, &node, 1);
    }
    let error = measure_file(&node.cid, &mut loader(&blocks), &mut |_| Ok(0)).unwrap_err();
    assert!(matches!(error, ContentError::TooDeep(_)), "{error}");
}

#[test]
fn a_measured_file_has_its_blocks_sizes_and_profile() {
    for profile in [Profile::UNIXFS_V1_2025, Profile::UNIXFS_V0_2015] {
        let chunk = profile.chunk_size as usize;
        for len in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 180 * 1024 * 256] {
            let blocks = Blocks::default();
            let root = import_file(&profile, &mut &vec![3u8; len][..], &mut keep(&blocks)).unwrap();
            let raw_len = &mut |id: &Cid| Ok(blocks.borrow()[id].len() as u64);
            let found = measure_file(&root.cid, &mut loader(&blocks), raw_len).unwrap();
            assert_eq!(found.link, root);
            assert_eq!(found.profile.map(|p| p.name), Some(profile.name), "{len} bytes");
            let leaves = len.div_ceil(chunk).max(1) as u64;
            let inner = leaves.div_ceil(profile.max_links as u64);
            let expected = leaves + if leaves == 1 { 0 } else { inner + u64::from(inner > 1) };
            assert_eq!(found.blocks, expected, "{len} bytes");
        }
    }
}

#[test]
fn a_tree_of_another_shape_has_no_profile_and_is_not_continued() {
    let profile = Profile::UNIXFS_V1_2025;
    let blocks = Blocks::default();
    let chunk = 1 << 20;
    let (long, short) =
        (leaf(&profile, &vec![1; chunk + chunk / 2]).0, leaf(&profile, &vec![2; chunk / 2]).0);
    // Two leaves of 1.5 and 0.5 MiB: as many as for 2 MiB, but cut elsewhere.
    let links = [long, short].map(|l| PbLink { cid: l.cid, name: Vec::new(), tsize: l.tsize });
    let message = UnixFs {
        file_size: Some(2 << 20),
        block_sizes: vec![long.size, short.size],
        ..unixfs(TYPE_FILE)
    };
    let root = Link { cid: put(&blocks, encode(&links, &message)), size: 2 << 20, tsize: 0 };
    let raw_len = &mut |id: &Cid| Ok(if *id == long.cid { long.size } else { short.size });
    assert_eq!(measure_file(&root.cid, &mut loader(&blocks), raw_len).unwrap().profile, None);
    let changed = Changed {
        leaves: BTreeMap::from([(0, leaf(&profile, &vec![9; chunk]).0)]),
        ..Changed::default()
    };
    let changes = (&changed, &Zeros::new(&profile));
    let error =
        rebuild(&profile, Some(&root), 2 << 20, changes, &mut loader(&blocks), &mut |_, _| Ok(()));
    assert!(matches!(error, Err(ContentError::Malformed { .. })));
    // A lie about a leaf's length is found.
    let error = measure_file(&root.cid, &mut loader(&blocks), &mut |_| Ok(7)).unwrap_err();
    assert!(error.to_string().contains("which has 7"), "{error}");
}

proptest! {
    #[test]
    fn any_range_of_a_file_reads_as_the_slice(
        raw: bool,
        bytes in proptest::collection::vec(any::<u8>(), 1..300),
        from in 0usize..300,
        len in 0usize..300,
    ) {
        let base = if raw { Profile::UNIXFS_V1_2025 } else { Profile::UNIXFS_V0_2015 };
        let profile = Profile { chunk_size: 4, max_links: 3, ..base };
        let blocks = Blocks::default();
        let root = import_file(&profile, &mut &bytes[..], &mut keep(&blocks)).unwrap();
        let (from, to) = (from.min(bytes.len()), (from + len).min(bytes.len()));
        let mut out = Vec::new();
        leaves(&root, from as u64..to.max(from) as u64, &mut loader(&blocks), &mut |span| {
            let block = blocks.borrow()[&span.cid].clone();
            let (Node::Raw(data) | Node::File { data, .. }) = parse_node(&span.cid, &block)? else {
                panic!("{span:?}");
            };
            assert_eq!(data.len() as u64, span.len);
            let first = from.saturating_sub(span.offset as usize);
            let last = data.len().min(to - span.offset as usize);
            out.extend_from_slice(&data[first..last]);
            Ok(())
        }).unwrap();
        prop_assert_eq!(&out[..], &bytes[from..to.max(from)]);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Whatever it says: it answers.
        drop(parse(&data));
    }

    #[test]
    fn a_changed_byte_of_a_node_never_panics(at in 0usize..400, byte: u8) {
        let names: Vec<String> = (0..9).map(|i| format!("{i:02X}n")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut block = shard(&names, &[1, 0xff], 256);
        let at = at % block.len();
        block[at] = byte;
        drop(parse(&block));
    }
}
