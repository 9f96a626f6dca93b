//! Listings that go on after a key, also where a store has no word for that.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use opendal::options::ListOptions;
use opendal::{Entry, Lister};
use parking_lot::Mutex;

use super::Place;

/// Objects on a page of the store's own.
const STORE_PAGE: usize = 1000;
/// Listings that wait for somebody to go on.
const PAUSED_MAX: usize = 4;
/// One that waited for longer says too little of what is there now.
const PAUSED: Duration = Duration::from_mins(10);

/// Where listings stopped at a page's end, as the store's own mark of it.
#[derive(Default)]
pub(super) struct Paused(Mutex<Vec<(String, Instant, Lister)>>);

impl Paused {
    fn take(&self, key: &str) -> Option<Lister> {
        let mut paused = self.0.lock();
        paused.retain(|(_, since, _)| since.elapsed() < PAUSED);
        let at = paused.iter().position(|(of, ..)| of == key)?;
        Some(paused.remove(at).2)
    }

    fn put(&self, key: String, lister: Lister) {
        let mut paused = self.0.lock();
        if paused.len() >= PAUSED_MAX {
            paused.remove(0);
        }
        paused.push((key, Instant::now(), lister));
    }
}

/// A listing in the order of the keys.
pub(super) struct Listing<'p> {
    lister: Lister,
    /// What comes up to here was on pages before.
    skip: Option<String>,
    paused: Option<&'p Paused>,
}

impl Listing<'_> {
    pub async fn next(&mut self) -> Result<Option<Entry>, opendal::Error> {
        loop {
            let Some(entry) = self.lister.try_next().await? else { return Ok(None) };
            if self.skip.as_ref().is_none_or(|skip| entry.path() > skip.as_str()) {
                return Ok(Some(entry));
            }
        }
    }

    /// Stops; who asks for what comes after the key goes on from there.
    pub fn pause(self, key: String) {
        if let Some(paused) = self.paused {
            paused.put(key, self.lister);
        }
    }
}

impl Place {
    /// What is in a folder after a key, on pages of about so many.
    pub(super) async fn after(
        &self,
        folder: &str,
        key: Option<String>,
        page: usize,
    ) -> Result<Listing<'_>, opendal::Error> {
        let operator = &self.store.blocks;
        let can_start = operator.info().capability().list_with_start_after;
        let paused = (!can_start).then_some(&self.paused);
        if let Some((paused, key)) = paused.zip(key.as_deref())
            && let Some(lister) = paused.take(key)
        {
            return Ok(Listing { lister, skip: None, paused: Some(paused) });
        }
        let (start_after, skip) = if can_start { (key, None) } else { (None, key) };
        let limit = Some(page.min(STORE_PAGE));
        let options = ListOptions { limit, start_after, recursive: true, ..ListOptions::default() };
        let lister = operator.lister_options(folder, options).await?;
        Ok(Listing { lister, skip, paused })
    }
}
