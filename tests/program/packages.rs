//! Package clients on the mount, from their registries, as their users run them.

use std::process::Command;
use std::time::Duration;

use crate::support::{World, run, skip};

/// The registry answers this client.
fn reachable(test: &str, program: &str, words: &[&str]) -> bool {
    let answer = Command::new(program).args(words).output();
    let answers = answer.is_ok_and(|answer| answer.status.success());
    if !answers {
        skip(
            test,
            &format!("`{program} {}` fails: not installed, or no registry", words.join(" ")),
        );
    }
    answers
}

/// Runs `text` in the mount with the clients' caches on the mount, too.
fn installs(test: &str, probe: (&str, &[&str]), text: &str, again: &str) {
    let Some(world) = World::mountable(test) else { return };
    if !reachable(test, probe.0, probe.1) {
        return;
    }
    let volume = world.volume(&["b"], "level=LOCAL_DURABILITY,min=1,target=2,max=2");
    let script = |mount: &crate::support::Mount<'_>, text: &str| {
        let mut bash = mount.world.command("bash");
        bash.args(["-c", &format!("set -euo pipefail\n{text}")]).current_dir(&mount.at);
        // Which registry they ask is in the user's own settings.
        if let Some(home) = std::env::var_os("HOME") {
            bash.env("HOME", home);
        }
        bash.env("NPM_CONFIG_CACHE", mount.path("npm-cache"))
            .env("PIP_CACHE_DIR", mount.path("pip-cache"));
        run(bash, Duration::from_mins(5)).ok()
    };
    let mount = volume.mount();
    script(&mount, text);
    mount.umount().ok();
    let mount = volume.mount();
    script(&mount, again);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn pip_installs_into_an_environment_that_works_after_a_remount() {
    let again = "venv/bin/python -c 'import numpy; assert numpy.arange(10).sum() == 45'
venv/bin/python -m pip check";
    let text = format!(
        "python3 -m venv venv
venv/bin/python -m pip -q install numpy==2.2.6 requests==2.32.5
{again}
# A second environment comes from the cache.
python3 -m venv --copies second
second/bin/python -m pip -q install numpy==2.2.6
second/bin/python -m pip -q uninstall -y numpy
[ ! -e second/lib/python3*/site-packages/numpy ]"
    );
    installs(
        "packages::pip",
        ("python3", &["-m", "pip", "index", "versions", "six"]),
        &text,
        again,
    );
}

#[test]
fn npm_installs_a_tree_that_works_after_a_remount() {
    let again = "cd project && npm ls --all >/dev/null && node_modules/.bin/ipfs-car --version";
    let text = "mkdir project && cd project && npm init -y >/dev/null
npm install --silent --no-fund --no-audit ipfs-car@3.1.0
find node_modules -type f | wc -l
cp -a node_modules before && rm -rf node_modules
npm ci --silent --no-fund --no-audit
diff -r --no-dereference -x .package-lock.json before node_modules
rm -rf before";
    installs("packages::npm", ("npm", &["view", "ipfs-car@3.1.0", "version"]), text, again);
}
