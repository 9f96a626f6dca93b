//! Files and directories of a DAG as they are (the path gateway specification).

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::page::{self, Line, Page};
use super::range::is_known;
use super::{FOR_EVER, SHARDS_MAX, Source, block, describe, encoded, node, of_length, see};
use crate::backends::{BackendError, ErrorKind};
use crate::content::{DirectoryEntry, Node, unescape_name};
use crate::node::{Answer, Refusal};
use crate::types::Cid;

/// Pieces that wait for a slow reader.
const AHEAD: usize = 2;
/// Entries of a directory that are shown.
const SHOWN: usize = 10_000;
/// What a directory shows instead of itself.
const INDEX: &str = "index.html";

/// What a path leads to: the blocks to it, it last.
pub(super) async fn answer(
    source: &Arc<dyn Source>,
    mut chain: Vec<(Cid, Bytes)>,
    path: &str,
    headers: &HeaderMap,
) -> Answer {
    let Some((mut id, data)) = chain.pop() else { return Err(Refusal::from(nothing())) };
    let mut name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut top = node(&id, &data)?;
    if matches!(top, Node::Directory { .. } | Node::Shard { .. }) {
        if !path.ends_with('/') {
            // Links in it are from there.
            return Ok(see(&format!("/ipfs/{}/", encoded(path.as_bytes()))));
        }
        let (entries, more) = entries_of(&**source, top).await?;
        match entries.iter().find(|entry| entry.name == INDEX) {
            Some(index) => {
                id = index.link.cid;
                INDEX.clone_into(&mut name);
                top = node(&id, &block(&**source, &id).await?)?;
            }
            None => return Ok(listing(path, &id, entries, more, headers)),
        }
    }
    let tag = format!("\"{id}\"");
    if is_known(headers, &tag, None) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let len = match &top {
        Node::Raw(data) => data.len() as u64,
        Node::File { size, .. } => *size,
        Node::Symlink { target, .. } => target.len() as u64,
        Node::Directory { .. } | Node::Shard { .. } => return Err(Refusal::from(nothing())),
    };
    let source = Arc::clone(source);
    let mut response = of_length(headers, (len, &tag), |range| {
        let (send, receive) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _all = source.hold();
            if let Err(error) = read(&*source, top, range, &send).await {
                tracing::debug!(%error, %id, "a file is cut off");
                // Nobody may be left to hear it.
                drop(send.send(Err(error)).await);
            }
        });
        body_of(receive)
    });
    if response.status().is_success() {
        describe(&mut response, name.as_bytes(), &tag, None);
        response.headers_mut().insert(CACHE_CONTROL, FOR_EVER);
    }
    Ok(response)
}

fn nothing() -> BackendError {
    BackendError::new(ErrorKind::Unsupported, "that is neither a file nor a directory")
}

/// What comes as it comes.
pub(super) fn body_of(receive: mpsc::Receiver<Result<Bytes, BackendError>>) -> Body {
    Body::from_stream(futures_util::stream::unfold(receive, |mut receive| async move {
        let piece = receive.recv().await?;
        Some((piece, receive))
    }))
}

/// Sends a part of a file, block by block.
async fn read(
    source: &dyn Source,
    top: Node,
    range: Range<u64>,
    send: &mpsc::Sender<Result<Bytes, BackendError>>,
) -> Result<(), BackendError> {
    let gone = || BackendError::new(ErrorKind::Unavailable, "the reader went away");
    let mut left = range.end - range.start;
    // Where the next one begins in the file; the next one is the last.
    let (mut at, mut next) = (0, Vec::new());
    let mut first = Some(top);
    while left > 0 {
        let here = if let Some(top) = first.take() {
            top
        } else {
            let Some((id, size)) = next.pop() else { break };
            if at + size <= range.start {
                at += size;
                continue;
            }
            node(&id, &block(source, &id).await?)?
        };
        let data = match here {
            Node::Raw(data) | Node::Symlink { target: data, .. } => data,
            Node::File { data, links, .. } => {
                next.extend(links.into_iter().rev().map(|link| (link.cid, link.size)));
                data
            }
            Node::Directory { .. } | Node::Shard { .. } => return Err(nothing()),
        };
        let end = at + data.len() as u64;
        let from = range.start.clamp(at, end);
        let to = range.end.clamp(from, end);
        if from < to {
            left -= to - from;
            let piece = data.slice((from - at) as usize..(to - at) as usize);
            send.send(Ok(piece)).await.map_err(|_| gone())?;
        }
        at = end;
    }
    if left == 0 {
        return Ok(());
    }
    let message = format!("{left} bytes less than the file's node says");
    Err(BackendError::new(ErrorKind::Corrupt, message))
}

/// What is in a directory, and whether there is more.
async fn entries_of(
    source: &dyn Source,
    top: Node,
) -> Result<(Vec<DirectoryEntry>, bool), BackendError> {
    let (mut all, mut next, mut looked) = (Vec::new(), Vec::new(), 0);
    let mut first = Some(top);
    loop {
        let here = if let Some(top) = first.take() {
            top
        } else {
            let Some(id): Option<Cid> = next.pop() else { break };
            looked += 1;
            if looked > SHARDS_MAX || all.len() >= SHOWN {
                return Ok((all, true));
            }
            node(&id, &block(source, &id).await?)?
        };
        match here {
            Node::Directory { entries, .. } => all.extend(entries),
            Node::Shard { entries, shards, .. } => {
                all.extend(entries);
                next.extend(shards.into_iter().map(|shard| shard.cid));
            }
            _ => return Err(nothing()),
        }
    }
    let more = all.len() > SHOWN;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.truncate(SHOWN);
    Ok((all, more))
}

fn listing(
    path: &str,
    id: &Cid,
    entries: Vec<DirectoryEntry>,
    more: bool,
    headers: &HeaderMap,
) -> Response {
    let lines = entries.into_iter().map(|entry| Line {
        name: unescape_name(&entry.name),
        is_directory: false,
        // All blocks below, as the entry has it.
        size: Some(entry.link.tsize),
        modified: None,
        cid: Some(entry.link.cid.to_string()),
    });
    let mut lines: Vec<Line> = lines.collect();
    if more {
        let name = b"(there is more: ask for a CAR)".to_vec();
        lines.push(Line { name, is_directory: false, size: None, modified: None, cid: None });
    }
    let path = format!("/ipfs/{path}");
    let page = Page { path: &path, cid: Some(id.to_string()), lines, next: None };
    if wants_json(headers) { page::json(&page) } else { page::html(&page) }
}

/// Programs say so; browsers do not.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(axum::http::header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("application/json"))
}
