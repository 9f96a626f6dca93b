//! What happens, on its way to the tree: a handle that every thread may hold.
//!
//! Events gather in memory and are written by one transaction a second, or sooner
//! when somebody waits for them. Copies of one second, kind and backend become one
//! event when they are many. What does not fit is counted, and said; an alarm is
//! never left out. Locks: `waiting`, `writing` (over a transaction), `alarms`; a
//! thread that holds one takes only those behind it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::alarms::{Alarm, AlarmKind, Alarms, Fire};
use super::machine::Outcome;
use crate::metadata::{
    ContentRecord, CopyState, EventKind, EventRecord, MetadataError, Namespace, Severity,
};
use crate::runtime::Clock;
use crate::telemetry;
use crate::types::{BackendId, Cid, Timestamp};

/// Single events that wait at most.
const WAITING: usize = 4096;
/// Copies of one second, kind and backend that are events of their own; of more, as
/// many are named in one event.
const NAMED: usize = 16;
/// Alarms that wait at most: they do so only while the tree cannot be written.
const ALARMS_WAITING: usize = 65_536;
/// Alarms that wait to be told at most.
const FIRES: usize = 1024;

/// Takes what happens. The default takes it and forgets it.
#[derive(Clone, Default)]
pub struct Events(Option<Arc<Inner>>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Events" } else { "Events(none)" })
    }
}

struct Inner {
    namespace: Arc<Namespace>,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    writing: Mutex<()>,
    alarms: Mutex<Alarms>,
    fires: Mutex<VecDeque<Fire>>,
    /// The last write failed: that is said once.
    failing: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    single: Vec<EventRecord>,
    many: BTreeMap<(EventKind, BackendId), Many>,
    dropped: u64,
    /// Somebody wants them written now.
    urgent: bool,
}

/// Events of one kind at one backend.
struct Many {
    at: Timestamp,
    count: u64,
    first: Vec<Cid>,
    detail: String,
}

impl Many {
    fn into_events(self, kind: EventKind, backend: &BackendId) -> Vec<EventRecord> {
        let event = |subject: String| {
            EventRecord::new(self.at, kind, subject).backend(backend.as_str()).detail(&*self.detail)
        };
        if self.count as usize <= self.first.len() {
            return self.first.iter().map(|root| event(root.to_string())).collect();
        }
        let names: Vec<String> = self.first.iter().map(Cid::to_string).collect();
        let mut one = event(names.first().cloned().unwrap_or_default());
        one.count = self.count;
        let words =
            if self.detail.is_empty() { String::new() } else { format!("{}; ", self.detail) };
        one.detail = format!("{words}{} contents: {}, ...", self.count, names.join(", "));
        vec![one]
    }
}

impl Waiting {
    fn take(&mut self, now: Timestamp) -> Vec<EventRecord> {
        let mut events = std::mem::take(&mut self.single);
        for ((kind, backend), many) in std::mem::take(&mut self.many) {
            events.extend(many.into_events(kind, &backend));
        }
        events.sort_by_key(|event| event.at);
        if self.dropped > 0 {
            let mut said = EventRecord::new(now, EventKind::EventsDropped, "")
                .detail("more happened in a second than is kept");
            said.count = std::mem::take(&mut self.dropped);
            events.push(said);
        }
        self.urgent = false;
        events
    }

    fn is_empty(&self) -> bool {
        self.single.is_empty() && self.many.is_empty() && self.dropped == 0
    }
}

impl Inner {
    fn emit(&self, event: EventRecord) {
        let alarm = event.severity == Severity::Alarm;
        let full = {
            let mut waiting = self.waiting.lock();
            let full = waiting.single.len() >= WAITING;
            if full && (!alarm || waiting.single.len() >= ALARMS_WAITING) {
                waiting.dropped += event.count;
                telemetry::metrics().metadata_events_dropped.inc();
                return;
            }
            waiting.urgent |= event.severity >= Severity::Notice;
            waiting.single.push(event);
            full
        };
        if full {
            // An alarm waits for its place.
            self.flush();
        }
        self.changed.notify_all();
    }

    /// Writes all that waits. What cannot be written waits on, as far as it fits.
    fn flush(&self) {
        let _one = self.writing.lock();
        let events = {
            let mut waiting = self.waiting.lock();
            if waiting.is_empty() {
                return;
            }
            waiting.take(self.clock.now())
        };
        match self.namespace.append_events(&events) {
            Ok(dropped) => {
                self.failing.store(false, Ordering::Relaxed);
                telemetry::metrics().metadata_events_written.inc_by(events.len() as u64);
                telemetry::metrics().metadata_events_dropped.inc_by(dropped);
            }
            Err(error) => self.put_back(events, &error),
        }
        self.changed.notify_all();
    }

    fn put_back(&self, events: Vec<EventRecord>, error: &MetadataError) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "events cannot be written; it is tried again each second");
        }
        let mut waiting = self.waiting.lock();
        let later = std::mem::take(&mut waiting.single);
        for event in events.into_iter().chain(later) {
            let most = if event.severity == Severity::Alarm { ALARMS_WAITING } else { WAITING };
            if waiting.single.len() < most {
                waiting.single.push(event);
            } else {
                waiting.dropped += event.count;
            }
        }
    }

    fn told(&self, fire: Option<Fire>) {
        let Some(fire) = fire else { return };
        let Alarm { kind, subject, detail, .. } = &fire.alarm;
        let label = kind.as_str();
        let event = if fire.cleared {
            tracing::info!(alarm = label, subject, "an alarm is over");
            EventKind::AlarmCleared
        } else {
            tracing::error!(alarm = label, subject, detail, "alarm");
            telemetry::metrics().alarm(label);
            EventKind::AlarmRaised
        };
        let now = self.clock.now();
        let mut event = EventRecord::new(now, event, subject).detail(format!("{label}: {detail}"));
        if matches!(kind, AlarmKind::BackendDown | AlarmKind::Capacity) {
            event.backend.clone_from(subject);
        }
        self.emit(event);
        let mut fires = self.fires.lock();
        if fires.len() == FIRES {
            tracing::error!("alarms come faster than hooks can tell them; the oldest is left out");
            fires.pop_front();
        }
        fires.push_back(fire);
        drop(fires);
        self.changed.notify_all();
    }

    fn change(&self, change: impl FnOnce(&mut Alarms, Timestamp) -> Option<Fire>) {
        let fire = {
            let mut alarms = self.alarms.lock();
            let fire = change(&mut alarms, self.clock.now());
            if fire.is_some() {
                self.store(&alarms);
            }
            fire
        };
        self.told(fire);
    }

    /// Under the lock of `alarms`: a later change is written later.
    fn store(&self, alarms: &Alarms) {
        let stored = serde_json::to_vec(&alarms.active())
            .map_err(|e| MetadataError::Checkpoint(e.to_string()))
            .and_then(|text| self.namespace.store_alarms(&text));
        if let Err(error) = stored {
            tracing::error!(%error, "alarms cannot be stored; the next mount may raise them again");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Events {
    /// Into this tree. Alarms of its last life go on.
    ///
    /// # Errors
    /// `Storage`.
    pub fn new(namespace: Arc<Namespace>, clock: Arc<dyn Clock>) -> Result<Self, MetadataError> {
        let stored = namespace.stored_alarms()?.unwrap_or_default();
        // What is of a newer version, or damaged, is raised again.
        let stored: Vec<serde_json::Value> = serde_json::from_slice(&stored).unwrap_or_default();
        let active: Vec<Alarm> =
            stored.into_iter().filter_map(|alarm| serde_json::from_value(alarm).ok()).collect();
        Ok(Self(Some(Arc::new(Inner {
            namespace,
            clock,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            writing: Mutex::default(),
            alarms: Mutex::new(Alarms::from_active(active)),
            fires: Mutex::default(),
            failing: AtomicBool::new(false),
        }))))
    }

    /// Something happened.
    pub fn emit(&self, kind: EventKind, subject: &str, detail: &str) {
        if let Some(inner) = &self.0 {
            inner.emit(EventRecord::new(inner.clock.now(), kind, subject).detail(detail));
        }
    }

    /// Something happened at a backend.
    pub fn emit_at(&self, kind: EventKind, backend: &BackendId, subject: &str, detail: &str) {
        if let Some(inner) = &self.0 {
            let event = EventRecord::new(inner.clock.now(), kind, subject).detail(detail);
            inner.emit(event.backend(backend.as_str()));
        }
    }

    /// Something happened to contents (or blocks) at a backend; of many in a second,
    /// the number and the first are kept.
    pub fn emit_many<'c>(
        &self,
        kind: EventKind,
        backend: &BackendId,
        cids: impl IntoIterator<Item = &'c Cid>,
        detail: &str,
    ) {
        let Some(inner) = &self.0 else { return };
        let mut cids = cids.into_iter().peekable();
        if cids.peek().is_none() {
            return;
        }
        let mut waiting = inner.waiting.lock();
        let many = waiting.many.entry((kind, backend.clone())).or_insert_with(|| Many {
            at: inner.clock.now(),
            count: 0,
            first: Vec::new(),
            detail: detail.to_owned(),
        });
        for root in cids {
            many.count += 1;
            if many.first.len() < NAMED {
                many.first.push(*root);
            }
        }
    }

    /// Returns when all that was emitted before is in the tree.
    pub fn flush(&self) {
        if let Some(inner) = &self.0 {
            inner.flush();
        }
    }

    /// Wakes who waits in [`Events::wait_for_urgent`]: the end has begun.
    pub fn hurry(&self) {
        if let Some(inner) = &self.0 {
            inner.waiting.lock().urgent = true;
            inner.changed.notify_all();
        }
    }

    /// Waits until somebody wants events written, or for `time`.
    pub fn wait_for_urgent(&self, time: Duration) {
        let Some(inner) = &self.0 else { return };
        let start = Instant::now();
        let mut waiting = inner.waiting.lock();
        while !waiting.urgent {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() || inner.changed.wait_for(&mut waiting, left).timed_out() {
                return;
            }
        }
    }

    /// Waits until there is an event after `number`, or for `time`.
    pub fn wait_beyond(&self, number: u64, time: Duration) {
        let Some(inner) = &self.0 else { return };
        let start = Instant::now();
        let mut waiting = inner.waiting.lock();
        while inner.namespace.event_numbers().end <= number.saturating_add(1) {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return;
            }
            inner.changed.wait_for(&mut waiting, left);
        }
    }

    /// A cause for an alarm is there; told once, until it is cleared.
    pub fn raise(&self, kind: AlarmKind, subject: &str, detail: &str) {
        if let Some(inner) = &self.0 {
            inner.change(|alarms, now| alarms.raise(kind, subject, detail, now));
        }
    }

    /// The cause is gone.
    pub fn clear(&self, kind: AlarmKind, subject: &str) {
        if let Some(inner) = &self.0 {
            inner.change(|alarms, _| alarms.clear(kind, subject));
            inner.change(|alarms, _| alarms.clear_others(kind));
        }
    }

    /// A cause that was looked at: raised when it is there for `after`, and cleared
    /// when it is not.
    pub fn observe(&self, kind: AlarmKind, subject: &str, cause: Option<&str>, after: Duration) {
        if let Some(inner) = &self.0 {
            inner.change(|alarms, now| alarms.observe(kind, subject, cause, after, now));
        }
    }

    /// The alarms that hold.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        self.0.as_ref().map(|inner| inner.alarms.lock().active()).unwrap_or_default()
    }

    /// A hook was told of an alarm.
    pub fn mark_told(&self, kind: AlarmKind, subject: &str) {
        let Some(inner) = &self.0 else { return };
        let mut alarms = inner.alarms.lock();
        if alarms.mark_told(kind, subject) {
            inner.store(&alarms);
        }
    }

    /// Alarms that were raised or cleared since the last call.
    #[must_use]
    pub fn take_fires(&self) -> Vec<Fire> {
        self.0.as_ref().map(|inner| inner.fires.lock().drain(..).collect()).unwrap_or_default()
    }

    /// What is noted while results of a backend are recorded.
    pub(super) fn note<'e>(&'e self, backend: &'e BackendId) -> Noted<'e> {
        Noted { events: self, backend, seen: HashMap::new() }
    }
}

/// Results of one backend, as the rows say what they mean.
pub(super) struct Noted<'e> {
    events: &'e Events,
    backend: &'e BackendId,
    seen: HashMap<Cid, (Option<EventKind>, bool)>,
}

/// The state of a backend's copy.
pub(super) fn state_at(record: &ContentRecord, backend: &BackendId) -> Option<CopyState> {
    record.copies.iter().find(|copy| copy.backend == *backend).map(|copy| copy.state)
}

impl Noted<'_> {
    /// A row was changed. A transaction that is repeated says it again.
    pub fn saw(&mut self, root: &Cid, before: Option<CopyState>, record: &ContentRecord) {
        if self.events.0.is_none() {
            return;
        }
        let after = state_at(record, self.backend);
        let kind = match (before, after) {
            (
                Some(CopyState::Corrupt | CopyState::Lost),
                Some(CopyState::Claimed | CopyState::Verified),
            ) => Some(EventKind::CopyRepaired),
            (None | Some(CopyState::Released), Some(CopyState::Claimed | CopyState::Verified)) => {
                Some(EventKind::CopyPlaced)
            }
            (Some(CopyState::Claimed), Some(CopyState::Verified)) => Some(EventKind::CopyVerified),
            (Some(CopyState::Released), None) => None,
            (Some(_), None) => Some(EventKind::CopyReleased),
            (_, Some(CopyState::Released)) if before != after => Some(EventKind::CopyReleased),
            (_, Some(CopyState::Corrupt)) if before != after => Some(EventKind::CopyCorrupt),
            (_, Some(CopyState::Lost)) if before != after => Some(EventKind::CopyLost),
            _ => None,
        };
        let was_good = matches!(before, Some(CopyState::Claimed | CopyState::Verified));
        let bad = matches!(kind, Some(EventKind::CopyCorrupt | EventKind::CopyLost));
        let last = bad && was_good && record.refs > 0 && record.good_copies().next().is_none();
        self.seen.insert(*root, (kind, last));
    }

    /// The rows are committed.
    pub fn say(self, outcomes: &[(Cid, Outcome)]) {
        let mut by_kind: BTreeMap<EventKind, Vec<&Cid>> = BTreeMap::new();
        for (root, (kind, _)) in &self.seen {
            if let Some(kind) = kind {
                by_kind.entry(*kind).or_default().push(root);
            }
        }
        for (kind, roots) in by_kind {
            self.events.emit_many(kind, self.backend, roots, "");
        }
        for (root, outcome) in outcomes {
            if let Outcome::Failed(reason) = outcome {
                self.events.emit_many(EventKind::RoundFailed, self.backend, [root], reason);
            }
        }
        for (root, _) in self.seen.iter().filter(|(_, (_, last))| *last) {
            self.events.at_risk(root, self.backend);
        }
    }
}

impl Events {
    /// The last good copy that was known of a content was found bad at a backend.
    pub fn at_risk(&self, root: &Cid, backend: &BackendId) {
        let subject = root.to_string();
        let detail = format!("the copy at {backend} is bad, and no good one is known");
        self.emit_at(EventKind::ContentAtRisk, backend, &subject, &detail);
        self.raise(AlarmKind::Corrupt, &subject, &detail);
    }
}
