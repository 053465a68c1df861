//! Sends on their way to the log: checked, looked up, handed out, answered.

use std::sync::Arc;

use bytes::Bytes;
use hawser_proto::client::error;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Failure, Send, SendAck};

use super::{Appending, Effects, Hub, Now, Waiter};
use crate::limits;
use crate::record::{Kind, MessageRecord, Record, SendKey};
use crate::registry::{ConnectionRef, EdgeId};
use crate::store::Accepted;

impl Hub {
    pub(super) fn handle_send(&mut self, now: Now, edge: EdgeId, send: Send, out: &mut Effects) {
        let connection = ConnectionRef { edge, connection: send.connection };
        let waiter = Waiter { connection, ticket: send.ticket };
        if let Err(failure) = check_send(&send, self.config.record_bytes_max) {
            refuse(waiter, failure, out);
            return;
        }
        let key = self.key(&send.from, &send.to_user, &send.client_message_id);
        if let Some(waiters) = self.waiting.get_mut(&key) {
            if waiters.len() >= limits::WAITERS_MAX {
                waiters.remove(0);
            }
            waiters.push(waiter);
            return;
        }
        if let Some(reason) = self.overload() {
            self.rows.note_refused(now.mono_ms, self.pair(&send.from, &send.to_user), key);
            refuse(waiter, failure(error::Code::Overloaded, reason, true), out);
            return;
        }
        let known = self.accepted(&key, now);
        let loaded = known.and_then(|known| self.load(now, &send.to_user).map(|()| known));
        match loaded {
            Ok(Some(known)) => {
                out.counts.repeated += 1;
                answer_send(waiter, Ok(known), out);
            }
            Ok(None) => {
                let is_held = !self.rows.is_empty() && {
                    let pair = self.pair(&send.from, &send.to_user);
                    self.rows.holds(now.mono_ms, pair, key)
                };
                if is_held {
                    refuse(waiter, unavailable("a message before this one was not stored"), out);
                } else {
                    self.append(now, key, waiter, send, out);
                }
            }
            Err(error) => {
                self.rows.note_refused(now.mono_ms, self.pair(&send.from, &send.to_user), key);
                out.counts.store_errors += 1;
                refuse(waiter, unavailable(&error.0), out);
            }
        }
    }

    /// What all messages from one user to another have in common.
    fn pair(&self, from: &str, to: &str) -> SendKey {
        self.key(from, to, "")
    }

    /// Why no more messages can be taken in: what is in memory alone has reached its bound.
    fn overload(&self) -> Option<&'static str> {
        if self.is_stalled() {
            return Some("the store cannot be read");
        }
        let most = self.config.memory_bytes_max.saturating_mul(limits::UNSAVED_FACTOR_MAX);
        (self.saving.bytes() >= most).then_some("the store takes no checkpoints")
    }

    /// Hands a new message to the log.
    fn append(&mut self, now: Now, key: SendKey, waiter: Waiter, send: Send, out: &mut Effects) {
        if let Some(inbox) = self.users.get_mut(send.to_user.as_str()) {
            inbox.appending += 1;
        }
        self.log_devices(&send.to_user, out);
        let message = MessageRecord {
            to: send.to_user,
            from: send.from,
            client_message_id: send.client_message_id,
            // A copy of its own: the payload as it came keeps the link's whole receive buffer alive.
            payload: Bytes::copy_from_slice(&send.payload),
            accepted_at_ms: now.unix_ms,
            expires_at_ms: send.expires_at_ms,
            message_id: 0,
        };
        let record = Record::from(Kind::Message(message));
        out.append.push(record.to_bytes());
        out.append_durable = true;
        if let Some(kind) = record.kind {
            self.appending.push_back(Appending { kind, replayed: self.replayed });
        }
        self.waiting.insert(key, vec![waiter]);
    }

    pub(super) fn handle_refused(&mut self, now: Now, reason: &Arc<str>, out: &mut Effects) {
        let Some(appending) = self.appending.pop_front() else { return };
        match appending.kind {
            Kind::Message(message) => {
                let key = self.key(&message.from, &message.to, &message.client_message_id);
                // Nobody waits when the same message was found in the log meanwhile.
                let Some(waiters) = self.waiting.remove(&key) else { return };
                let pair = self.pair(&message.from, &message.to);
                self.rows.note_refused(now.mono_ms, pair, key);
                if let Some(inbox) = self.users.get_mut(message.to.as_str()) {
                    inbox.appending = inbox.appending.saturating_sub(1);
                }
                for waiter in waiters {
                    refuse(waiter, unavailable(reason), out);
                }
            }
            Kind::Cursor(cursor) => self.unlog_cursor(&cursor),
            Kind::Owner(_) => self.doubts.note_refused(),
        }
    }
}

fn check_send(send: &Send, record_bytes_max: usize) -> Result<(), Failure> {
    let within = |text: &str, bytes_max: usize| (1..=bytes_max).contains(&text.len());
    if !send.to_group.is_empty() {
        return Err(failure(error::Code::Unsupported, "groups are not supported yet", false));
    }
    if !within(&send.to_user, limits::USER_BYTES_MAX) || !within(&send.from, limits::USER_BYTES_MAX)
    {
        return Err(failure(error::Code::InvalidArgument, "a user id has 1 to 64 bytes", false));
    }
    if !within(&send.client_message_id, limits::CLIENT_MESSAGE_ID_BYTES_MAX) {
        let text = "a client message id has 1 to 64 bytes";
        return Err(failure(error::Code::InvalidArgument, text, false));
    }
    if send.payload.len() > limits::PAYLOAD_BYTES_MAX {
        return Err(failure(error::Code::TooLarge, "the payload is over 1 MiB", false));
    }
    if send.payload.len() + limits::RECORD_HEAD_BYTES_MAX > record_bytes_max {
        let text = "the message is larger than the queue's servers take";
        return Err(failure(error::Code::TooLarge, text, false));
    }
    Ok(())
}

/// Counts a refusal and tells the one who waits.
fn refuse(waiter: Waiter, failure: Failure, out: &mut Effects) {
    out.counts.refused += 1;
    answer_send(waiter, Err(failure), out);
}

pub(super) fn answer_send(waiter: Waiter, result: Result<Accepted, Failure>, out: &mut Effects) {
    let (accepted, failure) = match result {
        Ok(accepted) => (accepted, None),
        Err(failure) => (Accepted { message_id: 0, accepted_at_ms: 0 }, Some(failure)),
    };
    let ack = SendAck {
        connection: waiter.connection.connection,
        ticket: waiter.ticket,
        message_id: accepted.message_id,
        time_ms: accepted.accepted_at_ms,
        failure,
    };
    out.outbound.push((waiter.connection.edge, Outbound::SendAck(ack)));
}

pub(super) fn failure(code: error::Code, message: &str, retryable: bool) -> Failure {
    Failure { code: code as u32, message: message.to_owned(), retryable }
}

pub(super) fn unavailable(reason: &str) -> Failure {
    failure(error::Code::Unavailable, reason, true)
}
