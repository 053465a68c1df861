//! Commands to shards, with their answers awaited.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Refusal;
use crate::command::{Answer, Command};
use crate::mesh::Full;
use crate::server::State;

/// How long a shard may take for its answer. Milliseconds are usual, also under load.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks one shard. One that has ended has nothing to say: `T`'s default.
pub(super) async fn one<T: Default>(
    state: &State,
    shard: u16,
    command: impl FnOnce(Answer<T>) -> Command,
) -> Result<T, Refusal> {
    if !state.running().any(|running| running == shard) {
        return Ok(T::default());
    }
    let answer = hand_over(state, shard, command)?;
    within(async { answer.await.unwrap_or_default() }).await
}

/// Asks all shards at one time.
pub(super) async fn all<T>(
    state: &State,
    command: impl Fn(Answer<T>) -> Command,
) -> Result<Vec<T>, Refusal> {
    let answers: Result<Vec<_>, _> =
        state.running().map(|shard| hand_over(state, shard, &command)).collect();
    let answers = answers?;
    within(async {
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            // A shard that ends now has no connections any more.
            all.extend(answer.await.ok());
        }
        all
    })
    .await
}

fn hand_over<T>(
    state: &State,
    shard: u16,
    command: impl FnOnce(Answer<T>) -> Command,
) -> Result<oneshot::Receiver<T>, Refusal> {
    let (answer, answered) = oneshot::channel();
    match state.command(shard, command(answer)) {
        Ok(()) => Ok(answered),
        Err(Full(_)) => {
            let told = format!("shard {shard} has as many commands waiting as it takes; try again");
            Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, told))
        }
    }
}

async fn within<T>(answer: impl Future<Output = T>) -> Result<T, Refusal> {
    timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| {
        let told = format!("a shard has not answered within {} s", ANSWER_TIMEOUT.as_secs());
        Refusal(StatusCode::GATEWAY_TIMEOUT, told)
    })
}
