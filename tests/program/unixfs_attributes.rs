//! Mode and time of `UnixFS` 1.5 in archives that others make: built here by hand,
//! byte for byte.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use cairnfs::types::{Cid, cid};

use crate::support::{World, run};

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

/// A protobuf field of bytes.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(body.len() as u64), body.to_vec()].concat()
}

fn number(number: u8, value: u64) -> Vec<u8> {
    [vec![number << 3], varint(value)].concat()
}

/// `UnixFS` fields 7 and 8: mode and mtime.
fn attributes(mode: Option<u32>, mtime: Option<(i64, Option<u32>)>) -> Vec<u8> {
    let mut out = mode.map(|mode| number(7, mode.into())).unwrap_or_default();
    if let Some((seconds, nanoseconds)) = mtime {
        let mut time = number(1, seconds.cast_unsigned());
        if let Some(nanoseconds) = nanoseconds {
            time.push(0x15);
            time.extend(nanoseconds.to_le_bytes());
        }
        out.extend(field(8, &time));
    }
    out
}

/// Blocks of an archive, children first.
#[derive(Default)]
struct Builder(Vec<(Cid, Vec<u8>)>);

impl Builder {
    fn raw(&mut self, data: &[u8]) -> Cid {
        let id = cid::of_raw(data);
        self.0.push((id, data.to_vec()));
        id
    }

    /// A dag-pb node: links of (name, CID, size), then `UnixFS` data.
    fn node(&mut self, links: &[(&str, Cid, u64)], unixfs: &[u8]) -> Cid {
        let mut block = Vec::new();
        for (name, id, size) in links {
            let link =
                [field(1, &id.to_bytes()), field(2, name.as_bytes()), number(3, *size)].concat();
            block.extend(field(2, &link));
        }
        block.extend(field(1, unixfs));
        let id = cid::of_dag_pb(&block);
        self.0.push((id, block));
        id
    }

    /// A `CARv1` of one root.
    fn car(&self, root: Cid) -> Vec<u8> {
        let id = root.to_bytes();
        let mut header = vec![0xa2, 0x65];
        header.extend(b"roots");
        header.extend([0x81, 0xd8, 0x2a, 0x58, u8::try_from(id.len() + 1).unwrap(), 0]);
        header.extend(&id);
        header.push(0x67);
        header.extend(b"version");
        header.push(1);
        let mut out = [varint(header.len() as u64), header].concat();
        for (id, data) in &self.0 {
            let section = [id.to_bytes(), data.clone()].concat();
            out.extend(varint(section.len() as u64));
            out.extend(section);
        }
        out
    }
}

const FILE: u64 = 2;
const DIRECTORY: u64 = 1;
const SYMLINK: u64 = 4;
const SHARD: u64 = 5;

/// A file of two raw leaves, 7 bytes.
fn two_leaves(builder: &mut Builder, extra: &[u8]) -> Cid {
    let (one, two) = (builder.raw(b"1234"), builder.raw(b"567"));
    let unixfs =
        [number(1, FILE), number(3, 7), number(4, 4), number(4, 3), extra.to_vec()].concat();
    builder.node(&[("", one, 4), ("", two, 3)], &unixfs)
}

#[test]
fn mode_and_time_of_files_directories_shards_and_links_come_in_and_live_on() {
    let Some(world) = World::mountable("unixfs_attributes::kept") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let mut builder = Builder::default();
    let inline = [
        number(1, FILE),
        field(2, b"hi"),
        number(3, 2),
        attributes(Some(0o100_4711), Some((-5, Some(7)))),
    ];
    let inline = builder.node(&[], &inline.concat());
    let linked = two_leaves(&mut builder, &attributes(Some(0o600), Some((5_000_000_000, None))));
    let bare = two_leaves(&mut builder, &[]);
    let link = [
        number(1, SYMLINK),
        field(2, b"inline"),
        attributes(Some(0o777), Some((99, Some(999_999_999)))),
    ];
    let link = builder.node(&[], &link.concat());
    let sub = [number(1, DIRECTORY), attributes(Some(0o40_1777), Some((86_400, Some(1))))];
    let sub = builder.node(&[("bare", bare, 60)], &sub.concat());
    let top = [number(1, DIRECTORY), attributes(Some(0o750), None)].concat();
    let links =
        [("inline", inline, 20), ("link", link, 20), ("linked", linked, 60), ("sub", sub, 90)];
    let top = builder.node(&links, &top);
    let car = world.path("theirs.car");
    fs::write(&car, builder.car(top)).unwrap();
    let car = car.to_str().unwrap();
    world.cairn(&["car", "verify", car]).ok();
    world.cairn(&["import", car, &mount.text("in")]).ok();
    let check = |mount: &crate::support::Mount<'_>| {
        for (name, mode, time) in [
            ("in", 0o750, None),
            ("in/inline", 0o4711, Some((-5, 7))),
            ("in/linked", 0o600, Some((5_000_000_000, 0))),
            ("in/link", 0o777, Some((99, 999_999_999))),
            ("in/sub", 0o1777, Some((86_400, 1))),
            ("in/sub/bare", 0o644, None),
        ] {
            let meta = fs::symlink_metadata(mount.path(name)).unwrap();
            assert_eq!(meta.mode() & 0o7777, mode, "mode of {name}");
            if let Some(time) = time {
                assert_eq!((meta.mtime(), meta.mtime_nsec()), time, "time of {name}");
            }
        }
    };
    check(&mount);
    mount.umount().ok();
    let mount = volume.mount();
    check(&mount);
    assert_eq!(fs::read(mount.path("in/inline")).unwrap(), b"hi");
    assert_eq!(fs::read(mount.path("in/linked")).unwrap(), b"1234567");
    // An untouched file keeps its blocks, and so its CID, with what is in them.
    let first = |words: &[&str]| {
        world.cairn(words).ok().stdout.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(first(&["cid", &mount.text("in/linked")]), linked.to_string());
    let out = world.path("ours.car");
    let out = out.to_str().unwrap();
    world.cairn(&["export", &mount.text("in"), "-o", out]).ok();
    world.cairn(&["import", out, &mount.text("again")]).ok();
    let again = fs::metadata(mount.path("again/inline")).unwrap();
    assert_eq!((again.mode() & 0o7777, again.mtime(), again.mtime_nsec()), (0o4711, -5, 7));
    // With the volume's own metadata it is the row that counts, not the block.
    let mut chmod = world.command("chmod");
    chmod.arg("640").arg(mount.path("in/inline"));
    run(chmod, std::time::Duration::from_secs(10)).ok();
    world.cairn(&["export", &mount.text("in"), "-o", out, "--metadata"]).ok();
    world.cairn(&["import", out, &mount.text("rows")]).ok();
    assert_eq!(fs::metadata(mount.path("rows/inline")).unwrap().mode() & 0o7777, 0o640);
    // A changed file is built anew, without them.
    let file = fs::File::options().write(true).open(mount.path("in/linked")).unwrap();
    file.write_all_at(b"8", 7).unwrap();
    drop(file);
    assert_eq!(fs::read(mount.path("in/linked")).unwrap(), b"12345678");
    assert_eq!(first(&["cid", &mount.text("in/linked")]), cid::of_raw(b"12345678").to_string());
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

#[test]
fn a_sharded_directorys_own_mode_is_kept() {
    let Some(world) = World::mountable("unixfs_attributes::shard") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let mut builder = Builder::default();
    // An empty shard is enough: no bits, no links.
    let shard = [
        number(1, SHARD),
        field(2, b""),
        number(5, 0x22),
        number(6, 256),
        attributes(Some(0o2755), Some((7, Some(8)))),
    ];
    let root = builder.node(&[], &shard.concat());
    let car = world.path("shard.car");
    fs::write(&car, builder.car(root)).unwrap();
    world.cairn(&["import", car.to_str().unwrap(), &mount.text("in")]).ok();
    let meta = fs::metadata(mount.path("in")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o2755, 7, 8));
}

#[test]
fn a_time_that_is_none_is_refused_and_imports_nothing() {
    let Some(world) = World::mountable("unixfs_attributes::bad_time") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let no_seconds = field(8, &[0x15, 1, 0, 0, 0]);
    for (what, extra) in
        [("nanoseconds", attributes(None, Some((1, Some(1_000_000_000))))), ("seconds", no_seconds)]
    {
        let mut builder = Builder::default();
        let root = two_leaves(&mut builder, &extra);
        let car = world.path("bad.car");
        fs::write(&car, builder.car(root)).unwrap();
        let refused = world.cairn(&["import", car.to_str().unwrap(), &mount.text("in")]);
        assert!(refused.code != 0 && refused.stderr.contains(what), "{refused:?}");
        assert!(!mount.path("in").exists());
    }
}
