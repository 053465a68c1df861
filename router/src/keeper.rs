//! The keeper brings partitions here and lets them go, as the engine's claims want it.
//!
//! ```text
//!            Gained            taken over
//!  absent ─────────► taking ─────────────► served ─ Wanted ─► leaving ─ saved ─► absent, Released
//!    ▲                 │ failed: again       │
//!    └─────────────────┴─────── Lost ────────┘ ◄─ deposed: the log names another owner
//! ```
//!
//! Edges are told what is served whenever it changes, and before a partition is let go.

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use crate::claims::{Change, Told};
use crate::health::{Health, Part};
use crate::link::Links;
use crate::owner::{SaveRequest, ToOwner};
use crate::queue::PartitionId;
use crate::queue::committer::Request;
use crate::takeover::{NotTaken, Taken};

/// A takeover that failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// What a keeper is told by the parts that serve.
#[derive(Debug)]
pub enum Notice {
    /// The log names a later owner than the one with this epoch.
    Deposed(PartitionId, u64),
}

/// What the threads that take over are asked, and answer.
pub type TakeRequest = (PartitionId, oneshot::Sender<Result<Taken, NotTaken>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Taking,
    /// The claim went while it was taken over, which ends first.
    Unwanted,
    Served(u64),
    Leaving,
}

/// See the module.
pub struct Keeper {
    links: Arc<Links>,
    health: Arc<Health>,
    takers: blocking::Sender<TakeRequest>,
    tell: mpsc::UnboundedSender<Told>,
    states: Vec<State>,
    doing: FuturesUnordered<Doing>,
    stopping: bool,
}

/// What a keeper waits for.
type Doing = std::pin::Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Taken(PartitionId, Result<Box<Taken>, NotTaken>),
    Again(PartitionId),
    Gone(PartitionId),
}

impl Keeper {
    /// A keeper of nothing.
    #[must_use]
    pub fn new(
        links: Arc<Links>,
        health: Arc<Health>,
        takers: blocking::Sender<TakeRequest>,
        tell: mpsc::UnboundedSender<Told>,
    ) -> Self {
        let states = vec![State::Absent; usize::from(links.ways.partitions)];
        let doing = FuturesUnordered::new();
        Self { links, health, takers, tell, states, doing, stopping: false }
    }

    /// Serves until `stop` completes and everything is let go, or the engine gives no more claims.
    pub async fn run(
        mut self,
        mut changes: mpsc::UnboundedReceiver<Change>,
        mut notices: mpsc::UnboundedReceiver<Notice>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                Some(change) = changes.recv(), if !self.stopping => self.change(change),
                Some(Notice::Deposed(partition, epoch)) = notices.recv() => self.depose(partition, epoch),
                Some(done) = self.doing.next() => self.done(done).await,
                () = &mut stop, if !self.stopping => {
                    self.stopping = true;
                    for partition in 0..self.states.len() as PartitionId {
                        self.let_go(partition, true);
                    }
                }
            }
            if self.stopping && self.states.iter().all(|state| *state == State::Absent) {
                let _ = self.tell.send(Told::Stop);
                return;
            }
        }
    }

    fn state(&mut self, partition: PartitionId) -> Option<&mut State> {
        self.states.get_mut(usize::from(partition))
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Gained(partition) => match self.state(partition) {
                Some(state @ State::Absent) => {
                    *state = State::Taking;
                    self.take(partition);
                }
                Some(state @ State::Unwanted) => *state = State::Taking,
                // One that leaves says Released when it is gone, and is given again if it shall be here.
                Some(State::Taking | State::Served(_) | State::Leaving) | None => {}
            },
            Change::Wanted(partition) => self.let_go(partition, true),
            Change::Lost(partition) => self.let_go(partition, false),
        }
    }

    fn depose(&mut self, partition: PartitionId, epoch: u64) {
        if self.state(partition).is_some_and(|state| *state == State::Served(epoch)) {
            tracing::warn!(partition, epoch, "another router has taken the partition over");
            self.let_go(partition, false);
        }
    }

    fn take(&mut self, partition: PartitionId) {
        let (answer, taken) = oneshot::channel();
        let _ = self.takers.send((partition, answer));
        self.doing.push(Box::pin(async move {
            let gone = || NotTaken("the thread that takes over has ended".to_owned());
            let taken = taken.await.unwrap_or_else(|_| Err(gone()));
            Done::Taken(partition, taken.map(Box::new))
        }));
    }

    /// Lets a partition go; with `save` after a checkpoint.
    fn let_go(&mut self, partition: PartitionId, save: bool) {
        match self.state(partition) {
            Some(state @ State::Served(_)) => {
                *state = State::Leaving;
                self.announce();
                let links = Arc::clone(&self.links);
                self.doing.push(Box::pin(async move {
                    let ways = &links.ways;
                    let (gone, is_gone) = oneshot::channel();
                    let owner = &ways.owners[ways.owner_of(partition)];
                    if owner.send(ToOwner::LetGo { partition, save, gone }).await.is_ok() {
                        let _ = is_gone.await;
                    }
                    let _ = ways.committer.send(Request::LetGo(partition));
                    // Its last checkpoint may be on its way into the store, where the next takeover here will write.
                    let (settled, is_settled) = oneshot::channel();
                    if ways.saver.send(SaveRequest::LetGo(partition, settled)).is_ok() {
                        let _ = is_settled.await;
                    }
                    Done::Gone(partition)
                }));
            }
            Some(state @ State::Taking) => *state = State::Unwanted,
            Some(State::Absent) => {
                let _ = self.tell.send(Told::Released(partition));
            }
            Some(State::Unwanted | State::Leaving) | None => {}
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Taken(partition, taken) => match (self.state(partition).copied(), taken) {
                (Some(State::Taking), Ok(taken)) => self.serve(partition, *taken).await,
                (Some(State::Taking), Err(NotTaken(reason))) => {
                    tracing::warn!(partition, "not taken over, tried again: {reason}");
                    self.health.set(Part::Takeover, Some(reason));
                    self.doing.push(Box::pin(async move {
                        tokio::time::sleep(RETRY).await;
                        Done::Again(partition)
                    }));
                }
                // What was written is there for the next owner.
                (Some(_), _) => self.note_gone(partition),
                (None, _) => {}
            },
            Done::Again(partition) => match self.state(partition) {
                Some(State::Taking) => self.take(partition),
                Some(_) => self.note_gone(partition),
                None => {}
            },
            Done::Gone(partition) => self.note_gone(partition),
        }
    }

    async fn serve(&mut self, partition: PartitionId, taken: Taken) {
        let Taken { hub, writer, state_next, messages_next, replayed } = taken;
        let epoch = hub.epoch();
        tracing::debug!(partition, epoch, replayed, "taken over");
        let links = Arc::clone(&self.links);
        let ways = &links.ways;
        let _ = ways.saver.send(SaveRequest::Adopt(partition, writer, state_next));
        let owner = &ways.owners[ways.owner_of(partition)];
        let (adopted, is_adopted) = oneshot::channel();
        let _ = owner.send(ToOwner::Adopt(Box::new(hub), adopted)).await;
        // Only then: what the committer finds in the log is for the Hub that is there now.
        let _ = is_adopted.await;
        let _ = ways.committer.send(Request::Adopt(partition, messages_next));
        if let Some(state) = self.state(partition) {
            *state = State::Served(epoch);
        }
        self.announce();
    }

    fn note_gone(&mut self, partition: PartitionId) {
        if let Some(state) = self.state(partition) {
            *state = State::Absent;
        }
        let _ = self.tell.send(Told::Released(partition));
        self.announce();
    }

    /// Tells edges what is served, and operators how far it is.
    fn announce(&self) {
        let claims = (0..).zip(&self.states).filter_map(|(partition, state)| match state {
            State::Served(epoch) => Some((partition, *epoch)),
            State::Absent | State::Taking | State::Unwanted | State::Leaving => None,
        });
        let claims: Vec<(PartitionId, u64)> = claims.collect();
        let count =
            |wanted: &[State]| self.states.iter().filter(|state| wanted.contains(state)).count();
        let (here, coming) = (claims.len(), count(&[State::Taking, State::Unwanted]));
        let going = count(&[State::Leaving]);
        if coming == 0 && going == 0 {
            self.health.set(Part::Takeover, None);
            tracing::info!(here, of = self.states.len(), "partitions are where they belong");
        } else {
            tracing::debug!(here, coming, going, of = self.states.len(), "partitions move");
        }
        self.links.ways.metrics.note_partitions(here, coming, going);
        self.links.announce(claims);
    }
}
