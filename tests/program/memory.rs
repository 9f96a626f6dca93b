//! The daemon's memory against its budget.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::support::{Mount, Volume, World};

const MIB: u64 = 1 << 20;
/// The least that can be set.
const BUDGET: u64 = 128 * MIB;
const FILES: usize = 30_000;

fn with_budget(volume: &Volume<'_>) {
    let config = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&config).unwrap();
    let small = text.replace("memory_bytes = \"512MiB\"", "memory_bytes = \"128MiB\"");
    assert_ne!(small, text);
    fs::write(&config, small).unwrap();
}

#[track_caller]
fn assert_within(volume: &Volume<'_>, what: &str) {
    let memory = volume.status()["memory"].clone();
    let most = memory["most_resident_bytes"].as_u64().unwrap();
    assert_eq!(memory["budget_bytes"], BUDGET);
    assert!(most > MIB && most <= BUDGET, "{what}: {most} bytes at most; {memory}");
    for part in memory["parts"].as_array().unwrap() {
        let (used, bound) = (part["used_bytes"].as_u64(), part["most_bytes"].as_u64().unwrap());
        assert!(used.is_none_or(|used| used <= bound), "{what}: {part}");
    }
}

/// Inodes that the daemon holds.
fn nodes(volume: &Volume<'_>) -> String {
    let stats = volume.cairn(&["stats"]).ok().stdout;
    let line = stats.lines().find(|line| line.starts_with("cairn_vfs_nodes ")).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

fn path(mount: &Mount<'_>, number: usize) -> std::path::PathBuf {
    mount.path(&format!("d{}/a file with a number, {number}", number % 30))
}

fn walk(at: &Path) -> usize {
    fs::read_dir(at)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let kind = entry.metadata().unwrap();
            if kind.is_dir() { walk(&entry.path()) } else { 1 }
        })
        .sum()
}

#[test]
fn thousands_of_files_are_made_copied_and_walked_within_the_budget() {
    let Some(world) = World::mountable("memory::files") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2,wait_on=fsync");
    with_budget(&volume);
    let mount = volume.mount();
    for n in 0..30 {
        fs::create_dir(mount.path(&format!("d{n}"))).unwrap();
    }
    std::thread::scope(|scope| {
        for part in 0..4 {
            let mount = &mount;
            scope.spawn(move || {
                for number in (part..FILES).step_by(4) {
                    let mut file = File::create(path(mount, number)).unwrap();
                    if number % 10 < 3 {
                        file.write_all(&number.to_le_bytes().repeat(100)).unwrap();
                    }
                }
            });
        }
    });
    assert_within(&volume, "made");
    world.cairn(&[Path::new("sync"), &mount.at]).ok();
    volume.cairn(&["checkpoint", "--base", "--now"]).ok();
    assert_within(&volume, "copied");
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(walk(&mount.at), FILES);
    assert_within(&volume, "walked");
    assert_eq!(nodes(&volume), "0", "what is only looked up is not held");
    mount.umount().ok();
}

#[test]
fn large_files_pass_through_the_budget_whatever_the_profile() {
    let Some(world) = World::mountable("memory::large") else { return };
    for profile in ["unixfs-v1-2025", "unixfs-v0-2015"] {
        let dir = world.path(profile);
        let text = dir.to_str().unwrap();
        let policy = ["--policy", "min=1,target=2,max=2"];
        let url = world.backend_url("b");
        let words = ["init", "--volume", text, "--backend", &url, "--profile", profile];
        world.cairn(&[&words[..], &policy[..]].concat()).ok();
        let volume = Volume { world: &world, dir };
        with_budget(&volume);
        let mount = volume.mount();
        let mut random = fastrand::Rng::with_seed(5);
        let mut bytes = vec![0; MIB as usize];
        let mut file = File::create(mount.path("large")).unwrap();
        for _ in 0..300 {
            random.fill(&mut bytes);
            file.write_all(&bytes).unwrap();
        }
        file.sync_all().unwrap();
        drop(file);
        world.cairn(&[Path::new("sync"), &mount.at]).ok();
        std::io::copy(&mut File::open(mount.path("large")).unwrap(), &mut std::io::sink()).unwrap();
        assert_within(&volume, profile);
        mount.umount().ok();
    }
}
