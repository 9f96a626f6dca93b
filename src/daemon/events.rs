//! `cairn events`, and the thread that writes, seals and forgets events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::handler::Commands;
use super::volume::failed;
use crate::api::{ErrorCode, Failure};
use crate::config::EventsConfig;
use crate::metadata::{EventKind, EventLog, EventQuery, NumberedEvent, Retention};
use crate::replication::{Alarm, EventFiles, Events};
use crate::runtime::{Clock, Shutdown};

/// Events are in the tree this soon after they happened.
const FLUSH: Duration = Duration::from_secs(1);
/// Urgent ones are gathered for so long.
const GATHER: Duration = Duration::from_millis(50);
/// Between two looks at what is to be sealed and what is too old.
const KEEP: Duration = Duration::from_secs(30);
/// Between two looks whether somebody still follows.
const LOOK: Duration = Duration::from_millis(500);
/// Who follows at a time: each has a thread.
const FOLLOWERS: usize = 8;
/// Events that a follower is sent at a time.
const PAGE: usize = 256;

/// What the thread works with.
pub(super) struct Keeper {
    pub events: Events,
    pub log: Arc<EventLog>,
    pub files: EventFiles,
    pub config: EventsConfig,
    pub clock: Arc<dyn Clock>,
    pub shutdown: Shutdown,
}

impl Keeper {
    /// Starts the thread that writes events, and the one that brings sealed files to
    /// backends.
    pub fn start(self) -> std::io::Result<()> {
        let Self { events, log, files, config, clock, shutdown } = self;
        let (out_log, out_shutdown) = (Arc::clone(&log), shutdown.clone());
        std::thread::Builder::new().name("cairn-events-out".into()).spawn(move || {
            while !out_shutdown.wait(LOOK) {
                files.bring(&out_log);
            }
        })?;
        std::thread::Builder::new().name("cairn-events".into()).spawn(move || {
            let retention = Retention { days: config.keep_days, bytes: config.keep_bytes.0 };
            let mut kept: Option<Instant> = None;
            while !shutdown.is_triggered() {
                events.wait_for_urgent(FLUSH);
                if shutdown.wait(GATHER) {
                    break;
                }
                events.flush();
                if kept.is_none_or(|at| at.elapsed() >= KEEP) {
                    kept = Some(Instant::now());
                    keep(&log, retention, clock.as_ref());
                }
            }
        })?;
        Ok(())
    }
}

fn keep(log: &EventLog, retention: Retention, clock: &dyn Clock) {
    if let Err(error) = log.seal_if_due(clock.now()) {
        tracing::error!(%error, "events cannot be sealed; it is tried again");
    }
    if let Err(error) = log.retain(retention, clock.now()) {
        tracing::error!(%error, "old events cannot be removed; it is tried again");
    }
}

/// An event as `--json` prints it.
fn event_json(NumberedEvent { number, event }: &NumberedEvent) -> Value {
    json!({
        "number": number,
        "time": humantime::format_rfc3339_micros(event.at.to_system()).to_string(),
        "kind": event.kind, "severity": event.severity, "subject": event.subject,
        "backend": Some(&event.backend).filter(|backend| !backend.is_empty()),
        "count": event.count, "detail": event.detail,
    })
}

/// An alarm as `status` shows it.
pub(super) fn alarm_json(alarm: &Alarm) -> Value {
    json!({
        "alarm": alarm.kind, "subject": alarm.subject, "detail": alarm.detail,
        "since": humantime::format_rfc3339_seconds(alarm.since.to_system()).to_string(),
        "advice": alarm.kind.advice(),
    })
}

fn known(query: &EventQuery) -> Result<(), Failure> {
    for kind in &query.kinds {
        if EventKind::from_name(kind).is_none() {
            let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
            let text = format!("there is no kind of event `{kind}`; there are: {}", all.join(", "));
            return Err(Failure::new(ErrorCode::Usage, text));
        }
    }
    Ok(())
}

/// A page of events.
pub(super) fn page(events: &Events, log: &EventLog, query: &EventQuery) -> Result<Value, Failure> {
    known(query)?;
    events.flush();
    let page = log.query(query).map_err(failed)?;
    let events: Vec<Value> = page.events.iter().map(event_json).collect();
    Ok(json!({ "events": events, "next": page.next, "more": page.more }))
}

/// One of those who follow.
pub(super) struct Follower<'c>(pub &'c AtomicUsize);

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Commands {
    /// Sends the events of a page, and then each that comes, until nobody listens
    /// or the volume is unmounted. Holds the volume only while it reads a page.
    pub(super) fn follow(
        &self,
        query: &EventQuery,
        item: &mut dyn FnMut(Option<Value>) -> bool,
    ) -> Result<Value, Failure> {
        known(query)?;
        if self.mountpoint.is_none() {
            let text = "nothing happens on a volume that is not mounted: `cairn mount` it first, or leave --follow out";
            return Err(Failure::new(ErrorCode::Usage, text));
        }
        let before = self.followers.fetch_add(1, Ordering::AcqRel);
        let _one = Follower(&self.followers);
        if before >= FOLLOWERS {
            let text = format!("{FOLLOWERS} programs follow already; end one of them");
            return Err(Failure::new(ErrorCode::Busy, text));
        }
        let mut query = query.clone();
        let ended = || Ok(json!({ "ended": "the volume is being unmounted" }));
        loop {
            let Some(volume) = self.volume.lock().clone() else { return ended() };
            let (events, log) = (volume.events.clone(), Arc::clone(&volume.log));
            drop(volume);
            events.flush();
            let page = log.query(&query).map_err(failed)?;
            drop(log);
            for event in &page.events {
                if !item(Some(event_json(event))) {
                    return Ok(Value::Null);
                }
            }
            query.after = Some(page.next);
            query.limit = PAGE;
            if !page.more || page.events.is_empty() {
                events.wait_beyond(page.next, LOOK);
            }
            drop(events);
            if !item(None) {
                return Ok(Value::Null);
            }
        }
    }
}
