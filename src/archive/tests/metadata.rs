//! Archives with the tables of a checkpoint as their second root.

use super::build::*;
use super::plan::paths;
use crate::archive::{Archive, ImportPlan, encode_metadata};
use crate::content::{Link, Profile, escape_name};
use crate::metadata::{Change, DentryRecord, InodeRecord};
use crate::types::{Cid, FileKind, Ino, Name, Timestamp};

const V1: Profile = Profile::UNIXFS_V1_2025;

fn row(kind: FileKind, ino: u64, parent: u64) -> (Ino, InodeRecord) {
    let time = |seconds| Timestamp { seconds, nanoseconds: ino as u32 };
    let record = InodeRecord {
        kind,
        mode: 0o600 + ino as u32 % 8,
        uid: 1000 + ino as u32,
        gid: 2000 + ino as u32,
        rdev: if kind == FileKind::CharDevice { 0x0103 } else { 0 },
        nlink: 1,
        size: 0,
        atime: time(-1),
        mtime: time(2),
        ctime: time(3),
        btime: time(4),
        content: None,
        profile: String::new(),
        target: Vec::new(),
        parent: Ino(parent),
        has_xattrs: false,
        policy: String::new(),
        entries: 0,
        next_cookie: 0,
        version: 0,
        holes: 0,
    };
    (Ino(ino), record)
}

struct Sample {
    blocks: Blocks,
    rows: Vec<Change>,
    root: Cid,
}

impl Sample {
    fn inode(&mut self, kind: FileKind, ino: u64, parent: u64) {
        let (ino, record) = row(kind, ino, parent);
        self.rows.push(Change::Inode(ino, Some(record)));
    }

    fn name(&mut self, parent: u64, name: &[u8], ino: u64, kind: FileKind) {
        let dentry = DentryRecord { ino: Ino(ino), kind, cookie: ino };
        self.rows.push(Change::Dentry(Ino(parent), Name::new(name).unwrap(), Some(dentry)));
    }

    fn xattr(&mut self, ino: u64, name: &[u8], value: &[u8]) {
        self.rows.push(Change::Xattr(Ino(ino), name.to_vec(), Some(value.to_vec())));
    }

    fn archive(&self, spool: &tempfile::TempDir) -> Archive {
        let (second, tables) = encode_metadata(&self.rows, spool.path()).unwrap();
        for block in tables {
            self.blocks.put(block.cid, block.data);
        }
        read_in(spool, &self.blocks.car(2, &[self.root, second]))
    }

    fn plan(&self) -> ImportPlan {
        let spool = tempfile::tempdir().unwrap();
        let plan = self.archive(&spool).plan_for(&V1).unwrap();
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0, "no table stays behind");
        plan
    }
}

/// 1: top, 2: file with two names, 3: dir, 4: symlink, 5: fifo with two names,
/// 6: char device, 7: file with a name that is not UTF-8.
fn sample() -> Sample {
    use FileKind::{CharDevice, Directory, Fifo, File, Symlink};
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"shared content");
    let other = blocks.file(&V1, b"");
    let link = blocks.symlink(&V1, b"file");
    let dir = blocks.directory(&V1, &[("hard", file), ("link", link)]);
    let odd = escape_name(b"odd\xff");
    let root = blocks.directory(&V1, &[("dir", dir), ("file", file), (&odd, other)]).cid;
    let mut sample = Sample { blocks, rows: Vec::new(), root };
    let inodes =
        [(Directory, 1, 1), (File, 2, 1), (Directory, 3, 1), (Symlink, 4, 3), (Fifo, 5, 1)];
    for (kind, ino, parent) in inodes.into_iter().chain([(CharDevice, 6, 3), (File, 7, 1)]) {
        sample.inode(kind, ino, parent);
    }
    sample.name(1, b"dir", 3, Directory);
    sample.name(1, b"file", 2, File);
    sample.name(1, b"odd\xff", 7, File);
    sample.name(1, b"pipe", 5, Fifo);
    sample.name(3, b"hard", 2, File);
    sample.name(3, b"link", 4, Symlink);
    sample.name(3, b"null", 6, CharDevice);
    sample.name(3, b"pipe2", 5, Fifo);
    sample.xattr(2, b"user.color", b"blue\0\xff");
    sample.xattr(1, b"user.top", b"");
    sample.xattr(2, b"user.cairn.cid", b"virtual: never stored");
    sample
}

#[test]
fn an_archive_with_metadata_of_format_1_reads_as_it_was_written() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden/metadata-1.car");
    let sample = sample();
    let spool = tempfile::tempdir().unwrap();
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !path.exists() {
        let (second, tables) = encode_metadata(&sample.rows, spool.path()).unwrap();
        for block in tables {
            sample.blocks.put(block.cid, block.data);
        }
        std::fs::write(&path, sample.blocks.car(2, &[sample.root, second])).unwrap();
    }
    let stored = std::fs::read(&path).unwrap();
    let plan = read_in(&spool, &stored).plan_for(&V1).unwrap();
    assert_eq!(paths(&plan).len(), 9);
    assert_eq!(plan, sample.plan());
}

#[test]
fn attributes_hard_links_and_special_nodes_come_back() {
    let plan = sample().plan();
    let found = paths(&plan);
    let names = [
        "",
        "/dir",
        "/dir/hard",
        "/dir/link",
        "/dir/null",
        "/dir/pipe2",
        "/file",
        "/odd\\xff",
        "/pipe",
    ];
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), names);
    assert_eq!(found["/file"], found["/dir/hard"]);
    assert_eq!(found["/pipe"], found["/dir/pipe2"]);
    assert_eq!(plan.nodes.len(), 7);
    for (path, ino) in
        [("", 1), ("/file", 2), ("/dir", 3), ("/dir/link", 4), ("/pipe", 5), ("/odd\\xff", 7)]
    {
        let node = &plan.nodes[found[path]];
        let (_, row) = row(node.kind, ino, 1);
        assert_eq!(
            (node.mode, node.uid, node.gid),
            (Some(row.mode), Some(row.uid), Some(row.gid)),
            "{path}"
        );
        let times = (node.atime, node.mtime, node.ctime, node.btime);
        assert_eq!(times, (Some(row.atime), Some(row.mtime), Some(row.ctime), Some(row.btime)));
    }
    let file = &plan.nodes[found["/file"]];
    assert_eq!(file.xattrs, [(b"user.color".to_vec(), b"blue\0\xff".to_vec())]);
    assert_eq!(file.content.as_ref().unwrap().link.size, 14);
    assert_eq!(plan.nodes[found[""]].xattrs, [(b"user.top".to_vec(), Vec::new())]);
    assert_eq!(plan.nodes[found["/dir/link"]].target, b"file");
    let null = &plan.nodes[found["/dir/null"]];
    assert_eq!((null.kind, null.rdev), (FileKind::CharDevice, 0x0103));
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
}

#[test]
fn a_file_alone_has_its_attributes() {
    let blocks = Blocks::default();
    let root = blocks.file(&V1, b"alone").cid;
    let mut sample = Sample { blocks, rows: Vec::new(), root };
    sample.inode(FileKind::File, 9, 9);
    sample.xattr(9, b"user.a", b"b");
    let plan = sample.plan();
    assert_eq!((plan.nodes.len(), plan.nodes[0].uid), (1, Some(1009)));
    assert_eq!(plan.nodes[0].xattrs.len(), 1);
}

#[test]
fn where_tree_and_metadata_disagree_the_tree_is_right() {
    let mut sample = sample();
    let changed = sample.blocks.file(&V1, b"written meanwhile");
    let entries: Vec<(&str, Link)> = vec![("dir", changed), ("file", changed), ("new", changed)];
    sample.root = sample.blocks.directory(&V1, &entries).cid;
    let plan = sample.plan();
    let found = paths(&plan);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ["", "/dir", "/file", "/new", "/pipe"], "the FIFO is the metadata's to say");
    let node = |path: &str| &plan.nodes[found[path]];
    assert_eq!((node("/dir").kind, node("/dir").uid), (FileKind::File, None));
    assert_eq!(node("/file").uid, Some(1002));
    assert_eq!(node("/file").content.as_ref().unwrap().link, changed);
    assert_eq!(plan.notes.len(), 3, "{:?}", plan.notes);
    assert!(plan.notes.iter().any(|note| note.contains("odd") && note.contains("left out")));
}

#[test]
fn names_of_one_inode_with_two_contents_are_two_files() {
    let mut sample = sample();
    let (a, b) = (sample.blocks.file(&V1, b"a"), sample.blocks.file(&V1, b"b"));
    let dir = sample.blocks.directory(&V1, &[("hard", b)]);
    sample.root = sample.blocks.directory(&V1, &[("dir", dir), ("file", a)]).cid;
    let plan = sample.plan();
    let found = paths(&plan);
    assert_ne!(found["/file"], found["/dir/hard"]);
    assert!(!plan.notes.is_empty());
}

#[test]
fn metadata_with_a_loop_or_without_a_top_does_no_harm() {
    let mut looped = sample();
    looped.name(3, b"up", 1, FileKind::Directory);
    let plan = looped.plan();
    assert_eq!(plan.nodes.len(), 7);
    assert!(plan.notes.iter().any(|note| note.contains("up")), "{:?}", plan.notes);
    let mut other = sample();
    other.rows.retain(|row| !matches!(row, Change::Inode(Ino(1), _)));
    let spool = tempfile::tempdir().unwrap();
    let error = other.archive(&spool).plan().unwrap_err().to_string();
    assert!(error.contains("no inode is the top"), "{error}");
    other.inode(FileKind::File, 1, 1);
    let error = other.archive(&spool).plan().unwrap_err().to_string();
    assert!(error.contains("another tree"), "{error}");
}

#[test]
fn tables_that_do_not_decode_are_an_error() {
    let blocks = Blocks::default();
    let root = tree(&blocks, &V1).cid;
    let junk = blocks.file(&V1, b"no Parquet");
    let tables = ["dentries.parquet", "inodes.parquet", "xattrs.parquet"].map(|name| (name, junk));
    let second = blocks.directory(&V1, &tables).cid;
    let spool = tempfile::tempdir().unwrap();
    let error = read_in(&spool, &blocks.car(1, &[root, second])).plan().unwrap_err();
    assert!(error.is_damage(), "{error}");
}
