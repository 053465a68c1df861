//! The admin address, on a thread of its own: reading the counters never stops a shard.
//!
//! | request | does | asks for the token |
//! |---|---|---|
//! | `GET /healthz` | 200, `ok` or what does not work though clients can come; or 503 and what is wrong | no |
//! | `GET /metrics` | Prometheus' text format | no |
//! | `GET /connections?limit=&after=` | lists connections | yes |
//! | `GET /users/{user}/connections` | finds a user's connections | yes |
//! | `DELETE /users/{user}` | closes them | yes |
//! | `DELETE /connections/{id}` | closes one | yes |
//! | `GET /config` | the knobs in force, and where each is written | yes |
//! | `POST /reload` | reads the knobs again, as SIGHUP does | yes |
//! | `PUT /log {"filter": "debug"}` | logs by another filter until the next reload | yes |
//! | `POST /drain` | sends all clients away and ends, as SIGTERM does | yes |
//! | `POST /rebalance {"per_mille": 100, "window": "30s"}` | sends a share of the clients away | yes |
//!
//! Bodies and answers are JSON; a refusal is `{"error": "a sentence"}`. Connection ids and sequences are texts, because they do
//! not fit the numbers of JSON. Closing goes through the shards' lanes of commands: one that is full is answered with 503.

mod acts;
mod ask;
mod connections;
mod token;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde_json::json;

use crate::operator::Operator;

pub use self::token::Token;

/// Longest body of a request: the longest filter for the log that anybody writes, many times over.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// A bound admin address that is not answered yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

/// Binds the admin address, before anything else is started: a taken port is the operator's to mend.
///
/// # Errors
/// A sentence that names the knob.
pub fn bind(address: SocketAddr) -> Result<Admin, String> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(Admin { listener })
    });
    bound.map_err(|error| format!("--admin: {address}: {error}"))
}

impl Admin {
    /// Where it listens; the port is the real one when the kernel chose it.
    ///
    /// # Errors
    /// The socket has no address any more.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the process ends.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn serve(self, operator: Arc<Operator>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let routes = routes(operator);
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            runtime.block_on(async move {
                let served = match tokio::net::TcpListener::from_std(self.listener) {
                    Ok(listener) => axum::serve(listener, routes).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    tracing::warn!("the admin address is no longer answered: {error}");
                }
            });
        })?;
        Ok(())
    }
}

fn routes(operator: Arc<Operator>) -> Router {
    let guarded = Router::new()
        .route("/connections", get(connections::list))
        .route("/connections/{id}", delete(connections::close))
        .route("/users/{user}/connections", get(connections::find))
        .route("/users/{user}", delete(connections::close_user))
        .route("/config", get(acts::config))
        .route("/reload", post(acts::reload))
        .route("/log", put(acts::log))
        .route("/drain", post(acts::drain))
        .route("/rebalance", post(acts::rebalance))
        .route_layer(middleware::from_fn_with_state(operator.clone(), guard));
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(operator)
}

/// A request that is not answered as it wishes: why.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad_request(sentence: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, sentence.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// Lets those pass who have the token.
async fn guard(State(operator): State<Arc<Operator>>, request: Request, next: Next) -> Response {
    let Some(token) = operator.token() else {
        let told =
            "without --admin-token-file, /healthz and /metrics are all that is answered here";
        return Refusal(StatusCode::FORBIDDEN, told.into()).into_response();
    };
    let authorization = request.headers().get(header::AUTHORIZATION);
    if authorization.is_some_and(|value| token.is_in(value.as_bytes())) {
        return next.run(request).await;
    }
    let told = "Authorization: Bearer with the token of --admin-token-file is missing or wrong";
    let mut response = Refusal(StatusCode::UNAUTHORIZED, told.into()).into_response();
    let scheme = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    response
}

async fn health(State(operator): State<Arc<Operator>>) -> impl IntoResponse {
    let state = operator.state();
    match state.ailment() {
        None => {
            let infirmity = state.infirmity().unwrap_or_else(|| "ok".to_owned());
            (StatusCode::OK, format!("{infirmity}\n"))
        }
        Some(ailment) => (StatusCode::SERVICE_UNAVAILABLE, format!("{ailment}\n")),
    }
}

async fn metrics(State(operator): State<Arc<Operator>>) -> impl IntoResponse {
    let mut text = String::with_capacity(16 * 1024);
    operator.state().render(&mut text);
    operator.render(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
