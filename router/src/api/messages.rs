//! Sending messages, and finding out where one is.

use std::sync::Arc;

use ahash::AHashMap;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_proto::link::query::Kind;
use hawser_proto::link::query_answer::Kind as Answered;
use hawser_proto::link::trace_step::Kind as StepName;
use hawser_proto::link::{Send, TraceQuery, TraceStep};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::{ApiError, BodyRefusals, ErrorBody, Problem, Refusals};
use super::extract::{Asked, Body, In, UserPath, check_count, check_user};
use super::gateway::Gateway;
use super::guard::Caller;
use super::keys::Scope;
use crate::limits;
use crate::link::unix_ms;
use crate::record::partition_of_id;

/// Header with the sender's name for a request: the client message id of its messages.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A message. Exactly one of `payload`, `text` and `json` is there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    /// Bytes in base64, at most 1 MiB of them.
    #[schema(content_encoding = "base64")]
    payload: Option<String>,
    /// Text, sent as UTF-8.
    text: Option<String>,
    /// Anything but null, sent as JSON without spaces.
    json: Option<serde_json::Value>,
    /// Whom it comes from, 1 to 64 bytes. Left out: the name of the key. Anybody else needs the scope publish_as.
    from: Option<String>,
    /// Not worth delivering later than this many milliseconds from now. Left out: the inbox's own bound.
    #[schema(minimum = 1)]
    expires_after_ms: Option<u64>,
}

/// One message to many users.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageToMany {
    /// Whom to.
    #[schema(min_items = 1, max_items = 1000)]
    to: Vec<String>,
    message: Message,
}

/// The message is durable.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// The same for every repetition with the same Idempotency-Key. A number of 64 bits, as text.
    #[schema(example = "10414574138294273")]
    message_id: String,
    /// When it was accepted, in milliseconds since the epoch.
    time_ms: i64,
}

/// What became of the message to one user: `message_id` and `time_ms`, or `error`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Outcome {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

/// One outcome a recipient, in the order of `to`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Outcomes {
    results: Vec<Outcome>,
}

/// Send a message to a user
///
/// Answered when it would survive a power cut. Needs the scope `publish`.
#[utoipa::path(
    post, path = "/v1/users/{user}/messages", tag = "messages",
    params(
        ("user" = String, Path, description = "User id, 1 to 64 bytes"),
        ("Idempotency-Key" = Option<String>, Header,
         description = "Your name for the request, 1 to 64 bytes, unique for a day for each sender and recipient. Repeated with it, \
                        the request stores nothing twice and has the same answer. Left out: one is drawn."),
    ),
    responses((status = 200, body = Accepted), Refusals, BodyRefusals),
    security(("key" = ["publish"])),
)]
pub(super) async fn publish(
    State(gateway): State<Arc<Gateway>>,
    Caller(key): Caller,
    UserPath(user): UserPath,
    headers: HeaderMap,
    Body(message): Body<Message>,
) -> Result<Json<Accepted>, ApiError> {
    let draft = Draft::new(&Caller(key), &headers, message)?;
    let (message_id, time_ms) = gateway.send(draft.to(user))?.sent().await?;
    Ok(Json(Accepted { message_id: message_id.to_string(), time_ms }))
}

/// Send a message to many users
///
/// Each gets it in an inbox of their own, and may be refused by themselves: the answer is 200 all the same, look at `results`. Counts as so
/// many requests. Needs the scope `publish`.
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages",
    params(("Idempotency-Key" = Option<String>, Header,
            description = "As with one recipient. Repeated with it, those who have the message do not get it twice.")),
    responses((status = 200, body = Outcomes), Refusals, BodyRefusals),
    security(("key" = ["publish"])),
)]
pub(super) async fn publish_to_many(
    State(gateway): State<Arc<Gateway>>,
    Caller(key): Caller,
    headers: HeaderMap,
    Body(MessageToMany { to, message }): Body<MessageToMany>,
) -> Result<Json<Outcomes>, ApiError> {
    check_count("to", to.len())?;
    let draft = Draft::new(&Caller(Arc::clone(&key)), &headers, message)?;
    if draft.payload.len().saturating_mul(to.len()) > limits::API_FANOUT_BYTES_MAX {
        return Err(ApiError::too_large("the payload times the recipients is over 16 MiB"));
    }
    key.charge(to.len() - 1);
    // One who stands there twice gets it once: a Hub lets go of waiters for the same message past a few.
    let mut begun = AHashMap::with_capacity(to.len());
    // All are on their way before the first is waited for.
    for user in &to {
        begun.entry(user.as_str()).or_insert_with(|| {
            check_user(user).and_then(|()| gateway.send(draft.to(user.clone())))
        });
    }
    let mut ended = AHashMap::with_capacity(to.len());
    for (user, asking) in begun {
        let sent = match asking {
            Ok(asking) => asking.sent().await,
            Err(error) => Err(error),
        };
        ended.insert(user, Outcome::new(user, sent));
    }
    let results = to.iter().filter_map(|user| ended.get(user.as_str()).cloned()).collect();
    Ok(Json(Outcomes { results }))
}

impl Outcome {
    fn new(user: &str, sent: Result<(u64, i64), ApiError>) -> Self {
        let user = user.to_owned();
        match sent {
            Ok((message_id, time_ms)) => {
                let message_id = Some(message_id.to_string());
                Self { user, message_id, time_ms: Some(time_ms), error: None }
            }
            Err(error) => {
                let error = Some(error.into_problem());
                Self { user, message_id: None, time_ms: None, error }
            }
        }
    }
}

/// A message that lacks its recipient alone.
struct Draft {
    from: String,
    client_message_id: String,
    payload: Bytes,
    expires_at_ms: i64,
}

impl Draft {
    fn new(caller: &Caller, headers: &HeaderMap, message: Message) -> Result<Self, ApiError> {
        let Message { payload, text, json, from, expires_after_ms } = message;
        let payload = match (payload, text, json) {
            (Some(payload), None, None) => STANDARD
                .decode(payload)
                .map_err(|error| ApiError::invalid(format!("payload: is not base64: {error}")))?,
            (None, Some(text), None) => text.into_bytes(),
            (None, None, Some(json)) => json.to_string().into_bytes(),
            _ => {
                let text = "exactly one of payload, text and json has to be there";
                return Err(ApiError::invalid(text));
            }
        };
        if payload.len() > limits::PAYLOAD_BYTES_MAX {
            return Err(ApiError::too_large("the payload is over 1 MiB"));
        }
        Ok(Self {
            from: sender(caller, from)?,
            client_message_id: client_message_id(headers)?,
            payload: payload.into(),
            expires_at_ms: match expires_after_ms {
                None => 0,
                Some(0) => return Err(ApiError::invalid("expires_after_ms: has to be over 0")),
                Some(after) => unix_ms().saturating_add(after.try_into().unwrap_or(i64::MAX)),
            },
        })
    }

    fn to(&self, user: String) -> Send {
        Send {
            from: self.from.clone(),
            client_message_id: self.client_message_id.clone(),
            to_user: user,
            payload: self.payload.clone(),
            expires_at_ms: self.expires_at_ms,
            ..Send::default()
        }
    }
}

fn sender(Caller(key): &Caller, from: Option<String>) -> Result<String, ApiError> {
    match from {
        None => Ok(key.name.clone()),
        Some(from) if from == key.name => Ok(from),
        Some(from) if key.may(Scope::PublishAs) => check_user(&from).map(|()| from),
        Some(_) => {
            let text = "from: the key may send as itself alone; others need the scope publish_as";
            Err(ApiError::permission_denied(text))
        }
    }
}

fn client_message_id(headers: &HeaderMap) -> Result<String, ApiError> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let id = match (given.next(), given.next()) {
        // 128 random bits: nobody has to tell them from all others but this sender.
        (None, _) => format!("{:032x}", fastrand::u128(..)),
        (Some(id), None) => id.to_str().unwrap_or_default().to_owned(),
        (Some(_), Some(_)) => String::new(),
    };
    if (1..=limits::CLIENT_MESSAGE_ID_BYTES_MAX).contains(&id.len()) {
        return Ok(id);
    }
    Err(ApiError::invalid("Idempotency-Key: one is allowed, of 1 to 64 printable ASCII characters"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TraceOf {
    /// Whose message it is: then it is found also when it is not among the last, as long as the inbox holds it.
    user: Option<String>,
}

/// Where a message is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Trace {
    message_id: String,
    /// Whose inbox it is for.
    user: String,
    /// Its number in that inbox.
    sequence: u64,
    /// The slice of the users whose log has it.
    partition: u16,
    /// Where in that log.
    offset: u64,
    /// When it was appended, in milliseconds since the epoch.
    time_ms: i64,
    /// The inbox holds it: some device has not acknowledged it, or there is none.
    held: bool,
    /// What happened to it since, as far as it is remembered, oldest first where the times are known.
    steps: Vec<Step>,
}

/// A step of a message.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Step {
    step: StepKind,
    /// Which device of the user; null: it is not known any more.
    device: Option<String>,
    /// When, in milliseconds since the epoch; null: that is not remembered.
    time_ms: Option<i64>,
    /// To which connection it was let out.
    connection: Option<Place>,
}

/// What happened.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StepKind {
    /// Let out to a connection of the device. More than once where that broke before it acknowledged.
    Delivered,
    /// The device has taken it over.
    Acknowledged,
}

/// A connection.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Place {
    /// Name of its edge; empty: the edge is gone.
    pub(super) edge: String,
    /// The edge's number for it. A number of 64 bits, as text.
    pub(super) connection: String,
}

/// Find out where a message is
///
/// Times are remembered for the last messages of each partition (`--trace-steps`), by the router that has it now; before that, what inbox and
/// cursors say. Needs the scope `trace`.
#[utoipa::path(
    get, path = "/v1/messages/{id}", tag = "messages",
    params(("id" = String, Path, description = "Message id, as it was answered"), TraceOf),
    responses(
        (status = 200, body = Trace),
        (status = 404, description = "It is not remembered, and not held", body = ErrorBody),
        Refusals,
    ),
    security(("key" = ["trace"])),
)]
pub(super) async fn trace(
    State(gateway): State<Arc<Gateway>>,
    In(id): In<String>,
    Asked(TraceOf { user }): Asked<TraceOf>,
) -> Result<Json<Trace>, ApiError> {
    let Ok(message_id) = id.parse() else {
        return Err(ApiError::invalid("a message id is a number"));
    };
    user.as_deref().map_or(Ok(()), check_user)?;
    let query = Kind::Trace(TraceQuery { message_id });
    match gateway.query(&user.unwrap_or_default(), query)?.answered().await? {
        Answered::Trace(trace) => Ok(Json(Trace {
            message_id: id,
            user: trace.user,
            sequence: trace.sequence,
            partition: partition_of_id(message_id),
            offset: trace.offset,
            time_ms: trace.accepted_at_ms,
            held: trace.held,
            steps: trace.steps.into_iter().filter_map(step).collect(),
        })),
        Answered::Online(_)
        | Answered::Inbox(_)
        | Answered::Disconnected(_)
        | Answered::Failure(_) => Err(ApiError::internal("the router answered something else")),
    }
}

fn step(step: TraceStep) -> Option<Step> {
    let kind = match step.kind() {
        StepName::Delivered => StepKind::Delivered,
        StepName::Acknowledged => StepKind::Acknowledged,
        StepName::Unspecified => return None,
    };
    let is_delivered = matches!(kind, StepKind::Delivered);
    let connection =
        is_delivered.then(|| Place { edge: step.edge, connection: step.connection.to_string() });
    Some(Step {
        step: kind,
        device: Some(step.device).filter(|device| !device.is_empty()),
        time_ms: Some(step.at_ms).filter(|at| *at != 0),
        connection,
    })
}
