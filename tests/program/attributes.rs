//! Modes, owners, times, extended attributes, space and special nodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat,
};
use rustix::io::Errno;

use crate::support::World;

#[test]
fn modes_owners_and_times_are_kept_over_a_remount() {
    let Some(world) = World::mountable("attributes::kept") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    fs::create_dir(mount.path("dir")).unwrap();
    fs::set_permissions(mount.path("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(mount.path("dir"), fs::Permissions::from_mode(0o1770)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(mount.path("dir"), Some(77), Some(88)).unwrap();
    }
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times =
        Timestamps { last_access: at(-5, 7), last_modification: at(5_000_000_000, 999_999_999) };
    rustix::fs::utimensat(CWD, mount.path("file"), &times, AtFlags::empty()).unwrap();
    mount.umount().ok();
    let mount = volume.mount();
    let file = fs::metadata(mount.path("file")).unwrap();
    let dir = fs::metadata(mount.path("dir")).unwrap();
    assert_eq!((file.mode() & 0o7777, dir.mode() & 0o7777), (0o4751, 0o1770));
    assert_eq!((file.atime(), file.atime_nsec()), (-5, 7));
    assert_eq!((file.mtime(), file.mtime_nsec()), (5_000_000_000, 999_999_999));
    if root {
        assert_eq!((dir.uid(), dir.gid()), (77, 88));
    }
}

#[test]
fn a_write_moves_the_times_that_posix_names() {
    let Some(world) = World::mountable("attributes::times") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    let old = Timespec { tv_sec: 1000, tv_nsec: 0 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, mount.path("file"), &times, AtFlags::empty()).unwrap();
    fs::write(mount.path("file"), b"y").unwrap();
    let meta = fs::metadata(mount.path("file")).unwrap();
    assert!(meta.mtime() > 1_000_000 && meta.ctime() > 1_000_000);
    rustix::fs::utimensat(CWD, &mount.at, &times, AtFlags::empty()).unwrap();
    fs::write(mount.path("another"), b"").unwrap();
    assert!(
        fs::metadata(&mount.at).unwrap().mtime() > 1_000_000,
        "a new name moves its directory's time"
    );
}

#[test]
fn extended_attributes_are_set_listed_changed_and_removed() {
    let Some(world) = World::mountable("attributes::xattrs") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let path = mount.path("file");
    fs::write(&path, b"x").unwrap();
    let get = |name: &str| {
        let mut value = vec![0; 70_000];
        rustix::fs::getxattr(&path, name, &mut value[..]).map(|len| value[..len].to_vec())
    };
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let large = vec![b'v'; 60_000];
    set("user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(set("user.a", b"2", XattrFlags::CREATE).unwrap_err(), Errno::EXIST);
    set("user.a", b"2", XattrFlags::REPLACE).unwrap();
    assert_eq!(set("user.b", b"2", XattrFlags::REPLACE).unwrap_err(), Errno::NODATA);
    set("user.large", &large, XattrFlags::empty()).unwrap();
    assert_eq!(get("user.a").unwrap(), b"2");
    assert_eq!(get("user.large").unwrap(), large);
    let mut list = vec![0; 4096];
    let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert_eq!(&list[..len], b"user.a\0user.large\0", "virtual attributes are not listed");
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(get("user.a").unwrap_err(), Errno::NODATA);
    assert_eq!(rustix::fs::removexattr(&path, "user.a").unwrap_err(), Errno::NODATA);
}

#[test]
fn virtual_attributes_tell_cid_copies_policy_and_state() {
    let Some(world) = World::mountable("attributes::virtual") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=2");
    let mount = volume.mount();
    let path = mount.path("file");
    fs::write(&path, b"hello\n").unwrap();
    let get = |name: &str| {
        let mut value = vec![0; 4096];
        let len = rustix::fs::getxattr(&path, name, &mut value[..]).unwrap();
        String::from_utf8(value[..len].to_vec()).unwrap()
    };
    // `printf 'hello\n' | ipfs add --cid-version 1 -Q`
    assert_eq!(
        get("user.cairn.cid"),
        "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
    );
    assert!(get("user.cairn.copies").contains("\"local\""));
    assert!(get("user.cairn.policy").contains("min=1,target=1,max=2"));
    assert!(get("user.cairn.state").contains("at_target"));
    rustix::fs::setxattr(&path, "user.cairn.policy", b"target=2", XattrFlags::empty()).unwrap();
    assert!(get("user.cairn.policy").contains("target=2"));
    let wrong =
        rustix::fs::setxattr(&path, "user.cairn.policy", b"target=none", XattrFlags::empty());
    assert_eq!(wrong.unwrap_err(), Errno::INVAL);
    assert!(rustix::fs::setxattr(&path, "user.cairn.cid", b"x", XattrFlags::empty()).is_err());
}

#[test]
fn pipes_sockets_and_devices_are_nodes() {
    let Some(world) = World::mountable("attributes::nodes") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    mknodat(CWD, mount.path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    mknodat(CWD, mount.path("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    assert!(fs::metadata(mount.path("pipe")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(mount.path("socket")).unwrap().file_type().is_socket());
    if rustix::process::geteuid().is_root() {
        let null = makedev(1, 3);
        mknodat(
            CWD,
            mount.path("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            null,
        )
        .unwrap();
        let meta = fs::metadata(mount.path("null")).unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!(meta.rdev(), null);
    }
}

#[test]
fn df_shows_the_disk_below() {
    let Some(world) = World::mountable("attributes::df") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let (inside, outside) =
        (rustix::fs::statvfs(&mount.at).unwrap(), rustix::fs::statvfs(&volume.dir).unwrap());
    let size = inside.f_blocks * inside.f_frsize;
    // Without what is kept back for root, which files cannot take either.
    let kept_back = outside.f_bfree - outside.f_bavail;
    assert_eq!(size, (outside.f_blocks - kept_back) * outside.f_frsize);
    assert_eq!(inside.f_namemax, 255);
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(world) = World::mountable("attributes::read_only") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    mount.umount().ok();
    let mount = volume.mount_with(&["--read-only"]);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"x");
    let refused = [
        fs::write(mount.path("new"), b"").unwrap_err(),
        fs::remove_file(mount.path("file")).unwrap_err(),
        fs::OpenOptions::new().write(true).open(mount.path("file")).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    }
}
