//! Bytes of all blocks and packs, where `capacity=` asks for them and the place does not
//! tell them. Counted once after opening by a listing (a thousand blocks a page), behind
//! everything else, then kept. What another process puts there meanwhile is counted at
//! the next opening.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{BackendError, ErrorKind, ListPage};
use crate::types::{Block, Cid};

/// Blocks a page of the count.
const PAGE: usize = 1000;
/// Blocks that are asked for at a time.
const AT_ONCE: usize = 16;

/// A place whose bytes are counted.
pub(super) trait Counted: Send + Sync + 'static {
    /// Its count.
    fn counter(&self) -> &Counter;
    /// For people, without secrets.
    fn at(&self) -> &str;
    /// Where a block lies; in the order of the listing.
    fn key(cid: &Cid) -> String;
    /// A page of its listing.
    fn page(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<ListPage, BackendError>> + Send;
    /// The length of a block there; `None` when it is not.
    fn length_of(
        &self,
        cid: &Cid,
    ) -> impl Future<Output = Result<Option<u64>, BackendError>> + Send;
}

/// The bytes at a place, as far as they are known.
pub(super) struct Counter {
    capacity: Option<u64>,
    /// Of packs, which their index counts.
    packed: AtomicU64,
    state: Mutex<State>,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    used: u64,
    /// A count is under way, or was.
    started: bool,
    phase: Phase,
}

/// How far the listing is. What comes or goes in the part that was listed changes the
/// sum; the rest is seen when the listing comes there.
#[derive(Default)]
enum Phase {
    #[default]
    Nothing,
    UpTo(String),
    All,
}

impl Counter {
    pub fn new(capacity: Option<u64>) -> Self {
        let ended = watch::Sender::new(false);
        Self { capacity, packed: AtomicU64::new(0), state: Mutex::default(), ended }
    }

    /// Whether anybody wants to know.
    pub fn counts(&self) -> bool {
        self.capacity.is_some()
    }

    /// The bytes, once they were counted.
    pub fn known(&self) -> Option<u64> {
        let state = self.state.lock();
        let used = state.used.saturating_add(self.packed.load(Ordering::Relaxed));
        matches!(state.phase, Phase::All).then_some(used)
    }

    /// So many bytes lie in packs.
    pub fn hold(&self, bytes: u64) {
        self.packed.store(bytes, Ordering::Relaxed);
    }

    fn change(&self, key: &str, change: impl FnOnce(u64) -> u64) {
        if !self.counts() {
            return;
        }
        let mut state = self.state.lock();
        let listed = match &state.phase {
            Phase::Nothing => false,
            Phase::UpTo(last) => key <= last.as_str(),
            Phase::All => true,
        };
        if listed {
            state.used = change(state.used);
        }
    }

    /// An object of so many bytes is there now.
    pub fn came(&self, key: &str, bytes: u64) {
        self.change(key, |used| used.saturating_add(bytes));
    }

    /// An object of so many bytes is there no more.
    pub fn went(&self, key: &str, bytes: u64) {
        self.change(key, |used| used.saturating_sub(bytes));
    }

    fn add_page(&self, bytes: u64, last: Option<String>) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_add(bytes);
        state.phase = last.map_or(Phase::All, Phase::UpTo);
    }

    /// A count that failed begins anew when somebody asks again.
    fn failed(&self) {
        *self.state.lock() = State::default();
    }
}

/// Starts the count, unless it was started.
pub(super) fn start<P: Counted>(place: &Arc<P>) {
    let counter = place.counter();
    if !counter.counts() || std::mem::replace(&mut counter.state.lock().started, true) {
        return;
    }
    counter.ended.send_replace(false);
    let weak = Arc::downgrade(place);
    tokio::spawn(async move {
        if let Err(error) = count(&weak).await
            && let Some(place) = weak.upgrade()
        {
            let at = place.at();
            tracing::warn!(place = at, %error, "the blocks of a backend could not be counted");
            place.counter().failed();
        }
        if let Some(place) = weak.upgrade() {
            place.counter().ended.send_replace(true);
        }
    });
}

async fn count<P: Counted>(weak: &Weak<P>) -> Result<(), BackendError> {
    let mut from: Option<String> = None;
    loop {
        // Only borrowed for a page: a backend that nobody has is not listed on.
        let Some(place) = weak.upgrade() else { return Ok(()) };
        let page = place.page(from.as_deref(), PAGE).await?;
        let bytes = page.blocks.iter().map(|(_, len)| len).sum();
        let last = page.blocks.last().map(|(cid, _)| P::key(cid));
        let more = page.next.is_some();
        place.counter().add_page(bytes, last.filter(|_| more));
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(()),
        }
    }
}

/// Refuses blocks that go beyond the capacity; what is there already takes no room.
///
/// # Errors
/// Those of [`refuse_beyond_capacity`], and of asking what is there.
pub(super) async fn make_room<P: Counted>(
    place: &Arc<P>,
    blocks: &[Block],
) -> Result<(), BackendError> {
    let sum = |blocks: &[&Block]| blocks.iter().map(|block| block.data.len() as u64).sum();
    let all: Vec<&Block> = blocks.iter().collect();
    match refuse_beyond_capacity(place, sum(&all)).await {
        Err(error) if error.kind == ErrorKind::Full => {}
        other => return other,
    }
    let mut seen = BTreeSet::new();
    let distinct: Vec<&Block> = all.into_iter().filter(|block| seen.insert(block.cid)).collect();
    let asked: Vec<_> = distinct.iter().map(|block| place.length_of(&block.cid)).collect();
    let found: Vec<Option<u64>> = iter(asked).buffered(AT_ONCE).try_collect().await?;
    let pairs = distinct.into_iter().zip(found);
    let new: Vec<&Block> = pairs
        .filter(|(block, len)| *len != Some(block.data.len() as u64))
        .map(|(block, _)| block)
        .collect();
    if new.is_empty() { Ok(()) } else { refuse_beyond_capacity(place, sum(&new)).await }
}

/// Refuses so many bytes more where they are beyond the capacity. Waits for the count.
///
/// # Errors
/// `Full`; `Unavailable` when the blocks could not be counted.
pub(super) async fn refuse_beyond_capacity<P: Counted>(
    place: &Arc<P>,
    bytes: u64,
) -> Result<(), BackendError> {
    let counter = place.counter();
    let Some(capacity) = counter.capacity else { return Ok(()) };
    start(place);
    let mut ended = counter.ended.subscribe();
    while counter.known().is_none() && !*ended.borrow_and_update() {
        // It ends with the count, or with the caller's deadline.
        ended.changed().await.map_err(|error| {
            BackendError::new(ErrorKind::Unavailable, "the backend was closed").caused_by(error)
        })?;
    }
    let at = place.at();
    let Some(used) = counter.known() else {
        let message = format!(
            "the blocks in {at} could not be counted, so its capacity cannot be kept: see the log"
        );
        return Err(BackendError::new(ErrorKind::Unavailable, message));
    };
    if used.saturating_add(bytes) <= capacity {
        return Ok(());
    }
    let message =
        format!("{at} holds {used} of the {capacity} bytes that its setting `capacity` allows");
    Err(BackendError::new(ErrorKind::Full, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_blocks_are_counted_is_counted_once() {
        let counter = Counter::new(Some(100));
        counter.came("b", 1);
        assert_eq!(counter.known(), None);
        // The listing saw `a` and `b`, and will see `z`.
        counter.add_page(2, Some("m".into()));
        counter.came("c", 10);
        counter.came("z", 10);
        counter.went("a", 1);
        counter.add_page(10, None);
        assert_eq!(counter.known(), Some(21));
        counter.went("z", 10);
        counter.went("z", 100);
        assert_eq!(counter.known(), Some(0));
        let none = Counter::new(None);
        counter.hold(7);
        assert_eq!(counter.known(), Some(7));
        none.came("a", 1);
        assert!(!none.counts() && none.known().is_none());
    }
}
