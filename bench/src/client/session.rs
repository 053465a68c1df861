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
    /// Since then the server wants us to go: nothing new is sent, and its Close frame is awaited.
    leaving_since: Option<Instant>,
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
            leaving_since: None,
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
            && self.leaving_since.is_none()
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
        self.leaving_since = None;
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
            ServerFrame::GoAway(go_away) => {
                self.leaving_since = Some(now);
                Note::GoAway(go_away)
            }
            ServerFrame::Error(error) => Note::Failed(error),
            ServerFrame::Signal(_)
            | ServerFrame::Pong(_)
            | ServerFrame::Refreshed(_)
            | ServerFrame::Unknown => Note::Nothing,
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
        if self.leaving_since.is_some_and(overdue) {
            return false;
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
        if self.leaving_since.is_some() {
            return;
        }
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

#[cfg(test)]
mod tests {
    use hawser_edge::ws::{Decoder, Item, Pool, Role, Settings};

    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    /// A session and the other end of its socket.
    struct Bed {
        now: Instant,
        session: Session,
        out: Outgoing,
    }

    impl Bed {
        fn new() -> Self {
            let identity = Identity {
                token: "alice".to_owned(),
                device: "cli".to_owned(),
                id_prefix: "x-".to_owned(),
            };
            let session = Session::new(identity, None);
            Self { now: clock::now(), session, out: Outgoing::default() }
        }

        fn live(cursor: u64) -> Self {
            let mut bed = Self::new();
            bed.connect(cursor);
            bed
        }

        fn connect(&mut self, cursor: u64) {
            self.session.handle_open(self.now, &mut self.out);
            let limits = Limits { sends_in_flight_max: 4, ..Limits::default() };
            self.said();
            let note = self.tell(ServerFrame::Welcome(Welcome {
                cursor,
                limits: Some(limits),
                resumed: true,
                ..Welcome::default()
            }));
            assert!(note.starts_with("Welcomed"), "{note}");
        }

        fn tell(&mut self, frame: ServerFrame<'_>) -> String {
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            let note = self.session.handle_message(self.now, &bytes, &mut self.out).unwrap();
            format!("{note:?}")
        }

        fn deliver(&mut self, sequence: u64) -> String {
            self.tell(ServerFrame::Deliver(Deliver { sequence, from: "bob", ..Deliver::default() }))
        }

        fn answer(&mut self, id: &str, error: Option<Error<'_>>) -> String {
            let answer = SendAck { client_message_id: id, message_id: 7, error, time_ms: 1 };
            self.tell(ServerFrame::SendAck(answer))
        }

        fn send(&mut self, payload: &str) {
            let payload = payload.as_bytes().to_vec();
            self.session.send(self.now, "bob".into(), payload, Some(&mut self.out));
        }

        /// The frames that were said since the last call, in short.
        fn said(&mut self) -> Vec<String> {
            let mut bytes = std::mem::take(self.out.raw());
            let mut input = &mut bytes[..];
            let settings =
                Settings { role: Role::Server, message_bytes_max: 1 << 16, deflate: false };
            let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
            let mut said = Vec::new();
            while !input.is_empty() {
                let (taken, item) = decoder.next(input, &settings, &mut pool).unwrap();
                let Some(Item::Message { text: false, payload }) = item else { panic!("{item:?}") };
                said.push(match ClientFrame::read(payload).unwrap() {
                    ClientFrame::Connect(connect) => {
                        format!(
                            "{}/{} {:?}",
                            connect.token, connect.device_id, connect.resume_cursor
                        )
                    }
                    ClientFrame::Send(send) => format!("send {}", send.client_message_id),
                    ClientFrame::Ack(ack) => format!("ack {}", ack.sequence),
                    ClientFrame::Sync(sync) => format!("sync {}", sync.after_sequence),
                    ClientFrame::Ping(_) => "ping".to_owned(),
                    ClientFrame::Signal(_)
                    | ClientFrame::SetMode(_)
                    | ClientFrame::Refresh(_)
                    | ClientFrame::Unknown => panic!("a session never says that"),
                });
                input = &mut input[taken..];
            }
            said
        }

        fn drained(&mut self) -> Vec<String> {
            self.session.handle_drained(self.now, &mut self.out);
            self.said()
        }

        /// Lets time pass, with a tick at its end.
        fn pass(&mut self, time: Duration) -> bool {
            self.now += time;
            self.session.handle_tick(self.now, &mut self.out)
        }
    }

    fn error(retryable: bool) -> Option<Error<'static>> {
        Some(Error { code: Code::Unavailable.into(), message: "", retryable })
    }

    #[test]
    fn connect_says_who_and_after_a_reconnect_from_where() {
        let mut bed = Bed::new();
        bed.session.handle_open(bed.now, &mut bed.out);
        assert_eq!(bed.said(), ["alice/cli None"]);
        bed.connect(4);
        assert!(bed.deliver(5).starts_with("Delivered"));
        bed.session.handle_closed();
        bed.session.handle_open(bed.now, &mut bed.out);
        assert_eq!(bed.said(), ["alice/cli Some(5)"]);
    }

    #[test]
    fn deliveries_are_acknowledged_together_and_once() {
        let mut bed = Bed::live(0);
        for sequence in 1..=3 {
            assert!(bed.deliver(sequence).starts_with("Delivered"));
        }
        assert_eq!(bed.drained(), ["ack 3"]);
        assert!(bed.drained().is_empty());
    }

    #[test]
    fn a_repeated_delivery_is_kept_from_the_application_and_acknowledged_again() {
        let mut bed = Bed::live(0);
        bed.deliver(1);
        bed.drained();
        assert_eq!(bed.deliver(1), "Repeated { sequence: 1 }");
        assert_eq!(bed.drained(), ["ack 1"]);
    }

    #[test]
    fn what_lies_behind_a_hole_is_dropped_and_asked_for_once() {
        let mut bed = Bed::live(0);
        assert_eq!(bed.deliver(2), "Hole { expected: 1, sequence: 2 }");
        assert_eq!(bed.deliver(3), "Hole { expected: 1, sequence: 3 }");
        assert_eq!(bed.drained(), ["sync 0"]);
        assert!(bed.deliver(1).starts_with("Delivered"));
        assert!(bed.deliver(2).starts_with("Delivered"));
        assert_eq!(bed.drained(), ["ack 2"]);
    }

    #[test]
    fn a_gap_moves_the_cursor_over_what_will_never_come() {
        let mut bed = Bed::live(0);
        bed.tell(ServerFrame::Gap(Gap { first_sequence: 1, last_sequence: 4, reason: 1 }));
        assert!(bed.deliver(5).starts_with("Delivered"));
        assert_eq!(bed.drained(), ["ack 5"]);
    }

    #[test]
    fn a_welcome_behind_our_cursor_brings_nothing_twice() {
        let mut bed = Bed::live(0);
        bed.deliver(1);
        bed.deliver(2);
        bed.session.handle_closed();
        bed.connect(1);
        assert_eq!(bed.deliver(2), "Repeated { sequence: 2 }");
        assert_eq!(bed.drained(), ["ack 2"]);
    }

    #[test]
    fn unanswered_sends_go_again_in_order_under_their_old_ids() {
        let mut bed = Bed::live(0);
        ["a", "b", "c"].into_iter().for_each(|payload| bed.send(payload));
        assert_eq!(bed.said(), ["send x-1", "send x-2", "send x-3"]);
        assert_eq!(bed.answer("x-2", None), "Accepted { number: 2, message_id: 7 }");
        bed.session.handle_closed();
        bed.connect(0);
        assert_eq!(bed.said(), ["send x-1", "send x-3"]);
        assert_eq!(bed.session.take_submitted().collect::<Vec<_>>(), [1, 2, 3, 1, 3]);
    }

    #[test]
    fn no_more_than_the_servers_bound_is_in_flight() {
        let mut bed = Bed::live(0);
        ["a", "b", "c", "d", "e"].into_iter().for_each(|payload| bed.send(payload));
        assert_eq!(bed.said().len(), 4);
        assert!(!bed.session.may_send());
        bed.answer("x-1", None);
        assert_eq!(bed.drained(), ["send x-5"]);
    }

    #[test]
    fn after_a_refusal_all_go_again_in_order_once_all_are_answered_and_a_pause_is_over() {
        let mut bed = Bed::live(0);
        ["a", "b", "c"].into_iter().for_each(|payload| bed.send(payload));
        bed.said();
        assert!(bed.answer("x-1", error(true)).starts_with("Refused { number: 1"));
        assert!(!bed.session.may_send(), "a new message would overtake the refused one");
        assert!(bed.pass(SECOND));
        assert!(bed.said().is_empty(), "two answers are missing");
        bed.answer("x-2", error(true));
        bed.answer("x-3", None);
        assert!(bed.pass(3 * SECOND));
        assert_eq!(bed.said(), ["send x-1", "send x-2"]);
    }

    #[test]
    fn a_final_refusal_is_told_and_not_repeated() {
        let mut bed = Bed::live(0);
        bed.send("a");
        bed.said();
        assert!(bed.answer("x-1", error(false)).starts_with("Rejected { number: 1"));
        assert_eq!(bed.session.unanswered(), 0);
        assert!(bed.pass(SECOND));
        assert!(bed.said().is_empty());
    }

    #[test]
    fn one_that_is_sent_away_says_nothing_new_until_it_is_elsewhere() {
        let mut bed = Bed::live(0);
        bed.send("a");
        bed.said();
        bed.tell(ServerFrame::GoAway(GoAway { reason: "", reconnect_after_ms: 7 }));
        assert!(!bed.session.may_send());
        bed.send("b");
        assert!(bed.drained().is_empty());
        assert_eq!(bed.answer("x-1", None), "Accepted { number: 1, message_id: 7 }");
        bed.session.handle_closed();
        bed.connect(0);
        assert_eq!(bed.said(), ["send x-2"]);
        bed.tell(ServerFrame::GoAway(GoAway { reason: "", reconnect_after_ms: 7 }));
        assert!(!bed.pass(ANSWER_TIMEOUT + SECOND), "the server does not close");
    }

    #[test]
    fn answers_to_what_nobody_sent_mean_nothing() {
        let mut bed = Bed::live(0);
        for id in ["x-9", "y-1", "", "x-"] {
            assert_eq!(bed.answer(id, None), "Nothing", "{id:?}");
        }
    }

    #[test]
    fn a_silent_session_pings() {
        let mut bed = Bed::live(0);
        assert!(bed.pass(PING_INTERVAL_DEFAULT - SECOND));
        assert!(bed.said().is_empty());
        assert!(bed.pass(SECOND));
        assert_eq!(bed.said(), ["ping"]);
    }

    #[test]
    fn an_answer_that_stays_away_ends_the_connection() {
        let mut bed = Bed::live(0);
        bed.send("a");
        assert!(bed.pass(ANSWER_TIMEOUT));
        assert!(!bed.pass(SECOND));
        let mut bed = Bed::new();
        bed.session.handle_open(bed.now, &mut bed.out);
        assert!(bed.pass(ANSWER_TIMEOUT));
        assert!(!bed.pass(SECOND));
    }

    #[test]
    fn bytes_that_are_no_frame_are_an_error() {
        let mut bed = Bed::live(0);
        assert!(bed.session.handle_message(bed.now, b"\xff\xff", &mut bed.out).is_err());
    }
}
