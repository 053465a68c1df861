//! The server API: what other services ask of Hawser, over HTTP in JSON, under keys.
//!
//! ```text
//!  request ─► key, scope, rate ─► body ─► gateway ═link═► the router that has the user ─► Hub
//!     ▲                                      │
//!     └── 200, or an error of one shape ◄────┘ answer, or 503 after --api-timeout
//! ```
//!
//! The OpenAPI document at `/openapi.json` is made from the handlers. [`routing`] decides which router is asked, [`gateway`]
//! has the links; what a Hub answers is in [`hub::queries`](crate::hub::queries). Nothing is kept here: a router that dies takes no
//! more with it than the answers that were awaited.

mod error;
mod extract;
mod gateway;
mod guard;
mod keys;
mod listener;
mod messages;
mod routing;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Json, middleware};
use hawser_proto::link::Hello;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use xxhash_rust::xxh3::xxh3_64;

use self::error::ApiError;
use self::gateway::{Gateway, Place};
use self::guard::{Guard, Observer};
use self::keys::{Keys, Scope};
use self::listener::Limited;
use crate::config::{ApiKnobs, Config};
use crate::limits;
use crate::link::{Links, PROTOCOL};
use crate::link_tls::PeerTls;
use crate::metrics::Metrics;

/// How long requests that are being answered may take when the router stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Name of the security scheme in the document.
const KEY_SCHEME: &str = "key";

/// The API, bound and not serving yet.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    keys: Arc<Keys>,
    peers_tls: Option<PeerTls>,
    knobs: ApiKnobs,
}

/// The API while it serves.
#[derive(Debug)]
pub struct Serving {
    stop: oneshot::Sender<()>,
    http: JoinHandle<()>,
    /// The links to routers, and the watch for SIGHUP: they end when this is dropped.
    background: JoinSet<()>,
}

impl Api {
    /// Reads keys and certificates and binds the address; `None` when `--api` is not given.
    ///
    /// # Errors
    /// A sentence that names the knob.
    pub async fn bind(config: &Config) -> Result<Option<Self>, String> {
        let (Some(address), Some(keys)) = (config.api.api, &config.api.api_keys) else {
            return Ok(None);
        };
        let keys = Arc::new(Keys::load(keys)?);
        let peers_tls = PeerTls::load(config)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("--api: {address}: {error}"))?;
        Ok(Some(Self { listener, keys, peers_tls, knobs: config.api.clone() }))
    }

    /// Where it listens, with the port that was chosen for port 0.
    #[must_use]
    pub fn address(&self) -> String {
        self.listener.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
    }

    /// Serves until it is stopped, with a link to these Hubs and to those of the other routers.
    #[must_use]
    pub fn serve(self, links: &Arc<Links>) -> Serving {
        let Self { listener, keys, peers_tls, knobs } = self;
        let elsewhere = knobs.api_peers.iter().cloned();
        let elsewhere = elsewhere.map(|place| Place::There(place, peers_tls.clone()));
        let places: Vec<_> =
            std::iter::once(Place::Here(Arc::clone(links))).chain(elsewhere).collect();
        let gateway = Arc::new(Gateway::new(places.len(), knobs.api_timeout));
        let mut background = JoinSet::new();
        for (peer, place) in places.into_iter().enumerate() {
            let (gateway, hello) = (Arc::clone(&gateway), hello(links));
            background.spawn(async move { gateway.keep_link(peer, &place, &hello).await });
        }
        background.spawn(reload_on_hangup(Arc::clone(&keys)));
        let metrics = Arc::clone(&links.ways.metrics);
        let app = router(&gateway, &keys, metrics, knobs.api_timeout);
        let (stop, stopped) = oneshot::channel();
        let http = tokio::spawn(async move {
            let listener = Limited::new(listener, limits::API_CONNECTIONS_MAX);
            let serving = axum::serve(listener, app).with_graceful_shutdown(async {
                let _ = stopped.await;
            });
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the server API ended");
            }
        });
        Serving { stop, http, background }
    }
}

impl Serving {
    /// Takes no more requests, and lets those end that are being answered. The links have to be up still.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.http).await.is_err() {
            self.http.abort();
        }
        self.background.abort_all();
    }
}

/// How the API says hello to routers: as an edge without clients.
fn hello(links: &Links) -> Hello {
    let mut name = format!("api-{}", links.router_id);
    if name.len() > limits::EDGE_ID_BYTES_MAX {
        // Cut, two names could be one; then each would close the other's links.
        name = format!("api-{:016x}", xxh3_64(links.router_id.as_bytes()));
    }
    Hello {
        edge_id: name,
        epoch: links.epoch,
        region: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        shards: 1,
    }
}

async fn reload_on_hangup(keys: Arc<Keys>) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::warn!(%error, "keys are not read again: SIGHUP cannot be handled");
            return;
        }
    };
    while hangup.recv().await.is_some() {
        let again = Arc::clone(&keys);
        match tokio::task::spawn_blocking(move || again.reload()).await {
            Ok(Ok(keys)) => tracing::info!(keys, "the keys of the server API are read again"),
            Ok(Err(problem)) => tracing::warn!("{problem}; the keys of before stay"),
            Err(error) => tracing::warn!(%error, "keys are not read again"),
        }
    }
}

/// What the document says beside the routes.
#[derive(OpenApi)]
#[openapi(info(
    title = "Hawser server API",
    description = "What other services ask of Hawser. Every error has one shape, and the codes of the client protocol."
))]
struct Document;

fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key of --api-keys; each operation names the scope that it needs."))
        .build();
    document
        .components
        .get_or_insert_default()
        .add_security_scheme(KEY_SCHEME, SecurityScheme::Http(scheme));
    document
}

/// All routes: those with a key by scope, and the document for everybody.
fn router(
    gateway: &Arc<Gateway>,
    keys: &Arc<Keys>,
    metrics: Arc<Metrics>,
    timeout: Duration,
) -> axum::Router {
    let by_scope = [
        (
            Scope::Publish,
            OpenApiRouter::new()
                .routes(routes!(messages::publish))
                .routes(routes!(messages::publish_to_many)),
        ),
        (Scope::Trace, OpenApiRouter::new().routes(routes!(messages::trace))),
        (
            Scope::Online,
            OpenApiRouter::new().routes(routes!(users::connections)).routes(routes!(users::online)),
        ),
        (
            Scope::Disconnect,
            OpenApiRouter::new()
                .routes(routes!(users::disconnect))
                .routes(routes!(users::disconnect_device)),
        ),
        (Scope::Inbox, OpenApiRouter::new().routes(routes!(users::inbox))),
    ];
    let mut all = OpenApiRouter::with_openapi(document());
    for (scope, routes) in by_scope {
        let guard = Guard { keys: Arc::clone(keys), scope };
        all = all.merge(routes.route_layer(middleware::from_fn_with_state(guard, guard::admit)));
    }
    let (router, document) = all.with_state(Arc::clone(gateway)).split_for_parts();
    let document = Arc::new(document);
    let observer = Observer { metrics, timeout: timeout + limits::API_BODY_TIMEOUT };
    router
        .route("/openapi.json", get(async move || Json(document.as_ref().clone())))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .fallback(async || ApiError::not_found("there is no such path; see /openapi.json"))
        .layer(DefaultBodyLimit::max(limits::API_BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(observer, guard::observe))
}
