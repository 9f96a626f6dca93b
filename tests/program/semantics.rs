//! Lines of `src/docs/semantics.md` that no other test holds.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::support::{Mount, Volume, World, run, skip};

fn single(world: &World) -> Volume<'_> {
    world.volume(&[], "min=1,target=1,max=1")
}

/// A shell command as an ordinary user: what it prints, and its errors.
fn as_user(mount: &Mount<'_>, script: &str) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=12345", "--regid=12345", "--clear-groups", "sh", "-c", script]);
    command.current_dir(&mount.at).env("LC_ALL", "C");
    let run = run(command, Duration::from_secs(30));
    format!("{}{}", run.stdout, run.stderr)
}

/// A mount that other users can reach; none when the test is not run by root.
fn open_to_users<'w>(test: &str, world: &'w World) -> Option<Mount<'w>> {
    if !rustix::process::geteuid().is_root() {
        skip(test, "needs root to become another user");
        return None;
    }
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = single(world).mount();
    fs::set_permissions(&mount.at, fs::Permissions::from_mode(0o755)).unwrap();
    Some(mount)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn what_is_not_offered_is_refused_by_its_errno() {
    let Some(world) = World::mountable("semantics::refused") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    fs::write(mount.path("file"), vec![1; 20_000]).unwrap();
    let file = File::options().read(true).write(true).open(mount.path("file")).unwrap();
    let unnamed =
        rustix::fs::open(&mount.at, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
    assert_eq!(unnamed.unwrap_err(), Errno::OPNOTSUPP);
    for flags in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        FallocateFlags::PUNCH_HOLE,
    ] {
        let refused = rustix::fs::fallocate(&file, flags, 0, 4096);
        assert_eq!(refused.unwrap_err(), Errno::OPNOTSUPP, "{flags:?}");
    }
    for with in [RenameFlags::EXCHANGE, RenameFlags::WHITEOUT] {
        let flags = RenameFlags::NOREPLACE | with;
        let refused =
            rustix::fs::renameat_with(CWD, mount.path("file"), CWD, mount.path("other"), flags);
        assert_eq!(refused.unwrap_err(), Errno::INVAL, "{flags:?}");
    }
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(mount.path("file"), name, value, XattrFlags::empty())
    };
    for name in ["system.other", "odd.name"] {
        assert_eq!(set(name, b"x").unwrap_err(), Errno::OPNOTSUPP, "{name}");
    }
    assert_eq!(set("user.cairn.cid", b"x").unwrap_err(), Errno::PERM);
    assert_eq!(set("user.cairn.policy", b"min=9,target=1").unwrap_err(), Errno::INVAL);
    assert_eq!(set("user.big", &vec![1; 65_537]).unwrap_err(), Errno::TOOBIG);
    set("user.big", &vec![1; 65_536]).unwrap();
    let clone = File::create(mount.path("clone")).unwrap();
    assert_eq!(rustix::fs::ioctl_ficlone(&clone, &file).unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn names_targets_and_sizes_end_where_linux_ends_them() {
    let Some(world) = World::mountable("semantics::limits") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(
        errno(fs::write(mount.path(&"n".repeat(256)), b"")),
        Errno::NAMETOOLONG.raw_os_error()
    );
    symlink("t".repeat(4095), mount.path("long target")).unwrap();
    assert_eq!(fs::read_link(mount.path("long target")).unwrap().as_os_str().len(), 4095);
    assert_eq!(
        errno(symlink("t".repeat(4096), mount.path("x"))),
        Errno::NAMETOOLONG.raw_os_error()
    );
    symlink("loop", mount.path("loop")).unwrap();
    assert_eq!(errno(fs::metadata(mount.path("loop")).map(drop)), Errno::LOOP.raw_os_error());
    let file = File::create(mount.path("file")).unwrap();
    assert_eq!(errno(file.set_len((1 << 44) + 1)), Errno::FBIG.raw_os_error());
    assert_eq!(errno(file.write_at(b"x", 1 << 44).map(drop)), Errno::FBIG.raw_os_error());
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn modes_sticky_bits_and_owners_are_checked_for_every_user() {
    let Some(world) = World::mountable("semantics::permissions") else { return };
    let Some(mount) = open_to_users("semantics::permissions", &world) else { return };
    fs::write(mount.path("secret"), b"x").unwrap();
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(mount.path("shared")).unwrap();
    fs::set_permissions(mount.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(mount.path("shared/of root"), b"x").unwrap();
    for (script, wanted) in [
        ("cat secret", "Permission denied"),
        ("touch new", "Permission denied"),
        ("rm -f 'shared/of root'", "Operation not permitted"),
        ("mv 'shared/of root' shared/x", "Operation not permitted"),
        ("touch shared/mine && chown 1 shared/mine", "Operation not permitted"),
        ("chmod 777 secret", "Operation not permitted"),
        ("touch -d 2001-01-01 secret", "Permission denied"),
        ("umask 027; touch shared/masked; stat -c %a shared/masked", "640\n"),
    ] {
        let said = as_user(&mount, script);
        assert!(said.contains(wanted), "{script}: {said}");
    }
}

#[test]
fn setuid_and_setgid_go_when_an_ordinary_user_changes_a_file() {
    let Some(world) = World::mountable("semantics::setuid") else { return };
    let Some(mount) = open_to_users("semantics::setuid", &world) else { return };
    let path = mount.path("file");
    for script in ["echo more >> file", "truncate -s 1 file", "chown 12345:12345 file", ": > file"]
    {
        fs::write(&path, b"content").unwrap();
        std::os::unix::fs::chown(&path, Some(12345), Some(12345)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(as_user(&mount, script), "", "{script}");
        assert_eq!(mode(&path), 0o777, "{script}");
    }
    // Without the group's x the kernel takes setgid for the mark of mandatory locks.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6767)).unwrap();
    std::os::unix::fs::chown(&path, Some(54321), Some(54321)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6767)).unwrap();
    assert_eq!(as_user(&mount, "echo more >> file"), "");
    assert_eq!(mode(&path), 0o2767);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    std::os::unix::fs::chown(&path, Some(12345), Some(54321)).unwrap();
    // Not in the group: setgid is not given.
    as_user(&mount, "chmod 2755 file");
    assert_eq!(mode(&path), 0o755);
    fs::create_dir(mount.path("group")).unwrap();
    std::os::unix::fs::chown(mount.path("group"), None, Some(54321)).unwrap();
    fs::set_permissions(mount.path("group"), fs::Permissions::from_mode(0o2777)).unwrap();
    as_user(&mount, "mkdir group/dir; touch group/file");
    let inherited = |name: &str| fs::metadata(mount.path(name)).unwrap().gid();
    assert_eq!((inherited("group/dir"), inherited("group/file")), (54321, 54321));
    assert_eq!(mode(&mount.path("group/dir")) & 0o2000, 0o2000);
}

/// Which of atime, mtime, ctime an operation moves.
fn moved(path: &Path, operation: impl FnOnce()) -> String {
    let times = || {
        let meta = fs::symlink_metadata(path).unwrap();
        [
            (meta.atime(), meta.atime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ]
    };
    let before = times();
    operation();
    let after = times();
    "amc"
        .chars()
        .zip(before.iter().zip(after))
        .filter(|(_, (x, y))| **x != *y)
        .map(|(c, _)| c)
        .collect()
}

#[test]
fn each_operation_moves_its_times() {
    let Some(world) = World::mountable("semantics::times") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let (file, dir) = (mount.path("dir/file"), mount.path("dir"));
    fs::create_dir(&dir).unwrap();
    fs::write(&file, b"x").unwrap();
    let chmod = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(moved(&file, || chmod(0o600)), "c");
    assert_eq!(moved(&file, || fs::write(&file, b"y").unwrap()), "mc");
    assert_eq!(moved(&file, || fs::hard_link(&file, mount.path("link")).unwrap()), "c");
    assert_eq!(moved(&file, || fs::remove_file(mount.path("link")).unwrap()), "c");
    assert_eq!(moved(&file, || drop(fs::read(&file).unwrap())), "a");
    assert_eq!(moved(&file, || drop(fs::read(&file).unwrap())), "", "relatime");
    assert_eq!(moved(&dir, || assert_eq!(fs::read_dir(&dir).unwrap().count(), 1)), "a");
    assert_eq!(moved(&dir, || fs::write(mount.path("dir/n"), b"").unwrap()), "mc");
    assert_eq!(moved(&dir, || fs::remove_file(mount.path("dir/n")).unwrap()), "mc");
    assert_eq!(
        moved(&dir, || fs::write(&file, b"z").unwrap()),
        "",
        "a change below is none of the directory"
    );
    let rename = || fs::rename(&file, mount.path("dir/moved")).unwrap();
    assert_eq!(moved(&dir, rename), "mc");
    let back = || fs::rename(mount.path("dir/moved"), &file).unwrap();
    back();
    let there_and_back = || {
        rename();
        back();
    };
    assert_eq!(moved(&file, there_and_back), "c");
    let set = || rustix::fs::setxattr(&file, "user.a", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(moved(&file, set), "c");
    let open = File::options().write(true).open(&file).unwrap();
    assert_eq!(moved(&file, || assert_eq!(open.write_at(b"", 0).unwrap(), 0)), "");
    assert_eq!(moved(&file, || open.set_len(1).unwrap()), "mc", "also when the size stays");
}

#[test]
fn locks_hold_between_processes_and_end_with_them() {
    let Some(world) = World::mountable("semantics::locks") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    let python = |script: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(&mount.at);
        run(command, Duration::from_secs(30))
    };
    let held = File::open(mount.path("file")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let try_flock = "import fcntl; fcntl.flock(open('file'), fcntl.LOCK_EX | fcntl.LOCK_NB)";
    assert!(python(try_flock).stderr.contains("BlockingIOError"));
    drop(held);
    python(try_flock).ok();
    // Record locks: taken by a process, seen by another, gone with the first.
    let script = "import fcntl, os, subprocess, sys
f = open('file', 'r+')
fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)
other = \"import fcntl; f = open('file', 'r+'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, %d)\"
inside = subprocess.run([sys.executable, '-c', other % 7], capture_output=True)
beside = subprocess.run([sys.executable, '-c', other % 20], capture_output=True)
assert b'BlockingIOError' in inside.stderr and beside.returncode == 0, (inside, beside)
";
    python(script).ok();
    python("import fcntl; fcntl.lockf(open('file', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)").ok();
}

#[test]
fn another_process_sees_and_changes_a_shared_mapping() {
    let Some(world) = World::mountable("semantics::mapping") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let script = "import mmap, os, subprocess, sys
f = os.open('file', os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 10000)
m = mmap.mmap(f, 10000)
m[5000:5003] = b'abc'
code = \"import mmap, os; f = os.open('file', os.O_RDWR); m = mmap.mmap(f, 10000); assert m[5000:5003] == b'abc'; m[5000:5003] = b'ABC'; m.flush()\"
subprocess.run([sys.executable, '-c', code], check=True)
assert m[5000:5003] == b'ABC'
m.flush()
before = os.fstat(f).st_mtime_ns
m[0:1] = b'x'
m.flush()
assert os.fstat(f).st_mtime_ns > before, 'msync moves mtime'
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(&mount.at);
    run(command, Duration::from_secs(30)).ok();
    mount.umount().ok();
    let mount = volume.mount();
    let bytes = fs::read(mount.path("file")).unwrap();
    assert_eq!((&bytes[..1], &bytes[5000..5003]), (&b"x"[..], &b"ABC"[..]));
}

#[test]
fn a_mapping_of_a_handle_that_appends_changes_the_file_where_it_is_mapped() {
    let Some(world) = World::mountable("semantics::appending_mapping") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let script = "import mmap, os
open('file', 'wb').write(b'a' * 10000)
f = os.open('file', os.O_RDWR | os.O_APPEND)
m = mmap.mmap(f, 10000)
m[5000:5003] = b'abc'
m.flush()
os.write(f, b'end')
m[0:1] = b'x'
m.flush()
assert os.fstat(f).st_size == 10003
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(&mount.at);
    run(command, Duration::from_secs(30)).ok();
    mount.umount().ok();
    let mount = volume.mount();
    let bytes = fs::read(mount.path("file")).unwrap();
    let mut wanted = [&[b'a'; 10000][..], b"end"].concat();
    wanted[0] = b'x';
    wanted[5000..5003].copy_from_slice(b"abc");
    assert!(bytes == wanted, "{} bytes", bytes.len());
}

#[test]
fn a_program_on_the_mount_runs_and_is_not_written_meanwhile() {
    let Some(world) = World::mountable("semantics::programs") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    fs::copy("/bin/sleep", mount.path("program")).unwrap();
    let mut child = Command::new(mount.path("program")).arg("60").spawn().unwrap();
    let refused = File::options().write(true).open(mount.path("program"));
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::TXTBSY.raw_os_error()));
    child.kill().unwrap();
    child.wait().unwrap();
    File::options().write(true).open(mount.path("program")).unwrap();
}

#[test]
fn an_unlinked_open_file_does_not_outlive_a_crash() {
    let Some(world) = World::mountable("semantics::orphans") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let unlinked = File::create(mount.path("unlinked")).unwrap();
    unlinked.write_all_at(&vec![5; 3_000_000], 0).unwrap();
    unlinked.sync_all().unwrap();
    fs::remove_file(mount.path("unlinked")).unwrap();
    assert_eq!(unlinked.metadata().unwrap().nlink(), 0);
    fs::write(mount.path("kept"), b"x").unwrap();
    mount.kill();
    drop(unlinked);
    let mount = volume.mount();
    assert_eq!(fs::read_dir(&mount.at).unwrap().count(), 1);
    assert_eq!(volume.status()["files"], 1);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}
