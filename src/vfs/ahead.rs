//! Reading ahead of who reads a file that is not here in order.
//!
//! As the kernel does for disks (mm/readahead.c): the second read that goes on where the
//! first ended asks for one leaf more, and each time the reader enters what was asked
//! for last, twice as much is asked for behind it. A read somewhere else ends that, and
//! so does the close: what is on its way lands and is kept, and no more is sent for.
//! Nothing here waits: where memory has no room the reader asks for less ahead. A file
//! that is here costs a look at three numbers a read.

use std::ops::{ControlFlow, Range};
use std::slice::from_ref;

use parking_lot::Mutex;

use super::Vfs;
use crate::content::{ContentError, LeafSpan, Link, Run, runs};
use crate::replication::{Wanted, Whereabouts};
use crate::types::Cid;

/// Bytes that are asked for at a time at most: with those that the reader is in, twice
/// as much is on its way.
const WINDOW: u64 = 8 << 20;
/// The kernel's own requests of a reader come out of order; an earlier one is no jump.
const BACK: u64 = 8 << 20;
/// Batches that were here already, after which nothing is looked for any more.
const HERE: u32 = 2;

/// What one handle reads.
#[derive(Default)]
pub(super) struct Ahead {
    stream: Mutex<Stream>,
    /// Of the content with this root.
    whereabouts: Mutex<Option<(Cid, Whereabouts)>>,
}

/// Reads in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stream {
    started: bool,
    /// Something that was read was not here.
    cold: bool,
    /// The end of what was read.
    next: u64,
    /// Bytes asked for last time.
    window: u64,
    /// The end of what was asked for.
    asked: u64,
    /// A reader that comes here asks for the next batch.
    mark: u64,
    here: u32,
}

impl Stream {
    /// A read, of a file of `size` bytes in leaves of `leaf`; `lacked`: some of it was not
    /// here. What is to be asked for ahead, if anything.
    fn read(&mut self, at: &Range<u64>, size: u64, leaf: u64, lacked: bool) -> Option<Range<u64>> {
        self.cold |= lacked;
        let len = at.end.saturating_sub(at.start);
        let back = if self.window > 0 { BACK } else { len };
        let follows = self.started
            && at.start <= self.next.saturating_add(self.window.max(len))
            && at.start.saturating_add(back) >= self.next;
        if !follows {
            *self = Self { started: true, cold: self.cold, next: at.end, ..Self::default() };
            return None;
        }
        // Also the second try of the same read.
        if at.end <= self.next {
            return None;
        }
        self.next = at.end;
        if !self.cold || self.next < self.mark {
            return None;
        }
        self.window = self.window.saturating_mul(2).clamp(leaf, WINDOW.max(leaf));
        let from = self.asked.max(self.next.next_multiple_of(leaf.max(1)));
        let to = from.saturating_add(self.window).min(size);
        self.mark = from;
        (from < to).then(|| {
            self.asked = to;
            from..to
        })
    }

    /// Of a batch all up to `until` is here or on its way; `sent`: some was not here.
    fn asked_for(&mut self, batch: &Range<u64>, until: u64, sent: bool) {
        if until < batch.end {
            // There was no room: from there on, with the next read.
            (self.asked, self.mark, self.window) = (until, self.next, self.window / 4);
        } else if sent {
            self.here = 0;
        } else {
            self.here += 1;
            if self.here >= HERE {
                (self.cold, self.here) = (false, 0);
            }
        }
    }
}

/// A file's content, for who reads ahead in it.
pub(super) struct Reading<'r> {
    pub root: Cid,
    pub size: u64,
    /// Its leaves, where they are listed.
    pub leaves: Option<&'r [LeafSpan]>,
}

impl Vfs {
    /// A read of `at` was tried; sends for what its reader will want next.
    pub(super) fn read_ahead(
        &self,
        ahead: &Ahead,
        reading: &Reading<'_>,
        at: &Range<u64>,
        lacked: bool,
    ) {
        let leaf = u64::from(self.options.profile.chunk_size);
        let batch = ahead.stream.lock().read(at, reading.size, leaf, lacked);
        let Some(batch) = batch else { return };
        let whereabouts = {
            let mut known = ahead.whereabouts.lock();
            if known.as_ref().is_none_or(|(root, _)| *root != reading.root) {
                *known = Some((reading.root, self.whereabouts_of(&reading.root)));
            }
            known.as_ref().map(|(_, whereabouts)| whereabouts.clone()).unwrap_or_default()
        };
        let (until, sent) = self.send_ahead(reading, &batch, &whereabouts);
        ahead.stream.lock().asked_for(&batch, until, sent);
    }

    /// Where a content lies, as far as that is known.
    pub(super) fn whereabouts_of(&self, root: &Cid) -> Whereabouts {
        self.replicator.whereabouts(root).unwrap_or_else(|error| {
            tracing::debug!(%error, cid = %root, "where a content lies is not known");
            Whereabouts::default()
        })
    }

    /// Sends for the leaves that begin in `batch` and are not here. Up to where, and
    /// whether any was not.
    fn send_ahead(
        &self,
        reading: &Reading<'_>,
        batch: &Range<u64>,
        whereabouts: &Whereabouts,
    ) -> (u64, bool) {
        let mut sent = false;
        let mut send = |wanted: Wanted| {
            // A disk that fails to answer is the reader's to tell.
            if self.replicator.is_here(&wanted.cid).unwrap_or(true) {
                return true;
            }
            sent = true;
            self.replicator.ahead(&wanted, false)
        };
        let wanted = |cid: Cid| Wanted { whereabouts: whereabouts.clone(), ..Wanted::new(cid) };
        let mut until = batch.end;
        let mut span = |span: &LeafSpan| {
            let wanted = Wanted { bytes: span.len, ..wanted(span.cid) };
            if span.offset < batch.start || send(wanted) {
                return ControlFlow::Continue(());
            }
            until = span.offset;
            ControlFlow::Break(())
        };
        if let Some(leaves) = reading.leaves {
            let first = leaves.partition_point(|span| span.offset < batch.start);
            for leaf in leaves[first..].iter().take_while(|span| span.offset < batch.end) {
                if span(leaf).is_break() {
                    break;
                }
            }
            return (until, sent);
        }
        let link = Link { cid: reading.root, size: reading.size, tsize: 0 };
        let mut node = None;
        let mut load = |id: &Cid| {
            if let Ok(Some(data)) = self.replicator.here(id) {
                return Ok(data);
            }
            node = Some(*id);
            Err(ContentError::Missing(*id))
        };
        let walked = runs(&link, from_ref(batch), Some(&self.zeros), &mut load, &mut |run| {
            Ok(match run {
                Run::Leaf(leaf) => span(&leaf),
                Run::Hole(_) => ControlFlow::Continue(()),
            })
        });
        if let (Err(_), Some(node)) = (walked, node) {
            // What is below it is known once it is here.
            send(wanted(node));
            until = batch.start;
        }
        (until, sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: u64 = 1 << 20;
    const SIZE: u64 = 256 * LEAF;

    /// Reads `file` in order from `from` by `step`, `steps` times; what was asked for.
    fn read_on(stream: &mut Stream, from: u64, step: u64, steps: u64) -> Vec<Range<u64>> {
        let reads = (0..steps).map(|n| from + n * step..(from + (n + 1) * step).min(SIZE));
        let mut asked = Vec::new();
        for at in reads {
            if let Some(batch) = stream.read(&at, SIZE, LEAF, true) {
                stream.asked_for(&batch, batch.end, true);
                asked.push(batch);
            }
        }
        asked
    }

    #[test]
    fn a_reader_in_order_gets_one_leaf_ahead_then_twice_as_many_up_to_a_bound() {
        let mut stream = Stream::default();
        let asked = read_on(&mut stream, 0, 128 << 10, SIZE / (128 << 10));
        let sizes: Vec<u64> = asked.iter().map(|batch| (batch.end - batch.start) / LEAF).collect();
        assert_eq!(sizes[..5], [1, 2, 4, 8, 8]);
        assert!(sizes.iter().all(|leaves| *leaves <= WINDOW / LEAF), "{sizes:?}");
        assert_eq!(asked[0].start, LEAF);
        assert!(asked.windows(2).all(|two| two[0].end == two[1].start), "none twice: {asked:?}");
        assert_eq!(asked.last().unwrap().end, SIZE, "and none beyond the end");
    }

    #[test]
    fn a_read_elsewhere_and_the_same_read_again_ask_for_nothing() {
        let mut stream = Stream::default();
        for n in 0..1000 {
            // Nowhere near the one before.
            let start = n * 7919 % (SIZE / 4096) * 4096;
            let at = start..start + 4096;
            assert_eq!(stream.read(&at, SIZE, LEAF, true), None, "{at:?}");
            assert_eq!(stream.read(&at, SIZE, LEAF, false), None, "the second try");
        }
        let mut stream = Stream::default();
        assert_eq!(read_on(&mut stream, 0, LEAF, 8).len(), 4);
        assert_eq!(stream.read(&(100 * LEAF..101 * LEAF), SIZE, LEAF, true), None);
        let again = stream.read(&(101 * LEAF..102 * LEAF), SIZE, LEAF, false);
        assert_eq!(again, Some(102 * LEAF..103 * LEAF), "it starts small again");
    }

    #[test]
    fn requests_of_one_reader_that_come_out_of_order_are_no_jump() {
        let mut stream = Stream::default();
        read_on(&mut stream, 0, LEAF / 4, 20);
        let window = stream.window;
        for leaf in [7, 6, 9, 8, 5] {
            stream.read(&(leaf * LEAF..(leaf + 1) * LEAF), SIZE, LEAF, true);
        }
        assert!(stream.window >= window && stream.next == 10 * LEAF, "{stream:?}");
    }

    #[test]
    fn a_file_that_is_here_is_not_looked_for() {
        let mut stream = Stream::default();
        for n in 0..100 {
            assert_eq!(stream.read(&(n * LEAF..(n + 1) * LEAF), SIZE, LEAF, false), None);
        }
        // One block was not; when the next batches are, nothing is looked for any more.
        let mut looks = 0;
        for n in 100..200 {
            if let Some(batch) = stream.read(&(n * LEAF..(n + 1) * LEAF), SIZE, LEAF, n == 100) {
                stream.asked_for(&batch, batch.end, false);
                looks += 1;
            }
        }
        assert_eq!(looks, HERE);
    }

    #[test]
    fn without_room_it_asks_for_less_and_from_where_it_ended() {
        let mut stream = Stream::default();
        read_on(&mut stream, 0, LEAF, 5);
        let window = stream.window;
        let batch = 8 * LEAF..16 * LEAF;
        stream.asked_for(&batch, 9 * LEAF, true);
        assert!(stream.window < window);
        let next = stream.read(&(5 * LEAF..6 * LEAF), SIZE, LEAF, false).unwrap();
        assert_eq!(next.start, 9 * LEAF);
        assert!(next.end - next.start <= window);
    }
}
