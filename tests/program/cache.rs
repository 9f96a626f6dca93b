//! The local store as a cache: it keeps what backends have within a budget, and lets
//! go of nothing that they are not proven to have.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::damage::{files, flip};
use crate::support::{Mount, Volume, World, run, wait_until};

const MIB: u64 = 1 << 20;
/// What a store may take beyond its budget while it only reads: a pack's reserve, and
/// what is on its way.
const SLACK: u64 = 16 * MIB;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut data = vec![0; len];
    random.fill(&mut data);
    data
}

/// What a folder takes on its disk.
fn taken(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut sum = 0;
    for entry in entries.filter_map(Result::ok) {
        // It may go meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        sum += if meta.is_dir() { taken(&entry.path()) } else { meta.blocks() * 512 };
    }
    sum
}

fn blocks_taken(volume: &Volume<'_>) -> u64 {
    let store = volume.dir.join("store");
    taken(&store.join("packs")) + taken(&store.join("segments"))
}

/// A volume whose local store is a cache, by the words of `cairn init`.
fn cache<'w>(world: &'w World, backends: &[&str], policy: &str, size: &str) -> Volume<'w> {
    let volume = Volume { world, dir: world.path("volume") };
    let mut words = vec!["init", "--policy", policy, "--local-role", "cache", "--cache-size", size];
    let urls: Vec<String> = backends.iter().map(|name| world.backend_url(name)).collect();
    for url in &urls {
        words.extend(["--backend", url]);
    }
    volume.cairn(&words).ok();
    volume
}

fn local(volume: &Volume<'_>) -> Value {
    volume.status()["backends"][0].clone()
}

/// Files in `source` and in the mount, 4 MiB each.
fn write(source: &Path, mount: &Mount<'_>, count: u64) {
    fs::create_dir_all(source).unwrap();
    for n in 0..count {
        let data = bytes(n, 4 << 20);
        fs::write(source.join(format!("f{n}")), &data).unwrap();
        fs::write(mount.path(&format!("f{n}")), &data).unwrap();
    }
}

/// `rsync` finds no difference of contents.
fn same(world: &World, source: &Path, mount: &Mount<'_>) {
    let mut command = world.command("rsync");
    command.args(["-rnc", "--itemize-changes", "--delete"]);
    command.arg(format!("{}/", source.display())).arg(format!("{}/", mount.at.display()));
    let found = run(command, Duration::from_mins(3)).ok();
    assert_eq!(found.stdout, "", "{found:?}");
}

fn until_settled(volume: &Volume<'_>) {
    wait_until("all is there and proven", || {
        let status = volume.status();
        status["queue"]["pending"] == 0 && status["pins"]["unverified"] == 0
    });
}

#[test]
fn a_cache_holds_a_quarter_and_serves_all_within_its_budget() {
    let Some(world) = World::mountable("cache::quarter") else { return };
    let volume = cache(&world, &["b", "c"], "min=2,target=2,max=2", "64MiB");
    let mount = volume.mount();
    let source = world.path("source");
    write(&source, &mount, 64);
    until_settled(&volume);
    wait_until("the cache is within its budget", || blocks_taken(&volume) <= 64 * MIB);
    let shown = local(&volume);
    assert_eq!((&shown["role"], &shown["copies"]), (&"cache".into(), &0.into()), "{shown}");
    assert_eq!(shown["cache"]["budget_bytes"], 64 * MIB, "{shown}");
    let status = volume.status();
    assert_eq!(status["places"], 2);
    assert!(status["checkpoint"]["copies"].as_u64() <= Some(2), "{status}");
    // The kernel's cache has what was just written.
    mount.umount().ok();
    let mount = volume.mount();
    // Four times the budget is read, in order, and stays within it.
    let over = std::sync::atomic::AtomicU64::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_keep, never) = std::sync::mpsc::channel::<()>();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                over.fetch_max(blocks_taken(&volume), std::sync::atomic::Ordering::Relaxed);
                never.recv_timeout(Duration::from_millis(20)).unwrap_or(());
            }
        });
        same(&world, &source, &mount);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let most = over.into_inner();
    assert!(most <= 64 * MIB + SLACK, "{} MiB", most / MIB);
    let stats = volume.cairn(&["stats"]).ok().stdout;
    let counter = |name: &str| -> u64 {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {stats}")).trim().parse().unwrap()
    };
    assert!(counter("cairn_store_cache_evicted_bytes_total") >= 192 * MIB);
    assert!(counter("cairn_store_cache_filled_bytes_total") >= 64 * MIB);
    assert!(counter("cairn_store_block_misses_total") > 0);
    assert_eq!(counter("cairn_replication_repairs_total"), 0, "what is brought is no repair");
    assert_eq!(counter("cairn_store_cache_budget_bytes"), 64 * MIB);
    let copies = world.cairn(&["--json", "info", &mount.text("f0")]).ok().stdout;
    assert!(!copies.contains("\"local\""), "{copies}");
    let loss = volume.cairn(&["--json", "simulate-loss", "local"]).ok().json();
    assert_eq!(loss["lost"]["contents"], 0, "{loss}");
    // A part of a file that is not here is changed, and what nobody has goes.
    let mut changed = bytes(3, 4 << 20);
    changed[2 << 20..(2 << 20) + 5].copy_from_slice(b"there");
    for at in [source.join("f3"), mount.path("f3")] {
        let file = fs::File::options().write(true).open(at).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"there", 2 << 20).unwrap();
        file.sync_all().unwrap();
    }
    assert!(fs::read(mount.path("f3")).unwrap() == changed);
    for at in [source.join("f4"), mount.path("f4")] {
        fs::remove_file(at).unwrap();
    }
    volume.cairn(&["gc", "--run"]).ok();
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    let mount = volume.mount();
    same(&world, &source, &mount);
    mount.umount().ok();
    // The disk with the cache is lost: nothing is.
    fs::remove_dir_all(&volume.dir).unwrap();
    let from = world.backend_url("c");
    let words = ["recover", "--from", &from, "--local-role", "cache", "--cache-size", "32MiB"];
    volume.cairn(&[&words[..], &["--full"]].concat()).fails(2, &["which a cache does not keep"]);
    volume.cairn(&words).ok();
    assert_eq!(local(&volume)["role"], "cache");
    let mount = volume.mount();
    same(&world, &source, &mount);
    wait_until("the new cache is within its budget", || blocks_taken(&volume) <= 32 * MIB);
    mount.umount().ok();
}

#[test]
fn while_the_backend_is_away_writes_go_on_and_nothing_unproven_goes() {
    let Some(world) = World::mountable("cache::away") else { return };
    let policy = "min=1,target=1,max=1,level=SINGLE,wait_on=fsync,on_degraded=queue";
    let volume = cache(&world, &["b"], policy, "16MiB");
    let settings = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("alarm_after_s = 60", "alarm_after_s = 1")).unwrap();
    let alarm = || {
        let status = volume.status();
        let alarms = status["alarms"].as_array().unwrap().clone();
        alarms.into_iter().find(|alarm| alarm["subject"] == "cache")
    };
    let mount = volume.mount();
    let (source, place) = (world.path("source"), world.path("b"));
    fs::rename(&place, world.path("away")).unwrap();
    write(&source, &mount, 12);
    volume.cairn(&["heal"]);
    wait_until("it says what it waits for", || {
        let shown = local(&volume);
        let cache = &shown["cache"];
        cache["stuck"] == true && cache["waits_for_copies_bytes"].as_u64() >= Some(48 * MIB)
    });
    let shown = local(&volume);
    let why = shown["cache"]["above_budget"].as_str().unwrap();
    assert!(why.contains("wait for copies at backends"), "{why}");
    let text = volume.cairn(&["status"]).ok().stdout;
    assert!(text.contains("writes go on") && text.contains("up to 16.0 MiB"), "{text}");
    wait_until("it is an alarm", || alarm().is_some());
    assert!(alarm().unwrap().to_string().contains("wait for copies"), "{:?}", alarm());
    assert!(blocks_taken(&volume) >= 48 * MIB);
    same(&world, &source, &mount);
    // Nor does a crash lose any of it.
    mount.kill();
    // As a replica it has all of it again, without any backend.
    let mount = volume.mount_with(&["--local-role", "replica"]);
    wait_until("what is only here counts", || {
        let status = volume.status();
        status["backends"][0]["copies"] == 12 && status["pins"]["at_target"] == 12
    });
    mount.kill();
    let mount = volume.mount_with(&["--local-role", "cache"]);
    same(&world, &source, &mount);
    let loss = volume.cairn(&["--json", "simulate-loss", "local"]).ok().json();
    assert_eq!(loss["lost"]["contents"], 12, "{loss}");
    fs::rename(world.path("away"), &place).unwrap();
    volume.cairn(&["backend", "recover", "b", "--wait"]);
    wait_until("the cache drains", || blocks_taken(&volume) <= 16 * MIB);
    wait_until("the alarm is over", || alarm().is_none());
    same(&world, &source, &mount);
    volume.cairn(&["backend", "remove", "b"]).fails(5, &["the local store is a cache"]);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn the_role_is_changed_both_ways_and_the_engine_follows() {
    let Some(world) = World::mountable("cache::both_ways") else { return };
    let volume = world.volume(&["b", "c"], "min=2,target=2,max=3");
    let mount = volume.mount();
    let source = world.path("source");
    write(&source, &mount, 12);
    until_settled(&volume);
    mount.umount().ok();
    // Read-only the rows stay as they are, which say that all is here: nothing goes.
    let mount =
        volume.mount_with(&["--local-role", "cache", "--cache-size", "16MiB", "--read-only"]);
    same(&world, &source, &mount);
    assert!(local(&volume)["cache"].is_null() && blocks_taken(&volume) >= 48 * MIB);
    mount.umount().ok();
    // The local copy was one of two: another one is made before anything goes.
    let mount = volume.mount_with(&["--local-role", "cache", "--cache-size", "16MiB"]);
    wait_until("the copies are elsewhere", || {
        let status = volume.status();
        let at = |n: usize| status["backends"][n]["copies"].as_u64().unwrap();
        (at(0), at(1), at(2)) == (0, 12, 12)
    });
    wait_until("the cache is within its budget", || blocks_taken(&volume) <= 16 * MIB);
    same(&world, &source, &mount);
    let events = volume.cairn(&["events", "--kind", "local_role"]).ok().stdout;
    assert!(events.contains("a cache now"), "{events}");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    let mount = volume.mount_with(&["--local-role", "replica"]);
    wait_until("all is here again", || {
        let shown = local(&volume);
        shown["copies"] == 12 && shown["role"] == "replica" && shown["cache"].is_null()
    });
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
    for name in ["b", "c"] {
        fs::remove_dir_all(world.path(name)).unwrap();
    }
    let mount = volume.mount();
    same(&world, &source, &mount);
    drop(mount);
}

#[test]
fn a_crash_amid_an_eviction_loses_nothing() {
    let Some(world) = World::mountable("cache::crash") else { return };
    let volume = cache(&world, &["b"], "min=1,target=1,max=1", "16MiB");
    let source = world.path("source");
    // Of large files a part goes, of small ones all.
    for (round, (point, count, size)) in [
        ("replication.evict.begun", 40, 2 << 20),
        ("replication.evict.decided:2", 40, 2 << 20),
        ("store.collect.dropped", 40, 2 << 20),
        ("store.collect.persisted:2", 40, 2 << 20),
        ("store.collect.punched", 6, 24 << 20),
        ("store.collect.removed:2", 40, 2 << 20),
    ]
    .into_iter()
    .enumerate()
    {
        let at = world.make_dir("mnt");
        let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
        command.arg("mount").arg(&at).arg("--volume").arg(&volume.dir);
        command.env("CAIRN_CRASH_AT", point);
        let begun = run(command, Duration::from_mins(1)).code == 0;
        let mount = volume.mounted();
        fs::create_dir_all(&source).unwrap();
        let mut acknowledged = Vec::new();
        for n in 0..count {
            if !begun {
                break;
            }
            let (name, data) = (format!("r{round}-{n}"), bytes(round as u64 * 100 + n, size));
            let written = fs::File::create(mount.path(&name)).and_then(|mut file| {
                std::io::Write::write_all(&mut file, &data)?;
                file.sync_all()
            });
            if written.is_err() {
                break;
            }
            acknowledged.push((name, data));
        }
        wait_until("it is dead", || {
            fs::metadata(mount.path("nothing")).is_err_and(|e| {
                // ENOTCONN, ECONNABORTED
                matches!(e.raw_os_error(), Some(107 | 103))
            })
        });
        mount.kill_leftovers();
        let log = fs::read_to_string(volume.dir.join("daemon.log")).unwrap();
        assert!(log.contains(&format!("killed at {}", point.split(':').next().unwrap())), "{log}");
        for (name, data) in acknowledged {
            fs::write(source.join(name), data).unwrap();
        }
        let mount = volume.mount();
        for entry in fs::read_dir(&source).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let (here, there) = (fs::read(source.join(&name)), fs::read(mount.path(&name)));
            assert!(here.unwrap() == there.unwrap(), "{point}: {name}");
        }
        mount.umount().ok();
        volume.cairn(&["fsck", "--deep"]).ok();
    }
}

#[test]
fn a_backend_with_the_last_copies_that_can_be_read_is_removed_by_force_alone() {
    let Some(world) = World::mountable("cache::last") else { return };
    let volume = cache(&world, &["b", "c"], "min=1,target=2,max=2", "16MiB");
    volume.probe_often();
    let mount = volume.mount();
    write(&world.path("source"), &mount, 2);
    volume.cairn(&["sync"]).ok();
    until_settled(&volume);
    fs::rename(world.path("c"), world.path("away")).unwrap();
    wait_until("c is away", || volume.status()["backends"][2]["state"] == "down");
    let why = ["last verified copy of 2 contents", "/f0", "/f1", "--force"];
    volume.cairn(&["backend", "remove", "b"]).fails(5, &why);
    let gone = volume.cairn(&["--json", "backend", "remove", "b", "--force"]).ok().json();
    assert_eq!(gone["last_copies_given_up"], 2, "{gone}");
    let mut paths: Vec<&str> =
        gone["given_up_paths"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/f0", "/f1"]);
    assert_eq!(gone["given_up_cids"].as_array().unwrap().len(), 2, "{gone}");
    world.cairn(&["umount", "--force", mount.at.to_str().unwrap()]);
    mount.forget();
}

#[test]
fn a_copy_that_a_reader_finds_bad_is_read_back_recorded_and_mended() {
    let Some(world) = World::mountable("cache::reader") else { return };
    let volume = Volume { world: &world, dir: world.path("volume") };
    // Reading from c costs, so that b is asked first.
    let (b, c) = (world.backend_url("b"), format!("{}&price_gb_out=1", world.backend_url("c")));
    let policy = "min=1,target=2,max=2,strategy=cost";
    let cache = ["--local-role", "cache", "--cache-size", "16MiB"];
    let mut words = vec!["init", "--policy", policy, "--backend", &b, "--backend", &c];
    words.extend(cache);
    volume.cairn(&words).ok();
    let mount = volume.mount();
    let source = world.path("source");
    write(&source, &mount, 12);
    volume.cairn(&["sync"]).ok();
    until_settled(&volume);
    wait_until("the cache drains", || blocks_taken(&volume) <= 16 * MIB);
    let mut large = files(&world.path("b/blocks"));
    large.retain(|path| fs::metadata(path).unwrap().len() >= MIB);
    for (n, path) in large.iter().enumerate() {
        match n % 4 {
            0 => fs::remove_file(path).unwrap(),
            1 => flip(path),
            _ => {}
        }
    }
    // Nothing of them is in the kernel's pages any more.
    mount.umount().ok();
    let mount = volume.mount();
    same(&world, &source, &mount);
    let told = |kind: &str| {
        let events = volume.cairn(&["--json", "events", "--kind", kind]).ok().stdout;
        events.contains(r#""backend":"b""#)
    };
    wait_until("it is recorded", || told("copy_repaired"));
    assert!(told("copy_corrupt") || told("copy_lost"));
    // What nobody read is found by reading it all; in the end every block is right.
    let verify =
        ["--json", "pin", "verify", mount.at.to_str().unwrap(), "--backend", "b", "--wait"];
    world.cairn(&verify);
    wait_until("all is mended", || {
        let found = world.cairn(&verify).ok().json();
        found["repaired"] == 0 && found["verified"] == 12
    });
    mount.umount().ok();
}

#[test]
fn a_cache_without_backends_or_size_is_refused_with_what_to_do() {
    let world = World::new();
    let init = |words: &[&str]| {
        let mut all = vec!["init", "--volume", "volume"];
        all.extend_from_slice(words);
        world.cairn(&all)
    };
    init(&["--local-role", "cache"]).fails(2, &["this volume has none", "--backend URL"]);
    init(&["--local-role", "disk"]).fails(2, &["use replica or cache"]);
    let url = world.backend_url("b");
    init(&["--backend", &url, "--cache-size", "1GiB"]).fails(2, &["say --local-role cache"]);
    init(&["--backend", &url, "--local-role", "cache", "--cache-size", "1MiB"])
        .fails(2, &["at least 16.0 MiB"]);
    // It can be made with fewer backends than the policy's min, and says what that means.
    let made = init(&["--backend", &url, "--local-role", "cache", "--policy", "min=2,target=2"]);
    let made = made.ok();
    let said = format!("{}{}", made.stdout, made.stderr);
    assert!(said.contains("nothing leaves the cache") && said.contains("backend add"), "{said}");
    let shown = world.cairn(&["--json", "config", "show", "--volume", "volume"]).ok().stdout;
    assert!(shown.contains("\"store.role\"") && shown.contains("\"cache\""), "{shown}");
}
