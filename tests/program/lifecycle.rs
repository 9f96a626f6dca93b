//! Mounting, unmounting, and what is refused.

use std::fs;
use std::path::Path;

use rustix::process::{Signal, kill_process};

use crate::support::{World, detach, run, wait_until};

fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == at.to_str())
}

#[test]
fn a_mount_makes_its_volume_and_answers_when_the_verb_returns() {
    let Some(world) = World::mountable("lifecycle::a_mount_makes_its_volume") else { return };
    let at = world.make_dir("mnt");
    let (volume, backend) = (world.path("v"), world.backend_url("b"));
    let (at_text, volume) = (at.to_str().unwrap(), volume.to_str().unwrap());
    world.cairn(&["mount", at_text, "--volume", volume, "--backend", &backend]).ok();
    assert!(is_mounted(&at));
    fs::write(at.join("file"), b"x").unwrap();
    let status = world.cairn(&["--json", "status", at.to_str().unwrap()]).ok().json();
    assert_eq!(status["files"], 1);
    world.cairn(&["umount", at.to_str().unwrap()]).ok();
    assert!(!is_mounted(&at));
    assert!(!at.join("file").exists());
}

#[test]
fn status_has_every_field_that_programs_read() {
    let Some(world) = World::mountable("lifecycle::status") else { return };
    let volume = world.volume(&["b", "c"], "");
    let mount = volume.mount();
    fs::write(mount.path("one"), b"one").unwrap();
    fs::write(mount.path("two"), vec![2; 2_000_000]).unwrap();
    volume.cairn(&["sync"]).ok();
    let status = volume.status();
    for field in ["volume", "state", "files", "bytes", "pins", "queue", "backends", "checkpoint"] {
        assert!(!status[field].is_null(), "{field}: {status}");
    }
    for field in ["total", "at_target", "below_target", "below_min", "over_max", "unverified"] {
        assert!(status["pins"][field].is_u64(), "pins.{field}: {status}");
    }
    assert!(status["queue"]["pending"].is_u64() && status["queue"]["failed"].is_u64());
    assert_eq!((&status["files"], &status["bytes"]), (&2.into(), &2_000_003.into()));
    let backends = status["backends"].as_array().unwrap();
    let ids: Vec<&str> = backends.iter().map(|backend| backend["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["local", "b", "c"]);
    for backend in backends {
        for field in ["kind", "url", "state"] {
            assert!(backend[field].is_string(), "{field}: {backend}");
        }
        assert!(backend["copies"].is_u64(), "{backend}");
    }
    wait_until("everything is at target", || volume.status()["pins"]["at_target"] == 2);
    assert_eq!(volume.status()["state"], "ok");
    let checkpoint = volume.cairn(&["--json", "checkpoint", "--now"]).ok().json();
    assert!(
        checkpoint["sequence"].as_u64().unwrap() >= 1 && checkpoint["copies"] == 3,
        "{checkpoint}"
    );
}

#[test]
fn a_second_mount_of_a_volume_is_refused_with_the_holders_pid() {
    let Some(world) = World::mountable("lifecycle::a_second_mount") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let other = world.make_dir("other");
    let pid = mount.pid().as_raw_nonzero().to_string();
    volume.cairn(&["mount", other.to_str().unwrap()]).fails(5, &[&pid]);
    assert!(!is_mounted(&other) && is_mounted(&mount.at));
}

#[test]
fn the_volume_and_the_mountpoint_must_not_lie_inside_each_other() {
    let Some(world) = World::mountable("lifecycle::inside_each_other") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let inside = volume.dir.join("mnt");
    fs::create_dir(&inside).unwrap();
    volume.cairn(&["mount", inside.to_str().unwrap()]).fails(2, &["inside each other"]);
    // Through a link too.
    std::os::unix::fs::symlink(&volume.dir, world.path("link")).unwrap();
    let linked = world.path("link/mnt");
    volume.cairn(&["mount", linked.to_str().unwrap()]).fails(2, &["inside each other"]);
    // And a backend below the mountpoint.
    let at = world.make_dir("mnt");
    volume.cairn(&["backend", "add", at.join("b").to_str().unwrap()]).ok();
    volume.cairn(&["mount", at.to_str().unwrap()]).fails(2, &["inside each other"]);
}

#[test]
fn a_missing_mountpoint_and_a_file_are_refused_with_advice() {
    let Some(world) = World::mountable("lifecycle::a_missing_mountpoint") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let run = volume.cairn(&["mount", world.path("nowhere").to_str().unwrap()]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("mkdir"), "{run:?}");
    fs::write(world.path("file"), b"").unwrap();
    let run = volume.cairn(&["mount", world.path("file").to_str().unwrap()]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("directory"), "{run:?}");
    // Nothing holds the volume after a mount that failed.
    volume.cairn(&["status"]).ok();
}

#[test]
fn an_unknown_mount_option_names_the_known_ones() {
    let world = World::new();
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let at = world.make_dir("mnt");
    volume
        .cairn(&["mount", at.to_str().unwrap(), "-o", "noatme"])
        .fails(2, &["noatme", "noatime", "wait_on="]);
    volume
        .cairn(&["mount", at.to_str().unwrap(), "-o", "level=SOME"])
        .fails(2, &["SOME", "QUORUM"]);
}

#[test]
fn options_of_a_mount_override_the_policy_for_this_mount() {
    let Some(world) = World::mountable("lifecycle::options_override") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount_with(&[
        "-o",
        "defaults,noatime,_netdev,x-systemd.automount,level=ALL,wait_on=fsync",
    ]);
    fs::write(mount.path("file"), b"x").unwrap();
    let shown = world.cairn(&["policy", "show", &mount.text("file")]).ok().stdout;
    assert!(shown.contains("level=ALL") && shown.contains("wait_on=fsync"), "{shown}");
    mount.umount().ok();
    assert!(volume.cairn(&["policy", "show"]).ok().stdout.contains("level=QUORUM"));
}

#[test]
fn mount_8_reaches_the_program_as_mount_cairn() {
    let Some(world) = World::mountable("lifecycle::mount_cairn") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let (at, helper) = (world.make_dir("mnt"), world.path("mount.cairn"));
    let options = "rw,noatime,nodiratime,norelatime,nostrictatime,nosymfollow,silent,user";
    // A link, or a copy: there is no other name to go by then.
    let binary = env!("CARGO_BIN_EXE_cairn");
    for install in
        [|from, to| std::os::unix::fs::symlink(from, to), |from, to| fs::copy(from, to).map(drop)]
            as [fn(&str, &std::path::Path) -> std::io::Result<()>; 2]
    {
        install(binary, &helper).unwrap();
        let mut command = world.command(helper.to_str().unwrap());
        command.args([volume.text().as_str(), at.to_str().unwrap(), "-n", "-o", options]);
        let said = run(command, std::time::Duration::from_mins(1)).ok();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""), "as mount(8) is");
        assert!(is_mounted(&at));
        fs::write(at.join("file"), b"x").unwrap();
        world.cairn(&["umount", at.to_str().unwrap()]).ok();
        fs::remove_file(&helper).unwrap();
    }
}

#[test]
fn root_mounts_have_a_type_of_their_own_and_can_be_remounted() {
    let Some(world) = World::mountable("lifecycle::remount") else { return };
    if !rustix::process::geteuid().is_root() {
        return crate::support::skip("lifecycle::remount", "only root remounts");
    }
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(mount.at.to_str().unwrap())).unwrap();
    assert!(line.contains(" fuse.cairn rw,"), "{line}");
    let helper = world.path("mount.fuse.cairn");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cairn"), &helper).unwrap();
    let remount = |options: &str| {
        let mut command = world.command(helper.to_str().unwrap());
        command.args([volume.text().as_str(), mount.at.to_str().unwrap(), "-o", options]);
        run(command, std::time::Duration::from_mins(1))
    };
    remount("remount,ro,relatime,user_id=0,group_id=0,default_permissions,allow_other").ok();
    assert_eq!(fs::write(mount.path("x"), b"x").unwrap_err().raw_os_error(), Some(30));
    remount("remount,level=ALL").fails(2, &["cairn policy set"]);
    remount("rw,remount").ok();
    fs::write(mount.path("x"), b"x").unwrap();
    let open = fs::File::options().append(true).open(mount.path("x")).unwrap();
    remount("remount,ro").fails(1, &["busy"]);
    drop(open);
}

#[test]
fn a_program_that_runs_is_not_truncated_under_its_feet() {
    let Some(world) = World::mountable("lifecycle::running") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let program = mount.path("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut running = std::process::Command::new(&program).arg("60").spawn().unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
    let refused = rustix::fs::open(&program, flags, rustix::fs::Mode::empty());
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::TXTBSY);
    assert!(fs::metadata(&program).unwrap().len() > 0);
    assert!(running.try_wait().unwrap().is_none(), "the program died");
    running.kill().unwrap();
    running.wait().unwrap();
}

#[test]
fn the_kernels_own_unmount_and_signals_end_the_daemon_cleanly() {
    let Some(world) = World::mountable("lifecycle::other_ends") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let pid = mount.pid();
    fs::write(mount.path("one"), b"1").unwrap();
    detach(&mount.at);
    wait_until("the daemon has ended", || {
        volume.cairn(&["status"]).code == 0 && rustix::process::test_kill_process(pid).is_err()
    });
    mount.forget();
    for (number, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let mount = volume.mount();
        assert_eq!(fs::read(mount.path("one")).unwrap(), b"1");
        fs::write(mount.path(&format!("after-{number}")), b"2").unwrap();
        let pid = mount.pid();
        kill_process(pid, signal).unwrap();
        wait_until("the daemon has ended", || rustix::process::test_kill_process(pid).is_err());
        assert!(!is_mounted(&mount.at));
        mount.forget();
    }
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("after-1")).unwrap(), b"2");
}

#[test]
fn a_busy_mount_is_not_unmounted_and_stays_whole() {
    let Some(world) = World::mountable("lifecycle::busy") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let file = fs::File::create(mount.path("file")).unwrap();
    world.cairn(&["umount", mount.at.to_str().unwrap()]).fails(5, &["busy"]);
    fs::write(mount.path("other"), b"x").unwrap();
    drop(file);
    mount.umount().ok();
}

#[test]
fn pending_copies_keep_the_mount_and_force_leaves_them_for_the_next() {
    let Some(world) = World::mountable("lifecycle::pending") else { return };
    let volume = world.volume(&["b"], "min=2,target=2,max=2");
    let mount = volume.mount_with(&["-o", "wait_on=fsync"]);
    // The backend goes away, as an unplugged disk does.
    fs::rename(world.path("b"), world.path("unplugged")).unwrap();
    fs::write(mount.path("file"), b"waits").unwrap();
    world.cairn(&["umount", "--timeout", "2", mount.at.to_str().unwrap()]).fails(4, &["--force"]);
    assert!(is_mounted(&mount.at), "the mount stays");
    assert_eq!(volume.status()["state"], "at_risk");
    let forced =
        world.cairn(&["--json", "umount", "--force", mount.at.to_str().unwrap()]).ok().json();
    mount.forget();
    assert_eq!(forced["pending"], 1, "{forced}");
    fs::rename(world.path("unplugged"), world.path("b")).unwrap();
    let mount = volume.mount();
    wait_until("the copy has arrived", || volume.status()["pins"]["at_target"] == 1);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"waits");
    mount.umount().ok();
}

#[test]
fn a_backend_that_is_away_at_mount_does_not_stop_it() {
    let Some(world) = World::mountable("lifecycle::away") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    fs::rename(world.path("b"), world.path("unplugged")).unwrap();
    let mount = volume.mount();
    fs::write(mount.path("file"), b"x").unwrap();
    let status = volume.status();
    assert_eq!(
        (&status["state"], &status["backends"][1]["state"]),
        (&"degraded".into(), &"down".into())
    );
    fs::rename(world.path("unplugged"), world.path("b")).unwrap();
    wait_until("the backend is back and caught up", || volume.status()["state"] == "ok");
}

fn copies(world: &World, path: &str) -> usize {
    world.cairn(&["--json", "info", path]).ok().json()["copies"].as_array().unwrap().len()
}

#[test]
fn a_change_of_policy_reaches_what_is_stored_already_and_keeps_overrides() {
    let Some(world) = World::mountable("lifecycle::change_of_policy") else { return };
    let volume = world.volume(&["b", "c"], "min=1,target=1,max=3");
    let mount = volume.mount();
    fs::create_dir(mount.path("precious")).unwrap();
    fs::write(mount.path("precious/thesis"), b"thesis").unwrap();
    fs::write(mount.path("other"), b"other").unwrap();
    assert_eq!(
        (copies(&world, &mount.text("other")), copies(&world, &mount.text("precious/thesis"))),
        (1, 1)
    );
    world.cairn(&["policy", "set", "target=3", &mount.text("precious")]).ok();
    wait_until("the directory has its copies", || {
        copies(&world, &mount.text("precious/thesis")) == 3
    });
    assert_eq!(copies(&world, &mount.text("other")), 1);
    volume.cairn(&["policy", "set", "target=2"]).ok();
    volume.cairn(&["policy", "set", "level=ALL"]).ok();
    wait_until("the rest has its copies", || copies(&world, &mount.text("other")) == 2);
    assert_eq!(
        volume.status()["policy"],
        "min=1,target=2,max=3,level=ALL,wait_on=close,on_degraded=queue"
    );
    assert!(
        world
            .cairn(&["policy", "show", &mount.text("precious/thesis")])
            .ok()
            .stdout
            .contains("target=3")
    );
    mount.umount().ok();
}

#[test]
fn the_cid_of_a_mounted_file_can_be_had_under_another_profile() {
    let Some(world) = World::mountable("lifecycle::another_profile") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::write(mount.path("hello"), b"hello world\n").unwrap();
    std::os::unix::fs::symlink("hello", mount.path("link")).unwrap();
    let cid = |words: &[&str]| world.cairn(words).ok().stdout.split(' ').next().unwrap().to_owned();
    let (hello, link) = (mount.text("hello"), mount.text("link"));
    assert_eq!(
        cid(&["cid", &hello]),
        "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
    );
    assert_eq!(
        cid(&["cid", "--profile", "unixfs-v0-2015", &hello]),
        "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
    );
    assert_eq!(cid(&["cid", &link]), cid(&["cid", "--profile", "unixfs-v1-2025", &link]));
}
