//! Files as they are now: `GET /files/PATH`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, ETAG};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::IntoResponse;
use tokio::sync::mpsc;

use super::page::{self, Line, Page};
use super::range::is_known;
use super::unixfs::{body_of, wants_json};
use super::{Form, Served, behind, dag, describe, encoded, form, invalid, of_length, scope, see};
use crate::backends::peer::wire::Role;
use crate::backends::{BackendError, ErrorKind};
use crate::node::{Answer, need};
use crate::types::Cid;

/// Entries of a page of a directory.
const PAGE: usize = 1000;
/// Bytes of a read.
const PIECE: usize = 1 << 20;
/// Pieces that wait for a slow reader.
const AHEAD: usize = 2;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub inode: u64,
    /// Else a file.
    pub is_directory: bool,
    /// Bytes.
    pub size: u64,
    /// When its content changed.
    pub modified: SystemTime,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// What it is; `None` for what cannot be followed.
    pub found: Option<Found>,
    /// Where the next page begins.
    pub cookie: u64,
}

/// A tree of files as they are now. Everything blocks.
pub trait Tree: Send + Sync + 'static {
    /// Follows a path, and links in it that stay within the tree.
    ///
    /// # Errors
    /// `NotFound`, `Denied`.
    fn find(&self, path: &[u8]) -> Result<Found, BackendError>;

    /// Entries of a directory after a cookie (0: from the start). An empty page is the end.
    ///
    /// # Errors
    /// As [`Tree::find`].
    fn list(&self, path: &[u8], cookie: u64, limit: usize) -> Result<Vec<Listed>, BackendError>;

    /// Opens a file that was found.
    ///
    /// # Errors
    /// As [`Tree::find`].
    fn open(&self, found: &Found) -> Result<Arc<dyn Opened>, BackendError>;

    /// The CID of what was found, as it is now.
    ///
    /// # Errors
    /// As [`Tree::find`].
    fn cid(&self, found: &Found) -> Result<Cid, BackendError>;
}

/// A file that is open until it is dropped.
pub trait Opened: Send + Sync + 'static {
    /// At most so many bytes; fewer at the end.
    ///
    /// # Errors
    /// What keeps it from being read.
    fn read(&self, offset: u64, most: usize) -> Result<Bytes, BackendError>;
}

/// Carries out what blocks.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|cut| Err(BackendError::new(ErrorKind::Other, cut.to_string())))
}

/// `GET` and `HEAD /files/PATH`: a file, a page of a directory, or its DAG by `?format=`.
pub(super) async fn get(
    State(served): State<Served>,
    Extension(role): Extension<Role>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    uri: Uri,
) -> Answer {
    need(role, Role::Read)?;
    let Some(tree) = served.tree.clone() else { return Err(invalid("there are no files here")) };
    let path = behind(&uri, "/files/");
    let form = match query.get("format").map(String::as_str) {
        Some("json") => Form::Plain,
        _ => form(&query, &headers, true)?,
    };
    let (at, all) = (path.clone(), Arc::clone(&tree));
    let found = aside(move || all.find(&at)).await?;
    if form != Form::Plain {
        let hold = served.source.hold();
        let scope = scope(&query)?;
        let root = aside(move || tree.cid(&found)).await?;
        let response = dag(&served.source, root, &[], (form, scope), &headers).await;
        drop(hold);
        return response.map(|mut response| {
            // Another tree may stand there next time.
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        });
    }
    if found.is_directory {
        let is_json =
            wants_json(&headers) || query.get("format").is_some_and(|form| form == "json");
        if !path.is_empty() && path.last() != Some(&b'/') && !is_json {
            // Links in it are from there.
            return Ok(see(&format!("/files/{}/", encoded(&path))));
        }
        let after = match query.get("after").map(|text| text.parse()) {
            None => 0,
            Some(Ok(after)) => after,
            Some(Err(_)) => return Err(invalid("after= is what `next` of the page before says")),
        };
        return directory(tree, path, after, is_json).await;
    }
    let since = found.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let tag = format!("\"{:x}-{:x}-{:x}\"", found.inode, since.as_nanos(), found.size);
    if is_known(&headers, &tag, Some(found.modified)) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let (len, modified) = (found.size, found.modified);
    let opened = aside(move || tree.open(&found)).await?;
    let mut response = of_length(&headers, (len, &tag), |range| {
        let (send, receive) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let mut at = range.start;
            while at < range.end {
                let most = PIECE.min((range.end - at) as usize);
                let file = Arc::clone(&opened);
                let piece = match aside(move || file.read(at, most)).await {
                    // It was cut meanwhile: so is the answer.
                    Ok(piece) if piece.is_empty() => {
                        Err(BackendError::new(ErrorKind::Other, "the file became shorter"))
                    }
                    other => other,
                };
                let failed = piece.is_err();
                at += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                if send.send(piece).await.is_err() || failed {
                    break;
                }
            }
        });
        body_of(receive)
    });
    if response.status().is_success() {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        describe(&mut response, name, &tag, Some(modified));
        // It is asked each time whether it is still the same.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    Ok(response)
}

async fn directory(tree: Arc<dyn Tree>, path: Vec<u8>, after: u64, is_json: bool) -> Answer {
    let at = path.clone();
    let listed = aside(move || tree.list(&at, after, PAGE)).await?;
    let next = (listed.len() >= PAGE).then(|| listed.last().map(|last| last.cookie)).flatten();
    let lines = listed.into_iter().filter_map(|one| {
        let found = one.found?;
        let modified = humantime::format_rfc3339_seconds(found.modified).to_string();
        Some(Line {
            name: one.name,
            is_directory: found.is_directory,
            size: (!found.is_directory).then_some(found.size),
            modified: Some(modified),
            cid: None,
        })
    });
    let shown = format!("/files/{}", String::from_utf8_lossy(&path));
    let next = next.map(|cookie| format!("after={cookie}"));
    let page = Page { path: &shown, cid: None, lines: lines.collect(), next };
    let mut response = if is_json { page::json(&page) } else { page::html(&page) };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
