//! The stored form of a checkpoint, pinned by files that are never edited.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::super::{
    Change, ContentRecord, CopyRecord, CopyState, DentryRecord, EventRecord, InodeRecord, PinState,
    Severity, VerifyMethod,
};
use super::*;
use crate::content::{Profile, import_file};
use crate::types::{Cid, FileKind, Ino, Name, Timestamp, cid};

const BASE: u64 = 41;
const DELTAS: [u64; 2] = [42, 44];

fn golden(version: u64) -> PathBuf {
    let folder = format!("tests/fixtures/golden/checkpoint-{version}");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// `holes` came in version 2, the times of contents in version 3; `severity`, `backend`
/// and `count` of events in 4.
fn of_version(version: u64, mut rows: Vec<Change>) -> Vec<Change> {
    for row in &mut rows {
        match row {
            Change::Inode(_, Some(inode)) if version < 2 => inode.holes = 0,
            Change::Content(_, Some(record)) => {
                if version < 2 {
                    record.holes = 0;
                }
                if version < 3 {
                    (record.created_s, record.accessed_s) = (0, 0);
                }
            }
            Change::Event(_, event) if version < 4 => {
                event.severity = Severity::Info;
                event.backend.clear();
                event.count = 1;
            }
            _ => {}
        }
    }
    rows
}

fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
    Timestamp { seconds, nanoseconds }
}

fn inode(ino: u64, kind: FileKind) -> Change {
    let content = (kind == FileKind::File && ino != 13).then(|| cid::of_raw(&ino.to_le_bytes()));
    let directory = kind == FileKind::Directory;
    let record = InodeRecord {
        kind,
        mode: 0o4755,
        uid: 1000,
        gid: u32::MAX,
        rdev: if kind == FileKind::BlockDevice { 0x0803 } else { 0 },
        nlink: if ino == 10 { 2 } else { 1 },
        size: if content.is_some() { 5 << 40 } else { 0 },
        atime: at(1_700_000_000, 1),
        mtime: at(-1, 999_999_999),
        ctime: at(i64::MAX, 0),
        btime: at(i64::MIN, 2),
        content,
        profile: if ino == 10 { "unixfs-v0-2015".into() } else { String::new() },
        target: if kind == FileKind::Symlink { b"../\xff target".to_vec() } else { Vec::new() },
        parent: Ino(1),
        has_xattrs: ino == 10,
        policy: if directory { "min=1,target=2".into() } else { String::new() },
        entries: if directory { 8 } else { 0 },
        next_cookie: if directory { 24 } else { 0 },
        version: ino,
        holes: if content.is_some() { 3 << 40 } else { 0 },
    };
    Change::Inode(Ino(ino), Some(record))
}

fn dentry(name: &[u8], row: Option<(u64, FileKind)>) -> Change {
    let row = row.map(|(ino, kind)| DentryRecord { ino: Ino(ino), kind, cookie: 16 + ino });
    Change::Dentry(Ino(1), Name::new(name).unwrap(), row)
}

fn xattr(name: &[u8], value: Option<&[u8]>) -> Change {
    Change::Xattr(Ino(10), name.to_vec(), value.map(<[u8]>::to_vec))
}

fn copy(backend: &str, state: CopyState, method: VerifyMethod) -> CopyRecord {
    CopyRecord { backend: backend.parse().unwrap(), state, at: at(1_700_000_001, 7), method }
}

fn content(seed: u64, pin: PinState, copies: Vec<CopyRecord>) -> Change {
    let record = ContentRecord {
        size: 5 << 40,
        tsize: (5 << 40) + 4096,
        blocks: 5_242_881,
        refs: 3,
        profile: "unixfs-v1-2025".into(),
        min: 2,
        target: 3,
        max: 255,
        pin,
        copies,
        holes: seed << 20,
        policies: Vec::new(),
        created_s: 1_700_000_000,
        accessed_s: -1,
    };
    Change::Content(cid::of_raw(&seed.to_le_bytes()), Some(record))
}

fn event(number: u64) -> Change {
    let event = EventRecord {
        at: at(11, 12),
        kind: "copy_corrupt".into(),
        subject: "bafy".into(),
        detail: "leaf 3".into(),
        severity: Severity::Warning,
        backend: if number == 1 { String::new() } else { "b-2.eu".into() },
        count: number,
    };
    Change::Event(number, event)
}

/// In the order of the keys, as the tree gives them; events last.
fn base_rows() -> Vec<Change> {
    use FileKind::{BlockDevice, CharDevice, Directory, Fifo, File, Socket, Symlink};
    let kinds = [File, Symlink, Fifo, File, Socket, CharDevice, BlockDevice];
    let mut rows = vec![inode(1, Directory)];
    rows.extend((10..).zip(kinds).map(|(ino, kind)| inode(ino, kind)));
    rows.extend((10..).zip(kinds).map(|(ino, kind)| {
        let name = [b"a\xffb".as_slice(), b"b\n", b"c", "d\u{fffd}é".as_bytes(), b"e", b"f", b"g"];
        dentry(name[usize::try_from(ino - 10).unwrap()], Some((ino, kind)))
    }));
    rows.push(dentry(b"second link", Some((10, File))));
    rows.push(xattr(b"user.empty", Some(b"")));
    rows.push(xattr(b"user.\xfe", Some(b"\0\xff value")));
    let copies = vec![
        copy("b-2.eu", CopyState::Claimed, VerifyMethod::None),
        copy("bad", CopyState::Corrupt, VerifyMethod::Service),
        copy("local", CopyState::Verified, VerifyMethod::Written),
        copy("old", CopyState::Lost, VerifyMethod::ReadBack),
    ];
    let mut contents = vec![
        content(10, PinState::BelowTarget, copies),
        content(20, PinState::BelowMin, Vec::new()),
        content(30, PinState::AtTarget, Vec::new()),
        content(
            40,
            PinState::OverMax,
            vec![copy("local", CopyState::Verified, VerifyMethod::ReadBack)],
        ),
    ];
    contents.sort_by_key(|change| match change {
        Change::Content(root, _) => root.to_bytes(),
        _ => Vec::new(),
    });
    rows.extend(contents);
    rows.extend([event(1), event(2)]);
    rows
}

fn delta_rows() -> [Vec<Change>; 2] {
    let local = || vec![copy("local", CopyState::Verified, VerifyMethod::Written)];
    [
        vec![
            inode(11, FileKind::Symlink),
            Change::Inode(Ino(12), None),
            inode(17, FileKind::File),
            dentry(b"c", None),
            dentry(b"new", Some((17, FileKind::File))),
            xattr(b"user.empty", None),
            xattr(b"user.new", Some(b"1")),
            content(17, PinState::BelowMin, Vec::new()),
            content(10, PinState::BelowTarget, local()),
            Change::Content(cid::of_raw(&30u64.to_le_bytes()), None),
            event(3),
        ],
        // What was removed comes back, what came is removed.
        vec![
            Change::Inode(Ino(17), None),
            dentry(b"c", Some((10, FileKind::File))),
            dentry(b"new", None),
            xattr(b"user.empty", Some(b"again")),
            content(17, PinState::AtTarget, local()),
        ],
    ]
}

fn entry(file: &WrittenFile, sequence: u64) -> FileEntry {
    let link =
        import_file(&Profile::UNIXFS_V1_2025, &mut File::open(&file.path).unwrap(), &mut |_, _| {
            Ok(())
        });
    FileEntry {
        table: file.table.clone(),
        cid: link.unwrap().cid.to_string(),
        bytes: file.bytes,
        rows: file.rows,
        sequence,
    }
}

/// Writes the checkpoint of the rows above into `dir`.
fn write(dir: &Path) -> Manifest {
    let base = dir.join(format!("base-{BASE:012}"));
    fs::create_dir_all(&base).unwrap();
    let mut writer = BaseWriter::create(&base, BASE).unwrap();
    base_rows().iter().for_each(|change| writer.push(change).unwrap());
    let files = writer.finish().unwrap().iter().map(|file| entry(file, BASE)).collect();
    let mut deltas = Vec::new();
    for (sequence, rows) in DELTAS.into_iter().zip(delta_rows()) {
        let path = dir.join(format!("delta-{sequence:012}.parquet"));
        let mut writer = DeltaWriter::create(path, sequence).unwrap();
        rows.iter().for_each(|change| writer.push(change).unwrap());
        deltas.push(entry(&writer.finish().unwrap(), sequence));
    }
    let manifest = Manifest {
        format: 1,
        volume: "6f3b2a1c-0d4e-4f5a-8b6c-7d8e9fa0b1c2".parse().unwrap(),
        sequence: 44,
        previous: Some(cid::of_raw(b"the manifest before").to_string()),
        base: BaseEntry { sequence: BASE, files },
        deltas,
        policy: "min=2,target=3,max=5".into(),
        policies: BTreeMap::new(),
        profile: "unixfs-v1-2025".into(),
        backends: [("disk".to_owned(), "file:///mnt/disk".to_owned())].into(),
        writer: serde_json::from_str("\"0a1b2c3d-4e5f-4a6b-9c7d-8e9fa0b1c2d3\"").unwrap(),
        versions: [("0a1b2c3d-4e5f-4a6b-9c7d-8e9fa0b1c2d3".to_owned(), 44)].into(),
        created: at(1_700_000_002, 5),
        files: 2,
        bytes: 5 << 40,
    };
    let path = dir.join("manifest-000000000044.json");
    fs::write(path, manifest.encode().unwrap()).unwrap();
    manifest
}

fn local_files(manifest: &Manifest) -> Vec<String> {
    manifest.files().map(Manifest::local_name).collect()
}

#[test]
fn a_checkpoint_of_format_1_reads_as_it_was_written() {
    reads_as_it_was_written(1);
}

#[test]
fn a_checkpoint_with_holes_reads_as_it_was_written() {
    reads_as_it_was_written(2);
}

#[test]
fn a_checkpoint_with_times_of_contents_reads_as_it_was_written() {
    reads_as_it_was_written(3);
}

#[test]
fn a_checkpoint_with_severities_of_events_reads_as_it_was_written() {
    let dir = golden(4);
    // Made once, when the format is new; never replaced.
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !dir.exists() {
        fs::create_dir_all(&dir).unwrap();
        write(&dir);
    }
    reads_as_it_was_written(4);
}

fn reads_as_it_was_written(version: u64) {
    let dir = golden(version);
    let manifest =
        Manifest::decode(&fs::read(dir.join("manifest-000000000044.json")).unwrap()).unwrap();
    for file in manifest.files() {
        let path = dir.join(Manifest::local_name(file));
        let written = WrittenFile {
            bytes: fs::metadata(&path).unwrap().len(),
            path,
            table: file.table.clone(),
            rows: file.rows,
        };
        assert_eq!(&entry(&written, file.sequence), file);
    }
    let base = dir.join(format!("base-{BASE:012}"));
    let mut rows = Vec::new();
    for table in [Table::Inodes, Table::Dentries, Table::Xattrs, Table::Contents, Table::Events] {
        rows.extend(read_table(&base, table).unwrap().map(Result::unwrap));
    }
    assert_eq!(rows, of_version(version, base_rows()));
    for (sequence, rows) in DELTAS.into_iter().zip(delta_rows()) {
        let path = dir.join(format!("delta-{sequence:012}.parquet"));
        assert_eq!(read_delta(&path).unwrap(), of_version(version, rows), "delta {sequence}");
    }
}

#[test]
fn a_base_and_its_deltas_add_up_to_the_last_word_on_each_row() {
    let dir = golden(4);
    let deltas = DELTAS.map(|sequence| dir.join(format!("delta-{sequence:012}.parquet")));
    let base = dir.join(format!("base-{BASE:012}"));
    let rows: Vec<Change> = load_checkpoint(&base, &deltas).unwrap().map(Result::unwrap).collect();
    let inodes: Vec<u64> = rows
        .iter()
        .filter_map(|row| if let Change::Inode(ino, Some(_)) = row { Some(ino.0) } else { None })
        .collect();
    assert_eq!(inodes, [1, 10, 11, 13, 14, 15, 16], "12 and 17 were removed");
    assert!(rows.contains(&dentry(b"c", Some((10, FileKind::File)))), "removed and made again");
    assert!(
        !rows.iter().any(|row| matches!(row, Change::Dentry(_, n, _) if n.as_bytes() == b"new"))
    );
    assert!(rows.contains(&xattr(b"user.empty", Some(b"again"))));
    assert!(rows.contains(&xattr(b"user.new", Some(b"1"))));
    let copies = |seed: u64| {
        let wanted: Cid = cid::of_raw(&seed.to_le_bytes());
        rows.iter().find_map(|row| match row {
            Change::Content(root, Some(record)) if *root == wanted => Some(record.copies.len()),
            _ => None,
        })
    };
    assert_eq!(copies(10), Some(1), "the copies of a later row replace those of the earlier one");
    assert_eq!(copies(17), Some(1));
    assert_eq!(copies(30), None);
    assert_eq!(copies(40), Some(1), "a content that no delta names keeps its copies");
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = dirs.each_ref().map(|dir| write(dir.path()));
    assert_eq!(first, second, "the CIDs, too");
    for name in local_files(&first) {
        let [one, two] = dirs.each_ref().map(|dir| fs::read(dir.path().join(&name)).unwrap());
        assert!(one == two, "{name} differs");
    }
}

#[test]
fn a_manifest_with_policies_reads_as_it_was_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/manifest-2");
    let path = folder.join("manifest-000000000044.json");
    let old = fs::read(golden(1).join("manifest-000000000044.json")).unwrap();
    let policies = [("archive", "min=3,distinct=site"), ("scratch", "min=1,target=1")];
    let policies: BTreeMap<String, String> =
        policies.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let manifest = Manifest {
        format: Manifest::format_for(&policies),
        policies,
        ..Manifest::decode(&old).unwrap()
    };
    assert_eq!(manifest.format, 2);
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !path.exists() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, manifest.encode().unwrap()).unwrap();
    }
    let stored = fs::read(&path).unwrap();
    assert_eq!(Manifest::decode(&stored).unwrap(), manifest);
    assert_eq!(manifest.encode().unwrap(), stored);
    // Without names, older programs read it.
    assert_eq!(Manifest::format_for(&BTreeMap::new()), 1);
}

#[test]
fn a_manifest_of_a_newer_format_is_told_from_damage() {
    let text = fs::read_to_string(golden(1).join("manifest-000000000044.json")).unwrap();
    let newer = text.replacen("\"format\": 1", "\"format\": 3, \"unknown\": 3", 1);
    assert_ne!(newer, text);
    let error = Manifest::decode(newer.as_bytes()).unwrap_err();
    assert!(
        matches!(error, super::super::MetadataError::TooNew { found: 3, supported: 2 }),
        "{error}"
    );
    let cut = Manifest::decode(&text.as_bytes()[..text.len() - 2]).unwrap_err().to_string();
    assert!(cut.contains("does not decode"), "{cut}");
}

#[test]
fn the_document_names_every_column_of_every_table() {
    let text = include_str!("../../docs/format.md");
    for table in Table::ALL {
        let begin = text.find(&format!("**{}** - ", table.name())).unwrap();
        let section = text[begin..].split("\n**").next().unwrap();
        for (column, _) in table.columns() {
            let stem = column.trim_end_matches("_ns").trim_end_matches("_s");
            let named = [format!("`{column}`"), format!("`{stem}_`"), format!("`{stem}_s`")];
            assert!(named.iter().any(|name| section.contains(name)), "{}.{column}", table.name());
        }
    }
}
