//! Keys, in bytes. The first byte is the table; numbers are big-endian, so that
//! ranges stay together. `src/docs/format.md` has the same table for readers.
//!
//! | key | row |
//! |---|---|
//! | `I` ino:8 | inode |
//! | `D` parent:8 name | dentry |
//! | `E` parent:8 cookie:8 | name, inode and kind, in the directory's order |
//! | `R` ino:8 parent:8 | names in that parent, of an inode with several links |
//! | `X` ino:8 name | extended attribute (the bytes themselves) |
//! | `O` ino:8 | orphan: no name is left, or none yet |
//! | `U` ino:8 | what is used of a directory's quota |
//! | `T` ino:8 | staged bytes that are durable and not sealed |
//! | `T` ino:8 leaf:8 | their valid 4 KiB pages in one leaf (32 bytes, a bitmap), or a run of whole leaves |
//! | `C` cid | content |
//! | `Q` cid | queue |
//! | `K` waits:1 state:1 copies:1 since:8 cid | pin that is not at its target, or waits in the queue |
//! | `L` state:1 id 0 cid | copy of a pin that is known to be bad |
//! | `H` id | what is known of a backend |
//! | `N` number:4 | the rules that a policy's number stands for |
//! | `W` ino:8 | contents there are to be brought in line with their policies |
//! | `J` number:4 | a wish that copies move |
//! | `V` number:8 | event, until a file has it |
//! | `M` epoch:8 key | mark: the row of `key` changed in that epoch |
//! | `B` cid, `P` segment:8 | the store's block index (a keyspace of its own) |
//! | `Fpersist` | number of a sync of the embedded engine's journal |
//! | `Fformat` | format of keys and records |
//! | `Fnext` | first inode number that was never reserved |
//! | `Fstats` | counters |
//! | `Fmarks` | first epoch whose marks are not all taken |
//! | `Fevents` | first event that is not taken |
//! | `Fsealed` | first event that is in no file of events |
//! | `Falarms` | alarms that hold |
//! | `Fspent` | what was read and asked of backends in the running month |
//! | `Fpaused` | the user holds the whole queue |
//! | `Fcache` | contents have no copy in the local store, which is a cache |
//! | `Fcheckpoint` | newest checkpoint that was begun |
//! | `Fpolicies` | mark of the policies in the settings that all contents have |
//!
//! Marks and events have numbers that only rise, and their tables are read from
//! the first number that is not taken: a scan never walks over what was removed
//! (an LSM tree keeps tombstones until it compacts).

use crate::types::{Cid, Ino};

pub(crate) const INODE: u8 = b'I';
pub(crate) const DENTRY: u8 = b'D';
pub(crate) const ORDER: u8 = b'E';
pub(crate) const PARENT: u8 = b'R';
pub(crate) const XATTR: u8 = b'X';
pub(crate) const ORPHAN: u8 = b'O';
pub(crate) const USAGE: u8 = b'U';
pub(crate) const STAGED: u8 = b'T';
pub(crate) const CONTENT: u8 = b'C';
pub(crate) const QUEUE: u8 = b'Q';
pub(crate) const AT_RISK: u8 = b'K';
pub(crate) const DAMAGED: u8 = b'L';
pub(crate) const BACKEND: u8 = b'H';
pub(crate) const POLICY: u8 = b'N';
pub(crate) const WALK: u8 = b'W';
pub(crate) const MOVE: u8 = b'J';
pub(crate) const EVENT: u8 = b'V';
pub(crate) const MARK: u8 = b'M';
/// The block index's blocks.
pub(crate) const BLOCK: u8 = b'B';
/// The block index's pack marks.
pub(crate) const PACK: u8 = b'P';

pub(crate) const FORMAT: &[u8] = b"Fformat";
pub(crate) const NEXT_INO: &[u8] = b"Fnext";
pub(crate) const STATS: &[u8] = b"Fstats";
pub(crate) const MARKS_TAKEN: &[u8] = b"Fmarks";
pub(crate) const EVENTS_TAKEN: &[u8] = b"Fevents";
pub(crate) const EVENTS_SEALED: &[u8] = b"Fsealed";
pub(crate) const ALARMS: &[u8] = b"Falarms";
pub(crate) const SPENT: &[u8] = b"Fspent";
pub(crate) const PAUSED: &[u8] = b"Fpaused";
pub(crate) const CACHE: &[u8] = b"Fcache";
pub(crate) const CHECKPOINT: &[u8] = b"Fcheckpoint";
pub(crate) const POLICIES: &[u8] = b"Fpolicies";

/// A table byte and a number.
pub(crate) fn number(table: u8, value: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(table);
    key.extend_from_slice(&value.to_be_bytes());
    key
}

pub(crate) fn inode(ino: Ino) -> Vec<u8> {
    number(INODE, ino.0)
}

/// A table byte, an inode, and bytes.
pub(crate) fn under(table: u8, ino: Ino, rest: &[u8]) -> Vec<u8> {
    let mut key = number(table, ino.0);
    key.extend_from_slice(rest);
    key
}

pub(crate) fn of_cid(table: u8, cid: &Cid) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    key.push(table);
    crate::types::cid::append(cid, &mut key);
    key
}

/// The first key after all that begin with `prefix`.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// The number behind the table byte.
pub(crate) fn number_in(key: &[u8]) -> Option<u64> {
    key.get(1..9)?.try_into().ok().map(u64::from_be_bytes)
}

/// The number behind the table byte and a first number.
pub(crate) fn second_number_in(key: &[u8]) -> Option<u64> {
    key.get(9..17)?.try_into().ok().map(u64::from_be_bytes)
}

/// What stands behind the table byte and the number.
pub(crate) fn rest_of(key: &[u8]) -> Option<&[u8]> {
    key.get(9..).filter(|rest| !rest.is_empty())
}

/// Whether checkpoints record the row of `key`.
pub(crate) fn is_recorded(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(INODE | DENTRY | XATTR | CONTENT)))
}
