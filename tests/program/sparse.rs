//! Sparse files: holes outlive the commit, and their size costs nothing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::support::{Mount, World, run};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// What the daemon may take for files of any size, beside what it takes empty.
const MEMORY: u64 = 256 << 20;

/// Runs of data, as `SEEK_DATA` and `SEEK_HOLE` give them.
fn data_runs(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut runs, mut at) = (Vec::new(), 0);
    loop {
        match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = seek(&file, SeekFrom::Hole(start)).unwrap();
                assert!(at > start);
                runs.push((start, at));
            }
            Err(error) => {
                assert_eq!(error, Errno::NXIO);
                return runs;
            }
        }
    }
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// What the files below a directory take on the disk.
fn allocated(at: &Path) -> u64 {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            // A staging file may become a segment meanwhile.
            let Ok(meta) = entry.metadata() else { return 0 };
            if meta.is_dir() { allocated(&entry.path()) } else { meta.blocks() * 512 }
        })
        .sum()
}

/// A figure of the daemon's memory, in bytes.
fn memory(mount: &Mount<'_>, figure: &str) -> u64 {
    let pid = mount.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn program(mount: &Mount<'_>, name: &str, words: &[&str]) -> String {
    let mut command = Command::new(name);
    command.args(words).current_dir(&mount.at).env("LC_ALL", "C");
    run(command, Duration::from_mins(1)).ok().stdout
}

#[test]
fn holes_are_found_after_the_commit_a_remount_and_a_recovery() {
    let Some(world) = World::mountable("sparse::holes") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    let file = File::create_new(mount.path("sparse")).unwrap();
    file.set_len(6 * MIB + 100).unwrap();
    file.write_all_at(b"x", 2 * MIB + 5).unwrap();
    file.write_all_at(&vec![7; 64 * 1024], 4 * MIB - 1000).unwrap();
    // Told while it is open, and corrected by the commit.
    assert!(blocks(&mount.path("sparse")) < MIB);
    drop(file);
    // Zeros that were written are a hole, too; a short file of them is all hole.
    fs::write(mount.path("zeros"), vec![0; 3 * MIB as usize]).unwrap();
    fs::write(mount.path("short"), [0; 10]).unwrap();
    fs::write(mount.path("data"), vec![1; 2 * MIB as usize + 1]).unwrap();
    let check = |mount: &Mount<'_>, when: &str| {
        let runs = data_runs(&mount.path("sparse"));
        assert_eq!(runs, [(2 * MIB, 5 * MIB)], "{when}");
        assert_eq!(blocks(&mount.path("sparse")), 3 * MIB, "{when}");
        for zeros in ["zeros", "short"] {
            assert_eq!(data_runs(&mount.path(zeros)), [], "{zeros} {when}");
            assert_eq!(blocks(&mount.path(zeros)), 0, "{zeros} {when}");
        }
        assert_eq!(data_runs(&mount.path("data")), [(0, 2 * MIB + 1)], "{when}");
        assert_eq!(blocks(&mount.path("data")), 2 * MIB + 512, "{when}");
        let mut bytes = fs::read(mount.path("sparse")).unwrap();
        assert_eq!(bytes.len() as u64, 6 * MIB + 100, "{when}");
        assert_eq!(bytes.remove(2 * MIB as usize + 5), b'x', "{when}");
        let from = 4 * MIB as usize - 1001;
        assert!(bytes.drain(from..from + 64 * 1024).all(|byte| byte == 7), "{when}");
        assert!(bytes.iter().all(|byte| *byte == 0), "{when}");
    };
    check(&mount, "after the commit");
    mount.umount().ok();
    let mount = volume.mount();
    check(&mount, "after a remount");
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let mount = volume.mount();
    check(&mount, "after a recovery");
    // A file that is being changed shows the holes of what lies below, and a
    // hole can be filled, punched and cut.
    let file = File::options().write(true).open(mount.path("sparse")).unwrap();
    file.write_all_at(b"y", 0).unwrap();
    // Until it is committed, which may be at any time.
    let first = data_runs(&mount.path("sparse"))[0];
    assert!([(0, 4096), (0, MIB)].contains(&first), "{first:?}");
    file.sync_all().unwrap();
    assert_eq!(data_runs(&mount.path("sparse")), [(0, MIB), (2 * MIB, 5 * MIB)]);
    assert_eq!(blocks(&mount.path("sparse")), 4 * MIB);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 3 * MIB).unwrap();
    file.set_len(5 * MIB + 1).unwrap();
    drop(file);
    assert_eq!(data_runs(&mount.path("sparse")), [(3 * MIB, 5 * MIB)]);
    assert_eq!(blocks(&mount.path("sparse")), 2 * MIB);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn programs_that_know_holes_copy_a_sparse_file_by_its_data() {
    let Some(world) = World::mountable("sparse::programs") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let file = File::create_new(mount.path("ten")).unwrap();
    file.set_len(10 << 30).unwrap();
    file.write_all_at(b"head", 0).unwrap();
    file.write_all_at(b"middle", (5 << 30) + 4090).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let begun = Instant::now();
    program(&mount, "cp", &["--sparse=auto", "ten", "copy"]);
    program(&mount, "tar", &["-cSf", "ten.tar", "ten"]);
    fs::create_dir(mount.path("out")).unwrap();
    program(&mount, "tar", &["-xSf", "ten.tar", "-C", "out"]);
    for copy in ["copy", "out/ten"] {
        let path = mount.path(copy);
        assert_eq!(fs::metadata(&path).unwrap().len(), 10 << 30, "{copy}");
        assert_eq!(blocks(&path), 2 * MIB, "{copy}");
        assert_eq!(data_runs(&path), [(0, MIB), (5 << 30, (5 << 30) + MIB)], "{copy}");
        let mut found = [0; 6];
        File::open(&path).unwrap().read_exact_at(&mut found, (5 << 30) + 4090).unwrap();
        assert_eq!(&found, b"middle", "{copy}");
    }
    assert!(fs::metadata(mount.path("ten.tar")).unwrap().len() < 4 * MIB);
    let used = program(&mount, "du", &["-k", "ten"]);
    assert_eq!(used.split_whitespace().next(), Some("2048"), "{used}");
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    let same = |name: &str| world.cairn(&["cid", &mount.text(name)]).ok().stdout;
    assert_eq!(same("ten").split(' ').next(), same("copy").split(' ').next());
    mount.umount().ok();
}

#[test]
fn a_file_of_terabytes_is_made_changed_cut_and_removed_in_bounded_time_and_memory() {
    let Some(world) = World::mountable("sparse::large") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3,level=ALL");
    let mount = volume.mount();
    let begun = Instant::now();
    let before = memory(&mount, "VmRSS");
    let open = || File::options().read(true).write(true).open(mount.path("large")).unwrap();
    let file = File::create_new(mount.path("large")).unwrap();
    // The disk below may have no files of 8 TiB: then the call says so.
    let size = match file.set_len(8 * TIB) {
        Err(error) if error.raw_os_error() == Some(Errno::FBIG.raw_os_error()) => {
            file.set_len(TIB).unwrap();
            TIB
        }
        other => other.map(|()| 8 * TIB).unwrap(),
    };
    drop(file);
    assert_eq!(blocks(&mount.path("large")), 0);
    let file = open();
    file.write_all_at(b"the end", size - 7).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let file = open();
    let mut end = [0; 8];
    file.read_exact_at(&mut end, size - 8).unwrap();
    assert_eq!(&end, b"\0the end");
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), size - MIB);
    file.write_all_at(b"middle", size / 2).unwrap();
    file.sync_all().unwrap();
    assert_eq!(blocks(&mount.path("large")), 2 * MIB);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 4096, size - 8192).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, 1, size - 9).unwrap();
    drop(file);
    assert_eq!(data_runs(&mount.path("large")), [(size - MIB, size)]);
    open().set_len(size / 4 + 1).unwrap();
    assert_eq!((data_runs(&mount.path("large")), blocks(&mount.path("large"))), (vec![], 0));
    open().set_len(size).unwrap();
    open().read_exact_at(&mut end, size - 8).unwrap();
    assert_eq!(end, [0; 8]);
    world.cairn(&["sync", mount.at.to_str().unwrap()]).ok();
    let cid = world.cairn(&["cid", &mount.text("large")]).ok().stdout;
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(world.cairn(&["cid", &mount.text("large")]).ok().stdout, cid);
    assert_eq!(data_runs(&mount.path("large")), []);
    fs::remove_file(mount.path("large")).unwrap();
    let grown = memory(&mount, "VmHWM").saturating_sub(before);
    println!("{size} bytes: {:?}, {} MiB more at most", begun.elapsed(), grown / MIB);
    assert!(grown < MEMORY, "{} MiB more", grown / MIB);
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    let stored: u64 = fs::read_dir(world.path("b/blocks"))
        .unwrap()
        .flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap())
        .map(|block| block.unwrap().metadata().unwrap().len())
        .sum();
    assert!(stored < 16 * MIB, "a backend has {stored} bytes of it");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn beyond_what_the_disk_below_allows_a_file_does_not_grow() {
    let Some(world) = World::mountable("sparse::largest") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let below = File::create(world.path("below")).unwrap();
    let file = File::create(mount.path("file")).unwrap();
    for size in [TIB, 16 * TIB - 4096, 16 * TIB, 16 * TIB + 1] {
        // Beyond 16 TiB never, whatever the disk below.
        let allowed = size <= 16 * TIB && below.set_len(size).is_ok();
        let got = file.set_len(size);
        assert_eq!(got.is_ok(), allowed, "{size}: {got:?}");
        if let Err(error) = got {
            assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error()), "{size}");
            let wrote = file.write_all_at(b"x", size).unwrap_err();
            assert_eq!(wrote.raw_os_error(), Some(Errno::FBIG.raw_os_error()), "{size}");
        }
    }
    let size = file.metadata().unwrap().len();
    assert_eq!(size, below.metadata().unwrap().len());
    drop(file);
    assert_eq!(fs::metadata(mount.path("file")).unwrap().len(), size);
    mount.umount().ok();
}

#[test]
fn reserved_space_is_given_back_when_a_file_is_committed() {
    let Some(world) = World::mountable("sparse::reserved") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    // Not by a program: a fork closes the file, too, and so commits it.
    let taken = || allocated(&world.path("volume/store"));
    let before = taken();
    let file = File::create_new(mount.path("reserved")).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 40 * MIB).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 40 * MIB, 24 * MIB).unwrap();
    assert!(taken() >= before + 64 * MIB, "reserved while the file is written");
    for round in 0..4 {
        file.write_all_at(&[round + 1; 300], 10 * MIB + 5).unwrap();
        file.sync_all().unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 40 * MIB).unwrap();
    }
    // Whole leaves of zeros that were written. What stays: a leaf for each sync, and a
    // pack (of 8 MiB at first) with the leaf of zeros.
    file.write_all_at(&vec![0; 8 * MIB as usize], 20 * MIB).unwrap();
    drop(file);
    let after = taken();
    assert!(after < before + 16 * MIB, "{} MiB more", (after - before) / MIB);
    assert_eq!(data_runs(&mount.path("reserved")), [(10 * MIB, 11 * MIB)]);
    let mut expected = vec![0; 40 * MIB as usize];
    expected[10 * MIB as usize + 5..][..300].fill(4);
    assert!(fs::read(mount.path("reserved")).unwrap() == expected);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}
