use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use opendal::options::{ListOptions, WriteOptions};
use parking_lot::Mutex;

use super::failure::{status_of, was_there};
use super::{AT_ONCE, Place};
use crate::backends::{BackendError, ErrorKind, check};
use crate::types::{Cid, printable};

const NAMES: &str = "names/";
/// A name's object holds one CID; more bytes are not ours.
const OBJECT_MAX: u64 = 4096;
/// Names in one answer; volumes keep some tens each.
const NAMES_MAX: usize = 100_000;
/// Names whose value is remembered.
const KNOWN_MAX: usize = 4096;

/// What names held when they were last read, with the store's tag of that version: a
/// listing shows whether one has changed, and what has not is not read again.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<String, (String, Cid)>>);

impl Known {
    fn get(&self, name: &str, tag: &str) -> Option<Cid> {
        let known = self.0.lock();
        known.get(name).filter(|(of, _)| of == tag).map(|(_, cid)| *cid)
    }

    fn put(&self, name: &str, tag: String, cid: Cid) {
        let mut known = self.0.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), (tag, cid));
    }
}

impl Place {
    /// Points a name at a CID. A new one is made only where none is; another value only
    /// over the one that was read: of two that write one name at a time, one fails.
    pub(super) async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        check::name(name)?;
        let key = format!("{NAMES}{name}");
        let fail = |error| self.fail(&format!("write the name `{name}` in"), error);
        let text = format!("{cid}\n");
        if self.is_conditional() {
            let new = WriteOptions { if_not_exists: true, ..WriteOptions::default() };
            match self.store.small.write_options(&key, text.clone(), new).await {
                Ok(_) => return Ok(()),
                Err(error) => match status_of(&error) {
                    Some(409 | 412) if was_there(&error) => {
                        match self.replace_name(name, &key, cid).await? {
                            Replaced::Done => return Ok(()),
                            Replaced::NoTag => {}
                        }
                    }
                    Some(501) => self.without_conditions(),
                    _ => return Err(fail(error)),
                },
            }
        }
        self.store.small.write(&key, text).await.map(drop).map_err(fail)
    }

    async fn replace_name(
        &self,
        name: &str,
        key: &str,
        cid: &Cid,
    ) -> Result<Replaced, BackendError> {
        let fail = |error| self.fail(&format!("write the name `{name}` in"), error);
        let before = match self.store.small.stat(key).await {
            // Taken away meanwhile.
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => {
                return Ok(Replaced::NoTag);
            }
            other => other.map_err(fail)?,
        };
        // Also when an earlier try was done and its answer got lost.
        if self.read_name(name, None).await? == Some(*cid) {
            return Ok(Replaced::Done);
        }
        let Some(tag) = self.store.tags.of(&before) else { return Ok(Replaced::NoTag) };
        let options = self.store.tags.write(tag);
        match self.store.small.write_options(key, format!("{cid}\n"), options).await {
            Ok(_) => Ok(Replaced::Done),
            Err(error) if status_of(&error) == Some(501) => Ok(Replaced::NoTag),
            Err(error) => Err(fail(error)),
        }
    }

    /// The value; of the version with this tag only, else `Other`.
    async fn read_name(&self, name: &str, tag: Option<&str>) -> Result<Option<Cid>, BackendError> {
        let options = self.store.tags.read(tag.map(str::to_owned));
        let data = match self.store.small.read_options(&format!("{NAMES}{name}"), options).await {
            Ok(data) => data.to_vec(),
            // Taken away meanwhile.
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fail(&format!("read the name `{name}` of"), error)),
        };
        let text = std::str::from_utf8(&data).ok();
        let cid = text.and_then(|text| text.trim_end().parse().ok());
        cid.map(Some).ok_or_else(|| self.not_a_name(name))
    }

    fn not_a_name(&self, name: &str) -> BackendError {
        let place = &self.store.about.location;
        let message =
            format!("{NAMES}{name} in {place} does not hold a CID: restore it or remove it");
        BackendError::new(ErrorKind::Corrupt, message)
    }

    /// Names that begin with `prefix`, sorted. An object that holds no CID is an error
    /// and not left out: a collector would take its content for unreferenced.
    pub(super) async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let fail = |error| self.fail("list the names of", error);
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let at = if folder.is_empty() { NAMES.to_owned() } else { format!("{NAMES}{folder}/") };
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let mut lister = self.store.small.lister_options(&at, options).await.map_err(fail)?;
        let mut listed = Vec::new();
        while let Some(entry) = lister.try_next().await.map_err(fail)? {
            let name = entry.path().strip_prefix(NAMES).unwrap_or_default();
            if !name.starts_with(prefix) || name.is_empty() || name.ends_with('/') {
                continue;
            }
            if check::name(name).is_err() {
                let name = printable(name);
                tracing::warn!(name, "an object in `names` that is not a name is ignored");
                continue;
            }
            if entry.metadata().content_length() > OBJECT_MAX {
                return Err(self.not_a_name(name));
            }
            if listed.len() == NAMES_MAX {
                let place = &self.store.about.location;
                let message = format!("{place} has more than {NAMES_MAX} names under `{prefix}`");
                return Err(BackendError::new(ErrorKind::Invalid, message));
            }
            let tag = self.store.tags.of(entry.metadata()).unwrap_or_default();
            listed.push((name.to_owned(), tag));
        }
        let reads = listed.into_iter().map(|(name, tag)| async move {
            if let Some(cid) = self.known.get(&name, &tag).filter(|_| !tag.is_empty()) {
                return Ok(Some((name, cid)));
            }
            // Remembered only of the version that was listed.
            let found = if tag.is_empty() {
                self.read_name(&name, None).await?
            } else {
                match self.read_name(&name, Some(&tag)).await {
                    Err(error) if error.kind == ErrorKind::Other => {
                        self.read_name(&name, None).await?
                    }
                    other => {
                        let found = other?;
                        if let Some(cid) = found {
                            self.known.put(&name, tag, cid);
                        }
                        found
                    }
                }
            };
            Ok::<_, BackendError>(found.map(|cid| (name, cid)))
        });
        let reads: Vec<_> = reads.collect();
        let read: Vec<_> = stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
        let mut found: Vec<(String, Cid)> = read.into_iter().flatten().collect();
        found.sort();
        Ok(found)
    }

    /// Removes a name.
    pub(super) async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        check::name(name)?;
        match self.store.small.delete(&format!("{NAMES}{name}")).await {
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => self.check().await,
            other => other.map_err(|e| self.fail(&format!("remove the name `{name}` of"), e)),
        }
    }
}

enum Replaced {
    Done,
    /// Nothing to compare with: no such name any more, or a store without tags.
    NoTag,
}
