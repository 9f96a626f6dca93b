use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::check::fsck;
use super::collect::Collector;
use super::{CreateOptions, Volume, VolumeMode};
use crate::content::Profile;
use crate::metadata::{EventKind, NewNode};
use crate::replication::EventFiles;
use crate::store::IndexChange;
use crate::types::{FileKind, Ino, Name, Timestamp};
use crate::vfs::OpenOptions;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(backends: &[&str], policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &&str| format!("file://{}/{name}?domain={name}", dir.path().display());
        let options = CreateOptions {
            backends: backends.iter().map(url).collect(),
            policy: policy.parse().unwrap(),
            profile: Profile::UNIXFS_V1_2025,
            local: crate::config::LocalChange::default(),
        };
        Volume::create(&dir.path().join("volume"), &options).unwrap();
        Self { dir }
    }

    fn open(&self) -> Volume {
        Volume::open(&self.dir.path().join("volume"), &VolumeMode::default()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Bytes on the disk below `dir`, and how many files.
fn used(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut files) = (0, 0);
    for entry in walkdir(dir) {
        bytes += entry.blocks() * 512;
        files += 1;
    }
    (bytes, files)
}

fn walkdir(dir: &Path) -> Vec<std::fs::Metadata> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(walkdir(&entry.path()));
        } else {
            found.push(entry.metadata().unwrap());
        }
    }
    found
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn ino_of(volume: &Volume, file: &str) -> Ino {
    if let Ok((ino, _)) = volume.vfs.lookup(Ino::ROOT, &name(file)) {
        return ino;
    }
    let node = NewNode {
        kind: FileKind::File,
        mode: 0o644,
        umask: None,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Vec::new(),
        now: Timestamp::default(),
    };
    volume.vfs.create(Ino::ROOT, &name(file), &node).unwrap().ino
}

/// Writes at `offset`; to nothing but that when `truncate`.
fn write(volume: &Volume, file: &str, offset: u64, data: &[u8], truncate: bool) {
    let options = OpenOptions { write: true, truncate, ..OpenOptions::default() };
    let handle = volume.vfs.open_file(ino_of(volume, file), options).unwrap();
    volume.vfs.write(handle, offset, data).unwrap();
    volume.vfs.flush(handle).unwrap();
    volume.vfs.release(handle).unwrap();
}

fn read(volume: &Volume, file: &str) -> Vec<u8> {
    let (ino, row) = volume.vfs.lookup(Ino::ROOT, &name(file)).unwrap();
    let handle = volume.vfs.open_file(ino, OpenOptions::default()).unwrap();
    let mut data = vec![0; row.size as usize];
    let mut at = 0;
    while at < data.len() {
        let count = volume.vfs.read(handle, at as u64, &mut data[at..]).unwrap();
        assert!(count > 0, "{file} ends at {at}");
        at += count;
    }
    volume.vfs.release(handle).unwrap();
    data
}

fn collector(volume: &Volume) -> Collector {
    Collector::new(volume, volume.shutdown.clone())
}

fn is_clean(volume: &Volume) -> serde_json::Value {
    fsck(volume, false, true, true, &mut |_| {}).unwrap()
}

#[test]
fn removed_and_overwritten_files_give_their_bytes_back_and_backends_keep_theirs() {
    let world = World::new(&["b"], "min=1,target=2,max=3");
    let volume = world.open();
    write(&volume, "large", 0, &random(1, 8 << 20), true);
    write(&volume, "changed", 0, &random(2, 8 << 20), true);
    write(&volume, "kept", 0, &random(3, 3 << 20), true);
    for n in 0..400 {
        write(&volume, &format!("small-{n}"), 0, &random(100 + n, 60_000), true);
    }
    assert!(volume.drain(None, &mut |_| {}).unwrap());
    let store = world.path("volume/store");
    let (before, (backend_bytes, backend_files)) = (used(&store).0, used(&world.path("b")));
    volume.vfs.unlink(Ino::ROOT, &name("large")).unwrap();
    write(&volume, "changed", 1 << 20, &random(4, 2 << 20), false);
    for n in (0..400).filter(|n| n % 8 != 0) {
        volume.vfs.unlink(Ino::ROOT, &name(&format!("small-{n}"))).unwrap();
    }
    assert!(volume.drain(None, &mut |_| {}).unwrap());
    let waiting = is_clean(&volume)["reclaimable_bytes"].as_u64().unwrap();
    assert!(waiting > 16 << 20, "{waiting}");
    while collector(&volume).collect().unwrap().unwrap().more {}
    let after = used(&store).0;
    // 8 MiB of `large`, 2 of `changed` (which came again), 20 of the small files,
    // less 8 that are reserved for the open pack.
    assert!(after + (21 << 20) <= before, "{before} to {after}");
    assert_eq!(is_clean(&volume)["reclaimable_bytes"], 0);
    // Every block that was there is there still.
    let now = used(&world.path("b"));
    assert!(now.0 >= backend_bytes && now.1 >= backend_files, "{now:?}");
    let mut changed = random(2, 8 << 20);
    changed[1 << 20..3 << 20].copy_from_slice(&random(4, 2 << 20));
    volume.close().unwrap();
    std::fs::rename(world.path("b"), world.path("away")).unwrap();
    let volume = world.open();
    assert!(read(&volume, "changed") == changed);
    assert!(read(&volume, "kept") == random(3, 3 << 20));
    for n in (0..400).filter(|n| n % 8 == 0) {
        assert!(read(&volume, &format!("small-{n}")) == random(100 + n, 60_000));
    }
    volume.close().unwrap();
}

#[test]
fn nothing_that_lives_goes_whatever_happens_beside_a_collection() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    // No other copy could hide a loss.
    let world = World::new(&[], "min=1,target=1,max=1");
    let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for life in 0..2 {
        let volume = world.open();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let collecting = scope.spawn(|| {
                let collector = collector(&volume);
                let mut removed = 0;
                while !done.load(Ordering::Relaxed) {
                    if let Some(report) = collector.collect().unwrap() {
                        removed += report.blocks_removed;
                    }
                }
                removed
            });
            let workers: Vec<_> = (0..3)
                .map(|worker| {
                    let prefix = format!("w{worker}-");
                    let mine: BTreeMap<String, Vec<u8>> = expected
                        .iter()
                        .filter(|(file, _)| file.starts_with(&prefix))
                        .map(|(file, data)| (file.clone(), data.clone()))
                        .collect();
                    let volume = &volume;
                    let seed = seed ^ (life * 100 + worker);
                    scope.spawn(move || churn(volume, &prefix, mine, seed))
                })
                .collect();
            let ended: Vec<_> =
                workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::Relaxed);
            expected = ended.into_iter().flat_map(Result::unwrap).collect();
            assert!(collecting.join().unwrap() > 0, "nothing was ever collected");
        });
        is_clean(&volume);
        volume.close().unwrap();
        let volume = world.open();
        for (file, data) in &expected {
            assert!(read(&volume, file) == *data, "{file} of life {life}, seed {seed}");
        }
        collector(&volume).collect().unwrap().unwrap();
        is_clean(&volume);
        volume.close().unwrap();
    }
}

/// Random work on files of one's own; what they hold then.
fn churn(
    volume: &Volume,
    prefix: &str,
    mut files: BTreeMap<String, Vec<u8>>,
    seed: u64,
) -> BTreeMap<String, Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..150 {
        let file = format!("{prefix}{}", rng.u8(0..8));
        // Few contents, so that they come again after they were given up.
        let size = *rng.choice(&[3000, 70_000, 200_000, 2_500_000]).unwrap();
        let data = random(rng.u64(0..6), size);
        match rng.u8(0..10) {
            0..4 => {
                write(volume, &file, 0, &data, true);
                files.insert(file, data);
            }
            4..6 => {
                if let Some(old) = files.get_mut(&file).filter(|old| old.len() > 10) {
                    let at = rng.usize(0..old.len() - 5);
                    write(volume, &file, at as u64, b"12345", false);
                    old[at..at + 5].copy_from_slice(b"12345");
                }
            }
            6 | 7 => {
                if files.remove(&file).is_some() {
                    volume.vfs.unlink(Ino::ROOT, &name(&file)).unwrap();
                }
            }
            8 => {
                // A copy that shares its content, of a file that then goes.
                let Some(old) = files.get(&file).cloned() else { continue };
                let to = format!("{prefix}copy-{}", rng.u8(0..4));
                write(volume, &to, 0, b"", true);
                let open = |file: &str, write| {
                    let options = OpenOptions { write, ..OpenOptions::default() };
                    volume.vfs.open_file(ino_of(volume, file), options).unwrap()
                };
                let (from, into) = (open(&file, false), open(&to, true));
                volume.vfs.unlink(Ino::ROOT, &name(&file)).unwrap();
                let mut at = 0;
                while at < old.len() as u64 {
                    at += volume.vfs.copy_range((from, at), (into, at), old.len() as u64).unwrap();
                }
                for handle in [from, into] {
                    volume.vfs.flush(handle).unwrap();
                    volume.vfs.release(handle).unwrap();
                }
                files.remove(&file);
                files.insert(to, old);
            }
            _ => {
                volume.vfs.link_of(Ino::ROOT).unwrap();
            }
        }
    }
    files
}

#[test]
fn a_node_that_cannot_be_read_stops_the_collection() {
    let world = World::new(&[], "min=1,target=1,max=1");
    let volume = world.open();
    write(&volume, "damaged", 0, &random(1, 3 << 20), true);
    write(&volume, "gone", 0, &random(2, 3 << 20), true);
    let (_, row) = volume.vfs.lookup(Ino::ROOT, &name("damaged")).unwrap();
    volume.store.apply(&[IndexChange::Remove(row.content.unwrap())]).unwrap();
    volume.vfs.unlink(Ino::ROOT, &name("gone")).unwrap();
    let before = used(&world.path("volume/store")).0;
    assert!(collector(&volume).collect().is_err());
    assert_eq!(used(&world.path("volume/store")).0, before);
    let rows = volume.namespace.contents_page(None, 10).unwrap();
    assert_eq!(rows.len(), 2, "rows go only with a complete mark");
    volume.close().unwrap();
}

#[test]
fn a_content_whose_last_reference_went_is_not_shared_but_copied() {
    let world = World::new(&[], "min=1,target=1,max=1");
    let volume = world.open();
    write(&volume, "a", 0, &random(1, 100_000), true);
    write(&volume, "b", 0, b"", true);
    let (a, b) = (ino_of(&volume, "a"), ino_of(&volume, "b"));
    let root = volume.namespace.inode(a).unwrap().content.unwrap();
    let shared = volume.namespace.content(&root).unwrap().unwrap();
    volume.vfs.unlink(Ino::ROOT, &name("a")).unwrap();
    let inode = volume.namespace.inode(b).unwrap();
    let commit = crate::metadata::ContentCommit {
        shared: true,
        ino: b,
        version: inode.version,
        root: Some(root),
        record: shared,
        enqueue: false,
        size: 100_000,
        mtime: Timestamp::default(),
    };
    assert_eq!(volume.namespace.commit_contents(&[commit]).unwrap(), [false]);
    volume.close().unwrap();
}

#[test]
fn long_work_holds_a_collection_off() {
    let world = World::new(&[], "min=1,target=1,max=1");
    let volume = world.open();
    write(&volume, "gone", 0, &random(2, 3 << 20), true);
    let hold = volume.store.hold();
    volume.vfs.unlink(Ino::ROOT, &name("gone")).unwrap();
    assert_eq!(collector(&volume).collect().unwrap(), None);
    drop(hold);
    assert!(collector(&volume).collect().unwrap().unwrap().bytes_freed >= 3 << 20);
    volume.close().unwrap();
}

#[test]
fn a_damaged_event_file_is_found_and_brought_back_from_a_backend() {
    let world = World::new(&["a"], "min=1,target=2");
    let volume = world.open();
    let check = |repair| fsck(&volume, repair, false, false, &mut |_| {});
    volume.events.emit(EventKind::PolicySet, "volume", "target=2");
    volume.events.flush();
    assert!(volume.log.seal().unwrap());
    check(false).unwrap();
    let path = volume.log.dir().join(volume.log.files()[0].name());
    let whole = std::fs::read(&path).unwrap();
    let harm = || std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    harm();
    // No backend has it yet: it is told, and what is left of it stays.
    let failure = check(true).unwrap_err();
    for words in ["events: ", "stays damaged", "no backend in reach"] {
        assert!(failure.message.contains(words), "{failure:?}");
    }
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() / 2);
    std::fs::write(&path, &whole).unwrap();
    let (registry, stop) = (Arc::clone(&volume.registry), volume.shutdown.clone());
    let files = EventFiles::new(registry, volume.bridge.clone(), stop, volume.identity.id);
    files.bring(&volume.log);
    harm();
    assert!(check(false).unwrap_err().message.contains("--repair"));
    assert_eq!(check(true).unwrap()["repaired"], 1);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    check(false).unwrap();
}
