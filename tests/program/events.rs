//! `cairn events`: what happened is there, however the volume ended, and can be
//! followed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Volume, World, wait_until};

/// The events that these words ask for.
fn events(volume: &Volume<'_>, words: &[&str]) -> Vec<Value> {
    let mut all = vec!["--json", "events"];
    all.extend_from_slice(words);
    if !words.contains(&"--limit") {
        all.extend(["--limit", "10000"]);
    }
    let run = volume.cairn(&all).ok();
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

#[test]
fn what_was_decided_is_listed_filtered_and_paged() {
    let world = World::new();
    let volume = world.volume(&["b"], "min=1,target=2");
    volume.cairn(&["policy", "set", "min=1,target=3"]).ok();
    volume.cairn(&["backend", "add", &world.backend_url("c")]).ok();
    volume.cairn(&["backend", "remove", "c"]).ok();
    let all = events(&volume, &[]);
    let wanted = ["policy_set", "backend_added", "backend_removed"];
    assert_eq!(kinds(&all), wanted, "{all:#?}");
    let numbers: Vec<u64> = all.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(all[0]["detail"].as_str().unwrap().contains("target=3"));
    assert_eq!((&all[1]["subject"], &all[1]["severity"]), (&"c".into(), &"notice".into()));
    assert_eq!(
        kinds(&events(&volume, &["--kind", "policy_set,backend_removed"])),
        [wanted[0], wanted[2]]
    );
    assert_eq!(kinds(&events(&volume, &["--subject", "c", "--limit", "1"])), [wanted[2]]);
    assert_eq!(kinds(&events(&volume, &["--severity", "alarm"])), [""; 0]);
    assert_eq!(kinds(&events(&volume, &["--until", "1h"])), [""; 0]);
    assert_eq!(kinds(&events(&volume, &["--since", "1h"])), wanted);
    let after = numbers[0].to_string();
    assert_eq!(kinds(&events(&volume, &["--after", &after])), wanted[1..]);
    let page = volume.cairn(&["events", "--after", "0", "--limit", "2"]).ok();
    assert!(page.stderr.contains(&format!("--after {}", numbers[1])), "{page:#?}");
    assert!(page.stdout.contains("policy_set"));
    volume.cairn(&["events", "--kind", "policy_sat"]).fails(2, &["policy_sat", "policy_set"]);
    volume.cairn(&["events", "--since", "soon"]).fails(2, &["soon", "2h"]);
    volume.cairn(&["events", "--severity", "loud"]).fails(2, &["warning"]);
    volume.cairn(&["events", "--follow"]).fails(2, &["not mounted", "cairn mount"]);
}

#[test]
fn copies_are_events_and_many_of_a_second_are_one() {
    let Some(world) = World::mountable("copies_are_events_and_many_of_a_second_are_one") else {
        return;
    };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    for n in 0..300 {
        fs::write(mount.path(&format!("f{n}")), format!("{n}")).unwrap();
    }
    mount.world.cairn(&["sync", mount.text("").as_str()]).ok();
    let placed = || {
        let all = events(&volume, &["--kind", "copy_placed", "--backend", "b"]);
        all.iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>()
    };
    wait_until("each copy is counted", || placed() == 300);
    wait_until("and each is verified", || {
        let all = events(&volume, &["--kind", "copy_verified", "--backend", "b"]);
        all.iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>() == 300
    });
    assert!(events(&volume, &[]).len() < 200, "the many are few events");
    mount.umount().ok();
    assert_eq!(placed(), 300, "after the unmount, too");
    let all = events(&volume, &[]);
    assert!(kinds(&all).contains(&"mount") && kinds(&all).last() == Some(&"unmount"), "{all:#?}");
}

#[test]
fn events_survive_a_killed_daemon_and_the_loss_of_the_disk() {
    let Some(world) = World::mountable("events_survive_a_killed_daemon_and_the_loss_of_the_disk")
    else {
        return;
    };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    volume.cairn(&["policy", "set", "min=2"]).ok();
    mount.kill();
    let mount = volume.mount();
    let before = events(&volume, &[]);
    assert_eq!(kinds(&before), ["mount", "policy_set", "mount"]);
    mount.umount().ok();
    let before = events(&volume, &[]);
    fs::remove_dir_all(&volume.dir).unwrap();
    let again = Volume { world: &world, dir: world.path("again") };
    again.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let after = events(&again, &[]);
    // The last checkpoint was written before the volume said that it is unmounted.
    let known: Vec<&Value> = before.iter().filter(|event| event["kind"] != "unmount").collect();
    assert!(after.iter().take(known.len()).eq(known), "{after:#?}");
    let recover = after.iter().find(|event| event["kind"] == "recover").unwrap();
    assert!(recover["number"].as_u64() > before.last().unwrap()["number"].as_u64());
}

#[test]
fn a_follower_sees_what_happens_and_ends_with_the_mount() {
    let Some(world) = World::mountable("a_follower_sees_what_happens_and_ends_with_the_mount")
    else {
        return;
    };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let mut command: Command = world.command(env!("CARGO_BIN_EXE_cairn"));
    command.args(["--json", "events", "--follow", "--volume", &volume.text()]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["kind"], "mount");
    volume.cairn(&["policy", "set", "max=5"]).ok();
    let event = next();
    assert_eq!((&event["kind"], &event["subject"]), (&"policy_set".into(), &"volume".into()));
    mount.umount().ok();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(follower.wait().unwrap().success(), "{rest:?}");
}

/// What is written over settings of `[events]`, and hooks.
fn configure(volume: &Volume<'_>, hooks: &str) {
    let path = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("alarm_after_s = 60", "alarm_after_s = 1");
    let text = text.replace("probe_interval_s = 300", "probe_interval_s = 1");
    // Whatever disk the tests run on, its space is no alarm here.
    let text = text.replace("full_percent = 90", "full_percent = 101");
    fs::write(&path, format!("{text}\n{hooks}")).unwrap();
}

/// Takes a backend's folder away, or gives it back.
fn switch(world: &World, name: &str, on: bool) {
    let (here, away) = (world.path(name), world.path(&format!("{name}-away")));
    let (from, to) = if on { (away, here) } else { (here, away) };
    fs::rename(from, to).unwrap();
}

#[test]
fn a_backend_that_is_away_is_an_alarm_told_once_to_a_command_and_cleared_when_it_is_back() {
    let name =
        "a_backend_that_is_away_is_an_alarm_told_once_to_a_command_and_cleared_when_it_is_back";
    let Some(world) = World::mountable(name) else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let (script, told) = (world.path("tell"), world.path("told"));
    let text = "#!/bin/sh\ncat >> \"$1\"\nenv >> \"$1.env\"\n";
    fs::write(&script, text).unwrap();
    make_executable(&script);
    let command = format!("[{:?}, {:?}]", script.display().to_string(), told.display().to_string());
    configure(
        &volume,
        &format!("[[hooks]]\non = [\"backend_down\", \"below_min\"]\ncommand = {command}\n"),
    );
    let mount = volume.mount();
    fs::write(mount.path("a"), b"a").unwrap();
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&told).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let states = || -> Vec<String> {
        lines().iter().map(|line| line["state"].as_str().unwrap().to_owned()).collect()
    };
    let alarms = || volume.status()["alarms"].as_array().unwrap().len();
    switch(&world, "b", false);
    wait_until("the command was told", || states() == ["raised"]);
    let alarm = lines().remove(0);
    assert_eq!((&alarm["alarm"], &alarm["subject"]), (&"backend_down".into(), &"b".into()));
    assert_eq!((&alarm["held_back"], &alarm["version"]), (&0.into(), &1.into()));
    let status = volume.cairn(&["status"]).ok().stdout;
    assert!(status.contains("ALARM") && status.contains("backend_down b since"), "{status}");
    switch(&world, "b", true);
    wait_until("and that it is over", || states() == ["raised", "cleared"]);
    assert_eq!(alarms(), 0);
    // A second time in the same hour is an event, and not told.
    switch(&world, "b", false);
    wait_until("it holds again", || alarms() == 1);
    switch(&world, "b", true);
    wait_until("it is over again", || alarms() == 0);
    assert_eq!(states(), ["raised", "cleared"]);
    let all = events(&volume, &["--backend", "b"]);
    let seen: Vec<&str> =
        kinds(&all).into_iter().filter(|kind| !kind.starts_with("copy_")).collect();
    let once = ["backend_down", "alarm_raised", "backend_back", "alarm_cleared"];
    let twice: Vec<&str> = once.iter().chain(&once).copied().collect();
    let without_noise: Vec<&str> = seen.into_iter().filter(|kind| once.contains(kind)).collect();
    assert_eq!(sorted(&without_noise), sorted(&twice), "{all:#?}");
    let environment = fs::read_to_string(world.path("told.env")).unwrap();
    assert!(environment.contains("CAIRN_ALARM=backend_down"), "{environment}");
    assert!(!environment.contains("CARGO"), "the environment is cleaned: {environment}");
    let stats = volume.cairn(&["stats"]).ok().stdout;
    assert!(stats.contains("cairn_replication_alarms_total{alarm=\"backend_down\"} 2"), "{stats}");
    assert!(
        stats.contains("cairn_daemon_hook_runs_total{by=\"command\",outcome=\"ok\"} 2"),
        "{stats}"
    );
    mount.umount().ok();
}

fn sorted<'k>(kinds: &[&'k str]) -> Vec<&'k str> {
    let mut kinds = kinds.to_vec();
    kinds.sort_unstable();
    kinds
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn hooks_are_tried_and_say_what_came_back() {
    let world = World::new();
    let volume = world.volume(&[], "min=1,target=1");
    let none = volume.cairn(&["hooks", "test"]).ok();
    assert!(none.stderr.contains("[[hooks]]"), "{none:#?}");
    let answers = ["HTTP/1.1 503 Busy\r\n", "HTTP/1.1 204 No Content\r\n", "HTTP/1.1 401 No\r\n"];
    let server = Server::start(&answers);
    let (token, left) = (world.path("token"), world.path("left"));
    fs::write(&token, "Bearer s3cret\n").unwrap();
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let slow = format!("sleep 60 & echo $! > {}; sleep 60", left.display());
    let hooks = [
        "on = [\"corrupt\"]\ncommand = [\"/bin/sh\", \"-c\", \"cat; echo to-stderr >&2; exit 3\"]"
            .to_owned(),
        format!("on = [\"cost\"]\ncommand = [\"/bin/sh\", \"-c\", {slow:?}]\ndeadline_s = 1"),
        format!(
            "on = [\"capacity\"]\nwebhook = \"{}/path-s3cret?key=s3cret\"\nheaders = {{ Authorization = \"file:{}\" }}",
            server.url,
            token.display()
        ),
        format!("on = [\"capacity\"]\nwebhook = \"{}/again\"", server.url),
        "on = [\"capacity\"]\ncommand = [\"/bin/true\"]".to_owned(),
    ];
    configure(&volume, &format!("[[hooks]]\n{}\n", hooks.join("\n[[hooks]]\n")));
    let run = volume.cairn(&["--json", "hooks", "test"]).fails(1, &["3 of 5 hooks failed"]);
    let answer = run.json();
    let hook = |n: usize, key: &str| answer["hooks"][n][key].as_str().unwrap().to_owned();
    assert_eq!(hook(0, "outcome"), "failed");
    assert!(
        hook(0, "answer").contains("exit status: 3") && hook(0, "answer").contains("to-stderr")
    );
    assert!(hook(0, "answer").contains("\"alarm\":\"test\""), "it got JSON: {}", hook(0, "answer"));
    assert_eq!(hook(1, "outcome"), "timeout");
    let pid: i32 = fs::read_to_string(&left).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    wait_until("what it has started is dead, too", || {
        rustix::process::test_kill_process(pid).is_err()
            || fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                .is_ok_and(|stat| stat.contains(") Z "))
    });
    assert_eq!(hook(2, "outcome"), "ok", "a 503 is tried again: {answer:#}");
    assert_eq!((hook(3, "outcome"), hook(4, "outcome")), ("failed".into(), "ok".into()));
    assert!(hook(3, "answer").contains("401"), "{answer:#}");
    assert!(!run.stdout.contains("s3cret"), "{run:#?}");
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "a 401 is not tried again: {requests:#?}");
    for request in &requests[..2] {
        assert!(request.starts_with("POST /path-s3cret?key=s3cret HTTP/1.1"), "{request}");
        assert!(request.to_lowercase().contains("authorization: bearer s3cret"), "{request}");
        let body: Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((&body["alarm"], &body["state"]), (&"test".into(), &"raised".into()));
    }
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let run = volume.cairn(&["hooks", "test"]).fails(1, &["hooks failed"]);
    assert!(run.stdout.contains("chmod 600"), "{run:#?}");
}

#[test]
fn a_webhook_is_told_of_an_alarm_of_a_mount_and_a_failure_is_an_event() {
    let name = "a_webhook_is_told_of_an_alarm_of_a_mount_and_a_failure_is_an_event";
    let Some(world) = World::mountable(name) else { return };
    let volume = world.volume(&["b"], "min=2,target=2,max=2");
    let server = Server::start(&["HTTP/1.1 200 OK\r\n", "HTTP/1.1 403 No\r\n"]);
    let hooks = format!("[[hooks]]\non = [\"below_min\"]\nwebhook = \"{}/\"\n", server.url);
    configure(&volume, &hooks);
    let mount = volume.mount();
    switch(&world, "b", false);
    fs::write(mount.path("a"), b"a").unwrap();
    wait_until("it was told", || !server.requests().is_empty());
    let request = server.requests().remove(0);
    assert!(request.contains("\"alarm\":\"below_min\"") && request.contains("raised"), "{request}");
    switch(&world, "b", true);
    wait_until("it was told again", || server.requests().len() == 2);
    assert!(server.requests()[1].contains("cleared"));
    let failed = || events(&volume, &["--kind", "hook_failed"]);
    wait_until("the refusal is an event", || failed().len() == 1);
    assert!(failed()[0]["detail"].as_str().unwrap().contains("403"), "{:#?}", failed());
    mount.umount().ok();
}

/// Answers HTTP requests on a loopback port, one a connection, with these heads.
struct Server {
    url: String,
    requests: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: &[&str]) -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let seen = std::sync::Arc::clone(&requests);
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let count = stream.read(&mut buffer).unwrap();
                    bytes.extend_from_slice(&buffer[..count]);
                    let text = String::from_utf8_lossy(&bytes);
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.to_lowercase();
                    let length = length.split("content-length: ").nth(1).unwrap();
                    let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
                    if body.len() >= length || count == 0 {
                        break;
                    }
                }
                // Recorded first: who was answered is seen.
                seen.lock().unwrap().push(String::from_utf8_lossy(&bytes).into_owned());
                let rest = "content-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(format!("{answer}{rest}").as_bytes()).unwrap();
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}
