//! All state of one core: its connections, its users, its timers, its part of the link.
//!
//! Free of I/O. The driver tells what happened ([`Shard::apply`]), what time it is, and asks what to do
//! ([`Shard::poll_output`], [`Shard::poll_timeout`]); [`Shard::exchange`] trades with the uplinks once a turn.
//! What a client says is dealt with in [`clients`], what routers say in [`routers`]; which router is
//! told what is in [`links`], and what one is told that gets partitions in [`moves`].

mod admission;
mod clients;
mod commands;
mod door;
mod links;
mod moves;
mod reload;
mod routers;
mod secure;
mod shown;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks at a few and prints the rest")]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashSet;
use hawser_proto::client::error::Code;
use hawser_proto::view::client::{Error, ServerFrame};
use hawser_proto::view::link::{EdgeMessage, Unregister};

use self::admission::HeadToken;
use self::links::Links;
use self::reload::Told;
use crate::auth::ask::Verdict;
use crate::auth::{Auth, Identity, Refused};
use crate::client;
use crate::config::Config;
use crate::conn::{
    self, BufferPool, CloseReason, CloseStage, Closing, Codec, ConnKey, ConnSlab, Connection, Mode,
    Peer, Phase, Receiving, Sending, Session, Step,
};
use crate::drain::Drain;
use crate::http;
use crate::meter::Allowance;
use crate::metrics::Counters;
use crate::pending::PendingSends;
use crate::quotas::{Quota, Quotas};
use crate::registry::Registry;
use crate::timer::{Now, Tick, Wheel};
use crate::tls::{self, Tls};
use crate::ws;

/// A connection with more than this waiting to be sent is not read from until it has drained, in bytes.
const OUTBOX_READ_BYTES_MAX: usize = 64 * 1024;
/// Connections beyond the share that are taken only to be told 503.
pub const REFUSALS_MAX: usize = 64;
/// Client programs told apart; further ones count as the first, "other".
const CLIENT_KINDS_MAX: usize = 1024;

/// What a client is told whom there is no time to shake hands with: a fatal alert, `internal_error` (RFC 8446 section 6.2).
const TURNED_AWAY: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// What happened to one of this shard's sockets.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client connected; `socket` is its direct descriptor.
    Accepted {
        /// Index in the ring's table.
        socket: u32,
        /// Where it connects from.
        peer: Peer,
    },
    /// Bytes came; they are lent for this call, and may be changed in place.
    Received {
        /// Whose.
        key: ConnKey,
        /// What.
        bytes: &'a mut [u8],
    },
    /// The receive in the ring has ended though the stream has not: cancelled, or out of buffers.
    ReceiveStopped {
        /// Whose.
        key: ConnKey,
    },
    /// The stream ended.
    Ended {
        /// Whose.
        key: ConnKey,
        /// 0: the client closed it; else the system's error number.
        errno: i32,
    },
    /// A send is done, and its buffer comes back.
    Sent {
        /// Whose.
        key: ConnKey,
        /// The buffer of [`Output::Send`].
        buffer: Vec<u8>,
        /// Whether all of it went out; else the system's error number.
        result: Result<(), i32>,
    },
}

/// What the driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Start receiving.
    Receive {
        /// For whom.
        key: ConnKey,
        /// From which direct descriptor.
        socket: u32,
    },
    /// Stop receiving; [`Event::ReceiveStopped`] follows.
    StopReceive {
        /// For whom.
        key: ConnKey,
    },
    /// Send all of these bytes; [`Event::Sent`] follows. One at a time a connection.
    Send {
        /// To whom.
        key: ConnKey,
        /// On which direct descriptor.
        socket: u32,
        /// What.
        bytes: Vec<u8>,
        /// [`Event::Sent`] may come with whatever happens next: nothing here waits for it.
        quiet: bool,
    },
    /// Shut our side of the stream.
    ShutdownWrite {
        /// Which direct descriptor.
        socket: u32,
    },
    /// Close the descriptor; the connection is forgotten already, nothing follows.
    Close {
        /// Which direct descriptor.
        socket: u32,
        /// A receive or a send of it is in the ring, and has to be made to end.
        busy: bool,
    },
}

/// What of the edge one shard may have.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Connections; [`REFUSALS_MAX`] more are taken only to be told so.
    pub connections_max: usize,
    /// Memory that free send buffers may take, in bytes.
    pub pool_bytes_max: usize,
    /// Handshakes in flight.
    pub handshakes_max: usize,
}

impl Share {
    /// A hundred connections: for a shard that is tried without sockets.
    pub const SMALL: Self =
        Self { connections_max: 100, pool_bytes_max: 1024 * 1024, handshakes_max: 100 };
}

/// What a shard is given of what it shares with others.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// What checks tokens.
    pub auth: Auth,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// Those of all shards.
    pub quotas: Arc<Quotas>,
    /// How to shake hands; `None`: clients speak in plain.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// See the module.
pub struct Shard {
    index: u16,
    config: Arc<Config>,
    routes: http::Routes,
    framing: ws::Settings,
    deflater: ws::Deflater,
    inflater: ws::Inflater,
    auth: Auth,
    /// Sessions whose Refresh is being asked about, one each.
    refreshing: AHashSet<ConnKey>,
    counters: Arc<Counters>,
    share: Share,
    quotas: Arc<Quotas>,
    tls: Option<tls::Shared>,
    /// Whose ciphertext is being dealt with: its end waits until its TLS is back in its place.
    opening: Option<ConnKey>,
    address_quota: Quota,
    user_quota: Quota,
    /// By rate class; 0 is that of all who are in none.
    allowances: Box<[Allowance]>,
    /// Connections between accept and upgrade.
    handshakes: usize,
    conns: ConnSlab,
    registry: Registry,
    wheel: Wheel,
    pool: BufferPool,
    decoder_pool: ws::Pool,
    /// What a JSON frame borrows.
    scratch: Vec<u8>,
    /// Connections with something to send and no send in flight.
    ready: VecDeque<ConnKey>,
    outputs: VecDeque<Output>,
    pending: PendingSends,
    links: Links,
    /// Connections that are not read from because their router has no room.
    held: AHashSet<ConnKey>,
    /// Client programs by kind and version; sessions hold the index.
    clients: Vec<Arc<(Box<str>, Box<str>)>>,
    /// Clients are being sent away.
    drain: Option<Drain>,
    /// What of the intervals clients were told that are here since before the last reload.
    told: Told,
}

impl Shard {
    /// A shard without connections, which takes at most its share of them.
    #[must_use]
    pub fn new(index: u16, config: Arc<Config>, share: Share, given: Given, now: Now) -> Self {
        let shard = Self {
            index,
            routes: routes(&config),
            framing: framing(&config),
            deflater: deflater(&config),
            inflater: ws::Inflater::default(),
            auth: given.auth,
            refreshing: AHashSet::new(),
            counters: given.counters,
            share,
            quotas: given.quotas,
            tls: given.tls.map(tls::Shared::new),
            opening: None,
            address_quota: config.limit.address_quota(),
            user_quota: config.limit.user_quota(),
            allowances: config.allowances(),
            handshakes: 0,
            conns: ConnSlab::new(share.connections_max + REFUSALS_MAX),
            registry: Registry::default(),
            wheel: Wheel::new(now.tick),
            pool: BufferPool::new(share.pool_bytes_max),
            decoder_pool: ws::Pool::default(),
            scratch: Vec::new(),
            ready: VecDeque::new(),
            outputs: VecDeque::new(),
            pending: PendingSends::default(),
            links: Links::default(),
            held: AHashSet::new(),
            clients: vec![Arc::new(("other".into(), "".into()))],
            drain: None,
            told: Told::default(),
            config,
        };
        shard.count_routes();
        shard
    }

    /// What this shard counts.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections held, those on their way out included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Takes in what happened. A key that is no longer known is passed over.
    pub fn apply(&mut self, now: Now, event: Event<'_>) {
        match event {
            Event::Accepted { socket, peer } => self.handle_accepted(now, socket, peer),
            Event::Received { key, bytes } => self.handle_received(now, key, bytes),
            Event::ReceiveStopped { key } => {
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.receiving = Receiving::Paused;
                    self.update_receiving(key);
                }
            }
            Event::Ended { key, errno } => self.handle_ended(key, errno),
            Event::Sent { key, buffer, result } => self.handle_sent(key, buffer, result),
        }
    }

    /// Deals with every deadline up to `now`.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(slot) = self.wheel.poll(&mut self.conns, now.tick) {
            if let Some((key, _)) = self.conns.at(slot) {
                self.handle_timer(now, key);
            }
        }
        self.expire_sends(now);
        self.advance_drain(now);
    }

    /// When [`Self::handle_timeout`] has to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        let drain = self.drain.as_ref().and_then(Drain::next_tick);
        [self.wheel.next_tick(), self.pending.next_deadline(), drain].into_iter().flatten().min()
    }

    /// What the driver has to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        loop {
            let key = self.ready.pop_front()?;
            let Some(conn) = self.conns.get_mut(key) else { continue };
            debug_assert_eq!(conn.sending, Sending::Queued);
            conn.sending = Sending::InFlight;
            let (socket, plain) = (conn.socket, conn.outbox.take(&mut self.pool));
            let bytes = if conn.tls.is_some() { self.seal(key, plain) } else { plain };
            self.counters.sent_bytes.add(bytes.len() as u64);
            // The end of a connection goes on, and a reader comes back, when this is out.
            let quiet = self.conns.get(key).is_some_and(|conn| {
                !matches!(conn.phase, Phase::Closing(_)) && conn.receiving == Receiving::Armed
            });
            return Some(Output::Send { key, socket, bytes, quiet });
        }
    }

    /// Ends every connection: the edge stops.
    pub fn close_all(&mut self, now: Now, reason: CloseReason) {
        for slot in 0..self.conns.slots() {
            if let Some((key, conn)) = self.conns.at(slot)
                && !matches!(conn.phase, Phase::Closing(_))
            {
                self.close(now, key, reason);
            }
        }
    }

    fn handle_received(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        self.counters.received_bytes.add(bytes.len() as u64);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let since = std::mem::replace(&mut conn.last_heard, now.tick);
        let allowance = allowance(&self.allowances, conn);
        if allowance.limits() {
            conn.meter.pass_time(since, now.tick, &allowance);
            conn.meter.add_bytes(bytes.len());
        }
        if matches!(conn.phase, Phase::Proxy { .. }) {
            self.handle_proxy_header(now, key, bytes);
        } else {
            self.handle_stream(now, key, bytes);
        }
        self.throttle(now, key);
        self.update_receiving(key);
    }

    /// What comes on the stream behind a balancer's header.
    fn handle_stream(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        if self.conns.get(key).is_some_and(|conn| conn.tls.is_some()) {
            self.handle_ciphertext(now, key, bytes);
        } else {
            self.handle_input(now, key, bytes);
        }
    }

    /// What the client said, without what a balancer or TLS wrapped around it.
    fn handle_input(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get(key) else { return };
        match &conn.phase {
            Phase::Head { .. } => self.handle_head(now, key, bytes),
            Phase::Proxy { .. } => {}
            Phase::Closing(closing) if closing.stage != CloseStage::AwaitPeer => {}
            Phase::Asking(_)
            | Phase::Echo
            | Phase::Connecting(..)
            | Phase::Session(_)
            | Phase::Closing(_) => {
                self.handle_frames(now, key, bytes);
            }
        }
    }

    /// Stops reading from a client that is above its rate, until its timer says that it is within it again.
    fn throttle(&mut self, now: Now, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let ticks = match conn.phase {
            Phase::Echo | Phase::Session(_) => {
                conn.meter.ticks_over(&allowance(&self.allowances, conn))
            }
            Phase::Proxy { .. }
            | Phase::Head { .. }
            | Phase::Asking(_)
            | Phase::Connecting(..)
            | Phase::Closing(_) => 0,
        };
        if ticks > 0 && !conn.throttled {
            conn.throttled = true;
            self.counters.throttled.add(1);
            self.schedule(key, Tick(now.tick.0.saturating_add(ticks)));
        }
    }

    /// Reads again from a client that was throttled; what it says now counts as life from now on.
    fn end_throttle(&mut self, now: Now, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.throttled = false;
        let since = std::mem::replace(&mut conn.last_heard, now.tick);
        conn.meter.pass_time(since, now.tick, &allowance(&self.allowances, conn));
        self.update_receiving(key);
    }

    /// Collects the request head and answers it. Frames that came right behind it are dealt with, too.
    fn handle_head(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Head { collected, .. } = &mut conn.phase else { return };
        let scanned = collected.len();
        if scanned == 0 {
            let outcome = http::read_head(bytes, scanned, &self.routes);
            if matches!(outcome, http::Outcome::Incomplete) {
                collected.extend_from_slice(bytes);
            } else {
                self.handle_request(now, key, &outcome, bytes);
            }
            return;
        }
        collected.extend_from_slice(bytes);
        let outcome = http::read_head(collected, scanned, &self.routes);
        if !matches!(outcome, http::Outcome::Incomplete) {
            let mut collected = std::mem::take(collected);
            self.handle_request(now, key, &outcome, &mut collected);
        }
    }

    fn handle_request(
        &mut self,
        now: Now,
        key: ConnKey,
        outcome: &http::Outcome,
        bytes: &mut [u8],
    ) {
        let upgrade = match outcome {
            http::Outcome::Upgrade(upgrade) => upgrade,
            http::Outcome::Refused(refusal) => {
                if *refusal == http::Refusal::ORIGIN {
                    self.counters.origin_refused();
                }
                return self.refuse(now, key, refusal);
            }
            http::Outcome::Incomplete => return,
        };
        match self.check_head(now, key, bytes, upgrade) {
            Ok(HeadToken::None) => self.open(now, key, upgrade, None),
            Ok(HeadToken::Of(identity)) => self.open(now, key, upgrade, Some(identity)),
            Ok(HeadToken::Asked) => {
                self.await_verdict(now, key, Step::Upgrade(upgrade.clone()));
            }
            Err(refusal) => return self.refuse(now, key, &refusal),
        }
        if let Some(rest @ [_, ..]) = bytes.get_mut(upgrade.head_bytes..) {
            self.handle_frames(now, key, rest);
        }
    }

    /// Opens the WebSocket, for whom the request's token named if it brought one.
    fn open(
        &mut self,
        now: Now,
        key: ConnKey,
        upgrade: &http::Upgrade,
        identity: Option<Box<Identity>>,
    ) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.handshakes -= 1;
        if let Phase::Head { since_ms, .. } = conn.phase {
            self.counters.handshake.observe(now.since(since_ms));
        }
        let deadline = match &upgrade.route {
            http::Route::Client(subprotocol) => {
                let codec = match subprotocol {
                    http::Subprotocol::Proto => Codec::Proto,
                    http::Subprotocol::Json => Codec::Json,
                };
                conn.phase = Phase::Connecting(codec, identity);
                now.tick.after(self.config.connect_timeout)
            }
            http::Route::Echo(_) => {
                conn.phase = Phase::Echo;
                now.tick.after(self.config.silence_max(Mode::Background))
            }
        };
        conn.deflate = upgrade.deflate.map(http::DeflateOffer::window_bits);
        http::write_upgrade(conn.outbox.writer(&mut self.pool), upgrade);
        self.counters.upgraded.add(1);
        self.send_later(key);
        self.schedule(key, deadline);
    }

    fn handle_frames(&mut self, now: Now, key: ConnKey, bytes: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        // Taken out while its frames are dealt with, because they may borrow from it.
        let mut decoder = std::mem::take(&mut conn.decoder);
        let framing = ws::Settings { deflate: conn.deflate.is_some(), ..self.framing };
        let mut at = 0;
        let outcome = loop {
            let Some(input @ [_, ..]) = bytes.get_mut(at..) else { break Ok(()) };
            if self.is_asking(key) {
                break self.hold(key, input);
            }
            match decoder.next(input, &framing, &mut self.decoder_pool) {
                Ok((taken, item)) => {
                    at += taken;
                    let Some(item) = item else { continue };
                    if let Some(conn) = self.conns.get_mut(key)
                        && allowance(&self.allowances, conn).limits()
                    {
                        conn.meter.add_message();
                    }
                    if let Err(reason) = self.handle_item(now, key, item) {
                        break Err(reason);
                    }
                }
                Err(error) => break Err(CloseReason::Protocol(error)),
            }
        };
        decoder.settle(&mut self.decoder_pool);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.decoder = decoder;
        }
        if let Err(reason) = outcome {
            self.close(now, key, reason);
        }
    }

    fn handle_item(
        &mut self,
        now: Now,
        key: ConnKey,
        item: ws::Item<'_>,
    ) -> Result<(), CloseReason> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        match item {
            ws::Item::Message { text, payload } => {
                self.handle_data_message(now, key, text, payload)
            }
            ws::Item::Deflated { text, payload } => {
                if matches!(conn.phase, Phase::Closing(_)) {
                    return Ok(());
                }
                self.counters.inflated_messages.add(1);
                // Taken out while the message is dealt with, because that borrows from it.
                let mut inflater = std::mem::take(&mut self.inflater);
                let outcome = inflater
                    .inflate(text, payload, self.framing.message_bytes_max)
                    .map_err(CloseReason::Protocol)
                    .and_then(|payload| self.handle_data_message(now, key, text, payload));
                self.inflater = inflater;
                outcome
            }
            ws::Item::Ping(payload) => {
                if !matches!(conn.phase, Phase::Closing(_)) {
                    ws::write_message(
                        conn.outbox.writer(&mut self.pool),
                        ws::Opcode::Pong,
                        payload,
                    );
                    self.send_later(key);
                }
                Ok(())
            }
            ws::Item::Pong(_) => Ok(()),
            ws::Item::Close(code) => Err(CloseReason::ClosedByPeer(
                code.map_or(conn::close::NO_STATUS_RECEIVED, |(code, _)| code),
            )),
        }
    }

    fn handle_data_message(
        &mut self,
        now: Now,
        key: ConnKey,
        text: bool,
        payload: &[u8],
    ) -> Result<(), CloseReason> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        self.counters.received_messages.add(1);
        match conn.phase {
            Phase::Echo => {
                let opcode = if text { ws::Opcode::Text } else { ws::Opcode::Binary };
                let out = conn.outbox.writer(&mut self.pool);
                let message_at = out.len();
                ws::write_message(out, opcode, payload);
                let saved_bytes = self.deflater.deflate_message(out, message_at, conn.deflate);
                self.counters.deflate_saved_bytes.add(saved_bytes as u64);
                self.counters.sent_messages.add(1);
                self.send_later(key);
                Ok(())
            }
            Phase::Connecting(codec, _) => self.handle_payload(now, key, codec, text, payload),
            Phase::Session(ref session) => {
                let codec = session.codec;
                self.handle_payload(now, key, codec, text, payload)
            }
            Phase::Proxy { .. } | Phase::Head { .. } | Phase::Asking(_) | Phase::Closing(_) => {
                Ok(())
            }
        }
    }

    fn handle_ended(&mut self, key: ConnKey, errno: i32) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.receiving = Receiving::Ended;
        let reason = match &conn.phase {
            // The client has said all it wants; what we owe it may still be on its way.
            Phase::Closing(closing)
                if errno == 0
                    && closing.stage == CloseStage::Flush
                    && (conn.sending == Sending::InFlight || conn.wants_send()) =>
            {
                return;
            }
            Phase::Closing(closing) => closing.reason,
            Phase::Proxy { .. }
            | Phase::Head { .. }
            | Phase::Asking(_)
            | Phase::Echo
            | Phase::Connecting(..)
            | Phase::Session(_) => {
                if errno == 0 {
                    CloseReason::Vanished
                } else {
                    CloseReason::SocketFailed
                }
            }
        };
        self.remove(key, reason);
    }

    fn handle_sent(&mut self, key: ConnKey, buffer: Vec<u8>, result: Result<(), i32>) {
        self.pool.give(buffer);
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.sending = Sending::Idle;
        if result.is_err() {
            let reason = match &conn.phase {
                Phase::Closing(closing) => closing.reason,
                Phase::Proxy { .. }
                | Phase::Head { .. }
                | Phase::Asking(_)
                | Phase::Echo
                | Phase::Connecting(..)
                | Phase::Session(_) => CloseReason::SocketFailed,
            };
            self.remove(key, reason);
            return;
        }
        if conn.wants_send() {
            self.send_later(key);
        } else if matches!(conn.phase, Phase::Closing(_)) {
            self.advance_closing(key);
        }
        self.update_receiving(key);
    }

    fn handle_timer(&mut self, now: Now, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        if conn.throttled {
            self.end_throttle(now, key);
        }
        let Some(conn) = self.conns.get(key) else { return };
        let deadline = match &conn.phase {
            Phase::Proxy { .. } => return self.remove(key, CloseReason::ProxyHeader),
            Phase::Head { .. } if conn.tls.as_ref().is_some_and(|tls| !tls.is_open()) => {
                return self.remove(key, CloseReason::TlsTimeout);
            }
            Phase::Head { .. } => return self.refuse(now, key, &http::Refusal::timed_out()),
            // The auth thread keeps to its time, unless it cannot.
            Phase::Asking(_) => {
                let (key, outcome) = (key, Err(Refused::Unavailable));
                return self.handle_verdict(now, Verdict { key, outcome });
            }
            Phase::Connecting(..) => return self.close(now, key, CloseReason::ConnectMissing),
            Phase::Closing(closing) => return self.remove(key, closing.reason),
            Phase::Session(_) if conn.token_ends <= now.tick => {
                return self.close(now, key, CloseReason::TokenExpired);
            }
            Phase::Session(session) if !session.registered => {
                let text = "no router registered this connection in time";
                self.tell_error(key, Code::Unavailable.into(), text, true);
                return self.close(now, key, CloseReason::RouterUnavailable);
            }
            Phase::Session(Session { leaving: Some(farewell), .. }) => {
                return self.close(now, key, farewell.reason());
            }
            // A message stored only the tick: now is the time to see whether there was one.
            Phase::Session(session) => self.silence_end(conn.last_heard, session),
            Phase::Echo => conn.last_heard.after(self.config.silence_max(Mode::Background)),
        };
        if deadline > now.tick {
            self.schedule_session(key, deadline);
        } else {
            self.close(now, key, CloseReason::PingMissing);
        }
    }

    /// Begins the end of a connection: says why where the protocol has a way to, then waits for the peer.
    fn close(&mut self, now: Now, key: ConnKey, reason: CloseReason) {
        self.log_end(key, reason);
        self.leave(key);
        if matches!(reason, CloseReason::Unauthenticated | CloseReason::BadConnect) {
            self.note_failure(now, key);
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Closing(closing) => {
                // The peer's Close is what was awaited; its broken frames change nothing any more.
                let answered = matches!(reason, CloseReason::ClosedByPeer(_));
                closing.stage = CloseStage::Flush;
                closing.peer_closed |= answered;
            }
            Phase::Proxy { .. } | Phase::Head { .. } => return self.remove(key, reason),
            Phase::Asking(asking) if asking.is_handshake() => return self.remove(key, reason),
            phase
            @ (Phase::Asking(_) | Phase::Echo | Phase::Connecting(..) | Phase::Session(_)) => {
                // A peer whose framing is broken could not be understood when it answers.
                let peer_closed = matches!(reason, CloseReason::ClosedByPeer(_));
                let broken = matches!(reason, CloseReason::Protocol(_));
                let stage =
                    if peer_closed || broken { CloseStage::Flush } else { CloseStage::AwaitPeer };
                *phase = Phase::Closing(Closing { reason, stage, peer_closed });
                let out = conn.outbox.writer(&mut self.pool);
                match reason.code() {
                    Some(conn::close::NO_STATUS_RECEIVED) => ws::write_empty_close(out),
                    Some(code) => ws::write_close(out, code, reason.text()),
                    None => {}
                }
                self.schedule(key, now.tick.after(self.config.close_timeout));
            }
        }
        self.send_later(key);
        self.advance_closing(key);
    }

    /// Answers the request with a refusal instead of an upgrade.
    fn refuse(&mut self, now: Now, key: ConnKey, refusal: &http::Refusal) {
        // Not those whom it is our turn to let in.
        if !matches!(refusal.status, 429 | 503) {
            self.note_failure(now, key);
        }
        self.log_end(key, CloseReason::Refused(refusal.status));
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.counters.refused(refusal.status);
        if conn.phase.is_handshake() {
            self.handshakes -= 1;
        }
        if conn.tls.take_if(|tls| !tls.is_open()).is_some() {
            conn.outbox.writer(&mut self.pool).extend_from_slice(&TURNED_AWAY);
        } else {
            refusal.write(conn.outbox.writer(&mut self.pool));
        }
        conn.phase = Phase::Closing(Closing {
            reason: CloseReason::Refused(refusal.status),
            stage: CloseStage::Flush,
            peer_closed: false,
        });
        self.send_later(key);
        self.schedule(key, now.tick.after(self.config.close_timeout));
    }

    /// Takes the next step of an end, when nothing is left to send.
    fn advance_closing(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Closing(closing) = &mut conn.phase else { return };
        if closing.stage != CloseStage::Flush || self.opening == Some(key) {
            return;
        }
        let (reason, peer_closed) = (closing.reason, closing.peer_closed);
        // RFC 8446 section 6.1: whoever sends no more says so.
        if conn.tls.as_mut().is_some_and(Tls::close) {
            return self.send_later(key);
        }
        if conn.sending == Sending::InFlight || conn.wants_send() {
            return;
        }
        if peer_closed || conn.receiving == Receiving::Ended {
            self.remove(key, reason);
        } else if let Phase::Closing(closing) = &mut conn.phase {
            closing.stage = CloseStage::Linger;
            self.outputs.push_back(Output::ShutdownWrite { socket: conn.socket });
        }
    }

    /// Forgets the connection and closes its socket.
    fn remove(&mut self, key: ConnKey, reason: CloseReason) {
        self.log_end(key, reason);
        self.leave(key);
        if self.conns.get(key).is_none() {
            return;
        }
        self.wheel.cancel(&mut self.conns, key.index());
        if let Some(mut conn) = self.conns.remove(key) {
            let left = conn.outbox.take(&mut self.pool);
            self.pool.give(left);
            if let (Some(tls), Some(shared)) = (conn.tls.take(), &mut self.tls) {
                tls.end(shared);
            }
            let receives = matches!(conn.receiving, Receiving::Armed | Receiving::Stopping);
            let busy = receives || conn.sending == Sending::InFlight;
            self.outputs.push_back(Output::Close { socket: conn.socket, busy });
            if conn.phase.is_handshake() {
                self.handshakes -= 1;
            }
            if !self.refreshing.is_empty() {
                self.refreshing.remove(&key);
            }
            if conn.counted.address {
                self.quotas.leave_address(conn.peer);
            }
        }
        self.counters.closed(reason.label());
    }

    /// Logs that a connection begins to end, and why; not a second time when it is gone.
    fn log_end(&self, key: ConnKey, reason: CloseReason) {
        let Some(conn) = self.conns.get(key) else { return };
        if matches!(conn.phase, Phase::Closing(_)) {
            return;
        }
        tracing::debug!(
            connection = key.to_connection_id(self.index),
            peer = %conn.peer.address(),
            user = conn.session().map(|session| session.user.as_str()),
            reason = reason.label(),
            detail = reason.text(),
            "connection ends"
        );
    }

    /// Takes a session out of the registry and tells the router.
    fn leave(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        let Some(session) = conn.session() else { return };
        let user = session.user;
        if conn.counted.user {
            self.quotas.leave_user(&user);
        }
        self.registry.remove(&self.conns, key);
        self.registry.shrink(&self.conns);
        let connection = key.to_connection_id(self.index);
        let unregister = Unregister { connection, user: &user };
        self.links.say(&user, &EdgeMessage::Unregister(unregister));
    }

    /// Notes that a connection has something to send. Past the outbox's bound the connection ends: its
    /// client does not read.
    fn send_later(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.outbox.bytes() > self.config.outbox_bytes_max {
            self.counters.outbox_overflows.add(1);
            self.remove(key, CloseReason::SlowReader);
        } else if conn.sending == Sending::Idle && conn.wants_send() {
            conn.sending = Sending::Queued;
            self.ready.push_back(key);
        }
    }

    /// Starts or stops receiving, as bounds ask: a client that does not read, whose sends wait for the
    /// router, or whose router has no room for what it says, is not read from.
    fn update_receiving(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        let is_congested =
            conn.session().is_some_and(|session| self.links.is_congested_for(&session.user));
        let Some(conn) = self.conns.get_mut(key) else { return };
        if is_congested && conn.receiving != Receiving::Ended {
            self.held.insert(key);
        }
        let sends = conn.session().map_or(0, |s| s.sends_in_flight);
        let wanted = conn.outbox.bytes() <= OUTBOX_READ_BYTES_MAX
            && !conn.throttled
            && !matches!(conn.phase, Phase::Asking(_))
            && u32::from(sends) < self.config.sends_in_flight_max
            && !is_congested;
        match conn.receiving {
            Receiving::Armed if !wanted => {
                conn.receiving = Receiving::Stopping;
                self.outputs.push_back(Output::StopReceive { key });
            }
            Receiving::Paused if wanted => {
                conn.receiving = Receiving::Armed;
                self.outputs.push_back(Output::Receive { key, socket: conn.socket });
            }
            Receiving::Armed | Receiving::Stopping | Receiving::Paused | Receiving::Ended => {}
        }
    }

    fn schedule(&mut self, key: ConnKey, deadline: Tick) {
        if self.conns.get(key).is_some() {
            self.wheel.schedule(&mut self.conns, key.index(), deadline);
        }
    }

    /// The same for what may be a session, which ends with its token.
    fn schedule_session(&mut self, key: ConnKey, deadline: Tick) {
        let token_ends = self.conns.get(key).map_or(Tick::NEVER, |conn| conn.token_ends);
        self.schedule(key, deadline.min(token_ends));
    }

    /// Writes a frame for a client into its outbox.
    fn tell(&mut self, key: ConnKey, frame: &ServerFrame<'_>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let codec = match &conn.phase {
            Phase::Connecting(codec, _) => *codec,
            Phase::Session(session) => session.codec,
            Phase::Proxy { .. }
            | Phase::Head { .. }
            | Phase::Asking(_)
            | Phase::Echo
            | Phase::Closing(_) => return,
        };
        let out = conn.outbox.writer(&mut self.pool);
        let message_at = out.len();
        client::write(codec, frame, out);
        let saved_bytes = self.deflater.deflate_message(out, message_at, conn.deflate);
        self.counters.deflate_saved_bytes.add(saved_bytes as u64);
        self.counters.sent_messages.add(1);
        self.send_later(key);
    }

    fn tell_error(&mut self, key: ConnKey, code: i32, message: &str, retryable: bool) {
        self.tell(key, &ServerFrame::Error(Error { code, message, retryable }));
    }
}

fn routes(config: &Config) -> http::Routes {
    http::Routes {
        client_path: config.client_path.clone(),
        echo_path: config.echo_path.clone(),
        deflate: config.limit.deflate,
        origins: config.admission.allowed_origins.clone(),
    }
}

fn framing(config: &Config) -> ws::Settings {
    ws::Settings {
        role: ws::Role::Server,
        message_bytes_max: config.message_bytes_max(),
        deflate: false,
    }
}

fn deflater(config: &Config) -> ws::Deflater {
    ws::Deflater::new(config.limit.deflate_level, config.limit.deflate_bytes_min)
}

/// What a connection may do: its class is known with its session.
fn allowance(allowances: &[Allowance], conn: &Connection) -> Allowance {
    let class = conn.session().map_or(0, |session| session.grant.rate_class());
    allowances.get(usize::from(class)).copied().unwrap_or_default()
}
