//! What the router says, and what it has to be told again when a link comes up.

use hawser_proto::client::error::Code;
use hawser_proto::view::client::{
    Deliver, Error, Gap, Intervals, Limits, Receipt, SendAck, ServerFrame, Signal, Welcome,
};
use hawser_proto::view::link::{self, EdgeMessage, RouterMessage, SnapshotEnd};

use super::{Link, Shard, open_batch};
use crate::conn::slab::shard_of;
use crate::conn::{Acked, CloseReason, ConnKey};
use crate::limits::LINK_BATCH_BYTES;
use crate::mesh::{Full, LANE_PARCELS_MAX, Mesh, Parcel};
use crate::pending::Waiting;
use crate::timer::Now;

/// Connections looked at in one turn while a snapshot is told.
const SNAPSHOT_SLOTS_MAX: u32 = 1024;
/// Sends repeated in one turn.
const RESENDS_MAX: usize = 1024;

impl Shard {
    /// Trades with the uplink: takes what the router said, hands over what it is to be told. Once a turn.
    pub fn exchange(&mut self, now: Now, mesh: &Mesh) {
        self.take_commands(now, mesh);
        self.counters.connections.set(self.conns.len() as u64);
        self.counters.handshakes.set(self.handshakes as u64);
        for _ in 0..LANE_PARCELS_MAX {
            let Some(parcel) = mesh.take_down(self.index) else { break };
            match parcel {
                Parcel::LinkUp { link, window_messages } => {
                    self.link_down(mesh);
                    self.link = Some(Link { generation: link, window_messages, snapshot: Some(0) });
                    self.pending.start_resend();
                }
                Parcel::LinkDown => self.link_down(mesh),
                Parcel::Messages(messages) => {
                    self.handle_messages(now, &messages);
                    mesh.give_buffer(self.index, messages);
                }
            }
        }
        self.tell_snapshot();
        self.tell_pending();
        self.hand_over(mesh);
    }

    /// Whether [`Self::exchange`] has more to do without anything new happening.
    #[must_use]
    pub fn has_more_to_tell(&self) -> bool {
        !self.congested
            && (self.pending.resending() && self.link.is_some()
                || self.link.is_some_and(|link| link.snapshot.is_some()))
    }

    fn link_down(&mut self, mesh: &Mesh) {
        self.link = None;
        self.batch.clear();
        while let Some(batch) = self.batches.pop_front() {
            mesh.give_buffer(self.index, batch.frame);
        }
    }

    fn hand_over(&mut self, mesh: &Mesh) {
        self.close_batch(0);
        while let Some(batch) = self.batches.pop_front() {
            if let Err(Full(batch)) = mesh.try_send_up(self.index, batch) {
                self.batches.push_front(batch);
                break;
            }
        }
        if self.batch.capacity() == 0 {
            self.batch = mesh.buffer(self.index);
        }
        self.congested = !self.batches.is_empty();
        if !self.congested {
            while let Some(key) = self.held.pop() {
                self.update_receiving(key);
            }
        }
    }

    /// Tells the next part of who is here.
    fn tell_snapshot(&mut self) {
        let Some(first) = self.link.and_then(|link| link.snapshot) else { return };
        if self.congested {
            return;
        }
        let end = self.conns.slots().min(first.saturating_add(SNAPSHOT_SLOTS_MAX));
        for slot in first..end {
            if let Some((key, _)) = self.conns.at(slot) {
                self.register(key, true);
            }
        }
        let done = end == self.conns.slots();
        if done {
            let shard = u32::from(self.index);
            self.say(&EdgeMessage::SnapshotEnd(SnapshotEnd { shard }));
        }
        if let Some(link) = &mut self.link {
            link.snapshot = (!done).then_some(end);
        }
    }

    /// Repeats sends that the last link left unanswered.
    fn tell_pending(&mut self) {
        if self.link.is_none_or(|link| link.snapshot.is_some()) {
            return;
        }
        for _ in 0..RESENDS_MAX {
            if self.congested {
                return;
            }
            let conns = &self.conns;
            let here = |key| conns.get(key).is_some_and(|conn| conn.session().is_some());
            let Some(bytes) = self.pending.next_resend(here) else { return };
            open_batch(&mut self.batch).extend_from_slice(bytes);
            self.close_batch(LINK_BATCH_BYTES);
        }
    }

    fn handle_messages(&mut self, now: Now, messages: &[u8]) {
        let mut batch = link::Batch::new(messages);
        // One bad message ends itself, not the batch; a bad batch cannot come from our own uplink.
        while let Ok(Some(message)) = batch.next_message() {
            match RouterMessage::read(message) {
                Ok(message) => self.handle_message(now, message),
                Err(_) => self.counters.bad_router_messages.add(1),
            }
        }
    }

    fn handle_message(&mut self, now: Now, message: RouterMessage<'_>) {
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
                let Some(key) = self.addressee(connection) else { return };
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
            RouterMessage::Registered(registered) => self.handle_registered(now, registered),
            RouterMessage::Signal(link::SignalOut { connection, from, kind, payload }) => {
                let Some(key) = self.addressee(connection) else { return };
                self.tell(key, &ServerFrame::Signal(Signal { user: from, kind, payload }));
            }
            RouterMessage::Gap(link::Gap { connection, first_sequence, last_sequence, reason }) => {
                let Some(key) = self.addressee(connection) else { return };
                let frame = Gap { first_sequence, last_sequence, reason: reason as i32 };
                self.tell(key, &ServerFrame::Gap(frame));
            }
            RouterMessage::Disconnect(link::Disconnect { connection, reason }) => {
                let Some(key) = self.addressee(connection) else { return };
                match reason {
                    REASON_REPLACED => self.replace(now, key),
                    _ => self.close(now, key, CloseReason::Operator),
                }
            }
            RouterMessage::HelloAck(_) | RouterMessage::Heartbeat(_) | RouterMessage::Unknown => {}
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

    fn handle_registered(&mut self, now: Now, registered: link::Registered<'_>) {
        let Some(key) = self.addressee(registered.connection) else { return };
        if let Some(failure) = registered.failure {
            self.tell_error(key, failure.code as i32, failure.message, failure.retryable);
            return self.close(now, key, CloseReason::RouterUnavailable);
        }
        let window_messages = self.link.map_or(0, |link| link.window_messages);
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
