//! A bundle: a `UnixFS` directory of blocks.
//!
//! Each entry is a block as raw, called by its own CID, so that whoever serves files gives
//! it by `ROOT/CID`; `.cairn` is the label, which says what is in it (the one of packs,
//! format 1). The same blocks make the same bundle, so that one that is sent again is the
//! one that is there; a number of its own makes it another one.

use std::collections::{BTreeSet, HashSet, VecDeque};

use ::cid::multibase::Base;
use bytes::Bytes;
use ipld_core::ipld::Ipld;
use uuid::Uuid;

use crate::backends::kubo::archive;
use crate::backends::pack::label;
use crate::backends::{BackendError, ErrorKind};
use crate::content::{DirectoryEntry, Link, Profile, build_directory};
use crate::types::{Block, Cid, cid};

/// The entry that is the label.
pub(in crate::backends) const LABEL: &str = ".cairn";
/// Blocks in one: what is dead in it has to fit into a hundred characters.
pub(super) const BLOCKS_MAX: usize = 512;
/// Bytes of blocks in one, but for a single larger block.
pub(super) const BYTES_MAX: usize = 128 << 20;

/// What is stored as one.
#[derive(Debug)]
pub(in crate::backends) struct Bundle {
    /// The directory.
    pub root: Cid,
    /// What says what is in it.
    pub label: Block,
    node: Bytes,
    blocks: Vec<Block>,
}

/// The block as raw, whatever it is.
fn raw(id: &Cid) -> Cid {
    Cid::new_v1(cid::RAW, *id.hash())
}

fn broken(why: impl std::fmt::Display) -> BackendError {
    BackendError::new(ErrorKind::Other, format!("blocks make no bundle: {why}"))
}

/// What marks the bundles of a folder.
pub(super) fn place_of(folder: &str) -> Uuid {
    let hash = cid::sha256(format!("cairn bundles {folder}").as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    Uuid::from_bytes(id)
}

impl Bundle {
    /// Of blocks that differ, in their order.
    ///
    /// # Errors
    /// When there are too many, or none.
    pub fn of(place: Uuid, number: u32, blocks: &[Block]) -> Result<Self, BackendError> {
        let row = |block: &Block| {
            let len = Ipld::Integer(block.data.len() as i128);
            vec![Ipld::Bytes(block.cid.to_bytes()), len]
        };
        let id = Uuid::from_u128(number.into());
        let label = label::encode(place, (id, 0), blocks.iter().map(row)).map_err(broken)?;
        let label = Block::raw(label.into());
        let entry = |name: String, id: &Cid, len: usize| {
            let link = Link { cid: raw(id), size: 0, tsize: len as u64 };
            DirectoryEntry { name, link }
        };
        let mut entries: Vec<DirectoryEntry> =
            blocks.iter().map(|b| entry(b.cid.to_string(), &b.cid, b.data.len())).collect();
        entries.push(entry(LABEL.to_owned(), &label.cid, label.data.len()));
        let mut nodes = Vec::new();
        let mut sink = |_: Cid, data: Bytes| {
            nodes.push(data);
            Ok(())
        };
        let link = build_directory(&Profile::UNIXFS_V1_2025, entries, &mut sink).map_err(broken)?;
        let Some(node) = nodes.pop().filter(|_| nodes.is_empty()) else {
            return Err(broken("too many for one directory"));
        };
        Ok(Self { root: link.cid, label, node, blocks: blocks.to_vec() })
    }

    /// A `CARv1` of it, its only root first.
    ///
    /// # Errors
    /// None that is known.
    pub fn archive(&self) -> Result<VecDeque<Bytes>, BackendError> {
        let first = [(self.root, &self.node), (self.label.cid, &self.label.data)];
        let mut seen = HashSet::new();
        let blocks = self.blocks.iter().map(|block| (raw(&block.cid), &block.data));
        let sections = first.into_iter().chain(blocks).filter(|(id, _)| seen.insert(*id));
        archive(&[self.root], sections).map_err(broken)
    }
}

/// What of it is dead, by position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::backends) struct Dead(pub(super) BTreeSet<u32>);

impl Dead {
    /// As base64url of a bit for each position, the lowest first.
    pub fn text(&self) -> String {
        let len = self.0.last().map_or(0, |last| *last as usize / 8 + 1);
        let mut bits = vec![0u8; len];
        for position in &self.0 {
            bits[*position as usize / 8] |= 1 << (position % 8);
        }
        Base::Base64Url.encode(bits)
    }

    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bits = Base::Base64Url.decode(text).map_err(|error| error.to_string())?;
        if bits.len() > BLOCKS_MAX / 8 {
            return Err(format!("it names more than {BLOCKS_MAX} blocks"));
        }
        let set = |at: &u32| bits[*at as usize / 8] & (1 << (at % 8)) != 0;
        Ok(Self((0..bits.len() as u32 * 8).filter(set).collect()))
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Blocks in parts that each are a bundle.
pub(super) fn parts(blocks: Vec<Block>) -> Vec<Vec<Block>> {
    let mut parts: Vec<Vec<Block>> = Vec::new();
    let mut bytes = 0;
    for block in blocks {
        let len = block.data.len();
        let fits = |part: &&mut Vec<Block>| part.len() < BLOCKS_MAX && bytes + len <= BYTES_MAX;
        if let Some(part) = parts.last_mut().filter(fits) {
            part.push(block);
            bytes += len;
        } else {
            parts.push(vec![block]);
            bytes = len;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::read_directory;

    fn block(seed: u8, len: usize) -> Block {
        Block::raw(vec![seed; len].into())
    }

    #[tokio::test]
    async fn a_bundle_is_a_directory_in_which_each_block_is_a_file_called_by_its_cid() {
        let node = Bytes::from_static(&[0x0a, 0x02, 0x08, 0x01]);
        let blocks = [
            block(1, 10),
            block(2, 0),
            Block { cid: cid::of_dag_pb(&node), data: node.clone() },
            Block { cid: cid::v0(&cid::sha256(&node)), data: node.clone() },
        ];
        let bundle = Bundle::of(place_of("f"), 0, &blocks).unwrap();
        let bytes: Vec<u8> = bundle.archive().unwrap().iter().flat_map(|p| p.to_vec()).collect();
        let mut reader = iroh_car::CarReader::new(&bytes[..]).await.unwrap();
        assert_eq!(reader.header().roots(), [bundle.root]);
        let mut all = std::collections::HashMap::new();
        while let Some((id, data)) = reader.next_block().await.unwrap() {
            assert!(all.insert(id, Bytes::from(data)).is_none(), "{id} twice");
        }
        let mut found = std::collections::BTreeMap::new();
        let mut load = |id: &Cid| Ok(all[id].clone());
        read_directory(&bundle.root, &mut load, &mut |entry| {
            found.insert(entry.name.clone(), all[&entry.link.cid].clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(found.len(), 5);
        assert!(blocks.iter().all(|block| found[&block.cid.to_string()] == block.data));
        let (place, _, rows) = label::parse(&found[LABEL], 2).unwrap();
        assert_eq!(place, place_of("f"));
        let listed: Vec<(Cid, usize)> = rows.iter().map(|row| (row.0, row.1 as usize)).collect();
        let wanted: Vec<(Cid, usize)> = blocks.iter().map(|b| (b.cid, b.data.len())).collect();
        assert_eq!(listed, wanted);
    }

    #[test]
    fn the_same_blocks_are_the_same_bundle_unless_it_has_a_number() {
        let blocks = [block(1, 10), block(2, 10)];
        let of = |folder, number| Bundle::of(place_of(folder), number, &blocks).unwrap().root;
        assert_eq!(of("f", 0), of("f", 0));
        assert!(of("f", 0) != of("f", 1) && of("f", 0) != of("g", 0));
        // What lies at accounts is looked for by this.
        assert_eq!(
            of("f", 0).to_string(),
            "bafybeihz4ltbtsmlviyjltgfth6ts3lvihjvot4tlakah6v7pualvoa6y4"
        );
        assert!(Bundle::of(place_of("f"), 0, &[]).is_err());
        // All that may be in one fits into one node.
        let most: Vec<Block> =
            (0..BLOCKS_MAX).map(|n| Block::raw(n.to_le_bytes().to_vec().into())).collect();
        assert!(Bundle::of(place_of("f"), 0, &most).is_ok());
    }

    #[test]
    fn what_is_dead_is_a_short_text() {
        for dead in [vec![], vec![0], vec![7, 8, 500], (0..512).collect()] {
            let dead = Dead(dead.into_iter().collect());
            assert!(dead.text().len() <= 86);
            assert_eq!(Dead::parse(&dead.text()).unwrap(), dead);
        }
        assert_eq!(Dead([0, 9].into()).text(), "AQI");
        assert!(Dead::parse("?").is_err());
        assert!(Dead::parse(&"A".repeat(200)).is_err());
    }

    #[test]
    fn blocks_are_parted_by_count_and_bytes() {
        let sizes = |blocks: Vec<Block>| parts(blocks).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![]), [0usize; 0]);
        assert_eq!(sizes(vec![block(0, 1); 1025]), [512, 512, 1]);
        assert_eq!(sizes(vec![block(0, 2 << 20); 65]), [64, 1]);
    }
}
