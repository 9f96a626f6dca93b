use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use super::repair::Fixes;
use super::stats::{Delta, Stats, TrustedSince};
use super::tree::order_key;
use super::{
    FIRST_COOKIE, MAX_DEPTH, Namespace, PinOrder, Problem, UsageRecord, backends, pins, quota_count,
};
use crate::metadata::records::{OrderRecord, Stored, decode, encode};
use crate::metadata::{
    ContentRecord, CopyState, DentryRecord, InodeRecord, MetadataError, QueueRecord, Reader, keys,
};
use crate::types::{Cid, FileKind, Ino, Name};

/// Inodes and contents that one pass keeps in memory, some 100 bytes each. A
/// larger volume is read in several passes, each with its share of the numbers.
const PER_PASS: u64 = 1 << 20;

/// What names say about an inode.
#[derive(Default)]
struct Named {
    names: u32,
    /// Where one of its names is.
    parent: u64,
    /// As a directory: entries, their bytes, those that are directories, and the
    /// first cookie that is free.
    entries: u64,
    bytes: u64,
    subdirectories: u32,
    next_cookie: u64,
}

struct Check<'c> {
    reader: &'c dyn Reader,
    report: &'c mut dyn FnMut(Problem),
    fixes: Fixes,
    found: u64,
    repairable: u64,
    delta: Delta,
    trusted_since: TrustedSince,
    passes: u64,
    pass: u64,
}

impl Namespace {
    /// Checks that names, links, entries, references, indexes and counters
    /// agree, in one snapshot. `repair` sets right what follows from other rows;
    /// what has lost its name comes to `/lost+found`, nothing is thrown away.
    /// Not for a tree that others change: repair only what is not mounted.
    /// Returns the problems found or, with `repair`, repaired.
    ///
    /// # Errors
    /// `Storage`.
    pub fn check(
        &self,
        repair: bool,
        report: &mut dyn FnMut(Problem),
    ) -> Result<u64, MetadataError> {
        let (snapshot, stats) = {
            let sequenced = self.sequenced.lock();
            (self.engine.snapshot()?, sequenced.stats.clone())
        };
        let most = stats.pins.max(stats.files.saturating_add(stats.directories));
        let mut check = Check {
            reader: snapshot.as_ref(),
            report,
            fixes: Fixes::default(),
            found: 0,
            repairable: 0,
            delta: Delta::default(),
            trusted_since: backends::trusted_since(snapshot.as_ref())?,
            passes: 1 + most / PER_PASS,
            pass: 0,
        };
        for pass in 0..check.passes {
            check.pass = pass;
            check.tree()?;
        }
        check.indexes()?;
        check.pin_indexes()?;
        check.numbers()?;
        check.circles()?;
        check.quotas()?;
        if !Stats::default().plus(&check.delta).agrees(stats) {
            check.tell(Problem::Counters);
        }
        let Check { fixes, found, repairable, .. } = check;
        drop(snapshot);
        if repair && repairable > 0 {
            self.repair(fixes)?;
            return Ok(repairable);
        }
        Ok(if repair { 0 } else { found })
    }
}

impl Check<'_> {
    fn tell(&mut self, problem: Problem) {
        self.found += 1;
        self.repairable += u64::from(problem.is_repairable());
        (self.report)(problem);
    }

    fn index(&mut self, key: &[u8], what: &'static str) {
        self.tell(Problem::Index { key: key.escape_ascii().to_string(), what });
    }

    /// A row, or a report and nothing when it does not decode.
    fn row<T: Stored>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        match decode(key, value) {
            Ok(row) => Some(row),
            Err(error) => {
                self.tell(Problem::Damaged(error.to_string()));
                None
            }
        }
    }

    fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, MetadataError> {
        let key = keys::inode(ino);
        // A row that does not decode is told where inodes are read in order.
        Ok(self.reader.get(&key)?.and_then(|value| decode(&key, &value).ok()))
    }

    /// Whether a number belongs to this pass.
    fn mine(&self, number: u64) -> bool {
        number % self.passes == self.pass
    }

    fn my_content(&self, root: &Cid) -> bool {
        let digest = root.hash().digest();
        let number = digest.get(..8).and_then(|bytes| bytes.try_into().ok());
        self.mine(number.map_or(0, u64::from_be_bytes))
    }

    /// Calls `each` for every row of a table; it may stop with an error.
    fn each(
        &mut self,
        table: u8,
        each: &mut dyn FnMut(&mut Self, &[u8], &[u8]) -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        let mut outcome = Ok(());
        self.reader.scan(&[table], &[table + 1], &mut |key, value| {
            outcome = each(self, key, value);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome
    }

    /// Names against inodes against contents, for the numbers of this pass.
    fn tree(&mut self) -> Result<(), MetadataError> {
        self.each(keys::ORDER, &mut Self::order)?;
        let mut named: HashMap<u64, Named> = HashMap::new();
        self.each(keys::DENTRY, &mut |check, key, value| check.name(key, value, &mut named))?;
        let mut refs: HashMap<Cid, (u64, Ino)> = HashMap::new();
        self.each(keys::INODE, &mut |check, key, value| {
            let Some(inode) = check.row::<InodeRecord>(key, value) else { return Ok(()) };
            let ino = Ino(keys::number_in(key).unwrap_or(0));
            if check.pass == 0 {
                check.delta.inode(None, Some(&inode));
            }
            if let Some(root) = inode.content.filter(|root| check.my_content(root)) {
                refs.entry(root).or_insert((0, ino)).0 += 1;
            }
            if check.mine(ino.0) {
                check.links(ino, &inode, &named.remove(&ino.0).unwrap_or_default())?;
            }
            Ok(())
        })?;
        self.each(keys::CONTENT, &mut |check, key, value| {
            let Ok(root) = Cid::try_from(&key[1..]) else {
                check.tell(Problem::Damaged(key.escape_ascii().to_string()));
                return Ok(());
            };
            if !check.my_content(&root) {
                return Ok(());
            }
            let found = refs.remove(&root).map_or(0, |(count, _)| count);
            let Some(record) = check.row::<ContentRecord>(key, value) else { return Ok(()) };
            check.delta.content(None, Some(&record), &check.trusted_since);
            if found != record.refs {
                check.tell(Problem::ReferenceCount { root, found, said: record.refs });
                if found == 0 {
                    // It is no pin any more.
                    for key in check.pin_keys(&root, &record)? {
                        check.fixes.remove(&key);
                    }
                }
                check.fixes.put(key, encode(&ContentRecord { refs: found, ..record.clone() }));
            }
            check.pin(&root, &ContentRecord { refs: found, ..record })
        })?;
        for (root, (_, ino)) in refs {
            self.tell(Problem::UnknownContent { ino, root });
        }
        Ok(())
    }

    /// The indexes of a pin, as its rows want them.
    fn pin(&mut self, root: &Cid, record: &ContentRecord) -> Result<(), MetadataError> {
        for key in self.pin_keys(root, record)? {
            if self.reader.get(&key)?.is_none() {
                self.index(&key, "missing");
                self.fixes.put(&key, Vec::new());
            }
        }
        Ok(())
    }

    fn pin_keys(&self, root: &Cid, record: &ContentRecord) -> Result<Vec<Vec<u8>>, MetadataError> {
        let key = keys::of_cid(keys::QUEUE, root);
        let row = self.reader.get(&key)?.and_then(|value| decode(&key, &value).ok());
        let mut wanted = pins::damage_keys(root, record);
        wanted.extend(pins::risk_keys(root, record, row.as_ref()));
        Ok(wanted)
    }

    /// Rows of the indexes of pins that no pin has.
    fn pin_indexes(&mut self) -> Result<(), MetadataError> {
        for (table, order) in [
            (keys::AT_RISK, PinOrder::ByRisk),
            (keys::DAMAGED, PinOrder::Damaged(CopyState::Corrupt, None)),
        ] {
            self.each(table, &mut |check, key, _| {
                let root = order.root_in(key);
                let wanted = match &root {
                    Some(root) => {
                        let content = keys::of_cid(keys::CONTENT, root);
                        let record = check.reader.get(&content)?;
                        match record.and_then(|value| decode(&content, &value).ok()) {
                            Some(record) => check.pin_keys(root, &record)?,
                            None => Vec::new(),
                        }
                    }
                    None => Vec::new(),
                };
                if !wanted.iter().any(|wanted| wanted == key) {
                    check.index(key, "left over");
                    check.fixes.remove(key);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A row of a directory's order without its name.
    fn order(&mut self, key: &[u8], value: &[u8]) -> Result<(), MetadataError> {
        let (Some(parent), Some(cookie)) = (keys::number_in(key), keys::second_number_in(key))
        else {
            self.index(key, "left over");
            self.fixes.remove(key);
            return Ok(());
        };
        if !self.mine(parent) {
            return Ok(());
        }
        let name = decode::<OrderRecord>(key, value).ok().map(|row| row.name);
        let dentry = match &name {
            Some(name) => {
                let key = keys::under(keys::DENTRY, Ino(parent), name.as_bytes());
                self.reader.get(&key)?.and_then(|value| decode::<DentryRecord>(&key, &value).ok())
            }
            None => None,
        };
        if dentry.is_none_or(|dentry| dentry.cookie != cookie) {
            self.index(key, "left over");
            // The name's own row, where there is one, makes it again.
            self.fixes.remove(key);
        }
        Ok(())
    }

    /// A name, counted for its directory and for its inode.
    fn name(
        &mut self,
        key: &[u8],
        value: &[u8],
        named: &mut HashMap<u64, Named>,
    ) -> Result<(), MetadataError> {
        let name = keys::rest_of(key).and_then(|name| Name::new(name).ok());
        let (Some(parent), Some(name)) = (keys::number_in(key), name) else {
            if self.pass == 0 {
                self.tell(Problem::Damaged(key.escape_ascii().to_string()));
            }
            return Ok(());
        };
        let dentry: DentryRecord = match decode(key, value) {
            Ok(dentry) => dentry,
            Err(error) => {
                if self.mine(parent) {
                    self.tell(Problem::Damaged(error.to_string()));
                }
                return Ok(());
            }
        };
        let (mine, child_mine) = (self.mine(parent), self.mine(dentry.ino.0));
        if !mine && !child_mine {
            return Ok(());
        }
        let parent = Ino(parent);
        let Some(inode) = self.inode(dentry.ino)? else {
            // An inode that is damaged is still there: its names stay.
            let exists = self.reader.get(&keys::inode(dentry.ino))?.is_some();
            if mine && !exists {
                let text = name.as_bytes().escape_ascii().to_string();
                self.tell(Problem::DanglingName { parent, name: text, ino: dentry.ino });
                self.fixes.remove(key);
                self.fixes.remove(&order_key(parent, dentry.cookie));
                return Ok(());
            }
            if mine {
                count_entry(named.entry(parent.0).or_default(), &name, &dentry);
            }
            return Ok(());
        };
        if child_mine {
            let child = named.entry(dentry.ino.0).or_default();
            child.names += 1;
            child.parent = parent.0;
        }
        if !mine {
            return Ok(());
        }
        let right = DentryRecord { kind: inode.kind, ..dentry };
        if right.kind != dentry.kind {
            let text = name.as_bytes().escape_ascii().to_string();
            self.tell(Problem::Kind { parent, name: text, ino: dentry.ino });
            self.fixes.put(key, encode(&right));
        }
        let order = order_key(parent, dentry.cookie);
        let wanted = encode(&OrderRecord { name: name.clone(), ino: dentry.ino, kind: right.kind });
        let held = self.reader.get(&order)?;
        if held.as_ref() != Some(&wanted) {
            self.index(&order, if held.is_some() { "wrong" } else { "missing" });
            self.fixes.put(&order, wanted);
        }
        count_entry(named.entry(parent.0).or_default(), &name, &right);
        Ok(())
    }

    /// An inode's row against its names.
    fn links(&mut self, ino: Ino, inode: &InodeRecord, named: &Named) -> Result<(), MetadataError> {
        let directory = inode.kind == FileKind::Directory;
        let names = named.names + u32::from(ino == Ino::ROOT);
        let orphan_key = keys::number(keys::ORPHAN, ino.0);
        let orphan = self.reader.get(&orphan_key)?.is_some();
        let mut right = inode.clone();
        if names == 0 && inode.nlink > 0 {
            self.tell(Problem::Nameless { ino, said: inode.nlink });
            self.fixes.rescue(ino);
        }
        let links = match (names, directory) {
            (0, _) => inode.nlink,
            (_, true) => 2 + named.subdirectories,
            (names, false) => names,
        };
        if links != inode.nlink {
            self.tell(Problem::LinkCount { ino, found: links, said: inode.nlink });
            right.nlink = links;
        }
        if orphan != (right.nlink == 0) {
            self.index(&orphan_key, if orphan { "left over" } else { "missing" });
            if orphan {
                self.fixes.remove(&orphan_key);
            } else {
                self.fixes.put(&orphan_key, vec![1]);
            }
        }
        if directory {
            if names > 1 {
                self.tell(Problem::Directory { ino, reason: "it has several names" });
            }
            if (named.entries, named.bytes) != (inode.entries, inode.size) {
                let (found, said) = (named.entries, inode.entries);
                self.tell(Problem::EntryCount { ino, found, said });
                (right.entries, right.size) = (named.entries, named.bytes);
            }
            if inode.next_cookie < named.next_cookie.max(FIRST_COOKIE) {
                self.index(&keys::inode(ino), "too low in its next cookie");
                right.next_cookie = named.next_cookie.max(FIRST_COOKIE);
            }
        }
        let parents = self.parents_of(ino)?;
        let several = !directory && links > 1;
        let listed = parents.contains_key(&named.parent) && parents.contains_key(&inode.parent.0);
        if several && (parents.values().sum::<u64>() != u64::from(links) || !listed) {
            self.index(&keys::number(keys::PARENT, ino.0), "wrong");
            self.fixes.relink(ino, &parents);
        } else if !several && !parents.is_empty() {
            self.index(&keys::number(keys::PARENT, ino.0), "left over");
            self.fixes.relink(ino, &parents);
        }
        if (names == 1 || several && !listed) && ino != Ino::ROOT && inode.parent.0 != named.parent
        {
            let found = Ino(named.parent);
            self.tell(Problem::Parent { ino, found, said: inode.parent });
            right.parent = found;
        }
        let mut xattrs = false;
        let prefix = keys::number(keys::XATTR, ino.0);
        self.reader.scan(&prefix, &keys::end_of(&prefix), &mut |_, _| {
            xattrs = true;
            ControlFlow::Break(())
        })?;
        if xattrs != inode.has_xattrs {
            self.index(&keys::inode(ino), "wrong about extended attributes");
            right.has_xattrs = xattrs;
        }
        if right != *inode {
            self.fixes.put(&keys::inode(ino), encode(&right));
        }
        Ok(())
    }

    fn parents_of(&self, ino: Ino) -> Result<HashMap<u64, u64>, MetadataError> {
        let prefix = keys::number(keys::PARENT, ino.0);
        let mut parents = HashMap::new();
        self.reader.scan(&prefix, &keys::end_of(&prefix), &mut |key, value| {
            let count = decode::<u32>(key, value).unwrap_or(0);
            parents.extend(keys::second_number_in(key).map(|parent| (parent, count.into())));
            ControlFlow::Continue(())
        })?;
        Ok(parents)
    }

    /// Rows of tables that belong to an inode or a content that is not there.
    fn indexes(&mut self) -> Result<(), MetadataError> {
        for table in [keys::ORPHAN, keys::STAGED, keys::XATTR, keys::PARENT] {
            self.each(table, &mut |check, key, _| {
                let Some(ino) = keys::number_in(key).map(Ino) else { return Ok(()) };
                if check.reader.get(&keys::inode(ino))?.is_none() {
                    check.index(key, "left over");
                    check.fixes.remove(key);
                }
                Ok(())
            })?;
        }
        self.each(keys::QUEUE, &mut |check, key, value| {
            let Some(row) = check.row::<QueueRecord>(key, value) else { return Ok(()) };
            check.delta.queue(None, Some(&row));
            let mut content = key.to_vec();
            content[0] = keys::CONTENT;
            let record = check.reader.get(&content)?;
            let record = record.and_then(|v| decode::<ContentRecord>(&content, &v).ok());
            if record.is_none_or(|record| record.refs == 0) {
                check.index(key, "left over");
                check.fixes.remove(key);
            }
            Ok(())
        })
    }

    /// No number is given out twice.
    fn numbers(&mut self) -> Result<(), MetadataError> {
        let mut highest = 0;
        self.each(keys::INODE, &mut |_, key, _| {
            highest = keys::number_in(key).unwrap_or(highest);
            Ok(())
        })?;
        let said = match self.reader.get(keys::NEXT_INO)? {
            Some(value) => self.row(keys::NEXT_INO, &value).unwrap_or(0),
            None => Ino::ROOT.0 + 1,
        };
        if highest >= said {
            self.tell(Problem::NextNumber { highest: Ino(highest), said });
            self.fixes.put(keys::NEXT_INO, encode(&(highest.saturating_add(1))));
        }
        Ok(())
    }

    /// What is used of quotas. The repair of counters counts it again.
    fn quotas(&mut self) -> Result<(), MetadataError> {
        let text = |usage: Option<UsageRecord>| match usage {
            Some(UsageRecord { counted: false, .. }) => "no count yet".to_owned(),
            Some(usage) => format!("{} bytes and {} inodes", usage.bytes, usage.inodes),
            None => "nothing".to_owned(),
        };
        for (ino, (found, said)) in quota_count::compare(self.reader)? {
            if found != said {
                self.tell(Problem::Quota { ino, found: text(found), said: text(said) });
            }
        }
        Ok(())
    }

    /// Directories that lead to themselves instead of the root.
    fn circles(&mut self) -> Result<(), MetadataError> {
        let mut rooted: HashSet<u64> = HashSet::new();
        self.each(keys::INODE, &mut |check, key, value| {
            let Ok(inode) = decode::<InodeRecord>(key, value) else { return Ok(()) };
            let Some(ino) = keys::number_in(key) else { return Ok(()) };
            if inode.kind != FileKind::Directory || inode.nlink == 0 {
                return Ok(());
            }
            if rooted.len() as u64 > PER_PASS {
                rooted.clear();
            }
            let (mut at, mut path) = (ino, vec![ino]);
            while at != Ino::ROOT.0 && !rooted.contains(&at) && path.len() <= MAX_DEPTH {
                match check.inode(Ino(at))? {
                    Some(inode) => at = inode.parent.0,
                    // No parent: told as a wrong parent or a missing name.
                    None => return Ok(()),
                }
                if at == ino {
                    check.tell(Problem::Directory {
                        ino: Ino(ino),
                        reason: "it is its own ancestor",
                    });
                    return Ok(());
                }
                path.push(at);
            }
            if path.len() <= MAX_DEPTH {
                rooted.extend(path);
            }
            Ok(())
        })
    }
}

fn count_entry(directory: &mut Named, name: &Name, dentry: &DentryRecord) {
    directory.entries += 1;
    directory.bytes += name.as_bytes().len() as u64;
    directory.subdirectories += u32::from(dentry.kind == FileKind::Directory);
    directory.next_cookie = directory.next_cookie.max(dentry.cookie.saturating_add(1));
}
