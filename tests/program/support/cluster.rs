use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::run::run;
use super::{KuboDaemon, World, skip, wait_until};

/// A peer of an IPFS Cluster of a test's own, before a Kubo of its own, on loopback. Its
/// ports stay when it is killed and started again.
pub struct ClusterPeer<'w> {
    world: &'w World,
    name: String,
    pub kubo: KuboDaemon<'w>,
    /// Of the REST API.
    pub port: u16,
    /// Of the IPFS proxy.
    pub proxy: u16,
    /// Of the Pinning Service API.
    pub service: u16,
    swarm: u16,
    /// `USER:PASSWORD` that both APIs ask for.
    credentials: Option<String>,
    /// Address of another peer.
    first: Option<String>,
    daemon: Option<Child>,
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// All of one cluster know it.
const SECRET: &str = "6a0c1f8b3e2d4c5a9788695a4b3c2d1e0f1e2d3c4b5a69788796a5b4c3d2e1f0";

impl<'w> ClusterPeer<'w> {
    /// So many peers of one cluster, up and joined. `None` where the software is not
    /// installed (an error in CI).
    pub fn start(world: &'w World, test: &str, peers: usize) -> Option<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        for number in 0..peers {
            let first = all.first().map(Self::address);
            all.push(Self::one(world, test, &format!("peer{number}"), first, None)?);
        }
        let port = all[0].port;
        wait_until("the peers know each other, and their room", || {
            ["ping", "freespace"].iter().all(|name| {
                let (status, body) = get(port, &format!("/monitor/metrics/{name}"), None);
                status == 200 && body.as_array().is_some_and(|all| all.len() == peers)
            })
        });
        Some(all)
    }

    /// One peer that asks for `USER:PASSWORD`.
    pub fn start_guarded(world: &'w World, test: &str, credentials: &str) -> Option<Self> {
        Self::one(world, test, "guarded", None, Some(credentials.to_owned()))
    }

    fn one(
        world: &'w World,
        test: &str,
        name: &str,
        first: Option<String>,
        credentials: Option<String>,
    ) -> Option<Self> {
        if Command::new("ipfs-cluster-service").arg("version").output().is_err() {
            skip(test, "ipfs-cluster-service is not in the PATH");
            return None;
        }
        let kubo = KuboDaemon::start_as(world, test, &format!("{name}-kubo"), true)?;
        let (port, proxy, service, swarm) = (free(), free(), free(), free());
        let name = name.to_owned();
        let mut peer = Self {
            world,
            name,
            kubo,
            port,
            proxy,
            service,
            swarm,
            credentials,
            first,
            daemon: None,
        };
        peer.init();
        peer.up();
        Some(peer)
    }

    fn dir(&self) -> PathBuf {
        self.world.path(&self.name)
    }

    fn command(&self) -> Command {
        let mut command = self.world.command("ipfs-cluster-service");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CLUSTER_") {
                command.env_remove(name);
            }
        }
        command.env("CLUSTER_SECRET", SECRET).arg("-c").arg(self.dir());
        command
    }

    fn init(&self) {
        let mut command = self.command();
        // Of its datastores the usual one, pebble, loses its last pins when it is killed.
        let words = ["init", "--consensus", "crdt", "--datastore", "leveldb", "--randomports"];
        command.args(words);
        run(command, Duration::from_mins(1)).ok();
        let path = self.dir().join("service.json");
        let mut all: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let tcp = |port: u16| json!(format!("/ip4/127.0.0.1/tcp/{port}"));
        let cluster = &mut all["cluster"];
        cluster["peername"] = json!(self.name);
        cluster["listen_multiaddress"] = json!([tcp(self.swarm)]);
        cluster["enable_relay_hop"] = json!(false);
        cluster["mdns_interval"] = json!("0s");
        cluster["monitor_ping_interval"] = json!("1s");
        // Peers hear of what they missed after a second, and not after a minute.
        all["consensus"]["crdt"]["rebroadcast_interval"] = json!("1s");
        let api = &mut all["api"];
        api["restapi"]["http_listen_multiaddress"] = tcp(self.port);
        api["pinsvcapi"]["http_listen_multiaddress"] = tcp(self.service);
        if let Some((user, password)) = self.credentials.as_ref().and_then(|c| c.split_once(':')) {
            for name in ["restapi", "pinsvcapi"] {
                api[name]["basic_auth_credentials"] = json!({ user: password });
            }
        }
        api["ipfsproxy"]["listen_multiaddress"] = tcp(self.proxy);
        api["ipfsproxy"]["node_multiaddress"] = tcp(self.kubo.port());
        let kubo = &mut all["ipfs_connector"]["ipfshttp"];
        kubo["node_multiaddress"] = tcp(self.kubo.port());
        kubo["connect_swarms_delay"] = json!("1s");
        all["monitor"]["pubsubmon"]["check_interval"] = json!("1s");
        for informer in ["disk", "pinqueue", "tags"] {
            all["informer"][informer]["metric_ttl"] = json!("2s");
        }
        fs::write(&path, all.to_string()).unwrap();
    }

    /// How other peers find it.
    fn address(&self) -> String {
        let path = self.dir().join("identity.json");
        let all: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", self.swarm, all["id"].as_str().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.world.path(&format!("{}.log", self.name))
    }

    /// Starts the daemon, and waits until it answers.
    pub fn up(&mut self) {
        assert!(self.daemon.is_none(), "it is up");
        let log = fs::File::options().append(true).create(true).open(self.log()).unwrap();
        let mut command = self.command();
        command.arg("daemon");
        if let Some(first) = &self.first {
            command.args(["--bootstrap", first]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let (port, credentials) = (self.port, self.credentials.clone());
        wait_until("the cluster's peer is up", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && get(port, "/id", credentials.as_deref()).0 == 200
        });
    }

    /// Kills the daemon, as a power cut would.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// A backend's URL; `more` are settings. Blocks are read through its own proxy.
    pub fn url(&self, folder: &str, more: &str) -> String {
        let (port, proxy) = (self.port, self.proxy);
        format!("ipfs-cluster://127.0.0.1:{port}/{folder}?kubo=ipfs://127.0.0.1:{proxy}{more}")
    }

    /// What the REST API says.
    pub fn asks(&self, path: &str) -> Value {
        let (status, body) = get(self.port, path, self.credentials.as_deref());
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A token of its own for its user.
    pub fn token(&self) -> String {
        let (status, body) = ask("POST", self.port, "/token", self.credentials.as_deref());
        assert_eq!(status, 200, "{body}");
        body["token"].as_str().unwrap().to_owned()
    }
}

impl Drop for ClusterPeer<'_> {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("{}:", self.log().display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn get(port: u16, path: &str, credentials: Option<&str>) -> (u16, Value) {
    ask("GET", port, path, credentials)
}

fn ask(method: &str, port: u16, path: &str, credentials: Option<&str>) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let auth = credentials.map(|pair| {
        let encoded = ::cid::multibase::Base::Base64Pad.encode(pair);
        format!("Authorization: Basic {encoded}\r\n")
    });
    let auth = auth.unwrap_or_default();
    // 1.0: no chunks.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: h\r\n{auth}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
