//! Failures of what is written later: who is told, and what is said afterwards.

use super::world::{Ground, World};
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
