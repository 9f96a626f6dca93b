//! What we write, we and others read; what others write, we read.

use std::cell::RefCell;
use std::collections::HashSet;

use iroh_car::{CarHeader as IrohHeader, CarReader as IrohReader, CarWriter as IrohWriter};

use super::build::*;
use crate::archive::{ArchiveError, Soon, export, export_telling};
use crate::content::car::CarReader;
use crate::content::{DirectoryEntry, Profile, build_directory, leaf, parse_node};
use crate::types::{Cid, cid};

const PROFILES: [Profile; 2] = [Profile::UNIXFS_V1_2025, Profile::UNIXFS_V0_2015];

fn order(car: &[u8]) -> Vec<Cid> {
    let mut reader = CarReader::new(car).unwrap();
    let mut order = Vec::new();
    while let Some(section) = reader.next_section().unwrap() {
        order.push(section.cid);
    }
    order
}

/// Depth first, each block when it is first met, as `ipfs dag export` does.
fn depth_first(blocks: &Blocks, id: Cid, out: &mut Vec<Cid>) {
    if out.contains(&id) {
        return;
    }
    out.push(id);
    for child in parse_node(&id, &blocks.get(&id)).unwrap().children() {
        depth_first(blocks, child, out);
    }
}

#[test]
fn blocks_come_depth_first_each_once_the_root_first() {
    for profile in PROFILES {
        let blocks = Blocks::default();
        let root = tree(&blocks, &profile);
        let mut expected = Vec::new();
        depth_first(&blocks, root.cid, &mut expected);
        for version in [1, 2] {
            assert_eq!(order(&blocks.car(version, &[root.cid])), expected);
        }
        assert_eq!(expected.len(), blocks.0.borrow().len());
    }
}

#[test]
fn shards_come_in_the_order_of_their_links() {
    let profile = Profile::UNIXFS_V1_2025;
    let blocks = Blocks::default();
    let link = blocks.file(&profile, b"x");
    let entries = (0..6000).map(|i| DirectoryEntry { name: format!("file-{i:05}.txt"), link });
    let root = build_directory(&profile, entries.collect(), &mut blocks.sink()).unwrap();
    let mut expected = Vec::new();
    depth_first(&blocks, root.cid, &mut expected);
    assert_eq!(order(&blocks.car(1, &[root.cid])), expected);
    let archive = read(&blocks.car(2, &[root.cid])).unwrap();
    assert_eq!(archive.plan().unwrap().entries.len(), 6000);
}

#[test]
fn an_archive_reads_back_as_it_was_written() {
    for profile in PROFILES {
        for version in [1, 2] {
            let blocks = Blocks::default();
            let root = tree(&blocks, &profile);
            let archive = read(&blocks.car(version, &[root.cid])).unwrap();
            assert_eq!(archive.roots(), [root.cid]);
            assert_eq!(archive.indexed, version == 2);
            assert_eq!(archive.blocks() as usize, blocks.0.borrow().len());
            assert_eq!((archive.duplicates, archive.extra.len()), (0, 0));
            for id in archive.cids() {
                assert_eq!(archive.load(&id).unwrap(), blocks.get(&id));
            }
        }
    }
}

#[test]
fn the_bytes_of_a_version_1_archive_are_these() {
    let blocks = Blocks::default();
    let file = blocks.file(&Profile::UNIXFS_V1_2025, b"hello world");
    let by_hand = car_v1(&[file.cid], &[(file.cid, b"hello world")]);
    assert_eq!(blocks.car(1, &[file.cid]), by_hand);
}

#[test]
fn the_bytes_of_a_version_2_archive_are_those_of_go_car() {
    let blocks = Blocks::default();
    let profile = Profile::UNIXFS_V1_2025;
    let (a, b) = (blocks.file(&profile, b"a"), blocks.file(&profile, b"b"));
    let root = blocks.directory(&profile, &[("a", a), ("b", b)]);
    let data = blocks.car(1, &[root.cid]);
    let mut rows: Vec<(Vec<u8>, u64)> = Vec::new();
    let mut at = header(&[root.cid], 1).len() as u64;
    for id in [root.cid, a.cid, b.cid] {
        rows.push((id.hash().digest().to_vec(), at));
        at += section(&id, &blocks.get(&id)).len() as u64;
    }
    rows.sort();
    // uvarint 0x0401; one code; sha2-256; one bucket; rows of 40; 120 bytes.
    let mut index =
        vec![0x81, 0x08, 1, 0, 0, 0, 0x12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0];
    index.extend_from_slice(&120u64.to_le_bytes());
    for (digest, offset) in rows {
        index.extend_from_slice(&digest);
        index.extend_from_slice(&offset.to_le_bytes());
    }
    assert_eq!(blocks.car(2, &[root.cid]), car_v2(&data, &index, (0, 0)));
}

#[tokio::test]
async fn iroh_car_reads_what_we_write() {
    let blocks = Blocks::default();
    let root = tree(&blocks, &Profile::UNIXFS_V1_2025);
    let car = blocks.car(1, &[root.cid]);
    let mut reader = IrohReader::new(&car[..]).await.unwrap();
    assert_eq!(reader.header().roots(), [root.cid]);
    let mut count = 0;
    while let Some((id, data)) = reader.next_block().await.unwrap() {
        assert_eq!(blocks.get(&id), data);
        count += 1;
    }
    assert_eq!(count, blocks.0.borrow().len());
}

#[tokio::test]
async fn we_read_what_iroh_car_writes() {
    let blocks = Blocks::default();
    let root = tree(&blocks, &Profile::UNIXFS_V0_2015);
    let mut car = Vec::new();
    let mut writer = IrohWriter::new(IrohHeader::new_v1(vec![root.cid]), &mut car);
    let all = blocks.0.borrow().clone();
    // Sorted by CID: the order of blocks does not matter to a reader.
    for (id, data) in &all {
        writer.write(*id, data).await.unwrap();
    }
    writer.finish().await.unwrap();
    let archive = read(&car).unwrap();
    assert_eq!(archive.blocks() as usize, all.len());
    let profile = Profile::UNIXFS_V0_2015;
    assert_eq!(
        archive.plan_for(&profile).unwrap(),
        read(&blocks.car(2, &[root.cid])).unwrap().plan_for(&profile).unwrap()
    );
}

#[test]
fn identity_blocks_are_not_written() {
    let blocks = Blocks::default();
    let inline = identity(b"inline");
    let link = crate::content::Link { cid: inline, size: 6, tsize: 6 };
    let root = blocks.directory(&Profile::UNIXFS_V1_2025, &[("inline", link)]);
    let car = blocks.car(2, &[root.cid]);
    assert_eq!(order(&car), [root.cid]);
    let plan = read(&car).unwrap().plan().unwrap();
    assert_eq!(plan.nodes[1].content.as_ref().unwrap().link.cid, inline);
    assert_eq!(order(&blocks.car(1, &[inline])), [] as [Cid; 0]);
}

#[test]
fn a_missing_node_fails_before_anything_is_written() {
    let blocks = Blocks::default();
    let root = tree(&blocks, &Profile::UNIXFS_V1_2025);
    let node = parse_node(&root.cid, &blocks.get(&root.cid)).unwrap().children()[0];
    blocks.0.borrow_mut().remove(&node);
    let mut out = Vec::new();
    let error = export(&mut out, 1, &[root.cid], &mut blocks.load(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains(&node.to_string()), "{error}");
    assert!(out.is_empty());
    assert!(export(&mut out, 3, &[root.cid], &mut blocks.load(), &mut |_, _| {}).is_err());
}

#[test]
fn leaves_of_large_files_are_loaded_once() {
    let blocks = Blocks::default();
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i / 7 % 251) as u8).collect();
    let root = blocks.file(&Profile::UNIXFS_V1_2025, &data);
    for version in [1, 2] {
        let mut raw = 0;
        let mut load = blocks.load();
        let mut counted = |id: &Cid| {
            raw += u32::from(id.codec() == cid::RAW);
            load(id)
        };
        export(&mut std::io::sink(), version, &[root.cid], &mut counted, &mut |_, _| {}).unwrap();
        assert_eq!(raw, 5);
    }
}

#[test]
fn what_will_be_loaded_is_told_before_and_not_long_before() {
    let blocks = Blocks::default();
    let root = tree(&blocks, &Profile::UNIXFS_V1_2025);
    for version in [1, 2] {
        let (told, mut load) = (RefCell::new(HashSet::new()), blocks.load());
        let (mut foretold, mut surprises, mut most) = (0, 0, 0);
        let mut watched = |id: &Cid| {
            most = most.max(told.borrow().len());
            if told.borrow_mut().remove(id) {
                foretold += 1;
            } else {
                surprises += 1;
            }
            load(id)
        };
        let mut soon = |id: &Cid, _: Option<u64>| {
            told.borrow_mut().insert(*id);
        };
        let with = (&mut watched as &mut crate::content::Load<'_>, &mut soon as &mut Soon<'_>);
        let nothing = &mut |_, _| {};
        export_telling(&mut std::io::sink(), version, &[root.cid], with, nothing).unwrap();
        assert_eq!(surprises, 1, "the root; {foretold} were foretold");
        assert!(foretold > 10 && most <= 64, "{foretold} were, {most} at a time");
    }
}

#[test]
fn a_full_disk_is_an_io_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let blocks = Blocks::default();
    let root = tree(&blocks, &Profile::UNIXFS_V1_2025);
    for room in [0, 30, 100, 1 << 20] {
        let done = export(&mut Full(room), 2, &[root.cid], &mut blocks.load(), &mut |_, _| {});
        assert!(matches!(done, Err(ArchiveError::Io(_))));
    }
    let small = leaf(&Profile::UNIXFS_V1_2025, b"x").0;
    assert!(
        export(&mut Full(1000), 1, &[small.cid], &mut |_| Ok("x".into()), &mut |_, _| {}).is_ok()
    );
}
