//! What is there after a crash, and whether all that is there agrees.

use std::sync::Arc;

use super::model::{Entry, Listing, Model};
use super::random::{History, Run};
use crate::content::{DirectoryEntry, Link, build_directory, escape_name, import_file, symlink};
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{OpenOptions, Vfs};

use super::world::SMALL;

impl Model {
    /// What `ipfs add` would say; `None` for special nodes.
    pub fn link_of(&self, ino: Ino) -> Option<Link> {
        let node = self.of(ino);
        match node.kind {
            FileKind::File => {
                Some(import_file(&SMALL, &mut &node.data[..], &mut |_, _| Ok(())).unwrap())
            }
            FileKind::Symlink => Some(symlink(&SMALL, &node.data).0),
            FileKind::Directory => {
                let entry = |(name, child): (&Name, &Ino)| {
                    let link = self.link_of(*child)?;
                    Some(DirectoryEntry { name: escape_name(name.as_bytes()), link })
                };
                let entries = node.entries.iter().filter_map(entry).collect();
                Some(build_directory(&SMALL, entries, &mut |_, _| Ok(())).unwrap())
            }
            _ => None,
        }
    }
}

/// All of a file, by a handle of its own.
fn contents(vfs: &Vfs, ino: Ino) -> Vec<u8> {
    let id = vfs.open_file(ino, OpenOptions::default()).unwrap();
    let mut data = vec![9; vfs.attributes(ino).unwrap().size as usize + 10];
    let count = vfs.read(id, 0, &mut data).unwrap();
    data.truncate(count);
    vfs.release(id).unwrap();
    data
}

fn listing(vfs: &Arc<Vfs>) -> Listing {
    let mut listing = Listing::new();
    let mut stack = vec![(Vec::new(), Ino::ROOT)];
    while let Some((path, ino)) = stack.pop() {
        let row = vfs.attributes(ino).unwrap();
        if row.kind == FileKind::Directory {
            let mut cookie = 0;
            loop {
                let page = vfs.read_directory(ino, cookie, 3).unwrap();
                let Some(last) = page.last() else { break };
                cookie = last.cookie;
                for entry in page.iter().filter(|e| e.name != b"." && e.name != b"..") {
                    let (found, _) =
                        vfs.lookup(ino, &Name::new(entry.name.clone()).unwrap()).unwrap();
                    assert_eq!(found, entry.ino);
                    stack.push(([&path[..], b"/", &entry.name].concat(), found));
                }
            }
        }
        let names = vfs.list_xattrs(ino).unwrap();
        let entry = Entry {
            ino,
            kind: row.kind,
            mode: row.mode,
            owner: (row.uid, row.gid),
            nlink: row.nlink,
            target: row.target,
            xattrs: names
                .into_iter()
                .map(|name| (name.clone(), vfs.get_xattr(ino, &name).unwrap()))
                .collect(),
        };
        listing.insert(path, entry);
    }
    listing
}

/// Where two trees differ, for people.
fn difference(found: &Listing, wanted: &Listing) -> String {
    let text = |listing: &Listing, path: &Vec<u8>| match listing.get(path) {
        Some(Entry { ino, kind, mode, owner, nlink, xattrs, .. }) => {
            let lens: Vec<usize> = xattrs.values().map(Vec::len).collect();
            format!("{ino} {kind:?} {mode:o} {owner:?} nlink {nlink} xattrs {lens:?}")
        }
        None => "nothing".into(),
    };
    let mut lines = Vec::new();
    for path in found.keys().chain(wanted.keys()) {
        if found.get(path) != wanted.get(path) {
            let (found, wanted) = (text(found, path), text(wanted, path));
            lines.push(format!("\n  {}: {found}, not {wanted}", path.escape_ascii()));
        }
    }
    lines.dedup();
    lines.concat()
}

impl History {
    /// Whether a crash may leave this.
    fn allows(&self, found: &[u8]) -> bool {
        if !self.in_place {
            return self.states.iter().any(|state| state.as_slice() == found);
        }
        let longest = self.states.iter().map(|state| state.len()).max().unwrap_or(0);
        found.len() <= longest
            && found.iter().enumerate().all(|(at, byte)| {
                self.states.iter().any(|state| state.get(at).copied().unwrap_or(0) == *byte)
            })
    }
}

impl Run {
    /// All is as the model says.
    pub fn check(&mut self) {
        if let Some(disk) = self.world.disk() {
            disk.disarm();
        }
        if self.world.is_off() {
            return;
        }
        self.note("check");
        let vfs = Arc::clone(self.world.vfs());
        let (found, wanted) = (listing(&vfs), self.model.listing());
        assert!(found == wanted, "the tree differs:{}", difference(&found, &wanted));
        for ino in self.model.inos(FileKind::File) {
            let node = self.model.of(ino);
            let row = vfs.attributes(ino).unwrap();
            assert_eq!(row.size, node.data.len() as u64, "size of {ino}");
            assert!(node.mtime.is_none_or(|at| at == row.mtime), "mtime of {ino}");
            assert!(contents(&vfs, ino) == **node.data, "bytes of {ino}");
        }
    }

    /// Dies, comes back, and finds what has to be there.
    pub fn crash(&mut self) {
        if self.power {
            self.note("power cut");
            let mut random = self.random.clone();
            self.world.cut_power(&mut random);
            self.random = random;
        } else {
            self.note("kill");
            self.world.kill();
        }
        self.forget();
        let vfs = Arc::clone(self.world.vfs());
        let found = listing(&vfs);
        // What was given to the system outlives the process.
        let possible =
            if self.power { &self.states[..] } else { &self.states[self.states.len() - 1..] };
        let state = possible.iter().rev().find(|state| state.listing() == found);
        let Some(state) = state else {
            let last = possible.last().map(|state| difference(&found, &state.listing()));
            let first = possible.first().map(|state| difference(&found, &state.listing()));
            panic!("the tree never was so; against the last:{last:?}\nthe durable:{first:?}");
        };
        self.model = state.clone();
        self.model.drop_orphans();
        for ino in self.model.inos(FileKind::File) {
            let data = contents(&vfs, ino);
            let history = self.histories.remove(&ino);
            let history =
                history.unwrap_or(History { states: vec![Arc::default()], in_place: false });
            let sizes: Vec<usize> = history.states.iter().map(|state| state.len()).collect();
            assert!(
                history.allows(&data),
                "{ino} has {} bytes that it never had; sizes: {sizes:?}, in place: {}",
                data.len(),
                history.in_place
            );
            let node = self.model.node(ino);
            node.data = Arc::new(data);
            node.mtime = None;
            let states = vec![Arc::clone(&self.model.of(ino).data)];
            self.histories.insert(ino, History { states, in_place: true });
        }
        self.states = vec![self.model.clone()];
        self.check_deep();
        self.arm();
    }

    /// Metadata agrees with itself, contents with their names.
    fn check_deep(&mut self) {
        let namespace = Arc::clone(self.world.namespace());
        assert_eq!(namespace.orphans().unwrap(), [], "orphans are left");
        let mut problems = Vec::new();
        namespace.check(false, &mut |problem| problems.push(problem.to_string())).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        if self.random.u8(0..3) == 0 {
            let link = self.world.vfs().link_of(Ino::ROOT).unwrap();
            assert_eq!(Some(link), self.model.link_of(Ino::ROOT), "CID of the root");
        }
        self.check();
    }
}
