//! Who is here, and closing them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Refusal, ask};
use crate::auth::UserId;
use crate::command::{Command, Shown, Stage, USER_CONNECTIONS_MAX};
use crate::conn::slab::{SLOTS_MAX, shard_of};
use crate::conn::{Codec, ConnKey, Mode};
use crate::operator::Operator;
use crate::server::State as EdgeState;

/// Connections on a page.
const LIMITS: RangeInclusive<usize> = 1..=1000;
const LIMIT: usize = 100;
/// Commands that one page costs at most; one that finds few on its way ends early.
const PAGE_COMMANDS_MAX: usize = 256;
/// Rounds over all shards in which a user's connections are closed, [`USER_CONNECTIONS_MAX`] of each shard in one.
const CLOSE_ROUNDS_MAX: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    limit: Option<usize>,
    /// A connection's id: the page begins behind it, whether or not it is still there.
    after: Option<u64>,
}

/// A place in the walk over all connections: shards in order, their slots in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    shard: u16,
    slot: u32,
}

impl Place {
    const START: Self = Self { shard: 0, slot: 0 };

    /// Behind the connection of this id.
    fn after(id: u64) -> Self {
        Self { shard: shard_of(id), slot: ConnKey::from_bits(id).index() + 1 }
    }

    /// An id that [`Self::after`] takes for this place.
    fn before(self) -> u64 {
        let (shard, slot) = match self.slot {
            0 => (self.shard.saturating_sub(1), SLOTS_MAX as u64 - 1),
            slot => (self.shard, u64::from(slot) - 1),
        };
        ConnKey::from_bits(slot).to_connection_id(shard)
    }
}

pub(super) async fn list(
    State(operator): State<Arc<Operator>>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let Query(query) = query.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(LIMIT);
    if !LIMITS.contains(&limit) {
        let (min, max) = LIMITS.into_inner();
        return Err(Refusal::bad_request(format!("limit: {limit}; allowed are {min} to {max}")));
    }
    let start = query.after.map_or(Place::START, Place::after);
    let (shown, next) = walk(operator.state(), start, limit).await?;
    let connections: Vec<_> = shown.iter().map(to_json).collect();
    Ok(Json(json!({ "connections": connections, "next": next.map(|id| id.to_string()) })))
}

/// Up to `limit` connections from `place` on, and the id behind which the next page begins.
async fn walk(
    edge: &EdgeState,
    mut place: Place,
    limit: usize,
) -> Result<(Vec<Shown>, Option<u64>), Refusal> {
    let mut page = Vec::new();
    for _ in 0..PAGE_COMMANDS_MAX {
        if place.shard >= edge.shards() {
            return Ok((page, None));
        }
        let first = place.slot;
        let listed = ask::one(edge, place.shard, |answer| Command::List { first, answer }).await?;
        page.extend(listed.connections);
        if page.len() >= limit {
            page.truncate(limit);
            let last = page.last().map(|shown| shown.id);
            return Ok((page, last));
        }
        place = match listed.next {
            Some(slot) => Place { slot, ..place },
            None => Place { shard: place.shard + 1, slot: 0 },
        };
    }
    Ok((page, Some(place.before())))
}

pub(super) async fn find(
    State(operator): State<Arc<Operator>>,
    Path(user): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = user_id(&user)?;
    let found = ask::all(operator.state(), |answer| Command::Find { user, answer }).await?;
    let connections: Vec<_> = found.iter().flatten().map(to_json).collect();
    Ok(Json(json!({ "connections": connections })))
}

pub(super) async fn close_user(
    State(operator): State<Arc<Operator>>,
    Path(user): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = user_id(&user)?;
    let mut closed = 0;
    for _ in 0..CLOSE_ROUNDS_MAX {
        let counts =
            ask::all(operator.state(), |answer| Command::CloseUser { user, answer }).await?;
        closed += counts.iter().sum::<usize>();
        if counts.iter().all(|count| *count < USER_CONNECTIONS_MAX) {
            break;
        }
    }
    tracing::info!(%user, closed, "an operator closed a user's connections");
    Ok(Json(json!({ "closed": closed })))
}

pub(super) async fn close(
    State(operator): State<Arc<Operator>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let id: u64 = id
        .parse()
        .map_err(|_| Refusal::bad_request(format!("{id}: no connection id, which is a number")))?;
    let (edge, key) = (operator.state(), ConnKey::from_bits(id));
    let was_here = shard_of(id) < edge.shards()
        && ask::one(edge, shard_of(id), |answer| Command::Close { key, answer }).await?;
    if !was_here {
        return Err(Refusal(StatusCode::NOT_FOUND, format!("{id}: no such connection here")));
    }
    tracing::info!(connection = id, "an operator closed a connection");
    Ok(Json(json!({ "closed": 1 })))
}

fn user_id(text: &str) -> Result<UserId, Refusal> {
    UserId::from(text).map_err(|_| Refusal::bad_request("a user id has at most 64 bytes"))
}

fn to_json(shown: &Shown) -> Value {
    let mut json = json!({
        "id": shown.id.to_string(),
        "shard": shard_of(shown.id),
        "peer": shown.peer.to_string(),
        "stage": stage(shown.stage),
        "silent_ms": shown.silent_ms,
        "outbox_bytes": shown.outbox_bytes,
    });
    if let Stage::Closing(reason) = shown.stage {
        json["reason"] = reason.label().into();
    }
    if let Some(session) = &shown.session {
        json["session"] = json!({
            "user": session.user.as_str(),
            "device": session.device.as_str(),
            "connected_at_ms": session.connected_at_ms,
            "client_kind": &session.client.0,
            "client_version": &session.client.1,
            "mode": mode(session.mode),
            "codec": codec(session.codec),
            "sends_in_flight": session.sends_in_flight,
            "acknowledged": session.acked.map(|sequence| sequence.to_string()),
        });
    }
    json
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Head => "handshake",
        Stage::Echo => "echo",
        Stage::Connecting => "connecting",
        Stage::Registering => "registering",
        Stage::Open => "open",
        Stage::Closing(_) => "closing",
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Active => "active",
        Mode::Idle => "idle",
        Mode::Background => "background",
    }
}

fn codec(codec: Codec) -> &'static str {
    match codec {
        Codec::Proto => "proto",
        Codec::Json => "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_the_one_before_ended() {
        for place in [(0, 1), (0, 255), (3, 0), (4095, 7)] {
            let place = Place { shard: place.0, slot: place.1 };
            let next = Place::after(place.before());
            // The first slot of a shard stands behind all slots that the one before can have.
            let same = next == place
                || place.slot == 0
                    && next.shard + 1 == place.shard
                    && next.slot as usize == SLOTS_MAX;
            assert!(same, "{place:?} {next:?}");
        }
        let id = ConnKey::from_bits(u64::MAX >> 12).to_connection_id(2);
        assert_eq!(Place::after(id), Place { shard: 2, slot: SLOTS_MAX as u32 });
    }
}
