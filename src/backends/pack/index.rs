//! Where each block is: in which pack, and where in it.
//!
//! What is known of packs is a cache of what lies at the place: rows of new packs are in
//! memory, those of others in sorted runs, in a folder of the volume. A folder that does not
//! read is begun anew, and filled from the packs' labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::head::Positions;
use super::label::Label;
use super::runs::{Entry, Key, Merged, Run};
use crate::types::Cid;

/// Version of the folder.
const FORMAT: u32 = 1;
/// Rows in memory before they are written to a run: some 6 MB.
const FRESH_ROWS: usize = 1 << 16;
/// A run is merged with the one before it unless that has so many times its rows.
const RATIO: u64 = 4;
const MANIFEST: &str = "packs.json";
const LOCK: &str = "lock";

/// The folder's list of what it holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    backend: Uuid,
    runs: Vec<String>,
    packs: Vec<Known>,
}

/// A pack whose rows are known.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    name: String,
    number: u32,
    bytes: u64,
    /// Of its blocks, which may be more; not known of packs that earlier versions took in.
    #[serde(default)]
    blocks: u64,
    rows: u32,
}

/// A block that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct At {
    pub pack: String,
    pub position: u16,
    pub offset: u64,
    pub len: u32,
}

/// Positions of a pack.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, position: u32) {
        let word = position as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (position % 64);
    }

    fn has(&self, position: u16) -> bool {
        let word = self.0.get(usize::from(position) / 64);
        word.is_some_and(|word| word & (1 << (position % 64)) != 0)
    }
}

#[derive(Debug, Default)]
struct State {
    packs: BTreeMap<String, Known>,
    by_number: HashMap<u32, String>,
    next: u32,
    /// Of all packs.
    bytes: u64,
    /// Of packs that are in no run.
    fresh: BTreeSet<Entry>,
    /// The largest first.
    runs: Vec<Run>,
    /// What is dead, by pack: also of packs that are not known yet.
    dead: HashMap<String, Bits>,
    /// Packs that count for nothing.
    retired: BTreeSet<String>,
}

/// All packs of a place.
#[derive(Debug)]
pub(in crate::backends) struct Index {
    backend: Uuid,
    dir: PathBuf,
    /// Gone with the index, where the volume has no folder for it.
    _own: Option<tempfile::TempDir>,
    /// Its lock.
    _held: Option<File>,
    state: RwLock<State>,
}

impl State {
    fn lives(&self, entry: &Entry) -> Option<&str> {
        let name = self.by_number.get(&entry.pack)?;
        let dead = self.dead.get(name).is_some_and(|dead| dead.has(entry.position));
        (!dead && !self.retired.contains(name)).then_some(name.as_str())
    }

    fn rows(&self, key: &Key) -> io::Result<Vec<Entry>> {
        let first = Entry { key: *key, pack: 0, position: 0, offset: 0, len: 0 };
        let mut rows: Vec<Entry> =
            self.fresh.range(first..).take_while(|row| row.key == *key).copied().collect();
        for run in &self.runs {
            run.find(key, &mut rows)?;
        }
        Ok(rows)
    }

    fn at(&self, entry: &Entry) -> Option<At> {
        let pack = self.lives(entry)?.to_owned();
        Some(At { pack, position: entry.position, offset: entry.offset.into(), len: entry.len })
    }

    /// All rows from a key on, also those that are dead.
    fn from(&self, key: Key) -> Merged<Box<dyn Iterator<Item = io::Result<Entry>> + '_>> {
        let first = Entry { key, pack: 0, position: 0, offset: 0, len: 0 };
        let mut sources: Vec<Box<dyn Iterator<Item = io::Result<Entry>> + '_>> =
            vec![Box::new(self.fresh.range(first..).map(|row| Ok(*row)))];
        for run in &self.runs {
            sources.push(Box::new(run.from(key)));
        }
        Merged::new(sources)
    }
}

impl Index {
    /// The index in `dir` (without one: in a folder that goes with it) of this place. One
    /// that does not read, or of another place, is empty.
    ///
    /// # Errors
    /// Of the disk, when nothing can be made there.
    pub fn open(dir: Option<&Path>, backend: Uuid) -> io::Result<Self> {
        let held = dir.map(hold).transpose()?;
        // Another opening of the same place has it: this one keeps its own.
        let dir = dir.filter(|_| held.as_ref().is_some_and(Option::is_some));
        let own = if dir.is_none() { Some(tempfile::tempdir()?) } else { None };
        let dir = match (dir, &own) {
            (Some(dir), _) => dir.to_owned(),
            (None, Some(own)) => own.path().to_owned(),
            (None, None) => PathBuf::new(),
        };
        std::fs::create_dir_all(&dir)?;
        let state = match load(&dir, backend) {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "an index of packs is made anew");
                empty(&dir)?;
                State::default()
            }
        };
        Ok(Self { backend, dir, _own: own, _held: held.flatten(), state: RwLock::new(state) })
    }

    /// Whether a block of this CID can be in a pack.
    pub fn takes(id: &Cid) -> bool {
        Key::of(id).is_some()
    }

    /// Takes in a pack.
    ///
    /// # Errors
    /// Of the disk; the pack is not known then.
    pub fn add(&self, name: &str, bytes: u64, label: &Label) -> io::Result<()> {
        let mut state = self.state.write();
        if state.packs.contains_key(name) {
            return Ok(());
        }
        let number = state.next;
        let too_far = || io::Error::other("a block lies beyond 4 GiB in its pack");
        let mut rows = Vec::with_capacity(label.rows.len());
        for (position, row) in label.rows.iter().enumerate() {
            let (Some(key), Ok(position)) = (Key::of(&row.cid), u16::try_from(position)) else {
                continue;
            };
            let offset = u32::try_from(row.offset).map_err(|_| too_far())?;
            rows.push(Entry { key, pack: number, position, offset, len: row.len });
        }
        let blocks = label.rows.iter().map(|row| u64::from(row.len)).sum();
        let count = label.rows.len() as u32;
        let known = Known { name: name.to_owned(), number, bytes, blocks, rows: count };
        state.packs.insert(name.to_owned(), known);
        state.bytes += bytes;
        state.by_number.insert(number, name.to_owned());
        state.next += 1;
        state.fresh.extend(rows);
        if state.fresh.len() >= FRESH_ROWS {
            self.flush(&mut state)?;
        }
        Ok(())
    }

    /// Writes what is in memory to a run, merged with those that are not much larger.
    fn flush(&self, state: &mut State) -> io::Result<()> {
        let mut keep = state.runs.len();
        let mut rows = state.fresh.len() as u64;
        while keep > 0 && state.runs[keep - 1].rows < rows.saturating_mul(RATIO) {
            keep -= 1;
            rows += state.runs[keep].rows;
        }
        let name = format!("{}.run", Uuid::new_v4().simple());
        let run = {
            let mut sources: Vec<Box<dyn Iterator<Item = io::Result<Entry>> + '_>> =
                vec![Box::new(state.fresh.iter().map(|row| Ok(*row)))];
            for run in &state.runs[keep..] {
                sources.push(Box::new(run.from(Key::FIRST)));
            }
            // Rows of packs that are gone leave here.
            let known = |row: &Entry| state.by_number.contains_key(&row.pack);
            let mut merged = Merged::new(sources).filter(|row| row.as_ref().map_or(true, known));
            Run::write(&self.dir.join(&name), &mut merged)?
        };
        let old: Vec<PathBuf> = state.runs.drain(keep..).map(|run| run.path().to_owned()).collect();
        state.runs.push(run);
        state.fresh.clear();
        self.save(state)?;
        for path in old {
            // One that stays is no run of the manifest: the next opening removes it.
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "an old run stays");
            }
        }
        Ok(())
    }

    fn save(&self, state: &State) -> io::Result<()> {
        let name = |run: &Run| run.path().file_name().map(|n| n.to_string_lossy().into_owned());
        let fresh: BTreeSet<u32> = state.fresh.iter().map(|row| row.pack).collect();
        let manifest = Manifest {
            format: FORMAT,
            backend: self.backend,
            runs: state.runs.iter().filter_map(name).collect(),
            packs: state.packs.values().filter(|p| !fresh.contains(&p.number)).cloned().collect(),
        };
        let text = serde_json::to_vec(&manifest).map_err(io::Error::other)?;
        let mut temporary = tempfile::NamedTempFile::new_in(&self.dir)?;
        io::Write::write_all(&mut temporary, &text)?;
        temporary.persist(self.dir.join(MANIFEST)).map(drop).map_err(|error| error.error)
    }

    /// Writes all that is known, so that the next opening has to ask for less.
    ///
    /// # Errors
    /// Of the disk; what is known stays known.
    pub fn keep(&self) -> io::Result<()> {
        let mut state = self.state.write();
        if state.fresh.is_empty() { self.save(&state) } else { self.flush(&mut state) }
    }

    /// Packs that are gone from the place.
    pub fn forget<'n>(&self, names: impl IntoIterator<Item = &'n str>) {
        let mut state = self.state.write();
        for name in names {
            state.dead.remove(name);
            state.retired.remove(name);
            let Some(known) = state.packs.remove(name) else { continue };
            state.bytes -= known.bytes;
            state.by_number.remove(&known.number);
            state.fresh.retain(|row| row.pack != known.number);
        }
    }

    /// What counts for nothing, as the head and its lists say; all of it.
    pub fn set_dead(&self, dead: &Positions, retired: BTreeSet<String>) {
        let mut state = self.state.write();
        state.retired = retired;
        state.dead.clear();
        for (pack, positions) in dead {
            let bits = state.dead.entry(pack.clone()).or_default();
            positions.iter().for_each(|position| bits.set(*position));
        }
    }

    /// More of a pack is dead.
    pub fn bury(&self, pack: &str, positions: impl IntoIterator<Item = u32>) {
        let mut state = self.state.write();
        let bits = state.dead.entry(pack.to_owned()).or_default();
        positions.into_iter().for_each(|position| bits.set(position));
    }

    /// The living block, in the newest pack that has it.
    ///
    /// # Errors
    /// When the folder does not read.
    pub fn find(&self, id: &Cid) -> io::Result<Option<At>> {
        let all = self.find_all(id)?;
        Ok(all.into_iter().max_by(|a, b| a.pack.cmp(&b.pack)))
    }

    /// Wherever the block lives.
    ///
    /// # Errors
    /// When the folder does not read.
    pub fn find_all(&self, id: &Cid) -> io::Result<Vec<At>> {
        let Some(key) = Key::of(id) else { return Ok(Vec::new()) };
        let state = self.state.read();
        Ok(state.rows(&key)?.iter().filter_map(|entry| state.at(entry)).collect())
    }

    /// Living blocks after one, in the order of their digests, each once.
    ///
    /// # Errors
    /// When the folder does not read.
    pub fn page(&self, after: Option<&Cid>, limit: usize) -> io::Result<Vec<(Cid, u64)>> {
        let from = after.and_then(Key::of);
        let state = self.state.read();
        let mut page: Vec<(Key, u64)> = Vec::new();
        for row in state.from(from.unwrap_or(Key::FIRST)) {
            let row = row?;
            let seen = page.last().is_some_and(|(key, _)| *key == row.key);
            if from == Some(row.key) || seen || state.lives(&row).is_none() {
                continue;
            }
            if page.len() == limit {
                break;
            }
            page.push((row.key, row.len.into()));
        }
        Ok(page.into_iter().map(|(key, len)| (key.cid(), len)).collect())
    }

    /// How many blocks a pack has, dead or not.
    pub fn rows(&self, name: &str) -> usize {
        self.state.read().packs.get(name).map_or(0, |pack| pack.rows as usize)
    }

    /// The length of a pack.
    pub fn length(&self, name: &str) -> Option<u64> {
        self.state.read().packs.get(name).map(|pack| pack.bytes)
    }

    /// The newest pack that is known.
    pub fn newest(&self) -> Option<String> {
        self.state.read().packs.keys().next_back().cloned()
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.state.read().packs.contains_key(name)
    }

    /// Of all packs that are known.
    pub fn bytes(&self) -> u64 {
        self.state.read().bytes
    }

    /// All packs that are known, and what taking one apart takes of memory: its length, or
    /// that of its blocks, which were compressed.
    pub fn sizes(&self) -> Vec<(String, u64)> {
        let state = self.state.read();
        state.packs.values().map(|pack| (pack.name.clone(), pack.bytes.max(pack.blocks))).collect()
    }

    /// All packs that are known, with their lengths.
    pub fn packs(&self) -> Vec<(String, u64)> {
        self.state.read().packs.values().map(|pack| (pack.name.clone(), pack.bytes)).collect()
    }
}

/// The folder's lock; `None` when somebody has it.
fn hold(dir: &Path) -> io::Result<Option<File>> {
    std::fs::create_dir_all(dir)?;
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn load(dir: &Path, backend: Uuid) -> io::Result<State> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let text = match std::fs::read(dir.join(MANIFEST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            empty(dir)?;
            return Ok(State::default());
        }
        other => other?,
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    if manifest.format != FORMAT || manifest.backend != backend {
        return Err(bad("it is of another place, or another version".into()));
    }
    let mut state = State::default();
    for name in &manifest.runs {
        state.runs.push(Run::open(&dir.join(name))?);
    }
    for known in manifest.packs {
        state.next = state.next.max(known.number + 1);
        state.by_number.insert(known.number, known.name.clone());
        state.bytes += known.bytes;
        state.packs.insert(known.name.clone(), known);
    }
    // Numbers of packs that a run has and the list does not are not used again.
    for run in &state.runs {
        for row in run.from(Key::FIRST) {
            state.next = state.next.max(row?.pack.saturating_add(1));
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != MANIFEST && name != LOCK && !manifest.runs.contains(&name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(state)
}

/// Removes what an index left; nothing else is in its folder.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && path.file_name().is_none_or(|name| name != LOCK) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;
    use crate::types::{Block, Timestamp};

    fn block(n: u32) -> Block {
        Block::raw(n.to_le_bytes().repeat(1 + n as usize % 50).into())
    }

    fn pack(index: &Index, name: &str, numbers: impl Iterator<Item = u32>) {
        let blocks: Vec<Block> = numbers.map(block).collect();
        let sealed = Form::Car.seal(Uuid::nil(), Timestamp::default(), &blocks).unwrap();
        index.add(name, sealed.bytes.len() as u64, &sealed.label).unwrap();
    }

    #[test]
    fn living_blocks_are_found_where_they_are_newest_in_this_life_and_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(Some(dir.path()), Uuid::nil()).unwrap();
        // In memory, in runs, and merged.
        for part in 0..30u32 {
            pack(&index, &format!("{part:03}.car"), part * 5000..part * 5000 + 5000);
        }
        pack(&index, "900.car", 10..20);
        let dead: Positions =
            [("000.car".into(), (10..12).collect()), ("900.car".into(), [0].into())].into();
        let retired: BTreeSet<String> = ["003.car".into()].into();
        index.set_dead(&dead, retired.clone());
        index.forget(["004.car"]);
        let check = |index: &Index| {
            let at = |n: u32| index.find(&block(n).cid).unwrap().map(|at| at.pack);
            assert_eq!(at(9).as_deref(), Some("000.car"));
            assert_eq!(at(10), None, "dead in both");
            assert_eq!(at(11).as_deref(), Some("900.car"));
            assert_eq!(index.find_all(&block(12).cid).unwrap().len(), 2);
            assert_eq!(at(15_001), None, "retired");
            assert_eq!(at(20_001), None, "gone");
            assert_eq!(at(149_999).as_deref(), Some("029.car"));
            assert_eq!(at(150_000), None);
            let (mut seen, mut after) = (BTreeSet::new(), None);
            loop {
                let page = index.page(after.as_ref(), 997).unwrap();
                let Some((last, _)) = page.last() else { break };
                after = Some(*last);
                for (id, _) in page {
                    assert!(seen.insert(id), "{id} is listed twice");
                }
            }
            assert_eq!(seen.len(), 150_000 - 10_000 - 1);
        };
        check(&index);
        index.keep().unwrap();
        let busy = Index::open(Some(dir.path()), Uuid::nil()).unwrap();
        assert_eq!(busy.packs(), [], "it has a folder of its own");
        drop(index);
        let again = Index::open(Some(dir.path()), Uuid::nil()).unwrap();
        again.set_dead(&dead, retired);
        check(&again);
        assert_eq!(again.newest().as_deref(), Some("900.car"));
        assert!(again.is_known("029.car") && !again.is_known("004.car"));
        drop(again);
        let other = Index::open(Some(dir.path()), Uuid::max()).unwrap();
        assert_eq!(other.packs(), []);
    }
}
