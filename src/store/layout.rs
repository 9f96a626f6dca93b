//! Where the store's files lie, and how they are named.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::{Ino, SegmentId};

/// The two kinds of segment; the lowest bit of the id tells them apart, so that
/// a location needs no kind of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    /// A sealed staging file.
    Flat = 0,
    /// Small blocks, framed as CAR.
    Pack = 1,
}

/// The newest id given in this process, without its kind bit.
static NEWEST: AtomicU64 = AtomicU64::new(0);

/// A new id: microseconds since 1970, raised where needed so that ids only
/// grow, then the kind bit. Time makes an id new across restarts even when the
/// file that had the highest one is gone.
pub(crate) fn new_id(kind: SegmentKind) -> SegmentId {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(now.as_micros()).unwrap_or(0);
    let raise = |last: u64| micros.max(last + 1);
    let last = NEWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(raise(last)));
    SegmentId(raise(last.unwrap_or(0)) << 1 | kind as u64)
}

/// Makes later ids larger than one that exists (the clock may have gone back).
pub(crate) fn note_id(seen: SegmentId) {
    NEWEST.fetch_max(seen.0 >> 1, Ordering::Relaxed);
}

pub(crate) fn kind(id: SegmentId) -> SegmentKind {
    if id.0 & 1 == 1 { SegmentKind::Pack } else { SegmentKind::Flat }
}

/// The folders of one store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    pub fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }

    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Folder of a segment. A flat segment's shard changes every 17 seconds of
    /// its id, so that files sealed together share one directory sync.
    pub fn folder(&self, id: SegmentId) -> PathBuf {
        match kind(id) {
            SegmentKind::Pack => self.packs(),
            SegmentKind::Flat => self.segments().join(format!("{:02x}", (id.0 >> 25) & 0xff)),
        }
    }

    pub fn file(&self, id: SegmentId) -> PathBuf {
        let extension = match kind(id) {
            SegmentKind::Pack => "car",
            SegmentKind::Flat => "seg",
        };
        self.folder(id).join(format!("{id}.{extension}"))
    }
}

/// A staging file carries the id that it will have as a segment.
pub(crate) fn staging_name(ino: Ino, id: SegmentId) -> String {
    format!("{ino}-{id}")
}

pub(crate) fn parse_staging_name(name: &str) -> Option<(Ino, SegmentId)> {
    let (ino, id) = name.split_once('-')?;
    Some((Ino(ino.parse().ok()?), parse_id(id)?))
}

/// The id in `<16 hex>.<extension>`.
pub(crate) fn parse_segment_name(name: &str, extension: &str) -> Option<SegmentId> {
    parse_id(name.strip_suffix(extension)?.strip_suffix('.')?)
}

fn parse_id(hex: &str) -> Option<SegmentId> {
    let strict =
        hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if strict { u64::from_str_radix(hex, 16).ok().map(SegmentId) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_and_keep_their_kind() {
        note_id(SegmentId(u64::MAX >> 8));
        let first = new_id(SegmentKind::Pack);
        let second = new_id(SegmentKind::Flat);
        assert!(second > first);
        assert_eq!(kind(first), SegmentKind::Pack);
        assert_eq!(kind(second), SegmentKind::Flat);
    }

    #[test]
    fn names_are_read_back_strictly() {
        let id = SegmentId(0xabc);
        assert_eq!(parse_staging_name(&staging_name(Ino(7), id)), Some((Ino(7), id)));
        assert_eq!(parse_segment_name("0000000000000abc.car", "car"), Some(id));
        for bad in
            ["abc.car", "0000000000000ABC.car", "0000000000000abc.seg", "+00000000000abcd.car"]
        {
            assert_eq!(parse_segment_name(bad, "car"), None, "{bad}");
        }
    }
}
