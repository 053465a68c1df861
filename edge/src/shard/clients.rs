//! What a client says: each frame is checked, then done here or told to the router.

use std::sync::Arc;

use hawser_proto::client::error::Code;
use hawser_proto::view::client::{
    Ack, ClientFrame, Connect, Error, Pong, Send, SendAck, ServerFrame, SetMode, Signal, Sync,
};
use hawser_proto::view::link::{self, EdgeMessage};

use super::{CLIENT_KINDS_MAX, Shard};
use crate::auth::{DeviceId, Identity, Permission};
use crate::client;
use crate::conn::{Acked, CloseReason, Codec, ConnKey, Mode, Opening, Phase, Session};
use crate::limits;
use crate::pending::Way;
use crate::quotas::Exceeded;
use crate::timer::{Now, Stamp};

/// Why a Send is refused at once: code, text, and whether the same may work later.
type Refusal = (Code, &'static str, bool);

impl Shard {
    /// A whole message from a client that speaks one of our subprotocols.
    pub(super) fn handle_payload(
        &mut self,
        now: Now,
        key: ConnKey,
        codec: Codec,
        text: bool,
        payload: &[u8],
    ) -> Result<(), CloseReason> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let outcome = client::read(codec, text, payload, &mut scratch)
            .and_then(|frame| self.handle_frame(now, key, frame));
        self.scratch = scratch;
        outcome
    }

    fn handle_frame(
        &mut self,
        now: Now,
        key: ConnKey,
        frame: ClientFrame<'_>,
    ) -> Result<(), CloseReason> {
        let Some(conn) = self.conns.get(key) else { return Ok(()) };
        if let Phase::Connecting(codec, _) = conn.phase {
            let ClientFrame::Connect(connect) = frame else {
                let text = CloseReason::NotConnected.text();
                self.tell_error(key, Code::NotConnected.into(), text, false);
                return Err(CloseReason::NotConnected);
            };
            return self.handle_connect(now, key, codec, connect);
        }
        match frame {
            ClientFrame::Send(send) => self.handle_send(now, key, send),
            ClientFrame::Ack(ack) => self.handle_ack(key, ack),
            ClientFrame::Ping(ping) => {
                let pong = Pong { nonce: ping.nonce, time_ms: now.unix_ms };
                self.tell(key, &ServerFrame::Pong(pong));
            }
            ClientFrame::Signal(signal) => self.handle_signal(key, signal),
            ClientFrame::SetMode(SetMode { mode }) => {
                self.handle_mode(now, key, Mode::from_number(mode))
            }
            ClientFrame::Sync(Sync { after_sequence }) => {
                let Some(session) = self.session(key) else { return Ok(()) };
                let user = session.user;
                let connection = key.to_connection_id(self.index);
                let sync = link::Sync { connection, user: &user, after_sequence };
                self.links.say(&user, &EdgeMessage::Sync(sync));
            }
            ClientFrame::Refresh(refresh) => self.handle_refresh(now, key, refresh),
            ClientFrame::Connect(_) => {
                self.tell_error(key, Code::AlreadyConnected.into(), "already connected", false);
            }
            ClientFrame::Unknown => {
                let text = "frame kind not known to this edge";
                self.tell_error(key, Code::UnknownFrame.into(), text, false);
            }
        }
        Ok(())
    }

    fn handle_connect(
        &mut self,
        now: Now,
        key: ConnKey,
        codec: Codec,
        connect: Connect<'_>,
    ) -> Result<(), CloseReason> {
        if let Some(text) = fault_of(&connect) {
            self.tell_error(key, Code::InvalidArgument.into(), text, false);
            return Err(CloseReason::BadConnect);
        }
        let Ok(device) = DeviceId::from(connect.device_id) else {
            return Err(CloseReason::BadConnect);
        };
        let opening = Opening {
            device,
            acked: Acked::new(connect.resume_cursor),
            client: self.client_number(connect.client_kind, connect.client_version),
            codec,
            mode: Mode::from_number(connect.mode),
        };
        self.admit(now, key, &connect, opening)
    }

    /// Makes a session of a connection whose user is known.
    pub(super) fn begin_session(
        &mut self,
        now: Now,
        key: ConnKey,
        opening: Opening,
        identity: &Identity,
    ) -> Result<(), CloseReason> {
        let Opening { device, acked, client, codec, mode } = opening;
        let user = identity.user;
        if let Some(older) = self.registry.find_device(&self.conns, &user, &device) {
            self.replace(now, older);
        }
        if let Err(exceeded) = self.enter_user(now, key, &user) {
            self.counters.limited(exceeded);
            let text = CloseReason::UserLimit.text();
            self.tell_error(key, Code::Overloaded.into(), text, true);
            return Err(CloseReason::UserLimit);
        }
        let token_ends = self.token_ends(now, identity);
        let session = Session {
            user,
            device,
            acked,
            connected_at: Stamp::of(now.unix_ms),
            client,
            sends_in_flight: 0,
            codec,
            mode,
            registered: false,
            grant: identity.grant,
            leaving: None,
        };
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        conn.phase = Phase::Session(session);
        conn.token_ends = token_ends;
        self.registry.insert(&self.conns, key);
        self.schedule_session(key, now.tick.after(self.config.connect_timeout));
        self.register_new(key);
        Ok(())
    }

    /// Counts a connection of this user, or says which limit it runs into. One that replaces another counts until that one has gone.
    fn enter_user(&mut self, now: Now, key: ConnKey, user: &str) -> Result<(), &'static str> {
        let counted = self.quotas.enter_user(user, now.tick, &self.user_quota);
        let counted = counted.map_err(|exceeded| match exceeded {
            Exceeded::Connections => "user_connections_max",
            Exceeded::Connects | Exceeded::Failures => "user_connects_per_second",
        })?;
        if let Some(conn) = self.conns.get_mut(key) {
            conn.counted.user = counted;
        }
        Ok(())
    }

    /// A newer connection of the same device is here: the older one is told so, and ends.
    pub(super) fn replace(&mut self, now: Now, older: ConnKey) {
        let text = CloseReason::Replaced.text();
        self.tell_error(older, Code::Replaced.into(), text, false);
        self.close(now, older, CloseReason::Replaced);
    }

    /// Tells the user's router that this session is here. When there is none, the walk tells the next one.
    pub(super) fn register(&mut self, key: ConnKey, snapshot: bool) {
        let Some(session) = self.conns.get(key).and_then(|c| c.session()) else { return };
        let (kind, version) =
            self.clients.get(usize::from(session.client)).map_or(("", ""), |c| (&*c.0, &*c.1));
        let register = link::Register {
            connection: key.to_connection_id(self.index),
            user: &session.user,
            device: &session.device,
            cursor: session.acked.sequence(),
            connected_at_ms: session.connected_at.unix_ms(),
            client_kind: kind,
            client_version: version,
            answer: !session.registered,
            snapshot,
        };
        self.links.say(&session.user, &EdgeMessage::Register(register));
    }

    fn handle_send(&mut self, now: Now, key: ConnKey, send: Send<'_>) {
        self.counters.sends.add(1);
        if let Err((code, message, retryable)) = self.try_send(now, key, &send) {
            self.counters.send_failed(code);
            let error = Some(Error { code: code.into(), message, retryable });
            if send.client_message_id.is_empty()
                || send.client_message_id.len() > limits::CLIENT_MESSAGE_ID_BYTES_MAX
            {
                // Without a usable id there is no SendAck to give.
                self.tell_error(key, code.into(), message, retryable);
            } else {
                let client_message_id = send.client_message_id;
                let ack = SendAck { client_message_id, message_id: 0, time_ms: now.unix_ms, error };
                self.tell(key, &ServerFrame::SendAck(ack));
            }
        }
    }

    fn try_send(&mut self, now: Now, key: ConnKey, send: &Send<'_>) -> Result<(), Refusal> {
        let invalid = |text| Err((Code::InvalidArgument, text, false));
        if send.client_message_id.is_empty()
            || send.client_message_id.len() > limits::CLIENT_MESSAGE_ID_BYTES_MAX
        {
            return invalid("client_message_id: 1 to 64 bytes");
        }
        if send.to_user.is_empty() == send.to_group.is_empty() {
            return invalid("to_user or to_group, one of them");
        }
        if send.to_user.len().max(send.to_group.len()) > limits::USER_ID_BYTES_MAX {
            return invalid("recipient over 64 bytes");
        }
        if send.payload.len() > self.config.payload_bytes_max {
            return Err((Code::TooLarge, "payload over the limit told in Welcome", false));
        }
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        let Phase::Session(session) = &mut conn.phase else { return Ok(()) };
        let (permission, text) = match send.to_group {
            "" => (Permission::SendUsers, "the token does not allow to send to users"),
            _ => (Permission::SendGroups, "the token does not allow to send to groups"),
        };
        if !session.grant.allows(permission) {
            return Err((Code::PermissionDenied, text, false));
        }
        let expires_at_ms = match send.expires_after_ms {
            Some(after) => {
                now.unix_ms.saturating_add(i64::try_from(after).unwrap_or(i64::MAX)).max(1)
            }
            None => 0,
        };
        let message = link::Send {
            connection: key.to_connection_id(self.index),
            ticket: 0,
            from: &session.user,
            client_message_id: send.client_message_id,
            to_user: send.to_user,
            to_group: send.to_group,
            payload: send.payload,
            expires_at_ms,
        };
        let deadline = now.tick.after(self.config.send_timeout);
        let partition = self.links.routes().partition_of(send.to_user);
        let way = self.links.way(partition);
        let to = (partition, way != Way::Shut);
        let Ok(told) = self.pending.push(key, deadline, to, message) else {
            return Err((Code::Overloaded, "too many sends wait for the router", true));
        };
        session.sends_in_flight = session.sends_in_flight.saturating_add(1);
        if let (Some(bytes), Way::Open(router)) = (told, way) {
            self.links.say_encoded(router, bytes);
        }
        Ok(())
    }

    fn handle_ack(&mut self, key: ConnKey, ack: Ack) {
        let connection = key.to_connection_id(self.index);
        let Some(session) = self.session(key) else { return };
        session.acked.advance(ack.sequence);
        let (user, sequence, read_sequence) = (session.user, ack.sequence, ack.read_sequence);
        let ack = link::Ack { connection, user: &user, sequence, read_sequence };
        self.links.say(&user, &EdgeMessage::Ack(ack));
    }

    fn handle_signal(&mut self, key: ConnKey, signal: Signal<'_>) {
        let fault = if signal.user.is_empty() || signal.user.len() > limits::USER_ID_BYTES_MAX {
            "user: 1 to 64 bytes"
        } else if signal.kind.len() > limits::SIGNAL_KIND_BYTES_MAX {
            "kind: at most 32 bytes"
        } else if signal.payload.len() > limits::SIGNAL_PAYLOAD_BYTES_MAX {
            "payload of a signal: at most 4,096 bytes"
        } else {
            let connection = key.to_connection_id(self.index);
            let Some(session) = self.session(key) else { return };
            if !session.grant.allows(Permission::Signals) {
                self.counters.signals_denied.add(1);
                let text = "the token does not allow signals";
                return self.tell_error(key, Code::PermissionDenied.into(), text, false);
            }
            let from = session.user;
            let Signal { user: to, kind, payload } = signal;
            let signal = link::Signal { connection, from: &from, to, kind, payload };
            // Worth nothing later.
            if self.links.is_congested_for(to) {
                return self.counters.signals_dropped.add(1);
            }
            return self.links.say(to, &EdgeMessage::Signal(signal));
        };
        self.tell_error(key, Code::InvalidArgument.into(), fault, false);
    }

    fn handle_mode(&mut self, now: Now, key: ConnKey, mode: Mode) {
        let Some(session) = self.session(key) else { return };
        session.mode = mode;
        if session.registered {
            // The new deadline may be earlier than the one in the wheel.
            self.schedule_silence(now, key);
        }
    }

    pub(super) fn session(&mut self, key: ConnKey) -> Option<&mut Session> {
        self.conns.get_mut(key)?.session_mut()
    }

    /// The number of a client program; past the bound, or without a name, that of "other".
    fn client_number(&mut self, kind: &str, version: &str) -> u16 {
        if kind.is_empty() {
            return 0;
        }
        let known =
            self.clients.iter().position(|client| *client.0 == *kind && *client.1 == *version);
        let number = known.unwrap_or_else(|| {
            if self.clients.len() >= CLIENT_KINDS_MAX {
                return 0;
            }
            self.clients.push(Arc::new((kind.into(), version.into())));
            self.clients.len() - 1
        });
        number as u16
    }
}

/// What is wrong with the fields of a Connect, if anything.
fn fault_of(connect: &Connect<'_>) -> Option<&'static str> {
    if connect.device_id.is_empty() || connect.device_id.len() > limits::DEVICE_ID_BYTES_MAX {
        Some("device_id: 1 to 40 bytes")
    } else if connect.token.len() > limits::TOKEN_BYTES_MAX {
        Some("token: at most 4,096 bytes")
    } else if connect.client_kind.len() > limits::CLIENT_KIND_BYTES_MAX
        || connect.client_version.len() > limits::CLIENT_KIND_BYTES_MAX
    {
        Some("client_kind and client_version: at most 32 bytes")
    } else {
        None
    }
}

const _: () = assert!(CLIENT_KINDS_MAX <= u16::MAX as usize);
