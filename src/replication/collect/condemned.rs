//! What a mark found dead at a backend, and since when: the trash. A block goes only
//! when a later mark finds it dead again, the grace period after.
//!
//! A text file a backend, `collect/<backend>.condemned`, replaced as a whole:
//!
//! ```text
//! {"format":1,"backend":"b","written_s":1700000000,"blocks":2}
//! <cid> <length> <seconds since 1970 of the first mark that found it dead>
//! ...
//! end
//! ```
//!
//! One that cannot be read is taken for empty: the grace period begins anew.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::cid::sha256;
use crate::types::{BackendId, Cid};

const FORMAT: u32 = 1;
/// Blocks of one backend at most (80 bytes of memory each); more wait for the next
/// collection.
pub(super) const MOST: usize = 400_000;

/// A block that nothing needed, when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condemned {
    /// The block.
    pub cid: Cid,
    /// Its length there.
    pub bytes: u64,
    /// The first mark that found it dead, in seconds since 1970.
    pub since_s: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    backend: String,
    written_s: i64,
    blocks: u64,
}

fn path(dir: &Path, id: &BackendId) -> PathBuf {
    dir.join(format!("{id}.condemned"))
}

fn invalid(what: impl Into<String>) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.into())
}

/// Reads a backend's; nothing when there is none.
///
/// # Errors
/// `InvalidData`, or of the disk.
pub fn load(dir: &Path, id: &BackendId) -> std::io::Result<Vec<Condemned>> {
    let file = match File::open(path(dir, id)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut lines = BufReader::new(file).lines();
    let head = lines.next().ok_or_else(|| invalid("it is empty"))??;
    let head: Head = serde_json::from_str(&head)?;
    if head.format != FORMAT {
        return Err(invalid(format!("format {} is not known", head.format)));
    }
    let mut all = Vec::new();
    for line in lines {
        let line = line?;
        if line == "end" {
            let whole = all.len() as u64 == head.blocks;
            return if whole { Ok(all) } else { Err(invalid("blocks are missing")) };
        }
        if all.len() >= MOST {
            return Err(invalid("it has too many blocks"));
        }
        all.push(parse(&line).ok_or_else(|| invalid(format!("`{}`", line.escape_debug())))?);
    }
    Err(invalid("its end is missing"))
}

/// When a backend's was written, in seconds since 1970; `None` when there is none.
pub fn written_s(dir: &Path, id: &BackendId) -> Option<i64> {
    let mut line = String::new();
    BufReader::new(File::open(path(dir, id)).ok()?).read_line(&mut line).ok()?;
    serde_json::from_str::<Head>(&line).ok().map(|head| head.written_s)
}

fn parse(line: &str) -> Option<Condemned> {
    let mut words = line.split(' ');
    let (cid, bytes, since) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    Some(Condemned {
        cid: cid.parse().ok()?,
        bytes: bytes.parse().ok()?,
        since_s: since.parse().ok()?,
    })
}

/// Replaces a backend's, durably.
///
/// # Errors
/// Of the disk.
pub fn store(dir: &Path, id: &BackendId, all: &[Condemned], now_s: i64) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let (to, temporary) = (path(dir, id), dir.join(format!("{id}.tmp")));
    let mut out = BufWriter::new(File::create(&temporary)?);
    let blocks = all.len() as u64;
    let head = Head { format: FORMAT, backend: id.to_string(), written_s: now_s, blocks };
    writeln!(out, "{}", serde_json::to_string(&head)?)?;
    for Condemned { cid, bytes, since_s } in all {
        writeln!(out, "{cid} {bytes} {since_s}")?;
    }
    writeln!(out, "end")?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&temporary, &to)?;
    File::open(dir)?.sync_all()
}

/// Since when, by block.
pub(super) fn by_block(all: Vec<Condemned>) -> HashMap<[u8; 32], i64> {
    all.into_iter().map(|block| (key(&block.cid), block.since_s)).collect()
}

/// Less than a `Cid`, whose buffer holds 64 bytes of digest.
pub(super) fn key(cid: &Cid) -> [u8; 32] {
    sha256(&cid.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid;

    const GOLDEN: &str = include_str!("../../../tests/fixtures/golden/condemned-1.txt");

    fn sample() -> Vec<Condemned> {
        let block = |n: u8, bytes, since_s| Condemned { cid: cid::of_raw(&[n]), bytes, since_s };
        vec![block(1, 1, 1_700_000_000), block(2, 1_048_576, 1_700_086_400)]
    }

    #[test]
    fn the_first_form_is_written_and_read_as_ever() {
        let dir = tempfile::tempdir().unwrap();
        let id: BackendId = "b".parse().unwrap();
        store(dir.path(), &id, &sample(), 1_700_100_000).unwrap();
        assert_eq!(fs::read_to_string(path(dir.path(), &id)).unwrap(), GOLDEN);
        assert_eq!(load(dir.path(), &id).unwrap(), sample());
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let id: BackendId = "b".parse().unwrap();
        assert_eq!(load(dir.path(), &id).unwrap(), []);
        for cut in 0..GOLDEN.len() - 1 {
            fs::write(path(dir.path(), &id), &GOLDEN[..cut]).unwrap();
            assert!(load(dir.path(), &id).is_err(), "cut at {cut}");
        }
        for (from, to) in [(":1,", ":2,"), (" 1 ", " x "), (" 1 ", " 1 1 "), ("bafk", "!afk")] {
            fs::write(path(dir.path(), &id), GOLDEN.replacen(from, to, 1)).unwrap();
            assert!(load(dir.path(), &id).is_err(), "{from} to {to}");
        }
    }
}
