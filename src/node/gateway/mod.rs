//! Blocks and DAGs by the trustless gateway specification
//! (specs.ipfs.tech/http-gateways/trustless-gateway, 2025): `GET /ipfs/CID[/PATH]` as
//! `application/vnd.ipld.raw` or `application/vnd.ipld.car`; and, where a gateway is for
//! browsers too, files and directories as they are (the path gateway specification).
//!
//! Whoever asks for blocks compares what comes with its CID. What is cut off by a failure is
//! a connection that breaks, so that nobody takes a part for the whole.

mod car;
mod files;
mod page;
mod range;
mod unixfs;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::{
    ACCEPT, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

pub use self::files::{Found, Listed, Opened, Tree};
use self::range::{is_known, is_of_this, range_of};
use super::source::Source;
use super::{Answer, Refusal, need};
use crate::backends::peer::wire::{CAR, RAW, Role};
use crate::backends::{BackendError, ErrorKind};
use crate::content::{Node, inline_block, parse_node};
use crate::types::Cid;

/// What never changes is kept for a year or so by whoever asked.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=29030400, immutable");
/// A page that others wrote runs nothing here, and sees nothing of what else is served.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");
/// Shards that are looked through for a name.
const SHARDS_MAX: usize = 100_000;
/// As they are in a path.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is served, and how.
pub struct Gateway {
    /// Blocks.
    pub source: Arc<dyn Source>,
    /// Files as they are now; with them, files and directories by CID are for browsers, too.
    pub tree: Option<Arc<dyn Tree>>,
}

type Served = Arc<Gateway>;

/// What a gateway answers.
pub(super) fn router(served: Gateway) -> Router {
    let router = Router::new().route("/ipfs/{*path}", get(by_cid));
    let router = if served.tree.is_some() {
        router
            .route("/", get(|| async { see("/files/") }))
            .route("/files", get(|| async { see("/files/") }))
            .route("/files/", get(files::get))
            .route("/files/{*path}", get(files::get))
    } else {
        router
    };
    router.with_state(Arc::new(served))
}

/// How a DAG is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The root alone.
    Block,
    /// A file, or a directory without what is in it.
    Entity,
    /// All below.
    All,
}

/// `entity-bytes=`: which bytes of a file are wanted, as blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EntityBytes {
    /// The first; below zero it is counted from the end.
    from: i64,
    /// The last; none is the end.
    to: Option<i64>,
}

impl EntityBytes {
    fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once(':')?;
        let to = if to == "*" { None } else { Some(to.parse().ok()?) };
        Some(Self { from: from.parse().ok()?, to })
    }

    /// Of a file of `len` bytes; empty where it asks for none. `None`: all that it asks for
    /// is beyond the file.
    fn of(self, len: u64) -> Option<Range<u64>> {
        let end = i128::from(len);
        let at = |n: i64| if n < 0 { end + i128::from(n) } else { i128::from(n) };
        let (from, last) = (at(self.from), self.to.map_or(end - 1, at));
        if from >= end.max(1) || (last < 0 && len > 0) {
            return None;
        }
        let inside = |n: i128| u64::try_from(n.clamp(0, end)).unwrap_or(len);
        let (from, to) = (inside(from), inside(last + 1));
        Some(from..to.max(from))
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Raw,
    Car,
    /// As it is.
    Plain,
}

fn invalid(message: impl Into<String>) -> Refusal {
    BackendError::new(ErrorKind::Invalid, message).into()
}

/// By `?format=`, else by `Accept`.
fn form(
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    is_plain_too: bool,
) -> Result<Form, Refusal> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match query.get("format").map(String::as_str) {
        Some("raw") => return Ok(Form::Raw),
        Some("car") => return Ok(Form::Car),
        None if accept.contains(RAW) => return Ok(Form::Raw),
        None if accept.contains(CAR) => return Ok(Form::Car),
        None if is_plain_too => return Ok(Form::Plain),
        Some(_) | None => {}
    }
    let message = format!(
        "ask for ?format=raw or ?format=car ({RAW}, {CAR}): this gateway has no other form"
    );
    Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, ErrorKind::Unsupported, message))
}

/// How much of a DAG; `entity-bytes=` implies `dag-scope=entity`.
fn scope(query: &HashMap<String, String>) -> Result<(Scope, Option<EntityBytes>), Refusal> {
    if let Some(text) = query.get("entity-bytes") {
        let part = EntityBytes::parse(text)
            .ok_or_else(|| invalid("entity-bytes is FROM:TO, numbers or, for TO, *"))?;
        return Ok((Scope::Entity, Some(part)));
    }
    let scope = match query.get("dag-scope").map(String::as_str) {
        None | Some("all") => Scope::All,
        Some("entity") => Scope::Entity,
        Some("block") => Scope::Block,
        Some(_) => return Err(invalid("dag-scope is block, entity or all")),
    };
    Ok((scope, None))
}

async fn block(source: &dyn Source, id: &Cid) -> Result<Bytes, BackendError> {
    match inline_block(id) {
        Some(inline) => Ok(inline),
        None => source.whole(id).await,
    }
}

fn node(id: &Cid, data: &Bytes) -> Result<Node, BackendError> {
    parse_node(id, data).map_err(|error| {
        BackendError::new(ErrorKind::Unsupported, format!("block {id} is no node: {error}"))
    })
}

/// The blocks from the root of a path to its end, the end last.
async fn resolve(
    source: &dyn Source,
    root: Cid,
    names: &[&str],
) -> Result<Vec<(Cid, Bytes)>, BackendError> {
    let mut chain = vec![(root, block(source, &root).await?)];
    for name in names {
        let (id, data) = chain.last().cloned().ok_or_else(|| absent(name))?;
        let found =
            entry(source, (id, data), name, &mut chain).await?.ok_or_else(|| absent(name))?;
        chain.push((found, block(source, &found).await?));
    }
    Ok(chain)
}

fn absent(name: &str) -> BackendError {
    BackendError::new(ErrorKind::NotFound, format!("there is no `{}`", name.escape_debug()))
}

/// What a directory's entry leads to. Shards on the way come to `chain`.
async fn entry(
    source: &dyn Source,
    (id, data): (Cid, Bytes),
    name: &str,
    chain: &mut Vec<(Cid, Bytes)>,
) -> Result<Option<Cid>, BackendError> {
    let length = chain.len();
    // Each with how many blocks lead to it.
    let mut next = vec![(id, data, length)];
    let mut looked = 0;
    while let Some((id, data, depth)) = next.pop() {
        looked += 1;
        if looked > SHARDS_MAX {
            break;
        }
        if depth > length {
            chain.truncate(depth - 1);
            chain.push((id, data.clone()));
        }
        let (entries, shards) = match node(&id, &data)? {
            Node::Directory { entries, .. } => (entries, Vec::new()),
            Node::Shard { entries, shards, .. } => (entries, shards),
            _ => return Ok(None),
        };
        if let Some(found) = entries.into_iter().find(|entry| entry.name == name) {
            return Ok(Some(found.link.cid));
        }
        for shard in shards {
            next.push((shard.cid, block(source, &shard.cid).await?, depth + 1));
        }
    }
    chain.truncate(length);
    Ok(None)
}

/// Another address of the same.
fn see(path: &str) -> Response {
    let to = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::MOVED_PERMANENTLY, [(LOCATION, to)]).into_response()
}

fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, PLAIN).to_string()
}

/// What stands behind the first folder of a path, as bytes.
fn behind(uri: &Uri, folder: &str) -> Vec<u8> {
    let path = uri.path().strip_prefix(folder).unwrap_or_default();
    percent_decode_str(path).collect()
}

/// `GET` and `HEAD /ipfs/CID[/PATH]`.
async fn by_cid(
    State(served): State<Served>,
    Extension(role): Extension<Role>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    need(role, Role::Read)?;
    let path = String::from_utf8(behind(&uri, "/ipfs/"))
        .map_err(|_| invalid("names in a DAG are UTF-8"))?;
    let mut names = path.split('/').filter(|name| !name.is_empty());
    let text = names.next().unwrap_or_default();
    let root: Cid = text
        .parse()
        .map_err(|error| invalid(format!("`{}` is no CID: {error}", text.escape_debug())))?;
    let names: Vec<&str> = names.collect();
    let form = form(&query, &headers, served.tree.is_some())?;
    let mut response = if form == Form::Plain {
        let chain = resolve(&*served.source, root, &names).await?;
        unixfs::answer(&served.source, chain, &path, &headers).await?
    } else {
        dag(&served.source, root, &names, (form, scope(&query)?), &headers).await?
    };
    let path = HeaderValue::from_str(&format!("/ipfs/{}", encoded(path.as_bytes())));
    let path = path.map_err(|error| invalid(format!("a header: {error}")))?;
    response.headers_mut().insert(HeaderName::from_static("x-ipfs-path"), path);
    Ok(response)
}

/// Blocks of what a path leads to.
async fn dag(
    source: &Arc<dyn Source>,
    root: Cid,
    names: &[&str],
    (form, (mut scope, part)): (Form, (Scope, Option<EntityBytes>)),
    headers: &HeaderMap,
) -> Answer {
    if form == Form::Raw {
        let id = if names.is_empty() {
            root
        } else {
            resolve(&**source, root, names).await?.last().map_or(root, |(id, _)| *id)
        };
        let tag = format!("\"{id}.raw\"");
        if is_known(headers, &tag, None) {
            return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
        }
        let mut response = raw(&**source, &id, headers, &tag).await?;
        say(&mut response, &format!("{id}.bin"), (RAW, &tag))?;
        return Ok(response);
    }
    // Other blocks in another order are the same DAG.
    let of_part = part.map_or_else(String::new, |part| {
        format!(".{}:{}", part.from, part.to.map_or("*".to_owned(), |to| to.to_string()))
    });
    let tag = format!("W/\"{root}.{}.car.{scope:?}{of_part}\"", names.len());
    if names.is_empty() && is_known(headers, &tag, None) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let chain = resolve(&**source, root, names).await?;
    let id = chain.last().map_or(root, |(id, _)| *id);
    let bytes = match (part, chain.last()) {
        (Some(part), Some((id, data))) => bytes_of(part, id, data)?,
        _ => None,
    };
    if bytes.as_ref().is_some_and(Range::is_empty) {
        scope = Scope::Block;
    }
    let mut response = car::car(source, root, chain, (scope, bytes))?;
    let kind = "application/vnd.ipld.car; version=1; order=dfs; dups=n";
    say(&mut response, &format!("{id}.car"), (kind, &tag))?;
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    Ok(response)
}

/// Which bytes of a file are wanted; `None` for what is none, and comes whole.
fn bytes_of(part: EntityBytes, id: &Cid, data: &Bytes) -> Result<Option<Range<u64>>, Refusal> {
    let len = match parse_node(id, data) {
        Ok(Node::Raw(data)) => data.len() as u64,
        Ok(Node::File { size, .. }) => size,
        _ => return Ok(None),
    };
    let beyond = || invalid(format!("the file has {len} bytes: entity-bytes is beyond them"));
    part.of(len).map(Some).ok_or_else(beyond)
}

/// What every answer of blocks has in its head.
fn say(
    response: &mut Response,
    file: &str,
    (kind, tag): (&'static str, &str),
) -> Result<(), Refusal> {
    let value = |text: &str| {
        HeaderValue::from_str(text).map_err(|error| invalid(format!("a header: {error}")))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(ETAG, value(tag)?);
    headers.insert(CACHE_CONTROL, FOR_EVER);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_DISPOSITION, value(&format!("attachment; filename=\"{file}\""))?);
    Ok(())
}

/// A block, or a part of one.
async fn raw(source: &dyn Source, id: &Cid, headers: &HeaderMap, tag: &str) -> Answer {
    let wants_part = headers.contains_key(axum::http::header::RANGE) && is_of_this(headers, tag);
    if !wants_part || inline_block(id).is_some() {
        let mut response = block(source, id).await?.into_response();
        response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        return Ok(response);
    }
    let len = source.len(id).await?;
    let part = match wanted(headers, len, tag) {
        Ok(Some(range)) => source.part(id, range).await?,
        Ok(None) => block(source, id).await?,
        Err(refused) => return Ok(refused),
    };
    Ok(of_length(headers, (len, tag), |_| Body::from(part)))
}

/// The part that is asked for; `Err`: there is nothing of it.
fn wanted(headers: &HeaderMap, len: u64, tag: &str) -> Result<Option<Range<u64>>, Response> {
    if !is_of_this(headers, tag) {
        return Ok(None);
    }
    range_of(headers, len).map_err(|()| {
        let message = format!("there are {len} bytes");
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let mut response = Refusal::new(status, ErrorKind::Invalid, message).into_response();
        if let Ok(value) = HeaderValue::from_str(&format!("bytes */{len}")) {
            response.headers_mut().insert(CONTENT_RANGE, value);
        }
        response
    })
}

/// An answer of so many bytes, or of the part that is asked for.
fn of_length(
    headers: &HeaderMap,
    (len, tag): (u64, &str),
    body: impl FnOnce(Range<u64>) -> Body,
) -> Response {
    let (range, status) = match wanted(headers, len, tag) {
        Ok(None) => (0..len, StatusCode::OK),
        Ok(Some(range)) => (range, StatusCode::PARTIAL_CONTENT),
        Err(refused) => return refused,
    };
    let of = format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1));
    let many = range.end - range.start;
    let mut response = (status, body(range)).into_response();
    let said = response.headers_mut();
    said.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    said.insert(CONTENT_LENGTH, HeaderValue::from(many));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(of) = HeaderValue::from_str(&of)
    {
        said.insert(CONTENT_RANGE, of);
    }
    response
}

/// What a file is for a browser, by the end of its name.
fn kind_of(name: &[u8]) -> HeaderValue {
    let name = String::from_utf8_lossy(name);
    let kind = mime_guess::from_path(&*name).first_or_octet_stream();
    let text =
        if kind.type_() == "text" { format!("{kind}; charset=utf-8") } else { kind.to_string() };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// What an answer of a file has in its head.
fn describe(response: &mut Response, name: &[u8], tag: &str, modified: Option<SystemTime>) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind_of(name));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, SANDBOX);
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    if let Some(time) = modified
        && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(time))
    {
        headers.insert(LAST_MODIFIED, date);
    }
}
