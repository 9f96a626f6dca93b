//! Verbs on volumes that nobody has mounted, and bad input.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::World;

#[test]
fn help_has_examples_and_exit_codes_and_every_verb_of_the_manual() {
    let world = World::new();
    let help = world.cairn(&["--help"]).ok().stdout;
    let verbs = [
        "init",
        "mount",
        "umount",
        "status",
        "info",
        "cid",
        "sync",
        "backend",
        "policy",
        "export",
        "import",
        "car",
        "checkpoint",
        "recover",
        "fsck",
        "config",
        "stats",
        "events",
        "hooks",
        "completions",
        "man",
    ];
    for verb in verbs {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} in {help}");
        world.cairn(&[verb, "--help"]).ok();
    }
    assert!(help.contains("Exit codes"), "{help}");
    for verb in ["init", "mount", "umount", "recover", "cid"] {
        assert!(world.cairn(&[verb, "--help"]).ok().stdout.contains("Example"), "{verb}");
    }
}

#[test]
fn completions_and_man_pages_are_generated() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.cairn(&["completions", shell]).ok().stdout.contains("recover"), "{shell}");
    }
    world.cairn(&["man", world.path("man1").to_str().unwrap()]).ok();
    for page in ["cairn.1", "cairn-mount.1", "cairn-recover.1"] {
        let text = fs::read_to_string(world.path("man1").join(page))
            .unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH"));
    }
}

#[test]
fn a_path_that_is_no_volume_is_said_to_be_none() {
    let world = World::new();
    let dir = world.make_dir("plain");
    for verb in
        [&["status"][..], &["fsck"], &["config", "show"], &["backend", "list"], &["checkpoint"]]
    {
        let mut words = verb.to_vec();
        words.extend(["--volume", dir.to_str().unwrap()]);
        world.cairn(&words).fails(3, &["is not a cairn volume"]);
    }
    world.cairn(&["info", dir.to_str().unwrap()]).fails(3, &["not in a"]);
    world.cairn(&["umount", dir.to_str().unwrap()]).fails(3, &["not a cairn mount"]);
}

#[test]
fn init_refuses_a_volume_and_a_folder_with_other_things_in_it() {
    let world = World::new();
    let volume = world.volume(&[], "");
    volume.cairn(&["init"]).fails(2, &["is a cairn volume already"]);
    let dir = world.make_dir("full");
    fs::write(dir.join("thesis.tex"), b"").unwrap();
    world.cairn(&["init", "--volume", dir.to_str().unwrap()]).fails(2, &["other files"]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing was added to it");
}

#[test]
fn a_volume_of_a_newer_format_is_refused_untouched() {
    let world = World::new();
    let volume = world.volume(&[], "");
    let path = volume.dir.join("volume.json");
    let newer = fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
    assert!(newer.contains("\"format\": 2"));
    fs::write(&path, &newer).unwrap();
    volume.cairn(&["status"]).fails(1, &["newer", "use a newer cairn"]);
    volume.cairn(&["mount", world.make_dir("mnt").to_str().unwrap()]).fails(1, &["newer"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[test]
fn bad_urls_and_policies_are_refused_with_what_to_write() {
    let world = World::new();
    let init = |words: &[&str]| {
        let mut all = vec!["init", "--volume", "v"];
        all.extend_from_slice(words);
        world.cairn(&all)
    };
    init(&["--backend", "gopher://hole/x"]).fails(2, &["gopher", "file://"]);
    init(&["--backend", "file:///x?colour=red"]).fails(2, &["colour", "domain"]);
    init(&["--policy", "min=4,target=3"]).fails(2, &["min <= target"]);
    init(&["--policy", "copies=3"]).fails(2, &["copies", "target"]);
    init(&["--profile", "unixfs-v9"]).fails(2, &["unixfs-v1-2025"]);
    init(&["--no-such-flag"]).fails(2, &["--no-such-flag"]);
}

#[test]
fn a_read_only_directory_is_no_new_backend_and_is_named() {
    if rustix::process::geteuid().is_root() {
        // Permissions do not bind root; a file in the way does.
        let world = World::new();
        fs::write(world.path("file"), b"").unwrap();
        let below = world.path("file/b");
        let run = world.cairn(&["init", "--volume", "v", "--backend", below.to_str().unwrap()]);
        assert_ne!(run.code, 0);
        assert!(run.stderr.contains("file/b"), "{run:?}");
        return;
    }
    let world = World::new();
    let dir = world.make_dir("closed");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    let below = dir.join("b");
    world
        .cairn(&["init", "--volume", "v", "--backend", below.to_str().unwrap()])
        .fails(1, &["closed/b"]);
}

#[test]
fn backends_are_added_listed_shown_tested_and_removed() {
    let world = World::new();
    let volume = world.volume(&["b"], "");
    volume.cairn(&["backend", "add", &world.backend_url("c")]).ok();
    let list = volume.cairn(&["--json", "backend", "list"]).ok().json();
    let ids: Vec<&str> =
        list.as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["local", "b", "c"]);
    let shown = volume.cairn(&["--json", "backend", "show", "c"]).ok().json();
    assert_eq!(shown["domain"], "domain:c");
    volume.cairn(&["backend", "show", "nope"]).fails(3, &["nope"]);
    let tested = world.cairn(&["backend", "test", world.path("c").to_str().unwrap()]).ok().stdout;
    for step in ["put", "get", "range", "presence", "list", "delete", "name"] {
        assert!(tested.contains(step), "{step} in {tested}");
    }
    volume.cairn(&["backend", "remove", "nope"]).fails(3, &["nope"]);
    volume.cairn(&["backend", "remove", "c"]).ok();
    let config = fs::read_to_string(volume.dir.join("cairn.toml")).unwrap();
    assert!(config.contains("id = \"b\"") && !config.contains("id = \"c\""), "{config}");
    assert!(config.contains('#'), "comments are kept");
}

#[test]
fn a_backend_inside_the_volume_is_refused() {
    let world = World::new();
    let volume = world.volume(&[], "");
    let inside = volume.dir.join("b");
    volume.cairn(&["backend", "add", inside.to_str().unwrap()]).fails(2, &["inside each other"]);
    assert!(!inside.exists());
}

#[test]
fn settings_show_where_each_comes_from_and_unknown_keys_get_a_hint() {
    let world = World::new();
    let volume = world.volume(&[], "");
    let path = volume.cairn(&["config", "path"]).ok().stdout;
    assert_eq!(path.trim(), volume.dir.join("cairn.toml").to_str().unwrap());
    let shown = volume.cairn(&["config", "show"]).ok().stdout;
    assert!(
        shown.lines().any(|line| line.contains("log.level") && line.contains("info")),
        "{shown}"
    );
    let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
    command.args(["config", "show", "--volume", &volume.text()]).env("CAIRN_LOG_LEVEL", "debug");
    let shown = crate::support::run(command, std::time::Duration::from_secs(20)).ok().stdout;
    assert!(
        shown.lines().any(|line| line.contains("log.level") && line.contains("environment")),
        "{shown}"
    );
    let text = fs::read_to_string(path.trim()).unwrap();
    let more = "\n[policies]\nrare = \"target=2\"\n\n[[hooks]]\non = [\"corrupt\", \"cost\"]\n\
                webhook = \"https://hooks.example/a-secret\"\nheaders = { X-Key = \"hidden\" }\n";
    fs::write(path.trim(), format!("{text}{more}")).unwrap();
    let shown = volume.cairn(&["config", "show"]).ok().stdout;
    for wanted in ["policies.rare = \"target=2\"", "webhook https://hooks.example", "corrupt, cost"]
    {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    let json = volume.cairn(&["--json", "config", "show"]).ok().stdout;
    for secret in ["a-secret", "hidden"] {
        assert!(!shown.contains(secret) && !json.contains(secret), "{shown}{json}");
    }
    fs::write(path.trim(), text.replacen("delta_interval_s", "delta_intervall_s", 1)).unwrap();
    volume.cairn(&["status"]).fails(2, &["delta_intervall_s", "did you mean", "delta_interval_s"]);
}

#[test]
fn the_policy_is_shown_and_set() {
    let world = World::new();
    let volume = world.volume(&[], "min=1,target=2,max=3");
    assert!(
        volume.cairn(&["policy", "show"]).ok().stdout.contains("min=1,target=2,max=3,level=QUORUM")
    );
    volume.cairn(&["policy", "set", "target=3,level=ALL"]).ok();
    assert!(
        volume.cairn(&["policy", "show"]).ok().stdout.contains("min=1,target=3,max=3,level=ALL")
    );
    volume.cairn(&["policy", "set", "min=9"]).fails(2, &["min"]);
}

#[test]
fn cids_are_those_that_ipfs_add_gives() {
    let world = World::new();
    fs::write(world.path("hello"), b"hello world\n").unwrap();
    fs::write(world.path("empty"), b"").unwrap();
    let cid = |words: &[&str]| {
        let stdout = world.cairn(words).ok().stdout;
        stdout.split_whitespace().next().unwrap().to_owned()
    };
    // `ipfs add -Q --profile unixfs-v1-2025` and Kubo's older default.
    assert_eq!(
        cid(&["cid", "hello"]),
        "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
    );
    assert_eq!(
        cid(&["cid", "--profile", "unixfs-v0-2015", "hello"]),
        "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"
    );
    assert_eq!(
        cid(&["cid", "empty"]),
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    );
    let dir = world.make_dir("dir");
    fs::write(dir.join("a"), b"a").unwrap();
    let plain = cid(&["cid", "dir"]);
    fs::write(dir.join(".hidden"), b"x").unwrap();
    assert_ne!(cid(&["cid", "dir"]), plain, "hidden names count");
    assert_eq!(cid(&["cid", "--no-hidden", "dir"]), plain);
    world.cairn(&["cid", "nowhere"]).fails(3, &["nowhere"]);
}

#[test]
fn a_new_volume_is_clean_and_says_so() {
    let world = World::new();
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    volume.cairn(&["fsck", "--deep"]).ok();
    let status = volume.status();
    assert_eq!((&status["files"], &status["state"]), (&0.into(), &"ok".into()));
    assert!(volume.cairn(&["stats"]).ok().stdout.contains("# TYPE cairn_"));
    volume.cairn(&["sync"]).ok();
}

#[test]
fn the_default_volume_is_in_the_data_folder_or_where_the_variable_says() {
    let world = World::new();
    world.cairn(&["init"]).ok();
    assert!(world.path(".local/share/cairn/default/volume.json").exists());
    let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
    command.args(["init"]).env("CAIRN_VOLUME", world.path("elsewhere"));
    crate::support::run(command, std::time::Duration::from_secs(20)).ok();
    assert!(world.path("elsewhere/volume.json").exists());
}

#[test]
fn a_volumes_folder_is_for_its_owner_only() {
    let world = World::new();
    let volume = world.volume(&[], "");
    assert_eq!(fs::metadata(&volume.dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_backend_on_the_same_device_is_told_to_count_no_further() {
    let world = World::new();
    let volume = world.volume(&[], "");
    let added = volume.cairn(&["backend", "add", world.path("b").to_str().unwrap()]).ok();
    assert!(added.stderr.contains("same device as `local`"), "{added:?}");
    assert!(volume.cairn(&["status"]).ok().stdout.contains("add a backend on another disk"));
}
