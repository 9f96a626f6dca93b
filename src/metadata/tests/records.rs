//! Stored forms: each is pinned by a file that is never edited.

use std::fmt::Debug;
use std::path::PathBuf;

use super::super::records::{OrderRecord, Stored, decode, encode};
use super::super::{
    BackendRecord, ContentRecord, CopyRecord, CopyState, DentryRecord, EventRecord, InodeRecord,
    MetadataError, MoveKind, MoveRecord, NoteRecord, OrphanRecord, PinState, PolicyRecord,
    QueueRecord, Severity, StagedRecord, Stats, TryRecord, UsageRecord, VerifyMethod,
};
use super::{at, name};
use crate::types::{BackendId, FileKind, Ino, cid};

fn golden(version: u8, file: &str) -> PathBuf {
    let folder = format!("tests/fixtures/golden/records-{version}");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).join(file)
}

/// The record is written as in the file, and the file reads as the record. With
/// `CAIRN_WRITE_GOLDEN` set, a file that is missing is made; none is replaced.
fn pinned<T: Stored + PartialEq + Debug>(file: &str, record: &T) {
    let path = golden(T::VERSION, file);
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, encode(record)).unwrap();
    }
    reads(T::VERSION, file, record);
    let stored = std::fs::read(&path).unwrap();
    assert_eq!(encode(record), stored, "{file} is written in another form");
}

fn reads<T: Stored + PartialEq + Debug>(version: u8, file: &str, record: &T) {
    let stored = std::fs::read(golden(version, file)).unwrap();
    assert_eq!(&decode::<T>(b"golden", &stored).unwrap(), record, "{file} of version {version}");
}

fn inode() -> InodeRecord {
    InodeRecord {
        kind: FileKind::File,
        mode: 0o6755,
        uid: 1000,
        gid: u32::MAX,
        rdev: 0,
        nlink: 2,
        size: 1 << 40,
        atime: at(1_700_000_000),
        mtime: at(-1),
        ctime: at(i64::MAX),
        btime: at(i64::MIN),
        content: Some(cid::of_raw(b"content")),
        profile: "unixfs-v0-2015".into(),
        target: Vec::new(),
        parent: Ino(7),
        has_xattrs: true,
        policy: "min=2,target=3,max=5".into(),
        entries: 0,
        next_cookie: 0,
        version: 42,
        holes: 3 << 38,
    }
}

fn content() -> ContentRecord {
    let copy = |backend: &str, state, method| CopyRecord {
        backend: backend.parse::<BackendId>().unwrap(),
        state,
        at: at(1_700_000_000),
        method,
    };
    ContentRecord {
        size: 5 << 40,
        tsize: (5 << 40) + 4096,
        blocks: 5_242_881,
        refs: 3,
        profile: "unixfs-v1-2025".into(),
        min: 2,
        target: 3,
        max: 5,
        pin: PinState::BelowTarget,
        copies: vec![
            copy("local", CopyState::Verified, VerifyMethod::Written),
            copy("b-2.eu", CopyState::Claimed, VerifyMethod::None),
            copy("old", CopyState::Lost, VerifyMethod::ReadBack),
            copy("bad", CopyState::Corrupt, VerifyMethod::Service),
            copy("left", CopyState::Released, VerifyMethod::Audit),
        ],
        holes: 7 << 20,
        policies: vec![1, 300],
        created_s: 1_700_000_000,
        accessed_s: 1_700_086_400,
    }
}

#[test]
fn every_record_keeps_its_stored_form() {
    let inode = inode();
    pinned("inode-file", &inode);
    let directory = InodeRecord {
        kind: FileKind::Directory,
        content: None,
        entries: 300,
        next_cookie: 316,
        ..inode.clone()
    };
    pinned("inode-directory", &directory);
    let link = InodeRecord {
        kind: FileKind::Symlink,
        content: None,
        target: b"../\xff target".to_vec(),
        ..inode.clone()
    };
    pinned("inode-symlink", &link);
    let device = InodeRecord { kind: FileKind::BlockDevice, rdev: 0x0803, content: None, ..inode };
    pinned("inode-device", &device);
    pinned("dentry", &DentryRecord { ino: Ino(1 << 40), kind: FileKind::Fifo, cookie: 16 });
    pinned("order", &OrderRecord { name: name("n\n"), ino: Ino(9), kind: FileKind::Socket });
    pinned("content", &content());
    let queue = QueueRecord {
        since: at(5),
        attempts: 3,
        not_before: at(60),
        last_error: "backend b2: no route to host".into(),
        cancelled: true,
        verified: 2,
        tries: vec![TryRecord {
            backend: "b2".parse().unwrap(),
            attempts: 2,
            not_before: at(60),
            error: "no route to host".into(),
        }],
    };
    pinned("policy", &PolicyRecord { expression: "@target=4;archive,min=3".into() });
    pinned("queue", &queue);
    let older =
        QueueRecord { verified: QueueRecord::NOT_COUNTED, tries: Vec::new(), ..queue.clone() };
    reads(2, "queue", &older);
    reads(1, "queue", &QueueRecord { cancelled: false, ..older });
    let staged = StagedRecord {
        size: 3 << 20,
        base: Some(cid::of_dag_pb(b"base")),
        base_size: 2 << 20,
        mtime: at(9),
        pages: Vec::new(),
    };
    pinned("staged", &staged);
    let event = EventRecord {
        at: at(11),
        kind: "copy_corrupt".into(),
        subject: "bafy".into(),
        detail: "leaf 3".into(),
        severity: Severity::Warning,
        backend: "b-2.eu".into(),
        count: 300,
    };
    pinned("event", &event);
    pinned("alarms", &NoteRecord { json: b"[]".to_vec() });
    let stats = Stats {
        files: 1,
        directories: 2,
        bytes: 3,
        pins: 4,
        pins_by_state: [5, 6, 7, 8],
        unverified: 9,
        queued: 10,
        failed: 11,
        backends: [("local".parse().unwrap(), (12, 13))].into(),
        corrupt: 14,
        lost: 15,
        trusted: [("local".parse().unwrap(), (16, 300))].into(),
        newest: [("local".parse().unwrap(), at(17))].into(),
    };
    pinned("stats", &stats);
    let older = Stats { trusted: [].into(), newest: [].into(), ..stats };
    reads(2, "stats", &older);
    reads(1, "stats", &Stats { corrupt: 0, lost: 0, ..older });
    pinned("number", &u64::MAX);
    pinned("usage", &UsageRecord { bytes: 5 << 40, inodes: 1_000_000, counted: true });
    let moves = MoveRecord {
        kind: MoveKind::Migrate,
        from: Some("b-2.eu".parse().unwrap()),
        to: Some("new".parse().unwrap()),
        below: Some(Ino(7)),
        since: at(1_700_000_000),
        contents: 3,
        bytes: 1 << 40,
    };
    pinned("move", &moves);
    let backend = BackendRecord {
        away_since: Some(at(1_700_000_000)),
        given_up: true,
        trusted_since: at(1_700_000_900),
        draining: true,
        read_only: false,
        paused: true,
        domain: "device:8:1".into(),
    };
    pinned("backend", &backend);
    let before = BackendRecord { domain: String::new(), ..backend };
    reads(2, "backend", &before);
    reads(1, "backend", &BackendRecord { paused: false, ..before });
    pinned("orphan", &OrphanRecord { quotas: vec![Ino(1 << 40), Ino(1)] });
}

/// As versions 1 and 2 had it.
fn content_before(holes: u64) -> ContentRecord {
    let mut record =
        ContentRecord { holes, policies: Vec::new(), created_s: 0, accessed_s: 0, ..content() };
    record.copies.pop();
    record
}

#[test]
fn a_content_of_version_2_is_read_without_policies_and_times() {
    reads(2, "content", &content_before(7 << 20));
}

#[test]
fn rows_of_version_1_are_read_without_what_came_later() {
    let inode = InodeRecord { holes: 0, ..inode() };
    reads(1, "inode-file", &inode);
    let device = InodeRecord { kind: FileKind::BlockDevice, rdev: 0x0803, content: None, ..inode };
    reads(1, "inode-device", &device);
    reads(1, "content", &content_before(0));
    let event = EventRecord {
        at: at(11),
        kind: "copy_corrupt".into(),
        subject: "bafy".into(),
        detail: "leaf 3".into(),
        severity: Severity::Info,
        backend: String::new(),
        count: 1,
    };
    reads(1, "event", &event);
}

#[test]
fn damage_in_a_row_of_version_1_is_an_error() {
    let good = std::fs::read(golden(1, "content")).unwrap();
    for cut in 1..good.len() {
        assert!(decode::<ContentRecord>(b"C", &good[..cut]).is_err(), "cut at {cut}");
    }
    let mut long = good;
    long.push(0);
    assert!(decode::<ContentRecord>(b"C", &long).is_err());
}

#[test]
fn a_record_of_a_newer_version_is_told_from_damage() {
    let mut stored = encode(&content());
    stored[0] = 4;
    let error = decode::<ContentRecord>(b"C\x01", &stored).unwrap_err();
    assert!(matches!(error, MetadataError::TooNew { found: 4, supported: 3 }), "{error}");
}

#[test]
fn damage_is_an_error_that_names_the_key() {
    let good = encode(&content());
    let mut long = good.clone();
    long.push(0);
    for bad in [&good[..good.len() - 1], &good[..1], &[], &[0, 1, 2], &long] {
        let error = decode::<ContentRecord>(b"C\xff", bad).unwrap_err();
        assert!(matches!(&error, MetadataError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("C\\xff"), "{error}");
    }
}

#[test]
fn no_cut_or_flipped_record_panics() {
    let good = encode(&content());
    for index in 0..good.len() {
        assert!(decode::<ContentRecord>(b"C", &good[..index]).is_err(), "cut at {index}");
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[index] ^= 1 << bit;
            let _decoded = decode::<ContentRecord>(b"C", &bad);
        }
    }
}
