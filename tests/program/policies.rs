//! Policies by name: defined, set, inherited, overridden, changed, explained.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::support::{Mount, Volume, World, wait_until};

/// Backends that have a good copy of a file.
fn places(mount: &Mount<'_>, name: &str) -> Vec<String> {
    let info = mount.world.cairn(&["--json", "info", &mount.text(name)]).ok().json();
    let copies = info["copies"].as_array().cloned().unwrap_or_default();
    let good =
        copies.iter().filter(|copy| copy["state"] == "claimed" || copy["state"] == "verified");
    let mut ids: Vec<String> = good.map(|c| c["backend"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn until_copies(mount: &Mount<'_>, name: &str, count: usize) {
    wait_until(&format!("{name} has {count} copies"), || places(mount, name).len() == count);
}

fn explain(mount: &Mount<'_>, name: &str) -> Value {
    mount.world.cairn(&["--json", "policy", "explain", &mount.text(name)]).ok().json()
}

/// What the content's numbers stand for.
fn asked_by(explained: &Value) -> Vec<String> {
    let asked = explained["content"]["asked_by"].as_array().cloned().unwrap_or_default();
    asked.iter().map(|one| one["rules"].as_str().unwrap().to_owned()).collect()
}

/// Part to where it comes from.
fn origins(explained: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let parts = explained["parts"].as_array().unwrap();
    parts.iter().map(|part| (text(&part["part"]), text(&part["from"]))).collect()
}

fn set_xattr(mount: &Mount<'_>, name: &str, text: &str) -> Result<(), rustix::io::Errno> {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mount.path(name), "user.cairn.policy", text.as_bytes(), flags)
}

fn two_places_more(world: &World) -> Volume<'_> {
    world.volume(&["b", "c", "d"], "min=1,target=1,max=5")
}

#[test]
fn a_named_policy_is_set_inherited_overridden_and_changed_and_copies_follow() {
    let Some(world) = World::mountable("policies::named") else { return };
    let volume = two_places_more(&world);
    let mount = volume.mount();
    fs::create_dir_all(mount.path("a/sub")).unwrap();
    for (name, data) in [("free", "1"), ("a/one", "22"), ("a/sub/two", "333")] {
        fs::write(mount.path(name), data).unwrap();
    }
    volume.cairn(&["policy", "define", "archive", "target=2"]).ok();
    world.cairn(&["policy", "set", "archive", &mount.text("a")]).ok();
    until_copies(&mount, "a/one", 2);
    until_copies(&mount, "a/sub/two", 2);
    // By xattr, with parts over the name, in the background.
    set_xattr(&mount, "a/sub", "archive,target=3").unwrap();
    until_copies(&mount, "a/sub/two", 3);
    wait_until("the attribute is an event with its path", || {
        let run = volume.cairn(&["--json", "events", "--kind", "policy_set"]).ok();
        let mut all = run.stdout.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        all.any(|event| event["subject"] == "/a/sub" && event["detail"] == "archive,target=3")
    });
    assert_eq!(places(&mount, "a/one").len(), 2);
    assert_eq!(places(&mount, "free"), ["local"]);
    // What is written later, too.
    fs::write(mount.path("a/later"), "4444").unwrap();
    until_copies(&mount, "a/later", 2);
    // An edited definition reaches all that uses it, and no more.
    let text = volume.cairn(&["policy", "define", "archive", "target=4,max=6"]).ok().stdout;
    assert!(text.contains("min=1,target=4,max=6"), "{text}");
    until_copies(&mount, "a/one", 4);
    until_copies(&mount, "a/later", 4);
    assert_eq!(places(&mount, "a/sub/two").len(), 3, "it has a target of its own");
    assert_eq!(places(&mount, "free"), ["local"]);
    let shown = world.cairn(&["policy", "show", &mount.text("a/sub/two")]).ok().stdout;
    assert!(shown.contains("min=1,target=3,max=6"), "{shown}");
    let shown = volume.cairn(&["policy", "show", "archive"]).ok().stdout;
    assert!(shown.contains("target=4"), "{shown}");
    let listed = volume.cairn(&["--json", "policy", "ls"]).ok().json();
    assert_eq!(listed["policies"][0]["name"], "archive");
    volume.cairn(&["policy", "rm", "archive"]).fails(5, &["used by /a, /a/sub"]);
    volume.cairn(&["policy", "rm", "other"]).fails(3, &["not defined"]);
    // An empty text inherits again.
    world.cairn(&["policy", "set", "", &mount.text("a/sub")]).ok();
    until_copies(&mount, "a/sub/two", 4);
    world.cairn(&["policy", "set", &mount.text("a"), ""]).ok();
    assert!(asked_by(&explain(&mount, "a/one")) == [""], "{}", explain(&mount, "a/one"));
    volume.cairn(&["policy", "rm", "archive"]).ok();
    assert!(volume.cairn(&["policy", "ls"]).ok().stdout.is_empty());
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn recovery_brings_named_policies_back_and_finds_who_uses_them() {
    let Some(world) = World::mountable("policies::recovery") else { return };
    let volume = two_places_more(&world);
    volume.cairn(&["policy", "define", "archive", "target=2"]).ok();
    let mount = volume.mount();
    fs::create_dir(mount.path("a")).unwrap();
    world.cairn(&["policy", "set", "archive,max=4", &mount.text("a")]).ok();
    fs::write(mount.path("a/one"), "one").unwrap();
    until_copies(&mount, "a/one", 2);
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let listed = volume.cairn(&["--json", "policy", "ls"]).ok().json();
    assert_eq!(listed["policies"][0]["text"], "target=2", "{listed}");
    let mount = volume.mount();
    let explained = explain(&mount, "a/one");
    assert_eq!(asked_by(&explained), ["archive,max=4"], "{explained}");
    volume.cairn(&["policy", "define", "archive", "target=4"]).ok();
    until_copies(&mount, "a/one", 4);
}

#[test]
fn what_moves_between_policies_follows() {
    let Some(world) = World::mountable("policies::rename") else { return };
    let volume = two_places_more(&world);
    let mount = volume.mount();
    for dir in ["plain", "strict", "plain/tree/deep"] {
        fs::create_dir_all(mount.path(dir)).unwrap();
    }
    let files = ["plain/file", "plain/tree/deep/file", "plain/linked", "plain/stays"];
    for name in files {
        fs::write(mount.path(name), name).unwrap();
    }
    volume.cairn(&["policy", "define", "strict", "min=2,target=3"]).ok();
    world.cairn(&["policy", "set", "strict", &mount.text("strict")]).ok();
    fs::rename(mount.path("plain/file"), mount.path("strict/file")).unwrap();
    fs::rename(mount.path("plain/tree"), mount.path("strict/tree")).unwrap();
    fs::hard_link(mount.path("plain/linked"), mount.path("strict/linked")).unwrap();
    for name in ["strict/file", "strict/tree/deep/file", "strict/linked"] {
        until_copies(&mount, name, 3);
    }
    assert_eq!(asked_by(&explain(&mount, "plain/linked")), ["", "strict"]);
    assert_eq!(places(&mount, "plain/stays"), ["local"]);
    // And back: nobody asks for more than the volume's own.
    fs::rename(mount.path("strict/tree"), mount.path("plain/tree")).unwrap();
    wait_until("it is as the volume says", || {
        asked_by(&explain(&mount, "plain/tree/deep/file")) == [""]
    });
    // Two files of one content: what either asks for.
    fs::write(mount.path("strict/twin"), "plain/stays").unwrap();
    until_copies(&mount, "plain/stays", 3);
    let twin = explain(&mount, "plain/stays");
    assert_eq!(asked_by(&twin), ["", "strict"]);
    assert!(twin["content"]["policy"].as_str().unwrap().contains("min=2,target=3"), "{twin}");
}

#[test]
fn explain_says_which_rule_comes_from_where_and_what_is_missing() {
    let Some(world) = World::mountable("policies::explain") else { return };
    let volume = two_places_more(&world);
    volume.probe_often();
    volume.cairn(&["policy", "define", "archive", "min=2,target=3"]).ok();
    let mount = volume.mount_with(&["-o", "wait_on=fsync"]);
    fs::create_dir_all(mount.path("a/sub")).unwrap();
    let run = world.cairn(&["policy", "set", &mount.text("a"), "archive"]).ok();
    assert!(run.stdout.contains("min=2,target=3"), "either order: {run:?}");
    let run = world.cairn(&["policy", "set", "max=6,prefer=c/x", &mount.text("a/sub")]).ok();
    assert!(run.stderr.contains("no backend `x`"), "{run:?}");
    fs::write(mount.path("a/sub/file"), "file").unwrap();
    until_copies(&mount, "a/sub/file", 3);
    wait_until("it is complete", || explain(&mount, "a/sub/file")["status"] == "COMPLETE");
    let told = explain(&mount, "a/sub/file");
    let rules: Vec<&str> = told["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["from"].as_str().unwrap())
        .collect();
    assert_eq!(rules, ["cairn.toml", "options of this mount", "/a", "/a/sub"]);
    assert_eq!(told["rules"][2]["definition"], "min=2,target=3");
    let from = origins(&told);
    for (part, wanted) in [("min", "/a"), ("max", "/a/sub"), ("prefer", "/a/sub"), ("tiers", "/a")]
    {
        assert_eq!(from[part], wanted, "{part}: {told}");
    }
    assert_eq!(told["wait"]["copies"], 2);
    assert_eq!(told["missing"], "");
    assert_eq!(told["unknown"][0], "x");
    let with_copy = places(&mount, "a/sub/file");
    for place in told["places"].as_array().unwrap() {
        let id = place["id"].as_str().unwrap().to_owned();
        assert_eq!(place["copy"].is_object(), with_copy.contains(&id), "{told}");
        assert_eq!(place["chosen"], with_copy.contains(&id), "{told}");
        assert_eq!(place["preferred"], id == "c");
        assert_eq!(place["why_not"].as_str().unwrap().is_empty(), with_copy.contains(&id));
    }
    // A directory has rules and places, and no copies.
    let directory = explain(&mount, "a");
    assert_eq!((&directory["status"], &directory["content"]), (&Value::Null, &Value::Null));
    assert_eq!(directory["wait"]["copies"], 2);
    let text = world.cairn(&["policy", "explain", &mount.text("a/sub/file")]).ok().stdout;
    for words in
        ["archive is min=2,target=3", "(from /a/sub)", "QUORUM: 2 distinct copies", "COMPLETE"]
    {
        assert!(text.contains(words), "no `{words}` in {text}");
    }
    // More than there are places.
    world.cairn(&["policy", "set", "target=5,max=9", &mount.text("a")]).ok();
    wait_until("it says what is missing", || {
        explain(&mount, "a/sub/file")["missing"].as_str().unwrap().starts_with("4 of 5 copies")
    });
    assert_eq!(explain(&mount, "a/sub/file")["status"], "PARTIAL");
    // A backend that is away.
    fs::write(mount.path("plain"), "plain").unwrap();
    fs::rename(world.path("d"), world.path("d-away")).unwrap();
    wait_until("d is seen to be down", || {
        let told = explain(&mount, "plain");
        let places = told["places"].as_array().unwrap();
        places.iter().any(|place| place["id"] == "d" && place["why_not"] == "down")
    });
    fs::rename(world.path("d-away"), world.path("d")).unwrap();
}

#[test]
fn explain_names_the_places_of_the_tiers_before_the_copies_are_made() {
    let Some(world) = World::mountable("policies::explain_tiers") else { return };
    let volume = world.volume(&[], "min=1,target=3,max=4,level=PROGRESSIVE");
    for (name, tier) in [("fast", "ssd"), ("slow", "disk"), ("deep", "archive"), ("other", "")] {
        let tier = if tier.is_empty() { String::new() } else { format!("&tier={tier}") };
        let url = format!("{}{tier}", world.backend_url(name));
        volume.cairn(&["backend", "add", &url]).ok();
    }
    volume.probe_often();
    volume.cairn(&["policy", "set", "tiers=ssd:1/disk:1/archive:1:after=90d"]).ok();
    let mount = volume.mount();
    fs::create_dir(mount.path("a")).unwrap();
    let told = explain(&mount, "a");
    let named = |told: &Value, chosen: bool| -> Vec<String> {
        let places = told["places"].as_array().unwrap().iter();
        let named = places.filter(|place| place["chosen"] == chosen);
        named.map(|place| place["id"].as_str().unwrap().to_owned()).collect()
    };
    let place = |told: &Value, id: &str| {
        let places = told["places"].as_array().unwrap();
        places.iter().find(|place| place["id"] == id).unwrap().clone()
    };
    assert_eq!(named(&told, true).len(), 3, "{told:#}");
    let first = serde_json::json!([{ "round": 0, "job": "send" }]);
    let second = serde_json::json!([{ "round": 1, "job": "send" }]);
    assert_eq!((&place(&told, "fast")["steps"], &place(&told, "slow")["steps"]), (&first, &second));
    assert_eq!(place(&told, "deep")["why_not"], "its tier wants none of this age");
    assert_eq!(place(&told, "other")["why_not"], "not needed");
    let text = world.cairn(&["policy", "explain", &mount.text("a")]).ok().stdout;
    assert!(text.contains("chosen, gets a copy in round 2"), "{text}");
    fs::write(mount.path("a/file"), "file").unwrap();
    until_copies(&mount, "a/file", 3);
    wait_until("it is complete", || explain(&mount, "a/file")["status"] == "COMPLETE");
    let mut have = places(&mount, "a/file").into_iter().collect::<Vec<_>>();
    let mut chosen = named(&told, true);
    have.sort_unstable();
    chosen.sort_unstable();
    assert_eq!(have, chosen);
    // What the loss of one would do: there is no other of its tier.
    let loss = volume.cairn(&["--json", "simulate-loss", "fast"]).ok().json();
    assert_eq!(loss["heal"]["backends"][0]["id"], "other", "{loss:#}");
}

#[test]
fn a_name_that_is_not_defined_any_more_inherits_and_says_so() {
    let Some(world) = World::mountable("policies::undefined") else { return };
    let volume = two_places_more(&world);
    volume.cairn(&["policy", "define", "archive", "target=3"]).ok();
    let mount = volume.mount();
    fs::create_dir(mount.path("a")).unwrap();
    world.cairn(&["policy", "set", "archive", &mount.text("a")]).ok();
    fs::write(mount.path("a/one"), "one").unwrap();
    until_copies(&mount, "a/one", 3);
    assert_eq!(set_xattr(&mount, "a", "nobody"), Err(rustix::io::Errno::INVAL));
    world
        .cairn(&["policy", "set", "nobody", &mount.text("a")])
        .fails(2, &["archive are defined", "cairn policy define"]);
    volume.cairn(&["policy", "set", "archive"]).fails(2, &["cairn policy set archive PATH"]);
    volume.cairn(&["policy", "define", "other", "archive,min=1"]).fails(2, &["not of names"]);
    mount.umount().ok();
    // By hand, with no mount.
    let path = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("archive = \"target=3\""), "{text}");
    fs::write(&path, text.replace("archive = \"target=3\"", "")).unwrap();
    let mount = volume.mount();
    wait_until("status says so", || volume.status()["undefined_policies"][0] == "archive");
    let told = explain(&mount, "a/one");
    assert!(told["rules"][1]["problem"].as_str().unwrap().contains("not defined"), "{told}");
    assert!(told["policy"].as_str().unwrap().contains("target=1"), "{told}");
    let log = fs::read_to_string(volume.dir.join("daemon.log")).unwrap();
    assert!(log.contains("archive") && log.contains("not defined"), "{log}");
    let status = volume.cairn(&["status"]).ok().stdout;
    assert!(status.contains("policy archive, which is not defined"), "{status}");
    // Defined again, it holds again; a change by hand is found, too.
    volume.cairn(&["policy", "define", "archive", "target=2"]).ok();
    wait_until("nothing is said", || {
        volume.status()["undefined_policies"] == serde_json::json!([])
    });
    mount.umount().ok();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("archive = \"target=2\"", "archive = \"target=4\"")).unwrap();
    let mount = volume.mount();
    until_copies(&mount, "a/one", 4);
    mount.umount().ok();
    fs::write(&path, text.replace("archive = \"target=2\"", "archive = \"min=9\"")).unwrap();
    volume.cairn(&["status"]).fails(2, &["[policies] archive", "min <= target"]);
}
