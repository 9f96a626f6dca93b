//! Requests of a node's own: all but reads of blocks.

use std::collections::HashSet;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::Deserialize;

use super::{Answer, Refusal, Shared, need, text};
use crate::backends::peer::wire::{ASKED_MAX, About, FORMAT, Page, Role, Stored, presence_text};
use crate::backends::{BackendError, ErrorKind, check};
use crate::content::car::{CarError, CarReader};
use crate::types::{Block, Cid};

/// Blocks on a page unless it is said how many.
const PAGE: usize = 1000;

fn invalid(message: String) -> Refusal {
    BackendError::new(ErrorKind::Invalid, message).into()
}

/// `GET /health`: whether the store answers, for who watches it. Without a token.
pub(super) async fn health(State(node): State<Shared>) -> Answer {
    node.backend.probe().await?;
    Ok(text("ok\n".to_owned()))
}

/// What is at no path.
pub(super) async fn nothing() -> Refusal {
    let message = "there is nothing here: see docs/node.md for what can be asked";
    Refusal::new(StatusCode::NOT_FOUND, ErrorKind::Unsupported, message)
}

/// `GET /v1/node`.
pub(super) async fn about(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
) -> Json<About> {
    let capabilities = node.backend.capabilities();
    Json(About { format: FORMAT, store: node.store, role, capabilities })
}

/// The blocks of a CAR, each compared with its CID.
fn blocks_of(car: &[u8]) -> Result<Vec<Block>, Refusal> {
    let bad = |error: CarError| -> Refusal {
        BackendError::new(ErrorKind::Corrupt, format!("the CAR that was sent: {error}")).into()
    };
    let mut reader = CarReader::new(car).map_err(bad)?;
    let mut blocks = Vec::new();
    while let Some(section) = reader.next_section().map_err(bad)? {
        blocks.push(Block { cid: section.cid, data: section.data });
    }
    Ok(blocks)
}

/// `POST /v1/blocks`: a CAR; all of it is durable when this answers.
pub(super) async fn put_blocks(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
    body: Body,
) -> Answer {
    need(role, Role::Write)?;
    let car = node.body(body).await?;
    let read = tokio::task::spawn_blocking(move || blocks_of(&car)).await;
    let blocks = read.map_err(|cut| BackendError::new(ErrorKind::Other, cut.to_string()))??;
    node.backend.put_many(&blocks).await?;
    Ok(Json(Stored { store: node.store, blocks: blocks.len() }).into_response())
}

/// CIDs, one a line.
fn cids_of(body: &Bytes) -> Result<Vec<Cid>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| invalid(error.to_string()))?;
    let mut cids = Vec::new();
    for line in text.lines() {
        if cids.len() == ASKED_MAX {
            return Err(invalid(format!("at most {ASKED_MAX} CIDs in a request")));
        }
        let cid = line.trim().parse();
        cids.push(cid.map_err(|error| invalid(format!("`{}`: {error}", line.escape_debug())))?);
    }
    Ok(cids)
}

/// `POST /v1/has`: a line each.
pub(super) async fn has(State(node): State<Shared>, body: Body) -> Answer {
    let cids = cids_of(&node.body(body).await?)?;
    let found = node.backend.presence(&cids).await?;
    let lines = found.into_iter().map(|presence| presence_text(presence) + "\n");
    Ok(text(lines.collect()))
}

/// `POST /v1/delete`.
pub(super) async fn delete(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
    body: Body,
) -> Answer {
    need(role, Role::Admin)?;
    let cids = cids_of(&node.body(body).await?)?;
    let distinct: HashSet<&Cid> = cids.iter().collect();
    node.backend.delete_many(&distinct.into_iter().copied().collect::<Vec<_>>()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Of a listing.
#[derive(Deserialize)]
pub(super) struct Listed {
    from: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/blocks`.
pub(super) async fn list(State(node): State<Shared>, Query(wanted): Query<Listed>) -> Answer {
    let limit = wanted.limit.unwrap_or(PAGE).clamp(1, ASKED_MAX);
    let page = node.backend.list(wanted.from.as_deref(), limit).await?;
    let blocks = page.blocks.into_iter().map(|(cid, len)| (cid.to_string(), len)).collect();
    Ok(Json(Page { blocks, next: page.next }).into_response())
}

/// Of names.
#[derive(Deserialize)]
pub(super) struct Named {
    #[serde(default)]
    prefix: String,
}

/// `GET /v1/names`.
pub(super) async fn names(State(node): State<Shared>, Query(wanted): Query<Named>) -> Answer {
    let names = node.backend.names(&wanted.prefix).await?;
    let names: Vec<_> = names.into_iter().map(|(name, cid)| (name, cid.to_string())).collect();
    Ok(Json(names).into_response())
}

/// `PUT /v1/names/NAME`: a CID.
pub(super) async fn put_name(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
    Path(name): Path<String>,
    body: Body,
) -> Answer {
    need(role, Role::Write)?;
    check::name(&name)?;
    let cids = cids_of(&node.body(body).await?)?;
    let [cid] = &cids[..] else { return Err(invalid("a name has one CID".to_owned())) };
    node.backend.put_name(&name, cid).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /v1/names/NAME`.
pub(super) async fn delete_name(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
    Path(name): Path<String>,
) -> Answer {
    need(role, Role::Admin)?;
    check::name(&name)?;
    node.backend.delete_name(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /v1/usage`.
pub(super) async fn usage(State(node): State<Shared>) -> Answer {
    Ok(Json(node.backend.usage().await?).into_response())
}

/// `POST /v1/probe`.
pub(super) async fn probe(State(node): State<Shared>, Extension(role): Extension<Role>) -> Answer {
    need(role, Role::Write)?;
    node.backend.probe().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/compact`: gives room back, a piece; whether there is more to do.
pub(super) async fn compact(
    State(node): State<Shared>,
    Extension(role): Extension<Role>,
) -> Result<Json<bool>, Refusal> {
    need(role, Role::Admin)?;
    Ok(Json(node.backend.compact().await?))
}
