//! Where blocks lie in an archive: some 90 bytes of memory a block.

use std::collections::HashMap;

use crate::types::{Cid, cid};

/// A CID of a sha2-256 hash, in half the space of [`Cid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    codec: u64,
    version: u8,
    digest: [u8; 32],
}

impl Key {
    /// `None` when the hash is not sha2-256.
    pub fn of(id: &Cid) -> Option<Self> {
        let digest = <[u8; 32]>::try_from(id.hash().digest()).ok()?;
        let version = id.version() as u64 as u8;
        (id.hash().code() == cid::SHA2_256).then_some(Self { codec: id.codec(), version, digest })
    }

    /// The CID again.
    pub fn cid(&self) -> Cid {
        match self.version {
            0 => cid::v0(&self.digest),
            _ => cid::v1(self.codec, &self.digest),
        }
    }

    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Where a block lies, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Of its section, in the archive.
    pub offset: u64,
    /// Of its data.
    pub len: u32,
    /// A root leads to it.
    pub reached: bool,
    /// The index leads to it.
    pub indexed: bool,
}

/// The blocks of an archive.
#[derive(Debug, Default)]
pub(super) struct Places {
    map: HashMap<Key, Place>,
}

impl Places {
    /// Notes a block; false when it was noted before.
    pub fn insert(&mut self, key: Key, offset: u64, len: u32) -> bool {
        let place = Place { offset, len, reached: false, indexed: false };
        match self.map.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(place);
                true
            }
        }
    }

    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    pub fn get(&self, id: &Cid) -> Option<&Place> {
        self.map.get(&Key::of(id)?)
    }

    pub fn get_mut(&mut self, id: &Cid) -> Option<&mut Place> {
        self.map.get_mut(&Key::of(id)?)
    }

    /// Those of a kind, in the archive's order.
    pub fn sorted(&self, wanted: impl Fn(&Place) -> bool) -> Vec<(Key, Place)> {
        let mut found: Vec<(Key, Place)> =
            self.map.iter().filter(|(_, place)| wanted(place)).map(|(k, p)| (*k, *p)).collect();
        found.sort_unstable_by_key(|(_, place)| place.offset);
        found
    }

    /// A block that the index does not lead to, under its own CID or another of
    /// the same hash.
    pub fn not_indexed(&self) -> Option<Cid> {
        let sibling = |key: &Key, codec, version| {
            let other = Key { codec, version, ..*key };
            self.map.get(&other).is_some_and(|place| place.indexed)
        };
        let absent = |key: &Key| {
            ![(cid::RAW, 1), (cid::DAG_PB, 1), (cid::DAG_PB, 0)]
                .into_iter()
                .any(|(codec, version)| sibling(key, codec, version))
        };
        self.map.iter().find(|(key, place)| !place.indexed && absent(key)).map(|(key, _)| key.cid())
    }
}
