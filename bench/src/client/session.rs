//! One client's side of the client protocol (`hawser.v1.proto`), without I/O.
//!
//! ```text
//! Away --handle_open--> Connecting --Welcome--> Live --handle_closed--> Away
//! ```
//!
//! The session outlives its sockets: sends without an answer are sent again on the next one with the same
//! client message id, and deliveries go on after the cursor. It lets a message through to the application only
//! when its sequence is the next one, so the application sees each once and in order.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_proto::client::Mode;
use hawser_proto::client::error::Code;
use hawser_proto::view::client::{
    Ack, ClientFrame, Connect, Deliver, Error, Gap, GoAway, Intervals, Limits, Ping, Receipt, Send,
    SendAck, ServerFrame, Sync, Welcome,
};
use hawser_proto::view::wire::WireError;

use super::outgoing::Outgoing;

/// The subprotocol that sessions speak.
pub(crate) const SUBPROTOCOL: &str = "hawser.v1.proto";
/// Until Welcome, and until a SendAck: past it the connection is given up.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which we ping when the server has not told its intervals yet.
const PING_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// First and last pause before refused sends are repeated; it doubles in between.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Who a session is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub token: String,
    pub device: String,
    /// Put before the number of a message, so that its id is unique for a day. At most 40 bytes.
    pub id_prefix: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    identity: Identity,
    phase: Phase,
    /// Highest sequence taken over; `None` before the first Welcome of a session that was given none.
    cursor: Option<u64>,
    /// What the server knows of our cursor.
    acknowledged: u64,
    /// A Sync is out for the hole after this sequence.
    synced_after: Option<u64>,
    /// Sends without an answer, in order of their numbers.
    unanswered: VecDeque<Unanswered>,
    next_number: u64,
    /// Set while refused sends wait to be repeated; nothing new is sent meanwhile, to keep the order.
    retry_at: Option<Instant>,
    refusals_in_a_row: u32,
    sends_in_flight_max: usize,
    ping_interval: Duration,
    said_at: Option<Instant>,
    pings: u64,
    /// Numbers of the sends that went out since they were last taken, repetitions among them.
    submitted: Vec<u64>,
    frame: Vec<u8>,
    id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away,
    Connecting { since: Instant },
    Live,
}

#[derive(Debug)]
struct Unanswered {
    number: u64,
    to: Arc<str>,
    payload: Vec<u8>,
    state: Submission,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Submission {
    /// Not on this connection yet.
    Waiting,
    InFlight {
        since: Instant,
    },
    Refused,
}

/// What a frame meant. At most one comes of a frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Note<'a> {
    /// Deliveries start after `cursor`; `before` was our own.
    Welcomed {
        before: Option<u64>,
        cursor: u64,
        resumed: bool,
    },
    /// The send with this number is durable.
    Accepted {
        number: u64,
        message_id: u64,
    },
    /// The send with this number was refused and will be repeated.
    Refused {
        number: u64,
        error: Error<'a>,
    },
    /// The send with this number was refused for good and is forgotten.
    Rejected {
        number: u64,
        error: Error<'a>,
    },
    /// Next message of the inbox.
    Delivered(Deliver<'a>),
    /// A message that we have had.
    Repeated {
        sequence: u64,
    },
    /// A message from behind a hole; it was dropped, and the server asked for what comes after the hole's start.
    Hole {
        expected: u64,
        sequence: u64,
    },
    /// The server says that these sequences will never come.
    Gap(Gap),
    Receipt(Receipt<'a>),
    GoAway(GoAway<'a>),
    /// An Error outside of an answer.
    Failed(Error<'a>),
    /// Nothing that the application needs.
    Nothing,
}

impl Session {
    /// A session that has never been connected. `cursor` is where the application's own record stands, if it has one.
    pub(crate) fn new(identity: Identity, cursor: Option<u64>) -> Self {
        Self {
            identity,
            phase: Phase::Away,
            cursor,
            acknowledged: 0,
            synced_after: None,
            unanswered: VecDeque::new(),
            next_number: 1,
            retry_at: None,
            refusals_in_a_row: 0,
            sends_in_flight_max: 1,
            ping_interval: PING_INTERVAL_DEFAULT,
            said_at: None,
            pings: 0,
            submitted: Vec::new(),
            frame: Vec::new(),
            id: String::new(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Sends without an answer.
    pub(crate) fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Highest sequence taken over.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor.unwrap_or_default()
    }

    /// Live, within the server's bound, and no refused send waits to go first.
    pub(crate) fn may_send(&self) -> bool {
        self.is_live()
            && self.retry_at.is_none()
            && self.unanswered.len() < self.sends_in_flight_max
    }

    /// The number that the next message will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Numbers of the sends that went out since the last call, repetitions among them. Take them after every call
    /// that has `out` in it.
    pub(crate) fn take_submitted(&mut self) -> std::vec::Drain<'_, u64> {
        self.submitted.drain(..)
    }

    /// Sends a message, or keeps it until the session is live. Returns its number: 1, 2, …
    ///
    /// The caller bounds how many it keeps: [`may_send`](Self::may_send) says when one goes out at once.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        to: Arc<str>,
        payload: Vec<u8>,
        out: Option<&mut Outgoing>,
    ) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let goes_out = self.may_send();
        self.unanswered.push_back(Unanswered { number, to, payload, state: Submission::Waiting });
        if goes_out && let Some(out) = out {
            self.submit(now, self.unanswered.len() - 1, out);
        }
        number
    }

    /// A socket is open: says who we are.
    pub(crate) fn handle_open(&mut self, now: Instant, out: &mut Outgoing) {
        self.phase = Phase::Connecting { since: now };
        let Identity { token, device, .. } = &self.identity;
        let connect = ClientFrame::Connect(Connect {
            token,
            device_id: device,
            resume_cursor: self.cursor,
            client_kind: "hawser-bench",
            client_version: env!("CARGO_PKG_VERSION"),
            mode: Mode::Active.into(),
        });
        push(&mut self.frame, &connect, out);
        self.said_at = Some(now);
    }

    /// The socket is gone. Sends without an answer wait for the next one.
    pub(crate) fn handle_closed(&mut self) {
        self.phase = Phase::Away;
        self.synced_after = None;
        self.retry_at = None;
        for send in &mut self.unanswered {
            send.state = Submission::Waiting;
        }
    }

    /// One message of the server.
    ///
    /// # Errors
    /// For bytes that are not a `ServerFrame`.
    pub(crate) fn handle_message<'a>(
        &mut self,
        now: Instant,
        message: &'a [u8],
        out: &mut Outgoing,
    ) -> Result<Note<'a>, WireError> {
        Ok(match ServerFrame::read(message)? {
            ServerFrame::Welcome(welcome) => self.handle_welcome(now, &welcome, out),
            ServerFrame::SendAck(answer) => self.handle_answer(now, &answer),
            ServerFrame::Deliver(deliver) => self.handle_deliver(now, deliver, out),
            ServerFrame::Gap(gap) => self.handle_gap(gap),
            ServerFrame::Receipt(receipt) => Note::Receipt(receipt),
            ServerFrame::GoAway(go_away) => Note::GoAway(go_away),
            ServerFrame::Error(error) => Note::Failed(error),
            ServerFrame::Signal(_) | ServerFrame::Pong(_) | ServerFrame::Unknown => Note::Nothing,
        })
    }

    /// Acknowledges what was taken over since the last time, and sends what found no room before. Call it when
    /// everything that came has been handled.
    pub(crate) fn handle_drained(&mut self, now: Instant, out: &mut Outgoing) {
        if self.phase != Phase::Live {
            return;
        }
        let cursor = self.cursor();
        if cursor > self.acknowledged {
            self.acknowledged = cursor;
            self.say(now, &ClientFrame::Ack(Ack { sequence: cursor, read_sequence: None }), out);
        }
        self.submit_waiting(now, out);
    }

    /// Repeats refused sends whose pause is over, and pings when we have been silent for long. Call it about
    /// every 100 ms.
    ///
    /// Returns false when the server owes an answer for longer than [`ANSWER_TIMEOUT`]: give the connection up.
    #[must_use]
    pub(crate) fn handle_tick(&mut self, now: Instant, out: &mut Outgoing) -> bool {
        let overdue = |since: Instant| now.saturating_duration_since(since) > ANSWER_TIMEOUT;
        match self.phase {
            Phase::Away => return true,
            Phase::Connecting { since } => return !overdue(since),
            Phase::Live => {}
        }
        self.submit_waiting(now, out);
        let silent_for = self.said_at.map(|at| now.saturating_duration_since(at));
        if silent_for.is_none_or(|silent_for| silent_for >= self.ping_interval) {
            self.pings += 1;
            self.say(now, &ClientFrame::Ping(Ping { nonce: self.pings }), out);
        }
        !self.unanswered.iter().any(|send| match send.state {
            Submission::InFlight { since } => overdue(since),
            Submission::Waiting | Submission::Refused => false,
        })
    }

    fn handle_welcome(
        &mut self,
        now: Instant,
        welcome: &Welcome<'_>,
        out: &mut Outgoing,
    ) -> Note<'static> {
        self.phase = Phase::Live;
        let before = self.cursor;
        // Behind our cursor nothing is new to the application, whatever the server remembers; past it the
        // server's counts, and a Gap says what is missing.
        let cursor = welcome.cursor;
        self.cursor = Some(before.unwrap_or(cursor).max(cursor));
        self.acknowledged = cursor;
        if let Some(Intervals { active_ms, .. }) = welcome.intervals
            && active_ms > 0
        {
            self.ping_interval = Duration::from_millis(active_ms.into()) * 2 / 3;
        }
        if let Some(Limits { sends_in_flight_max, .. }) = welcome.limits {
            self.sends_in_flight_max = (sends_in_flight_max as usize).max(1);
        }
        self.retry_at = None;
        self.submit_waiting(now, out);
        Note::Welcomed { before, cursor, resumed: welcome.resumed }
    }

    fn handle_answer<'a>(&mut self, now: Instant, answer: &SendAck<'a>) -> Note<'a> {
        let number = answer
            .client_message_id
            .strip_prefix(self.identity.id_prefix.as_str())
            .and_then(|number| number.parse::<u64>().ok());
        let position =
            number.and_then(|number| self.unanswered.iter().position(|send| send.number == number));
        let (Some(number), Some(position)) = (number, position) else { return Note::Nothing };
        match answer.error {
            None => {
                self.unanswered.remove(position);
                self.refusals_in_a_row = 0;
                Note::Accepted { number, message_id: answer.message_id }
            }
            Some(error) if error.retryable => {
                self.unanswered[position].state = Submission::Refused;
                // A burst that is refused together is one refusal.
                if self.retry_at.is_none() {
                    self.retry_at = Some(now + self.retry_pause());
                    self.refusals_in_a_row += 1;
                }
                Note::Refused { number, error }
            }
            Some(error) => {
                self.unanswered.remove(position);
                Note::Rejected { number, error }
            }
        }
    }

    fn handle_deliver<'a>(
        &mut self,
        now: Instant,
        deliver: Deliver<'a>,
        out: &mut Outgoing,
    ) -> Note<'a> {
        let (sequence, expected) = (deliver.sequence, self.cursor() + 1);
        if sequence < expected {
            // Had before: the acknowledgement was lost on the way, so it is given again.
            self.acknowledged = self.acknowledged.min(sequence - 1);
            return Note::Repeated { sequence };
        }
        if sequence > expected {
            if self.synced_after != self.cursor {
                self.synced_after = self.cursor;
                let after_sequence = self.cursor();
                self.say(now, &ClientFrame::Sync(Sync { after_sequence }), out);
            }
            return Note::Hole { expected, sequence };
        }
        self.cursor = Some(sequence);
        Note::Delivered(deliver)
    }

    fn handle_gap(&mut self, gap: Gap) -> Note<'static> {
        if gap.first_sequence <= self.cursor() + 1 {
            self.cursor = Some(self.cursor().max(gap.last_sequence));
        }
        Note::Gap(gap)
    }

    /// Sends what waits, in order, as far as the server's bound goes. Refused sends wait until every send has been
    /// answered and their pause is over; then all go again in order.
    fn submit_waiting(&mut self, now: Instant, out: &mut Outgoing) {
        if let Some(retry_at) = self.retry_at {
            let in_flight = |send: &Unanswered| matches!(send.state, Submission::InFlight { .. });
            if now < retry_at || self.unanswered.iter().any(in_flight) {
                return;
            }
            self.retry_at = None;
        }
        let window = self.sends_in_flight_max.min(self.unanswered.len());
        for position in 0..window {
            if !matches!(self.unanswered[position].state, Submission::InFlight { .. }) {
                self.submit(now, position, out);
            }
        }
    }

    fn submit(&mut self, now: Instant, position: usize, out: &mut Outgoing) {
        let send = &mut self.unanswered[position];
        send.state = Submission::InFlight { since: now };
        self.id.clear();
        let written = write!(self.id, "{}{}", self.identity.id_prefix, send.number);
        debug_assert!(written.is_ok(), "a String takes everything");
        let frame = ClientFrame::Send(Send {
            client_message_id: &self.id,
            to_user: &send.to,
            payload: &send.payload,
            ..Send::default()
        });
        push(&mut self.frame, &frame, out);
        self.submitted.push(send.number);
        self.said_at = Some(now);
    }

    fn say(&mut self, now: Instant, frame: &ClientFrame<'_>, out: &mut Outgoing) {
        push(&mut self.frame, frame, out);
        self.said_at = Some(now);
    }

    fn retry_pause(&self) -> Duration {
        let doubled = RETRY_PAUSE_MIN * 2_u32.saturating_pow(self.refusals_in_a_row.min(16));
        doubled.min(RETRY_PAUSE_MAX)
    }
}

/// The code's name as it stands in client.proto, for people.
pub(crate) fn code_name(error: &Error<'_>) -> &'static str {
    Code::try_from(error.code).map_or("CODE_?", |code| code.as_str_name())
}

fn push(scratch: &mut Vec<u8>, frame: &ClientFrame<'_>, out: &mut Outgoing) {
    scratch.clear();
    frame.write(scratch);
    out.push(scratch);
}
