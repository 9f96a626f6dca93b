//! Blocks at an account that keeps archives, counts them, and serves what is in them as
//! files: many blocks a bundle (`archive`).
//!
//! What lies there are the bundles that the account lists, each with what is dead in it in
//! a text of its own; where each block is, is kept in an index, a cache. Nothing there is
//! changed by compare-and-swap, and nothing has to be: a bundle is never changed, what is
//! dead in it only grows, and a block that is put again comes into another bundle. Of two
//! writers that mark one at once a deletion may be lost, which the next collection finds.

mod archive;
#[cfg(test)]
mod tests;

pub(super) use self::archive::{Bundle, Dead, LABEL};

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, RwLock};
use uuid::Uuid;

use self::archive::{parts, place_of};
use super::kubo::{Named, Turns, names};
use super::pack::{
    Index,
    label::{self, Label, Row},
};
use super::{
    Backend, BackendError, Capabilities, ErrorKind, ListPage, PlaceOptions, Presence, Usage, check,
};
use crate::types::{Block, Cid, cid};

/// Requests at the same time.
const AT_ONCE: usize = 8;
/// How often a change is tried that others come before.
const TRIES: u32 = 8;
/// Bundles of one folder: some 500,000,000 blocks.
const BUNDLES_MAX: usize = 1_000_000;

/// A bundle as an account lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub root: Cid,
    pub label: Cid,
    /// By which the account knows it.
    pub handle: String,
    pub dead: Dead,
}

/// Bundles, the newest first.
pub(super) struct EntryPage {
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// Who keeps bundles. Names are its own.
#[async_trait]
pub(super) trait Account: Named {
    /// As [`Backend::kind`].
    fn kind(&self) -> &'static str;
    /// For people, without secrets.
    fn at(&self) -> &str;
    /// What keeps volumes at one account apart.
    fn folder(&self) -> &str;
    fn options(&self) -> &PlaceOptions;
    fn capabilities(&self) -> Capabilities;
    async fn page(&self, from: Option<&str>) -> Result<EntryPage, BackendError>;
    /// It as it is now; `None` when it is not there.
    async fn look(&self, entry: &Entry) -> Result<Option<Entry>, BackendError>;
    /// Stores it, and waits until it is served; one that is there is found.
    async fn store(&self, bundle: &Bundle) -> Result<Entry, BackendError>;
    /// Writes down what is dead in it.
    async fn mark(&self, entry: &Entry, dead: &Dead) -> Result<(), BackendError>;
    /// Removes it; one that is not there is success.
    async fn remove(&self, entry: &Entry) -> Result<(), BackendError>;
    /// A file of a bundle; `None` when nobody serves it.
    async fn read(&self, root: &Cid, name: &str) -> Result<Option<Bytes>, BackendError>;
    async fn probe(&self) -> Result<(), BackendError>;
}

/// An account that stores blocks.
pub(super) struct BundleBackend<A> {
    account: A,
    place: Uuid,
    index: Index,
    /// By the text of their roots, as the index knows them.
    entries: Mutex<HashMap<String, Entry>>,
    opened: OnceCell<()>,
    refreshing: AsyncMutex<()>,
    turns: Turns,
    /// Who takes blocks away is alone: what is found there meanwhile would be gone.
    changes: RwLock<()>,
}

fn local(error: &std::io::Error) -> BackendError {
    BackendError::new(ErrorKind::Other, format!("the index of bundles: {error}"))
}

fn corrupt(message: String) -> BackendError {
    BackendError::new(ErrorKind::Corrupt, message)
}

impl<A: Account> BundleBackend<A> {
    /// Over an account that was opened. `dir`: where the index is kept.
    ///
    /// # Errors
    /// `Other` when there is no room for an index.
    pub fn new(account: A, dir: Option<&Path>) -> Result<Self, BackendError> {
        let place = place_of(account.folder());
        let index = Index::open(dir, place).map_err(|error| local(&error))?;
        Ok(Self {
            account,
            place,
            index,
            entries: Mutex::default(),
            opened: OnceCell::new(),
            refreshing: AsyncMutex::default(),
            turns: Turns::default(),
            changes: RwLock::default(),
        })
    }

    fn contended(&self) -> BackendError {
        let message = format!("{} is changed by others again and again", self.account.at());
        BackendError::new(ErrorKind::Other, message)
    }

    fn lacks(&self, id: &Cid) -> BackendError {
        let message = format!("{} has no block {id}", self.account.at());
        BackendError::new(ErrorKind::NotFound, message)
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.account.options().refuse_writes(self.account.at())
    }

    async fn ready(&self) -> Result<(), BackendError> {
        self.opened.get_or_try_init(|| self.refresh(true)).await.map(drop)
    }

    fn is_known(&self, entry: &Entry) -> bool {
        let key = entry.root.to_string();
        self.index.is_known(&key) && self.entries.lock().contains_key(&key)
    }

    /// Asks what is there: all of it, or what came since.
    async fn refresh(&self, all: bool) -> Result<(), BackendError> {
        let _alone = self.refreshing.lock().await;
        let (mut from, mut seen) = (None::<String>, BTreeSet::new());
        loop {
            let page = self.account.page(from.as_deref()).await?;
            let count = page.entries.len();
            let (known, new): (Vec<_>, Vec<_>) =
                page.entries.into_iter().partition(|entry| self.is_known(entry));
            seen.extend(known.iter().chain(&new).map(|entry| entry.root.to_string()));
            if seen.len() > BUNDLES_MAX {
                let message = format!("{} has more than {BUNDLES_MAX} bundles", self.account.at());
                return Err(BackendError::new(ErrorKind::Invalid, message));
            }
            let ends = !all && count > 0 && new.is_empty();
            known.iter().for_each(|entry| self.learn(entry));
            let takes: Vec<_> = new.iter().map(|entry| self.take_in(entry)).collect();
            iter(takes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            match page.next {
                Some(next) if !ends && from.as_ref() != Some(&next) => from = Some(next),
                _ => break,
            }
        }
        if all {
            let gone = self.index.packs().into_iter().filter(|(key, _)| !seen.contains(key));
            for (key, _) in gone {
                // A listing may be late, or skip what moves while it is read.
                let entry = self.entries.lock().get(&key).cloned();
                if let Some(entry) = entry
                    && self.account.look(&entry).await?.is_some()
                {
                    continue;
                }
                self.forget(&key);
            }
            if let Err(error) = self.index.keep() {
                tracing::warn!(%error, "an index of bundles is not kept");
            }
        }
        Ok(())
    }

    /// What the account says of one whose blocks are known.
    fn learn(&self, entry: &Entry) {
        let key = entry.root.to_string();
        self.index.bury(&key, entry.dead.0.iter().copied());
        self.entries.lock().insert(key, entry.clone());
    }

    fn forget(&self, key: &str) {
        self.index.forget([key]);
        self.entries.lock().remove(key);
    }

    fn add(&self, entry: &Entry, rows: &[(Cid, u64)]) -> Result<(), BackendError> {
        let row = |(id, len): &(Cid, u64)| Row { cid: *id, offset: 0, len: *len as u32 };
        let bytes = rows.iter().map(|(_, len)| len).sum();
        let rows = rows.iter().map(row).collect();
        let label = Label { backend: self.place, created: 0, rows, end: 0 };
        let key = entry.root.to_string();
        self.index.add(&key, bytes, &label).map_err(|error| local(&error))?;
        self.learn(entry);
        Ok(())
    }

    /// What is in a bundle, by position, as its label says.
    async fn rows(&self, entry: &Entry) -> Result<Option<Vec<(Cid, u64)>>, BackendError> {
        let Some(bytes) = self.account.read(&entry.root, LABEL).await? else { return Ok(None) };
        let root = entry.root;
        if cid::verify(&entry.label, &bytes) != cid::Verdict::Match {
            return Err(corrupt(format!("the label of {root} is not what it was")));
        }
        let (place, _, rows) = label::parse(&bytes, 2)
            .map_err(|why| corrupt(format!("the label of {root} does not read: {why}")))?;
        if place != self.place || rows.len() > archive::BLOCKS_MAX {
            return Err(corrupt(format!("the label of {root} is of another folder")));
        }
        Ok(Some(rows.into_iter().map(|(id, len, _)| (id, len.into())).collect()))
    }

    async fn take_in(&self, entry: &Entry) -> Result<(), BackendError> {
        if self.index.is_known(&entry.root.to_string()) {
            self.learn(entry);
            return Ok(());
        }
        match self.rows(entry).await {
            Ok(Some(rows)) => self.add(entry, &rows),
            Ok(None) => {
                tracing::warn!(root = %entry.root, "a bundle is listed and not served");
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::Corrupt => {
                tracing::warn!(%error, "a bundle is left out");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        self.entries.lock().get(key).cloned()
    }

    /// Asks whether these bundles are there, and what is dead in them.
    async fn there(&self, keys: BTreeSet<String>) -> Result<bool, BackendError> {
        let looks = keys.into_iter().map(|key| async move {
            let now = match self.entry(&key) {
                Some(entry) => self.account.look(&entry).await?,
                None => None,
            };
            match &now {
                Some(entry) => self.learn(entry),
                None => self.forget(&key),
            }
            Ok::<_, BackendError>(now.is_some())
        });
        let found: Vec<bool> = iter(looks).buffered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().all(|is_there| is_there))
    }

    /// The lengths of those that live, their bundles asked for.
    async fn find(&self, cids: &[Cid]) -> Result<Vec<Option<u64>>, BackendError> {
        for _ in 0..TRIES {
            let mut keys = BTreeSet::new();
            for id in cids {
                keys.extend(self.at(id)?.map(|(key, _)| key));
            }
            if !self.there(keys).await? {
                continue;
            }
            return cids.iter().map(|id| Ok(self.at(id)?.map(|(_, len)| len))).collect();
        }
        Err(self.contended())
    }

    fn at(&self, id: &Cid) -> Result<Option<(String, u64)>, BackendError> {
        let at = self.index.find(id).map_err(|error| local(&error))?;
        Ok(at.map(|at| (at.pack, at.len.into())))
    }

    /// Stores blocks that live nowhere as one bundle.
    async fn commit(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let rows: Vec<(Cid, u64)> =
            blocks.iter().map(|block| (block.cid, block.data.len() as u64)).collect();
        for number in 0..TRIES {
            let bundle = Bundle::of(self.place, number, blocks)?;
            let entry = self.account.store(&bundle).await?;
            self.add(&entry, &rows)?;
            // An old one of the same blocks, of which some died.
            if entry.dead.is_empty() {
                return Ok(());
            }
        }
        Err(self.contended())
    }

    async fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
        let there = self.find(&cids).await?;
        let mut seen = HashSet::new();
        let due = blocks
            .iter()
            .zip(there)
            .filter(|(block, len)| *len != Some(block.data.len() as u64) && seen.insert(block.cid));
        let due: Vec<Block> = due.map(|(block, _)| block.clone()).collect();
        let more: u64 = due.iter().map(|block| block.data.len() as u64).sum();
        let capacity = self.account.options().capacity.unwrap_or(u64::MAX);
        if self.index.bytes().saturating_add(more) > capacity {
            let message = format!(
                "{} would have more than the {capacity} bytes of its capacity=",
                self.account.at()
            );
            return Err(BackendError::new(ErrorKind::Full, message));
        }
        for part in parts(due) {
            self.commit(&part).await?;
        }
        Ok(())
    }

    async fn bytes(&self, id: &Cid) -> Result<Bytes, BackendError> {
        let mut asked_all = false;
        for _ in 0..TRIES {
            let Some((key, len)) = self.at(id)? else {
                if asked_all {
                    return Err(self.lacks(id));
                }
                // Another writer's bundle.
                self.refresh(false).await?;
                asked_all = true;
                continue;
            };
            let Some(entry) = self.entry(&key) else {
                self.forget(&key);
                continue;
            };
            let Some(bytes) = self.account.read(&entry.root, &id.to_string()).await? else {
                if !self.there(BTreeSet::from([key])).await? {
                    continue;
                }
                let message = format!(
                    "{} says that it has block {id}, and the gateway does not give it: is \
                     gateway= one of this account?",
                    self.account.at()
                );
                return Err(BackendError::new(ErrorKind::Unavailable, message));
            };
            if bytes.len() as u64 != len || cid::verify(id, &bytes) == cid::Verdict::Mismatch {
                return Err(corrupt(format!("block {id} from {} is not it", self.account.at())));
            }
            return Ok(bytes);
        }
        Err(self.contended())
    }

    /// Takes blocks away; bundles of which nothing lives go.
    async fn give_up(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let mut more: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for id in cids {
            for at in self.index.find_all(id).map_err(|error| local(&error))? {
                more.entry(at.pack).or_default().insert(at.position.into());
            }
        }
        let changes = more.into_iter().map(|(key, positions)| async move {
            let Some(entry) = self.entry(&key) else {
                self.forget(&key);
                return Ok(());
            };
            let Some(mut entry) = self.account.look(&entry).await? else {
                self.forget(&key);
                return Ok(());
            };
            entry.dead.0.extend(positions);
            if entry.dead.0.len() >= self.index.rows(&key) {
                self.account.remove(&entry).await?;
                self.forget(&key);
            } else {
                self.account.mark(&entry, &entry.dead).await?;
                self.learn(&entry);
            }
            Ok::<(), BackendError>(())
        });
        iter(changes).buffered(AT_ONCE).try_collect::<()>().await
    }

    /// Writes what lives in a bundle anew, of which half is dead. Whether there are more.
    async fn compact_one(&self) -> Result<bool, BackendError> {
        let is_due = |(key, entry): &(&String, &Entry)| {
            !entry.dead.is_empty() && entry.dead.0.len() * 2 >= self.index.rows(key)
        };
        let (entry, more) = {
            let entries = self.entries.lock();
            let mut due = entries.iter().filter(is_due);
            (due.next().map(|(_, entry)| entry.clone()), due.next().is_some())
        };
        let Some(entry) = entry else { return Ok(false) };
        let _alone = self.changes.write().await;
        let key = entry.root.to_string();
        let Some(entry) = self.account.look(&entry).await? else {
            self.forget(&key);
            return Ok(more);
        };
        let Some(rows) = self.rows(&entry).await? else { return Ok(more) };
        let lives = |(n, _): &(usize, &(Cid, u64))| !entry.dead.0.contains(&(*n as u32));
        let living: Vec<Cid> =
            rows.iter().enumerate().filter(lives).map(|(_, (id, _))| *id).collect();
        let (entry, this) = (&entry, self);
        let reads = living.into_iter().map(|id| async move {
            let data = this.account.read(&entry.root, &id.to_string()).await?;
            let block = Block { cid: id, data: data.ok_or_else(|| this.lacks(&id))? };
            if block.is_intact() {
                Ok(block)
            } else {
                Err(corrupt(format!("block {id} from {} is not it", self.account.at())))
            }
        });
        let blocks: Vec<Block> = iter(reads).buffered(AT_ONCE).try_collect().await?;
        for part in parts(blocks) {
            self.commit(&part).await?;
        }
        self.account.remove(entry).await?;
        self.forget(&key);
        Ok(more)
    }
}

#[async_trait]
impl<A: Account + 'static> Backend for BundleBackend<A> {
    fn kind(&self) -> &'static str {
        self.account.kind()
    }

    fn location(&self) -> String {
        self.account.at().to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        self.account.capabilities()
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        blocks.iter().try_for_each(check::block)?;
        if let Some(odd) = blocks.iter().find(|block| !Index::takes(&block.cid)) {
            let message = format!("{} has a hash function or codec that no block has", odd.cid);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        self.ready().await?;
        let _alone = self.turns.alone_with(blocks).await;
        let _stays = self.changes.read().await;
        self.put_all(blocks).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.ready().await?;
        let bytes = self.bytes(cid).await?;
        let range = check::range(cid, range, bytes.len() as u64)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.ready().await?;
        let mut found = self.find(cids).await?;
        if found.iter().any(Option::is_none) {
            // Another writer's bundles.
            self.refresh(false).await?;
            found = self.find(cids).await?;
        }
        Ok(found.into_iter().map(|len| len.map_or(Presence::Absent, Presence::Present)).collect())
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.ready().await?;
        let _alone = self.changes.write().await;
        self.refresh(false).await?;
        self.give_up(cids).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.ready().await?;
        let limit = limit.clamp(1, 10_000);
        let last: Option<Cid> = match from {
            None => {
                self.refresh(true).await?;
                None
            }
            Some(text) => Some(text.parse().map_err(|_| {
                let message = format!("`{}` is not where a page ends", text.escape_debug());
                BackendError::new(ErrorKind::Invalid, message)
            })?),
        };
        let blocks = self.index.page(last.as_ref(), limit).map_err(|error| local(&error))?;
        let next = blocks.last().filter(|_| blocks.len() == limit).map(|(id, _)| id.to_string());
        // The one after the last is none: a page of no blocks would be another one.
        let next = match next {
            Some(next) => {
                let after = next.parse::<Cid>().ok();
                let rest = self.index.page(after.as_ref(), 1).map_err(|error| local(&error))?;
                Some(next).filter(|_| !rest.is_empty())
            }
            None => None,
        };
        Ok(ListPage { blocks, next })
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes()?;
        names::point(&self.account, name, cid).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        names::all(&self.account, prefix).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.refuse_writes()?;
        names::forget(&self.account, name).await
    }

    /// Of blocks, those that are dead among them until they are written anew.
    async fn usage(&self) -> Result<Usage, BackendError> {
        self.ready().await?;
        let used = self.index.bytes();
        let capacity = self.account.options().capacity;
        let available = capacity.map(|capacity| capacity.saturating_sub(used));
        Ok(Usage { used_bytes: Some(used), capacity_bytes: capacity, available_bytes: available })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.account.probe().await
    }

    async fn compact(&self) -> Result<bool, BackendError> {
        if self.account.options().read_only {
            return Ok(false);
        }
        self.ready().await?;
        self.compact_one().await
    }
}
