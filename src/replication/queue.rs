//! The queue as it is shown.

use serde::Serialize;

use super::machine::Work;
use super::pins::whole_seconds;
use super::{ReplicationError, Replicator, ShownPin};
use crate::metadata::{ContentRecord, PinOrder};
use crate::types::{BackendId, Cid};

/// Rows that one page looks at.
const EXAMINED: usize = 4096;
/// Items of a page at most.
const LIMIT: usize = 1000;

/// One piece of work of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownWork {
    /// Where.
    pub backend: BackendId,
    /// `send`, `repair`, `verify`, `audit` or `release`.
    pub job: &'static str,
    /// A worker has it; else it waits in the lane.
    pub in_hand: bool,
    /// Seconds until it should be done; `None` before the lane's first result.
    pub eta_s: Option<u64>,
}

/// A content that waits.
#[derive(Debug, Clone, Serialize)]
pub struct ShownItem {
    /// The content.
    #[serde(flatten)]
    pub pin: ShownPin,
    /// What is in lanes.
    pub work: Vec<ShownWork>,
    /// Until all of it should be done, as its row says; `None` when nobody can say.
    pub eta_s: Option<u64>,
}

/// A page of the queue.
#[derive(Debug, Clone, Default)]
pub struct ShownQueue {
    /// Riskiest first.
    pub items: Vec<ShownItem>,
    /// The key to go on after; `None` at the end.
    pub next: Option<Vec<u8>>,
}

fn shown(work: &Work) -> ShownWork {
    let eta_s = work.eta.and_then(whole_seconds);
    ShownWork { backend: work.place.clone(), job: work.job.as_str(), in_hand: work.in_hand, eta_s }
}

impl Replicator {
    /// Pauses of these contents end; they are planned at once.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn retry(&self, roots: &[Cid]) -> Result<(), ReplicationError> {
        self.core.machine.retry(roots)?;
        self.wake();
        Ok(())
    }

    /// All pauses between rounds end.
    pub fn hurry(&self) {
        self.core.request_scan(true);
    }

    /// The fleet has what is held now.
    pub fn pauses_changed(&self) {
        self.core.machine.pauses_changed();
        self.wake();
    }

    /// The scheduler looks, and so does who waits for a level.
    pub fn wake(&self) {
        self.core.scheduler.ring();
        self.core.waiters.notify_all();
    }

    /// A page of the queue in the order of risk; looks at a bounded number of rows.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn list_queue(
        &self,
        limit: usize,
        after: Option<&[u8]>,
    ) -> Result<ShownQueue, ReplicationError> {
        let core = &self.core;
        let (limit, mut list) = (limit.clamp(1, LIMIT), ShownQueue::default());
        if core.namespace.stats().queued == 0 {
            return Ok(list);
        }
        let (order, bounds) = (PinOrder::Waiting, (limit, EXAMINED));
        let page = core.namespace.pins_page(&order, after, bounds, &mut |_, _| true)?;
        let pins: Vec<(Cid, ContentRecord)> =
            page.pins.into_iter().map(|pin| (pin.root, pin.record)).collect();
        let roots: Vec<Cid> = pins.iter().map(|(root, _)| *root).collect();
        let work = core.machine.lanes().lock().work(&roots);
        for pin in self.show_pins(&pins)? {
            let mut of_item: Vec<ShownWork> =
                work.get(&pin.cid).into_iter().flatten().map(shown).collect();
            of_item.sort_by(|a, b| a.backend.cmp(&b.backend));
            let eta_s = pin.queue.as_ref().and_then(|row| row.eta_s);
            list.items.push(ShownItem { pin, work: of_item, eta_s });
        }
        list.next = page.next;
        Ok(list)
    }
}
