use std::fmt;
use std::str::FromStr;

/// How a directory's size is estimated before it is sharded (IPIP-499).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DirectoryEstimate {
    /// The exact length of the flat directory's block.
    Block,
    /// The sum of name and CID lengths.
    Links,
}

/// The parameters that decide a CID (IPIP-499, "`UnixFS` CID profiles").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    /// As users and Parquet name it.
    pub name: &'static str,
    /// 0 or 1.
    pub cid_version: u8,
    /// Leaves are raw blocks, not dag-pb nodes.
    pub raw_leaves: bool,
    /// Bytes of content in a leaf.
    pub chunk_size: u32,
    /// Links in an inner node of a file.
    pub max_links: usize,
    /// Buckets of a HAMT shard.
    pub hamt_fanout: usize,
    /// A directory whose estimate is above this many bytes is sharded.
    pub hamt_threshold: u64,
    /// What is estimated.
    pub estimate: DirectoryEstimate,
}

/// A profile name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a profile: use unixfs-v1-2025 or unixfs-v0-2015")]
pub struct UnknownProfile(pub String);

impl Profile {
    /// The default: `CIDv1`, raw leaves, 1 MiB chunks, 1024 links.
    pub const UNIXFS_V1_2025: Self = Self {
        name: "unixfs-v1-2025",
        cid_version: 1,
        raw_leaves: true,
        chunk_size: 1 << 20,
        max_links: 1024,
        hamt_fanout: 256,
        hamt_threshold: 256 * 1024,
        estimate: DirectoryEstimate::Block,
    };
    /// What `ipfs add` does by default up to Kubo 0.44.
    pub const UNIXFS_V0_2015: Self = Self {
        name: "unixfs-v0-2015",
        cid_version: 0,
        raw_leaves: false,
        chunk_size: 256 * 1024,
        max_links: 174,
        hamt_fanout: 256,
        hamt_threshold: 256 * 1024,
        estimate: DirectoryEstimate::Links,
    };
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unixfs-v1-2025" => Ok(Self::UNIXFS_V1_2025),
            "unixfs-v0-2015" => Ok(Self::UNIXFS_V0_2015),
            _ => Err(UnknownProfile(text.to_owned())),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
