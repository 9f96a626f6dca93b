//! The daemon dies at each named point, once, and what is left is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cairnfs::backends::{Backend, BackendSpec, open};
use cairnfs::content::parse_node;
use cairnfs::runtime::failpoint::NAMES;
use cairnfs::types::cid;

use crate::support::{Ack, Random, Run, Stop, Volume, World, Writer, run, wait_until};

/// Volumes that are worked on at the same time: they wait more than they work.
const PARALLEL: usize = 4;
/// How long a workload may take to reach its point.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where a point is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// While files are written and collected.
    Work,
    /// At the mount after a crash at this other point.
    Opening(&'static str),
    /// At a mount whose journal has a torn tail.
    Journal,
    Import,
    Remove,
    Replace,
    Unmount,
    Recover,
}

fn place_of(point: &str) -> Where {
    match point {
        "store.recover.cut" => Where::Opening("store.pack.appended"),
        "store.recover.discarded" => Where::Opening("store.staging.spilled"),
        "vfs.adopt.adopted" | "vfs.adopt.persisted" => Where::Opening("vfs.fsync.recorded"),
        _ if point.starts_with("metadata.journal.") => Where::Journal,
        _ if point.starts_with("daemon.import.") => Where::Import,
        _ if point.starts_with("daemon.remove.") => Where::Remove,
        _ if point.starts_with("daemon.replace.") || point == "daemon.move.begun" => Where::Replace,
        _ if point.starts_with("daemon.end.") => Where::Unmount,
        _ if point.starts_with("recover.") => Where::Recover,
        _ => Where::Work,
    }
}

/// One volume on its way through one death.
struct Case<'w> {
    volume: Volume<'w>,
    /// Waits for copies, and for the local disk alone.
    writers: [Writer; 2],
    random: Random,
    /// It begins with packs that are mostly garbage.
    half_empty: bool,
    /// `b2` has archives of this form.
    archives: Option<&'static str>,
}

/// Everything happens soon, and often.
const SETTINGS: &[(&str, &str)] = &[
    ("CAIRN_MOUNT_MEMORY_FILE_BYTES", "64KiB"),
    ("CAIRN_STORE_PACK_BYTES", "2MiB"),
    ("CAIRN_STORE_COLLECT_INTERVAL_S", "1"),
    ("CAIRN_CHECKPOINT_DELTA_INTERVAL_S", "1"),
    ("CAIRN_CHECKPOINT_MAX_DELTAS", "4"),
    ("CAIRN_REPLICATION_PROBE_INTERVAL_S", "1"),
    ("CAIRN_REPLICATION_COLLECT_INTERVAL_S", "1"),
    ("CAIRN_REPLICATION_COLLECT_GRACE_S", "0"),
];

/// Points that a workload meets seldom: the first time will do.
const RARE: &[&str] = &[
    // The daemon itself must not wait for an answer then.
    "fuse.",
    "store.pack.begun",
    "store.pack.rolled_over",
    "store.pack.closed",
    "store.compact.",
    "checkpoint.base.",
    "checkpoint.old.",
    "checkpoint.upload.trimmed",
    "collect.compacting",
];

const FAR: &str = "far";
const NEAR: &str = "near";

impl<'w> Case<'w> {
    fn new(world: &'w World, seed: u64, archives: Option<&'static str>) -> Self {
        let policy = "min=2,target=3,max=3,level=QUORUM,on_degraded=fail";
        let b2 = match archives {
            Some(form) => world.archives_url(form, "b2"),
            None => world.backend_url("b2"),
        };
        let volume = world.volume_on(&[world.backend_url("b1"), b2], policy);
        world.make_dir("mnt");
        let mut far = Writer::new(FAR, seed);
        (far.ack, far.in_place) = (Ack::Remote, false);
        let (near, random) = (Writer::new(NEAR, seed + 1), Random::new(seed + 2));
        Self { volume, writers: [far, near], random, half_empty: false, archives }
    }

    fn url(&self, backend: &str) -> String {
        let world = self.volume.world;
        match self.archives {
            Some(form) if backend == "b2" => world.archives_url(form, backend),
            _ => world.backend_url(backend),
        }
    }

    /// A cache so small that something always has to go.
    fn make_cache(&self) {
        let settings = self.volume.dir.join("cairn.toml");
        let text = fs::read_to_string(&settings).unwrap();
        let text = text.replace("role = \"replica\"", "role = \"cache\"");
        let text = text.replace("cache_bytes = \"20GiB\"", "cache_bytes = \"16MiB\"");
        fs::write(&settings, text).unwrap();
    }

    fn at(&self) -> std::path::PathBuf {
        self.volume.world.path("mnt")
    }

    /// `cairn mount`, told to die at `point`.
    fn mount_armed(&self, point: Option<&str>) -> Run {
        let world = self.volume.world;
        let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
        command.arg("mount").arg(self.at()).arg("--volume").arg(&self.volume.dir);
        command.envs(SETTINGS.iter().copied());
        if let Some(point) = point {
            command.env("CAIRN_CRASH_AT", point);
        }
        run(command, Duration::from_mins(1))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.volume.dir.join("daemon.log")).unwrap_or_default()
    }

    /// The daemon is gone, by the point's hand.
    fn expect_death(&self, point: &str) {
        let lock = fs::File::open(self.volume.dir.join("lock")).unwrap();
        wait_until("the daemon is gone", || {
            let how = rustix::fs::FlockOperation::NonBlockingLockShared;
            rustix::fs::flock(&lock, how).is_ok()
        });
        drop(lock);
        crate::support::detach(&self.at());
        let name = point.split(':').next().unwrap();
        assert!(self.log().contains(&format!("killed at {name}")), "{point}: {}", self.log());
    }

    /// False when the mount is dead already.
    fn begin(&mut self) -> bool {
        let at = self.at();
        for writer in &mut self.writers {
            match writer.begin(&at) {
                Ok(()) => {}
                Err(Stop::Dead) => return false,
                Err(Stop::Wrong(reason)) => panic!("{reason}"),
            }
        }
        let near = at.join(NEAR);
        let policy = b"level=LOCAL_DURABILITY,wait_on=fsync";
        let flags = rustix::fs::XattrFlags::empty();
        // A dead mount is met by the writers, too.
        rustix::fs::lsetxattr(near, "user.cairn.policy", policy, flags).unwrap_or(());
        true
    }

    /// Works until the mount is dead; false when it lives after all that.
    fn work(&mut self, most: Duration) -> bool {
        let at = self.at();
        let until = Instant::now() + most;
        let [far, near] = &mut self.writers;
        let seed = self.random.next();
        std::thread::scope(|scope| {
            let at = &at;
            let steps = move |writer: &mut Writer| {
                while Instant::now() < until {
                    match writer.step(at) {
                        Ok(()) => {}
                        Err(Stop::Dead) => return true,
                        Err(Stop::Wrong(reason)) => panic!("{reason}"),
                    }
                }
                false
            };
            let far = scope.spawn(move || steps(far));
            let near = scope.spawn(move || steps(near));
            let churn = scope.spawn(move || churn(at, seed, until));
            drop(churn.join().unwrap());
            let dead = far.join().unwrap();
            near.join().unwrap() || dead
        })
    }

    fn die_at_work(&mut self, armed: &str) {
        // It may die before it is mounted.
        if self.mount_armed(Some(armed)).code == 0 && self.begin() {
            if self.half_empty {
                self.half_empty_packs();
            }
            assert!(self.work(PATIENCE), "{armed} was not reached");
        }
        self.expect_death(armed);
    }

    /// Many small files, of which few stay: none of the dead blocks covers a page
    /// that could be punched out of its pack.
    fn half_empty_packs(&self) {
        let dir = self.at().join("many");
        fs::create_dir(&dir).unwrap();
        let policy = b"level=LOCAL_DURABILITY,wait_on=fsync";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(&dir, "user.cairn.policy", policy, flags).unwrap();
        let mut random = Random::new(1);
        for n in 0..1600 {
            fs::write(dir.join(n.to_string()), random.bytes(3000)).unwrap();
        }
        self.volume.world.cairn(&[Path::new("sync"), &dir]).ok();
        for n in (0..1600).filter(|n| n % 20 != 0) {
            match fs::remove_file(dir.join(n.to_string())) {
                Ok(()) => {}
                // A collection came meanwhile, and it died in that: ECONNABORTED, ENOTCONN.
                Err(error) if matches!(error.raw_os_error(), Some(103 | 107)) => return,
                Err(error) => panic!("{n}: {error}"),
            }
        }
    }

    fn check(&mut self) {
        let at = self.at();
        for writer in &mut self.writers {
            if let Err(reason) = writer.check_after_crash(&at) {
                panic!("{reason}\n{}", self.volume.dir.display());
            }
        }
    }

    fn umount(&self) {
        // A program that another case starts may have our files for an instant.
        let umount = || self.volume.world.cairn(&[Path::new("umount"), &self.at()]);
        let busy = 5;
        let last = (0..20).map(|_| umount()).find(|ended| ended.code != busy);
        last.unwrap_or_else(umount).ok();
    }

    /// Removes everything; collections then leave no segment, no staging file,
    /// and at most the pack that is open.
    fn leaks_nothing(&self) {
        let at = self.at();
        for entry in fs::read_dir(&at).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        let store = self.volume.dir.join("store");
        let left = || {
            let mut files = Vec::new();
            for folder in ["staging", "segments", "packs"] {
                walk(&store.join(folder), &mut files);
            }
            files.retain(|(path, bytes)| !(path.contains("/packs/") && *bytes < 2 << 20));
            files
        };
        let until = Instant::now() + Duration::from_secs(30);
        while !left().is_empty() {
            assert!(Instant::now() < until, "it leaks: {:?}", left());
            std::thread::yield_now();
            drop(self.volume.status());
        }
    }

    /// The disk is lost; a backend has everything that was acknowledged.
    fn lose(&mut self, armed: Option<&str>) {
        fs::remove_dir_all(&self.volume.dir).unwrap();
        let world = self.volume.world;
        let from = self.url(if self.archives.is_some() { "b2" } else { "b1" });
        let recover = |point: Option<&str>| {
            let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
            command.args(["recover", "--from", &from]);
            command.arg("--volume").arg(&self.volume.dir);
            if let Some(point) = point {
                command.env("CAIRN_CRASH_AT", point);
            }
            run(command, Duration::from_mins(1))
        };
        if let Some(point) = armed {
            let died = recover(Some(point));
            assert!(died.stderr.contains(&format!("killed at {point}")), "{died:?}");
            // What it left is in the way, and nothing else.
            fs::remove_dir_all(&self.volume.dir).unwrap();
        }
        recover(None).ok();
        self.mount_armed(None).ok();
        let at = self.at();
        for writer in &mut self.writers {
            // Nothing of the second was promised of a backend; it must be whole.
            if let Err(reason) = writer.check_after_loss(&at) {
                panic!("after the loss of the disk: {reason}");
            }
        }
        // Nobody promised copies of these: they may be unreadable.
        for folder in ["churn", "many"].map(|name| at.join(name)) {
            if folder.exists() {
                fs::remove_dir_all(folder).unwrap();
            }
        }
        self.umount();
        self.volume.cairn(&["fsck", "--deep"]).ok();
    }

    fn backends_verify(&self) {
        for backend in ["b1", "b2"] {
            let place = open(&BackendSpec::parse(&self.url(backend), &[]).unwrap(), false).unwrap();
            tokio::runtime::Runtime::new().unwrap().block_on(verify(backend, &*place));
        }
    }
}

/// Every block matches, and no node is without what it links to.
async fn verify(name: &str, place: &dyn Backend) {
    let (mut all, mut from) = (BTreeSet::new(), None::<String>);
    loop {
        let page = place.list(from.as_deref(), 1000).await.unwrap();
        all.extend(page.blocks.into_iter().map(|(id, _)| id));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    for id in &all {
        let bytes = place.get(id, None).await.unwrap();
        assert_eq!(cid::verify(id, &bytes), cid::Verdict::Match, "{id} at {name}");
        if id.codec() == cid::DAG_PB {
            for child in parse_node(id, &bytes).unwrap().children() {
                assert!(all.contains(&child), "{id} without {child} at {name}");
            }
        }
    }
}

/// Small files that come and go, and a large one that is changed in the middle:
/// packs and segments with much garbage.
fn churn(at: &Path, seed: u64, until: Instant) -> std::io::Result<()> {
    let mut random = Random::new(seed);
    let dir = at.join("churn");
    fs::create_dir_all(&dir)?;
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(&dir, "user.cairn.policy", b"level=LOCAL_DURABILITY", flags)?;
    let mut round = 0;
    while Instant::now() < until {
        for n in 0..48 {
            fs::write(dir.join(format!("c{n}")), random.bytes(45_000 + n))?;
        }
        // Some stay for some collections: their packs are not all garbage.
        for n in 44..48 {
            fs::rename(dir.join(format!("c{n}")), dir.join(format!("k{}", round % 6 * 4 + n)))?;
        }
        // The same leaves once more: those of the first file's segment go.
        let large = random.bytes(5 << 20);
        fs::write(dir.join("large"), &large)?;
        let again = [&large[..3 << 20], &random.bytes(1 << 20)].concat();
        fs::write(dir.join("again"), again)?;
        let file = fs::File::options().write(true).open(dir.join("again"))?;
        std::os::unix::fs::FileExt::write_all_at(&file, &random.bytes(2 << 20), 1 << 20)?;
        file.sync_all()?;
        drop(file);
        for n in 0..44 {
            fs::remove_file(dir.join(format!("c{n}")))?;
        }
        round += 1;
    }
    Ok(())
}

fn walk(dir: &Path, files: &mut Vec<(String, u64)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        // A collection may take it away meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            walk(&entry.path(), files);
        } else {
            files.push((entry.path().to_str().unwrap().to_owned(), meta.len()));
        }
    }
}

fn die_at(point: &str, number: usize) {
    let world = World::new();
    let place = place_of(point);
    // Of a place that is taken away, files are looked at.
    let stays = !matches!(place, Where::Remove | Where::Replace);
    let has = point.starts_with("backend.pack.") || (stays && number % 2 == 1);
    let archives = has.then_some(if number % 4 < 2 { "car" } else { "parquet" });
    let mut case = Case::new(&world, 1000 + number as u64, archives);
    // Not always the first time: by then there is something to lose.
    let hit = if RARE.iter().any(|rare| point.starts_with(rare)) { 1 } else { 1 + number % 3 };
    let armed = format!("{point}:{hit}");
    if point == "store.compact.moved" {
        case.half_empty = true;
    }
    if point.starts_with("replication.evict.") {
        case.make_cache();
    }
    match place {
        Where::Work => {
            case.die_at_work(&armed);
        }
        Where::Opening(before) => {
            // What it finds may have lost its last name: then there is nothing to do.
            let reached = (3..10).any(|hit| {
                case.die_at_work(&format!("{before}:{hit}"));
                let died = case.mount_armed(Some(point));
                if died.code == 0 {
                    case.check();
                    case.umount();
                }
                died.code != 0
            });
            assert!(reached, "{point} was not reached");
            case.expect_death(point);
        }
        Where::Journal => {
            case.mount_armed(None).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            case.kill();
            case.tear_journal();
            let died = case.mount_armed(Some(point));
            assert_ne!(died.code, 0, "{point} was not reached: {died:?}");
            case.expect_death(point);
        }
        Where::Import => {
            case.mount_armed(Some(point)).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            case.import();
            case.expect_death(point);
        }
        Where::Remove => {
            case.mount_armed(Some(point)).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            case.volume.cairn(&["sync"]).ok();
            drop(case.volume.cairn(&["backend", "remove", "b2", "--force"]));
            case.expect_death(point);
            case.mount_armed(None).ok();
            case.check();
            case.comes_back_empty();
        }
        Where::Replace => {
            case.mount_armed(Some(point)).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            drop(case.replace());
            case.expect_death(point);
            case.mount_armed(None).ok();
            case.check();
            case.replace().ok();
            assert!(case.volume.status()["backends"].to_string().contains("b3"));
            case.kill();
        }
        Where::Unmount => {
            case.mount_armed(Some(point)).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            case.writers.iter_mut().for_each(Writer::close);
            drop(case.volume.world.cairn(&[Path::new("umount"), &case.at()]));
            case.expect_death(point);
        }
        Where::Recover => {
            case.mount_armed(None).ok();
            case.begin();
            case.work(Duration::from_millis(500));
            // Before anything was promised of a backend it may have no checkpoint.
            let until = Instant::now() + PATIENCE;
            while case.writers[0].acknowledged == 0 && Instant::now() < until {
                case.work(Duration::from_millis(500));
            }
            case.kill();
        }
    }
    if place != Where::Recover {
        case.mount_armed(None).ok();
        case.check();
        case.has_no_part_of_an_import(point == "daemon.import.named");
        case.umount();
        case.volume.cairn(&["fsck", "--deep"]).ok();
        case.backends_verify();
        if number % 3 == 1 {
            case.mount_armed(None).ok();
            case.check();
            case.begin();
            case.work(Duration::from_millis(200));
            case.kill();
        }
    }
    case.lose((place == Where::Recover).then_some(point));
    // It waits for some collections: not in every case.
    if number.is_multiple_of(3) {
        case.mount_armed(None).ok();
        case.leaks_nothing();
        case.umount();
    }
}

impl Case<'_> {
    fn kill(&self) {
        let pid = fs::read_to_string(self.volume.dir.join("lock")).unwrap();
        let pid = pid.split_whitespace().next().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let lock = fs::File::open(self.volume.dir.join("lock")).unwrap();
        let how = rustix::fs::FlockOperation::NonBlockingLockShared;
        wait_until("the daemon is gone", || rustix::fs::flock(&lock, how).is_ok());
        drop(lock);
        crate::support::detach(&self.at());
    }

    /// Puts `b3` in the place of `b2`; goes on with it, or finds that it was done.
    fn replace(&self) -> Run {
        let url = self.volume.world.backend_url("b3");
        let replaced = self.volume.cairn(&["backend", "replace", "b2", &url, "--wait"]);
        let status = self.volume.cairn(&["--json", "backend", "list"]);
        // The mount itself ended it meanwhile.
        let ended = status.code == 0 && !status.stdout.contains("\"b2\"");
        if ended { status } else { replaced }
    }

    /// `b2` was removed; it is emptied, added again, and gets all copies anew.
    fn comes_back_empty(&self) {
        let list = self.volume.cairn(&["--json", "backend", "list"]).ok().stdout;
        assert!(!list.contains("\"b2\""), "{list}");
        let (dir, url) = (self.volume.world.path("b2"), self.url("b2"));
        fs::remove_dir_all(&dir).unwrap();
        self.volume.cairn(&["backend", "add", &url]).ok();
        wait_until("all have their copies", || {
            let pins = &self.volume.status()["pins"];
            pins["total"].as_u64().is_some() && pins["at_target"] == pins["total"]
        });
        let mut files = Vec::new();
        walk(&dir.join("blocks"), &mut files);
        assert!(!files.is_empty(), "copies are counted that are not there");
        self.kill();
    }

    /// Exports what is there and imports it beside: dies at it.
    fn import(&self) {
        let world = self.volume.world;
        let (car, at) = (world.path("far.car"), self.at());
        let export = [Path::new("export"), &at.join(FAR), Path::new("-o"), &car];
        world.cairn(&export).ok();
        let died = world.cairn(&[Path::new("import"), &car, &at.join("imported")]);
        assert_ne!(died.code, 0, "{died:?}");
    }

    fn has_no_part_of_an_import(&self, whole: bool) {
        let names = fs::read_dir(self.at()).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.starts_with('.')), "{names:?}");
        assert_eq!(names.iter().any(|name| name == "imported"), whole, "{names:?}");
        if whole {
            fs::remove_dir_all(self.at().join("imported")).unwrap();
        }
        let spool = fs::read_dir(self.volume.dir.join("spool"));
        assert_eq!(spool.map_or(0, Iterator::count), 0, "a spool is left");
    }

    /// The machine stopped amid a write of the engine's journal.
    fn tear_journal(&self) {
        let journals = fs::read_dir(self.volume.dir.join("meta")).unwrap();
        let newest = journals
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "jnl"))
            .max_by_key(|path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap())
            .unwrap();
        let bytes = fs::read(&newest).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let file = fs::File::options().write(true).open(&newest).unwrap();
        // The head of a batch of two rows, and no more.
        let torn = [1, 2, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 2, 0];
        std::os::unix::fs::FileExt::write_all_at(&file, &torn, end as u64).unwrap();
    }
}

#[test]
fn a_death_at_any_named_point_loses_nothing_that_was_acknowledged() {
    if World::mountable("failpoints::a_death_at_any_named_point").is_none() {
        return;
    }
    let only = std::env::var("CAIRN_TEST_POINT").ok();
    let names: Vec<(usize, &str)> = NAMES
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, name)| only.as_ref().is_none_or(|only| name.starts_with(only.as_str())))
        .collect();
    let queue = Mutex::new(names.into_iter());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some((number, point)) = queue.lock().unwrap().next() else { return };
                    let start = Instant::now();
                    let died = std::panic::catch_unwind(|| die_at(point, number));
                    if died.is_err() {
                        failures.lock().unwrap().push(point);
                    }
                    let mut err = std::io::stderr().lock();
                    writeln!(err, "{point}: {:.1} s", start.elapsed().as_secs_f64()).unwrap();
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "these points failed: {failures:?}");
}

#[test]
fn the_list_of_points_is_the_points_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let mut found = BTreeSet::new();
    for (path, _) in
        files.iter().filter(|(path, _)| Path::new(path).extension().is_some_and(|ext| ext == "rs"))
    {
        let text = fs::read_to_string(path).unwrap();
        for rest in text.split("failpoint::reach(\"").skip(1) {
            let name = rest.split('"').next().unwrap().to_owned();
            assert!(found.insert(name.clone()), "{name} stands twice");
        }
    }
    let listed: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, listed);
}
