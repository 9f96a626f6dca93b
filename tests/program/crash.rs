//! `kill -9` of the daemon in the middle of a copy.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::World;

/// Rounds; `CAIRN_TEST_KILLS=50` for the long run.
fn rounds() -> u64 {
    std::env::var("CAIRN_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

fn bytes_of(round: u64, number: u64) -> Vec<u8> {
    let len = (number * 37_813 % 2_500_000) as usize + 1;
    let seed = round * 1_000_003 + number;
    (0..len as u64).map(|i| ((i.wrapping_mul(seed | 1)) >> 7) as u8).collect()
}

#[test]
fn after_each_kill_the_mount_works_what_was_synced_is_there_and_fsck_is_clean() {
    let Some(world) = World::mountable("crash::after_each_kill") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2,level=LOCAL_DURABILITY,wait_on=fsync");
    let mut acknowledged: Vec<(u64, u64)> = Vec::new();
    for round in 0..rounds() {
        let mount = volume.mount();
        let stop = AtomicBool::new(false);
        let (synced, done) = channel();
        std::thread::scope(|scope| {
            let (mount, stop) = (&mount, &stop);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    // Errors after the kill are what a dead mount answers.
                    let Ok(mut file) = File::create(mount.path(&format!("{round}-{number}")))
                    else {
                        return;
                    };
                    if file.write_all(&bytes_of(round, number)).is_err() {
                        return;
                    }
                    if number % 3 == 0 && file.sync_all().is_ok() {
                        synced.send(number).unwrap_or(());
                    }
                }
            });
            // Some files are acknowledged before the blow, however slow the disk.
            for _ in 0..=(round % 5) {
                acknowledged.push((round, done.recv_timeout(Duration::from_mins(1)).unwrap()));
            }
            rustix::process::kill_process(mount.pid(), rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Release);
            acknowledged.extend(done.iter().map(|number| (round, number)));
        });
        mount.kill_leftovers();
        let mount = volume.mount();
        for (round, number) in &acknowledged {
            let path = mount.path(&format!("{round}-{number}"));
            let back = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(back == bytes_of(*round, *number), "{} is not what was synced", path.display());
        }
        // Files that were not synced are whole or older, never torn: they can be read.
        for entry in fs::read_dir(&mount.at).unwrap() {
            fs::read(entry.unwrap().path()).unwrap();
        }
        fs::write(mount.path(&format!("works-{round}")), b"x").unwrap();
        mount.umount();
        volume.cairn(&["fsck", "--deep"]).ok();
    }
}

#[test]
fn a_kill_beside_collections_loses_nothing_that_was_synced() {
    let Some(world) = World::mountable("crash::a_kill_beside_collections") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let settings = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let often = text.replace("collect_interval_s = 3600", "collect_interval_s = 1");
    assert_ne!(often, text);
    fs::write(&settings, often).unwrap();
    let mut last = std::collections::BTreeMap::new();
    for round in 0..rounds() {
        let mount = volume.mount();
        let start = std::time::Instant::now();
        // Beyond some collections, and to another moment of one each time.
        let end = Duration::from_millis(2500 + 170 * round);
        let mut number = 0;
        while start.elapsed() < end {
            let name = format!("file-{}", number % 8);
            let mut file = File::create(mount.path(&name)).unwrap();
            file.write_all(&bytes_of(round, number)).unwrap();
            file.sync_all().unwrap();
            last.insert(name, (round, number));
            number += 1;
        }
        mount.kill();
        let mount = volume.mount();
        for (name, (round, number)) in &last {
            let back = fs::read(mount.path(name)).unwrap();
            assert!(back == bytes_of(*round, *number), "{name} is not what was synced");
        }
        mount.umount().ok();
        volume.cairn(&["fsck", "--deep"]).ok();
    }
    let log = fs::read_to_string(volume.dir.join("daemon.log")).unwrap();
    assert!(log.contains("collected"), "nothing was ever collected");
}

#[test]
fn a_dead_mount_is_cleared_by_umount_and_by_the_next_mount() {
    let Some(world) = World::mountable("crash::a_dead_mount") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    kill_only(&mount);
    world.cairn(&["umount", mount.at.to_str().unwrap()]).ok();
    mount.forget();
    let mount = volume.mount();
    // The kernel forgets the root's attributes, and would have to ask for them.
    fs::create_dir(mount.path("new")).unwrap();
    kill_only(&mount);
    assert!(fs::metadata(&mount.at).is_err());
    volume.cairn(&["mount", mount.at.to_str().unwrap()]).ok();
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"x");
}

fn kill_only(mount: &crate::support::Mount<'_>) {
    let pid = mount.pid();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // Never answered from a cache. What the death cuts off is ECONNABORTED.
    crate::support::wait_until("the mount is dead", || {
        rustix::fs::statvfs(&mount.at).is_err_and(|errno| errno == rustix::io::Errno::NOTCONN)
    });
}

/// Says what a call on a handle of a dead mount answers.
fn errno(result: std::io::Result<()>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

const ENOTCONN: i32 = 107;

#[test]
fn a_handle_of_a_dead_mount_never_says_that_lost_bytes_are_there() {
    let Some(world) = World::mountable("crash::a_handle_of_a_dead_mount") else { return };
    for policy in ["level=QUORUM,wait_on=fsync", "level=LOCAL_DURABILITY,wait_on=fsync"] {
        let volume = world.volume(&[], &format!("min=1,target=1,max=1,{policy}"));
        let mount = volume.mount();
        let mut file = File::create(mount.path("file")).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        file.write_all(b" and lost").unwrap();
        let other = File::options().write(true).open(mount.path("file")).unwrap();
        let directory = File::open(&mount.at).unwrap();
        kill_only(&mount);
        for handle in [&file, &other, &directory, &file] {
            assert_eq!(errno(handle.sync_all()), ENOTCONN);
            assert_eq!(errno(handle.sync_data()), ENOTCONN);
        }
        assert_eq!(errno(file.write_all(b"more")), ENOTCONN);
        // A new mount in the same place does not bring them back.
        let at = mount.at.to_str().unwrap().to_owned();
        volume.cairn(&["mount", &at]).ok();
        assert_eq!(errno(file.sync_all()), ENOTCONN);
        assert_eq!(errno(other.sync_data()), ENOTCONN);
        let found = fs::read(mount.path("file")).unwrap();
        assert!(found.starts_with(b"synced"), "{found:?}");
        drop((file, other, directory));
        mount.umount().ok();
        fs::remove_dir_all(&volume.dir).unwrap();
    }
}

#[test]
fn a_mapping_of_a_dead_mount_never_says_that_lost_bytes_are_there() {
    let Some(world) = World::mountable("crash::a_mapping_of_a_dead_mount") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("file"), vec![b'a'; 8192]).unwrap();
    let program = "import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0)
m[0:6] = b'synced'
m.flush()
m[4096:4102] = b'is lost'[:6]
print('dirty', flush=True)
sys.stdin.readline()
for n in range(2):
    try:
        m.flush()
        print('flushed', flush=True)
    except OSError as e:
        print('errno', e.errno, flush=True)
";
    let mut python = world.command("python3");
    python.arg("-c").arg(program).arg(mount.path("file"));
    python.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let Ok(mut child) = python.spawn() else {
        return crate::support::skip("crash::a_mapping_of_a_dead_mount", "there is no python3");
    };
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "dirty\n");
    kill_only(&mount);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    child.wait().unwrap();
    assert!(!rest.contains("flushed") && rest.contains("errno"), "{rest}");
    volume.cairn(&["mount", mount.at.to_str().unwrap()]).ok();
    assert_eq!(fs::read(mount.path("file")).unwrap()[..6], *b"synced");
}

#[test]
fn a_mount_that_was_detached_lazily_keeps_its_promises_to_open_files() {
    let Some(world) = World::mountable("crash::a_mount_that_was_detached") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let mut file = File::create(mount.path("file")).unwrap();
    file.write_all(b"before").unwrap();
    let pid = mount.pid();
    crate::support::detach(&mount.at);
    assert!(!mount.path("file").exists());
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    // The daemon serves it until it is closed; killed before that, it says so.
    file.write_all(b" and lost").unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let errno = errno(file.sync_all());
    assert!([ENOTCONN, 103].contains(&errno), "{errno}");
    mount.kill_leftovers();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"before and after");
    let mut file = File::create(mount.path("file")).unwrap();
    crate::support::detach(&mount.at);
    file.write_all(b"whole").unwrap();
    drop(file);
    let dir = volume.dir.clone();
    crate::support::wait_until("the daemon has ended", || {
        let lock = File::open(dir.join("lock")).unwrap();
        let how = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&lock, how).is_ok()
    });
    mount.forget();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"whole");
}
