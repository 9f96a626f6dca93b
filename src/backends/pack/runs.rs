//! Rows of an index in files: sorted runs that are written once, and merged.
//!
//! A run is pages of 4096 bytes: rows in order, then zeros, then the count of rows (u16) and
//! the xxh3-64 of what is before it, little-endian. It is a cache: what does not read is
//! made anew from the packs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::types::{Cid, cid};

const PAGE: usize = 4096;
/// Count and hash at the end of a page.
const TAIL: usize = 10;
const ROW: usize = 47;
const ROWS: usize = (PAGE - TAIL) / ROW;

/// What a block is looked for by: its digest, then which kind of CID names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key([u8; 33]);

impl Key {
    pub const FIRST: Self = Self([0; 33]);

    /// `None` for one that is no sha2-256 of a raw block or of a dag-pb node.
    pub fn of(id: &Cid) -> Option<Self> {
        let digest: [u8; 32] = id.hash().digest().try_into().ok()?;
        if id.hash().code() != cid::SHA2_256 {
            return None;
        }
        let kind = [cid::v0(&digest), cid::v1(cid::RAW, &digest), cid::v1(cid::DAG_PB, &digest)]
            .iter()
            .position(|known| known == id)?;
        let mut key = [kind as u8; 33];
        key[..32].copy_from_slice(&digest);
        Some(Self(key))
    }

    pub fn cid(self) -> Cid {
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.0[..32]);
        match self.0[32] {
            0 => cid::v0(&digest),
            1 => cid::v1(cid::RAW, &digest),
            _ => cid::v1(cid::DAG_PB, &digest),
        }
    }
}

/// A block in a pack. In order: by block, then by pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub key: Key,
    /// Number of its pack in the index.
    pub pack: u32,
    pub position: u16,
    pub offset: u32,
    pub len: u32,
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.pack.to_le_bytes());
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    fn decode(row: &[u8; ROW]) -> Self {
        let mut key = [0; 33];
        key.copy_from_slice(&row[..33]);
        let number =
            |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
        Self {
            key: Key(key),
            pack: number(33),
            position: u16::from_le_bytes([row[37], row[38]]),
            offset: number(39),
            len: number(43),
        }
    }
}

/// What a run that does not read says.
fn damaged(path: &Path) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
}

/// A file of rows.
#[derive(Debug)]
pub(super) struct Run {
    path: PathBuf,
    file: File,
    /// The first key of each page.
    fence: Vec<Key>,
    pub rows: u64,
}

impl Run {
    /// Writes rows that come in order; the file is there whole or not at all.
    pub fn write(
        path: &Path,
        rows: &mut dyn Iterator<Item = std::io::Result<Entry>>,
    ) -> std::io::Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::NamedTempFile::new_in(parent)?;
        let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
        let (mut fence, mut count, mut page, mut in_page) =
            (Vec::new(), 0u64, Vec::with_capacity(PAGE), 0u16);
        let mut last = None;
        let mut end_page = |page: &mut Vec<u8>, in_page: &mut u16| -> std::io::Result<()> {
            page.resize(PAGE - TAIL, 0);
            page.extend_from_slice(&in_page.to_le_bytes());
            let hash = xxh3_64(page);
            page.extend_from_slice(&hash.to_le_bytes());
            out.write_all(page)?;
            page.clear();
            *in_page = 0;
            Ok(())
        };
        for row in rows {
            let row = row?;
            debug_assert!(last < Some(row), "rows come in order");
            last = Some(row);
            if in_page == 0 {
                fence.push(row.key);
            }
            row.encode(&mut page);
            (in_page, count) = (in_page + 1, count + 1);
            if usize::from(in_page) == ROWS {
                end_page(&mut page, &mut in_page)?;
            }
        }
        if in_page > 0 {
            end_page(&mut page, &mut in_page)?;
        }
        out.flush()?;
        drop(out);
        let file = temporary.persist(path).map_err(|error| error.error)?;
        // Opened for reading as well by whoever made it.
        Ok(Self { path: path.to_owned(), file, fence, rows: count })
    }

    /// Reads every page once.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if !len.is_multiple_of(PAGE as u64) {
            return Err(damaged(path));
        }
        let mut run = Self { path: path.to_owned(), file, fence: Vec::new(), rows: 0 };
        for number in 0..(len / PAGE as u64) as usize {
            let page = run.page(number)?;
            let first = page.first().ok_or_else(|| damaged(path))?;
            run.fence.push(first.key);
            run.rows += page.len() as u64;
        }
        Ok(run)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn page(&self, number: usize) -> std::io::Result<Vec<Entry>> {
        let mut bytes = [0; PAGE];
        self.file.read_exact_at(&mut bytes, number as u64 * PAGE as u64)?;
        let (body, hash) = bytes.split_at(PAGE - 8);
        if hash != xxh3_64(body).to_le_bytes() {
            return Err(damaged(&self.path));
        }
        let count = u16::from_le_bytes([body[PAGE - TAIL], body[PAGE - TAIL + 1]]);
        if usize::from(count) > ROWS {
            return Err(damaged(&self.path));
        }
        let (rows, _) = body.as_chunks::<ROW>();
        Ok(rows[..usize::from(count)].iter().map(Entry::decode).collect())
    }

    /// The page that the first row with this key, or a later one, is in or follows on.
    fn page_of(&self, key: &Key) -> usize {
        self.fence.partition_point(|first| first < key).saturating_sub(1)
    }

    /// Adds the rows of a block.
    pub fn find(&self, key: &Key, found: &mut Vec<Entry>) -> std::io::Result<()> {
        for row in self.from(*key) {
            let row = row?;
            if row.key != *key {
                break;
            }
            found.push(row);
        }
        Ok(())
    }

    /// All rows from a key on, in order.
    pub fn from(&self, key: Key) -> Rows<'_> {
        Rows { run: self, from: key, next: self.page_of(&key), page: Vec::new().into_iter() }
    }
}

/// Rows of a run, a page at a time.
pub(super) struct Rows<'r> {
    run: &'r Run,
    from: Key,
    next: usize,
    page: std::vec::IntoIter<Entry>,
}

impl Iterator for Rows<'_> {
    type Item = std::io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.page.next() {
                if row.key < self.from {
                    continue;
                }
                return Some(Ok(row));
            }
            if self.next >= self.run.fence.len() {
                return None;
            }
            match self.run.page(self.next) {
                Ok(page) => self.page = page.into_iter(),
                Err(error) => {
                    self.next = self.run.fence.len();
                    return Some(Err(error));
                }
            }
            self.next += 1;
        }
    }
}

/// Rows of several sources, each in order, in order.
pub(super) struct Merged<I: Iterator<Item = std::io::Result<Entry>>> {
    sources: Vec<I>,
    heads: BinaryHeap<Reverse<(Entry, usize)>>,
    failed: Option<std::io::Error>,
}

impl<I: Iterator<Item = std::io::Result<Entry>>> Merged<I> {
    pub fn new(sources: Vec<I>) -> Self {
        let mut merged = Self { sources, heads: BinaryHeap::new(), failed: None };
        (0..merged.sources.len()).for_each(|source| merged.pull(source));
        merged
    }

    fn pull(&mut self, source: usize) {
        match self.sources[source].next() {
            Some(Ok(row)) => self.heads.push(Reverse((row, source))),
            Some(Err(error)) => self.failed = Some(error),
            None => {}
        }
    }
}

impl<I: Iterator<Item = std::io::Result<Entry>>> Iterator for Merged<I> {
    type Item = std::io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.heads.clear();
            return Some(Err(error));
        }
        let Reverse((row, source)) = self.heads.pop()?;
        self.pull(source);
        Some(Ok(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64, pack: u32) -> Entry {
        let digest = cid::sha256(&n.to_le_bytes());
        let id = [cid::v0(&digest), cid::v1(cid::RAW, &digest), cid::v1(cid::DAG_PB, &digest)]
            [n as usize % 3];
        let key = Key::of(&id).unwrap();
        assert_eq!(key.cid(), id);
        Entry { key, pack, position: n as u16, offset: n as u32 * 3, len: pack + 7 }
    }

    #[test]
    fn rows_are_found_again_in_files_and_over_several_of_them() {
        let dir = tempfile::tempdir().unwrap();
        for count in [0u64, 1, 85, 86, 87, 1000] {
            // Every tenth block is in two packs.
            let mut rows: Vec<Entry> = (0..count).map(|n| entry(n, 1)).collect();
            rows.extend((0..count).step_by(10).map(|n| entry(n, 9)));
            rows.sort_unstable();
            let path = dir.path().join(count.to_string());
            let written = Run::write(&path, &mut rows.iter().map(|row| Ok(*row))).unwrap();
            let opened = Run::open(&path).unwrap();
            for run in [&written, &opened] {
                assert_eq!(run.rows, rows.len() as u64);
                let all: Vec<Entry> = run.from(Key::FIRST).map(Result::unwrap).collect();
                assert_eq!(all, rows);
                for n in 0..count + 5 {
                    let mut found = Vec::new();
                    run.find(&entry(n, 0).key, &mut found).unwrap();
                    let packs: Vec<u32> = found.iter().map(|row| row.pack).collect();
                    let wanted: &[u32] = match n {
                        _ if n >= count => &[],
                        _ if n % 10 == 0 => &[1, 9],
                        _ => &[1],
                    };
                    assert_eq!(packs, wanted, "{n} of {count}");
                }
            }
            let (odd, even): (Vec<Entry>, Vec<Entry>) =
                rows.iter().partition(|row| row.position % 2 == 1);
            let sources = vec![odd.into_iter().map(Ok), even.into_iter().map(Ok)];
            let merged: Vec<Entry> = Merged::new(sources).map(Result::unwrap).collect();
            assert_eq!(merged, rows);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut rows: Vec<Entry> = (0..100).map(|n| entry(n, 1)).collect();
        rows.sort_unstable();
        Run::write(&path, &mut rows.into_iter().map(Ok)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(61) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            assert!(Run::open(&path).is_err(), "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(Run::open(&path).is_err());
    }
}
