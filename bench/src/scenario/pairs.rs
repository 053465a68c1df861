//! Pairs of clients that write to each other: A to B and B to A. The traffic of `chat` and `crash`, and the log
//! for the checker.
//!
//! Client 2p and 2p + 1 are a pair. A client sends when the pacing says so and its session may; it connects again by
//! itself, with backoff and jitter, whenever its socket goes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::waits::Waits;
use super::{OPENING_MAX, turn_end};
use crate::checker::{Entry, History, MessageName, Verdict, check};
use crate::client::{
    Ending, Fleet, Handler, Identity, Message, Note, Outgoing, Session, code_name,
};
use crate::clock;
use crate::failure::Failure;
use crate::report::{Latencies, Traffic};

/// Sender, number and time of sending: what a payload begins with.
pub(super) const STAMP_BYTES: usize = 16;
/// Between two ticks of all sessions.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// First and longest pause before a client connects again; it doubles, and each pause is drawn up to it.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(1_000);
/// After everything has arrived: time for what must not arrive a second time.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// How fast messages are sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pacing {
    /// So many messages of a pair on their way; the next is sent when one arrives.
    Closed { in_flight: usize },
    /// So many messages a second, all clients together, whatever happened to those before.
    Rate { per_second: f64 },
}

/// See the module.
pub(super) struct Pairs {
    clients: Vec<PairClient>,
    pacing: Pacing,
    /// What payloads are filled with behind their stamp.
    filling: Vec<u8>,
    history: History,
    weather: Weather,
    sending_since: Option<Instant>,
    issued: u64,
    next_sender: usize,
    /// Clients that may have become free to send.
    eager: Vec<usize>,
    /// When which client connects next.
    connects: BinaryHeap<Reverse<(Instant, usize)>>,
    ticked_at: Instant,
    epoch: Instant,
    random: fastrand::Rng,
    pub(super) live: usize,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    /// `Some` while latencies are taken.
    pub(super) latencies: Option<Latencies>,
    /// `Some` where it is asked how long each user waited.
    pub(super) waits: Option<Waits>,
    pub(super) traffic: Traffic,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

struct PairClient {
    session: Session,
    name: Arc<str>,
    /// Of the messages that this client sent.
    delivered: u64,
    was_live: bool,
    attempts: u32,
    /// The server has said when it wants to see this client again.
    away_for: Option<Duration>,
    /// Reads nothing and says nothing.
    deaf: bool,
}

impl Pairs {
    /// Clients that want to connect from `now` on. `run` makes their names new.
    pub(super) fn new(now: Instant, plan: &PairsPlan) -> Self {
        let clients = 0..plan.pairs * 2;
        let client = |client| {
            let name = format!("bench-{:x}-{client}", plan.run);
            let identity = Identity {
                token: name.clone(),
                device: "bench".to_owned(),
                id_prefix: String::new(),
            };
            PairClient {
                session: Session::new(identity, None),
                name: name.into(),
                delivered: 0,
                was_live: false,
                attempts: 0,
                away_for: None,
                deaf: false,
            }
        };
        Self {
            clients: clients.clone().map(client).collect(),
            pacing: plan.pacing,
            filling: (0..plan.payload_bytes).map(|at| (at * 31 + 7) as u8).collect(),
            history: History::new(plan.messages_max),
            weather: plan.weather,
            sending_since: None,
            issued: 0,
            next_sender: 0,
            eager: Vec::new(),
            connects: clients.map(|client| Reverse((now, client))).collect(),
            ticked_at: now,
            epoch: now,
            random: fastrand::Rng::with_seed(plan.seed),
            live: 0,
            accepted: 0,
            delivered: 0,
            latencies: None,
            waits: None,
            traffic: Traffic::default(),
            errors: 0,
            first_error: None,
        }
    }

    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Every client is live.
    pub(super) fn is_connected(&self) -> bool {
        self.live == self.clients.len()
    }

    /// Begins to send.
    pub(super) fn begin_sending(&mut self, now: Instant) {
        self.sending_since = Some(now);
        self.eager = (0..self.clients.len()).collect();
    }

    /// Sends nothing new; what is on its way goes on.
    pub(super) fn end_sending(&mut self) {
        self.sending_since = None;
    }

    /// The bound on messages was reached.
    pub(super) fn is_full(&self) -> bool {
        !self.history.has_room()
    }

    /// Everything sent has been answered and has arrived, as far as numbers tell.
    pub(super) fn is_settled(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.session.unanswered() == 0 && client.on_the_way() == 0)
    }

    /// One turn: connects, sends what is due, waits for the sockets until `until` at the latest.
    pub(super) fn turn(&mut self, fleet: &mut Fleet, until: Instant) -> Result<(), Failure> {
        let now = clock::now();
        self.connect_due(now, fleet);
        match self.pacing {
            Pacing::Closed { in_flight } => self.send_free(now, in_flight, fleet),
            Pacing::Rate { per_second } => self.send_due(now, per_second, fleet),
        }
        if now.saturating_duration_since(self.ticked_at) >= TICK_INTERVAL {
            self.ticked_at = now;
            self.tick(now, fleet);
        }
        let until = turn_end(now, until).min(self.next_due().unwrap_or(until));
        Ok(fleet.turn(until, self)?)
    }

    /// A client stops: it reads nothing and says nothing, its connection stays.
    pub(super) fn deafen(&mut self, client: usize, fleet: &mut Fleet) {
        self.clients[client].deaf = true;
        fleet.set_deaf(client, true);
    }

    /// It goes on.
    pub(super) fn undeafen(&mut self, client: usize, fleet: &mut Fleet) {
        self.clients[client].deaf = false;
        fleet.set_deaf(client, false);
    }

    /// Goes on until everything has arrived and it has been quiet for a while, or `until`.
    pub(super) fn settle(
        &mut self,
        fleet: &mut Fleet,
        until: Instant,
        mut progress: impl FnMut(Instant, &Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.end_sending();
        let mut quiet_until = None;
        loop {
            let now = clock::now();
            if !(self.is_settled() && self.is_connected()) {
                quiet_until = None;
            } else if now >= *quiet_until.get_or_insert(now + QUIET_TIME) {
                return Ok(());
            }
            if now >= until {
                return Ok(());
            }
            progress(now, self)?;
            self.turn(fleet, until)?;
        }
    }

    /// What the checker says of all that was logged.
    pub(super) fn verdict(&self) -> Verdict {
        check(&self.history, self.clients.len(), |sender| sender ^ 1)
    }

    /// When something is to be done that no socket tells.
    fn next_due(&self) -> Option<Instant> {
        let connect = self.connects.peek().map(|Reverse((at, _))| *at);
        let send = match (self.pacing, self.sending_since) {
            (Pacing::Rate { per_second }, Some(since)) => {
                Some(since + Duration::from_secs_f64((self.issued + 1) as f64 / per_second))
            }
            _ => None,
        };
        connect.into_iter().chain(send).min()
    }

    fn connect_due(&mut self, now: Instant, fleet: &mut Fleet) {
        while let Some(Reverse((at, client))) = self.connects.peek().copied() {
            if at > now || fleet.sockets() - self.live >= OPENING_MAX {
                return;
            }
            self.connects.pop();
            if let Err(error) = fleet.connect(now, client) {
                self.handle_closed(now, client, Ending::Io(error));
            }
        }
    }

    fn send_free(&mut self, now: Instant, in_flight: usize, fleet: &mut Fleet) {
        if self.sending_since.is_none() {
            return;
        }
        for client in std::mem::take(&mut self.eager) {
            // Odd numbers give the first of the pair one more.
            let share = (in_flight + 1 - client % 2) / 2;
            while self.clients[client].on_the_way() < share as u64 && self.may_send(client) {
                self.send(now, client, fleet);
            }
        }
    }

    fn send_due(&mut self, now: Instant, per_second: f64, fleet: &mut Fleet) {
        let Some(since) = self.sending_since else { return };
        let due = (now.saturating_duration_since(since).as_secs_f64() * per_second) as u64;
        while self.issued < due {
            self.issued += 1;
            let clients = self.clients.len();
            let from_here = (0..clients).map(|step| (self.next_sender + step) % clients);
            match from_here.clone().find(|client| self.may_send(*client)) {
                Some(client) => {
                    self.next_sender = (client + 1) % clients;
                    self.send(now, client, fleet);
                }
                None => {
                    // Nobody can: what has become due meanwhile is passed over, not sent in a burst later.
                    self.traffic.skipped += due - self.issued + 1;
                    self.issued = due;
                }
            }
        }
    }

    fn may_send(&self, client: usize) -> bool {
        let state = &self.clients[client];
        !state.deaf && state.session.may_send() && self.history.has_room()
    }

    fn send(&mut self, now: Instant, client: usize, fleet: &mut Fleet) {
        let state = &self.clients[client];
        let payload = self.payload(now, client, state.session.next_number());
        let to = Arc::clone(&self.clients[client ^ 1].name);
        let number = self.clients[client].session.send(now, to, payload, fleet.outgoing(client));
        if let Some(waits) = &mut self.waits {
            waits.handle_sent(now, client, number);
        }
        self.log_submitted(client);
    }

    /// The stamp and the filling.
    fn payload(&self, now: Instant, client: usize, number: u64) -> Vec<u8> {
        let mut payload = self.filling.clone();
        let micros = now.saturating_duration_since(self.epoch).as_micros() as u64;
        let stamp = (client as u128) | u128::from(number as u32) << 32 | u128::from(micros) << 64;
        if let Some(front) = payload.first_chunk_mut::<STAMP_BYTES>() {
            *front = stamp.to_le_bytes();
        }
        payload
    }

    /// Reads a payload back: the message's name and when it was sent. `None` when it is not one of ours, whole.
    fn read_payload(&self, payload: &[u8]) -> Option<(MessageName, Instant)> {
        let (stamp, filling) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let stamp = u128::from_le_bytes(*stamp);
        let message = MessageName { sender: stamp as u32, number: (stamp >> 32) as u32 };
        let sent_at = self.epoch.checked_add(Duration::from_micros((stamp >> 64) as u64))?;
        let known = (message.sender as usize) < self.clients.len() && message.number > 0;
        (known && filling == &self.filling[STAMP_BYTES..]).then_some((message, sent_at))
    }

    fn tick(&mut self, now: Instant, fleet: &mut Fleet) {
        for client in 0..self.clients.len() {
            if self.clients[client].deaf {
                continue;
            }
            let Some(out) = fleet.outgoing(client) else { continue };
            let in_time = self.clients[client].session.handle_tick(now, out);
            self.log_submitted(client);
            if !in_time {
                self.traffic.stalls += 1;
                self.give_up(now, client, fleet, "an answer did not come in time");
            }
        }
    }

    fn give_up(&mut self, now: Instant, client: usize, fleet: &mut Fleet, why: &str) {
        fleet.abandon(client);
        self.handle_closed(now, client, Ending::Io(std::io::Error::other(why.to_owned())));
    }

    fn log_submitted(&mut self, client: usize) {
        for number in self.clients[client].session.take_submitted() {
            let message = MessageName { sender: client as u32, number: number as u32 };
            self.history.record(Entry::Sent(message));
        }
    }

    fn handle_note(&mut self, now: Instant, client: usize, note: &Note<'_>, out: &mut Outgoing) {
        let recipient = client as u32;
        let name = |number: u64| MessageName { sender: recipient, number: number as u32 };
        match note {
            Note::Welcomed { cursor, .. } => {
                self.history.record(Entry::Resumed { recipient, cursor: *cursor });
                self.live += 1;
                let state = &mut self.clients[client];
                self.traffic.reconnects += u64::from(state.was_live);
                state.was_live = true;
                state.attempts = 0;
                self.eager.push(client);
            }
            Note::Accepted { number, message_id } => {
                let message = name(*number);
                self.history.record(Entry::Accepted { message, message_id: *message_id });
                self.accepted += 1;
                self.eager.push(client);
                if let Some(waits) = &mut self.waits {
                    waits.handle_accepted(now, client, *number);
                }
            }
            Note::Refused { number, .. } => {
                self.history.record(Entry::Refused(name(*number)));
                self.traffic.refused_sends += 1;
            }
            Note::Rejected { number, error } => {
                self.history.record(Entry::Refused(name(*number)));
                self.fail(client, format_args!("send refused: {}", code_name(error)));
            }
            Note::Delivered(deliver) => self.handle_delivered(now, client, deliver),
            Note::Repeated { .. } => self.traffic.repeated_deliveries += 1,
            Note::Hole { .. } => self.traffic.holes_seen += 1,
            Note::Gap(gap) => self.history.record(Entry::Gap {
                recipient,
                first: gap.first_sequence,
                last: gap.last_sequence,
            }),
            Note::Receipt(_) => self.traffic.receipts += 1,
            // It answers what was sent, and closes.
            Note::GoAway(away) => {
                let after = Duration::from_millis(away.reconnect_after_ms.into());
                self.clients[client].away_for = Some(after);
                self.traffic.sent_away += 1;
                if self.weather == Weather::Calm {
                    self.fail(client, "sent away, though nobody was told to leave");
                }
            }
            Note::Failed(error) => {
                if self.weather != Weather::Storm || !error.retryable {
                    self.fail(client, format_args!("{}: {}", code_name(error), error.message));
                }
                out.push_close(1000);
            }
            Note::Nothing => {}
        }
    }

    fn handle_delivered(
        &mut self,
        now: Instant,
        client: usize,
        deliver: &hawser_proto::view::client::Deliver<'_>,
    ) {
        let recipient = client as u32;
        let sequence = deliver.sequence;
        let read = self.read_payload(deliver.payload);
        let Some((message, sent_at)) = read
            .filter(|(message, _)| deliver.from == &*self.clients[message.sender as usize].name)
        else {
            return self.history.record(Entry::Foreign { recipient, sequence });
        };
        let message_id = deliver.message_id;
        self.history.record(Entry::Delivered { message, recipient, sequence, message_id });
        self.delivered += 1;
        self.clients[message.sender as usize].delivered += 1;
        self.eager.push(message.sender as usize);
        if let Some(latencies) = &mut self.latencies {
            latencies.record(now.saturating_duration_since(sent_at));
        }
        if let Some(waits) = &mut self.waits {
            waits.handle_delivered(now, client, sent_at);
        }
    }

    fn fail(&mut self, client: usize, what: impl std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("client {client}: {what}"));
    }
}

impl PairClient {
    /// Messages of this client that have not arrived.
    fn on_the_way(&self) -> u64 {
        (self.session.next_number() - 1).saturating_sub(self.delivered)
    }
}

impl Handler for Pairs {
    fn handle_open(&mut self, now: Instant, client: usize, out: &mut Outgoing) {
        self.clients[client].session.handle_open(now, out);
    }

    fn handle_message(
        &mut self,
        now: Instant,
        client: usize,
        message: Message<'_>,
        out: &mut Outgoing,
    ) {
        match self.clients[client].session.handle_message(now, message.payload, out) {
            Ok(note) => self.handle_note(now, client, &note, out),
            Err(error) => {
                self.fail(client, format_args!("not a ServerFrame: {error}"));
                out.push_close(1002);
            }
        }
        self.log_submitted(client);
    }

    fn handle_drained(&mut self, now: Instant, client: usize, out: &mut Outgoing) {
        self.clients[client].session.handle_drained(now, out);
        self.log_submitted(client);
    }

    fn handle_closed(&mut self, now: Instant, client: usize, ending: Ending) {
        if !self.weather.explains(&ending) {
            self.fail(client, ending);
        }
        let state = &mut self.clients[client];
        self.live -= usize::from(state.session.is_live());
        state.session.handle_closed();
        let longest = RECONNECT_PAUSE_MIN * 2_u32.saturating_pow(state.attempts.min(16));
        let longest = longest.min(RECONNECT_PAUSE_MAX);
        state.attempts += 1;
        let pause = longest.mul_f64(0.5 + 0.5 * self.random.f64());
        let pause = state.away_for.take().unwrap_or(pause);
        self.connects.push(Reverse((now + pause, client)));
    }
}

/// What happens to the servers meanwhile, and so why a connection may end without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Nothing: a broken connection is an error.
    Calm,
    /// They are told to leave, one after the other, and started again.
    Deploys,
    /// They are killed, or end connections as they like.
    Storm,
}

impl Weather {
    fn explains(self, ending: &Ending) -> bool {
        match self {
            Self::Calm => matches!(ending, Ending::Ours),
            Self::Deploys => {
                matches!(ending, Ending::Ours | Ending::Closed { code: 1001 | 1012, .. })
            }
            Self::Storm => true,
        }
    }
}

/// What a [`Pairs`] is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairsPlan {
    pub pairs: usize,
    pub payload_bytes: usize,
    pub messages_max: usize,
    pub pacing: Pacing,
    pub weather: Weather,
    /// For jitter.
    pub seed: u64,
    /// Makes the user names of this run its own.
    pub run: u64,
}
