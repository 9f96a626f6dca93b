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
    fs::write(path, text).unwrap();
    volume
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
