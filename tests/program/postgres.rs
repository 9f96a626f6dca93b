//! A database server on the mount: what it acknowledged survives the daemon.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{World, run, skip, wait_until};

/// Rows of `pgbench_accounts` for each unit of its scale.
const ACCOUNTS: u32 = 100_000;

/// One transaction of the ledger: both sums stay the same, whatever is lost.
const TRANSACTION: &str = "\\set d random(-5000, 5000)
\\set a random(1, 100000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :d WHERE aid = :a;
INSERT INTO pgbench_history(tid, bid, aid, delta, mtime) VALUES (1, 1, :a, :d, CURRENT_TIMESTAMP);
END;
";

/// Where Debian keeps the server's programs, or where `PATH` has them.
fn programs() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = installed
        .map(|entry| entry.path().join("bin"))
        .chain(std::env::var_os("PATH").iter().flat_map(std::env::split_paths))
        .filter(|dir| dir.join("initdb").exists() && dir.join("pgbench").exists())
        .collect();
    found.sort();
    found.pop()
}

struct Database<'w> {
    world: &'w World,
    programs: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    as_root: bool,
}

impl Database<'_> {
    /// A program of the server's, as the user who may run it (root may not).
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if self.as_root {
            let mut command = self.world.command("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
            command
        } else {
            self.world.command(program.to_str().unwrap())
        };
        command.env("PGHOST", &self.sockets).env("PGDATABASE", "postgres");
        command.current_dir(&self.sockets);
        command
    }

    fn run(&self, program: &str, words: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(words);
        run(command, Duration::from_mins(4)).ok().stdout
    }

    fn query(&self, text: &str) -> String {
        self.run("psql", &["-XAtqc", text]).trim().to_owned()
    }

    /// Starts the server; it recovers what a crash left.
    fn serve(&self) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.sockets.join("server.log"))
            .unwrap();
        let mut server = self
            .command("postgres")
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(&self.sockets)
            .args(["-c", "listen_addresses=", "-c", "full_page_writes=on"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("the database answers", || {
            assert!(server.try_wait().unwrap().is_none(), "{}", self.log());
            self.command("pg_isready").output().unwrap().status.success()
        });
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sockets.join("server.log")).unwrap_or_default()
    }

    /// Four clients; each transaction that the server acknowledged is a line.
    fn work(&self, life: &str, seconds: u32) -> Child {
        self.command("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-T", &seconds.to_string()])
            .args(["-l", &format!("--log-prefix=noted-{life}"), "-f", "ledger.sql"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Transactions that were acknowledged in this life.
    fn noted(&self, life: &str) -> usize {
        fs::read_dir(&self.sockets)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(&format!("noted-{life}.")))
            .map(|path| fs::read_to_string(path).unwrap().lines().count())
            .sum()
    }

    /// Nothing acknowledged is missing, and the books balance.
    fn check(&self, acknowledged: usize) {
        let rows: usize = self.query("SELECT count(*) FROM pgbench_history").parse().unwrap();
        assert!(rows >= acknowledged, "{rows} rows of {acknowledged}\n{}", self.log());
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts)
            = (SELECT coalesce(sum(delta), 0) FROM pgbench_history), count(*) FROM pgbench_accounts";
        assert_eq!(self.query(sums), format!("t|{ACCOUNTS}"));
        self.run("pg_amcheck", &["--install-missing", "--heapallindexed", "postgres"]);
    }
}

fn database<'w>(world: &'w World, mount: &Path) -> Option<Database<'w>> {
    let as_root = rustix::process::geteuid().is_root();
    let user = Command::new("id").arg("-u").arg("postgres").output().ok();
    let user = user.and_then(|id| String::from_utf8_lossy(&id.stdout).trim().parse::<u32>().ok());
    let (Some(programs), true) = (programs(), !as_root || user.is_some()) else {
        skip("postgres", "PostgreSQL (initdb, pgbench, the user postgres) is not installed");
        return None;
    };
    let database =
        Database { world, programs, data: mount.join("pg"), sockets: world.make_dir("s"), as_root };
    fs::create_dir(&database.data).unwrap();
    fs::write(database.sockets.join("ledger.sql"), TRANSACTION).unwrap();
    if let Some(user) = user.filter(|_| as_root) {
        // The server's user has to get there, and to own what it writes.
        let home = database.sockets.parent().unwrap();
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&database.data, Some(user), None).unwrap();
        chown(&database.sockets, Some(user), None).unwrap();
    }
    fs::set_permissions(&database.data, fs::Permissions::from_mode(0o700)).unwrap();
    Some(database)
}

#[test]
fn postgresql_loses_no_acknowledged_transaction_when_the_daemon_is_killed() {
    let Some(world) = World::mountable("postgres") else { return };
    let volume = world.volume(&["b"], "level=LOCAL_DURABILITY,min=1,target=2,max=2");
    let mut mount = volume.mount();
    let Some(database) = database(&world, &mount.at) else { return };
    database.run("initdb", &["-k", "-A", "trust", "-D", database.data.to_str().unwrap()]);
    let mut server = database.serve();
    database.run("pgbench", &["-i", "-q", "-s", "1"]);

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut acknowledged = 0;
    for life in ["first", "second"] {
        let mut clients = database.work(life, 600);
        let enough = random.usize(500..4000);
        wait_until("transactions are acknowledged", || database.noted(life) > enough);
        mount.kill();
        // Without its disk the server panics; its clients end.
        clients.wait().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        acknowledged += database.noted(life);
        mount = volume.mount();
        server = database.serve();
        database.check(acknowledged);
    }

    // And a whole minute, ended as its users end it.
    assert!(database.work("third", 60).wait().unwrap().success(), "{}", database.log());
    acknowledged += database.noted("third");
    database.check(acknowledged);
    let data = database.data.to_str().unwrap();
    database.run("pg_ctl", &["-D", data, "-m", "fast", "stop"]);
    assert!(server.wait().unwrap().success(), "{}", database.log());
    mount.umount().ok();
    let mount = volume.mount();
    database.run("pg_checksums", &["--check", "-D", data]);
    println!("{acknowledged} transactions were acknowledged");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}
