//! What the scrub did, told once an hour: an event for each copy would be more than all
//! others. What was read since is not told at an unmount, whose event is the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::machine::Outcome;
use crate::types::{BackendId, ByteSize, Cid};

const EACH: Duration = Duration::from_hours(1);

#[derive(Debug, Default)]
struct Tally {
    good: u64,
    bad: u64,
    bytes: u64,
}

/// Copies that were read back since it was told last.
#[derive(Debug)]
pub(super) struct Scrubbed {
    told: Instant,
    tallies: BTreeMap<BackendId, Tally>,
}

impl Scrubbed {
    pub fn new(now: Instant) -> Self {
        Self { told: now, tallies: BTreeMap::new() }
    }

    pub fn add(&mut self, id: &BackendId, outcomes: &[(Cid, Outcome)], bytes: u64) {
        let tally = self.tallies.entry(id.clone()).or_default();
        for (_, outcome) in outcomes {
            match outcome {
                Outcome::Bad(_) => tally.bad += 1,
                _ => tally.good += 1,
            }
        }
        tally.bytes = tally.bytes.saturating_add(bytes);
    }

    /// What is to be told now: of each place with anything new.
    pub fn due(&mut self, now: Instant) -> Vec<(BackendId, String)> {
        if now.duration_since(self.told) < EACH {
            return Vec::new();
        }
        self.told = now;
        let tallies = std::mem::take(&mut self.tallies).into_iter();
        let some = tallies.filter(|(_, tally)| tally.good + tally.bad > 0);
        some.map(|(id, Tally { good, bad, bytes })| {
            (id, format!("{good} copies are good, {bad} bad; {} read", ByteSize(bytes)))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{CopyState, VerifyMethod};
    use crate::types::cid;

    #[test]
    fn it_is_told_once_an_hour() {
        let start = Instant::now();
        let (mut scrubbed, id) = (Scrubbed::new(start), BackendId::local());
        let root = cid::of_raw(b"x");
        let good = (root, Outcome::Verified(VerifyMethod::ReadBack));
        scrubbed.add(&id, &[good.clone(), good.clone()], 1 << 20);
        scrubbed.add(&id, &[(root, Outcome::Bad(CopyState::Lost))], 1 << 20);
        assert!(scrubbed.due(start + EACH / 2).is_empty());
        let told = scrubbed.due(start + EACH);
        assert_eq!(told, [(id.clone(), "2 copies are good, 1 bad; 2.0 MiB read".to_owned())]);
        assert!(scrubbed.due(start + EACH * 2).is_empty(), "nothing new");
        scrubbed.add(&id, &[good], 0);
        assert!(scrubbed.due(start + EACH * 2).is_empty());
        assert_eq!(scrubbed.due(start + EACH * 3).len(), 1);
    }
}
