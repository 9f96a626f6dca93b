//! The archives of a folder, as a source of blocks that are read where they lie.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::ArchiveError;
use super::places::Key;
use crate::content::car::{CarReader, ReadSection, varint_len};
use crate::types::{Cid, cid};

/// Blocks that are remembered, some 80 bytes of memory each: 2 TiB of 1 MiB leaves.
const MOST: usize = 1 << 21;
/// Damaged archives that are named.
const NAMED: usize = 16;

/// Where a block's data lies.
#[derive(Debug, Clone, Copy)]
struct At {
    archive: u32,
    offset: u64,
    len: u32,
}

/// All archives (`*.car`) right in a folder.
#[derive(Debug, Default)]
pub struct Shelf {
    files: Vec<PathBuf>,
    blocks: HashMap<Key, At>,
    damaged: Vec<String>,
}

impl Shelf {
    /// Reads and hashes all of them once. What does not match its hash is passed over;
    /// one that is cut off or no archive is named, and what it has before that is used.
    ///
    /// # Errors
    /// `Io`; `Unusable` when they have more than 2,097,152 blocks.
    pub fn open(folder: &Path, progress: &mut dyn FnMut(u64)) -> Result<Self, ArchiveError> {
        let mut shelf = Self::default();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "car") && path.is_file() {
                names.push(path);
            }
        }
        names.sort();
        for path in names {
            match shelf.add(&path, progress) {
                Err(error @ (ArchiveError::Io(_) | ArchiveError::Unusable(_))) => {
                    return Err(error);
                }
                Err(error) if shelf.damaged.len() < NAMED => {
                    shelf.damaged.push(format!("{}: {error}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(shelf)
    }

    fn add(&mut self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), ArchiveError> {
        let archive = self.files.len() as u32;
        self.files.push(path.to_owned());
        let mut reader = CarReader::new(File::open(path)?)?;
        while let Some(ReadSection { section, verdict, body }) = reader.next_unchecked()? {
            let (cid::Verdict::Match, Some(key)) = (verdict, Key::of(&section.cid)) else {
                continue;
            };
            let before = varint_len(body.len() as u64) + (body.len() - section.data.len()) as u64;
            let (offset, len) = (section.offset + before, section.data.len() as u32);
            self.blocks.entry(key).or_insert(At { archive, offset, len });
            if self.blocks.len() > MOST {
                let reason = format!("they have more than {MOST} blocks: take a part of them");
                return Err(ArchiveError::Unusable(reason));
            }
            progress(self.blocks.len() as u64);
        }
        Ok(())
    }

    /// Archives that were read, also those that are damaged.
    #[must_use]
    pub fn archives(&self) -> usize {
        self.files.len()
    }

    /// What is wrong with some of them, at most 16 lines.
    #[must_use]
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// The bytes of a block, as they are now; `None` when none of them has it.
    ///
    /// # Errors
    /// Of the disk; `UnexpectedEof` when an archive was cut off meanwhile.
    pub fn block(&self, id: &Cid) -> std::io::Result<Option<Bytes>> {
        let Some(at) = Key::of(id).and_then(|key| self.blocks.get(&key)) else { return Ok(None) };
        let Some(path) = self.files.get(at.archive as usize) else { return Ok(None) };
        let mut data = vec![0; at.len as usize];
        File::open(path)?.read_exact_at(&mut data, at.offset)?;
        Ok(Some(data.into()))
    }
}
