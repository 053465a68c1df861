//! Stands in for `owner::Owner`, which reads the clock by itself: the same steps, on virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::partition::partition_of;
use hawser_router::hub::{Effects, Event, Hub, Receipt};
use hawser_router::outgoing::Outgoing;
use hawser_router::owner::{Answer, ToOwner};
use hawser_router::queue::PartitionId;
use hawser_router::queue::committer::{Reply, Request};
use hawser_router::registry::EdgeId;

use crate::disk::{Committer, PARTITIONS};
use crate::env::{Env, Sabotage};
use crate::history::{MessageName, parse_name};

/// Owners of a router.
pub(crate) const OWNERS: usize = 2;
/// How often time is told to a Hub.
const TICK_MS: u64 = 100;

/// See the module.
pub(crate) struct Owner {
    index: usize,
    hubs: Vec<Hub>,
    links: Vec<(EdgeId, Arc<Outgoing>)>,
    effects: Effects,
    records: Vec<(PartitionId, Bytes)>,
    ticked_at_ms: u64,
    delivers: u32,
    /// What is on its way to the log, by who waits for it.
    sends: BTreeMap<(EdgeId, u64, u64), MessageName>,
    /// What links and other owners said.
    pub(crate) inbox: VecDeque<ToOwner>,
    /// What committer and saver said.
    pub(crate) answers: VecDeque<Answer>,
}

impl Owner {
    /// An owner of these Hubs.
    pub(crate) fn new(index: usize, hubs: Vec<Hub>) -> Self {
        Self {
            index,
            hubs,
            links: Vec::new(),
            effects: Effects::default(),
            records: Vec::new(),
            ticked_at_ms: 0,
            delivers: 0,
            sends: BTreeMap::new(),
            inbox: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// Handles some of what waits. Returns receipts for other owners.
    pub(crate) fn turn(&mut self, env: &mut Env, committer: &mut Committer) -> Vec<Receipt> {
        for _ in 0..env.rng.usize(..=self.answers.len()) {
            let Some(answer) = self.answers.pop_front() else { break };
            self.handle_answer(env, answer, committer);
        }
        for _ in 0..env.rng.usize(..=self.inbox.len()) {
            let Some(message) = self.inbox.pop_front() else { break };
            self.handle(env, message, committer);
        }
        if env.ms >= self.ticked_at_ms + TICK_MS {
            self.ticked_at_ms = env.ms;
            self.apply_all(env, committer, || Event::Tick);
        }
        self.flush(env, committer)
    }

    fn handle(&mut self, env: &mut Env, message: ToOwner, committer: &mut Committer) {
        match message {
            ToOwner::Batch(edge, session, messages) => {
                for (partition, mut message) in messages {
                    if let Inbound::Send(send) = &message
                        && let Some(name) = parse_name(&send.client_message_id)
                    {
                        self.sends.insert((edge, send.connection, send.ticket), name);
                    }
                    sabotage_send(env, &mut message);
                    env.trace(|| format!("router hears of edge {edge:?}.{session:?} {message:?}"));
                    let event = Event::Link { edge, session, message };
                    self.apply(env, committer, partition, event);
                }
            }
            ToOwner::EdgeUp(edge, session, outgoing) => {
                self.send_out(env);
                self.links.retain(|(known, _)| *known != edge);
                self.links.push((edge, outgoing));
                self.apply_all(env, committer, || Event::EdgeUp(edge, session));
            }
            ToOwner::EdgeDown(edge, session) => {
                self.apply_all(env, committer, || Event::EdgeDown(edge, session));
            }
            ToOwner::EdgeTold(edge, session) => {
                self.apply_all(env, committer, || Event::EdgeTold(edge, session));
            }
            ToOwner::EdgeGone(edge, session) => {
                self.apply_all(env, committer, || Event::EdgeGone(edge, session));
            }
            ToOwner::Receipts(receipts) => self.effects.receipts.extend(receipts),
        }
    }

    fn handle_answer(&mut self, env: &mut Env, answer: Answer, committer: &mut Committer) {
        match answer {
            Answer::Queue(Reply::Committed(places)) => {
                for (partition, offset) in places {
                    self.apply(env, committer, partition, Event::Committed(offset));
                }
            }
            Answer::Queue(Reply::Refused(partitions, reason)) => {
                for partition in partitions {
                    self.apply(env, committer, partition, Event::Refused(Arc::clone(&reason)));
                }
            }
            Answer::Queue(Reply::Replayed(records)) => {
                for (partition, record) in records {
                    let event = Event::Replayed(record.offset, record.bytes);
                    self.apply(env, committer, partition, event);
                }
            }
            Answer::Saved(partition, result) => {
                self.apply(env, committer, partition, Event::Saved(result));
            }
            Answer::Stop => {}
        }
    }

    fn apply_all(&mut self, env: &Env, committer: &mut Committer, event: impl Fn() -> Event) {
        for place in 0..self.hubs.len() {
            let partition = (place * OWNERS + self.index) as PartitionId;
            self.apply(env, committer, partition, event());
        }
    }

    fn apply(
        &mut self,
        env: &Env,
        committer: &mut Committer,
        partition: PartitionId,
        event: Event,
    ) {
        let hub = &mut self.hubs[usize::from(partition) / OWNERS];
        hub.apply(env.router_now(), event, &mut self.effects);
        self.records.extend(self.effects.append.drain(..).map(|bytes| (partition, bytes)));
        if let Some(checkpoint) = self.effects.checkpoint.take() {
            committer.checkpoints.push_back((self.index, checkpoint));
        }
        if let Some(below) = self.effects.trim_below.take() {
            committer.requests.push_back(Request::Trim(partition, below));
        }
    }

    /// Lets out what has gathered.
    fn flush(&mut self, env: &mut Env, committer: &mut Committer) -> Vec<Receipt> {
        let receipts = std::mem::take(&mut self.effects.receipts);
        let is_own = |receipt: &Receipt| {
            usize::from(partition_of(&receipt.to, PARTITIONS)) % OWNERS == self.index
        };
        let (own, others): (Vec<_>, Vec<_>) = receipts.into_iter().partition(is_own);
        for receipt in own {
            let partition = partition_of(&receipt.to, PARTITIONS);
            self.apply(env, committer, partition, Event::Receipt(receipt));
        }
        let durable = std::mem::take(&mut self.effects.append_durable);
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            let request = Request::Append { owner: self.index, records, durable };
            committer.requests.push_back(request);
        }
        self.send_out(env);
        others
    }

    fn send_out(&mut self, env: &mut Env) {
        for (edge, message) in self.effects.outbound.drain(..) {
            if let Outbound::SendAck(ack) = &message
                && let Some(name) = self.sends.remove(&(edge, ack.connection, ack.ticket))
                && ack.failure.is_some()
            {
                env.history.note_failed(&name);
            }
            if matches!(message, Outbound::Deliver(_)) {
                self.delivers += 1;
                if env.sabotage == Sabotage::DropDeliver(self.delivers) {
                    continue;
                }
            }
            env.trace(|| format!("router tells edge {edge:?} {message:?}"));
            if let Some((_, link)) = self.links.iter().find(|(known, _)| *known == edge) {
                link.push_all([message]).expect("far from the bound");
            }
        }
    }
}

/// [`Sabotage::ForgetIdempotency`]: no two sends have the same id.
fn sabotage_send(env: &mut Env, message: &mut Inbound) {
    if env.sabotage == Sabotage::ForgetIdempotency
        && let Inbound::Send(send) = message
    {
        send.client_message_id = env.rng.u64(..).to_string();
    }
}
