//! TLS between a connection and its socket.
//!
//! Ciphertext comes in, and what it holds goes on as if it had come in plain; what waits in the outbox is sealed when the driver
//! takes it, so what was written in one turn goes out in as few records as it can.

use super::Shard;
use crate::conn::{CloseReason, CloseStage, Closing, ConnKey, Phase};
use crate::http;
use crate::timer::Now;
use crate::tls::{Info, Item, Tls, TlsError};

/// What a record adds to its content at most: header, explicit nonce (TLS 1.2) or type, tag.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// Most content of a record (RFC 8446 section 5.1).
const RECORD_CONTENT_BYTES_MAX: usize = 16 * 1024;

impl Shard {
    /// Begins TLS on a fresh stream, when this edge speaks it.
    pub(super) fn begin_tls(&mut self, now: Now, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if self.tls.is_some() && matches!(conn.phase, Phase::Head { .. }) {
            conn.tls = Some(Tls::accept());
            self.schedule(key, now.tick.after(self.config.tls.tls_handshake_timeout));
        }
    }

    /// Takes what came, and hands on what is in it.
    pub(super) fn handle_ciphertext(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        // Taken out while its data is dealt with, which it lends.
        let Some(mut tls) = conn.tls.take() else { return };
        self.opening = Some(key);
        let mut at = 0;
        let (mut failed, mut closed) = (None, false);
        while let (Some(input @ [_, ..]), Some(shared)) = (bytes.get_mut(at..), &mut self.tls) {
            match tls.next(shared, input) {
                Ok((taken, item)) => {
                    at += taken;
                    match item {
                        Some(Item::Data(data)) => self.handle_input(now, key, data),
                        Some(Item::Open(info)) => self.handle_handshake_over(now, key, info),
                        Some(Item::Closed) => closed = true,
                        None => {}
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.opening = None;
        let Some(shared) = &mut self.tls else { return };
        tls.settle(shared);
        let Some(conn) = self.conns.get_mut(key) else { return tls.end(shared) };
        conn.tls = Some(tls);
        match failed {
            Some(error) => self.end_tls(now, key, error),
            None if closed => self.handle_peer_closed(key),
            None => {
                self.send_later(key);
                self.advance_closing(key);
            }
        }
    }

    fn handle_handshake_over(&mut self, now: Now, key: ConnKey, info: Info) {
        if info.resumed {
            self.counters.tls_resumed_handshakes.add(1);
        } else {
            self.counters.tls_full_handshakes.add(1);
        }
        self.schedule(key, now.tick.after(self.config.handshake_timeout));
    }

    /// The client sends no more. With WebSocket that is its end, as the end of the stream is.
    fn handle_peer_closed(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Closing(closing) => {
                closing.stage = CloseStage::Flush;
                closing.peer_closed = true;
            }
            Phase::Proxy { .. }
            | Phase::Head { .. }
            | Phase::Echo
            | Phase::Asking(_)
            | Phase::Connecting(..)
            | Phase::Session(_) => {
                self.begin_flush(key, CloseReason::Vanished, true);
            }
        }
        self.send_later(key);
        self.advance_closing(key);
    }

    /// TLS is over because of a fault: the alert goes out, then the socket is closed.
    fn end_tls(&mut self, now: Now, key: ConnKey, error: TlsError) {
        self.counters.tls_failed(error.label());
        self.note_failure(now, key);
        if error == TlsError::PlainHttp {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.tls = None;
            }
            return self.refuse(now, key, &http::Refusal::TLS_WANTED);
        }
        self.begin_flush(key, CloseReason::Tls(error), false);
        self.schedule(key, now.tick.after(self.config.close_timeout));
        self.send_later(key);
        self.advance_closing(key);
    }

    /// Makes a connection one that ends, whatever it was. What waits in its outbox cannot be sealed any more when TLS has failed.
    fn begin_flush(&mut self, key: ConnKey, reason: CloseReason, peer_closed: bool) {
        self.log_end(key, reason);
        self.leave(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.phase.is_handshake() {
            self.handshakes -= 1;
        }
        conn.phase = Phase::Closing(Closing { reason, stage: CloseStage::Flush, peer_closed });
        if conn.tls.as_ref().is_some_and(|tls| !tls.is_open()) {
            let lost = conn.outbox.take(&mut self.pool);
            self.pool.give(lost);
        }
    }

    /// Seals what a connection has to send, and whatever TLS itself has to say.
    pub(super) fn seal(&mut self, key: ConnKey, plain: Vec<u8>) -> Vec<u8> {
        let mut out = self.pool.buffer();
        if let (Some(conn), Some(shared)) = (self.conns.get_mut(key), &mut self.tls)
            && let Some(tls) = &mut conn.tls
        {
            // The last of what this side says: with it goes the word that it is the last.
            if let Phase::Closing(closing) = &conn.phase
                && closing.stage == CloseStage::Flush
            {
                tls.close();
            }
            let records = plain.len().div_ceil(RECORD_CONTENT_BYTES_MAX) + 2;
            out.reserve(plain.len() + records * RECORD_OVERHEAD_BYTES);
            if let Err(error) = tls.seal(shared, &plain, &mut out) {
                // Keys used up (TLS 1.2), or our own fault: the alert is all that is left to send, then the socket ends.
                let _alert = tls.seal(shared, &[], &mut out);
                self.counters.tls_failed(error.label());
                self.begin_flush(key, CloseReason::Tls(error), false);
            }
        }
        self.pool.give(plain);
        out
    }
}
