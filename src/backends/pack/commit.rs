//! Blocks that come at one time share a pack: while some packs are on their way, other
//! calls gather, and the next pack takes all that waits.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::label::{BLOCKS_MAX, Sealed};
use super::{Form, PackBackend, now, pack_name};
use crate::backends::{BackendError, ErrorKind};
use crate::types::Block;

/// Blocks of one call that wait for a pack.
pub(super) struct Waiting {
    blocks: Vec<Block>,
    done: oneshot::Sender<Result<(), Shared>>,
}

/// An error that several calls get.
#[derive(Debug, Clone)]
struct Shared {
    kind: ErrorKind,
    message: String,
    retry_after_ms: Option<u64>,
}

impl Shared {
    fn of(error: &BackendError) -> Self {
        let message = error.message.clone();
        Self { kind: error.kind, message, retry_after_ms: error.retry_after_ms }
    }

    fn into_error(self) -> BackendError {
        let mut error = BackendError::new(self.kind, self.message);
        error.retry_after_ms = self.retry_after_ms;
        error
    }
}

impl PackBackend {
    /// In parts that fit into a pack each.
    pub(super) fn parts(&self, blocks: Vec<Block>) -> Vec<Vec<Block>> {
        let mut parts: Vec<Vec<Block>> = Vec::new();
        let mut bytes = 0;
        for block in blocks {
            let full = bytes + block.data.len() > self.limits.pack;
            match parts.last_mut() {
                Some(part) if !full && part.len() < BLOCKS_MAX => {
                    bytes += block.data.len();
                    part.push(block);
                }
                _ => {
                    bytes = block.data.len();
                    parts.push(vec![block]);
                }
            }
        }
        parts
    }

    /// Waits until these are in a pack that is there; makes it, of all that waits, when it
    /// is this call's turn.
    pub(super) async fn commit(&self, blocks: Vec<Block>) -> Result<(), BackendError> {
        loop {
            let (done, mut told) = oneshot::channel();
            self.waiting.lock().push(Waiting { blocks: blocks.clone(), done });
            let turn = tokio::select! {
                biased;
                answer = &mut told => match answer {
                    Ok(answer) => return answer.map_err(Shared::into_error),
                    // Who made it was given up in the middle.
                    Err(_) => continue,
                },
                turn = self.turns.acquire() => turn.map_err(|_| self.contended())?,
            };
            let batch = self.take_waiting();
            if !batch.is_empty() {
                self.make(batch).await;
            }
            drop(turn);
            if let Ok(answer) = told.await {
                return answer.map_err(Shared::into_error);
            }
        }
    }

    /// What waits, as much as one pack takes. Whoever is gone is left out.
    fn take_waiting(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        let (mut bytes, mut count, mut taken) = (0usize, 0usize, Vec::new());
        let mut rest = Vec::new();
        for one in waiting.drain(..) {
            let size: usize = one.blocks.iter().map(|block| block.data.len()).sum();
            let fits = bytes + size <= self.limits.pack && count + one.blocks.len() <= BLOCKS_MAX;
            if one.done.is_closed() {
                continue;
            }
            if taken.is_empty() || (fits && rest.is_empty()) {
                (bytes, count) = (bytes + size, count + one.blocks.len());
                taken.push(one);
            } else {
                rest.push(one);
            }
        }
        *waiting = rest;
        taken
    }

    async fn make(&self, batch: Vec<Waiting>) {
        let mut seen = HashSet::new();
        let all = batch.iter().flat_map(|one| &one.blocks);
        let blocks: Vec<Block> = all.filter(|block| seen.insert(block.cid)).cloned().collect();
        let made = self.store(&blocks).await;
        let answer = made.map(drop).map_err(|error| Shared::of(&error));
        for one in batch {
            // One that went away does not hear it.
            drop(one.done.send(answer.clone()));
        }
    }

    /// Seals a pack and stores it.
    async fn store(&self, blocks: &[Block]) -> Result<String, BackendError> {
        let (name, sealed) = self.seal(self.limits.form, blocks.to_vec()).await?;
        self.shelf.refuse_beyond_capacity(sealed.bytes.len() as u64).await?;
        self.shelf.put(&name, sealed.bytes.clone()).await?;
        self.learn(&name, &sealed);
        Ok(name)
    }

    /// Makes a pack, on a thread for work: what is in it is hashed, and may be compressed.
    pub(super) async fn seal(
        &self,
        form: Form,
        blocks: Vec<Block>,
    ) -> Result<(String, Sealed), BackendError> {
        let id = self.id;
        let make = move || {
            let at = now();
            form.seal(id, at, &blocks).map(|sealed| (pack_name(form, at, &sealed.bytes), sealed))
        };
        let made = tokio::task::spawn_blocking(make).await.map_err(|error| error.to_string());
        made.and_then(|made| made)
            .map_err(|why| BackendError::new(ErrorKind::Other, format!("no pack: {why}")))
    }
}
