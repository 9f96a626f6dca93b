//! The local store as a backend among others.
//!
//! What a volume's own commits write goes past this, straight to the store; it
//! is for whoever moves blocks between places and should not care which one is
//! local. Names are files in a folder, `/` written as `%`, which no name has.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backends::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, Presence, Usage, check,
};
use crate::metadata::{Engine, MetadataError};
use crate::store::{IndexChange, LocalStore, StoreError};
use crate::types::{Block, Cid};

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;

/// The local store, seen as a backend.
#[derive(Clone)]
pub struct LocalBackend {
    store: Arc<LocalStore>,
    /// Holds the store's index, which must be durable before a put returns.
    engine: Arc<dyn Engine>,
    names: PathBuf,
    domain: String,
}

impl LocalBackend {
    /// Over a store whose index is in `engine`; `names` is a folder for names,
    /// made when it is missing.
    ///
    /// # Errors
    /// By the folder's error.
    pub fn new(
        store: Arc<LocalStore>,
        engine: Arc<dyn Engine>,
        names: PathBuf,
        domain: String,
    ) -> Result<Self, BackendError> {
        std::fs::create_dir_all(&names).map_err(|e| of_io(&names, e))?;
        Ok(Self { store, engine, names, domain })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.unwrap_or_else(|error| {
            let message = format!("the work on the local store was cut off: {error}");
            Err(BackendError::new(ErrorKind::Other, message))
        })
    }

    fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        let ticket = self.store.append(blocks).map_err(of_store)?;
        self.store.sync(ticket).map_err(of_store)?;
        self.engine.persist().map_err(of_engine)
    }

    fn read(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let absent = || {
            let message = format!("the local store has no block {cid}");
            BackendError::new(ErrorKind::NotFound, message)
        };
        let data = self.store.get(cid).map_err(of_store)?.ok_or_else(absent)?;
        let range = check::range(cid, range, data.len() as u64)?;
        Ok(data.slice(range.start as usize..range.end as usize))
    }

    fn presence_of(&self, cid: &Cid) -> Presence {
        match (self.store.contains(cid), self.store.locate(cid)) {
            (Ok(true), Ok(Some(place))) => Presence::Present(place.len.into()),
            // Being written: not durable yet.
            (Ok(true), Ok(None)) | (Err(_), _) | (_, Err(_)) => Presence::Unknown,
            (Ok(false), Ok(_)) => Presence::Absent,
        }
    }

    fn page(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let after = match from.map(str::parse::<Cid>) {
            None => None,
            Some(Ok(cid)) => Some(cid),
            Some(Err(_)) => {
                let message = "a listing goes on after a CID";
                return Err(BackendError::new(ErrorKind::Invalid, message));
            }
        };
        let limit = limit.clamp(1, PAGE_MAX);
        let blocks = self.store.list(after.as_ref(), limit).map_err(of_store)?;
        let next = (blocks.len() == limit).then(|| blocks.last().map(|(cid, _)| cid.to_string()));
        Ok(ListPage { next: next.flatten(), blocks })
    }

    fn name_path(&self, name: &str) -> Result<PathBuf, BackendError> {
        check::name(name)?;
        Ok(self.names.join(name.replace('/', "%")))
    }

    fn write_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        let path = self.name_path(name)?;
        let fail = |e| of_io(&path, e);
        // No name begins so: a listing passes over what is being written.
        let mut file =
            tempfile::Builder::new().prefix("%NEW").tempfile_in(&self.names).map_err(fail)?;
        writeln!(file, "{cid}").and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        self.sync_names()
    }

    fn list_names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let fail = |e| of_io(&self.names, e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.names).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Some(name) = entry.file_name().to_str().map(|name| name.replace('%', "/")) else {
                continue;
            };
            if check::name(&name).is_err() || !name.starts_with(prefix) {
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).map_err(fail)?;
            let cid = text.trim_end().parse().map_err(|_| {
                let message = format!("{} does not hold a CID", entry.path().display());
                BackendError::new(ErrorKind::Corrupt, message)
            })?;
            found.push((name, cid));
        }
        found.sort();
        Ok(found)
    }

    fn remove_name(&self, name: &str) -> Result<(), BackendError> {
        let path = self.name_path(name)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(of_io(&path, e)),
            _ => self.sync_names(),
        }
    }

    fn sync_names(&self) -> Result<(), BackendError> {
        let synced = std::fs::File::open(&self.names).and_then(|dir| dir.sync_all());
        synced.map_err(|e| of_io(&self.names, e))
    }
}

fn of_store(error: StoreError) -> BackendError {
    let kind = match &error {
        StoreError::Corrupt { .. } => ErrorKind::Corrupt,
        StoreError::SegmentMissing { .. } => ErrorKind::NotFound,
        StoreError::NoSpace => ErrorKind::Full,
        StoreError::TooLarge => ErrorKind::Invalid,
        StoreError::Poisoned => ErrorKind::ReadOnly,
        StoreError::Index(_) | StoreError::Io { .. } => ErrorKind::Other,
    };
    BackendError::new(kind, format!("the local store: {error}"))
}

fn of_engine(error: MetadataError) -> BackendError {
    let full = matches!(error, MetadataError::NoSpace);
    let kind = if full { ErrorKind::Full } else { ErrorKind::Other };
    BackendError::new(kind, format!("the metadata: {error}"))
}

fn of_io(path: &Path, error: std::io::Error) -> BackendError {
    of_store(StoreError::io(path, error))
}

#[async_trait]
impl Backend for LocalBackend {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn location(&self) -> String {
        self.store.root().display().to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Packs,
            range_reads: true,
            list: true,
            delete: true,
            // The volume's commits hash what they write; others must have, too.
            verifies: false,
            durable: true,
            read_only: false,
            failure_domain: self.domain.clone(),
            parallel_puts: 4,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let blocks = blocks.to_vec();
        self.run(move |this| this.put_all(&blocks)).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let cid = *cid;
        self.run(move |this| this.read(&cid, range)).await
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let cids = cids.to_vec();
        self.run(move |this| Ok(cids.iter().map(|cid| this.presence_of(cid)).collect())).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        let cid = *cid;
        self.run(move |this| {
            // Its bytes go with the next collection.
            this.store.apply(&[IndexChange::Remove(cid)]).map_err(of_store)?;
            this.engine.persist().map_err(of_engine)
        })
        .await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let from = from.map(str::to_owned);
        self.run(move |this| this.page(from.as_deref(), limit)).await
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        let (name, cid) = (name.to_owned(), *cid);
        self.run(move |this| this.write_name(&name, &cid)).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let prefix = prefix.to_owned();
        self.run(move |this| this.list_names(&prefix)).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        let name = name.to_owned();
        self.run(move |this| this.remove_name(&name)).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.run(|this| {
            let usage = this.store.usage().map_err(of_store)?;
            Ok(Usage {
                used_bytes: Some(usage.used_bytes),
                capacity_bytes: Some(usage.capacity_bytes),
                available_bytes: Some(usage.available_bytes),
            })
        })
        .await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.run(|this| this.store.check_poison().map_err(of_store)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::conformance;
    use crate::metadata::MemoryEngine;
    use crate::store::{MemoryIndex, StoreOptions};

    #[tokio::test]
    async fn the_local_store_keeps_the_rules_of_a_backend() {
        let home = tempfile::tempdir().unwrap();
        let number = std::sync::atomic::AtomicU64::new(0);
        let result = conformance::run(|| async {
            let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let dir = home.path().join(number.to_string());
            let index = Arc::new(MemoryIndex::default());
            let store = LocalStore::open(&dir, index, StoreOptions::default()).unwrap();
            let engine = Arc::new(MemoryEngine::default());
            let local =
                LocalBackend::new(Arc::new(store), engine, dir.join("names"), "here".into());
            Arc::new(local.unwrap()) as Arc<dyn Backend>
        })
        .await;
        assert_eq!(result, Ok(()));
    }
}
