//! The link to one router: hello, then what the shards say, and back.
//!
//! ```text
//!   Down(retry at) ──► Connecting ──► Greeting (Hello is out) ──► Up
//!        ▲                 │                │                      │
//!        └─────────────────┴────────────────┴──────────────────────┘  closed, silent, refused, bad bytes
//! ```
//!
//! Free of I/O: the driver of [`mesh::UPLINK_SHARD`](crate::mesh::UPLINK_SHARD) connects, moves the bytes and
//! tells the time. What a link loses by breaking is told again by the shards (snapshot, unanswered sends),
//! so nothing is kept here. What the links of an edge share is in [`crate::uplinks`].

mod cluster;
mod error;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hawser_proto::framing;
use hawser_proto::view::link::{self, EdgeMessage, Heartbeat, Hello, HelloAck, RouterMessage};

pub use self::cluster::Cluster;
use self::cluster::{fitting, read_claims};
pub use self::error::LinkError;
use crate::conn::slab::shard_of;
use crate::mesh::{Batch, Full, LinkGeneration, Mesh, Parcel, UPLINK_SHARD};
use crate::routes::{Claim, EVERYBODY, RouterIndex};
use crate::timer::{Now, Tick};

/// Link protocol that this release speaks.
pub const PROTOCOL: u32 = 1;
/// A connection attempt and the hello together may take this long.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Frames that wait to be sent; from then on shards keep what they have for this router, and stop reading from whom they
/// have it. What lies in the lanes at that moment, 64 batches a shard, is taken all the same.
pub const OUT_FRAMES_MAX: usize = 64;
/// At this many shards may go on.
const OUT_FRAMES_LOW: usize = OUT_FRAMES_MAX / 2;
/// Small frames are joined until a send has this many bytes.
const JOINED_BYTES: usize = 64 * 1024;

/// How a router answers a Hello that speaks TLS: an alert (RFC 8446 section 5.1). As the length of a frame it would be too much.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// Who this edge is (link.proto, `Hello`).
#[derive(Debug, Clone)]
pub struct EdgeIdentity {
    /// Stable name.
    pub edge_id: String,
    /// Drawn at every start.
    pub epoch: u64,
    /// Where it stands.
    pub region: String,
}

/// Where the link is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No connection; the next attempt is made at this tick.
    Down(Tick),
    /// The driver connects.
    Connecting,
    /// Hello is out, HelloAck is awaited.
    Greeting,
    /// The shards talk to the router.
    Up,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum UplinkOutput {
    /// Connect, then say [`Uplink::handle_connected`].
    Connect,
    /// Send these bytes, then say [`Uplink::handle_sent`]. One at a time.
    Send(Vec<u8>),
    /// Close the connection, or give the attempt up. No answer is expected.
    Close,
}

/// What is to be handed to a shard before any message; the latest of each counts.
#[derive(Debug, Default)]
struct Owed {
    /// LinkUp or LinkDown.
    link: Option<Parcel>,
    claims: Option<Arc<[Claim]>>,
}

/// See the module.
pub struct Uplink {
    router: RouterIndex,
    identity: EdgeIdentity,
    /// Partitions of the cluster, as the router said when the link came up.
    partitions: u16,
    cluster: Cluster,
    state: LinkState,
    generation: LinkGeneration,
    /// Attempts since the link was last up.
    attempts: u32,
    rng: fastrand::Rng,
    lease: Duration,
    last_heard: Tick,
    last_said: Tick,
    out: VecDeque<Vec<u8>>,
    /// Since when a send is on its way.
    sending: Option<Tick>,
    /// Shards were told to keep what they have.
    is_full: bool,
    connect: bool,
    close: bool,
    /// Bytes of a frame whose rest has not arrived, or that waits for room in a lane.
    input: Vec<u8>,
    /// How much of `input` is dealt with.
    taken: usize,
    /// What the current frame brought for each shard.
    parcels: Vec<Vec<u8>>,
    /// By shard.
    owed: Vec<Owed>,
    error: Option<LinkError>,
    /// Partitions that the router says it owns, when nobody has asked since it said so.
    owned: Option<usize>,
    counters: UplinkCounters,
}

/// What has happened on the link, for the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct UplinkCounters {
    /// Times that the link came up.
    pub ups: u64,
    /// Messages that could not be read and were passed over.
    pub bad_messages: u64,
}

impl Uplink {
    /// A link that is down and tries at once. `seed` spreads the attempts of a fleet.
    #[must_use]
    pub fn new(router: RouterIndex, identity: EdgeIdentity, shards: u16, seed: u64) -> Self {
        Self {
            router,
            identity,
            partitions: 0,
            cluster: Cluster::default(),
            state: LinkState::Down(Tick(0)),
            generation: LinkGeneration(0),
            attempts: 0,
            rng: fastrand::Rng::with_seed(seed),
            lease: Duration::from_secs(15),
            last_heard: Tick(0),
            last_said: Tick(0),
            out: VecDeque::with_capacity(OUT_FRAMES_MAX),
            sending: None,
            is_full: false,
            connect: false,
            close: false,
            input: Vec::new(),
            taken: 0,
            parcels: (0..shards).map(|_| Vec::new()).collect(),
            owed: (0..shards).map(|_| Owed::default()).collect(),
            error: None,
            owned: None,
            counters: UplinkCounters::default(),
        }
    }

    /// Where the link is.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// How many partitions there are, as the router says while the link is up.
    #[must_use]
    pub fn partitions(&self) -> Option<u16> {
        (self.state == LinkState::Up).then_some(self.partitions)
    }

    /// What the router has to agree with when it answers the hello.
    pub fn set_cluster(&mut self, cluster: Cluster) {
        self.cluster = cluster;
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> UplinkCounters {
        self.counters
    }

    /// Why the link went down, once.
    pub fn take_error(&mut self) -> Option<LinkError> {
        self.error.take()
    }

    /// How many partitions the router owns, once each time that it says so.
    pub fn take_owned(&mut self) -> Option<usize> {
        self.owned.take()
    }

    /// The attempt failed, or the link did, for another reason than [`Self::handle_closed`] tells.
    pub fn handle_failed(&mut self, now: Now, error: LinkError) {
        self.go_down(now, error);
    }

    /// The driver is connected, also by TLS where the link speaks it, or could not.
    pub fn handle_connected(&mut self, now: Now, result: Result<(), i32>) {
        if self.state != LinkState::Connecting {
            return;
        }
        if let Err(errno) = result {
            self.go_down(now, LinkError::Socket(errno));
            return;
        }
        self.state = LinkState::Greeting;
        self.last_said = now.tick;
        let mut hello = Vec::with_capacity(256);
        let mark = framing::begin_frame(&mut hello);
        EdgeMessage::Hello(Hello {
            edge_id: &self.identity.edge_id,
            epoch: self.identity.epoch,
            region: &self.identity.region,
            version: env!("CARGO_PKG_VERSION"),
            protocol: PROTOCOL,
            shards: self.owed.len() as u32,
        })
        .write(&mut hello);
        framing::finish_frame(&mut hello, mark);
        self.out.push_back(hello);
    }

    /// Bytes from the router. Not to be called while [`Self::wants_input`] says no.
    pub fn handle_received(&mut self, now: Now, mesh: &Mesh, bytes: &[u8]) {
        if !matches!(self.state, LinkState::Greeting | LinkState::Up) {
            return;
        }
        self.last_heard = now.tick;
        self.input.extend_from_slice(bytes);
        self.read_frames(now, mesh);
    }

    /// Whether the router's bytes can be taken: no lane is full.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.parcels.iter().all(Vec::is_empty)
    }

    /// The bytes of the last [`UplinkOutput::Send`] are out, or the stream failed; the buffer comes back.
    pub fn handle_sent(&mut self, now: Now, mesh: &Mesh, buffer: Vec<u8>, result: Result<(), i32>) {
        mesh.give_buffer(UPLINK_SHARD, buffer);
        self.sending = None;
        if let Err(errno) = result {
            self.go_down(now, LinkError::Socket(errno));
        }
    }

    /// The stream ended; `errno` is 0 when the router closed it.
    pub fn handle_closed(&mut self, now: Now, errno: i32) {
        let error = if errno == 0 { LinkError::Closed } else { LinkError::Socket(errno) };
        self.go_down(now, error);
    }

    /// Moves what waits into the lanes; looks at deadlines. Call it once a turn.
    pub fn exchange(&mut self, now: Now, mesh: &Mesh) {
        self.handle_timeout(now);
        self.hand_over(mesh);
        if self.parcels.iter().all(Vec::is_empty) && self.taken < self.input.len() {
            self.read_frames(now, mesh);
        }
        if self.is_full && self.out.len() <= OUT_FRAMES_LOW {
            self.is_full = false;
            mesh.set_router_full(self.router, false);
        }
    }

    /// Takes what a shard has for the router. Past [`OUT_FRAMES_MAX`] shards are told to keep what comes next.
    pub fn take_batch(&mut self, now: Now, mesh: &Mesh, shard: u16, batch: Batch) {
        if self.state != LinkState::Up || batch.link != self.generation {
            return mesh.give_buffer(shard, batch.frame);
        }
        self.out.push_back(batch.frame);
        self.last_said = now.tick;
        if self.out.len() >= OUT_FRAMES_MAX && !self.is_full {
            self.is_full = true;
            mesh.set_router_full(self.router, true);
        }
    }

    /// What the driver has to do next.
    pub fn poll_output(&mut self, now: Now) -> Option<UplinkOutput> {
        if std::mem::take(&mut self.close) {
            return Some(UplinkOutput::Close);
        }
        if std::mem::take(&mut self.connect) {
            return Some(UplinkOutput::Connect);
        }
        if self.sending.is_some() {
            return None;
        }
        let mut bytes = self.out.pop_front()?;
        while bytes.len() < JOINED_BYTES
            && let Some(next) = self.out.pop_front()
        {
            bytes.extend_from_slice(&next);
        }
        self.sending = Some(now.tick);
        Some(UplinkOutput::Send(bytes))
    }

    /// When [`Self::exchange`] has to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        match self.state {
            LinkState::Down(retry) => Some(retry),
            LinkState::Connecting | LinkState::Greeting => {
                Some(self.last_said.after(GREETING_TIMEOUT))
            }
            LinkState::Up => {
                let since = self.sending.map_or(self.last_heard, |sent| sent.min(self.last_heard));
                Some(self.last_said.after(self.lease / 3).min(since.after(self.lease)))
            }
        }
    }

    fn handle_timeout(&mut self, now: Now) {
        match self.state {
            LinkState::Down(retry) if retry <= now.tick && self.sending.is_none() => {
                self.state = LinkState::Connecting;
                self.connect = true;
                self.last_said = now.tick;
                self.attempts += 1;
            }
            LinkState::Connecting | LinkState::Greeting
                if self.last_said.after(GREETING_TIMEOUT) <= now.tick =>
            {
                self.go_down(now, LinkError::Silent);
            }
            LinkState::Up if self.last_heard.after(self.lease) <= now.tick => {
                self.go_down(now, LinkError::Silent);
            }
            LinkState::Up
                if self.sending.is_some_and(|since| since.after(self.lease) <= now.tick) =>
            {
                self.go_down(now, LinkError::Stuck);
            }
            LinkState::Up
                if self.last_said.after(self.lease / 3) <= now.tick && self.out.is_empty() =>
            {
                let mut beat = Vec::with_capacity(32);
                let mark = framing::begin_frame(&mut beat);
                EdgeMessage::Heartbeat(Heartbeat { time_ms: now.unix_ms }).write(&mut beat);
                framing::finish_frame(&mut beat, mark);
                self.out.push_back(beat);
                self.last_said = now.tick;
            }
            LinkState::Down(_) | LinkState::Connecting | LinkState::Greeting | LinkState::Up => {}
        }
    }

    fn go_down(&mut self, now: Now, error: LinkError) {
        if matches!(self.state, LinkState::Down(_)) {
            return;
        }
        if self.state == LinkState::Up {
            self.attempts = 0;
            let router = self.router;
            for owed in &mut self.owed {
                *owed = Owed { link: Some(Parcel::LinkDown { router }), claims: None };
            }
        }
        // Full jitter above half the step: a fleet whose router restarts does not come back in one instant.
        let step = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(5)).min(BACKOFF_MAX);
        let delay = step / 2 + step.mul_f64(self.rng.f64() / 2.0);
        self.state = LinkState::Down(now.tick.after(delay));
        self.close = true;
        self.connect = false;
        self.out.clear();
        self.input = Vec::new();
        self.taken = 0;
        self.parcels.iter_mut().for_each(Vec::clear);
        self.error = Some(error);
    }

    fn read_frames(&mut self, now: Now, mesh: &Mesh) {
        while self.wants_input() {
            let input = std::mem::take(&mut self.input);
            let outcome = self.read_frame(now, mesh, input.get(self.taken..).unwrap_or_default());
            self.input = input;
            match outcome {
                Ok(0) => break,
                Ok(taken) => self.taken += taken,
                Err(error) => {
                    self.go_down(now, error);
                    return;
                }
            }
            self.hand_over(mesh);
        }
        if self.taken == self.input.len() {
            self.input.clear();
            self.taken = 0;
        } else if self.taken > self.input.len() / 2 {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Reads one frame; returns the bytes it took, 0 when it is not all there.
    fn read_frame(&mut self, now: Now, mesh: &Mesh, input: &[u8]) -> Result<usize, LinkError> {
        if self.state == LinkState::Greeting && input.starts_with(&TLS_ALERT) {
            let wanted = "the router speaks TLS: give --router-tls-ca";
            return Err(LinkError::Tls(wanted.to_owned()));
        }
        let frame = framing::first_frame(input).map_err(|e| LinkError::BadFrame(e.to_string()))?;
        let Some(body) = frame else { return Ok(0) };
        let mut batch = link::Batch::new(body);
        while let Some(message) = batch.next_message()? {
            match link::connection_of(message) {
                Ok(Some(connection)) if self.state == LinkState::Up => {
                    let shard = shard_of(connection);
                    if let Some(parcel) = self.parcels.get_mut(usize::from(shard)) {
                        if parcel.capacity() == 0 {
                            *parcel = mesh.buffer(shard);
                        }
                        link::write_encoded(parcel, message);
                    } else {
                        self.counters.bad_messages += 1;
                    }
                }
                Ok(None) => self.handle_message(now, message)?,
                Ok(Some(_)) | Err(_) => self.counters.bad_messages += 1,
            }
        }
        Ok(framing::LENGTH_BYTES + body.len())
    }

    /// A message for the edge itself.
    fn handle_message(&mut self, now: Now, message: &[u8]) -> Result<(), LinkError> {
        // Heartbeats have done their work by arriving; what a later release says is passed over.
        match (RouterMessage::read(message)?, self.state) {
            (RouterMessage::HelloAck(ack), LinkState::Greeting) => self.go_up(now, ack),
            // One that owns every user has said so.
            (RouterMessage::Ownership(owned), LinkState::Up) if self.partitions > 0 => {
                self.take_ownership(owned.0)
            }
            _ => Ok(()),
        }
    }

    fn go_up(&mut self, now: Now, ack: HelloAck<'_>) -> Result<(), LinkError> {
        if !ack.refused.is_empty() {
            return Err(LinkError::Refused(ack.refused.to_owned()));
        }
        let partitions = fitting(ack.partitions, self.cluster)?;
        self.state = LinkState::Up;
        self.partitions = partitions;
        self.generation.0 += 1;
        self.counters.ups += 1;
        self.attempts = 0;
        self.last_heard = now.tick;
        self.lease = Duration::from_millis(u64::from(ack.lease_ms)).max(Duration::from_secs(1));
        let everybody = (partitions == 0).then(|| Arc::from(EVERYBODY));
        for owed in &mut self.owed {
            let link = Parcel::LinkUp {
                router: self.router,
                link: self.generation,
                window_messages: ack.window_messages,
                partitions,
            };
            *owed = Owed { link: Some(link), claims: everybody.clone() };
        }
        Ok(())
    }

    fn take_ownership(&mut self, encoded: &[u8]) -> Result<(), LinkError> {
        let claims = read_claims(encoded, self.partitions)?;
        self.owned = Some(claims.len());
        for owed in &mut self.owed {
            owed.claims = Some(Arc::clone(&claims));
        }
        Ok(())
    }

    fn hand_over(&mut self, mesh: &Mesh) {
        for shard in 0..self.owed.len() as u16 {
            let at = usize::from(shard);
            if self.hand_owed(mesh, shard)
                && !self.parcels[at].is_empty()
                && !mesh.down_is_full(shard)
            {
                let parcel = std::mem::take(&mut self.parcels[at]);
                let parcel = Parcel::Messages(self.router, parcel);
                if let Err(Full(Parcel::Messages(_, parcel))) = mesh.try_send_down(shard, parcel) {
                    self.parcels[at] = parcel;
                }
            }
        }
    }

    /// Hands over what has to come before messages; says whether that is done.
    fn hand_owed(&mut self, mesh: &Mesh, shard: u16) -> bool {
        let Some(owed) = self.owed.get_mut(usize::from(shard)) else { return false };
        if let Some(parcel) = owed.link.take()
            && let Err(Full(parcel)) = mesh.try_send_down(shard, parcel)
        {
            owed.link = Some(parcel);
            return false;
        }
        if let Some(claims) = owed.claims.take() {
            let parcel = Parcel::Owned { router: self.router, link: self.generation, claims };
            if let Err(Full(Parcel::Owned { claims, .. })) = mesh.try_send_down(shard, parcel) {
                owed.claims = Some(claims);
                return false;
            }
        }
        true
    }
}
