//! What owners tell of their registries, for a view of them that is kept elsewhere ([`redis`](super::redis)).
//!
//! ```text
//!  Hub ─ changes ─► Teller (of an owner) ─ bounded queue ─► who keeps the view
//!                     ▲ a walk through all registrations is wanted ◄─┘
//! ```
//!
//! Whoever keeps the view never holds an owner up: what finds no room is dropped and counted, and makes a walk necessary.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::{ClientProgram, ConnectionRef};
use crate::hub::Hub;
use crate::limits;
use crate::queue::PartitionId;

/// A connection came, or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is the one of its device from now on.
    Came(Box<Presence>),
    /// It is not registered any more.
    Left {
        /// Whose.
        user: Box<str>,
        /// Which.
        connection: ConnectionRef,
    },
}

/// A registered connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whose.
    pub user: Box<str>,
    /// Which device.
    pub device: Box<str>,
    /// Where it is.
    pub connection: ConnectionRef,
    /// By the edge's clock, in milliseconds since the epoch.
    pub connected_at_ms: i64,
    /// What runs there.
    pub program: ClientProgram,
}

impl Change {
    /// Whose connection.
    #[must_use]
    pub fn user(&self) -> &str {
        match self {
            Self::Came(presence) => &presence.user,
            Self::Left { user, .. } => user,
        }
    }
}

/// What is told of a partition, in order.
#[derive(Debug)]
pub struct Notice {
    /// Which.
    pub partition: PartitionId,
    /// Epoch of the owner who tells it.
    pub epoch: u64,
    /// What.
    pub told: Told,
}

/// See [`Notice`].
#[derive(Debug)]
pub enum Told {
    /// Something changed, or is as it was and told by a walk.
    Change(Change),
    /// From here on everything that is registered is told again.
    WalkBegins,
    /// It was.
    WalkEnds {
        /// Nothing was dropped since the walk began.
        whole: bool,
    },
}

/// What owners and the keeper of a view share.
#[derive(Debug)]
pub struct View {
    notices: mpsc::Sender<Notice>,
    /// Epochs of the partitions that are served here.
    served: Mutex<Vec<Option<u64>>>,
    walks_wanted: AtomicU64,
    dropped: Counter,
}

impl View {
    /// A view of so many partitions, and what is told of them. `dropped` counts what found no room.
    #[must_use]
    pub fn new(partitions: u16, dropped: Counter) -> (Self, mpsc::Receiver<Notice>) {
        let (notices, told) = mpsc::channel(limits::VIEW_NOTICES_MAX);
        let served = Mutex::new(vec![None; usize::from(partitions)]);
        (Self { notices, served, walks_wanted: AtomicU64::new(0), dropped }, told)
    }

    /// Epochs of the partitions that are served here.
    #[must_use]
    pub fn served(&self) -> Vec<Option<u64>> {
        self.lock().clone()
    }

    /// Asks every owner to tell everything again, after what it tells now.
    pub fn want_walk(&self) {
        self.walks_wanted.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An owner's end.
#[derive(Debug)]
pub struct Teller {
    view: std::sync::Arc<View>,
    /// What found no room.
    dropped: u64,
    /// [`View::want_walk`] of the last walk that began, and `dropped` then.
    walked: (u64, u64),
    walk: Option<Walk>,
}

#[derive(Debug, Default)]
struct Walk {
    /// Place of the Hub that is walked.
    place: usize,
    /// What of it is left, and what had been dropped when its walk began.
    left: Option<(usize, u64)>,
}

impl Teller {
    /// An end for one more owner.
    #[must_use]
    pub fn new(view: std::sync::Arc<View>) -> Self {
        Self { view, dropped: 0, walked: (0, 0), walk: None }
    }

    /// Notes whether a partition is served here, and under which epoch. To be called before anything is told of it.
    pub fn note_served(&self, partition: PartitionId, epoch: Option<u64>) {
        if let Some(served) = self.view.lock().get_mut(usize::from(partition)) {
            *served = epoch;
        }
    }

    /// Tells what changed, or drops it.
    pub fn tell(
        &mut self,
        partition: PartitionId,
        epoch: u64,
        changes: impl Iterator<Item = Change>,
    ) {
        for change in changes {
            let notice = Notice { partition, epoch, told: Told::Change(change) };
            if self.view.notices.try_send(notice).is_err() {
                self.dropped += 1;
                self.view.dropped.inc();
            }
        }
    }

    /// Goes on with a walk that is wanted: at most [`limits::VIEW_WALK_SLOTS`] registrations, and no more than there is room
    /// for. To be called with every tick. `hub` gives the owner's Hubs by their place, of which there are `count`.
    pub fn go_on<'a>(&mut self, count: usize, hub: impl Fn(usize) -> Option<&'a Hub>) {
        let wanted = (self.view.walks_wanted.load(Ordering::Relaxed), self.dropped);
        if self.walk.is_none() && wanted != self.walked {
            self.walked = wanted;
            self.walk = Some(Walk::default());
        }
        let Some(mut walk) = self.walk.take() else { return };
        let mut slots = limits::VIEW_WALK_SLOTS;
        while walk.place < count {
            let Some(hub) = hub(walk.place) else {
                walk = Walk { place: walk.place + 1, left: None };
                continue;
            };
            let done = match walk.left {
                None => self.mark(hub, Told::WalkBegins),
                Some((0, dropped)) => {
                    let whole = dropped == self.dropped;
                    self.mark(hub, Told::WalkEnds { whole })
                }
                // A half of the room is left for what changes meanwhile.
                Some(_) => {
                    slots > 0 && self.view.notices.capacity() >= limits::VIEW_NOTICES_MAX / 2
                }
            };
            if !done {
                self.walk = Some(walk);
                return;
            }
            walk.left = match walk.left {
                None => Some((hub.registry_slots(), self.dropped)),
                Some((0, _)) => {
                    walk.place += 1;
                    None
                }
                Some((left, dropped)) => {
                    let (rest, changes) = hub.walk_registry(left, slots);
                    slots = slots.saturating_sub(left - rest);
                    self.tell(hub.partition(), hub.epoch(), changes.into_iter());
                    Some((rest, dropped))
                }
            };
        }
    }

    fn mark(&self, hub: &Hub, told: Told) -> bool {
        let notice = Notice { partition: hub.partition(), epoch: hub.epoch(), told };
        self.view.notices.try_send(notice).is_ok()
    }
}
