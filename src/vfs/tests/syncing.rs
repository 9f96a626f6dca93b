//! What a close and an fsync wait for, and who waits for a commit.

use super::world::{Ground, World};
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
    node.show(&state);
    assert_eq!(vfs.attributes(ino).unwrap().size, 5);
    assert_eq!(vfs.lookup(Ino::ROOT, &Name::new("file").unwrap()).unwrap().1.size, 5);
    let brought = Brought::default();
    let mut read = [0; 9];
    let wait = |work: &mut dyn FnMut() -> Result<usize, VfsError>| {
        let Step::Wait(wait) = vfs.near(&brought, work).unwrap() else { panic!("it got in") };
        wait
    };
    let waits = [
        wait(&mut || vfs.read(id, 0, &mut [0; 9])),
        wait(&mut || vfs.write(id, 0, b"B").map(|size| size as usize)),
    ];
    // It is closed and opened meanwhile.
    let again = vfs.open_file(ino, OpenOptions::default()).unwrap();
    vfs.release(again).unwrap();
    node.conceal();
    drop(state);
    vfs.commits_ended.send_modify(|count| *count += 1);
    for wait in waits {
        vfs.bridge().block_on(wait).unwrap();
    }
    assert_eq!(vfs.read(id, 0, &mut read).unwrap(), 5);
    assert_eq!(&read[..5], b"bytes");
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
