//! The way from the server API to the Hubs: to every router of the cluster a link, as an edge without clients has one.
//!
//! The link to this router's own Hubs goes through memory, those to the others (`--api-peers`) over TCP or a Unix
//! socket. [`Routing`] decides what is said on which.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hawser_proto::framing::{begin_frame, finish_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::query::Kind as Asked;
use hawser_proto::link::query_answer::Kind as Answered;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{
    EdgeBatch, EdgeMessage, Heartbeat, Hello, Query, RouterBatch, Send, SendAck, SnapshotEnd,
};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};

use super::error::ApiError;
use super::routing::Routing;
use crate::config::Listen;
use crate::limits;
use crate::link::{End, FrameReader, Links, Reader, Writer, unix_ms};
use crate::link_tls::PeerTls;

/// Bytes that may be on their way through the link in memory, in each direction.
const HERE_BYTES: usize = 64 * 1024;
/// What a request takes beside its payload, for the bound on all of them.
const REQUEST_BYTES: usize = 512;
/// Bytes are counted in units of this many.
const ROOM_UNIT: usize = 512;

/// Asks the Hubs. Shared by all requests.
#[derive(Debug)]
pub(super) struct Gateway {
    routing: Mutex<Routing<oneshot::Sender<Answer>>>,
    /// One a peer: there is something to say to it.
    wakes: Vec<Notify>,
    room: Arc<Semaphore>,
    timeout: Duration,
}

/// What a Hub answers.
#[derive(Debug)]
enum Answer {
    Sent(SendAck),
    Queried(Answered),
}

/// Where a router is.
#[derive(Debug)]
pub(super) enum Place {
    /// In this process.
    Here(Arc<Links>),
    /// In another.
    There(Listen, Option<PeerTls>),
}

/// Something that was asked and is not answered. Dropping it forgets the question.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    gateway: &'a Gateway,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
    deadline: Instant,
    _room: OwnedSemaphorePermit,
}

impl Gateway {
    /// A gateway to so many routers, which waits so long for an answer.
    pub(super) fn new(peers: usize, timeout: Duration) -> Self {
        Self {
            routing: Mutex::new(Routing::new(peers)),
            wakes: (0..peers).map(|_| Notify::new()).collect(),
            room: Arc::new(Semaphore::new(limits::API_BYTES_MAX / ROOM_UNIT)),
            timeout,
        }
    }

    /// Begins to send a message; [`Asking::sent`] waits for the answer.
    ///
    /// # Errors
    /// Too much is on its way.
    pub(super) fn send(&self, send: Send) -> Result<Asking<'_>, ApiError> {
        let bytes = send.payload.len();
        self.ask(Inbound::Send(send), bytes)
    }

    /// Begins to ask about a user; [`Asking::answered`] waits for the answer.
    ///
    /// # Errors
    /// Too much is on its way.
    pub(super) fn query(&self, user: &str, kind: Asked) -> Result<Asking<'_>, ApiError> {
        let query = Query { ticket: 0, user: user.to_owned(), kind: Some(kind) };
        self.ask(Inbound::Query(query), 0)
    }

    fn ask(&self, message: Inbound, payload_bytes: usize) -> Result<Asking<'_>, ApiError> {
        let units = (payload_bytes + REQUEST_BYTES).div_ceil(ROOM_UNIT);
        let room = Arc::clone(&self.room).try_acquire_many_owned(units as u32);
        let Ok(room) = room else {
            return Err(ApiError::overloaded("too much waits for an answer"));
        };
        let (waiter, answer) = oneshot::channel();
        let mut routing = self.lock();
        let ticket = routing.ask(message, waiter);
        self.wake(&routing);
        let deadline = Instant::now() + self.timeout;
        Ok(Asking { gateway: self, ticket, answer, deadline, _room: room })
    }

    fn wake(&self, routing: &Routing<oneshot::Sender<Answer>>) {
        for (peer, wake) in self.wakes.iter().enumerate() {
            if routing.has_outgoing(peer) {
                wake.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routing<oneshot::Sender<Answer>>> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a link to one router, for as long as it is polled.
    pub(super) async fn keep_link(&self, peer: usize, place: &Place, hello: &Hello) {
        let (shortest, longest) = limits::REOPEN_BACKOFF;
        let mut pause = shortest;
        let mut is_said = false;
        loop {
            match place.open().await {
                Ok((reader, writer)) => {
                    let mut link = PeerLink {
                        gateway: self,
                        peer,
                        frames: FrameReader::new(reader),
                        writer,
                        lease: limits::HELLO_TIMEOUT,
                        is_taken: false,
                    };
                    let end = link.run(hello).await;
                    if link.is_taken {
                        (pause, is_said) = (shortest, false);
                    }
                    self.handle_link_down(peer);
                    say_once(&mut is_said, place, &format!("{end:?}"));
                }
                Err(reason) => say_once(&mut is_said, place, &reason),
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    fn handle_link_down(&self, peer: usize) {
        let mut routing = self.lock();
        routing.handle_link_down(peer);
        self.wake(&routing);
    }

    fn handle(&self, peer: usize, message: Outbound) {
        let mut routing = self.lock();
        let answered = match message {
            Outbound::SendAck(ack) => (ack.ticket, Answer::Sent(ack)),
            Outbound::QueryAnswer(answer) => match answer.kind {
                Some(kind) => (answer.ticket, Answer::Queried(kind)),
                None => return,
            },
            Outbound::Ownership(ownership) => {
                routing.handle_ownership(peer, &ownership);
                self.wake(&routing);
                return;
            }
            // There are no clients here that these could be for.
            Outbound::HelloAck(_)
            | Outbound::Registered(_)
            | Outbound::Deliver(_)
            | Outbound::Receipt(_)
            | Outbound::Signal(_)
            | Outbound::Gap(_)
            | Outbound::Disconnect(_)
            | Outbound::Relay(_)
            | Outbound::Heartbeat(_) => return,
        };
        let (ticket, answer) = answered;
        if let Some(waiter) = routing.handle_answer(ticket) {
            // Who waited may have gone meanwhile.
            let _ = waiter.send(answer);
        }
    }
}

/// A router that cannot be reached is told of once, until it was there again.
fn say_once(is_said: &mut bool, place: &Place, reason: &str) {
    if !std::mem::replace(is_said, true) {
        tracing::warn!(%place, reason, "the server API has no link to a router");
    }
}

impl Asking<'_> {
    /// Waits until the message is durable: its id and the time.
    ///
    /// # Errors
    /// It was refused, or no answer came in time.
    pub(super) async fn sent(self) -> Result<(u64, i64), ApiError> {
        match self.wait().await? {
            Answer::Sent(SendAck { failure: Some(failure), .. }) => Err(failure.into()),
            Answer::Sent(ack) => Ok((ack.message_id, ack.time_ms)),
            Answer::Queried(_) => Err(ApiError::internal("the router answered something else")),
        }
    }

    /// Waits for what the Hub says.
    ///
    /// # Errors
    /// It was refused, or no answer came in time.
    pub(super) async fn answered(self) -> Result<Answered, ApiError> {
        match self.wait().await? {
            Answer::Queried(Answered::Failure(failure)) => Err(failure.into()),
            Answer::Queried(kind) => Ok(kind),
            Answer::Sent(_) => Err(ApiError::internal("the router answered something else")),
        }
    }

    async fn wait(mut self) -> Result<Answer, ApiError> {
        match timeout_at(self.deadline, &mut self.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ApiError::unavailable("the router is stopping")),
            Err(_) if self.gateway.lock().is_any_up() => {
                Err(ApiError::unavailable("the router that has the user did not answer in time"))
            }
            Err(_) => Err(ApiError::unavailable("no router is in reach")),
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.gateway.lock().forget(self.ticket);
    }
}

impl Place {
    async fn open(&self) -> Result<(Reader, Writer), String> {
        match self {
            Self::Here(links) => {
                let (ours, theirs) = tokio::io::duplex(HERE_BYTES);
                let (reader, writer) = tokio::io::split(theirs);
                let links = Arc::clone(links);
                links.ways.metrics.links_accepted.inc();
                let serving = links.serve(Box::new(reader), Box::new(writer), "api".to_owned());
                tokio::spawn(serving);
                let (reader, writer) = tokio::io::split(ours);
                Ok((Box::new(reader), Box::new(writer)))
            }
            Self::There(listen, tls) => {
                let opening = open_elsewhere(listen, tls.as_ref());
                let opened = timeout(limits::HELLO_TIMEOUT, opening).await;
                opened.unwrap_or_else(|_| Err("the connection was not there in time".to_owned()))
            }
        }
    }
}

async fn open_elsewhere(
    listen: &Listen,
    tls: Option<&PeerTls>,
) -> Result<(Reader, Writer), String> {
    let said = |error: std::io::Error| error.to_string();
    match listen {
        Listen::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(said)?;
            // Batches are built here; the kernel shall not wait for more.
            let _ = stream.set_nodelay(true);
            match tls {
                Some(tls) => {
                    let stream = tls.connect(address.ip(), stream).await.map_err(said)?;
                    let (reader, writer) = tokio::io::split(stream);
                    Ok((Box::new(reader), Box::new(writer)))
                }
                None => {
                    let (reader, writer) = stream.into_split();
                    Ok((Box::new(reader), Box::new(writer)))
                }
            }
        }
        Listen::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await.map_err(said)?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("this router"),
            Self::There(listen, _) => listen.fmt(f),
        }
    }
}

/// One link to a router, from this side.
struct PeerLink<'a> {
    gateway: &'a Gateway,
    peer: usize,
    frames: FrameReader,
    writer: Writer,
    /// Of the router; until it has said one, how long it may take to.
    lease: Duration,
    is_taken: bool,
}

impl PeerLink<'_> {
    async fn run(&mut self, hello: &Hello) -> End {
        match self.serve(hello).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn serve(&mut self, hello: &Hello) -> Result<std::convert::Infallible, End> {
        let end = Inbound::SnapshotEnd(SnapshotEnd { shard: 0 });
        self.say(vec![Inbound::Hello(hello.clone()), end]).await?;
        let first = timeout(self.lease, self.frames.next()).await.map_err(|_| End::Silent)??;
        self.handle_first(first)?;
        let mut heartbeat = interval(self.lease / 3);
        let mut heard_at = Instant::now();
        let wake = &self.gateway.wakes[self.peer];
        loop {
            // Before the first wait too: what waited for the link is to go out.
            let outgoing = self.gateway.lock().take_outgoing(self.peer);
            self.say(outgoing).await?;
            tokio::select! {
                frame = self.frames.next() => {
                    heard_at = Instant::now();
                    self.handle(frame?)?;
                }
                () = wake.notified() => {}
                () = tokio::time::sleep_until(heard_at + self.lease) => return Err(End::Silent),
                _ = heartbeat.tick() => {
                    let beat = Inbound::Heartbeat(Heartbeat { time_ms: unix_ms() });
                    self.say(vec![beat]).await?;
                }
            }
        }
    }

    /// The first frame begins with HelloAck, or this is no router.
    fn handle_first(&mut self, frame: Bytes) -> Result<(), End> {
        let mut messages = decode(frame)?.into_iter();
        let Some(Outbound::HelloAck(ack)) = messages.next() else {
            return Err(End::Protocol("the first message is not HelloAck".to_owned()));
        };
        if !ack.refused.is_empty() {
            return Err(End::Refused(ack.refused));
        }
        tracing::info!(router = ack.router_id, version = ack.version, "the server API has a link");
        self.is_taken = true;
        self.lease = Duration::from_millis(ack.lease_ms.into()).max(limits::API_LEASE_MIN);
        self.gateway.lock().handle_hello_ack(self.peer, &ack);
        messages.for_each(|message| self.gateway.handle(self.peer, message));
        Ok(())
    }

    fn handle(&self, frame: Bytes) -> Result<(), End> {
        for message in decode(frame)? {
            self.gateway.handle(self.peer, message);
        }
        Ok(())
    }

    /// Writes messages, in frames that are closed at [`limits::BATCH_BYTES_MAX`].
    async fn say(&mut self, messages: Vec<Inbound>) -> Result<(), End> {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let mut batch = EdgeBatch::default();
            let mut bytes = 0;
            while bytes < limits::BATCH_BYTES_MAX
                && let Some(message) = messages.next()
            {
                let message = EdgeMessage { message: Some(message) };
                bytes += message.encoded_len();
                batch.messages.push(message);
            }
            let mut frame = Vec::with_capacity(bytes + REQUEST_BYTES);
            let mark = begin_frame(&mut frame);
            batch.encode_raw(&mut frame);
            finish_frame(&mut frame, mark);
            let writing = async {
                self.writer.write_all(&frame).await?;
                self.writer.flush().await
            };
            let written = timeout(self.lease, writing).await.map_err(|_| End::Silent)?;
            written.map_err(|error| End::Failed(error.kind()))?;
        }
        Ok(())
    }
}

fn decode(frame: Bytes) -> Result<Vec<Outbound>, End> {
    let batch = RouterBatch::decode(frame).map_err(|error| End::Protocol(error.to_string()))?;
    // A kind of message that a newer router knows is passed over.
    Ok(batch.messages.into_iter().filter_map(|message| message.message).collect())
}
