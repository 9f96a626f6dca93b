use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::conformance;
use super::super::kubo::{Holders, NamePin};
use super::super::{Layout, MemoryBackend};
use super::*;

/// What an account keeps.
#[derive(Default)]
struct Kept {
    bundles: Vec<(Entry, HashMap<String, Bytes>)>,
    names: Vec<(String, Cid)>,
    number: u64,
}

/// An account in memory, that others may share.
#[derive(Clone)]
struct Memory {
    holders: Holders,
    options: PlaceOptions,
    kept: Arc<Mutex<Kept>>,
    /// Bundles on a page.
    page: usize,
    stored: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
}

fn memory(page: usize) -> Memory {
    Memory {
        holders: Holders::at_account("m"),
        options: PlaceOptions::default(),
        kept: Arc::default(),
        page,
        stored: Arc::default(),
        read: Arc::default(),
    }
}

impl Memory {
    fn backend(&self) -> BundleBackend<Self> {
        BundleBackend::new(self.clone(), None).unwrap()
    }

    fn bundles(&self) -> usize {
        self.kept.lock().bundles.len()
    }
}

#[async_trait]
impl Named for Memory {
    fn holders(&self) -> &Holders {
        &self.holders
    }

    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        let names = self.kept.lock().names.clone();
        let all = names.iter().filter_map(|(name, holder)| self.holders.name_of(name, holder));
        Ok(all.filter(|pin| pin.name.starts_with(prefix)).collect())
    }

    async fn pin_name(&self, name: &str, holder: &Cid, listed: bool) -> Result<(), BackendError> {
        if !listed {
            self.kept.lock().names.push((name.to_owned(), *holder));
        }
        Ok(())
    }

    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError> {
        let names = &mut self.kept.lock().names;
        let before = names.len();
        names.retain(|(_, known)| known != holder);
        Ok(names.len() < before)
    }
}

#[async_trait]
impl Account for Memory {
    fn kind(&self) -> &'static str {
        "bundles"
    }

    fn at(&self) -> &'static str {
        "memory"
    }

    fn folder(&self) -> &'static str {
        "m"
    }

    fn options(&self) -> &PlaceOptions {
        &self.options
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { layout: Layout::Packs, ..MemoryBackend::new("m").capabilities() }
    }

    async fn page(&self, from: Option<&str>) -> Result<EntryPage, BackendError> {
        let from: u64 = from.map_or(u64::MAX, |text| text.parse().unwrap());
        let number = |entry: &Entry| entry.handle.parse::<u64>().unwrap();
        let mut entries: Vec<Entry> =
            self.kept.lock().bundles.iter().map(|(entry, _)| entry.clone()).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(number(entry)));
        entries.retain(|entry| number(entry) < from);
        entries.truncate(self.page);
        let next = entries.last().map(|last| last.handle.clone());
        Ok(EntryPage { entries, next })
    }

    async fn look(&self, entry: &Entry) -> Result<Option<Entry>, BackendError> {
        let kept = self.kept.lock();
        Ok(kept.bundles.iter().find(|(e, _)| e.handle == entry.handle).map(|(e, _)| e.clone()))
    }

    async fn store(&self, bundle: &Bundle) -> Result<Entry, BackendError> {
        self.stored.fetch_add(1, Ordering::Relaxed);
        let bytes: Vec<u8> = bundle.archive()?.iter().flat_map(|piece| piece.to_vec()).collect();
        let mut reader = iroh_car::CarReader::new(&bytes[..]).await.unwrap();
        let mut files = HashMap::new();
        while let Some((id, data)) = reader.next_block().await.unwrap() {
            let name = if id == bundle.label.cid { LABEL.to_owned() } else { id.to_string() };
            files.insert(name, data.into());
        }
        let mut kept = self.kept.lock();
        if let Some((entry, _)) = kept.bundles.iter().find(|(e, _)| e.root == bundle.root) {
            return Ok(entry.clone());
        }
        kept.number += 1;
        let (root, label, handle) = (bundle.root, bundle.label.cid, kept.number.to_string());
        let entry = Entry { root, label, handle, dead: Dead::default() };
        kept.bundles.push((entry.clone(), files));
        Ok(entry)
    }

    async fn mark(&self, entry: &Entry, dead: &Dead) -> Result<(), BackendError> {
        for (known, _) in &mut self.kept.lock().bundles {
            if known.handle == entry.handle {
                known.dead = dead.clone();
            }
        }
        Ok(())
    }

    async fn remove(&self, entry: &Entry) -> Result<(), BackendError> {
        self.kept.lock().bundles.retain(|(known, _)| known.handle != entry.handle);
        Ok(())
    }

    async fn read(&self, root: &Cid, name: &str) -> Result<Option<Bytes>, BackendError> {
        self.read.fetch_add(1, Ordering::Relaxed);
        let name = match name.parse::<Cid>() {
            Ok(id) => Cid::new_v1(cid::RAW, *id.hash()).to_string(),
            Err(_) => name.to_owned(),
        };
        let kept = self.kept.lock();
        let files = kept.bundles.iter().find(|(entry, _)| entry.root == *root);
        Ok(files.and_then(|(_, files)| files.get(&name).cloned()))
    }

    async fn probe(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

fn blocks(range: Range<u32>) -> Vec<Block> {
    range.map(|n| Block::raw(n.to_le_bytes().to_vec().into())).collect()
}

fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| block.cid).collect()
}

#[tokio::test]
async fn an_account_of_bundles_passes_the_conformance_suite() {
    for page in [1, 3, 1000] {
        let empty = || async move { Arc::new(memory(page).backend()) as Arc<dyn Backend> };
        conformance::run(empty).await.unwrap();
    }
}

#[tokio::test]
async fn many_blocks_are_one_bundle_and_their_deletion_is_one_text() {
    let account = memory(1000);
    let place = account.backend();
    let all = blocks(0..600);
    place.put_many(&all).await.unwrap();
    assert_eq!((account.bundles(), account.stored.load(Ordering::Relaxed)), (2, 2));
    // All of the second one, and some of the first.
    place.delete_many(&cids(&all[500..])).await.unwrap();
    assert_eq!(account.bundles(), 1);
    let found = place.presence(&cids(&all)).await.unwrap();
    let there = |n: usize| found[n] == Presence::Present(4);
    assert!((0..600).all(|n| there(n) == (n < 500)), "{found:?}");
    // What is put again lives elsewhere.
    place.put_many(&all[510..512]).await.unwrap();
    assert_eq!(account.bundles(), 2);
    assert_eq!(place.get(&all[511].cid, None).await.unwrap(), all[511].data);
    // Another opening sees the same.
    let other = account.backend();
    let found = other.presence(&cids(&all)).await.unwrap();
    assert_eq!(found.iter().filter(|one| **one == Presence::Present(4)).count(), 502);
    assert_eq!(other.list(None, 10_000).await.unwrap().blocks.len(), 502);
}

#[tokio::test]
async fn what_lives_in_a_bundle_that_is_half_dead_is_written_anew() {
    let account = memory(1000);
    let place = account.backend();
    let all = blocks(0..100);
    place.put_many(&all).await.unwrap();
    place.delete_many(&cids(&all[..49])).await.unwrap();
    assert!(!place.compact().await.unwrap());
    assert_eq!(account.stored.load(Ordering::Relaxed), 1, "half of it lives");
    let used = place.usage().await.unwrap().used_bytes;
    place.delete(&all[49].cid).await.unwrap();
    assert!(!place.compact().await.unwrap());
    assert_eq!((account.bundles(), account.stored.load(Ordering::Relaxed)), (1, 2));
    assert_eq!((used, place.usage().await.unwrap().used_bytes), (Some(400), Some(200)));
    for place in [place, account.backend()] {
        assert_eq!(place.list(None, 1000).await.unwrap().blocks.len(), 50);
        for block in &all[50..] {
            assert_eq!(place.get(&block.cid, None).await.unwrap(), block.data);
        }
    }
}

#[tokio::test]
async fn the_same_blocks_put_again_are_the_bundle_that_is_there_unless_some_of_it_died() {
    let account = memory(1000);
    let place = account.backend();
    let all = blocks(0..4);
    place.put_many(&all).await.unwrap();
    // A put that was done and not heard of: a new opening whose listing does not have it yet.
    account.backend().put_many(&all).await.unwrap();
    assert_eq!(account.bundles(), 1);
    place.delete_many(&cids(&all[..3])).await.unwrap();
    let entry = account.kept.lock().bundles[0].0.clone();
    let bundle = Bundle::of(place.place, 0, &all).unwrap();
    assert_eq!(account.store(&bundle).await.unwrap(), entry);
    // All four, of which one lives there: the three make another one.
    place.put_many(&all).await.unwrap();
    assert_eq!(account.bundles(), 2);
    place.delete_many(&cids(&all)).await.unwrap();
    assert_eq!(account.bundles(), 0);
    // The same four again, while the old one lingers with all of it dead.
    account.kept.lock().bundles.push((
        Entry { dead: Dead((0..4).collect()), ..entry.clone() },
        HashMap::from([(LABEL.to_owned(), bundle.label.data.clone())]),
    ));
    place.put_many(&all).await.unwrap();
    assert_eq!(account.bundles(), 2);
    let found = place.presence(&cids(&all)).await.unwrap();
    assert_eq!(found, vec![Presence::Present(4); 4]);
    assert_eq!(account.backend().presence(&cids(&all)).await.unwrap(), found);
}

#[tokio::test]
async fn two_openings_see_what_the_other_one_does() {
    let account = memory(2);
    let (one, two) = (account.backend(), account.backend());
    let all = blocks(0..6);
    for pair in all.chunks(2) {
        one.put_many(pair).await.unwrap();
        let found = two.presence(&cids(pair)).await.unwrap();
        assert_eq!(found, vec![Presence::Present(4); 2]);
    }
    two.delete(&all[0].cid).await.unwrap();
    one.delete_many(&cids(&all[4..])).await.unwrap();
    for place in [&one, &two] {
        let found = place.presence(&cids(&all)).await.unwrap();
        let (yes, no) = (Presence::Present(4), Presence::Absent);
        assert_eq!(found, [no, yes, yes, yes, no, no]);
        assert_eq!(place.list(None, 10).await.unwrap().blocks.len(), 3);
    }
    // A bundle that somebody removed at the account.
    account.kept.lock().bundles.clear();
    assert_eq!(one.presence(&cids(&all[..2])).await.unwrap(), vec![Presence::Absent; 2]);
    assert!(two.list(None, 10).await.unwrap().blocks.is_empty());
}

#[tokio::test]
async fn what_was_learnt_of_bundles_is_kept_and_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let account = memory(1000);
    let all = blocks(0..1000);
    let open = || BundleBackend::new(account.clone(), Some(dir.path())).unwrap();
    let place = open();
    place.put_many(&all).await.unwrap();
    place.delete(&all[3].cid).await.unwrap();
    assert_eq!(place.list(None, 10_000).await.unwrap().blocks.len(), 999);
    drop(place);
    let read = account.read.load(Ordering::Relaxed);
    let place = open();
    let found = place.presence(&cids(&all)).await.unwrap();
    assert_eq!(found.iter().filter(|one| **one == Presence::Absent).count(), 1);
    assert_eq!(account.read.load(Ordering::Relaxed), read, "labels are read once");
}

#[tokio::test]
async fn a_bundle_of_which_something_is_wrong_hides_no_other() {
    let account = memory(1000);
    let place = account.backend();
    place.put_many(&blocks(0..2)).await.unwrap();
    place.put_many(&blocks(2..4)).await.unwrap();
    place.put_many(&blocks(4..6)).await.unwrap();
    {
        let mut kept = account.kept.lock();
        kept.bundles[0].1.remove(LABEL);
        kept.bundles[1].1.insert(LABEL.to_owned(), Bytes::from_static(b"no label"));
    }
    let other = account.backend();
    assert_eq!(other.list(None, 10).await.unwrap().blocks.len(), 2);
    // A block whose bytes are others is no block.
    let block = &blocks(4..5)[0];
    for file in account.kept.lock().bundles[2].1.values_mut() {
        *file = Bytes::from_static(b"evil");
    }
    let error = other.get(&block.cid, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    account.kept.lock().bundles[2].1.clear();
    let error = other.get(&block.cid, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "it says that it has it");
}
