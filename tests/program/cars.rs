//! CAR archives through the program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::support::{World, difference, make_tree, snapshot};

#[test]
fn an_export_with_metadata_brings_everything_back() {
    let Some(world) = World::mountable("cars::with_metadata") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    make_tree(&mount.path("tree"));
    let original = snapshot(&mount.path("tree"));
    for version in ["1", "2"] {
        let car = world.path(&format!("v{version}.car"));
        let car = car.to_str().unwrap();
        world
            .cairn(&[
                "export",
                &mount.text("tree"),
                "-o",
                car,
                "--car-version",
                version,
                "--metadata",
            ])
            .ok();
        world.cairn(&["car", "verify", car]).ok();
        let back = mount.text(&format!("back-{version}"));
        world.cairn(&["import", car, &back]).ok();
        let found = snapshot(back.as_ref());
        assert_eq!(difference(&original, &found), [""; 0], "CARv{version}");
        let cids = world.cairn(&["cid", &mount.text("tree"), &back]).ok().stdout;
        let cids: Vec<&str> = cids.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(cids[0], cids[1]);
    }
}

#[test]
fn what_an_import_makes_is_seen_as_it_is_by_who_watched_it_being_made() {
    let Some(world) = World::mountable("cars::watched") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    make_tree(&mount.path("tree"));
    for n in 0..400 {
        fs::create_dir(mount.path(&format!("tree/d{n}"))).unwrap();
        fs::write(mount.path(&format!("tree/d{n}/f")), vec![1; n + 1]).unwrap();
    }
    let original = snapshot(&mount.path("tree"));
    let car = world.path("tree.car");
    let car = car.to_str().unwrap();
    world.cairn(&["export", &mount.text("tree"), "-o", car, "--metadata"]).ok();
    let inotify = inotify::init(CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&inotify, mount.path(""), WatchFlags::CREATE | WatchFlags::MOVE).unwrap();
    let ended = AtomicBool::new(false);
    let hidden = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !ended.load(Ordering::Relaxed) {
                look_at_hidden(&mount.path(""), &mut seen);
            }
            seen
        });
        world.cairn(&["import", car, &mount.text("back")]).ok();
        ended.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert_eq!(difference(&original, &snapshot(&mount.path("back"))), [""; 0]);
    assert!(!hidden.is_empty(), "nobody saw it being made");
    for path in hidden {
        assert!(fs::symlink_metadata(&path).is_err(), "{} is still there", path.display());
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    assert!(inotify::Reader::new(&inotify, &mut buffer).next().is_err(), "an event");
    drop(fs::File::create(mount.path("event")).unwrap());
    assert!(inotify::Reader::new(&inotify, &mut buffer).next().is_ok(), "no event");
}

/// Asks for the attributes of everything below hidden names.
fn look_at_hidden(dir: &Path, seen: &mut BTreeSet<PathBuf>) {
    // What is renamed or removed meanwhile is not there any more.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if !path.to_string_lossy().contains("/.cairn-import-") {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        seen.insert(path.clone());
        if meta.is_dir() {
            look_at_hidden(&path, seen);
        }
    }
}

#[test]
fn a_plain_export_has_the_directories_cid_as_its_only_root() {
    let Some(world) = World::mountable("cars::plain") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/one"), b"one").unwrap();
    fs::write(mount.path("d/two"), vec![2; 3_000_000]).unwrap();
    let car = world.path("d.car");
    world.cairn(&["export", &mount.text("d"), "-o", car.to_str().unwrap()]).ok();
    let verified = world.cairn(&["--json", "car", "verify", car.to_str().unwrap()]).ok().json();
    let cid = world.cairn(&["cid", &mount.text("d")]).ok().stdout;
    assert_eq!(verified["roots"], serde_json::json!([cid.split(' ').next().unwrap()]));
    assert!(world.cairn(&["car", "ls", car.to_str().unwrap()]).ok().stdout.contains("bafk"));
    world.cairn(&["import", car.to_str().unwrap(), &mount.text("back")]).ok();
    assert_eq!(fs::read(mount.path("back/one")).unwrap(), b"one");
    assert_eq!(fs::read(mount.path("back/two")).unwrap(), vec![2; 3_000_000]);
    world.cairn(&["import", car.to_str().unwrap(), &mount.text("back")]).fails(2, &["exists"]);
}

#[test]
fn archives_go_through_pipes() {
    let Some(world) = World::mountable("cars::pipes") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), vec![3; 2_500_000]).unwrap();
    let program = env!("CARGO_BIN_EXE_cairn");
    let mut export = Command::new(program)
        .args(["export", &mount.text("file"), "-o", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let import = Command::new(program)
        .args(["import", "-", &mount.text("copy")])
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success() && import.status.success(), "{import:?}");
    assert_eq!(fs::read(mount.path("copy")).unwrap(), vec![3; 2_500_000]);
}

#[test]
fn damaged_and_cut_archives_are_told_by_cid_or_offset_and_leave_nothing() {
    let Some(world) = World::mountable("cars::damaged") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/file"), vec![5; 2_000_000]).unwrap();
    let car = world.path("good.car");
    world.cairn(&["export", &mount.text("d"), "-o", car.to_str().unwrap()]).ok();
    let good = fs::read(&car).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (name, bytes) in [
        ("flipped", &flipped[..]),
        ("cut", &good[..good.len() - 1000]),
        ("text", b"not a car at all"),
    ] {
        let path = world.path(name);
        fs::write(&path, bytes).unwrap();
        let path = path.to_str().unwrap();
        world.cairn(&["car", "verify", path]).fails(6, &[]);
        world.cairn(&["import", path, &mount.text("dest")]).fails(6, &[]);
        let mut names: Vec<_> =
            fs::read_dir(&mount.at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["d"], "an import of {name} left something");
    }
    let said = world.cairn(&["car", "verify", world.path("flipped").to_str().unwrap()]).stderr;
    assert!(said.contains("offset") && said.contains("bafk"), "{said}");
    world.cairn(&["import", "nowhere.car", &mount.text("dest")]).fails(3, &["nowhere.car"]);
}

#[test]
fn standard_output_and_input_keep_their_place_in_a_file() {
    let Some(world) = World::mountable("cars::keep_their_place") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"content of a file").unwrap();
    let script = r#"
set -eu
{ echo head; "$1" export "$2/file" -o -; } > both
{ read -r line; [ "$line" = head ]; "$1" import - "$2/copy"; } < both
"#;
    let mut bash = world.command("bash");
    bash.args(["-c", script, "bash", env!("CARGO_BIN_EXE_cairn")]).arg(&mount.at);
    crate::support::run(bash, std::time::Duration::from_mins(1)).ok();
    assert_eq!(fs::read(mount.path("copy")).unwrap(), b"content of a file");
}
