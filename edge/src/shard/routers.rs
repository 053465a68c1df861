//! What routers say about this shard's connections.

use hawser_proto::client::error::Code;
use hawser_proto::view::client::{
    Deliver, Error, Gap, Intervals, Limits, Receipt, SendAck, ServerFrame, Signal, Welcome,
};
use hawser_proto::view::link::{self, EdgeMessage, RouterMessage};

use super::Shard;
use crate::conn::slab::shard_of;
use crate::conn::{Acked, CloseReason, ConnKey};
use crate::pending::Waiting;
use crate::routes::RouterIndex;
use crate::timer::Now;

impl Shard {
    pub(super) fn handle_messages(&mut self, now: Now, router: RouterIndex, messages: &[u8]) {
        let mut batch = link::Batch::new(messages);
        // One bad message ends itself, not the batch; a bad batch cannot come from our own uplink.
        while let Ok(Some(message)) = batch.next_message() {
            match RouterMessage::read(message) {
                Ok(message) => self.handle_message(now, router, message),
                Err(_) => self.counters.bad_router_messages.add(1),
            }
        }
    }

    fn handle_message(&mut self, now: Now, router: RouterIndex, message: RouterMessage<'_>) {
        match message {
            RouterMessage::Deliver(deliver) => {
                let link::Deliver {
                    connection,
                    sequence,
                    message_id,
                    from,
                    group,
                    payload,
                    time_ms,
                } = deliver;
                let Some(key) = self.served_by(router, connection) else { return };
                self.counters.delivers.add(1);
                let frame = Deliver { sequence, message_id, from, group, payload, time_ms };
                self.tell(key, &ServerFrame::Deliver(frame));
            }
            RouterMessage::SendAck(ack) => self.handle_send_ack(now, ack),
            RouterMessage::Receipt(receipt) => {
                let link::Receipt { connection, kind, user, message_ids, time_ms } = receipt;
                let Some(key) = self.addressee(connection) else { return };
                let frame = Receipt { kind: kind as i32, user, message_ids, time_ms };
                self.tell(key, &ServerFrame::Receipt(frame));
            }
            RouterMessage::Registered(registered) => {
                self.handle_registered(now, router, registered)
            }
            RouterMessage::Signal(link::SignalOut { connection, from, kind, payload }) => {
                let Some(key) = self.addressee(connection) else { return };
                self.tell(key, &ServerFrame::Signal(Signal { user: from, kind, payload }));
            }
            RouterMessage::Gap(link::Gap { connection, first_sequence, last_sequence, reason }) => {
                let Some(key) = self.served_by(router, connection) else { return };
                let frame = Gap { first_sequence, last_sequence, reason: reason as i32 };
                self.tell(key, &ServerFrame::Gap(frame));
            }
            RouterMessage::Disconnect(link::Disconnect { connection, reason }) => {
                let Some(key) = self.served_by(router, connection) else { return };
                match reason {
                    REASON_REPLACED => self.replace(now, key),
                    _ => self.close(now, key, CloseReason::Operator),
                }
            }
            // The uplink's, and what a later release says.
            // Whoever has the recipient says it, and is right to: the owner of the sender is another.
            RouterMessage::Relay(relay) => self.links.say(relay.to, &EdgeMessage::Relay(relay)),
            RouterMessage::HelloAck(_)
            | RouterMessage::Heartbeat(_)
            | RouterMessage::Ownership(_)
            | RouterMessage::Unknown => {}
        }
    }

    /// The connection that a message is for; a message for one that is gone is counted and dropped: the
    /// router has, or will have, its Unregister.
    fn addressee(&mut self, connection: u64) -> Option<ConnKey> {
        let key = ConnKey::from_bits(connection);
        let here = shard_of(connection) == self.index
            && self.conns.get(key).is_some_and(|conn| conn.session().is_some());
        if !here {
            self.counters.stale_deliveries.add(1);
        }
        here.then_some(key)
    }

    /// The same for what only the router may say that has the user's partition: from another one, which has had it and does
    /// not know yet that it is another's, it is counted and dropped. The one that has it will say it, or has.
    fn served_by(&mut self, router: RouterIndex, connection: u64) -> Option<ConnKey> {
        let key = self.addressee(connection)?;
        let session = self.conns.get(key).and_then(|conn| conn.session())?;
        let is_served = self.links.router_of(&session.user) == Some(router);
        if !is_served {
            self.counters.foreign_deliveries.add(1);
        }
        is_served.then_some(key)
    }

    fn handle_registered(
        &mut self,
        now: Now,
        router: RouterIndex,
        registered: link::Registered<'_>,
    ) {
        let Some(key) = self.served_by(router, registered.connection) else { return };
        if let Some(failure) = registered.failure {
            self.tell_error(key, failure.code as i32, failure.message, failure.retryable);
            return self.close(now, key, CloseReason::RouterUnavailable);
        }
        let window_messages = self.links.window_messages(router);
        let Some(session) = self.conns.get_mut(key).and_then(|c| c.session_mut()) else { return };
        session.acked = Acked::new(Some(registered.cursor));
        if std::mem::replace(&mut session.registered, true) {
            return;
        }
        let (user, device) = (session.user, session.device);
        self.counters.registration.observe(now.since(session.connected_at.unix_ms()));
        if let Some(conn) = self.conns.get(key) {
            let (connection, peer) = (registered.connection, conn.peer.address());
            tracing::debug!(connection, %peer, user = &*user, device = &*device, "connection is open");
        }
        let config = &self.config;
        let welcome = Welcome {
            connection_id: registered.connection,
            time_ms: now.unix_ms,
            intervals: Some(Intervals {
                active_ms: config.ping_interval_active.as_millis() as u32,
                idle_ms: config.ping_interval_idle.as_millis() as u32,
                background_ms: config.ping_interval_background.as_millis() as u32,
            }),
            limits: Some(Limits {
                payload_bytes_max: config.payload_bytes_max as u32,
                window_messages,
                sends_in_flight_max: config.sends_in_flight_max,
            }),
            cursor: registered.cursor,
            resumed: registered.resumed,
            user: &user,
            token_expires_at_ms: self.token_expires_at_ms(now, key),
        };
        self.tell(key, &ServerFrame::Welcome(welcome));
        self.schedule_silence(now, key);
    }

    pub(super) fn schedule_silence(&mut self, now: Now, key: ConnKey) {
        if let Some(session) = self.conns.get(key).and_then(|conn| conn.session()) {
            self.schedule_session(key, self.silence_end(now.tick, session));
        }
    }

    /// Whoever says it: that a message is kept stays true when its partition gets another router.
    fn handle_send_ack(&mut self, now: Now, ack: link::SendAck<'_>) {
        let Some(waiting) = self.pending.answer(ack.ticket) else { return };
        let error = ack.failure.map(|failure| Error {
            code: failure.code as i32,
            message: failure.message,
            retryable: failure.retryable,
        });
        if let Some(error) = &error {
            self.counters.send_failed(Code::try_from(error.code).unwrap_or_default());
        }
        self.answer(now, waiting, ack.message_id, ack.time_ms, error);
    }

    /// Sends that waited too long for the router are given back to their senders, to be tried again.
    pub(super) fn expire_sends(&mut self, now: Now) {
        while let Some(waiting) = self.pending.poll_expired(now.tick) {
            self.counters.send_failed(Code::Unavailable);
            let error = Error {
                code: Code::Unavailable.into(),
                message: "no answer from the router",
                retryable: true,
            };
            self.answer(now, waiting, 0, now.unix_ms, Some(error));
        }
    }

    fn answer(
        &mut self,
        now: Now,
        waiting: Waiting,
        message_id: u64,
        time_ms: i64,
        error: Option<Error<'_>>,
    ) {
        let Waiting { key, client_message_id } = waiting;
        let Some(session) = self.conns.get_mut(key).and_then(|c| c.session_mut()) else { return };
        session.sends_in_flight = session.sends_in_flight.saturating_sub(1);
        let frame = SendAck { client_message_id: &client_message_id, message_id, time_ms, error };
        self.tell(key, &ServerFrame::SendAck(frame));
        self.update_receiving(key);
        self.close_when_answered(now, key);
    }
}

/// `Disconnect.REASON_REPLACED` of link.proto.
const REASON_REPLACED: i32 = 1;
