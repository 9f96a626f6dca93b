//! The end of a mount: what is pending is said, and nothing lingers.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::{World, run, wait_until};

#[test]
fn an_unmount_says_what_waits_and_where_and_force_leaves_it_queued() {
    let Some(world) = World::mountable("ending::an_unmount_says") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    fs::write(mount.path("whole"), b"copied").unwrap();
    wait_until("the first is copied", || volume.status()["queue"]["pending"] == 0);
    fs::rename(world.path("b"), world.path("away")).unwrap();
    fs::create_dir(mount.path("folder")).unwrap();
    for name in ["folder/one", "two"] {
        fs::write(mount.path(name), name).unwrap();
    }
    let at = mount.at.to_str().unwrap();
    let stuck = world.cairn(&["umount", at]);
    let words = ["2 contents", "b (down", "/folder/one", "/two", "--force", "waiting: "];
    stuck.fails(4, &words);
    assert_eq!(fs::read(mount.path("two")).unwrap(), b"two", "it is mounted still");
    let forced = world.cairn(&["--json", "umount", "--force", at]).ok().json();
    mount.forget();
    assert_eq!(forced["pending"], 2, "{forced}");
    assert_eq!(forced["files"].as_array().unwrap().len(), 2, "{forced}");
    assert!(forced["waiting_for"][0].as_str().unwrap().starts_with("b (down"), "{forced}");
    fs::rename(world.path("away"), world.path("b")).unwrap();
    let mount = volume.mount();
    wait_until("the next mount goes on", || volume.status()["queue"]["pending"] == 0);
    mount.umount().ok();
}

#[test]
fn a_daemon_that_is_told_to_stop_ends_although_a_file_is_open() {
    let Some(world) = World::mountable("ending::a_daemon_that_is_told") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let mut file = File::create(mount.path("open")).unwrap();
    file.write_all(b"so far").unwrap();
    let (pid, start) = (mount.pid(), Instant::now());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    mount.forget();
    let ended = || rustix::process::test_kill_process(pid).is_err();
    for _ in 0..3 {
        if !ended() {
            wait_a_third_of_a_minute(&ended);
        }
    }
    assert!(ended(), "it lingers for {:?}", start.elapsed());
    assert!(file.write_all(b"more").and_then(|()| file.sync_all()).is_err(), "it is cut off");
    drop(file);
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("open")).unwrap(), b"so far");
    mount.umount().ok();
}

fn wait_a_third_of_a_minute(so: &dyn Fn() -> bool) {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    let start = Instant::now();
    while !so() && start.elapsed() < Duration::from_secs(20) {
        never.recv_timeout(Duration::from_millis(50)).unwrap_or(());
    }
}

#[test]
fn a_checkpoint_without_now_is_the_next_of_the_interval() {
    let Some(world) = World::mountable("ending::a_checkpoint_without_now") else { return };
    let volume = world.volume(&["b"], "min=1,target=1,max=1");
    let text = fs::read_to_string(volume.dir.join("cairn.toml")).unwrap();
    let set = |interval: u32| {
        let line = format!("delta_interval_s = {interval}");
        fs::write(volume.dir.join("cairn.toml"), text.replace("delta_interval_s = 30", &line))
            .unwrap();
    };
    set(2);
    let mount = volume.mount();
    fs::write(mount.path("a"), b"a").unwrap();
    let first = volume.cairn(&["--json", "checkpoint"]).ok().json();
    assert!(first["sequence"].as_u64().unwrap() > 0);
    // Nothing has changed: what is there is the answer, at once.
    let again = volume.cairn(&["--json", "checkpoint"]).ok().json();
    assert_eq!(again["sequence"], first["sequence"]);
    mount.umount().ok();
    set(3600);
    let mount = volume.mount();
    fs::write(mount.path("b"), b"b").unwrap();
    let start = Instant::now();
    volume.cairn(&["checkpoint", "--now"]).ok();
    assert!(start.elapsed() < Duration::from_mins(1));
    mount.umount().ok();
}

#[test]
fn a_mount_or_a_verb_right_after_umount_waits_for_the_last_daemon_to_end() {
    let Some(world) = World::mountable("ending::right_after_umount") else { return };
    let volume = world.volume(&["b"], "level=LOCAL_DURABILITY,min=1,target=2,max=2");
    for round in 0..5u32 {
        let mount = volume.mount();
        for number in 0..round {
            let text = fs::read_to_string(mount.path(&number.to_string())).unwrap();
            assert_eq!(text, number.to_string());
        }
        fs::write(mount.path("much"), vec![round as u8; 4 << 20]).unwrap();
        fs::write(mount.path(&round.to_string()), round.to_string()).unwrap();
        // Not `cairn umount`, which waits until the daemon is gone.
        let program = if rustix::process::geteuid().is_root() { "umount" } else { "fusermount3" };
        let flags: &[&str] = if program == "umount" { &[] } else { &["-u"] };
        let mut command = world.command(program);
        command.args(flags).arg(&mount.at);
        run(command, Duration::from_secs(30)).ok();
        mount.forget();
        if round % 2 == 1 {
            let problems = volume.cairn(&["--json", "fsck"]).ok().json();
            assert_eq!(problems["remaining"], 0, "{problems}");
        }
    }
}

#[test]
fn stats_say_what_an_operator_wants_to_know() {
    let Some(world) = World::mountable("ending::stats_say") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    fs::write(mount.path("file"), vec![1; 3 << 20]).unwrap();
    let mut open = File::create(mount.path("open")).unwrap();
    open.write_all(&vec![2; 100_000]).unwrap();
    volume.cairn(&["checkpoint", "--now"]).ok();
    wait_until("all is copied", || volume.status()["queue"]["pending"] == 0);
    let value = |name: &str| -> f64 {
        let text = volume.cairn(&["stats"]).ok().stdout;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let is_set = [
        "cairn_store_used_bytes",
        "cairn_store_available_bytes",
        "cairn_store_capacity_bytes",
        "cairn_store_written_bytes_total",
        "cairn_store_syncs_total",
        "cairn_store_pack_appends_total",
        "cairn_vfs_open_files",
        "cairn_checkpoint_writes_total",
        "cairn_checkpoint_written_bytes_total",
        "cairn_checkpoint_write_seconds_count",
        "cairn_checkpoint_copies",
        "cairn_replication_sent_contents_total",
    ];
    for name in is_set {
        assert!(value(name) > 0.0, "{name}");
    }
    drop(open);
    // Another process: each program that this one starts closes what it inherits,
    // and a close commits.
    let mut writer = world
        .command("dd")
        .args(["bs=5000", "iflag=fullblock", &format!("of={}", mount.text("other"))])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = writer.stdin.take().unwrap();
    pipe.write_all(&[3; 5000]).unwrap();
    wait_until("dirty bytes are seen", || value("cairn_vfs_dirty_bytes") > 0.0);
    drop(pipe);
    assert!(writer.wait().unwrap().success());
    wait_until("the file is closed", || value("cairn_vfs_open_files") == 0.0);
    wait_until("nothing is dirty", || value("cairn_vfs_dirty_bytes") == 0.0);
    // A backend that goes away, with something to copy.
    fs::rename(world.path("b"), world.path("away")).unwrap();
    fs::write(mount.path("later"), b"x").unwrap();
    wait_until("it is seen", || value("cairn_replication_backends_away") > 0.0);
    assert!(value("cairn_replication_queue_items") > 0.0);
    assert!(value("cairn_replication_pins_below_target") > 0.0);
    fs::rename(world.path("away"), world.path("b")).unwrap();
    wait_until("it is back", || value("cairn_replication_queue_items") == 0.0);
    mount.umount().ok();
    // A local block that is bad: read from the other copy, and repaired.
    let segments = walk(&volume.dir.join("store/segments"));
    let segment = segments.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(segment).unwrap();
    bytes[1000] ^= 1;
    fs::write(segment, bytes).unwrap();
    let mount = volume.mount();
    assert!(fs::read(mount.path("file")).unwrap() == vec![1; 3 << 20]);
    assert!(value("cairn_store_corrupt_blocks_total") > 0.0);
    assert!(value("cairn_store_verified_blocks_total") > 0.0);
    assert!(value("cairn_replication_repairs_total") > 0.0);
    assert!(value("cairn_replication_fetched_blocks_total") > 0.0);
    mount.umount().ok();
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

/// How a mount comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Umount,
    Helper,
    Lazy,
    Force,
    Term,
    Kill,
    Abort,
    Suspend,
}

#[test]
fn however_a_mount_ends_amid_writes_the_volume_mounts_again_whole() {
    use Way::{Abort, Force, Helper, Kill, Lazy, Suspend, Term, Umount};
    let Some(world) = World::mountable("ending::however_a_mount_ends") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let is_root = rustix::process::geteuid().is_root();
    for way in [Umount, Helper, Lazy, Force, Term, Kill, Abort, Suspend] {
        if !is_root && matches!(way, Umount | Lazy | Force | Abort) {
            continue;
        }
        let mount = volume.mount();
        let (pid, at) = (mount.pid(), mount.at.clone());
        let name = format!("{way:?}");
        let mut synced = File::create(mount.path(&name)).unwrap();
        synced.write_all(name.as_bytes()).unwrap();
        synced.sync_all().unwrap();
        drop(synced);
        let script = format!(
            "n=0; while n=$((n+1)); do echo line $n >>{0}-log || exit; echo $n >{0}-$((n % 9)) || exit; done",
            mount.text(&name)
        );
        let mut writer = world
            .command("sh")
            .args(["-c", &script])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let log = mount.path(&format!("{way:?}-log"));
        wait_until("it writes", || fs::metadata(&log).is_ok_and(|meta| meta.len() > 100));
        let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
        let run = |program: &str, words: &[&str]| {
            let mut command = world.command(program);
            command.args(words).arg(&at).output().unwrap().status.success()
        };
        match way {
            // Busy with the writer's files from time to time.
            Umount => wait_until("it is unmounted", || run("umount", &[])),
            Helper => wait_until("it is unmounted", || run("fusermount3", &["-u"])),
            Lazy => assert!(run("umount", &["-l"])),
            Force => wait_until("it is unmounted", || run("umount", &["-f"])),
            Term => signal(rustix::process::Signal::TERM),
            Kill => signal(rustix::process::Signal::KILL),
            Abort => {
                let device = rustix::fs::minor(rustix::fs::stat(&at).unwrap().st_dev);
                let control = world.make_dir("connections");
                assert!(
                    world
                        .command("mount")
                        .args(["-t", "fusectl", "fusectl"])
                        .arg(&control)
                        .output()
                        .unwrap()
                        .status
                        .success()
                );
                let aborted = fs::write(control.join(format!("{device}/abort")), "1");
                crate::support::detach(&control);
                aborted.unwrap();
            }
            Suspend => {
                signal(rustix::process::Signal::STOP);
                signal(rustix::process::Signal::CONT);
                let before = fs::metadata(&log).unwrap().len();
                wait_until("it goes on", || fs::metadata(&log).unwrap().len() > before);
                signal(rustix::process::Signal::TERM);
            }
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        mount.forget();
        wait_until("the daemon is gone", || rustix::process::test_kill_process(pid).is_err());
        // A dead mount that is left is cleared away by the next one.
        let mount = volume.mount();
        assert_eq!(fs::read(mount.path(&name)).unwrap(), name.as_bytes(), "{way:?}");
        let log = fs::read_to_string(mount.path(&format!("{way:?}-log"))).unwrap_or_default();
        for (n, line) in log.lines().enumerate() {
            assert_eq!(line, format!("line {}", n + 1), "{way:?}");
        }
        mount.umount().ok();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(at.to_str().unwrap()), "{way:?} left a mountpoint");
        volume.cairn(&["fsck"]).ok();
    }
}

#[test]
fn sync_and_syncfs_return_at_once_and_promise_nothing() {
    let Some(world) = World::mountable("ending::sync_and_syncfs") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let mut file = File::create(mount.path("file")).unwrap();
    file.write_all(b"staged").unwrap();
    rustix::fs::syncfs(&file).unwrap();
    drop(file);
    mount.umount().ok();
}
