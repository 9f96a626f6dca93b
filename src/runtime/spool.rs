//! Bytes that requests leave while they wait: in memory as long as there is room,
//! else in a file that has no name, so that no crash leaves it.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of a place in the file: one write of the kernel's.
const PLACE: u64 = 1 << 20;
/// Places at most.
const PLACES: u64 = 16_384;
/// Where a filesystem has no `O_TMPFILE`.
const NAME: &str = "waiting";

#[derive(Default)]
struct State {
    /// Bytes in memory.
    memory: usize,
    file: Option<Arc<File>>,
    /// Places that were used and are free, and how many there are in all.
    free: Vec<u64>,
    places: u64,
}

/// Keeps bytes for who waits.
pub struct Spool {
    dir: PathBuf,
    most: usize,
    state: Mutex<State>,
}

enum Place {
    Memory(Vec<u8>),
    File { file: Arc<File>, place: u64, len: usize },
}

/// Bytes that are kept until this is dropped.
pub struct Held {
    spool: Arc<Spool>,
    place: Place,
}

fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    let flag = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
    let opened = options.clone().custom_flags(flag).open(dir);
    opened.or_else(|_| {
        let path = dir.join(NAME);
        let file = options.create(true).truncate(true).open(&path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    })
}

impl Spool {
    /// Keeps up to `most` bytes in memory, and others on the disk of `dir`.
    #[must_use]
    pub fn new(dir: &Path, most: usize) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), most, state: Mutex::default() })
    }

    /// Keeps a copy in memory, when there is room.
    #[must_use]
    pub fn in_memory(self: &Arc<Self>, bytes: &[u8]) -> Option<Held> {
        let mut state = self.state.lock();
        if state.memory + bytes.len() > self.most {
            return None;
        }
        state.memory += bytes.len();
        drop(state);
        Some(Held { spool: Arc::clone(self), place: Place::Memory(bytes.to_vec()) })
    }

    /// Keeps a copy on the disk.
    ///
    /// # Errors
    /// Of the disk; `StorageFull` when too many wait; `InvalidInput` for more than a
    /// mebibyte.
    pub fn on_disk(self: &Arc<Self>, bytes: &[u8]) -> io::Result<Held> {
        if bytes.len() as u64 > PLACE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = self.state.lock();
        let file = if let Some(file) = &state.file {
            Arc::clone(file)
        } else {
            Arc::clone(state.file.insert(Arc::new(unnamed(&self.dir)?)))
        };
        let place = match state.free.pop() {
            Some(place) => place,
            None if state.places == PLACES => return Err(io::ErrorKind::StorageFull.into()),
            None => {
                state.places += 1;
                state.places - 1
            }
        };
        drop(state);
        let place = Place::File { file: Arc::clone(&file), place, len: bytes.len() };
        // Dropped with an error it gives its place back.
        let held = Held { spool: Arc::clone(self), place };
        held.store(bytes)?;
        Ok(held)
    }

    /// Bytes in memory, and pieces on the disk.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.memory as u64, state.places - state.free.len() as u64)
    }
}

impl Held {
    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.place {
            Place::Memory(_) => Ok(()),
            Place::File { file, place, .. } => file.write_all_at(bytes, place * PLACE),
        }
    }

    /// The bytes.
    ///
    /// # Errors
    /// Of the disk.
    pub fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        match &self.place {
            Place::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Place::File { file, place, len } => {
                let mut bytes = vec![0; *len];
                file.read_exact_at(&mut bytes, place * PLACE)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.spool.state.lock();
        match &self.place {
            Place::Memory(bytes) => state.memory -= bytes.len(),
            Place::File { place, .. } => {
                state.free.push(*place);
                if state.free.len() as u64 == state.places {
                    // Its space is the disk's again.
                    *state = State { memory: state.memory, ..State::default() };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_takes_so_much_memory_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 3 << 20);
        let piece = |n: u8| vec![n; 1 << 20];
        let hold = |n| match spool.in_memory(&piece(n)) {
            Some(held) => held,
            None => spool.on_disk(&piece(n)).unwrap(),
        };
        let mut held: Vec<Held> = (0..20).map(hold).collect();
        assert_eq!(spool.held(), (3 << 20, 17));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        for (n, held) in held.iter().enumerate() {
            assert!(held.bytes().unwrap() == piece(u8::try_from(n).unwrap()));
        }
        held.drain(2..12);
        assert_eq!(spool.held(), (2 << 20, 8));
        // Places are used again, and memory first.
        held.extend((30..35).map(hold));
        assert_eq!((spool.held(), spool.state.lock().places), ((3 << 20, 12), 17));
        assert!(held[14].bytes().unwrap() == piece(34) && held[5].bytes().unwrap() == piece(15));
        assert!(spool.on_disk(&vec![0; (1 << 20) + 1]).is_err());
        held.clear();
        assert_eq!(spool.held(), (0, 0));
        assert!(spool.state.lock().file.is_none());
    }
}
