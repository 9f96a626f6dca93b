//! The layer over a shelf in memory whose requests can be cut off.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::backends::{MemoryBackend, conformance};

/// Objects by name.
#[derive(Default)]
struct Objects {
    all: BTreeMap<String, Bytes>,
    head: Option<(Bytes, u64)>,
}

/// A shelf in memory; each request is numbered from 1.
struct MemoryShelf {
    objects: Arc<Mutex<Objects>>,
    requests: AtomicU64,
    puts: AtomicU64,
    reads: AtomicU64,
    /// Where each read of a range was to end.
    ends: Mutex<Vec<u64>>,
    place: Arc<MemoryBackend>,
    /// What a put takes.
    delay: Duration,
    /// From this request on none is answered; `true`: that one is carried out.
    cut: Mutex<Option<(u64, bool)>>,
}

impl MemoryShelf {
    /// Whether this request is carried out, and whether it is answered.
    fn next(&self) -> (bool, bool) {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        match *self.cut.lock() {
            Some((at, done)) if number == at => (done, false),
            Some((at, _)) if number > at => (false, false),
            _ => (true, true),
        }
    }

    fn ask<T>(&self, work: impl FnOnce(&mut Objects) -> T) -> Result<T, BackendError> {
        let (done, answered) = self.next();
        let error = || BackendError::new(ErrorKind::Unavailable, "the power is gone");
        if !done {
            return Err(error());
        }
        let value = work(&mut self.objects.lock());
        if answered { Ok(value) } else { Err(error()) }
    }
}

#[async_trait]
impl Shelf for MemoryShelf {
    fn location(&self) -> String {
        "memory".into()
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackendError> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.ask(|objects| {
            objects.all.insert(name.to_owned(), bytes);
        })
    }

    async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackendError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.ends.lock().extend(range.as_ref().map(|range| range.end));
        self.ask(|objects| {
            objects.all.get(name).map(|bytes| {
                let len = bytes.len() as u64;
                let range = range.unwrap_or(0..len);
                bytes.slice(range.start.min(len) as usize..range.end.min(len) as usize)
            })
        })
    }

    async fn length(&self, name: &str) -> Result<Option<u64>, BackendError> {
        self.ask(|objects| objects.all.get(name).map(|bytes| bytes.len() as u64))
    }

    async fn list(&self, after: &str, limit: usize) -> Result<Vec<(String, u64)>, BackendError> {
        self.ask(|objects| {
            let later =
                objects.all.iter().filter(|(name, _)| name.as_str() > after && is_pack(name));
            later.take(limit).map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect()
        })
    }

    async fn delete(&self, names: &[String]) -> Result<(), BackendError> {
        if names.is_empty() {
            return Ok(());
        }
        self.ask(|objects| objects.all.retain(|name, _| !names.contains(name)))
    }

    async fn head(&self, known: Option<&Tag>) -> Result<HeadNow, BackendError> {
        self.ask(|objects| match &objects.head {
            None => HeadNow::None,
            Some((_, tag)) if known == Some(&Tag(tag.to_string())) => HeadNow::Same,
            Some((bytes, tag)) => HeadNow::Is(bytes.clone(), Tag(tag.to_string())),
        })
    }

    async fn swap(&self, before: Option<&Tag>, head: Bytes) -> Result<bool, BackendError> {
        self.ask(|objects| {
            let now = objects.head.as_ref().map(|(_, tag)| Tag(tag.to_string()));
            if now.as_ref() != before {
                return false;
            }
            let tag = objects.head.as_ref().map_or(1, |(_, tag)| tag + 1);
            objects.head = Some((head, tag));
            true
        })
    }

    fn hold(&self, bytes: u64) {
        self.place.hold(bytes);
    }

    async fn refuse_beyond_capacity(&self, more: u64) -> Result<(), BackendError> {
        if self.place.room().is_none_or(|room| room >= more) {
            return Ok(());
        }
        Err(BackendError::new(ErrorKind::Full, "there is no room"))
    }
}

const SMALL: Limits = Limits { block: Some(1 << 10), pack: 1 << 14, form: Form::Car };
const FORMS: [Form; 2] = [Form::Car, Form::Parquet];

/// A place: what lies there outlives who opened it.
struct Place {
    inner: Arc<MemoryBackend>,
    objects: Arc<Mutex<Objects>>,
    /// Of packs that are made there now.
    form: Form,
}

impl Place {
    fn new() -> Self {
        Self::of(Form::Car)
    }

    fn of(form: Form) -> Self {
        Self { inner: Arc::new(MemoryBackend::new("m")), objects: Arc::default(), form }
    }

    /// With an index of its own, and requests that can be cut.
    fn open(&self) -> (Arc<MemoryShelf>, PackBackend) {
        self.open_with(Duration::ZERO)
    }

    fn open_with(&self, delay: Duration) -> (Arc<MemoryShelf>, PackBackend) {
        let objects = Arc::clone(&self.objects);
        let place = Arc::clone(&self.inner);
        let (requests, puts, reads) = Default::default();
        let (cut, ends) = (Mutex::new(None), Mutex::default());
        let shelf =
            Arc::new(MemoryShelf { objects, requests, puts, reads, ends, place, delay, cut });
        let inner = Arc::clone(&self.inner) as Arc<dyn Backend>;
        let dynamic = Arc::clone(&shelf) as Arc<dyn Shelf>;
        let limits = Limits { form: self.form, ..SMALL };
        (shelf, PackBackend::new("memory", (inner, dynamic), Uuid::nil(), limits, None).unwrap())
    }
}

fn block(n: u64, len: usize) -> Block {
    let mut random = fastrand::Rng::with_seed(n);
    Block::raw(std::iter::repeat_with(|| random.u8(..)).take(len).collect())
}

#[tokio::test]
async fn packs_over_a_place_do_what_every_backend_does() {
    for form in FORMS {
        let made = || async { Arc::new(Place::of(form).open().1) as Arc<dyn Backend> };
        conformance::run(made).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn small_blocks_that_come_together_share_a_request() {
    let place = Place::new();
    let (shelf, backend) = place.open_with(Duration::from_millis(20));
    let blocks: Vec<Block> = (0..1000).map(|n| block(n, 100)).collect();
    backend.put_many(&blocks).await.unwrap();
    assert_eq!(shelf.puts.load(Ordering::SeqCst), 7, "16 KiB each");
    // Calls that wait for each other, too.
    let backend = Arc::new(backend);
    let calls = (1000..1200).map(|n| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { backend.put(&block(n, 50)).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let puts = shelf.puts.load(Ordering::SeqCst);
    assert!(puts < 20, "{puts} for 200 blocks at once");
    // What is there is not sent again.
    backend.put_many(&blocks).await.unwrap();
    assert_eq!(shelf.puts.load(Ordering::SeqCst), puts);
    let (_, other) = place.open();
    for n in [0, 999, 1100] {
        let len = if n < 1000 { 100 } else { 50 };
        let one = block(n, len);
        assert_eq!(other.get(&one.cid, None).await.unwrap(), one.data);
    }
}

#[tokio::test]
async fn what_is_dead_stays_dead_and_what_is_put_again_lives() {
    let place = Place::new();
    let (_, backend) = place.open();
    let blocks: Vec<Block> = (0..300).map(|n| block(n, 100)).collect();
    backend.put_many(&blocks).await.unwrap();
    // More lists than are kept apart.
    for one in &blocks[..150] {
        backend.delete(&one.cid).await.unwrap();
    }
    backend.put(&blocks[7]).await.unwrap();
    let (_, other) = place.open();
    for opened in [&backend, &other] {
        for (n, one) in blocks.iter().enumerate() {
            let there = opened.presence(&[one.cid]).await.unwrap()[0];
            let wanted = if n >= 150 || n == 7 { Presence::Present(100) } else { Presence::Absent };
            assert_eq!(there, wanted, "{n}");
        }
    }
    let lists = place.objects.lock().all.keys().filter(|name| name.starts_with("dead-")).count();
    assert!(lists <= LISTS_MAX + 1, "{lists}");
}

/// Everything that a place says of these blocks to somebody who opens it now.
async fn told(place: &Place, blocks: &[Block]) -> Vec<bool> {
    let (_, backend) = place.open();
    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    let presence = backend.presence(&cids).await.unwrap();
    let mut listed = BTreeSet::new();
    let mut from = None::<String>;
    loop {
        let page = backend.list(from.as_deref(), 64).await.unwrap();
        listed.extend(page.blocks.into_iter().map(|(id, _)| id));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let mut all = Vec::new();
    for (block, found) in blocks.iter().zip(presence) {
        let there = found == Presence::Present(block.data.len() as u64);
        assert_eq!(there, listed.contains(&block.cid), "{}", block.cid);
        let read = backend.get(&block.cid, None).await;
        assert_eq!(there, read.as_ref().is_ok_and(|data| *data == block.data), "{read:?}");
        all.push(there);
    }
    all
}

#[tokio::test]
async fn repacking_keeps_what_lives_and_gives_back_what_is_dead() {
    for form in FORMS {
        repacks(form).await;
    }
}

async fn repacks(form: Form) {
    let place = Place::of(form);
    let (_, backend) = place.open();
    let blocks: Vec<Block> = (0..600).map(|n| block(n, 100)).collect();
    for part in blocks.chunks(5) {
        backend.put_many(part).await.unwrap();
    }
    let dead: Vec<Cid> =
        blocks.iter().enumerate().filter(|(n, _)| n % 3 > 0).map(|(_, b)| b.cid).collect();
    backend.delete_many(&dead).await.unwrap();
    let packs = || place.objects.lock().all.keys().filter(|name| is_pack(name)).count();
    let before = packs();
    while backend.compact().await.unwrap() {}
    let (_, other) = place.open();
    other.ready().await.unwrap();
    let retired = other.look_at_head().await.unwrap().head.retired.len();
    assert!(retired >= 64 && packs() - before < retired / 10, "{retired} of {before}");
    let wanted: Vec<bool> = (0..600).map(|n| n % 3 == 0).collect();
    assert_eq!(told(&place, &blocks).await, wanted);
    assert!(packs() > before, "readers have an hour");
}

#[tokio::test]
async fn a_cut_at_any_request_loses_nothing_and_brings_nothing_back() {
    for form in FORMS {
        is_cut(form).await;
    }
}

async fn is_cut(form: Form) {
    let blocks: Vec<Block> = (0..200).map(|n| block(n, 100)).collect();
    let gone: Vec<Cid> = blocks[..120].iter().map(|block| block.cid).collect();
    for step in ["put", "delete", "compact"] {
        for done in [false, true] {
            for at in 1.. {
                let place = Place::of(form);
                let (_, first) = place.open();
                for part in blocks[..130].chunks(2) {
                    first.put_many(part).await.unwrap();
                }
                if step == "compact" {
                    first.delete_many(&gone).await.unwrap();
                }
                let (shelf, backend) = place.open();
                *shelf.cut.lock() = Some((at, done));
                let ended = match step {
                    "put" => backend.put_many(&blocks[130..]).await,
                    "delete" => backend.delete_many(&gone).await,
                    _ => backend.compact().await.map(drop),
                };
                let there = told(&place, &blocks).await;
                for (n, there) in there.into_iter().enumerate() {
                    let sure = match (step, n) {
                        ("put", 130..) => ended.is_ok().then_some(true),
                        ("delete", 0..120) => ended.is_ok().then_some(false),
                        ("compact", 0..120) | (_, 130..) => Some(false),
                        _ => Some(true),
                    };
                    let context = format!("{form:?} {step} {done} {at}: block {n}");
                    assert!(sure.is_none_or(|sure| sure == there), "{context}");
                }
                // All or nothing.
                if ended.is_ok() {
                    assert!(at > 3, "{step}");
                    break;
                }
                // Whoever comes next does it.
                let (_, next) = place.open();
                match step {
                    "put" => next.put_many(&blocks[130..]).await.unwrap(),
                    "delete" => next.delete_many(&gone).await.unwrap(),
                    _ => next.compact().await.map(drop).unwrap(),
                }
            }
        }
    }
}

#[tokio::test]
async fn two_that_delete_repack_and_put_at_once_agree_with_a_model() {
    for form in FORMS {
        agrees(form).await;
    }
}

async fn agrees(form: Form) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let place = Place::of(form);
    let writers = [Arc::new(place.open().1), Arc::new(place.open().1)];
    // Each has blocks of its own; both repack.
    let mut model: HashMap<u64, bool> = HashMap::new();
    for _ in 0..40 {
        let mut calls = Vec::new();
        for (n, writer) in writers.iter().enumerate() {
            let of: Vec<u64> = (0..8).map(|_| random.u64(0..60) * 2 + n as u64).collect();
            let blocks: Vec<Block> = of.iter().map(|n| block(*n, 300)).collect();
            let (writer, what) = (Arc::clone(writer), random.u8(0..5));
            if what < 4 {
                model.extend(of.iter().map(|n| (*n, what < 2)));
            }
            calls.push(tokio::spawn(async move {
                let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
                match what {
                    0 | 1 => writer.put_many(&blocks).await,
                    2 | 3 => writer.delete_many(&cids).await,
                    _ => writer.compact().await.map(drop),
                }
            }));
        }
        for call in calls {
            call.await.unwrap().unwrap();
        }
        let all: Vec<Block> = (0..120).map(|n| block(n, 300)).collect();
        let wanted: Vec<bool> = (0..120).map(|n| model.get(&n).copied().unwrap_or(false)).collect();
        assert_eq!(told(&place, &all).await, wanted, "seed {seed}");
    }
}

#[tokio::test]
async fn a_pack_that_is_gone_or_damaged_is_not_believed() {
    let place = Place::new();
    let (_, backend) = place.open();
    let (one, two) = (block(1, 100), block(2, 100));
    backend.put(&one).await.unwrap();
    backend.put(&two).await.unwrap();
    let names = [one.cid, two.cid].map(|id| backend.index.find(&id).unwrap().unwrap().pack);
    place.objects.lock().all.remove(&names[0]);
    let found = backend.presence(&[one.cid, two.cid]).await.unwrap();
    assert_eq!(found, [Presence::Absent, Presence::Present(100)]);
    assert_eq!(backend.get(&one.cid, None).await.unwrap_err().kind, ErrorKind::NotFound);
    backend.put(&one).await.unwrap();
    assert_eq!(backend.get(&one.cid, None).await.unwrap(), one.data);
    // Its beginning rots: who opens the place finds the blocks that are well.
    let rot = |at: usize| {
        let mut objects = place.objects.lock();
        let rotten = objects.all.get_mut(&names[1]).unwrap();
        *rotten = [&rotten[..at], &[rotten[at] ^ 1], &rotten[at + 1..]].concat().into();
    };
    rot(0);
    let (_, other) = place.open();
    assert_eq!(other.presence(&[two.cid]).await.unwrap(), [Presence::Present(100)]);
    assert_eq!(other.get(&two.cid, None).await.unwrap(), two.data);
    // A block rots: it is given as it is, and found no more where it is looked for anew.
    let at = other.index.find(&two.cid).unwrap().unwrap();
    rot(at.offset as usize + 5);
    assert_ne!(other.get(&two.cid, None).await.unwrap(), two.data);
    let (_, other) = place.open();
    assert_eq!(other.presence(&[two.cid]).await.unwrap(), [Presence::Absent]);
    other.put(&two).await.unwrap();
    assert_eq!(other.get(&two.cid, None).await.unwrap(), two.data);
}

#[tokio::test]
async fn a_head_that_is_damaged_says_nothing_and_is_read_again() {
    let place = Place::new();
    let (_, backend) = place.open();
    let (one, two) = (block(1, 100), block(2, 100));
    backend.put_many(&[one.clone(), two.clone()]).await.unwrap();
    backend.delete(&one.cid).await.unwrap();
    let head = place.objects.lock().head.clone();
    let lists = place.objects.lock().all.clone();
    let break_head = || {
        let mut objects = place.objects.lock();
        let (bytes, tag) = objects.head.clone().unwrap();
        objects.head = Some(([b"{", &bytes[..]].concat().into(), tag + 1));
    };
    let break_list = || {
        let mut objects = place.objects.lock();
        let list = objects.all.iter_mut().find(|(name, _)| name.starts_with("dead-")).unwrap();
        *list.1 = Bytes::from_static(b"cairn dead 1\nend\n");
    };
    for harm in [&break_head as &dyn Fn(), &break_list] {
        harm();
        let (_, other) = place.open();
        for error in [
            other.presence(&[one.cid, two.cid]).await.err().unwrap(),
            other.get(&two.cid, None).await.err().unwrap(),
            other.put(&one).await.err().unwrap(),
        ] {
            // Not of a block: nothing is mended, or given up, for it.
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            assert!(error.message.contains("is damaged"), "{error}");
        }
        place.objects.lock().head.clone_from(&head);
        place.objects.lock().all.clone_from(&lists);
        let found = other.presence(&[one.cid, two.cid]).await.unwrap();
        assert_eq!(found, [Presence::Absent, Presence::Present(100)]);
    }
}

#[tokio::test]
async fn what_another_one_gave_up_is_absent_and_comes_when_it_is_put() {
    let place = Place::new();
    let ((_, one), (shelf, two)) = (place.open(), place.open());
    let blocks: Vec<Block> = (0..5).map(|n| block(n, 100)).collect();
    one.put_many(&blocks).await.unwrap();
    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    assert_eq!(two.presence(&cids).await.unwrap(), [Presence::Present(100); 5]);
    one.delete_many(&cids[..3]).await.unwrap();
    let found = two.presence(&cids).await.unwrap();
    assert_eq!(found[..3], [Presence::Absent; 3]);
    assert_eq!(found[3..], [Presence::Present(100); 2]);
    two.put_many(&blocks).await.unwrap();
    assert_eq!(shelf.puts.load(Ordering::SeqCst), 1);
    assert_eq!(one.presence(&cids).await.unwrap(), [Presence::Present(100); 5]);
    assert_eq!(told(&place, &blocks).await, [true; 5]);
}

#[tokio::test]
async fn what_is_put_again_at_once_lives() {
    for form in FORMS {
        puts_again(form).await;
    }
}

async fn puts_again(form: Form) {
    let place = Place::of(form);
    let (_, backend) = place.open();
    let one = block(1, 100);
    for _ in 0..50 {
        backend.put(&one).await.unwrap();
        assert_eq!(backend.get(&one.cid, None).await.unwrap(), one.data);
        backend.delete(&one.cid).await.unwrap();
        let gone = backend.get(&one.cid, None).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn reads_in_a_row_are_few_and_a_single_one_moves_nothing_else() {
    let place = Place::new();
    let (shelf, backend) = place.open();
    let blocks: Vec<Block> = (0..160).map(|n| block(n, 100)).collect();
    backend.put_many(&blocks[..80]).await.unwrap();
    backend.put_many(&blocks[80..]).await.unwrap();
    let before = shelf.reads.load(Ordering::SeqCst);
    for block in &blocks {
        assert_eq!(backend.get(&block.cid, None).await.unwrap(), block.data);
    }
    let reads = shelf.reads.load(Ordering::SeqCst) - before;
    assert!((2..20).contains(&reads), "{reads}");
    // Here and there in one pack.
    let before = shelf.reads.load(Ordering::SeqCst);
    let mut order: Vec<&Block> = blocks[..80].iter().collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    for block in &order {
        assert_eq!(backend.get(&block.cid, None).await.unwrap(), block.data);
    }
    // Each was given out once: it is asked for anew, alone.
    assert_eq!(shelf.reads.load(Ordering::SeqCst) - before, 80);
    let (shelf, backend) = place.open();
    backend.ready().await.unwrap();
    let before = shelf.reads.load(Ordering::SeqCst);
    for block in &order {
        assert_eq!(backend.get(&block.cid, None).await.unwrap(), block.data);
    }
    let reads = shelf.reads.load(Ordering::SeqCst) - before;
    assert!((2..16).contains(&reads), "{reads}");
    // Who asks again has the place's own answer.
    let at = backend.index.find(&blocks[3].cid).unwrap().unwrap();
    let damaged = |n: usize| {
        let mut objects = place.objects.lock();
        let pack = objects.all.get_mut(&at.pack).unwrap();
        *pack = [&pack[..n], &[pack[n] ^ 1], &pack[n + 1..]].concat().into();
    };
    damaged(at.offset as usize);
    assert_ne!(backend.get(&blocks[3].cid, None).await.unwrap(), blocks[3].data);
}

#[tokio::test]
async fn reads_in_a_row_of_a_table_are_few_and_none_goes_beyond_its_end() {
    let place = Place::of(Form::Parquet);
    let (shelf, backend) = place.open();
    // Some of them are much longer than their pages.
    let blocks: Vec<Block> =
        (0..200).map(|n| if n % 3 == 0 { text(n) } else { block(n, 60) }).collect();
    backend.put_many(&blocks[..30]).await.unwrap();
    backend.put_many(&blocks[30..]).await.unwrap();
    let before = shelf.reads.load(Ordering::SeqCst);
    for block in &blocks {
        assert_eq!(backend.get(&block.cid, None).await.unwrap(), block.data);
    }
    let reads = shelf.reads.load(Ordering::SeqCst) - before;
    assert!((2..60).contains(&reads), "{reads}");
    // A single one moves no more than its block and what is around it.
    for n in [0, 29, 199] {
        let (shelf, backend) = place.open();
        backend.ready().await.unwrap();
        let one = &blocks[n];
        shelf.ends.lock().clear();
        assert_eq!(backend.get(&one.cid, None).await.unwrap(), one.data);
        let at = backend.index.find(&one.cid).unwrap().unwrap();
        let len = backend.index.length(&at.pack).unwrap();
        let most = len.min(at.offset + one.data.len() as u64 + 256);
        let ends = shelf.ends.lock().clone();
        assert!(ends.len() == 1 && ends[0] <= most, "{n}: {ends:?}, {most}");
    }
}

#[tokio::test]
async fn packs_count_as_used_and_are_refused_where_there_is_no_room() {
    let place = Place::new();
    place.inner.set_capacity(Some(10_000));
    let (_, backend) = place.open();
    let blocks: Vec<Block> = (0..20).map(|n| block(n, 1000)).collect();
    let mut taken = 0;
    let full = loop {
        match backend.put(&blocks[taken]).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((full.kind, taken), (ErrorKind::Full, 7), "{full}");
    let used = backend.usage().await.unwrap().used_bytes.unwrap();
    assert!((7000..10_000).contains(&used), "{used}");
    // Large ones have no more.
    let large = backend.put(&block(1, 2000)).await.unwrap_err();
    assert_eq!(large.kind, ErrorKind::Full);
    // Whoever opens it knows.
    let (_, other) = place.open();
    assert_eq!(other.usage().await.unwrap().used_bytes, Some(used));
    // What is dead holds its room until it is repacked, and an hour longer.
    backend.delete(&blocks[0].cid).await.unwrap();
    assert_eq!(backend.usage().await.unwrap().used_bytes, Some(used));
}

/// Text that compresses by ten.
fn text(n: u64) -> Block {
    Block::raw(n.to_le_bytes().repeat(100).into())
}

#[tokio::test]
async fn a_damaged_table_is_not_believed_and_what_is_well_in_it_is_found() {
    let place = Place::of(Form::Parquet);
    let (_, backend) = place.open();
    let blocks: Vec<Block> = (0..20).map(|n| block(n, 500)).collect();
    backend.put_many(&blocks).await.unwrap();
    let at = backend.index.find(&blocks[7].cid).unwrap().unwrap();
    let whole = place.objects.lock().all[&at.pack].clone();
    let write = |bytes: Vec<u8>| place.objects.lock().all.insert(at.pack.clone(), bytes.into());
    let rotten = |at: usize| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x40;
        bytes
    };
    let one = &blocks[7];
    // A block rots: no wrong byte is given, and the others are as they were.
    for off in [0, 30, 200] {
        write(rotten(at.offset as usize + off));
        let read = backend.get(&one.cid, None).await;
        assert!(
            read.as_ref().map_or_else(
                |error| error.kind == ErrorKind::Corrupt,
                |data| cid::verify(&one.cid, data) != cid::Verdict::Match
            ),
            "{off}: {read:?}"
        );
        let part = backend.get(&one.cid, Some(10..20)).await;
        assert_eq!(part.unwrap_err().kind, ErrorKind::Corrupt, "{off}");
        assert_eq!(backend.get(&blocks[8].cid, None).await.unwrap(), blocks[8].data);
    }
    // It is given up, and comes anew into another pack; the bad one is left alone.
    backend.delete(&one.cid).await.unwrap();
    backend.put(one).await.unwrap();
    assert_eq!(backend.get(&one.cid, None).await.unwrap(), one.data);
    // The end is lost, or cut off with some blocks: the others are found by their pages.
    let all: Vec<bool> = blocks.iter().map(|_| true).collect();
    for bytes in [rotten(whole.len() - 1), rotten(whole.len() - 60), rotten(whole.len() - 6)] {
        write(bytes);
        assert_eq!(told(&place, &blocks).await, all);
    }
    let last = backend.index.find(&blocks[15].cid).unwrap().unwrap();
    write(whole[..last.offset as usize + 9].to_vec());
    let wanted: Vec<bool> = (0..20).map(|n| n < 15).collect();
    assert_eq!(told(&place, &blocks).await, wanted);
    // What is absent comes anew.
    let (_, other) = place.open();
    other.put_many(&blocks).await.unwrap();
    assert_eq!(told(&place, &blocks).await, all);
}

#[tokio::test]
async fn packs_of_both_forms_are_one_place_and_become_one_form() {
    let mut place = Place::of(Form::Car);
    let blocks: Vec<Block> = (0..300).map(|n| block(n, 100)).collect();
    for (part, form) in blocks.chunks(5).zip(FORMS.iter().cycle()) {
        place.form = *form;
        place.open().1.put_many(part).await.unwrap();
    }
    // Most of each, so that all are repacked.
    let gone = blocks.iter().enumerate().filter(|(n, _)| n % 3 > 0);
    let gone: Vec<Cid> = gone.map(|(_, block)| block.cid).collect();
    place.open().1.delete_many(&gone).await.unwrap();
    let wanted: Vec<bool> = (0..300).map(|n| n % 3 == 0).collect();
    assert_eq!(told(&place, &blocks).await, wanted);
    place.form = Form::Parquet;
    let (_, backend) = place.open();
    while backend.compact().await.unwrap() {}
    assert_eq!(told(&place, &blocks).await, wanted);
    let retired = backend.look_at_head().await.unwrap().head.retired;
    let left = |form: Form| {
        let objects = place.objects.lock();
        let packs = objects.all.keys().filter(|name| is_pack(name) && Form::of(name) == form);
        packs.filter(|name| !retired.contains_key(*name)).count()
    };
    assert!(left(Form::Car) == 0 && left(Form::Parquet) > 0);
}

#[tokio::test]
async fn full_packs_that_compressed_well_are_left_as_they_are() {
    let place = Place::of(Form::Parquet);
    let (_, backend) = place.open();
    // Each pack is a tenth of what is in it.
    let blocks: Vec<Block> = (0..400).map(text).collect();
    backend.put_many(&blocks).await.unwrap();
    let names = || -> Vec<String> {
        place.objects.lock().all.keys().filter(|name| is_pack(name)).cloned().collect()
    };
    let before = names();
    assert!(before.len() >= 20, "{}", before.len());
    let bytes: usize = place.objects.lock().all.values().map(Bytes::len).sum();
    assert!(bytes < 400 * 800 / 2, "{bytes}");
    assert!(!backend.compact().await.unwrap());
    assert_eq!(names(), before);
}
