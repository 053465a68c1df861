//! Bounded queues between the shards and the uplink. With the counters, all that two cores share.
//!
//! Each shard has a **lane**: batches up to the router, parcels down from it, and the emptied buffers of
//! both on their way back, so that buffers circulate and the steady state allocates nothing. The uplink
//! runs on shard 0's core ([`UPLINK_SHARD`]); whoever puts something into a queue wakes the other side,
//! through an eventfd that its ring reads while it sleeps, and only when it is parked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::command::Command;
use crate::limits::ROUTERS_MAX;
use crate::routes::{Claim, RouterIndex};

/// The shard on whose core the uplink runs.
pub const UPLINK_SHARD: u16 = 0;
/// Batches that a lane holds in each direction.
pub const LANE_PARCELS_MAX: usize = 64;

/// Commands that wait for a shard; an operator's next one is refused until it has taken some.
pub const COMMANDS_MAX: usize = 64;

/// Messages for a router: one link frame, its length in front.
#[derive(Debug)]
pub struct Batch {
    /// Which.
    pub router: RouterIndex,
    /// The link for which it was written; on any other it is thrown away.
    pub link: LinkGeneration,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Counts the links that an edge has had to one router; tells what was meant for one from what is meant for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkGeneration(pub u32);

/// What the uplink tells a shard.
#[derive(Debug)]
pub enum Parcel {
    /// A router has answered the hello. What it owns follows.
    LinkUp {
        /// Which router.
        router: RouterIndex,
        /// Which link.
        link: LinkGeneration,
        /// Unacknowledged deliveries that the router lets out to one device.
        window_messages: u32,
        /// Of the cluster; 0: it owns every user.
        partitions: u16,
    },
    /// The link is gone.
    LinkDown {
        /// To which router.
        router: RouterIndex,
    },
    /// All that a router owns from now on: tell it who is here of that, then what is new.
    Owned {
        /// Which router.
        router: RouterIndex,
        /// On which link it said so.
        link: LinkGeneration,
        /// What.
        claims: Arc<[Claim]>,
    },
    /// Messages from a router for this shard's connections: a `RouterBatch`.
    Messages(RouterIndex, Vec<u8>),
}

/// Queue full; here is what did not go in. The caller keeps it and tries again after the other side has moved on.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// Wakes one core.
#[derive(Debug)]
pub struct Waker {
    parked: AtomicBool,
    eventfd: OwnedFd,
}

impl Waker {
    fn new() -> io::Result<Self> {
        Ok(Self { parked: AtomicBool::new(false), eventfd: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// What the parked core reads.
    #[must_use]
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// The core says that it is about to sleep; it has to look at its queues once more after this.
    pub fn park(&self) {
        // Pairs with the fence in `wake`: here `parked` is set, then the queues are read; there something
        // was pushed, then `parked` is read. Without both fences each can miss the other's write.
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The core is awake again.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    /// Wakes the core if it sleeps. Call it after pushing; a system call only when it is parked.
    pub fn wake(&self) {
        // Pairs with the fence in `park`.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) {
            // The counter can only be full when 2^64 wakes are unread: then it is awake in any case.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

#[derive(Debug)]
struct Lane {
    up: ArrayQueue<Batch>,
    down: ArrayQueue<Parcel>,
    spare: ArrayQueue<Vec<u8>>,
    commands: ArrayQueue<Command>,
    waker: Waker,
}

/// See the module.
#[derive(Debug)]
pub struct Mesh {
    lanes: Box<[Lane]>,
    /// By router: so much waits to be sent to it that shards are to keep what they have for it.
    full_routers: [AtomicBool; ROUTERS_MAX],
}

impl Mesh {
    /// Queues for `shards` shards.
    ///
    /// # Errors
    /// No eventfd to be had.
    pub fn new(shards: usize) -> io::Result<Self> {
        let lane = || {
            Ok(Lane {
                up: ArrayQueue::new(LANE_PARCELS_MAX),
                down: ArrayQueue::new(LANE_PARCELS_MAX),
                spare: ArrayQueue::new(2 * LANE_PARCELS_MAX),
                commands: ArrayQueue::new(COMMANDS_MAX),
                waker: Waker::new()?,
            })
        };
        Ok(Self {
            lanes: (0..shards).map(|_| lane()).collect::<io::Result<_>>()?,
            full_routers: Default::default(),
        })
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// What wakes `shard`.
    #[must_use]
    pub fn waker(&self, shard: u16) -> &Waker {
        &self.lanes[usize::from(shard)].waker
    }

    /// From the admin thread, or whoever runs the edge, to a shard.
    ///
    /// # Errors
    /// [`Full`] with the command.
    pub fn try_command(&self, shard: u16, command: Command) -> Result<(), Full<Command>> {
        self.lanes[usize::from(shard)].commands.push(command).map_err(Full)?;
        self.waker(shard).wake();
        Ok(())
    }

    /// Whether less than half of the commands that a shard can be given wait for it. What comes in numbers and by itself
    /// looks here first, so that an operator's command finds room.
    #[must_use]
    pub fn commands_are_few(&self, shard: u16) -> bool {
        self.lanes[usize::from(shard)].commands.len() < COMMANDS_MAX / 2
    }

    /// A shard takes the next command.
    #[must_use]
    pub fn take_command(&self, shard: u16) -> Option<Command> {
        self.lanes[usize::from(shard)].commands.pop()
    }

    /// From a shard to the uplinks.
    ///
    /// # Errors
    /// [`Full`] with the batch: no room in the lane, or too much waits for its router already.
    pub fn try_send_up(&self, shard: u16, batch: Batch) -> Result<(), Full<Batch>> {
        if self.router_is_full(batch.router) {
            return Err(Full(batch));
        }
        self.lanes[usize::from(shard)].up.push(batch).map_err(Full)?;
        if shard != UPLINK_SHARD {
            self.waker(UPLINK_SHARD).wake();
        }
        Ok(())
    }

    /// Whether a shard would get rid of a batch for this router.
    #[must_use]
    pub fn has_room_up(&self, shard: u16, router: RouterIndex) -> bool {
        !self.router_is_full(router) && !self.lanes[usize::from(shard)].up.is_full()
    }

    fn router_is_full(&self, router: RouterIndex) -> bool {
        // A shard that reads the old value adds one batch, or is woken: see `set_router_full`.
        self.full_routers.get(router.at()).is_some_and(|full| full.load(Ordering::Relaxed))
    }

    /// An uplink says whether shards are to keep what they have for its router. What is in the lanes already it takes all
    /// the same: so a router that does not read keeps nobody from the others.
    pub fn set_router_full(&self, router: RouterIndex, full: bool) {
        let Some(said) = self.full_routers.get(router.at()) else { return };
        if said.load(Ordering::Relaxed) == full {
            return;
        }
        said.store(full, Ordering::Relaxed);
        if !full {
            // `wake` has the fence that pairs with a shard's last look before it sleeps.
            self.lanes.iter().for_each(|lane| lane.waker.wake());
        }
    }

    /// The uplink takes what a shard sent.
    pub fn take_up(&self, shard: u16) -> Option<Batch> {
        let lane = &self.lanes[usize::from(shard)];
        let was_full = lane.up.is_full();
        let batch = lane.up.pop();
        if was_full && shard != UPLINK_SHARD {
            // The shard stopped reading from its clients for want of this room.
            lane.waker.wake();
        }
        batch
    }

    /// From the uplink to a shard.
    ///
    /// # Errors
    /// [`Full`] with the parcel.
    pub fn try_send_down(&self, shard: u16, parcel: Parcel) -> Result<(), Full<Parcel>> {
        self.lanes[usize::from(shard)].down.push(parcel).map_err(Full)?;
        if shard != UPLINK_SHARD {
            self.waker(shard).wake();
        }
        Ok(())
    }

    /// Whether the uplink can give this shard one more parcel.
    #[must_use]
    pub fn down_is_full(&self, shard: u16) -> bool {
        self.lanes[usize::from(shard)].down.is_full()
    }

    /// A shard takes what the uplink sent.
    pub fn take_down(&self, shard: u16) -> Option<Parcel> {
        let lane = &self.lanes[usize::from(shard)];
        let was_full = lane.down.is_full();
        let parcel = lane.down.pop();
        if was_full && shard != UPLINK_SHARD {
            // The uplink stopped reading from the router for want of this room.
            self.waker(UPLINK_SHARD).wake();
        }
        parcel
    }

    /// Whether something waits for `shard`; for the uplink's shard also what waits for the uplink.
    #[must_use]
    pub fn has_work(&self, shard: u16) -> bool {
        let lane = &self.lanes[usize::from(shard)];
        !lane.down.is_empty()
            || !lane.commands.is_empty()
            || (shard == UPLINK_SHARD && self.lanes.iter().any(|lane| !lane.up.is_empty()))
    }

    /// An empty buffer of this lane, used before where possible.
    #[must_use]
    pub fn buffer(&self, shard: u16) -> Vec<u8> {
        self.lanes[usize::from(shard)].spare.pop().unwrap_or_default()
    }

    /// Gives a buffer back. Beyond the bound, or when it has grown past half a mebibyte, it is freed.
    pub fn give_buffer(&self, shard: u16, mut buffer: Vec<u8>) {
        const KEPT_BYTES_MAX: usize = 512 * 1024;
        if buffer.capacity() <= KEPT_BYTES_MAX {
            buffer.clear();
            // A full lane of spares means enough are kept.
            let _ = self.lanes[usize::from(shard)].spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_gives_the_batch_back_and_takes_it_when_there_is_room() {
        let mesh = Mesh::new(2).unwrap();
        let batch = || Batch { router: RouterIndex(0), link: LinkGeneration(1), frame: vec![1] };
        for _ in 0..LANE_PARCELS_MAX {
            assert!(mesh.try_send_up(1, batch()).is_ok());
        }
        let Err(Full(kept)) = mesh.try_send_up(1, batch()) else { panic!("no bound") };
        assert!(mesh.take_up(1).is_some());
        assert!(mesh.try_send_up(1, kept).is_ok());
        assert!(mesh.has_work(UPLINK_SHARD) && !mesh.has_work(1));
    }

    #[test]
    fn a_parked_core_is_woken_and_one_that_is_awake_costs_no_system_call() {
        let mesh = Mesh::new(2).unwrap();
        let parcel = || Parcel::LinkDown { router: RouterIndex(0) };
        mesh.try_send_down(1, parcel()).unwrap();
        mesh.waker(1).park();
        mesh.try_send_down(1, parcel()).unwrap();
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(mesh.waker(1).eventfd(), &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn what_is_for_a_full_router_stays_with_the_shard_which_is_woken_when_there_is_room() {
        let mesh = Mesh::new(2).unwrap();
        let batch =
            |router| Batch { router: RouterIndex(router), link: LinkGeneration(1), frame: vec![1] };
        mesh.set_router_full(RouterIndex(3), true);
        assert!(mesh.try_send_up(1, batch(3)).is_err() && !mesh.has_room_up(1, RouterIndex(3)));
        assert!(mesh.try_send_up(1, batch(2)).is_ok() && mesh.has_room_up(1, RouterIndex(2)));
        mesh.waker(1).park();
        mesh.set_router_full(RouterIndex(3), false);
        assert_eq!(rustix::io::read(mesh.waker(1).eventfd(), &mut [0; 8]), Ok(8));
        assert!(mesh.try_send_up(1, batch(3)).is_ok());
    }
}
