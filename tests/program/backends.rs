//! What an administrator does with backends: read-only, recover, heal.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Mount, Volume, World, wait_until};

const FILES: usize = 12;

fn write(mount: &Mount<'_>, from: usize) {
    for n in from..from + FILES {
        fs::write(mount.path(&format!("f{n}")), format!("content {n}").repeat(n + 1)).unwrap();
    }
}

fn all_read(mount: &Mount<'_>, count: usize) {
    for n in 0..count {
        let text = fs::read_to_string(mount.path(&format!("f{n}"))).unwrap();
        assert_eq!(text, format!("content {n}").repeat(n + 1));
    }
}

fn backend(volume: &Volume<'_>, id: &str) -> Value {
    let status = volume.status();
    let all = status["backends"].as_array().unwrap();
    all.iter().find(|one| one["id"] == id).cloned().unwrap_or_default()
}

fn copies_at(volume: &Volume<'_>, id: &str) -> u64 {
    backend(volume, id)["copies"].as_u64().unwrap_or(0)
}

fn settled(volume: &Volume<'_>) -> bool {
    let status = volume.status();
    status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
}

/// A setting of the volume, before it is mounted.
fn set(volume: &Volume<'_>, from: &str, to: &str) {
    let path = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "no {from}");
    fs::write(&path, text.replace(from, to)).unwrap();
}

/// Every file below a directory.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            found.insert(path.display().to_string());
        }
    }
    found
}

#[test]
fn at_a_backend_that_is_set_read_only_nothing_changes_over_remounts_and_its_copies_count() {
    let Some(world) = World::mountable("backends::read_only") else { return };
    let volume = world.volume(&["b", "c", "d"], "min=2,target=3,max=3");
    let mount = volume.mount();
    write(&mount, 0);
    wait_until("all are proven", || settled(&volume));
    let there = copies_at(&volume, "b");
    assert!(there > 0, "rendezvous hashing passed one of three by");
    let set = volume.cairn(&["--json", "backend", "read-only", "b"]).ok().json();
    assert_eq!((&set["read_only"], &set["state"]), (&true.into(), &"read_only".into()));
    let before = tree(&world.path("b"));
    write(&mount, FILES);
    wait_until("the new ones have their copies elsewhere", || settled(&volume));
    assert_eq!(volume.status()["pins"]["at_target"], 2 * FILES);
    mount.umount().ok();
    let mount = volume.mount();
    let list = volume.cairn(&["backend", "list"]).ok().stdout;
    assert!(list.contains("read_only"), "{list}");
    write(&mount, 2 * FILES);
    // Its copies are not what is trimmed.
    volume.cairn(&["policy", "set", "min=1,target=2,max=2"]).ok();
    wait_until("none has too many that can go", || settled(&volume));
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    assert_eq!(tree(&world.path("b")), before, "it was written to");
    let mount = volume.mount();
    assert_eq!(copies_at(&volume, "b"), there);
    volume.cairn(&["backend", "read-only", "b", "--off"]).ok();
    volume.cairn(&["policy", "set", "min=2,target=4,max=4"]).ok();
    wait_until("it takes copies again", || copies_at(&volume, "b") == 3 * FILES as u64);
    all_read(&mount, 3 * FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_backend_that_is_recovered_by_hand_is_back_at_once_and_its_copies_are_proven() {
    let Some(world) = World::mountable("backends::recover") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    set(&volume, "grace_s = 900", "grace_s = 1");
    // Only the verb asks.
    set(&volume, "probe_interval_s = 5", "probe_interval_s = 3600");
    let mount = volume.mount();
    write(&mount, 0);
    wait_until("all are proven", || settled(&volume));
    let (place, away) = (world.path("b"), world.path("b.away"));
    fs::rename(&place, &away).unwrap();
    // A write finds out that it is away.
    fs::write(mount.path("one-more"), "x").unwrap();
    wait_until("its copies do not count", || backend(&volume, "b")["copies_count"] == false);
    volume.cairn(&["backend", "recover", "b"]).fails(4, &["does not answer", "cairn heal"]);
    fs::rename(&away, &place).unwrap();
    let lost = tree(&place.join("blocks")).pop_first().unwrap();
    fs::remove_file(lost).unwrap();
    let back = volume.cairn(&["--json", "backend", "recover", "b", "--wait"]).ok().json();
    assert_eq!((&back["state"], &back["waiting"]), (&"up".into(), &0.into()), "{back}");
    wait_until("what it lacked is there", || volume.status()["pins"]["at_target"] == FILES + 1);
    assert_eq!(backend(&volume, "b")["copies_count"], true);
    all_read(&mount, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn heal_makes_what_is_missing_now_and_says_what_cannot_be_made() {
    let Some(world) = World::mountable("backends::heal") else { return };
    let volume = world.volume(&["b", "c"], "min=3,target=3,max=3,level=LOCAL_DURABILITY");
    set(&volume, "probe_interval_s = 5", "probe_interval_s = 3600");
    let mount = volume.mount();
    let (place, away) = (world.path("b"), world.path("b.away"));
    fs::rename(&place, &away).unwrap();
    fs::create_dir(mount.path("sub")).unwrap();
    fs::write(mount.path("sub/inner"), "inner").unwrap();
    write(&mount, 0);
    volume.cairn(&["sync"]).ok();
    wait_until("the others are there", || copies_at(&volume, "c") == FILES as u64 + 1);
    let sub = mount.text("sub");
    let stays = world.cairn(&["heal", "--path", &sub]);
    stays.fails(4, &["1 contents stay below their min", "2 of 3 copies", "b: down"]);
    volume.cairn(&["heal"]).fails(4, &["13 contents stay below their min"]);
    fs::rename(&away, &place).unwrap();
    let healed = volume.cairn(&["--json", "heal", "--wait"]).ok().json();
    assert_eq!((&healed["left"], &healed["below_min"]), (&0.into(), &0.into()), "{healed}");
    assert_eq!(copies_at(&volume, "b"), FILES as u64 + 1);
    // A higher target that no place is left for is said, and is no failure.
    world.cairn(&["policy", "set", "min=2,target=4,max=4", &sub]).ok();
    let told = world.cairn(&["heal", "--path", &sub]).ok();
    assert!(told.stderr.contains("add a backend"), "{}", told.stderr);
    volume.cairn(&["heal", "--backend", "nowhere"]).fails(3, &["there is no backend"]);
    mount.umount().ok();
    volume.cairn(&["heal", "--wait"]).ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_simulated_loss_names_what_would_be_gone_and_changes_nothing() {
    let Some(world) = World::mountable("backends::loss") else { return };
    let volume = world.volume(&["b", "c"], "min=1,target=2,max=2,prefer=b");
    let mount = volume.mount();
    write(&mount, 0);
    fs::write(mount.path("alone"), "only here").unwrap();
    world.cairn(&["policy", "set", "min=1,target=1,max=1", &mount.text("alone")]).ok();
    wait_until("all are proven", || settled(&volume));
    let loss = |ids: &[&str]| {
        let words: Vec<&str> = ["--json", "simulate-loss"].iter().chain(ids).copied().collect();
        volume.cairn(&words).ok().json()
    };
    let one = loss(&["b"]);
    assert_eq!((&one["lost"]["contents"], &one["below_min"]["contents"]), (&0.into(), &0.into()));
    assert_eq!(one["heal"]["backends"][0]["id"], "c", "{one}");
    assert_eq!(one["heal"]["copies"], one["below_target"]["contents"]);
    let both = loss(&["local", "b", "b"]);
    let lost = both["lost"]["contents"].as_u64().unwrap();
    assert_eq!(lost, FILES as u64 + 1, "{both}");
    let here = loss(&["local"]);
    let alone = loss(&["local"])["paths"].to_string();
    if here["lost"]["contents"] == 1 {
        assert!(alone.contains("/alone"), "{alone}");
    }
    assert_eq!(here["heal"]["not_measured"], serde_json::json!(["local"]), "{here}");
    let told = volume.cairn(&["simulate-loss", "local", "b"]).ok().stdout;
    assert!(told.contains("lost          13 contents"), "{told}");
    assert!(told.contains("/f0"), "{told}");
    volume.cairn(&["simulate-loss", "nowhere"]).fails(3, &["there is no backend `nowhere`"]);
    assert!(settled(&volume), "a question changed something");
    mount.umount().ok();
}
