//! `cairn pin` and `cairn queue`, on real mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Mount, Run, Volume, World, wait_until};

fn pin(mount: &Mount<'_>, words: &[&str]) -> Run {
    let mut all = vec!["--json", "pin"];
    all.extend_from_slice(words);
    mount.world.cairn(&all)
}

fn status(mount: &Mount<'_>, name: &str) -> Value {
    pin(mount, &["status", &mount.text(name)]).ok().json()["pins"][0].clone()
}

/// State of each copy by place.
fn copies(pin: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let copies = pin["copies"].as_array().unwrap();
    copies.iter().map(|copy| (text(&copy["backend"]), text(&copy["state"]))).collect()
}

fn state_at(mount: &Mount<'_>, name: &str, id: &str) -> String {
    let pin = status(mount, name);
    let found = copies(&pin).into_iter().find(|(place, _)| place == id);
    found.map(|(_, state)| state).unwrap_or_default()
}

fn until_complete(volume: &Volume<'_>) {
    wait_until("all is copied and proven", || {
        let status = volume.status();
        status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
    });
}

/// The whole list, in pages of `limit`.
fn pages(mount: &Mount<'_>, limit: usize, words: &[&str]) -> Vec<Value> {
    let (limit, mut after, mut found) = (limit.to_string(), None::<String>, Vec::new());
    loop {
        let mut all = vec!["ls", mount.at.to_str().unwrap(), "--limit", &limit];
        all.extend_from_slice(words);
        if let Some(after) = &after {
            all.extend(["--after", after]);
        }
        let page = pin(mount, &all).ok().json();
        let pins = page["pins"].as_array().unwrap();
        assert!(pins.len() <= limit.parse().unwrap());
        found.extend(pins.iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return found,
        }
    }
}

fn sorted(pins: &[Value], field: &str) -> Vec<String> {
    let mut all: Vec<String> =
        pins.iter().map(|pin| pin[field].as_str().unwrap().to_owned()).collect();
    all.sort();
    all
}

/// Changes every byte of a content at a backend.
fn spoil(top: &Path, text: &str) {
    fn files(top: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(top).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    files(top, &mut found);
    let mut spoiled = 0;
    for path in found {
        let bytes = fs::read(&path).unwrap();
        let Some(at) = bytes.windows(text.len()).position(|part| part == text.as_bytes()) else {
            continue;
        };
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&vec![b'#'; text.len()], at as u64).unwrap();
        spoiled += 1;
    }
    assert!(spoiled > 0, "{text} is nowhere below {}", top.display());
}

#[test]
fn pins_are_listed_by_page_state_backend_size_path_and_cid() {
    let Some(world) = World::mountable("pins::list") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    fs::create_dir_all(mount.path("dir/deep er")).unwrap();
    let odd = mount.path("dir/deep er").join(OsStr::from_bytes(b"od\xffd\nname"));
    fs::write(&odd, "odd").unwrap();
    for n in 0..7 {
        fs::write(mount.path(&format!("f{n}")), format!("content {n}").repeat(n + 1)).unwrap();
    }
    fs::write(mount.path("dir/twin"), "content 0").unwrap();
    fs::write(mount.path("dir/empty"), "").unwrap();
    volume.cairn(&["sync"]).ok();
    until_complete(&volume);
    let whole = pages(&mount, 1000, &[]);
    assert_eq!(whole.len(), 8, "{whole:#?}");
    for limit in [1, 3] {
        assert_eq!(sorted(&pages(&mount, limit, &[]), "cid"), sorted(&whole, "cid"));
        assert_eq!(pages(&mount, limit, &["--state", "at_target"]).len(), 8);
        assert_eq!(pages(&mount, limit, &["--backend", "b", "--state", "verified"]).len(), 8);
    }
    // Of what was found good just now, nothing is read again.
    let verify = |words: &[&str]| {
        let mut all = vec!["verify", mount.at.to_str().unwrap(), "--wait"];
        all.extend_from_slice(words);
        pin(&mount, &all).ok().json()
    };
    let rest = verify(&["--older-than", "1day"]);
    let files = 9;
    assert_eq!((&rest["verified"], &rest["left_out"]), (&0.into(), &(3 * files).into()), "{rest}");
    let rest = verify(&["--older-than", "0s", "--backend", "b"]);
    assert_eq!((&rest["verified"], &rest["left_out"]), (&files.into(), &0.into()), "{rest}");
    let asked = world.cairn(&["pin", "verify", &mount.text("f1")]).ok();
    assert!(asked.stderr.contains("ask again"), "{asked:?}");
    for state in ["below_min", "below_target", "over_max", "corrupt", "lost", "blocked", "sending"]
    {
        assert_eq!(pages(&mount, 9, &["--state", state]), [Value::Null; 0], "{state}");
    }
    assert_eq!(pages(&mount, 2, &["--min-size", "40"]).len(), 3);
    assert_eq!(pages(&mount, 2, &["--max-size", "9"]).len(), 2);
    // Below a path: each file, also two of one content; not those that are empty.
    let dir = mount.text("dir");
    for limit in [1, 2, 100] {
        let below = pages(&mount, limit, &["--prefix", &dir]);
        let paths = sorted(&below, "path");
        assert_eq!(paths, ["/dir/deep er/od\u{fffd}d\\nname", "/dir/twin"]);
    }
    let named = world.cairn(&["--json", "pin", "ls", &dir]).ok().json();
    assert_eq!(named["pins"].as_array().unwrap().len(), 2, "{named}");
    let file = mount.text("f3");
    let one = pages(&mount, 10, &["--prefix", &file]);
    assert_eq!(one.len(), 1);
    // By a CID, or its beginning.
    let cid = one[0]["cid"].as_str().unwrap();
    for length in [cid.len(), 20, 15] {
        let found = pages(&mount, 10, &["--prefix", &cid[..length]]);
        assert_eq!(sorted(&found, "cid"), [cid], "{length}");
    }
    assert_eq!(pages(&mount, 3, &["--prefix", "baf"]).len(), 8);
    // What is wrong says what to do.
    let at = mount.at.to_str().unwrap();
    world.cairn(&["pin", "ls", at, "--state", "tired"]).fails(2, &["below_min", "blocked"]);
    world.cairn(&["pin", "ls", at, "--backend", "x"]).fails(3, &["no backend `x`", "b, c"]);
    world.cairn(&["pin", "ls", at, "--after", "k00"]).fails(2, &["--after", "leave it out"]);
    world.cairn(&["pin", "ls", at, "--prefix", "Zzz"]).fails(2, &["beginning of a CID"]);
    let missing = mount.text("nothing");
    world.cairn(&["pin", "status", &missing]).fails(3, &["nothing"]);
    world.cairn(&["pin", "status", &dir]).fails(2, &["pin ls --prefix"]);
    // Totals are the counters'.
    let totals = pin(&mount, &["status", "--volume", &volume.text()]).ok().json();
    assert_eq!(totals["pins"]["total"], 8);
    assert_eq!(totals["pins"]["at_target"], 8);
    assert_eq!(totals["backends"][0]["copies"], 8);
    let empty = status(&mount, "dir/empty");
    assert_eq!(empty["copies"], serde_json::json!([]));
    let pin = status(&mount, "f1");
    let verified = |place: &str| (place.to_owned(), "verified".to_owned());
    assert_eq!(copies(&pin), ["local", "b", "c"].map(verified));
    assert!(pin["copies"][1]["at"].as_str().unwrap().starts_with("20"), "{pin}");
    mount.umount().ok();
    // And when it is not mounted.
    let text = volume.text();
    let listed = world.cairn(&["--json", "pin", "ls", "--volume", &text, "--state", "at_target"]);
    assert_eq!(listed.ok().json()["pins"].as_array().unwrap().len(), 8);
    let found = world.cairn(&["--json", "pin", "status", "--volume", &text, cid, "./dir/twin"]);
    assert_eq!(found.ok().json()["pins"].as_array().unwrap().len(), 2);
    // Nobody would go on with it: it waits.
    let read = world.cairn(&["--json", "pin", "verify", "--volume", &text, "./dir"]).ok().json();
    assert_eq!((&read["contents"], &read["verified"]), (&2.into(), &6.into()), "{read}");
    let below = world.cairn(&["--json", "pin", "ls", "--volume", &text, "--prefix", "./dir"]);
    assert_eq!(below.ok().json()["pins"].as_array().unwrap().len(), 2);
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn copies_are_read_back_repaired_and_what_cannot_be_is_told() {
    let Some(world) = World::mountable("pins::verify") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    for n in 0..5 {
        fs::write(mount.path(&format!("f{n}")), format!("precious bytes {n}")).unwrap();
    }
    until_complete(&volume);
    let (top, file) = (mount.text(""), mount.text("f2"));
    let read = pin(&mount, &["verify", &top, "--wait"]).ok().json();
    assert_eq!((&read["contents"], &read["verified"]), (&5.into(), &15.into()), "{read}");
    // An audit reads all of what is small: that is a proof. Of a large one it reads some.
    let read = pin(&mount, &["verify", &file, "--audit", "--wait"]).ok().json();
    assert_eq!((&read["audited"], &read["verified"]), (&0.into(), &3.into()), "{read}");
    let mut data = vec![0; 24 << 20];
    fastrand::Rng::with_seed(5).fill(&mut data);
    fs::write(mount.path("large"), data).unwrap();
    let large = mount.text("large");
    world.cairn(&["sync", &large]).ok();
    until_complete(&volume);
    let read = pin(&mount, &["verify", &large, "--audit", "--wait"]).ok().json();
    assert_eq!((&read["audited"], &read["verified"]), (&2.into(), &1.into()), "{read}");
    let info = world.cairn(&["--json", "info", &large]).ok().json();
    let by = |id: &str| {
        let copy = info["copies"].as_array().unwrap().iter().find(|copy| copy["backend"] == id);
        (copy.unwrap()["state"].clone(), copy.unwrap()["method"].clone())
    };
    assert_eq!(by("b"), ("verified".into(), "read_back".into()), "a full proof is not lessened");
    fs::remove_file(&large).unwrap();
    // A bad copy is found, and repaired from a good one.
    spoil(&world.path("b"), "precious bytes 2");
    let read = pin(&mount, &["verify", &file, "--backend", "b", "--wait"]).ok().json();
    assert_eq!((&read["verified"], &read["repaired"]), (&0.into(), &1.into()), "{read}");
    wait_until("it is proven again", || state_at(&mount, "f2", "b") == "verified");
    // Without --wait it is asked for only.
    spoil(&world.path("c"), "precious bytes 3");
    pin(&mount, &["verify", &mount.text("f3")]).ok();
    wait_until("it was found and made good", || {
        let events = world.cairn(&["--json", "events", &top, "--kind", "copy_corrupt"]).ok();
        events.stdout.lines().count() >= 2 && state_at(&mount, "f3", "c") == "verified"
    });
    // A place that does not answer: nothing is known.
    fs::rename(world.path("c"), world.path("c.away")).unwrap();
    wait_until("c is down", || volume.status()["backends"][2]["state"] == "down");
    let run = world.cairn(&["pin", "verify", &file, "--wait"]);
    run.fails(4, &["/f2 at c", "does not answer", "backend list"]);
    pin(&mount, &["verify", &file, "--backend", "b", "--wait"]).ok();
    fs::rename(world.path("c.away"), world.path("c")).unwrap();
    wait_until("c is up", || volume.status()["backends"][2]["state"] == "up");
    world.cairn(&["pin", "verify", &file, "--backend", "x"]).fails(3, &["no backend `x`"]);
    world.cairn(&["pin", "verify", &mount.text("no")]).fails(3, &["no"]);
    until_complete(&volume);
    // Bad everywhere: told, and a good copy is never made up.
    mount.umount().ok();
    for top in [world.path("b"), world.path("c"), volume.dir.join("store")] {
        spoil(&top, "precious bytes 4");
    }
    let mount = volume.mount();
    let lost = mount.text("f4");
    let run = world.cairn(&["pin", "verify", &lost, "--wait"]);
    run.fails(6, &["are bad and cannot be repaired", "f4 at"]);
    let at = mount.at.to_str().unwrap();
    let found = world.cairn(&["--json", "pin", "ls", at, "--state", "corrupt"]).ok().json();
    assert_eq!(found["pins"].as_array().unwrap().len(), 1, "{found}");
    let totals = pin(&mount, &["status", "--volume", &volume.text()]).ok().json();
    assert_eq!(totals["pins"]["corrupt"], 1, "{totals}");
    pin(&mount, &["verify", &mount.text("f1"), "--wait"]).ok();
}

#[test]
fn missing_copies_are_made_at_once_or_the_reason_is_told() {
    let Some(world) = World::mountable("pins::replicate") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    fs::rename(world.path("c"), world.path("c.away")).unwrap();
    wait_until("c is down", || volume.status()["backends"][2]["state"] == "down");
    fs::create_dir(mount.path("d")).unwrap();
    for n in 0..5 {
        fs::write(mount.path(&format!("d/f{n}")), format!("content {n}")).unwrap();
    }
    let dir = mount.text("d");
    let run = world.cairn(&["pin", "replicate", &dir, "--wait"]);
    // Those that were looked at first, whichever these are.
    run.fails(4, &["5 contents have fewer copies", "/d/f", "c: down", "and 1 more"]);
    // A list is of a moment only as long as nothing moves in its order.
    wait_until("b's copies are read back", || {
        let totals = volume.cairn(&["--json", "pin", "status"]).ok().json();
        totals["copies"]["verified"] == 10
    });
    let pin_of = status(&mount, "d/f0");
    let blocked = pin_of["copies"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&blocked["state"], &blocked["backend"]), (&"blocked".into(), &Value::Null));
    assert!(blocked["reason"].as_str().unwrap().contains("c: down"), "{pin_of}");
    let listed = pages(&mount, 2, &["--state", "blocked"]);
    assert_eq!(listed.len(), 5);
    assert_eq!(pages(&mount, 2, &["--state", "below_target"]).len(), 5);
    let queue = world.cairn(&["--json", "queue", "ls", &dir]).ok().json();
    assert_eq!(queue["items"].as_array().unwrap().len(), 5);
    assert!(queue["items"][0]["queue"]["reason"].as_str().unwrap().contains("c: down"));
    fs::rename(world.path("c.away"), world.path("c")).unwrap();
    wait_until("c is up", || volume.status()["backends"][2]["state"] == "up");
    let made = pin(&mount, &["replicate", &dir, "--wait"]).ok().json();
    assert_eq!((&made["contents"], &made["complete"]), (&5.into(), &5.into()), "{made}");
    let queue = world.cairn(&["--json", "queue", "ls", &dir]).ok().json();
    assert_eq!(queue["items"], serde_json::json!([]));
}

#[test]
fn what_is_unpinned_keeps_one_copy_and_what_others_ask_for() {
    let Some(world) = World::mountable("pins::unpin") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    fs::create_dir(mount.path("cache")).unwrap();
    for (name, text) in [("cache/one", "one"), ("cache/two", "two"), ("kept", "two")] {
        fs::write(mount.path(name), text).unwrap();
    }
    until_complete(&volume);
    let cache = mount.text("cache");
    let dry = pin(&mount, &["unpin", &cache, "--dry-run"]).ok().json();
    let row = &dry["unpinned"][0];
    assert_eq!((&row["contents"], &row["shared"]), (&2.into(), &1.into()), "{dry}");
    assert_eq!(row["copies_elsewhere"], 4);
    assert_eq!(status(&mount, "cache/one")["have"], 3, "a dry run changes nothing");
    pin(&mount, &["unpin", &cache]).ok();
    wait_until("one is here only", || status(&mount, "cache/one")["have"] == 1);
    assert_eq!(copies(&status(&mount, "cache/one")), [("local".into(), "verified".into())]);
    // Another file has the same bytes, and its own policy.
    assert_eq!(status(&mount, "cache/two")["have"], 3);
    assert_eq!(fs::read_to_string(mount.path("cache/one")).unwrap(), "one");
    world.cairn(&["policy", "set", "", &cache]).ok();
    wait_until("it is wanted again", || status(&mount, "cache/one")["have"] == 3);
    // A CID: whose files say what holds, or nobody's.
    let cid = status(&mount, "cache/one")["cid"].as_str().unwrap().to_owned();
    let unpin = |cid: &str| volume.cairn(&["pin", "unpin", cid]);
    unpin(&cid).fails(2, &["1 file has", "/cache/one", "Unpin these paths"]);
    fs::remove_file(mount.path("cache/one")).unwrap();
    wait_until("no file has it", || unpin(&cid).stderr.contains("`cairn gc` collects it"));
    unpin(&cid).fails(3, &["no pin"]);
    volume.cairn(&["pin", "status", &cid]).fails(3, &["no file has"]);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_cid_is_unpinned_by_all_files_that_have_it_or_refused_with_their_paths() {
    let Some(world) = World::mountable("pins::unpin_cid") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    fs::create_dir(mount.path("a dir")).unwrap();
    for name in ["a dir/one", "two", "other"] {
        fs::write(mount.path(name), if name == "other" { "other" } else { "same" }).unwrap();
    }
    fs::hard_link(mount.path("two"), mount.path("link")).unwrap();
    until_complete(&volume);
    let cid = status(&mount, "two")["cid"].as_str().unwrap().to_owned();
    let text = volume.text();
    let unpin = |words: &[&str]| {
        let mut all = vec!["--json", "pin", "unpin", "--volume", &text, &cid];
        all.extend_from_slice(words);
        world.cairn(&all)
    };
    // All about it by its CID alone, in each of the forms that name it.
    let by = |words: &[&str]| {
        let mut all = vec!["--json", "pin"];
        all.extend_from_slice(words);
        all.extend(["--volume", &text]);
        world.cairn(&all).ok().json()
    };
    assert_eq!(by(&["status", &cid])["pins"][0]["files"], 2);
    assert_eq!(by(&["verify", &cid, "--wait"])["verified"], 3);
    assert_eq!(by(&["replicate", &cid, "--wait"])["complete"], 1);
    let refused = unpin(&[]).fails(2, &["2 files have", "/a dir/one", "--files"]);
    assert!(["/link", "/two"].iter().any(|name| refused.stderr.contains(name)), "{refused:?}");
    unpin(&["--dry-run"]).fails(2, &["/a dir/one"]);
    let dry = unpin(&["--files", "--dry-run"]).ok().json();
    let rows = dry["unpinned"].as_array().unwrap().clone();
    let mut paths: Vec<&str> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(rows.len(), 2, "a file with two names is one: {dry}");
    assert_eq!(paths[0], "/a dir/one");
    assert!(["/link", "/two"].contains(&paths[1]), "{dry}");
    assert_eq!((&rows[0]["cid"], &rows[0]["copies_elsewhere"]), (&cid.as_str().into(), &2.into()));
    assert_eq!(status(&mount, "two")["have"], 3, "a dry run changes nothing");
    unpin(&["--files"]).ok();
    wait_until("it is here only", || status(&mount, "a dir/one")["have"] == 1);
    assert_eq!(status(&mount, "other")["have"], 3);
    let events = volume.cairn(&["--json", "events", "--kind", "pin_removed"]).ok();
    assert!(events.stdout.contains("/a dir/one"), "{}", events.stdout);
    // What no file has is no pin, and one bad name does nothing at all.
    let unknown = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4";
    unpin(&["--files", unknown]).fails(3, &["no file's content"]);
    // It outlives the mount.
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(status(&mount, "two")["have"], 1);
    assert_eq!(fs::read_to_string(mount.path("link")).unwrap(), "same");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_pause_and_what_was_cancelled_outlive_a_killed_daemon() {
    let Some(world) = World::mountable("pins::queue") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    volume.probe_often();
    let mount = volume.mount();
    let text = volume.text();
    let queue = |words: &[&str]| {
        let mut all = vec!["--json", "queue"];
        all.extend_from_slice(words);
        all.extend(["--volume", &text]);
        world.cairn(&all)
    };
    let held = queue(&["pause", "--backend", "c"]).ok().json();
    assert_eq!(held["paused"]["backends"], serde_json::json!(["c"]));
    queue(&["pause", "--backend", "x"]).fails(3, &["no backend `x`"]);
    fs::write(mount.path("one"), "one").unwrap();
    wait_until("b has it", || state_at(&mount, "one", "b") == "verified");
    let pin_of = status(&mount, "one");
    assert_eq!(pin_of["have"], 2, "{pin_of}");
    assert!(pin_of["copies"][2]["reason"].as_str().unwrap().contains("c: paused"), "{pin_of}");
    queue(&["pause"]).ok();
    // With QUORUM, a close waits for copies: not for those that are paused.
    fs::write(mount.path("two"), "two").unwrap();
    fs::File::open(mount.path("two")).unwrap().sync_all().unwrap();
    // Nor does an unmount: it says what stays queued.
    let at = mount.at.to_str().unwrap();
    world.cairn(&["umount", at]).fails(4, &["2 contents still wait", "b: paused", "--force"]);
    mount.kill();
    let mount = volume.mount();
    let now = volume.status();
    assert_eq!(now["queue"]["paused"], true, "{now}");
    assert_eq!(now["backends"][2]["paused"], true);
    assert!(volume.cairn(&["status"]).ok().stdout.contains("PAUSED"));
    let listed = queue(&["ls"]).ok().json();
    assert_eq!(listed["paused"]["all"], true);
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    // Below min first.
    assert_eq!(items[0]["pin"], "below_min");
    assert_eq!(status(&mount, "two")["have"], 1);
    let next = queue(&["ls", "--limit", "1"]).ok().json()["next"].as_str().unwrap().to_owned();
    let second = queue(&["ls", "--limit", "1", "--after", &next]).ok().json();
    assert_eq!(second["items"][0]["cid"], items[1]["cid"]);
    queue(&["ls", "--after", "t1"]).fails(2, &["--after"]);
    let resumed = queue(&["resume"]).ok().json();
    assert_eq!(resumed["paused"], serde_json::json!({ "all": false, "backends": ["c"] }));
    wait_until("b has it", || state_at(&mount, "two", "b") == "verified");
    // What `two` lacks is not made.
    let two = mount.text("two");
    let said = world.cairn(&["--json", "queue", "cancel", &two]).ok().json();
    assert_eq!(said["cancelled"], 1);
    queue(&["resume", "--backend", "c"]).ok();
    wait_until("c has the other", || state_at(&mount, "one", "c") == "verified");
    let cancelled = |mount: &Mount<'_>| {
        let pin = status(mount, "two");
        assert_eq!(pin["have"], 2, "{pin}");
        let copy = &pin["copies"][2];
        assert_eq!((&copy["backend"], &copy["state"]), (&"c".into(), &"blocked".into()), "{pin}");
        assert!(copy["reason"].as_str().unwrap().contains("cancelled by the user"), "{pin}");
    };
    cancelled(&mount);
    mount.kill();
    let mount = volume.mount();
    wait_until("c is up", || volume.status()["backends"][2]["state"] == "up");
    cancelled(&mount);
    // All, or by its name.
    queue(&["retry"]).ok();
    wait_until("c has it", || state_at(&mount, "two", "c") == "verified");
    let said = world.cairn(&["--json", "queue", "cancel", &two]).ok().json();
    assert_eq!((&said["contents"], &said["cancelled"]), (&1.into(), &0.into()), "{said}");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
