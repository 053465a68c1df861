//! `/healthz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::Health;
use crate::metrics::Metrics;

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, health: Arc<Health>) {
    let app = Router::new()
        .route(
            "/healthz",
            get({
                let health = Arc::clone(&health);
                async move || healthz(&health)
            }),
        )
        .route("/metrics", get(async move || text(metrics.render(&health))));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::warn!(%error, "the admin server ended");
    }
}

fn healthz(health: &Health) -> impl IntoResponse + use<> {
    let sentences = health.sentences();
    if sentences.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let status = match health.holds_messages_up() {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        (status, format!("degraded: {}\n", sentences.join("; ")))
    }
}

fn text(body: String) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], body)
}
