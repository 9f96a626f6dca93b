//! Over HTTP: a storage node, a store of blocks for other Cairns (`cairn serve`), and a
//! gateway to a volume (`cairn gateway`).
//!
//! Reads by the trustless gateway specification (`gateway`); writes, listings and names of a
//! node by requests of its own (`requests`): `src/docs/node.md`, `src/docs/gateway.md`. What a
//! node stores it compares with its CID. It replicates nothing: what is stored here stays here.

mod door;
mod gateway;
mod requests;
mod serve;
mod source;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use self::gateway::{Found, Gateway, Listed, Opened, Tree};
pub use self::serve::{Serve, serve, serve_gateway};
pub use self::source::Source;
use self::source::Stored;
use crate::backends::peer::wire::{self, BODY_MAX, Role, Said};
use crate::backends::{Backend, BackendError, ErrorKind};

/// Bodies that are taken in at a time: each is in memory.
const BODIES: usize = 8;
/// A body comes within this time.
const BODY_DEADLINE: Duration = Duration::from_mins(2);
/// Who is told to come back later comes back after so many seconds.
const LATER_S: u64 = 5;

/// What a node serves.
struct Node {
    backend: Arc<dyn Backend>,
    store: Uuid,
    bodies: Semaphore,
}

type Shared = Arc<Node>;
/// Of a request.
type Answer = Result<Response, Refusal>;

/// An answer that says no.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error: BackendError,
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        let status = StatusCode::from_u16(wire::status_of(error.kind));
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
    }
}

impl Refusal {
    fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status, error: BackendError::new(kind, message) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error } = self;
        if status.is_server_error() {
            tracing::warn!(%error, kind = error.kind.as_str(), "a request failed");
        }
        let said = Said { kind: error.kind.as_str().to_owned(), message: error.message };
        let mut response = (status, Json(said)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(error.kind, ErrorKind::Throttled) {
            let wait = error.retry_after_ms.map_or(LATER_S, |ms| ms.div_ceil(1000));
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        response
    }
}

impl Node {
    /// Over a store.
    ///
    /// # Errors
    /// `Unsupported` for one without an id: who asks could not tell it from another.
    fn new(backend: Arc<dyn Backend>) -> Result<Shared, BackendError> {
        let Some(store) = backend.id() else {
            let message = format!(
                "{} cannot be served: name a directory, archives (car:///path, parquet:///path) or a bucket",
                backend.location()
            );
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        };
        Ok(Arc::new(Self { backend, store, bodies: Semaphore::new(BODIES) }))
    }

    /// A whole body.
    async fn body(&self, body: Body) -> Result<Bytes, Refusal> {
        let _turn = self.bodies.acquire().await.map_err(|closed| {
            Refusal::from(BackendError::new(ErrorKind::Unavailable, closed.to_string()))
        })?;
        match tokio::time::timeout(BODY_DEADLINE, to_bytes(body, BODY_MAX)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                let message =
                    format!("the body is cut off, or longer than {BODY_MAX} bytes: {error}");
                Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Invalid, message))
            }
            Err(_) => {
                let message = "the body does not come to its end";
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::Timeout, message))
            }
        }
    }
}

/// Refuses who may not.
fn need(role: Role, wanted: Role) -> Result<(), Refusal> {
    if role >= wanted {
        return Ok(());
    }
    let message = format!("the token is for {}, and this needs {}", role.as_str(), wanted.as_str());
    Err(BackendError::new(ErrorKind::Denied, message).into())
}

/// What a node is asked for, and who answers.
fn router(node: Shared) -> Router {
    let source = Arc::new(Stored(Arc::clone(&node.backend)));
    Router::new()
        .route("/health", get(requests::health))
        .route("/v1/node", get(requests::about))
        .route("/v1/blocks", get(requests::list).post(requests::put_blocks))
        .route("/v1/has", post(requests::has))
        .route("/v1/delete", post(requests::delete))
        .route("/v1/names", get(requests::names))
        .route("/v1/names/{*name}", put(requests::put_name).delete(requests::delete_name))
        .route("/v1/usage", get(requests::usage))
        .route("/v1/probe", post(requests::probe))
        .route("/v1/compact", post(requests::compact))
        .with_state(node)
        .merge(gateway::router(Gateway { source, tree: None }))
}

/// Plain text.
fn text(body: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
