//! Quotas of what is written, before it is committed and after.

use rustix::io::Errno;

use super::world::{Ground, World};
use crate::metadata::{QuotaLimits, RenameMode};
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{Caller, HandleId, OpenOptions, SetAttr, Vfs, VfsError};

const POLICY: &str = "min=1,target=1,max=1,level=LOCAL_DURABILITY,wait_on=fsync";
const FALLOC_KEEP: i32 = 1;
const ROOT: Caller = Caller { uid: 0, gid: 0 };

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn bytes(limit: u64) -> QuotaLimits {
    QuotaLimits { bytes: Some(limit), inodes: None }
}

fn make(vfs: &Vfs, parent: Ino, text: &str, kind: FileKind) -> Ino {
    vfs.make(parent, &name(text), kind, (0o755, 0), (0, 0), b"").unwrap().ino
}

fn open(vfs: &Vfs, ino: Ino, truncate: bool) -> HandleId {
    vfs.open_file(ino, OpenOptions { write: true, truncate, ..OpenOptions::default() }).unwrap()
}

fn errno<T>(result: Result<T, VfsError>) -> Errno {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => Errno::from_raw_os_error(error.errno().0),
    }
}

fn used(vfs: &Vfs, ino: Ino) -> u64 {
    let quotas = vfs.namespace().quotas_at(ino).unwrap();
    quotas.iter().find(|quota| quota.ino == ino).unwrap().bytes
}

#[test]
fn what_is_written_and_not_committed_counts_at_each_call() {
    let world = World::new(Ground::Embedded, POLICY, 8 << 10, 64 << 10);
    let vfs = world.vfs();
    let top = make(vfs, Ino::ROOT, "top", FileKind::Directory);
    vfs.set_quota(top, bytes(100_000)).unwrap();
    let file = make(vfs, top, "file", FileKind::File);
    let id = open(vfs, file, false);
    vfs.write(id, 0, &vec![1; 60_000]).unwrap();
    assert_eq!(used(vfs, top), 60_000, "staged");
    assert_eq!(errno(vfs.write(id, 60_000, &vec![1; 40_001])), Errno::DQUOT);
    assert_eq!(errno(vfs.write(id, 1 << 30, &[1])), Errno::DQUOT, "a hole has a length");
    assert_eq!(errno(vfs.fallocate(id, 0..100_001, 0)), Errno::DQUOT);
    vfs.fallocate(id, 0..100_001, FALLOC_KEEP).unwrap();
    vfs.write(id, 0, &vec![2; 60_000]).unwrap();
    assert_eq!(used(vfs, top), 60_000, "what is there already may be written");
    vfs.commit_all().unwrap();
    assert_eq!(used(vfs, top), 60_000, "committed");
    vfs.write(id, 60_000, &vec![1; 40_000]).unwrap();
    vfs.release(id).unwrap();
    // A file can be written again at the limit.
    let id = open(vfs, file, true);
    assert_eq!(used(vfs, top), 0);
    vfs.write(id, 0, &vec![3; 100_000]).unwrap();
    assert_eq!(errno(vfs.write(id, 100_000, &[1])), Errno::DQUOT);
    vfs.release(id).unwrap();
    // A copy that shares its content costs no bytes on the disk, but its length.
    let (second, from) = (make(vfs, top, "second", FileKind::File), open(vfs, file, false));
    vfs.commit_all().unwrap();
    let to = open(vfs, second, false);
    assert_eq!(errno(vfs.copy_range((from, 0), (to, 0), 100_000)), Errno::DQUOT);
    vfs.release(from).unwrap();
    // Without a name it counts until it is closed.
    vfs.unlink(top, &name("file")).unwrap();
    assert_eq!(used(vfs, top), 0);
    vfs.write(to, 0, &vec![1; 100_000]).unwrap();
    vfs.unlink(top, &name("second")).unwrap();
    assert_eq!(used(vfs, top), 100_000);
    vfs.release(to).unwrap();
    assert_eq!(used(vfs, top), 0);
    assert_eq!(world.namespace().check(false, &mut |p| panic!("{p}")).unwrap(), 0);
}

#[test]
fn a_dirty_file_takes_its_charge_along_and_directories_stay() {
    let world = World::new(Ground::Embedded, POLICY, 8 << 10, 64 << 10);
    let vfs = world.vfs();
    let small = make(vfs, Ino::ROOT, "small", FileKind::Directory);
    let large = make(vfs, Ino::ROOT, "large", FileKind::Directory);
    vfs.set_quota(small, bytes(10_000)).unwrap();
    vfs.set_quota(large, bytes(50_000)).unwrap();
    let file = make(vfs, large, "file", FileKind::File);
    let id = open(vfs, file, false);
    vfs.write(id, 0, &[1; 9_000]).unwrap();
    let rename = |from: Ino, to: Ino, text: &str| {
        vfs.rename((from, &name(text)), (to, &name(text)), RenameMode::Replace)
    };
    rename(large, small, "file").unwrap();
    assert_eq!((used(vfs, small), used(vfs, large)), (9_000, 0));
    assert_eq!(errno(vfs.write(id, 9_000, &[1; 1_001])), Errno::DQUOT);
    vfs.commit_all().unwrap();
    rename(small, large, "file").unwrap();
    vfs.write(id, 9_000, &[1; 3_000]).unwrap();
    assert_eq!(errno(rename(large, small, "file")), Errno::DQUOT);
    assert_eq!((used(vfs, small), used(vfs, large)), (0, 12_000));
    assert_eq!(errno(vfs.link(file, small, &name("link"))), Errno::XDEV);
    make(vfs, large, "dir", FileKind::Directory);
    assert_eq!(errno(rename(large, small, "dir")), Errno::XDEV);
    vfs.release(id).unwrap();
    vfs.commit_all().unwrap();
    assert_eq!((used(vfs, small), used(vfs, large)), (0, 12_000));
    assert_eq!(world.namespace().check(false, &mut |p| panic!("{p}")).unwrap(), 0);
}

#[test]
fn a_quota_counts_what_was_dirty_when_it_was_set_and_a_restart_finds_it_again() {
    let mut world = World::new(Ground::Embedded, POLICY, 8 << 10, 64 << 10);
    let vfs = world.vfs().clone();
    let top = make(&vfs, Ino::ROOT, "top", FileKind::Directory);
    let file = make(&vfs, top, "file", FileKind::File);
    let id = open(&vfs, file, false);
    vfs.write(id, 0, &vec![1; 40_000]).unwrap();
    // Half of the limit is used twice over: only growth is refused.
    let set = vfs.set_quota(top, bytes(20_000)).unwrap();
    assert_eq!(set.bytes, 40_000);
    assert_eq!(errno(vfs.write(id, 40_000, &[1])), Errno::DQUOT);
    vfs.write(id, 0, &vec![2; 40_000]).unwrap();
    vfs.fsync(id).unwrap();
    vfs.write(id, 0, &[3; 100]).unwrap();
    drop(vfs);
    world.kill();
    let vfs = world.vfs();
    assert_eq!(used(vfs, top), 40_000, "what was synced is staged again, or committed");
    vfs.commit_all().unwrap();
    assert_eq!(used(vfs, top), 40_000);
    vfs.set_quota(Ino::ROOT, bytes(41_000)).unwrap();
    let other = make(vfs, Ino::ROOT, "other", FileKind::File);
    let id = open(vfs, other, false);
    assert_eq!(errno(vfs.write(id, 0, &[1; 1_001])), Errno::NOSPC, "of the volume");
    let stat = vfs.stat_fs(Ino::ROOT).unwrap();
    assert_eq!((stat.capacity, stat.free, stat.available), (41_000, 1_000, 1_000));
    let stat = vfs.stat_fs(file).unwrap();
    assert_eq!((stat.capacity, stat.free, stat.available), (20_000, 0, 0));
    vfs.write(id, 0, &[1; 1_000]).unwrap();
    vfs.release(id).unwrap();
    assert_eq!(world.namespace().check(false, &mut |p| panic!("{p}")).unwrap(), 0);
}

#[test]
fn looking_files_up_holds_no_inode_in_memory() {
    let world = World::new(Ground::Embedded, POLICY, 8 << 10, 64 << 10);
    let vfs = world.vfs();
    for n in 0..2_000 {
        make(vfs, Ino::ROOT, &format!("f{n}"), FileKind::File);
    }
    let open = open(vfs, vfs.lookup(Ino::ROOT, &name("f7")).unwrap().0, false);
    assert_eq!(vfs.nodes_held(), 1);
    for n in 0..2_000 {
        let (ino, _) = vfs.lookup(Ino::ROOT, &name(&format!("f{n}"))).unwrap();
        vfs.attributes(ino).unwrap();
        vfs.list_xattrs(ino).unwrap();
        vfs.set_attributes(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, ROOT)
            .unwrap();
    }
    assert_eq!(vfs.nodes_held(), 1, "only what is open");
    vfs.release(open).unwrap();
    assert_eq!(vfs.nodes_held(), 0);
}

#[test]
fn writers_side_by_side_fill_a_quota_and_never_exceed_it() {
    let world = World::new(Ground::Embedded, POLICY, 8 << 10, 64 << 10);
    let vfs = world.vfs();
    let top = make(vfs, Ino::ROOT, "top", FileKind::Directory);
    vfs.set_quota(top, bytes(300_000)).unwrap();
    let written: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || {
                    let file = make(vfs, top, &format!("f{n}"), FileKind::File);
                    let (id, mut at) = (open(vfs, file, false), 0);
                    loop {
                        match vfs.write(id, at, &[n; 1_000]) {
                            Ok(size) => at = size,
                            Err(error) => {
                                assert_eq!(errno::<()>(Err(error)), Errno::DQUOT);
                                break;
                            }
                        }
                        assert!(used(vfs, top) <= 300_000);
                        if at % 7_000 == 0 {
                            vfs.fsync(id).unwrap();
                        }
                    }
                    vfs.release(id).unwrap();
                    at
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });
    assert_eq!((written, used(vfs, top)), (300_000, 300_000));
    vfs.commit_all().unwrap();
    assert_eq!(used(vfs, top), 300_000);
    assert_eq!(world.namespace().check(false, &mut |p| panic!("{p}")).unwrap(), 0);
}
