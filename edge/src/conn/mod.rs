//! One connection as a state machine.
//!
//! ```text
//!   accepted ──► (Proxy) ──► Head ──► Connecting ──► Session (registered: no ──► yes)
//!                 │  └──► Echo                │
//!                 └───────────┴───────────────┴──► Closing ──► gone
//! ```
//!
//! This module owns what a connection is; what happens to it is decided in [`crate::shard`].

pub mod close;
pub mod outbox;
pub mod slab;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;

use crate::auth::{DeviceId, Grant, Identity, UserId};
use crate::http::Upgrade;
use crate::limits;
use crate::meter::Meter;
use crate::timer::{Now, Stamp, Tick, TimerEntry};
use crate::tls::Tls;
use crate::ws::{Decoder, WindowBits};

pub use close::CloseReason;
pub use outbox::{BufferPool, Outbox};
pub use slab::{ConnKey, ConnSlab};

/// How a client wants its frames: the WebSocket subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// `hawser.v1.proto`: protobuf in binary messages.
    Proto,
    /// `hawser.v1.json`: protobuf's JSON mapping in text messages.
    Json,
}

/// How attentive a client is (client.proto, `Mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// On screen.
    #[default]
    Active,
    /// Open, not looked at.
    Idle,
    /// Asleep.
    Background,
}

impl Mode {
    /// From the number in client.proto; what is not known counts as active.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        match number {
            2 => Self::Idle,
            3 => Self::Background,
            _ => Self::Active,
        }
    }
}

/// Highest sequence that a client has acknowledged or resumed from, or that it has not said any yet: eight bytes for
/// what an `Option<u64>` takes sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acked(Option<NonZeroU64>);

impl Acked {
    /// What the client said. The last sequence of all, which no inbox reaches, counts as the one before it.
    #[must_use]
    pub fn new(sequence: Option<u64>) -> Self {
        Self(sequence.map(|sequence| NonZeroU64::MIN.saturating_add(sequence)))
    }

    /// The sequence, if there is one.
    #[must_use]
    pub fn sequence(self) -> Option<u64> {
        self.0.map(|above| above.get() - 1)
    }

    /// Moves forward to `sequence`, never back.
    pub fn advance(&mut self, sequence: u64) {
        self.0 = self.0.max(Self::new(Some(sequence)).0);
    }
}

/// Where a client connects from, in 18 bytes: IPv4 as an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    ip: [u8; 16],
    port: [u8; 2],
}

impl Peer {
    /// The address, as an ordinary one.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        let ip = Ipv6Addr::from(self.ip);
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        SocketAddr::new(ip, u16::from_be_bytes(self.port))
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: address.port().to_be_bytes() }
    }
}

impl Default for Peer {
    /// Not known: the unspecified address.
    fn default() -> Self {
        Self { ip: [0; 16], port: [0; 2] }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address().fmt(f)
    }
}

/// What a connection holds while its client is known by name.
#[derive(Debug)]
pub struct Session {
    /// User id, from the token.
    pub user: UserId,
    /// Device id, from the client.
    pub device: DeviceId,
    /// How far the client has acknowledged.
    pub acked: Acked,
    /// When Connect came.
    pub connected_at: Stamp,
    /// Which client program: an index into the shard's table.
    pub client: u16,
    /// Sends that wait for their answer from the router.
    pub sends_in_flight: u16,
    /// How the client wants its frames.
    pub codec: Codec,
    /// How attentive the client is.
    pub mode: Mode,
    /// Whether the router has answered, and the client has its Welcome.
    pub registered: bool,
    /// What the token lets the client do.
    pub grant: Grant,
    /// Has been told to go: ends when its last send is answered.
    pub leaving: Option<Farewell>,
}

/// Why a session was told to go while sends of it were unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The edge is being drained.
    Drain,
    /// The edge lets a share of its clients go.
    Rebalance,
}

impl Farewell {
    /// What the connection is closed for.
    #[must_use]
    pub fn reason(self) -> CloseReason {
        match self {
            Self::Drain => CloseReason::Drained,
            Self::Rebalance => CloseReason::Rebalanced,
        }
    }
}

/// What waits until it is known whose the token is.
#[derive(Debug)]
pub struct Asking {
    /// What goes on then.
    pub step: Step,
    /// What came in the meantime, still framed: dealt with afterwards.
    pub held: Vec<u8>,
}

/// What a token was brought for.
#[derive(Debug)]
pub enum Step {
    /// The request, which is answered then.
    Upgrade(Upgrade),
    /// Connect, and whom the token of the request named.
    Connect(Opening, Option<UserId>),
}

/// What a Connect asks for besides its token.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// Which of the user's devices.
    pub device: DeviceId,
    /// How far it has acknowledged.
    pub acked: Acked,
    /// Which client program: an index into the shard's table.
    pub client: u16,
    /// How the client wants its frames.
    pub codec: Codec,
    /// How attentive the client is.
    pub mode: Mode,
}

impl Asking {
    /// Whether the request has no answer yet.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        matches!(self.step, Step::Upgrade(_))
    }
}

/// Where a connection is in its life; the data lives in the state that has it.
#[derive(Debug)]
pub enum Phase {
    /// The balancer's PROXY header is awaited; holds what has arrived of it when it came in pieces.
    Proxy {
        /// Bytes so far.
        collected: Vec<u8>,
        /// When the socket was accepted, in milliseconds since the Unix epoch.
        since_ms: i64,
    },
    /// The request head is awaited; holds what has arrived of it when it came in pieces.
    Head {
        /// Bytes so far; empty, without memory of its own, when nothing has come yet.
        collected: Vec<u8>,
        /// When the socket was accepted, in milliseconds since the Unix epoch.
        since_ms: i64,
    },
    /// Every data message is given back (`--echo-path`).
    Echo,
    /// The token of the request, or of Connect, is being asked about.
    Asking(Box<Asking>),
    /// The WebSocket is open, Connect is awaited; with whom the request's token named, when it brought one.
    Connecting(Codec, Option<Box<Identity>>),
    /// Connect came and its token was good.
    Session(Session),
    /// It ends.
    Closing(Closing),
}

impl Phase {
    /// Whether the connection is between accept and upgrade.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        match self {
            Self::Proxy { .. } | Self::Head { .. } => true,
            Self::Asking(asking) => asking.is_handshake(),
            Self::Echo | Self::Connecting(..) | Self::Session(_) | Self::Closing(_) => false,
        }
    }
}

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Why.
    pub reason: CloseReason,
    /// What is awaited.
    pub stage: CloseStage,
    /// The peer's Close frame has come.
    pub peer_closed: bool,
}

/// The steps of an end. The deadline of all of them is `close_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseStage {
    /// Our Close frame is out or on its way, and the peer's is awaited (RFC 6455 section 7.1.2).
    AwaitPeer,
    /// What waits in the outbox is sent, then our side of the stream is shut. Input is thrown away.
    Flush,
    /// Our side is shut; the peer's end is awaited, so that a reset does not overtake our last bytes.
    Linger,
}

/// Whether the driver receives for this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    /// A multishot receive is in the ring.
    Armed,
    /// It was cancelled, its last completion is awaited.
    Stopping,
    /// Nothing is in the ring: the client is not being read.
    Paused,
    /// The client's side of the stream is at its end.
    Ended,
}

/// Whether the driver sends for this connection. One send at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Nothing is on its way to the driver.
    Idle,
    /// Stands in the shard's list of connections with something to send.
    Queued,
    /// A send is in the ring.
    InFlight,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Where it is in its life.
    pub phase: Phase,
    /// RFC 6455 framing of what arrives; owns memory only while a message is cut.
    pub decoder: Decoder,
    /// What waits to be sent, in plain.
    pub outbox: Outbox,
    /// What lies between it and the socket.
    pub tls: Option<Tls>,
    /// Its place in the shard's wheel.
    pub timer: TimerEntry,
    /// Where it comes from.
    pub peer: Peer,
    /// Tells it from those that had its slot before; the slab's.
    generation: u32,
    /// Its direct descriptor in the shard's ring.
    pub socket: u32,
    /// When the client last gave a sign of life.
    pub last_heard: Tick,
    /// When the token of its session is no longer good, what clocks may differ by included.
    pub token_ends: Tick,
    /// Whether the driver receives for it.
    pub receiving: Receiving,
    /// Whether the driver sends for it.
    pub sending: Sending,
    /// Above its rate: it is not read from until its timer says so.
    pub throttled: bool,
    /// Where it has been counted ([`crate::quotas`]).
    pub counted: Counted,
    /// permessage-deflate was agreed on, and what window our messages may refer back into.
    pub deflate: Option<WindowBits>,
    /// What it owes for what it said lately.
    pub meter: Meter,
}

/// The quotas that a connection takes part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Of its address.
    pub address: bool,
    /// Of its user.
    pub user: bool,
}

const _: () = assert!(size_of::<Connection>() <= limits::CONNECTION_BYTES_MAX);

impl Connection {
    /// A socket that was just accepted.
    #[must_use]
    pub fn accepted(socket: u32, peer: Peer, now: Now) -> Self {
        Self {
            phase: Phase::Head { collected: Vec::new(), since_ms: now.unix_ms },
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            tls: None,
            timer: TimerEntry::default(),
            peer,
            generation: 0,
            socket,
            last_heard: now.tick,
            token_ends: Tick::NEVER,
            receiving: Receiving::Armed,
            sending: Sending::Idle,
            throttled: false,
            counted: Counted::default(),
            deflate: None,
            meter: Meter::default(),
        }
    }

    /// Whether something waits for the driver, of the client protocol or of TLS itself.
    #[must_use]
    pub fn wants_send(&self) -> bool {
        !self.outbox.is_empty() || self.tls.as_ref().is_some_and(Tls::wants_send)
    }

    /// The session, when there is one.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        if let Phase::Session(session) = &self.phase { Some(session) } else { None }
    }

    /// The session, when there is one.
    pub fn session_mut(&mut self) -> Option<&mut Session> {
        if let Phase::Session(session) = &mut self.phase { Some(session) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_acknowledged_only_moves_forward() {
        let mut acked = Acked::default();
        assert_eq!(acked.sequence(), None);
        for (said, kept) in [(0, 0), (7, 7), (3, 7), (u64::MAX, u64::MAX - 1)] {
            acked.advance(said);
            assert_eq!(acked.sequence(), Some(kept));
        }
        assert_eq!(Acked::new(None), Acked::default());
    }

    #[test]
    fn addresses_survive_their_way_into_18_bytes() {
        assert_eq!(size_of::<Peer>(), 18);
        for text in ["127.0.0.1:80", "[2001:db8::1]:65535", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Peer::from(address).address(), address);
            assert_eq!(format!("{:?}", Peer::from(address)), text);
        }
    }
}
