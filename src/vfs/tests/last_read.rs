//! When contents were read, for tiers by access.

use std::time::Duration;

use super::world::{Ground, World};
use crate::types::{FileKind, Ino, Name};
use crate::vfs::OpenOptions;

const BY_ACCESS: &str = "min=1,target=1,max=2,level=LOCAL_DURABILITY,\
    tiers=near:1:until=30d:by=access/far:1:after=30d:by=access";

fn world(policy: &str) -> (World, Ino) {
    let world = World::new(Ground::Embedded, policy, 1 << 20, 8 << 20);
    let (vfs, name) = (world.vfs(), Name::new("file").unwrap());
    let made = vfs.make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap();
    let write = OpenOptions { write: true, ..OpenOptions::default() };
    let id = vfs.open_file(made.ino, write).unwrap();
    vfs.write(id, 0, b"some bytes").unwrap();
    vfs.release(id).unwrap();
    vfs.info(made.ino).unwrap();
    (world, made.ino)
}

fn recorded(world: &World, ino: Ino) -> i64 {
    let root = world.namespace().inode(ino).unwrap().content.unwrap();
    world.namespace().content(&root).unwrap().unwrap().accessed_s
}

fn read(world: &World, ino: Ino) {
    let id = world.vfs().open_file(ino, OpenOptions::default()).unwrap();
    world.vfs().read(id, 0, &mut [0; 16]).unwrap();
    world.vfs().release(id).unwrap();
}

fn pass(world: &World, minutes: u64) {
    world.clock.advance(Duration::from_mins(minutes));
}

#[test]
fn a_read_moves_the_time_that_tiers_by_access_count_from() {
    let (mut world, ino) = world(BY_ACCESS);
    let written = recorded(&world, ino);
    pass(&world, 180);
    read(&world, ino);
    world.vfs().write_reads().unwrap();
    let first = recorded(&world, ino);
    assert!((180 * 60..180 * 60 + 60).contains(&(first - written)), "{first} after {written}");
    // At most once an hour, whoever reads.
    pass(&world, 50);
    read(&world, ino);
    world.vfs().write_reads().unwrap();
    assert_eq!(recorded(&world, ino), first);
    // A handle that stays open says it again, and the end writes what waits.
    let id = world.vfs().open_file(ino, OpenOptions::default()).unwrap();
    pass(&world, 600);
    world.vfs().read(id, 0, &mut [0; 4]).unwrap();
    world.vfs().release(id).unwrap();
    world.reopen();
    assert!(recorded(&world, ino) >= first + 600 * 60);
}

#[test]
fn where_no_tier_counts_from_reads_none_is_recorded() {
    let (mut world, ino) = world("min=1,target=1,level=LOCAL_DURABILITY");
    let written = recorded(&world, ino);
    pass(&world, 180);
    read(&world, ino);
    world.reopen();
    assert_eq!(recorded(&world, ino), written);
}

#[test]
fn very_many_contents_wait_in_bounded_memory() {
    let waiting = crate::vfs::last_read::LastRead::default();
    for n in 0..20_000u32 {
        waiting.put(crate::types::cid::of_raw(&n.to_le_bytes()), 1000);
    }
    assert_eq!(waiting.some().len(), 512);
    let now = |seconds| crate::types::Timestamp { seconds, nanoseconds: 0 };
    assert!(waiting.is_due(now(1001)), "there is no room for more");
    let mut pages = 0;
    while !waiting.some().is_empty() {
        waiting.written(&waiting.some());
        pages += 1;
    }
    assert_eq!(pages, 32);
    assert!(!waiting.is_due(now(10_000)));
}
