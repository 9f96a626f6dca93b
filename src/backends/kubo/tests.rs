//! What no real Kubo answers on demand, from a socket that answers what it is told. All
//! else is tested against Kubo itself (`tests/program/kubo_backend.rs`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::backends::{BackendSpec, open};
use crate::runtime::Bridge;

/// Answers each request by its path.
pub(in crate::backends) struct Canned {
    pub port: u16,
    pub requests: Arc<Mutex<Vec<String>>>,
}

fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text[..head].lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            if bytes.len() >= head + 4 + length.unwrap_or(0usize) {
                return Some(text[..head].to_owned());
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

impl Canned {
    pub fn new(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(head) = request(&mut stream) else { continue };
                let path = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().push(head);
                // Who was answered enough may have gone.
                drop(stream.write_all(&answer(&path)));
            }
        });
        Self { port, requests }
    }

    fn url(&self) -> String {
        format!("ipfs://127.0.0.1:{}", self.port)
    }

    fn open(&self) -> Arc<dyn Backend> {
        open(&BackendSpec::parse(&self.url(), &[]).unwrap(), false).unwrap()
    }
}

pub(in crate::backends) fn answer(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
        .into()
}

pub(in crate::backends) fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", body)
}

fn version() -> Vec<u8> {
    ok(r#"{"Version":"0.41.0"}"#)
}

/// In chunks, and what ends it.
pub(in crate::backends) fn chunked(body: &str, end: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Stream-Error\r\n\r\n{:x}\r\n{body}\r\n{end}",
        body.len()
    )
    .into()
}

pub(in crate::backends) fn wait<T>(
    call: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    Bridge::start(1).unwrap().wait(Duration::from_secs(20), call).unwrap()
}

/// The error of a call to a Kubo that answers `bytes` on `path` and is well otherwise.
fn fails<T>(
    path: &'static str,
    bytes: Vec<u8>,
    call: impl AsyncFn(Arc<dyn Backend>) -> Result<T, BackendError>,
) -> BackendError {
    let canned = Canned::new(move |asked| {
        if asked.contains(path) {
            return bytes.clone();
        }
        if asked.contains("/block/stat") {
            return answer("500 Error", r#"{"Message":"ipld: could not find x","Code":0}"#);
        }
        if asked.contains("/repo/stat") {
            return ok(r#"{"RepoSize":1,"StorageMax":1000000}"#);
        }
        version()
    });
    let backend = canned.open();
    wait(call(backend)).err().unwrap()
}

#[test]
fn an_answer_that_ends_in_an_error_or_too_soon_is_no_listing() {
    let holder = Holders::new("").of(&Block::raw("x".into()).cid, 1).unwrap();
    let line = format!("{{\"Cid\":\"{holder}\",\"Type\":\"recursive\"}}\n");
    let list = async |backend: Arc<dyn Backend>| backend.list(None, 100).await;
    let names = async |backend: Arc<dyn Backend>| backend.names("").await;
    let boom = "0\r\nX-Stream-Error: no space left on device\r\n\r\n";
    assert_eq!(fails("/pin/ls", chunked(&line, boom), list).kind, ErrorKind::Full);
    assert_eq!(fails("/pin/ls", chunked(&line, boom), names).kind, ErrorKind::Full);
    // Cut off between two lines.
    assert_eq!(fails("/pin/ls", chunked(&line, ""), list).kind, ErrorKind::Other);
    assert_eq!(fails("/pin/ls", chunked(&line, ""), names).kind, ErrorKind::Other);
    assert_eq!(fails("/pin/ls", ok("<html>\n"), list).kind, ErrorKind::Other);
    let endless = "x".repeat((1 << 20) + 4096);
    assert_eq!(fails("/pin/ls", ok(&endless), list).kind, ErrorKind::Other);
    let whole =
        Canned::new(
            move |path| {
                if path.contains("/pin/ls") { chunked(&line, "0\r\n\r\n") } else { version() }
            },
        );
    assert_eq!(wait(whole.open().list(None, 100)).unwrap().blocks.len(), 1);
}

#[test]
fn a_put_counts_only_when_kubo_said_that_each_block_is_pinned() {
    let block = Block::raw("x".into());
    let holder = Holders::new("").of(&block.cid, 1).unwrap();
    let put = async |backend: Arc<dyn Backend>| backend.put(&Block::raw("x".into())).await;
    let pinned = |why: &str| {
        format!("{{\"Root\":{{\"Cid\":{{\"/\":\"{holder}\"}},\"PinErrorMsg\":\"{why}\"}}}}\n")
    };
    let end = "0\r\n\r\n";
    let lost = chunked(&pinned("block was not found locally"), end);
    assert_eq!(fails("/dag/import", lost, put).kind, ErrorKind::Other);
    let full = chunked(&pinned("no space left on device"), end);
    assert_eq!(fails("/dag/import", full, put).kind, ErrorKind::Full);
    let silent = fails("/dag/import", ok(""), put);
    assert!(silent.message.contains("1 blocks"), "{silent}");
    let late = "0\r\nX-Stream-Error: leveldb: closed\r\n\r\n";
    let late = fails("/dag/import", chunked(&pinned(""), late), put);
    assert_eq!(late.kind, ErrorKind::Unavailable);
    assert_eq!(fails("/dag/import", chunked(&pinned(""), ""), put).kind, ErrorKind::Other);
    let well = chunked(&pinned(""), end);
    let canned = Canned::new(move |path| match path {
        _ if path.contains("/dag/import") => well.clone(),
        _ if path.contains("/block/stat") => {
            answer("500 Error", r#"{"Message":"ipld: could not find x","Code":0}"#)
        }
        _ if path.contains("/repo/stat") => ok(r#"{"RepoSize":1,"StorageMax":10000}"#),
        _ => version(),
    });
    let backend = canned.open();
    wait(backend.put(&block)).unwrap();
    // No request may bring anything from the network.
    for head in canned.requests.lock().iter() {
        assert!(head.starts_with("POST ") && head.contains("offline=true"), "{head}");
    }
    // Above what it has room for.
    let large = Block::raw(vec![1; 20_000].into());
    assert_eq!(wait(backend.put(&large)).unwrap_err().kind, ErrorKind::Full);
}

#[test]
fn a_block_that_is_cut_short_or_too_long_is_never_given() {
    let id = Block::raw("x".into()).cid;
    let get = async move |backend: Arc<dyn Backend>| backend.get(&id, None).await;
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec();
    assert_eq!(fails("/block/get", cut, get).kind, ErrorKind::Other);
    let long = "x".repeat(Block::MAX_LEN + 1);
    assert_eq!(fails("/block/get", ok(&long), get).kind, ErrorKind::Corrupt);
    assert_eq!(fails("/block/get", Vec::new(), get).kind, ErrorKind::Other);
    assert_eq!(fails("/block/get", b"SSH-2.0-x\r\n".to_vec(), get).kind, ErrorKind::Other);
    let missing = r#"{"Message":"block was not found locally (offline): ipld: could not find x"}"#;
    assert_eq!(fails("/block/get", answer("500 E", missing), get).kind, ErrorKind::NotFound);
    for (status, kind) in [
        ("401 Unauthorized", ErrorKind::Denied),
        ("403 Forbidden", ErrorKind::Denied),
        ("404 Not Found", ErrorKind::Invalid),
        ("429 Too Many", ErrorKind::Throttled),
        ("502 Bad Gateway", ErrorKind::Unavailable),
        ("503 Busy", ErrorKind::Throttled),
        ("301 Moved", ErrorKind::Invalid),
    ] {
        assert_eq!(fails("/block/get", answer(status, "x"), get).kind, kind, "{status}");
    }
}

#[test]
fn who_does_not_answer_or_is_too_old_is_not_opened() {
    let opened = |url: &str| open(&BackendSpec::parse(url, &[]).unwrap(), true).err().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = opened(&format!("ipfs://127.0.0.1:{free}"));
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert!(refused.message.contains("ipfs daemon"), "{refused}");
    // TLS to who does not speak it.
    let plain = Canned::new(|_| version());
    let no_tls = opened(&format!("ipfs+https://127.0.0.1:{}", plain.port));
    assert!(
        no_tls.kind == ErrorKind::Denied || no_tls.kind == ErrorKind::Unavailable,
        "{no_tls:?}"
    );
    let old = Canned::new(|_| ok(r#"{"Version":"0.30.0"}"#));
    assert_eq!(opened(&old.url()).kind, ErrorKind::Unsupported);
    let gateway = Canned::new(|_| answer("404 Not Found", "404 page not found"));
    assert!(opened(&gateway.url()).message.contains("Addresses.API"));
    assert!(["0.42.0-dev", "1.0", "mine"].iter().all(|one| !is_too_old(one, OLDEST)));
    for (spec, durable) in [
        (r#"{"mounts":[{"child":{"type":"flatfs","sync":true}}]}"#, true),
        (r#"{"mounts":[{"child":{"type":"flatfs","sync":false}}]}"#, false),
        (r#"{"type":"pebbleds"}"#, true),
    ] {
        assert_eq!(is_durable(&serde_json::from_str(spec).unwrap()), durable, "{spec}");
    }
    let loses = Canned::new(|path| match path {
        _ if path.contains("/config") => {
            ok(r#"{"Key":"k","Value":{"type":"flatfs","sync":false}}"#)
        }
        _ => version(),
    });
    assert!(!loses.open().capabilities().durable);
    let refused = opened(&loses.url());
    assert_eq!(refused.kind, ErrorKind::Invalid);
    assert!(refused.message.contains("durable=1"), "{refused}");
    let taken = format!("{}?durable=1", loses.url());
    let taken = open(&BackendSpec::parse(&taken, &[]).unwrap(), true).unwrap();
    assert!(taken.capabilities().durable);
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_secret_is_sent_as_a_header_never_shown_and_read_again_when_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let wanted: Arc<Mutex<String>> = Arc::new(Mutex::new("first-hidden".into()));
    // The answers are of what the last request brought.
    let requests: Arc<Mutex<Option<Arc<Mutex<Vec<String>>>>>> = Arc::default();
    let (now, seen) = (Arc::clone(&wanted), Arc::clone(&requests));
    let canned = Canned::new(move |_| {
        let seen = seen.lock();
        let head = seen.as_ref().and_then(|heads| heads.lock().last().cloned());
        let header = format!("authorization: Bearer {}", now.lock());
        if head.unwrap_or_default().contains(&header) {
            version()
        } else {
            answer("403 Forbidden", "Kubo RPC Access Denied")
        }
    });
    *requests.lock() = Some(Arc::clone(&canned.requests));
    let url = format!("{}?auth=file:{}", canned.url(), path.display());
    let spec = BackendSpec::parse(&url, &[]).unwrap();
    assert!(open(&spec, false).err().unwrap().message.contains("token"));
    write_secret(&path, "bearer:wrong-hidden\n");
    let refused = open(&spec, false).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Denied);
    assert!(refused.message.contains("AllowedPaths"), "{refused}");
    write_secret(&path, "bearer:first-hidden\n");
    let backend = open(&spec, false).unwrap();
    wait(backend.probe()).unwrap();
    // Another secret holds now, and is in the file.
    *wanted.lock() = "second-hidden".into();
    write_secret(&path, "second-hidden\n");
    assert_eq!(wait(backend.probe()).unwrap_err().kind, ErrorKind::Denied);
    wait(backend.probe()).unwrap();
    for text in [spec.url.clone(), backend.location(), format!("{refused:?}")] {
        assert!(!text.contains("hidden"), "{text}");
    }
    assert!(!spec.without_auth().url.contains("auth"));
    let bare = BackendSpec::parse(&canned.url(), &[]).unwrap();
    assert!(bare.is_same_place(&spec));
    assert_eq!(bare.with_auth_of(&spec).url, spec.url);
}
