//! Stands in for `keeper::Keeper`, which needs tokio: the same steps, with time between them.
//!
//! What `Takeover::take` does in one go is done step by step, so that everything can happen in between.

use hawser_router::claims::Change;
use hawser_router::keeper::Notice;
use hawser_router::owner::{SaveRequest, ToOwner, Ways};
use hawser_router::queue::committer::Request;
use hawser_router::queue::{Offset, PartitionId};
use hawser_router::takeover::{NotTaken, Opened, Taken, Takeover};
use tokio::sync::oneshot;

use crate::engine::PARTITIONS;
use crate::env::Env;

/// A takeover that failed is tried again after this long.
const RETRY_MS: u64 = 1_000;
/// Longest pause between two steps of a takeover.
const STEP_MS_MAX: u64 = 300;

enum State {
    Absent,
    Taking(Taking),
    /// The owner has been handed the Hub.
    Adopting {
        adopted: oneshot::Receiver<()>,
        epoch: u64,
        next: Offset,
    },
    Served(u64),
    Leaving(oneshot::Receiver<()>),
}

struct Taking {
    due_ms: u64,
    takeover: Option<Takeover>,
    step: Step,
    unwanted: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Open,
    Follow(Opened),
    Mark(Opened),
    Finish(Opened),
}

/// See the module.
pub(crate) struct Keeper {
    states: Vec<State>,
    /// What claims have changed and was not looked at.
    pub(crate) changes: Vec<Change>,
    /// Partitions that were let go, or not taken.
    pub(crate) released: Vec<PartitionId>,
}

/// What a keeper needs of its router.
pub(crate) struct Tools<'a> {
    /// To the parts.
    pub(crate) ways: &'a Ways,
    /// Opens both logs anew for a takeover.
    pub(crate) takeover: &'a mut dyn FnMut() -> Result<Takeover, NotTaken>,
    /// Brings a message to the owner of a partition.
    pub(crate) tell: &'a mut dyn FnMut(PartitionId, ToOwner),
}

impl Keeper {
    /// A keeper of nothing.
    pub(crate) fn new() -> Self {
        let states = (0..PARTITIONS).map(|_| State::Absent).collect();
        Self { states, changes: Vec::new(), released: Vec::new() }
    }

    /// Whether it neither serves nor does anything about a partition.
    pub(crate) fn is_absent(&self, partition: PartitionId) -> bool {
        matches!(self.states[usize::from(partition)], State::Absent)
    }

    /// What is served, under which epochs.
    pub(crate) fn claims(&self) -> Vec<(PartitionId, u64)> {
        let served = |(partition, state): (PartitionId, &State)| match state {
            State::Served(epoch) => Some((partition, *epoch)),
            State::Absent | State::Taking(_) | State::Adopting { .. } | State::Leaving(_) => None,
        };
        (0..).zip(&self.states).filter_map(served).collect()
    }

    /// Goes on with what is due.
    pub(crate) fn turn(&mut self, env: &mut Env, tools: &mut Tools<'_>, notices: Vec<Notice>) {
        for change in std::mem::take(&mut self.changes) {
            env.trace(|| format!("claims: {change:?}"));
            self.change(env, tools, change);
        }
        for Notice::Deposed(partition, epoch) in notices {
            if matches!(self.states[usize::from(partition)], State::Served(known) if known == epoch)
            {
                env.history.count("deposed");
                self.let_go(tools, partition, false);
            }
        }
        for partition in 0..PARTITIONS {
            self.go_on(env, tools, partition);
        }
    }

    fn change(&mut self, env: &mut Env, tools: &mut Tools<'_>, change: Change) {
        match change {
            Change::Gained(partition) => match &mut self.states[usize::from(partition)] {
                state @ State::Absent => *state = State::Taking(Taking::new(env, 0)),
                State::Taking(taking) => taking.unwanted = false,
                State::Adopting { .. } | State::Served(_) | State::Leaving(_) => {}
            },
            Change::Wanted(partition) => self.let_go(tools, partition, true),
            Change::Lost(partition) => self.let_go(tools, partition, false),
        }
    }

    fn let_go(&mut self, tools: &mut Tools<'_>, partition: PartitionId, save: bool) {
        match &mut self.states[usize::from(partition)] {
            state @ State::Served(_) => {
                let (gone, is_gone) = oneshot::channel();
                *state = State::Leaving(is_gone);
                (tools.tell)(partition, ToOwner::LetGo { partition, save, gone });
            }
            State::Taking(taking) => taking.unwanted = true,
            State::Absent => self.released.push(partition),
            // The keeper waits for the owner, and looks at changes after that.
            State::Adopting { .. } => self.changes.push(if save {
                Change::Wanted(partition)
            } else {
                Change::Lost(partition)
            }),
            State::Leaving(_) => {}
        }
    }

    fn go_on(&mut self, env: &mut Env, tools: &mut Tools<'_>, partition: PartitionId) {
        let place = usize::from(partition);
        match &mut self.states[place] {
            State::Taking(taking) if taking.due_ms <= env.ms => {
                match taking.go_on(env, tools, partition) {
                    Err(NotTaken(reason)) => {
                        env.trace(|| format!("partition {partition} is not taken: {reason}"));
                        env.history.count("takeovers failed");
                        let unwanted = taking.unwanted;
                        self.states[place] = State::Taking(Taking::new(env, RETRY_MS));
                        if unwanted {
                            self.note_gone(partition);
                        }
                    }
                    Ok(Some(_)) if taking.unwanted => self.note_gone(partition),
                    Ok(Some(taken)) => self.serve(env, tools, partition, taken),
                    Ok(None) => {}
                }
            }
            State::Adopting { adopted, epoch, next } => {
                if adopted.try_recv().is_ok() {
                    let _ = tools.ways.committer.send(Request::Adopt(partition, *next));
                    self.states[place] = State::Served(*epoch);
                }
            }
            State::Leaving(gone) => {
                if !matches!(gone.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                    let _ = tools.ways.committer.send(Request::LetGo(partition));
                    let _ = tools
                        .ways
                        .saver
                        .send(SaveRequest::LetGo(partition, tokio::sync::oneshot::channel().0));
                    self.note_gone(partition);
                }
            }
            State::Absent | State::Taking(_) | State::Served(_) => {}
        }
    }

    fn serve(
        &mut self,
        env: &mut Env,
        tools: &mut Tools<'_>,
        partition: PartitionId,
        taken: Taken,
    ) {
        let Taken { hub, writer, state_next, messages_next, replayed } = taken;
        env.history.count("takeovers");
        *env.history.counts.entry("records replayed").or_default() += replayed;
        let epoch = hub.epoch();
        env.trace(|| format!("partition {partition} taken under {epoch}, {replayed} replayed"));
        let _ = tools.ways.saver.send(SaveRequest::Adopt(partition, writer, state_next));
        let (adopted, is_adopted) = oneshot::channel();
        (tools.tell)(partition, ToOwner::Adopt(Box::new(hub), adopted));
        self.states[usize::from(partition)] =
            State::Adopting { adopted: is_adopted, epoch, next: messages_next };
    }

    fn note_gone(&mut self, partition: PartitionId) {
        self.states[usize::from(partition)] = State::Absent;
        self.released.push(partition);
    }
}

impl Taking {
    fn new(env: &mut Env, wait_ms: u64) -> Self {
        let due_ms = env.ms + wait_ms + env.rng.u64(..STEP_MS_MAX);
        Self { due_ms, takeover: None, step: Step::Open, unwanted: false }
    }

    /// Does the next step.
    fn go_on(
        &mut self,
        env: &mut Env,
        tools: &mut Tools<'_>,
        partition: PartitionId,
    ) -> Result<Option<Taken>, NotTaken> {
        // Often at once, as where nothing stands in the way.
        self.due_ms = if env.rng.bool() { env.ms } else { env.ms + env.rng.u64(..STEP_MS_MAX) };
        let takeover = match &mut self.takeover {
            Some(takeover) => takeover,
            empty => empty.insert((tools.takeover)()?),
        };
        self.step = match self.step {
            Step::Open => Step::Follow(takeover.open(partition, env.rng.u64(..))?),
            Step::Follow(opened) => {
                takeover.follow(&opened)?;
                Step::Mark(opened)
            }
            Step::Mark(opened) => {
                takeover.mark(&opened)?;
                Step::Finish(opened)
            }
            Step::Finish(opened) => {
                let unix_ms = env.router_now().unix_ms;
                return takeover.finish(opened, unix_ms).map(Some);
            }
        };
        Ok(None)
    }
}
