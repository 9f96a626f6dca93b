//! Who is let in.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use parking_lot::RwLock;
use uuid::Uuid;

use super::tokens::Tokens;
use super::{Refusal, requests};
use crate::backends::ErrorKind;
use crate::backends::peer::wire::{Role, STORE};

/// What is asked before anything else.
pub(super) struct Door {
    /// `None`: everybody who reaches it may do what `open` says.
    pub tokens: RwLock<Option<Tokens>>,
    open: Role,
    /// Said in every answer.
    store: Option<Uuid>,
}

impl Door {
    /// Of a storage node.
    pub fn of_store(store: Uuid, tokens: Option<Tokens>) -> Arc<Self> {
        Arc::new(Self { tokens: RwLock::new(tokens), open: Role::Admin, store: Some(store) })
    }

    /// Of what is only read.
    pub fn of_gateway(tokens: Option<Tokens>) -> Arc<Self> {
        Arc::new(Self { tokens: RwLock::new(tokens), open: Role::Read, store: None })
    }

    fn role_of(&self, headers: &HeaderMap) -> Option<Role> {
        let tokens = self.tokens.read();
        let Some(tokens) = tokens.as_ref() else { return Some(self.open) };
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        tokens.role_of(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))
    }

    /// Put before all that is answered.
    pub fn before(self: &Arc<Self>, router: Router) -> Router {
        router.fallback(requests::nothing).layer(from_fn_with_state(Arc::clone(self), guard))
    }
}

/// Lets in who has a token, and says in each answer whose it is.
async fn guard(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let mut response = match door.role_of(request.headers()) {
        _ if request.uri().path() == "/health" => next.run(request).await,
        Some(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        None => {
            let message = "a token is needed, and this is none: `Authorization: Bearer TOKEN`";
            Refusal::new(StatusCode::UNAUTHORIZED, ErrorKind::Denied, message).into_response()
        }
    };
    let store = door.store.map(|store| HeaderValue::from_str(&store.to_string()));
    if let Some(Ok(store)) = store {
        response.headers_mut().insert(STORE, store);
    }
    response
}
