use std::collections::HashMap;
use std::ops::ControlFlow;

use super::stats::{Delta, Stats};
use super::{Commit, Namespace};
use crate::metadata::records::{decode, encode};
use crate::metadata::{ContentRecord, DentryRecord, InodeRecord, MetadataError, QueueRecord, keys};
use crate::types::{Cid, FileKind, Ino};

/// Something that does not add up in the metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name leads to no inode.
    #[error("name {name} in directory {parent} leads to inode {ino}, which does not exist")]
    DanglingName {
        /// The directory.
        parent: Ino,
        /// The name, escaped.
        name: String,
        /// The inode.
        ino: Ino,
    },
    /// An inode has another number of names than its row says.
    #[error("inode {ino} has {found} links, its row says {said}")]
    LinkCount {
        /// The inode.
        ino: Ino,
        /// Names found (directories: 2 + subdirectories).
        found: u32,
        /// The row's.
        said: u32,
    },
    /// A directory has another number of entries than its row says.
    #[error("directory {ino} has {found} entries, its row says {said}")]
    EntryCount {
        /// The directory.
        ino: Ino,
        /// Entries found.
        found: u64,
        /// The row's.
        said: u64,
    },
    /// A content has another number of files than its row says.
    #[error("content {root} is used by {found} files, its row says {said}")]
    ReferenceCount {
        /// The content.
        root: Cid,
        /// Files found.
        found: u64,
        /// The row's.
        said: u64,
    },
    /// A file refers to a content without a row.
    #[error("inode {ino} refers to content {root}, which has no row")]
    UnknownContent {
        /// The file.
        ino: Ino,
        /// The content.
        root: Cid,
    },
    /// The counters are wrong.
    #[error("the volume's counters differ from its rows")]
    Counters,
    /// A row does not decode.
    #[error("a row is damaged: {0}")]
    Damaged(String),
}

#[derive(Default)]
struct Found {
    links: HashMap<Ino, u32>,
    entries: HashMap<Ino, u64>,
    refs: HashMap<Cid, u64>,
    delta: Delta,
}

impl Namespace {
    /// Checks that names, links, entries, references and counters agree.
    /// Memory grows with the number of inodes (some 60 bytes each). `repair`
    /// sets counts and counters right and removes dangling names.
    ///
    /// # Errors
    /// `Storage`.
    pub fn check(
        &self,
        repair: bool,
        report: &mut dyn FnMut(Problem),
    ) -> Result<u64, MetadataError> {
        // Rows and counters of one moment: commits go on beside a check.
        let (snapshot, said) = {
            let sequenced = self.sequenced.lock();
            (self.engine.snapshot()?, sequenced.stats.clone())
        };
        let mut found = Found::default();
        let mut dangling = Vec::new();
        let mut problems = 0;
        let mut tell = |problem| {
            problems += 1;
            report(problem);
        };
        let mut names = Vec::new();
        snapshot.scan(&[keys::DENTRY], &[keys::DENTRY + 1], &mut |key, value| {
            match (keys::number_in(key), decode::<DentryRecord>(key, value)) {
                (Some(parent), Ok(dentry)) => {
                    *found.entries.entry(Ino(parent)).or_default() += 1;
                    *found.links.entry(dentry.ino).or_default() += 1;
                    if dentry.kind == FileKind::Directory {
                        *found.links.entry(Ino(parent)).or_default() += 1;
                        *found.links.entry(dentry.ino).or_default() += 1;
                    }
                    names.push((key.to_vec(), dentry));
                }
                (_, Err(error)) => tell(Problem::Damaged(error.to_string())),
                (None, _) => tell(Problem::Damaged("a short key".into())),
            }
            ControlFlow::Continue(())
        })?;
        *found.links.entry(Ino::ROOT).or_default() += 2;
        for (key, dentry) in names {
            if snapshot.get(&keys::inode(dentry.ino))?.is_none() {
                tell(Problem::DanglingName {
                    parent: Ino(keys::number_in(&key).unwrap_or(0)),
                    name: key[9..].escape_ascii().to_string(),
                    ino: dentry.ino,
                });
                dangling.push((key, dentry));
            }
        }
        let mut wrong: Vec<(Ino, InodeRecord)> = Vec::new();
        snapshot.scan(&[keys::INODE], &[keys::INODE + 1], &mut |key, value| {
            let (Some(ino), Ok(mut inode)) =
                (keys::number_in(key).map(Ino), decode::<InodeRecord>(key, value))
            else {
                tell(Problem::Damaged(key.escape_ascii().to_string()));
                return ControlFlow::Continue(());
            };
            let directory = inode.kind == FileKind::Directory;
            found.delta.files += i64::from(inode.kind == FileKind::File);
            found.delta.directories += i64::from(directory);
            if inode.kind == FileKind::File {
                found.delta.bytes += inode.size.cast_signed();
            }
            if let Some(root) = inode.content {
                *found.refs.entry(root).or_default() += 1;
            }
            let links = found.links.get(&ino).copied().unwrap_or(0);
            let entries = found.entries.get(&ino).copied().unwrap_or(0);
            let mut bad = false;
            if links != inode.nlink && !(directory && inode.nlink == 0) {
                tell(Problem::LinkCount { ino, found: links, said: inode.nlink });
                inode.nlink = links;
                bad = true;
            }
            if directory && entries != inode.entries {
                tell(Problem::EntryCount { ino, found: entries, said: inode.entries });
                inode.entries = entries;
                bad = true;
            }
            if bad {
                wrong.push((ino, inode));
            }
            ControlFlow::Continue(())
        })?;
        let mut wrong_refs = Vec::new();
        snapshot.scan(&[keys::CONTENT], &[keys::CONTENT + 1], &mut |key, value| {
            let (Ok(root), Ok(record)) =
                (Cid::try_from(&key[1..]), decode::<ContentRecord>(key, value))
            else {
                tell(Problem::Damaged(key.escape_ascii().to_string()));
                return ControlFlow::Continue(());
            };
            found.delta.content(None, Some(&record));
            let refs = found.refs.remove(&root).unwrap_or(0);
            if refs != record.refs {
                tell(Problem::ReferenceCount { root, found: refs, said: record.refs });
                wrong_refs.push((root, refs));
            }
            ControlFlow::Continue(())
        })?;
        for root in found.refs.keys() {
            tell(Problem::UnknownContent { ino: Ino(0), root: *root });
        }
        snapshot.scan(&[keys::QUEUE], &[keys::QUEUE + 1], &mut |key, value| {
            match decode::<QueueRecord>(key, value) {
                Ok(row) => found.delta.queue(None, Some(&row)),
                Err(error) => tell(Problem::Damaged(error.to_string())),
            }
            ControlFlow::Continue(())
        })?;
        let recount = Stats::default().plus(&found.delta);
        if recount != said {
            tell(Problem::Counters);
        }
        drop(snapshot);
        if repair && problems > 0 {
            self.repair(&dangling, &wrong, &wrong_refs)?;
        }
        Ok(problems)
    }

    fn repair(
        &self,
        dangling: &[(Vec<u8>, DentryRecord)],
        wrong: &[(Ino, InodeRecord)],
        refs: &[(Cid, u64)],
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            for (key, dentry) in dangling {
                tx.remove(key.clone());
                if let Some(parent) = keys::number_in(key) {
                    tx.inner.delete(&keys::under(
                        keys::ORDER,
                        Ino(parent),
                        &dentry.cookie.to_be_bytes(),
                    ));
                }
            }
            for (ino, inode) in wrong {
                if inode.nlink == 0 {
                    tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
                }
                tx.put_inode(*ino, inode);
            }
            for (root, refs) in refs {
                let key = keys::of_cid(keys::CONTENT, root);
                if let Some(record) = tx.get::<ContentRecord>(&key)? {
                    tx.put(key, &ContentRecord { refs: *refs, ..record });
                }
            }
            Ok(())
        })?;
        self.recount()
    }

    /// Counts everything again and stores the counters.
    ///
    /// # Errors
    /// `Storage`.
    pub fn recount(&self) -> Result<(), MetadataError> {
        let mut sequenced = self.sequenced.lock();
        let mut inner = self.engine.begin()?;
        let mut delta = Delta::default();
        let count = |table: u8, add: &mut dyn FnMut(&[u8], &[u8])| {
            inner.scan(&[table], &[table + 1], &mut |key, value| {
                add(key, value);
                ControlFlow::Continue(())
            })
        };
        count(keys::INODE, &mut |key, value| {
            if let Ok(inode) = decode::<InodeRecord>(key, value) {
                delta.files += i64::from(inode.kind == FileKind::File);
                delta.directories += i64::from(inode.kind == FileKind::Directory);
                if inode.kind == FileKind::File {
                    delta.bytes += inode.size.cast_signed();
                }
            }
        })?;
        count(keys::CONTENT, &mut |key, value| {
            if let Ok(record) = decode::<ContentRecord>(key, value) {
                delta.content(None, Some(&record));
            }
        })?;
        count(keys::QUEUE, &mut |key, value| {
            if let Ok(row) = decode::<QueueRecord>(key, value) {
                delta.queue(None, Some(&row));
            }
        })?;
        let stats = Stats::default().plus(&delta);
        inner.put(keys::STATS, &encode(&stats));
        match inner.commit()? {
            Commit::Done => sequenced.stats = stats,
            Commit::Conflict => return Err(MetadataError::Contended),
        }
        Ok(())
    }
}
