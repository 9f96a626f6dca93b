use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::wrap::{Around, Fault, FaultPlan, Limit, Metered, Retry, Timeout, Wrapped};
use super::*;
use crate::types::{BackendId, Block, cid};

fn memory() -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new("m"))
}

fn block(seed: u8) -> Block {
    Block::raw(Bytes::from(vec![seed; 10]))
}

async fn conforms(make: impl Fn() -> Arc<dyn Backend>) {
    conformance::run(|| std::future::ready(make())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conforms(memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicU64::new(0);
    conforms(|| {
        let path = dir.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(DirBackend::open(&path, PlaceOptions::default(), true).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_archives_conforms_and_is_read_as_a_directory() {
    for form in ["car", "parquet"] {
        archives_conform(form).await;
    }
}

async fn archives_conform(form: &str) {
    let dir = tempfile::tempdir().unwrap();
    let spec = |kind: &str, name: &str| {
        let url = format!("{kind}://{}/{name}", dir.path().display());
        BackendSpec::parse(&url, &[]).unwrap()
    };
    let count = AtomicU64::new(0);
    let index = dir.path().join("index");
    conforms(|| {
        let name = count.fetch_add(1, Ordering::Relaxed).to_string();
        open_in(&spec(form, &name), true, Some(&index)).unwrap()
    })
    .await;
    let all = [block(1), block(2), Block::raw(Bytes::from(vec![3; 1 << 20]))];
    let archives = open(&spec(form, "last"), true).unwrap();
    assert_eq!((archives.kind(), archives.capabilities().layout), (form, Layout::Packs));
    archives.put_many(&all).await.unwrap();
    let files = || std::fs::read_dir(dir.path().join("last/packs")).unwrap().count();
    assert_eq!(files(), 3, "an archive, the head and its lock");
    drop(archives);
    // Who names it as a plain directory reads them, and adds none.
    let plain = open(&spec("file", "last"), false).unwrap();
    for one in &all {
        assert_eq!(plain.get(&one.cid, None).await.unwrap(), one.data);
    }
    plain.put(&block(4)).await.unwrap();
    plain.delete(&all[0].cid).await.unwrap();
    assert_eq!(files(), 4, "a list of the dead");
    let archives = open(&spec(form, "last"), false).unwrap();
    let cids = [all[0].cid, all[1].cid, block(4).cid];
    let found = archives.presence(&cids).await.unwrap();
    assert_eq!(found, [Presence::Absent, Presence::Present(10), Presence::Present(10)]);
}

#[tokio::test]
async fn archives_that_another_folder_replaced_say_nothing_of_what_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("place");
    let spec = BackendSpec::parse(&format!("car://{}", root.display()), &[]).unwrap();
    let archives = open(&spec, true).unwrap();
    archives.put(&block(1)).await.unwrap();
    let packs = root.join("packs");
    std::fs::rename(&packs, root.join("away")).unwrap();
    std::fs::create_dir(&packs).unwrap();
    let asked = archives.presence(&[block(2).cid]).await;
    assert_eq!(asked.unwrap_err().kind, ErrorKind::Unavailable);
    let put = archives.put(&block(2)).await.unwrap_err();
    assert_eq!(put.kind, ErrorKind::Unavailable);
    assert!(put.message.contains("was it replaced?"), "{put}");
    assert_eq!(std::fs::read_dir(&packs).unwrap().count(), 0, "nothing is written there");
    std::fs::remove_dir(&packs).unwrap();
    std::fs::rename(root.join("away"), &packs).unwrap();
    assert_eq!(archives.presence(&[block(1).cid]).await.unwrap(), [Presence::Present(10)]);
    // A capacity holds for archives, too.
    let url = format!("{}?capacity=1000", spec.url);
    let full = open(&BackendSpec::parse(&url, &[]).unwrap(), false).unwrap();
    let error = full.put(&Block::raw(vec![9; 900].into())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full, "{error}");
    assert!(full.usage().await.unwrap().used_bytes.unwrap() > 100);
}

#[tokio::test]
async fn every_wrapper_conforms() {
    conforms(|| Arc::new(Wrapped::new(memory(), Limit::new(2)))).await;
    conforms(|| Arc::new(Wrapped::new(memory(), Timeout::new(Duration::from_secs(5))))).await;
    conforms(|| Arc::new(Wrapped::new(memory(), Retry::default()))).await;
    conforms(|| Arc::new(Wrapped::new(memory(), Metered::new("memory")))).await;
    conforms(|| Arc::new(Wrapped::new(memory(), Fault::new(FaultPlan::default(), 1)))).await;
    conforms(|| wrap::standard(memory(), Duration::from_secs(5), &PlaceSettings::default())).await;
}

#[tokio::test]
async fn the_suite_finds_a_backend_that_lies() {
    let plans = [
        FaultPlan { wrong: 100, ..FaultPlan::default() },
        FaultPlan { short: 100, ..FaultPlan::default() },
        FaultPlan { lost_page: 100, ..FaultPlan::default() },
        FaultPlan { applied_then_failed: 100, ..FaultPlan::default() },
    ];
    for plan in plans {
        let make = || -> Arc<dyn Backend> { Arc::new(Wrapped::new(memory(), Fault::new(plan, 7))) };
        let run = conformance::run(|| std::future::ready(make())).await;
        assert!(run.is_err(), "{plan:?}");
    }
}

/// Writes down which methods were called, and answers what no default does.
#[derive(Default)]
struct Recording {
    calls: Mutex<Vec<Operation>>,
}

impl Recording {
    fn note(&self, operation: Operation) {
        self.calls.lock().push(operation);
    }
}

#[async_trait]
impl Backend for Recording {
    fn kind(&self) -> &'static str {
        "recording"
    }
    fn location(&self) -> String {
        "here".to_owned()
    }
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = MemoryBackend::new("m").capabilities();
        capabilities.failure_domain = "recorded".to_owned();
        capabilities
    }
    async fn put(&self, _: &Block) -> Result<(), BackendError> {
        self.note(Operation::Put);
        Ok(())
    }
    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        assert_eq!(blocks.len(), 2);
        self.note(Operation::PutMany);
        Ok(())
    }
    async fn get(&self, _: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        assert_eq!(range, Some(1..2));
        self.note(Operation::Get);
        Ok(Bytes::from_static(b"g"))
    }
    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.note(Operation::Presence);
        Ok(vec![Presence::Unknown; cids.len()])
    }
    async fn delete(&self, _: &Cid) -> Result<(), BackendError> {
        self.note(Operation::Delete);
        Ok(())
    }
    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        assert_eq!(cids.len(), 1);
        self.note(Operation::DeleteMany);
        Ok(())
    }
    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        assert_eq!((from, limit), (Some("f"), 3));
        self.note(Operation::List);
        Ok(ListPage { blocks: Vec::new(), next: Some("n".to_owned()) })
    }
    async fn put_name(&self, name: &str, _: &Cid) -> Result<(), BackendError> {
        assert_eq!(name, "put");
        self.note(Operation::PutName);
        Ok(())
    }
    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.note(Operation::Names);
        Ok(vec![(prefix.to_owned(), block(0).cid)])
    }
    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        assert_eq!(name, "delete");
        self.note(Operation::DeleteName);
        Ok(())
    }
    async fn usage(&self) -> Result<Usage, BackendError> {
        self.note(Operation::Usage);
        Ok(Usage { used_bytes: Some(1), capacity_bytes: Some(2), available_bytes: Some(3) })
    }
    async fn probe(&self) -> Result<(), BackendError> {
        self.note(Operation::Probe);
        Ok(())
    }
    async fn compact(&self) -> Result<bool, BackendError> {
        self.note(Operation::Compact);
        Ok(true)
    }
}

async fn forwards<A: Around>(around: A) {
    let inner = Arc::new(Recording::default());
    let wrapped = Wrapped::new(inner.clone(), around);
    assert_eq!((wrapped.kind(), wrapped.location().as_str()), ("recording", "here"));
    assert_eq!(wrapped.capabilities().failure_domain, "recorded");
    let (one, two) = (block(1), block(2));
    wrapped.put(&one).await.unwrap();
    wrapped.put_many(&[one.clone(), two]).await.unwrap();
    assert_eq!(wrapped.get(&one.cid, Some(1..2)).await.unwrap(), "g");
    assert_eq!(wrapped.presence(&[one.cid]).await.unwrap(), [Presence::Unknown]);
    wrapped.delete(&one.cid).await.unwrap();
    wrapped.delete_many(&[one.cid]).await.unwrap();
    assert_eq!(wrapped.list(Some("f"), 3).await.unwrap().next.as_deref(), Some("n"));
    wrapped.put_name("put", &one.cid).await.unwrap();
    assert_eq!(wrapped.names("p").await.unwrap()[0].0, "p");
    wrapped.delete_name("delete").await.unwrap();
    assert_eq!(wrapped.usage().await.unwrap().available_bytes, Some(3));
    wrapped.probe().await.unwrap();
    assert!(wrapped.compact().await.unwrap());
    assert_eq!(*inner.calls.lock(), Operation::ALL);
}

#[tokio::test]
async fn every_wrapper_forwards_every_method_once() {
    forwards(Limit::new(1)).await;
    forwards(Timeout::new(Duration::from_secs(5))).await;
    forwards(Retry::default()).await;
    forwards(Metered::new("recording")).await;
    forwards(Fault::new(FaultPlan::default(), 1)).await;
}

/// Every fault alone and all together, through the stack: what was acknowledged
/// is there, and a reader who verifies never takes wrong bytes.
#[tokio::test(start_paused = true)]
async fn faults_cause_no_false_success_and_no_wrong_byte() {
    let none = FaultPlan::default();
    let plans = [
        FaultPlan { refused: 40, ..none },
        FaultPlan { applied_then_failed: 40, ..none },
        FaultPlan { stalled: 20, ..none },
        FaultPlan { slow: 50, ..none },
        FaultPlan { full: 40, ..none },
        FaultPlan { short: 40, ..none },
        FaultPlan { wrong: 40, ..none },
        FaultPlan { lost_page: 40, ..none },
        FaultPlan {
            refused: 10,
            applied_then_failed: 10,
            stalled: 5,
            slow: 10,
            full: 10,
            short: 10,
            wrong: 10,
            lost_page: 10,
        },
    ];
    for (number, plan) in plans.into_iter().enumerate() {
        for seed in 0..20 {
            let inner = Arc::new(MemoryBackend::new("m"));
            let faulty = Arc::new(Wrapped::new(inner.clone(), Fault::new(plan, seed)));
            let timed = Arc::new(Wrapped::new(faulty, Timeout::new(Duration::from_secs(3))));
            let backend = Wrapped::new(timed, Retry::default());
            for i in 0..20 {
                let block = block(i);
                if backend.put(&block).await.is_ok() {
                    assert!(inner.contains(&block.cid), "plan {number}, seed {seed}");
                }
                if let Ok(data) = backend.get(&block.cid, None).await
                    && cid::verify(&block.cid, &data) == cid::Verdict::Match
                {
                    assert_eq!(data, block.data, "plan {number}, seed {seed}");
                }
                if backend.delete(&block.cid).await.is_ok() {
                    assert!(!inner.contains(&block.cid), "plan {number}, seed {seed}");
                }
                if backend.put_name("n", &block.cid).await.is_ok() {
                    let names = inner.names("").await.unwrap();
                    assert_eq!(names, [("n".to_owned(), block.cid)], "plan {number}, seed {seed}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_may_pass_by_itself_is_tried_again() {
    use ErrorKind::{
        Corrupt, Denied, Full, Invalid, NotFound, Other, ReadOnly, Throttled, Timeout as Late,
        Unavailable, Unsupported,
    };
    let repeated = [Throttled, Corrupt, Other];
    // Who was late was waited for long enough: what needs it is queued again.
    let once = [NotFound, Denied, ReadOnly, Full, Unavailable, Late, Invalid, Unsupported];
    for (kinds, calls) in [(&repeated[..], 3), (&once[..], 1)] {
        for kind in kinds {
            let inner = Arc::new(MemoryBackend::new("m"));
            inner.fail_with(Some(*kind));
            let backend = Wrapped::new(inner.clone(), Retry::default());
            assert_eq!(backend.probe().await.unwrap_err().kind, *kind);
            assert_eq!(inner.calls(Operation::Probe), calls, "{kind:?}");
        }
    }
    let inner = Arc::new(MemoryBackend::new("m"));
    inner.fail_times(Operation::Put, Other, 2);
    Wrapped::new(inner.clone(), Retry::default()).put(&block(1)).await.unwrap();
    assert_eq!(inner.calls(Operation::Put), 3);
}

/// Asks its callers to wait.
struct Throttling(u64);

#[async_trait]
impl Around for Throttling {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        _: u64,
        _: wrap::Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let mut error = BackendError::new(ErrorKind::Throttled, "slow down");
        error.retry_after_ms = Some(self.0);
        Err(error)
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_asks_for_time_gets_it() {
    for (asked, at_least) in [(1_000, 2_000), (60_000, 0)] {
        let throttled = Arc::new(Wrapped::new(memory(), Throttling(asked)));
        let backend = Wrapped::new(throttled, Retry::default());
        let start = Instant::now();
        let error = backend.probe().await.unwrap_err();
        assert_eq!(error.retry_after_ms, Some(asked));
        let waited = start.elapsed().as_millis();
        assert!((at_least..at_least + 500).contains(&waited), "{asked}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_call_ends_at_a_deadline_that_grows_with_its_bytes() {
    let plan = FaultPlan { stalled: 100, ..FaultPlan::default() };
    let stalled = Arc::new(Wrapped::new(memory(), Fault::new(plan, 1)));
    let backend = Wrapped::new(stalled, Timeout::new(Duration::from_secs(3)));
    let start = Instant::now();
    assert_eq!(backend.probe().await.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(start.elapsed().as_secs(), 3);
    let start = Instant::now();
    let large = Block::raw(Bytes::from(vec![0; Block::MAX_LEN]));
    assert_eq!(backend.put(&large).await.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(start.elapsed().as_secs(), 3 + 8);
}

#[tokio::test(start_paused = true)]
async fn limits_bound_calls_requests_and_bytes() {
    let slow = || {
        let inner = Arc::new(MemoryBackend::new("m"));
        inner.set_delay(Some(Duration::from_secs(1)));
        inner
    };
    let calls = |limit: Limit| {
        let backend = Wrapped::new(slow(), limit);
        async move {
            let start = Instant::now();
            let puts: Vec<Block> = (0..10).map(block).collect();
            futures_util::future::join_all(puts.iter().map(|block| backend.put(block))).await;
            start.elapsed().as_millis()
        }
    };
    assert_eq!(calls(Limit::new(10)).await, 1_000);
    assert_eq!(calls(Limit::new(5)).await, 2_000);
    // The tenth request starts after nine tenths of a second.
    assert!((1_900..1_950).contains(&calls(Limit::new(10).requests_per_second(10)).await));
    // Ten blocks of 10 bytes; the last one starts when 90 bytes are through.
    assert!((10_000..10_050).contains(&calls(Limit::new(10).bytes_per_second(10)).await));
    // Who is cut off while it waits has used nothing.
    let backend = Wrapped::new(memory(), Limit::new(1).bytes_per_second(1));
    let start = Instant::now();
    backend.put(&block(1)).await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(1), backend.put(&block(2))).await;
    assert!(cut.is_err(), "it waits for nine seconds more");
    backend.put(&block(3)).await.unwrap();
    assert!((10_000..10_050).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    let backend = Wrapped::new(memory(), Limit::new(1).bytes_per_second(10));
    backend.put(&block(1)).await.unwrap();
    let start = Instant::now();
    backend.get(&block(1).cid, None).await.unwrap();
    backend.get(&block(1).cid, None).await.unwrap();
    assert!((1_900..2_100).contains(&start.elapsed().as_millis()));
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_how_they_end() {
    let inner = Arc::new(MemoryBackend::new("m"));
    let backend = Wrapped::new(inner.clone(), Metered::new("counted"));
    backend.put(&block(1)).await.unwrap();
    backend.get(&block(1).cid, None).await.unwrap();
    backend.get(&block(2).cid, None).await.unwrap_err();
    inner.set_delay(Some(Duration::from_mins(1)));
    let cut = tokio::time::timeout(Duration::from_secs(1), backend.get(&block(1).cid, None)).await;
    assert!(cut.is_err());
    let stats = backend.around().stats();
    let put = stats[&Operation::Put];
    assert_eq!((put.succeeded, put.failed, put.bytes), (1, 0, 10));
    let get = stats[&Operation::Get];
    assert_eq!((get.succeeded, get.failed, get.cancelled, get.bytes), (1, 1, 1, 10));
    let text = crate::telemetry::metrics().encode();
    for outcome in ["ok", "not_found", "cancelled"] {
        let line = format!(
            "cairn_backends_calls_total{{kind=\"counted\",operation=\"get\",outcome=\"{outcome}\"}} 1"
        );
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn urls_become_specs() {
    let parse = |text: &str| BackendSpec::parse(text, &[]).unwrap();
    for (text, id, url) in [
        ("/mnt/Disk B", "disk-b", "file:///mnt/Disk%20B"),
        ("file:///a?id=nas&domain=attic", "nas", "file:///a?domain=attic"),
        ("file:///a%20b/?capacity=10GiB", "a-b", "file:///a%20b/?capacity=10GiB"),
        ("/what?#100%", "what--100", "file:///what%3F%23100%25"),
        ("/", "dir", "file:///"),
        ("/srv/local", "dir", "file:///srv/local"),
        ("ipfs://127.0.0.1:5001", "kubo", "ipfs://127.0.0.1:5001"),
        ("ipfs://h/photos?auth=env:X&id=k", "k", "ipfs://h/photos?auth=env%3AX"),
        ("ipfs+https://h/photos", "photos", "ipfs+https://h/photos"),
        ("parquet:///mnt/Old?pack_size=1MiB", "old", "parquet:///mnt/Old?pack_size=1MiB"),
        ("ipfs-cluster://h:9094", "cluster", "ipfs-cluster://h:9094"),
    ] {
        let spec = parse(text);
        assert_eq!((spec.id.as_str(), spec.url.as_str()), (id, url), "{text}");
        // What is stored is read back the same.
        assert_eq!(BackendSpec::parse(&spec.url, &[]).unwrap().url, spec.url);
    }
    assert_eq!(parse("/what?#100%").path().unwrap(), std::path::Path::new("/what?#100%"));
    let here = std::env::current_dir().unwrap();
    assert_eq!(parse("some/where").path().unwrap(), here.join("some/where"));
    assert_eq!(parse("./a:b").path().unwrap(), here.join("a:b"));
    let taken: Vec<BackendId> = vec!["b".parse().unwrap(), "b-2".parse().unwrap()];
    assert_eq!(BackendSpec::parse("/x/b", &taken).unwrap().id.as_str(), "b-3");
    assert!(BackendSpec::parse("file:///x?id=b", &taken).is_err());
}

#[test]
fn a_place_that_is_away_has_its_kind_all_the_same() {
    for (url, kind) in [
        ("file:///x", "dir"),
        ("s3://bucket/x", "s3"),
        ("car:///x", "car"),
        ("parquet:///x", "parquet"),
        ("ipfs://h", "kubo"),
        ("ipfs+https://h/x", "kubo"),
        ("ipfs-cluster://h", "cluster"),
        ("ipfs-cluster+https://h/x", "cluster"),
    ] {
        assert_eq!(kind_of(url), kind);
    }
}

#[test]
fn a_bad_url_says_what_to_write_on_one_line_and_without_secrets() {
    for (bad, hint) in [
        ("ftp://x/y", "not a kind of backend"),
        ("webdav://key:secret@host/x", "not a kind of backend"),
        ("ipfs://user:secret@host", "auth=file:"),
        ("ipfs://host?auth=secret", "auth=env:"),
        ("ipfs-cluster://host?kubo_auth=secret", "auth=env:"),
        ("ipfs-cluster://host?kubo=ipfs://user:secret@h", "auth=env:"),
        ("ipfs://host?auth=bearer:secret", "auth=env:"),
        ("ipfs://host?token=secret", "auth=env:"),
        ("ipfs://host?colour=red", "auth, ca, durable, tier"),
        ("ipfs://host/a/b", "folder"),
        ("ipfs:///a", "ipfs://HOST:5001"),
        ("file:///a?auth=env:X", "is not a setting"),
        ("file:///a?colour=red", "use id, domain, capacity, read_only, tier"),
        ("file:///a\nb", "newline"),
        ("file:///a%0Ab", "newline"),
        ("file:///a%00b", ""),
        ("/a\nb", "newline"),
        ("a\0b", "newline"),
        ("file:///a?id=local", "own store"),
        ("file:///a?id=UPPER", "is not a backend id"),
        ("file:///a?id=a%0Ab", "is not a backend id"),
        ("file:///a?domain=%0A", "domain="),
        ("file:///a?capacity=lots", "is not a size"),
        ("file:///a?capacity=1&capacity=2", "twice"),
        ("file:///a?read_only=perhaps", "write 1 or 0"),
        ("file:///a#b", "%23"),
        ("file://host/a", "file:///absolute/path"),
        ("memory:", "for tests"),
        ("memory:name", "file:///path"),
        ("", "empty"),
    ] {
        let message = BackendSpec::parse(bad, &[]).unwrap_err().to_string();
        assert!(message.contains(hint), "{bad:?}: {message}");
        assert!(!message.contains('\n') && !message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn a_spec_opens_what_it_names_with_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("file://{}/b?domain=rack-1&capacity=5&read_only=0", dir.path().display());
    let spec = BackendSpec::parse(&text, &[]).unwrap();
    assert_eq!(open(&spec, false).err().unwrap().kind, ErrorKind::Unavailable);
    let backend = open(&spec, true).unwrap();
    assert_eq!(
        (backend.kind(), backend.location()),
        ("dir", dir.path().join("b").display().to_string())
    );
    assert_eq!(backend.capabilities().failure_domain, "domain:rack-1");
    assert_eq!(backend.put(&block(1)).await.unwrap_err().kind, ErrorKind::Full);
    let mode = std::fs::metadata(dir.path().join("b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700, "blocks are every file's bytes, whatever its mode");
    // How it was made before is its owner's business.
    std::fs::create_dir(dir.path().join("c")).unwrap();
    std::fs::set_permissions(dir.path().join("c"), Permissions::from_mode(0o755)).unwrap();
    let text = dir.path().join("c").display().to_string();
    open(&BackendSpec::parse(&text, &[]).unwrap(), true).unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!((mode("c") & 0o777, mode("c/blocks") & 0o777), (0o755, 0o700));
}
