//! What the local kernel gives on a mount by itself: notification, locks.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::support::{World, run, skip};

#[test]
fn inotify_tells_of_each_change_through_the_mount() {
    let Some(world) = World::mountable("kernel::inotify") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("watched")).unwrap();
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    let wanted = WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVE
        | WatchFlags::DELETE;
    inotify::add_watch(&watch, mount.path("watched"), wanted).unwrap();
    fs::write(mount.path("watched/a"), b"bytes").unwrap();
    fs::rename(mount.path("watched/a"), mount.path("watched/b")).unwrap();
    fs::remove_file(mount.path("watched/b")).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&watch, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
        seen.push((event.events(), name.unwrap_or_default()));
    }
    let told = |flag: ReadFlags, name: &str| {
        seen.iter().any(|(events, of)| events.contains(flag) && of == name)
    };
    for (flag, name) in [
        (ReadFlags::CREATE, "a"),
        (ReadFlags::MODIFY, "a"),
        (ReadFlags::CLOSE_WRITE, "a"),
        (ReadFlags::MOVED_FROM, "a"),
        (ReadFlags::MOVED_TO, "b"),
        (ReadFlags::DELETE, "b"),
    ] {
        assert!(told(flag, name), "{flag:?} {name}: {seen:?}");
    }
}

/// Blocking locks wait and are handed on, two that wait for each other are told
/// (EDEADLK), and a lock ends with its owner.
#[test]
fn record_locks_block_are_handed_on_and_a_deadlock_is_told() {
    let Some(world) = World::mountable("kernel::record_locks") else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("kernel::record_locks", "python3 is not installed");
    }
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let text = r#"
import errno, fcntl, os, signal, struct
fd = os.open("locked", os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, 100)
def pipe_wait(r): assert os.read(r, 1) == b"x"
# A child holds byte 1 and wants byte 2; we hold byte 2 and want byte 1.
r, w = os.pipe(); r2, w2 = os.pipe()
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 2)
child = os.fork()
if child == 0:
    mine = os.open("locked", os.O_RDWR)
    fcntl.lockf(mine, fcntl.LOCK_EX, 1, 1)
    os.write(w, b"x")
    try:
        fcntl.lockf(mine, fcntl.LOCK_EX, 1, 2)
        os._exit(0)
    except OSError as error:
        os._exit(35 if error.errno == errno.EDEADLK else 1)
pipe_wait(r)
signal.alarm(60)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
    ours = "locked"
except OSError as error:
    assert error.errno == errno.EDEADLK, error
    ours = "deadlock"
fcntl.lockf(fd, fcntl.LOCK_UN, 1, 2)
theirs = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert (ours, theirs) in [("deadlock", 0), ("locked", 35)], (ours, theirs)
fcntl.lockf(fd, fcntl.LOCK_UN)
# A lock of an open file description (fcntl.h of Linux: F_OFD_SETLK 37, SETLKW 38)
# is not of the process: a second description of the same process waits, too.
flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 10, 1, 0)
fcntl.fcntl(fd, 37, flock)
other = os.open("locked", os.O_RDWR)
try:
    fcntl.fcntl(other, 37, flock)
    raise SystemExit("two owners")
except OSError as error:
    assert error.errno in (errno.EAGAIN, errno.EACCES), error
# A holder that is killed lets go: who waits gets it.
child = os.fork()
if child == 0:
    signal.alarm(0)
    mine = os.open("locked", os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_EX)
    os.write(w2, b"x")
    signal.pause()
pipe_wait(r2)
os.kill(child, signal.SIGKILL)
fcntl.flock(other, fcntl.LOCK_EX)
os.waitpid(child, 0)
print("ok")
"#;
    let mut python = world.command("python3");
    python.args(["-c", text]).current_dir(&mount.at);
    assert_eq!(run(python, Duration::from_mins(2)).ok().stdout, "ok\n");
}

/// Extents are places on a disk, of which FUSE has none (ioctl `FS_IOC_FIEMAP`).
#[test]
fn the_map_of_extents_is_refused() {
    let Some(world) = World::mountable("kernel::fiemap") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let text = "import errno, fcntl\n\
        fd = open('mapped', 'wb+')\n\
        fd.write(b'x' * 10000)\n\
        fd.flush()\n\
        try: fcntl.ioctl(fd, 0xC020660B, bytearray(4096))\n\
        except OSError as error: print(error.errno == errno.EOPNOTSUPP)";
    let mut python = world.command("python3");
    python.args(["-c", text]).current_dir(&mount.at);
    assert_eq!(run(python, Duration::from_mins(1)).ok().stdout, "True\n");
}
