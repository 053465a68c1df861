//! Knobs, the log, and sending clients away.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use hawser_proto::knobs::{Effective, duration};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tracing_subscriber::filter::Targets;

use super::Refusal;
use crate::config::change::is_live;
use crate::drain::Order;
use crate::operator::{Operator, Summary};

/// As for `--drain-window`.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

pub(super) async fn config(State(operator): State<Arc<Operator>>) -> Json<Value> {
    let knobs = operator.knobs();
    let knobs: Map<_, _> = knobs.iter().map(|knob| (knob.knob.clone(), to_json(knob))).collect();
    Json(json!({ "knobs": knobs }))
}

fn to_json(knob: &Effective) -> Value {
    let mut shown = knob.shown();
    let value = if knob.is_list { shown.collect() } else { Value::from(shown.next()) };
    json!({ "value": value, "from": knob.origin.word(), "live": is_live(&knob.knob) })
}

pub(super) async fn reload(
    State(operator): State<Arc<Operator>>,
) -> Result<Json<Summary>, Refusal> {
    // It reads files, and may wait for a shard.
    let outcome = tokio::task::spawn_blocking(move || operator.reload()).await;
    let unprocessable = |sentence| Refusal(StatusCode::UNPROCESSABLE_ENTITY, sentence);
    match outcome {
        Ok(reloaded) => reloaded.map(Json).map_err(|error| unprocessable(error.0)),
        Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogOrder {
    filter: String,
}

pub(super) async fn log(
    State(operator): State<Arc<Operator>>,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let LogOrder { filter } = parse(&body)?;
    let filter: Targets = filter.parse().map_err(|error| {
        Refusal::bad_request(format!("filter: \"{filter}\" is no filter such as info: {error}"))
    })?;
    operator.set_log(filter.clone());
    Ok(Json(json!({ "filter": filter.to_string() })))
}

pub(super) async fn drain(
    State(operator): State<Arc<Operator>>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    if operator.drain() {
        Ok((StatusCode::ACCEPTED, Json(json!({ "draining": true }))))
    } else {
        Err(Refusal(StatusCode::CONFLICT, "the edge is being drained already".into()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RebalanceOrder {
    per_mille: u16,
    window: String,
}

pub(super) async fn rebalance(
    State(operator): State<Arc<Operator>>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let RebalanceOrder { per_mille, window } = parse(&body)?;
    if !(1..=1000).contains(&per_mille) {
        let told = format!("per_mille: {per_mille}; allowed are 1 to 1000");
        return Err(Refusal::bad_request(told));
    }
    let window_for = duration(Duration::ZERO..=WINDOW_MAX)(&window)
        .map_err(|unfit| Refusal::bad_request(format!("window: \"{window}\" {unfit}")))?;
    let order = Order::Rebalance { per_mille, window: window_for };
    if operator.state().drain(order).is_err() {
        let told = "a shard has as many commands waiting as it takes; those before it rebalance";
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, told.into()));
    }
    tracing::info!(per_mille, window, "an operator sends clients to other edges");
    Ok((StatusCode::ACCEPTED, Json(json!({ "per_mille": per_mille, "window": window }))))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body is not what is expected: {error}")))
}
