//! Trees: making one with everything in it, and comparing two.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};

/// What `rsync -aHAX --checksum` would compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub size: u64,
    pub mtime: (i64, i64),
    /// Digest of the bytes, or a link's target.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path (in order) that names the same inode.
    pub same_as: PathBuf,
}

fn kind(meta: &fs::Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut value[..]).unwrap();
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    found
}

fn digest(path: &Path) -> Vec<u8> {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::io::copy(&mut file, &mut DigestWriter(&mut hasher))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    hasher.finalize().to_vec()
}

struct DigestWriter<'h>(&'h mut Sha256);

impl std::io::Write for DigestWriter<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything below `top`, by path from it.
pub fn snapshot(top: &Path) -> BTreeMap<PathBuf, Entry> {
    let (mut found, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut stack = vec![top.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = stack.pop() {
        let meta =
            fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push((path, meta));
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, meta) in paths {
        let relative = path.strip_prefix(top).unwrap().to_owned();
        let content = match kind(&meta) {
            "file" => digest(&path),
            "symlink" => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            "device" => meta.rdev().to_be_bytes().to_vec(),
            _ => Vec::new(),
        };
        let same_as = first.entry(meta.ino()).or_insert_with(|| relative.clone()).clone();
        let entry = Entry {
            kind: kind(&meta),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            // Directories: every filesystem has its own idea of their size.
            size: if meta.is_dir() { 0 } else { meta.size() },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            content,
            xattrs: xattrs(&path),
            same_as,
        };
        found.insert(relative, entry);
    }
    found
}

/// How two trees differ, for a message; empty when they do not.
pub fn difference(a: &BTreeMap<PathBuf, Entry>, b: &BTreeMap<PathBuf, Entry>) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differs = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differs
        .map(|key| format!("{}:\n  {:?}\n  {:?}", key.display(), a.get(key), b.get(key)))
        .collect()
}

/// Sets the modification time of anything, links too.
fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with every kind of thing that must come back: nesting, odd names,
/// modes, owners (as root), times before 1970, xattrs, hard links, symlinks,
/// sparse and empty files, a pipe, and files of one and of several leaves.
pub fn make_tree(top: &Path) {
    fs::create_dir_all(top.join("deep/er/and/deeper")).unwrap();
    fs::write(top.join("empty"), b"").unwrap();
    fs::write(top.join("small"), b"hello\n").unwrap();
    fs::write(top.join("deep/er/file"), vec![7; 70_000]).unwrap();
    let big: Vec<u8> =
        (0..3_500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(top.join("deep/several leaves"), &big).unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 3 << 20).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"new\nline \xff\xc3\xa9 \\ 'quote' \"");
    fs::write(top.join(odd), b"odd").unwrap();
    fs::write(top.join("deep/.hidden"), b"hidden").unwrap();
    fs::hard_link(top.join("small"), top.join("deep/another name of small")).unwrap();
    symlink("deep/er/file", top.join("link")).unwrap();
    symlink("/nowhere/at/all", top.join("deep/dangling")).unwrap();
    rustix::fs::mknodat(
        CWD,
        top.join("pipe"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    fs::set_permissions(top.join("small"), fs::Permissions::from_mode(0o604)).unwrap();
    fs::set_permissions(top.join("deep/er/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(top.join("deep/er"), fs::Permissions::from_mode(0o1777)).unwrap();
    rustix::fs::lsetxattr(
        top.join("small"),
        "user.colour",
        b"green\0and blue",
        XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::lsetxattr(top.join("deep"), "user.empty", b"", XattrFlags::empty()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(top.join("empty"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(top.join("link"), Some(1), Some(2)).unwrap();
    }
    set_mtime(&top.join("small"), 1_234_567_890, 123_456_789);
    set_mtime(&top.join("empty"), -86_400, 1);
    set_mtime(&top.join("link"), 4_000_000_000, 5);
    set_mtime(&top.join("deep/er"), 1_000_000_000, 999_999_999);
    set_mtime(&top.join("deep"), 1_100_000_000, 0);
    set_mtime(top, 1_200_000_000, 42);
}
