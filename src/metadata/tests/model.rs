//! Random operations against a plain model of POSIX, on both engines; deltas of
//! random moments against the whole; the recovered tree against the lost one.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::{
    Change, ContentCommit, ContentRecord, CopyRecord, CopyState, DentryRecord, InodeRecord,
    MemoryEngine, MetadataError, Namespace, PinState, QuotaLimits, RenameMode, VerifyMethod,
};
use super::{assert_sound, at, embedded, name, node, tree_over};
use crate::types::{BackendId, Cid, FileKind, Ino, Name, cid};

#[derive(Debug, Clone)]
enum Op {
    Create(u8, u8, u8),
    Orphan,
    Link(u8, u8, u8),
    Unlink(u8, u8),
    Rmdir(u8, u8),
    Rename((u8, u8), (u8, u8), u8),
    SetXattr(u8, u8, u8),
    RemoveXattr(u8, u8),
    Commit(u8, u8, u8),
    Copy(u8, u8),
    Quota(u8, u8, u8),
    Unquota(u8),
    Stage(u8, i8, bool),
    Reap(u8),
    Delta,
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    prop_oneof![
        6 => (n(), n(), n()).prop_map(|(d, m, k)| Op::Create(d, m, k)),
        1 => Just(Op::Orphan),
        3 => (n(), n(), n()).prop_map(|(i, d, m)| Op::Link(i, d, m)),
        3 => (n(), n()).prop_map(|(d, m)| Op::Unlink(d, m)),
        2 => (n(), n()).prop_map(|(d, m)| Op::Rmdir(d, m)),
        6 => ((n(), n()), (n(), n()), n()).prop_map(|(a, b, m)| Op::Rename(a, b, m)),
        1 => (n(), n(), n()).prop_map(|(i, x, v)| Op::SetXattr(i, x, v)),
        1 => (n(), n()).prop_map(|(i, x)| Op::RemoveXattr(i, x)),
        3 => (n(), n(), n()).prop_map(|(i, c, v)| Op::Commit(i, c, v)),
        1 => (n(), n()).prop_map(|(c, b)| Op::Copy(c, b)),
        2 => (n(), n(), n()).prop_map(|(d, b, i)| Op::Quota(d, b, i)),
        1 => n().prop_map(Op::Unquota),
        2 => (n(), -4i8..8, any::<bool>()).prop_map(|(i, g, f)| Op::Stage(i, g, f)),
        2 => n().prop_map(Op::Reap),
        1 => Just(Op::Delta),
    ]
}

#[derive(Debug, Clone)]
struct Node {
    kind: FileKind,
    entries: BTreeMap<Name, Ino>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Cid>,
    size: u64,
    version: u64,
    /// Growth that is not committed.
    staged: i64,
    /// Without a name: the quotas that counted it when it lost it.
    charged: Vec<Ino>,
}

/// What POSIX says the tree is.
struct Model {
    nodes: BTreeMap<Ino, Node>,
    /// All numbers ever, gone ones included: they are tried again.
    known: Vec<Ino>,
    /// By directory: most bytes, most inodes.
    quotas: BTreeMap<Ino, QuotaLimits>,
}

type Said<T> = Result<T, MetadataError>;

impl Model {
    fn new() -> Self {
        let mut model = Self { nodes: BTreeMap::new(), known: Vec::new(), quotas: BTreeMap::new() };
        model.add(Ino::ROOT, FileKind::Directory);
        model
    }

    fn add(&mut self, ino: Ino, kind: FileKind) {
        let (entries, xattrs) = (BTreeMap::new(), BTreeMap::new());
        let new = Node {
            kind,
            entries,
            xattrs,
            content: None,
            size: 0,
            version: 0,
            staged: 0,
            charged: Vec::new(),
        };
        assert!(self.nodes.insert(ino, new).is_none());
        assert!(!self.known.contains(&ino), "number {ino} was given twice");
        self.known.push(ino);
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.kind == FileKind::Directory)
    }

    /// The directories that name it, once for each name.
    fn namers(&self, ino: Ino) -> Vec<Ino> {
        let named = |(parent, node): (&Ino, &Node)| {
            vec![*parent; node.entries.values().filter(|there| **there == ino).count()]
        };
        self.nodes.iter().flat_map(named).collect()
    }

    fn is_gone(&self, ino: Ino) -> bool {
        ino != Ino::ROOT && self.namers(ino).is_empty()
    }

    fn links(&self, ino: Ino) -> u32 {
        match self.is_directory(ino) {
            true if self.is_gone(ino) => 0,
            true => {
                let entries = &self.nodes[&ino].entries;
                2 + entries.values().filter(|child| self.is_directory(**child)).count() as u32
            }
            false => self.namers(ino).len() as u32,
        }
    }

    fn find(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&parent)?.entries.get(name).copied()
    }

    fn folder(&self, ino: Ino) -> Said<()> {
        match self.nodes.get(&ino) {
            None => Err(MetadataError::NotFound),
            Some(node) if node.kind != FileKind::Directory => {
                Err(MetadataError::NotADirectory(ino))
            }
            Some(_) => Ok(()),
        }
    }

    fn open_folder(&self, ino: Ino) -> Said<()> {
        self.folder(ino)?;
        if self.is_gone(ino) { Err(MetadataError::NotFound) } else { Ok(()) }
    }

    fn is_below(&self, mut at: Ino, above: Ino) -> bool {
        loop {
            if at == above {
                return true;
            }
            match self.namers(at).first() {
                Some(parent) if at != Ino::ROOT => at = *parent,
                _ => return false,
            }
        }
    }

    fn may_rename(&self, from: (Ino, &Name), to: (Ino, &Name), mode: RenameMode) -> Said<bool> {
        let source = self.find(from.0, from.1).ok_or(MetadataError::NotFound)?;
        self.open_folder(to.0)?;
        let target = self.find(to.0, to.1);
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(MetadataError::Exists),
            (None, RenameMode::Exchange) => return Err(MetadataError::NotFound),
            (Some(there), _) if there == source => return Ok(false),
            _ => {}
        }
        let swallowed = mode == RenameMode::Exchange
            && target.is_some_and(|there| self.is_below(from.0, there));
        if self.is_below(to.0, source) || swallowed {
            return Err(MetadataError::Invalid(""));
        }
        let replaces = matches!(mode, RenameMode::Replace | RenameMode::Whiteout { .. });
        if let Some(there) = target.filter(|_| replaces) {
            match (self.is_directory(source), self.is_directory(there)) {
                (true, false) => return Err(MetadataError::NotADirectory(there)),
                (false, true) => return Err(MetadataError::IsADirectory(there)),
                (true, true) if !self.nodes[&there].entries.is_empty() => {
                    return Err(MetadataError::NotEmpty(there));
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// The quotas at and above a directory.
    fn chain(&self, directory: Ino) -> Vec<Ino> {
        let (mut at, mut chain) = (directory, Vec::new());
        loop {
            if self.quotas.contains_key(&at) {
                chain.push(at);
            }
            match self.namers(at).first() {
                Some(parent) if at != Ino::ROOT => at = *parent,
                _ => return chain,
            }
        }
    }

    /// What counts an inode. Which of its names does, the tree may choose.
    fn counted_by(&self, tree: &Namespace, ino: Ino) -> Vec<Ino> {
        match self.is_gone(ino) {
            true => self.nodes[&ino].charged.clone(),
            false if ino == Ino::ROOT => Vec::new(),
            false => self.chain(tree.inode(ino).unwrap().parent),
        }
    }

    /// Bytes and inodes that a quota counts.
    fn usage(&self, tree: &Namespace, quota: Ino, live: bool) -> (i64, i64) {
        let counted = |(ino, node): (&Ino, &Node)| {
            // A recovered tree knows of no orphans' charges and of nothing staged.
            let counts =
                (live || !self.is_gone(*ino)) && self.counted_by(tree, *ino).contains(&quota);
            let staged = if live { node.staged } else { 0 };
            counts.then(|| (node.size.cast_signed() + staged, 1))
        };
        let add = |sum: (i64, i64), one: (i64, i64)| (sum.0 + one.0, sum.1 + one.1);
        self.nodes.iter().filter_map(counted).fold((0, 0), add)
    }

    /// Whether the limits allow what is added to each quota.
    fn allows(&self, tree: &Namespace, added: &[(Vec<Ino>, i64, i64)]) -> Said<()> {
        let mut sums: BTreeMap<Ino, (i64, i64)> = BTreeMap::new();
        for (chain, bytes, inodes) in added {
            for quota in chain {
                let sum = sums.entry(*quota).or_default();
                *sum = (sum.0 + bytes, sum.1 + inodes);
            }
        }
        for (quota, (bytes, inodes)) in sums {
            let Some(limits) = self.quotas.get(&quota) else { continue };
            let used = self.usage(tree, quota, true);
            let over = |limit: Option<u64>, used: i64, more: i64| {
                more > 0 && limit.is_some_and(|limit| used + more > limit.cast_signed())
            };
            if over(limits.bytes, used.0, bytes) || over(limits.inodes, used.1, inodes) {
                return Err(MetadataError::QuotaExceeded(quota));
            }
        }
        Ok(())
    }

    /// `left`: an inode is made there, too.
    fn may_cross(
        &self,
        tree: &Namespace,
        moves: &[(Ino, Ino, Ino)],
        left: Option<Ino>,
    ) -> Said<()> {
        let mut added: Vec<_> = left.map(|dir| (self.chain(dir), 0, 1)).into_iter().collect();
        for (ino, from, to) in moves {
            let (old, new) = (self.chain(*from), self.chain(*to));
            if old == new {
                continue;
            }
            if self.is_directory(*ino) || self.links(*ino) > 1 {
                return Err(MetadataError::CrossesQuota(*ino));
            }
            let bytes = self.nodes[ino].size.cast_signed() + self.nodes[ino].staged;
            added.extend([(old, -bytes, -1), (new, bytes, 1)]);
        }
        self.allows(tree, &added)
    }

    fn entries(&mut self, ino: Ino) -> &mut BTreeMap<Name, Ino> {
        &mut self.nodes.get_mut(&ino).unwrap().entries
    }
}

#[track_caller]
fn same<T, U>(got: Said<T>, said: Said<U>, what: &Op) -> Option<(T, U)> {
    match (got, said) {
        (Ok(got), Ok(said)) => Some((got, said)),
        (Err(got), Err(said)) => {
            assert_eq!(discriminant(&got), discriminant(&said), "{what:?}: {got} for {said}");
            None
        }
        (Ok(_), Err(said)) => panic!("{what:?} succeeded instead of: {said}"),
        (Err(got), Ok(_)) => panic!("{what:?} failed: {got}"),
    }
}

fn record(n: u8) -> ContentRecord {
    let copy = CopyRecord {
        backend: BackendId::local(),
        state: CopyState::Verified,
        at: at(3),
        method: VerifyMethod::Written,
    };
    ContentRecord {
        size: u64::from(n),
        tsize: 1,
        blocks: 1,
        refs: 99,
        profile: "unixfs-v1-2025".into(),
        min: 2,
        target: 3,
        max: 5,
        pin: PinState::BelowMin,
        copies: vec![copy],
        holes: 0,
        policies: Vec::new(),
        created_s: 0,
        accessed_s: 0,
    }
}

/// Rows as checkpoints have them.
#[derive(Default, PartialEq, Debug)]
struct Rows {
    inodes: BTreeMap<Ino, InodeRecord>,
    dentries: BTreeMap<(Ino, Name), DentryRecord>,
    xattrs: BTreeMap<(Ino, Vec<u8>), Vec<u8>>,
    contents: BTreeMap<Vec<u8>, ContentRecord>,
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Rows {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Inode(ino, row) => set(&mut self.inodes, ino, row),
            Change::Dentry(parent, name, row) => set(&mut self.dentries, (parent, name), row),
            Change::Xattr(ino, name, row) => set(&mut self.xattrs, (ino, name), row),
            Change::Content(root, row) => set(&mut self.contents, root.to_bytes(), row),
            Change::Event(..) => {}
        }
    }

    fn take(&mut self, tree: &Namespace, only_marked: bool) {
        let mut visit = |change| {
            self.apply(change);
            Ok(())
        };
        let token = tree.snapshot_rows(only_marked, &mut visit).unwrap();
        tree.clear_marks(&token).unwrap();
    }

    fn changes(&self) -> Vec<Change> {
        let inodes = self.inodes.iter().map(|(ino, row)| Change::Inode(*ino, Some(row.clone())));
        let dentries = self
            .dentries
            .iter()
            .map(|((dir, name), row)| Change::Dentry(*dir, name.clone(), Some(*row)));
        let xattrs = self
            .xattrs
            .iter()
            .map(|((ino, name), value)| Change::Xattr(*ino, name.clone(), Some(value.clone())));
        let contents = self.contents.iter().map(|(root, row)| {
            Change::Content(Cid::try_from(root.as_slice()).unwrap(), Some(row.clone()))
        });
        inodes.chain(dentries).chain(xattrs).chain(contents).collect()
    }
}

fn run(tree: &Namespace, ops: &[Op]) {
    let mut model = Model::new();
    let mut replica = Rows::default();
    for (step, op) in ops.iter().enumerate() {
        apply(tree, &mut model, &mut replica, op, i64::try_from(step).unwrap() + 10);
    }
    compare(tree, &model, true);
    assert_sound(tree);
    replica.take(tree, true);
    let mut whole = Rows::default();
    whole.take(tree, false);
    assert_eq!(replica, whole, "deltas do not add up to the whole");
    assert_eq!(tree.mark_count().unwrap(), 0);
    assert!(!tree.has_marks().unwrap());

    let recovered = tree_over(Arc::new(MemoryEngine::default()));
    recovered.load_rows(&mut whole.changes().into_iter().map(Ok)).unwrap();
    compare(&recovered, &model, false);
    assert_sound(&recovered);
    let mut again = Rows::default();
    again.take(&recovered, false);
    assert_eq!(again, whole);
    let (mut lost, mut found) = (tree.stats(), recovered.stats());
    (lost.queued, found.queued) = (0, 0);
    // Copies of what is gone left their times behind.
    let known = std::mem::take(&mut lost.newest);
    for (id, at) in std::mem::take(&mut found.newest) {
        assert!(known.get(&id).is_some_and(|newest| *newest >= at), "{id}");
    }
    assert_eq!(lost, found);
}

fn apply(tree: &Namespace, model: &mut Model, replica: &mut Rows, op: &Op, step: i64) {
    let now = at(step);
    let pick = |n: u8| model.known[usize::from(n) % model.known.len()];
    let text = |n: u8| name(["a", "b", "c", "dd"][usize::from(n) % 4]);
    match *op {
        Op::Create(dir, text_of, kind) => {
            let (dir, text) = (pick(dir), text(text_of));
            let kind =
                [FileKind::File, FileKind::Directory, FileKind::Symlink][usize::from(kind) % 3];
            let said = model.open_folder(dir).and_then(|()| match model.find(dir, &text) {
                Some(_) => Err(MetadataError::Exists),
                None => model.allows(tree, &[(model.chain(dir), 0, 1)]),
            });
            if let Some((made, ())) = same(tree.create(dir, &text, &node(kind)), said, op) {
                model.add(made.ino, kind);
                model.entries(dir).insert(text, made.ino);
            }
        }
        Op::Orphan => {
            let made = tree.create_orphan(&node(FileKind::File)).unwrap();
            model.add(made.ino, FileKind::File);
        }
        Op::Link(ino, dir, text_of) => {
            let (ino, dir, text) = (pick(ino), pick(dir), text(text_of));
            let said = match model.nodes.get(&ino) {
                None => Err(MetadataError::NotFound),
                Some(node) if node.kind == FileKind::Directory => {
                    Err(MetadataError::NotPermitted(""))
                }
                Some(node) => model.open_folder(dir).and_then(|()| {
                    if model.find(dir, &text).is_some() {
                        return Err(MetadataError::Exists);
                    }
                    let (old, new) = (model.counted_by(tree, ino), model.chain(dir));
                    let bytes = node.size.cast_signed() + node.staged;
                    match (model.is_gone(ino), old == new) {
                        (_, true) => Ok(()),
                        (true, _) => model.allows(tree, &[(old, -bytes, -1), (new, bytes, 1)]),
                        (false, _) => Err(MetadataError::CrossesQuota(ino)),
                    }
                }),
            };
            if let Some((row, ())) = same(tree.link(ino, dir, &text, now), said, op) {
                model.entries(dir).insert(text, ino);
                assert_eq!((row.nlink, row.ctime), (model.links(ino), now));
            }
        }
        Op::Unlink(dir, text_of) => {
            let (dir, text) = (pick(dir), text(text_of));
            let said = model.folder(dir).and_then(|()| match model.find(dir, &text) {
                None => Err(MetadataError::NotFound),
                Some(there) if model.is_directory(there) => Err(MetadataError::IsADirectory(there)),
                Some(there) => Ok(there),
            });
            let charged = model.find(dir, &text).map(|there| model.counted_by(tree, there));
            if let Some((removed, there)) = same(tree.unlink(dir, &text, now), said, op) {
                model.entries(dir).remove(&text);
                model.nodes.get_mut(&there).unwrap().charged = charged.unwrap();
                assert_eq!((removed.ino, removed.inode.nlink), (there, model.links(there)));
            }
        }
        Op::Rmdir(dir, text_of) => {
            let (dir, text) = (pick(dir), text(text_of));
            let said = model.folder(dir).and_then(|()| match model.find(dir, &text) {
                None => Err(MetadataError::NotFound),
                Some(there) if !model.is_directory(there) => {
                    Err(MetadataError::NotADirectory(there))
                }
                Some(there) if !model.nodes[&there].entries.is_empty() => {
                    Err(MetadataError::NotEmpty(there))
                }
                Some(there) => Ok(there),
            });
            let charged = model.find(dir, &text).map(|there| model.counted_by(tree, there));
            if let Some((removed, there)) = same(tree.rmdir(dir, &text, now), said, op) {
                model.entries(dir).remove(&text);
                model.nodes.get_mut(&there).unwrap().charged = charged.unwrap();
                assert_eq!((removed.ino, removed.inode.nlink), (there, 0));
            }
        }
        Op::Rename((from, old), (to, new), mode) => {
            let (from, to, old, new) = (pick(from), pick(to), text(old), text(new));
            let whiteout = RenameMode::Whiteout { uid: 5, gid: 6 };
            let modes =
                [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange, whiteout];
            let mode = modes[usize::from(mode) % 4];
            let target = model.find(to, &new);
            let said = model.may_rename((from, &old), (to, &new), mode).and_then(|moves| {
                if moves {
                    let mut all = vec![(model.find(from, &old).unwrap(), from, to)];
                    let back = target.filter(|_| mode == RenameMode::Exchange);
                    all.extend(back.map(|there| (there, to, from)));
                    model.may_cross(tree, &all, (mode == whiteout).then_some(from))?;
                }
                Ok(moves)
            });
            let charged = target.map(|there| model.counted_by(tree, there));
            let got = tree.rename((from, &old), (to, &new), mode, now);
            if let Some((removed, true)) = same(got, said, op) {
                let source = model.entries(from).remove(&old).unwrap();
                let target = model.entries(to).insert(new, source);
                if let (Some(there), Some(charged)) = (target, charged) {
                    model.nodes.get_mut(&there).unwrap().charged = charged;
                }
                if mode == RenameMode::Exchange {
                    model.entries(from).insert(old.clone(), target.unwrap());
                    assert!(removed.is_none());
                } else {
                    assert_eq!(removed.as_ref().map(|r| r.ino), target);
                    let links = removed.map(|r| r.inode.nlink);
                    assert_eq!(links, target.map(|there| model.links(there)));
                }
                if mode == whiteout {
                    let left = tree.lookup(from, &old).unwrap().ino;
                    let row = tree.inode(left).unwrap();
                    assert_eq!((row.kind, row.mode, row.rdev), (FileKind::CharDevice, 0, 0));
                    assert_eq!((row.uid, row.gid, row.nlink), (5, 6, 1));
                    model.add(left, FileKind::CharDevice);
                    model.entries(from).insert(old, left);
                }
                assert_eq!(tree.inode(source).unwrap().ctime, now);
                assert_eq!(tree.inode(to).unwrap().mtime, now);
                assert_eq!(tree.inode(from).unwrap().mtime, now);
            }
        }
        Op::SetXattr(ino, key, value) => {
            let (ino, key) = (pick(ino), vec![b'x', key % 3]);
            let said = model.nodes.get(&ino).map(|_| ()).ok_or(MetadataError::NotFound);
            let got = tree.set_xattr(ino, &key, &[value], (false, false), now);
            if same(got, said, op).is_some() {
                model.nodes.get_mut(&ino).unwrap().xattrs.insert(key, vec![value]);
            }
        }
        Op::RemoveXattr(ino, key) => {
            let (ino, key) = (pick(ino), vec![b'x', key % 3]);
            let said = match model.nodes.get(&ino) {
                None => Err(MetadataError::NotFound),
                Some(node) if node.xattrs.contains_key(&key) => Ok(()),
                Some(_) => Err(MetadataError::NoAttribute),
            };
            if same(tree.remove_xattr(ino, &key, now), said, op).is_some() {
                model.nodes.get_mut(&ino).unwrap().xattrs.remove(&key);
            }
        }
        Op::Commit(ino, content, version) => {
            let ino = pick(ino);
            let n = content % 4;
            let late = version % 4 == 0;
            let said = match model.nodes.get(&ino).filter(|n| n.kind == FileKind::File) {
                None => return,
                Some(_) if late => Ok(()),
                Some(node) => {
                    let more = i64::from(n) - node.size.cast_signed() - node.staged;
                    model.allows(tree, &[(model.counted_by(tree, ino), more, 0)])
                }
            };
            let node = model.nodes.get_mut(&ino).unwrap();
            let commit = ContentCommit {
                shared: false,
                ino,
                version: node.version + u64::from(late),
                root: (n > 0).then(|| cid::of_raw(&[n])),
                record: record(n),
                enqueue: version % 2 == 0,
                size: u64::from(n),
                mtime: now,
            };
            let got = tree.commit_contents(std::slice::from_ref(&commit));
            let Some((flags, ())) = same(got, said, op) else { return };
            assert_eq!(flags, [!late]);
            if !late {
                node.staged = 0;
                (node.content, node.size) = (commit.root, commit.size);
                node.version += 1;
            }
        }
        Op::Copy(content, backend) => {
            let copy = CopyRecord {
                backend: format!("b{}", backend % 3).parse().unwrap(),
                state: [CopyState::Claimed, CopyState::Verified, CopyState::Lost]
                    [usize::from(backend / 3) % 3],
                at: now,
                method: VerifyMethod::None,
            };
            let change = &mut |_: &Cid, record: &mut ContentRecord, row: &mut Option<_>| {
                record.copies.retain(|held| held.backend != copy.backend);
                record.copies.push(copy.clone());
                record.pin = PinState::AtTarget;
                *row = None;
            };
            tree.update_contents(&[cid::of_raw(&[content % 4])], change).unwrap();
        }
        Op::Quota(dir, bytes, inodes) => {
            let dir = pick(dir);
            let limit = |n: u8| (n > 0).then_some(u64::from(n));
            let limits = QuotaLimits { bytes: limit(bytes % 12), inodes: limit(inodes % 12) };
            let got = tree.set_quota(dir, limits, now, &mut || Ok(()));
            if same(got, model.open_folder(dir), op).is_some() {
                model.quotas.insert(dir, limits);
            }
        }
        Op::Unquota(dir) => {
            let dir = pick(dir);
            let known = model.quotas.contains_key(&dir);
            let said = if known { Ok(()) } else { Err(MetadataError::NoAttribute) };
            if same(tree.remove_quota(dir, now), said, op).is_some() {
                model.quotas.remove(&dir);
            }
        }
        Op::Stage(ino, growth, forced) => {
            let ino = pick(ino);
            let Some(node) = model.nodes.get(&ino).filter(|n| n.kind == FileKind::File) else {
                return;
            };
            // A file is no shorter than nothing.
            let growth = i64::from(growth).max(-node.size.cast_signed());
            let chain = model.counted_by(tree, ino);
            let said = if forced || !tree.has_quotas() {
                Ok(())
            } else {
                model.allows(tree, &[(chain, growth - node.staged, 0)])
            };
            if same(tree.stage_growth(ino, growth, forced), said, op).is_some() && tree.has_quotas()
            {
                model.nodes.get_mut(&ino).unwrap().staged = growth;
            }
        }
        Op::Reap(ino) => {
            let ino = pick(ino);
            tree.reap(ino).unwrap();
            if model.nodes.contains_key(&ino) && model.is_gone(ino) {
                model.nodes.remove(&ino);
                model.quotas.remove(&ino);
            }
        }
        Op::Delta => replica.take(tree, true),
    }
}

fn compare(tree: &Namespace, model: &Model, live: bool) {
    for (ino, limits) in model.quotas.iter().filter(|(ino, _)| !model.is_gone(**ino)) {
        let held = tree.quotas_at(*ino).unwrap();
        let held = held.iter().find(|quota| quota.ino == *ino).unwrap();
        let (bytes, inodes) = model.usage(tree, *ino, live);
        let found = (held.limits, held.bytes.cast_signed(), held.inodes.cast_signed());
        assert_eq!(found, (*limits, bytes.max(0), inodes), "quota of {ino}");
    }
    let mut refs: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for ino in &model.known {
        let Some(node) = model.nodes.get(ino) else {
            assert!(matches!(tree.inode(*ino), Err(MetadataError::NotFound)));
            continue;
        };
        let row = tree.inode(*ino).unwrap();
        assert_eq!((row.kind, row.nlink), (node.kind, model.links(*ino)), "inode {ino}");
        assert_eq!((row.content, row.version), (node.content, node.version));
        if let Some(root) = node.content {
            *refs.entry(root.to_bytes()).or_default() += 1;
        }
        let xattrs: Vec<Vec<u8>> = node.xattrs.keys().cloned().collect();
        assert_eq!(tree.list_xattrs(*ino).unwrap(), xattrs);
        assert_eq!(row.has_xattrs, !xattrs.is_empty() || model.quotas.contains_key(ino));
        for (key, value) in &node.xattrs {
            assert_eq!(&tree.get_xattr(*ino, key).unwrap(), value);
        }
        if node.kind == FileKind::Directory {
            assert_eq!(row.entries, node.entries.len() as u64);
            assert_eq!(listing(tree, *ino, 2), node.entries);
        }
        if row.nlink > 0 && *ino != Ino::ROOT {
            let parents: BTreeSet<Ino> = tree.parents(*ino).unwrap().into_iter().collect();
            assert_eq!(parents, model.namers(*ino).into_iter().collect(), "parents of {ino}");
        }
    }
    let orphans: Vec<Ino> = model.nodes.keys().copied().filter(|i| model.is_gone(*i)).collect();
    assert_eq!(tree.orphans().unwrap(), orphans);
    for n in 1..4u8 {
        let root = cid::of_raw(&[n]);
        let held = tree.content(&root).unwrap().map_or(0, |record| record.refs);
        assert_eq!(held, refs.get(&root.to_bytes()).copied().unwrap_or(0), "refs of content {n}");
    }
    let files = model.nodes.values().filter(|node| node.kind == FileKind::File);
    let bytes: u64 = files.clone().map(|node| node.size).sum();
    let stats = tree.stats();
    assert_eq!((stats.files, stats.bytes), (files.count() as u64, bytes));
    tree.recount().unwrap();
    assert_eq!(tree.stats(), stats, "counters drift from the rows");
}

/// A directory read in pages.
fn listing(tree: &Namespace, ino: Ino, limit: usize) -> BTreeMap<Name, Ino> {
    let (mut after, mut found) = (0, BTreeMap::new());
    loop {
        let page = tree.read_directory(ino, after, limit).unwrap();
        for (name, dentry) in page.entries {
            assert!(dentry.cookie > after && dentry.cookie >= 16);
            after = dentry.cookie;
            assert_eq!(tree.lookup(ino, &name).unwrap(), dentry);
            assert!(found.insert(name, dentry.ino).is_none(), "a name came twice");
        }
        if page.last {
            return found;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 4096, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_in_memory_agree_with_the_model(ops in prop::collection::vec(op(), 0..120)) {
        run(&tree_over(Arc::new(MemoryEngine::default())), &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 256, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_on_disk_agree_with_the_model(ops in prop::collection::vec(op(), 0..120)) {
        let dir = tempfile::tempdir().unwrap();
        run(&tree_over(embedded(dir.path())), &ops);
    }
}
