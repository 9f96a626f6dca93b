//! Edges of the tree and of its files, each where Linux has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use crate::support::{Mount, Volume, World, run, skip};

/// Directories that are moved into each other.
const DIRECTORIES: u64 = 12;

fn single(world: &World) -> Volume<'_> {
    world.volume(&[], "min=1,target=1,max=1")
}

#[track_caller]
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
}

#[test]
fn names_that_differ_in_case_or_composition_are_different_names() {
    let Some(world) = World::mountable("edges::case") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    // An e with an acute accent, as one character and as two.
    let names = ["name", "Name", "NAME", "\u{e9}", "e\u{301}"];
    for name in names {
        File::create_new(mount.path(name)).unwrap();
    }
    let listed: BTreeSet<_> =
        fs::read_dir(&mount.at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed, names.iter().map(Into::into).collect());
    mount.umount().ok();
}

#[test]
fn a_directory_does_not_go_into_itself_and_nothing_goes_to_another_filesystem() {
    let Some(world) = World::mountable("edges::into_itself") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    fs::write(mount.path("file"), b"x").unwrap();
    for target in ["a/into", "a/b/into", "a/b/c/into"] {
        assert_eq!(errno(fs::rename(mount.path("a"), mount.path(target))), Errno::INVAL);
    }
    assert_eq!(errno(fs::rename(mount.path("a/b/c"), mount.path("a"))), Errno::NOTEMPTY);
    let outside = world.path("outside");
    assert_eq!(errno(fs::rename(mount.path("file"), &outside)), Errno::XDEV);
    assert_eq!(errno(fs::hard_link(mount.path("file"), &outside)), Errno::XDEV);
    fs::write(&outside, b"y").unwrap();
    assert_eq!(errno(fs::rename(&outside, mount.path("in"))), Errno::XDEV);
    assert!(mount.path("a/b/c").is_dir() && !mount.path("in").exists());
    mount.umount().ok();
}

#[test]
fn paths_end_at_4095_bytes_and_links_after_40() {
    let Some(world) = World::mountable("edges::paths") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    // 4095 bytes, the NUL not counted, by names of 200 and a last that fits.
    let mut path = mount.text("");
    while path.len() + 201 <= 4095 - 2 {
        path.push_str(&"d".repeat(200));
        path.push('/');
        fs::create_dir(&path).unwrap();
    }
    let file = format!("{path}{}", "f".repeat(4095 - path.len()));
    assert_eq!(file.len(), 4095);
    fs::write(&file, b"deep").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"deep");
    assert_eq!(errno(fs::write(format!("{file}f"), b"")), Errno::NAMETOOLONG);

    symlink("two", mount.path("one")).unwrap();
    symlink("one", mount.path("two")).unwrap();
    assert_eq!(errno(File::open(mount.path("one"))), Errno::LOOP);
    fs::write(mount.path("0"), b"").unwrap();
    for n in 1..=41 {
        symlink(format!("{}", n - 1), mount.path(&n.to_string())).unwrap();
    }
    File::open(mount.path("40")).unwrap();
    assert_eq!(errno(File::open(mount.path("41"))), Errno::LOOP);
    let not_followed =
        rustix::fs::open(mount.path("40"), OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
    assert_eq!(not_followed.unwrap_err(), Errno::LOOP);
    mount.umount().ok();
}

#[test]
fn a_directory_lists_in_order_of_creation_and_counts_what_is_in_it() {
    let Some(world) = World::mountable("edges::order") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    let names = ["zz", "m", "a", "directory", "0"];
    for name in names {
        match name {
            "directory" => fs::create_dir(dir.join(name)).unwrap(),
            _ => fs::write(dir.join(name), b"x").unwrap(),
        }
    }
    let listed = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(listed(&dir), names);
    let meta = fs::metadata(&dir).unwrap();
    let bytes: usize = names.iter().map(|name| name.len()).sum();
    assert_eq!((meta.len(), meta.blocks(), meta.nlink()), (bytes as u64, 0, 3));
    // A name that is made again is the newest.
    fs::remove_file(dir.join("zz")).unwrap();
    fs::write(dir.join("zz"), b"").unwrap();
    assert_eq!(listed(&dir), ["m", "a", "directory", "0", "zz"]);
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(listed(&dir), ["m", "a", "directory", "0", "zz"]);
    fs::remove_dir(dir.join("directory")).unwrap();
    let meta = fs::metadata(&dir).unwrap();
    assert_eq!((meta.len(), meta.nlink()), (5, 2));
    mount.umount().ok();
}

fn numbers(mount: &Mount<'_>) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![mount.at.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let number = fs::symlink_metadata(entry.path()).unwrap().ino();
            assert_eq!(entry.ino(), number, "readdir and stat say the same");
            let name = entry.path().strip_prefix(&mount.at).unwrap().display().to_string();
            found.insert(name, number);
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn inode_numbers_stay_over_a_remount_and_a_recovery_and_are_never_used_again() {
    let Some(world) = World::mountable("edges::numbers") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    fs::create_dir_all(mount.path("d/e")).unwrap();
    fs::write(mount.path("d/file"), b"x").unwrap();
    fs::hard_link(mount.path("d/file"), mount.path("d/e/second")).unwrap();
    symlink("d", mount.path("link")).unwrap();
    fs::write(mount.path("removed"), b"y").unwrap();
    let removed = fs::metadata(mount.path("removed")).unwrap().ino();
    fs::remove_file(mount.path("removed")).unwrap();
    let before = numbers(&mount);
    assert_eq!(before["d/file"], before["d/e/second"]);
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(numbers(&mount), before, "after a remount");
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let mount = volume.mount();
    assert_eq!(numbers(&mount), before, "after a recovery");
    let mut seen: BTreeSet<u64> = before.values().copied().chain([removed]).collect();
    for _ in 0..200 {
        fs::write(mount.path("again"), b"").unwrap();
        let number = fs::metadata(mount.path("again")).unwrap().ino();
        assert!(seen.insert(number), "{number} was used before");
        fs::remove_file(mount.path("again")).unwrap();
    }
    assert_eq!(numbers(&mount), before);
    mount.umount().ok();
}

#[test]
fn a_write_takes_capabilities_away() {
    let Some(world) = World::mountable("edges::capability") else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("edges::capability", "needs root to give capabilities");
    }
    let volume = single(&world);
    let mount = volume.mount();
    let file = mount.path("file");
    fs::write(&file, b"program").unwrap();
    // linux/capability.h: revision 2, effective; cap_net_raw permitted.
    let mut value = 0x0200_0001_u32.to_le_bytes().to_vec();
    value.extend((1_u32 << 13).to_le_bytes());
    value.extend([0; 12]);
    let name = "security.capability";
    let changes: [(&str, &dyn Fn()); 2] = [
        ("a write", &|| {
            let open = File::options().write(true).open(&file).unwrap();
            open.write_all_at(b"x", 0).unwrap();
        }),
        ("a truncation", &|| fs::File::create(&file).map(drop).unwrap()),
    ];
    for (what, change) in changes {
        rustix::fs::setxattr(&file, name, &value, XattrFlags::empty()).unwrap();
        let mut found = [0; 64];
        assert_eq!(rustix::fs::getxattr(&file, name, &mut found).unwrap(), value.len());
        drop(fs::read(&file).unwrap());
        assert_eq!(rustix::fs::getxattr(&file, name, &mut found).unwrap(), value.len());
        change();
        let gone = rustix::fs::getxattr(&file, name, &mut found);
        assert_eq!(gone.unwrap_err(), Errno::NODATA, "{what}");
    }
    mount.umount().ok();
}

#[test]
fn flags_of_chattr_are_enotty_and_the_time_of_creation_is_not_told() {
    let Some(world) = World::mountable("edges::flags") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let file = File::create(mount.path("file")).unwrap();
    assert_eq!(rustix::fs::ioctl_getflags(&file).unwrap_err(), Errno::NOTTY);
    let flags = rustix::fs::IFlags::IMMUTABLE;
    assert_eq!(rustix::fs::ioctl_setflags(&file, flags).unwrap_err(), Errno::NOTTY);
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let told = rustix::fs::statx(CWD, mount.path("file"), AtFlags::empty(), wanted).unwrap();
    assert_eq!(told.stx_mask & StatxFlags::BTIME.bits(), 0);
    drop(file);
    mount.umount().ok();
}

#[test]
fn appending_processes_lose_no_line() {
    let Some(world) = World::mountable("edges::appenders") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    let script = "i=0; while [ $i -lt 250 ]; do \
        echo \"$1 $i and some words to make the line longer\" >>log; i=$((i + 1)); done";
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let at = mount.at.clone();
            scope.spawn(move || {
                let mut command = Command::new("sh");
                command.args(["-c", script, "sh", &writer.to_string()]).current_dir(at);
                run(command, Duration::from_mins(2)).ok();
            });
        }
    });
    let text = fs::read_to_string(mount.path("log")).unwrap();
    let mut next = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (writer, number) = (words.next().unwrap(), words.next().unwrap());
        assert_eq!(words.collect::<Vec<_>>().join(" "), "and some words to make the line longer");
        let expected = next.entry(writer.to_owned()).or_insert(0);
        assert_eq!(number.parse::<u32>().unwrap(), *expected, "of writer {writer}");
        *expected += 1;
    }
    assert_eq!(next.values().copied().collect::<Vec<u32>>(), [250; 8]);
    mount.umount().ok();
}

#[test]
fn directories_renamed_into_each_other_by_many_threads_make_no_loop() {
    let Some(world) = World::mountable("edges::loops") else { return };
    let volume = single(&world);
    let mount = volume.mount();
    // Each is somewhere below the root, in places that only its number tells.
    for n in 0..DIRECTORIES {
        fs::create_dir(mount.path(&format!("d{n}"))).unwrap();
        fs::write(mount.path(&format!("d{n}/own")), n.to_string()).unwrap();
    }
    let roots: Vec<File> =
        (0..DIRECTORIES).map(|n| File::open(mount.path(&format!("d{n}"))).unwrap()).collect();
    let top = File::open(&mount.at).unwrap();
    let moved = AtomicU64::new(0);
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (roots, top, moved) = (&roots, &top, &moved);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed + thread);
                for _ in 0..400 {
                    let what = random.u64(0..DIRECTORIES);
                    let from = random.u64(0..=DIRECTORIES);
                    let to = random.u64(0..=DIRECTORIES);
                    let place = |n: u64| roots.get(n as usize).unwrap_or(top);
                    let name = format!("d{what}");
                    match rustix::fs::renameat(place(from), &name, place(to), &name) {
                        Ok(()) => drop(moved.fetch_add(1, Ordering::Relaxed)),
                        // It is not there, or would go into itself.
                        Err(Errno::NOENT | Errno::INVAL | Errno::NOTEMPTY) => {}
                        Err(error) => panic!("rename of {name}: {error}"),
                    }
                }
            });
        }
    });
    drop((roots, top));
    // Every directory is reached from the root, once.
    let (mut dirs, mut found) = (vec![mount.at.clone()], BTreeSet::new());
    while let Some(dir) = dirs.pop() {
        assert!(dir.components().count() < 64, "{}", dir.display());
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                assert!(found.insert(entry.file_name()), "{:?} is twice there", entry.path());
                dirs.push(entry.path());
            } else {
                let owner = fs::read_to_string(entry.path()).unwrap();
                assert_eq!(format!("d{owner}"), dir.file_name().unwrap().to_str().unwrap());
            }
        }
    }
    assert_eq!(found.len() as u64, DIRECTORIES);
    assert!(moved.load(Ordering::Relaxed) > 100, "{moved:?} renames");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn an_fsync_of_a_directory_alone_keeps_its_names() {
    let Some(world) = World::mountable("edges::fsyncdir") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    fs::create_dir(mount.path("dir")).unwrap();
    fs::write(mount.path("dir/old"), b"bytes").unwrap();
    fs::write(mount.path("dir/gone"), b"bytes").unwrap();
    File::open(mount.path("dir")).unwrap().sync_all().unwrap();
    fs::rename(mount.path("dir/old"), mount.path("dir/new")).unwrap();
    fs::remove_file(mount.path("dir/gone")).unwrap();
    fs::create_dir(mount.path("dir/made")).unwrap();
    File::open(mount.path("dir")).unwrap().sync_all().unwrap();
    mount.kill();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("c")]).ok();
    let mount = volume.mount();
    let listed: BTreeSet<_> =
        fs::read_dir(mount.path("dir")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed, ["made", "new"].iter().map(Into::into).collect());
    assert_eq!(fs::read(mount.path("dir/new")).unwrap(), b"bytes");
    mount.umount().ok();
}
