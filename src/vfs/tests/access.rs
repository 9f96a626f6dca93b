//! Times of access wait in memory, over their rows.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::world::{Ground, World, directory};
use crate::metadata::{InodeRecord, MetadataError};
use crate::runtime::Clock;
use crate::types::{FileKind, Ino, Name, Timestamp};
use crate::vfs::{Caller, OpenOptions, SetAttr};

const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn world() -> World {
    let mut world = World::new(Ground::Embedded, "level=LOCAL_DURABILITY", 1 << 20, 8 << 20);
    world.move_access_times();
    world
}

fn make(world: &World, name: &str) -> Ino {
    let name = Name::new(name).unwrap();
    world.vfs().make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino
}

fn read(world: &World, ino: Ino, no_access_time: bool) {
    let options = OpenOptions { no_access_time, ..OpenOptions::default() };
    let id = world.vfs().open_file(ino, options).unwrap();
    world.vfs().read(id, 0, &mut [0; 16]).unwrap();
    world.vfs().release(id).unwrap();
}

fn shown(world: &World, ino: Ino) -> Timestamp {
    world.vfs().attributes(ino).unwrap().atime
}

fn stored(world: &World, ino: Ino) -> InodeRecord {
    world.namespace().inode(ino).unwrap()
}

fn pass(world: &World, seconds: u64) -> Timestamp {
    world.clock.advance(Duration::from_secs(seconds));
    world.clock.now()
}

/// The clock ticks at each look.
#[track_caller]
fn assert_at(time: Timestamp, at: Timestamp) {
    assert!(time >= at && time.seconds - at.seconds < 2, "{time:?}, not {at:?}");
}

#[test]
fn a_read_moves_the_time_when_it_is_not_after_the_changes_or_a_day_old() {
    let world = world();
    let ino = make(&world, "file");
    let made = shown(&world, ino);
    let first = pass(&world, 10);
    read(&world, ino, true);
    assert_eq!(shown(&world, ino), made, "O_NOATIME");
    read(&world, ino, false);
    assert_at(shown(&world, ino), first);
    let first = shown(&world, ino);
    pass(&world, 24 * 60 * 60 - 1);
    read(&world, ino, false);
    assert_eq!(shown(&world, ino), first, "not a day yet");
    let later = pass(&world, 1);
    read(&world, ino, false);
    assert_at(shown(&world, ino), later);
    let later = shown(&world, ino);
    // A change of attributes comes after it, and the time shown is that of the read.
    pass(&world, 5);
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(world.vfs().set_attributes(ino, &set, ROOT).unwrap().atime, later);
    let again = pass(&world, 5);
    read(&world, ino, false);
    assert_at(shown(&world, ino), again);
    // What is set stands, also when it is what was stored.
    let was = stored(&world, ino).atime;
    let set = SetAttr { atime: Some(Some(was)), ..SetAttr::default() };
    assert_eq!(world.vfs().set_attributes(ino, &set, ROOT).unwrap().atime, was);
    assert_eq!(shown(&world, ino), was);
}

#[test]
fn times_of_access_wait_are_written_unmarked_and_survive_a_clean_end() {
    let mut world = world();
    let (one, two) = (make(&world, "one"), make(&world, "two"));
    let token = world.namespace().mark_count().unwrap();
    let at = pass(&world, 1);
    read(&world, one, false);
    let was = stored(&world, one).atime;
    assert!(was < at, "no transaction for a read");
    world.vfs().write_access_times(1).unwrap();
    assert_at(shown(&world, one), at);
    assert_eq!(stored(&world, one).atime, shown(&world, one));
    assert_eq!(world.namespace().mark_count().unwrap(), token, "nothing for a checkpoint");
    // An open file's row is followed, and a time that waits for it.
    let id = world.vfs().open_file(two, OpenOptions { write: true, ..OpenOptions::default() });
    let id = id.unwrap();
    world.vfs().write(id, 0, b"bytes").unwrap();
    let at = pass(&world, 1);
    read(&world, two, false);
    world.vfs().write_access_times(1).unwrap();
    assert_at(shown(&world, two), at);
    world.vfs().flush(id).unwrap();
    world.vfs().release(id).unwrap();
    assert_at(shown(&world, two), at);
    assert_eq!(stored(&world, two).atime, shown(&world, two));
    pass(&world, 100);
    let after = make(&world, "three");
    let at = pass(&world, 1);
    read(&world, after, false);
    world.reopen();
    assert_at(stored(&world, after).atime, at);
}

#[test]
fn what_waits_is_bounded_and_what_is_gone_is_passed_over() {
    let world = world();
    // More files than may wait would take long: pages are small beside the bound.
    let inos: Vec<Ino> = (0..1500).map(|n| make(&world, &format!("f{n}"))).collect();
    let at = pass(&world, 1);
    for ino in &inos {
        read(&world, *ino, false);
    }
    world.vfs().unlink(Ino::ROOT, &Name::new("f7").unwrap()).unwrap();
    world.vfs().write_access_times(2).unwrap();
    let stored_now = || inos.iter().filter(|ino| row_time(&world, **ino) >= Some(at)).count();
    assert!((1023..=1024).contains(&stored_now()), "{} are stored", stored_now());
    world.vfs().write_access_times(usize::MAX).unwrap();
    assert_eq!(stored_now(), 1499);
}

fn row_time(world: &World, ino: Ino) -> Option<Timestamp> {
    match world.namespace().inode(ino) {
        Ok(row) => Some(row.atime),
        Err(MetadataError::NotFound) => None,
        Err(error) => panic!("{error}"),
    }
}

/// An inode takes 65,000 links and a directory as many subdirectories, as on ext4.
#[test]
fn links_and_subdirectories_end_at_65_000() {
    let world = world();
    let vfs = world.vfs();
    let name = |text: &str| Name::new(text).unwrap();
    let file = make(&world, "file");
    let directory = directory(world.clock.now());
    let dir = vfs.create(Ino::ROOT, &name("dir"), &directory).unwrap().ino;
    // 64,998 more links are 64,998 calls; the row says the same.
    for (ino, links) in [(file, 64_999), (dir, 64_999)] {
        let set = &mut |inode: &mut InodeRecord| {
            inode.nlink = links;
            Ok(())
        };
        world.namespace().update_inode(ino, set).unwrap();
        vfs.reload(&[ino]).unwrap();
    }
    assert_eq!(vfs.link(file, Ino::ROOT, &name("last")).unwrap().nlink, 65_000);
    let emlink = rustix::io::Errno::MLINK.raw_os_error();
    assert_eq!(vfs.link(file, Ino::ROOT, &name("more")).unwrap_err().errno().0, emlink);
    vfs.create(dir, &name("last"), &directory).unwrap();
    assert_eq!(vfs.create(dir, &name("more"), &directory).unwrap_err().errno().0, emlink);
    let other = vfs.create(Ino::ROOT, &name("other"), &directory).unwrap();
    let into = (dir, &name("moved"));
    let moved = vfs.rename((Ino::ROOT, &name("other")), into, crate::metadata::RenameMode::Replace);
    assert_eq!(moved.unwrap_err().errno().0, emlink);
    assert_eq!(vfs.lookup(Ino::ROOT, &name("other")).unwrap().0, other.ino);
}

#[test]
fn what_a_change_has_said_no_later_look_takes_back() {
    const ROUNDS: i64 = 20_000;
    let world = world();
    let ino = make(&world, "file");
    let said = AtomicI64::new(0);
    let look = || {
        let before = said.load(Ordering::SeqCst);
        let seen = world.vfs().attributes(ino).unwrap().mtime.seconds;
        assert!(seen >= before || before == 0, "{seen} after {before}");
        before < ROUNDS
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=ROUNDS {
                let mtime = Some(Some(Timestamp { seconds: n, nanoseconds: 0 }));
                let set = SetAttr { mtime, ..SetAttr::default() };
                world.vfs().set_attributes(ino, &set, ROOT).unwrap();
                said.store(n, Ordering::SeqCst);
            }
        });
        let (look, world) = (&look, &world);
        for opens in [false, false, true] {
            scope.spawn(move || {
                while look() {
                    if opens {
                        read(world, ino, true);
                    }
                }
            });
        }
    });
}
