//! What an administrator does with backends: read-only, recover, heal, simulate a loss,
//! migrate, replace, rebalance.

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
    set(&volume, "retry_interval_s = 5", "retry_interval_s = 3600");
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
    set(&volume, "retry_interval_s = 5", "retry_interval_s = 3600");
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

/// Files of 100 kB each.
fn write_large(mount: &Mount<'_>, folder: &str, count: usize) {
    fs::create_dir_all(mount.path(folder)).unwrap();
    for n in 0..count {
        let data: Vec<u8> =
            (0..25_000u32).flat_map(|i| (i * 31 + n as u32).to_le_bytes()).collect();
        fs::write(mount.path(&format!("{folder}/{n}")), data).unwrap();
    }
}

#[test]
fn copies_migrate_from_one_backend_to_another_and_stay_there() {
    let Some(world) = World::mountable("backends::migrate") else { return };
    let volume = world.volume(&["b", "c", "d"], "min=1,target=2,max=3,prefer=b");
    let mount = volume.mount();
    write(&mount, 0);
    fs::create_dir(mount.path("sub")).unwrap();
    fs::write(mount.path("sub/inner"), "inner").unwrap();
    wait_until("all are proven", || settled(&volume));
    assert_eq!(copies_at(&volume, "b"), FILES as u64 + 1);
    let dry = volume.cairn(&["--json", "migrate", "b", "d", "--dry-run"]).ok().json();
    assert_eq!((&dry["left"], &dry["dry_run"]), (&(FILES + 1).into(), &true.into()), "{dry}");
    assert_eq!(copies_at(&volume, "b"), FILES as u64 + 1, "a dry run moved something");
    let sub = mount.text("sub");
    let done = world.cairn(&["--json", "migrate", "b", "c", "--path", &sub, "--wait"]).ok().json();
    assert_eq!((&done["done"], &done["moved"]), (&true.into(), &1.into()), "{done}");
    assert_eq!((copies_at(&volume, "b"), copies_at(&volume, "c")), (FILES as u64, 1));
    let done = volume.cairn(&["--json", "migrate", "b", "d", "--wait"]).ok().json();
    assert_eq!(&done["left"], 0, "{done}");
    assert_eq!((copies_at(&volume, "b"), copies_at(&volume, "d")), (0, FILES as u64));
    // Where nothing else can be, it stays, and that is said.
    volume.cairn(&["policy", "set", "min=1,target=4,max=4"]).ok();
    volume.cairn(&["heal", "--wait"]).ok();
    let told = volume.cairn(&["migrate", "d", "c", "--wait"]).ok().stderr;
    assert!(told.contains("fewer copies than its target"), "{told}");
    mount.umount().ok();
    let mount = volume.mount();
    volume.cairn(&["heal", "--wait"]).ok();
    assert_eq!(copies_at(&volume, "d"), FILES as u64 + 1);
    volume.cairn(&["migrate", "d", "d"]).fails(2, &["one backend"]);
    volume.cairn(&["migrate", "d", "c", "--stop"]).fails(3, &["there is no"]);
    all_read(&mount, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_replacement_goes_on_after_the_daemon_was_killed_and_ends_with_the_old_one_gone() {
    let Some(world) = World::mountable("backends::replace") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    write(&mount, 0);
    write_large(&mount, "large", 10);
    wait_until("all are proven", || settled(&volume));
    let new = world.backend_url("new");
    // Slow enough to be met half-way.
    let slow = format!("{new}&bandwidth=300kB");
    let begun = volume.cairn(&["--json", "backend", "replace", "b", &slow]).ok().json();
    assert_eq!((&begun["kind"], &begun["to"]), (&"replace".into(), &"new".into()), "{begun}");
    volume.cairn(&["backend", "remove", "b"]).fails(5, &["being moved"]);
    volume.cairn(&["migrate", "c", "b"]).fails(5, &["under way", "--stop"]);
    wait_until("some are there", || copies_at(&volume, "new") > 0);
    mount.kill();
    let mount = volume.mount();
    let status = volume.status();
    assert_eq!(status["moves"][0]["what"], "replace b new", "{status}");
    let done = volume.cairn(&["--json", "backend", "replace", "b", "--wait"]).ok().json();
    assert_eq!(done["done"], true, "{done}");
    let list = volume.cairn(&["backend", "list"]).ok().stdout;
    assert!(!list.contains("file://") || !list.contains("/b?"), "{list}");
    assert_eq!(copies_at(&volume, "new"), FILES as u64 + 10);
    assert_eq!(volume.status()["pins"]["at_target"], FILES + 10);
    all_read(&mount, FILES);
    mount.umount().ok();
    // It is all there: names, too.
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", &new, "--volume", &volume.text()]).ok();
    let mount = volume.mount();
    all_read(&mount, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_backend_that_died_is_replaced_and_a_replacement_can_be_ended() {
    let Some(world) = World::mountable("backends::dead") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    set(&volume, "grace_s = 900", "grace_s = 1");
    let mount = volume.mount();
    write(&mount, 0);
    wait_until("all are proven", || settled(&volume));
    let other = world.backend_url("other");
    volume.cairn(&["backend", "replace", "c", &other]).ok();
    volume.cairn(&["backend", "replace", "c", "--stop"]).ok();
    assert_eq!(backend(&volume, "c")["draining"], false);
    volume.cairn(&["backend", "replace", "c", "--stop"]).fails(3, &["not being replaced"]);
    fs::remove_dir_all(world.path("b")).unwrap();
    let new = world.backend_url("new");
    let done = volume.cairn(&["--json", "backend", "replace", "b", &new, "--wait"]).ok().json();
    assert_eq!(done["done"], true, "{done}");
    assert_eq!(backend(&volume, "b"), Value::Null);
    assert_eq!(volume.status()["pins"]["at_target"], FILES);
    all_read(&mount, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn copies_are_spread_evenly_when_that_is_asked_for() {
    let Some(world) = World::mountable("backends::rebalance") else { return };
    let volume = world.volume(&[], "min=1,target=2,max=3");
    let place = |name: &str| format!("{}&capacity=10MB", world.backend_url(name));
    volume.cairn(&["backend", "add", &place("b")]).ok();
    let mount = volume.mount();
    write_large(&mount, "large", 40);
    wait_until("all are proven", || settled(&volume));
    volume.cairn(&["backend", "add", &place("c")]).ok();
    assert_eq!((copies_at(&volume, "b"), copies_at(&volume, "c")), (40, 0));
    let dry = volume.cairn(&["--json", "backend", "rebalance", "--dry-run"]).ok().json();
    let moves = dry["left"].as_u64().unwrap();
    assert!((15..=20).contains(&moves), "{dry}");
    let done = volume.cairn(&["--json", "backend", "rebalance", "--wait"]).ok().json();
    assert_eq!(done["done"], true, "{done}");
    let (b, c) = (copies_at(&volume, "b"), copies_at(&volume, "c"));
    assert!(b + c == 40 && (17..=23).contains(&c), "{b} and {c}");
    // It is even now: nothing goes to and fro.
    let again = volume.cairn(&["--json", "backend", "rebalance", "--wait"]).ok().json();
    assert_eq!(again["moved"], 0, "{again}");
    assert_eq!(volume.status()["pins"]["at_target"], 40);
    mount.umount().ok();
    volume.cairn(&["backend", "rebalance", "--wait"]).ok();
    volume.cairn(&["fsck"]).ok();
}

/// Files below a directory with their inodes: a put makes a new one.
fn inodes(dir: &Path) -> BTreeSet<(String, u64)> {
    use std::os::unix::fs::MetadataExt;
    tree(dir).into_iter().map(|path| (path.clone(), fs::metadata(&path).unwrap().ino())).collect()
}

#[test]
fn what_lies_at_a_backend_already_is_adopted_without_being_sent() {
    let Some(world) = World::mountable("backends::import") else { return };
    let volume = world.volume(&["b", "c"], "min=1,target=2,max=3,prefer=b");
    let mount = volume.mount();
    write(&mount, 0);
    write_large(&mount, "large", 3);
    // With inner nodes.
    fs::write(mount.path("long"), vec![7u8; 3 << 20]).unwrap();
    fs::write(
        mount.path("long-2"),
        (0..3u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<u8>>(),
    )
    .unwrap();
    wait_until("all are proven", || settled(&volume));
    // A busy machine may have found `b` slow for a moment, and passed it over.
    let (all, files) = (FILES as u64 + 5, copies_at(&volume, "b"));
    assert!(files > 5, "{files} of {all} are at b");
    // Somebody forgot it, and one block rotted away.
    volume.cairn(&["backend", "remove", "b", "--force"]).ok();
    wait_until("others have all", || settled(&volume) && copies_at(&volume, "c") == all);
    let lost = tree(&world.path("b/blocks")).into_iter().next().unwrap();
    fs::remove_file(&lost).unwrap();
    volume.cairn(&["backend", "read-only", "c"]).ok();
    let before = inodes(&world.path("b/blocks"));
    let url = format!("{}&read_only=1", world.backend_url("b"));
    volume.cairn(&["backend", "add", &url]).ok();
    assert_eq!(copies_at(&volume, "b"), 0);
    let dry = volume.cairn(&["--json", "backend", "import", "b", "--dry-run"]).ok().json();
    assert_eq!(dry["adopted"], files - 1, "{dry}");
    assert_eq!(copies_at(&volume, "b"), 0, "a dry run changed something");
    let done = volume.cairn(&["--json", "backend", "import", "b"]).ok().json();
    assert_eq!(done["adopted"], files - 1, "{done}");
    assert_eq!(copies_at(&volume, "b"), files - 1);
    wait_until("they are proven", || settled(&volume));
    let again = volume.cairn(&["--json", "backend", "import", "b"]).ok().json();
    assert_eq!((&again["known"], &again["adopted"]), (&(files - 1).into(), &0.into()), "{again}");
    assert_eq!(inodes(&world.path("b/blocks")), before, "something was sent");
    all_read(&mount, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn blocks_of_a_folder_become_copies_and_wrong_ones_do_not() {
    let Some(world) = World::mountable("backends::folder") else { return };
    let volume = world.volume(&["b"], "min=1,target=1,max=3");
    let mount = volume.mount();
    write(&mount, 0);
    volume.cairn(&["sync"]).ok();
    let folder = world.make_dir("folder");
    let cid = |name: &str| {
        let told = world.cairn(&["cid", &mount.text(name)]).ok().stdout;
        told.split_whitespace().next().unwrap().to_owned()
    };
    for n in 0..4 {
        let name = format!("f{n}");
        let bytes = if n == 3 { b"wrong".to_vec() } else { fs::read(mount.path(&name)).unwrap() };
        fs::write(folder.join(cid(&name)), bytes).unwrap();
    }
    fs::write(folder.join("some.car"), "x").unwrap();
    write_large(&mount, "archived", 1);
    volume.cairn(&["sync"]).ok();
    let archive = folder.join("archived.car");
    world.cairn(&["export", &mount.text("archived"), "-o", archive.to_str().unwrap()]).ok();
    let from = folder.to_str().unwrap();
    let done = volume.cairn(&["backend", "import", "b", "--from", from]).ok();
    assert!(done.stderr.contains("some.car"), "{}", done.stderr);
    assert_eq!(copies_at(&volume, "b"), 4, "{}", done.stdout);
    wait_until("they are proven", || settled(&volume));
    volume.cairn(&["backend", "import", "b", "--from", "/nowhere"]).fails(3, &["/nowhere"]);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

fn alarms(volume: &Volume<'_>) -> String {
    volume.status()["alarms"].to_string()
}

#[test]
fn a_backend_at_its_stop_takes_no_more_and_says_so_and_soft_alarms_stop_nothing() {
    let Some(world) = World::mountable("backends::stop") else { return };
    let volume = world.volume(&["c"], "min=1,target=2,max=3,prefer=b");
    let b = format!("{}&stop=250kB&alarm=150kB", world.backend_url("b"));
    volume.cairn(&["backend", "add", &b]).ok();
    set(&volume, "alarm_bytes = \"50GB\"", "alarm_bytes = \"500kB\"");
    // What is there is seen at once, not with the probes.
    set(&volume, "retry_interval_s = 5", "retry_interval_s = 3600");
    let mount = volume.mount();
    for folder in ["1", "2", "3", "4"] {
        write_large(&mount, folder, 1);
        volume.cairn(&["sync"]).ok();
    }
    write_large(&mount, "more", 2);
    wait_until("all are proven", || settled(&volume));
    assert_eq!(volume.status()["pins"]["at_target"], 2, "equal files are one content");
    for n in 0..5u32 {
        let data: Vec<u8> = (0..25_000u32).flat_map(|i| (i * 7 + n).to_le_bytes()).collect();
        fs::write(mount.path(&format!("n{n}")), data).unwrap();
        volume.cairn(&["sync"]).ok();
    }
    wait_until("all are proven", || settled(&volume));
    let there = backend(&volume, "b");
    assert_eq!(
        (&there["stopped"], &there["stop_bytes"]),
        (&true.into(), &250_000.into()),
        "{there}"
    );
    assert_eq!(volume.status()["pins"]["at_target"], 7);
    assert!((2..=4).contains(&copies_at(&volume, "b")), "{there}");
    assert!(copies_at(&volume, "c") >= 3);
    let told = world.cairn(&["policy", "explain", &mount.text("n4")]).ok().stdout;
    assert!(told.contains("above its stop threshold"), "{told}");
    wait_until("the alarms are raised", || {
        let alarms = alarms(&volume);
        alarms.contains("it takes no new copies") && alarms.contains("nothing stops")
    });
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn reads_and_requests_of_the_month_are_costs_and_outlive_the_mount() {
    let Some(world) = World::mountable("backends::spending") else { return };
    let volume = world.volume(&[], "min=1,target=2,max=3");
    let url = format!("{}&price_gb_out=1000&price_request=0.001", world.backend_url("b"));
    volume.cairn(&["backend", "add", &url]).ok();
    set(&volume, "cost_ceiling = \"\"", "cost_ceiling = \"0.01\"");
    let mount = volume.mount();
    write_large(&mount, "large", 1);
    wait_until("it is there and read back", || settled(&volume) && copies_at(&volume, "b") == 1);
    let month = |volume: &Volume<'_>| volume.status()["backends"][1]["month"].clone();
    wait_until("reads are counted", || month(&volume)["read_bytes"].as_u64() >= Some(100_000));
    let before = month(&volume);
    assert!(before["requests"].as_u64() > Some(2), "{before}");
    wait_until("that is above the ceiling", || {
        alarms(&volume).contains("for reads and requests so far")
    });
    let capacity = volume.status()["capacity"].clone();
    let money = |key: &str| capacity[key].as_str().unwrap().parse::<f64>().unwrap();
    assert!(money("spent_this_month") > 0.1, "{capacity}");
    assert!(money("cost_forecast") >= money("spent_this_month"), "{capacity}");
    let file = mount.text("large/0");
    let told = world.cairn(&["--json", "policy", "explain", &file]).ok().json();
    assert_eq!((&told["cost"]["ceiling"], &told["cost"]["above"]), (&"0.01".into(), &true.into()));
    // The copy is made all the same.
    assert_eq!(told["copies"], serde_json::json!([2, 2]), "{told}");
    mount.umount().ok();
    let mount = volume.mount();
    let after = month(&volume);
    for key in ["read_bytes", "requests"] {
        assert!(after[key].as_u64() >= before[key].as_u64(), "{before} {after}");
    }
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn above_the_ceiling_of_costs_cheaper_backends_come_first_and_an_alarm_says_so() {
    let Some(world) = World::mountable("backends::cost") else { return };
    let volume = world.volume(&[], "min=1,target=2,max=3,prefer=b");
    for (name, price) in [("b", "1000"), ("c", "1")] {
        let url = format!("{}&price_gb_month={price}", world.backend_url(name));
        volume.cairn(&["backend", "add", &url]).ok();
    }
    set(&volume, "cost_ceiling = \"\"", "cost_ceiling = \"0.15\"");
    let mount = volume.mount();
    write_large(&mount, "large", 2);
    wait_until("the preferred one has them", || {
        settled(&volume) && copies_at(&volume, "b") + copies_at(&volume, "c") == 2
    });
    let first = copies_at(&volume, "b");
    assert!(first > 0, "below the ceiling the preferred one is taken");
    if first == 1 {
        fs::write(mount.path("one-more"), vec![5u8; 100_000]).unwrap();
    }
    wait_until("costs are above their ceiling", || {
        alarms(&volume).contains("cost_ceiling is 0.15")
    });
    let capacity = volume.status()["capacity"].clone();
    assert_eq!(capacity["cost_ceiling"], "0.15", "{capacity}");
    let dear = copies_at(&volume, "b");
    write(&mount, 0);
    wait_until("all have their copies", || settled(&volume));
    assert_eq!(copies_at(&volume, "b"), dear, "the dearer one was taken");
    // The policy's copies are made all the same.
    volume.cairn(&["policy", "set", "min=3,target=3,max=3"]).ok();
    volume.cairn(&["heal", "--wait"]).ok();
    assert!(copies_at(&volume, "b") > dear);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
