//! The words that every layer shares: CIDs, blocks, inode numbers, names, ids,
//! times and sizes.
//!
//! A value of these types is already valid: input is checked where it enters,
//! and the proof travels in the type. Nothing here does I/O.

pub mod acl;
mod block;
pub mod cid;
mod ids;
mod inode;
mod name;
mod secret;
mod text;
mod units;

pub use self::acl::Acl;
pub use self::block::Block;
pub use self::cid::Cid;
pub use self::ids::{BackendId, InvalidBackendId, SegmentId, VolumeId, WriterId};
pub use self::inode::{AccessTimes, FileKind, Ino};
pub use self::name::{InvalidName, Name};
pub use self::secret::Secret;
pub use self::text::{printable, printable_path};
pub use self::units::{ByteSize, InvalidByteSize, Timestamp};
