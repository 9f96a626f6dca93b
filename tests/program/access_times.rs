//! Times of last access: relatime's rule, beside the disk that the test runs on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};

use crate::support::{Mount, Volume, World};

const DAY: i64 = 24 * 60 * 60;

fn single(world: &World) -> Volume<'_> {
    world.volume(&["b"], "min=1,target=1,max=1")
}

fn atime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.atime(), meta.atime_nsec())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Sets atime and mtime, by seconds from now and nanoseconds.
fn set(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let at = |(ago, nanos)| Timespec { tv_sec: now() - ago, tv_nsec: nanos };
    let times = Timestamps { last_access: at(atime), last_modification: at(mtime) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Returns when the clock that a disk stamps with shows a time after this moment. It
/// goes in steps of some milliseconds: of two events in one step a disk cannot say
/// which was first, and relatime moves the time once more in the next.
fn tick() {
    use rustix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::Realtime);
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while clock_gettime(ClockId::RealtimeCoarse) <= now {
        assert!(std::time::Instant::now() < deadline, "the clock stands still");
        std::thread::yield_now();
    }
}

/// Whether `operation` moves the time of access; then to now.
fn moves(path: &Path, operation: impl FnOnce()) -> bool {
    tick();
    let before = atime(path);
    operation();
    let after = atime(path);
    if after != before {
        // Slack for a slow machine: only a day matters to the rule.
        assert!((now() - after.0).abs() < 3600, "{} moved to {after:?}", path.display());
    }
    after != before
}

/// What reading does in many situations; a line each, so that two can be compared.
fn history(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let file = dir.join("file");
    let read = || drop(fs::read(&file).unwrap());
    let mut note = |what: &str, path: &Path, operation: &dyn Fn()| {
        lines.push(format!("{what}: {}", moves(path, operation)));
    };
    fs::write(&file, b"content").unwrap();
    note("a new file is read", &file, &read);
    note("read again", &file, &read);
    note("changed", &file, &|| fs::write(&file, b"other").unwrap());
    note("read after a change", &file, &read);
    note("and again", &file, &read);
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    note("read after chmod", &file, &read);
    note("stat", &file, &|| assert!(fs::metadata(&file).unwrap().is_file()));
    // ctime is now: atime lies before it.
    set(&file, (25 * 60 * 60, 123_456_789), (3 * DAY, 5));
    note("a day old", &file, &read);
    note("and again", &file, &read);
    set(&file, (0, 1), (5 * DAY, 7));
    let opened = |flags| {
        rustix::fs::open(&file, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from).unwrap()
    };
    let some = |file: &File| assert_eq!(file.read_at(&mut [0; 3], 0).unwrap(), 3);
    fs::write(&file, b"later").unwrap();
    note("O_NOATIME", &file, &|| some(&opened(OFlags::RDONLY | OFlags::NOATIME)));
    note("O_PATH", &file, &|| drop(opened(OFlags::PATH)));
    note("write only", &file, &|| drop(opened(OFlags::WRONLY)));
    note("mapped or read at last", &file, &read);

    let link = dir.join("link");
    symlink("file", &link).unwrap();
    note("a link is followed", &link, &|| drop(fs::read_link(&link).unwrap()));
    note("again", &link, &|| drop(fs::read_link(&link).unwrap()));

    let below = dir.join("below");
    fs::create_dir(&below).unwrap();
    let list = || assert!(fs::read_dir(&below).unwrap().count() < 2);
    note("a directory is listed", &below, &list);
    note("again", &below, &list);
    note("a name is made", &below, &|| fs::write(below.join("x"), b"").unwrap());
    note("listed after a change", &below, &list);
    note("and again", &below, &list);
    lines
}

#[test]
fn reading_moves_the_time_of_access_as_relatime_does_on_the_disk() {
    let Some(world) = World::mountable("access_times::history") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    fs::create_dir(mount.path("here")).unwrap();
    let disk = world.make_dir("disk");
    let expected = history(&disk);
    assert_eq!(history(&mount.path("here")), expected);
    // A disk that is mounted noatime would compare nothing.
    assert!(expected.iter().filter(|line| line.ends_with(": true")).count() >= 6, "{expected:?}");
    mount.umount().ok();
}

#[test]
fn times_of_access_are_kept_to_the_nanosecond_over_a_remount_and_cause_no_checkpoint() {
    let Some(world) = World::mountable("access_times::kept") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let names = ["read", "set", "file-of-a-link"];
    for name in names {
        fs::write(mount.path(name), name).unwrap();
    }
    symlink("read", mount.path("link")).unwrap();
    volume.cairn(&["checkpoint", "--now"]).ok();
    let sequence = |volume: &Volume<'_>| {
        let status = volume.status();
        status["checkpoint"]["sequence"].as_u64().unwrap_or_else(|| panic!("{status:#}"))
    };
    let before = sequence(&volume);
    drop(fs::read(mount.path("read")).unwrap());
    drop(fs::read_link(mount.path("link")).unwrap());
    let read = [atime(&mount.path("read")), atime(&mount.path("link"))];
    assert!(read[0] > atime(&mount.path("file-of-a-link")), "it has moved");
    volume.cairn(&["checkpoint", "--now"]).ok();
    assert_eq!(sequence(&volume), before, "a read alone is nothing to write a checkpoint for");
    // What is set after a read stands, to the nanosecond.
    drop(fs::read(mount.path("set")).unwrap());
    set(&mount.path("set"), (1000, 123_456_789), (2000, 987_654_321));
    let set_to = atime(&mount.path("set"));
    assert_eq!(set_to.1, 123_456_789);
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!([atime(&mount.path("read")), atime(&mount.path("link"))], read);
    assert_eq!(atime(&mount.path("set")), set_to);
    mount.umount().ok();
}

/// Files that a read would move.
fn prepare(mount: &Mount<'_>) -> [PathBuf; 3] {
    let paths = ["file", "dir", "link"].map(|name| mount.path(name));
    fs::write(&paths[0], b"x").unwrap();
    fs::create_dir(&paths[1]).unwrap();
    symlink("file", &paths[2]).unwrap();
    paths
}

#[test]
fn neither_noatime_nor_a_read_only_mount_moves_the_time_of_access() {
    let Some(world) = World::mountable("access_times::none") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let paths = prepare(&mount);
    mount.umount().ok();
    for options in [["-o", "noatime"], ["-o", "ro"]] {
        let mount = volume.mount_with(&options);
        let before = paths.each_ref().map(|path| atime(path));
        drop(fs::read(&paths[0]).unwrap());
        assert_eq!(fs::read_dir(&paths[1]).unwrap().count(), 0);
        drop(fs::read_link(&paths[2]).unwrap());
        assert_eq!(paths.each_ref().map(|path| atime(path)), before, "{options:?}");
        mount.umount().ok();
    }
    let mountpoint = world.make_dir("mnt");
    let strict = ["mount", mountpoint.to_str().unwrap(), "-o", "strictatime"];
    volume.cairn(&strict).fails(2, &["strictatime", "relatime"]);
}

/// `mount -o remount,OPTIONS`, as mount(8) hands it to its helper.
fn remount(world: &World, mount: &Mount<'_>, options: &str) -> crate::support::Run {
    let helper = world.path("mount.fuse.cairn");
    if !helper.exists() {
        symlink(env!("CARGO_BIN_EXE_cairn"), &helper).unwrap();
    }
    let mut command = world.command(helper.to_str().unwrap());
    command.args(["volume", mount.at.to_str().unwrap(), "-o", &format!("remount,{options}")]);
    crate::support::run(command, Duration::from_mins(1))
}

#[test]
fn a_remount_says_anew_whether_reading_moves_the_time_of_access() {
    let Some(world) = World::mountable("access_times::remount") else { return };
    if !rustix::process::geteuid().is_root() {
        return crate::support::skip("access_times::remount", "only root remounts");
    }
    let volume = single(&world);
    let mount = volume.mount_with(&["-o", "noatime"]);
    let [file, dir, link] = prepare(&mount);
    let read = || {
        let file = moves(&file, || drop(fs::read(&file).unwrap()));
        let link = moves(&link, || drop(fs::read_link(&link).unwrap()));
        (file, link, moves(&dir, || assert_eq!(fs::read_dir(&dir).unwrap().count(), 0)))
    };
    assert_eq!(read(), (false, false, false));
    remount(&world, &mount, "rw,nodiratime").ok();
    assert_eq!(read(), (true, true, false));
    remount(&world, &mount, "rw,relatime").ok();
    assert_eq!(read(), (false, false, true));
    let again = || {
        set(&file, (2 * DAY, 1), (3 * DAY, 2));
        set(&link, (2 * DAY, 1), (3 * DAY, 2));
        set(&dir, (2 * DAY, 1), (3 * DAY, 2));
    };
    again();
    remount(&world, &mount, "ro").ok();
    assert_eq!(read(), (false, false, false));
    remount(&world, &mount, "rw,noatime").ok();
    assert_eq!(read(), (false, false, false));
    remount(&world, &mount, "rw").ok();
    assert_eq!(read(), (true, true, true));
    mount.umount().ok();
    // The daemon of a read-only mount writes nothing, whatever the kernel lets through.
    let mount = volume.mount_with(&["-o", "ro"]);
    remount(&world, &mount, "rw").fails(2, &["mounted read-only", "mount it again"]);
    assert_eq!(fs::write(mount.path("x"), b"x").unwrap_err().raw_os_error(), Some(30));
    remount(&world, &mount, "ro,noatime").ok();
    mount.umount().ok();
}

#[test]
fn a_file_that_is_still_in_the_kernels_pages_is_read_when_it_is_opened() {
    let Some(world) = World::mountable("access_times::cached") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let path = mount.path("file");
    fs::write(&path, vec![7; 100_000]).unwrap();
    drop(fs::read(&path).unwrap());
    // The pages stay, so no request to read comes.
    assert!(!moves(&path, || drop(fs::read(&path).unwrap())));
    set(&path, (2 * DAY, 1), (3 * DAY, 2));
    assert!(moves(&path, || drop(fs::read(&path).unwrap())));
    // A mapping is a read as well.
    set(&path, (2 * DAY, 1), (3 * DAY, 2));
    let mut command = std::process::Command::new("python3");
    command.args(["-c", "import mmap; f = open('file'); mmap.mmap(f.fileno(), 0, prot=1)[5]"]);
    command.current_dir(&mount.at);
    assert!(moves(&path, || drop(crate::support::run(command, Duration::from_secs(30)).ok())));
    mount.umount().ok();
}
