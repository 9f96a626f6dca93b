//! Backends that leave, go missing and come back.

use std::fs;

use crate::support::{Mount, Volume, World, wait_until};

const FILES: usize = 20;

/// Backends with a good copy of a file.
fn places(mount: &Mount<'_>, name: &str) -> Vec<String> {
    let info = mount.world.cairn(&["--json", "info", &mount.text(name)]).ok().json();
    let copies = info["copies"].as_array().cloned().unwrap_or_default();
    let good = |state: &serde_json::Value| state == "claimed" || state == "verified";
    let good = copies.iter().filter(|copy| good(&copy["state"]));
    let mut ids: Vec<String> = good.map(|c| c["backend"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn files(mount: &Mount<'_>) -> Vec<Vec<String>> {
    (0..FILES).map(|n| places(mount, &format!("f{n}"))).collect()
}

fn write(mount: &Mount<'_>) {
    for n in 0..FILES {
        fs::write(mount.path(&format!("f{n}")), format!("content {n}")).unwrap();
    }
}

fn all_read(mount: &Mount<'_>) {
    for n in 0..FILES {
        let text = fs::read_to_string(mount.path(&format!("f{n}"))).unwrap();
        assert_eq!(text, format!("content {n}"));
    }
}

fn copies_at(volume: &Volume<'_>, id: &str) -> u64 {
    let status = volume.status();
    let backends = status["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["id"] == id).unwrap()["copies"].as_u64().unwrap()
}

#[test]
fn a_backend_that_is_drained_is_emptied_after_others_have_all_and_the_last_ones_stay() {
    let Some(world) = World::mountable("healing::drained") else { return };
    let volume = world.volume(&["b", "c", "d"], "min=2,target=3,max=3");
    let mount = volume.mount();
    write(&mount);
    wait_until("all have three copies", || files(&mount).iter().all(|at| at.len() == 3));
    assert!(copies_at(&volume, "b") > 0, "rendezvous hashing passed one of three by");
    let drained = volume.cairn(&["--json", "backend", "drain", "b", "--wait"]).ok().json();
    assert_eq!(drained["copies_left"], 0, "{drained}");
    for at in files(&mount) {
        assert_eq!(at, ["c", "d", "local"]);
    }
    let list = volume.cairn(&["backend", "list"]).ok().stdout;
    assert!(list.contains("draining"), "{list}");
    volume.cairn(&["backend", "remove", "b"]).ok();
    all_read(&mount);
    // Nothing else can hold what `c` holds.
    let refused = volume.cairn(&["backend", "drain", "c", "--wait"]);
    refused.fails(4, &["20 copies are still at c", "another place is needed"]);
    for at in files(&mount) {
        assert_eq!(at, ["c", "d", "local"]);
    }
    // It holds up no unmount, is known over a remount, and ends when it is told to.
    mount.umount().ok();
    let mount = volume.mount();
    let list = volume.cairn(&["--json", "backend", "list"]).ok().json();
    assert_eq!(list[1]["draining"], true, "{list}");
    volume.cairn(&["backend", "drain", "c", "--stop"]).ok();
    wait_until("nothing waits", || volume.status()["queue"]["pending"] == 0);
    volume.cairn(&["backend", "drain", "nowhere"]).fails(3, &["there is no backend `nowhere`"]);
    // Who comes back is a new one: nothing is drained from it.
    volume.cairn(&["backend", "add", &world.backend_url("b")]).ok();
    mount.umount().ok();
    let mount = volume.mount();
    let list = volume.cairn(&["--json", "backend", "list"]).ok().json();
    let back = list.as_array().unwrap().iter().find(|one| one["id"] == "b").unwrap();
    assert_eq!(back["draining"], false, "{list}");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn what_a_missing_backend_held_is_made_elsewhere_and_is_trimmed_when_it_returns() {
    let Some(world) = World::mountable("healing::missing") else { return };
    let volume = world.volume(&["b", "c", "d"], "min=2,target=3,max=3");
    volume.probe_often();
    let settings = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&settings).unwrap();
    assert!(text.contains("grace_s = 900"));
    fs::write(&settings, text.replace("grace_s = 900", "grace_s = 2")).unwrap();
    let mount = volume.mount();
    write(&mount);
    wait_until("all have three copies", || files(&mount).iter().all(|at| at.len() == 3));
    let there = copies_at(&volume, "b");
    assert!(there > 0, "rendezvous hashing passed one of three by");
    let (place, away) = (world.path("b"), world.path("b.away"));
    fs::rename(&place, &away).unwrap();
    wait_until("others have what was there", || {
        files(&mount).iter().all(|at| at.iter().filter(|id| *id != "b").count() == 3)
    });
    let list = volume.cairn(&["backend", "list"]).ok().stdout;
    assert!(list.contains("copies there do not count"), "{list}");
    fs::rename(&away, &place).unwrap();
    wait_until("no file has more than three", || {
        volume.status()["pins"]["over_max"] == 0
            && volume.status()["queue"]["pending"] == 0
            && files(&mount).iter().all(|at| at.len() == 3)
    });
    let list = volume.cairn(&["backend", "list"]).ok().stdout;
    assert!(!list.contains("copies there do not count"), "{list}");
    all_read(&mount);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
