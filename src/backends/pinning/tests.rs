//! What no real service answers on demand, from a socket that answers what it is told. All
//! else is tested against a real one (`tests/program/pinning_backend.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use url::Url;

use super::*;
use crate::backends::kubo::tests::{Canned, answer, ok, wait};
use crate::backends::{BackendSpec, open};

fn block() -> Block {
    Block::raw("x".into())
}

fn holder() -> Cid {
    Holders::at_service("").of(&block().cid, 0).unwrap()
}

/// A request, as a service tells of it.
fn request(id: &str, status: &str, cid: &Cid, created: &str) -> String {
    format!(
        r#"{{"requestid":"{id}","status":"{status}","created":"{created}",
           "pin":{{"cid":"{cid}","name":"cairn:service","meta":{{"cairn-length":"1"}}}},
           "delegates":["/ip4/10.0.0.1/tcp/4001/p2p/x"],
           "info":{{"status_details":"no providers found"}}}}"#
    )
    .replace('\n', "")
}

fn listed(count: usize, requests: &[String]) -> Vec<u8> {
    ok(&format!(r#"{{"count":{count},"results":[{}]}}"#, requests.join(",")))
}

/// What a Kubo, a gateway and a service without pins answer.
fn well(path: &str) -> Vec<u8> {
    match path {
        _ if path.contains("/version") => ok(r#"{"Version":"0.41.0"}"#),
        _ if path.contains("/config") => ok(r#"{"Key":"k","Value":{"type":"pebbleds"}}"#),
        _ if path.contains("/api/v0/id") => {
            ok(r#"{"ID":"k","Addresses":["/ip4/127.0.0.1/tcp/4001/p2p/k"]}"#)
        }
        _ if path.contains("/block/") => {
            answer("500 Error", r#"{"Message":"ipld: could not find x","Code":0}"#)
        }
        _ if path.contains("/repo/stat") => ok(r#"{"RepoSize":1,"StorageMax":1000000}"#),
        _ if path.contains("/dag/import") => {
            let staged = Holders::new("service:").of(&block().cid, 1).unwrap();
            ok(&format!(r#"{{"Root":{{"Cid":{{"/":"{staged}"}},"PinErrorMsg":""}}}}"#))
        }
        _ if path.starts_with("/api/v0/") => ok("{}"),
        _ => listed(0, &[]),
    }
}

fn opened(canned: &Canned) -> Arc<dyn Backend> {
    let url = format!(
        "pinning+http://127.0.0.1:{0}?gateway=http://127.0.0.1:{0}&kubo=ipfs://127.0.0.1:{0}",
        canned.port
    );
    open(&BackendSpec::parse(&url, &[]).unwrap(), true).unwrap()
}

/// A service that says this of the pin, look by look (the last one for ever), and answers
/// what is asked to be pinned with `asked`.
fn says(looks: &[&'static str], asked: &str) -> Canned {
    let (looks, asked, at) = (looks.to_vec(), asked.to_owned(), AtomicUsize::new(0));
    Canned::new(move |path| {
        if path.starts_with("/pins?cid") {
            let look = looks[at.fetch_add(1, Ordering::Relaxed).min(looks.len() - 1)];
            if look.is_empty() {
                return listed(0, &[]);
            }
            return listed(1, &[request("r 1", look, &holder(), "2026-01-02T03:04:05Z")]);
        }
        let is_asked = path == "/pins" || path.starts_with("/pins/");
        if is_asked { answer("202 Accepted", &asked) } else { well(path) }
    })
}

fn asked(canned: &Canned) -> Vec<String> {
    let all = canned.requests.lock();
    let lines = all.iter().filter_map(|head| head.lines().next());
    let ours = lines.filter(|line| line.contains(" /pins ") || line.contains(" /pins/"));
    ours.map(|line| line.trim_end_matches(" HTTP/1.1").to_owned()).collect()
}

#[test]
fn a_pin_is_followed_to_its_end_and_asked_for_once() {
    let told = request("r 1", "queued", &holder(), "2026-01-02T03:04:05Z");
    for (looks, wanted) in [
        (&["", "queued", "pinning", "pinned"][..], &["POST /pins"][..]),
        // Somebody asked for it before a crash, or gave up waiting.
        (&["queued", "pinning", "pinned"], &[]),
        (&["pinned"], &[]),
        // It failed before, or does now: once more.
        (&["failed", "pinned"], &["DELETE /pins/r%201", "POST /pins"]),
        (&["", "failed", "queued", "pinned"], &["POST /pins", "DELETE /pins/r%201", "POST /pins"]),
    ] {
        let service = says(looks, &told);
        wait(opened(&service).put(&block())).unwrap();
        assert_eq!(asked(&service), wanted, "{looks:?}");
    }
}

#[test]
fn a_pin_that_fails_again_says_why_and_another_cid_is_refused() {
    let told = request("r 1", "queued", &holder(), "2026-01-02T03:04:05Z");
    let failed = wait(opened(&says(&["", "failed"], &told)).put(&block())).unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Other);
    assert!(failed.message.contains("no providers found"), "{failed}");
    let other = request("r 1", "pinned", &block().cid, "2026-01-02T03:04:05Z");
    let wrong = wait(opened(&says(&[""], &other)).put(&block())).unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Other);
    assert!(wrong.message.contains("says that it pins"), "{wrong}");
}

#[test]
fn what_is_only_asked_for_or_failed_is_not_there() {
    for (status, presence) in [
        ("pinned", Presence::Present(1)),
        ("queued", Presence::Unknown),
        ("pinning", Presence::Unknown),
        ("something new", Presence::Unknown),
        ("failed", Presence::Absent),
        ("", Presence::Absent),
    ] {
        let found = wait(opened(&says(&[status], "{}")).presence(&[block().cid])).unwrap();
        assert_eq!(found, [presence], "{status}");
    }
}

/// A service of many pins, which gives any 200 of those between two times.
fn many(total: u32, seconds: u32) -> Canned {
    let holders = Holders::at_service("");
    let pins: Vec<(SystemTime, String)> = (0..total)
        .map(|n| {
            let block = Block::raw(n.to_le_bytes().to_vec().into());
            let second = n * seconds / total;
            let time = format!("2026-01-02T03:{:02}:{:02}Z", second / 60, second % 60);
            let holder = holders.of(&block.cid, 0).unwrap();
            let request = request(&n.to_string(), "pinned", &holder, &time);
            (humantime::parse_rfc3339(&time).unwrap(), request)
        })
        .collect();
    Canned::new(move |path| {
        let url = Url::parse(&format!("http://h{path}")).unwrap();
        let of = |key: &str| {
            let (_, date) = url.query_pairs().find(|(name, _)| name == key)?;
            humantime::parse_rfc3339(&date).ok()
        };
        let (Some(after), Some(before)) = (of("after"), of("before")) else { return well(path) };
        // As the specification words it, without the ends.
        let inside = |time: &SystemTime| *time > after && *time < before;
        let found: Vec<String> =
            pins.iter().rev().filter(|(time, _)| inside(time)).map(|(_, r)| r.clone()).collect();
        listed(found.len(), &found[..found.len().min(200)])
    })
}

/// All that a place lists, page by page.
fn listing(place: &dyn Backend, limit: usize) -> Vec<Cid> {
    let (mut all, mut from) = (Vec::new(), None::<String>);
    loop {
        let page = wait(place.list(from.as_deref(), limit)).unwrap();
        assert!(page.blocks.len() <= limit);
        all.extend(page.blocks.iter().map(|(id, _)| *id));
        from = page.next;
        if from.is_none() {
            return all;
        }
    }
}

#[test]
fn pins_are_listed_by_their_times_each_once() {
    // The last: most of each second's pins were on a page before.
    for (total, seconds, limits) in [(700, 600, &[1000, 150][..]), (300, 2, &[7, 100])] {
        let service = many(total, seconds);
        let place = opened(&service);
        for limit in limits {
            let all = listing(&*place, *limit);
            assert_eq!(all.len(), total as usize, "in pages of {limit}");
            let distinct: BTreeSet<_> = all.iter().map(Cid::to_bytes).collect();
            assert_eq!(distinct.len(), total as usize, "in pages of {limit}");
        }
        assert_eq!(wait(place.list(Some("nowhere"), 10)).unwrap_err().kind, ErrorKind::Invalid);
    }
    // So many at one time that nothing tells them apart: an error, and no part.
    let crowded = opened(&many(300, 1));
    let refused = wait(crowded.list(None, 10)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported, "{refused}");
}
