//! Who waits for an answer, and whether they were signalled meanwhile.
//!
//! `fuser` 0.18 answers the kernel's interrupts with ENOSYS, and the kernel then
//! sends none: a process that waits for an answer would not even end by SIGKILL.
//! So a thread looks at `/proc` for the callers of requests that wait, and ends
//! the wait of those that were signalled. Decision 0005 has the kernel's part.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Cancel;

/// A wait that is younger is not looked at.
const YOUNG: Duration = Duration::from_millis(50);
/// Between two looks; and at least as long as a look takes.
const ROUND: Duration = Duration::from_millis(100);
/// A signal that a program handles ends a wait when it is pending for so long:
/// an ordinary sync is over by then, and its program sees no EINTR.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long a program that exits by itself waits for its open files: the kernel
/// drops signals that are sent to it then, SIGKILL too.
const LEAVING: Duration = Duration::from_secs(10);
/// Waits at a time. Each is a thread of a program, so there are fewer.
const MOST: usize = 65_536;
/// How long a thread that was signalled has its next waits looked at at once:
/// one that is killed closes its files one by one.
const DYING: Duration = Duration::from_secs(10);

/// Signals by which somebody asks a program to end: HUP, INT, QUIT, TERM.
const ASKED: u64 = bit(1) | bit(2) | bit(3) | bit(15);
const KILL: u64 = bit(9);
/// Without a handler these end nothing: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
const HARMLESS: u64 = bit(17) | bit(18) | bit(19) | bit(20) | bit(21) | bit(22) | bit(23) | bit(28);
/// `PF_EXITING` of the flags in `/proc/TID/stat` (`include/linux/sched.h`).
const EXITING: u64 = 0x4;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// What the signals of a thread mean for its wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Go on.
    Wait,
    /// It handles one of [`ASKED`].
    Asked,
    /// It exits by itself.
    Exits,
    /// It ends, or is dead already.
    Ends,
}

/// The masks in `/proc/TID/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn parse(status: &str) -> Self {
        let mut signals = Self::default();
        for line in status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
            match key {
                "SigPnd" | "ShdPnd" => signals.pending |= mask(),
                "SigBlk" => signals.blocked = mask(),
                "SigIgn" => signals.ignored = mask(),
                "SigCgt" => signals.caught = mask(),
                _ => {}
            }
        }
        signals
    }

    fn verdict(self, exit: Option<Exit>) -> Verdict {
        let open = self.pending & !self.blocked & !self.ignored;
        match exit {
            Some(Exit::Killed) => return Verdict::Ends,
            Some(Exit::Normal) => return Verdict::Exits,
            None => {}
        }
        if self.pending & KILL != 0 || open & !self.caught & !HARMLESS != 0 {
            Verdict::Ends
        } else if open & self.caught & ASKED != 0 {
            Verdict::Asked
        } else {
            Verdict::Wait
        }
    }
}

/// How a thread that exits came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Normal,
    Killed,
}

impl Exit {
    /// From `/proc/TID/stat`: `flags` is the 9th field, `exit_code` the 52nd (0
    /// for who may not know it).
    fn parse(stat: &str) -> Option<Self> {
        // The second field, the name, may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        let flags: u64 = fields.nth(6)?.parse().ok()?;
        if flags & EXITING == 0 {
            return None;
        }
        let code: u64 = fields.nth(42).and_then(|code| code.parse().ok()).unwrap_or(0);
        // The low seven bits are the signal (wait(2)).
        Some(if code.is_multiple_of(1 << 7) { Self::Normal } else { Self::Killed })
    }
}

fn look(tid: u32) -> Verdict {
    // A thread that is gone waits for nothing; who asked for it may still.
    let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) else {
        return Verdict::Wait;
    };
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    Signals::parse(&status).verdict(Exit::parse(&stat))
}

struct Entry {
    tid: u32,
    since: Instant,
    /// Since when one of [`ASKED`] is pending.
    asked: Option<Instant>,
    cancel: Cancel,
}

#[derive(Default)]
struct State {
    waits: BTreeMap<u64, Entry>,
    next: u64,
    dying: HashMap<u32, Instant>,
    /// The thread sleeps until it is woken: there was nothing to look at.
    idle: bool,
    #[cfg(test)]
    wakes: u64,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The callers of requests that wait.
pub struct Callers {
    shared: Arc<Shared>,
}

/// One wait; forgotten when it is dropped.
pub struct Watched {
    shared: Arc<Shared>,
    id: u64,
    cancel: Cancel,
}

impl Watched {
    /// Set when the caller was signalled.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.state.lock().waits.remove(&self.id);
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.wake.notify_all();
    }
}

impl Callers {
    /// Starts the thread that looks.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watcher = Arc::clone(&shared);
        std::thread::Builder::new().name("cairn-signals".into()).spawn(move || watcher.run())?;
        Ok(Self { shared })
    }

    /// Watches a wait of thread `tid` (0: of nobody that we can see, as from
    /// a pid namespace that is not below ours). `None` when too many wait already.
    #[must_use]
    pub fn watch(&self, tid: u32) -> Option<Watched> {
        let cancel = Cancel::default();
        let mut state = self.shared.state.lock();
        if state.waits.len() >= MOST {
            return None;
        }
        let now = Instant::now();
        let dying = state.dying.get(&tid).is_some_and(|at| at.elapsed() < DYING);
        let id = state.next;
        state.next += 1;
        state.waits.insert(id, Entry { tid, since: now, asked: None, cancel: cancel.clone() });
        // In its sleep between two looks it needs no call: this wait is young. Who
        // waits again and again would pay for each.
        if std::mem::take(&mut state.idle) {
            self.shared.wake.notify_all();
        }
        drop(state);
        if dying && tid != 0 && matches!(look(tid), Verdict::Ends | Verdict::Exits) {
            cancel.cancel();
        }
        Some(Watched { shared: Arc::clone(&self.shared), id, cancel })
    }

    /// Waits that are under way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().waits.len()
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let due: Vec<(u64, u32)> = {
                let mut state = self.state.lock();
                while state.waits.is_empty() && !state.ended {
                    state.idle = true;
                    self.wake.wait(&mut state);
                }
                state.idle = false;
                #[cfg(test)]
                {
                    state.wakes += 1;
                }
                if state.ended {
                    return;
                }
                let old = |(_, entry): &(&u64, &Entry)| {
                    entry.tid != 0 && entry.since.elapsed() >= YOUNG && !entry.cancel.is_cancelled()
                };
                state.waits.iter().filter(old).map(|(id, entry)| (*id, entry.tid)).collect()
            };
            let start = Instant::now();
            for (id, tid) in due {
                self.judge(id, tid, look(tid));
            }
            let took = start.elapsed();
            let mut state = self.state.lock();
            state.dying.retain(|_, at| at.elapsed() < DYING);
            if !state.ended {
                self.wake.wait_for(&mut state, ROUND.max(took));
            }
        }
    }

    fn judge(&self, id: u64, tid: u32, verdict: Verdict) {
        let mut state = self.state.lock();
        let Some(entry) = state.waits.get_mut(&id) else { return };
        let over = match verdict {
            Verdict::Wait => {
                entry.asked = None;
                false
            }
            Verdict::Asked => entry.asked.get_or_insert_with(Instant::now).elapsed() >= PATIENCE,
            Verdict::Exits => entry.since.elapsed() >= LEAVING,
            Verdict::Ends => true,
        };
        if over {
            entry.cancel.cancel();
            state.dying.insert(tid, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(pending: u64, blocked: u64, ignored: u64, caught: u64) -> Signals {
        Signals { pending, blocked, ignored, caught }
    }

    #[test]
    fn a_signal_that_ends_a_thread_ends_its_wait_and_others_do_not() {
        let (int, usr1, chld, stop, term) = (bit(2), bit(10), bit(17), bit(19), bit(15));
        let cases = [
            (signals(0, 0, 0, 0), Verdict::Wait),
            (signals(KILL, u64::MAX, 0, 0), Verdict::Ends),
            (signals(int, 0, 0, 0), Verdict::Ends),
            (signals(int, int, 0, 0), Verdict::Wait),
            (signals(int, 0, int, 0), Verdict::Wait),
            (signals(int, 0, 0, int), Verdict::Asked),
            (signals(term, 0, 0, term), Verdict::Asked),
            // A database is sent these all the time.
            (signals(usr1 | chld, 0, 0, usr1 | chld), Verdict::Wait),
            (signals(usr1, 0, 0, 0), Verdict::Ends),
            (signals(chld | stop, 0, 0, 0), Verdict::Wait),
        ];
        for (given, wanted) in cases {
            assert_eq!(given.verdict(None), wanted, "{given:?}");
        }
        assert_eq!(signals(0, 0, 0, 0).verdict(Some(Exit::Killed)), Verdict::Ends);
        assert_eq!(signals(0, 0, 0, 0).verdict(Some(Exit::Normal)), Verdict::Exits);
    }

    #[test]
    fn what_proc_says_is_understood() {
        let status = "Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180004002\n";
        let wanted = signals(0x102, 1, 0x1000, 0x1_8000_4002);
        assert_eq!(Signals::parse(status), wanted);
        // This thread runs, and nothing is pending.
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert_eq!(look(tid), Verdict::Wait);
        let stat = |flags: u64, code: u64| {
            let rest: Vec<String> = (0..42).map(|n| n.to_string()).collect();
            format!("7 (a) name) D 1 1 1 1 1 {flags} {} {code}\n", rest.join(" "))
        };
        assert_eq!(Exit::parse(&stat(0x40_0000, 0)), None);
        assert_eq!(Exit::parse(&stat(0x40_0004, 0)), Some(Exit::Normal));
        assert_eq!(Exit::parse(&stat(0x40_0004, 256)), Some(Exit::Normal));
        assert_eq!(Exit::parse(&stat(0x40_0004, 9)), Some(Exit::Killed));
    }

    #[test]
    fn a_wait_whose_caller_was_signalled_is_cancelled_and_others_go_on() {
        let callers = Callers::start().unwrap();
        // A child that ignores nothing is stopped, so that its signal stays pending.
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let (mine, nobody) = (callers.watch(child.id()).unwrap(), callers.watch(0).unwrap());
        assert_eq!(callers.waiting(), 2);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let bridge = crate::runtime::Bridge::start(1).unwrap();
        bridge.wait(Duration::from_mins(1), mine.cancel().cancelled()).unwrap();
        assert!(!nobody.cancel().is_cancelled());
        drop((mine, nobody));
        assert_eq!(callers.waiting(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn who_waits_again_and_again_wakes_the_thread_no_oftener_than_it_looks() {
        let callers = Callers::start().unwrap();
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let start = Instant::now();
        for _ in 0..20_000 {
            drop(callers.watch(tid).unwrap());
            std::thread::yield_now();
        }
        let looks = start.elapsed().as_millis() / ROUND.as_millis();
        let wakes = callers.shared.state.lock().wakes;
        assert!(u128::from(wakes) <= looks + 2, "{wakes} for {looks} looks");
    }
}
