//! A backend whose disk never answers: bindfs, stopped by SIGSTOP.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Volume, World, detach, skip, wait_until};

/// A directory that can be made to hang.
struct Hanging {
    bindfs: Child,
    at: PathBuf,
}

impl Hanging {
    fn new(world: &World, test: &str) -> Option<Self> {
        if Command::new("bindfs").arg("--version").output().is_err() {
            skip(test, "bindfs is not installed");
            return None;
        }
        let (below, at) = (world.make_dir("below"), world.make_dir("hanging"));
        let mut command = Command::new("bindfs");
        let bindfs = command.arg("-f").args([&below, &at]).stdin(Stdio::null()).spawn().unwrap();
        let mounted = || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.contains(&format!(" {} ", at.display()))
        };
        wait_until("bindfs is mounted", mounted);
        Some(Self { bindfs, at })
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.bindfs), signal).unwrap();
    }

    fn hang(&self) {
        self.send(Signal::STOP);
    }

    fn go_on(&self) {
        self.send(Signal::CONT);
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.go_on();
        detach(&self.at);
        self.bindfs.kill().unwrap_or(());
        if let Err(error) = self.bindfs.wait() {
            eprintln!("bindfs: {error}");
        }
    }
}

/// A volume with the backend `b` in a directory that can hang, that waits for it
/// for five minutes, and is probed every `probe` seconds.
fn volume<'w>(world: &'w World, policy: &str, probe: u32) -> Volume<'w> {
    let volume = world.volume(&["hanging/b"], policy);
    let path = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&path).unwrap();
    let set = |text: String, key: &str, value: u32| -> String {
        let line = |line: &str| {
            if line.starts_with(key) { format!("{key} = {value}") } else { line.to_owned() }
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
    };
    let text = set(text, "call_deadline_s", 300);
    let text = set(set(text, "level_deadline_s", 300), "probe_interval_s", probe);
    let text = set(text, "retry_interval_s", probe);
    fs::write(path, text).unwrap();
    volume
}

/// Programs that do not outlive their test.
struct Ended<const N: usize>([Child; N]);

impl<const N: usize> Drop for Ended<N> {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap_or(());
        }
    }
}

/// A program that dies of signals, as one that a shell starts in the foreground.
fn start(world: &World, words: &[&str]) -> Child {
    // `env` undoes what a test runner may ignore.
    let mut command = world.command("env");
    command.arg("--default-signal").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn ends_within(child: &mut Child, most: Duration) -> Option<(Duration, std::process::ExitStatus)> {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    let start = Instant::now();
    while start.elapsed() < most {
        if let Some(status) = child.try_wait().unwrap() {
            return Some((start.elapsed(), status));
        }
        never.recv_timeout(Duration::from_millis(10)).unwrap_or(());
    }
    None
}

fn sleeps(child: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.contains(") S ") || stat.contains(") D ")
}

fn only_child(of: Pid) -> Option<Pid> {
    let of = of.as_raw_nonzero();
    let list = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    list.trim().parse().ok().and_then(Pid::from_raw)
}

fn has_len(path: &Path, len: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() == len)
}

#[test]
fn a_signal_ends_what_waits_for_a_stuck_backend_and_the_bytes_are_kept() {
    let test = "stuck::a_signal_ends_what_waits";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let volume = volume(&world, "min=1,target=2,max=2", 3600);
    let mount = volume.mount();
    let source = world.path("source");
    let bytes: Vec<u8> =
        (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
    fs::write(&source, &bytes).unwrap();
    hanging.hang();
    let mut made = Vec::new();
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let from = source.to_str().unwrap();
        for program in ["cat", "cp", "dd"] {
            let to = mount.path(&format!("{program}-{}", signal.as_raw()));
            let text = to.to_str().unwrap();
            let shell = format!("exec cat {from} > {text}");
            let input = format!("if={from}");
            let output = format!("of={text}");
            let words: &[&str] = match program {
                "cat" => &["sh", "-c", &shell],
                "cp" => &["cp", from, text],
                _ => &["dd", &input, &output, "bs=64k", "conv=fsync"],
            };
            // Each waits for copies of other bytes.
            fs::write(&source, [text.as_bytes(), &bytes[text.len()..]].concat()).unwrap();
            let mut child = start(&world, words);
            wait_until("it has written", || has_len(&to, 200_000) && sleeps(&child));
            assert!(ends_within(&mut child, Duration::from_millis(300)).is_none(), "it waits");
            kill_process(Pid::from_child(&child), signal).unwrap();
            let ended = ends_within(&mut child, Duration::from_secs(20));
            let (took, status) =
                ended.unwrap_or_else(|| panic!("{words:?} goes on after {signal:?}"));
            eprintln!("{program} ended {took:?} after {signal:?}");
            assert!(took < Duration::from_secs(5), "{words:?} ended {took:?} after {signal:?}");
            assert_eq!(status.signal(), Some(signal.as_raw()), "{words:?}: {status:?}");
            made.push((to, fs::read(&source).unwrap()));
        }
    }
    // In a container below its caller has a number that is seen from here.
    if rustix::process::geteuid().is_root() {
        let to = mount.path("container");
        let script = "cp \"$0\" \"$1\"; true";
        let words = ["unshare", "--pid", "--fork", "sh", "-c", script];
        let words: Vec<&str> =
            words.into_iter().chain([source.to_str().unwrap(), to.to_str().unwrap()]).collect();
        let mut child = start(&world, &words);
        wait_until("it has written", || has_len(&to, 200_000));
        let shell = only_child(Pid::from_child(&child)).unwrap();
        let copying = only_child(shell).unwrap();
        assert!(ends_within(&mut child, Duration::from_millis(300)).is_none(), "it waits");
        kill_process(copying, Signal::INT).unwrap();
        let (took, _) = ends_within(&mut child, Duration::from_secs(20)).unwrap();
        assert!(took < Duration::from_secs(5), "{took:?}");
        made.push((to, fs::read(&source).unwrap()));
    } else {
        skip(test, "a pid namespace needs root");
    }
    // Who is interrupted is told so.
    let script = "import os, signal, sys\n\
        signal.signal(signal.SIGTERM, lambda *_: None)\n\
        f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n\
        os.write(f, b'x' * 200000)\n\
        import ctypes, errno\n\
        c = ctypes.CDLL(None, use_errno=True)\n\
        r = c.fsync(f)\n\
        sys.exit(7 if r == -1 and ctypes.get_errno() == errno.EINTR else 1)\n";
    let to = mount.path("told");
    let mut child = start(&world, &["python3", "-c", script, to.to_str().unwrap()]);
    wait_until("it has written", || has_len(&to, 200_000) && sleeps(&child));
    assert!(ends_within(&mut child, Duration::from_millis(300)).is_none());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let (_, status) = ends_within(&mut child, Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(7), "fsync is EINTR, and no success");
    // What is written is there, and gets its copies when the disk answers again.
    for (path, bytes) in &made {
        assert!(fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    hanging.go_on();
    wait_until("all is copied", || volume.status()["queue"]["pending"] == 0);
    mount.umount().ok();
    let mount = volume.mount();
    for (path, bytes) in &made {
        assert!(fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn waiting_closes_hold_up_nothing_else_however_many_they_are() {
    const CLOSES: usize = 300;
    let test = "stuck::waiting_closes_hold_up_nothing";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let volume = volume(&world, "min=1,target=2,max=2", 3600);
    let mount = volume.mount();
    fs::write(mount.path("warm"), b"cached").unwrap();
    hanging.hang();
    // In another process: what this one has open, each program that it starts closes.
    let script = "import os, sys, threading\n\
        os.chdir(sys.argv[1])\n\
        n = int(sys.argv[2])\n\
        files = [os.open(str(i), os.O_WRONLY | os.O_CREAT) for i in range(n)]\n\
        for i in range(n): os.write(files[i], b'bytes of %d' % i)\n\
        for f in files: threading.Thread(target=os.close, args=(f,)).start()\n";
    let count = CLOSES.to_string();
    let words = ["python3", "-c", script, mount.at.to_str().unwrap(), &count];
    let mut closer = start(&world, &words);
    wait_until("all are committed", || volume.status()["queue"]["pending"] == CLOSES);
    let begun = Instant::now();
    for n in 0..CLOSES {
        assert!(fs::metadata(mount.path(&format!("{n}"))).unwrap().len() > 9);
    }
    assert_eq!(fs::read(mount.path("warm")).unwrap(), b"cached");
    assert_eq!(fs::read_dir(&mount.at).unwrap().count(), CLOSES + 1);
    let output = format!("of={}", mount.text("another"));
    let writer = start(&world, &["dd", "if=/dev/zero", &output, "bs=1000000", "count=1"]);
    wait_until("another is written", || has_len(&mount.path("another"), 1_000_000));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(closer.try_wait().unwrap().is_none(), "they still wait");
    let threads = fs::read_dir(format!("/proc/{}/task", mount.pid().as_raw_nonzero())).unwrap();
    assert!(threads.count() < 150, "a wait holds no thread");
    hanging.go_on();
    for mut child in [closer, writer] {
        assert!(ends_within(&mut child, Duration::from_mins(1)).unwrap().1.success());
    }
    wait_until("all is copied", || volume.status()["queue"]["pending"] == 0);
    mount.umount().ok();
}

#[test]
fn a_read_that_waits_for_a_stuck_backend_ends_by_a_signal_and_blocks_no_other() {
    let test = "stuck::a_read_that_waits";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let lost = volume(&world, "min=1,target=2,max=2", 3600);
    let mount = lost.mount();
    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    for name in ["one", "two", "changed"] {
        fs::write(mount.path(name), [name.as_bytes(), &bytes].concat()).unwrap();
    }
    mount.umount().ok();
    // The local copies are lost: each block is read elsewhere.
    for shard in fs::read_dir(lost.dir.join("store/segments")).unwrap() {
        fs::remove_dir_all(shard.unwrap().path()).unwrap();
    }
    let mount = lost.mount_with(&["-o", "wait_on=fsync"]);
    hanging.hang();
    let mut readers: Vec<Child> = (0..40)
        .map(|n| start(&world, &["cat", &mount.text(if n % 2 == 0 { "one" } else { "two" })]))
        .collect();
    assert!(
        readers.iter_mut().all(|child| ends_within(child, Duration::from_millis(20)).is_none())
    );
    let start_of_others = Instant::now();
    // A change in the middle needs bytes of the base, and only its own file waits.
    let changed = mount.text("changed");
    let output = format!("of={changed}");
    let words = ["dd", "if=/dev/zero", &output, "bs=100", "seek=10001", "count=1", "conv=notrunc"];
    let mut writer = start(&world, &words);
    fs::write(mount.path("new"), b"new").unwrap();
    for name in ["one", "two", "changed"] {
        assert_eq!(fs::metadata(mount.path(name)).unwrap().len(), 3_000_000 + name.len() as u64);
    }
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"new");
    let took = start_of_others.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    for child in readers.iter_mut().skip(2).chain([&mut writer]) {
        kill_process(Pid::from_child(child), Signal::INT).unwrap();
        let ended = ends_within(child, Duration::from_secs(20));
        assert!(ended.is_some(), "a read or a change goes on after SIGINT");
    }
    hanging.go_on();
    for child in readers.iter_mut().take(2) {
        assert!(ends_within(child, Duration::from_mins(1)).unwrap().1.success());
    }
    for name in ["one", "two"] {
        assert!(fs::read(mount.path(name)).unwrap() == [name.as_bytes(), &bytes].concat());
    }
    mount.umount().ok();
}

#[test]
fn cids_of_directories_that_wait_for_a_stuck_backend_hold_up_nothing_and_end_by_a_signal() {
    let test = "stuck::cids_of_directories_that_wait";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let lost = volume(&world, "min=1,target=2,max=2", 3600);
    let mount = lost.mount();
    fs::create_dir_all(mount.path("a/b")).unwrap();
    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    fs::write(mount.path("a/b/base"), &bytes).unwrap();
    mount.umount().ok();
    for shard in fs::read_dir(lost.dir.join("store/segments")).unwrap() {
        fs::remove_dir_all(shard.unwrap().path()).unwrap();
    }
    let mount = lost.mount_with(&["-o", "level=LOCAL_DURABILITY,wait_on=fsync"]);
    // A busy volume: there is always something to commit.
    let writes = "import os, sys\n\
        os.chdir(sys.argv[1])\n\
        n = 0\n\
        while True:\n\
        \x20   n += 1\n\
        \x20   with open('busy%d' % (n % 100), 'wb') as f: f.write(b'%d' % n)\n";
    let writer = start(&world, &["python3", "-c", writes, mount.at.to_str().unwrap()]);
    let asks = "import os, sys, threading\n\
        os.chdir(sys.argv[1])\n\
        told = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
        def ask(at):\n\
        \x20   while True:\n\
        \x20       os.getxattr(at, 'user.cairn.cid')\n\
        \x20       os.write(told, b'.')\n\
        for n in range(120):\n\
        \x20   threading.Thread(target=ask, args=(('.', 'a', 'a/b')[n % 3],)).start()\n";
    let told = world.path("told");
    let words = ["python3", "-c", asks, mount.at.to_str().unwrap(), told.to_str().unwrap()];
    let mut busy = Ended([writer, start(&world, &words)]);
    let answers = || fs::metadata(&told).map_or(0, |meta| meta.len());
    wait_until("they are answered", || answers() > 300);
    hanging.hang();
    // A page of a leaf that is not here: its commit needs the rest of it.
    let change = "import os, sys\n\
        os.pwrite(os.open(sys.argv[1], os.O_WRONLY), b'x' * 4096, 1052672)\n";
    let mut changer = start(&world, &["python3", "-c", change, &mount.text("a/b/base")]);
    assert!(ends_within(&mut changer, Duration::from_secs(20)).unwrap().1.success());
    let (mut last, mut same) = (0, 0);
    wait_until("all wait", || {
        same = if answers() == last { same + 1 } else { 0 };
        last = answers();
        same == 50
    });
    let output = format!("of={}", mount.text("synced"));
    let words = ["dd", "if=/dev/zero", &output, "bs=100000", "count=1", "conv=fsync"];
    let mut syncer = start(&world, &words);
    let ended = ends_within(&mut syncer, Duration::from_secs(20));
    assert!(ended.is_some_and(|(_, status)| status.success()), "a sync waits for CIDs");
    for child in &mut busy.0 {
        kill_process(Pid::from_child(child), Signal::TERM).unwrap();
        assert!(ends_within(child, Duration::from_secs(20)).is_some(), "it goes on after SIGTERM");
    }
    hanging.go_on();
    let cid = world
        .command("python3")
        .args([
            "-c",
            "import os, sys\nos.getxattr(sys.argv[1], 'user.cairn.cid')",
            &mount.text("a"),
        ])
        .status();
    assert!(cid.unwrap().success());
    let now = fs::read(mount.path("a/b/base")).unwrap();
    assert!(now[1_052_672..1_056_768] == [b'x'; 4096] && now[..1_052_672] == bytes[..1_052_672]);
    mount.umount().ok();
}

#[test]
fn writes_that_wait_for_a_stuck_backend_keep_to_the_budget_however_many_they_are() {
    const WRITES: usize = 300;
    const BUDGET: u64 = 128 << 20;
    let test = "stuck::writes_that_wait";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let lost = volume(&world, "min=1,target=2,max=2", 3600);
    let config = lost.dir.join("cairn.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("memory_bytes = \"512MiB\"", "memory_bytes = \"128MiB\""))
        .unwrap();
    let mount = lost.mount();
    let old = |n: usize| format!("{n:05}").repeat(1_000);
    for n in 0..WRITES {
        fs::write(mount.path(&n.to_string()), old(n)).unwrap();
    }
    wait_until("all is copied", || lost.status()["queue"]["pending"] == 0);
    mount.umount().ok();
    // All blocks are in packs, and the local ones are lost.
    for pack in fs::read_dir(lost.dir.join("store/packs")).unwrap() {
        fs::remove_file(pack.unwrap().path()).unwrap();
    }
    let mount = lost.mount_with(&["-o", "level=LOCAL_DURABILITY,wait_on=fsync"]);
    hanging.hang();
    // Each needs the bytes before it in its page.
    let script = "import os, sys, threading\n\
        os.chdir(sys.argv[1])\n\
        told = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
        def write(n):\n\
        \x20   f = os.open(str(n), os.O_WRONLY)\n\
        \x20   os.write(told, b'.')\n\
        \x20   assert os.pwrite(f, bytes([n % 251 + 1]) * 1000000, 100) == 1000000\n\
        \x20   os.close(f)\n\
        \x20   os.write(told, b'.')\n\
        for n in range(int(sys.argv[3])): threading.Thread(target=write, args=(n,)).start()\n";
    let told = world.path("told");
    let count = WRITES.to_string();
    let words =
        ["python3", "-c", script, mount.at.to_str().unwrap(), told.to_str().unwrap(), &count];
    let mut busy = Ended([start(&world, &words)]);
    wait_until("all have begun", || has_len(&told, WRITES as u64));
    let memory = || lost.status()["memory"].clone();
    let (mut last, mut same) = (0, 0);
    wait_until("all wait", || {
        let now = memory()["resident_bytes"].as_u64().unwrap() >> 20;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 5
    });
    let memory = memory();
    let part = memory["parts"].as_array().unwrap().iter().find(|p| p["part"] == "requests");
    let used = part.unwrap()["used_bytes"].as_u64().unwrap();
    assert!(used > 1 << 20 && used <= part.unwrap()["most_bytes"].as_u64().unwrap(), "{memory}");
    assert!(memory["most_resident_bytes"].as_u64().unwrap() <= BUDGET, "{memory}");
    assert!(has_len(&told, WRITES as u64), "none is over");
    hanging.go_on();
    let ended = ends_within(&mut busy.0[0], Duration::from_mins(1));
    assert!(ended.is_some_and(|(_, status)| status.success()));
    assert!(has_len(&told, 2 * WRITES as u64));
    for n in 0..WRITES {
        let byte = u8::try_from(n % 251 + 1).unwrap();
        let now = fs::read(mount.path(&n.to_string())).unwrap();
        assert!(now[..100] == old(n).as_bytes()[..100] && now[100..] == vec![byte; 1_000_000]);
    }
    assert!(lost.status()["memory"]["most_resident_bytes"].as_u64().unwrap() <= BUDGET);
    mount.umount().ok();
}

#[test]
fn a_volume_with_a_stuck_backend_mounts_works_says_so_and_ends() {
    let test = "stuck::a_volume_with_a_stuck_backend";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let volume = volume(&world, "min=1,target=2,max=2", 1);
    volume.cairn(&["backend", "add", &world.backend_url("good")]).ok();
    let mount = volume.mount();
    fs::write(mount.path("first"), b"first").unwrap();
    mount.umount().ok();
    hanging.hang();
    let start = Instant::now();
    let mount = volume.mount();
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    let state = || {
        let status = volume.status();
        let backends = status["backends"].as_array().unwrap().clone();
        let b = backends.into_iter().find(|backend| backend["id"] == "b").unwrap();
        (b["state"].to_string(), b["last_error"].to_string())
    };
    assert!(state().0.contains("down") && state().1.contains("hang"), "{:?}", state());
    // The other backend takes the copies.
    fs::write(mount.path("second"), b"second").unwrap();
    wait_until("it has its copies", || volume.status()["queue"]["pending"] == 0);
    let start = Instant::now();
    mount.umount().ok();
    assert!(start.elapsed() < Duration::from_mins(1), "{:?}", start.elapsed());
    // A disk that begins to hang under a mount, and a daemon that is told to stop.
    hanging.go_on();
    let mount = volume.mount();
    wait_until("it is up", || state().0.contains("up"));
    hanging.hang();
    fs::write(mount.path("third"), b"third").unwrap();
    let (pid, start) = (mount.pid(), Instant::now());
    kill_process(pid, Signal::TERM).unwrap();
    mount.forget();
    // A call that the other filesystem has taken keeps its thread, and the process as
    // a zombie, until it answers (the kernel waits it out); what matters is the volume.
    let lock = fs::File::open(volume.dir.join("lock")).unwrap();
    let how = rustix::fs::FlockOperation::NonBlockingLockShared;
    let gone = || rustix::fs::flock(&lock, how).is_ok();
    for _ in 0..3 {
        if !gone() {
            let _waited = std::panic::catch_unwind(|| wait_until("it ends", gone));
        }
    }
    assert!(gone(), "the daemon lingers for {:?}", start.elapsed());
    drop(lock);
    hanging.go_on();
    let mount = volume.mount();
    for name in ["first", "second", "third"] {
        assert_eq!(fs::read(mount.path(name)).unwrap(), name.as_bytes());
    }
    wait_until("it heals", || state().0.contains("up") && volume.status()["queue"]["pending"] == 0);
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn a_volume_is_recovered_and_mounted_beside_a_place_whose_mount_is_dead() {
    let test = "stuck::a_volume_is_recovered";
    let Some(world) = World::mountable(test) else { return };
    let Some(hanging) = Hanging::new(&world, test) else { return };
    let volume = world.volume(&["hanging/b", "c"], "min=1,target=3,max=3");
    let mount = volume.mount();
    fs::write(mount.path("precious"), b"on all").unwrap();
    volume.cairn(&["sync"]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    // The program behind it dies: every call there is answered with ENOTCONN.
    hanging.send(Signal::KILL);
    wait_until("the place is dead", || {
        fs::metadata(hanging.at.join("b")).is_err_and(|e| e.raw_os_error() == Some(107))
    });
    volume.cairn(&["recover", "--from", &world.backend_url("c")]).ok();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("precious")).unwrap(), b"on all");
    fs::write(mount.path("new"), b"on one").unwrap();
    let status = volume.status();
    let states: Vec<&str> = status["backends"]
        .as_array()
        .unwrap_or_else(|| panic!("{status:#}"))
        .iter()
        .filter_map(|backend| backend["state"].as_str())
        .collect();
    assert!(states.contains(&"down") && states.contains(&"up"), "{states:?}");
}
