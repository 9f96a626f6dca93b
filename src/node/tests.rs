use std::net::TcpListener;

use tokio::task::JoinHandle;

use super::door::Door;
use super::tokens::Tokens;
use super::*;
use crate::backends::{BackendSpec, MemoryBackend, conformance, open, open_in};
use crate::types::{Block, Cid, cid};

const READ: &str = "read-0123456789abcdef";
const WRITE: &str = "write-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";

/// A node over a directory, which ends with it.
struct Served {
    dir: tempfile::TempDir,
    port: u16,
    handle: axum_server::Handle<std::net::SocketAddr>,
    serving: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Connections that are open end, too.
        self.handle.shutdown();
        self.serving.abort();
    }
}

fn node_over(url: &str) -> Router {
    let backend = open_in(&BackendSpec::parse(url, &[]).unwrap(), true, None).unwrap();
    let tokens = format!("read {READ}\nwrite {WRITE}\nadmin {ADMIN}\n");
    let node = Node::new(backend).unwrap();
    Door::of_store(node.store, Some(Tokens::parse(&tokens).unwrap())).before(router(node))
}

impl Served {
    fn start(kind: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = node_over(&format!("{kind}://{}/store", dir.path().display()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let handle = axum_server::Handle::new();
        let server = axum_server::from_tcp(listener).unwrap().handle(handle.clone()).http1_only();
        let serving = tokio::spawn(async move {
            server.serve(node.into_make_service()).await.unwrap();
        });
        Self { dir, port, handle, serving }
    }

    fn open(&self, token: &str) -> Result<Arc<dyn Backend>, BackendError> {
        let file = self.dir.path().join(token);
        std::fs::write(&file, token).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, mode).unwrap();
        let url = format!("cairn://127.0.0.1:{}?auth=file:{}", self.port, file.display());
        open(&BackendSpec::parse(&url, &[]).unwrap(), false)
    }

    async fn ask(&self, path: &str, token: &str, range: Option<&str>) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut request = reqwest::Client::new().get(url).bearer_auth(token);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.send().await.unwrap()
    }
}

fn block(text: &str) -> Block {
    Block::raw(Bytes::copy_from_slice(text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_does_what_every_backend_does() {
    for kind in ["file", "car", "parquet"] {
        let kept = parking_lot::Mutex::new(Vec::new());
        conformance::run(|| {
            let served = Served::start(kind);
            let backend = tokio::task::block_in_place(|| served.open(ADMIN)).unwrap();
            kept.lock().push(served);
            std::future::ready(backend)
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_allows_what_its_role_does() {
    let served = Served::start("file");
    let (one, two) = (block("one"), block("two"));
    let open = |token: &str| tokio::task::block_in_place(|| served.open(token));
    let (reader, writer, admin) = (open(READ).unwrap(), open(WRITE).unwrap(), open(ADMIN).unwrap());
    writer.put(&one).await.unwrap();
    writer.put_name("n/a", &one.cid).await.unwrap();
    assert_eq!(reader.get(&one.cid, None).await.unwrap(), one.data);
    assert!(reader.capabilities().read_only && !writer.capabilities().read_only);
    assert!(!writer.capabilities().delete && admin.capabilities().delete);
    for refused in [
        reader.put(&two).await,
        reader.put_name("n/b", &two.cid).await,
        writer.delete(&one.cid).await,
        writer.delete_name("n/a").await,
    ] {
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Denied);
    }
    let stranger = open("stranger-0123456789").err().unwrap();
    assert_eq!(stranger.kind, ErrorKind::Denied, "{stranger}");
    assert!(!stranger.message.contains("stranger-"), "{stranger}");
    admin.delete_name("n/a").await.unwrap();
    admin.delete(&one.cid).await.unwrap();
    let health = served.ask("/health", "", None).await;
    assert_eq!(health.status(), 200);
    let nothing = served.ask("/v1/other", ADMIN, None).await;
    assert_eq!(nothing.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_does_not_match_its_cid_is_not_stored_and_another_store_says_nothing() {
    let served = Served::start("file");
    let admin = tokio::task::block_in_place(|| served.open(ADMIN)).unwrap();
    let wrong = Block { cid: block("one").cid, data: block("two").data };
    let refused = admin.put_many(&[block("three"), wrong.clone()]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Corrupt, "{refused}");
    let there = admin.presence(&[block("three").cid, wrong.cid]).await.unwrap();
    assert_eq!(there, [crate::backends::Presence::Absent; 2]);
    // Another store at the same address.
    let port = served.port;
    let place = served.dir.path().join("store/cairn-backend.json");
    let text = std::fs::read_to_string(&place).unwrap();
    assert!(text.contains(&admin.id().unwrap().to_string()), "{text}");
    drop(served);
    let dir = tempfile::tempdir().unwrap();
    let other = node_over(&format!("file://{}/store", dir.path().display()));
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let server = axum_server::from_tcp(listener).unwrap().http1_only();
    let serving = tokio::spawn(async move { server.serve(other.into_make_service()).await });
    // Connections of the old one end first.
    let mut said = String::new();
    for _ in 0..100 {
        let error = admin.presence(&[block("one").cid]).await.unwrap_err();
        said = error.message;
        if error.kind == ErrorKind::Unavailable && said.contains("not the store") {
            break;
        }
    }
    assert!(said.contains("not the store"), "{said}");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blocks_parts_and_dags_are_read_as_the_gateway_specification_says() {
    let served = Served::start("car");
    let admin = tokio::task::block_in_place(|| served.open(ADMIN)).unwrap();
    // A file of two leaves in a directory.
    let leaves = [block("hello "), block("world")];
    let links = |names: [&str; 2], cids: [Cid; 2], sizes: [u64; 2]| -> Vec<u8> {
        let mut out = Vec::new();
        for ((name, cid), size) in names.into_iter().zip(cids).zip(sizes) {
            let bytes = cid.to_bytes();
            let mut link = vec![0x0a, bytes.len() as u8];
            link.extend(bytes);
            link.extend([0x12, name.len() as u8]);
            link.extend(name.bytes());
            link.extend([0x18, size as u8]);
            out.extend([0x12, link.len() as u8]);
            out.extend(link);
        }
        out
    };
    let node = |mut links: Vec<u8>, data: &[u8]| {
        links.extend([0x0a, data.len() as u8]);
        links.extend(data);
        let data = Bytes::from(links);
        Block { cid: cid::v1(cid::DAG_PB, &cid::sha256(&data)), data }
    };
    let of_leaves = links(["", ""], [leaves[0].cid, leaves[1].cid], [6, 5]);
    let file = node(of_leaves, &[0x08, 0x02, 0x18, 11, 0x20, 6, 0x20, 5]);
    let other = block("other");
    let folder = node(links(["a", "b"], [file.cid, other.cid], [60, 5]), &[0x08, 0x01]);
    let all = [leaves[0].clone(), leaves[1].clone(), file.clone(), other.clone(), folder.clone()];
    admin.put_many(&all).await.unwrap();
    let raw = served.ask(&format!("/ipfs/{}?format=raw", leaves[0].cid), READ, None).await;
    assert_eq!(raw.status(), 200);
    assert_eq!(raw.headers()["content-type"], wire::RAW);
    assert_eq!(raw.headers()["etag"], format!("\"{}.raw\"", leaves[0].cid));
    assert!(raw.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    assert_eq!(raw.bytes().await.unwrap(), leaves[0].data);
    let path = format!("/ipfs/{}?format=raw", other.cid);
    let part = served.ask(&path, READ, Some("bytes=1-2")).await;
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].clone()),
        (206, HeaderValue::from_static("bytes 1-2/5"))
    );
    assert_eq!(part.bytes().await.unwrap(), "th");
    assert_eq!(served.ask(&path, READ, Some("bytes=9-")).await.status(), 416);
    // By a path, and what cannot be.
    let by_path = served.ask(&format!("/ipfs/{}/b?format=raw", folder.cid), READ, None).await;
    assert_eq!(by_path.bytes().await.unwrap(), other.data);
    for (path, status) in [
        (format!("/ipfs/{}/c?format=raw", folder.cid), 404),
        (format!("/ipfs/{}?format=raw", block("absent").cid), 404),
        ("/ipfs/nothing?format=raw".to_owned(), 400),
        (format!("/ipfs/{}", folder.cid), 406),
        (format!("/ipfs/{}?format=car&dag-scope=half", folder.cid), 400),
        (format!("/ipfs/{}/a?format=car&entity-bytes=4", folder.cid), 400),
        (format!("/ipfs/{}/a?format=car&entity-bytes=11:*", folder.cid), 400),
        (format!("/ipfs/{}/a?format=car&entity-bytes=0:-12", folder.cid), 400),
    ] {
        assert_eq!(served.ask(&path, READ, None).await.status(), status, "{path}");
    }
    let cids = |blocks: &[&Block]| blocks.iter().map(|block| block.cid).collect::<Vec<_>>();
    for (path, wanted) in [
        ("", vec![&folder, &file, &leaves[0], &leaves[1], &other]),
        ("&dag-scope=entity", vec![&folder]),
        ("&dag-scope=block", vec![&folder]),
        ("/a", vec![&folder, &file, &leaves[0], &leaves[1]]),
        ("/a&dag-scope=entity", vec![&folder, &file, &leaves[0], &leaves[1]]),
        ("/a&dag-scope=block", vec![&folder, &file]),
        ("/b", vec![&folder, &other]),
        // Bytes of a file; its first leaf has six.
        ("/a&entity-bytes=0:5", vec![&folder, &file, &leaves[0]]),
        ("/a&entity-bytes=5:6", vec![&folder, &file, &leaves[0], &leaves[1]]),
        ("/a&entity-bytes=6:*", vec![&folder, &file, &leaves[1]]),
        ("/a&entity-bytes=-5:*", vec![&folder, &file, &leaves[1]]),
        ("/a&entity-bytes=-99:0", vec![&folder, &file, &leaves[0]]),
        ("/a&entity-bytes=0:-6", vec![&folder, &file, &leaves[0]]),
        ("/a&entity-bytes=0:99", vec![&folder, &file, &leaves[0], &leaves[1]]),
        ("/a&entity-bytes=7:3", vec![&folder, &file]),
        ("/a&dag-scope=all&entity-bytes=10:10", vec![&folder, &file, &leaves[1]]),
        ("/b&entity-bytes=1:2", vec![&folder, &other]),
        ("&entity-bytes=1:2", vec![&folder]),
    ] {
        let (path, more) =
            path.split_once('&').map_or((path, String::new()), |(p, m)| (p, format!("&{m}")));
        let path = format!("/ipfs/{}{path}?format=car{more}", folder.cid);
        let car = served.ask(&path, READ, None).await;
        assert!(car.headers()["content-type"].to_str().unwrap().starts_with(wire::CAR));
        let bytes = car.bytes().await.unwrap();
        let mut reader = crate::content::car::CarReader::new(&bytes[..]).unwrap();
        assert_eq!(reader.header_of().roots, [folder.cid]);
        let mut found = Vec::new();
        while let Some(section) = reader.next_section().unwrap() {
            found.push(section.cid);
        }
        assert_eq!(found, cids(&wanted), "{path}");
    }
    // What is missing below cuts the connection: nobody takes a part for the whole.
    admin.delete(&leaves[1].cid).await.unwrap();
    let cut = served.ask(&format!("/ipfs/{}?format=car", folder.cid), READ, None).await;
    assert_eq!(cut.status(), 200);
    assert!(cut.bytes().await.is_err());
}

#[test]
fn a_store_without_an_id_and_an_open_door_are_refused() {
    let memory = Arc::new(MemoryBackend::new("m"));
    let refused = Node::new(memory).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    let dir = tempfile::tempdir().unwrap();
    let spec = BackendSpec::parse(&format!("file://{}/s", dir.path().display()), &[]).unwrap();
    let store = open(&spec, true).unwrap();
    let options =
        Serve { listen: "0.0.0.0:0".parse().unwrap(), tls: None, tokens: None, insecure: false };
    let error = serve(Arc::clone(&store), &options, |_| panic!("it listens")).unwrap_err();
    assert!(error.message.contains("--tokens"), "{error}");
    let tokens = Some(dir.path().join("tokens"));
    let error = serve(store, &Serve { tokens, ..options }, |_| panic!("it listens")).unwrap_err();
    assert!(error.message.contains("--cert"), "{error}");
}
