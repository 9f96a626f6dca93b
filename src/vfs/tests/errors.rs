//! Failures of what is written later: who is told, and what is said afterwards.

use super::world::{Ground, World};
use crate::metadata::{keys, transact};
use crate::runtime::Shutdown;
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{HandleId, OpenOptions};
use std::time::Duration;

const WRITE: OpenOptions =
    OpenOptions { write: true, truncate: false, append: false, no_access_time: false };

/// Files above 1 KiB are staged in a file of their own.
fn world(policy: &str) -> World {
    World::new(Ground::Simulated, policy, 1024, 64 << 20)
}

fn make(world: &World) -> Ino {
    let name = Name::new("file").unwrap();
    world.vfs().make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino
}

fn open(world: &World, ino: Ino) -> HandleId {
    world.vfs().open_file(ino, WRITE).unwrap()
}

fn contents(world: &World, ino: Ino) -> Vec<u8> {
    let id = open(world, ino);
    let mut data = vec![9; 70_000];
    let count = world.vfs().read(id, 0, &mut data).unwrap();
    world.vfs().release(id).unwrap();
    data.truncate(count);
    data
}

#[test]
fn each_handle_that_was_open_at_a_failure_is_told_of_it_once() {
    let world = world("level=QUORUM");
    let (vfs, ino) = (world.vfs(), make(&world));
    let (first, second) = (open(&world, ino), open(&world, ino));
    vfs.write(first, 0, b"small").unwrap();
    world.disk().unwrap().fill(true);
    assert!(vfs.fsync(first).is_err());
    world.disk().unwrap().fill(false);
    // Opened after somebody was told: not its business.
    let third = open(&world, ino);
    vfs.fsync(third).unwrap();
    let told = vfs.fsync(second).unwrap_err();
    assert!(told.to_string().contains("an earlier write failed"), "{told}");
    for handle in [first, second, third] {
        vfs.fsync(handle).unwrap();
    }
    assert_eq!(contents(&world, ino), b"small");
}

#[test]
fn a_failure_that_nobody_was_told_of_is_told_to_who_opens_next() {
    let world = world("level=QUORUM,wait_on=fsync");
    let (vfs, ino) = (world.vfs(), make(&world));
    let first = open(&world, ino);
    vfs.write(first, 0, b"small").unwrap();
    world.disk().unwrap().fill(true);
    // Nobody waits for it.
    vfs.flush(first).unwrap();
    vfs.release(first).unwrap();
    let (state, pause) = (b"user.cairn.state", Shutdown::default());
    while vfs.get_xattr(ino, state).unwrap() != b"error" {
        assert!(!pause.wait(Duration::from_millis(1)));
    }
    let second = open(&world, ino);
    let third = open(&world, ino);
    world.disk().unwrap().fill(false);
    assert!(vfs.fsync(second).is_err());
    assert!(vfs.write(third, 0, b"S").is_err());
    vfs.write(third, 0, b"S").unwrap();
    vfs.fsync(second).unwrap();
    let fourth = open(&world, ino);
    vfs.fsync(fourth).unwrap();
    assert_eq!(contents(&world, ino), b"Small");
}

#[test]
fn after_a_failed_sync_no_handle_is_ever_told_of_success() {
    for (level, then) in [
        ("LOCAL_DURABILITY", "LOCAL_DURABILITY"),
        ("QUORUM", "QUORUM"),
        // What a commit failed to sync is not made good by another way to sync it.
        ("QUORUM", "LOCAL_DURABILITY"),
        ("LOCAL_DURABILITY", "QUORUM"),
    ] {
        let mut world = world(&format!("level={level}"));
        let (vfs, ino) = (world.vfs().clone(), make(&world));
        let (first, second) = (open(&world, ino), open(&world, ino));
        vfs.write(first, 0, &[1; 5000]).unwrap();
        vfs.fsync(first).unwrap();
        vfs.write(first, 0, &vec![2; 60_000]).unwrap();
        world.disk().unwrap().fail_syncs(true);
        assert!(vfs.fsync(first).is_err());
        world.disk().unwrap().fail_syncs(false);
        vfs.set_policy(format!("level={then}").parse().unwrap());
        for handle in [first, second, first, second, open(&world, ino)] {
            assert!(vfs.fsync(handle).is_err(), "{level}, then {then}");
        }
        drop(vfs);
        world.cut_power(&mut fastrand::Rng::with_seed(7));
        let found = contents(&world, ino);
        assert!(found.len() == 5000 || found.len() == 60_000, "{}", found.len());
        let third = open(&world, ino);
        world.vfs().write(third, 0, &vec![3; 60_000]).unwrap();
        world.vfs().fsync(third).unwrap();
        assert_eq!(contents(&world, ino), vec![3; 60_000]);
    }
}

#[test]
fn what_the_kernel_brings_of_a_mapping_is_kept_and_leaves_a_failure_to_a_call_of_a_program() {
    let world = world("level=QUORUM");
    let (vfs, ino) = (world.vfs(), make(&world));
    let appends = OpenOptions { append: true, ..WRITE };
    let (first, mapped) = (open(&world, ino), vfs.open_file(ino, appends).unwrap());
    vfs.write(first, 0, b"small").unwrap();
    world.disk().unwrap().fill(true);
    assert!(vfs.fsync(first).is_err());
    world.disk().unwrap().fill(false);
    vfs.write_mapped(mapped, 0, b"S").unwrap();
    assert!(vfs.fsync(mapped).is_err());
    vfs.fsync(mapped).unwrap();
    assert_eq!(contents(&world, ino), b"Small");
}

#[test]
fn a_commit_that_failed_is_tried_again_by_and_by() {
    let world = world("level=QUORUM,wait_on=fsync");
    let (vfs, ino) = (world.vfs(), make(&world));
    let id = open(&world, ino);
    vfs.write(id, 0, b"small").unwrap();
    world.disk().unwrap().fill(true);
    vfs.flush(id).unwrap();
    vfs.release(id).unwrap();
    let (state, pause) = (b"user.cairn.state", Shutdown::default());
    while vfs.get_xattr(ino, state).unwrap() != b"error" {
        assert!(!pause.wait(Duration::from_millis(1)));
    }
    world.disk().unwrap().fill(false);
    // Nobody opens, syncs or closes anything.
    while world.namespace().inode(ino).unwrap().content.is_none() {
        assert!(!pause.wait(Duration::from_millis(1)));
    }
}

#[test]
fn an_end_keeps_what_cannot_be_committed_for_the_next_opening() {
    let mut world = world("level=QUORUM,wait_on=fsync");
    let ino = make(&world);
    let id = open(&world, ino);
    let bytes = vec![7; 50_000];
    world.vfs().write(id, 0, &bytes).unwrap();
    world.disk().unwrap().fill(true);
    assert!(world.vfs().close().is_err());
    world.disk().unwrap().fill(false);
    world.kill();
    assert_eq!(contents(&world, ino), bytes);
    world.reopen();
    assert_eq!(contents(&world, ino), bytes);
}

#[test]
fn a_change_that_fails_leaves_the_length_that_is_said() {
    let world = world("level=QUORUM,wait_on=fsync");
    let (vfs, ino) = (world.vfs(), make(&world));
    let id = open(&world, ino);
    vfs.write(id, 0, &vec![7; 5_001]).unwrap();
    vfs.fsync(id).unwrap();
    vfs.write(id, 0, b"changed").unwrap();
    // Zeroing from the middle of a page has to write what is below it there.
    world.disk().unwrap().fill(true);
    let zero = rustix::fs::FallocateFlags::ZERO_RANGE.bits().cast_signed();
    let failed = vfs.fallocate(id, 4_500..30_001, zero);
    let size = vfs.attributes(ino).unwrap().size;
    world.disk().unwrap().fill(false);
    vfs.fsync(id).unwrap_or(());
    vfs.fsync(id).unwrap();
    eprintln!("{failed:?}, {size}");
    assert_eq!(size, if failed.is_ok() { 30_001 } else { 5_001 });
    assert_eq!(vfs.attributes(ino).unwrap().size, size);
    assert_eq!(contents(&world, ino).len() as u64, size);
}

/// Replaces a row; what it was.
fn replace_row(world: &World, ino: Ino, row: &[u8]) -> Vec<u8> {
    let key = keys::number(keys::INODE, ino.0);
    let engine = world.namespace().engine();
    transact(engine.as_ref(), |tx| {
        let old = tx.get(&key)?.unwrap();
        tx.put(&key, row);
        Ok(old)
    })
    .unwrap()
}

#[test]
fn one_damaged_row_fails_no_other_file() {
    let world = world("level=QUORUM,wait_on=fsync");
    let (vfs, mut files) = (world.vfs(), Vec::new());
    for n in 0..20 {
        let name = Name::new(format!("file{n}")).unwrap();
        let ino = vfs.make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino;
        let id = open(&world, ino);
        vfs.write(id, 0, format!("bytes of {n}").as_bytes()).unwrap();
        files.push(ino);
    }
    let row = replace_row(&world, files[3], b"\x02");
    assert!(vfs.commit_all().is_err());
    for ino in files.iter().filter(|ino| **ino != files[3]) {
        assert!(world.namespace().inode(*ino).unwrap().content.is_some(), "{ino}");
    }
    replace_row(&world, files[3], &row);
    vfs.commit_all().unwrap();
    assert!(world.namespace().inode(files[3]).unwrap().content.is_some());
}

#[test]
fn synced_bytes_outlive_mounts_while_their_row_is_damaged() {
    let mut world = world("level=LOCAL_DURABILITY,wait_on=fsync");
    let ino = make(&world);
    let id = open(&world, ino);
    let bytes = vec![7; 50_000];
    world.vfs().write(id, 0, &bytes).unwrap();
    world.vfs().fsync(id).unwrap();
    let row = replace_row(&world, ino, b"\x02");
    world.kill();
    world.kill();
    replace_row(&world, ino, &row);
    world.kill();
    assert_eq!(contents(&world, ino), bytes);
}
