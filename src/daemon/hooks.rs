//! Tells alarms to a command or a webhook.
//!
//! Each alarm is JSON. A hook's limit decides what is told at once, later, or only
//! counted; then it runs on its own, with a deadline, and how it ended is in the log,
//! the metrics and, when it failed, an event. Secrets are read when they are sent,
//! and are in none of these.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::volume::Volume;
use super::webhook;
use crate::config::HookConfig;
use crate::metadata::EventKind;
use crate::replication::{Alarm, AlarmKind, Events, Fire, Notice, RateLimit};
use crate::runtime::{Bridge, Clock, Shutdown};
use crate::telemetry::metrics;
use crate::types::{Timestamp, VolumeId};

/// Between two looks at what has happened.
const LOOK: Duration = Duration::from_millis(250);
/// Hooks that run at a time.
const RUNNING: usize = 8;
/// Bytes of a command's output that are kept, of each stream.
const OUTPUT: usize = 4096;
/// How long output is waited for when the command has ended.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// Variables that a command gets from our own environment.
const VARIABLES: &[&str] = &["PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME"];

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// `ok`, `failed` or `timeout`.
    pub outcome: &'static str,
    /// For people: an exit code and output, or a status.
    pub answer: String,
}

impl Ended {
    pub fn ok(answer: impl Into<String>) -> Self {
        Self { outcome: "ok", answer: answer.into() }
    }

    pub fn failed(answer: impl Into<String>) -> Self {
        Self { outcome: "failed", answer: answer.into() }
    }

    pub fn timeout(answer: impl Into<String>) -> Self {
        Self { outcome: "timeout", answer: answer.into() }
    }
}

/// What a hook is told.
fn message(volume: &VolumeId, name: &str, notice: &Notice) -> Value {
    let Alarm { kind, subject, detail, since, .. } = &notice.fire.alarm;
    json!({
        "version": 1,
        "volume": volume, "volume_dir": name,
        "alarm": kind, "state": if notice.fire.cleared { "cleared" } else { "raised" },
        "subject": subject, "detail": detail,
        "since": humantime::format_rfc3339_seconds(since.to_system()).to_string(),
        "held_back": notice.held_back, "advice": kind.advice(),
    })
}

/// A hook's name in messages: never its secrets.
#[must_use]
pub fn hook_name(hook: &HookConfig) -> String {
    match hook.command.first() {
        Some(program) => format!("command {program}"),
        None => format!("webhook {}", webhook::shown(&hook.webhook)),
    }
}

/// Runs a hook once, and counts how it ended.
async fn run(hook: &HookConfig, message: &Value) -> Ended {
    let deadline = Duration::from_secs(hook.deadline_s);
    let (by, ended) = if hook.command.is_empty() {
        ("webhook", webhook::post(hook, message, deadline).await)
    } else {
        ("command", run_command(hook, message, deadline).await)
    };
    metrics().hook_run(by, ended.outcome);
    ended
}

/// The first bytes of a stream; the rest is read and forgotten.
async fn output_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0u8; 1024]);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = OUTPUT - kept.len();
        kept.extend(buffer.iter().take(count.min(room)));
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// Ends what a command has started, too.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn end(&mut self) {
        let Some(group) = self.0.take() else { return };
        if let Err(error) =
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
        {
            tracing::debug!(%error, "a hook's processes are gone already");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

async fn run_command(hook: &HookConfig, message: &Value, deadline: Duration) -> Ended {
    let Some((program, arguments)) = hook.command.split_first() else {
        return Ended::failed("it has no command");
    };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    for name in VARIABLES {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    for (name, key) in [("CAIRN_ALARM", "alarm"), ("CAIRN_ALARM_STATE", "state")] {
        command.env(name, message[key].as_str().unwrap_or_default());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ended::failed(format!("{program} cannot be started: {error}")),
    };
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(pid.and_then(rustix::process::Pid::from_raw));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let line = format!("{message}\n");
    // Who does not read its input is told all the same.
    let input = tokio::spawn(async move {
        if let Some(mut stdin) = stdin
            && let Err(error) = stdin.write_all(line.as_bytes()).await
        {
            tracing::debug!(%error, "a hook has not read its input");
        }
    });
    let output = tokio::spawn(async move { tokio::join!(output_of(stdout), output_of(stderr)) });
    let abort = (input.abort_handle(), output.abort_handle());
    let ended = match tokio::time::timeout(deadline, child.wait()).await {
        Err(_) => {
            group.end();
            // It is dead: this only clears it away.
            drop(child.wait().await);
            Ended::timeout(format!("killed after {deadline:?}"))
        }
        Ok(Err(error)) => Ended::failed(format!("{program}: {error}")),
        Ok(Ok(status)) => {
            // Its group may have others in it that go on: they are not ours any more.
            group.0 = None;
            if status.success() {
                Ended::ok(status.to_string())
            } else {
                Ended::failed(status.to_string())
            }
        }
    };
    let told = tokio::time::timeout(LAST_OUTPUT, output).await;
    abort.0.abort();
    abort.1.abort();
    let Ok(Ok((stdout, stderr))) = told else { return ended };
    let mut answer = ended.answer;
    for (name, text) in [("stdout", stdout), ("stderr", stderr)] {
        if !text.is_empty() {
            answer = format!("{answer}; {name}: {text}");
        }
    }
    Ended { answer, ..ended }
}

/// How a telling ended: which hook's, of what.
struct Told {
    hook: usize,
    fire: Fire,
    ended: Ended,
}

/// Takes alarms to the hooks of a mounted volume.
pub(super) struct Hooks {
    all: Vec<(Arc<HookConfig>, RateLimit)>,
    events: Events,
    clock: Arc<dyn Clock>,
    bridge: Bridge,
    volume: VolumeId,
    dir: String,
    running: Arc<Semaphore>,
    /// What runs holds nothing of the volume: it says here how it ended.
    told: (Sender<Told>, Receiver<Told>),
}

impl Hooks {
    /// Starts the thread.
    pub fn start(volume: &Volume) -> std::io::Result<()> {
        let limit = |hook: &HookConfig| RateLimit::new(Duration::from_secs(hook.interval_s));
        let hooks = volume.config.hooks.iter();
        let mut this = Self {
            all: hooks.map(|hook| (Arc::new(hook.clone()), limit(hook))).collect(),
            events: volume.events.clone(),
            clock: Arc::clone(&volume.clock),
            bridge: volume.bridge.clone(),
            volume: volume.identity.id,
            dir: volume.dir.display().to_string(),
            running: Arc::new(Semaphore::new(RUNNING)),
            told: channel(),
        };
        let shutdown: Shutdown = volume.shutdown.clone();
        std::thread::Builder::new().name("cairn-hooks".into()).spawn(move || {
            this.go_on();
            while !shutdown.wait(LOOK) {
                this.look();
            }
        })?;
        Ok(())
    }

    /// Takes up the alarms of the last life: what no hook was told is told now.
    fn go_on(&mut self) {
        let (told, rest): (Vec<Alarm>, Vec<Alarm>) =
            self.events.alarms().into_iter().partition(|alarm| alarm.told);
        for (hook, limit) in &mut self.all {
            for alarm in told.iter().filter(|alarm| hook.on.contains(&alarm.kind)) {
                limit.resume(alarm);
            }
        }
        let rest: Vec<Fire> =
            rest.into_iter().map(|alarm| Fire { alarm, cleared: false }).collect();
        self.offer(&rest);
    }

    fn look(&mut self) {
        for Told { hook, fire, ended } in self.told.1.try_iter() {
            let Some((config, limit)) = self.all.get_mut(hook) else { continue };
            let alarm = &fire.alarm;
            if ended.outcome == "ok" {
                self.events.mark_told(alarm.kind, &alarm.subject);
                continue;
            }
            limit.failed(&fire);
            let detail = format!("{}: {}: {}", alarm.kind.as_str(), ended.outcome, ended.answer);
            self.events.emit(EventKind::HookFailed, &hook_name(config), &detail);
        }
        let fires = self.events.take_fires();
        self.offer(&fires);
    }

    fn offer(&mut self, fires: &[Fire]) {
        let now = self.clock.now();
        let mut notices: Vec<(usize, Notice)> = Vec::new();
        for (index, (hook, limit)) in self.all.iter_mut().enumerate() {
            notices.extend(limit.due(now).into_iter().map(|notice| (index, notice)));
            for fire in fires.iter().filter(|fire| hook.on.contains(&fire.alarm.kind)) {
                notices.extend(limit.offer(fire, now).map(|notice| (index, notice)));
            }
        }
        for (index, notice) in notices {
            self.tell(index, notice);
        }
    }

    fn tell(&self, index: usize, notice: Notice) {
        let Some((hook, _)) = self.all.get(index) else { return };
        let message = message(&self.volume, &self.dir, &notice);
        let (hook, running, sender) =
            (Arc::clone(hook), Arc::clone(&self.running), self.told.0.clone());
        self.bridge.spawn(async move {
            // It is never closed.
            let Ok(_one) = running.acquire().await else { return };
            let (start, name) = (Instant::now(), hook_name(&hook));
            let ended = run(&hook, &message).await;
            let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (alarm, answer) = (notice.fire.alarm.kind.as_str(), &ended.answer);
            if ended.outcome == "ok" {
                tracing::info!(hook = name, alarm, took_ms, answer, "an alarm was told");
            } else {
                tracing::error!(hook = name, alarm, took_ms, answer, "an alarm could not be told");
            }
            // The volume may be closed already.
            drop(sender.send(Told { hook: index, fire: notice.fire, ended }));
        });
    }
}

/// `cairn hooks test`: tells each hook of an alarm that is none, and waits.
pub(super) fn test(volume: &Volume) -> Value {
    let alarm = Alarm {
        kind: AlarmKind::Test,
        subject: "volume".into(),
        detail: "a test of the hooks".into(),
        since: Timestamp { nanoseconds: 0, ..volume.clock.now() },
        told: false,
    };
    let notice = Notice { fire: Fire { alarm, cleared: false }, held_back: 0 };
    let message = message(&volume.identity.id, &volume.dir.display().to_string(), &notice);
    let results: Vec<Value> = volume
        .config
        .hooks
        .iter()
        .map(|hook| {
            let start = Instant::now();
            let ended = volume.bridge.block_on(run(hook, &message));
            json!({
                "hook": hook_name(hook), "on": hook.on, "outcome": ended.outcome,
                "answer": ended.answer,
                "took_ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    json!({ "hooks": results })
}
