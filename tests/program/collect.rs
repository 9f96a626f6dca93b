//! What nothing needs any more leaves the backends, late, and can come back until
//! then.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Volume, World, wait_until};

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// Bytes of blocks in a backend's folder.
fn lies_at(place: &Path) -> u64 {
    let mut sum = 0;
    for shard in fs::read_dir(place.join("blocks")).unwrap() {
        for block in fs::read_dir(shard.unwrap().path()).unwrap() {
            sum += block.unwrap().metadata().unwrap().len();
        }
    }
    sum
}

fn gc(volume: &Volume<'_>, words: &[&str]) -> Vec<Value> {
    let value = volume.cairn(&[&["--json", "gc"], words].concat()).ok().json();
    value["places"].as_array().unwrap().clone()
}

fn settled(volume: &Volume<'_>) {
    wait_until("all is there and proven", || {
        let status = volume.status();
        status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
    });
}

#[test]
fn removed_files_leave_the_backends_after_the_grace_period_and_come_back_until_then() {
    let Some(world) = World::mountable("collect::removed_files") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    let (kept, gone, back) = (bytes(1, 3 << 20), bytes(2, 6 << 20), bytes(3, 2 << 20));
    for (name, data) in [("kept", &kept), ("gone", &gone), ("back", &back)] {
        fs::write(mount.path(name), data).unwrap();
    }
    settled(&volume);
    let cid = |name: &str| {
        let value = world.cairn(&["--json", "info", &mount.text(name)]).ok().json();
        value["cid"].as_str().unwrap().to_owned()
    };
    let (root, other) = (cid("back"), cid("gone"));
    let before = lies_at(&world.path("b"));
    assert!(before >= 11 << 20);
    for name in ["gone", "back"] {
        fs::remove_file(mount.path(name)).unwrap();
    }
    // A look deletes nothing, nor does a first pass.
    let plain = volume.cairn(&["gc"]).ok();
    assert!(plain.stdout.contains("b: ") && plain.stdout.contains("are dead"), "{plain:?}");
    for words in [&[][..], &["--run"]] {
        let places = gc(&volume, words);
        assert_eq!(places.len(), 3, "{places:?}");
        for place in &places[1..] {
            assert!(place["dead_bytes"].as_u64().unwrap() >= 8 << 20, "{place}");
            assert_eq!(place["due_blocks"], 0, "{place}");
            assert_eq!(place["deleted_blocks"], 0, "{place}");
        }
    }
    assert!(lies_at(&world.path("b")) >= before);
    // The local store has let go of it; the backends bring it back.
    let trash = volume.cairn(&["--json", "trash", "ls"]).ok().json();
    let list = trash["contents"].as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|content| content["cid"].as_str().unwrap()).collect();
    assert!(names.contains(&root.as_str()) && names.contains(&other.as_str()), "{trash}");
    world.cairn(&["trash", "restore", &root, &mount.text("back")]).ok();
    assert!(fs::read(mount.path("back")).unwrap() == back);
    let again = world.cairn(&["trash", "restore", &root, &mount.text("back")]);
    again.fails(2, &["exists already"]);
    let unknown = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    world
        .cairn(&["trash", "restore", unknown, &mount.text("new")])
        .fails(3, &["is not known here", "cairn trash ls"]);
    volume.cairn(&["gc", "--no-grace"]).fails(2, &["--run"]);
    volume.cairn(&["gc", "--backend", "nowhere"]).fails(3, &["there is no backend `nowhere`"]);
    settled(&volume);
    let places = gc(&volume, &["--run", "--no-grace"]);
    for place in &places[1..] {
        assert!(place["deleted_bytes"].as_u64().unwrap() >= 6 << 20, "{place}");
    }
    for id in ["b", "c"] {
        let left = lies_at(&world.path(id));
        // 5 MiB live; the metadata takes a little.
        assert!((5 << 20..11 << 19).contains(&left), "{id}: {before} to {left}");
    }
    world.cairn(&["trash", "restore", &other, &mount.text("gone")]).fails(3, &["is not known"]);
    let events = volume.cairn(&["--json", "events", "--kind", "block_collected"]).ok().stdout;
    assert!(events.contains("that nothing needed any more"), "{events}");
    mount.umount().ok();
    let mount = volume.mount_with(&["--read-only"]);
    volume.cairn(&["gc", "--run"]).fails(2, &["read-only"]);
    volume.cairn(&["gc"]).ok();
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    // The disk is lost: what is left is whole.
    fs::remove_dir_all(&volume.dir).unwrap();
    let from = world.backend_url("c");
    let folder = volume.dir.to_str().unwrap();
    world.cairn(&["recover", "--from", &from, "--volume", folder]).ok();
    let mount = volume.mount();
    assert!(fs::read(mount.path("kept")).unwrap() == kept);
    assert!(fs::read(mount.path("back")).unwrap() == back);
    mount.umount().ok();
}

#[test]
fn a_mount_collects_by_itself_and_a_shared_folder_is_left_alone() {
    let Some(world) = World::mountable("collect::by_itself") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let settings = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let text = text.replace("collect_interval_s = 86400", "collect_interval_s = 1");
    fs::write(&settings, text.replace("collect_grace_s = 86400", "collect_grace_s = 1")).unwrap();
    let mount = volume.mount();
    fs::write(mount.path("gone"), bytes(1, 4 << 20)).unwrap();
    fs::write(mount.path("kept"), bytes(2, 1 << 20)).unwrap();
    settled(&volume);
    fs::remove_file(mount.path("gone")).unwrap();
    let place = world.path("b");
    wait_until("its blocks are gone", || lies_at(&place) < 3 << 20);
    assert!(fs::read(mount.path("kept")).unwrap() == bytes(2, 1 << 20));
    // Another volume uses the folder, too: nothing goes any more.
    let other = world.path("other");
    let url = world.backend_url("b");
    let folder = other.to_str().unwrap();
    world.cairn(&["init", "--volume", folder, "--backend", &url]).ok();
    world.cairn(&["checkpoint", "--now", "--volume", folder]).ok();
    fs::remove_file(mount.path("kept")).unwrap();
    let refused = volume.cairn(&["gc", "--backend", "b", "--run"]);
    refused.fails(1, &["has its data there, too", "a folder or bucket of its own"]);
    assert!(lies_at(&place) >= 1 << 20);
    wait_until("it is an event", || {
        let events = volume.cairn(&["events", "--kind", "collection_aborted"]).ok().stdout;
        events.contains("has its data there, too")
    });
    mount.umount().ok();
}

/// An old copy of a volume's folder, and the volume itself: the one that was opened
/// last may write, the other one is told.
#[test]
fn of_two_lives_of_a_volume_the_earlier_one_writes_and_deletes_nothing_more() {
    let Some(world) = World::mountable("collect::two_lives") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2,on_degraded=queue");
    let mount = volume.mount();
    fs::write(mount.path("file"), bytes(1, 1 << 20)).unwrap();
    settled(&volume);
    volume.cairn(&["checkpoint", "--now"]).ok();
    // A second life from the same backend, while the first one runs.
    let (folder, from) = (world.path("second"), world.backend_url("b"));
    let folder = folder.to_str().unwrap();
    world.cairn(&["recover", "--from", &from, "--volume", folder]).ok();
    fs::write(mount.path("late"), bytes(2, 1 << 20)).unwrap();
    volume.cairn(&["checkpoint", "--now"]).ok();
    wait_until("the first life is told", || {
        let refused = volume.status()["checkpoint"]["refused"].to_string();
        refused.contains("another life of this volume") && refused.contains("unmount one of them")
    });
    volume.cairn(&["gc", "--backend", "b", "--run"]).fails(1, &["another life of this volume"]);
    // The second one goes on.
    world.cairn(&["checkpoint", "--now", "--volume", folder]).ok();
    world.cairn(&["gc", "--volume", folder, "--backend", "b", "--run"]).ok();
    mount.umount();
}
