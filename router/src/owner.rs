//! An owner task drives the Hubs of some partitions: brings them events, does what they ask for.
//!
//! A partition belongs to one owner task (round robin), which has one or more partitions, as far as this router serves
//! them. What waits is handled in one go: one message to the committer, one wake-up a link, however many messages it was.
//!
//! ```text
//!   absent ─ Adopt ─► served ─ LetGo ─► leaving: appends answered, then saved ─► absent
//!                       └─ LetGo without saving ─► absent; answers to what it had handed out are passed over
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant, SystemTime};

use ahash::AHashMap;
use bytes::Bytes;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use tokio::sync::{mpsc, oneshot};

use crate::hub::queries::name_edges;
use crate::hub::{Effects, Event, Hub, Now, Receipt};
use crate::keeper::Notice;
use crate::limits;
use crate::metrics::{Held, Metrics};
use crate::outgoing::Outgoing;
use crate::queue::committer::{Reply, Request};
use crate::queue::{Offset, PartitionId};
use crate::registry::view::{Teller, View};
use crate::registry::{EdgeId, Session};
use crate::state::Writer;
use crate::store::{Checkpoint, StoreError};
use hawser_proto::partition::partition_of;

/// What others tell an owner.
#[derive(Debug)]
pub enum ToOwner {
    /// What one frame of a link says to the users of this owner, in order.
    Batch(EdgeId, Session, Vec<(PartitionId, Inbound)>),
    /// A link has said Hello.
    EdgeUp(EdgeId, Session, Arc<Outgoing>),
    /// A link has ended.
    EdgeDown(EdgeId, Session),
    /// An edge has told all its connections.
    EdgeTold(EdgeId, Session),
    /// An edge is not waited for any more.
    EdgeGone(EdgeId, Session),
    /// Receipts for users of this owner.
    Receipts(Vec<Receipt>),
    /// A partition is served here from now on; who waits for that is told.
    Adopt(Box<Hub>, oneshot::Sender<()>),
    /// A partition is not served here any more.
    LetGo {
        /// Which.
        partition: PartitionId,
        /// Whether to wait for what is on its way to the log, and to write a checkpoint.
        save: bool,
        /// Told when it is gone.
        gone: oneshot::Sender<()>,
    },
}

/// Answers to what an owner has asked for.
#[derive(Debug)]
pub enum Answer {
    /// Of the committer.
    Queue(Reply),
    /// Of the saver.
    Saved(PartitionId, Result<(), StoreError>),
    /// Save everything and end.
    Stop,
}

/// What owners ask of the saver.
#[derive(Debug)]
pub enum SaveRequest {
    /// Write a checkpoint, and answer this owner.
    Write(usize, Checkpoint),
    /// A partition is served here from now on: how its state log is written, and where it ends.
    Adopt(PartitionId, Writer, Offset),
    /// A partition is not served here any more; told when nothing of it is being written.
    LetGo(PartitionId, oneshot::Sender<()>),
    /// End.
    Stop,
}

/// Ways to the other tasks and threads.
#[derive(Debug, Clone)]
pub struct Ways {
    /// To the owners.
    pub owners: Vec<mpsc::Sender<ToOwner>>,
    /// To the committer.
    pub committer: blocking::Sender<Request>,
    /// To the saver.
    pub saver: blocking::Sender<SaveRequest>,
    /// To the keeper, where there is one.
    pub keeper: mpsc::UnboundedSender<Notice>,
    /// Where registries are told to, when they are.
    pub view: Option<Arc<View>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Of the whole router.
    pub partitions: u16,
}

impl Ways {
    /// Which owner has a partition.
    #[must_use]
    pub fn owner_of(&self, partition: PartitionId) -> usize {
        usize::from(partition) % self.owners.len()
    }
}

/// How often time is told to a Hub.
const TICK: Duration = Duration::from_millis(100);
/// How long an owner waits for its last appends and checkpoints.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of one owner task.
#[derive(Debug)]
pub struct Owner {
    index: usize,
    /// By partition, divided by the number of owners.
    places: Vec<Place>,
    ways: Ways,
    links: AHashMap<EdgeId, (Session, Arc<Outgoing>)>,
    effects: Effects,
    /// Records for the committer, gathered.
    records: Vec<(PartitionId, Bytes)>,
    records_durable: bool,
    /// Bytes with the committer, by request.
    appending: VecDeque<usize>,
    appending_bytes: usize,
    /// Refusals of the committer that were heard.
    refusals: u64,
    /// Receipts that wait for company, and until when.
    receipts: Vec<Receipt>,
    receipts_due_ms: u64,
    /// Messages were committed in this turn: their senders and recipients are told, and receipts go with that.
    has_committed: bool,
    /// Partitions whose checkpoint is on its way.
    saving: usize,
    /// Place of the Hub that went on last with what it had left for later.
    worked: usize,
    /// Where registries are told to, when they are.
    teller: Option<Teller>,
    clock: Clock,
}

/// What an owner tells its Hubs the time by.
struct Clock(Box<dyn Fn() -> Now + Send>);

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "an owner is the rim: it tells Hubs the time")]
    fn real() -> Self {
        let started = Instant::now();
        Self(Box::new(move || {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let unix_ms = unix.unwrap_or_default().as_millis() as i64;
            Now { mono_ms: started.elapsed().as_millis() as u64, unix_ms }
        }))
    }
}

/// What an owner has of one of its partitions.
#[derive(Debug, Default)]
struct Place {
    hub: Option<Hub>,
    leaving: Option<Leaving>,
    /// Answers to come from the committer, and from the saver, to what a Hub had asked for that is not here any more.
    stale_appends: usize,
    stale_saves: usize,
}

#[derive(Debug)]
struct Leaving {
    is_saving: bool,
    gone: oneshot::Sender<()>,
}

impl Place {
    /// The Hub, when it takes events of links and of time.
    fn served(&self) -> Option<&Hub> {
        self.hub.as_ref().filter(|_| self.leaving.is_none())
    }

    fn has_work(&self) -> bool {
        self.leaving.is_none() && self.hub.as_ref().is_some_and(Hub::has_work)
    }

    fn drop_hub(&mut self) {
        if let Some(hub) = self.hub.take() {
            self.stale_appends += hub.appending();
            self.stale_saves += usize::from(hub.is_saving());
        }
        if let Some(Leaving { gone, .. }) = self.leaving.take() {
            let _ = gone.send(());
        }
    }
}

impl Owner {
    /// An owner of `hubs`: those whose partition modulo the number of owners is `index`.
    #[must_use]
    pub fn new(index: usize, hubs: Vec<Hub>, ways: Ways) -> Self {
        let owners = ways.owners.len();
        let count = (usize::from(ways.partitions)).saturating_sub(index).div_ceil(owners);
        let mut places: Vec<Place> = (0..count).map(|_| Place::default()).collect();
        for hub in hubs {
            let place = usize::from(hub.partition()) / owners;
            places[place].hub = Some(hub);
        }
        let teller = ways.view.clone().map(Teller::new);
        let owner = Self {
            index,
            places,
            ways,
            links: AHashMap::new(),
            effects: Effects::default(),
            records: Vec::new(),
            records_durable: false,
            appending: VecDeque::new(),
            appending_bytes: 0,
            refusals: 0,
            receipts: Vec::new(),
            receipts_due_ms: 0,
            has_committed: false,
            saving: 0,
            worked: 0,
            teller,
            clock: Clock::real(),
        };
        owner.note_served();
        owner
    }

    /// The same by another clock.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> Now + Send + 'static) -> Self {
        Self { clock: Clock(Box::new(clock)), ..self }
    }

    /// Serves until it is told to stop and everything is saved.
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<ToOwner>,
        mut answers: mpsc::UnboundedReceiver<Answer>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                biased;
                Some(answer) = answers.recv() => stopping |= self.handle_answer(answer),
                Some(message) = inbox.recv(), if self.has_room() => self.handle(message),
                _ = tick.tick() => self.tick(),
                () = tokio::task::yield_now(), if self.places.iter().any(Place::has_work) => {}
            }
            // What else has gathered meanwhile goes into the same flush.
            while let Ok(answer) = answers.try_recv() {
                stopping |= self.handle_answer(answer);
            }
            for _ in 0..limits::OWNER_QUEUE_BATCHES_MAX {
                if !self.has_room() {
                    break;
                }
                let Ok(message) = inbox.try_recv() else { break };
                self.handle(message);
            }
            self.settle();
        }
        self.stop(&mut answers).await;
    }

    /// Tells Hubs the time: about ten times a second.
    pub fn tick(&mut self) {
        self.apply_all(|| Event::Tick);
        self.walk_registries();
    }

    /// Ends a turn, in which messages and answers were handled: goes on with what was left, and lets out what has gathered.
    pub fn settle(&mut self) {
        self.go_on();
        self.let_leave();
        self.flush();
    }

    /// Waits for what is on its way to the log, then saves every partition.
    async fn stop(&mut self, answers: &mut mpsc::UnboundedReceiver<Answer>) {
        let settled = async {
            while !self.appending.is_empty() || self.saving > 0 {
                let Some(answer) = answers.recv().await else { return };
                self.handle_answer(answer);
                self.flush();
            }
            self.apply_all(|| Event::Save);
            self.flush();
            while self.saving > 0 {
                let Some(answer) = answers.recv().await else { return };
                self.handle_answer(answer);
                self.flush();
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, settled).await.is_err() {
            tracing::warn!(
                owner = self.index,
                "stopped before everything was saved; the log has the messages"
            );
        }
    }

    /// Whether it takes messages; answers it takes always.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.appending_bytes < limits::APPENDING_BYTES_MAX
    }

    /// Takes what a link, another owner or the keeper says.
    pub fn handle(&mut self, message: ToOwner) {
        let now = self.now();
        match message {
            ToOwner::Batch(edge, session, messages) => {
                for (partition, message) in messages {
                    // What is for a partition that is not served here is said again to its owner.
                    if self.place(partition).is_some_and(|place| place.served().is_some()) {
                        self.apply(now, partition, Event::Link { edge, session, message });
                    }
                }
            }
            ToOwner::EdgeUp(edge, session, outgoing) => {
                // What was let out before is for the old link, and may follow on messages that were lost with it.
                self.send_out();
                self.links.insert(edge, (session, outgoing));
                self.apply_all(|| Event::EdgeUp(edge, session));
            }
            ToOwner::EdgeDown(edge, session) => self.apply_all(|| Event::EdgeDown(edge, session)),
            ToOwner::EdgeTold(edge, session) => self.apply_all(|| Event::EdgeTold(edge, session)),
            ToOwner::EdgeGone(edge, session) => {
                self.apply_all(|| Event::EdgeGone(edge, session));
                if self.links.get(&edge).is_some_and(|(_, link)| link.is_closed()) {
                    self.links.remove(&edge);
                }
            }
            ToOwner::Receipts(receipts) => self.receipts.extend(receipts),
            ToOwner::Adopt(hub, adopted) => {
                self.adopt(now, *hub);
                let _ = adopted.send(());
            }
            ToOwner::LetGo { partition, save, gone } => {
                // Who is told that it is gone may ask the committer for the next owner, which shall find all of this one.
                self.flush();
                let Some(place) = self.place(partition) else { return };
                place.leaving = Some(Leaving { is_saving: false, gone });
                if !save {
                    place.drop_hub();
                }
                self.note_served();
            }
        }
    }

    fn adopt(&mut self, now: Now, hub: Hub) {
        let partition = hub.partition();
        let Some(place) = self.place(partition) else { return };
        place.drop_hub();
        place.hub = Some(hub);
        self.note_served();
        let links: Vec<_> =
            self.links.iter().map(|(edge, (session, _))| (*edge, *session)).collect();
        for (edge, session) in links {
            self.apply(now, partition, Event::EdgeUp(edge, session));
        }
    }

    /// Notes for the view of registries which partitions are served here.
    fn note_served(&self) {
        let Some(teller) = &self.teller else { return };
        for (index, place) in self.places.iter().enumerate() {
            teller.note_served(self.partition_at(index), place.served().map(Hub::epoch));
        }
    }

    /// Goes on telling everything that is registered, where that is wanted.
    fn walk_registries(&mut self) {
        let Self { teller: Some(teller), places, .. } = self else { return };
        teller.go_on(places.len(), |place| places[place].served());
    }

    /// Goes on with the partitions that leave: first what is on its way to the log, then a checkpoint.
    fn let_leave(&mut self) {
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            let (Some(hub), Some(leaving)) = (&place.hub, &mut place.leaving) else {
                place.leaving.take().map(|leaving| leaving.gone.send(()));
                continue;
            };
            if hub.appending() > 0 || hub.is_saving() {
                continue;
            }
            if !std::mem::replace(&mut leaving.is_saving, true) {
                let now = self.now();
                self.apply(now, self.partition_at(index), Event::Save);
            }
            let place = &mut self.places[index];
            if place.hub.as_ref().is_some_and(|hub| !hub.is_saving()) {
                place.drop_hub();
            }
        }
    }

    fn place(&mut self, partition: PartitionId) -> Option<&mut Place> {
        self.places.get_mut(usize::from(partition) / self.ways.owners.len())
    }

    fn partition_at(&self, place: usize) -> PartitionId {
        (place * self.ways.owners.len() + self.index) as PartitionId
    }

    /// Takes what committer and saver answer. Tells whether it is time to stop.
    pub fn handle_answer(&mut self, answer: Answer) -> bool {
        let now = self.now();
        match answer {
            Answer::Queue(Reply::Committed(places)) => {
                self.note_answered();
                self.has_committed = true;
                for (partition, offset) in places {
                    if !self.is_stale_append(partition) {
                        self.apply(now, partition, Event::Committed(offset));
                    }
                }
            }
            Answer::Queue(Reply::Refused(partitions, reason)) => {
                self.note_answered();
                self.refusals += 1;
                for partition in partitions {
                    if !self.is_stale_append(partition) {
                        self.apply(now, partition, Event::Refused(Arc::clone(&reason)));
                    }
                }
            }
            Answer::Queue(Reply::Overtaken(partition)) => self.note_overtaken(partition),
            Answer::Queue(Reply::Replayed(records)) => {
                for (partition, record) in records {
                    self.apply(now, partition, Event::Replayed(record.offset, record.bytes));
                }
            }
            Answer::Saved(partition, result) => {
                self.saving = self.saving.saturating_sub(1);
                let stale = self.place(partition).map(|place| &mut place.stale_saves);
                match stale.filter(|stale| **stale > 0) {
                    Some(stale) => *stale -= 1,
                    None => self.apply(now, partition, Event::Saved(result)),
                }
            }
            Answer::Stop => return true,
        }
        false
    }

    /// Another router has a partition: what its Hub knows is old, and what it has handed out is for the other to answer.
    fn note_overtaken(&mut self, partition: PartitionId) {
        let Some(place) = self.place(partition) else { return };
        let Some(hub) = &place.hub else { return };
        let epoch = hub.epoch();
        place.drop_hub();
        let _ = self.ways.keeper.send(Notice::Deposed(partition, epoch));
        self.note_served();
    }

    /// Whether the next answer for a partition is to a Hub that is not here any more. Answers come in the order of what was
    /// asked.
    fn is_stale_append(&mut self, partition: PartitionId) -> bool {
        match self.place(partition) {
            Some(place) if place.stale_appends > 0 => {
                place.stale_appends -= 1;
                true
            }
            Some(_) | None => false,
        }
    }

    fn note_answered(&mut self) {
        self.appending_bytes -= self.appending.pop_front().unwrap_or(0);
    }

    fn apply_all(&mut self, event: impl Fn() -> Event) {
        let now = self.now();
        for place in 0..self.places.len() {
            if self.places[place].served().is_some() {
                self.apply(now, self.partition_at(place), event());
            }
        }
    }

    /// Goes on with what one Hub has left for later, each time another's.
    fn go_on(&mut self) {
        let (now, count) = (self.now(), self.places.len());
        let mut places = (0..count).map(|step| (self.worked + step + 1) % count);
        if let Some(place) = places.find(|place| self.places[*place].has_work()) {
            self.worked = place;
            self.apply(now, self.partition_at(place), Event::GoOn);
        }
    }

    fn apply(&mut self, now: Now, partition: PartitionId, event: Event) {
        let place = usize::from(partition) / self.ways.owners.len();
        let hub = self.places.get_mut(place).and_then(|place| place.hub.as_mut());
        let Some(hub) = hub else { return };
        hub.apply(now, event, &mut self.effects);
        if std::mem::take(&mut self.effects.deposed) {
            let _ = self.ways.keeper.send(Notice::Deposed(partition, hub.epoch()));
        }
        let effects = &mut self.effects;
        self.records.extend(effects.append.drain(..).map(|bytes| (partition, bytes)));
        self.records_durable |= std::mem::take(&mut effects.append_durable);
        self.receipts.append(&mut effects.receipts);
        if let Some(teller) = &mut self.teller {
            teller.tell(partition, hub.epoch(), effects.registry.drain(..));
        }
        for (edge, mut answer) in effects.answers.drain(..) {
            name_edges(&mut answer, |edge| self.links.get(&edge)?.1.edge());
            effects.outbound.push((edge, Outbound::QueryAnswer(answer)));
        }
        if let Some(checkpoint) = effects.checkpoint.take() {
            self.saving += 1;
            let _ = self.ways.saver.send(SaveRequest::Write(self.index, checkpoint));
        }
        if let Some(below) = effects.trim_below.take() {
            let _ = self.ways.committer.send(Request::Trim(partition, below));
        }
    }

    /// Lets out what has gathered.
    fn flush(&mut self) {
        let now_ms = self.now().mono_ms;
        if std::mem::take(&mut self.has_committed) || self.receipts_due_ms <= now_ms {
            self.receipts_due_ms = now_ms + limits::RECEIPTS_HELD_MS;
            self.pass_receipts();
        }
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            let bytes = records.iter().map(|(_, bytes)| bytes.len()).sum();
            self.appending.push_back(bytes);
            self.appending_bytes += bytes;
            let durable = std::mem::take(&mut self.records_durable);
            let (owner, refusals) = (self.index, self.refusals);
            let request = Request::Append { owner, records, durable, refusals };
            // The committer ends only after the owners.
            let _ = self.ways.committer.send(request);
        }
        self.send_out();
        let mut held = Held::default();
        for hub in self.places.iter().filter_map(|place| place.hub.as_ref()) {
            held.connections += hub.connections();
            held.inboxes += hub.inboxes();
            held.departed += hub.departed();
        }
        let counts = std::mem::take(&mut self.effects.counts);
        self.ways.metrics.note_owner(self.index, &counts, held);
    }

    fn send_out(&mut self) {
        let mut outbound = self.effects.outbound.drain(..).peekable();
        let mut woken: Vec<&Arc<Outgoing>> = Vec::new();
        while let Some((edge, first)) = outbound.next() {
            let rest = std::iter::from_fn(|| {
                outbound.next_if(|(other, _)| *other == edge).map(|(_, message)| message)
            });
            let messages = std::iter::once(first).chain(rest);
            let Some((_, link)) = self.links.get(&edge) else {
                messages.for_each(drop);
                continue;
            };
            if link.push_all(messages).is_err() && !link.is_closed() {
                self.ways.metrics.links_overflowed.inc();
                tracing::warn!(?edge, "a link is closed: it does not take what is sent to it");
                link.close();
            }
            if !woken.iter().any(|other| Arc::ptr_eq(other, link)) {
                woken.push(link);
            }
        }
        for link in woken {
            link.wake();
        }
    }

    /// Brings receipts to the partitions of the senders, by an edge where another router has it. Best effort: a full
    /// owner gets none.
    fn pass_receipts(&mut self) {
        let now = self.now();
        let mut elsewhere: AHashMap<usize, Vec<Receipt>> = AHashMap::new();
        for receipt in std::mem::take(&mut self.receipts) {
            let partition = partition_of(&receipt.to, self.ways.partitions);
            let owner = self.ways.owner_of(partition);
            if owner == self.index {
                if self.place(partition).is_some_and(|place| place.served().is_some()) {
                    self.apply(now, partition, Event::Receipt(receipt));
                } else {
                    self.effects.outbound.extend(receipt.into_relay());
                }
            } else {
                elsewhere.entry(owner).or_default().push(receipt);
            }
        }
        for (owner, receipts) in elsewhere {
            if self.ways.owners[owner].try_send(ToOwner::Receipts(receipts)).is_err() {
                self.ways.metrics.receipts_dropped.inc();
            }
        }
    }

    fn now(&self) -> Now {
        (self.clock.0)()
    }
}

#[cfg(test)]
mod tests {
    use hawser_proto::link::{Register, RouterBatch, Send};
    use prost::Message as _;

    use super::*;
    use crate::hub::HubConfig;
    use crate::queue::Offset;
    use crate::store::memory::MemoryStore;

    const EDGE: EdgeId = EdgeId(0);

    fn owner() -> (Owner, blocking::Receiver<Request>) {
        let config = HubConfig {
            window_messages: 4,
            inbox_messages_max: 20,
            inbox_age_max_ms: 1_000_000,
            memory_bytes_max: 1_000_000,
            record_bytes_max: usize::MAX,
            trace_steps_max: 0,
            tells_registry: false,
        };
        let hub = Hub::new(0, config, Arc::new(MemoryStore::default())).unwrap();
        let (committer, requests) = blocking::channel();
        let ways = Ways {
            owners: vec![mpsc::channel(1).0],
            committer,
            saver: blocking::channel().0,
            keeper: mpsc::unbounded_channel().0,
            view: None,
            metrics: Arc::new(Metrics::new(1)),
            partitions: 1,
        };
        (Owner::new(0, vec![hub], ways), requests)
    }

    fn commit(owner: &mut Owner, requests: &blocking::Receiver<Request>, next: &mut Offset) {
        owner.flush();
        while let Ok(Request::Append { records, .. }) = requests.try_recv() {
            let places = records.iter().zip(*next..).map(|((partition, _), at)| (*partition, at));
            let places: Vec<_> = places.collect();
            *next += places.len() as Offset;
            owner.handle_answer(Answer::Queue(Reply::Committed(places)));
        }
    }

    #[tokio::test]
    async fn what_was_let_out_on_a_link_does_not_go_out_on_the_next() {
        let (mut owner, requests) = owner();
        let links = [Arc::new(Outgoing::default()), Arc::new(Outgoing::default())];
        let register = Register {
            connection: 7,
            user: "bob".to_owned(),
            device: "phone".to_owned(),
            ..Register::default()
        };
        let send = Send {
            connection: 8,
            ticket: 1,
            from: "alice".to_owned(),
            client_message_id: "1".to_owned(),
            to_user: "bob".to_owned(),
            ..Send::default()
        };
        let messages = vec![(0, Inbound::Register(register)), (0, Inbound::Send(send))];
        owner.handle(ToOwner::EdgeUp(EDGE, Session(1), Arc::clone(&links[0])));
        owner.handle(ToOwner::Batch(EDGE, Session(1), messages));
        // The message becomes durable and is let out, and before anything is written a newer link is there.
        commit(&mut owner, &requests, &mut 1);
        owner.handle(ToOwner::EdgeUp(EDGE, Session(2), Arc::clone(&links[1])));
        owner.flush();
        let mut bytes = Vec::new();
        links[0].take(&mut bytes).await;
        let batch = RouterBatch::decode(&bytes[hawser_proto::framing::LENGTH_BYTES..]).unwrap();
        assert_eq!(batch.messages.len(), 2, "SendAck and Deliver: {batch:?}");
        let nothing = tokio::time::timeout(Duration::ZERO, links[1].take(&mut Vec::new())).await;
        assert!(nothing.is_err(), "the new link hears of it when the client is registered on it");
    }
}
