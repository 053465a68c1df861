//! This shard's side of the links: the routes, and what goes to which router.
//!
//! Knows no connections: who is told about them, and when, is in [`super::moves`].

use hawser_proto::framing;
use hawser_proto::partition::PartitionId;
use hawser_proto::view::link::{EdgeMessage, SnapshotEnd};

use super::VecDeque;
use super::moves::Walk;
use crate::limits::LINK_BATCH_BYTES;
use crate::mesh::{Batch, Full, LinkGeneration, Mesh};
use crate::pending::Way;
use crate::routes::{Claim, PartitionSet, RouterIndex, Routes};

/// See the module.
#[derive(Debug)]
pub(super) struct Links {
    routes: Routes,
    /// Which partitions' connections have still to be told.
    pub(super) walk: Walk,
    /// By router, of those that were ever linked.
    outlets: Vec<Outlet>,
    /// One of the outlets is.
    is_congested: bool,
}

/// What this shard has for one router.
#[derive(Debug, Default)]
struct Outlet {
    /// Present while the link is up.
    link: Option<Link>,
    /// The link frame being filled; empty, or with room for its length in front.
    batch: Vec<u8>,
    /// Whole frames on their way into the lane.
    batches: VecDeque<Batch>,
    /// The lane, or what waits for the router, was full the last time: clients whose router it is are not read from until
    /// there is room, sends of others to its partitions wait in [`crate::pending`], and signals are dropped.
    is_congested: bool,
}

/// A link that is up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) generation: LinkGeneration,
    /// Unacknowledged deliveries that the router lets out to one device.
    pub(super) window_messages: u32,
    pub(super) snapshot: Snapshot,
}

/// What a router knows of who is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshot {
    /// It has not said yet what it owns.
    Awaited,
    /// SnapshotEnd comes when the walk is over.
    Due,
    /// SnapshotEnd is said.
    Told,
}

impl Default for Links {
    /// No router is linked.
    fn default() -> Self {
        let (routes, walk) = (Routes::new(0), Walk::default());
        Self { routes, walk, outlets: Vec::new(), is_congested: false }
    }
}

impl Links {
    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// A link is up. With another number of partitions than before no other is, as the uplinks see to it, and every route is
    /// forgotten; says whether that is so.
    pub(super) fn open(&mut self, router: RouterIndex, link: Link, partitions: u16) -> bool {
        let is_other = partitions != self.routes.partitions();
        if is_other {
            (self.routes, self.walk) = (Routes::new(partitions), Walk::default());
        }
        if self.outlets.len() <= router.at() {
            self.outlets.resize_with(router.at() + 1, Outlet::default);
        }
        if let Some(outlet) = self.outlet(router) {
            outlet.link = Some(link);
        }
        is_other
    }

    /// A link is gone, and what was on its way to it.
    pub(super) fn close(&mut self, mesh: &Mesh, shard: u16, router: RouterIndex) {
        self.routes.close(router);
        let Some(outlet) = self.outlet(router) else { return };
        outlet.link = None;
        mesh.give_buffer(shard, std::mem::take(&mut outlet.batch));
        while let Some(batch) = outlet.batches.pop_front() {
            mesh.give_buffer(shard, batch.frame);
        }
    }

    /// A router has said all that it owns. Returns the partitions that are routed to it only now, which the walk comes to.
    pub(super) fn claim(
        &mut self,
        router: RouterIndex,
        said_on: LinkGeneration,
        claims: &[Claim],
    ) -> PartitionSet {
        let link = self.outlet(router).and_then(|outlet| outlet.link.as_mut());
        let Some(link) = link.filter(|link| link.generation == said_on) else {
            return PartitionSet::EMPTY;
        };
        if link.snapshot == Snapshot::Awaited {
            link.snapshot = Snapshot::Due;
        }
        let moved = self.routes.claim(router, claims);
        self.walk.add(&moved);
        moved
    }

    /// Unacknowledged deliveries that this router lets out to one device.
    pub(super) fn window_messages(&self, router: RouterIndex) -> u32 {
        let link = self.outlets.get(router.at()).and_then(|outlet| outlet.link);
        link.map_or(0, |link| link.window_messages)
    }

    /// The router that a user is served by.
    pub(super) fn router_of(&self, user: &str) -> Option<RouterIndex> {
        self.routes.router_of(self.routes.partition_of(user))
    }

    /// Whether this router has no room.
    pub(super) fn is_congested(&self, router: RouterIndex) -> bool {
        self.outlets.get(router.at()).is_some_and(|outlet| outlet.is_congested)
    }

    /// Whether what is about this user goes to a router that has no room for it.
    pub(super) fn is_congested_for(&self, user: &str) -> bool {
        self.is_congested && self.router_of(user).is_some_and(|router| self.is_congested(router))
    }

    /// Where a Send to this partition goes now: nowhere before its router has been told who is here, so that those are
    /// repeated first which are unanswered.
    pub(super) fn way(&self, partition: PartitionId) -> Way<RouterIndex> {
        match self.routes.router_of(partition) {
            Some(router) if !self.walk.is_due(partition) && !self.is_congested(router) => {
                Way::Open(router)
            }
            Some(_) | None => Way::Shut,
        }
    }

    /// Says something to the router of a user. Lost when there is none: the next one is told who is here.
    pub(super) fn say(&mut self, user: &str, message: &EdgeMessage<'_>) {
        if let Some(router) = self.router_of(user)
            && let Some(outlet) = self.outlet(router)
        {
            outlet.say(router, message);
        }
    }

    /// Says an encoded message to a router.
    pub(super) fn say_encoded(&mut self, router: RouterIndex, bytes: &[u8]) {
        if let Some(outlet) = self.outlet(router) {
            open_batch(&mut outlet.batch).extend_from_slice(bytes);
            outlet.close_batch(router, LINK_BATCH_BYTES);
        }
    }

    /// Tells the routers whose connections have all been told that this was all.
    pub(super) fn end_snapshots(&mut self, shard: u16) {
        let end = EdgeMessage::SnapshotEnd(SnapshotEnd { shard: u32::from(shard) });
        for (router, outlet) in (0..).map(RouterIndex).zip(&mut self.outlets) {
            let Some(link) = outlet.link.as_mut() else { continue };
            if link.snapshot == Snapshot::Due {
                link.snapshot = Snapshot::Told;
                outlet.say(router, &end);
            }
        }
    }

    /// Closes every batch that has something in it.
    pub(super) fn close_batches(&mut self) {
        for (router, outlet) in (0..).map(RouterIndex).zip(&mut self.outlets) {
            outlet.close_batch(router, 0);
        }
    }

    /// Puts batches into the lane, as far as there is room for them and for their routers. Says whether a router has room that
    /// had none.
    pub(super) fn push_batches(&mut self, mesh: &Mesh, shard: u16) -> bool {
        let mut has_opened = false;
        self.is_congested = false;
        for outlet in &mut self.outlets {
            while let Some(batch) = outlet.batches.pop_front() {
                if let Err(Full(batch)) = mesh.try_send_up(shard, batch) {
                    outlet.batches.push_front(batch);
                    break;
                }
            }
            let is_congested = !outlet.batches.is_empty();
            has_opened |= outlet.is_congested && !is_congested;
            outlet.is_congested = is_congested;
            self.is_congested |= is_congested;
        }
        has_opened
    }

    /// Gives every link that is up a buffer to fill.
    pub(super) fn take_buffers(&mut self, mesh: &Mesh, shard: u16) {
        for outlet in &mut self.outlets {
            if outlet.batch.capacity() == 0 && outlet.link.is_some() {
                outlet.batch = mesh.buffer(shard);
            }
        }
    }

    /// Whether [`Self::push_batches`] would get rid of something.
    pub(super) fn can_push(&self, mesh: &Mesh, shard: u16) -> bool {
        let congested = (0..).map(RouterIndex).zip(&self.outlets);
        let mut congested = congested.filter(|(_, outlet)| outlet.is_congested);
        self.is_congested && congested.any(|(router, _)| mesh.has_room_up(shard, router))
    }

    fn outlet(&mut self, router: RouterIndex) -> Option<&mut Outlet> {
        self.outlets.get_mut(router.at())
    }
}

impl Outlet {
    /// Adds a message for the router that this is the outlet of.
    fn say(&mut self, router: RouterIndex, message: &EdgeMessage<'_>) {
        message.write(open_batch(&mut self.batch));
        self.close_batch(router, LINK_BATCH_BYTES);
    }

    /// Puts the batch among those that are on their way, when it has reached `bytes`.
    fn close_batch(&mut self, router: RouterIndex, bytes: usize) {
        let Some(link) = &self.link else { return };
        if self.batch.len() >= bytes.max(framing::LENGTH_BYTES + 1) {
            let mut frame = std::mem::take(&mut self.batch);
            framing::finish_frame(&mut frame, 0);
            self.batches.push_back(Batch { router, link: link.generation, frame });
        }
    }
}

fn open_batch(batch: &mut Vec<u8>) -> &mut Vec<u8> {
    if batch.is_empty() {
        let _start = framing::begin_frame(batch);
    }
    batch
}
