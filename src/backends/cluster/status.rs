//! What each peer says of a pin, and waiting for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use reqwest::Method;
use serde::Deserialize;

use super::ClusterBackend;
use super::error::of_message;
use crate::backends::kubo::LENGTH;
use crate::backends::{BackendError, ErrorKind};
use crate::types::Cid;

/// Pins of one request: their CIDs of 110 characters have to fit into the 4 KiB that the
/// server takes of a head.
const ASKED: usize = 30;
/// Requests for them at the same time.
const AT_ONCE: usize = 4;
/// A pin that is asked for is not waited for longer; the caller's own deadline is mostly
/// shorter.
const SETTLED: Duration = Duration::from_mins(1);
/// First and longest time between two looks.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// A line of `/pins`.
#[derive(Deserialize)]
struct Line {
    cid: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    peer_map: Option<BTreeMap<String, Said>>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    peername: String,
    #[serde(default)]
    ipfs_peer_id: String,
    status: String,
    #[serde(default)]
    error: String,
}

/// What a peer says of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its Kubo has it pinned, all below it being there.
    Pinned,
    /// It will do so.
    Coming,
    /// It could not.
    Failed,
    /// Nobody knows.
    Silent,
    /// It need not.
    Elsewhere,
    /// The cluster knows of no such pin.
    None,
}

/// A peer, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// How people call it.
    pub name: String,
    /// The id of its Kubo.
    pub kubo: String,
    pub state: State,
    error: String,
}

/// What is known of a pin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The length of its block.
    pub len: Option<u64>,
    pub peers: Vec<Peer>,
}

fn state(status: &str) -> State {
    match status {
        "pinned" => State::Pinned,
        "pinning" | "pin_queued" | "queued" => State::Coming,
        "pin_error" | "unexpectedly_unpinned" => State::Failed,
        "remote" | "sharded" => State::Elsewhere,
        "unpinned" | "unpinning" | "unpin_queued" | "unpin_error" => State::None,
        _ => State::Silent,
    }
}

impl Line {
    fn seen(self) -> Seen {
        let len = self.metadata.and_then(|all| all.get(LENGTH)?.parse().ok());
        let peers = self.peer_map.unwrap_or_default().into_iter().map(|(id, said)| Peer {
            name: if said.peername.is_empty() { id } else { said.peername },
            kubo: said.ipfs_peer_id,
            state: state(&said.status),
            error: said.error,
        });
        Seen { len, peers: peers.collect() }
    }
}

impl Seen {
    /// Peers that say this.
    pub fn count(&self, state: State) -> usize {
        self.peers.iter().filter(|peer| peer.state == state).count()
    }

    /// How many peers have to have it: as many as were asked for, else more than half of
    /// those that the cluster chose.
    pub fn needed(&self, copies_min: i64) -> usize {
        if let Ok(min @ 1..) = usize::try_from(copies_min) {
            return min;
        }
        (self.peers.len() - self.count(State::Elsewhere)) / 2 + 1
    }

    /// Whether enough peers have it.
    pub fn is_enough(&self, copies_min: i64) -> bool {
        self.count(State::Pinned) >= self.needed(copies_min)
    }

    /// Names of the peers that say this, for people.
    pub fn names(&self, state: State) -> String {
        let names = self.peers.iter().filter(|peer| peer.state == state);
        names.map(|peer| peer.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Why it is not enough, when waiting does not help.
    fn failure(&self, at: &str, needed: usize) -> Option<BackendError> {
        let hoped = self.count(State::Pinned) + self.count(State::Coming) + self.count(State::None);
        if hoped >= needed {
            return None;
        }
        let have = format!("{} of {needed} peers that are needed", self.count(State::Pinned));
        let failed = self.peers.iter().find(|peer| peer.state == State::Failed);
        if let Some(peer) = failed {
            let told = of_message(at, &peer.error);
            // A block that a peer could not get is no block that is not there.
            let kind = if told.kind == ErrorKind::NotFound { ErrorKind::Other } else { told.kind };
            let message = format!("{} (peer {}; {have} have it)", told.message, peer.name);
            return Some(BackendError::new(kind, message));
        }
        let message = format!(
            "{at}: {have} have it, and of {} that the cluster knows these do not answer: {}; \
             start what is down, or lower replication_min=",
            self.peers.len(),
            self.names(State::Silent)
        );
        Some(BackendError::new(ErrorKind::Unavailable, message))
    }
}

impl ClusterBackend {
    /// What the peers say of each.
    pub(super) async fn seen(&self, holders: &[Cid]) -> Result<HashMap<Cid, Seen>, BackendError> {
        let asks: Vec<_> = holders.chunks(ASKED).map(|some| self.ask_of(some)).collect();
        let answers: Vec<_> = iter(asks).buffered(AT_ONCE).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// What the peers say of one.
    pub(super) async fn seen_one(&self, holder: &Cid) -> Result<Seen, BackendError> {
        let mut all = self.ask_of(std::slice::from_ref(holder)).await?;
        all.pop().map(|(_, seen)| seen).ok_or_else(|| self.said_nothing(1))
    }

    async fn ask_of(&self, holders: &[Cid]) -> Result<Vec<(Cid, Seen)>, BackendError> {
        let mut left: HashSet<Cid> = holders.iter().copied().collect();
        let mut texts: Vec<String> = left.iter().map(Cid::to_string).collect();
        texts.sort_unstable();
        let cids = texts.join(",");
        let mut answer = self.rpc.request(Method::GET, "pins", &[("cids", &cids)], None).await?;
        let mut all = Vec::with_capacity(left.len());
        while let Some(line) = answer.line::<Line>().await? {
            if let Ok(id) = line.cid.parse::<Cid>()
                && left.remove(&id)
            {
                all.push((id, line.seen()));
            }
        }
        if left.is_empty() { Ok(all) } else { Err(self.said_nothing(left.len())) }
    }

    fn said_nothing(&self, pins: usize) -> BackendError {
        let message = format!("{} did not say how {pins} pins are", self.rpc.at());
        BackendError::new(ErrorKind::Other, message)
    }

    /// Waits until enough peers have each; a pin that failed is tried once more.
    pub(super) async fn settle(&self, holders: &[Cid]) -> Result<(), BackendError> {
        let (mut left, mut recovered) = (holders.to_vec(), HashSet::new());
        let (since, mut pause) = (Instant::now(), LOOKS.0);
        let (min, _) = self.copies;
        loop {
            let seen = self.seen(&left).await?;
            left.retain(|holder| !seen.get(holder).is_some_and(|seen| seen.is_enough(min)));
            let Some(first) = left.first().and_then(|holder| seen.get(holder)) else {
                return Ok(());
            };
            for holder in &left {
                let Some(seen) = seen.get(holder) else { continue };
                if seen.count(State::Failed) > 0 && recovered.insert(*holder) {
                    self.recover(holder).await?;
                } else if let Some(error) = seen.failure(self.rpc.at(), seen.needed(min)) {
                    return Err(error);
                }
            }
            if since.elapsed() >= SETTLED {
                let message = format!(
                    "{}: after {} s {} of {} peers that are needed have a pin, of {}",
                    self.rpc.at(),
                    SETTLED.as_secs(),
                    first.count(State::Pinned),
                    first.needed(min),
                    left.len()
                );
                return Err(BackendError::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// Waits until the cluster knows of none of them: with batches it takes a while.
    pub(super) async fn settle_gone(&self, holders: &[Cid]) -> Result<(), BackendError> {
        let (mut left, since, mut pause) = (holders.to_vec(), Instant::now(), LOOKS.0);
        loop {
            let seen = self.seen(&left).await?;
            let is_gone = |seen: &Seen| seen.peers.iter().all(|peer| peer.state == State::None);
            left.retain(|holder| !seen.get(holder).is_some_and(is_gone));
            if left.is_empty() {
                return Ok(());
            }
            if since.elapsed() >= SETTLED {
                let message = format!("{}: {} pins did not end in time", self.rpc.at(), left.len());
                return Err(BackendError::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// Has the peers try again what failed.
    async fn recover(&self, holder: &Cid) -> Result<(), BackendError> {
        tracing::warn!(backend = self.rpc.at(), %holder, "a pin that failed is tried again");
        let path = format!("pins/{holder}/recover");
        self.rpc.request(Method::POST, &path, &[], None).await?.whole(1 << 20).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(states: &[&str]) -> Seen {
        let peers = states.iter().enumerate().map(|(number, status)| {
            let error = if *status == "pin_error" { "no space left on device" } else { "" };
            format!(
                r#""p{number}":{{"peername":"n{number}","status":"{status}","error":"{error}"}}"#
            )
        });
        let peers = peers.collect::<Vec<_>>().join(",");
        let text =
            format!(r#"{{"cid":"x","metadata":{{"cairn-length":"7"}},"peer_map":{{{peers}}}}}"#);
        serde_json::from_str::<Line>(&text).unwrap().seen()
    }

    #[test]
    fn a_block_counts_when_enough_of_the_peers_that_were_chosen_have_it() {
        for (states, min, enough) in [
            (&["pinned"][..], 0, true),
            (&["pinned", "pinning"], 0, false),
            (&["pinned", "pinned", "pin_error"], 0, true),
            (&["pinned", "pinning", "remote", "remote"], 0, false),
            (&["pinned", "remote", "remote"], 0, true),
            (&["pinned", "pinning"], 1, true),
            (&["pinned", "pinned", "cluster_error"], 3, false),
            (&["pinned", "cluster_error"], -1, false),
            (&["pinned", "pinned"], -1, true),
            (&["unpinned", "unpinned"], 0, false),
            (&[], 0, false),
        ] {
            assert_eq!(seen(states).is_enough(min), enough, "{states:?} {min}");
        }
        assert_eq!(seen(&["pinned"]).len, Some(7));
        for (status, wanted) in [
            ("pin_queued", State::Coming),
            ("unexpectedly_unpinned", State::Failed),
            ("unpin_queued", State::None),
            ("undefined", State::Silent),
            ("error", State::Silent),
        ] {
            assert_eq!(state(status), wanted, "{status}");
        }
    }

    #[test]
    fn what_does_not_get_better_by_waiting_is_told_at_once() {
        let failure = |states: &[&str], needed| seen(states).failure("h", needed);
        assert!(failure(&["pinned", "pinning"], 2).is_none());
        assert!(failure(&["pinned", "pin_error", "pinning"], 2).is_none());
        let full = failure(&["pinned", "pin_error"], 2).unwrap();
        assert_eq!(full.kind, ErrorKind::Full);
        assert!(full.message.contains("peer n1") && full.message.contains("1 of 2"), "{full}");
        let away = failure(&["pinned", "cluster_error"], 2).unwrap();
        assert_eq!(away.kind, ErrorKind::Unavailable);
        assert!(away.message.contains("n1"), "{away}");
    }
}
