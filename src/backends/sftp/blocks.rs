use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt, iter};

use super::AT_ONCE;
use super::failure::Failure;
use super::link::Link;
use super::place::Place;
use crate::backends::counted::make_room;
use crate::backends::dir::shard_of;
use crate::backends::{BackendError, ErrorKind, ListPage, Presence, check};
use crate::types::{Block, Cid, cid, printable};

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;

/// `blocks/<shard>`, and what the file is called.
fn place_of(cid: &Cid) -> (String, String) {
    let text = cid.to_string();
    (format!("blocks/{}", shard_of(&text)), text)
}

/// `blocks/<shard>/<cid>`.
pub(super) fn key_of(cid: &Cid) -> String {
    let (folder, text) = place_of(cid);
    format!("{folder}/{text}")
}

async fn length(link: &Arc<Link>, path: &str) -> Result<Option<u64>, Failure> {
    let found = link.look(path).await?;
    Ok(found.filter(|found| found.file_type().is_file()).and_then(|found| found.size))
}

impl Place {
    /// Stores blocks. Raw ones between two nodes go side by side, a node when all before
    /// it are there: what a crash leaves is a prefix in the trait's sense.
    pub(super) async fn put_all(self: &Arc<Self>, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        make_room(self, blocks).await?;
        let mut rest = blocks;
        while !rest.is_empty() {
            let raw = rest.iter().take_while(|block| block.cid.codec() == cid::RAW).count();
            let (now, later) = rest.split_at(raw.max(1));
            let mut seen = BTreeSet::new();
            let distinct = now.iter().filter(|block| seen.insert(block.cid));
            let puts: Vec<_> = distinct.map(|block| self.put_one(block)).collect();
            iter(puts).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            let folders: BTreeSet<String> = now.iter().map(|b| place_of(&b.cid).0).collect();
            let syncs: Vec<_> = folders.iter().map(|folder| self.sync_folder(folder)).collect();
            iter(syncs).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            rest = later;
        }
        Ok(())
    }

    async fn sync_folder(&self, folder: &str) -> Result<(), BackendError> {
        let synced = self.links.on(|link| async move { self.sync(&link, folder).await }).await;
        match synced {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.explain_write("sync", failure, 0).await),
        }
    }

    async fn put_one(&self, block: &Block) -> Result<(), BackendError> {
        let (folder, text) = &place_of(&block.cid);
        let path = &self.path(&format!("{folder}/{text}"));
        let len = block.data.len() as u64;
        let put = |link: Arc<Link>| async move {
            let before = length(&link, path).await?;
            if before == Some(len) && !self.is_suspect(folder) {
                return Ok(None);
            }
            let file = link.write(&self.path("tmp"), &block.data).await?;
            self.show(&link, file, folder, text).await?;
            Ok(Some(before.unwrap_or(0)))
        };
        match self.links.on(put).await {
            Ok(None) => Ok(()),
            Ok(Some(before)) => {
                let key = key_of(&block.cid);
                self.counter.went(&key, before);
                self.counter.came(&key, len);
                Ok(())
            }
            Err(failure) => {
                Err(self.explain_write(&format!("write block {text} in"), failure, len).await)
            }
        }
    }

    /// The length of a block; `None` when it is not there.
    pub(super) async fn length_at(&self, cid: &Cid) -> Result<Option<u64>, Failure> {
        let path = &self.path(&key_of(cid));
        self.links.on(|link| async move { length(&link, path).await }).await
    }

    /// The bytes of a block, or of a part.
    pub(super) async fn get(
        &self,
        cid: &Cid,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, BackendError> {
        let path = &self.path(&key_of(cid));
        let asked = &range;
        let read = |link: Arc<Link>| async move {
            link.read(path, asked.clone(), Block::MAX_LEN as u64).await
        };
        let found = self.links.on(read).await;
        let found = found.map_err(|f| self.fail(&format!("read block {cid} in"), f))?;
        let Some((bytes, len)) = found else {
            // Absent only when the place itself is there.
            self.check().await?;
            let message = format!("{} has no block {cid}", self.at);
            return Err(BackendError::new(ErrorKind::NotFound, message));
        };
        check::range(cid, range, len)?;
        Ok(bytes)
    }

    async fn presence_of(&self, cid: &Cid) -> Result<Presence, BackendError> {
        let (folder, text) = &place_of(cid);
        let path = &self.path(&format!("{folder}/{text}"));
        let look = |link: Arc<Link>| async move {
            let Some(len) = length(&link, path).await? else { return Ok(Presence::Absent) };
            // One that is only read is not flushed: nobody else writes there, or does it.
            if link.can.fsync {
                self.sync(&link, folder).await?;
            }
            let is_lost = self.is_suspect(folder);
            Ok(if is_lost { Presence::Unknown } else { Presence::Present(len) })
        };
        match self.links.on(look).await {
            // Trouble with this one file says nothing of the others.
            Err(failure) if failure.is_mute() => {
                tracing::debug!(%failure, %cid, "presence is unknown");
                Ok(Presence::Unknown)
            }
            other => other.map_err(|f| self.fail(&format!("ask for block {cid} in"), f)),
        }
    }

    /// Whether each is there, durably.
    pub(super) async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let asked: Vec<_> = cids.iter().map(|cid| self.presence_of(cid)).collect();
        let found: Vec<Presence> = iter(asked).buffered(AT_ONCE).try_collect().await?;
        // After the look-ups: what they say holds if the place is there now.
        self.check().await?;
        Ok(found)
    }

    async fn delete_one(&self, cid: &Cid) -> Result<(), BackendError> {
        let path = &self.path(&key_of(cid));
        let remove = |link: Arc<Link>| async move {
            let before = if self.counter.counts() { length(&link, path).await? } else { None };
            link.remove(path).await?;
            Ok(before)
        };
        let removed = self.links.on(remove).await;
        let before = removed.map_err(|f| self.fail(&format!("remove block {cid} from"), f))?;
        self.counter.went(&key_of(cid), before.unwrap_or(0));
        Ok(())
    }

    /// Removes blocks, durably.
    pub(super) async fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.check().await?;
        let distinct: BTreeSet<&Cid> = cids.iter().collect();
        let folders: BTreeSet<String> = distinct.iter().map(|cid| place_of(cid).0).collect();
        let removed: Vec<_> = distinct.into_iter().map(|cid| self.delete_one(cid)).collect();
        iter(removed).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        // Also of what was not there: its removal may not be durable yet.
        let flush = |folder: String| async move {
            let path = &self.path(&folder);
            match self.links.on(|link| async move { link.sync_dir(path).await }).await {
                Err(failure) if !failure.is_missing() => Err(self.fail("sync", failure)),
                _ => Ok(()),
            }
        };
        let synced: Vec<_> = folders.into_iter().map(flush).collect();
        iter(synced).buffer_unordered(AT_ONCE).try_collect::<()>().await
    }

    /// A page of the listing, in order of shard and then of CID text; the cursor is the
    /// last CID's text.
    pub(super) async fn list(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let fail = |failure| self.fail("list the blocks of", failure);
        let limit = limit.clamp(1, PAGE_MAX);
        if let Some(text) = from.filter(|text| text.parse::<Cid>().is_err()) {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let after = from.map(|text| (shard_of(text), text));
        let is_shard = |name: &str| {
            let plain = name.len() <= 2 && name.bytes().all(|b| b.is_ascii_alphanumeric());
            plain && after.as_ref().is_none_or(|(start, _)| name >= start.as_str())
        };
        let shards = self.folder("blocks").await.map_err(fail)?;
        let shards: Vec<String> =
            shards.into_iter().map(|(name, ..)| name).filter(|name| is_shard(name)).collect();
        let listings = shards.into_iter().map(|shard| async move {
            let found = self.folder(&format!("blocks/{shard}")).await?;
            Ok::<_, Failure>((shard, found))
        });
        let mut listings = iter(listings).buffered(AT_ONCE);
        let mut page = ListPage::default();
        while let Some((shard, found)) = listings.try_next().await.map_err(fail)? {
            for (name, len) in found {
                if after.as_ref().is_some_and(|(start, last)| shard == *start && *name <= **last) {
                    continue;
                }
                let known = name.parse::<Cid>().ok();
                let known = known.filter(|id| shard_of(&name) == shard && id.to_string() == name);
                let (Some(id), Some(len)) = (known, len) else {
                    let name = printable(&name);
                    tracing::debug!(name, shard, "a file that is not a block is ignored");
                    continue;
                };
                page.blocks.push((id, len));
                if page.blocks.len() == limit {
                    page.next = Some(name);
                    drop(listings);
                    self.check().await?;
                    return Ok(page);
                }
            }
        }
        drop(listings);
        self.check().await?;
        Ok(page)
    }

    /// What is in a folder below the place, sorted, with the lengths of files.
    async fn folder(&self, folder: &str) -> Result<Vec<(String, Option<u64>)>, Failure> {
        let path = &self.path(folder);
        let found = self.links.on(|link| async move { link.entries(path).await }).await?;
        let found = found.unwrap_or_default().into_iter();
        Ok(found
            .map(|(name, found)| (name, found.size.filter(|_| found.file_type().is_file())))
            .collect())
    }
}
