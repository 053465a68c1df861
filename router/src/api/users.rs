//! Who is online, closing connections, how long an inbox is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::query::Kind;
use hawser_proto::link::query_answer::Kind as Answered;
use hawser_proto::link::{
    DeviceState, DisconnectQuery, InboxQuery, Online, OnlineConnection, OnlineQuery,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, BodyRefusals, Problem, Refusals};
use super::extract::{Body, In, UserPath, check_count, check_user};
use super::gateway::Gateway;
use super::guard::Caller;
use super::messages::Place;
use crate::limits;

/// A user's connections and devices.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    user: String,
    /// Whether there is a connection.
    online: bool,
    connections: Vec<Connection>,
    /// All that are known, connected or not.
    devices: Vec<Device>,
}

/// A connection that would get what is sent now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connection {
    device: String,
    #[serde(flatten)]
    place: Place,
    /// Name of the client program.
    client_kind: String,
    /// Its version.
    client_version: String,
    /// By the edge's clock, in milliseconds since the epoch.
    connected_at_ms: i64,
}

/// A device of the user.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Device {
    device: String,
    connected: bool,
    /// Highest sequence that it has acknowledged; 0: none.
    cursor: u64,
    /// When it was last heard, in milliseconds since the epoch.
    seen_at_ms: i64,
    /// Messages let out to its connection and not acknowledged.
    in_flight: u32,
}

/// Users to look up.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Users {
    #[schema(min_items = 1, max_items = 1000)]
    users: Vec<String>,
}

/// Whether one user is online: `online` and `connections`, or `error`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Presence {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<bool>,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

/// One result a user, in the order of `users`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Presences {
    results: Vec<Presence>,
}

/// What was closed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// Connections whose edges were told to close them.
    disconnected: u32,
}

/// A user's inbox.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Inbox {
    user: String,
    /// Messages that are held: some device has not acknowledged them, or there is none.
    length: u64,
    /// Lowest sequence that is held; equals `next` when nothing is.
    floor: u64,
    /// Sequence that the next message gets.
    next: u64,
    devices: Vec<Device>,
}

/// See who is connected
///
/// Needs the scope `online`.
#[utoipa::path(
    get, path = "/v1/users/{user}/connections", tag = "users",
    params(("user" = String, Path, description = "User id, 1 to 64 bytes")),
    responses((status = 200, body = Connections), Refusals),
    security(("key" = ["online"])),
)]
pub(super) async fn connections(
    State(gateway): State<Arc<Gateway>>,
    UserPath(user): UserPath,
) -> Result<Json<Connections>, ApiError> {
    let asking = gateway.query(&user, Kind::Online(OnlineQuery { devices: true }))?;
    let Online { connections, devices } = online_of(asking.answered().await?)?;
    Ok(Json(Connections {
        user,
        online: !connections.is_empty(),
        connections: connections.into_iter().map(Connection::from).collect(),
        devices: devices.into_iter().map(Device::from).collect(),
    }))
}

/// Look up many users
///
/// Counts as so many requests. Needs the scope `online`.
#[utoipa::path(
    post, path = "/v1/online", tag = "users",
    responses((status = 200, body = Presences), Refusals, BodyRefusals),
    security(("key" = ["online"])),
)]
pub(super) async fn online(
    State(gateway): State<Arc<Gateway>>,
    Caller(key): Caller,
    Body(Users { users }): Body<Users>,
) -> Result<Json<Presences>, ApiError> {
    check_count("users", users.len())?;
    key.charge(users.len() - 1);
    let begun = users.into_iter().map(|user| {
        let query = Kind::Online(OnlineQuery { devices: false });
        let asking = check_user(&user).and_then(|()| gateway.query(&user, query));
        (user, asking)
    });
    // All are on their way before the first is waited for.
    let begun: Vec<_> = begun.collect();
    let mut results = Vec::with_capacity(begun.len());
    for (user, asking) in begun {
        let answered = match asking {
            Ok(asking) => asking.answered().await.and_then(online_of),
            Err(error) => Err(error),
        };
        results.push(match answered {
            Ok(Online { connections, .. }) => Presence {
                user,
                online: Some(!connections.is_empty()),
                connections: Some(connections.len()),
                error: None,
            },
            Err(error) => {
                let error = Some(error.into_problem());
                Presence { user, online: None, connections: None, error }
            }
        });
    }
    Ok(Json(Presences { results }))
}

/// Close a user's connections
///
/// The clients are told that it was not their doing, and may come back: take their token away first. Needs the scope `disconnect`.
#[utoipa::path(
    delete, path = "/v1/users/{user}/connections", tag = "users",
    params(("user" = String, Path, description = "User id, 1 to 64 bytes")),
    responses((status = 200, body = Disconnected), Refusals),
    security(("key" = ["disconnect"])),
)]
pub(super) async fn disconnect(
    State(gateway): State<Arc<Gateway>>,
    UserPath(user): UserPath,
) -> Result<Json<Disconnected>, ApiError> {
    close(&gateway, &user, String::new()).await
}

/// Close the connection of a user's device
///
/// Needs the scope `disconnect`.
#[utoipa::path(
    delete, path = "/v1/users/{user}/connections/{device}", tag = "users",
    params(
        ("user" = String, Path, description = "User id, 1 to 64 bytes"),
        ("device" = String, Path, description = "Device id, 1 to 40 bytes"),
    ),
    responses((status = 200, body = Disconnected), Refusals),
    security(("key" = ["disconnect"])),
)]
pub(super) async fn disconnect_device(
    State(gateway): State<Arc<Gateway>>,
    In((user, device)): In<(String, String)>,
) -> Result<Json<Disconnected>, ApiError> {
    check_user(&user)?;
    // An empty one would be all of them.
    if !(1..=limits::DEVICE_BYTES_MAX).contains(&device.len()) {
        return Err(ApiError::invalid("a device id has 1 to 40 bytes"));
    }
    close(&gateway, &user, device).await
}

async fn close(
    gateway: &Gateway,
    user: &str,
    device: String,
) -> Result<Json<Disconnected>, ApiError> {
    let query = DisconnectQuery { device, reason: Reason::Operator as i32 };
    match gateway.query(user, Kind::Disconnect(query))?.answered().await? {
        Answered::Disconnected(told) => Ok(Json(Disconnected { disconnected: told.connections })),
        Answered::Online(_) | Answered::Inbox(_) | Answered::Trace(_) | Answered::Failure(_) => {
            Err(ApiError::internal("the router answered something else"))
        }
    }
}

/// See how long a user's inbox is
///
/// A user of whom nothing is known has an empty one. Needs the scope `inbox`.
#[utoipa::path(
    get, path = "/v1/users/{user}/inbox", tag = "users",
    params(("user" = String, Path, description = "User id, 1 to 64 bytes")),
    responses((status = 200, body = Inbox), Refusals),
    security(("key" = ["inbox"])),
)]
pub(super) async fn inbox(
    State(gateway): State<Arc<Gateway>>,
    UserPath(user): UserPath,
) -> Result<Json<Inbox>, ApiError> {
    match gateway.query(&user, Kind::Inbox(InboxQuery {}))?.answered().await? {
        Answered::Inbox(state) => Ok(Json(Inbox {
            user,
            length: state.next.saturating_sub(state.floor),
            floor: state.floor,
            next: state.next,
            devices: state.devices.into_iter().map(Device::from).collect(),
        })),
        Answered::Online(_)
        | Answered::Trace(_)
        | Answered::Disconnected(_)
        | Answered::Failure(_) => Err(ApiError::internal("the router answered something else")),
    }
}

fn online_of(answer: Answered) -> Result<Online, ApiError> {
    match answer {
        Answered::Online(online) => Ok(online),
        Answered::Inbox(_)
        | Answered::Trace(_)
        | Answered::Disconnected(_)
        | Answered::Failure(_) => Err(ApiError::internal("the router answered something else")),
    }
}

impl From<OnlineConnection> for Connection {
    fn from(known: OnlineConnection) -> Self {
        Self {
            device: known.device,
            place: Place { edge: known.edge, connection: known.connection.to_string() },
            client_kind: known.client_kind,
            client_version: known.client_version,
            connected_at_ms: known.connected_at_ms,
        }
    }
}

impl From<DeviceState> for Device {
    fn from(known: DeviceState) -> Self {
        Self {
            device: known.device,
            connected: known.connected,
            cursor: known.cursor,
            seen_at_ms: known.seen_at_ms,
            in_flight: known.in_flight,
        }
    }
}
