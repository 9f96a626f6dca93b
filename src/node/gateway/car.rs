//! A DAG as a CAR: depth first, each block once.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::{Scope, Source, block, node};
use crate::backends::{BackendError, ErrorKind};
use crate::content::car::{encode_header, put_section};
use crate::content::{Node, inline_block};
use crate::node::Refusal;
use crate::types::{Cid, cid};

/// Sections that wait for a slow reader.
const AHEAD: usize = 4;
/// Blocks of one CAR that are remembered, so that they come once.
const SEEN_MAX: usize = 1 << 20;

/// The blocks below the end of a path, in a CAR whose root is that of the path; of a file
/// those that such a part of its bytes needs.
pub(super) fn car(
    source: &Arc<dyn Source>,
    root: Cid,
    chain: Vec<(Cid, Bytes)>,
    wanted: (Scope, Option<Range<u64>>),
) -> Result<Response, Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        Refusal::from(BackendError::new(ErrorKind::Other, format!("no CAR: {error}")))
    };
    let header = encode_header(&[root]).map_err(|error| failed(&error))?;
    let (send, receive) = mpsc::channel::<Result<Bytes, BackendError>>(AHEAD);
    let source = Arc::clone(source);
    tokio::spawn(async move {
        let _all = source.hold();
        if let Err(error) = write(&*source, header, chain, wanted, &send).await {
            tracing::debug!(%error, %root, "a CAR is cut off");
            // Nobody may be left to hear it.
            drop(send.send(Err(error)).await);
        }
    });
    let pieces = futures_util::stream::unfold(receive, |mut receive| async move {
        let piece = receive.recv().await?;
        Some((piece, receive))
    });
    Ok(Body::from_stream(pieces).into_response())
}

async fn write(
    source: &dyn Source,
    header: Vec<u8>,
    mut chain: Vec<(Cid, Bytes)>,
    (scope, bytes): (Scope, Option<Range<u64>>),
    send: &mpsc::Sender<Result<Bytes, BackendError>>,
) -> Result<(), BackendError> {
    let gone = || BackendError::new(ErrorKind::Unavailable, "the reader went away");
    let section = |id: &Cid, data: &Bytes| {
        let mut out = Vec::with_capacity(data.len() + 64);
        put_section(&mut out, id, data)
            .map(|()| Bytes::from(out))
            .map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))
    };
    send.send(Ok(header.into())).await.map_err(|_| gone())?;
    let mut seen = HashSet::new();
    let Some((end, data)) = chain.pop() else { return Ok(()) };
    for (id, data) in &chain {
        if inline_block(id).is_none() && seen.insert(*id) {
            send.send(Ok(section(id, data)?)).await.map_err(|_| gone())?;
        }
    }
    // The deepest last: depth first, in the order of the links; with where each begins in
    // the file.
    let mut next = vec![(end, Some(data), 0)];
    while let Some((id, data, at)) = next.pop() {
        let was_sent = inline_block(&id).is_some() || seen.contains(&id);
        // At another place in the file it may be wanted for others of what is below it.
        if was_sent && (bytes.is_none() || id.codec() != cid::DAG_PB) {
            continue;
        }
        let data = match data {
            Some(data) => data,
            None => block(source, &id).await?,
        };
        if !was_sent {
            send.send(Ok(section(&id, &data)?)).await.map_err(|_| gone())?;
            if seen.len() < SEEN_MAX {
                seen.insert(id);
            }
        }
        if scope == Scope::Block || id.codec() != cid::DAG_PB {
            continue;
        }
        let below = match node(&id, &data)? {
            Node::File { data, links, .. } if let Some(bytes) = &bytes => {
                let mut at = at + data.len() as u64;
                let mut wanted = Vec::new();
                for link in links {
                    let end = at.saturating_add(link.size);
                    if at < bytes.end && end > bytes.start {
                        wanted.push((link.cid, None, at));
                    }
                    at = end;
                }
                next.extend(wanted.into_iter().rev());
                continue;
            }
            // Not what is in it.
            Node::Directory { .. } if scope == Scope::Entity => Vec::new(),
            Node::Shard { shards, .. } if scope == Scope::Entity => {
                shards.into_iter().map(|shard| shard.cid).collect()
            }
            other => other.children(),
        };
        next.extend(below.into_iter().rev().map(|id| (id, None, 0)));
    }
    Ok(())
}
