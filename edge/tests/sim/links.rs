//! The links of one router. Stands in for `link::Links`, which needs tokio: hello, snapshot, lease, the same steps. The
//! registry of edges and what waits to be written are the router's own.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame, first_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{
    Claim, EdgeBatch, Heartbeat, Hello, HelloAck, Ownership, RouterBatch, RouterMessage,
};
use hawser_proto::partition::partition_of;
use hawser_router::edges::{Edges, Joined};
use hawser_router::outgoing::Outgoing;
use hawser_router::owner::ToOwner;
use hawser_router::queue::PartitionId;
use hawser_router::registry::{EdgeId, Session};
use prost::Message as _;

use crate::engine::PARTITIONS;
use crate::env::{Env, Sabotage};
use crate::history::{MessageName, name_of_payload};
use crate::net::{Arrival, Side, StreamId};
use crate::router::{OWNERS, WINDOW_MESSAGES};

/// Without a frame for this long an edge is given up.
const LEASE_MS: u64 = 1_500;

/// See the module.
pub(crate) struct Links {
    /// Name of the router.
    name: String,
    edges: Edges,
    links: Vec<Link>,
    leases: Vec<Lease>,
    epoch: u64,
    /// What edges are told; absent where this router has every user.
    claims: Option<Vec<(PartitionId, u64)>>,
    /// Streams that edges have opened and nobody has looked at.
    pub(crate) accepting: Vec<StreamId>,
    /// For owners, in order.
    pub(crate) told: Vec<(usize, ToOwner)>,
}

struct Link {
    stream: StreamId,
    outgoing: Arc<Outgoing>,
    input: Vec<u8>,
    joined: Option<JoinedEdge>,
    heard_at_ms: u64,
    said_at_ms: u64,
    /// Sends that came here, by connection and ticket.
    sends: BTreeMap<(u64, u64), MessageName>,
}

struct JoinedEdge {
    name: String,
    id: EdgeId,
    session: Session,
    told: Vec<bool>,
}

struct Lease {
    due_ms: u64,
    name: String,
    id: EdgeId,
    session: Session,
}

/// The link has to end.
struct Ended;

impl Links {
    /// None.
    pub(crate) fn new(env: &mut Env, name: String, is_sole: bool) -> Self {
        Self {
            name,
            edges: Edges::default(),
            links: Vec::new(),
            leases: Vec::new(),
            epoch: env.rng.u64(1..),
            claims: (!is_sole).then(Vec::new),
            accepting: Vec::new(),
            told: Vec::new(),
        }
    }

    /// The process dies.
    pub(crate) fn die(&mut self, env: &mut Env) {
        for stream in self.links.iter().map(|link| link.stream).chain(self.accepting.drain(..)) {
            env.net.cut(&mut env.rng, stream);
        }
    }

    /// Reads what has come.
    pub(crate) fn read(&mut self, env: &mut Env) {
        for stream in self.accepting.drain(..) {
            self.links.push(Link {
                stream,
                outgoing: Arc::default(),
                input: Vec::new(),
                joined: None,
                heard_at_ms: env.ms,
                said_at_ms: env.ms,
                sends: BTreeMap::new(),
            });
        }
        for mut link in std::mem::take(&mut self.links) {
            match self.serve(env, &mut link) {
                Ok(()) => self.links.push(link),
                Err(Ended) => self.end(env, link),
            }
        }
        self.expire_leases(env.ms);
    }

    /// Writes what has gathered.
    pub(crate) fn write(&mut self, env: &mut Env) {
        for link in &mut self.links {
            link.write(env);
        }
    }

    /// Tells every edge what is served here from now on, where that has changed.
    pub(crate) fn announce(&mut self, env: &mut Env, mut claims: Vec<(PartitionId, u64)>) {
        if env.sabotage == Sabotage::AnyEpoch {
            // As if an edge believed whoever said it last.
            let known = self.claims.iter().flatten().map(|(partition, _)| *partition);
            if known.eq(claims.iter().map(|(partition, _)| *partition)) && !env.once_in(20) {
                return;
            }
            for (_, epoch) in &mut claims {
                env.epochs_told += 1;
                *epoch = env.epochs_told;
            }
        }
        if self.claims.as_ref().is_none_or(|known| *known == claims) {
            return;
        }
        env.trace(|| format!("{} owns {claims:?}", self.name));
        self.claims = Some(claims);
        for link in self.links.iter().filter(|link| link.joined.is_some()) {
            self.tell_claims(link);
        }
    }

    fn tell_claims(&self, link: &Link) {
        let Some(claims) = &self.claims else { return };
        let claim = |&(partition, epoch): &(PartitionId, u64)| Claim {
            partition: u32::from(partition),
            epoch,
        };
        let claims = claims.iter().map(claim).collect();
        link.send(Outbound::Ownership(Ownership { partitions: u32::from(PARTITIONS), claims }));
    }

    fn tell_owners(&mut self, message: impl Fn() -> ToOwner) {
        self.told.extend((0..OWNERS).map(|owner| (owner, message())));
    }

    fn serve(&mut self, env: &mut Env, link: &mut Link) -> Result<(), Ended> {
        match env.net.read(env.ms, &mut env.rng, link.stream, Side::Acceptor) {
            Arrival::Nothing => {}
            Arrival::Bytes(bytes) => link.input.extend(bytes),
            Arrival::End(_) => return Err(Ended),
        }
        while let Some(body) = first_frame(&link.input).expect("our own edge") {
            let batch = EdgeBatch::decode(body).expect("our own edge");
            let taken = LENGTH_BYTES + body.len();
            link.input.drain(..taken);
            link.heard_at_ms = env.ms;
            let messages = batch.messages.into_iter().filter_map(|message| message.message);
            self.handle(env, link, messages);
        }
        if link.outgoing.is_closed() || env.ms >= link.heard_at_ms + LEASE_MS {
            return Err(Ended);
        }
        if env.ms >= link.said_at_ms + LEASE_MS / 3 {
            link.said_at_ms = env.ms;
            link.send(Outbound::Heartbeat(Heartbeat { time_ms: env.router_now().unix_ms }));
        }
        Ok(())
    }

    fn handle(&mut self, env: &mut Env, link: &mut Link, messages: impl Iterator<Item = Inbound>) {
        let mut sorted: Vec<Vec<_>> = vec![Vec::new(); OWNERS];
        let mut is_told = false;
        for mut message in messages {
            note_send(env, link, &mut message);
            env.trace(|| format!("{} hears {message:?}", self.name));
            let user = match &message {
                Inbound::Hello(hello) => {
                    self.join(link, hello);
                    continue;
                }
                Inbound::SnapshotEnd(end) => {
                    is_told |= link.note_told(end.shard);
                    continue;
                }
                Inbound::Heartbeat(_) => continue,
                Inbound::Register(register) => &register.user,
                Inbound::Unregister(unregister) => &unregister.user,
                Inbound::Send(send) => &send.to_user,
                Inbound::Ack(ack) => &ack.user,
                Inbound::Signal(signal) => &signal.to,
                Inbound::Sync(sync) => &sync.user,
                Inbound::Relay(relay) => &relay.to,
                Inbound::Query(query) => &query.user,
            };
            let partition = partition_of(user, PARTITIONS);
            sorted[usize::from(partition) % OWNERS].push((partition, message));
        }
        let joined = link.joined.as_ref().expect("a link begins with Hello");
        let (id, session) = (joined.id, joined.session);
        for (owner, batch) in sorted.into_iter().enumerate() {
            if !batch.is_empty() {
                self.told.push((owner, ToOwner::Batch(id, session, batch)));
            }
        }
        if is_told {
            self.tell_owners(|| ToOwner::EdgeTold(id, session));
        }
    }

    fn join(&mut self, link: &mut Link, hello: &Hello) {
        let joined = self.edges.join(&hello.edge_id, hello.epoch, &link.outgoing);
        let Joined { id, session, gone } = joined.expect("two edges are not too many");
        link.send(Outbound::HelloAck(HelloAck {
            router_id: self.name.clone(),
            epoch: self.epoch,
            protocol: 1,
            lease_ms: LEASE_MS as u32,
            window_messages: WINDOW_MESSAGES as u32,
            partitions: self.claims.as_ref().map_or(0, |_| u32::from(PARTITIONS)),
            ..HelloAck::default()
        }));
        if let Some(gone) = gone {
            self.tell_owners(|| ToOwner::EdgeGone(gone, Session(u32::MAX)));
        }
        let outgoing = &link.outgoing;
        self.tell_owners(|| ToOwner::EdgeUp(id, session, Arc::clone(outgoing)));
        self.tell_claims(link);
        let (name, told) = (hello.edge_id.clone(), vec![false; hello.shards as usize]);
        link.joined = Some(JoinedEdge { name, id, session, told });
    }

    fn end(&mut self, env: &mut Env, mut link: Link) {
        env.net.close(link.stream, Side::Acceptor);
        // What nobody will read any more; an error among it was an answer all the same.
        let _ = link.take(env);
        link.outgoing.close();
        let Some(JoinedEdge { name, id, session, .. }) = link.joined.take() else { return };
        let is_last = self.edges.leave(&name, id, session);
        self.tell_owners(|| ToOwner::EdgeDown(id, session));
        if is_last {
            self.leases.push(Lease { due_ms: link.heard_at_ms + LEASE_MS, name, id, session });
        }
    }

    fn expire_leases(&mut self, ms: u64) {
        let (due, left) =
            std::mem::take(&mut self.leases).into_iter().partition(|lease| lease.due_ms <= ms);
        self.leases = left;
        let due: Vec<Lease> = due;
        for Lease { name, id, session, .. } in due {
            if self.edges.expire(&name, id, session) {
                self.tell_owners(|| ToOwner::EdgeGone(id, session));
            }
        }
    }
}

impl Link {
    fn note_told(&mut self, shard: u32) -> bool {
        let told = self.joined.as_mut().map(|joined| &mut joined.told).expect("after Hello");
        told[shard as usize] = true;
        told.iter().all(|told| *told)
    }

    fn send(&self, message: Outbound) {
        self.outgoing.push_all([message]).expect("far from the bound");
    }

    /// Writes what has gathered.
    fn write(&mut self, env: &mut Env) {
        if env.net.has_room(self.stream, Side::Acceptor)
            && let Some(bytes) = self.take(env)
        {
            env.net.write(env.ms, &mut env.rng, self.stream, Side::Acceptor, &bytes);
        }
    }

    /// What has gathered, without what is forgotten on purpose.
    fn take(&mut self, env: &mut Env) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        if pin!(self.outgoing.take(&mut bytes)).poll(&mut context) == Poll::Pending {
            return None;
        }
        let (mut rest, mut kept) = (&bytes[..], RouterBatch::default());
        while let Some(body) = first_frame(rest).expect("our own router") {
            rest = &rest[LENGTH_BYTES + body.len()..];
            let batch = RouterBatch::decode(body).expect("our own router");
            for RouterMessage { message } in batch.messages {
                let Some(message) = message else { continue };
                if self.note_said(env, &message) {
                    kept.messages.push(RouterMessage { message: Some(message) });
                }
            }
        }
        let mut frame = Vec::new();
        let mark = begin_frame(&mut frame);
        kept.encode_raw(&mut frame);
        finish_frame(&mut frame, mark);
        (!kept.messages.is_empty()).then_some(frame)
    }

    /// Notes what is told to the edge. Answers whether it is told.
    fn note_said(&mut self, env: &mut Env, message: &Outbound) -> bool {
        env.trace(|| format!("told to an edge: {message:?}"));
        if let Outbound::SendAck(ack) = message
            && let Some(name) = self.sends.remove(&(ack.connection, ack.ticket))
            && ack.failure.is_some()
        {
            env.history.note_failed(&name);
        }
        if matches!(message, Outbound::Deliver(_)) {
            env.delivers += 1;
            return env.sabotage != Sabotage::DropDeliver(env.delivers);
        }
        true
    }
}

/// Notes a send; with [`Sabotage::ForgetIdempotency`] no two sends have the same id.
fn note_send(env: &mut Env, link: &mut Link, message: &mut Inbound) {
    let Inbound::Send(send) = message else { return };
    if let Some(name) = name_of_payload(&send.payload) {
        link.sends.insert((send.connection, send.ticket), name);
    }
    if env.sabotage == Sabotage::ForgetIdempotency {
        send.client_message_id = env.rng.u64(..).to_string();
    }
}
