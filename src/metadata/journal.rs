//! The embedded engine's journal after the death of the machine.
//!
//! What was committed and not persisted may be there in part: pages reach a
//! disk in any order. fjall 3.1 drops a batch that is cut off, but refuses to
//! open (or panics) at one with a hole; so the newest journal is checked first,
//! and what follows its last whole batch is moved aside. Sealed journals were
//! synced before the next began, so a hole there is damage and stays an error.
//!
//! Whether what follows is a torn tail or damage to what was synced is told by
//! marks: each persist first commits a row with its number, after the persist
//! before it has ended. A mark that is whole says so of all that lies before the
//! mark before it: where that begins behind the first bad byte, synced bytes are
//! bad. What only the last persist covered cannot be told from a torn tail.
//!
//! The form is fjall's own (its `journal/entry.rs`), little-endian: a batch is
//! `01 count:u32 seqno:u64`, that many items `02 type:u8 compression:u8
//! keyspace:u64 key_len:u16 len:u32 stored_len:u32 key value` or clears
//! `04 keyspace:u64`, and `03 xxh3:u64 "FJL" 03`, the hash being that of all
//! items and clears. Preallocated zeros follow.

use std::fs::{File, OpenOptions};
use std::hash::Hasher as _;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::runtime::failpoint;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = [b'F', b'J', b'L', 3];

/// The row with the number of a persist, a big-endian u64.
pub(super) const PERSIST_KEY: &[u8; 8] = b"Fpersist";
/// Of what follows the last whole batch so much is searched for marks.
const SEARCHED: u64 = 32 << 20;

/// What follows the last whole batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// It was not synced. It was moved aside.
    Torn {
        /// Bytes, without trailing zeros.
        bytes: u64,
        /// Where they are kept.
        kept: PathBuf,
    },
    /// It was synced once. Nothing was changed.
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where the first bad batch begins.
        at: u64,
        /// Bytes that follow.
        bytes: u64,
    },
}

/// Ends the newest journal in `dir` behind its last whole batch. None: nothing
/// but zeros followed, or there is no journal. Call before the engine is opened.
///
/// # Errors
/// Of the disk.
pub(super) fn trim(dir: &Path) -> io::Result<Option<Tail>> {
    let Some(path) = newest(dir)? else { return Ok(None) };
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let (whole, mark) = whole_batches(&file)?;
    let length = written(&file, whole)?;
    if length <= whole {
        return Ok(None);
    }
    if is_damage(&mut file, whole..length, mark)? {
        return Ok(Some(Tail::Damaged { path, at: whole, bytes: length - whole }));
    }
    let kept = path.with_extension("torn");
    let mut aside = File::create(&kept)?;
    file.seek(SeekFrom::Start(whole))?;
    io::copy(&mut (&file).take(length - whole), &mut aside)?;
    aside.flush()?;
    aside.sync_all()?;
    File::open(dir)?.sync_all()?;
    failpoint::reach("metadata.journal.set_aside");
    file.set_len(whole)?;
    failpoint::reach("metadata.journal.cut");
    file.sync_all()?;
    Ok(Some(Tail::Torn { bytes: length - whole, kept }))
}

fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in entries {
        let path = entry?.path();
        let number = path
            .extension()
            .filter(|extension| *extension == "jnl")
            .and_then(|_| path.file_stem()?.to_str()?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(most, _)| number > *most)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the last whole batch ends, and the last mark before that.
fn whole_batches(file: &File) -> io::Result<(u64, Option<u64>)> {
    let length = file.metadata()?.len();
    let mut input = Input { from: BufReader::with_capacity(1 << 18, file), at: 0, length };
    let (mut whole, mut mark) = (0, None);
    while let Some(found) = batch(&mut input)? {
        whole = input.at;
        mark = found.mark.or(mark);
    }
    Ok((whole, mark))
}

/// Whether a persist covered the first bad byte of `tail`: marks that are whole
/// behind it say so. `before` is the last mark ahead of it.
fn is_damage(file: &mut File, tail: Range<u64>, before: Option<u64>) -> io::Result<bool> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(tail.start))?;
    (&*file).take((tail.end - tail.start).min(SEARCHED)).read_to_end(&mut bytes)?;
    let (mut at, mut first) = (0, None);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let mut input = Input { from: rest, at: 0, length: rest.len() as u64 };
        let Some(found) = (if rest[0] == START { batch(&mut input)? } else { None }) else {
            at += 1;
            continue;
        };
        at += input.at as usize;
        let Some(mark) = found.mark else { continue };
        // The mark before this one lies behind the bad byte, and was synced.
        if before.is_some_and(|before| mark >= before + 2) || first.is_some_and(|f| mark > f) {
            return Ok(true);
        }
        first.get_or_insert(mark);
    }
    Ok(false)
}

/// Where the last byte is that is not zero, `from` on.
fn written(mut file: &File, from: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(from))?;
    let (mut buffer, mut at, mut last) = (vec![0; 1 << 18], from, from);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(last);
        }
        if let Some(index) = buffer.iter().take(read).rposition(|byte| *byte != 0) {
            last = at + index as u64 + 1;
        }
        at += read as u64;
    }
}

struct Input<R> {
    from: R,
    at: u64,
    length: u64,
}

impl<R: Read> Input<R> {
    /// The next bytes; None when the file is too short for them.
    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        Ok(self.fill(&mut bytes)?.then_some(bytes))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        if self.length - self.at < bytes.len() as u64 {
            return Ok(false);
        }
        self.from.read_exact(bytes)?;
        self.at += bytes.len() as u64;
        Ok(true)
    }

    /// Hashes so many bytes; false when the file is too short for them.
    fn hash(&mut self, mut count: u64, hasher: &mut Xxh3) -> io::Result<bool> {
        if self.length - self.at < count {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        while count > 0 {
            let step = count.min(buffer.len() as u64);
            // `step` is at most the length of the buffer.
            let part = &mut buffer[..step as usize];
            self.fill(part)?;
            hasher.update(part);
            count -= step;
        }
        Ok(true)
    }
}

/// A whole batch.
struct Batch {
    /// The mark in it.
    mark: Option<u64>,
}

/// Reads one batch; None when it is not whole.
fn batch<R: Read>(input: &mut Input<R>) -> io::Result<Option<Batch>> {
    let Some([START, count @ .., _, _, _, _, _, _, _, _]) = input.take::<13>()? else {
        return Ok(None);
    };
    let (mut hasher, mut mark) = (Xxh3::new(), None);
    for _ in 0..u32::from_le_bytes(count) {
        match input.take::<1>()? {
            Some([ITEM]) => {
                let Some(head) = input.take::<20>()? else { return Ok(None) };
                hasher.update(&[ITEM]);
                hasher.update(&head);
                let [_, _, _, _, _, _, _, _, _, _, k0, k1, _, _, _, _, v0, v1, v2, v3] = head;
                if ([k0, k1], [v0, v1, v2, v3]) == ([8, 0], [8, 0, 0, 0]) {
                    let Some(row) = input.take::<16>()? else { return Ok(None) };
                    hasher.update(&row);
                    let (key, value) = row.split_at(8);
                    if key == PERSIST_KEY {
                        mark = value.try_into().ok().map(u64::from_be_bytes);
                    }
                    continue;
                }
                let rest = u64::from(u16::from_le_bytes([k0, k1]))
                    + u64::from(u32::from_le_bytes([v0, v1, v2, v3]));
                if !input.hash(rest, &mut hasher)? {
                    return Ok(None);
                }
            }
            Some([CLEAR]) => {
                hasher.update(&[CLEAR]);
                if !input.hash(8, &mut hasher)? {
                    return Ok(None);
                }
            }
            _ => return Ok(None),
        }
    }
    let Some([END, hash @ .., t0, t1, t2, t3]) = input.take::<13>()? else { return Ok(None) };
    let good = [t0, t1, t2, t3] == TRAILER && u64::from_le_bytes(hash) == hasher.finish();
    Ok(good.then_some(Batch { mark }))
}
