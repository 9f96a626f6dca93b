//! What a directory may look like after a crash, and what it looks like.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Of the kernel's cache.
const PAGE: usize = 4096;

/// Numbers that are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Small seeds differ in few bits: spread them.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut state = Self(self.next() | 1);
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&state.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File(u64),
    Link(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// By path from the writer's directory.
    pub entries: BTreeMap<String, Entry>,
    pub xattrs: BTreeMap<u64, BTreeMap<String, Vec<u8>>>,
}

impl Tree {
    pub fn ids(&self) -> BTreeSet<u64> {
        let ids = self.entries.values().filter_map(|entry| match entry {
            Entry::File(id) => Some(*id),
            _ => None,
        });
        ids.collect()
    }

    /// Forgets the attributes of files without a name.
    pub fn tidy(mut self) -> Self {
        let ids = self.ids();
        self.xattrs.retain(|id, names| ids.contains(id) && !names.is_empty());
        self
    }
}

#[derive(Debug, Default)]
pub struct FileModel {
    pub states: Vec<Arc<Vec<u8>>>,
    /// The state that the local disk must have at least, and the backends.
    pub local: usize,
    pub remote: usize,
    /// Bytes since then may be there in part: written in place, or mapped.
    pub mixes: bool,
    /// A sync of it was acknowledged by backends.
    pub on_backends: bool,
}

impl FileModel {
    pub fn now(&self) -> Arc<Vec<u8>> {
        self.states.last().cloned().unwrap_or_default()
    }

    pub fn forget_old(&mut self) {
        let first = self.local.min(self.remote);
        self.states.drain(..first);
        self.local -= first;
        self.remote -= first;
    }

    /// Whether a crash may leave these bytes.
    pub fn allows(&self, bytes: &[u8], floor: usize, mixes: bool) -> bool {
        let states = &self.states[floor.min(self.states.len())..];
        if states.is_empty() {
            return bytes.is_empty();
        }
        if states.iter().any(|state| state.as_slice() == bytes)
            || states.windows(2).any(|pair| is_between(&pair[0], &pair[1], bytes))
        {
            return true;
        }
        let lens = || states.iter().map(|state| state.len());
        let (shortest, longest) = (lens().min().unwrap_or(0), lens().max().unwrap_or(0));
        mixes
            && (shortest..=longest).contains(&bytes.len())
            && bytes.iter().enumerate().all(|(at, byte)| {
                (at >= shortest && *byte == 0)
                    || states.iter().any(|state| state.get(at) == Some(byte))
            })
    }
}

/// Whether `bytes` are `old` overwritten by a part of a write that made it `new`. The
/// kernel sends a write in requests that end with a page, and a commit may come between.
fn is_between(old: &[u8], new: &[u8], bytes: &[u8]) -> bool {
    let of_new = new.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    if bytes.len() > old.len() {
        return bytes.len().is_multiple_of(PAGE) && of_new == bytes.len();
    }
    let differs = bytes.iter().zip(old).rposition(|(a, b)| a != b);
    let of_old = differs.map_or(0, |last| last + 1);
    bytes.len() == old.len() && of_old.next_multiple_of(PAGE) <= of_new
}

/// What lies in a writer's directory.
#[derive(Default)]
pub struct Found {
    directories: BTreeSet<String>,
    links: BTreeMap<String, String>,
    files: BTreeMap<String, u64>,
    pub bytes: HashMap<u64, Vec<u8>>,
    /// Files that cannot be read, with the reason.
    pub unreadable: BTreeMap<u64, String>,
    xattrs: HashMap<u64, BTreeMap<String, Vec<u8>>>,
}

impl Found {
    pub fn read(top: &Path) -> Result<Self, String> {
        let mut found = Self::default();
        found.read_below(top, "").map_err(|e| format!("{}: {e}", top.display()))?;
        Ok(found)
    }

    fn read_below(&mut self, top: &Path, below: &str) -> Result<(), String> {
        let at = |e: io::Error| format!("{below}: {e}");
        let entries = match fs::read_dir(top.join(below)) {
            // It was never made, or not yet.
            Err(e) if e.kind() == io::ErrorKind::NotFound && below.is_empty() => return Ok(()),
            other => other.map_err(at)?,
        };
        for entry in entries {
            let name = entry.map_err(at)?.file_name().into_string().unwrap();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let place = top.join(&path);
            let at = |e: io::Error| format!("{path}: {e}");
            let meta = fs::symlink_metadata(&place).map_err(at)?;
            if meta.is_dir() {
                self.directories.insert(path.clone());
                self.read_below(top, &path)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&place).map_err(at)?;
                self.links.insert(path.clone(), target.to_str().unwrap().to_owned());
            } else {
                match fs::read(&place) {
                    Ok(bytes) if bytes.len() as u64 == meta.len() => {
                        self.bytes.insert(meta.ino(), bytes);
                    }
                    Ok(bytes) => {
                        let (read, said) = (bytes.len(), meta.len());
                        return Err(format!("{path}: {read} bytes, and stat says {said}"));
                    }
                    Err(error) => {
                        self.unreadable.insert(meta.ino(), format!("{path}: {error}"));
                    }
                }
                self.xattrs.insert(meta.ino(), xattrs(&place).map_err(at)?);
                self.files.insert(path.clone(), meta.ino());
            }
        }
        Ok(())
    }

    /// Which inode is which file of the tree, if this is the tree.
    pub fn is(&self, tree: &Tree) -> Result<BTreeMap<u64, u64>, String> {
        let (mut ids, mut inos) = (BTreeMap::new(), BTreeMap::new());
        for (path, entry) in &tree.entries {
            let good = match entry {
                Entry::Directory => self.directories.contains(path),
                Entry::Link(target) => self.links.get(path) == Some(target),
                Entry::File(id) => self.files.get(path).is_some_and(|ino| {
                    *ids.entry(*id).or_insert(*ino) == *ino
                        && *inos.entry(*ino).or_insert(*id) == *id
                }),
            };
            if !good {
                return Err(format!("{path} is not there as {entry:?}"));
            }
        }
        let names = self.directories.iter().chain(self.links.keys()).chain(self.files.keys());
        if let Some(more) = names.into_iter().find(|name| !tree.entries.contains_key(*name)) {
            return Err(format!("{more} is there"));
        }
        for (id, ino) in &ids {
            let wanted = tree.xattrs.get(id).cloned().unwrap_or_default();
            if self.xattrs.get(ino) != Some(&wanted) {
                return Err(format!("the attributes of #{id} differ"));
            }
        }
        Ok(ids)
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut value[..])?;
        value.truncate(len);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}
