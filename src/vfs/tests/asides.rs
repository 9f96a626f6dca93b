//! What synced staging files leave on the disk when they are let go of.

use super::world::{Ground, World};
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{Caller, HandleId, OpenOptions, SetAttr};

const WRITE: OpenOptions =
    OpenOptions { write: true, truncate: false, append: false, no_access_time: false };
const ROOT: Caller = Caller { uid: 0, gid: 0 };
const SIZE: usize = 100_000;

/// Every file is staged in a file of its own, and a sync only records it.
fn world(ground: Ground) -> World {
    World::new(ground, "level=LOCAL_DURABILITY,wait_on=fsync", 1024, 64 << 20)
}

fn make(world: &World, name: &str) -> (Ino, HandleId) {
    let name = Name::new(name).unwrap();
    let ino =
        world.vfs().make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino;
    (ino, world.vfs().open_file(ino, WRITE).unwrap())
}

fn write_synced(world: &World, id: HandleId, byte: u8) {
    world.vfs().write(id, 0, &vec![byte; SIZE]).unwrap();
    world.vfs().fsync(id).unwrap();
}

fn cut(world: &World, ino: Ino) {
    let set = SetAttr { size: Some(0), ..SetAttr::default() };
    world.vfs().set_attributes(ino, &set, ROOT).unwrap();
}

#[test]
fn a_file_that_is_synced_and_cut_again_and_again_keeps_the_space_of_two() {
    let world = world(Ground::Embedded);
    let (ino, id) = make(&world, "file");
    for byte in 0..20 {
        write_synced(&world, id, byte);
        cut(&world, ino);
        let files = world.store_files().len();
        assert!(files <= 3, "{files} files after {byte} rounds");
    }
    world.vfs().release(id).unwrap();
    world.vfs().commit_all().unwrap();
    assert_eq!(world.store_files(), Vec::<u64>::new());
}

#[test]
fn what_a_record_names_outlives_the_syncs_of_others() {
    let mut world = world(Ground::Simulated);
    let (ino, id) = make(&world, "file");
    write_synced(&world, id, 7);
    cut(&world, ino);
    let (_, other) = make(&world, "other");
    for byte in 0..3 {
        write_synced(&world, other, byte);
    }
    world.vfs().write(id, 0, &vec![8; SIZE]).unwrap();
    world.kill();
    let id = world.vfs().open_file(ino, WRITE).unwrap();
    let mut found = vec![0; SIZE];
    assert_eq!(world.vfs().read(id, 0, &mut found).unwrap(), SIZE);
    assert!(found.iter().all(|byte| *byte == 7), "{:?}", &found[..8]);
}

#[test]
fn a_sync_of_a_file_without_a_name_leaves_nothing() {
    let world = world(Ground::Embedded);
    let (_, id) = make(&world, "file");
    world.vfs().unlink(Ino::ROOT, &Name::new("file").unwrap()).unwrap();
    write_synced(&world, id, 1);
    world.vfs().release(id).unwrap();
    assert_eq!(world.store_files(), Vec::<u64>::new());
}
