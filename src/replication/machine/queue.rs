//! What the user asks of the queue: hold, go on, try again, leave.

use super::rows::{CANCELLED_FOR, is_cancelled};
use super::time::plus;
use super::{Job, Machine, Outcome, Plan, Task};
use crate::metadata::{ContentRecord, MetadataError, QueueRecord, Risk};
use crate::types::{BackendId, Cid};

/// What is said of a content that was cancelled.
pub(in crate::replication) const CANCELLED: &str = "cancelled by the user";

impl Machine {
    /// Whether nothing is to be done for the content of this row before its time.
    #[must_use]
    pub fn is_cancelled(&self, row: &QueueRecord) -> bool {
        is_cancelled(row, self.clock.now())
    }

    /// What waits for a place that is held now is planned for others, and what a place
    /// that goes on can take is due.
    pub fn pauses_changed(&self) {
        let places = self.places();
        let mut lanes = self.lanes.lock();
        for place in &places.all {
            lanes.pause(&place.id, place.paused);
            if place.paused {
                lanes.empty(&place.id);
            }
        }
        lanes.request_scan(true);
    }

    /// These contents' pauses end, and so does what was cancelled: they are planned at
    /// once. Those that have all that they should are passed over.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn retry(&self, roots: &[Cid]) -> Result<(), MetadataError> {
        let places = self.places();
        let moment = self.moment(&places);
        {
            let _one = self.recording.lock();
            self.namespace.update_contents(roots, &mut |root, record, row| {
                if let Some(row) = row {
                    if std::mem::take(&mut row.cancelled) {
                        row.last_error.clear();
                    }
                    row.forget_failures();
                }
                self.settle(root, record, row, &moment, None);
            })?;
        }
        self.lanes.lock().submit(roots);
        Ok(())
    }

    /// As [`Machine::retry`], for all rows: a page of them; where the next begins.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn retry_page(
        &self,
        after: Option<&Cid>,
        most: usize,
    ) -> Result<(u64, Option<Cid>), MetadataError> {
        let page = self.namespace.queue_page(after, most)?;
        let last = page.last().map(|(root, _)| *root);
        // Pauses are ended by the scan that follows; only what was cancelled is written.
        let of_cancelled = page.iter().filter(|(_, row)| row.cancelled);
        let roots: Vec<Cid> = of_cancelled.map(|(root, _)| *root).collect();
        self.retry(&roots)?;
        Ok((page.len() as u64, last))
    }

    /// Nothing is done for these contents for a day, unless they are retried: what
    /// waits in lanes goes, what a worker has is done. False for those that wait for
    /// nothing.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn cancel(&self, root: &Cid) -> Result<bool, MetadataError> {
        let until = plus(self.clock.now(), CANCELLED_FOR);
        let mut cancelled = false;
        {
            let _one = self.recording.lock();
            self.namespace.update_contents(&[*root], &mut |_, _, row| {
                cancelled = row.is_some();
                if let Some(row) = row {
                    (row.cancelled, row.not_before) = (true, until);
                    row.last_error = CANCELLED.into();
                }
            })?;
        }
        if cancelled {
            self.lanes.lock().withdraw(root);
        }
        Ok(cancelled)
    }

    /// Has the copies at these places read back, in their lanes, behind what is riskier; false when the content
    /// is in hand already, or a place is held: to be asked again. `watch` keeps what
    /// becomes of them until [`Machine::unwatch`].
    #[must_use]
    pub fn ask_for_proofs(
        &self,
        ids: &[BackendId],
        job: Job,
        (root, record): (&Cid, &ContentRecord),
        watch: bool,
    ) -> bool {
        let places = self.places();
        if ids.iter().any(|id| places.get(id).is_none_or(|place| place.paused)) {
            return false;
        }
        let task = Task { root: *root, bytes: record.stored_bytes(), job };
        let tasks: Vec<(BackendId, Task)> = ids.iter().map(|id| (id.clone(), task)).collect();
        let mut lanes = self.lanes.lock();
        if lanes.is_busy(root) || self.watched.lock().contains_key(root) {
            return false;
        }
        lanes.assign(Risk::of(record, None), &tasks);
        let taken = lanes.in_hand(root) > 0;
        if taken && watch {
            self.watched.lock().insert(*root, Vec::new());
        }
        taken
    }

    /// What became of a content that is watched, at each place the last.
    #[must_use]
    pub fn seen_of(&self, root: &Cid) -> Vec<(BackendId, Outcome)> {
        self.watched.lock().get(root).cloned().unwrap_or_default()
    }

    /// Nobody waits for it any more.
    pub fn unwatch(&self, root: &Cid) {
        self.watched.lock().remove(root);
    }

    /// Of several results at one place the first bad one counts.
    pub(super) fn tell_watchers(&self, id: &BackendId, outcomes: &[(Cid, Outcome)]) {
        let mut watched = self.watched.lock();
        if watched.is_empty() {
            return;
        }
        for (root, outcome) in outcomes {
            let Some(seen) = watched.get_mut(root) else { continue };
            match seen.iter_mut().find(|(place, _)| place == id) {
                Some((_, Outcome::Bad(_))) => {}
                Some((_, before)) => before.clone_from(outcome),
                None => seen.push((id.clone(), outcome.clone())),
            }
        }
    }

    /// Whether nothing can be done for it now.
    #[must_use]
    pub fn is_stuck(&self, root: &Cid, record: &ContentRecord) -> bool {
        let places = self.places();
        !matches!(self.plan(root, record, &self.moment(&places)).plan, Plan::Act(_))
    }

    /// Whether the content waits in a lane, or to be planned, or a worker has it.
    #[must_use]
    pub fn is_busy(&self, root: &Cid) -> bool {
        self.lanes.lock().is_busy(root)
    }
}
