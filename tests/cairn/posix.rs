//! System calls on a real mount.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use crate::harness::{Place, can_mount, make_tree, ok, run, same};

#[test]
fn files_names_and_attributes_behave_like_posix() {
    if !can_mount("files_names_and_attributes_behave_like_posix") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&["-o", "level=LOCAL_DURABILITY"]);
    let at = |name: &str| mount.path(name);
    fs::write(at("a"), b"hello").unwrap();
    File::options().append(true).open(at("a")).unwrap().write_all(b" world").unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"hello world");
    File::options().write(true).open(at("a")).unwrap().set_len(5).unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"hello");
    let taken = File::options().write(true).create_new(true).open(at("a")).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AlreadyExists);
    drop(File::options().write(true).truncate(true).open(at("a")).unwrap());
    assert_eq!(fs::metadata(at("a")).unwrap().len(), 0);

    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at("sparse"))
        .unwrap();
    file.write_all_at(b"end", 5_000_000).unwrap();
    let mut buffer = [1u8; 8];
    file.read_exact_at(&mut buffer, 1_000_000).unwrap();
    assert_eq!(buffer, [0; 8]);
    drop(file);
    // Change a few bytes in the middle of sealed content.
    let file = File::options().read(true).write(true).open(at("sparse")).unwrap();
    file.write_all_at(b"mid", 2_500_001).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let bytes = fs::read(at("sparse")).unwrap();
    assert_eq!((&bytes[2_500_001..2_500_004], &bytes[5_000_000..]), (&b"mid"[..], &b"end"[..]));
    assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 6);

    fs::hard_link(at("sparse"), at("other")).unwrap();
    assert_eq!(fs::metadata(at("other")).unwrap().nlink(), 2);
    fs::write(at("target"), b"old").unwrap();
    fs::write(at("source"), b"new").unwrap();
    fs::rename(at("source"), at("target")).unwrap();
    assert_eq!(fs::read(at("target")).unwrap(), b"new");
    assert!(!at("source").exists());
    fs::create_dir(at("dir")).unwrap();
    fs::create_dir(at("dir/inner")).unwrap();
    assert_eq!(fs::rename(at("dir"), at("dir/inner/dir")).unwrap_err().raw_os_error(), Some(22));
    let full = fs::remove_dir(at("dir")).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::DirectoryNotEmpty);

    let mut open = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at("gone"))
        .unwrap();
    open.write_all(b"still here").unwrap();
    fs::remove_file(at("gone")).unwrap();
    open.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    drop(open);

    fs::set_permissions(at("a"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(at("a")).unwrap().mode() & 0o7777, 0o640);
    ok("touch", &["-d", "2111-11-11T11:11:11.987654321Z", &mount.at("a")]);
    assert_eq!(fs::metadata(at("a")).unwrap().mtime_nsec(), 987_654_321);
    ok("setfattr", &["-n", "user.k", "-v", "v", &mount.at("a")]);
    assert!(ok("getfattr", &["-d", &mount.at("a")]).contains("user.k=\"v\""));
    assert!(
        !ok("getfattr", &["-d", "-m", "-", &mount.at("a")]).contains("cairn"),
        "virtual xattrs are not listed"
    );
    assert!(
        !run("setfattr", &["-n", "user.cairn.cid", "-v", "x", &mount.at("a")]).status.success()
    );
    ok("fallocate", &["-p", "-o", "0", "-l", "8192", &mount.at("sparse")]);
    ok("df", &[mount.point.to_str().unwrap()]);
    mount.umount();
}

#[test]
fn a_tree_comes_back_after_unmounting_and_programs_run_on_it() {
    if !can_mount("a_tree_comes_back_after_unmounting_and_programs_run_on_it") {
        return;
    }
    let place = Place::new();
    make_tree(&place.path("tree"));
    let mount = place.mount_usual(&[]);
    ok("cp", &["-a", &place.at("tree"), &mount.at("copy")]);
    same(&place.path("tree"), &mount.path("copy"));
    let repo = mount.at("repo");
    ok("git", &["-c", "init.defaultBranch=main", "init", "-q", &repo]);
    fs::write(mount.path("repo/file"), b"text").unwrap();
    ok("git", &["-C", &repo, "add", "file"]);
    ok(
        "git",
        &[
            "-C",
            &repo,
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@example.org",
            "commit",
            "-qm",
            "one",
        ],
    );
    ok("git", &["-C", &repo, "fsck", "--strict"]);
    let program = "import mmap,sys\nf=open(sys.argv[1],'w+b')\nf.truncate(8192)\nm=mmap.mmap(f.fileno(),8192)\nm[4096:4101]=b'hello'\nm.flush()\nm.close()\nf.close()";
    ok("python3", &["-c", program, &mount.at("mapped")]);
    mount.umount();
    let mount = place.mount("volume", "mnt", &[]);
    same(&place.path("tree"), &mount.path("copy"));
    assert_eq!(&fs::read(mount.path("mapped")).unwrap()[4096..4101], b"hello");
    ok("git", &["-C", &mount.at("repo"), "fsck", "--strict"]);
    mount.umount();
}

#[test]
fn a_directory_is_listed_whole_while_it_is_emptied() {
    if !can_mount("a_directory_is_listed_whole_while_it_is_emptied") {
        return;
    }
    let place = Place::new();
    let mount = place.mount("volume", "mnt", &["-o", "level=LOCAL_DURABILITY,wait_on=fsync"]);
    fs::create_dir(mount.path("d")).unwrap();
    for i in 0..2000 {
        fs::write(mount.path(&format!("d/{i}")), b"").unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir(mount.path("d")).unwrap() {
        let entry = entry.unwrap();
        assert!(seen.insert(entry.file_name()), "{:?} came twice", entry.file_name());
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(seen.len(), 2000);
    fs::remove_dir(mount.path("d")).unwrap();
    mount.umount();
}
