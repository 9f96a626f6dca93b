use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Severity;
use crate::metadata::EventRecord;
use crate::types::Timestamp;

/// Which events are asked for. Parts that are empty exclude nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventQuery {
    /// The first ones after this number; without it, the last ones there are.
    pub after: Option<u64>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// One of these kinds.
    pub kinds: Vec<String>,
    /// At least this severe.
    pub severity: Option<Severity>,
    /// About this backend.
    pub backend: Option<String>,
    /// What the subject begins with.
    pub subject: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// An event with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedEvent {
    /// Rises, with gaps.
    pub number: u64,
    /// What happened.
    pub event: EventRecord,
}

/// Events in their order, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventPage {
    /// At most as many as were asked for.
    pub events: Vec<NumberedEvent>,
    /// `after` of the next page. Without events, all up to here were looked at.
    pub next: u64,
    /// Whether there may be more in the direction of the question.
    pub more: bool,
}

impl EventQuery {
    /// Events of one page at most.
    pub const LIMIT_MAX: usize = 10_000;

    /// Whether an event is asked for, its number aside.
    #[must_use]
    pub fn wants(&self, event: &EventRecord) -> bool {
        self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at <= until)
            && self.wants_kind(&event.kind)
            && self.severity.is_none_or(|least| event.severity >= least)
            && self.backend.as_ref().is_none_or(|backend| *backend == event.backend)
            && self.wants_subject(&event.subject)
    }

    pub(super) fn wants_kind(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind)
    }

    pub(super) fn wants_subject(&self, subject: &str) -> bool {
        self.subject.as_ref().is_none_or(|prefix| subject.starts_with(prefix.as_str()))
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.clamp(1, Self::LIMIT_MAX)
    }
}

/// The first or the last events of a run, bounded.
pub(super) struct Page {
    from_start: bool,
    limit: usize,
    pub events: VecDeque<NumberedEvent>,
    pub more: bool,
}

impl Page {
    pub fn new(query: &EventQuery) -> Self {
        let (from_start, limit) = (query.after.is_some(), query.limit());
        Self { from_start, limit, events: VecDeque::new(), more: false }
    }

    pub fn is_full(&self) -> bool {
        self.events.len() >= self.limit
    }

    /// Adds a run in the order of its numbers, behind what there is when the page
    /// is filled from the start, else before it.
    pub fn add(&mut self, run: Vec<NumberedEvent>) {
        if self.from_start {
            for event in run {
                if self.is_full() {
                    self.more = true;
                    return;
                }
                self.events.push_back(event);
            }
            return;
        }
        for event in run.into_iter().rev() {
            if self.is_full() {
                self.more = true;
                return;
            }
            self.events.push_front(event);
        }
    }
}
