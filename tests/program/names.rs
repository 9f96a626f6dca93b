//! Names, links and directories through the kernel.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::support::{Mount, World, detach, skip};

fn names(mount: &Mount<'_>, below: &str) -> BTreeSet<OsString> {
    fs::read_dir(mount.path(below)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn rename_replaces_a_file_and_an_empty_directory_only() {
    let Some(world) = World::mountable("names::rename_replaces") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("a"), b"a").unwrap();
    fs::write(mount.path("b"), b"b").unwrap();
    fs::rename(mount.path("a"), mount.path("b")).unwrap();
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"a");
    for name in ["empty", "full", "mover"] {
        fs::create_dir(mount.path(name)).unwrap();
    }
    fs::write(mount.path("full/file"), b"").unwrap();
    fs::rename(mount.path("mover"), mount.path("empty")).unwrap();
    fs::create_dir(mount.path("mover")).unwrap();
    let refused = fs::rename(mount.path("mover"), mount.path("full")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    let refused = fs::rename(mount.path("b"), mount.path("full")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::ISDIR.raw_os_error()));
    let refused = fs::rename(mount.path("full"), mount.path("b")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    let refused = fs::rename(mount.path("full"), mount.path("full/inside")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
}

#[test]
fn rename_without_replacing_and_by_exchange() {
    let Some(world) = World::mountable("names::rename_flags") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("a"), b"a").unwrap();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/inside"), b"inside").unwrap();
    let rename = |flags| renameat_with(CWD, mount.path("a"), CWD, mount.path("d"), flags);
    assert_eq!(rename(RenameFlags::NOREPLACE).unwrap_err(), Errno::EXIST);
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(mount.path("d")).unwrap(), b"a");
    assert_eq!(fs::read(mount.path("a/inside")).unwrap(), b"inside");
}

#[test]
fn a_rename_that_leaves_a_whiteout_lets_an_overlay_write_on_a_mount() {
    let test = "names::whiteout";
    let Some(world) = World::mountable(test) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("a"), b"a").unwrap();
    fs::write(mount.path("b"), b"b").unwrap();
    renameat_with(CWD, mount.path("a"), CWD, mount.path("b"), RenameFlags::WHITEOUT).unwrap();
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"a");
    let left = fs::symlink_metadata(mount.path("a")).unwrap();
    assert!(left.file_type().is_char_device() && left.rdev() == 0, "{left:?}");
    if !rustix::process::geteuid().is_root() {
        return skip(test, "an overlay needs root");
    }
    let (lower, merged) = (world.make_dir("lower"), world.make_dir("merged"));
    for name in ["gone", "moved", "changed", "same"] {
        fs::write(lower.join(name), name).unwrap();
    }
    fs::create_dir(lower.join("dir")).unwrap();
    fs::create_dir(mount.path("upper")).unwrap();
    fs::create_dir(mount.path("work")).unwrap();
    let overlay = |mount: &Mount<'_>| {
        let (upper, work) = (mount.text("upper"), mount.text("work"));
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.display());
        world
            .command("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged)
            .output()
    };
    let made = overlay(&mount).unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    if said.contains("unknown filesystem type") {
        return skip(test, "the kernel has no overlay");
    }
    assert!(made.status.success(), "{said}");
    fs::remove_file(merged.join("gone")).unwrap();
    fs::rename(merged.join("moved"), merged.join("dir/moved")).unwrap();
    fs::write(merged.join("changed"), b"new").unwrap();
    detach(&merged);
    assert_eq!(fs::read(lower.join("changed")).unwrap(), b"changed", "the layer below");
    mount.umount().ok();
    let mount = volume.mount();
    let again = overlay(&mount).unwrap();
    let names = |dir: &str| {
        let entries = fs::read_dir(merged.join(dir)).unwrap().map(|e| e.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let seen = (names(""), names("dir"), fs::read(merged.join("changed")).unwrap());
    detach(&merged);
    assert!(again.status.success());
    assert_eq!(seen.0, BTreeSet::from(["changed", "dir", "same"].map(String::from)));
    assert_eq!((seen.1, seen.2), (BTreeSet::from(["moved".into()]), b"new".to_vec()));
    mount.umount().ok();
}

#[test]
fn directories_move_with_all_that_is_in_them() {
    let Some(world) = World::mountable("names::directories_move") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir_all(mount.path("x/y/z")).unwrap();
    fs::write(mount.path("x/y/z/file"), b"1").unwrap();
    fs::create_dir(mount.path("other")).unwrap();
    fs::rename(mount.path("x/y"), mount.path("other/moved")).unwrap();
    assert_eq!(fs::read(mount.path("other/moved/z/file")).unwrap(), b"1");
    assert_eq!(fs::metadata(mount.path("x")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(mount.path("other")).unwrap().nlink(), 3);
}

#[test]
fn hard_links_share_bytes_and_count() {
    let Some(world) = World::mountable("names::hard_links") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("one"), b"first").unwrap();
    fs::hard_link(mount.path("one"), mount.path("two")).unwrap();
    fs::write(mount.path("two"), b"second").unwrap();
    assert_eq!(fs::read(mount.path("one")).unwrap(), b"second");
    let (one, two) =
        (fs::metadata(mount.path("one")).unwrap(), fs::metadata(mount.path("two")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    fs::remove_file(mount.path("one")).unwrap();
    assert_eq!(fs::read(mount.path("two")).unwrap(), b"second");
    assert_eq!(fs::metadata(mount.path("two")).unwrap().nlink(), 1);
    assert!(fs::hard_link(&mount.at, mount.path("directory link")).is_err());
}

#[test]
fn symlinks_keep_their_targets_byte_for_byte() {
    let Some(world) = World::mountable("names::symlinks") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let long = "x/".repeat(2000);
    for (name, target) in [("a", &b"b"[..]), ("odd", b"to\n\xff there"), ("long", long.as_bytes())]
    {
        symlink(OsStr::from_bytes(target), mount.path(name)).unwrap();
        assert_eq!(fs::read_link(mount.path(name)).unwrap().as_os_str().as_bytes(), target);
    }
    fs::write(mount.path("b"), b"through the link").unwrap();
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"through the link");
}

#[test]
fn names_are_any_bytes_up_to_255() {
    let Some(world) = World::mountable("names::any_bytes") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let long = "n".repeat(255);
    let odd: [&[u8]; 7] = [
        b"new\nline",
        b"\xff\xfe",
        b" ",
        b"-rf",
        b"\\",
        "caf\u{e9} \u{1f980} \u{fffd}".as_bytes(),
        long.as_bytes(),
    ];
    for name in odd {
        fs::write(mount.at.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let too_long = fs::write(mount.path(&"n".repeat(256)), b"").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    mount.umount().ok();
    let mount = volume.mount();
    let expected: BTreeSet<OsString> =
        odd.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    assert_eq!(names(&mount, ""), expected);
    for name in odd {
        assert_eq!(fs::read(mount.at.join(OsStr::from_bytes(name))).unwrap(), name);
    }
    // The CID of a directory with such names is what the same directory has outside.
    let inside = world.cairn(&["cid".as_ref(), mount.at.as_os_str()]).ok().stdout;
    let copy = world.make_dir("copy");
    for name in odd {
        fs::write(copy.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let outside = world.cairn(&["cid".as_ref(), copy.as_os_str()]).ok().stdout;
    assert_eq!(inside.split(' ').next(), outside.split(' ').next());
}

#[test]
fn a_directory_is_read_whole_while_entries_go() {
    let Some(world) = World::mountable("names::a_directory_is_read_whole") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("many")).unwrap();
    for number in 0..3000 {
        fs::write(mount.path(&format!("many/{number:04}")), b"").unwrap();
    }
    assert_eq!(names(&mount, "many").len(), 3000);
    // As `rm -r` does: what was there before and stays must be seen once.
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(mount.path("many")).unwrap() {
        let entry = entry.unwrap();
        assert!(seen.insert(entry.file_name()), "{:?} was listed twice", entry.file_name());
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(seen.len(), 3000);
    fs::remove_dir(mount.path("many")).unwrap();
}

#[test]
fn a_loop_that_renames_what_it_reads_ends_and_meets_each_file_once() {
    let Some(world) = World::mountable("names::a_loop_that_renames") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("many")).unwrap();
    for number in 0..2000 {
        fs::write(mount.path(&format!("many/{number:04}")), b"").unwrap();
    }
    let mut met = 0;
    for entry in fs::read_dir(mount.path("many")).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), entry.path().with_extension("moved")).unwrap();
        met += 1;
    }
    assert_eq!(met, 2000);
    assert!(names(&mount, "many").iter().all(|name| name.to_string_lossy().ends_with(".moved")));
}

#[test]
fn removing_what_is_not_empty_is_refused() {
    let Some(world) = World::mountable("names::not_empty") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir_all(mount.path("d/e")).unwrap();
    let refused = fs::remove_dir(mount.path("d")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    let refused = fs::remove_file(mount.path("d")).unwrap_err();
    assert!(
        matches!(refused.raw_os_error(), Some(code) if code == Errno::ISDIR.raw_os_error() || code == Errno::PERM.raw_os_error())
    );
    fs::remove_dir(mount.path("d/e")).unwrap();
    fs::remove_dir(mount.path("d")).unwrap();
}
