//! Pinata as a backend: an account of its Files API v3, which takes archives.
//!
//! Blocks lie there in bundles (`bundle`), each one file of the account: an archive with one
//! root, which keeps the CIDs, where a file would be cut up as Pinata likes. The account's
//! gateway gives them back as files of that directory, as one that is restricted gives only
//! what is below the root of a file. A name is a file that holds nothing but what it points
//! to. A put is done when Pinata says that the archive is the root that it should be, and
//! the gateway gives its label.

mod api;
mod error;
mod settings;
mod upload;

pub(super) use self::settings::GIVES;
pub use self::settings::PinataSettings;

use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::ACCEPT;

use self::api::{File, FileKind};
use self::error::is_refused;
use self::upload::{Unendeds, Upload};
use super::bundle::{Account, Bundle, BundleBackend, Dead, Entry, EntryPage, LABEL};
use super::kubo::{Holders, NamePin, Named, Rpc, archive};
use super::peer::wire::RAW;
use super::{BackendError, Capabilities, ErrorKind, Layout, PlaceOptions, web};
use crate::types::{Block, Cid};

/// What it takes to be asked whether it lets us in.
const HELLO: Duration = Duration::from_secs(8);
/// A gateway that refuses a new archive for longer does not know the account.
const DENIED: Duration = Duration::from_secs(15);

/// An account.
pub(super) struct PinataAccount {
    api: Rpc,
    uploads: Rpc,
    gateway: Rpc,
    holders: Holders,
    folder: String,
    shown: String,
    domain: String,
    options: PlaceOptions,
    unended: Unendeds,
}

async fn hello(rpc: &Rpc) -> Result<(), BackendError> {
    let answer = rpc.request(Method::GET, "files/public", &[("limit", "1")], None).await?;
    answer.json::<serde_json::Value>().await.map(drop)
}

/// Opens it: reads the secrets, and asks whether it lets us in. Blocks. `dir`: for what is
/// worth keeping of what is known of it.
///
/// # Errors
/// `Unavailable` when it does not answer; `Denied` by it, or without a secret; `Invalid`
/// settings.
pub(super) fn open(
    settings: &PinataSettings,
    options: PlaceOptions,
    dir: Option<&Path>,
) -> Result<BundleBackend<PinataAccount>, BackendError> {
    let invalid = |why: String| BackendError::new(ErrorKind::Invalid, why);
    let address = settings.api();
    let api = Rpc::new(&address)?;
    let again = api.anew(&address)?;
    web::at_opening(api.at(), HELLO, move || async move { hello(&again).await })?;
    let account = PinataAccount {
        uploads: Rpc::new(&settings.uploads())?,
        gateway: Rpc::new(&settings.gateway().map_err(invalid)?)?,
        holders: Holders::at_account(&settings.folder),
        folder: settings.folder.clone(),
        shown: settings.shown(),
        domain: options.domain_or(&settings.failure_domain()),
        options,
        unended: Unendeds::default(),
        api,
    };
    BundleBackend::new(account, dir)
}

impl PinataAccount {
    fn entry_of(&self, file: &File) -> Result<Entry, BackendError> {
        file.entry().ok_or_else(|| {
            let message = format!("{}: {} is no file of ours", self.shown, file.id);
            BackendError::new(ErrorKind::Corrupt, message)
        })
    }

    /// Waits until the gateway gives its label.
    async fn served(&self, bundle: &Bundle) -> Result<(), BackendError> {
        let (mut wait, until) = Self::patience();
        let denied_until = Instant::now() + DENIED;
        loop {
            let refused = match self.read(&bundle.root, LABEL).await {
                Ok(Some(bytes)) if bytes == bundle.label.data => return Ok(()),
                Ok(_) => None,
                // A restricted gateway refuses what is not the account's, as this may not be yet.
                Err(error) if is_refused(&error) && Instant::now() < denied_until => Some(error),
                Err(error) => return Err(error),
            };
            if let Err(late) = self.pause(&mut wait, until, &bundle.root).await {
                return Err(refused.unwrap_or(late));
            }
        }
    }
}

#[async_trait]
impl Named for PinataAccount {
    fn holders(&self) -> &Holders {
        &self.holders
    }

    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        Ok(self.named(prefix).await?.into_iter().map(|(_, pin)| pin).collect())
    }

    async fn pin_name(
        &self,
        pin_name: &str,
        holder: &Cid,
        is_listed: bool,
    ) -> Result<(), BackendError> {
        if is_listed {
            return Ok(());
        }
        let block = Block::raw(holder.to_bytes().into());
        let archive = archive(&[block.cid], std::iter::once((block.cid, &block.data)));
        let archive =
            archive.map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?;
        let (root, keyvalues) = (block.cid, self.of_name(holder));
        let upload = Upload { kind: FileKind::Name, name: pin_name, root, keyvalues, archive };
        self.upload(&upload).await?;
        self.ended(&root);
        Ok(())
    }

    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError> {
        let mut any = false;
        for (file, pin) in self.named("").await? {
            if pin.holder == *holder {
                self.remove_file(&file.id).await?;
                any = true;
            }
        }
        Ok(any)
    }
}

#[async_trait]
impl Account for PinataAccount {
    fn kind(&self) -> &'static str {
        "pinata"
    }

    fn at(&self) -> &str {
        &self.shown
    }

    fn folder(&self) -> &str {
        &self.folder
    }

    fn options(&self) -> &PlaceOptions {
        &self.options
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Packs,
            // A range is cut out of the block that came.
            range_reads: false,
            list: true,
            delete: true,
            verifies: false,
            // What it says that it has is what it is paid for.
            durable: true,
            read_only: self.options.read_only,
            failure_domain: self.domain.clone(),
            parallel_puts: 4,
        }
    }

    async fn page(&self, from: Option<&str>) -> Result<EntryPage, BackendError> {
        let (files, next) = self.files(FileKind::Blocks, &[], from).await?;
        // One without a CID is being taken in: whoever stores it waits.
        let entries = files.iter().filter_map(File::entry).collect();
        Ok(EntryPage { entries, next })
    }

    async fn look(&self, entry: &Entry) -> Result<Option<Entry>, BackendError> {
        let file = self.file(&entry.handle).await?;
        Ok(file.as_ref().and_then(File::entry).filter(|now| now.root == entry.root))
    }

    async fn store(&self, bundle: &Bundle) -> Result<Entry, BackendError> {
        let upload = Upload {
            kind: FileKind::Blocks,
            name: self.holders.block_name(),
            root: bundle.root,
            keyvalues: self.of_bundle(&bundle.label.cid, &Dead::default()),
            archive: bundle.archive()?,
        };
        let file = self.upload(&upload).await?;
        self.served(bundle).await?;
        self.ended(&bundle.root);
        self.entry_of(&file)
    }

    async fn mark(&self, entry: &Entry, dead: &Dead) -> Result<(), BackendError> {
        self.update(&entry.handle, &self.of_bundle(&entry.label, dead)).await
    }

    async fn remove(&self, entry: &Entry) -> Result<(), BackendError> {
        self.remove_file(&entry.handle).await?;
        // The same archive may have been taken in twice.
        for file in self.files_of(FileKind::Blocks, &entry.root).await? {
            self.remove_file(&file.id).await?;
        }
        Ok(())
    }

    async fn read(&self, root: &Cid, name: &str) -> Result<Option<Bytes>, BackendError> {
        let path = format!("ipfs/{root}/{name}");
        // As it is, whatever it looks like: a block that is a page of HTML is no page.
        let (arguments, headers) = ([("format", "raw")], [(ACCEPT, RAW)]);
        match self.gateway.exchange(Method::GET, (&path, &arguments), &headers, None).await {
            Ok(answer) => answer.whole(Block::MAX_LEN).await.map(Some),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn probe(&self) -> Result<(), BackendError> {
        for rpc in [&self.api, &self.uploads, &self.gateway] {
            rpc.renew().await?;
        }
        hello(&self.api).await
    }
}
