//! A device with a user behind it: sends, takes over what it is delivered, comes back when it was cut off.
//!
//! It speaks the bytes of a real client: request head, masked WebSocket frames, client protocol.

use hawser_edge::ws::{self, Item, Opcode, Role};
use hawser_proto::client::error::Code;
use hawser_proto::view::client::{
    Ack, ClientFrame, Connect, Deliver, Ping, Send, SendAck, ServerFrame, Welcome,
};

use crate::edge::Edge;
use crate::env::Env;
use crate::history::{MessageName, client_message_id, parse_name, payload};
use crate::net::{Arrival, Side, StreamId};
use crate::router::WINDOW_MESSAGES;

const HEAD: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: hawser.v1.proto\r\n\r\n";
/// Says something at least this often.
const PING_MS: u64 = 1_000;
/// Gives a connection up on which nothing came for this long.
const SILENCE_MS: u64 = 4_000;
/// Sends that it lets out without an answer: more than the edge reads ahead.
const SENDS_IN_FLIGHT_MAX: usize = 5;
/// Messages that it sends in one run.
const SENDS_MAX: u32 = 10;

/// See the module.
pub(crate) struct Client {
    /// Its name, unique among all users' devices.
    pub(crate) device: String,
    /// Whose it is.
    pub(crate) user: String,
    session: Option<Session>,
    connect_at_ms: u64,
    /// Neither reads nor says anything until then.
    pub(crate) stalled_until_ms: u64,
    /// Highest sequence that it has taken over.
    seen: u64,
    welcomed: bool,
    sends: Vec<Sending>,
    sends_begun: u32,
}

struct Sending {
    name: MessageName,
    to: String,
    not_before_ms: u64,
    /// Said on this connection, and not answered.
    in_flight: bool,
}

struct Session {
    stream: StreamId,
    phase: Phase,
    decoder: ws::Decoder,
    acked: u64,
    heard_at_ms: u64,
    said_at_ms: u64,
}

#[derive(PartialEq)]
enum Phase {
    /// The request is out; holds what has come of the answer.
    Upgrading(Vec<u8>),
    /// Connect is out.
    Connecting,
    Live,
}

impl Client {
    /// A device that has never connected.
    pub(crate) fn new(user: &str, device: &str) -> Self {
        Self {
            device: device.to_owned(),
            user: user.to_owned(),
            session: None,
            connect_at_ms: 0,
            stalled_until_ms: 0,
            seen: 0,
            welcomed: false,
            sends: Vec::new(),
            sends_begun: 0,
        }
    }

    /// Whether its last connection, if any, came to a Welcome.
    pub(crate) fn was_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Loses its connection: resets it, closes it, or is just not there any more.
    pub(crate) fn leave(&mut self, env: &mut Env) {
        let Some(session) = self.session.take() else { return };
        match env.rng.u8(..3) {
            0 => env.net.cut(&mut env.rng, session.stream),
            1 => env.net.close(session.stream, Side::Opener),
            _ => env.net.lose(session.stream),
        }
        self.forget_session(env);
    }

    /// Gets to run.
    pub(crate) fn turn(
        &mut self,
        env: &mut Env,
        edges: &mut [Option<Edge>],
        recipients: &[String],
    ) {
        if env.ms < self.stalled_until_ms {
            return;
        }
        let Some(stream) = self.session.as_ref().map(|session| session.stream) else {
            if env.ms >= self.connect_at_ms {
                self.connect(env, edges);
            }
            return;
        };
        match env.net.read(env.ms, &mut env.rng, stream, Side::Opener) {
            Arrival::Nothing => {}
            Arrival::Bytes(bytes) => self.receive(env, bytes),
            Arrival::End(_) => self.close(env),
        }
        self.speak(env, recipients);
    }

    fn connect(&mut self, env: &mut Env, edges: &mut [Option<Edge>]) {
        let place = env.rng.usize(..edges.len());
        let Some(edge) = &mut edges[place] else {
            self.connect_at_ms = env.ms + 100;
            return;
        };
        env.history.count("connections");
        let stream = env.net.open();
        env.trace(|| format!("{} connects to edge {place}, has seen {}", self.device, self.seen));
        edge.accept(env, stream);
        env.net.write(env.ms, &mut env.rng, stream, Side::Opener, HEAD);
        self.session = Some(Session {
            stream,
            phase: Phase::Upgrading(Vec::new()),
            decoder: ws::Decoder::default(),
            acked: self.seen,
            heard_at_ms: env.ms,
            said_at_ms: env.ms,
        });
    }

    fn close(&mut self, env: &mut Env) {
        if let Some(session) = self.session.take() {
            env.net.close(session.stream, Side::Opener);
        }
        self.forget_session(env);
    }

    fn forget_session(&mut self, env: &mut Env) {
        self.connect_at_ms = env.ms + env.rng.u64(10..800);
        self.sends.iter_mut().for_each(|sending| sending.in_flight = false);
    }

    fn receive(&mut self, env: &mut Env, mut bytes: Vec<u8>) {
        let Some(session) = &mut self.session else { return };
        session.heard_at_ms = env.ms;
        if let Phase::Upgrading(head) = &mut session.phase {
            head.extend(bytes);
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            if !head.starts_with(b"HTTP/1.1 101 ") {
                return self.close(env);
            }
            bytes = head.split_off(end + 4);
            session.phase = Phase::Connecting;
            let connect = Connect {
                token: &self.user.clone(),
                device_id: &self.device.clone(),
                resume_cursor: self.welcomed.then_some(self.seen),
                ..Connect::default()
            };
            self.say(env, ClientFrame::Connect(connect));
        }
        for message in self.decode(env, &mut bytes) {
            match ServerFrame::read(&message) {
                Ok(frame) => self.handle(env, frame),
                Err(error) => env.history.violation(env.ms, format!("{}: {error}", self.device)),
            }
        }
    }

    /// The messages in what came. Closes where the edge does.
    fn decode(&mut self, env: &mut Env, bytes: &mut [u8]) -> Vec<Vec<u8>> {
        let settings =
            ws::Settings { role: Role::Client, message_bytes_max: 1 << 20, deflate: false };
        let mut pool = ws::Pool::default();
        let mut messages = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let Some(session) = &mut self.session else { break };
            match session.decoder.next(&mut bytes[at..], &settings, &mut pool) {
                Ok((taken, item)) => {
                    at += taken;
                    match item {
                        Some(Item::Message { payload, .. }) => messages.push(payload.to_vec()),
                        Some(Item::Close(_)) => {
                            env.history.count("closed by the edge");
                            self.close(env);
                        }
                        Some(Item::Ping(_) | Item::Pong(_) | Item::Deflated { .. }) | None => {}
                    }
                }
                Err(error) => {
                    env.history.violation(env.ms, format!("{}: {error:?}", self.device));
                    self.close(env);
                }
            }
        }
        messages
    }

    fn handle(&mut self, env: &mut Env, frame: ServerFrame<'_>) {
        match frame {
            ServerFrame::Welcome(welcome) => self.handle_welcome(env, &welcome),
            ServerFrame::Deliver(deliver) => self.handle_deliver(env, &deliver),
            ServerFrame::SendAck(ack) => self.handle_send_ack(env, &ack),
            ServerFrame::Gap(gap) => {
                env.history.violation(env.ms, format!("{} is told {gap:?}", self.device));
            }
            ServerFrame::Error(error) if error.code == i32::from(Code::Unavailable) => {
                env.history.count("connects refused");
            }
            ServerFrame::Error(error) if error.code == i32::from(Code::Replaced) => {
                env.history.count("replaced");
            }
            ServerFrame::Receipt(_) => env.history.count("receipts"),
            ServerFrame::Pong(_) => {}
            ServerFrame::Error(_)
            | ServerFrame::Signal(_)
            | ServerFrame::GoAway(_)
            | ServerFrame::Refreshed(_)
            | ServerFrame::Unknown => {
                env.history.violation(env.ms, format!("{} is told {frame:?}", self.device));
            }
        }
    }

    fn handle_welcome(&mut self, env: &mut Env, welcome: &Welcome<'_>) {
        if welcome.user != self.user || welcome.cursor != self.seen || !welcome.resumed {
            let sentence = format!("{} has seen {}, and: {welcome:?}", self.device, self.seen);
            env.history.violation(env.ms, sentence);
        }
        self.welcomed = true;
        if let Some(session) = &mut self.session {
            session.phase = Phase::Live;
        }
    }

    fn handle_deliver(&mut self, env: &mut Env, deliver: &Deliver<'_>) {
        let Deliver { sequence, .. } = *deliver;
        // A frame behind the edge's Close in the same bytes finds no session.
        let acked = self.session.as_ref().map_or(self.seen, |session| session.acked);
        if sequence > acked + WINDOW_MESSAGES as u64 {
            let sentence = format!("{}: {sequence} with {acked} acknowledged", self.device);
            env.history.violation(env.ms, format!("window exceeded: {sentence}"));
        }
        if sequence <= self.seen {
            env.history.count("delivered again");
            return;
        }
        if sequence != self.seen + 1 {
            let sentence = format!("{}: {sequence} after {}", self.device, self.seen);
            env.history.violation(env.ms, format!("a hole without a Gap: {sentence}"));
        }
        self.seen = sequence;
        env.trace(|| format!("{} gets {sequence} as {:x}", self.device, deliver.message_id));
        let (device, user) = (&self.device, &self.user);
        env.history.note_delivered(env.ms, device, user, deliver.payload, deliver.message_id);
    }

    fn handle_send_ack(&mut self, env: &mut Env, ack: &SendAck<'_>) {
        let name = parse_name(ack.client_message_id);
        let own = self.sends.iter().position(|s| s.in_flight && Some(&s.name) == name.as_ref());
        let Some(index) = own else {
            // The session may have ended in these very bytes.
            if self.session.is_some() {
                let sentence = format!("{} did not ask for {ack:?}", self.device);
                env.history.violation(env.ms, sentence);
            }
            return;
        };
        env.trace(|| format!("{} gets {ack:?}", self.device));
        match ack.error {
            None => {
                let sending = self.sends.remove(index);
                env.history.note_acknowledged(&sending.name, ack.message_id);
            }
            Some(error) => {
                let sending = &mut self.sends[index];
                sending.in_flight = false;
                sending.not_before_ms = env.ms + env.rng.u64(50..1_000);
                env.history.count("sends failed");
                if !error.retryable {
                    env.history.violation(env.ms, format!("{}: {error:?}", self.device));
                }
            }
        }
    }

    /// Says what is due.
    fn speak(&mut self, env: &mut Env, recipients: &[String]) {
        let Some(session) = &self.session else { return };
        if env.ms >= session.heard_at_ms + SILENCE_MS {
            return self.close(env);
        }
        if session.phase != Phase::Live {
            return;
        }
        if self.seen > session.acked && (env.calm || env.once_in(4)) {
            let sequence = self.seen;
            if let Some(session) = &mut self.session {
                session.acked = sequence;
            }
            self.say(env, ClientFrame::Ack(Ack { sequence, read_sequence: Some(sequence) }));
        }
        if !env.calm && self.sends_begun < SENDS_MAX && env.once_in(30) {
            self.begin_send(env, recipients);
        }
        self.let_sends_out(env);
        if self.session.as_ref().is_some_and(|session| env.ms >= session.said_at_ms + PING_MS) {
            self.say(env, ClientFrame::Ping(Ping { nonce: env.ms }));
        }
    }

    fn begin_send(&mut self, env: &mut Env, recipients: &[String]) {
        // Several at once, so that they travel together.
        for _ in 0..env.rng.u32(1..=3) {
            self.sends_begun += 1;
            let name = (self.device.clone(), self.sends_begun);
            let to = recipients[env.rng.usize(..recipients.len())].clone();
            env.history.note_sent(&name, &to);
            self.sends.push(Sending { name, to, not_before_ms: 0, in_flight: false });
        }
    }

    /// In the order in which they were begun, but for those that wait after an error.
    fn let_sends_out(&mut self, env: &mut Env) {
        let mut in_flight = self.sends.iter().filter(|sending| sending.in_flight).count();
        for index in 0..self.sends.len() {
            let sending = &mut self.sends[index];
            if sending.in_flight || sending.not_before_ms > env.ms {
                continue;
            }
            if in_flight >= SENDS_IN_FLIGHT_MAX {
                return;
            }
            in_flight += 1;
            sending.in_flight = true;
            let (id, to) = (client_message_id(&sending.name), sending.to.clone());
            env.trace(|| format!("{} says {id} to {to}", self.device));
            let payload = payload(&sending.name, &to, env.rng.usize(..200));
            let (client_message_id, to_user) = (id.as_str(), to.as_str());
            let send = Send { client_message_id, to_user, payload: &payload, ..Send::default() };
            self.say(env, ClientFrame::Send(send));
        }
    }

    fn say(&mut self, env: &mut Env, frame: ClientFrame<'_>) {
        let Some(session) = &mut self.session else { return };
        session.said_at_ms = env.ms;
        let (mut payload, mut message) = (Vec::new(), Vec::new());
        frame.write(&mut payload);
        let key = env.rng.u32(..).to_le_bytes();
        ws::write_masked_message(&mut message, Opcode::Binary, &payload, key);
        env.net.write(env.ms, &mut env.rng, session.stream, Side::Opener, &message);
    }
}
