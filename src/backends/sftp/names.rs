use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt, TryStreamExt, iter};

use super::AT_ONCE;
use super::failure::Failure;
use super::link::Link;
use super::place::Place;
use crate::backends::{BackendError, ErrorKind, check};
use crate::types::{Cid, printable};

/// A name's file holds one CID; more bytes are not ours.
const FILE_MAX: u64 = 4096;
/// Folders below each other; a name of 200 bytes has at most 100 parts.
const DEPTH_MAX: usize = 100;
/// Names in one answer; volumes keep some tens each.
const NAMES_MAX: usize = 100_000;

/// The folder of a name below the place, and what its file is called.
fn place_of(name: &str) -> (String, &str) {
    match name.rsplit_once('/') {
        Some((folder, leaf)) => (format!("names/{folder}"), leaf),
        None => ("names".to_owned(), name),
    }
}

impl Place {
    /// Points a name at a CID, as in a directory. One name may not be the folder of
    /// another (`a` and `a/b`).
    pub(super) async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        check::name(name)?;
        self.check().await?;
        let (folder, leaf) = &place_of(name);
        let text = &format!("{cid}\n");
        let put = |link: Arc<Link>| async move {
            let file = link.write(&self.path("tmp"), text.as_bytes()).await?;
            self.show(&link, file, folder, leaf).await?;
            self.sync(&link, folder).await
        };
        match self.links.on(put).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                let action = format!("write the name `{name}` in");
                Err(self.explain_write(&action, failure, text.len() as u64).await)
            }
        }
    }

    /// Names that begin with `prefix`, sorted. A file that holds no CID is an error and
    /// not left out: a collector would take its content for unreferenced.
    pub(super) async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let mut listed = Vec::new();
        let walked = self.walk("", prefix, 0, &mut listed).await;
        walked.map_err(|failure| self.fail("list the names of", failure))?;
        if listed.len() > NAMES_MAX {
            let message = format!("{} has more than {NAMES_MAX} names under `{prefix}`", self.at);
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let reads: Vec<_> = listed.into_iter().map(|name| self.read_name(name)).collect();
        let read: Vec<_> = iter(reads).buffered(AT_ONCE).try_collect().await?;
        let mut found: Vec<(String, Cid)> = read.into_iter().flatten().collect();
        found.sort();
        Ok(found)
    }

    fn walk<'w>(
        &'w self,
        folder: &'w str,
        prefix: &'w str,
        depth: usize,
        listed: &'w mut Vec<String>,
    ) -> BoxFuture<'w, Result<(), Failure>> {
        Box::pin(async move {
            let path = &self.path(&format!("names/{folder}"));
            let path = path.trim_end_matches('/');
            let found = self.links.on(|link| async move { link.entries(path).await }).await?;
            // Taken away meanwhile.
            for (entry, found) in found.unwrap_or_default() {
                let name = if folder.is_empty() { entry } else { format!("{folder}/{entry}") };
                // Neither in what is asked for nor on the way to it.
                if !name.starts_with(prefix) && !prefix.starts_with(&format!("{name}/")) {
                    continue;
                }
                if check::name(&name).is_err() {
                    let name = printable(&name);
                    tracing::warn!(name, "a file in `names` that is not a name is ignored");
                    continue;
                }
                if found.file_type().is_dir() && depth < DEPTH_MAX {
                    self.walk(&name, prefix, depth + 1, listed).await?;
                } else if found.file_type().is_file() && name.starts_with(prefix) {
                    listed.push(name);
                }
                if listed.len() > NAMES_MAX {
                    break;
                }
            }
            Ok(())
        })
    }

    async fn read_name(&self, name: String) -> Result<Option<(String, Cid)>, BackendError> {
        let path = &self.path(&format!("names/{name}"));
        let read = |link: Arc<Link>| async move { link.read(path, None, FILE_MAX).await };
        let text = match self.links.on(read).await {
            Ok(None) => return Ok(None),
            Ok(Some((text, _))) => Some(text),
            Err(Failure::TooLong) => None,
            Err(failure) => return Err(self.fail(&format!("read the name `{name}` of"), failure)),
        };
        let cid = text.as_deref().and_then(|text| std::str::from_utf8(text).ok());
        let cid = cid.and_then(|text| text.trim_end().parse().ok());
        cid.map(|cid| Some((name.clone(), cid))).ok_or_else(|| {
            let message =
                format!("names/{name} in {} does not hold a CID: restore it or remove it", self.at);
            BackendError::new(ErrorKind::Corrupt, message)
        })
    }

    /// Removes a name; its folders stay.
    pub(super) async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        check::name(name)?;
        self.check().await?;
        let (folder, leaf) = place_of(name);
        let folder = &self.path(&folder);
        let remove = |link: Arc<Link>| async move {
            link.remove(&format!("{folder}/{leaf}")).await?;
            match link.sync_dir(folder).await {
                Err(failure) if failure.is_missing() => Ok(()),
                other => other,
            }
        };
        let removed = self.links.on(remove).await;
        removed.map_err(|failure| self.fail(&format!("remove the name `{name}` of"), failure))
    }
}
