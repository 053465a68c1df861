//! Direct gets: many messages of a stream for one request, from whichever of its servers answers.
//!
//! That server may be behind the stream's leader: an answer that ends early says nothing about the end of the stream.

use std::time::Duration;

use async_nats::header::{NATS_LAST_SEQUENCE, NATS_SEQUENCE};
use async_nats::jetstream::Context;
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_lite::StreamExt as _;

use crate::queue::QueueError;

/// How long a server may take from one message of an answer to the next.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A server ends an answer with this, and one that has nothing to give with the other.
const END_OF_BATCH: u16 = 204;

/// Asks for messages of `stream` in the words of the server's API, and gives what comes, in order. Where a part is lost on its
/// way, what came before it.
///
/// # Errors
/// No server answered, or none could.
pub(crate) async fn get(
    context: &Context,
    stream: &str,
    request: String,
) -> Result<Vec<Message>, QueueError> {
    let told = |error: &dyn std::fmt::Display| {
        QueueError(format!("stream {stream} could not be read: {error}"))
    };
    let client = context.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| told(&error))?;
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    client
        .publish_with_reply(subject, inbox, request.into())
        .await
        .map_err(|error| told(&error))?;
    let mut messages = Vec::new();
    let mut last = 0;
    loop {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answers.next()).await.ok().flatten();
        let Some(answer) = answer else {
            return if messages.is_empty() { Err(told(&"no answer")) } else { Ok(messages) };
        };
        match answer.status {
            None => {
                let headers = answer.headers.as_ref();
                if number(headers, NATS_LAST_SEQUENCE) != Some(last) {
                    return Ok(messages);
                }
                last = number(headers, NATS_SEQUENCE).unwrap_or(0);
                messages.push(answer);
            }
            Some(StatusCode::NOT_FOUND) => return Ok(messages),
            Some(status) if status.as_u16() == END_OF_BATCH => return Ok(messages),
            Some(StatusCode::NO_RESPONDERS) => {
                return Err(told(&"none of its servers is there"));
            }
            Some(status) => {
                return Err(told(&answer.description.unwrap_or_else(|| status.to_string())));
            }
        }
    }
}

/// Messages of a stream from a sequence on, with their sequences: until about `bytes_max`, at least one when the server that
/// answers has any.
///
/// # Errors
/// See [`get`].
pub(super) async fn from_sequence(
    context: &Context,
    stream: &str,
    sequence: u64,
    messages_max: usize,
    bytes_max: usize,
) -> Result<Vec<(u64, Bytes)>, QueueError> {
    let request = format!(r#"{{"seq":{sequence},"batch":{messages_max},"max_bytes":{bytes_max}}}"#);
    let messages = get(context, stream, request).await?;
    Ok(messages.into_iter().map(|message| (sequence_of(&message), message.payload)).collect())
}

/// Where a message that [`get`] gave stands in its stream.
pub(crate) fn sequence_of(message: &Message) -> u64 {
    number(message.headers.as_ref(), NATS_SEQUENCE).unwrap_or(0)
}

fn number(headers: Option<&HeaderMap>, name: async_nats::HeaderName) -> Option<u64> {
    // The server adds its own behind what the publisher wrote.
    headers?.get_all(name).last()?.as_str().parse().ok()
}
