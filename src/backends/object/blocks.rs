use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::options::{ReadOptions, WriteOptions};

use super::failure::{is_broken, status_of};
use super::{AT_ONCE, Place, Tags};
use crate::backends::counted::make_room;
use crate::backends::dir::shard_of;
use crate::backends::{BackendError, ErrorKind, ListPage, Presence, check};
use crate::types::{Block, Cid, cid, printable};

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;
const BLOCKS: &str = "blocks/";

/// `blocks/<shard>/<cid>`.
fn key_of(text: &str) -> String {
    format!("{BLOCKS}{}/{text}", shard_of(text))
}

pub(super) fn key_of_cid(cid: &Cid) -> String {
    key_of(&cid.to_string())
}

fn is_missing(error: &opendal::Error) -> bool {
    error.kind() == opendal::ErrorKind::NotFound
}

impl Place {
    /// Stores blocks. Raw ones between two nodes go side by side, a node when all
    /// before it are there: what a crash leaves is a prefix in the trait's sense.
    pub(super) async fn put_all(self: &Arc<Self>, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        make_room(self, blocks).await?;
        let mut rest = blocks;
        while !rest.is_empty() {
            let raw = rest.iter().take_while(|block| block.cid.codec() == cid::RAW).count();
            let (now, later) = rest.split_at(raw.max(1));
            // One that is named twice is sent once.
            let mut seen = BTreeSet::new();
            let distinct = now.iter().filter(|block| seen.insert(block.cid));
            let puts: Vec<_> = distinct.map(|block| self.put_one(block)).collect();
            stream::iter(puts).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            rest = later;
        }
        Ok(())
    }

    async fn put_one(&self, block: &Block) -> Result<(), BackendError> {
        let text = block.cid.to_string();
        let key = key_of(&text);
        let len = block.data.len() as u64;
        let fail = |error| self.fail(&format!("write block {text} in"), error);
        if self.is_conditional() {
            let options = WriteOptions { if_not_exists: true, ..WriteOptions::default() };
            match self.store.blocks.write_options(&key, block.data.clone(), options).await {
                Ok(_) => {
                    self.counter.came(&key, len);
                    return Ok(());
                }
                Err(error) => match status_of(&error) {
                    // It is there, or somebody else writes it just now.
                    Some(409 | 412) => {
                        if self.length(&key).await.map_err(fail)? == Some(len) {
                            return Ok(());
                        }
                    }
                    Some(501) => self.without_conditions(),
                    // A store may say 412 and hang up before it has read the block, and the
                    // answer is lost: what is there tells.
                    None if is_broken(&error) => {
                        let there = self.length(&key).await.map_err(fail)?;
                        return if there == Some(len) { Ok(()) } else { Err(fail(error)) };
                    }
                    _ => return Err(fail(error)),
                },
            }
        }
        // Over a copy of the wrong length, or whatever is there where no condition is known.
        let before =
            if self.counter.counts() { self.length(&key).await.map_err(fail)? } else { None };
        self.store.blocks.write(&key, block.data.clone()).await.map_err(fail)?;
        if let Some(before) = before {
            self.counter.went(&key, before);
        }
        self.counter.came(&key, len);
        Ok(())
    }

    /// The length of an object; `None` when it is not there.
    pub(super) async fn length(&self, key: &str) -> Result<Option<u64>, opendal::Error> {
        match self.store.blocks.stat(key).await {
            Ok(found) => Ok(Some(found.content_length())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a block, or of a part.
    pub(super) async fn get(
        &self,
        cid: &Cid,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, BackendError> {
        let text = cid.to_string();
        let key = key_of(&text);
        let action = format!("read block {text} in");
        // No request asks for nothing, or for what ends before it begins.
        if let Some(range) = range.clone().filter(|range| range.start >= range.end) {
            let len = self.length_of(cid, &key, &action).await?;
            return check::range(cid, Some(range), len).map(|_| Bytes::new());
        }
        let options = match &range {
            Some(range) => ReadOptions { range: range.clone().into(), ..ReadOptions::default() },
            None => ReadOptions::default(),
        };
        let data = match self.store.blocks.read_options(&key, options).await {
            Ok(data) => data.to_bytes(),
            Err(error) if is_missing(&error) => return Err(self.missing(cid).await),
            Err(error) => {
                let failed = self.fail(&action, error);
                // It broke off, or the object is shorter than the range.
                if let Some(range) = range.filter(|_| failed.kind == ErrorKind::Corrupt) {
                    check::range(cid, Some(range), self.length_of(cid, &key, &action).await?)?;
                }
                return Err(failed);
            }
        };
        let corrupt = |what: &str| {
            let place = &self.store.about.location;
            BackendError::new(ErrorKind::Corrupt, format!("block {cid} in {place} {what}"))
        };
        let Some(range) = range else {
            let fits = data.len() <= Block::MAX_LEN;
            return if fits { Ok(data) } else { Err(corrupt("is larger than any block")) };
        };
        if data.len() as u64 == range.end - range.start {
            return Ok(data);
        }
        check::range(cid, Some(range), self.length_of(cid, &key, &action).await?)?;
        Err(corrupt("came short, or with more than was asked for"))
    }

    async fn length_of(&self, cid: &Cid, key: &str, action: &str) -> Result<u64, BackendError> {
        match self.length(key).await.map_err(|error| self.fail(action, error))? {
            Some(len) => Ok(len),
            None => Err(self.missing(cid).await),
        }
    }

    /// That a block is not there, or (a bucket that is gone says the same) the place.
    async fn missing(&self, cid: &Cid) -> BackendError {
        if let Err(error) = self.check().await {
            return error;
        }
        let message = format!("{} has no block {cid}", self.store.about.location);
        BackendError::new(ErrorKind::NotFound, message)
    }

    async fn presence_of(&self, cid: &Cid) -> Result<Presence, BackendError> {
        let key = key_of_cid(cid);
        let fail = |error| self.fail(&format!("ask for block {cid} in"), error);
        let says_nothing =
            |error: &BackendError| matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Other);
        let mut found = self.length(&key).await.map_err(fail);
        if found.as_ref().is_err_and(says_nothing) {
            // A hiccup of the store is over; trouble with this one object is not.
            found = self.length(&key).await.map_err(fail);
        }
        match found {
            Ok(len) => Ok(len.map_or(Presence::Absent, Presence::Present)),
            // It says nothing of the others either.
            Err(error) if says_nothing(&error) => {
                tracing::debug!(%error, %cid, "presence is unknown");
                Ok(Presence::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether each is there.
    pub(super) async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let asked: Vec<_> = cids.iter().map(|cid| self.presence_of(cid)).collect();
        let found: Vec<Presence> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
        // After the questions: what they say holds if the place is there now.
        if found.contains(&Presence::Absent) {
            self.check().await?;
        }
        Ok(found)
    }

    /// Removes blocks, a thousand a request.
    pub(super) async fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let distinct: BTreeSet<&Cid> = cids.iter().collect();
        if distinct.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = distinct.iter().map(|cid| key_of_cid(cid)).collect();
        let fail = |error| self.fail("remove blocks from", error);
        let mut lengths = Vec::new();
        if self.counter.counts() {
            let asked: Vec<_> = keys.iter().map(|key| self.length(key)).collect();
            lengths = stream::iter(asked).buffered(AT_ONCE).try_collect().await.map_err(fail)?;
        }
        match self.remove(keys.clone()).await {
            // One that is not there is gone; a bucket that is not there says so.
            Err(error) if is_missing(&error) => self.check().await?,
            other => other.map_err(fail)?,
        }
        for (key, len) in keys.iter().zip(lengths) {
            self.counter.went(key, len.unwrap_or(0));
        }
        Ok(())
    }

    /// Removes objects, as many with a request as the store takes.
    pub(super) async fn remove(&self, keys: Vec<String>) -> Result<(), opendal::Error> {
        let operator = &self.store.blocks;
        if self.store.tags == Tags::Etags {
            return operator.delete_iter(keys).await;
        }
        // Google counts what is in a batch one by one, and fake-gcs-server takes none.
        let removed: Vec<_> = keys.iter().map(|key| operator.delete(key)).collect();
        let ended: Vec<_> = stream::iter(removed).buffer_unordered(AT_ONCE).collect().await;
        let (missing, failed): (Vec<_>, Vec<_>) =
            ended.into_iter().filter_map(Result::err).partition(is_missing);
        // All were asked; that one was not there may be said of the whole place.
        failed.into_iter().chain(missing).next().map_or(Ok(()), Err)
    }

    /// A page of the listing, in order of shard and then of CID text; the cursor is the
    /// last CID's text.
    pub(super) async fn list(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let fail = |error| self.fail("list the blocks of", error);
        let limit = limit.clamp(1, PAGE_MAX);
        if let Some(text) = from.filter(|text| text.parse::<Cid>().is_err()) {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let mut page = ListPage::default();
        let mut listing = self.after(BLOCKS, from.map(key_of), limit).await.map_err(fail)?;
        while let Some(entry) = listing.next().await.map_err(fail)? {
            let key = entry.path();
            let text = key.rsplit('/').next().unwrap_or_default();
            let known = text.parse::<Cid>().ok();
            let Some(cid) = known.filter(|cid| cid.to_string() == text && key_of(text) == key)
            else {
                tracing::debug!(key = printable(key), "an object that is not a block is ignored");
                continue;
            };
            page.blocks.push((cid, entry.metadata().content_length()));
            if page.blocks.len() == limit {
                page.next = Some(text.to_owned());
                listing.pause(key.to_owned());
                break;
            }
        }
        Ok(page)
    }
}
