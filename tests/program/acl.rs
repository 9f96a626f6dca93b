//! POSIX ACLs: the same as on the disk below, and enforced.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Run, World, run, skip};

/// What ACLs do on any filesystem: kept, masked, inherited, narrowed by chmod.
const STORY: &str = r"
set -eu
umask 027
echo x > file; setfacl -m u:1000:rw,g:100:r file; chmod 640 file
echo x > open; setfacl -m u:1000:rwx,m::rx open; chmod g+w open
mkdir dir; setfacl -d -m u:1000:rwx,g:100:rx,o::- dir
echo x > dir/file; mkdir dir/sub; mkfifo -m 666 dir/pipe; ln -s file dir/link
install -m 755 /dev/null dir/program
setfacl -d -m m::r dir/sub; echo x > dir/sub/late; mkdir -m 700 dir/sub/closed
setfacl -b open; setfacl -k dir/sub; mkdir dir/sub/plain
echo x > minimal; setfacl -m u::rw,g::r,o::- minimal
chmod 2770 dir; setfacl -m u:1001:r dir
cp -p file copy; cp -a dir copies; mv file moved
ln dir/file hard; chmod 600 hard
";

fn setup(test: &str) -> Option<World> {
    let world = World::mountable(test)?;
    if Command::new("setfacl").arg("--version").output().is_err() {
        skip(test, "setfacl is not installed (package acl)");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        skip(test, "needs root, to be several users");
        return None;
    }
    Some(world)
}

fn story(world: &World, at: &Path) -> String {
    let mut bash = world.command("bash");
    bash.args(["-c", STORY]).current_dir(at);
    run(bash, Duration::from_mins(1)).ok();
    let mut list = world.command("bash");
    list.args(["-c", "find . ! -type l | LC_ALL=C sort | xargs getfacl -n; find . -printf '%m %p\\n' | LC_ALL=C sort"])
        .current_dir(at);
    run(list, Duration::from_mins(1)).ok().stdout
}

#[test]
fn acls_are_kept_masked_inherited_and_follow_chmod_as_on_the_disk() {
    let Some(world) = setup("acl::as_on_the_disk") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let (ours, disk) = (mount.path("story"), world.make_dir("story"));
    fs::create_dir(&ours).unwrap();
    let told = story(&world, &ours);
    assert_eq!(told, story(&world, &disk));
    assert!(told.contains("default:user:1000:rwx"), "{told}");
    mount.umount().ok();
    // They come back with the metadata.
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let mount = volume.mount();
    let mut list = world.command("bash");
    list.args(["-c", "find . ! -type l | LC_ALL=C sort | xargs getfacl -n"])
        .current_dir(mount.path("story"));
    let back = run(list, Duration::from_mins(1)).ok().stdout;
    assert!(told.starts_with(&back), "{back}");
}

#[test]
fn the_kernel_grants_what_a_list_grants_and_no_more() {
    let Some(world) = setup("acl::enforced") else { return };
    fs::set_permissions(world.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let file = mount.path("file");
    fs::write(&file, b"for some\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let run_as = |user: &str, script: &str| -> Run {
        let mut command = world.command("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups", "bash", "-c", script]);
        command.current_dir(&mount.at);
        run(command, Duration::from_mins(1))
    };
    let set = |list: &str| {
        let mut command = world.command("setfacl");
        command.args(["-m", list, "file"]).current_dir(&mount.at);
        run(command, Duration::from_mins(1)).ok();
    };
    run_as("4001", "cat file").fails(1, &["denied"]);
    set("u:4001:r,g:4002:rw");
    assert_eq!(run_as("4001", "cat file").ok().stdout, "for some\n");
    run_as("4001", "echo more >> file").fails(1, &["denied"]);
    run_as("4002", "echo more >> file").ok();
    run_as("4003", "cat file").fails(1, &["denied"]);
    set("m::r");
    run_as("4002", "echo more >> file").fails(1, &["denied"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    run_as("4001", "cat file").fails(1, &["denied"]);
    // Nobody but the owner sets a list; a default one is for directories.
    run_as("4001", "setfacl -m u:4001:rwx file").fails(1, &["not permitted"]);
    let mut command = world.command("setfacl");
    command.args(["-d", "-m", "u:1:r", "file"]).current_dir(&mount.at);
    assert_ne!(run(command, Duration::from_mins(1)).code, 0);
}
