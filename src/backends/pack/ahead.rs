//! Reads that come one after the other become larger ones: proofs, walks and healing ask
//! for thousands of small blocks in about the order in which they were written.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::Shelf;
use crate::backends::BackendError;

/// A read is at most so large, unless a block is.
const MOST: u64 = 1 << 20;
/// What is kept at a time.
const BUDGET: u64 = 16 << 20;
/// A read that begins so far behind another one follows it.
const NEAR: u64 = 64 << 10;
/// After so many reads of a pack, here and there, more of it is wanted.
const MANY: usize = 4;
/// Bytes are the place's answer for so long, and no longer.
const FRESH: Duration = Duration::from_secs(10);

/// A part of a pack that is read, or was.
#[derive(Debug)]
struct Piece {
    pack: String,
    range: Range<u64>,
    since: Instant,
    /// Where what was given out begins. It is given once: who asks again wants to know what
    /// the place has now.
    given: HashSet<u64>,
    /// `None`: the pack was not there.
    data: Data,
}

type Data = Arc<OnceCell<Option<Bytes>>>;

/// What was read lately. A single read moves what was asked for and no more; each that
/// follows another one twice as much as that; and of a pack that is read here and there
/// (proofs go by age, and within a second by CID) whole pieces come.
#[derive(Debug, Default)]
pub(super) struct Pieces(Mutex<VecDeque<Piece>>);

impl Pieces {
    /// The bytes of a range, fewer when the pack ends before; `None` when it is not there.
    pub async fn read(
        &self,
        shelf: &dyn Shelf,
        pack: &str,
        wanted: Range<u64>,
    ) -> Result<Option<Bytes>, BackendError> {
        let (range, data) = self.piece(pack, &wanted);
        let read = || shelf.read(pack, Some(range.clone()));
        let whole = match data.get_or_try_init(read).await {
            // What is bad may be beside it.
            Err(_) if range != wanted => return shelf.read(pack, Some(wanted)).await,
            other => other?,
        };
        let Some(whole) = whole else { return Ok(None) };
        let len = whole.len() as u64;
        let (start, end) = (wanted.start - range.start, wanted.end - range.start);
        Ok(Some(whole.slice(start.min(len) as usize..end.min(len) as usize)))
    }

    /// The piece that has it, or a new one.
    fn piece(&self, pack: &str, wanted: &Range<u64>) -> (Range<u64>, Data) {
        let mut pieces = self.0.lock();
        let now = Instant::now();
        pieces.retain(|piece| now.duration_since(piece.since) < FRESH);
        let has = |piece: &&mut Piece| {
            let range = &piece.range;
            piece.pack == pack && range.start <= wanted.start && wanted.end <= range.end
        };
        let mut again = false;
        if let Some(piece) = pieces.iter_mut().rev().find(has) {
            again = !piece.given.insert(wanted.start);
            if !again {
                return (piece.range.clone(), Arc::clone(&piece.data));
            }
        }
        let of = || pieces.iter().rev().filter(|piece| piece.pack == pack);
        let follows = |range: &Range<u64>| {
            (range.start..range.end.saturating_add(NEAR)).contains(&wanted.start)
        };
        let before = of().find(|piece| follows(&piece.range));
        let ahead = before.map(|piece| (piece.range.end - piece.range.start) * 2);
        let range = match ahead {
            _ if again => wanted.clone(),
            Some(ahead) => wanted.start..wanted.end.max(wanted.start + ahead.min(MOST)),
            None if of().count() >= MANY => {
                let start = wanted.start / MOST * MOST;
                start..wanted.end.max(start + MOST)
            }
            None => wanted.clone(),
        };
        let data = Data::default();
        pieces.push_back(Piece {
            pack: pack.to_owned(),
            range: range.clone(),
            since: now,
            given: HashSet::from([wanted.start]),
            data: Arc::clone(&data),
        });
        let mut kept: u64 = pieces.iter().map(|piece| piece.range.end - piece.range.start).sum();
        while kept > BUDGET && pieces.len() > 1 {
            let oldest = pieces.pop_front().map_or(0, |piece| piece.range.end - piece.range.start);
            kept -= oldest;
        }
        (range, data)
    }
}
