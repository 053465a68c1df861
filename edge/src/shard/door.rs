//! How a client comes in: limits that are looked at before anything is done for it, then what a balancer says of it.

use super::{Output, Shard};
use crate::conn::{CloseReason, ConnKey, Connection, Peer, Phase};
use crate::http;
use crate::proxy;
use crate::quotas::Exceeded;
use crate::timer::Now;

impl Shard {
    pub(super) fn handle_accepted(&mut self, now: Now, socket: u32, peer: Peer) {
        self.counters.accepted.add(1);
        let refusal = self.refusal_at_the_door();
        let Ok(key) = self.conns.insert(Connection::accepted(socket, peer, now)) else {
            // Not even room for a refusal: the client sees its connection closed and comes back.
            self.counters.refused(503);
            self.outputs.push_back(Output::Close { socket, busy: false });
            return;
        };
        self.handshakes += 1;
        self.outputs.push_back(Output::Receive { key, socket });
        self.schedule(key, now.tick.after(self.config.handshake_timeout));
        if let Some(refusal) = refusal {
            self.begin_tls(now, key);
            self.refuse(now, key, &refusal);
        } else if self.config.admission.expects_proxy_header(peer.address().ip()) {
            self.await_proxy_header(key);
        } else {
            self.enter_address(now, key);
        }
    }

    /// Whom this shard has no room for is told so before anything else is done.
    fn refusal_at_the_door(&self) -> Option<http::Refusal> {
        if self.conns.len() >= self.share.connections_max {
            self.counters.limited("connections_max");
            Some(http::Refusal::overloaded())
        } else if self.handshakes >= self.share.handshakes_max {
            self.counters.limited("handshakes_max");
            Some(http::Refusal::busy())
        } else {
            self.leaves_by().map(|_| http::Refusal::overloaded())
        }
    }

    /// Counts a client where its address is known, or refuses it.
    fn enter_address(&mut self, now: Now, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match self.quotas.enter_address(conn.peer, now.tick, &self.address_quota) {
            Ok(counted) => {
                conn.counted.address = counted;
                self.begin_tls(now, key);
            }
            Err(exceeded) => {
                self.counters.limited(match exceeded {
                    Exceeded::Connections => "address_connections_max",
                    Exceeded::Connects => "address_connects_per_second",
                    Exceeded::Failures => "address_failures_per_second",
                });
                self.refuse(now, key, &http::Refusal::too_many());
            }
        }
    }

    /// Takes a client's fault into account of its address.
    pub(super) fn note_failure(&self, now: Now, key: ConnKey) {
        if let Some(conn) = self.conns.get(key) {
            self.quotas.fail_address(conn.peer, now.tick, &self.address_quota);
        }
    }

    fn await_proxy_header(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Phase::Head { since_ms, .. } = conn.phase
        {
            conn.phase = Phase::Proxy { collected: Vec::new(), since_ms };
        }
    }

    /// Reads the balancer's header; what came behind it is the client's.
    pub(super) fn handle_proxy_header(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Proxy { collected, since_ms } = &mut conn.phase else { return };
        let since_ms = *since_ms;
        let before = collected.len();
        let outcome = if before == 0 {
            proxy::read_header(bytes)
        } else {
            // The rest of a header that was cut, and never more of what is behind it than this needs.
            let room = proxy::V2_BYTES_MAX.saturating_sub(before);
            collected.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            proxy::read_header(collected)
        };
        let header = match outcome {
            Ok(Some(header)) => header,
            Ok(None) => {
                if before == 0 {
                    collected.extend_from_slice(bytes);
                }
                return;
            }
            Err(_) => return self.remove(key, CloseReason::ProxyHeader),
        };
        if let Some(source) = header.source {
            conn.peer = source.into();
        }
        conn.phase = Phase::Head { collected: Vec::new(), since_ms };
        self.enter_address(now, key);
        if let Some(rest @ [_, ..]) = bytes.get_mut(header.header_bytes.saturating_sub(before)..) {
            self.handle_stream(now, key, rest);
        }
    }
}
