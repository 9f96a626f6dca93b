//! What is pinned for a block, and for a name.
//!
//! A block of Cairn's is never pinned under its own CID: Kubo knows one pin a CID, so a
//! user who pins and unpins the same content would take ours away, or we theirs. What is
//! pinned is a *holder*: a tiny dag-pb node that links to the block and says whose it is.
//! It lies in its own CID (identity multihash), so it takes no block and no look-up, and
//! is known from the block's CID and length alone:
//!
//! ```text
//! 12 LL                     PBLink
//!   0a 24 01 55 12 20 H..32   the block, as raw: Kubo's blocks, and its collector, go by
//!                             the multihash, and what is raw links to nothing further
//!   12 00                     no name
//!   18 N..                    its length (varint)
//! 0a 0e "cairn" C F..8      PBNode.Data: the codec of the block's own CID (0: CIDv0) and
//!                             the folder (8 bytes of the sha2-256 of its name)
//! ```
//!
//! A name is a direct pin, whose name is `cairn:FOLDER:NAME`, of a dag-cbor list
//! `[F..8, number, CID]`, in its own CID, too: F are 8 bytes of the sha2-256 of the pin's
//! name, of several numbers the highest holds. Direct, so that what it leads to need not
//! be there, and so that names are listed without the blocks' pins.

use ::cid::multibase::Base;
use ipld_core::ipld::Ipld;
use multihash::Multihash;
use unsigned_varint::{decode, encode};

use crate::backends::{BackendError, ErrorKind};
use crate::types::cid::{self, Cid};

/// Marks pins as Cairn's.
const MARK: &[u8; 5] = b"cairn";
/// A `CIDv1` of a raw block up to its digest.
const RAW_SHA2: [u8; 4] = [1, cid::RAW as u8, cid::SHA2_256 as u8, 32];
/// What a pin's name begins with.
const NAME_MARK: &str = "cairn";

/// One folder's pins.
#[derive(Debug, Clone)]
pub(in crate::backends) struct Holders {
    tag: [u8; 8],
    /// What its names begin with in pins.
    prefix: String,
    /// Of what is pinned for a name.
    codec: u64,
}

/// A name's pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct NamePin {
    /// The name.
    pub name: String,
    /// Of pins of one name the highest holds.
    pub number: u64,
    /// What it points to.
    pub target: Cid,
    /// What is pinned.
    pub holder: Cid,
}

fn tag(text: &str) -> [u8; 8] {
    let hash = cid::sha256(text.as_bytes());
    let mut tag = [0; 8];
    tag.copy_from_slice(&hash[..8]);
    tag
}

fn inline(codec: u64, bytes: &[u8]) -> Option<Cid> {
    Some(Cid::new_v1(codec, Multihash::wrap(cid::IDENTITY, bytes).ok()?))
}

/// The block under a CID of the same multihash and another codec.
fn alias(id: &Cid, codec: u64) -> Cid {
    Cid::new_v1(codec, *id.hash())
}

/// The CID by which Kubo is asked for a block: as raw, whatever it is.
pub(super) fn raw(id: &Cid) -> Cid {
    alias(id, cid::RAW)
}

/// A CID of the block that nobody pins: `block/rm` looks for pins of that CID alone.
pub(super) fn unpinned(id: &Cid) -> Cid {
    alias(id, cid::DAG_CBOR)
}

impl Holders {
    /// Of a folder.
    pub fn new(folder: &str) -> Self {
        Self { tag: tag(folder), prefix: format!("{NAME_MARK}:{folder}:"), codec: cid::DAG_CBOR }
    }

    /// Of a folder at an IPFS Cluster, which is no folder of any of its Kubos: no folder has
    /// a colon. Its REST API pins recursively only, so what is pinned for a name is raw.
    pub fn at_cluster(folder: &str) -> Self {
        Self { codec: cid::RAW, ..Self::new(&format!("cluster:{folder}")) }
    }

    /// Of a folder at a pinning service: as at a cluster, and no folder of one.
    pub fn at_service(folder: &str) -> Self {
        Self { codec: cid::RAW, ..Self::new(&format!("service:{folder}")) }
    }

    /// Of a folder at an account that keeps archives: no folder of the others.
    pub fn at_account(folder: &str) -> Self {
        Self { codec: cid::RAW, ..Self::new(&format!("account:{folder}")) }
    }

    /// What is pinned for a block of this length.
    ///
    /// # Errors
    /// `Invalid` for a hash function that no block of Cairn's has.
    pub fn of(&self, id: &Cid, len: u64) -> Result<Cid, BackendError> {
        let refuse = || {
            let message = format!("{id} has a hash function or codec that no block has");
            BackendError::new(ErrorKind::Invalid, message)
        };
        let codec = match id.version() {
            ::cid::Version::V0 => 0,
            ::cid::Version::V1 => u8::try_from(id.codec()).map_err(|_| refuse())?,
        };
        let hash = id.hash();
        if hash.code() != cid::SHA2_256 || hash.digest().len() != 32 {
            return Err(refuse());
        }
        let mut buffer = encode::u64_buffer();
        let len = encode::u64(len, &mut buffer);
        let mut node = vec![0x12, (2 + 36 + 2 + 1 + len.len()) as u8, 0x0a, 36];
        node.extend_from_slice(&RAW_SHA2);
        node.extend_from_slice(hash.digest());
        node.extend_from_slice(&[0x12, 0, 0x18]);
        node.extend_from_slice(len);
        node.extend_from_slice(&[0x0a, (MARK.len() + 1 + 8) as u8]);
        node.extend_from_slice(MARK);
        node.push(codec);
        node.extend_from_slice(&self.tag);
        inline(cid::DAG_PB, &node).ok_or_else(refuse)
    }

    /// The block of this folder, and its length, that a pin holds; `None` for others' pins.
    pub fn block_of(&self, holder: &Cid) -> Option<(Cid, u64)> {
        let hash = holder.hash();
        if holder.codec() != cid::DAG_PB || hash.code() != cid::IDENTITY {
            return None;
        }
        let link = hash.digest().strip_prefix(&[0x12])?;
        let (_, link) = link.split_first()?;
        let rest = link.strip_prefix(&[0x0a, 36])?.strip_prefix(&RAW_SHA2)?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let (len, rest) = decode::u64(rest.strip_prefix(&[0x12, 0, 0x18])?).ok()?;
        let data = rest.strip_prefix(&[0x0a, 14])?.strip_prefix(MARK)?;
        let (codec, folder) = data.split_first()?;
        if folder != self.tag {
            return None;
        }
        let id = match *codec {
            0 => cid::v0(digest),
            codec => cid::v1(codec.into(), digest),
        };
        // Nothing but what would be made here.
        (self.of(&id, len).ok()? == *holder).then_some((id, len))
    }

    /// How pins of blocks are called where those have names, too.
    pub fn block_name(&self) -> &str {
        self.prefix.trim_end_matches(':')
    }

    /// How the pin of a name, or of all with a prefix, is called.
    pub fn pin_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What is pinned for a name.
    ///
    /// # Errors
    /// `Invalid` for a CID that is too long.
    pub fn of_name(&self, name: &str, number: u64, target: &Cid) -> Result<Cid, BackendError> {
        let refuse = || {
            let message = format!("{target} is too long for a name to point to");
            BackendError::new(ErrorKind::Invalid, message)
        };
        let tag = tag(&self.pin_name(name)).to_vec();
        let list = [Ipld::Bytes(tag), Ipld::Integer(number.into()), Ipld::Link(*target)];
        let bytes = serde_ipld_dagcbor::to_vec(&Ipld::List(list.to_vec()));
        inline(self.codec, &bytes.map_err(|_| refuse())?).ok_or_else(refuse)
    }

    /// The name of this folder that a pin is; `None` for others' pins.
    pub fn name_of(&self, pin_name: &str, holder: &Cid) -> Option<NamePin> {
        let name = pin_name.strip_prefix(&self.prefix)?;
        if holder.codec() != self.codec || holder.hash().code() != cid::IDENTITY {
            return None;
        }
        let Ok(Ipld::List(list)) = serde_ipld_dagcbor::from_slice(holder.hash().digest()) else {
            return None;
        };
        let [Ipld::Bytes(found), Ipld::Integer(number), Ipld::Link(target)] = list.as_slice()
        else {
            return None;
        };
        if *found != tag(pin_name) {
            return None;
        }
        let (number, target) = (u64::try_from(*number).ok()?, *target);
        Some(NamePin { name: name.to_owned(), number, target, holder: *holder })
    }
}

/// Where Cluster's index of pins has a CID: the base32 text of its bytes.
pub(in crate::backends) fn cluster_key(id: &Cid) -> Vec<u8> {
    Base::Base32Upper.encode(id.to_bytes()).into_bytes()
}

/// Where Kubo's index of pins has a CID: the base64url text of its bytes. Datastores that
/// are ordered list pins in this order.
pub(super) fn index_key(id: &Cid) -> Vec<u8> {
    Base::Base64Url.encode(id.to_bytes()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::parse_node;

    #[test]
    fn a_holder_says_which_block_of_which_folder_it_holds() {
        let (here, there) = (Holders::new("photos"), Holders::at_cluster("photos"));
        let digest = cid::sha256(b"x");
        for id in [cid::v0(&digest), cid::v1(cid::RAW, &digest), cid::v1(cid::DAG_PB, &digest)] {
            for len in [0, 1, 127, 128, 1 << 20, 2 << 20] {
                let holder = here.of(&id, len).unwrap();
                assert_eq!(here.block_of(&holder), Some((id, len)));
                assert_eq!(there.block_of(&holder), None);
                assert_ne!(there.of(&id, len).unwrap(), holder);
                assert!(holder.hash().digest().len() <= 64, "Kubo takes 128");
                // It is pinned by its text.
                assert_eq!(holder.to_string().parse::<Cid>().unwrap(), holder);
            }
            assert_eq!(here.block_of(&id), None);
        }
        let other = Cid::new_v1(cid::RAW, Multihash::wrap(0x1e, &digest).unwrap());
        assert_eq!(here.of(&other, 1).unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn a_holder_is_a_node_that_links_to_the_block_alone() {
        let id = cid::of_dag_pb(b"x");
        let holder = Holders::new("").of(&id, 300).unwrap();
        let bytes = holder.hash().digest();
        assert_eq!(&bytes[..4], &[0x12, 43, 0x0a, 36]);
        assert_eq!(&bytes[4..40], raw(&id).to_bytes().as_slice());
        assert_eq!(&bytes[40..45], &[0x12, 0, 0x18, 0xac, 0x02]);
        assert_eq!(&bytes[45..53], b"\x0a\x0ecairn\x70");
        // It is no UnixFS: nobody takes it for a file.
        assert!(parse_node(&holder, &bytes.to_vec().into()).is_err());
    }

    #[test]
    fn a_name_is_read_back_from_its_pin() {
        let holders = Holders::new("photos");
        let raw = Holders::at_cluster("photos");
        let name = "volumes/x/manifest-00000000000000000012";
        for target in [cid::of_raw(b"1"), cid::v0(&cid::sha256(b"2"))] {
            for number in [1, u64::MAX] {
                let holder = holders.of_name(name, number, &target).unwrap();
                let pin = holders.pin_name(name);
                assert_eq!(pin, format!("cairn:photos:{name}"));
                let read = holders.name_of(&pin, &holder).unwrap();
                assert_eq!((read.name.as_str(), read.number, read.target), (name, number, target));
                assert!(Holders::new("").name_of(&pin, &holder).is_none());
                let pin = raw.pin_name(name);
                assert!(holders.name_of(&pin, &holder).is_none());
                let holder = raw.of_name(name, number, &target).unwrap();
                assert_eq!(holder.codec(), cid::RAW);
                assert_eq!(raw.name_of(&pin, &holder).unwrap().target, target);
                assert_eq!(
                    (pin.len(), raw.block_name()),
                    (20 + 1 + name.len(), "cairn:cluster:photos")
                );
                assert!(holders.name_of(&holders.pin_name("other"), &holder).is_none());
            }
        }
        assert!(holders.name_of("cairn:photos:x", &cid::of_raw(b"1")).is_none());
    }

    #[test]
    fn keys_of_the_index_are_base64url() {
        let id = Cid::new_v1(cid::RAW, Multihash::wrap(cid::IDENTITY, b"\xff\xfe").unwrap());
        // 01 55 00 02 ff fe
        assert_eq!(index_key(&id), b"AVUAAv_-");
        let id = Cid::new_v1(cid::RAW, Multihash::wrap(cid::IDENTITY, b"").unwrap());
        assert_eq!(index_key(&id), b"AVUAAA");
    }
}
