use std::ops::ControlFlow;

use super::stats::Delta;
use super::{Namespace, Tx, backends};
use crate::metadata::records::{damaged, decode};
use crate::metadata::{
    ContentRecord, CopyState, MetadataError, PinState, QueueRecord, Reader, keys,
};
use crate::types::{BackendId, Cid};

/// Rows that one transaction builds or clears at most.
const PAGE: usize = 512;

/// First byte behind the table's: pins with a row of the queue by risk, and by state,
/// and those without.
const WAITS: u8 = 0;
const WAITS_IN_STATE: u8 = 1;
const WAITS_FOR_NOTHING: u8 = 2;

/// How soon something is to be done for a content: the least comes first. The one order
/// of the queue, where it is worked on and where it is listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Risk {
    /// Distinct verified copies; 128 more where no copy is missing: what is moved, mended
    /// or given up all the same comes after all that has too few.
    rank: u8,
    /// Since when the work is wanted, in seconds since 1970.
    since_s: i64,
}

impl Risk {
    /// With so many verified copies, which are all that are wanted or not.
    #[must_use]
    pub fn new(verified: u8, complete: bool, since_s: i64) -> Self {
        const COMPLETE: u8 = 1 << 7;
        let rank = verified.min(COMPLETE - 1) + if complete { COMPLETE } else { 0 };
        Self { rank, since_s }
    }

    /// Of a content and its row of the queue.
    #[must_use]
    pub fn of(record: &ContentRecord, row: Option<&QueueRecord>) -> Self {
        let counted = row.map(|row| row.verified).filter(|n| *n != QueueRecord::NOT_COUNTED);
        let verified = counted.unwrap_or_else(|| {
            let verified = record.copies.iter().filter(|copy| copy.state == CopyState::Verified);
            u8::try_from(verified.count()).unwrap_or(u8::MAX)
        });
        let complete = matches!(record.pin, PinState::AtTarget | PinState::OverMax);
        Self::new(verified, complete, row.map_or(record.created_s, |row| row.since.seconds))
    }

    /// In bytes of the same order.
    fn bytes(self) -> [u8; 9] {
        let mut bytes = [self.rank; 9];
        // Times before 1970 come first.
        bytes[1..].copy_from_slice(&(self.since_s.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        bytes
    }
}

/// Which pins are listed, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinOrder {
    /// All of whose CID the bytes are in this range, by these bytes.
    ByCid(Vec<u8>, Vec<u8>),
    /// Those that wait in the queue, riskiest first ([`Risk`]).
    Waiting,
    /// Those, and then those that are not at their target and wait for nothing.
    ByRisk,
    /// The share of one state in that.
    InState(PinState),
    /// Those with a copy that is known to be bad, at one backend or at any.
    Damaged(CopyState, Option<BackendId>),
}

/// A pin that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRow {
    /// Its root.
    pub root: Cid,
    /// Its record.
    pub record: ContentRecord,
    /// Where the list goes on after it.
    pub key: Vec<u8>,
}

/// A part of a list of pins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinPage {
    /// Those that were wanted.
    pub pins: Vec<PinRow>,
    /// Rows that were looked at.
    pub examined: usize,
    /// Where the list goes on; `None` at its end.
    pub next: Option<Vec<u8>>,
}

impl PinOrder {
    /// All pins.
    #[must_use]
    pub fn all() -> Self {
        Self::ByCid(Vec::new(), vec![0xff])
    }

    /// The ranges of keys that it reads, in their order.
    fn ranges(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let below = |prefix: &[u8]| (prefix.to_vec(), keys::end_of(prefix));
        match self {
            Self::ByCid(from, to) => {
                let key = |bytes: &[u8]| [&[keys::CONTENT], bytes].concat();
                vec![(key(from), key(to))]
            }
            Self::Waiting => vec![below(&[keys::AT_RISK, WAITS])],
            Self::ByRisk => {
                [WAITS, WAITS_FOR_NOTHING].map(|waits| below(&[keys::AT_RISK, waits])).into()
            }
            Self::InState(state) => {
                let of = |waits| below(&[keys::AT_RISK, waits, *state as u8]);
                vec![of(WAITS_IN_STATE), of(WAITS_FOR_NOTHING)]
            }
            Self::Damaged(state, None) => vec![below(&[keys::DAMAGED, *state as u8])],
            Self::Damaged(state, Some(id)) => vec![below(&damage_prefix(*state, id))],
        }
    }

    /// Whether a list of this order can go on after `key`.
    #[must_use]
    pub fn has(&self, key: &[u8]) -> bool {
        let mut ranges = self.ranges().into_iter();
        ranges.any(|(start, end)| start.as_slice() <= key && key < end.as_slice())
    }

    /// The CID at the end of a key.
    pub(super) fn root_in(&self, key: &[u8]) -> Option<Cid> {
        let bytes = match self {
            Self::ByCid(..) => key.get(1..)?,
            Self::Waiting | Self::ByRisk | Self::InState(_) if key.get(1) == Some(&WAITS) => {
                key.get(11..)?
            }
            Self::Waiting | Self::ByRisk | Self::InState(_) => key.get(12..)?,
            Self::Damaged(..) => {
                let end = key.get(2..)?.iter().position(|byte| *byte == 0)?;
                key.get(end + 3..)?
            }
        };
        Cid::try_from(bytes).ok()
    }
}

/// Keys of table `K`: none for a pin that is as it should be, and for what is none.
pub(super) fn risk_keys(
    root: &Cid,
    record: &ContentRecord,
    row: Option<&QueueRecord>,
) -> Vec<Vec<u8>> {
    if record.refs == 0 || (record.pin == PinState::AtTarget && row.is_none()) {
        return Vec::new();
    }
    let (risk, root, state) = (Risk::of(record, row).bytes(), root.to_bytes(), record.pin as u8);
    let key = |first: &[u8]| [&[keys::AT_RISK], first, &risk, &root].concat();
    match row {
        Some(_) => vec![key(&[WAITS]), key(&[WAITS_IN_STATE, state])],
        None => vec![key(&[WAITS_FOR_NOTHING, state])],
    }
}

fn damage_prefix(state: CopyState, id: &BackendId) -> Vec<u8> {
    let mut key = vec![keys::DAMAGED, state as u8];
    key.extend_from_slice(id.as_str().as_bytes());
    key.push(0);
    key
}

/// Keys of table `L`.
pub(super) fn damage_keys(root: &Cid, record: &ContentRecord) -> Vec<Vec<u8>> {
    let bad = record.copies.iter().filter(|copy| {
        record.refs > 0 && matches!(copy.state, CopyState::Corrupt | CopyState::Lost)
    });
    bad.map(|copy| {
        let mut key = damage_prefix(copy.state, &copy.backend);
        key.extend_from_slice(&root.to_bytes());
        key
    })
    .collect()
}

/// A content and its row of the queue.
pub(super) type Indexed<'i> = (Option<&'i ContentRecord>, Option<&'i QueueRecord>);

impl Tx<'_> {
    /// Brings the indexes of a pin in line with its change. A content that goes the
    /// usual way has a row for as long as it waits in the queue.
    pub(super) fn index_pin(&mut self, root: &Cid, before: Indexed<'_>, after: Indexed<'_>) {
        let keys = |(record, row): Indexed<'_>| {
            let Some(record) = record else { return Vec::new() };
            let mut keys = damage_keys(root, record);
            keys.extend(risk_keys(root, record, row));
            keys
        };
        let (old, new) = (keys(before), keys(after));
        for key in old.iter().filter(|key| !new.contains(key)) {
            self.inner.delete(key);
        }
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.inner.put(key, &[]);
        }
    }
}

/// Keys of a range, at most a page.
fn key_page(reader: &dyn Reader, start: &[u8], end: &[u8]) -> Result<Vec<Vec<u8>>, MetadataError> {
    let mut page = Vec::new();
    reader.scan(start, end, &mut |key, _| {
        page.push(key.to_vec());
        if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(page)
}

impl Namespace {
    /// Pins that `wanted` wants, at most `limit`, after one key, in the order of their
    /// keys. Looks at `most` rows at most, so that it costs the same however few are
    /// wanted: a page may be empty and not the last.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn pins_page(
        &self,
        order: &PinOrder,
        after: Option<&[u8]>,
        (limit, most): (usize, usize),
        wanted: &mut dyn FnMut(&Cid, &ContentRecord) -> bool,
    ) -> Result<PinPage, MetadataError> {
        let mut page = PinPage::default();
        let snapshot = self.engine.snapshot()?;
        let reader = snapshot.as_ref();
        let mut outcome = Ok(());
        let mut last: Option<Vec<u8>> = None;
        let mut look = |page: &mut PinPage, key: &[u8], value: &[u8]| {
            page.examined += 1;
            let root = order.root_in(key).ok_or_else(|| damaged(key, "it names no content"))?;
            let record: Option<ContentRecord> = if matches!(order, PinOrder::ByCid(..)) {
                Some(decode(key, value)?)
            } else {
                let key = keys::of_cid(keys::CONTENT, &root);
                reader.get(&key)?.map(|value| decode(&key, &value)).transpose()?
            };
            if let Some(record) = record.filter(|record| record.refs > 0 && wanted(&root, record)) {
                page.pins.push(PinRow { root, record, key: key.to_vec() });
            }
            Ok(())
        };
        for (mut start, end) in order.ranges() {
            if let Some(after) = after.filter(|after| **after >= *start) {
                start = [after, &[0]].concat();
            }
            if start >= end {
                continue;
            }
            reader.scan(&start, &end, &mut |key, value| {
                if page.pins.len() >= limit || page.examined >= most {
                    // There is more: the page goes on after the last row that was looked at.
                    page.next.clone_from(&last);
                    return ControlFlow::Break(());
                }
                last = Some(key.to_vec());
                outcome = look(&mut page, key, value);
                if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if outcome.is_err() || page.next.is_some() {
                break;
            }
        }
        outcome.map(|()| page)
    }

    /// Makes the indexes of pins of a tree that has none, in bounded pages; done again
    /// from the start when it is cut off. Counts copies by their states.
    pub(super) fn build_pin_indexes(&self) -> Result<Delta, MetadataError> {
        let since = backends::trusted_since(self.engine.snapshot()?.as_ref())?;
        let pins = self.stats().pins;
        tracing::info!(pins, "an older volume: the indexes of its pins are made");
        for table in [keys::AT_RISK, keys::DAMAGED] {
            // What an earlier try left; who has not known of it may have changed contents.
            let mut start = vec![table];
            loop {
                let page = key_page(self.engine.snapshot()?.as_ref(), &start, &[table + 1])?;
                let Some(last) = page.last() else { break };
                self.run(|tx| {
                    page.iter().for_each(|key| tx.inner.delete(key));
                    Ok(())
                })?;
                start = [last.as_slice(), &[0]].concat();
            }
        }
        let (mut start, mut counted) = (vec![keys::CONTENT], Delta::default());
        loop {
            let page = key_page(self.engine.snapshot()?.as_ref(), &start, &[keys::CONTENT + 1])?;
            let Some(last) = page.last() else { return Ok(counted) };
            let records = self.run(|tx| {
                let mut records = Vec::new();
                for key in &page {
                    // What does not decode is told by a check; it stops no start.
                    let Ok(Some(record)) = tx.get::<ContentRecord>(key) else { continue };
                    let Ok(root) = Cid::try_from(&key[1..]) else { continue };
                    let row = tx.get(&keys::of_cid(keys::QUEUE, &root)).ok().flatten();
                    tx.index_pin(&root, (None, None), (Some(&record), row.as_ref()));
                    records.push(record);
                }
                Ok(records)
            })?;
            records.iter().for_each(|record| counted.content(None, Some(record), &since));
            start = [last.as_slice(), &[0]].concat();
        }
    }
}
