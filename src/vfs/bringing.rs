//! Files whose commit needs a block of what is below them that is not here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::commit::{Done, Request, tell};
use super::{Vfs, VfsError};
use crate::types::Ino;

/// Files whose blocks are on their way at a time; the others wait for their turn.
const AT_ONCE: usize = 256;

pub(super) struct Bringing {
    turns: Arc<Semaphore>,
    /// Each is brought once, whoever asks for its commit meanwhile.
    files: Mutex<HashMap<Ino, Vec<Done>>>,
}

impl Default for Bringing {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), files: Mutex::default() }
    }
}

impl Vfs {
    /// A file needs a block that is not here: it is brought while others are
    /// committed, and then the file is tried again.
    pub(super) fn commit_after(
        self: &Arc<Self>,
        wait: BoxFuture<'static, Result<(), VfsError>>,
        mut request: Request,
    ) {
        let ino = request.node.ino;
        let mut files = self.bringing.files.lock();
        match files.entry(ino) {
            Entry::Occupied(mut others) => return others.get_mut().append(&mut request.dones),
            Entry::Vacant(none) => drop(none.insert(std::mem::take(&mut request.dones))),
        }
        drop(files);
        let (vfs, turns) = (Arc::downgrade(self), Arc::clone(&self.bringing.turns));
        self.replicator.bridge().spawn(async move {
            // It is never closed.
            let turn = turns.acquire().await;
            let brought = wait.await;
            drop(turn);
            // Who waits is told by its end that the volume is gone.
            let Some(vfs) = vfs.upgrade() else { return };
            request.dones = vfs.bringing.files.lock().remove(&ino).unwrap_or_default();
            let Err(error) = brought else { return vfs.committer.push_request(request) };
            vfs.commit_failed(&request.node, &error);
            tell(request.dones, &Err((error.errno(), error.to_string())));
        });
    }
}
