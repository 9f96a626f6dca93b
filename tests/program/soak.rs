//! Random work, death at random moments, and backends that fail meanwhile.
//!
//! Each cycle mounts at a random level, compares everything with the writers'
//! models, works, lets the second backend fail in some way, and kills the daemon:
//! at work, at the unmount, or again in the midst of the next mount. Now and then
//! the volume is lost and recovered from the first backend.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Ack, Random, Run, Stop, Volume, World, Writer, detach, run, skip, wait_until,
};

const SETTINGS: &[(&str, &str)] = &[
    ("CAIRN_MOUNT_MEMORY_FILE_BYTES", "32KiB"),
    ("CAIRN_STORE_PACK_BYTES", "2MiB"),
    ("CAIRN_STORE_COLLECT_INTERVAL_S", "1"),
    ("CAIRN_CHECKPOINT_DELTA_INTERVAL_S", "1"),
    ("CAIRN_CHECKPOINT_MAX_DELTAS", "16"),
    ("CAIRN_REPLICATION_PROBE_INTERVAL_S", "1"),
    ("CAIRN_REPLICATION_CALL_DEADLINE_S", "5"),
    ("CAIRN_REPLICATION_LEVEL_DEADLINE_S", "1"),
];
const WRITERS: u64 = 3;
/// Cycles between two losses of the disk, and between two looks at all of it.
const LOSE_EVERY: u64 = 20;
const CHECK_EVERY: u64 = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How the second backend fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Its disk is taken away.
    Cut,
    Full,
    /// Its calls do not return.
    Stuck,
    /// They return late.
    Slow,
}

/// The second backend: on a small disk of its own behind a filesystem that can
/// be stopped, where that can be had; else a plain directory.
struct Second {
    place: PathBuf,
    disk: PathBuf,
    bindfs: Option<Child>,
    is_small: bool,
    is_behind: bool,
    fault: Fault,
}

impl Second {
    fn new(world: &World) -> Self {
        let (place, disk) = (world.make_dir("b2"), world.make_dir("b2.disk"));
        let root = rustix::process::geteuid().is_root();
        let tmpfs = || {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", "size=160m", "cairn-soak"]).arg(&disk);
            command.output().is_ok_and(|output| output.status.success())
        };
        let is_small = root && tmpfs();
        if !is_small {
            skip("soak: a full backend", "a small disk cannot be mounted here");
        }
        let is_behind = Command::new("bindfs").arg("--version").output().is_ok();
        if !is_behind {
            skip("soak: a stuck and a slow backend", "there is no bindfs");
        }
        fs::create_dir_all(disk.join("place")).unwrap();
        let mut second =
            Self { place, disk, bindfs: None, is_small, is_behind, fault: Fault::None };
        if !is_behind {
            fs::remove_dir(&second.place).unwrap();
            std::os::unix::fs::symlink(second.disk.join("place"), &second.place).unwrap();
        }
        second.start();
        second
    }

    fn start(&mut self) {
        if !self.is_behind {
            return;
        }
        let mut command = Command::new("bindfs");
        command.arg("-f").arg(self.disk.join("place")).arg(&self.place);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.bindfs = Some(command.spawn().unwrap());
        let place = self.place.to_str().unwrap().to_owned();
        wait_until("bindfs is mounted", || {
            fs::read_to_string("/proc/mounts").unwrap().contains(&place)
        });
    }

    fn pid(&self) -> Option<Pid> {
        self.bindfs.as_ref().map(Pid::from_child)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            kill_process(pid, signal).unwrap();
        }
    }

    fn random_fault(&self, random: &mut Random) -> Fault {
        let fault = match random.below(20) {
            0..3 => Fault::Cut,
            3..6 => Fault::Full,
            6..8 => Fault::Stuck,
            8..11 => Fault::Slow,
            _ => Fault::None,
        };
        match fault {
            Fault::Full if !self.is_small => Fault::None,
            Fault::Stuck | Fault::Slow if !self.is_behind => Fault::None,
            fault => fault,
        }
    }

    fn fail(&mut self, fault: Fault) {
        assert_eq!(self.fault, Fault::None);
        self.fault = fault;
        match fault {
            Fault::None | Fault::Slow => {}
            Fault::Cut if self.is_behind => {
                self.signal(Signal::KILL);
                drop(self.bindfs.take().unwrap().wait());
                detach(&self.place);
            }
            Fault::Cut => {
                fs::rename(self.disk.join("place"), self.disk.join("away")).unwrap();
            }
            Fault::Full => {
                let mut file = fs::File::create(self.disk.join("filler")).unwrap();
                let zeros = vec![0u8; 1 << 20];
                while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
            }
            Fault::Stuck => self.signal(Signal::STOP),
        }
    }

    fn heal(&mut self) {
        match std::mem::replace(&mut self.fault, Fault::None) {
            Fault::None => {}
            Fault::Cut if self.is_behind => self.start(),
            Fault::Cut => fs::rename(self.disk.join("away"), self.disk.join("place")).unwrap(),
            Fault::Full => fs::remove_file(self.disk.join("filler")).unwrap(),
            Fault::Stuck | Fault::Slow => self.signal(Signal::CONT),
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        if let Some(mut child) = self.bindfs.take() {
            drop((child.kill(), child.wait()));
            detach(&self.place);
        }
        if self.is_small {
            detach(&self.disk);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Local,
    /// Replicated, but acknowledged without where it cannot be.
    Queue,
    Quorum,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Working,
    Unmounting,
    Mounting,
}

struct Soak<'w> {
    volume: Volume<'w>,
    second: Second,
    writers: Vec<Writer>,
    random: Random,
    python: bool,
}

impl Drop for Soak<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.volume.dir.join("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("daemon.log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        self.second.heal();
        if self.held() {
            self.kill();
        }
        detach(&self.at());
    }
}

impl<'w> Soak<'w> {
    fn new(world: &'w World, seed: u64) -> Self {
        let second = Second::new(world);
        let volume = world.volume(&["b1", "b2"], "min=2,target=3,max=3");
        let writers = (0..WRITERS).map(|n| Writer::new(&format!("w{n}"), seed * 100 + n)).collect();
        let python = Command::new("python3").arg("--version").output().is_ok();
        if !python {
            skip("soak: shared mappings", "there is no python3");
        }
        Self { volume, second, writers, random: Random::new(seed), python }
    }

    fn at(&self) -> PathBuf {
        self.volume.world.path("mnt")
    }

    fn command(&self, words: &[&str]) -> Command {
        // Long runs bring a copy of their own.
        let program = std::env::var("CAIRN_BIN");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_cairn"));
        let mut command = self.volume.world.command(program);
        command.args(words).envs(SETTINGS.iter().copied());
        command
    }

    fn mount_command(&self, level: Level) -> Command {
        self.volume.world.make_dir("mnt");
        let (at, volume) = (self.at(), self.volume.text());
        let options = match level {
            Level::Local => "level=LOCAL_DURABILITY,on_degraded=queue",
            Level::Queue => "level=QUORUM,on_degraded=queue",
            Level::Quorum => "level=QUORUM,on_degraded=fail",
            Level::All => "level=ALL,on_degraded=fail",
        };
        self.command(&["mount", at.to_str().unwrap(), "--volume", &volume, "-o", options])
    }

    fn held(&self) -> bool {
        let Ok(lock) = fs::File::open(self.volume.dir.join("lock")) else { return false };
        let how = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&lock, how).is_err()
    }

    fn daemon(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.volume.dir.join("lock")).ok()?;
        Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
    }

    fn kill(&self) {
        if let Some(pid) = self.daemon()
            && self.held()
        {
            // It may end by itself just now.
            kill_process(pid, Signal::KILL).unwrap_or(());
        }
    }

    /// After a kill: waits for the end, and clears the dead mount away.
    fn bury(&self) {
        wait_until("the daemon is gone", || !self.held());
        detach(&self.at());
    }

    fn cycle(&mut self, cycle: u64) -> String {
        let level = match self.random.below(6) {
            0..2 => Level::Local,
            2 => Level::Queue,
            3..5 => Level::Quorum,
            _ => Level::All,
        };
        // A fault of the last cycle may last until after the mount.
        if self.second.fault == Fault::Stuck || self.random.below(2) == 0 {
            self.second.heal();
        }
        run(self.mount_command(level), Duration::from_mins(1)).ok();
        let at = self.at();
        for writer in &mut self.writers {
            if let Err(reason) = writer.check_after_crash(&at) {
                panic!("cycle {cycle}: {reason}");
            }
            (writer.ack, writer.in_place) = match level {
                Level::Local => (Ack::Local, true),
                Level::Queue => (Ack::Local, false),
                Level::Quorum | Level::All => (Ack::Remote, false),
            };
            match writer.begin(&at) {
                Ok(()) => {}
                Err(stop) => panic!("cycle {cycle}: {stop:?}"),
            }
        }
        self.second.heal();
        let fault = self.second.random_fault(&mut self.random);
        let death = match self.random.below(10) {
            0..7 => Death::Working,
            7 => Death::Unmounting,
            _ => Death::Mounting,
        };
        self.work(cycle, fault, death);
        if death == Death::Mounting {
            self.die_at_mount(level);
        }
        format!("{level:?} {fault:?} {death:?}")
    }

    fn work(&mut self, cycle: u64, fault: Fault, death: Death) {
        let at = self.at();
        let run_for = Duration::from_millis(40 + self.random.below(500) as u64);
        let fail_after = run_for * (self.random.below(100) as u32) / 130;
        let unmount_for = Duration::from_millis(self.random.below(250) as u64);
        let stop = AtomicBool::new(false);
        let mut writers = std::mem::take(&mut self.writers);
        let python = self.python;
        std::thread::scope(|scope| {
            let (at, stop) = (&at, &stop);
            let work = writers.iter_mut().map(|writer| {
                scope.spawn(move || {
                    let mut steps = 0u32;
                    while !stop.load(Ordering::Acquire) {
                        steps += 1;
                        let done = if python && steps.is_multiple_of(60) {
                            writer.map(at, &map)
                        } else {
                            writer.step(at)
                        };
                        match done {
                            Ok(()) => {}
                            Err(Stop::Dead) => return,
                            Err(Stop::Wrong(reason)) => panic!("cycle {cycle}: {reason}"),
                        }
                    }
                })
            });
            let work: Vec<_> = work.collect();
            pause(fail_after);
            self.second.fail(fault);
            let ended = AtomicBool::new(false);
            let slow = self.second.pid().filter(|_| fault == Fault::Slow);
            std::thread::scope(|inner| {
                let ended = &ended;
                if let Some(pid) = slow {
                    inner.spawn(move || {
                        while !ended.load(Ordering::Acquire) {
                            kill_process(pid, Signal::STOP).unwrap();
                            pause(Duration::from_millis(60));
                            kill_process(pid, Signal::CONT).unwrap();
                            pause(Duration::from_millis(20));
                        }
                    });
                }
                pause(run_for.saturating_sub(fail_after));
                if death == Death::Unmounting {
                    stop.store(true, Ordering::Release);
                    work.into_iter().for_each(|writer| writer.join().unwrap());
                } else {
                    self.kill();
                }
                ended.store(true, Ordering::Release);
            });
            if death != Death::Unmounting && fault == Fault::Stuck {
                // A call that the other filesystem has taken cannot be killed (the
                // kernel waits it out): the process ends when that goes on.
                self.second.heal();
            }
        });
        self.writers = writers;
        if death == Death::Unmounting {
            self.writers.iter_mut().for_each(Writer::close);
            let umount = self.command(&["umount", "--force", at.to_str().unwrap()]);
            std::thread::scope(|scope| {
                // It may be through before the blow, or not.
                let ended = scope.spawn(|| run(umount, Duration::from_mins(2)));
                pause(unmount_for);
                self.kill();
                if fault == Fault::Stuck {
                    self.second.heal();
                }
                drop(ended.join().unwrap());
            });
        }
        self.bury();
    }

    /// Begins to mount, and is killed while it recovers.
    fn die_at_mount(&mut self, level: Level) {
        let before = self.daemon();
        let mut command = self.mount_command(level);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        // A file without a pid, as it is made, names nobody to kill.
        while self.daemon().is_none_or(|pid| Some(pid) == before) && Instant::now() < until {
            pause(Duration::from_millis(1));
        }
        pause(Duration::from_micros(self.random.below(120_000) as u64));
        self.kill();
        child.wait().unwrap();
        self.bury();
    }

    fn fsck(&mut self, deep: bool) {
        self.second.heal();
        let volume = self.volume.text();
        let mut command = self.command(&["fsck", "--volume", &volume]);
        if deep {
            command.arg("--deep");
        }
        let answer: Run = run(command, Duration::from_mins(2));
        answer.ok();
    }

    fn lose(&mut self, cycle: u64) {
        self.second.heal();
        fs::remove_dir_all(&self.volume.dir).unwrap();
        let world = self.volume.world;
        let from = world.backend_url("b1");
        let volume = self.volume.text();
        let recover = self.command(&["recover", "--from", &from, "--volume", &volume]);
        run(recover, Duration::from_mins(2)).ok();
        run(self.mount_command(Level::Local), Duration::from_mins(1)).ok();
        let at = self.at();
        for writer in &mut self.writers {
            if let Err(reason) = writer.check_after_loss(&at) {
                panic!("cycle {cycle}: after the loss of the disk: {reason}");
            }
        }
        let umount = self.command(&["umount", "--force", at.to_str().unwrap()]);
        run(umount, Duration::from_mins(2)).ok();
    }
}

/// Fills a range of a file through a shared mapping, and syncs it. None: the
/// mount is dead.
fn map(words: &[String]) -> Option<bool> {
    const PROGRAM: &str = "import mmap, sys
path, start, end, byte = sys.argv[1], *map(int, sys.argv[2:])
try:
    with open(path, 'r+b') as f:
        with mmap.mmap(f.fileno(), 0) as m:
            m[start:end] = bytes([byte]) * (end - start)
            m.flush()
except OSError as e:
    sys.exit(5 if e.errno == 5 else 3)
";
    let mut command = Command::new("python3");
    command.arg("-c").arg(PROGRAM).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status().unwrap().code() {
        Some(0) => Some(true),
        Some(5) => Some(false),
        // SIGBUS has no code: a page of a dead mount.
        _ => None,
    }
}

fn pause(time: Duration) {
    let (_keep, never) = channel::<()>();
    never.recv_timeout(time).unwrap_or(());
}

#[test]
fn what_fsync_acknowledged_survives_kill_9() {
    let Some(world) = World::mountable("soak::what_fsync_acknowledged_survives_kill_9") else {
        return;
    };
    let (cycles, seed) = (number("CAIRN_SOAK_CYCLES", 50), number("CAIRN_SEED", 0x00ca_1127));
    eprintln!("CAIRN_SEED={seed}, {cycles} cycles");
    let start = Instant::now();
    let mut soak = Soak::new(&world, seed);
    for cycle in 1..=cycles {
        let what = soak.cycle(cycle);
        if cycle % CHECK_EVERY == 0 {
            soak.fsck(cycle % (4 * CHECK_EVERY) == 0);
        }
        if cycle % LOSE_EVERY == 0 {
            soak.lose(cycle);
        }
        let sum = |of: fn(&Writer) -> u64| soak.writers.iter().map(of).sum::<u64>();
        eprintln!(
            "cycle {cycle}: {what}; {} calls, {} acknowledged, {} refused, {:.0} s",
            sum(|w| w.calls),
            sum(|w| w.acknowledged),
            sum(|w| w.refused),
            start.elapsed().as_secs_f64()
        );
    }
    soak.second.heal();
    soak.fsck(true);
    soak.lose(cycles);
    soak.fsck(true);
}
