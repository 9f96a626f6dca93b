use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::wrap::{Fault, FaultPlan, Limit, Metered, Retry, Timeout, Wrapped};
use super::*;
use crate::types::{BackendId, Block};

async fn conforms(backend: Arc<dyn Backend>) {
    conformance::run(&backend).await.unwrap();
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new("m"))
}

#[tokio::test]
async fn memory_conforms() {
    conforms(memory()).await;
}

#[tokio::test]
async fn a_directory_conforms_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("place");
    conforms(Arc::new(DirBackend::open(&root, DirOptions::default(), true).unwrap())).await;
    let again = DirBackend::open(&root, DirOptions::default(), false).unwrap();
    assert_eq!(again.list(None, 100).await.unwrap().blocks.len(), 8);
    let used = again.usage().await.unwrap().used_bytes;
    assert_eq!(used, Some(Block::MAX_LEN as u64 + 4096 + 100 + 1 + 4 + 6 + 19));
}

#[tokio::test]
async fn every_wrapper_conforms() {
    conforms(Arc::new(Wrapped::new(memory(), Limit::new(2)))).await;
    conforms(Arc::new(Wrapped::new(memory(), Timeout::new(Duration::from_secs(5))))).await;
    conforms(Arc::new(Wrapped::new(memory(), Retry::default()))).await;
    conforms(Arc::new(Wrapped::new(memory(), Metered::default()))).await;
    conforms(Arc::new(Wrapped::new(memory(), Fault::new(FaultPlan::default(), 1)))).await;
    conforms(wrap::standard(memory(), Duration::from_secs(5))).await;
}

#[tokio::test(start_paused = true)]
async fn retries_carry_calls_through_faults_and_never_report_a_false_success() {
    for seed in 0..50 {
        let inner = Arc::new(MemoryBackend::new("m"));
        let plan = FaultPlan { applied_then_failed: 20, slow: 20, stalled: 5, ..FaultPlan::default() };
        let faulty = Arc::new(Wrapped::new(inner.clone(), Fault::new(plan, seed)));
        let timed = Arc::new(Wrapped::new(faulty, Timeout::new(Duration::from_secs(3))));
        let backend = Wrapped::new(timed, Retry { attempts: 4, ..Retry::default() });
        for i in 0..20u8 {
            let block = Block::raw(Bytes::from(vec![i; 10]));
            if backend.put(&block).await.is_ok() {
                assert!(inner.get(&block.cid, None).await.is_ok(), "seed {seed}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_call_ends_at_its_deadline() {
    let plan = FaultPlan { stalled: 100, ..FaultPlan::default() };
    let stalled = Arc::new(Wrapped::new(memory(), Fault::new(plan, 1)));
    let backend = Wrapped::new(stalled, Timeout::new(Duration::from_secs(3)));
    assert_eq!(backend.probe().await.unwrap_err().kind, ErrorKind::Timeout);
}

#[tokio::test]
async fn a_missing_place_is_unavailable_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let error = DirBackend::open(&dir.path().join("gone"), DirOptions::default(), false).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    // The empty mountpoint of an unplugged disk.
    let error = DirBackend::open(dir.path(), DirOptions::default(), false).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_replaced_directory_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("place");
    let backend = DirBackend::open(&root, DirOptions::default(), true).unwrap();
    std::fs::rename(&root, dir.path().join("moved")).unwrap();
    std::fs::create_dir(&root).unwrap();
    let block = Block::raw(Bytes::from_static(b"x"));
    assert_eq!(backend.put(&block).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn capacity_and_read_only_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let options = DirOptions { capacity: Some(10), ..DirOptions::default() };
    let backend = DirBackend::open(dir.path(), options, true).unwrap();
    backend.put(&Block::raw(Bytes::from_static(b"12345"))).await.unwrap();
    let full = backend.put(&Block::raw(Bytes::from_static(b"1234567"))).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Full);
    let options = DirOptions { read_only: true, ..DirOptions::default() };
    let backend = DirBackend::open(dir.path(), options, false).unwrap();
    let refused = backend.put(&Block::raw(Bytes::from_static(b"new"))).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::ReadOnly);
}

#[test]
fn urls_become_specs_or_say_what_to_write() {
    let spec = BackendSpec::parse("/mnt/Disk B", &[]).unwrap();
    assert_eq!((spec.id.as_str(), spec.url.as_str()), ("disk-b", "file:///mnt/Disk%20B"));
    let taken: Vec<BackendId> = vec!["disk-b".parse().unwrap()];
    assert_eq!(BackendSpec::parse("/x/disk-b", &taken).unwrap().id.as_str(), "disk-b-2");
    let spec = BackendSpec::parse("file:///a?id=nas&domain=attic", &[]).unwrap();
    assert_eq!((spec.id.as_str(), spec.url.as_str()), ("nas", "file:///a?domain=attic"));
    for bad in ["ftp://x/y", "file:///a?colour=red", "file:///a\nb", "file:///a?id=local", "file:///a?capacity=lots"] {
        let message = BackendSpec::parse(bad, &[]).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn overlap_is_seen_through_symlinks() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    std::fs::create_dir_all(mount.join("inner")).unwrap();
    std::os::unix::fs::symlink(&mount, dir.path().join("alias")).unwrap();
    assert!(overlaps(&dir.path().join("alias/inner/new"), &mount).unwrap());
    assert!(overlaps(&mount, &dir.path().join("alias/inner")).unwrap());
    assert!(!overlaps(&dir.path().join("other"), &mount).unwrap());
}
