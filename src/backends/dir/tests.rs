use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::*;
use crate::types::cid;

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("place")
    }

    fn open(&self, create: bool) -> Result<DirBackend, BackendError> {
        DirBackend::open(&self.root(), PlaceOptions::default(), create)
    }
}

fn block(text: &str) -> Block {
    Block::raw(Bytes::copy_from_slice(text.as_bytes()))
}

fn file_of(root: &Path, block: &Block) -> PathBuf {
    let name = block.cid.to_string();
    root.join("blocks").join(blocks::shard_of(&name)).join(name)
}

fn kind<T>(result: Result<T, BackendError>) -> ErrorKind {
    result.err().unwrap().kind
}

#[tokio::test]
async fn what_was_put_is_there_when_the_place_is_opened_again() {
    let scene = Scene::new();
    let (backend, block) = (scene.open(true).unwrap(), block("kept"));
    backend.put(&block).await.unwrap();
    backend.put_name("volumes/v/1", &block.cid).await.unwrap();
    let id = backend.id();
    drop(backend);
    let again = scene.open(false).unwrap();
    assert_eq!(again.id(), id);
    assert_eq!(again.get(&block.cid, None).await.unwrap(), block.data);
    assert_eq!(again.names("").await.unwrap(), [("volumes/v/1".to_owned(), block.cid)]);
    assert_eq!(again.blocks.counter.wait(), Some(4));
    assert_eq!(again.usage().await.unwrap().used_bytes, Some(4));
    assert_eq!(again.probe().await.ok(), Some(()));
    assert_eq!(fs::read_dir(scene.root().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_place_of_format_1_is_read() {
    // The golden place is copied, since opening may make missing folders.
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/dir-1");
    let scene = Scene::new();
    copy(&golden, &scene.root());
    let backend = scene.open(false).unwrap();
    assert_eq!(backend.id().to_string(), "0d5f9c1e-5a1b-4f6e-9a52-6f2f4b8f7c11");
    let page = backend.list(None, 10).await.unwrap();
    assert_eq!(page.blocks.len(), 3);
    for (cid, _) in &page.blocks {
        let data = backend.get(cid, None).await.unwrap();
        assert_eq!(cid::verify(cid, &data), cid::Verdict::Match);
    }
    let names = backend.names("volumes/").await.unwrap();
    assert_eq!(names, [("volumes/golden/1".to_owned(), cid::of_raw(b"cairn"))]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn blocks_lie_where_the_documentation_says() {
    let scene = Scene::new();
    let backend = scene.open(true).unwrap();
    backend.put(&Block::raw(Bytes::from_static(b"cairn"))).await.unwrap();
    let name = cid::of_raw(b"cairn").to_string();
    let shard = &name[name.len() - 3..name.len() - 1];
    assert_eq!(fs::read(scene.root().join("blocks").join(shard).join(&name)).unwrap(), b"cairn");
    // Base58 has both cases; a shard has one.
    let zero = cid::v0(&cid::sha256(b"x")).to_string();
    assert!(zero.starts_with("Qm"));
    assert_eq!(blocks::shard_of(&zero), zero[43..45].to_lowercase());
}

#[tokio::test]
async fn a_missing_place_is_unavailable_and_not_made() {
    let scene = Scene::new();
    assert_eq!(kind(scene.open(false)), ErrorKind::Unavailable);
    assert!(!scene.root().exists());
    // The empty mountpoint of an unplugged disk.
    fs::create_dir(scene.root()).unwrap();
    assert_eq!(kind(scene.open(false)), ErrorKind::Unavailable);
    assert_eq!(fs::read_dir(scene.root()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_with_other_things_in_it_is_not_taken() {
    let scene = Scene::new();
    fs::create_dir(scene.root()).unwrap();
    fs::write(scene.root().join("thesis.txt"), "mine").unwrap();
    let error = scene.open(true).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("thesis.txt"), "{error}");
    assert_eq!(fs::read_dir(scene.root()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_creation_that_was_cut_short_is_finished() {
    let scene = Scene::new();
    fs::create_dir_all(scene.root().join("blocks")).unwrap();
    fs::create_dir_all(scene.root().join("lost+found")).unwrap();
    let backend = scene.open(true).unwrap();
    backend.put(&block("x")).await.unwrap();
}

#[tokio::test]
async fn empty_folders_that_a_copy_left_out_are_made_again() {
    let scene = Scene::new();
    drop(scene.open(true).unwrap());
    for folder in ["tmp", "names", "blocks"] {
        fs::remove_dir(scene.root().join(folder)).unwrap();
    }
    scene.open(false).unwrap().put(&block("x")).await.unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused_and_a_damaged_marker_named() {
    let scene = Scene::new();
    drop(scene.open(true).unwrap());
    let marker = scene.root().join("cairn-backend.json");
    fs::write(&marker, r#"{"format":2,"shape":"unknown"}"#).unwrap();
    assert_eq!(kind(scene.open(false)), ErrorKind::Unsupported);
    fs::write(&marker, "{").unwrap();
    assert_eq!(kind(scene.open(true)), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_replaced_directory_is_neither_written_nor_believed() {
    let scene = Scene::new();
    let (backend, kept) = (scene.open(true).unwrap(), block("kept"));
    backend.put(&kept).await.unwrap();
    fs::rename(scene.root(), scene.dir.path().join("moved")).unwrap();
    let absent = block("absent").cid;
    for round in 0..2 {
        let unavailable = ErrorKind::Unavailable;
        assert_eq!(kind(backend.put(&block("x")).await), unavailable, "round {round}");
        assert_eq!(kind(backend.put(&kept).await), unavailable);
        assert_eq!(kind(backend.presence(&[absent]).await), unavailable);
        assert_eq!(kind(backend.get(&absent, None).await), unavailable);
        assert_eq!(kind(backend.list(None, 10).await), unavailable);
        assert_eq!(kind(backend.names("").await), unavailable);
        assert_eq!(kind(backend.put_name("n", &absent).await), unavailable);
        assert_eq!(kind(backend.delete(&kept.cid).await), unavailable);
        assert_eq!(kind(backend.probe().await), unavailable);
        assert_eq!(kind(backend.usage().await), unavailable);
        // Then with an empty directory in its place.
        fs::create_dir_all(scene.root()).unwrap();
    }
    assert_eq!(fs::read_dir(scene.root()).unwrap().count(), 0);
    assert!(file_of(&scene.dir.path().join("moved"), &kept).exists());
}

#[tokio::test]
async fn a_file_of_the_wrong_length_is_replaced_and_counted_once() {
    let scene = Scene::new();
    let (backend, block) = (scene.open(true).unwrap(), block("whole"));
    backend.put(&block).await.unwrap();
    fs::write(file_of(&scene.root(), &block), "wh").unwrap();
    assert_eq!(backend.presence(&[block.cid]).await.unwrap(), [Presence::Present(2)]);
    backend.put(&block).await.unwrap();
    assert_eq!(backend.get(&block.cid, None).await.unwrap(), block.data);
}

#[tokio::test]
async fn what_is_no_block_is_neither_listed_nor_read() {
    let scene = Scene::new();
    let (backend, good, bad) = (scene.open(true).unwrap(), block("good"), block("bad"));
    backend.put_many(&[good.clone(), bad.clone()]).await.unwrap();
    let shard = file_of(&scene.root(), &good).parent().unwrap().to_owned();
    fs::write(shard.join(".DS_Store"), "junk").unwrap();
    fs::write(shard.join("bafybeinvalid"), "junk").unwrap();
    fs::write(shard.join(cid::of_raw(b"elsewhere").to_string()), "elsewhere").unwrap();
    fs::create_dir(scene.root().join("blocks/snapshots")).unwrap();
    let page = backend.list(None, 10).await.unwrap();
    assert_eq!(page.blocks.len(), 2);
    assert!(backend.ignored_files() >= 2);
    let path = file_of(&scene.root(), &bad);
    let huge = fs::File::create(&path).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert_eq!(kind(backend.get(&bad.cid, None).await), ErrorKind::Corrupt);
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(backend.get(&bad.cid, None).await.is_err());
    assert_eq!(backend.presence(&[bad.cid]).await.unwrap(), [Presence::Unknown]);
}

#[tokio::test]
async fn files_that_a_crash_left_go_and_those_in_use_stay() {
    let scene = Scene::new();
    let backend = scene.open(true).unwrap();
    fs::write(scene.root().join("tmp/stale"), "half").unwrap();
    let running = backend.blocks.place.write_temporary(b"in use").unwrap();
    drop(scene.open(false).unwrap());
    assert!(!scene.root().join("tmp/stale").exists());
    assert_eq!(fs::read_dir(scene.root().join("tmp")).unwrap().count(), 1);
    drop(running);
    assert_eq!(fs::read_dir(scene.root().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn two_openings_of_one_place_do_not_disturb_each_other() {
    let scene = Scene::new();
    let (one, two) = (scene.open(true).unwrap(), scene.open(false).unwrap());
    for i in 0..20 {
        let same = block(&format!("block {i}"));
        let (first, second) = tokio::join!(one.put(&same), two.put(&same));
        first.unwrap();
        second.unwrap();
        assert_eq!(one.get(&same.cid, None).await.unwrap(), same.data);
    }
    assert_eq!(two.list(None, 100).await.unwrap().blocks.len(), 20);
}

#[tokio::test]
async fn capacity_is_kept_over_openings_and_deletes() {
    let scene = Scene::new();
    let options = || PlaceOptions { capacity: Some(10), ..PlaceOptions::default() };
    let backend = DirBackend::open(&scene.root(), options(), true).unwrap();
    backend.put(&block("12345")).await.unwrap();
    assert_eq!(kind(backend.put(&block("123456")).await), ErrorKind::Full);
    drop(backend);
    let backend = DirBackend::open(&scene.root(), options(), false).unwrap();
    assert_eq!(kind(backend.put(&block("123456")).await), ErrorKind::Full);
    backend.put(&block("12345")).await.unwrap();
    let usage = backend.usage().await.unwrap();
    assert_eq!((usage.used_bytes, usage.capacity_bytes), (Some(5), Some(10)));
    assert_eq!(usage.available_bytes, Some(5));
    backend.delete(&block("12345").cid).await.unwrap();
    backend.put(&block("1234567890")).await.unwrap();
}

#[tokio::test]
async fn a_read_only_place_is_read_and_not_written() {
    let scene = Scene::new();
    let kept = block("kept");
    scene.open(true).unwrap().put(&kept).await.unwrap();
    fs::remove_dir(scene.root().join("tmp")).unwrap();
    let options = PlaceOptions { read_only: true, ..PlaceOptions::default() };
    let backend = DirBackend::open(&scene.root(), options.clone(), true).unwrap();
    assert!(backend.capabilities().read_only);
    assert_eq!(backend.get(&kept.cid, None).await.unwrap(), kept.data);
    assert_eq!(backend.presence(&[kept.cid]).await.unwrap(), [Presence::Present(4)]);
    backend.probe().await.unwrap();
    // A probe reads from the disk itself: a listing alone may come from memory.
    let marker = scene.root().join("cairn-backend.json");
    fs::rename(&marker, scene.dir.path().join("aside")).unwrap();
    assert_eq!(kind(backend.probe().await), ErrorKind::Unavailable);
    fs::rename(scene.dir.path().join("aside"), &marker).unwrap();
    backend.probe().await.unwrap();
    assert_eq!(kind(backend.put(&block("new")).await), ErrorKind::ReadOnly);
    assert_eq!(kind(backend.delete(&kept.cid).await), ErrorKind::ReadOnly);
    assert_eq!(kind(backend.put_name("n", &kept.cid).await), ErrorKind::ReadOnly);
    assert_eq!(kind(backend.delete_name("n").await), ErrorKind::ReadOnly);
    assert!(!scene.root().join("tmp").exists());
    // A place that is not there is not made read-only.
    let nowhere = scene.dir.path().join("nowhere");
    assert_eq!(kind(DirBackend::open(&nowhere, options, true)), ErrorKind::Unavailable);
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn a_name_whose_file_is_damaged_is_an_error_and_not_left_out() {
    let scene = Scene::new();
    let backend = scene.open(true).unwrap();
    backend.put_name("volumes/v/1", &block("1").cid).await.unwrap();
    fs::write(scene.root().join("names/volumes/v/2"), "").unwrap();
    assert_eq!(kind(backend.names("").await), ErrorKind::Corrupt);
    assert_eq!(backend.names("other").await.unwrap(), []);
    // One name is not the folder of another.
    assert_eq!(kind(backend.put_name("volumes", &block("1").cid).await), ErrorKind::Invalid);
}

#[tokio::test]
async fn two_directories_of_one_disk_share_a_failure_domain_unless_told() {
    let scene = Scene::new();
    let one = scene.open(true).unwrap().capabilities().failure_domain;
    let second = scene.dir.path().join("second");
    let two = DirBackend::open(&second, PlaceOptions::default(), true).unwrap();
    assert_eq!(one, two.capabilities().failure_domain);
    assert!(one.starts_with("device:"), "{one}");
    let options = PlaceOptions { domain: Some("attic".into()), ..PlaceOptions::default() };
    let named = DirBackend::open(&second, options, false).unwrap();
    assert_eq!(named.capabilities().failure_domain, "domain:attic");
}

#[test]
fn an_errno_becomes_the_kind_that_retry_and_health_act_on() {
    use rustix::io::Errno;
    for (errno, kind, temporary) in [
        (Errno::NOENT, ErrorKind::Unavailable, true),
        (Errno::ACCESS, ErrorKind::Denied, false),
        (Errno::PERM, ErrorKind::Denied, false),
        (Errno::ROFS, ErrorKind::ReadOnly, false),
        (Errno::NOSPC, ErrorKind::Full, true),
        (Errno::DQUOT, ErrorKind::Full, true),
        (Errno::STALE, ErrorKind::Unavailable, true),
        (Errno::IO, ErrorKind::Other, true),
    ] {
        let error = errno::explain(Path::new("/mnt/b"), "write in", errno);
        assert_eq!((error.kind, error.is_temporary()), (kind, temporary), "{errno}");
        assert!(error.message.contains("/mnt/b") && error.message.contains("; "), "{error}");
    }
}

#[test]
fn a_directory_that_may_not_be_entered_is_denied() {
    use std::os::unix::fs::PermissionsExt;

    use rustix::thread::{CapabilitySet, CapabilitySets};
    let scene = Scene::new();
    drop(scene.open(true).unwrap());
    fs::set_permissions(scene.root(), fs::Permissions::from_mode(0o000)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Root may enter everything, unless its thread gives that up.
            rustix::thread::set_capabilities(
                None,
                CapabilitySets {
                    effective: CapabilitySet::empty(),
                    permitted: CapabilitySet::empty(),
                    inheritable: CapabilitySet::empty(),
                },
            )
            .unwrap();
            assert_eq!(kind(scene.open(false)), ErrorKind::Denied);
        });
    });
    fs::set_permissions(scene.root(), fs::Permissions::from_mode(0o700)).unwrap();
}
