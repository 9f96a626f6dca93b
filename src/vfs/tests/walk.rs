//! A reader of a directory that others change meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Model;
use crate::types::{Ino, Name};
use crate::vfs::DirEntry;

pub struct Walk {
    pub directory: Ino,
    pub cookie: u64,
    /// There from the beginning, and not touched since.
    still: BTreeMap<Name, Ino>,
    /// There at some time of the walk, and no longer or not from the beginning.
    touched: BTreeSet<Name>,
    seen: Vec<(Name, Ino)>,
}

impl Walk {
    pub fn begin(directory: Ino, model: &Model) -> Self {
        let still = model.of(directory).entries.clone();
        Self { directory, cookie: 0, still, touched: BTreeSet::new(), seen: Vec::new() }
    }

    /// Notes what became of the directory. A name that another file took and
    /// gave back unseen between two looks is not met here: a look follows each
    /// operation.
    pub fn see(&mut self, model: &Model) {
        let Some(node) = model.nodes.get(&self.directory) else { return };
        let gone: Vec<Name> = self
            .still
            .iter()
            .filter(|(name, ino)| node.entries.get(*name) != Some(ino))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.still.remove(&name);
            self.touched.insert(name);
        }
        let new = node.entries.keys().filter(|name| !self.still.contains_key(*name));
        self.touched.extend(new.cloned());
    }

    pub fn take(&mut self, page: Vec<DirEntry>) {
        for entry in page {
            assert!(entry.cookie > self.cookie, "cookies rise");
            self.cookie = entry.cookie;
            match entry.name.as_slice() {
                b"." => assert_eq!(entry.ino, self.directory),
                b".." => {}
                name => self.seen.push((Name::new(name).unwrap(), entry.ino)),
            }
        }
    }

    pub fn end(self) {
        for (name, ino) in &self.still {
            let times = self.seen.iter().filter(|(seen, _)| seen == name).count();
            assert_eq!(times, 1, "{name:?} ({ino}) in {}", self.directory);
        }
        for (name, ino) in &self.seen {
            let known = self.still.get(name) == Some(ino) || self.touched.contains(name);
            assert!(known, "{name:?} ({ino}) was never in {}", self.directory);
        }
    }
}
