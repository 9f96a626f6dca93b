//! Reads of files that lie on a backend only.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::world::{SMALL, World};
use crate::backends::watched::{Watch, Watched};
use crate::backends::wrap::{Operation, Wrapped, standard};
use crate::backends::{Backend, ErrorKind, MemoryBackend, PlaceSettings};
use crate::content::{Profile, walk_post_order};
use crate::metadata::{CopyRecord, CopyState};
use crate::runtime::{Shutdown, Step};
use crate::store::IndexChange;
use crate::types::{Cid, FileKind, Ino, Name, cid};
use crate::vfs::near::Brought;
use crate::vfs::{HandleId, OpenOptions, VfsError};

const LEAF: usize = 16_384;
/// Leaves as in tests, and nodes as in use.
const WIDE: Profile = Profile { max_links: 1024, ..SMALL };

/// A file whose blocks are on a place only.
struct Cold {
    world: World,
    place: Arc<MemoryBackend>,
    watch: Arc<Watch>,
    data: Vec<u8>,
    ino: Ino,
    /// Inner nodes and leaves.
    blocks: (usize, usize),
}

impl Cold {
    fn new(profile: Profile, leaves: usize, delay: Duration) -> Self {
        let place = Arc::new(MemoryBackend::new("b"));
        place.set_durable(true);
        let watch = Arc::new(Watch::default());
        let plain = Arc::clone(&place) as Arc<dyn Backend>;
        let watched = Arc::new(Wrapped::new(plain, Watched(Arc::clone(&watch))));
        let backend = standard(watched, Duration::from_mins(1), &PlaceSettings::default());
        let world = World::with_place_and_profile(backend, "min=1,target=2,level=SINGLE", profile);
        let mut random = fastrand::Rng::with_seed(3);
        let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(leaves * LEAF).collect();
        let vfs = world.vfs();
        let name = Name::new("file").unwrap();
        let made = vfs.make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap();
        let write = OpenOptions { write: true, ..OpenOptions::default() };
        let id = vfs.open_file(made.ino, write).unwrap();
        for (n, part) in data.chunks(1 << 20).enumerate() {
            vfs.write(id, (n << 20) as u64, part).unwrap();
        }
        vfs.fsync(id).unwrap();
        vfs.release(id).unwrap();
        let root = vfs.info(made.ino).unwrap().link.cid;
        let (start, pace) = (std::time::Instant::now(), Shutdown::default());
        let copied = || {
            let record = world.namespace().content(&root).unwrap().unwrap();
            let verified = |copy: &CopyRecord| copy.state == CopyState::Verified;
            record.good_copies().any(|copy| !copy.backend.is_local() && verified(copy))
        };
        while !(copied() && world.vfs().replicator.is_idle()) {
            assert!(start.elapsed() < Duration::from_secs(20), "it is not copied");
            assert!(!pace.wait(Duration::from_millis(2)));
        }
        let blocks = lose(&world, &root);
        let mut cold = Self { world, place, watch, data, ino: made.ino, blocks };
        // What was cached of it is forgotten, too.
        cold.world.reopen();
        cold.watch.all.store(0, Ordering::SeqCst);
        cold.watch.most.store(0, Ordering::SeqCst);
        *cold.watch.delay.lock() = delay;
        cold
    }

    fn open(&self) -> HandleId {
        self.world.vfs().open_file(self.ino, OpenOptions::default()).unwrap()
    }

    fn gets(&self) -> usize {
        self.watch.all.load(Ordering::SeqCst)
    }

    /// Reads as a request of the kernel does; how often it had to wait.
    fn read(&self, id: HandleId, at: usize, len: usize) -> usize {
        let (result, waits) = self.try_read(id, at, len);
        assert!(result.unwrap() == self.data[at..at + len], "{len} bytes at {at}");
        waits
    }

    fn try_read(&self, id: HandleId, at: usize, len: usize) -> (Result<Vec<u8>, VfsError>, usize) {
        let (vfs, brought, mut waits) = (self.world.vfs(), Brought::default(), 0);
        loop {
            let stepped = vfs.near(&brought, || {
                let mut buffer = vec![0; len];
                let n = vfs.read(id, at as u64, &mut buffer)?;
                buffer.truncate(n);
                Ok(buffer)
            });
            let waited = match stepped {
                Ok(Step::Done(read)) => return (Ok(read), waits),
                Ok(Step::Wait(wait)) => vfs.bridge().block_on(wait),
                Err(error) => return (Err(error), waits),
            };
            waits += 1;
            if let Err(error) = waited {
                return (Err(error), waits);
            }
        }
    }
}

/// Forgets a content's blocks here; how many nodes and leaves it has.
fn lose(world: &World, root: &Cid) -> (usize, usize) {
    let store = &world.vfs().store;
    let (mut nodes, mut leaves) = (Vec::new(), Vec::new());
    walk_post_order(
        root,
        &mut |_| Ok(true),
        &mut |id| Ok(store.get(id).unwrap().unwrap()),
        &mut |id, _| {
            if id.codec() == cid::RAW {
                leaves.push(*id);
            } else {
                nodes.push(*id);
            }
            Ok(())
        },
    )
    .unwrap();
    let gone: Vec<_> = nodes.iter().chain(&leaves).map(|id| IndexChange::Remove(*id)).collect();
    store.apply(&gone).unwrap();
    (nodes.len(), leaves.len())
}

#[test]
fn a_cold_file_read_in_order_comes_by_many_reads_at_a_time() {
    for (profile, by) in [(WIDE, LEAF / 4), (SMALL, LEAF / 2), (WIDE, LEAF * 3)] {
        let cold = Cold::new(profile, 96, Duration::from_millis(10));
        let id = cold.open();
        let mut waits = 0;
        for at in (0..cold.data.len()).step_by(by) {
            waits += cold.read(id, at, by.min(cold.data.len() - at));
        }
        let (nodes, leaves) = cold.blocks;
        let most = cold.watch.most.load(Ordering::SeqCst);
        println!("{nodes} nodes, {leaves} leaves by {by}: {waits} waits, {most} at a time");
        assert_eq!(cold.gets(), nodes + leaves, "each block comes once");
        assert!((3..=16).contains(&most), "{most} at a time");
        // What a node of four has below it is known only when it is here.
        let bound = if nodes == 1 { leaves / 2 } else { (nodes + leaves) * 4 / 5 };
        assert!(waits < bound, "{waits} waits for {nodes} nodes, {leaves} leaves");
    }
}

#[test]
fn a_small_read_of_a_cold_file_brings_the_nodes_on_its_path_and_one_leaf() {
    for (profile, on_path) in [(WIDE, 1), (SMALL, 3)] {
        for at in [0, 30 * LEAF + 7] {
            let cold = Cold::new(profile, 64, Duration::ZERO);
            let waits = cold.read(cold.open(), at, 4096);
            assert_eq!((cold.gets(), waits), (on_path + 1, on_path + 1), "of {:?}", cold.blocks);
        }
    }
}

#[test]
fn reads_here_and_there_bring_only_what_they_need() {
    let cold = Cold::new(WIDE, 96, Duration::ZERO);
    let id = cold.open();
    let leaves: Vec<usize> = (0..24).map(|n| n * 37 % 96).collect();
    for leaf in &leaves {
        cold.read(id, leaf * LEAF + 100, 1000);
    }
    assert_eq!(cold.gets(), 1 + leaves.len());
}

#[test]
fn a_read_that_lacks_several_leaves_waits_for_all_of_them_at_once() {
    let cold = Cold::new(WIDE, 32, Duration::from_millis(10));
    let waits = cold.read(cold.open(), 5 * LEAF + 1, 8 * LEAF);
    assert_eq!((cold.gets(), waits), (1 + 9, 2), "the root, then nine leaves");
    assert_eq!(cold.watch.most.load(Ordering::SeqCst), 9);
}

#[test]
fn a_jump_and_a_close_end_the_reading_ahead() {
    let cold = Cold::new(WIDE, 96, Duration::ZERO);
    let id = cold.open();
    for n in 0..4 {
        cold.read(id, n * LEAF, LEAF);
    }
    cold.world.vfs().release(id).unwrap();
    let pace = Shutdown::default();
    let until_landed = || {
        while cold.world.vfs().replicator.is_bringing() {
            assert!(!pace.wait(Duration::from_millis(1)));
        }
    };
    until_landed();
    let before = cold.gets();
    assert!(before < 40, "{before} of 96 leaves");
    // Its own reader begins anew.
    let other = cold.open();
    cold.read(other, 80 * LEAF, 100);
    until_landed();
    assert_eq!(cold.gets(), before + 1);
}

#[test]
fn what_cannot_be_brought_ahead_fails_the_read_that_needs_it_and_no_other() {
    let cold = Cold::new(WIDE, 24, Duration::ZERO);
    let id = cold.open();
    cold.read(id, 0, LEAF);
    let bad = cid::of_raw(&cold.data[9 * LEAF..10 * LEAF]);
    assert!(cold.place.lose(&bad));
    for n in (1..24).filter(|n| *n != 9) {
        cold.read(id, n * LEAF, LEAF);
    }
    let (read, _) = cold.try_read(id, 9 * LEAF, LEAF);
    assert!(read.unwrap_err().to_string().contains("b: "));
    cold.place.fail_times(Operation::Get, ErrorKind::Other, 2);
    cold.read(id, 10 * LEAF, LEAF);
}
