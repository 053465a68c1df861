//! This shard's connections as an operator sees them.

use std::sync::Arc;

use super::Shard;
use crate::auth::UserId;
use crate::command::{LIST_SLOTS_MAX, Listed, Shown, ShownSession, Stage, USER_CONNECTIONS_MAX};
use crate::conn::{ConnKey, Connection, Phase, Session};
use crate::timer::{Now, TICK};

impl Shard {
    pub(super) fn list(&self, now: Now, first: u32) -> Listed {
        let end = self.conns.slots().min(first.saturating_add(LIST_SLOTS_MAX));
        let connections = (first..end)
            .filter_map(|slot| self.conns.at(slot))
            .map(|(key, conn)| self.show(now, key, conn))
            .collect();
        Listed { connections, next: (end < self.conns.slots()).then_some(end) }
    }

    pub(super) fn connections_of(&self, user: &UserId) -> Vec<ConnKey> {
        self.registry.keys_of(&self.conns, user).take(USER_CONNECTIONS_MAX).collect()
    }

    pub(super) fn show(&self, now: Now, key: ConnKey, conn: &Connection) -> Shown {
        let silent = TICK * now.tick.0.saturating_sub(conn.last_heard.0);
        Shown {
            id: key.to_connection_id(self.index),
            peer: conn.peer.address(),
            stage: match &conn.phase {
                Phase::Proxy { .. } | Phase::Head { .. } => Stage::Head,
                Phase::Asking(asking) if asking.is_handshake() => Stage::Head,
                Phase::Echo => Stage::Echo,
                Phase::Asking(_) | Phase::Connecting(..) => Stage::Connecting,
                Phase::Session(session) if session.registered => Stage::Open,
                Phase::Session(_) => Stage::Registering,
                Phase::Closing(closing) => Stage::Closing(closing.reason),
            },
            silent_ms: silent.as_millis() as u64,
            outbox_bytes: conn.outbox.bytes(),
            session: conn.session().map(|session| self.show_session(session)),
        }
    }

    fn show_session(&self, session: &Session) -> ShownSession {
        let client = self.clients.get(usize::from(session.client)).or(self.clients.first());
        ShownSession {
            user: session.user,
            device: session.device,
            connected_at_ms: session.connected_at.unix_ms(),
            client: client.map_or_else(Default::default, Arc::clone),
            mode: session.mode,
            codec: session.codec,
            sends_in_flight: session.sends_in_flight,
            acked: session.acked.sequence(),
        }
    }
}
