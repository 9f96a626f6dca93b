use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::{Namespace, Tx};
use crate::metadata::records::{damaged, decode, encode};
use crate::metadata::{InodeRecord, MetadataError, PolicyRecord, keys};
use crate::types::Ino;

/// Keeps the strictest numbers of policies where there are too many.
pub type KeepStrictest = Box<dyn Fn(&mut Vec<u32>) + Send + Sync>;

/// Adds numbers of policies to a content's; none is the volume's own, 0 among others.
pub fn merge_policies(into: &mut Vec<u32>, other: &[u32]) {
    if into.as_slice() == other {
        return;
    }
    let own = |numbers: &[u32]| numbers.is_empty().then_some(0);
    let first = [own(into), own(other)].into_iter().flatten();
    let all: BTreeSet<u32> =
        first.chain(into.iter().copied()).chain(other.iter().copied()).collect();
    *into = if all.iter().eq(&[0]) { Vec::new() } else { all.into_iter().collect() };
}

fn key(number: u32) -> Vec<u8> {
    [&[keys::POLICY], number.to_be_bytes().as_slice()].concat()
}

impl Tx<'_> {
    /// The contents of a file, or of all below a directory, are to be brought in line
    /// with what is set there.
    pub(super) fn request_walk(&mut self, ino: Ino) {
        // Another one for each request: a walk that began before it does not end it.
        let token = fastrand::u64(..);
        self.inner.put(&keys::number(keys::WALK, ino.0), &encode(&token));
    }
}

impl Namespace {
    fn rows_of(&self, table: u8) -> Result<Vec<(Vec<u8>, Vec<u8>)>, MetadataError> {
        let mut rows = Vec::new();
        self.engine.snapshot()?.scan(&[table], &[table + 1], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// All expressions that numbers stand for.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn policy_expressions(&self) -> Result<Vec<(u32, String)>, MetadataError> {
        let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let number = key.get(1..).and_then(|bytes| bytes.try_into().ok());
            let number = number.ok_or_else(|| damaged(key, "it is no number"))?;
            Ok((u32::from_be_bytes(number), decode::<PolicyRecord>(key, value)?.expression))
        };
        self.rows_of(keys::POLICY)?.iter().map(row).collect()
    }

    /// A number stands for an expression from now on.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn keep_policy(&self, number: u32, expression: &str) -> Result<(), MetadataError> {
        let row = PolicyRecord { expression: expression.to_owned() };
        self.run(|tx| {
            tx.inner.put(&key(number), &encode(&row));
            Ok(())
        })
    }

    /// Says which of too many policies of one content are kept; once.
    pub fn keep_strictest_by(&self, keep: KeepStrictest) {
        // A second one would say the same.
        self.strictest.get_or_init(|| keep);
    }

    /// Sets the policy of an inode (empty: inherits), and asks for a walk in the same
    /// transaction.
    ///
    /// # Errors
    /// `NotFound`; `Storage`, `Contended`.
    pub fn set_policy(&self, ino: Ino, text: &str) -> Result<InodeRecord, MetadataError> {
        self.run(|tx| {
            let before = tx.inode(ino)?;
            let inode = InodeRecord { policy: text.to_owned(), ..before.clone() };
            tx.delta.inode(Some(&before), Some(&inode));
            tx.put_inode(ino, &inode);
            tx.request_walk(ino);
            Ok(inode)
        })
    }

    /// Asks for a walk.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn request_walk(&self, ino: Ino) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.request_walk(ino);
            Ok(())
        })
    }

    /// Walks that were asked for and did not end, each with its token.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn walks_due(&self) -> Result<Vec<(Ino, u64)>, MetadataError> {
        let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let ino = keys::number_in(key).ok_or_else(|| damaged(key, "it is no inode"))?;
            Ok((Ino(ino), decode(key, value)?))
        };
        self.rows_of(keys::WALK)?.iter().map(row).collect()
    }

    /// A walk ended; one that was asked for meanwhile stays due.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn walk_done(&self, ino: Ino, token: u64) -> Result<(), MetadataError> {
        let key = keys::number(keys::WALK, ino.0);
        self.run(|tx| {
            if tx.get::<u64>(&key)? == Some(token) {
                tx.inner.delete(&key);
            }
            Ok(())
        })
    }

    /// What [`Namespace::note_policies`] was told.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn noted_policies(&self) -> Result<Option<u64>, MetadataError> {
        let row = self.engine.get(keys::POLICIES)?;
        row.map(|value| decode(keys::POLICIES, &value)).transpose()
    }

    /// All contents have what the settings with this mark say. A checkpoint is due
    /// then: its manifest has the settings.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn note_policies(&self, mark: u64) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inner.put(keys::POLICIES, &encode(&mark));
            tx.marked.push(keys::inode(Ino::ROOT));
            Ok(())
        })
    }

    /// Visits the inodes that have a policy of their own. Reads every inode's row.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn each_policy(
        &self,
        visit: &mut dyn FnMut(Ino, &str) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        let mut outcome = Ok(());
        let (start, end) = ([keys::INODE], [keys::INODE + 1]);
        self.engine.snapshot()?.scan(
            &start,
            &end,
            &mut |key, value| match decode::<InodeRecord>(key, value) {
                Ok(inode) if inode.policy.is_empty() => ControlFlow::Continue(()),
                Ok(inode) => visit(Ino(keys::number_in(key).unwrap_or_default()), &inode.policy),
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        outcome
    }
}
