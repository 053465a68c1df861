//! One router process on virtual time: the real owners, committer, saver and takeovers, each of which gets to run when the
//! seed says so; around them stand-ins of what needs tokio, its links and its keeper.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc as blocking;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use hawser_router::claims::Change;
use hawser_router::health::Health;
use hawser_router::hub::{Effects, Event, Hub, HubConfig};
use hawser_router::keeper::Notice;
use hawser_router::owner::{Answer, Owner, SaveRequest, ToOwner, Ways};
use hawser_router::queue::committer::{self, Committer, Progress, Reply, Request, replay};
use hawser_router::queue::{Log, Opener as _, PartitionId, Queue};
use hawser_router::record::{Kind, Record};
use hawser_router::saver::{Saver, StateLog};
use hawser_router::store::Store;
use hawser_router::store::memory::MemoryStore;
use hawser_router::takeover::Takeover;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::engine::{Engine, PARTITIONS, Part, Visitor};
use crate::env::{Env, START_UNIX_MS, Sabotage, hub_now};
use crate::history::{MessageName, name_of_payload};
use crate::keeper::{Keeper, Tools};
use crate::links::Links;

/// Unacknowledged deliveries that are let out to one device.
pub(crate) const WINDOW_MESSAGES: usize = 3;
/// Owners of a router.
pub(crate) const OWNERS: usize = 2;
/// How often time is told to a Hub.
const TICK_MS: u64 = 100;
/// When the committers' clocks begin.
static BEGINNING: LazyLock<Instant> = LazyLock::new(committer::now);

/// Where replies of a committer wait.
type Replies = Arc<Mutex<VecDeque<(usize, Reply)>>>;

/// See the module.
pub(crate) struct Router {
    visitor: Visitor,
    engine: Engine,
    store: Arc<MemoryStore>,
    config: HubConfig,
    pub(crate) links: Links,
    keeper: Option<Keeper>,
    ways: Ways,
    seats: Vec<Seat>,
    committer: Committer,
    progress: Progress,
    asked: blocking::Receiver<Request>,
    requests: VecDeque<Request>,
    replies: Replies,
    saver: Saver,
    saves_asked: blocking::Receiver<SaveRequest>,
    saves: VecDeque<SaveRequest>,
    notices: mpsc::UnboundedReceiver<Notice>,
}

/// An owner with what waits for it.
struct Seat {
    owner: Owner,
    inbox: VecDeque<ToOwner>,
    answers: VecDeque<Answer>,
    /// What other owners, and what the saver, say.
    receipts: mpsc::Receiver<ToOwner>,
    saved: mpsc::UnboundedReceiver<Answer>,
    ticked_at_ms: u64,
    /// Messages of each append that is not answered.
    appending: VecDeque<Vec<MessageName>>,
}

/// Hubs by owner, and the offset that each partition's expects next.
type Recovered = (Vec<Vec<Hub>>, Vec<Option<u64>>);

/// Builds every Hub, as a router does that has the log for itself.
fn recover(
    env: &Env,
    queue: &mut dyn Queue,
    store: &Arc<MemoryStore>,
    config: &HubConfig,
) -> Option<Recovered> {
    let mut hubs: Vec<Vec<Hub>> = (0..OWNERS).map(|_| Vec::new()).collect();
    let mut expected = Vec::new();
    for partition in 0..PARTITIONS {
        let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
        let mut hub = Hub::new(partition, config.clone(), store).ok()?;
        let mut effects = Effects::default();
        let next = replay(queue, partition, hub.applied() + 1, |record| {
            let event = Event::Replayed(record.offset, record.bytes);
            hub.apply(env.router_now(), event, &mut effects);
        });
        let next = next.ok()?;
        queue.skip_to(partition, next).ok()?;
        expected.push(Some(next));
        hubs[usize::from(partition) % OWNERS].push(hub);
    }
    Some((hubs, expected))
}

impl Router {
    /// A router that has started. `None`: it could not read its log.
    pub(crate) fn start(
        env: &mut Env,
        engine: &Engine,
        store: &Arc<MemoryStore>,
        index: usize,
        is_sole: bool,
    ) -> Option<Self> {
        env.starts += 1;
        let visitor = Visitor { router: index, start: env.starts, part: Part::Committer };
        let wide = env.sabotage == Sabotage::WideWindow;
        let config = HubConfig {
            window_messages: if wide { WINDOW_MESSAGES + 1 } else { WINDOW_MESSAGES },
            inbox_messages_max: 10_000,
            inbox_age_max_ms: 3_600_000,
            memory_bytes_max: [700, 2_000, 1_000_000][env.rng.usize(..3)],
            record_bytes_max: usize::MAX,
            trace_steps_max: 0,
            tells_registry: false,
        };
        let mut opener = engine.opener(Log::Messages, visitor);
        let mut hubs: Vec<Vec<Hub>> = (0..OWNERS).map(|_| Vec::new()).collect();
        let (mut queue, mut expected) = (None, vec![None; usize::from(PARTITIONS)]);
        if is_sole {
            let mut open = opener.open().ok()?;
            (hubs, expected) = recover(env, &mut *open, store, &config)?;
            queue = Some(open);
        }
        let metrics = Arc::clone(&env.metrics);
        let health = Arc::new(Health::default());
        let (to_committer, asked) = blocking::channel();
        let (to_saver, saves_asked) = blocking::channel();
        let (to_keeper, notices) = mpsc::unbounded_channel();
        let (to_owners, receipts): (Vec<_>, Vec<_>) =
            (0..OWNERS).map(|_| mpsc::channel(64)).unzip();
        let (answers, saved): (Vec<_>, Vec<_>) =
            (0..OWNERS).map(|_| mpsc::unbounded_channel()).unzip();
        let ways = Ways {
            owners: to_owners,
            committer: to_committer,
            saver: to_saver,
            keeper: to_keeper.clone(),
            view: None,
            metrics: Arc::clone(&metrics),
            partitions: PARTITIONS,
        };
        let seat = |(index, (hubs, (receipts, saved)))| {
            let clock = Arc::clone(&env.clock);
            let now = move || hub_now(clock.load(Ordering::Relaxed));
            Seat {
                owner: Owner::new(index, hubs, ways.clone()).with_clock(now),
                inbox: VecDeque::new(),
                answers: VecDeque::new(),
                receipts,
                saved,
                ticked_at_ms: 0,
                appending: VecDeque::new(),
            }
        };
        let seats =
            hubs.into_iter().zip(receipts.into_iter().zip(saved)).enumerate().map(seat).collect();
        let replies = Replies::default();
        let (waiting, clock) = (Arc::clone(&replies), Arc::clone(&env.clock));
        let committer = Committer {
            opener: Box::new(opener),
            queue,
            expected,
            owners: OWNERS,
            is_shared: true,
            replies: Box::new(move |owner, reply| {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.push_back((owner, reply));
            }),
            free_bytes: Box::new(|| None),
            disk_free_min: 0,
            commit_interval: Duration::ZERO,
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            clock: Box::new(move || {
                *BEGINNING + Duration::from_millis(clock.load(Ordering::Relaxed))
            }),
        };
        let saving = Visitor { part: Part::Saver, ..visitor };
        let state_log = || StateLog {
            opener: Box::new(engine.opener(Log::State, saving)),
            queue: None,
            keeper: to_keeper,
            tails: AHashMap::new(),
            bytes_min: [200, 3_000, 1_000_000][env.rng.usize(..3)],
        };
        let saver = Saver {
            store: Arc::<MemoryStore>::clone(store),
            log: (!is_sole).then(state_log),
            answers,
            health,
            metrics,
            unix_ms: || START_UNIX_MS,
            forgot_on: 0,
        };
        Some(Self {
            visitor,
            engine: engine.clone(),
            store: Arc::clone(store),
            config,
            links: Links::new(env, format!("router-{index}"), is_sole),
            keeper: (!is_sole).then(Keeper::new),
            ways,
            seats,
            committer,
            progress: Progress::default(),
            asked,
            requests: VecDeque::new(),
            replies,
            saver,
            saves_asked,
            saves: VecDeque::new(),
            notices,
        })
    }

    /// The process dies. What its threads were about to write is written or not.
    pub(crate) fn die(mut self, env: &mut Env) {
        self.links.die(env);
        self.gather(env.sabotage);
        while env.rng.bool() && !self.requests.is_empty() {
            self.commit(env);
        }
        if env.rng.bool() {
            self.save();
        }
        if self.keeper.is_none() {
            self.engine.crash();
        }
    }

    /// What claims decide.
    pub(crate) fn change(&mut self, change: Change) {
        if let Some(keeper) = &mut self.keeper {
            keeper.changes.push(change);
        }
    }

    /// Partitions that were let go since it was asked last.
    pub(crate) fn take_released(&mut self) -> Vec<PartitionId> {
        self.keeper.as_mut().map_or_else(Vec::new, |keeper| std::mem::take(&mut keeper.released))
    }

    /// Whether it neither serves nor does anything about a partition.
    pub(crate) fn is_absent(&self, partition: PartitionId) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| keeper.is_absent(partition))
    }

    /// Some of its tasks and threads get to run.
    pub(crate) fn turn(&mut self, env: &mut Env) {
        self.links.read(env);
        for (owner, message) in self.links.told.drain(..) {
            self.seats[owner].inbox.push_back(message);
        }
        self.keep(env);
        self.gather(env.sabotage);
        if env.calm || env.rng.u8(..3) > 0 {
            self.commit(env);
        }
        if env.rng.u8(..3) == 0 {
            self.save();
        }
        for seat in &mut self.seats {
            seat.turn(env);
        }
        self.gather(env.sabotage);
        self.links.write(env);
    }

    fn keep(&mut self, env: &mut Env) {
        let Some(keeper) = &mut self.keeper else { return };
        let notices = std::iter::from_fn(|| self.notices.try_recv().ok()).collect();
        let Self { engine, store, config, visitor, seats, ways, .. } = self;
        let visitor = Visitor { part: Part::Taker, ..*visitor };
        let mut takeover = || {
            Ok(Takeover {
                store: Arc::<MemoryStore>::clone(store),
                messages: engine.opener(Log::Messages, visitor).open()?,
                state: engine.opener(Log::State, visitor).open()?,
                config: config.clone(),
                router_id: format!("router-{}", visitor.router),
            })
        };
        let mut tell = |partition: PartitionId, message| {
            seats[usize::from(partition) % OWNERS].inbox.push_back(message);
        };
        let mut tools = Tools { ways, takeover: &mut takeover, tell: &mut tell };
        keeper.turn(env, &mut tools, notices);
        let claims = keeper.claims();
        self.links.announce(env, claims);
    }

    /// Takes in what owners and keeper have asked of the threads.
    fn gather(&mut self, sabotage: Sabotage) {
        while let Ok(request) = self.asked.try_recv() {
            if let Request::Append { owner, records, .. } = &request {
                let names = records.iter().filter_map(|(_, bytes)| {
                    match Record::decode(&bytes[..]).ok()?.kind? {
                        Kind::Message(message) => name_of_payload(&message.payload),
                        Kind::Cursor(_) | Kind::Owner(_) => None,
                    }
                });
                let names = names.collect();
                self.seats[*owner].appending.push_back(names);
            }
            self.requests.push_back(request);
        }
        while let Ok(request) = self.saves_asked.try_recv() {
            if let SaveRequest::Write(_, checkpoint) = &request
                && sabotage == Sabotage::TrimEarly
            {
                self.requests
                    .push_back(Request::Trim(checkpoint.partition, checkpoint.applied + 1));
            }
            self.saves.push_back(request);
        }
    }

    fn commit(&mut self, env: &mut Env) {
        let mut count = env.rng.usize(..=self.requests.len());
        let requests = &mut self.requests;
        let mut some = std::iter::from_fn(|| {
            count = count.checked_sub(1)?;
            requests.pop_front()
        });
        self.committer.turn(&mut self.progress, &mut some);
        let replies =
            std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner));
        for (owner, reply) in replies {
            let seat = &mut self.seats[owner];
            match &reply {
                Reply::Committed(_) => drop(seat.appending.pop_front()),
                Reply::Refused(..) => {
                    for name in seat.appending.pop_front().into_iter().flatten() {
                        env.history.note_failed(&name);
                    }
                }
                Reply::Replayed(_) if env.sabotage == Sabotage::IgnoreHoles => continue,
                Reply::Replayed(_) => {}
                Reply::Overtaken(_) => env.history.count("overtaken unseen"),
            }
            seat.answers.push_back(Answer::Queue(reply));
        }
    }

    /// The saver serves what was asked first.
    fn save(&mut self) {
        match self.saves.pop_front() {
            Some(request) => {
                self.saver.handle(request);
            }
            None => self.saver.dump_one(),
        }
        for seat in &mut self.seats {
            while let Ok(answer) = seat.saved.try_recv() {
                seat.answers.push_back(answer);
            }
        }
    }
}

impl Seat {
    /// The owner handles some of what waits.
    fn turn(&mut self, env: &mut Env) {
        while let Ok(message) = self.receipts.try_recv() {
            self.inbox.push_back(message);
        }
        for _ in 0..env.rng.usize(..=self.answers.len()) {
            let Some(answer) = self.answers.pop_front() else { break };
            self.owner.handle_answer(answer);
        }
        for _ in 0..env.rng.usize(..=self.inbox.len()) {
            let Some(message) = self.inbox.pop_front() else { break };
            self.owner.handle(message);
        }
        if env.ms >= self.ticked_at_ms + TICK_MS {
            self.ticked_at_ms = env.ms;
            self.owner.tick();
        }
        self.owner.settle();
    }
}
