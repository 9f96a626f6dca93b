//! `ipfs-cluster://HOST:9094/FOLDER?...`: what a URL says of an IPFS Cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::error::WORDS;
use crate::backends::kubo::{Address, GIVES, KUBO, Scheme};
use crate::backends::web;
use crate::runtime::SecretSource;

/// Cluster's REST API.
static CLUSTER: Scheme = Scheme {
    plain: "ipfs-cluster",
    tls: "ipfs-cluster+https",
    port: 9094,
    root: "/",
    usage: "write ipfs-cluster://HOST:9094, the address of a cluster peer's REST API",
    id: "cluster",
    words: &WORDS,
    key_header: None,
};

/// Where a peer's IPFS proxy listens by default: it hands `block/get`, `block/stat`,
/// `block/rm`, `config`, `id` and `version` on to its Kubo.
const PROXY_PORT: u16 = 9095;
/// Kubos that are read from, at most: each is asked in turn.
const KUBOS_MAX: usize = 16;
/// Copies of a block at most.
const COPIES_MAX: i64 = 1000;

/// How a cluster is reached, and what is asked of it for each pin.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    pub(super) address: Address,
    kubos: Vec<Address>,
    kubo_auth: Option<SecretSource>,
    replication_min: Option<i64>,
    replication_max: Option<i64>,
    allocations: Vec<String>,
    metadata: BTreeMap<String, String>,
    expire_in: Option<Duration>,
    /// Blocks at peers whose Kubo is not read from may come over their network.
    pub(super) fetch: bool,
}

impl ClusterSettings {
    /// Reads scheme, host, port and path.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn of(url: &Url) -> Result<Self, String> {
        Ok(Self {
            address: Address::of(&CLUSTER, url)?,
            kubos: Vec::new(),
            kubo_auth: None,
            replication_min: None,
            replication_max: None,
            allocations: Vec::new(),
            metadata: BTreeMap::new(),
            expire_in: None,
            fetch: false,
        })
    }

    /// Takes a parameter of the URL; `None` when it is not one of a cluster's.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key {
            "kubo" => kubos(value).map(|kubos| self.kubos = kubos),
            "kubo_auth" => web::auth(value, GIVES)
                .map(|source| self.kubo_auth = Some(source))
                .map_err(|why| format!("kubo_{why}")),
            "replication_min" => copies(key, value).map(|n| self.replication_min = Some(n)),
            "replication_max" => copies(key, value).map(|n| self.replication_max = Some(n)),
            "allocations" => peers(value).map(|peers| self.allocations = peers),
            "metadata" => pairs(value).map(|pairs| self.metadata = pairs),
            "expire_in" => expiry(value).map(|time| self.expire_in = Some(time)),
            "fetch" => match value {
                "0" | "1" => {
                    self.fetch = value == "1";
                    Ok(())
                }
                _ => Err(format!("fetch={value}: write 1 or 0")),
            },
            _ => return self.address.set(key, value),
        })
    }

    /// What is wrong about all of them together.
    ///
    /// # Errors
    /// With what to write instead.
    pub fn check(&self) -> Result<(), String> {
        let (min, max) = self.copies();
        if max >= 0 && !(0..=max).contains(&min) {
            return Err(format!(
                "replication_min={min} and replication_max={max} do not go together: the second is \
                 not below the first, or -1 (everywhere)"
            ));
        }
        Ok(())
    }

    /// How many peers have to have a block, and how many get it at most: 0 leaves it to
    /// the cluster, -1 is everywhere. One that is not given is as the other.
    pub(super) fn copies(&self) -> (i64, i64) {
        let (min, max) = (self.replication_min, self.replication_max);
        (min.or(max).unwrap_or(0), max.or(min).unwrap_or(0))
    }

    /// Whether pins end by themselves.
    pub(super) fn expires(&self) -> bool {
        self.expire_in.is_some()
    }

    /// The Kubos that are read from.
    pub(super) fn kubos(&self) -> Vec<Address> {
        let mut all = self.kubos.clone();
        if all.is_empty() {
            all.push(self.address.beside(&KUBO, PROXY_PORT));
        }
        for kubo in &mut all {
            kubo.auth.clone_from(&self.kubo_auth);
            kubo.ca.clone_from(&self.address.ca);
        }
        all
    }

    /// What each pin is asked for with, but its name.
    pub(super) fn pin_options(&self) -> Vec<(String, String)> {
        let mut options = Vec::new();
        let (min, max) = self.copies();
        if max != 0 {
            // Everywhere is everywhere: there the cluster knows of no least number.
            options.push(("replication-min".to_owned(), min.min(max).to_string()));
            options.push(("replication-max".to_owned(), max.to_string()));
        }
        if !self.allocations.is_empty() {
            options.push(("user-allocations".to_owned(), self.allocations.join(",")));
        }
        if let Some(time) = self.expire_in {
            options.push(("expire-in".to_owned(), format!("{}s", time.as_secs())));
        }
        for (key, value) in &self.metadata {
            options.push((format!("meta-{key}"), value.clone()));
        }
        options
    }

    /// An id for it.
    pub fn slug(&self) -> &str {
        self.address.slug()
    }

    /// The machine.
    pub fn host(&self) -> &str {
        self.address.host()
    }

    /// Whether it is this machine's.
    pub fn is_loopback(&self) -> bool {
        self.address.is_loopback()
    }

    /// Whether both are one folder of one peer.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.address.is_same_place(&other.address)
    }
}

fn kubos(value: &str) -> Result<Vec<Address>, String> {
    let usage = || format!("kubo={value}: write ipfs://HOST:5001, several with commas");
    let one = |text: &str| {
        let url = Url::parse(text).map_err(|_| usage())?;
        if ![KUBO.plain, KUBO.tls].contains(&url.scheme()) || url.query().is_some() {
            return Err(usage());
        }
        let address = Address::of(&KUBO, &url)?;
        if address.folder.is_empty() { Ok(address) } else { Err(usage()) }
    };
    let all = value.split(',').map(one).collect::<Result<Vec<_>, _>>()?;
    if all.len() > KUBOS_MAX {
        return Err(format!("kubo= names at most {KUBOS_MAX}"));
    }
    Ok(all)
}

fn copies(key: &str, value: &str) -> Result<i64, String> {
    let number = value.parse::<i64>().ok();
    number.filter(|n| *n == -1 || (1..=COPIES_MAX).contains(n)).ok_or_else(|| {
        format!("{key}={value}: write a number of peers, or -1 for every one of them")
    })
}

fn peers(value: &str) -> Result<Vec<String>, String> {
    let is_id =
        |id: &str| (8..=120).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if value.split(',').all(is_id) {
        return Ok(value.split(',').map(str::to_owned).collect());
    }
    Err(format!("allocations={value}: write ids of cluster peers, several with commas"))
}

fn pairs(value: &str) -> Result<BTreeMap<String, String>, String> {
    let one = |pair: &str| {
        let (key, text) = pair.split_once(':')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let ours = key.starts_with("cairn");
        let fits = !key.is_empty() && key.len() <= 64 && key.bytes().all(plain) && !ours;
        (fits && text.len() <= 256).then(|| (key.to_owned(), text.to_owned()))
    };
    value.split(',').map(one).collect::<Option<_>>().ok_or_else(|| {
        format!("metadata={value}: write KEY:VALUE, several with commas; no key begins with cairn")
    })
}

fn expiry(value: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(value).ok();
    time.filter(|time| *time >= Duration::from_mins(1))
        .ok_or_else(|| format!("expire_in={value}: write a time of at least 1m, as 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<ClusterSettings, String> {
        let url: Url = text.parse().unwrap();
        let mut settings = ClusterSettings::of(&url)?;
        for (key, value) in url.query_pairs() {
            settings.set(&key, &value).ok_or_else(|| format!("{key} is none"))??;
        }
        settings.check().map(|()| settings)
    }

    fn asked(text: &str) -> String {
        let options = settings(text).unwrap().pin_options();
        options.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
    }

    #[test]
    fn what_a_url_asks_of_each_pin_is_sent_as_cluster_calls_it() {
        assert_eq!(asked("ipfs-cluster://h"), "");
        assert_eq!(
            asked(
                "ipfs-cluster://h/f?replication_min=2&replication_max=3&allocations=12D3KooWabc,\
                 12D3KooWdef&metadata=owner:me,box:7&expire_in=2d"
            ),
            "replication-min=2&replication-max=3&user-allocations=12D3KooWabc,12D3KooWdef&\
             expire-in=172800s&meta-box=7&meta-owner=me"
        );
        let all = "replication-min=-1&replication-max=-1";
        assert_eq!(asked("ipfs-cluster://h?replication_min=2&replication_max=-1"), all);
        assert_eq!(asked("ipfs-cluster://h?replication_max=-1"), all);
        let one = "replication-min=2&replication-max=2";
        assert_eq!(asked("ipfs-cluster://h?replication_min=2"), one);
        assert_eq!(asked("ipfs-cluster://h?replication_max=2"), one);
        assert!(settings("ipfs-cluster://h?expire_in=1h").unwrap().expires());
    }

    #[test]
    fn settings_of_a_cluster_that_cannot_be_say_what_to_write() {
        for (bad, hint) in [
            ("replication_min=0", "-1"),
            ("replication_min=x", "number"),
            ("replication_min=3&replication_max=2", "together"),
            ("replication_min=-1&replication_max=2", "together"),
            ("allocations=a,,b", "peers"),
            ("metadata=x", "KEY:VALUE"),
            ("metadata=cairn-length:1", "cairn"),
            ("expire_in=1s", "1m"),
            ("fetch=yes", "1 or 0"),
            ("kubo=127.0.0.1:5001", "ipfs://"),
            ("kubo=http://h:5001", "ipfs://"),
            ("kubo=ipfs://h/folder", "ipfs://"),
            ("kubo=ipfs://user:hidden@h", "auth=file:"),
            ("kubo_auth=bearer:hidden", "kubo_auth="),
            ("auth=bearer:hidden", "auth=file:"),
            ("ca=/etc/ca.pem", "ipfs-cluster+https"),
            ("colour=red", "colour"),
        ] {
            let said = settings(&format!("ipfs-cluster://h?{bad}")).unwrap_err();
            assert!(said.contains(hint), "{bad}: {said}");
            assert!(!said.contains("hidden"), "{said}");
        }
        assert!(settings("ipfs-cluster://").unwrap_err().contains("9094"));
    }

    #[test]
    fn blocks_are_read_through_the_proxy_beside_unless_kubos_are_named() {
        let shown = |text: &str| {
            let kubos = settings(text).unwrap().kubos();
            kubos.iter().map(Address::shown).collect::<Vec<_>>()
        };
        assert_eq!(shown("ipfs-cluster://Nas.lan:1/f"), ["ipfs://nas.lan:9095"]);
        assert_eq!(
            shown("ipfs-cluster://h?kubo=ipfs://a,ipfs%2Bhttps://b:7&kubo_auth=env:X"),
            ["ipfs://a:5001", "ipfs+https://b:7"]
        );
        let one = settings("ipfs-cluster://127.0.0.1/x").unwrap();
        assert!(one.is_same_place(&settings("ipfs-cluster://localhost:9094/x?fetch=1").unwrap()));
        assert!(!one.is_same_place(&settings("ipfs-cluster://localhost:9094/y").unwrap()));
        assert_eq!(
            (one.slug(), one.address.shown().as_str()),
            ("x", "ipfs-cluster://127.0.0.1:9094/x")
        );
    }
}
