//! Bytes of files through the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, SeekFrom as Whence};

use crate::support::{World, run, skip};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_read_at_once_after_reopening_and_after_a_remount() {
    let Some(world) = World::mountable("files::what_is_written") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let sizes = [0usize, 1, 4095, 4096, 131_072, 1 << 20, (1 << 20) + 1, 3_333_333];
    for size in sizes {
        let path = mount.path(&format!("file-{size}"));
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(&pattern(size, 1)).unwrap();
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut back).unwrap();
        assert!(back == pattern(size, 1), "{size} bytes through the same handle");
        drop(file);
        assert!(fs::read(&path).unwrap() == pattern(size, 1), "{size} bytes after reopening");
    }
    mount.umount().ok();
    let mount = volume.mount();
    for size in sizes {
        assert!(
            fs::read(mount.path(&format!("file-{size}"))).unwrap() == pattern(size, 1),
            "{size} bytes after a remount"
        );
    }
}

#[test]
fn a_change_in_the_middle_of_a_committed_file_keeps_the_rest() {
    let Some(world) = World::mountable("files::a_change_in_the_middle") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let path = mount.path("file");
    let mut expected = pattern(5_000_000, 2);
    fs::write(&path, &expected).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for (offset, len) in [(0usize, 10usize), (1_048_570, 12), (2_500_000, 4096), (4_999_990, 30)] {
        let data = pattern(len, 77);
        file.write_all_at(&data, offset as u64).unwrap();
        expected.resize(expected.len().max(offset + len), 0);
        expected[offset..offset + len].copy_from_slice(&data);
    }
    file.sync_all().unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
    mount.umount().ok();
    let mount = volume.mount();
    assert!(fs::read(mount.path("file")).unwrap() == expected, "after a remount");
}

#[test]
fn truncation_shrinks_grows_with_zeros_and_empties() {
    let Some(world) = World::mountable("files::truncation") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let path = mount.path("file");
    fs::write(&path, pattern(2_000_000, 3)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1_500_000).unwrap();
    file.set_len(1_800_000).unwrap();
    drop(file);
    let back = fs::read(&path).unwrap();
    assert!(back[..1_500_000] == pattern(2_000_000, 3)[..1_500_000]);
    assert!(back[1_500_000..].iter().all(|b| *b == 0) && back.len() == 1_800_000);
    drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn appends_of_two_handles_are_all_kept() {
    let Some(world) = World::mountable("files::appends") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let open = || OpenOptions::new().append(true).create(true).open(mount.path("log")).unwrap();
    let (mut a, mut b) = (open(), open());
    for _ in 0..500 {
        a.write_all(b"a line of a\n").unwrap();
        b.write_all(b"a line of b\n").unwrap();
    }
    drop((a, b));
    let text = fs::read_to_string(mount.path("log")).unwrap();
    assert_eq!(text.lines().filter(|line| *line == "a line of a").count(), 500);
    assert_eq!(text.lines().filter(|line| *line == "a line of b").count(), 500);
}

#[test]
fn exclusive_creation_fails_on_a_name_that_is_there() {
    let Some(world) = World::mountable("files::exclusive_creation") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    let again = OpenOptions::new().write(true).create_new(true).open(mount.path("file"));
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn an_open_file_lives_on_after_its_last_name_is_gone() {
    let Some(world) = World::mountable("files::an_open_file_lives_on") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let path = mount.path("file");
    fs::write(&path, pattern(100_000, 4)).unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    file.write_all_at(b"still here", 50_000).unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert_eq!(&back[50_000..50_010], b"still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn what_is_removed_answers_fstat_while_a_program_holds_it() {
    let Some(world) = World::mountable("files::what_is_removed") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("dir")).unwrap();
    fs::create_dir(mount.path("replaced")).unwrap();
    fs::create_dir(mount.path("new")).unwrap();
    fs::write(mount.path("file"), b"file").unwrap();
    let path_only = |name: &str| {
        rustix::fs::open(mount.path(name), rustix::fs::OFlags::PATH, 0.into()).unwrap()
    };
    let directory = File::open(mount.path("dir")).unwrap();
    let held = [path_only("replaced"), path_only("file"), directory.into()];
    let numbers = held.each_ref().map(|at| rustix::fs::fstat(at).unwrap().st_ino);
    fs::remove_dir(mount.path("dir")).unwrap();
    fs::rename(mount.path("new"), mount.path("replaced")).unwrap();
    fs::remove_file(mount.path("file")).unwrap();
    for (at, number) in held.iter().zip(numbers) {
        let stat = rustix::fs::fstat(at).unwrap();
        assert_eq!((stat.st_ino, stat.st_nlink), (number, 0));
    }
}

#[test]
fn holes_read_as_zeros_and_are_found() {
    let Some(world) = World::mountable("files::holes") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.path("sparse"))
        .unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 4096], 4 << 20).unwrap();
    let mut zeros = vec![9; 4096];
    file.read_exact_at(&mut zeros, 0).unwrap();
    assert!(zeros.iter().all(|b| *b == 0));
    let data = rustix::fs::seek(&file, Whence::Data(0)).unwrap();
    assert!(data <= 4 << 20, "data is reported at {data}");
    let end = rustix::fs::seek(&file, Whence::Hole(8 << 20 >> 1)).unwrap();
    assert!(end > 4 << 20, "the hole after the data is reported at {end}");
    let past = rustix::fs::seek(&file, Whence::Data(9 << 20));
    assert_eq!(past.unwrap_err(), rustix::io::Errno::NXIO);
}

#[test]
fn fallocate_extends_keeps_the_size_and_punches() {
    let Some(world) = World::mountable("files::fallocate") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.path("file"))
        .unwrap();
    file.write_all_at(&pattern(1 << 20, 5), 0).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 3 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    rustix::fs::fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        4096,
        8192,
    )
    .unwrap();
    let mut back = vec![0; 1 << 20];
    file.read_exact_at(&mut back, 0).unwrap();
    let mut expected = pattern(1 << 20, 5);
    expected[4096..4096 + 8192].fill(0);
    assert!(back == expected);
}

#[test]
fn copy_file_range_copies_between_and_within_files() {
    let Some(world) = World::mountable("files::copy_file_range") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("from"), pattern(3_000_000, 6)).unwrap();
    let from = File::open(mount.path("from")).unwrap();
    let to =
        OpenOptions::new().write(true).create(true).truncate(true).open(mount.path("to")).unwrap();
    let (mut at, mut out) = (1_000u64, 0u64);
    while out < 2_000_000 {
        let left = usize::try_from(2_000_000 - out).unwrap();
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut out), left).unwrap();
        assert!(copied > 0, "the copy ended at {out}");
    }
    drop(to);
    assert!(fs::read(mount.path("to")).unwrap() == pattern(3_000_000, 6)[1_000..2_001_000]);
}

#[test]
fn a_long_copy_of_a_part_is_made_in_parts_and_one_of_a_whole_file_at_once() {
    const LEN: usize = 70_000_000;
    let Some(world) = World::mountable("files::a_long_copy") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let bytes = pattern(LEN, 7);
    fs::write(mount.path("from"), &bytes).unwrap();
    // Shared is only what has its CID, which a slow disk gives it later.
    volume.cairn(&["sync"]).ok();
    let from = File::open(mount.path("from")).unwrap();
    let make = |name| File::create(mount.path(name)).unwrap();
    let (part, whole) = (make("part"), make("whole"));
    let (mut at, mut out, mut calls) = (1_000u64, 0u64, 0);
    while at < LEN as u64 {
        let copied =
            rustix::fs::copy_file_range(&from, Some(&mut at), &part, Some(&mut out), LEN).unwrap();
        assert!(copied > 0 && copied <= 32 << 20, "{copied} bytes in one call");
        calls += 1;
    }
    assert_eq!(calls, 3);
    let (mut at, mut out) = (0, 0);
    let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &whole, Some(&mut out), LEN);
    assert_eq!(copied, Ok(LEN));
    drop((part, whole));
    assert!(fs::read(mount.path("part")).unwrap() == bytes[1_000..]);
    assert!(fs::read(mount.path("whole")).unwrap() == bytes);
}

#[test]
fn a_shared_mapping_reads_and_writes_the_file() {
    let Some(world) = World::mountable("files::a_shared_mapping") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let script = r#"
import mmap, sys
path = sys.argv[1]
with open(path, "wb") as f:
    f.write(bytes(range(256)) * 8192)
with open(path, "r+b") as f:
    with mmap.mmap(f.fileno(), 0) as m:
        assert m[1000:1004] == bytes([232, 233, 234, 235]), m[1000:1004]
        m[1500000:1500005] = b"HELLO"
        m.flush()
with open(path, "rb") as f:
    f.seek(1500000)
    assert f.read(5) == b"HELLO"
"#;
    let mut python = world.command("python3");
    if python.arg("--version").output().is_err() {
        return skip("files::a_shared_mapping", "there is no python3");
    }
    let mut python = world.command("python3");
    python.args(["-c", script]).arg(mount.path("mapped"));
    run(python, std::time::Duration::from_mins(1)).ok();
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(&fs::read(mount.path("mapped")).unwrap()[1_500_000..1_500_005], b"HELLO");
}

#[test]
fn direct_and_synchronous_writes_arrive() {
    let Some(world) = World::mountable("files::synchronous") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let flags = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(flags)
        .open(mount.path("file"))
        .unwrap();
    file.write_all(b"synchronous").unwrap();
    file.sync_data().unwrap();
    drop(file);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"synchronous");
}

#[test]
fn eight_writers_at_once_get_what_they_wrote() {
    let Some(world) = World::mountable("files::eight_writers") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let mount = &mount;
            scope.spawn(move || {
                for number in 0..40usize {
                    let path = mount.path(&format!("w{writer}-{number}"));
                    fs::write(&path, pattern(number * 7_919, writer)).unwrap();
                    assert!(fs::read(&path).unwrap() == pattern(number * 7_919, writer));
                }
            });
        }
    });
    assert_eq!(fs::read_dir(&mount.at).unwrap().count(), 320);
}
