//! Blocks that share objects: what they cost, who opens them, and what a loss leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{
    KuboDaemon, Proxy, Random, Software, Store, Volume, World, run, skip, snapshot, wait_until,
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

fn archives(folder: &Path, form: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|ext| ext == form)).collect()
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
    // Their proofs read them back, some together: fewer where the machine does much else, as
    // what was read of a pack is kept for a time only.
    assert!(methods["GET"] < u64::from(FILES) / 2, "{methods:?}");
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
    let url = world.archives_url("car", "archives");
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
    let all = archives(&folder, "car");
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
fn a_volume_comes_back_from_tables_alone_which_take_less_than_it_has() {
    let Some(world) = World::mountable("packs::tables") else { return };
    let url = world.archives_url("parquet", "tables");
    let volume = world.volume_on(std::slice::from_ref(&url), "min=2,target=2,max=2");
    let mount = volume.mount();
    fs::create_dir(mount.path("deep")).unwrap();
    for n in 0..40 {
        fs::write(mount.path(&format!("deep/{n}")), content(n, 100 << (n % 8))).unwrap();
    }
    // Leaves of a MiB, text and what does not compress.
    fs::write(mount.path("text"), content(77, 8_000_001)).unwrap();
    fs::write(mount.path("noise"), Random::new(7).bytes(3_000_000)).unwrap();
    let ids = ["text", "noise"].map(|name| world.cairn(&["cid", &mount.text(name)]).ok().stdout);
    volume.cairn(&["sync"]).ok();
    wait_until("all are proven", || settled(&volume) && copies_at(&volume, "tables") == 42);
    volume.cairn(&["checkpoint", "--now"]).ok();
    let folder = world.path("tables/packs");
    assert!(archives(&folder, "car").is_empty());
    let all = archives(&folder, "parquet");
    let bytes: u64 = all.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!((3_000_000..5_000_000).contains(&bytes), "{bytes}");
    let before = snapshot(&mount.at);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    // All but the tables is lost.
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", &url, "--volume", &volume.text()]).ok();
    let mount = volume.mount();
    let after = snapshot(&mount.at);
    assert_eq!(crate::support::difference(&before, &after), Vec::<String>::new());
    // Compression is of the place: CIDs are as they were.
    for (name, id) in ["text", "noise"].iter().zip(ids) {
        assert_eq!(world.cairn(&["cid", &mount.text(name)]).ok().stdout, id);
    }
    mount.umount().ok();
}

#[test]
fn damage_in_an_archive_is_found_and_mended_from_elsewhere() {
    damage_is_mended("car");
}

#[test]
fn damage_in_a_table_is_found_and_mended_from_elsewhere() {
    damage_is_mended("parquet");
}

fn damage_is_mended(form: &str) {
    let Some(world) = World::mountable("packs::damage") else { return };
    let url = world.archives_url(form, "archives");
    // What does not compress is found in each of them.
    let content = |n: u32, len: usize| Random::new(u64::from(n) + 1).bytes(len);
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
    let (path, at) = archives(&folder, form)
        .into_iter()
        .find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(wanted.len()).position(|part| part == wanted)?;
            Some((path, at))
        })
        .unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let other = [wanted[5000] ^ 1];
    std::os::unix::fs::FileExt::write_all_at(&file, &other, at as u64 + 5000).unwrap();
    let verify = || world.cairn(&["pin", "verify", &mount.text(""), "--wait"]);
    let found = verify();
    eprintln!("{}{}", found.stdout, found.stderr);
    wait_until("it is mended", || verify().code == 0 && settled(&volume));
    // The good copy is in another archive now.
    let good = archives(&folder, form)
        .into_iter()
        .filter(|other| *other != path)
        .any(|path| fs::read(path).unwrap().windows(wanted.len()).any(|part| part == wanted));
    assert!(good, "no other archive has it");
    let largest = || {
        let all = archives(&folder, form).into_iter();
        all.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    };
    // The end of one goes, and with it what other tools, or all of them, look for.
    let file = fs::File::options().write(true).open(largest()).unwrap();
    file.set_len(file.metadata().unwrap().len() - 40).unwrap();
    wait_until("its blocks are found", || verify().code == 0 && settled(&volume));
    // A whole archive goes.
    fs::remove_file(largest()).unwrap();
    let found = verify();
    eprintln!("{}{}", found.stdout, found.stderr);
    wait_until("it is mended", || {
        verify().code == 0 && settled(&volume) && copies_at(&volume, "archives") == 30
    });
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
