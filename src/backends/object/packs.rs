//! Packs in a bucket: `packs/<name>`, and the head that is changed by `If-Match`.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::options::{ReadOptions, WriteOptions};

use super::failure::{is_broken, status_of};
use super::{AT_ONCE, Place};
use crate::backends::counted::refuse_beyond_capacity;
use crate::backends::pack::{HeadNow, Shelf, Tag, is_pack};
use crate::backends::{BackendError, ErrorKind};

const PACKS: &str = "packs/";
const HEAD: &str = "packs/head";
/// One answer brings at most so much.
const PART: u64 = 2 << 20;

fn is_missing(error: &opendal::Error) -> bool {
    error.kind() == opendal::ErrorKind::NotFound
}

/// The packs of a place.
pub(in crate::backends) struct Packs(pub(super) Arc<Place>);

impl Packs {
    fn fail(&self, action: &str, name: &str, error: opendal::Error) -> BackendError {
        self.0.fail(&format!("{action} {PACKS}{name} in"), error)
    }
}

#[async_trait]
impl Shelf for Packs {
    fn location(&self) -> String {
        self.0.store.about.location.clone()
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackendError> {
        let len = bytes.len() as u64;
        // Without a condition: what has this name is these bytes.
        match self.0.store.blocks.write(&format!("{PACKS}{name}"), bytes).await {
            Ok(_) => Ok(()),
            // It may have come before the answer got lost.
            Err(error) if status_of(&error).is_none() && is_broken(&error) => {
                match self.length(name).await? {
                    Some(there) if there == len => Ok(()),
                    _ => Err(self.fail("write", name, error)),
                }
            }
            Err(error) => Err(self.fail("write", name, error)),
        }
    }

    async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackendError> {
        let range = match range {
            Some(range) => range,
            None => match self.length(name).await? {
                Some(len) => 0..len,
                None => return Ok(None),
            },
        };
        // An answer has at most what fits into memory.
        let starts = (range.start..range.end).step_by(PART as usize);
        let parts = starts.map(|start| self.part(name, start..range.end.min(start + PART)));
        let parts: Vec<_> = parts.collect();
        let found: Vec<Option<Bytes>> = stream::iter(parts).buffered(AT_ONCE).try_collect().await?;
        let Some(mut found) = found.into_iter().collect::<Option<Vec<Bytes>>>() else {
            return Ok(None);
        };
        Ok(Some(if found.len() == 1 { found.remove(0) } else { found.concat().into() }))
    }

    async fn length(&self, name: &str) -> Result<Option<u64>, BackendError> {
        match self.0.store.blocks.stat(&format!("{PACKS}{name}")).await {
            Ok(found) => Ok(Some(found.content_length())),
            Err(error) if is_missing(&error) => self.0.check().await.map(|()| None),
            Err(error) => Err(self.fail("ask for", name, error)),
        }
    }

    async fn list(&self, after: &str, limit: usize) -> Result<Vec<(String, u64)>, BackendError> {
        let fail = |error| self.0.fail("list the packs of", error);
        let start = Some(format!("{PACKS}{after}"));
        let mut listing = self.0.after(PACKS, start, limit).await.map_err(fail)?;
        let mut page = Vec::new();
        while let Some(entry) = listing.next().await.map_err(fail)? {
            let name = entry.path().strip_prefix(PACKS).unwrap_or_default();
            if !is_pack(name) || name <= after {
                continue;
            }
            page.push((name.to_owned(), entry.metadata().content_length()));
            if page.len() == limit {
                listing.pause(entry.path().to_owned());
                break;
            }
        }
        self.0.check().await?;
        Ok(page)
    }

    async fn delete(&self, names: &[String]) -> Result<(), BackendError> {
        if names.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = names.iter().map(|name| format!("{PACKS}{name}")).collect();
        match self.0.remove(keys).await {
            Err(error) if is_missing(&error) => self.0.check().await,
            other => other.map_err(|error| self.0.fail("remove packs from", error)),
        }
    }

    async fn head(&self, known: Option<&Tag>) -> Result<HeadNow, BackendError> {
        // Of one version: another one may come between two questions.
        for _ in 0..8 {
            let found = match self.0.store.small.stat(HEAD).await {
                Err(error) if is_missing(&error) => {
                    return self.0.check().await.map(|()| HeadNow::None);
                }
                other => other.map_err(|error| self.fail("ask for", "head", error))?,
            };
            let tags = self.0.store.tags;
            let tag = tags.of(&found);
            if tag.is_some() && known.map(|Tag(known)| known) == tag.as_ref() {
                return Ok(HeadNow::Same);
            }
            let options = tags.read(tag.clone());
            match self.0.store.small.read_options(HEAD, options).await {
                Ok(data) => {
                    return Ok(HeadNow::Is(data.to_bytes(), Tag(tag.unwrap_or_default())));
                }
                Err(error) if is_missing(&error) || status_of(&error) == Some(412) => {}
                Err(error) => return Err(self.fail("read", "head", error)),
            }
        }
        let message = format!("{HEAD} in {} changes all the time", self.location());
        Err(BackendError::new(ErrorKind::Other, message))
    }

    async fn swap(&self, before: Option<&Tag>, head: Bytes) -> Result<bool, BackendError> {
        let place = &self.0;
        let condition = match before {
            None => WriteOptions { if_not_exists: true, ..WriteOptions::default() },
            Some(Tag(tag)) => place.store.tags.write(tag.clone()),
        };
        let compares = before.is_none_or(|Tag(tag)| !tag.is_empty());
        if place.is_conditional() && compares {
            match place.store.small.write_options(HEAD, head.clone(), condition).await {
                Ok(_) => return Ok(true),
                Err(error) => match status_of(&error) {
                    Some(501) => place.without_conditions(),
                    // It is this one when an earlier try was done and its answer got lost.
                    Some(404 | 409 | 412) => return self.is_head(&head).await,
                    None if is_broken(&error) => {
                        if self.is_head(&head).await? {
                            return Ok(true);
                        }
                        return Err(self.fail("write", "head", error));
                    }
                    _ => return Err(self.fail("write", "head", error)),
                },
            }
        }
        // The fence of names has to do: see decision 0012.
        let written = place.store.small.write(HEAD, head).await;
        written.map(|_| true).map_err(|error| self.fail("write", "head", error))
    }

    fn hold(&self, bytes: u64) {
        self.0.counter.hold(bytes);
    }

    async fn refuse_beyond_capacity(&self, more: u64) -> Result<(), BackendError> {
        refuse_beyond_capacity(&self.0, more).await
    }
}

impl Packs {
    /// The bytes of a range, as far as there are some.
    async fn part(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BackendError> {
        let options = ReadOptions { range: range.into(), ..ReadOptions::default() };
        match self.0.store.blocks.read_options(&format!("{PACKS}{name}"), options).await {
            Ok(data) => Ok(Some(data.to_bytes())),
            Err(error) if is_missing(&error) => {
                // A bucket that is gone says the same.
                self.0.check().await.map(|()| None)
            }
            Err(error) => Err(self.fail("read", name, error)),
        }
    }

    async fn is_head(&self, wanted: &Bytes) -> Result<bool, BackendError> {
        Ok(matches!(self.head(None).await?, HeadNow::Is(found, _) if found == *wanted))
    }
}
