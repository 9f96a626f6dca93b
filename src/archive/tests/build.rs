use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::archive::{Archive, ArchiveError, Report, export, verify};
use crate::content::{
    ContentError, DirectoryEntry, Link, Profile, build_directory, import_file, symlink,
};
use crate::types::{Cid, cid};

/// Blocks by CID.
#[derive(Default)]
pub struct Blocks(pub RefCell<BTreeMap<Cid, Bytes>>);

impl Blocks {
    pub fn sink(&self) -> impl FnMut(Cid, Bytes) -> Result<(), ContentError> + '_ {
        |id, data| {
            self.0.borrow_mut().insert(id, data);
            Ok(())
        }
    }

    pub fn load(&self) -> impl FnMut(&Cid) -> Result<Bytes, ContentError> + '_ {
        |id| self.0.borrow().get(id).cloned().ok_or(ContentError::Missing(*id))
    }

    pub fn get(&self, id: &Cid) -> Bytes {
        self.0.borrow()[id].clone()
    }

    pub fn put(&self, id: Cid, data: impl Into<Bytes>) -> Cid {
        self.0.borrow_mut().insert(id, data.into());
        id
    }

    pub fn file(&self, profile: &Profile, data: &[u8]) -> Link {
        import_file(profile, &mut &data[..], &mut self.sink()).unwrap()
    }

    pub fn symlink(&self, profile: &Profile, target: &[u8]) -> Link {
        let (link, data) = symlink(profile, target);
        self.put(link.cid, data);
        link
    }

    pub fn directory(&self, profile: &Profile, entries: &[(&str, Link)]) -> Link {
        let entries = entries
            .iter()
            .map(|(name, link)| DirectoryEntry { name: (*name).to_owned(), link: *link })
            .collect();
        build_directory(profile, entries, &mut self.sink()).unwrap()
    }

    pub fn car(&self, version: u8, roots: &[Cid]) -> Vec<u8> {
        let mut out = Vec::new();
        let report = export(&mut out, version, roots, &mut self.load(), &mut |_, _| {}).unwrap();
        assert_eq!(report.bytes, out.len() as u64);
        out
    }
}

/// A tree with every kind that `UnixFS` has, a file of several blocks, contents
/// and a directory that occur twice.
pub fn tree(blocks: &Blocks, profile: &Profile) -> Link {
    let large: Vec<u8> = (0..2_500_000u32).map(|i| (i % 251) as u8).collect();
    let large = blocks.file(profile, &large);
    let small = blocks.file(profile, b"hello world\n");
    let empty = blocks.file(profile, b"");
    let zeros = blocks.file(profile, &vec![0; 2 << 20]);
    let inner = blocks.directory(profile, &[("a", small), ("zeros", zeros)]);
    let nothing = blocks.directory(profile, &[]);
    let link = blocks.symlink(profile, b"sub/a");
    blocks.directory(
        profile,
        &[
            ("again", inner),
            ("empty", empty),
            ("large", large),
            ("line\nbreak", small),
            ("link", link),
            ("nothing", nothing),
            ("sub", inner),
        ],
    )
}

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

pub fn with_length(body: &[u8]) -> Vec<u8> {
    [varint(body.len() as u64), body.to_vec()].concat()
}

/// The dag-cbor of a header, of any version.
pub fn header(roots: &[Cid], version: u8) -> Vec<u8> {
    let mut out = vec![0xa2, 0x65];
    out.extend_from_slice(b"roots");
    assert!(roots.len() < 24);
    out.push(0x80 | roots.len() as u8);
    for root in roots {
        let bytes = root.to_bytes();
        out.extend_from_slice(&[0xd8, 0x2a]);
        match bytes.len() as u8 + 1 {
            short @ ..24 => out.push(0x40 | short),
            long => out.extend_from_slice(&[0x58, long]),
        }
        out.push(0);
        out.extend_from_slice(&bytes);
    }
    out.push(0x67);
    out.extend_from_slice(b"version");
    out.push(version);
    with_length(&out)
}

pub fn section(id: &Cid, data: &[u8]) -> Vec<u8> {
    with_length(&[&id.to_bytes(), data].concat())
}

/// A `CARv1` by hand.
pub fn car_v1(roots: &[Cid], sections: &[(Cid, &[u8])]) -> Vec<u8> {
    let mut out = header(roots, 1);
    for (id, data) in sections {
        out.extend(section(id, data));
    }
    out
}

/// A `CARv2` by hand: padding before the data and before the index.
pub fn car_v2(data: &[u8], index: &[u8], padding: (usize, usize)) -> Vec<u8> {
    let data_offset = 51 + padding.0 as u64;
    let index_offset = match index {
        [] => 0,
        _ => data_offset + data.len() as u64 + padding.1 as u64,
    };
    let mut out = b"\x0a\xa1\x67version\x02".to_vec();
    out.extend_from_slice(&[0; 16]);
    for number in [data_offset, data.len() as u64, index_offset] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend(vec![0; padding.0]);
    out.extend_from_slice(data);
    out.extend(vec![0; padding.1]);
    out.extend_from_slice(index);
    out
}

pub fn identity(data: &[u8]) -> Cid {
    Cid::new_v1(cid::RAW, multihash::Multihash::wrap(cid::IDENTITY, data).unwrap())
}

pub fn read(car: &[u8]) -> Result<Archive, ArchiveError> {
    let spool = tempfile::tempdir().unwrap();
    let archive = Archive::read(&mut &car[..], spool.path(), &mut |_| {});
    let left = std::fs::read_dir(spool.path()).unwrap().count();
    assert_eq!(left, 0, "the spool has no name");
    archive
}

/// Like [`read`], in a directory that stays for a plan with metadata.
pub fn read_in(spool: &tempfile::TempDir, car: &[u8]) -> Archive {
    Archive::read(&mut &car[..], spool.path(), &mut |_| {}).unwrap()
}

pub fn report(car: &[u8]) -> Report {
    let spool = tempfile::tempdir().unwrap();
    verify(&mut &car[..], spool.path(), &mut |_| {}).unwrap()
}

/// Reading fails with this word in the message.
#[track_caller]
pub fn refused(car: &[u8], word: &str) -> ArchiveError {
    match read(car) {
        Ok(_) => panic!("taken, where `{word}` should be said"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(word), "`{text}` should say `{word}`");
            error
        }
    }
}
