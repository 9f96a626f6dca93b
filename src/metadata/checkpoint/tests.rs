use proptest::prelude::*;

use super::super::{
    Change, ContentRecord, CopyRecord, CopyState, DentryRecord, InodeRecord, PinState, VerifyMethod,
};
use super::*;
use crate::types::{BackendId, FileKind, Ino, Name, Timestamp, cid};

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0u32..1_000_000_000)
        .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
}

fn inode() -> impl Strategy<Value = InodeRecord> {
    (
        (0u32..0o10000, any::<u32>(), any::<u32>(), any::<u64>(), time(), time()),
        proptest::option::of(any::<[u8; 4]>()),
        proptest::collection::vec(any::<u8>(), 0..20),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|((mode, uid, rdev, size, atime, mtime), content, target, has_xattrs, n)| {
            InodeRecord {
                kind: if n % 2 == 0 { FileKind::File } else { FileKind::CharDevice },
                mode,
                uid,
                gid: uid ^ 1,
                rdev,
                nlink: 3,
                size,
                atime,
                mtime,
                ctime: atime,
                btime: mtime,
                content: content.map(|bytes| cid::of_raw(&bytes)),
                profile: "unixfs-v1-2025".into(),
                target,
                parent: Ino(n),
                has_xattrs,
                policy: "min=1".into(),
                entries: n,
                next_cookie: n / 2,
                version: n / 3,
                holes: size / 2,
            }
        })
}

fn content(n: u8) -> ContentRecord {
    ContentRecord {
        size: u64::from(n) << 40,
        tsize: 5,
        blocks: 7,
        refs: 1,
        profile: String::new(),
        min: 2,
        target: 3,
        max: 5,
        pin: PinState::BelowTarget,
        copies: (0..n % 4)
            .map(|i| CopyRecord {
                backend: format!("b{i}").parse::<BackendId>().unwrap(),
                state: CopyState::Claimed,
                at: Timestamp { seconds: i64::from(i), nanoseconds: 9 },
                method: VerifyMethod::Written,
            })
            .collect(),
        holes: u64::from(n),
        policies: Vec::new(),
        created_s: i64::from(n),
        accessed_s: -i64::from(n),
    }
}

fn change() -> impl Strategy<Value = Change> {
    let name = || {
        proptest::collection::vec(1u8..=255, 1..6).prop_filter_map("a name", |b| Name::new(b).ok())
    };
    prop_oneof![
        (0u64..9, proptest::option::of(inode()))
            .prop_map(|(ino, row)| Change::Inode(Ino(ino), row)),
        (0u64..4, name(), any::<bool>()).prop_map(|(parent, name, put)| {
            let row =
                put.then_some(DentryRecord { ino: Ino(7), kind: FileKind::File, cookie: u64::MAX });
            Change::Dentry(Ino(parent), name, row)
        }),
        (0u64..4, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)))
            .prop_map(|(ino, value)| Change::Xattr(Ino(ino), b"user.\xff".to_vec(), value)),
        (0u8..9, any::<bool>())
            .prop_map(|(n, put)| Change::Content(cid::of_raw(&[n]), put.then(|| content(n)))),
    ]
}

type Rows = std::collections::BTreeMap<String, Change>;

fn apply(rows: &mut Rows, change: &Change) {
    let (key, gone) = match change {
        Change::Inode(ino, row) => (format!("i{ino}"), row.is_none()),
        Change::Dentry(parent, name, row) => (format!("d{parent}{name:?}"), row.is_none()),
        Change::Xattr(ino, name, row) => (format!("x{ino}{name:?}"), row.is_none()),
        Change::Content(root, row) => (format!("c{root}"), row.is_none()),
        Change::Event(..) => return,
    };
    if gone {
        rows.remove(&key);
    } else {
        rows.insert(key, change.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn base_and_deltas_give_the_rows_that_went_in(
        base in proptest::collection::vec(change(), 0..30),
        deltas in proptest::collection::vec(proptest::collection::vec(change(), 1..12), 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = Rows::new();
        base.iter().for_each(|change| apply(&mut rows, change));
        let mut writer = BaseWriter::create(dir.path(), 1).unwrap();
        for change in rows.values() {
            writer.push(change).unwrap();
        }
        writer.finish().unwrap();
        let mut paths = Vec::new();
        for (index, delta) in deltas.iter().enumerate() {
            let path = dir.path().join(format!("delta-{index}.parquet"));
            let mut writer = DeltaWriter::create(path.clone(), index as u64).unwrap();
            for change in delta {
                apply(&mut rows, change);
                writer.push(change).unwrap();
            }
            writer.finish().unwrap();
            paths.push(path);
        }
        let mut read = Rows::new();
        for change in load_checkpoint(dir.path(), &paths).unwrap() {
            apply(&mut read, &change.unwrap());
        }
        prop_assert_eq!(read, rows);
    }
}

#[test]
fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    BaseWriter::create(dir.path(), 1).unwrap().finish().unwrap();
    std::fs::write(dir.path().join("inodes.parquet"), b"PAR1 nothing").unwrap();
    let error = load_checkpoint(dir.path(), &[]).err().unwrap().to_string();
    assert!(error.contains("inodes.parquet is damaged"), "{error}");
}
