//! A local store that is a cache: what it lets go of, others have.

use cairnfs::replication::machine::Content;
use cairnfs::types::Cid;

use crate::world::{World, short};

impl World {
    /// What a cache does for room: contents that it need not keep go, each when its
    /// places were asked just now.
    pub fn evict(&mut self) {
        if !self.cache || self.random.bool() {
            return;
        }
        let here: Vec<Cid> = self.places[0].truth.keys().copied().collect();
        for root in here {
            let Some(record) = self.namespace.content(&root).unwrap() else { continue };
            if self.machine.lanes().lock().is_busy(&root) || self.random.bool() {
                continue;
            }
            let confirmed = self.confirmed(0, &root);
            let (places, policy) = (self.machine.places(), self.machine.policy_of(&record));
            let content = Content { root: &root, record: &record, policy: &policy };
            if content.may_evict(Some(&confirmed), &self.machine.moment(&places)) {
                self.note(format!("local {} leaves the cache", short(&root)));
                self.places[0].truth.remove(&root);
                self.check_above_min(&root);
                self.check();
            }
        }
    }
}
