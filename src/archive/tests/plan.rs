//! What an import would make.

use std::collections::BTreeMap;

use super::build::*;
use crate::archive::{ArchiveError, ImportPlan};
use crate::content::{Link, Profile, leaf};
use crate::types::{Cid, FileKind, Timestamp, cid};

const V1: Profile = Profile::UNIXFS_V1_2025;

fn plan(blocks: &Blocks, root: Cid) -> Result<ImportPlan, ArchiveError> {
    read(&blocks.car(1, &[root])).unwrap().plan()
}

/// Paths to nodes, as a walker of the made tree would see them.
pub fn paths(plan: &ImportPlan) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::from([(plan.root, String::new())]);
    let mut found = BTreeMap::from([(String::new(), plan.root)]);
    for entry in &plan.entries {
        let parent = names.get(&entry.parent).expect("parents come before their entries");
        let name = entry.name.as_bytes().escape_ascii();
        let path = format!("{parent}/{name}");
        names.entry(entry.node).or_insert_with(|| path.clone());
        assert!(found.insert(path, entry.node).is_none());
    }
    found
}

#[test]
fn a_tree_becomes_nodes_and_names() {
    for profile in [V1, Profile::UNIXFS_V0_2015] {
        let blocks = Blocks::default();
        let root = tree(&blocks, &profile);
        let archive = read(&blocks.car(2, &[root.cid])).unwrap();
        let plan = archive.plan().unwrap();
        let found = paths(&plan);
        let expected = [
            "",
            "/again",
            "/again/a",
            "/again/zeros",
            "/empty",
            "/large",
            "/line\\nbreak",
            "/link",
            "/nothing",
            "/sub",
            "/sub/a",
            "/sub/zeros",
        ];
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        let node = |path: &str| &plan.nodes[found[path]];
        assert_eq!(node("/link").kind, FileKind::Symlink);
        assert_eq!(node("/link").target, b"sub/a");
        assert_eq!(node("/nothing").kind, FileKind::Directory);
        assert_eq!((node("/empty").kind, &node("/empty").content), (FileKind::File, &None));
        let large = node("/large").content.as_ref().unwrap();
        assert_eq!((large.link.size, large.profile.as_str()), (2_500_000, profile.name));
        assert_ne!(found["/sub/a"], found["/again/a"], "equal contents are no hard links");
        // Repeated blocks count each time, so that the directory's CID comes out.
        let zeros = node("/sub/zeros").content.as_ref().unwrap();
        let leaf_count = (2 << 20) / u64::from(profile.chunk_size);
        assert_eq!(zeros.blocks, leaf_count + 1);
        assert_eq!(zeros.link, blocks.file(&profile, &vec![0; 2 << 20]));
        // For a volume of this profile the name is left out.
        let own = archive.plan_for(&profile).unwrap();
        assert!(own.nodes.iter().flat_map(|n| &n.content).all(|c| c.profile.is_empty()));
    }
}

#[test]
fn a_file_alone_is_a_plan_of_one_node() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"alone");
    let plan = plan(&blocks, file.cid).unwrap();
    assert_eq!((plan.nodes.len(), plan.entries.len(), plan.root), (1, 0, 0));
    assert_eq!(plan.nodes[0].content.as_ref().unwrap().link, file);
}

#[test]
fn several_roots_become_a_directory_of_them() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"one").cid;
    let dir = tree(&blocks, &V1).cid;
    let plan = read(&blocks.car(1, &[file, dir, file])).unwrap().plan().unwrap();
    let found = paths(&plan);
    assert_eq!(plan.nodes[found[&format!("/{file}")]].kind, FileKind::File);
    assert!(found.contains_key(&format!("/{dir}/sub/a")));
}

#[test]
fn escaped_names_come_back_as_bytes() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"x");
    let escaped = crate::content::escape_name(b"bad\xff\xfe");
    let root = blocks.directory(&V1, &[(&escaped, file), ("\u{FFFD}", file)]);
    let plan = plan(&blocks, root.cid).unwrap();
    let mut names: Vec<&[u8]> = plan.entries.iter().map(|entry| entry.name.as_bytes()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"bad\xff\xfe"[..], "\u{FFFD}".as_bytes()]);
}

#[test]
fn names_and_targets_that_no_filesystem_takes_are_refused() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"x");
    for name in ["", ".", "..", "a/b", "/etc", "nul\0", &"n".repeat(256)] {
        let root = blocks.directory(&V1, &[(name, file)]);
        let error = plan(&blocks, root.cid).unwrap_err();
        assert!(matches!(error, ArchiveError::Unusable(_)), "{name:?}: {error}");
    }
    for target in [&b""[..], b"nul\0", &[b'a'; 4096]] {
        let root = blocks.symlink(&V1, target);
        assert!(matches!(plan(&blocks, root.cid), Err(ArchiveError::Unusable(_))));
    }
    // A directory with a name twice, which no builder makes.
    let link =
        [0x0a, 36].iter().copied().chain(file.cid.to_bytes()).chain([0x12, 1, b'n', 0x18, 1]);
    let link = with_length(&link.collect::<Vec<u8>>());
    let twice = [&[0x12], &link[..], &[0x12], &link[..], &[0x0a, 2, 8, 1]].concat();
    let root = blocks.put(cid::of_dag_pb(&twice), twice);
    assert!(plan(&blocks, root).unwrap_err().to_string().contains("twice"));
}

#[test]
fn mode_and_mtime_of_unixfs_1_5_are_kept() {
    // Type file, 2 bytes inline, mode 0100640, mtime -5 s and 7 ns.
    let mut data = vec![8, 2, 0x12, 2, b'h', b'i', 0x18, 2, 0x38];
    data.extend(varint(0o100_640));
    let mut time = vec![8];
    time.extend(varint((-5i64).cast_unsigned()));
    time.extend([0x15, 7, 0, 0, 0]);
    data.push(0x42);
    data.extend(with_length(&time));
    let block = [vec![0x0a], with_length(&data)].concat();
    let blocks = Blocks::default();
    let root = blocks.put(cid::of_dag_pb(&block), block);
    let plan = plan(&blocks, root).unwrap();
    let node = &plan.nodes[0];
    assert_eq!((node.mode, node.uid), (Some(0o640), None));
    assert_eq!(node.mtime, Some(Timestamp { seconds: -5, nanoseconds: 7 }));
    let content = node.content.as_ref().unwrap();
    assert_eq!((content.link.size, content.profile.as_str()), (2, "foreign"));
}

#[test]
fn a_lie_about_a_length_is_found() {
    let blocks = Blocks::default();
    let part = blocks.file(&V1, b"12345").cid;
    // A file of one link that claims 6 bytes.
    let link = [&[0x0a, 36][..], &part.to_bytes(), &[0x12, 0, 0x18, 5]].concat();
    let block = [&[0x12][..], &with_length(&link), &[0x0a, 6, 8, 2, 0x18, 6, 0x20, 6]].concat();
    let root = blocks.put(cid::of_dag_pb(&block), block.clone());
    let car = car_v1(&[root], &[(root, &block), (part, b"12345")]);
    let error = read(&car).unwrap().plan().unwrap_err().to_string();
    assert!(error.contains("which has 5"), "{error}");
    // An export needs the lengths in files, and finds it too.
    let mut out = Vec::new();
    let done = crate::archive::export(&mut out, 2, &[root], &mut blocks.load(), &mut |_, _| {});
    assert!(matches!(done, Err(ArchiveError::Unusable(_))));
}

#[test]
fn a_small_archive_cannot_stand_for_endless_files() {
    let blocks = Blocks::default();
    let mut dir = blocks.directory(&V1, &[("file", leaf(&V1, b"").0)]);
    blocks.put(leaf(&V1, b"").0.cid, &b""[..]);
    for _ in 0..30 {
        dir = blocks.directory(&V1, &[("a", dir), ("b", dir), ("c", dir), ("d", dir)]);
    }
    let error = plan(&blocks, dir.cid).unwrap_err().to_string();
    assert!(error.contains("stand for more than"), "{error}");
    for _ in 0..2100 {
        dir = blocks.directory(&V1, &[("a", Link { tsize: 1, ..dir })]);
    }
    let error = plan(&blocks, dir.cid).unwrap_err().to_string();
    assert!(error.contains("too deep"), "{error}");
}
