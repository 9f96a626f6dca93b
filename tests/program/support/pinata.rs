//! A fake of Pinata: what answers like its Files API v3, its uploads and the gateway of an
//! account, as far as docs.pinata.cloud and its own client say how those answer. It is made
//! here, as nobody has a server of it. The archives that it takes go into a real Kubo, which
//! checks and serves them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use axum::{Json, Router};
use cairnfs::types::Cid;
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::{Value, json};

use super::{KuboDaemon, World, http_client};

/// Looked for where no secret may be.
pub const JWT: &str = "fake-jwt-of-an-account";
/// The longest list, whatever was asked for.
const PAGE: usize = 5;
const BODY_MAX: usize = 300 << 20;

/// What it does beside what it is asked.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Files have no CID until they were looked at so often.
    pub looks: u32,
    /// The gateway wants this key.
    pub key: Option<&'static str>,
    /// Archives vanish when they are taken in.
    pub refuses: bool,
    /// Archives become something else.
    pub mangles: bool,
    /// Pieces that are taken, and answered with 500.
    pub breaks: u32,
    /// Pieces that come so late are refused.
    pub pieces: Option<u32>,
}

struct File {
    id: String,
    root: String,
    name: String,
    keyvalues: Value,
    looks: u32,
}

struct Partial {
    bytes: Vec<u8>,
    len: usize,
    fields: HashMap<String, String>,
}

struct Account {
    kubo: String,
    gateway: String,
    client: reqwest::Client,
    manner: Mutex<Manner>,
    files: Mutex<Vec<File>>,
    partials: Mutex<HashMap<String, Partial>>,
    number: AtomicU64,
    /// Bytes of archives that came, and uploads that were begun.
    sent: AtomicU64,
    begun: AtomicU64,
}

/// A running one; it ends with its test.
pub struct FakePinata<'w> {
    pub kubo: KuboDaemon<'w>,
    port: u16,
    account: Arc<Account>,
    _runtime: tokio::runtime::Runtime,
}

impl<'w> FakePinata<'w> {
    /// `None` where Kubo is not installed (an error in CI).
    pub fn start(world: &'w World, test: &str) -> Option<Self> {
        let kubo = KuboDaemon::start(world, test)?;
        let account = Arc::new(Account {
            kubo: format!("http://127.0.0.1:{}/api/v0", kubo.port()),
            gateway: kubo.gateway(),
            client: http_client(),
            manner: Mutex::default(),
            files: Mutex::default(),
            partials: Mutex::default(),
            number: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            begun: AtomicU64::new(0),
        });
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = threads.worker_threads(2).enable_all().build().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&account));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let key = world.path("jwt");
        std::fs::write(&key, JWT).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, mode).unwrap();
        Some(Self { kubo, port, account, _runtime: runtime })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn behaves(&self, manner: Manner) {
        *self.account.manner.lock() = manner;
    }

    /// A backend's URL, without `auth=`.
    pub fn bare(port: u16, folder: &str) -> String {
        let at = format!("http://127.0.0.1:{port}");
        format!("pinata://{folder}?api={at}/v3&uploads={at}/v3&gateway={at}")
    }

    /// A backend's URL.
    pub fn url(&self, world: &World, folder: &str) -> String {
        let key = world.path("jwt");
        format!("{}&auth=file:{}", Self::bare(self.port, folder), key.display())
    }

    /// Files of the account.
    pub fn files(&self) -> usize {
        self.account.files.lock().len()
    }

    /// Somebody deletes them at the account.
    pub fn lose_files(&self) {
        self.account.files.lock().clear();
    }

    /// Bytes of archives that came, and uploads that were begun.
    pub fn uploaded(&self) -> (u64, u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (get(&self.account.sent), get(&self.account.begun))
    }
}

fn refuse(status: StatusCode, text: &str) -> Response {
    let body = json!({ "error": { "code": status.as_u16(), "message": text } });
    respond(status, &body)
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let mut response = axum::response::IntoResponse::into_response(Json(body));
    *response.status_mut() = status;
    response
}

fn bare(status: StatusCode, headers: &[(&'static str, String)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

impl File {
    fn json(&self) -> Value {
        let cid = if self.looks > 0 { "pending" } else { &self.root };
        json!({
            "id": self.id, "name": self.name, "cid": cid, "size": 1, "number_of_files": 1,
            "mime_type": "directory", "group_id": null, "keyvalues": self.keyvalues,
            "created_at": "2026-01-01T00:00:00Z"
        })
    }
}

impl Account {
    fn id(&self) -> String {
        format!("0192868e-{:08}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Imports an archive, as the account's pin; a file that is there already is it.
    async fn take_in(
        &self,
        archive: Bytes,
        fields: &HashMap<String, String>,
    ) -> Result<Value, Response> {
        let has = |key: &str, value: &str| fields.get(key).map(String::as_str) == Some(value);
        if !has("network", "public") || !has("car", "true") {
            return Err(refuse(StatusCode::BAD_REQUEST, "network and car are not as they should"));
        }
        let manner = self.manner.lock().clone();
        let boundary = "b0undary-0f-the-fake";
        let mut form = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        form.extend_from_slice(&archive);
        form.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let kind = format!("multipart/form-data; boundary={boundary}");
        let url = format!("{}/dag/import?pin-roots=true&allow-big-block=true", self.kubo);
        let request = self.client.post(url).header("content-type", kind).body(form);
        let text = request.send().await.unwrap().text().await.unwrap();
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let roots: Vec<&Value> = lines.iter().filter_map(|line| line.get("Root")).collect();
        let [root] = roots[..] else {
            return Err(refuse(StatusCode::BAD_REQUEST, &format!("no single root: {text}")));
        };
        if root["PinErrorMsg"].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(refuse(StatusCode::BAD_REQUEST, &format!("not whole: {text}")));
        }
        let mut root = root["Cid"]["/"].as_str().unwrap().to_owned();
        if manner.mangles {
            root = cairnfs::types::cid::of_raw(&archive).to_string();
        }
        let mut files = self.files.lock();
        if let Some(known) = files.iter().find(|file| file.root == root) {
            let mut json = known.json();
            json["is_duplicate"] = json!(true);
            return Ok(json);
        }
        let keyvalues = fields.get("keyvalues").map(|text| serde_json::from_str(text).unwrap());
        let name = fields.get("name").or(fields.get("filename")).cloned().unwrap_or_default();
        let keyvalues = keyvalues.unwrap_or_default();
        let file = File { id: self.id(), root, name, keyvalues, looks: manner.looks };
        let json = file.json();
        if !manner.refuses {
            files.push(file);
        }
        Ok(json)
    }

    fn list(&self, query: &HashMap<String, String>) -> Value {
        let mut files = self.files.lock();
        let wanted = query.get("cid");
        for file in files.iter_mut().filter(|file| wanted == Some(&file.root)) {
            file.looks = file.looks.saturating_sub(1);
        }
        let from: usize = query.get("pageToken").map_or(0, |text| text.parse().unwrap());
        let fits = |file: &&File| {
            query.iter().all(|(key, value)| {
                let of = key.strip_prefix("keyvalues[").and_then(|key| key.strip_suffix(']'));
                match (of, key.as_str()) {
                    (Some(key), _) => file.keyvalues[key].as_str() == Some(value),
                    (None, "cid") => file.looks == 0 && file.root == *value,
                    _ => true,
                }
            })
        };
        let mut all: Vec<&File> = files.iter().filter(fits).collect();
        if query.get("order").map(String::as_str) == Some("DESC") {
            all.reverse();
        }
        let limit = query.get("limit").map_or(10, |text| text.parse().unwrap()).min(PAGE);
        let page: Vec<Value> = all.iter().skip(from).take(limit).map(|file| file.json()).collect();
        let next =
            if from + limit < all.len() { (from + limit).to_string() } else { String::new() };
        json!({ "data": { "files": page, "next_page_token": next } })
    }

    fn one(&self, method: &Method, id: &str, body: &[u8]) -> Response {
        let mut files = self.files.lock();
        let Some(at) = files.iter().position(|file| file.id == id) else {
            return refuse(StatusCode::NOT_FOUND, "file not found");
        };
        match *method {
            Method::DELETE => {
                files.remove(at);
                respond(StatusCode::OK, &json!({ "data": null }))
            }
            Method::PUT => {
                let change: Value = serde_json::from_slice(body).unwrap();
                let values = change["keyvalues"].as_object().unwrap();
                assert!(values.len() <= 10 && values.values().all(Value::is_string), "{change}");
                files[at].keyvalues = change["keyvalues"].clone();
                respond(StatusCode::OK, &json!({ "data": files[at].json() }))
            }
            _ => {
                files[at].looks = files[at].looks.saturating_sub(1);
                respond(StatusCode::OK, &json!({ "data": files[at].json() }))
            }
        }
    }

    /// TUS 1.0.0.
    fn begin(&self, headers: &HeaderMap) -> Response {
        let text = |name: &str| headers[name].to_str().unwrap();
        assert_eq!(text("tus-resumable"), "1.0.0");
        let decode = |value: &str| {
            let base = cid::multibase::Base::Base64Pad;
            String::from_utf8(base.decode(value).unwrap()).unwrap()
        };
        let fields: HashMap<String, String> = text("upload-metadata")
            .split(',')
            .map(|pair| pair.split_once(' ').unwrap())
            .map(|(key, value)| (key.to_owned(), decode(value)))
            .collect();
        let len: usize = text("upload-length").parse().unwrap();
        let id = self.id();
        let location = format!("http://{}/v3/files/{id}", text("host"));
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.partials.lock().insert(id, Partial { bytes: Vec::new(), len, fields });
        bare(StatusCode::CREATED, &[("location", location)])
    }

    async fn piece(&self, id: &str, headers: &HeaderMap, body: Bytes) -> Response {
        assert!(body.len() < 50_000_000, "pieces are below 50 MB");
        {
            let mut manner = self.manner.lock();
            if let Some(left) = &mut manner.pieces {
                if *left == 0 {
                    return refuse(StatusCode::INTERNAL_SERVER_ERROR, "no more pieces");
                }
                *left -= 1;
            }
        }
        self.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
        let whole = {
            let mut partials = self.partials.lock();
            let Some(partial) = partials.get_mut(id) else {
                return refuse(StatusCode::NOT_FOUND, "no such upload");
            };
            let offset: usize = headers["upload-offset"].to_str().unwrap().parse().unwrap();
            if offset != partial.bytes.len() {
                return refuse(StatusCode::CONFLICT, "another offset");
            }
            partial.bytes.extend_from_slice(&body);
            let is_whole = partial.bytes.len() == partial.len;
            is_whole.then(|| (Bytes::from(partial.bytes.clone()), partial.fields.clone()))
        };
        let mut at = vec![("upload-offset", self.partials.lock()[id].bytes.len().to_string())];
        if let Some((bytes, fields)) = whole {
            match self.take_in(bytes, &fields).await {
                Ok(file) => at.push(("upload-cid", file["cid"].as_str().unwrap().to_owned())),
                Err(refused) => return refused,
            }
        }
        let mut manner = self.manner.lock();
        if manner.breaks > 0 {
            manner.breaks -= 1;
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "taken, and broken off");
        }
        // That of an archive that is not taken in yet is none.
        at.retain(|(_, value)| value != "pending");
        bare(StatusCode::NO_CONTENT, &at)
    }

    /// As a restricted one: what is below the root of a file of the account.
    async fn gateway(&self, path: &str, headers: &HeaderMap, query: &str) -> Response {
        let key = self.manner.lock().key;
        if key.is_some_and(|key| headers.get("x-pinata-gateway-token").is_none_or(|h| h != key)) {
            return refuse(StatusCode::UNAUTHORIZED, "no key");
        }
        let root = path.split('/').nth(2).unwrap_or_default();
        if !self.files.lock().iter().any(|file| file.root == root && file.looks == 0) {
            return refuse(StatusCode::FORBIDDEN, "not pinned to the account of this gateway");
        }
        let accept = headers["accept"].to_str().unwrap();
        let url = format!("{}{path}?{query}", self.gateway);
        let answer = self.client.get(url).header("accept", accept).send().await.unwrap();
        let status = StatusCode::from_u16(answer.status().as_u16()).unwrap();
        let mut response = Response::new(Body::from(answer.bytes().await.unwrap()));
        *response.status_mut() = status;
        response
    }
}

/// The fields of a form, and its file.
fn parse_form(kind: &str, body: &Bytes) -> (HashMap<String, String>, Bytes) {
    let boundary = format!("--{}", kind.split("boundary=").nth(1).unwrap());
    let find = |from: usize, what: &[u8]| {
        body[from..].windows(what.len()).position(|part| part == what).map(|at| from + at)
    };
    let (mut fields, mut file) = (HashMap::new(), Bytes::new());
    let mut at = 0;
    loop {
        let start = at + boundary.len() + 2;
        let Some(head_end) = find(start, b"\r\n\r\n") else { break };
        let head = String::from_utf8(body[start..head_end].to_vec()).unwrap();
        let end = find(head_end, format!("\r\n{boundary}").as_bytes()).unwrap();
        let value = body.slice(head_end + 4..end);
        let name = head.split("name=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        if name == "file" {
            file = value;
        } else {
            fields.insert(name, String::from_utf8(value.to_vec()).unwrap());
        }
        at = end + 2;
    }
    (fields, file)
}

async fn answer(State(account): State<Arc<Account>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        return refuse(StatusCode::BAD_REQUEST, "cut off");
    };
    let (path, headers) = (parts.uri.path(), &parts.headers);
    let query = parts.uri.query().unwrap_or_default();
    if path.starts_with("/ipfs/") {
        return account.gateway(path, headers, query).await;
    }
    if headers.get("authorization").is_none_or(|value| value != &format!("Bearer {JWT}")) {
        let error = json!({ "error": { "reason": "INVALID_CREDENTIALS", "details": "no key" } });
        return respond(StatusCode::UNAUTHORIZED, &error);
    }
    let pairs = Url::parse(&format!("http://x/?{query}")).unwrap();
    let query: HashMap<String, String> = pairs.query_pairs().into_owned().collect();
    let rest = path.strip_prefix("/v3/files").unwrap_or("none");
    match (parts.method.clone(), rest) {
        (Method::POST, "") if headers.contains_key("upload-length") => account.begin(headers),
        (Method::POST, "") => {
            account.begun.fetch_add(1, Ordering::Relaxed);
            let (fields, file) = parse_form(headers["content-type"].to_str().unwrap(), &body);
            account.sent.fetch_add(file.len() as u64, Ordering::Relaxed);
            assert!(file.len() <= 100_000_000, "larger ones come in pieces");
            match account.take_in(file, &fields).await {
                Ok(file) => respond(StatusCode::OK, &json!({ "data": file })),
                Err(refused) => refused,
            }
        }
        (Method::GET, "/public") => respond(StatusCode::OK, &account.list(&query)),
        (Method::HEAD, rest) => {
            let partials = account.partials.lock();
            let Some(partial) = partials.get(rest.trim_start_matches('/')) else {
                return bare(StatusCode::NOT_FOUND, &[]);
            };
            let (offset, len) = (partial.bytes.len().to_string(), partial.len.to_string());
            bare(StatusCode::OK, &[("upload-offset", offset), ("upload-length", len)])
        }
        (Method::PATCH, rest) => account.piece(rest.trim_start_matches('/'), headers, body).await,
        (method, rest) => match rest.strip_prefix("/public/") {
            Some(id) => account.one(&method, id, &body),
            None => refuse(StatusCode::NOT_FOUND, "no such place"),
        },
    }
}

/// Whether a Kubo gives a content by its own CID.
pub fn is_public(kubo: &KuboDaemon<'_>, id: &Cid, wanted: &[u8]) -> bool {
    let run = kubo.ipfs(&["cat", &id.to_string()]);
    run.code == 0 && run.stdout.as_bytes() == wanted
}
