use std::collections::{BTreeMap, HashMap};

use crate::metadata::records::Stored;
use crate::metadata::{ContentRecord, CopyState, InodeRecord, QueueRecord};
use crate::types::{BackendId, FileKind, Timestamp};

impl Stored for Stats {
    const VERSION: u8 = 3;
    /// `corrupt` and `lost`: counted when the tree gets format 5. `trusted` and `newest`:
    /// when it gets format 7.
    const ADDED: &'static [&'static [u8]] = &[&[0, 0], &[0, 0]];
}

/// Since when each backend is trusted; one that is not there: always.
pub(super) type TrustedSince = HashMap<BackendId, Timestamp>;

/// Counters of the whole volume; exact after every commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Sum of file sizes.
    pub bytes: u64,
    /// Contents with refs > 0.
    pub pins: u64,
    /// Pins by state: `below_min`, `below_target`, `at_target`, `over_max`.
    pub pins_by_state: [u64; 4],
    /// Pins with a copy that only its backend vouches for.
    pub unverified: u64,
    /// Rows in the queue.
    pub queued: u64,
    /// Rows in the queue whose last round failed.
    pub failed: u64,
    /// Per backend: copies and bytes (content size) of pins.
    pub backends: BTreeMap<BackendId, (u64, u64)>,
    /// Pins with a copy whose bytes are wrong.
    pub corrupt: u64,
    /// Pins with a copy that is gone.
    pub lost: u64,
    /// Per backend: verified and claimed copies of pins that were looked at since the
    /// backend is trusted. Its other copies in `backends` are stale.
    pub trusted: BTreeMap<BackendId, (u64, u64)>,
    /// Per backend: the latest time at which a copy there was looked at, of all that ever
    /// were. Whoever trusts a backend anew does so from later on, whatever the clock says.
    pub newest: BTreeMap<BackendId, Timestamp>,
}

/// What one transaction adds to the counters.
#[derive(Debug, Default)]
pub(super) struct Delta {
    files: i64,
    directories: i64,
    bytes: i64,
    pins: i64,
    pins_by_state: [i64; 4],
    unverified: i64,
    queued: i64,
    failed: i64,
    backends: BTreeMap<BackendId, (i64, i64)>,
    pub corrupt: i64,
    pub lost: i64,
    trusted: BTreeMap<BackendId, (i64, i64)>,
    /// Backends whose copies were all looked at before they are trusted: from now on none
    /// counts.
    pub distrusted: Vec<BackendId>,
    /// Backends that are gone from the volume, after their copies.
    pub forgotten: Vec<BackendId>,
    newest: BTreeMap<BackendId, Timestamp>,
    pub touched: bool,
    /// Bytes of contents that lost their last reference.
    pub released: u64,
}

impl Delta {
    /// Takes over what an older tree did not count.
    pub fn count_anew(&mut self, counted: &Self) {
        self.trusted.clone_from(&counted.trusted);
        self.newest.clone_from(&counted.newest);
    }

    pub fn is_nothing(&self) -> bool {
        !self.touched && self.files == 0 && self.directories == 0 && self.bytes == 0
    }

    /// An inode's row changes from one state to another.
    pub fn inode(&mut self, before: Option<&InodeRecord>, after: Option<&InodeRecord>) {
        for (record, sign) in [(before, -1), (after, 1)] {
            let Some(record) = record else { continue };
            match record.kind {
                FileKind::File => {
                    self.files += sign;
                    self.bytes += sign * record.size.cast_signed();
                }
                FileKind::Directory => self.directories += sign,
                _ => {}
            }
        }
    }

    /// A content's row changes from one state to another.
    pub fn content(
        &mut self,
        before: Option<&ContentRecord>,
        after: Option<&ContentRecord>,
        since: &TrustedSince,
    ) {
        if let (Some(before), Some(after)) = (before, after)
            && before.refs > 0
            && after.refs == 0
        {
            self.released += before.tsize;
        }
        for (record, sign) in [(before, -1), (after, 1)] {
            let Some(record) = record.filter(|record| record.refs > 0) else { continue };
            self.touched = true;
            self.pins += sign;
            self.pins_by_state[record.pin as usize] += sign;
            self.unverified += sign * i64::from(record.is_unverified());
            self.corrupt += sign * i64::from(record.has_copy(CopyState::Corrupt));
            self.lost += sign * i64::from(record.has_copy(CopyState::Lost));
            for copy in record.good_copies() {
                let (copies, bytes) = self.backends.entry(copy.backend.clone()).or_default();
                *copies += sign;
                *bytes += sign * record.size.cast_signed();
                if copy.at >= since.get(&copy.backend).copied().unwrap_or_default() {
                    let (verified, claimed) = self.trusted.entry(copy.backend.clone()).or_default();
                    let is_verified = copy.state == CopyState::Verified;
                    *if is_verified { verified } else { claimed } += sign;
                }
                let newest = self.newest.entry(copy.backend.clone()).or_default();
                *newest = copy.at.max(*newest);
            }
        }
    }

    /// A queue row changes from one state to another.
    pub fn queue(&mut self, before: Option<&QueueRecord>, after: Option<&QueueRecord>) {
        for (record, sign) in [(before, -1), (after, 1)] {
            let Some(record) = record else { continue };
            self.touched = true;
            self.queued += sign;
            self.failed += sign * i64::from(!record.last_error.is_empty());
        }
    }
}

impl Stats {
    /// Whether both count the same; what is gone may be among the newest of one.
    pub(super) fn agrees(mut self, mut other: Self) -> bool {
        (self.newest, other.newest) = Default::default();
        self == other
    }

    /// Counted anew: what is known of copies that are gone stays known.
    pub(super) fn after(mut self, before: &Self) -> Self {
        self.remember(&before.newest);
        self
    }

    fn remember(&mut self, looks: &BTreeMap<BackendId, Timestamp>) {
        for (id, at) in looks {
            let newest = self.newest.entry(id.clone()).or_default();
            *newest = (*at).max(*newest);
        }
    }

    pub(super) fn plus(&self, delta: &Delta) -> Self {
        let mut sum = self.clone();
        let add = |value: &mut u64, by: i64| *value = value.saturating_add_signed(by);
        add(&mut sum.files, delta.files);
        add(&mut sum.directories, delta.directories);
        add(&mut sum.bytes, delta.bytes);
        add(&mut sum.pins, delta.pins);
        for (value, by) in sum.pins_by_state.iter_mut().zip(delta.pins_by_state) {
            add(value, by);
        }
        add(&mut sum.unverified, delta.unverified);
        add(&mut sum.queued, delta.queued);
        add(&mut sum.failed, delta.failed);
        add(&mut sum.corrupt, delta.corrupt);
        add(&mut sum.lost, delta.lost);
        for (id, (copies, bytes)) in &delta.backends {
            let entry = sum.backends.entry(id.clone()).or_default();
            add(&mut entry.0, *copies);
            add(&mut entry.1, *bytes);
        }
        sum.backends.retain(|_, (copies, bytes)| *copies > 0 || *bytes > 0);
        for id in &delta.distrusted {
            sum.trusted.remove(id);
        }
        for (id, (verified, claimed)) in &delta.trusted {
            let entry = sum.trusted.entry(id.clone()).or_default();
            add(&mut entry.0, *verified);
            add(&mut entry.1, *claimed);
        }
        sum.trusted.retain(|_, (verified, claimed)| *verified > 0 || *claimed > 0);
        for id in &delta.forgotten {
            sum.newest.remove(id);
        }
        sum.remember(&delta.newest);
        sum
    }
}
