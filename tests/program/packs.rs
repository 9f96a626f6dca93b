//! Blocks that share objects: what they cost, who opens them, and what a loss leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{
    KuboDaemon, Proxy, Software, Store, Volume, World, run, skip, snapshot, wait_until,
};

/// Different from each other, and of this length.
fn content(n: u32, len: usize) -> Vec<u8> {
    n.to_le_bytes().into_iter().cycle().take(len).collect()
}

fn copies_at(volume: &Volume<'_>, id: &str) -> u64 {
    let status = volume.status();
    let all = status["backends"].as_array().unwrap();
    all.iter().find(|one| one["id"] == id).and_then(|one| one["copies"].as_u64()).unwrap_or(0)
}

fn settled(volume: &Volume<'_>) -> bool {
    let status = volume.status();
    status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|ext| ext == "car")).collect()
}

#[test]
fn ten_thousand_small_files_cost_a_hundred_puts_at_most() {
    const FILES: u32 = 10_000;
    let Some(world) = World::mountable("packs::ten_thousand") else { return };
    let Some(store) = Store::start(&world, Software::VersityGw, "packs::ten_thousand") else {
        return;
    };
    let proxy = Proxy::counting(store.port());
    // However slowly they are written here.
    let url = store.url_by(proxy.port(), "many", "&id=s3&gather=5s");
    // Nobody waits for each file: who does has a request for each.
    let policy = "min=1,target=2,max=2,level=LOCAL_DURABILITY";
    let volume = world.volume_on(&[url], policy);
    let mount = volume.mount();
    for folder in 0..10 {
        fs::create_dir(mount.path(&folder.to_string())).unwrap();
    }
    for n in 0..FILES {
        fs::write(mount.path(&format!("{}/{n}", n % 10)), content(n, 4096)).unwrap();
    }
    volume.cairn(&["sync"]).ok();
    wait_until("all are there", || copies_at(&volume, "s3") == u64::from(FILES));
    wait_until("all are proven", || settled(&volume));
    let methods = proxy.methods();
    eprintln!("{FILES} files of 4 KiB: {methods:?}");
    assert!(methods["PUT"] <= 100, "{methods:?}");
    // Their proofs read them back: some together.
    assert!(methods["GET"] < u64::from(FILES) / 10, "{methods:?}");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn archives_of_a_directory_open_in_other_tools_and_bring_everything_back() {
    let Some(world) = World::mountable("packs::archives") else { return };
    if Command::new("ipfs-car").arg("--version").output().is_err() {
        skip("packs::archives", "ipfs-car is not installed (npm install -g ipfs-car@3.1.0)");
        return;
    }
    let Some(kubo) = KuboDaemon::start(&world, "packs::archives") else { return };
    let url = world.archives_url("archives");
    let volume = world.volume_on(std::slice::from_ref(&url), "min=2,target=2,max=2");
    let mount = volume.mount();
    fs::create_dir(mount.path("deep")).unwrap();
    for n in 0..40 {
        fs::write(mount.path(&format!("deep/{n}")), content(n, 100 << (n % 8))).unwrap();
    }
    fs::write(mount.path("large"), content(77, 5_000_001)).unwrap();
    let cid = world.cairn(&["cid", &mount.text("large")]).ok().stdout;
    let cid = cid.split_whitespace().next().unwrap().to_owned();
    volume.cairn(&["sync"]).ok();
    wait_until("all are proven", || settled(&volume) && copies_at(&volume, "archives") == 41);
    volume.cairn(&["checkpoint", "--now"]).ok();
    let folder = world.path("archives/packs");
    let all = archives(&folder);
    assert!(!all.is_empty() && all.len() < 70, "{}", all.len());
    for car in &all {
        let text = car.to_str().unwrap();
        world.cairn(&["car", "verify", text]).ok();
        let mut command = world.command("ipfs-car");
        command.args(["blocks", text]);
        let blocks = run(command, Duration::from_mins(1)).ok().stdout;
        assert!(blocks.lines().count() >= 2, "{text}: {blocks}");
        // A root that links to nothing: pinning it asks nobody for anything.
        kubo.ipfs(&["dag", "import", "--pin-roots=true", text]).ok();
    }
    let mut cat = world.command("ipfs");
    cat.env("IPFS_PATH", kubo.repo()).args(["cat", &cid]);
    let read = cat.output().unwrap();
    assert!(read.stdout == content(77, 5_000_001), "{} bytes", read.stdout.len());
    let before = snapshot(&mount.at);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    // All but the archives is lost.
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", &url, "--volume", &volume.text()]).ok();
    let mount = volume.mount();
    let after = snapshot(&mount.at);
    assert_eq!(crate::support::difference(&before, &after), Vec::<String>::new());
    mount.umount().ok();
}

#[test]
fn damage_in_an_archive_is_found_and_mended_from_elsewhere() {
    let Some(world) = World::mountable("packs::damage") else { return };
    let url = world.archives_url("archives");
    let volume = world.volume_on(&[url], "min=2,target=2,max=2");
    let mount = volume.mount();
    for n in 0..30 {
        fs::write(mount.path(&n.to_string()), content(n, 10_000)).unwrap();
    }
    volume.cairn(&["sync"]).ok();
    wait_until("all are proven", || settled(&volume) && copies_at(&volume, "archives") == 30);
    let folder = world.path("archives/packs");
    // One byte of one file, where a reader would not look.
    let wanted = content(7, 10_000);
    let (car, at) = archives(&folder)
        .into_iter()
        .find_map(|car| {
            let bytes = fs::read(&car).unwrap();
            let at = bytes.windows(wanted.len()).position(|part| part == wanted)?;
            Some((car, at))
        })
        .unwrap();
    let file = fs::File::options().write(true).open(&car).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", at as u64 + 5000).unwrap();
    let verify = || world.cairn(&["pin", "verify", &mount.text(""), "--wait"]);
    let found = verify();
    eprintln!("{}{}", found.stdout, found.stderr);
    wait_until("it is mended", || verify().code == 0 && settled(&volume));
    // The good copy is in another archive now.
    let good = archives(&folder)
        .into_iter()
        .filter(|other| *other != car)
        .any(|car| fs::read(car).unwrap().windows(wanted.len()).any(|part| part == wanted));
    assert!(good, "no other archive has it");
    // A whole archive goes.
    let sizes = archives(&folder).into_iter().map(|car| (fs::metadata(&car).unwrap().len(), car));
    fs::remove_file(sizes.max().unwrap().1).unwrap();
    let found = verify();
    eprintln!("{}{}", found.stdout, found.stderr);
    wait_until("it is mended", || {
        verify().code == 0 && settled(&volume) && copies_at(&volume, "archives") == 30
    });
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
