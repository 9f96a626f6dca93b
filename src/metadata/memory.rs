use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Commit, Engine, MetadataError, Reader, Transaction};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// An engine in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    rows: RwLock<Arc<Map>>,
}

/// All rows of a [`MemoryEngine`] at one moment.
#[derive(Debug, Clone)]
pub struct MemoryState(Arc<Map>);

impl MemoryEngine {
    /// The rows as they are now.
    pub fn state(&self) -> MemoryState {
        MemoryState(Arc::clone(&self.rows.read()))
    }

    /// An engine with these rows: what a crash left.
    #[must_use]
    pub fn with_state(state: &MemoryState) -> Self {
        Self { rows: RwLock::new(Arc::clone(&state.0)) }
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        Ok(Box::new(View(self.rows.read().clone())))
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        Ok(Box::new(MemoryTransaction {
            engine: self,
            base: self.rows.read().clone(),
            writes: BTreeMap::new(),
            reads: Mutex::default(),
        }))
    }

    fn persist(&self) -> Result<(), MetadataError> {
        Ok(())
    }
}

struct View(Arc<Map>);

impl Reader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        for (key, value) in range(&self.0, start, end) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn range<'m, V>(
    map: &'m BTreeMap<Vec<u8>, V>,
    start: &[u8],
    end: &[u8],
) -> std::collections::btree_map::Range<'m, Vec<u8>, V> {
    let end = if start < end { end } else { start };
    map.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
}

/// What a transaction saw, to be seen again at its commit.
#[derive(Default)]
struct Reads {
    keys: Vec<Vec<u8>>,
    ranges: Vec<(Vec<u8>, Vec<u8>)>,
}

struct MemoryTransaction<'e> {
    engine: &'e MemoryEngine,
    base: Arc<Map>,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    reads: Mutex<Reads>,
}

impl Reader for MemoryTransaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        if let Some(written) = self.writes.get(key) {
            return Ok(written.clone());
        }
        self.reads.lock().keys.push(key.to_vec());
        Ok(self.base.get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        self.reads.lock().ranges.push((start.to_vec(), end.to_vec()));
        let mut merged: BTreeMap<&[u8], &[u8]> =
            range(&self.base, start, end).map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
        for (key, value) in range(&self.writes, start, end) {
            match value {
                Some(value) => merged.insert(key, value),
                None => merged.remove(key.as_slice()),
            };
        }
        for (key, value) in merged {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Transaction for MemoryTransaction<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.writes.insert(key.to_vec(), Some(value.to_vec()));
    }

    fn delete(&mut self, key: &[u8]) {
        self.writes.insert(key.to_vec(), None);
    }

    fn commit(self: Box<Self>) -> Result<Commit, MetadataError> {
        let mut rows = self.engine.rows.write();
        if !Arc::ptr_eq(&rows, &self.base) {
            let reads = self.reads.into_inner();
            let same_keys = reads.keys.iter().all(|key| rows.get(key) == self.base.get(key));
            let same_ranges = reads
                .ranges
                .iter()
                .all(|(start, end)| range(&rows, start, end).eq(range(&self.base, start, end)));
            if !same_keys || !same_ranges {
                return Ok(Commit::Conflict);
            }
        }
        drop(self.base);
        let map = Arc::make_mut(&mut rows);
        for (key, value) in self.writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(Commit::Done)
    }
}
