//! Programs that people run on a filesystem, each as its users do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use crate::support::{Mount, Run, World, difference, make_tree, run, skip, snapshot};

/// A world whose machine has all of these programs.
fn with(test: &str, programs: &[&str]) -> Option<World> {
    let world = World::mountable(test)?;
    for program in programs {
        if Command::new(program).arg("--version").output().is_err() {
            skip(test, &format!("{program} is not installed"));
            return None;
        }
    }
    Some(world)
}

/// Runs a script in the mount, under `set -eu`.
fn script(mount: &Mount<'_>, text: &str) -> Run {
    let mut bash = mount.world.command("bash");
    bash.args(["-c", &format!("set -euo pipefail\n{text}")]).current_dir(&mount.at);
    run(bash, Duration::from_mins(4)).ok()
}

#[test]
fn git_clones_packs_checks_and_finds_nothing_changed() {
    let Some(world) = with("programs::git", &["git"]) else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    script(
        &mount,
        r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q first && cd first
for n in $(seq 40); do
    mkdir -p "d$((n % 5))"; seq "$n" 500 > "d$((n % 5))/f$n"; git add .; git commit -qm "$n"
done
git branch old HEAD~20
cd .. && git clone -q first second && cd second
git checkout -q origin/old && git checkout -q - && git gc -q --aggressive && git fsck --strict
[ -z "$(git status --porcelain)" ] && [ "$(git log --oneline | wc -l)" = 40 ]
echo changed >> d1/f1; [ "$(git status --porcelain)" = " M d1/f1" ]; git stash -q; git stash pop -q
git worktree add -q ../third old && git worktree remove ../third
"#,
    );
    mount.umount().ok();
    let mount = volume.mount();
    script(
        &mount,
        "cd second && git fsck --strict && [ \"$(git status --porcelain)\" = ' M d1/f1' ]",
    );
}

#[test]
fn git_clones_collects_and_checks_a_real_repository() {
    let Some(world) = with("programs::git_real", &["git"]) else { return };
    let here = env!("CARGO_MANIFEST_DIR");
    if !std::path::Path::new(here).join(".git").exists() {
        return skip("programs::git_real", "these sources are not a git repository");
    }
    let volume = world.volume(&["b"], "level=LOCAL_DURABILITY,min=1,target=2,max=2");
    let mount = volume.mount();
    let same = "[ -z \"$(git status --porcelain)\" ] && git fsck --full --strict";
    script(
        &mount,
        &format!(
            r#"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git clone -q --no-local {here} repository && cd repository
{same}
git repack -q -a -d -f --depth=50 --window=10
git gc -q --prune=now
{same}
[ "$(git rev-parse HEAD)" = "$(git -C {here} rev-parse HEAD)" ]
git archive HEAD | tar -x --one-top-level=../archive
for file in $(git ls-files | head -200); do cmp "$file" "../archive/$file"; done
"#
        ),
    );
    mount.umount().ok();
    let mount = volume.mount();
    script(&mount, &format!("cd repository && {same}"));
}

#[test]
fn sqlite_keeps_its_promises_in_both_journal_modes_with_two_writers() {
    let Some(world) = with("programs::sqlite", &["sqlite3"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    for mode in ["wal", "delete"] {
        let said = script(
            &mount,
            &format!(
                r#"
sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t(who, n);' >/dev/null
writer() {{
    for n in $(seq 60); do
        echo "BEGIN IMMEDIATE; INSERT INTO t VALUES('$1', $n); COMMIT;"
    done | sqlite3 -cmd '.timeout 60000' {mode}.db
}}
writer a & first=$!
writer b & second=$!
wait $first; wait $second
sqlite3 {mode}.db "SELECT who, count(*), sum(n) FROM t GROUP BY who; PRAGMA integrity_check;"
"#
            ),
        );
        assert_eq!(said.stdout, "a|60|1830\nb|60|1830\nok\n", "{mode}");
    }
    mount.umount().ok();
    let mount = volume.mount();
    assert_eq!(script(&mount, "sqlite3 wal.db 'PRAGMA integrity_check'").stdout, "ok\n");
}

#[test]
fn sqlite_loses_no_committed_row_when_the_daemon_is_killed() {
    let Some(world) = with("programs::sqlite_killed", &["sqlite3"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    for mode in ["wal", "delete"] {
        let mount = volume.mount();
        let rows = world.path(&format!("rows-{mode}"));
        let mut writer = world
            .command("bash")
            .arg("-c")
            // A row is noted outside only after its commit returned.
            .arg(format!(
                "sqlite3 {mode}.db 'PRAGMA journal_mode={mode}; CREATE TABLE t(n);' >/dev/null
                for n in $(seq 10000); do
                    sqlite3 {mode}.db \"PRAGMA synchronous=FULL; INSERT INTO t VALUES($n);\" || exit 0
                    echo $n >> {}
                done",
                rows.display()
            ))
            .current_dir(&mount.at)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        crate::support::wait_until("rows are committed", || {
            fs::read_to_string(&rows).is_ok_and(|text| text.lines().count() > 25)
        });
        mount.kill();
        writer.wait().unwrap();
        let noted = fs::read_to_string(&rows).unwrap().lines().count();
        let mount = volume.mount();
        let found = script(
            &mount,
            &format!("sqlite3 {mode}.db 'PRAGMA integrity_check; SELECT count(*), max(n) FROM t'"),
        );
        let (check, count) = found.stdout.trim().split_once('\n').unwrap();
        let (count, most) = count.split_once('|').unwrap();
        assert_eq!((check, count), ("ok", most), "{mode}: a gap");
        assert!(count.parse::<usize>().unwrap() >= noted, "{mode}: {count} of {noted} rows");
        mount.umount().ok();
        volume.cairn(&["fsck"]).ok();
    }
}

#[test]
fn tar_and_rsync_carry_everything_and_find_no_difference_the_second_time() {
    let Some(world) = with("programs::tar", &["tar", "rsync"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    make_tree(&world.path("tree"));
    let original = snapshot(&world.path("tree"));
    let tree = world.path("tree");
    let tree = tree.to_str().unwrap();
    script(
        &mount,
        &format!(
            r#"
mkdir there back
tar -C {tree} --xattrs --xattrs-include='*' --acls --sparse -cf all.tar .
tar -C there --xattrs --xattrs-include='*' --acls -xpf all.tar --numeric-owner
tar -C there --xattrs --xattrs-include='*' --acls --sparse -cf again.tar .
tar -C back --xattrs --xattrs-include='*' --acls -xpf again.tar --numeric-owner
rsync -aHAX --modify-window=-1 --checksum {tree}/ synced/
[ -z "$(rsync -aHAX --modify-window=-1 --checksum --itemize-changes --delete {tree}/ synced/)" ]
"#
        ),
    );
    for copy in ["there", "back", "synced"] {
        assert_eq!(difference(&original, &snapshot(&mount.path(copy))), [""; 0], "{copy}");
    }
}

#[test]
fn editors_archives_and_locks_work() {
    let Some(world) = with("programs::small", &["zip", "unzip", "flock"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    script(
        &mount,
        r#"
# Save by rename, with a backup link, as editors do.
echo one > text; chmod 640 text
for n in 1 2 3; do
    ln -f text text~; echo "$n" > .text.swp; sync .text.swp; chmod --reference=text .text.swp; mv .text.swp text
done
[ "$(cat text)" = 3 ] && [ "$(cat text~)" = 2 ] && [ "$(stat -c %a text)" = 640 ]
sed -i s/3/4/ text; [ "$(cat text)" = 4 ]
# Archives.
mkdir many; for n in $(seq 300); do echo "$n" > "many/$n"; done
zip -qr many.zip many; unzip -q many.zip -d out; diff -r many out/many
# Appenders lose no line.
for who in a b c d; do (for n in $(seq 200); do echo "$who $n" >> log; done) & done; wait
[ "$(wc -l < log)" = 800 ] && [ "$(sort -u log | wc -l)" = 800 ]
# Two processes and one lock.
echo 0 > counter
for who in a b c; do
    (for _ in $(seq 40); do flock lock bash -c 'echo $(($(cat counter) + 1)) > counter'; done) &
done; wait
[ "$(cat counter)" = 120 ]
# Removal under readers.
find . -type f -exec cat {} + > /dev/null & du -s . > /dev/null; rm -rf many out; wait || true
[ ! -e many ] && [ ! -e out ]
"#,
    );
}

#[test]
fn a_crate_is_built_on_the_mount() {
    let Some(world) = with("programs::cargo", &["cargo"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    fs::create_dir_all(mount.path("made/src")).unwrap();
    let manifest =
        "[package]\nname = \"made\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(mount.path("made/Cargo.toml"), manifest).unwrap();
    let program = "fn main() { println!(\"{}\", made::answer()); }\n";
    fs::write(mount.path("made/src/main.rs"), program).unwrap();
    fs::write(mount.path("made/src/lib.rs"), "pub fn answer() -> u32 { 42 }\n").unwrap();
    // The toolchain is the user's: its home is not the test's.
    let home = std::env::var("HOME").unwrap_or_default();
    let said = script(
        &mount,
        &format!(
            "cd made; export HOME={home} CARGO_TARGET_DIR=target CARGO_NET_OFFLINE=true
cargo run -q; touch src/lib.rs; cargo run -q; cargo clean -q; [ ! -e target/debug ]"
        ),
    );
    assert_eq!(said.stdout, "42\n42\n");
}

#[test]
fn an_ordinary_program_sees_one_file_through_maps_and_writes() {
    let Some(world) = with("programs::maps", &["python3"]) else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let said = script(
        &mount,
        r#"
python3 - <<'PY'
import mmap, os
fd = os.open("mapped", os.O_RDWR | os.O_CREAT, 0o644)
os.ftruncate(fd, 1 << 20)
shared = mmap.mmap(fd, 1 << 20)
os.pwrite(fd, b"written", 5000)
assert shared[5000:5007] == b"written"
pid = os.fork()
if pid == 0:
    shared[9000:9005] = b"child"
    shared.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert shared[9000:9005] == b"child" and os.pread(fd, 5, 9000) == b"child"
shared[0:6] = b"mapped"
shared.flush()
shared.close()
os.close(fd)
with open("mapped", "rb") as file:
    data = file.read()
assert data[:6] == b"mapped" and data[5000:5007] == b"written" and len(data) == 1 << 20
direct = os.open("mapped", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
buffer[:] = b"d" * 4096
assert os.pwritev(direct, [buffer], 8192) == 4096
os.close(direct)
assert open("mapped", "rb").read()[8192:12288] == b"d" * 4096
print("ok")
PY
"#,
    );
    assert_eq!(said.stdout, "ok\n");
    assert_eq!(fs::metadata(mount.path("mapped")).unwrap().permissions().mode() & 0o777, 0o644);
}

/// As file servers keep files: by handles, which outlive mounts (root only).
#[test]
fn handles_of_files_and_directories_open_them_after_a_remount_and_a_rename() {
    let Some(world) = with("programs::handles", &["python3"]) else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("programs::handles", "open_by_handle_at is for root");
    }
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let by_handle = r"
import ctypes, os, pickle, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_char * 128)]
def handle(path):
    h, mount = Handle(bytes=128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, path.encode(), ctypes.byref(h), ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return bytes(h)
def opened(raw, flags):
    h, root = Handle.from_buffer_copy(raw), os.open('.', os.O_RDONLY)
    fd = libc.open_by_handle_at(root, ctypes.byref(h), flags)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    return fd
";
    let python = |mount: &Mount<'_>, text: &str| {
        script(mount, &format!("python3 - <<'PY'\n{by_handle}\n{text}\nPY\n")).stdout
    };
    let mount = volume.mount();
    python(
        &mount,
        "
os.mkdir('d'); open('d/f', 'w').write('content'); open('d/gone', 'w').write('x')
pickle.dump([handle(p) for p in ('d', 'd/f', 'd/gone')], open('handles', 'wb'))
os.rename('d/f', 'moved'); os.unlink('d/gone')",
    );
    mount.umount().ok();
    let mount = volume.mount();
    let said = python(
        &mount,
        "
d, f, gone = pickle.load(open('handles', 'rb'))
print(os.listdir(opened(d, os.O_RDONLY)), os.read(opened(f, os.O_RDONLY), 100), opened(gone, os.O_RDONLY))",
    );
    assert_eq!(said, "[] b'content' Stale file handle\n");
}
