//! Full disks, as a user meets them: small filesystems in files.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Volume, World, detach, skip, wait_until};

const MIB: usize = 1 << 20;

/// An ext4 of its own, unmounted when its test ends.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// `None`, said aloud, where loop mounts cannot be had.
    fn new(test: &str, world: &World, name: &str, mib: u64) -> Option<Self> {
        let (image, at) = (world.path(&format!("{name}.img")), world.make_dir(name));
        File::create(&image).unwrap().set_len(mib * MIB as u64).unwrap();
        let run = |program: &str, words: &[&str], paths: &[&Path]| {
            let output = Command::new(program).args(words).args(paths).output();
            match output {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
                Err(error) => Err(format!("{program}: {error}")),
            }
        };
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0"], &[&image])
            .and_then(|()| run("mount", &["-o", "loop"], &[&image, &at]));
        match made {
            Ok(()) => Some(Self { at }),
            Err(reason) => {
                skip(test, &format!("no filesystem in a file: {}", reason.trim()));
                None
            }
        }
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.at);
    }
}

fn bytes_of(number: usize) -> Vec<u8> {
    let len = MIB / 2 + (number * 77_777) % MIB;
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(number as u64).fill(&mut bytes);
    bytes
}

/// Writes a file as `cp` does: an error at any step is an error.
fn copy_in(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn volume_at<'w>(world: &'w World, dir: PathBuf, words: &[&str]) -> Volume<'w> {
    let text = dir.to_str().unwrap().to_owned();
    let mut all = vec!["init", "--volume", &text];
    all.extend_from_slice(words);
    world.cairn(&all).ok();
    Volume { world, dir }
}

#[test]
fn a_full_disk_is_enospc_to_the_writer_and_all_goes_on_when_there_is_room() {
    let test = "full::a_full_disk_is_enospc";
    let Some(world) = World::mountable(test) else { return };
    let Some(disk) = Disk::new(test, &world, "disk", 256) else { return };
    let volume = volume_at(&world, disk.at.join("volume"), &["--policy", "min=1,target=1,max=1"]);
    let mount = volume.mount();
    let path = |number: usize| mount.path(&format!("file-{number}"));
    // One file that is larger than the disk.
    let large = mount.path("large");
    let mut file = File::create(&large).unwrap();
    let chunk = bytes_of(1);
    let refused = (0..400).find_map(|_| file.write_all(&chunk).err()).unwrap();
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    drop(file);
    fs::remove_file(&large).unwrap();
    wait_until("what it took is back", || disk.free() > 150 * MIB as u64);
    for round in 0..2 {
        let mut held: Vec<usize> = Vec::new();
        let mut refused = 0;
        // Past the end, so that small writes find what large ones left.
        for number in round * 1000..round * 1000 + 400 {
            match copy_in(&path(number), &bytes_of(number)) {
                Ok(()) => held.push(number),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "file {number}: {error}");
                    refused += 1;
                    if refused == 5 {
                        break;
                    }
                }
            }
        }
        assert_eq!(refused, 5, "the disk was never full: {} bytes free", disk.free());
        assert!(held.len() > 80, "only {} files fit", held.len());
        for number in &held {
            assert!(fs::read(path(*number)).unwrap() == bytes_of(*number), "file {number}");
        }
        // Removal needs no room.
        let (gone, kept) = held.split_at(held.len() / 2);
        for number in gone {
            fs::remove_file(path(*number)).unwrap();
        }
        wait_until("there is room again", || copy_in(&mount.path("again"), &bytes_of(7)).is_ok());
        wait_until("the bytes are back", || disk.free() > 100 * MIB as u64);
        assert!(fs::read(mount.path("again")).unwrap() == bytes_of(7));
        volume.cairn(&["fsck", "--deep"]).ok();
        for number in kept {
            assert!(fs::read(path(*number)).unwrap() == bytes_of(*number), "file {number}");
        }
        for entry in fs::read_dir(&mount.at).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        wait_until("all is empty", || disk.free() > 150 * MIB as u64);
    }
    fs::write(mount.path("last"), b"x").unwrap();
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("last")).unwrap(), b"x");
    mount.umount().ok();
}

#[test]
fn what_df_says_can_be_written_and_a_full_disk_is_told_at_the_write_not_at_the_close() {
    let test = "full::what_df_says";
    let Some(world) = World::mountable(test) else { return };
    let Some(disk) = Disk::new(test, &world, "disk", 224) else { return };
    let volume = volume_at(&world, disk.at.join("volume"), &["--policy", "min=1,target=1,max=1"]);
    // All of it would fit into memory.
    let config = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("dirty_bytes = \"64MiB\"", "dirty_bytes = \"400MiB\"");
    fs::write(&config, text.replace("memory_bytes = \"512MiB\"", "memory_bytes = \"2GiB\""))
        .unwrap();
    let mount = volume.mount();
    let left = || {
        let stat = rustix::fs::statvfs(&mount.at).unwrap();
        (stat.f_bavail * stat.f_frsize) as usize
    };
    // Small files, all open, none committed: each stays in memory.
    let mut open = Vec::new();
    let refused = loop {
        let number = open.len();
        let path = mount.path(&format!("small-{number}"));
        let mut file = match File::create(&path) {
            Ok(file) => file,
            Err(error) => break error,
        };
        let mut bytes = vec![0; 100_000];
        fastrand::Rng::with_seed(number as u64).fill(&mut bytes);
        let before = left();
        match file.write_all(&bytes) {
            Ok(()) => open.push(file),
            Err(error) => {
                assert!(before < 8 * MIB, "refused with {before} bytes left: {error}");
                break error;
            }
        }
        assert!(number < 4000, "never refused");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    assert!(open.len() > 300, "{}", open.len());
    for (number, file) in open.iter().enumerate() {
        file.sync_all().unwrap_or_else(|e| panic!("file {number} of {}: {e}", open.len()));
    }
    drop(open);
    for entry in fs::read_dir(&mount.at).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    wait_until("what they took is back", || left() > 60 * MIB);
    // One file of all that df says, but for 8 MiB that a collection's pack may reserve
    // meanwhile, and 8 of rows.
    let mut bytes = vec![0; left() - 16 * MIB];
    fastrand::Rng::with_seed(9).fill(&mut bytes);
    copy_in(&mount.path("large"), &bytes).unwrap();
    assert!(fs::read(mount.path("large")).unwrap() == bytes);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn a_volume_on_a_disk_that_is_full_at_its_mount_opens_and_lets_files_be_removed() {
    let test = "full::a_volume_on_a_disk_that_is_full";
    let Some(world) = World::mountable(test) else { return };
    let Some(disk) = Disk::new(test, &world, "disk", 192) else { return };
    let volume = volume_at(&world, disk.at.join("volume"), &["--policy", "min=1,target=1,max=1"]);
    let mount = volume.mount();
    for number in 0..20 {
        copy_in(&mount.path(&format!("file-{number}")), &bytes_of(number)).unwrap();
    }
    mount.umount().ok();
    // Somebody else takes nearly all: what the metadata needs to remove is left.
    let ballast = disk.at.join("ballast");
    let taken = disk.free().saturating_sub(40 * MIB as u64) as usize;
    fs::write(&ballast, vec![7; taken]).unwrap();
    let mount = volume.mount();
    let refused = copy_in(&mount.path("more"), &bytes_of(3)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    assert!(fs::read(mount.path("file-3")).unwrap() == bytes_of(3));
    for number in 0..10 {
        fs::remove_file(mount.path(&format!("file-{number}"))).unwrap();
    }
    fs::remove_file(&ballast).unwrap();
    wait_until("it takes writes", || copy_in(&mount.path("new"), &bytes_of(50)).is_ok());
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn a_full_backend_is_named_its_queue_waits_and_catches_up() {
    let test = "full::a_full_backend";
    let Some(world) = World::mountable(test) else { return };
    let Some(disk) = Disk::new(test, &world, "small", 96) else { return };
    let ballast = disk.at.join("ballast");
    // Down to some 12 MiB.
    let taken = disk.free().saturating_sub(12 * MIB as u64) as usize;
    fs::write(&ballast, vec![7; taken]).unwrap();
    let url = format!("file://{}?id=small&domain=small", disk.at.join("b").display());
    let words = ["--backend", &url, "--policy", "min=1,target=2,max=2"];
    let volume = volume_at(&world, world.path("volume"), &words);
    let mount = volume.mount();
    for number in 0..40 {
        copy_in(&mount.path(&format!("file-{number}")), &bytes_of(number)).unwrap();
    }
    let small = || {
        let status = volume.status();
        let all = status["backends"].as_array().unwrap().clone();
        let backend = all.into_iter().find(|backend| backend["id"] == "small").unwrap();
        (status["queue"]["pending"].as_u64().unwrap(), backend)
    };
    wait_until("status says that it is full", || small().1["state"] == "full");
    let (pending, backend) = small();
    assert!(pending > 0, "{backend}");
    assert!(!backend["last_error"].as_str().unwrap().is_empty(), "{backend}");
    fs::remove_file(&ballast).unwrap();
    wait_until("the queue is empty", || small().0 == 0);
    assert_eq!(small().1["state"], "up");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    // What lies there is whole: the volume comes back from it.
    fs::remove_dir_all(&volume.dir).unwrap();
    let back = world.path("back").to_str().unwrap().to_owned();
    world.cairn(&["recover", "--from", &url, "--volume", &back, "--full"]).ok();
    let volume = Volume { world: &world, dir: world.path("back") };
    let mount = volume.mount();
    for number in 0..40 {
        let bytes = fs::read(mount.path(&format!("file-{number}"))).unwrap();
        assert!(bytes == bytes_of(number), "file {number}");
    }
    mount.umount().ok();
}
