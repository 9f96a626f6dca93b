//! Small blocks that share objects. See decision 0012.
//!
//! A pack is a file that says what is in it (`label`), in one of two forms (`form`): a CAR,
//! or a Parquet table. What lies at a place are the packs that its listing shows, less what
//! the *head* (`head`) says is dead. Where each block is, is kept in an index (`index`), a
//! cache. Larger blocks, names and probes are the inner backend's.

mod ahead;
mod car;
mod commit;
mod compact;
mod form;
#[cfg(test)]
mod golden_tests;
mod head;
mod index;
pub(super) mod label;
mod page;
mod parquet;
mod runs;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::cid::multibase::Base;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, Semaphore};
use uuid::Uuid;

use self::ahead::Pieces;
use self::commit::Waiting;
pub(super) use self::form::Form;
use self::head::{HEAD_MAX, Head, LISTS_MAX, Positions, dead_name, decode_dead, encode_dead};
use self::index::At;
pub(super) use self::index::Index;
use self::label::{BLOCK_MAX, BLOCKS_MAX, Label, NEWER, Read, Sealed};
pub(super) use self::shelf::{HeadNow, Shelf, Tag};
use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, Presence, Usage, check,
};
use crate::types::{Block, ByteSize, Cid, Timestamp, cid};

/// Packs on their way at a time.
const TURNS: usize = 4;
/// Requests for labels and lengths at a time.
const AT_ONCE: usize = 16;
/// Packs on a page of a listing.
const PAGE: usize = 1000;
/// Clocks of writers differ by less: a new pack's name is no further behind.
const CLOCKS_S: i64 = 3600;
/// How often a change is tried that others come before.
const TRIES: usize = 16;
/// For messages.
const HEAD: &str = "head";
/// Cursors of listings: in packs, and of the inner backend.
const IN_PACKS: char = 'p';
const IN_BLOCKS: char = 'b';

/// What goes into packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Larger blocks are the inner backend's; without one all are.
    pub block: Option<usize>,
    /// Bytes of blocks in a pack.
    pub pack: usize,
    /// What new packs are; those that are there may be others.
    pub form: Form,
}

impl Limits {
    /// A directory of archives has all blocks in them.
    pub fn archives(form: Form, pack: usize) -> Self {
        Self { block: Some(Block::MAX_LEN), pack, form }
    }

    /// No more packs are made: those that are there are read.
    pub fn none(pack: usize) -> Self {
        Self { block: None, pack, form: Form::Car }
    }

    /// Larger blocks are objects of their own.
    pub fn small_blocks(pack: usize) -> Self {
        Self { block: Some(BLOCK_MAX), pack, form: Form::Car }
    }
}

/// `pack_size=` of a URL: about so many bytes of blocks make a full pack.
pub(super) const PACK_SIZE: &str = "pack_size";
/// Without it.
pub(super) const BYTES: usize = 8 << 20;
/// A pack is made and taken apart in memory.
const SIZES: std::ops::RangeInclusive<usize> = 1 << 20..=64 << 20;

/// Reads [`PACK_SIZE`].
pub(super) fn size(value: &str) -> Result<usize, String> {
    let size = value.parse::<ByteSize>().ok().and_then(|size| usize::try_from(size.0).ok());
    size.filter(|size| SIZES.contains(size))
        .ok_or_else(|| format!("{PACK_SIZE}={value}: write a size from 1MiB to 64MiB"))
}

/// The head that the index was last told of.
#[derive(Clone)]
struct Known {
    head: Head,
    tag: Option<Tag>,
    dead: Positions,
}

/// A place with packs.
pub(super) struct PackBackend {
    kind: &'static str,
    inner: Arc<dyn Backend>,
    shelf: Arc<dyn Shelf>,
    id: Uuid,
    index: Index,
    limits: Limits,
    /// What was read lately, and a little more.
    pieces: Pieces,
    known: AsyncMutex<Option<Known>>,
    opened: OnceCell<()>,
    waiting: Mutex<Vec<Waiting>>,
    turns: Semaphore,
}

/// Milliseconds since 1970 in a pack's name, and how many digits they have there.
const DIGITS: usize = 15;

fn now() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}

/// `<ms>-<digest>.<form>`, which sorts by time.
fn pack_name(form: Form, at: Timestamp, bytes: &[u8]) -> String {
    let ms = at.seconds.max(0) * 1000 + i64::from(at.nanoseconds / 1_000_000);
    let digest = Base::Base32Lower.encode(cid::sha256(bytes));
    format!("{ms:0DIGITS$}-{digest}.{}", form.name())
}

/// Whether it is a pack's name, as [`pack_name`] makes them.
pub(super) fn is_pack(name: &str) -> bool {
    let ended = name.rsplit_once('.').filter(|(_, end)| Form::named(end).is_some());
    let parts = ended.and_then(|(rest, _)| rest.split_once('-'));
    parts.is_some_and(|(ms, digest)| {
        ms.len() == DIGITS
            && ms.bytes().all(|b| b.is_ascii_digit())
            && digest.len() == 52
            && digest.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
    })
}

/// A little before a pack: packs of other clocks may come there.
fn before(name: &str) -> String {
    let ms: i64 = name.get(..DIGITS).and_then(|ms| ms.parse().ok()).unwrap_or(0);
    format!("{:0DIGITS$}", (ms - CLOCKS_S * 1000).max(0))
}

impl PackBackend {
    /// Over a place that was opened, with its shelf. `dir`: where the index is kept.
    ///
    /// # Errors
    /// `Other` when there is no room for an index.
    pub fn new(
        kind: &'static str,
        (inner, shelf): (Arc<dyn Backend>, Arc<dyn Shelf>),
        id: Uuid,
        limits: Limits,
        dir: Option<&Path>,
    ) -> Result<Self, BackendError> {
        let index = Index::open(dir, id).map_err(|error| local(&error))?;
        Ok(Self {
            kind,
            inner,
            shelf,
            id,
            index,
            limits,
            pieces: Pieces::default(),
            known: AsyncMutex::new(None),
            opened: OnceCell::new(),
            waiting: Mutex::default(),
            turns: Semaphore::new(TURNS),
        })
    }

    fn corrupt(&self, what: &str, why: &str) -> BackendError {
        let message = format!("{what} in {} is damaged: {why}", self.shelf.location());
        BackendError::new(ErrorKind::Corrupt, message)
    }

    /// What says what is dead cannot be read: nothing is known of any block then.
    fn damaged(&self, what: &str, why: &str) -> BackendError {
        let message = format!(
            "{what} in {} is damaged: {why}; it is read again, and if it stays so, bring it back \
             from a copy of the place (docs: backends, `packs/head`)",
            self.shelf.location()
        );
        BackendError::new(ErrorKind::Unavailable, message)
    }

    fn contended(&self) -> BackendError {
        let message = format!(
            "others change what is dead in {} all the time: it is tried again",
            self.shelf.location()
        );
        BackendError::new(ErrorKind::Other, message)
    }

    /// Asks once for all that is there. Who may write makes a head where there is none: an
    /// absent one costs more to ask for than one that is known.
    async fn ready(&self) -> Result<(), BackendError> {
        let open = || async {
            self.refresh(true).await?;
            let known = self.known.lock().await.clone();
            let new = known.is_some_and(|known| known.tag.is_none());
            if new && self.limits.block.is_some() && !self.capabilities().read_only {
                let head = encode(&Head::new())?;
                // Was another one first, it is read when it is asked for.
                self.shelf.swap(None, head).await?;
            }
            Ok(())
        };
        self.opened.get_or_try_init(open).await.map(drop)
    }

    /// The head as it is now; the index is told what it says.
    async fn look_at_head(&self) -> Result<Known, BackendError> {
        let mut known = self.known.lock().await;
        for _ in 0..TRIES {
            let before = known.as_ref().and_then(|known| known.tag.as_ref());
            let (head, tag) = match self.shelf.head(before).await? {
                HeadNow::None => (Head::new(), None),
                HeadNow::Same => match known.as_ref() {
                    Some(known) => return Ok(known.clone()),
                    None => continue,
                },
                HeadNow::Is(bytes, _) if bytes.len() > HEAD_MAX => {
                    return Err(self.damaged(HEAD, "it is too long"));
                }
                HeadNow::Is(bytes, tag) => {
                    let head = Head::decode(&bytes);
                    (head.map_err(|why| self.damaged(HEAD, &why))?, Some(tag))
                }
            };
            let Some(dead) = self.read_dead(&head).await? else { continue };
            let retired = head.retired.keys().cloned().collect();
            let now = known.insert(Known { head, tag, dead });
            self.index.set_dead(&now.dead, retired);
            return Ok(now.clone());
        }
        Err(self.contended())
    }

    /// All that the lists of a head say; `None` when one is gone: there is another head.
    async fn read_dead(&self, head: &Head) -> Result<Option<Positions>, BackendError> {
        let mut dead = Positions::new();
        let reads: Vec<_> = head.dead.iter().map(|name| self.shelf.read(name, None)).collect();
        let lists: Vec<Option<Bytes>> = stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
        for (name, list) in head.dead.iter().zip(lists) {
            let Some(list) = list else { return Ok(None) };
            decode_dead(name, &list, BLOCKS_MAX as u32, &mut dead)
                .map_err(|why| self.damaged(name, &why))?;
        }
        Ok(Some(dead))
    }

    /// Asks what is there: all of it, or what came since. The head is read first: what it
    /// gives up was written anew before.
    async fn refresh(&self, all: bool) -> Result<(), BackendError> {
        self.look_at_head().await?;
        let newest = if all { None } else { self.index.newest() };
        let mut after = newest.as_deref().map(before).unwrap_or_default();
        let mut seen = BTreeSet::new();
        loop {
            let page = self.shelf.list(&after, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            let ended = page.len() < PAGE;
            let new: Vec<_> = page
                .iter()
                .filter(|(name, _)| is_pack(name) && !self.index.is_known(name))
                .map(|(name, len)| self.take_in(name, *len))
                .collect();
            stream::iter(new).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            seen.extend(page.into_iter().map(|(name, _)| name));
            if ended {
                break;
            }
        }
        if all {
            let known = self.index.packs();
            let gone = known.iter().filter(|(name, _)| !seen.contains(name));
            self.forget(gone.map(|(name, _)| name.as_str()));
            if let Err(error) = self.index.keep() {
                tracing::warn!(%error, "an index of packs is not kept");
            }
        }
        self.shelf.hold(self.index.bytes());
        Ok(())
    }

    /// Learns what is in a pack from its label; where that is damaged, from its blocks, as
    /// far as they can be found.
    async fn take_in(&self, name: &str, len: u64) -> Result<(), BackendError> {
        let form = Form::of(name);
        let mut wanted = form.usual().min(len);
        let mut why = "it is cut off".to_owned();
        for _ in 0..3 {
            let part = self.shelf.read(name, Some(form.part(wanted, len))).await?;
            let Some(part) = part else { return Ok(()) };
            match form.read_label(&part, len) {
                Ok(Read::Whole(mut label)) => {
                    let is_there = |row: &&label::Row| form.is_within(row, len);
                    let there = label.rows.iter().take_while(is_there).count();
                    if there < label.rows.len() {
                        tracing::warn!(pack = name, "a pack is cut off");
                        label.rows.truncate(there);
                    }
                    return self.index.add(name, len, &label).map_err(|error| local(&error));
                }
                Ok(Read::More(more)) if more <= len && more > wanted => wanted = more,
                Ok(Read::More(_)) => break,
                Err(wrong) => {
                    why = wrong;
                    break;
                }
            }
        }
        let newer = why.ends_with(NEWER);
        let whole = if newer { None } else { self.shelf.read(name, None).await? };
        let found = whole.map(|bytes| form.scan(self.id, &bytes));
        let label: Option<Label> = found.filter(|label| !label.rows.is_empty());
        let found = label.as_ref().map_or(0, |label| label.rows.len());
        tracing::warn!(pack = name, why, found, "a pack does not say what is in it");
        match label {
            Some(label) => self.index.add(name, len, &label).map_err(|error| local(&error)),
            None => Ok(()),
        }
    }

    fn is_small(&self, block: &Block) -> bool {
        self.limits.block.is_some_and(|most| block.data.len() <= most)
            && runs::Key::of(&block.cid).is_some()
    }

    /// Which of these packs are there, as long as they were.
    async fn there(&self, packs: BTreeSet<String>) -> Result<BTreeSet<String>, BackendError> {
        let wanted: BTreeMap<String, u64> = self.index.packs().into_iter().collect();
        let asked: Vec<_> = packs
            .into_iter()
            .map(|name| async move { Ok((self.shelf.length(&name).await?, name)) })
            .collect();
        let found: Vec<(Option<u64>, String)> = stream::iter(asked)
            .buffered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error: BackendError| error)?;
        let (there, gone): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|(len, name)| len.is_some() && wanted.get(name).copied() == *len);
        self.forget(gone.iter().map(|(_, name)| name.as_str()));
        Ok(there.into_iter().map(|(_, name)| name).collect())
    }

    /// Where each lives now, its pack asked for.
    async fn look(&self, cids: &[Cid]) -> Result<Vec<Option<At>>, BackendError> {
        for _ in 0..TRIES {
            if self.found(cids)?.iter().any(Option::is_some) {
                // Another volume may have given them up meanwhile.
                self.look_at_head().await?;
            }
            let found = self.found(cids)?;
            let packs: BTreeSet<String> =
                found.iter().flatten().map(|at| at.pack.clone()).collect();
            let count = packs.len();
            if self.there(packs).await?.len() == count {
                return Ok(found);
            }
            // One is gone: its blocks may live in another.
            self.refresh(false).await?;
        }
        Err(self.contended())
    }

    fn found(&self, cids: &[Cid]) -> Result<Vec<Option<At>>, BackendError> {
        cids.iter().map(|id| self.index.find(id).map_err(|error| local(&error))).collect()
    }

    /// Stores small blocks: those that do not live there come into a pack, with what other
    /// calls bring at this time.
    async fn put_small(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
        // What is new is sent without a question.
        let there = self.look(&cids).await?;
        let mut seen = HashSet::new();
        let due: Vec<Block> = blocks
            .iter()
            .zip(there)
            .filter(|(block, at)| {
                at.as_ref().is_none_or(|at| at.len as usize != block.data.len())
                    && seen.insert(block.cid)
            })
            .map(|(block, _)| block.clone())
            .collect();
        for part in self.parts(due) {
            self.commit(part).await?;
        }
        Ok(())
    }

    fn learn(&self, name: &str, sealed: &Sealed) {
        // It is found by the next listing.
        if let Err(error) = self.index.add(name, sealed.bytes.len() as u64, &sealed.label) {
            tracing::warn!(%error, pack = name, "a pack is not in the index");
        }
        self.shelf.hold(self.index.bytes());
    }

    fn forget<'n>(&self, packs: impl IntoIterator<Item = &'n str>) {
        self.index.forget(packs);
        self.shelf.hold(self.index.bytes());
    }

    async fn get_small(
        &self,
        id: &Cid,
        range: Option<&Range<u64>>,
    ) -> Result<Option<Bytes>, BackendError> {
        for _ in 0..TRIES {
            let Some(at) = self.index.find(id).map_err(|error| local(&error))? else {
                return Ok(None);
            };
            let len = u64::from(at.len);
            let part = check::range(id, range.cloned(), len)?;
            if part.is_empty() {
                return Ok(Some(Bytes::new()));
            }
            let form = Form::of(&at.pack);
            let mut within = form.range((at.offset, at.len), &part);
            // A store refuses what begins behind the end, as a part of a long range may.
            if let Some(len) = self.index.length(&at.pack).filter(|len| *len > within.start) {
                within.end = within.end.min(len);
            }
            let Some(read) = self.pieces.read(&*self.shelf, &at.pack, within).await? else {
                self.forget([at.pack.as_str()]);
                self.refresh(false).await?;
                continue;
            };
            let data = form.data(read, (id, at.len), &part);
            return data.map(Some).map_err(|why| self.corrupt(&at.pack, &why));
        }
        Err(self.contended())
    }

    /// Gives up the living copies of blocks in packs.
    async fn give_up(&self, cids: &[Cid]) -> Result<(), BackendError> {
        for _ in 0..TRIES {
            let known = self.look_at_head().await?;
            let mut more = Positions::new();
            for id in cids {
                for at in self.index.find_all(id).map_err(|error| local(&error))? {
                    more.entry(at.pack).or_default().insert(at.position.into());
                }
            }
            if more.is_empty() || self.change(known, more, |_| {}).await? {
                return Ok(());
            }
        }
        Err(self.contended())
    }

    /// Makes a head of the next generation, with more that is dead; false when another one
    /// came before.
    async fn change(
        &self,
        Known { mut head, tag, mut dead }: Known,
        more: Positions,
        also: impl FnOnce(&mut Head),
    ) -> Result<bool, BackendError> {
        let mut replaced = Vec::new();
        let merged = head.dead.len() >= LISTS_MAX;
        let alone = more.clone();
        for (pack, positions) in more {
            dead.entry(pack).or_default().extend(positions);
        }
        if merged {
            // What is dead in packs that are gone needs no list.
            dead.retain(|pack, _| self.index.is_known(pack));
            replaced = std::mem::take(&mut head.dead);
        }
        let list = if merged { &dead } else { &alone };
        if !list.is_empty() {
            let text = encode_dead(list);
            let name = dead_name(&text);
            self.shelf.put(&name, text.into()).await?;
            if !head.dead.contains(&name) {
                head.dead.push(name);
            }
        }
        head.generation += 1;
        also(&mut head);
        let text = encode(&head)?;
        let mut known = self.known.lock().await;
        if !self.shelf.swap(tag.as_ref(), text).await? {
            return Ok(false);
        }
        self.index.set_dead(&dead, head.retired.keys().cloned().collect());
        replaced.retain(|name| !head.dead.contains(name));
        // Its version is known when it is read again.
        *known = None;
        drop(known);
        // Who reads the old head meanwhile reads the new one then.
        if let Err(error) = self.shelf.delete(&replaced).await {
            tracing::debug!(%error, "old lists of dead blocks stay");
        }
        Ok(true)
    }
}

fn encode(head: &Head) -> Result<Bytes, BackendError> {
    let text = head.encode().map_err(|why| BackendError::new(ErrorKind::Other, why))?;
    Ok(text.into())
}

/// The folder of the index does not do its work.
fn local(error: &std::io::Error) -> BackendError {
    BackendError::new(ErrorKind::Other, format!("the index of packs: {error}"))
}

#[async_trait]
impl Backend for PackBackend {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn id(&self) -> Option<Uuid> {
        Some(self.id)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { layout: Layout::Packs, ..self.inner.capabilities() }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        if self.capabilities().read_only {
            return self.inner.put_many(blocks).await;
        }
        self.ready().await?;
        // In their order: a node comes when what it links to is there.
        for part in blocks.chunk_by(|a, b| self.is_small(a) == self.is_small(b)) {
            if self.is_small(&part[0]) {
                self.put_small(part).await?;
            } else {
                self.inner.put_many(part).await?;
            }
        }
        Ok(())
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.ready().await?;
        if let Some(data) = self.get_small(cid, range.as_ref()).await? {
            return Ok(data);
        }
        match self.inner.get(cid, range.clone()).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                // Another writer's pack.
                self.refresh(false).await?;
                self.get_small(cid, range.as_ref()).await?.ok_or(error)
            }
            other => other,
        }
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.ready().await?;
        let of =
            |at: Option<At>| at.map_or(Presence::Absent, |at| Presence::Present(at.len.into()));
        let mut found: Vec<Presence> = self.look(cids).await?.into_iter().map(of).collect();
        let absent = |found: &[Presence]| -> Vec<usize> {
            let absent = found.iter().enumerate().filter(|(_, one)| **one == Presence::Absent);
            absent.map(|(n, _)| n).collect()
        };
        let others = absent(&found);
        if others.is_empty() {
            return Ok(found);
        }
        let asked: Vec<Cid> = others.iter().map(|n| cids[*n]).collect();
        for (n, answer) in others.iter().zip(self.inner.presence(&asked).await?) {
            found[*n] = answer;
        }
        let others = absent(&found);
        if others.is_empty() {
            return Ok(found);
        }
        // Another writer's packs.
        self.refresh(false).await?;
        let asked: Vec<Cid> = others.iter().map(|n| cids[*n]).collect();
        for (n, at) in others.iter().zip(self.look(&asked).await?) {
            found[*n] = of(at);
        }
        Ok(found)
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.inner.delete_many(cids).await?;
        self.ready().await?;
        self.refresh(false).await?;
        self.give_up(cids).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.ready().await?;
        let limit = limit.clamp(1, 10_000);
        let not_one = |text: &str| {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            BackendError::new(ErrorKind::Invalid, message)
        };
        let mut chars = from.unwrap_or_default().chars();
        let (part, rest) = (chars.next(), chars.as_str());
        if from.is_none() || part == Some(IN_PACKS) {
            if from.is_none() {
                self.refresh(true).await?;
            }
            let last: Option<Cid> = match part {
                None => None,
                Some(_) => Some(rest.parse().map_err(|_| not_one(rest))?),
            };
            let blocks = self.index.page(last.as_ref(), limit).map_err(|error| local(&error))?;
            if blocks.len() == limit {
                let next = blocks.last().map(|(id, _)| format!("{IN_PACKS}{id}"));
                return Ok(ListPage { blocks, next });
            }
            if !blocks.is_empty() {
                return Ok(ListPage { blocks, next: Some(IN_BLOCKS.into()) });
            }
        } else if part != Some(IN_BLOCKS) {
            return Err(not_one(from.unwrap_or_default()));
        }
        let inner = Some(rest).filter(|rest| part == Some(IN_BLOCKS) && !rest.is_empty());
        let mut page = self.inner.list(inner, limit).await?;
        page.next = page.next.map(|next| format!("{IN_BLOCKS}{next}"));
        Ok(page)
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.inner.put_name(name, cid).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.inner.names(prefix).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.inner.delete_name(name).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.ready().await?;
        self.inner.usage().await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.inner.probe().await
    }

    async fn compact(&self) -> Result<bool, BackendError> {
        if self.capabilities().read_only {
            return Ok(false);
        }
        self.compact_some().await
    }
}
