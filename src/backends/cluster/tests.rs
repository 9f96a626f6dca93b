//! What no real cluster answers on demand, from a socket that answers what it is told. All
//! else is tested against IPFS Cluster itself (`tests/program/cluster_backend.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::backends::kubo::tests::{Canned, answer, chunked, ok, wait};
use crate::backends::{BackendSpec, open};

const END: &str = "0\r\nX-Stream-Error: \r\n\r\n";
/// As Cluster writes it: first that there was none.
const LATE: &str = "0\r\nX-Stream-Error: \r\nX-Stream-Error: no space left on device\r\n\r\n";

fn block() -> Block {
    Block::raw("x".into())
}

fn holder() -> Cid {
    Holders::at_cluster("").of(&block().cid, 0).unwrap()
}

/// A line of `/pins`, with what each peer says.
fn pin(states: &[&str]) -> String {
    let peers: Vec<String> = states
        .iter()
        .enumerate()
        .map(|(n, state)| {
            format!(
                r#""p{n}":{{"peername":"n{n}","ipfs_peer_id":"k{n}","status":"{state}","error":"no space left on device"}}"#
            )
        })
        .collect();
    format!(
        "{{\"cid\":\"{}\",\"metadata\":{{\"cairn-length\":\"1\"}},\"peer_map\":{{{}}}}}\n",
        holder(),
        peers.join(",")
    )
}

fn added() -> Vec<u8> {
    ok(&format!(r#"[{{"name":"","cid":"{}","bytes":1}}]"#, holder()))
}

/// What a well cluster, and its Kubo, say of themselves.
fn well(path: &str) -> Vec<u8> {
    match path {
        _ if path.contains("/api/v0/id") => ok(r#"{"ID":"k0"}"#),
        _ if path.contains("/api/v0/config") => ok(r#"{"Key":"k","Value":{"type":"pebbleds"}}"#),
        _ if path.contains("/api/v0/block/") => {
            answer("500 Error", r#"{"Message":"ipld: could not find x","Code":0}"#)
        }
        _ if path.contains("/id") => ok(r#"{"version":"1.1.6","cluster_peers":["a","b"]}"#),
        _ if path.contains("freespace") => {
            ok(r#"[{"name":"freespace","peer":"a","value":"1000","valid":true}]"#)
        }
        _ => answer("404 Not Found", r#"{"code":404,"message":"not found"}"#),
    }
}

fn url(canned: &Canned) -> String {
    format!("ipfs-cluster://127.0.0.1:{0}?kubo=ipfs://127.0.0.1:{0}", canned.port)
}

fn opened(canned: &Canned) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(&url(canned), &[]).unwrap(), false).unwrap()
}

/// The error of a call to a cluster that answers `bytes` on `path` and is well otherwise.
fn fails<T>(
    path: &'static str,
    bytes: Vec<u8>,
    call: impl AsyncFn(Arc<dyn Backend>) -> Result<T, BackendError>,
) -> BackendError {
    let canned =
        Canned::new(move |asked| if asked.starts_with(path) { bytes.clone() } else { well(asked) });
    wait(call(opened(&canned))).err().unwrap()
}

#[test]
fn an_answer_of_a_cluster_that_ends_late_in_an_error_or_too_soon_is_none() {
    let list = async |backend: Arc<dyn Backend>| backend.list(None, 100).await;
    let names = async |backend: Arc<dyn Backend>| backend.names("").await;
    let look = async |backend: Arc<dyn Backend>| backend.presence(&[block().cid]).await;
    let line = format!(
        "{{\"cid\":\"{}\",\"name\":\"n\",\"metadata\":{{\"cairn-length\":\"7\"}}}}\n",
        holder()
    );
    assert_eq!(fails("/allocations", chunked(&line, LATE), list).kind, ErrorKind::Full);
    assert_eq!(fails("/allocations", chunked(&line, LATE), names).kind, ErrorKind::Full);
    assert_eq!(fails("/allocations", chunked(&line, ""), list).kind, ErrorKind::Other);
    assert_eq!(fails("/allocations", ok("<html>\n"), names).kind, ErrorKind::Other);
    assert_eq!(fails("/pins", chunked(&pin(&["pinned"]), LATE), look).kind, ErrorKind::Full);
    let silent = fails("/pins", answer("204 No Content", ""), look);
    assert!(silent.message.contains("did not say"), "{silent}");
    let whole = Canned::new(move |path| {
        if path.starts_with("/allocations") { chunked(&line, END) } else { well(path) }
    });
    let page = wait(opened(&whole).list(None, 100)).unwrap();
    assert_eq!(page.blocks, [(block().cid, 7)]);
}

/// A cluster whose peers say this, look by look; the last of it for ever.
fn says(looks: Vec<Vec<&'static str>>, add: Vec<u8>) -> Canned {
    let at = AtomicUsize::new(0);
    Canned::new(move |path| {
        if path.starts_with("/add") {
            return add.clone();
        }
        if path.contains("/recover") {
            return ok("{}");
        }
        if path.starts_with("/pins") {
            let look = at.fetch_add(1, Ordering::Relaxed).min(looks.len() - 1);
            return chunked(&pin(&looks[look]), END);
        }
        well(path)
    })
}

#[test]
fn a_put_counts_only_when_enough_peers_say_that_they_have_it() {
    let none = vec!["unpinned", "unpinned"];
    let (some, all) = (vec!["pinned", "pinning"], vec!["pinned", "pinned"]);
    let slow = says(vec![none.clone(), some.clone(), some, all], added());
    wait(opened(&slow).put(&block())).unwrap();
    let heads = slow.requests.lock().clone();
    assert_eq!(heads.iter().filter(|head| head.starts_with("GET /pins")).count(), 4, "{heads:?}");
    let add = heads.iter().find(|head| head.starts_with("POST /add")).unwrap();
    for part in ["format=car", "name=cairn%3Acluster", "meta-cairn-length=1"] {
        assert!(add.contains(part), "{add}");
    }
    // No request of ours may bring anything from the network.
    let kubo = heads.iter().filter(|head| head.contains("/api/v0/"));
    assert!(kubo.clone().count() > 2 && kubo.clone().all(|head| head.contains("offline=true")));
    // What failed is tried again, once.
    let failed = vec!["pinned", "pin_error"];
    let healed = says(vec![none.clone(), failed.clone(), vec!["pinned", "pinned"]], added());
    wait(opened(&healed).put(&block())).unwrap();
    assert!(healed.requests.lock().iter().any(|head| head.contains("/recover")));
    let full = says(vec![none.clone(), failed], added());
    let error = wait(opened(&full).put(&block())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.message.contains("n1") && error.message.contains("ipfs gc"), "{error}");
    // An answer that is none, of another block, or late.
    for (add, kind) in [
        (ok("null"), ErrorKind::Other),
        (
            ok(r#"[{"cid":"bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"}]"#),
            ErrorKind::Other,
        ),
        (chunked("[]", LATE), ErrorKind::Full),
        (
            answer("500 E", r#"{"code":500,"message":"not enough peers to allocate"}"#),
            ErrorKind::Unavailable,
        ),
    ] {
        let canned = says(vec![none.clone()], add);
        assert_eq!(wait(opened(&canned).put(&block())).unwrap_err().kind, kind);
    }
    let large = Block::raw(vec![1; 20_000].into());
    let error = wait(opened(&says(vec![none], added())).put(&large)).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Full | ErrorKind::Other), "{error}");
}

#[test]
fn presence_at_a_cluster_is_what_its_peers_and_their_kubos_say() {
    let looks = |states: &[&'static str], stat: &'static str| {
        let line = chunked(&pin(states), END);
        let canned = Canned::new(move |path| match path {
            _ if path.starts_with("/pins") => line.clone(),
            _ if path.contains("/block/stat") && !stat.is_empty() => ok(stat),
            _ => well(path),
        });
        wait(opened(&canned).presence(&[block().cid])).unwrap()[0]
    };
    let (right, wrong) = (r#"{"Key":"x","Size":1}"#, r#"{"Key":"x","Size":2}"#);
    assert_eq!(looks(&["pinned", "pinning"], right), Presence::Present(1));
    // The first one's Kubo is ours to ask.
    assert_eq!(looks(&["pinned", "pinning"], wrong), Presence::Absent);
    assert_eq!(looks(&["pinned", "pinning"], ""), Presence::Absent);
    assert_eq!(looks(&["pinned", "pinned"], ""), Presence::Present(1));
    assert_eq!(looks(&["remote", "pinned"], ""), Presence::Present(1));
    assert_eq!(looks(&["pin_error", "pinning"], right), Presence::Absent);
    assert_eq!(looks(&["pin_error", "cluster_error"], right), Presence::Unknown);
    assert_eq!(looks(&["unpinned", "unpinned"], right), Presence::Absent);
}

#[test]
fn a_cluster_that_is_away_too_old_or_that_loses_blocks_is_not_opened() {
    let refused = |canned: &Canned, more: &str| {
        let spec = BackendSpec::parse(&format!("{}{more}", url(canned)), &[]).unwrap();
        open(&spec, true).err().unwrap()
    };
    let old = Canned::new(|path| match path {
        _ if path.starts_with("/id") => ok(r#"{"version":"0.14.5"}"#),
        _ => well(path),
    });
    assert_eq!(refused(&old, "").kind, ErrorKind::Unsupported);
    let gateway = Canned::new(|_| answer("404 Not Found", "404 page not found"));
    assert!(refused(&gateway, "").message.contains("9094"));
    let loses = Canned::new(|path| match path {
        _ if path.contains("/config") => ok(r#"{"Value":{"type":"flatfs","sync":false}}"#),
        _ => well(path),
    });
    assert!(refused(&loses, "").message.contains("flatfs"));
    let taken = format!("{}&durable=1", url(&loses));
    let taken = open(&BackendSpec::parse(&taken, &[]).unwrap(), true).unwrap();
    assert!(taken.capabilities().durable);
    // Nothing could be read.
    let blind = Canned::new(|path| match path {
        _ if path.contains("/api/v0/") => answer("404 Not Found", "no"),
        _ => well(path),
    });
    assert!(refused(&blind, "").message.contains("kubo="));
    // Of two peers one has each block, and one Kubo is read from.
    let well = Canned::new(well);
    let brittle = refused(&well, "");
    assert!(brittle.message.contains("replication_min=2"), "{brittle}");
    assert!(!opened(&well).capabilities().durable);
    let kept = format!("{}&replication_min=2&replication_max=-1", url(&well));
    let kept = open(&BackendSpec::parse(&kept, &[]).unwrap(), true).unwrap();
    assert!(kept.capabilities().durable);
    let narrow = refused(&well, "&replication_max=1");
    assert!(narrow.message.contains("2 peers") && narrow.message.contains("fetch=1"), "{narrow}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let spec = BackendSpec::parse(&format!("ipfs-cluster://127.0.0.1:{free}"), &[]).unwrap();
    let away = open(&spec, true).err().unwrap();
    assert_eq!(away.kind, ErrorKind::Unavailable);
    assert!(away.message.contains("ipfs-cluster-service"), "{away}");
}
