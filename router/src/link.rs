//! One edge's link: hello, snapshot, traffic, lease.
//!
//! ```text
//!  accepted ─ Hello ─► joined ─ SnapshotEnd of every shard ─► told
//!     │ 10 s, not Hello      │ bad bytes, closed, or silent for a lease
//!     └──────► ended ◄───────┘ ─ lease ─► its connections are forgotten
//! ```
//!
//! The reader sorts what a frame says by owner and waits where an owner is full: so a busy router slows
//! its edges down. The writer writes whatever has gathered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_proto::framing::{LENGTH_BYTES, first_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Claim, EdgeBatch, Heartbeat, Hello, HelloAck, Ownership};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::edges::{Edges, Joined};
use crate::hub::queries::partition_of_query;
use crate::limits;
use crate::outgoing::Outgoing;
use crate::owner::{ToOwner, Ways};
use crate::queue::PartitionId;
use crate::registry::{EdgeId, Session};
use hawser_proto::partition::partition_of;

/// The link protocol that this release speaks (link.proto).
pub(crate) const PROTOCOL: u32 = 1;
/// Space that is kept ready for reading, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// How a handshake of TLS begins (RFC 8446 section 5.1).
const TLS_HANDSHAKE: [u8; 3] = [0x16, 0x03, 0x01];
/// How long the last bytes of a link may take.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reading half of a link.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half of a link.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// What all links share.
#[derive(Debug)]
pub struct Links {
    /// To the owners.
    pub ways: Ways,
    /// Known edges.
    pub edges: Edges,
    /// Name of this router.
    pub router_id: String,
    /// Drawn at the start of the process.
    pub epoch: u64,
    /// Without a frame for this long an edge is given up.
    pub lease: Duration,
    /// Told to edges, who tell it to clients.
    pub window_messages: u32,
    /// What is served here, told to edges; absent where every user is.
    pub ownership: Option<Mutex<Ownership>>,
}

/// Why a link ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The edge closed it.
    Closed,
    /// This router closed it: a newer link, an overflow, or the process stops.
    Asked,
    /// The edge said nothing for a lease, or no Hello in time.
    Silent,
    /// It could not be read.
    Failed(std::io::ErrorKind),
    /// It broke the protocol.
    Protocol(String),
    /// It was not let in.
    Refused(String),
}

impl Links {
    /// Tells every edge what is served here from now on.
    pub fn announce(&self, claims: Vec<(PartitionId, u64)>) {
        let Some(ownership) = &self.ownership else { return };
        let claim = |(partition, epoch)| Claim { partition: u32::from(partition), epoch };
        // Held until all are told, so that a link that begins meanwhile hears the later one last.
        let mut ownership = ownership.lock().unwrap_or_else(PoisonError::into_inner);
        ownership.claims = claims.into_iter().map(claim).collect();
        for link in self.edges.links() {
            tell_ownership(&link, &ownership);
        }
    }

    fn partitions(&self) -> u32 {
        self.ownership.as_ref().map_or(0, |_| u32::from(self.ways.partitions))
    }

    /// Serves one link until it ends, and looks after the lease.
    pub async fn serve(self: Arc<Self>, reader: Reader, writer: Writer, peer: String) {
        let outgoing = Arc::new(Outgoing::default());
        let writing = tokio::spawn(write(writer, Arc::clone(&outgoing)));
        let mut link = Link {
            links: &self,
            outgoing: &outgoing,
            frames: FrameReader::new(reader),
            joined: None,
            heard_at: Instant::now(),
        };
        let end = link.serve().await;
        let (joined, heard_at) = (link.joined.take(), link.heard_at);
        outgoing.close();
        let edge = joined.as_ref().map_or("", |joined| joined.name.as_str());
        match &end {
            End::Closed | End::Asked => tracing::info!(peer, edge, ?end, "link ended"),
            End::Silent | End::Failed(_) | End::Protocol(_) | End::Refused(_) => {
                tracing::warn!(peer, edge, ?end, "link ended");
            }
        }
        self.ways.metrics.links_ended.inc();
        if let Some(joined) = joined {
            let remaining = self.lease.saturating_sub(heard_at.elapsed());
            self.look_after_lease(joined, remaining).await;
        }
        let _ = writing.await;
    }

    async fn look_after_lease(self: &Arc<Self>, joined: JoinedEdge, remaining: Duration) {
        let JoinedEdge { name, id, session, .. } = joined;
        let is_last = self.edges.leave(&name, id, session);
        self.tell_owners(|| ToOwner::EdgeDown(id, session)).await;
        if !is_last {
            return;
        }
        let links = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(remaining).await;
            if links.edges.expire(&name, id, session) {
                tracing::warn!(
                    edge = name,
                    "the edge's lease ended; its connections are forgotten"
                );
                links.tell_owners(|| ToOwner::EdgeGone(id, session)).await;
            }
        });
    }

    async fn tell_owners(&self, message: impl Fn() -> ToOwner) {
        for owner in &self.ways.owners {
            // An owner that is gone has nothing left to forget.
            let _ = owner.send(message()).await;
        }
    }
}

/// A link that said Hello.
#[derive(Debug)]
struct JoinedEdge {
    name: String,
    id: EdgeId,
    session: Session,
    /// Which shards have told all their connections.
    told: Vec<bool>,
}

struct Link<'a> {
    links: &'a Arc<Links>,
    outgoing: &'a Arc<Outgoing>,
    frames: FrameReader,
    joined: Option<JoinedEdge>,
    heard_at: Instant,
}

impl Link<'_> {
    async fn serve(&mut self) -> End {
        match self.run().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        let first = timeout(limits::HELLO_TIMEOUT, self.frames.first());
        let mut messages = decode(first.await.map_err(|_| End::Silent)??)?.into_iter();
        self.heard_at = Instant::now();
        match messages.next() {
            Some(Inbound::Hello(hello)) => self.join(hello).await?,
            _ => return Err(End::Protocol("the first message is not Hello".to_owned())),
        }
        self.handle(messages).await?;
        let mut heartbeat = tokio::time::interval(self.links.lease / 3);
        loop {
            let silent_at = self.heard_at + self.links.lease;
            tokio::select! {
                frame = self.frames.next() => {
                    self.heard_at = Instant::now();
                    let messages = decode(frame?)?;
                    self.handle(messages.into_iter()).await?;
                }
                () = self.outgoing.closed() => return Err(End::Asked),
                () = tokio::time::sleep_until(silent_at) => return Err(End::Silent),
                _ = heartbeat.tick() => self.send(Outbound::Heartbeat(Heartbeat { time_ms: unix_ms() })),
            }
        }
    }

    async fn join(&mut self, hello: Hello) -> Result<(), End> {
        let name = hello.edge_id.clone();
        let joined = match check_hello(&hello) {
            Ok(()) => self.links.edges.join(&name, hello.epoch, self.outgoing),
            Err(reason) => Err(reason),
        };
        let ack = |refused: &str| HelloAck {
            router_id: self.links.router_id.clone(),
            epoch: self.links.epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            lease_ms: self.links.lease.as_millis() as u32,
            refused: refused.to_owned(),
            window_messages: self.links.window_messages,
            partitions: self.links.partitions(),
        };
        let Joined { id, session, gone } = match joined {
            Ok(joined) => joined,
            Err(reason) => {
                self.send(Outbound::HelloAck(ack(&reason)));
                return Err(End::Refused(reason));
            }
        };
        self.outgoing.set_edge(&name);
        tracing::info!(
            edge = name,
            version = hello.version,
            region = hello.region,
            session = session.0,
            "link up"
        );
        // Before any owner knows the link, so that nothing overtakes the answer.
        self.send(Outbound::HelloAck(ack("")));
        if let Some(gone) = gone {
            self.links.tell_owners(|| ToOwner::EdgeGone(gone, Session(u32::MAX))).await;
        }
        let outgoing = self.outgoing;
        self.links.tell_owners(|| ToOwner::EdgeUp(id, session, Arc::clone(outgoing))).await;
        if let Some(ownership) = &self.links.ownership {
            let ownership = ownership.lock().unwrap_or_else(PoisonError::into_inner);
            tell_ownership(outgoing, &ownership);
        }
        let told = vec![false; hello.shards as usize];
        self.joined = Some(JoinedEdge { name, id, session, told });
        Ok(())
    }

    /// Brings the messages of one frame to the owners of their users.
    async fn handle(&mut self, messages: impl Iterator<Item = Inbound>) -> Result<(), End> {
        let Some((id, session)) = self.joined.as_ref().map(|joined| (joined.id, joined.session))
        else {
            return Ok(());
        };
        let (owners, partitions) = (self.links.ways.owners.len(), self.links.ways.partitions);
        let mut sorted: Vec<Vec<(PartitionId, Inbound)>> = vec![Vec::new(); owners];
        let mut is_told = false;
        for message in messages {
            let user = match &message {
                Inbound::Register(register) => &register.user,
                Inbound::Unregister(unregister) => &unregister.user,
                // A group has no partition yet; any Hub says so.
                Inbound::Send(send) => &send.to_user,
                Inbound::Ack(ack) => &ack.user,
                Inbound::Signal(signal) => &signal.to,
                Inbound::Sync(sync) => &sync.user,
                Inbound::Relay(relay) => &relay.to,
                Inbound::Query(query) => {
                    // Any Hub says that a message of no partition is not there.
                    let partition = partition_of_query(query, partitions) % partitions;
                    sorted[self.links.ways.owner_of(partition)].push((partition, message));
                    continue;
                }
                Inbound::SnapshotEnd(end) => {
                    is_told |= self.note_told(end.shard)?;
                    continue;
                }
                Inbound::Heartbeat(_) => continue,
                Inbound::Hello(_) => return Err(End::Protocol("a second Hello".to_owned())),
            };
            let partition = partition_of(user, partitions);
            sorted[self.links.ways.owner_of(partition)].push((partition, message));
        }
        for (owner, batch) in self.links.ways.owners.iter().zip(sorted) {
            if !batch.is_empty() && owner.send(ToOwner::Batch(id, session, batch)).await.is_err() {
                return Err(End::Asked);
            }
        }
        if is_told {
            self.links.tell_owners(|| ToOwner::EdgeTold(id, session)).await;
        }
        Ok(())
    }

    /// A shard has told all its connections. Answers whether it was the last.
    fn note_told(&mut self, shard: u32) -> Result<bool, End> {
        let told = self.joined.as_mut().map_or(&mut [][..], |joined| &mut joined.told);
        match told.get_mut(shard as usize) {
            Some(told) if *told => return Ok(false),
            Some(told) => *told = true,
            None => return Err(End::Protocol(format!("SnapshotEnd of shard {shard}"))),
        }
        Ok(told.iter().all(|told| *told))
    }

    fn send(&self, message: Outbound) {
        // A link that overflows is closed by the owner that finds out.
        let _ = self.outgoing.push_all([message]);
        self.outgoing.wake();
    }
}

fn tell_ownership(link: &Outgoing, ownership: &Ownership) {
    // A link that overflows is closed by the owner that finds out.
    let _ = link.push_all([Outbound::Ownership(ownership.clone())]);
    link.wake();
}

fn check_hello(hello: &Hello) -> Result<(), String> {
    if hello.protocol != PROTOCOL {
        return Err(format!(
            "this router speaks link protocol {PROTOCOL}, the edge {}",
            hello.protocol
        ));
    }
    if !(1..=limits::EDGE_ID_BYTES_MAX).contains(&hello.edge_id.len()) {
        return Err("an edge id has 1 to 64 bytes".to_owned());
    }
    if !(1..=limits::EDGE_SHARDS_MAX).contains(&hello.shards) {
        return Err(format!("an edge has 1 to {} shards", limits::EDGE_SHARDS_MAX));
    }
    Ok(())
}

fn decode(frame: Bytes) -> Result<Vec<Inbound>, End> {
    let batch = EdgeBatch::decode(frame).map_err(|error| End::Protocol(error.to_string()))?;
    // A kind of message that a newer edge knows is passed over.
    Ok(batch.messages.into_iter().filter_map(|message| message.message).collect())
}

/// Frames out of a stream of bytes.
pub(crate) struct FrameReader {
    reader: Reader,
    buffer: BytesMut,
}

impl FrameReader {
    /// Nothing is read yet.
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// The body of the first frame, unless the stream begins with a handshake of TLS: as the length of a frame that is
    /// more than any Hello has, and would be waited for.
    async fn first(&mut self) -> Result<Bytes, End> {
        while self.buffer.len() < LENGTH_BYTES {
            self.fill().await?;
        }
        if self.buffer.starts_with(&TLS_HANDSHAKE) {
            let text = "it speaks TLS, for which --link-tls-cert has to be given";
            return Err(End::Protocol(text.to_owned()));
        }
        self.next().await
    }

    /// The body of the next frame. Loses nothing when it is dropped while it waits.
    pub(crate) async fn next(&mut self) -> Result<Bytes, End> {
        loop {
            match first_frame(&self.buffer) {
                Ok(Some(body)) => {
                    let length = LENGTH_BYTES + body.len();
                    return Ok(self.buffer.split_to(length).freeze().slice(LENGTH_BYTES..));
                }
                Ok(None) => {}
                Err(error) => return Err(End::Protocol(error.to_string())),
            }
            self.fill().await?;
        }
    }

    /// Reads some bytes more.
    async fn fill(&mut self) -> Result<(), End> {
        self.buffer.reserve(READ_BYTES);
        match self.reader.read_buf(&mut self.buffer).await {
            Ok(0) => Err(End::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(End::Failed(error.kind())),
        }
    }
}

/// Writes what gathers until the link is closed, then what is left.
async fn write(mut writer: Writer, outgoing: Arc<Outgoing>) {
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = outgoing.take(&mut bytes) => {}
            () = outgoing.closed() => break,
        }
        tokio::select! {
            written = write_through(&mut writer, &bytes) => {
                if written.is_err() {
                    // The reader finds out for itself, or the lease does.
                    outgoing.close();
                    return;
                }
            }
            // A write that is stuck does not keep a link that shall end.
            () = async { outgoing.closed().await; tokio::time::sleep(LAST_WRITE_TIMEOUT).await } => return,
        }
        bytes.clear();
        if bytes.capacity() > limits::BATCH_BYTES_MAX * 4 {
            bytes = Vec::new();
        }
    }
    let _ = timeout(LAST_WRITE_TIMEOUT, writer.shutdown()).await;
}

/// Also out of the buffers of a writer that has some, as that of TLS.
async fn write_through(writer: &mut Writer, bytes: &[u8]) -> std::io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Milliseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "a link is the rim: heartbeats carry the time")]
pub(crate) fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as i64
}
