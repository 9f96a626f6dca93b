//! What a change costs, counted in bytes hashed.

use std::time::{Duration, Instant};

use super::world::World;
use crate::content::Profile;
use crate::runtime::Shutdown;
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{Caller, HandleId, OpenOptions, SetAttr};

const MIB: u64 = 1 << 20;
/// A root over 1024 leaves has some 50 bytes a link; two levels may be made anew.
const NODES: u64 = 160 << 10;
const WRITE: OpenOptions =
    OpenOptions { write: true, truncate: false, append: false, no_access_time: false };

fn make(world: &World, name: &str) -> (Ino, HandleId) {
    let name = Name::new(name).unwrap();
    let made = world.vfs().make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap();
    (made.ino, world.vfs().open_file(made.ino, WRITE).unwrap())
}

fn resize(world: &World, ino: Ino, size: u64) {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    world.vfs().set_attributes(ino, &set, Caller { uid: 0, gid: 0 }).unwrap();
}

/// Bytes hashed until what `change` does is committed.
fn cost(world: &World, ino: Ino, change: impl FnOnce()) -> u64 {
    let before = world.vfs().hashed_bytes();
    change();
    world.vfs().link_of(ino).unwrap();
    world.vfs().hashed_bytes() - before
}

#[test]
fn appending_to_a_gibibyte_hashes_the_last_leaf_and_the_nodes_above_it() {
    let world = World::with_profile(Profile::UNIXFS_V1_2025, "level=QUORUM");
    let vfs = world.vfs();
    let (ino, id) = make(&world, "sparse");
    let first = cost(&world, ino, || resize(&world, ino, 1024 * MIB));
    assert!(first <= MIB + NODES, "holes are hashed once: {first}");

    let appended = cost(&world, ino, || assert!(vfs.write(id, 1024 * MIB, &[1; 4096]).is_ok()));
    assert!((4096..=4096 + NODES).contains(&appended), "{appended}");
    let again = cost(&world, ino, || assert!(vfs.write(id, 1024 * MIB + 4096, &[2; 4096]).is_ok()));
    assert!((8192..=8192 + NODES).contains(&again), "{again}");

    let middle = cost(&world, ino, || assert!(vfs.write(id, 512 * MIB + 5000, &[3; 4096]).is_ok()));
    assert!((MIB..=MIB + NODES).contains(&middle), "{middle}");
    let cut = cost(&world, ino, || resize(&world, ino, 512 * MIB + 6000));
    assert!(cut <= MIB + NODES, "{cut}");
    let nothing = cost(&world, ino, || {});
    assert_eq!(nothing, 0);

    let mut read = [9; 4096];
    assert_eq!(vfs.read(id, 512 * MIB + 5000, &mut read).unwrap(), 1000);
    assert_eq!(read[..1000], [3; 1000]);
}

#[test]
fn a_written_file_is_hashed_once_and_then_only_where_it_changes() {
    let world = World::with_profile(Profile::UNIXFS_V1_2025, "level=QUORUM");
    let vfs = world.vfs();
    let (ino, id) = make(&world, "written");
    let size = 24 * MIB + 77;
    let mut random = fastrand::Rng::with_seed(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size as usize).collect();
    let first = cost(&world, ino, || {
        for (n, part) in bytes.chunks(128 << 10).enumerate() {
            vfs.write(id, n as u64 * (128 << 10), part).unwrap();
        }
        // What is hashed behind the writer is not hashed by the commit.
        let (start, pace) = (Instant::now(), Shutdown::default());
        while vfs.hashed_bytes() < 24 * MIB {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", vfs.hashed_bytes());
            assert!(!pace.wait(Duration::from_millis(1)));
        }
    });
    assert!((size..=size + NODES).contains(&first), "{first} of {size}");
    let appended = cost(&world, ino, || assert!(vfs.write(id, size, &[1; 4096]).is_ok()));
    assert!(appended <= 77 + 4096 + NODES, "{appended}");
    let middle = cost(&world, ino, || assert!(vfs.write(id, 7 * MIB, &[2; 4096]).is_ok()));
    assert!((MIB..=MIB + NODES).contains(&middle), "{middle}");
}

#[test]
fn at_level_local_a_sync_of_a_file_that_is_changed_again_and_again_does_not_hash() {
    let world = World::with_profile(Profile::UNIXFS_V1_2025, "level=LOCAL_DURABILITY");
    let vfs = world.vfs();
    let (large, id) = make(&world, "large");
    resize(&world, large, 1024 * MIB);
    vfs.link_of(large).unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    let before = vfs.hashed_bytes();
    for _ in 0..30 {
        vfs.write(id, random.u64(0..1000) * MIB + 300, &[7; 8192]).unwrap();
        vfs.fsync(id).unwrap();
    }
    assert_eq!(vfs.hashed_bytes(), before);
    // What was synced is one commit at the end.
    vfs.link_of(large).unwrap();
    assert!(vfs.hashed_bytes() - before <= 30 * MIB + NODES);

    let (_, id) = make(&world, "small");
    vfs.write(id, 0, &vec![1; 60_000]).unwrap();
    vfs.fsync(id).unwrap();
    let before = vfs.hashed_bytes();
    for n in 0..30 {
        vfs.write(id, n * 1000, &[2; 500]).unwrap();
        vfs.fsync(id).unwrap();
    }
    assert_eq!(vfs.hashed_bytes(), before, "only the first sync of a small file commits");
}
