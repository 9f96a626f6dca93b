//! What a close and an fsync wait for, and who waits for a commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::world::{Ground, World};
use crate::backends::wrap::{Around, Attempt, Operation, Wrapped};
use crate::backends::{BackendError, ErrorKind, MemoryBackend};
use crate::metadata::RenameMode;
use crate::replication::ReplicationError;
use crate::runtime::{Shutdown, Step};
use crate::types::{FileKind, Ino, Name};
use crate::vfs::near::Brought;
use crate::vfs::{Caller, HandleId, OpenOptions, SetAttr, VfsError};

const WRITE: OpenOptions =
    OpenOptions { write: true, truncate: false, append: false, no_access_time: false };
const ROOT: Caller = Caller { uid: 0, gid: 0 };

type Steps<'s> = &'s mut dyn FnMut() -> Result<Step<(), VfsError>, VfsError>;

fn world() -> World {
    World::new(Ground::Simulated, "min=1,target=1,level=SINGLE", 1024, 64 << 20)
}

fn make(world: &World) -> (Ino, HandleId) {
    let name = Name::new("file").unwrap();
    let ino =
        world.vfs().make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino;
    (ino, world.vfs().open_file(ino, WRITE).unwrap())
}

/// True when it has something to wait for.
fn begins_to_wait(world: &World, id: HandleId) -> bool {
    match world.vfs().flush_steps(id)().unwrap() {
        Step::Done(()) => false,
        Step::Wait(_) => true,
    }
}

fn finish(world: &World, steps: Steps<'_>) {
    while let Step::Wait(wait) = steps().unwrap() {
        world.vfs().bridge().block_on(wait).unwrap();
    }
}

#[test]
fn what_is_written_while_a_close_waits_is_for_the_next_close() {
    let world = world();
    let (_, id) = make(&world);
    world.vfs().write(id, 0, b"one").unwrap();
    let mut first = world.vfs().flush_steps(id);
    let Step::Wait(wait) = first().unwrap() else { panic!("nothing to wait for") };
    // Another process that has the same descriptor.
    world.vfs().write(id, 3, b"two").unwrap();
    world.vfs().bridge().block_on(wait).unwrap();
    finish(&world, &mut first);
    assert!(begins_to_wait(&world, id), "the second close has bytes of its own");
}

#[test]
fn a_close_after_ftruncate_waits_as_after_a_write() {
    let world = world();
    let (ino, id) = make(&world);
    world.vfs().write(id, 0, b"bytes").unwrap();
    finish(&world, &mut world.vfs().flush_steps(id));
    assert!(!begins_to_wait(&world, id));
    let set = SetAttr { size: Some(2), handle: Some(id), ..SetAttr::default() };
    world.vfs().set_attributes(ino, &set, ROOT).unwrap();
    assert!(begins_to_wait(&world, id));
}

#[test]
fn a_close_after_an_fsync_that_was_repeated_does_not_speak_of_the_signal() {
    let world = world();
    let (_, id) = make(&world);
    world.vfs().write(id, 0, b"bytes").unwrap();
    world.vfs().interrupted(id);
    assert_eq!(world.vfs().flush(id).unwrap_err().errno().0, libc_eintr());
    assert_eq!(world.vfs().flush(id).unwrap_err().errno().0, libc_eintr(), "as long as it is so");
    world.vfs().fsync(id).unwrap();
    world.vfs().flush(id).unwrap();
}

fn libc_eintr() -> i32 {
    rustix::io::Errno::INTR.raw_os_error()
}

#[test]
fn a_file_that_is_being_committed_shows_its_row_and_holds_no_thread() {
    let world = world();
    let vfs = world.vfs();
    let (ino, id) = make(&world);
    vfs.write(id, 0, b"bytes").unwrap();
    let node = vfs.nodes.get(ino).unwrap();
    let state = node.state.write();
    vfs.show(&node, &state);
    assert_eq!(vfs.attributes(ino).unwrap().size, 5);
    let (name, other) = (Name::new("file").unwrap(), Name::new("other").unwrap());
    assert_eq!(vfs.lookup(Ino::ROOT, &name).unwrap().1.size, 5);
    let brought = Brought::default();
    let mut read = [0; 9];
    let wait = |work: &mut dyn FnMut() -> Result<usize, VfsError>| {
        let Step::Wait(wait) = vfs.near(&brought, work).unwrap() else { panic!("it got in") };
        wait
    };
    let waits = [
        wait(&mut || vfs.read(id, 0, &mut [0; 9])),
        wait(&mut || vfs.write(id, 0, b"B").map(|size| size as usize)),
        wait(&mut || vfs.fallocate(id, 0..9, 0).map(|()| 0)),
        wait(&mut || vfs.seek(id, 0, true).map(|at| at as usize)),
        wait(&mut || {
            let set = SetAttr { size: Some(1), ..SetAttr::default() };
            vfs.set_attributes(ino, &set, ROOT).map(|row| row.size as usize)
        }),
        wait(&mut || {
            let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            vfs.set_attributes(ino, &set, ROOT).map(|row| row.size as usize)
        }),
        wait(&mut || vfs.unlink(Ino::ROOT, &name).map(|()| 0)),
        wait(&mut || vfs.link(ino, Ino::ROOT, &other).map(|_| 0)),
        wait(&mut || {
            let (from, to) = ((Ino::ROOT, &name), (Ino::ROOT, &other));
            vfs.rename(from, to, RenameMode::Replace).map(|()| 0)
        }),
        wait(&mut || vfs.set_xattr(ino, b"user.a", b"b", (false, false)).map(|()| 0)),
    ];
    // It is closed and opened meanwhile.
    let again = vfs.open_file(ino, OpenOptions::default()).unwrap();
    vfs.release(again).unwrap();
    vfs.conceal(&node);
    drop(state);
    vfs.commits_ended.send_modify(|count| *count += 1);
    for wait in waits {
        vfs.bridge().block_on(wait).unwrap();
    }
    assert_eq!(vfs.read(id, 0, &mut read).unwrap(), 5);
    assert_eq!(&read[..5], b"bytes");
}

/// Refuses what is larger than a delta.
struct SmallOnly(AtomicBool);

#[async_trait]
impl Around for SmallOnly {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if bytes > 64 << 10 && self.0.load(Ordering::SeqCst) {
            return Err(BackendError::new(ErrorKind::Throttled, "too large for now"));
        }
        attempt().await
    }
}

#[test]
fn an_fsync_above_local_says_yes_only_when_names_and_contents_have_their_copies() {
    let below = Arc::new(MemoryBackend::new("b"));
    below.set_durable(true);
    let place = Arc::new(Wrapped::new(below.clone(), SmallOnly(AtomicBool::new(true))));
    let policy = "min=2,target=2,level=ALL,wait_on=fsync,on_degraded=fail";
    let world = World::with_place(place.clone(), policy);
    let (ino, id) = make(&world);
    // Leaves that differ, and go in one call.
    let mut bytes = vec![0; 100_000];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    world.vfs().write(id, 0, &bytes).unwrap();
    let refused = world.vfs().fsync(id).unwrap_err();
    assert!(matches!(refused, VfsError::Replication(ReplicationError::BelowLevel { .. })));
    let root = world.vfs().nodes.get(ino).unwrap().row().content.unwrap();
    assert!(!below.contains(&root));
    place.around().0.store(false, Ordering::SeqCst);
    let (start, pace) = (Instant::now(), Shutdown::default());
    while let Err(error) = world.vfs().fsync(id) {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        // The pause of the row that failed is the clock's.
        world.clock.advance(Duration::from_secs(1));
        assert!(!pace.wait(Duration::from_millis(1)));
    }
    assert!(below.contains(&root));
}

#[test]
fn a_node_that_somebody_had_in_hand_goes_with_the_next_sweep() {
    let world = world();
    let vfs = world.vfs();
    let (ino, id) = make(&world);
    vfs.write(id, 0, b"bytes").unwrap();
    let node = vfs.nodes.get(ino).unwrap();
    vfs.fsync(id).unwrap();
    vfs.release(id).unwrap();
    vfs.commit_all().unwrap();
    vfs.nodes.sweep();
    assert_eq!(vfs.nodes.count(), 1, "it is in hand");
    drop(node);
    // The committer may still be letting go of it.
    let pause = Shutdown::default();
    while vfs.nodes.count() > 0 {
        assert!(!pause.wait(std::time::Duration::from_millis(1)));
        vfs.nodes.sweep();
    }
}
