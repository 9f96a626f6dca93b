//! Which alarms hold, and how often they are told. No I/O; the time is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// Subjects of one kind that are kept apart.
const SUBJECTS: usize = 128;
/// Stands for the subjects beyond them.
pub const OTHERS: &str = "others";
/// Alarms that a limit remembers.
const REMEMBERED: usize = 1024;

/// What somebody has to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// Contents have fewer copies than their policy's min.
    BelowMin,
    /// No good copy of a content is known.
    Corrupt,
    /// A backend has not answered for a while.
    BackendDown,
    /// A place is nearly full.
    Capacity,
    /// Costs are above their ceiling.
    Cost,
    /// Nothing is wrong: `cairn hooks test`.
    Test,
}

impl AlarmKind {
    /// All that a hook can wait for.
    pub const ALL: [Self; 6] =
        [Self::BelowMin, Self::Corrupt, Self::BackendDown, Self::Capacity, Self::Cost, Self::Test];

    /// As in JSON and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BelowMin => "below_min",
            Self::Corrupt => "corrupt",
            Self::BackendDown => "backend_down",
            Self::Capacity => "capacity",
            Self::Cost => "cost",
            Self::Test => "test",
        }
    }

    /// The reverse of [`AlarmKind::as_str`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What to do about it, for people.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::BelowMin => {
                "`cairn status` shows which places are away; add one (`cairn backend add`) or bring one back"
            }
            Self::Corrupt => {
                "attach a place that has had it, or write the file anew from where it came; `cairn events --kind content_at_risk` lists all"
            }
            Self::BackendDown => {
                "`cairn backend show` has its last error; its copies count again when it is back"
            }
            Self::Capacity => "make room there, or add a place (`cairn backend add`)",
            Self::Cost => "raise the ceiling, or choose cheaper places (`cairn policy set`)",
            Self::Test => "nothing: somebody tries the hooks (`cairn hooks test`)",
        }
    }
}

/// An alarm that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Which.
    pub kind: AlarmKind,
    /// About what: a backend, a CID, `volume`.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// Since when it is known.
    pub since: Timestamp,
    /// A hook was told of it.
    #[serde(default)]
    pub told: bool,
}

/// An alarm that was just raised, or cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fire {
    /// Which one.
    pub alarm: Alarm,
    /// Its cause is gone.
    pub cleared: bool,
}

type Key = (AlarmKind, String);

/// The alarms of a volume. Each is raised once and cleared once, however often its
/// cause is seen.
#[derive(Debug, Default)]
pub struct Alarms {
    active: BTreeMap<Key, Alarm>,
    /// Causes that do not hold for long enough, and since when they do.
    pending: BTreeMap<Key, Timestamp>,
}

fn since(start: Timestamp, now: Timestamp) -> Duration {
    let nanos = now.as_nanos().saturating_sub(start.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

impl Alarms {
    /// Goes on with the alarms of the last life.
    #[must_use]
    pub fn from_active(active: Vec<Alarm>) -> Self {
        let active =
            active.into_iter().map(|alarm| ((alarm.kind, alarm.subject.clone()), alarm)).collect();
        Self { active, pending: BTreeMap::new() }
    }

    /// Those that hold, by kind.
    #[must_use]
    pub fn active(&self) -> Vec<Alarm> {
        self.active.values().cloned().collect()
    }

    fn count(&self, kind: AlarmKind) -> usize {
        self.active.keys().filter(|(of, subject)| *of == kind && subject != OTHERS).count()
    }

    /// A cause is there. `None` when that is known; then the words are renewed.
    pub fn raise(
        &mut self,
        kind: AlarmKind,
        subject: &str,
        detail: &str,
        now: Timestamp,
    ) -> Option<Fire> {
        if let Some(alarm) = self.active.get_mut(&(kind, subject.to_owned())) {
            detail.clone_into(&mut alarm.detail);
            return None;
        }
        if self.count(kind) >= SUBJECTS && subject != OTHERS {
            let detail = format!("and more than these {SUBJECTS}; the first of them: {detail}");
            let known = self.active.contains_key(&(kind, OTHERS.to_owned()));
            return if known { None } else { self.raise(kind, OTHERS, &detail, now) };
        }
        let alarm = Alarm {
            kind,
            subject: subject.to_owned(),
            detail: detail.to_owned(),
            since: now,
            told: false,
        };
        self.active.insert((kind, subject.to_owned()), alarm.clone());
        Some(Fire { alarm, cleared: false })
    }

    /// A hook was told that it holds. True when that is new.
    pub fn mark_told(&mut self, kind: AlarmKind, subject: &str) -> bool {
        let alarm = self.active.get_mut(&(kind, subject.to_owned()));
        alarm.is_some_and(|alarm| !std::mem::replace(&mut alarm.told, true))
    }

    /// The cause is gone. `None` when there was no such alarm.
    pub fn clear(&mut self, kind: AlarmKind, subject: &str) -> Option<Fire> {
        self.pending.remove(&(kind, subject.to_owned()));
        let alarm = self.active.remove(&(kind, subject.to_owned()))?;
        Some(Fire { alarm, cleared: true })
    }

    /// Those beyond the subjects that are kept apart are over when none of these is
    /// left.
    pub fn clear_others(&mut self, kind: AlarmKind) -> Option<Fire> {
        if self.count(kind) > 0 { None } else { self.clear(kind, OTHERS) }
    }

    /// A cause that was looked at: there (with words), or not. The alarm is raised
    /// when it has been there at every look for `after`.
    pub fn observe(
        &mut self,
        kind: AlarmKind,
        subject: &str,
        cause: Option<&str>,
        after: Duration,
        now: Timestamp,
    ) -> Option<Fire> {
        let Some(detail) = cause else { return self.clear(kind, subject) };
        let key = (kind, subject.to_owned());
        let start = self.pending.entry(key.clone()).or_insert(now);
        // The clock was set back: it is counted anew.
        *start = (*start).min(now);
        let long = since(*start, now) >= after;
        if !long && !self.active.contains_key(&key) {
            return None;
        }
        self.raise(kind, subject, detail, now)
    }
}

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub fire: Fire,
    /// How often it was raised since the last time it was told, and not told.
    pub held_back: u64,
}

#[derive(Debug)]
struct Told {
    at: Timestamp,
    held_back: u64,
    /// Raised, and to be told when the interval is over.
    waiting: Option<Alarm>,
    /// The last that was told is that it holds.
    holds: bool,
}

/// Lets an alarm of one kind and subject through once an interval. What is held back
/// is counted, and what still holds at the end of the interval is told then.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    told: BTreeMap<Key, Told>,
}

impl RateLimit {
    /// At most one in `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval, told: BTreeMap::new() }
    }

    /// The last life of the volume told of it, and it still holds.
    pub fn resume(&mut self, alarm: &Alarm) {
        let told = Told { at: alarm.since, held_back: 0, waiting: None, holds: true };
        self.told.insert((alarm.kind, alarm.subject.clone()), told);
    }

    /// What is to be told at once, if anything.
    pub fn offer(&mut self, fire: &Fire, now: Timestamp) -> Option<Notice> {
        let key = (fire.alarm.kind, fire.alarm.subject.clone());
        if fire.cleared {
            let told = self.told.get_mut(&key)?;
            let held = std::mem::take(&mut told.holds);
            if told.waiting.take().is_some() || !held {
                // Nobody was told that it holds.
                return None;
            }
            return Some(Notice { fire: fire.clone(), held_back: 0 });
        }
        self.forget(now);
        if let Some(told) = self.told.get_mut(&key) {
            told.at = told.at.min(now);
            if since(told.at, now) < self.interval {
                told.held_back += 1;
                told.waiting = Some(fire.alarm.clone());
                return None;
            }
        }
        let before =
            self.told.insert(key, Told { at: now, held_back: 0, waiting: None, holds: true });
        let held_back = before.map_or(0, |told| told.held_back);
        Some(Notice { fire: fire.clone(), held_back })
    }

    /// What was to be told could not be: while it holds, it is told again when the
    /// interval is over.
    pub fn failed(&mut self, fire: &Fire) {
        let key = (fire.alarm.kind, fire.alarm.subject.clone());
        if let Some(told) = self.told.get_mut(&key).filter(|told| told.holds && !fire.cleared)
            && told.waiting.is_none()
        {
            told.held_back += 1;
            told.waiting = Some(fire.alarm.clone());
        }
    }

    /// What was held back, still holds, and may be told now.
    pub fn due(&mut self, now: Timestamp) -> Vec<Notice> {
        let interval = self.interval;
        let over = |told: &&mut Told| since(told.at, now) >= interval;
        let notice = |told: &mut Told| {
            let alarm = told.waiting.take()?;
            let held_back = std::mem::take(&mut told.held_back).saturating_sub(1);
            (told.at, told.holds) = (now, true);
            Some(Notice { fire: Fire { alarm, cleared: false }, held_back })
        };
        self.told.values_mut().filter(over).filter_map(notice).collect()
    }

    /// What has nothing to say any more goes; of too many, the oldest.
    fn forget(&mut self, now: Timestamp) {
        let interval = self.interval;
        self.told
            .retain(|_, told| told.holds || told.held_back > 0 || since(told.at, now) < interval);
        while self.told.len() >= REMEMBERED {
            let oldest = self.told.iter().min_by_key(|(_, told)| told.at);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.told.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanoseconds: 0 }
    }

    fn fire(subject: &str, cleared: bool) -> Fire {
        let alarm = Alarm {
            kind: AlarmKind::BackendDown,
            subject: subject.into(),
            detail: "no answer".into(),
            since: at(0),
            told: false,
        };
        Fire { alarm, cleared }
    }

    #[test]
    fn every_kind_fires_once_when_raised_and_once_when_cleared() {
        for kind in AlarmKind::ALL {
            let mut alarms = Alarms::default();
            let raised = alarms.raise(kind, "x", "why", at(5)).unwrap();
            assert_eq!((raised.cleared, raised.alarm.since), (false, at(5)));
            assert_eq!(alarms.raise(kind, "x", "still", at(6)), None);
            assert_eq!(alarms.active()[0].detail, "still");
            assert!(alarms.clear(kind, "x").unwrap().cleared);
            assert_eq!((alarms.clear(kind, "x"), alarms.active().len()), (None, 0));
            assert_eq!(AlarmKind::from_name(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert!(!kind.advice().is_empty());
        }
    }

    #[test]
    fn a_ceiling_of_cost_is_an_alarm_like_any_other() {
        let mut alarms = Alarms::default();
        let fired = alarms.raise(AlarmKind::Cost, "volume", "12.40 of 10.00 a month", at(1));
        assert_eq!(fired.unwrap().alarm.kind.as_str(), "cost");
    }

    #[test]
    fn a_cause_must_hold_for_a_while_and_at_every_look() {
        let mut alarms = Alarms::default();
        let mut look = |cause, now| {
            alarms.observe(AlarmKind::BelowMin, "volume", cause, HOUR, at(now)).map(|f| f.cleared)
        };
        assert_eq!(look(Some("3 contents"), 0), None);
        assert_eq!(look(None, 1800), None);
        assert_eq!(look(Some("4 contents"), 1801), None);
        assert_eq!(look(Some("4 contents"), 3600), None, "not for an hour on end");
        assert_eq!(look(Some("4 contents"), 5401), Some(false));
        assert_eq!(look(Some("5 contents"), 9000), None, "raised once");
        assert_eq!(look(None, 9001), Some(true));
        assert_eq!(look(None, 9002), None);
        assert_eq!(look(Some("5 contents"), 9003), None, "and anew from the start");
    }

    #[test]
    fn a_clock_that_is_set_back_raises_nothing_early() {
        let mut alarms = Alarms::default();
        let mut look = |now| alarms.observe(AlarmKind::BelowMin, "v", Some("x"), HOUR, at(now));
        assert_eq!(look(1_000_000), None);
        assert_eq!(look(0), None);
        assert_eq!(look(3599), None);
        assert!(look(3600).is_some());
    }

    #[test]
    fn very_many_subjects_are_one_more_alarm() {
        let mut alarms = Alarms::default();
        let raised = (0..1000)
            .filter(|n| alarms.raise(AlarmKind::Corrupt, &n.to_string(), "x", at(0)).is_some());
        assert_eq!(raised.count(), SUBJECTS + 1);
        assert!(alarms.active().iter().any(|alarm| alarm.subject == OTHERS));
        assert_eq!(alarms.clear_others(AlarmKind::Corrupt), None);
        for n in 0..1000 {
            alarms.clear(AlarmKind::Corrupt, &n.to_string());
        }
        assert!(alarms.clear_others(AlarmKind::Corrupt).is_some());
        assert!(alarms.active().is_empty());
    }

    #[test]
    fn alarms_of_the_last_life_are_not_raised_again() {
        let mut alarms = Alarms::default();
        alarms.raise(AlarmKind::Corrupt, "bafy", "x", at(7));
        let mut next = Alarms::from_active(alarms.active());
        assert_eq!(next.raise(AlarmKind::Corrupt, "bafy", "x", at(99)), None);
        assert_eq!(next.observe(AlarmKind::Corrupt, "bafy", Some("x"), HOUR, at(99)), None);
        assert_eq!(next.clear(AlarmKind::Corrupt, "bafy").unwrap().alarm.since, at(7));
    }

    #[test]
    fn what_the_last_life_told_is_not_told_again_but_its_end_is() {
        let mut limit = RateLimit::new(HOUR);
        limit.resume(&fire("b", false).alarm);
        assert!(limit.due(at(9999)).is_empty());
        assert!(limit.offer(&fire("b", true), at(9999)).is_some());
        let mut alarms = Alarms::default();
        alarms.raise(AlarmKind::Cost, "volume", "x", at(0));
        assert!(alarms.mark_told(AlarmKind::Cost, "volume"));
        assert!(!alarms.mark_told(AlarmKind::Cost, "volume"));
        assert!(!alarms.mark_told(AlarmKind::Cost, "another"));
    }

    #[test]
    fn one_an_hour_is_told_and_the_next_says_how_many_were_held_back() {
        let mut limit = RateLimit::new(HOUR);
        let told = |notice: Option<Notice>| notice.map(|n| (n.fire.cleared, n.held_back));
        assert_eq!(told(limit.offer(&fire("b", false), at(0))), Some((false, 0)));
        assert_eq!(told(limit.offer(&fire("b", true), at(60))), Some((true, 0)));
        for n in 2..5 {
            assert_eq!(told(limit.offer(&fire("b", false), at(n * 60))), None);
            assert_eq!(told(limit.offer(&fire("b", true), at(n * 60 + 1))), None, "never told");
        }
        assert_eq!(told(limit.offer(&fire("c", false), at(300))), Some((false, 0)), "another one");
        assert!(limit.due(at(3600)).is_empty(), "it does not hold any more");
        assert_eq!(told(limit.offer(&fire("b", false), at(3600))), Some((false, 3)));
    }

    #[test]
    fn what_still_holds_when_the_interval_is_over_is_told_then() {
        let mut limit = RateLimit::new(HOUR);
        limit.offer(&fire("b", false), at(0));
        limit.offer(&fire("b", true), at(1));
        assert_eq!(limit.offer(&fire("b", false), at(2)), None);
        assert!(limit.due(at(3599)).is_empty());
        let due = limit.due(at(3600));
        assert_eq!((due.len(), due[0].held_back, due[0].fire.cleared), (1, 0, false));
        assert!(limit.due(at(9999)).is_empty(), "once");
        assert!(limit.offer(&fire("b", true), at(10_000)).is_some());
    }

    #[test]
    fn what_could_not_be_told_is_told_again_while_it_holds() {
        let mut limit = RateLimit::new(HOUR);
        limit.offer(&fire("b", false), at(0));
        limit.failed(&fire("b", false));
        assert!(limit.due(at(3599)).is_empty());
        let due = limit.due(at(3600));
        assert_eq!((due.len(), due[0].held_back), (1, 0));
        limit.failed(&due[0].fire);
        assert_eq!(limit.offer(&fire("b", true), at(3700)), None, "nobody knows that it held");
        limit.failed(&fire("b", false));
        assert!(limit.due(at(9999)).is_empty());
    }

    #[test]
    fn a_limit_forgets_and_is_bounded() {
        let mut limit = RateLimit::new(HOUR);
        for n in 0..5000 {
            limit.offer(&fire(&n.to_string(), false), at(n));
        }
        assert!(limit.told.len() <= REMEMBERED);
        for n in 0..5000 {
            limit.offer(&fire(&n.to_string(), true), at(5000));
        }
        limit.offer(&fire("x", false), at(20_000));
        assert_eq!(limit.told.len(), 1);
    }

    proptest! {
        #[test]
        fn no_more_than_one_an_interval_and_nothing_that_holds_is_forgotten(
            steps in prop::collection::vec((0..900i64, any::<bool>()), 1..200),
        ) {
            let mut limit = RateLimit::new(HOUR);
            let (mut now, mut holds, mut raised, mut accounted) = (0, false, 0u64, 0u64);
            let mut last_told = None;
            let mut known = false;
            for (pause, raise) in steps {
                now += pause;
                let mut notices = limit.due(at(now));
                if raise != holds {
                    holds = raise;
                    raised += u64::from(raise);
                    notices.extend(limit.offer(&fire("b", !raise), at(now)));
                }
                for notice in notices {
                    known = !notice.fire.cleared;
                    if known {
                        prop_assert!(last_told.is_none_or(|last| now - last >= 3600));
                        last_told = Some(now);
                        accounted += 1 + notice.held_back;
                    }
                }
            }
            // After one more interval, what holds was told, and all are accounted for.
            for notice in limit.due(at(now + 3600)) {
                known = true;
                accounted += 1 + notice.held_back;
            }
            prop_assert_eq!(known, holds);
            if holds {
                prop_assert_eq!(accounted, raised);
            }
        }
    }
}
