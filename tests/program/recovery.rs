//! The local disk is lost; everything comes back from one backend.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::{World, difference, make_tree, run, snapshot, wait_until};

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let mut command = Command::new("cp");
    command.arg("-aT").arg(from).arg(to);
    run(command, Duration::from_mins(2)).ok();
}

#[test]
fn a_tree_with_everything_in_it_survives_a_remount_and_the_loss_of_the_disk() {
    let Some(world) = World::mountable("recovery::a_tree") else { return };
    make_tree(&world.path("source"));
    let original = snapshot(&world.path("source"));
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    copy(&world.path("source"), &mount.path("tree"));
    assert_eq!(difference(&original, &snapshot(&mount.path("tree"))), [""; 0], "after the copy");
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(difference(&original, &snapshot(&mount.path("tree"))), [""; 0], "after a remount");
    let cid = world.cairn(&["cid", &mount.text("tree")]).ok().stdout;
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    for (backend, full) in [("b", false), ("c", true)] {
        let from = world.backend_url(backend);
        let mut words = vec!["recover", "--from", &from];
        if full {
            words.push("--full");
        }
        volume.cairn(&words).ok();
        let mount = volume.mount();
        let back = snapshot(&mount.path("tree"));
        assert_eq!(difference(&original, &back), [""; 0], "recovered from {backend}");
        assert_eq!(world.cairn(&["cid", &mount.text("tree")]).ok().stdout, cid);
        mount.umount().ok();
        volume.cairn(&["fsck", "--deep"]).ok();
        fs::remove_dir_all(&volume.dir).unwrap();
    }
}

#[test]
fn what_fsync_acknowledged_is_on_the_backend_without_an_unmount() {
    let Some(world) = World::mountable("recovery::fsync") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    let file = fs::File::create(mount.path("precious")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"acknowledged", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.kill();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("precious")).unwrap(), b"acknowledged");
}

#[test]
fn recovery_refuses_a_full_folder_an_empty_backend_and_a_missing_one() {
    let world = World::new();
    let volume = world.volume(&["b"], "");
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).fails(2, &["already"]);
    let fresh = world.path("fresh");
    let recover =
        |from: &str| world.cairn(&["recover", "--from", from, "--volume", fresh.to_str().unwrap()]);
    let other = world.path("other");
    world.cairn(&["init", "--volume", "x", "--backend", other.to_str().unwrap()]).ok();
    recover(other.to_str().unwrap()).fails(3, &["no complete checkpoint"]);
    let missing = recover(world.path("missing").to_str().unwrap());
    assert!(missing.code != 0 && missing.stderr.contains("missing"), "{missing:?}");
    assert!(!fresh.join("volume.json").exists(), "nothing that looks like a volume is left");
}

#[test]
fn a_place_that_has_moved_is_the_same_one_when_its_id_says_so() {
    let Some(world) = World::mountable("recovery::moved") else { return };
    let before = format!("{}&tier=disk", world.backend_url("b"));
    let volume = world.volume_on(&[before, world.backend_url("c")], "min=2,target=3,max=3");
    let mount = volume.mount();
    fs::write(mount.path("precious"), b"acknowledged").unwrap();
    volume.cairn(&["sync"]).ok();
    world.cairn(&["checkpoint", "--now", &mount.text("")]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    fs::rename(world.path("b"), world.path("elsewhere")).unwrap();

    let moved = world.backend_url("elsewhere");
    let told = volume.cairn(&["recover", "--from", &moved]).ok();
    assert!(told.stderr.contains("with id=ID") && told.stderr.contains("b, c"), "{told:?}");
    let settings = || fs::read_to_string(volume.dir.join("cairn.toml")).unwrap();
    assert_eq!(settings().matches("\nid = ").count(), 3, "{}", settings());
    fs::remove_dir_all(&volume.dir).unwrap();

    // What that recovery wrote there names it; who gives the id now is believed.
    let told = volume.cairn(&["recover", "--from", &format!("{moved}&id=b")]).ok();
    assert!(!told.stderr.contains("with id=ID"), "{told:?}");
    let settings = settings();
    assert_eq!(settings.matches("\nid = ").count(), 2, "{settings}");
    let is_moved = settings.contains("elsewhere?domain=elsewhere&tier=disk");
    assert!(is_moved, "{settings}");
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("precious")).unwrap(), b"acknowledged");
    // What was proven before it moved is proven anew, and then all is as it was.
    wait_until("both are proven", || volume.is_settled());
    assert_eq!((volume.copies_at("b"), volume.copies_at("c")), (1, 1));
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_damaged_local_block_is_read_from_a_backend_and_repaired() {
    let Some(world) = World::mountable("recovery::damaged_block") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let data: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(mount.path("file"), &data).unwrap();
    mount.umount().ok();
    let segments = volume.dir.join("store/segments");
    let mut damaged = 0;
    let folders = fs::read_dir(&segments).unwrap().map(|folder| folder.unwrap().path());
    for entry in folders.flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let file = fs::OpenOptions::new().write(true).open(entry.unwrap().path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 1_500_000).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0, "no segment was found to damage");
    volume.cairn(&["fsck", "--deep"]).fails(6, &["corrupt"]);
    let mount = volume.mount();
    assert!(fs::read(mount.path("file")).unwrap() == data, "the bad copy is never served");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn the_parquet_tables_are_there_for_other_programs() {
    let Some(world) = World::mountable("recovery::parquet") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    volume.cairn(&["checkpoint", "--now", "--base"]).ok();
    mount.umount().ok();
    let bases: Vec<_> = fs::read_dir(volume.dir.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    let newest = bases.iter().max().unwrap();
    for table in ["inodes", "dentries", "xattrs", "contents", "copies"] {
        let bytes = fs::read(newest.join(format!("{table}.parquet"))).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "{table}");
    }
}
