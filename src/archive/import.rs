//! Reading whole archives: everything is checked before anything is used.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::places::{Key, Place, Places};
use super::{ArchiveError, IndexState, Report, io_error};
use crate::content::car::{
    self, CarError, CarHeader, CarReader, IndexRow, ReadSection, varint_len,
};
use crate::content::{ContentError, inline_block, parse_node};
use crate::types::{Cid, cid};

/// An archive that was read whole: blocks hashed, DAG complete.
pub struct Archive {
    header: CarHeader,
    spool: Spool,
    spool_dir: PathBuf,
    places: Places,
    report: Report,
    /// Sections with a block that came before.
    pub duplicates: u64,
    /// Blocks that no root leads to (the first 1,000).
    pub extra: Vec<Cid>,
    /// Whether an index was there; it fits then.
    pub indexed: bool,
}

/// The sections as they came, in a file without a name: a crash leaves nothing.
struct Spool {
    file: File,
    /// Offset in the archive of the file's first byte.
    first: u64,
}

impl Spool {
    fn create(dir: &Path) -> std::io::Result<File> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("sections-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    fn block(&self, id: &Cid, place: &Place) -> std::io::Result<Bytes> {
        let head = id.encoded_len() as u64;
        let data = place.offset + varint_len(head + u64::from(place.len)) + head;
        let mut bytes = vec![0; place.len as usize];
        self.file.read_exact_at(&mut bytes, data - self.first)?;
        Ok(Bytes::from(bytes))
    }

    /// The CID of the section that begins at `offset`, if one does.
    fn cid_at(&self, offset: u64) -> Option<Cid> {
        let mut head = [0; 192];
        let at = offset.checked_sub(self.first)?;
        let got = self.file.read_at(&mut head, at).ok()?;
        let (_, rest) = unsigned_varint::decode::u64(&head[..got]).ok()?;
        Cid::read_bytes(rest).ok()
    }
}

/// Reads an archive to its end and reports all that is wrong with it; damaged
/// and missing blocks do not stop it. `progress` gets sections so far.
///
/// # Errors
/// `Car` of the header; `Unusable` without a root; `Io`. All later damage is in the report.
pub fn verify(
    input: &mut dyn Read,
    spool_dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, ArchiveError> {
    Ok(Archive::scan(input, spool_dir, progress)?.report)
}

impl Archive {
    /// Reads, checks and spools an archive. `progress` gets sections so far.
    ///
    /// # Errors
    /// `Faulty` when anything is damaged or missing; those of [`verify`].
    pub fn read(
        input: &mut dyn Read,
        spool_dir: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ArchiveError> {
        let archive = Self::scan(input, spool_dir, progress)?;
        if archive.report.is_whole() {
            Ok(archive)
        } else {
            Err(ArchiveError::Faulty(Box::new(archive.report)))
        }
    }

    fn scan(
        input: &mut dyn Read,
        spool_dir: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ArchiveError> {
        let mut reader = CarReader::new(input)?;
        let header = reader.header_of().clone();
        if header.roots.is_empty() {
            return Err(ArchiveError::Unusable("it has no root".into()));
        }
        let file = Spool::create(spool_dir)?;
        let mut spool = BufWriter::with_capacity(1 << 20, file);
        let mut places = Places::default();
        let mut report = Report::default();
        // Offsets of sections whose blocks came before: an index may have them.
        let mut repeated = HashSet::new();
        loop {
            let ReadSection { section, verdict, body } = match reader.next_unchecked() {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(CarError::Io(error)) => return Err(error.into()),
                Err(error) => {
                    report.fault = Some(Box::new(error.into()));
                    break;
                }
            };
            report.sections += 1;
            progress(report.sections);
            let mut buffer = unsigned_varint::encode::u64_buffer();
            spool.write_all(unsigned_varint::encode::u64(body.len() as u64, &mut buffer))?;
            spool.write_all(&body)?;
            let (id, at) = (section.cid, Some(section.offset));
            match (verdict, Key::of(&id)) {
                (cid::Verdict::Match, Some(key)) => {
                    let len = section.data.len() as u32;
                    if places.insert(key, section.offset, len) {
                        report.bytes += u64::from(len);
                    } else {
                        report.duplicates.push(id, at, "");
                        repeated.insert(section.offset);
                    }
                }
                // An identity CID is its own block.
                (cid::Verdict::Match, None) => {}
                (cid::Verdict::Mismatch, _) => {
                    report.damaged.push(id, at, "does not match its hash");
                }
                (cid::Verdict::UnknownHash, _) => {
                    let note = format!("has a hash of an unknown kind (0x{:x})", id.hash().code());
                    report.damaged.push(id, at, note);
                }
            }
        }
        report.blocks = places.len();
        let file = spool.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let spool = Spool { file, first: reader.first_section() };
        if header.version == 2 && report.fault.is_none() {
            if header.index_offset == 0 {
                report.trailing_bytes = reader.drain()?;
            } else if report.damaged.is_empty() {
                report.index = check_index(&header, &mut reader, &spool, &mut places, &repeated);
            }
        }
        let indexed = report.index == IndexState::Good;
        let duplicates = report.duplicates.count;
        let spool_dir = spool_dir.to_owned();
        let mut archive = Self {
            header,
            spool,
            spool_dir,
            places,
            report,
            duplicates,
            extra: Vec::new(),
            indexed,
        };
        archive.walk()?;
        archive.extra = archive.report.extra.listed.iter().map(|found| found.cid).collect();
        Ok(archive)
    }

    /// Follows every link from the roots.
    fn walk(&mut self) -> Result<(), ArchiveError> {
        let damaged: HashSet<Cid> =
            self.report.damaged.listed.iter().map(|found| found.cid).collect();
        let mut others = HashSet::new();
        let mut stack: Vec<(Cid, Option<(Cid, u64)>)> =
            self.header.roots.iter().rev().map(|root| (*root, None)).collect();
        while let Some((id, from)) = stack.pop() {
            let (block, offset) = if let Some(inline) = inline_block(&id) {
                if !others.insert(id) {
                    continue;
                }
                (inline, from.map_or(0, |(_, offset)| offset))
            } else if let Some(place) = self.places.get_mut(&id) {
                if std::mem::replace(&mut place.reached, true) || id.codec() == cid::RAW {
                    continue;
                }
                let place = *place;
                (self.spool.block(&id, &place)?, place.offset)
            } else {
                // What is damaged is not missing as well.
                if others.insert(id) && !damaged.contains(&id) {
                    let note = from.map_or_else(
                        || "is a root".to_owned(),
                        |(parent, _)| format!("is linked from {parent}"),
                    );
                    self.report.missing.push(id, from.map(|(_, offset)| offset), note);
                }
                continue;
            };
            match parse_node(&id, &block) {
                Ok(node) => {
                    let children = node.children().into_iter().rev();
                    stack.extend(children.map(|child| (child, Some((id, offset)))));
                }
                Err(error) => {
                    self.report.damaged.push(id, Some(offset), format!("is no UnixFS: {error}"));
                }
            }
        }
        // Where a section is damaged or the end is missing, nobody can say what
        // its links would have led to.
        if self.report.is_whole() {
            for (key, place) in self.places.sorted(|place| !place.reached) {
                self.report.extra.push(key.cid(), Some(place.offset), "");
            }
        }
        Ok(())
    }

    /// What the archive says of itself.
    #[must_use]
    pub fn header(&self) -> &CarHeader {
        &self.header
    }

    /// What reading it has found.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Its roots.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.header.roots
    }

    /// Number of different blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.places.len()
    }

    /// The blocks that the roots lead to, in the archive's order. Identity
    /// blocks, which need no storing, are left out.
    #[must_use]
    pub fn cids(&self) -> Vec<Cid> {
        self.places.sorted(|place| place.reached).into_iter().map(|(key, _)| key.cid()).collect()
    }

    /// A block, from the spool.
    ///
    /// # Errors
    /// `Missing` when the archive lacks it; `Io`.
    pub fn load(&self, id: &Cid) -> Result<Bytes, ArchiveError> {
        if let Some(inline) = inline_block(id) {
            return Ok(inline);
        }
        let place = self.places.get(id).ok_or(ArchiveError::Missing(*id))?;
        Ok(self.spool.block(id, place)?)
    }

    /// [`Archive::load`] for the callbacks of `content`.
    pub(super) fn load_node(&self, id: &Cid) -> Result<Bytes, ContentError> {
        self.load(id).map_err(|error| match error {
            ArchiveError::Missing(id) => ContentError::Missing(id),
            ArchiveError::Io(error) => ContentError::Io(error),
            other => io_error(&other),
        })
    }

    /// Length of a block that is not loaded.
    pub(super) fn block_len(&self, id: &Cid) -> Result<u64, ContentError> {
        let place = self.places.get(id).ok_or(ContentError::Missing(*id))?;
        Ok(u64::from(place.len))
    }

    /// A directory for temporary files, the one given to [`Archive::read`].
    pub(super) fn spool_dir(&self) -> &Path {
        &self.spool_dir
    }
}

/// Compares the index with the sections: every row leads to a block of its
/// hash, and every block has a row.
fn check_index(
    header: &CarHeader,
    reader: &mut CarReader<&mut dyn Read>,
    spool: &Spool,
    places: &mut Places,
    repeated: &HashSet<u64>,
) -> IndexState {
    let mut visit = |row: &IndexRow<'_>| {
        let offset = header.data_offset.saturating_add(row.offset);
        let nothing =
            || format!("a row leads to offset {offset}, where no block of its hash begins");
        let id = spool.cid_at(offset).ok_or_else(nothing)?;
        if id.hash().digest() != row.digest || row.code.is_some_and(|code| code != id.hash().code())
        {
            return Err(nothing());
        }
        // The bytes at an offset inside a block could look like a section.
        match places.get_mut(&id) {
            Some(place) if place.offset == offset || repeated.contains(&offset) => {
                place.indexed = true;
                Ok(())
            }
            None if id.hash().code() == cid::IDENTITY => Ok(()),
            _ => Err(nothing()),
        }
    };
    let read = match reader.index() {
        Ok(input) => car::read_index(input, &mut visit),
        Err(error) => Err(error.to_string()),
    };
    match read {
        Err(reason) => IndexState::Bad(reason),
        Ok(()) => match places.not_indexed() {
            Some(id) => IndexState::Bad(format!("block {id} is not in it")),
            None => IndexState::Good,
        },
    }
}
