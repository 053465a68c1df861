//! /healthz and /metrics, on a thread of its own: reading the counters never stops a shard.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::server::State as EdgeState;

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
    /// Answers until the process ends.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn serve(self, edge: Arc<EdgeState>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let routes = Router::new()
            .route("/healthz", get(health))
            .route("/metrics", get(metrics))
            .with_state(edge);
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

async fn health(State(edge): State<Arc<EdgeState>>) -> impl IntoResponse {
    let unavailable = |text: &str| (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    if edge.is_draining() {
        return unavailable("draining: clients are sent to other edges\n");
    }
    if !edge.link_is_up() {
        return unavailable("degraded: no link to a router, new clients cannot be registered\n");
    }
    // With what it knows the edge goes on, so balancers are to go on with it; only one that can let in nobody at all is
    // not fit.
    let Some(auth) = edge.auth_health() else { return (StatusCode::OK, "ok\n".to_owned()) };
    match auth.told() {
        Some(trouble) if auth.is_closed() => unavailable(&format!("degraded: {trouble}\n")),
        Some(trouble) => (StatusCode::OK, format!("degraded: {trouble}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn metrics(State(edge): State<Arc<EdgeState>>) -> impl IntoResponse {
    let mut text = String::with_capacity(8 * 1024);
    edge.render(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
