//! Before and after every request: the key, the time that it may take, the count.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;

use super::error::ApiError;
use super::keys::{Key, Keys, Scope};
use crate::metrics::Metrics;

/// Stands before the routes of one scope.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub(super) keys: Arc<Keys>,
    pub(super) scope: Scope,
}

/// Who asks: the key that was shown, which has the scope of the route.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) Arc<Key>);

/// Lets a request through to its handler when its key allows that.
pub(super) async fn admit(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = shown_key(request.headers())
        .and_then(|shown| guard.keys.admit(shown, guard.scope, Instant::now()));
    match admitted {
        Ok(key) => {
            request.extensions_mut().insert(Caller(key));
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn shown_key(headers: &HeaderMap) -> Result<&str, ApiError> {
    let text = "a key is needed: Authorization: Bearer KEY";
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, key) = authorization
        .and_then(|value| value.split_once(' '))
        .ok_or_else(|| ApiError::unauthenticated(text))?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(key.trim())
    } else {
        Err(ApiError::unauthenticated(text))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("no key was looked at"))
    }
}

/// Sees every request.
#[derive(Debug, Clone)]
pub(super) struct Observer {
    pub(super) metrics: Arc<Metrics>,
    /// How long a request may take, the arrival of its body included.
    pub(super) timeout: Duration,
}

/// Counts a request by route and status, and ends one that takes too long.
pub(super) async fn observe(
    State(observer): State<Observer>,
    request: Request,
    next: Next,
) -> Response {
    // Not the path: anybody can ask for any, and each would be counted by itself.
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let response = match tokio::time::timeout(observer.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::unavailable("the request did not arrive in time").into_response(),
    };
    observer.metrics.note_api_request(&method, &route, response.status().as_u16());
    response
}
