//! One router process: its links, owners, committer and saver, on virtual time.
//!
//! The links stand in for `link::Links`, which needs tokio: hello, snapshot, lease, the same steps. The registry
//! of edges and what waits to be written are the router's own.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hawser_proto::framing::{LENGTH_BYTES, first_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{EdgeBatch, Heartbeat, Hello, HelloAck};
use hawser_proto::partition::partition_of;
use hawser_router::edges::{Edges, Joined};
use hawser_router::hub::HubConfig;
use hawser_router::outgoing::Outgoing;
use hawser_router::owner::ToOwner;
use hawser_router::registry::{EdgeId, Session};
use prost::Message as _;

use crate::disk::{Committer, Disk, PARTITIONS};
use crate::env::{Env, Sabotage};
use crate::net::{Arrival, Side, StreamId};
use crate::owner::{OWNERS, Owner};

/// Unacknowledged deliveries that are let out to one device.
pub(crate) const WINDOW_MESSAGES: usize = 3;
/// Without a frame for this long an edge is given up.
const LEASE_MS: u64 = 1_500;

/// See the module.
pub(crate) struct Router {
    owners: Vec<Owner>,
    committer: Committer,
    edges: Edges,
    links: Vec<Link>,
    leases: Vec<Lease>,
    epoch: u64,
    /// Streams that edges have opened and nobody has looked at.
    pub(crate) accepting: Vec<StreamId>,
}

struct Link {
    stream: StreamId,
    outgoing: Arc<Outgoing>,
    input: Vec<u8>,
    joined: Option<JoinedEdge>,
    heard_at_ms: u64,
    said_at_ms: u64,
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

impl Router {
    /// A router that has read its disk.
    pub(crate) fn start(env: &mut Env, disk: &Disk) -> Self {
        let wide = env.sabotage == Sabotage::WideWindow;
        let config = HubConfig {
            window_messages: if wide { WINDOW_MESSAGES + 1 } else { WINDOW_MESSAGES },
            inbox_messages_max: 10_000,
            inbox_age_max_ms: 3_600_000,
            memory_bytes_max: if env.rng.bool() { 2_000 } else { 1_000_000 },
            record_bytes_max: usize::MAX,
            trace_steps_max: 0,
        };
        let (hubs, committer) = disk.recover(env, &config);
        let owners = hubs.into_iter().enumerate().map(|(index, hubs)| Owner::new(index, hubs));
        Self {
            owners: owners.collect(),
            committer,
            edges: Edges::default(),
            links: Vec::new(),
            leases: Vec::new(),
            epoch: env.rng.u64(1..),
            accepting: Vec::new(),
        }
    }

    /// The process dies. What its threads were about to write is written or not.
    pub(crate) fn die(mut self, env: &mut Env, disk: &mut Disk) {
        for stream in self.links.iter().map(|link| link.stream).chain(self.accepting.drain(..)) {
            env.net.cut(&mut env.rng, stream);
        }
        while env.rng.bool() && !self.committer.requests.is_empty() {
            let _ = self.committer.turn(env, disk);
        }
        disk.crash(env);
    }

    /// Some of its tasks get to run.
    pub(crate) fn turn(&mut self, env: &mut Env, disk: &mut Disk) {
        for stream in self.accepting.drain(..) {
            self.links.push(Link {
                stream,
                outgoing: Arc::default(),
                input: Vec::new(),
                joined: None,
                heard_at_ms: env.ms,
                said_at_ms: env.ms,
            });
        }
        for mut link in std::mem::take(&mut self.links) {
            match self.serve(env, &mut link) {
                Ok(()) => self.links.push(link),
                Err(Ended) => self.end(env, link),
            }
        }
        self.expire_leases(env.ms);
        for (owner, answer) in self.committer.turn(env, disk) {
            self.owners[owner].answers.push_back(answer);
        }
        for index in 0..OWNERS {
            let receipts = self.owners[index].turn(env, &mut self.committer);
            if !receipts.is_empty() {
                self.owners[(index + 1) % OWNERS].inbox.push_back(ToOwner::Receipts(receipts));
            }
        }
        for link in &mut self.links {
            link.write(env);
        }
    }

    fn tell_owners(&mut self, message: impl Fn() -> ToOwner) {
        self.owners.iter_mut().for_each(|owner| owner.inbox.push_back(message()));
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
            self.handle(link, messages);
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

    fn handle(&mut self, link: &mut Link, messages: impl Iterator<Item = Inbound>) {
        let mut sorted: Vec<Vec<_>> = vec![Vec::new(); OWNERS];
        let mut is_told = false;
        for message in messages {
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
                Inbound::Query(query) => &query.user,
            };
            let partition = partition_of(user, PARTITIONS);
            sorted[usize::from(partition) % OWNERS].push((partition, message));
        }
        let joined = link.joined.as_ref().expect("a link begins with Hello");
        let (id, session) = (joined.id, joined.session);
        for (owner, batch) in self.owners.iter_mut().zip(sorted) {
            if !batch.is_empty() {
                owner.inbox.push_back(ToOwner::Batch(id, session, batch));
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
            router_id: "router".to_owned(),
            epoch: self.epoch,
            protocol: 1,
            lease_ms: LEASE_MS as u32,
            window_messages: WINDOW_MESSAGES as u32,
            ..HelloAck::default()
        }));
        if let Some(gone) = gone {
            self.tell_owners(|| ToOwner::EdgeGone(gone, Session(u32::MAX)));
        }
        let outgoing = &link.outgoing;
        self.tell_owners(|| ToOwner::EdgeUp(id, session, Arc::clone(outgoing)));
        let (name, told) = (hello.edge_id.clone(), vec![false; hello.shards as usize]);
        link.joined = Some(JoinedEdge { name, id, session, told });
    }

    fn end(&mut self, env: &mut Env, mut link: Link) {
        env.net.close(link.stream, Side::Acceptor);
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
        if !env.net.has_room(self.stream, Side::Acceptor) {
            return;
        }
        let mut bytes = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let taken = pin!(self.outgoing.take(&mut bytes)).poll(&mut context);
        if taken == Poll::Ready(()) {
            env.net.write(env.ms, &mut env.rng, self.stream, Side::Acceptor, &bytes);
        }
    }
}
