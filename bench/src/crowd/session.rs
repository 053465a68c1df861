//! One session of a crowd, in eight bytes, and how it talks.
//!
//! ```text
//!            connect           101                 Welcome
//!   Waiting ────────► Opening ─────► Joining ────────────► Live ──leave, GoAway──► Leaving
//!      ▲                 └───────────────┴─── any fault ──────┴───────────────────────┤
//!      └─────────────────────────────── Closing ◄─────────────────────────────────────┘
//! ```
//!
//! Whatever can be computed from a session's number is not kept: its user, its keys, what its ping says.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hawser_edge::ws::encoder::write_masked_message;
use hawser_edge::ws::{Decoder, Item, Opcode, Pool, ProtocolError, Role, Settings};
use hawser_proto::client::Mode;
use hawser_proto::view::client::{ClientFrame, Connect, Ping, ServerFrame};

use crate::client::upgrade::{self, Key, UpgradeError};
use crate::client::{SUBPROTOCOL, code_name};
use crate::target::Target;

/// Longest message that is taken from a server, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Connects are counted up to here and then from 0 again; a multiple of the windows of source ports.
const CONNECTS: u8 = 250;

/// What a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Speech {
    /// The client protocol: Connect, Welcome, Ping
    Hawser,
    /// Any WebSocket server: done with the upgrade, pings with Ping frames
    Ws,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Has no connection and wants none.
    #[default]
    Absent,
    /// Connects when its time has come.
    Waiting,
    /// From the connect to the answer of the upgrade.
    Opening,
    /// From the Connect frame to Welcome.
    Joining,
    Live,
    /// Has said Close.
    Leaving,
    /// Its slot is being closed.
    Closing,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Session {
    pub(super) phase: Phase,
    /// Counts connects, see [`CONNECTS`].
    pub(super) connect: u8,
    /// Connects in a row that came to nothing.
    pub(super) attempts: u8,
    /// It comes back when its connection ends.
    pub(super) wanted: bool,
    /// A ping has no answer yet.
    pub(super) pinged: bool,
    /// Was live after the last cut.
    pub(super) recovered: bool,
    /// Something of it lies in [`Talk::partials`].
    partial: bool,
    /// Whose session this is: each life is another user.
    pub(super) life: u8,
}

const _: () = assert!(size_of::<Session>() == 8);

impl Session {
    pub(super) fn begin_connect(&mut self) {
        self.phase = Phase::Opening;
        self.connect = (self.connect + 1) % CONNECTS;
        self.pinged = false;
    }

    /// On its way to being live.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Joining)
    }
}

/// Why a connection is over, or was never there.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No connection; the system's error number.
    Refused(i32),
    /// The connection broke; 0 is the end of the stream.
    Lost(i32),
    Upgrade(UpgradeError),
    /// There is no TLS with this server, or no more.
    Tls(rustls::Error),
    /// The server broke RFC 6455.
    Protocol(ProtocolError),
    /// The server closed with this code.
    Closed(u16, String),
    /// The server said Error.
    Error {
        code: &'static str,
        message: String,
        retryable: bool,
    },
    /// Something that is no frame of the client protocol, or at the wrong time.
    Nonsense(&'static str),
    /// No upgrade or no Welcome in time.
    Late(Duration),
    PongMissing,
}

impl Trouble {
    /// When the server wants to see this client again.
    pub(super) fn pause(&self) -> Option<Duration> {
        if let Self::Upgrade(UpgradeError::Status { retry_after, .. }) = self {
            return *retry_after;
        }
        None
    }

    /// What happens when a server dies, starts or is full: nobody's fault while it was cut off.
    pub(super) fn is_weather(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Lost(_) | Self::Late(_) => true,
            // The reset of a dead server's socket is sent once, and may be lost.
            Self::PongMissing => true,
            Self::Upgrade(UpgradeError::Status { code, .. }) => *code == 503,
            Self::Closed(code, _) => matches!(code, 1001 | 1012 | 1013),
            Self::Error { retryable, .. } => *retryable,
            Self::Upgrade(_) | Self::Tls(_) | Self::Protocol(_) | Self::Nonsense(_) => false,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::Refused(errno) => write!(f, "no connection: {}", system(errno)),
            Self::Lost(0) => f.write_str("the server ended the connection without a Close frame"),
            Self::Lost(errno) => write!(f, "{}", system(errno)),
            Self::Upgrade(error) => write!(f, "{error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Protocol(error) => write!(f, "the server broke the protocol: {error}"),
            Self::Closed(code, reason) => write!(f, "the server closed with {code} ({reason})"),
            Self::Error { code, message, .. } => write!(f, "{code}: {message}"),
            Self::Nonsense(what) => f.write_str(what),
            Self::Late(longest) => write!(f, "not let in within {longest:?}"),
            Self::PongMissing => f.write_str("a ping was not answered in time"),
        }
    }
}

/// Which session speaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    pub(super) number: u32,
    pub(super) connect: u8,
    pub(super) life: u8,
}

/// What all sessions of a crowd have in common when they talk.
pub(super) struct Talk {
    pub(super) speech: Speech,
    subprotocol: Option<&'static str>,
    /// Put into the names of users, so that each run has its own.
    run: u64,
    settings: Settings,
    pool: Pool,
    /// Connections in the middle of a head or a frame: few, since both mostly come whole.
    partials: BTreeMap<u32, Partial>,
    frame: Vec<u8>,
    masks: fastrand::Rng,
    pub(super) pongs: u64,
    /// The session that was heard last was told to go, and to come back after so long.
    pub(super) sent_away: Option<Duration>,
}

enum Partial {
    Head(Vec<u8>),
    Frame(Decoder),
}

impl Talk {
    pub(super) fn new(speech: Speech, run: u64) -> Self {
        Self {
            speech,
            subprotocol: (speech == Speech::Hawser).then_some(SUBPROTOCOL),
            run,
            settings: Settings {
                role: Role::Client,
                message_bytes_max: MESSAGE_BYTES_MAX,
                deflate: false,
            },
            pool: Pool::default(),
            partials: BTreeMap::new(),
            frame: Vec::new(),
            masks: fastrand::Rng::with_seed(run),
            pongs: 0,
            sent_away: None,
        }
    }

    /// The upgrade request.
    pub(super) fn write_request(&self, who: Who, target: &Target, out: &mut Vec<u8>) {
        upgrade::write_request(out, target, self.subprotocol, self.key(who));
    }

    pub(super) fn write_ping(&mut self, who: Who, out: &mut Vec<u8>) {
        match self.speech {
            Speech::Hawser => self.say(&ClientFrame::Ping(Ping { nonce: nonce(who) }), out),
            Speech::Ws => self.write(Opcode::Ping, &nonce(who).to_be_bytes(), out),
        }
    }

    pub(super) fn write_close(&mut self, out: &mut Vec<u8>) {
        self.write(Opcode::Close, &1000_u16.to_be_bytes(), out);
    }

    /// What came for a session: moves its phase on, and writes what it answers.
    ///
    /// # Errors
    /// When this connection is over.
    pub(super) fn hear(
        &mut self,
        who: Who,
        session: &mut Session,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        let mut early;
        let mut input = input;
        if session.phase == Phase::Opening {
            let (key, subprotocol) = (self.key(who), self.subprotocol);
            let read = |head: &[u8]| {
                upgrade::read_answer(head, subprotocol, key).map_err(Trouble::Upgrade)
            };
            if let Some(mut head) = self.take_head(who, session) {
                head.extend_from_slice(input);
                let Some(taken) = read(&head)? else {
                    self.keep(who, session, Partial::Head(head));
                    return Ok(());
                };
                early = head.split_off(taken);
                input = &mut early;
            } else {
                let Some(taken) = read(input)? else {
                    self.keep(who, session, Partial::Head(input.to_vec()));
                    return Ok(());
                };
                input = &mut input[taken..];
            }
            self.enter(who, session, out);
        }
        self.hear_frames(who, session, input, out)
    }

    /// Forgets what lies here of a session whose connection is over.
    pub(super) fn forget(&mut self, who: Who, session: &mut Session) {
        if std::mem::take(&mut session.partial) {
            self.partials.remove(&who.number);
        }
    }

    /// The upgrade is done.
    fn enter(&mut self, who: Who, session: &mut Session, out: &mut Vec<u8>) {
        if self.speech == Speech::Ws {
            session.phase = Phase::Live;
            return;
        }
        session.phase = Phase::Joining;
        let user = format!("{:x}-{:x}-{}", self.run, who.life, who.number);
        let connect = Connect {
            token: &user,
            device_id: "bench",
            resume_cursor: None,
            client_kind: "hawser-bench",
            client_version: env!("CARGO_PKG_VERSION"),
            mode: Mode::Idle.into(),
        };
        self.say(&ClientFrame::Connect(connect), out);
    }

    fn hear_frames(
        &mut self,
        who: Who,
        session: &mut Session,
        mut input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        // Once a frame was cut its decoder is kept: whether it is in the middle of something, only it knows.
        let mut decoder = match session.partial.then(|| self.partials.remove(&who.number)) {
            Some(Some(Partial::Frame(decoder))) => Some(decoder),
            _ => None,
        };
        let mut cut = decoder.is_some();
        let mut fresh = Decoder::default();
        let decoder_here = decoder.as_mut().unwrap_or(&mut fresh);
        // The pool is taken out, so that the item may borrow from it while this is called.
        let mut pool = std::mem::take(&mut self.pool);
        let mut heard = Ok(());
        while !input.is_empty() && heard.is_ok() {
            match decoder_here.next(input, &self.settings, &mut pool) {
                Ok((taken, item)) => {
                    match item {
                        Some(item) => heard = self.hear_item(who, session, &item, out),
                        None => cut = true,
                    }
                    input = &mut input[taken..];
                }
                Err(error) => heard = Err(Trouble::Protocol(error)),
            }
        }
        decoder_here.settle(&mut pool);
        self.pool = pool;
        if cut && heard.is_ok() {
            self.keep(who, session, Partial::Frame(decoder.unwrap_or(fresh)));
        }
        heard
    }

    fn hear_item(
        &mut self,
        who: Who,
        session: &mut Session,
        item: &Item<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        match item {
            Item::Message { payload, .. } if self.speech == Speech::Hawser => {
                self.hear_message(who, session, payload, out)
            }
            Item::Message { .. } | Item::Deflated { .. } => Ok(()),
            Item::Ping(payload) => {
                self.write(Opcode::Pong, payload, out);
                Ok(())
            }
            Item::Pong(payload) if self.speech == Speech::Ws && session.pinged => {
                self.hear_pong(session, **payload == nonce(who).to_be_bytes())
            }
            Item::Pong(_) => Ok(()),
            Item::Close(close) => {
                let (code, reason) = close.unwrap_or((1005, ""));
                Err(Trouble::Closed(code, reason.to_owned()))
            }
        }
    }

    fn hear_message(
        &mut self,
        who: Who,
        session: &mut Session,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        let frame = ServerFrame::read(message)
            .map_err(|_| Trouble::Nonsense("a message is no frame of the client protocol"))?;
        match frame {
            ServerFrame::Welcome(_) if session.phase == Phase::Joining => {
                session.phase = Phase::Live;
                Ok(())
            }
            ServerFrame::Welcome(_) => Err(Trouble::Nonsense("a second Welcome")),
            ServerFrame::Pong(pong) => self.hear_pong(session, pong.nonce == nonce(who)),
            ServerFrame::GoAway(away) => {
                session.phase = Phase::Leaving;
                self.sent_away = Some(Duration::from_millis(away.reconnect_after_ms.into()));
                self.write_close(out);
                Ok(())
            }
            ServerFrame::Error(error) => Err(Trouble::Error {
                code: code_name(&error),
                message: error.message.to_owned(),
                retryable: error.retryable,
            }),
            // Nobody writes to these users; what an inbox may tell all the same is no fault.
            ServerFrame::SendAck(_)
            | ServerFrame::Deliver(_)
            | ServerFrame::Receipt(_)
            | ServerFrame::Signal(_)
            | ServerFrame::Gap(_)
            | ServerFrame::Refreshed(_)
            | ServerFrame::Unknown => Ok(()),
        }
    }

    fn hear_pong(&mut self, session: &mut Session, is_right: bool) -> Result<(), Trouble> {
        if !is_right || !session.pinged {
            return Err(Trouble::Nonsense("a Pong that answers no Ping"));
        }
        session.pinged = false;
        self.pongs += 1;
        Ok(())
    }

    fn take_head(&mut self, who: Who, session: &mut Session) -> Option<Vec<u8>> {
        if !std::mem::take(&mut session.partial) {
            return None;
        }
        match self.partials.remove(&who.number)? {
            Partial::Head(head) => Some(head),
            Partial::Frame(_) => None,
        }
    }

    fn keep(&mut self, who: Who, session: &mut Session, partial: Partial) {
        session.partial = true;
        self.partials.insert(who.number, partial);
    }

    fn say(&mut self, frame: &ClientFrame<'_>, out: &mut Vec<u8>) {
        let mut scratch = std::mem::take(&mut self.frame);
        scratch.clear();
        frame.write(&mut scratch);
        self.write(Opcode::Binary, &scratch, out);
        self.frame = scratch;
    }

    fn write(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
        write_masked_message(out, opcode, payload, self.masks.u32(..).to_ne_bytes());
    }

    /// The key of one connect: random to the server, known again here.
    fn key(&self, who: Who) -> Key {
        Key::new(fastrand::Rng::with_seed(self.run ^ nonce(who)).u128(..))
    }
}

/// A number that is a session's own at each of its connects.
fn nonce(who: Who) -> u64 {
    u64::from(who.number) | u64::from(who.connect) << 32 | u64::from(who.life) << 40
}
