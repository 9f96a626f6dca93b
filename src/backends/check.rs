//! What every backend refuses before it touches its place.

use std::ops::Range;

use super::{BackendError, ErrorKind};
use crate::types::{Block, Cid};

/// The longest name, in bytes.
pub(crate) const NAME_MAX: usize = 200;

/// Refuses a block that no reader would accept.
pub(crate) fn block(block: &Block) -> Result<(), BackendError> {
    if block.data.len() <= Block::MAX_LEN {
        return Ok(());
    }
    Err(BackendError::new(
        ErrorKind::Invalid,
        format!(
            "block {} has {} bytes; a block has at most {}",
            block.cid,
            block.data.len(),
            Block::MAX_LEN
        ),
    ))
}

/// The asked range, or the whole block; refuses what is not within it.
pub(crate) fn range(
    cid: &Cid,
    asked: Option<Range<u64>>,
    len: u64,
) -> Result<Range<u64>, BackendError> {
    let range = asked.unwrap_or(0..len);
    if range.start <= range.end && range.end <= len {
        return Ok(range);
    }
    Err(BackendError::new(
        ErrorKind::Invalid,
        format!(
            "bytes {} to {} of block {cid} were asked for, and it has {len}",
            range.start, range.end
        ),
    ))
}

/// Refuses a name that some place could not keep: 1 to 200 bytes of
/// `a-z0-9-_./`, no component empty, `.` or `..`.
pub(crate) fn name(name: &str) -> Result<(), BackendError> {
    let allowed = |b: u8| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b'/')
    };
    let fits = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(allowed);
    if fits && name.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    Err(BackendError::new(
        ErrorKind::Invalid,
        format!(
            "`{}` is not a name: use 1 to {NAME_MAX} of a-z, 0-9, `-`, `_`, `.`, and `/` between parts",
            name.escape_debug()
        ),
    ))
}
