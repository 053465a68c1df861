//! Many WebSocket clients on one thread: non-blocking sockets on one epoll instance.
//!
//! The [`Fleet`] owns sockets, handshakes and framing; what a client says and understands is the
//! [`Handler`]'s. It is made to cost little CPU, because it shares the machine with the server that it
//! measures: edge-triggered readiness, one read per readiness, everything that a turn wants to say to one
//! socket in one write at the turn's end.

mod outgoing;
mod session;
pub(crate) mod upgrade;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use hawser_edge::ws::{Decoder, Item, Pool, ProtocolError, Role, Settings};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

pub(crate) use self::outgoing::Outgoing;
use self::outgoing::Unwritten;
pub(crate) use self::session::{Identity, Note, SUBPROTOCOL, Session, code_name};
use self::upgrade::{Key, UpgradeError};
use crate::clock;
use crate::front::Front;
use crate::tls::TlsConnection;

/// Longest message that is taken from a server, in bytes: above every limit that a server announces.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Received at once, shared by all sockets.
const READ_BYTES: usize = 64 * 1024;
/// Full reads from one socket in one turn; a faster one goes on in the next turn.
const READS_PER_TURN_MAX: usize = 4;
/// Sockets looked at in one turn. Small, so that answers do not wait for the end of a long turn.
const EVENTS_PER_TURN_MAX: usize = 128;
/// From `connect` to the end of the upgrade.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Stands for a Close frame without code (RFC 6455 section 7.4.1).
const NO_CODE: u16 = 1005;

/// Clients by number, 0 up to a number fixed at the start; each has at most one socket at a time.
pub(crate) struct Fleet {
    poll: Poll,
    events: Events,
    front: Front,
    subprotocol: Option<&'static str>,
    sockets: Vec<Option<Socket>>,
    /// Clients whose `Outgoing` may hold bytes.
    unwritten: Vec<usize>,
    /// Clients that had more to read than one turn takes.
    unread: Vec<usize>,
    /// Deadlines of handshakes in the order in which they began.
    opening: VecDeque<(Instant, usize, u64)>,
    connects: u64,
    sockets_now: usize,
    open: usize,
    read_buffer: Box<[u8]>,
    /// What was read, in plain, where the socket speaks TLS.
    plain: Vec<u8>,
    pool: Pool,
    settings: Settings,
    nonces: fastrand::Rng,
}

struct Socket {
    stream: TcpStream,
    phase: Phase,
    out: Outgoing,
    tls: Option<Box<Sealed>>,
    /// Which connect made it; a deadline of an older socket of the same client misses.
    connect: u64,
    /// Nothing is read from it.
    deaf: bool,
}

/// TLS on a socket, and what it has to say there.
struct Sealed {
    connection: TlsConnection,
    out: Unwritten,
}

impl Sealed {
    fn has_unwritten(&self) -> bool {
        !self.out.is_empty() || self.connection.has_output()
    }
}

impl Socket {
    fn has_unwritten(&self) -> bool {
        let sealed = self.tls.as_deref();
        !self.out.is_empty() || sealed.is_some_and(Sealed::has_unwritten)
    }

    /// Writes as much as the socket takes.
    fn write_out(&mut self) -> io::Result<()> {
        let Some(sealed) = &mut self.tls else { return self.out.write_to(&mut self.stream) };
        self.out.seal(&mut sealed.connection);
        sealed.connection.take_output(&mut sealed.out.bytes);
        sealed.out.write_to(&mut self.stream)
    }
}

enum Phase {
    /// `request` is sent as soon as there is a connection.
    Connecting {
        key: Key,
        request: Vec<u8>,
    },
    Upgrading {
        key: Key,
        head: Vec<u8>,
    },
    Open(Decoder),
}

/// What a server said in one data message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub is_text: bool,
    pub payload: &'a [u8],
}

/// Why a socket is gone.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The network, or the operating system.
    Io(io::Error),
    /// No upgrade within ten seconds.
    OpeningTimeout,
    Upgrade(UpgradeError),
    /// There is no TLS with this server, or no more.
    Tls(rustls::Error),
    /// The server broke RFC 6455.
    Protocol(ProtocolError),
    /// End of stream without a Close frame.
    Eof,
    /// The server closed, with this code (1005: none given).
    Closed {
        code: u16,
        reason: String,
    },
    /// We closed and the server agreed, or the scenario dropped the socket.
    Ours,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::OpeningTimeout => write!(f, "no upgrade within {OPENING_TIMEOUT:?}"),
            Self::Upgrade(error) => write!(f, "{error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Protocol(error) => write!(f, "the server broke the protocol: {error}"),
            Self::Eof => f.write_str("the server ended the connection without a Close frame"),
            Self::Closed { code, reason } if reason.is_empty() => {
                write!(f, "the server closed with {code}")
            }
            Self::Closed { code, reason } => write!(f, "the server closed with {code} ({reason})"),
            Self::Ours => f.write_str("closed by this client"),
        }
    }
}

/// What the clients of a fleet do. Called in the middle of a turn: it may write to the client's own
/// `Outgoing`; other clients get theirs between two turns ([`Fleet::outgoing`]).
pub(crate) trait Handler {
    /// The upgrade is done.
    fn handle_open(&mut self, now: Instant, client: usize, out: &mut Outgoing);
    /// One data message, whole.
    fn handle_message(
        &mut self,
        now: Instant,
        client: usize,
        message: Message<'_>,
        out: &mut Outgoing,
    );
    /// All that was received in this turn has been handled: the moment to acknowledge it at once.
    fn handle_drained(&mut self, _now: Instant, _client: usize, _out: &mut Outgoing) {}
    /// The socket is gone.
    fn handle_closed(&mut self, now: Instant, client: usize, ending: Ending);
}

impl Fleet {
    /// Room for `clients_max` clients of the servers behind `front`.
    ///
    /// # Errors
    /// When epoll cannot be set up.
    pub(crate) fn new(
        front: impl Into<Front>,
        subprotocol: Option<&'static str>,
        clients_max: usize,
        seed: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_TURN_MAX),
            front: front.into(),
            subprotocol,
            sockets: (0..clients_max).map(|_| None).collect(),
            unwritten: Vec::new(),
            unread: Vec::new(),
            opening: VecDeque::new(),
            connects: 0,
            sockets_now: 0,
            open: 0,
            read_buffer: vec![0; READ_BYTES].into_boxed_slice(),
            plain: Vec::new(),
            pool: Pool::default(),
            settings: Settings {
                role: Role::Client,
                message_bytes_max: MESSAGE_BYTES_MAX,
                deflate: false,
            },
            nonces: fastrand::Rng::with_seed(seed),
        })
    }

    /// Begins to connect `client`, which has no socket now. `Handler::handle_open` or `handle_closed` follows.
    ///
    /// # Errors
    /// When the operating system refuses at once; then nothing follows.
    pub(crate) fn connect(&mut self, now: Instant, client: usize) -> io::Result<()> {
        debug_assert!(self.sockets[client].is_none(), "client {client} has a socket");
        let target = self.front.pick();
        let mut stream = TcpStream::connect(target.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(client), interest)?;
        self.connects += 1;
        let connect = self.connects;
        self.opening.push_back((now + OPENING_TIMEOUT, client, connect));
        let (key, mut request) = (Key::new(self.nonces.u128(..)), Vec::new());
        upgrade::write_request(&mut request, target, self.subprotocol, key);
        let phase = Phase::Connecting { key, request };
        let connection = target.tls.as_ref().map(|tls| tls.connect(&target.host, target.address));
        let tls =
            connection.map(|connection| Box::new(Sealed { connection, out: Unwritten::default() }));
        let out = Outgoing::new(self.nonces.u32(..));
        self.sockets[client] = Some(Socket { stream, phase, out, tls, connect, deaf: false });
        self.sockets_now += 1;
        Ok(())
    }

    /// The servers, and which of them take new clients.
    pub(crate) fn front(&mut self) -> &mut Front {
        &mut self.front
    }

    /// Sockets whose upgrade is done.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Sockets, those whose upgrade is under way counted in.
    pub(crate) fn sockets(&self) -> usize {
        self.sockets_now
    }

    /// Where to write what an open client says, between two turns. Written out at the next turn's start.
    pub(crate) fn outgoing(&mut self, client: usize) -> Option<&mut Outgoing> {
        let socket = self.sockets[client].as_mut()?;
        if !matches!(socket.phase, Phase::Open(_)) {
            return None;
        }
        self.unwritten.push(client);
        Some(&mut socket.out)
    }

    /// Reads nothing from a client's socket any more, or reads again. A new socket is read from.
    pub(crate) fn set_deaf(&mut self, client: usize, deaf: bool) {
        let Some(socket) = self.sockets[client].as_mut() else { return };
        if std::mem::replace(&mut socket.deaf, deaf) && !deaf {
            // That there is something to read was told meanwhile, once.
            self.unread.push(client);
        }
    }

    /// Drops a client's socket at once, without a Close frame. No event follows.
    pub(crate) fn abandon(&mut self, client: usize) {
        let Some(socket) = self.sockets[client].take() else { return };
        self.sockets_now -= 1;
        self.open -= usize::from(matches!(socket.phase, Phase::Open(_)));
    }

    /// Writes what is to be written, waits for the sockets until `until` at the latest, and handles what came.
    ///
    /// Returns early when a signal came. One turn handles at most 128 sockets.
    ///
    /// # Errors
    /// When epoll itself fails; the faults of one socket end that socket only.
    pub(crate) fn turn(&mut self, until: Instant, handler: &mut impl Handler) -> io::Result<()> {
        self.write_out(handler);
        let now = clock::now();
        let wait = if self.unread.is_empty() {
            until.saturating_duration_since(now)
        } else {
            Duration::ZERO
        };
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(wait));
        if polled.is_ok() {
            for event in &events {
                let Token(client) = event.token();
                self.handle_readiness(client, event, handler);
            }
        }
        self.events = events;
        self.read_rest(handler);
        self.end_late_openings(clock::now(), handler);
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn handle_readiness(
        &mut self,
        client: usize,
        event: &mio::event::Event,
        handler: &mut impl Handler,
    ) {
        let Some(socket) = self.sockets[client].as_mut() else { return };
        if let Phase::Connecting { key, request } = &mut socket.phase {
            match finish_connect(&socket.stream) {
                Ok(false) => return,
                Ok(true) => {
                    socket.out.raw().append(request);
                    socket.phase = Phase::Upgrading { key: *key, head: Vec::new() };
                }
                Err(error) => return self.end(client, Ending::Io(error), handler),
            }
        }
        if event.is_writable() && socket.has_unwritten() {
            self.unwritten.push(client);
        }
        if socket.deaf {
            return;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            let to_the_end = event.is_read_closed() || event.is_error();
            self.read(client, to_the_end, handler);
        }
    }

    /// Reads until the socket is empty. A read that did not fill the buffer emptied it (epoll(7), on streams),
    /// except when the end of the stream is known to wait behind the data.
    fn read(&mut self, client: usize, to_the_end: bool, handler: &mut impl Handler) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut emptied = false;
        let mut received_any = false;
        let mut ended = None;
        for _ in 0..READS_PER_TURN_MAX {
            let Some(socket) = self.sockets[client].as_mut() else { break };
            match socket.stream.read(&mut buffer) {
                Ok(0) => ended = Some(Ending::Eof),
                Ok(received) => {
                    received_any = true;
                    ended = self.open_received(client, &mut buffer[..received], handler).err();
                    emptied = received < buffer.len() && !to_the_end;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => emptied = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => ended = Some(Ending::Io(error)),
            }
            if emptied || ended.is_some() {
                break;
            }
        }
        self.read_buffer = buffer;
        if received_any && let Some(socket) = self.sockets[client].as_mut() {
            if matches!(socket.phase, Phase::Open(_)) {
                handler.handle_drained(clock::now(), client, &mut socket.out);
            }
            if socket.has_unwritten() {
                self.unwritten.push(client);
            }
        }
        match ended {
            Some(ending) => self.end(client, ending, handler),
            None if !emptied => self.unread.push(client),
            None => {}
        }
    }

    fn read_rest(&mut self, handler: &mut impl Handler) {
        for client in std::mem::take(&mut self.unread) {
            self.read(client, true, handler);
        }
    }

    /// Handles what was read, or with TLS what it says.
    fn open_received(
        &mut self,
        client: usize,
        received: &mut [u8],
        handler: &mut impl Handler,
    ) -> Result<(), Ending> {
        let tls = self.sockets[client].as_mut().and_then(|socket| socket.tls.as_mut());
        let Some(tls) = tls else { return self.handle_received(client, received, handler) };
        let mut plain = std::mem::take(&mut self.plain);
        let read = tls.connection.read(received, &mut plain).map_err(Ending::Tls);
        let handled = match plain.is_empty() {
            true => Ok(()),
            false => self.handle_received(client, &mut plain, handler),
        };
        plain.clear();
        self.plain = plain;
        read.and(handled)
    }

    fn handle_received(
        &mut self,
        client: usize,
        received: &mut [u8],
        handler: &mut impl Handler,
    ) -> Result<(), Ending> {
        let mut input = received;
        let Some(socket) = self.sockets[client].as_mut() else { return Ok(()) };
        let now = clock::now();
        // Bytes behind the head are the first frames; they wait in `head` until the decoder is there.
        let mut early;
        if let Phase::Upgrading { key, head } = &mut socket.phase {
            head.extend_from_slice(input);
            let answer = upgrade::read_answer(head, self.subprotocol, *key);
            let Some(taken) = answer.map_err(Ending::Upgrade)? else { return Ok(()) };
            early = head.split_off(taken);
            input = &mut early;
            socket.phase = Phase::Open(Decoder::default());
            self.open += 1;
            handler.handle_open(now, client, &mut socket.out);
        }
        let Phase::Open(decoder) = &mut socket.phase else { return Ok(()) };
        while !input.is_empty() {
            let decoded = decoder.next(&mut *input, &self.settings, &mut self.pool);
            let (taken, item) = decoded.map_err(Ending::Protocol)?;
            if let Some(item) = item {
                handle_item(now, client, item, &mut socket.out, handler)?;
            }
            input = &mut input[taken..];
        }
        Ok(())
    }

    fn write_out(&mut self, handler: &mut impl Handler) {
        for client in std::mem::take(&mut self.unwritten) {
            let Some(socket) = self.sockets[client].as_mut() else { continue };
            if let Err(error) = socket.write_out() {
                self.end(client, Ending::Io(error), handler);
            }
        }
    }

    fn end_late_openings(&mut self, now: Instant, handler: &mut impl Handler) {
        while let Some(&(deadline, client, connect)) = self.opening.front() {
            let still_opening = self.sockets[client].as_ref().is_some_and(|socket| {
                socket.connect == connect && !matches!(socket.phase, Phase::Open(_))
            });
            if still_opening && now < deadline {
                break;
            }
            self.opening.pop_front();
            if still_opening {
                self.end(client, Ending::OpeningTimeout, handler);
            }
        }
    }

    fn end(&mut self, client: usize, ending: Ending, handler: &mut impl Handler) {
        if self.sockets[client].is_some() {
            self.abandon(client);
            handler.handle_closed(clock::now(), client, ending);
        }
    }
}

/// Hands a data message on, and does what RFC 6455 asks for the rest. After our Close nothing is handed on.
fn handle_item(
    now: Instant,
    client: usize,
    item: Item<'_>,
    out: &mut Outgoing,
    handler: &mut impl Handler,
) -> Result<(), Ending> {
    match item {
        Item::Message { text, payload } if !out.is_closed() => {
            let message = Message { is_text: text, payload };
            handler.handle_message(now, client, message, out);
        }
        Item::Ping(payload) => out.push_pong(payload),
        Item::Message { .. } | Item::Deflated { .. } | Item::Pong(_) => {}
        Item::Close(_) if out.is_closed() => return Err(Ending::Ours),
        Item::Close(close) => {
            let (code, reason) = close.unwrap_or((NO_CODE, ""));
            return Err(Ending::Closed { code, reason: reason.to_owned() });
        }
    }
    Ok(())
}

/// Whether a socket that became ready has connected (mio's own rule for it).
fn finish_connect(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => stream.set_nodelay(true).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::target::Target;

    /// Writes down what happens to its only client.
    #[derive(Default)]
    struct Diary(Vec<String>);

    impl Handler for Diary {
        fn handle_open(&mut self, _: Instant, _: usize, out: &mut Outgoing) {
            self.0.push("open".to_owned());
            out.push(b"hello");
        }
        fn handle_message(&mut self, _: Instant, _: usize, message: Message<'_>, _: &mut Outgoing) {
            self.0.push(format!("{:?}", String::from_utf8_lossy(message.payload)));
        }
        fn handle_closed(&mut self, _: Instant, _: usize, ending: Ending) {
            self.0.push(ending.to_string());
        }
    }

    /// Runs a client of a server that answers the request with `head`, `ACCEPT` filled in, and `frames` in the same
    /// write, and goes away when the client has said something more or has gone itself.
    fn run(head: &'static str, frames: &'static [u8]) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::local(listener.local_addr().unwrap(), "/");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let head = upgrade::answer_to(&mut stream, head);
            stream.write_all(&[head.as_bytes(), frames].concat()).unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let mut fleet = Fleet::new(target, None, 1, 7).unwrap();
        let mut diary = Diary::default();
        fleet.connect(clock::now(), 0).unwrap();
        let deadline = clock::now() + Duration::from_secs(30);
        while fleet.sockets() > 0 && clock::now() < deadline {
            fleet.turn(deadline, &mut diary).unwrap();
        }
        server.join().unwrap();
        diary.0
    }

    const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: \
        Upgrade\r\nSec-WebSocket-Accept: ACCEPT\r\n\r\n";

    #[test]
    fn frames_in_the_same_write_as_the_upgrade_are_handled() {
        // A whole message, a Ping, and the first fragment of a message that never ends.
        let diary = run(SWITCHING, b"\x82\x05early\x89\x00\x01\x01!");
        assert_eq!(diary[..2], ["open", "\"early\""]);
        assert_eq!(diary.len(), 3, "{diary:?}");
    }

    #[test]
    fn why_a_socket_is_gone_is_told_apart() {
        let diary = run("HTTP/1.1 503 Service Unavailable\r\n\r\n", b"");
        assert_eq!(diary, ["the upgrade was answered 503 Service Unavailable"]);
        let diary = run(SWITCHING, b"");
        assert_eq!(diary, ["open", "the server ended the connection without a Close frame"]);
        let diary = run(SWITCHING, b"\x88\x06\x03\xf4busy");
        assert_eq!(diary, ["open", "the server closed with 1012 (busy)"]);
        let diary = run(SWITCHING, b"\x82\x81....x");
        assert!(diary[1].starts_with("the server broke the protocol"), "{diary:?}");
    }
}
