//! This shard's side of the links: what goes to which router, and what a router has to be told when it gets partitions.
//!
//! ```text
//!   LinkUp ─► Owned ─► partitions move ─► their connections are told (the walk) ─► SnapshotEnd, once a link
//!                                           └─► then their unanswered sends, oldest first ─► then new ones
//! ```

use hawser_proto::framing;
use hawser_proto::partition::PartitionId;
use hawser_proto::view::link::{EdgeMessage, SnapshotEnd};

use super::{Shard, VecDeque};
use crate::conn::ConnKey;
use crate::limits::LINK_BATCH_BYTES;
use crate::mesh::{Batch, Full, LANE_PARCELS_MAX, LinkGeneration, Mesh, Parcel, UPLINK_SHARD};
use crate::pending::Way;
use crate::routes::{Claim, PartitionSet, RouterIndex, Routes};
use crate::timer::Now;

/// Slots looked at in one turn while connections are told.
const WALK_SLOTS_MAX: u32 = 1024;
/// Sends repeated in one turn.
const RESENDS_MAX: usize = 1024;

/// What this shard has for one router.
#[derive(Debug, Default)]
pub(super) struct Outlet {
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

#[derive(Debug, Clone, Copy)]
struct Link {
    generation: LinkGeneration,
    window_messages: u32,
    snapshot: Snapshot,
}

/// What a router knows of who is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Snapshot {
    /// It has not said yet what it owns.
    Awaited,
    /// SnapshotEnd comes when the walk is over.
    Due,
    /// SnapshotEnd is said.
    Told,
}

/// The walk over all slots that tells routers about the connections of partitions that they got.
#[derive(Debug)]
pub(super) struct Walk {
    /// The next slot, while a walk goes on.
    next: Option<u32>,
    /// Partitions whose connections this walk tells.
    walked: PartitionSet,
    /// Partitions for the next one: they moved while this one was on its way.
    moved: PartitionSet,
    /// A router has no room for what comes next.
    is_blocked: bool,
}

impl Default for Walk {
    fn default() -> Self {
        let (walked, moved) = (PartitionSet::EMPTY, PartitionSet::EMPTY);
        Self { next: None, walked, moved, is_blocked: false }
    }
}

impl Walk {
    fn add(&mut self, moved: &PartitionSet) {
        self.walked.subtract(moved);
        self.moved.unite(moved);
    }

    /// Whether a partition's connections have not all been told: sends to it have to wait.
    fn is_due(&self, partition: PartitionId) -> bool {
        self.walked.contains(partition) || self.moved.contains(partition)
    }

    /// Whether the connection in this slot will be told without anybody's doing.
    fn comes_to(&self, partition: PartitionId, slot: u32) -> bool {
        let ahead = self.next.is_some_and(|next| next <= slot);
        ahead && self.walked.contains(partition) || self.moved.contains(partition)
    }

    /// Where to go on, or to begin.
    fn begin(&mut self) -> Option<u32> {
        self.is_blocked = false;
        if self.next.is_none() && !self.moved.is_empty() {
            self.walked = std::mem::replace(&mut self.moved, PartitionSet::EMPTY);
            self.next = Some(0);
        }
        self.next
    }

    fn end(&mut self) {
        self.next = None;
        self.walked = PartitionSet::EMPTY;
    }

    fn is_over(&self) -> bool {
        self.next.is_none() && self.moved.is_empty()
    }
}

impl Shard {
    /// Trades with the uplinks: takes what routers said, hands over what they are to be told. Once a turn.
    pub fn exchange(&mut self, now: Now, mesh: &Mesh) {
        self.take_commands(now, mesh);
        self.counters.connections.set(self.conns.len() as u64);
        self.counters.handshakes.set(self.handshakes as u64);
        for _ in 0..LANE_PARCELS_MAX {
            let Some(parcel) = mesh.take_down(self.index) else { break };
            match parcel {
                Parcel::LinkUp { router, link, window_messages, partitions } => {
                    self.link_down(mesh, router);
                    let snapshot = Snapshot::Awaited;
                    let link = Link { generation: link, window_messages, snapshot };
                    self.link_up(router, link, partitions);
                }
                Parcel::LinkDown { router } => self.link_down(mesh, router),
                Parcel::Owned { router, link, claims } => self.take_claims(router, link, &claims),
                Parcel::Messages(router, messages) => {
                    self.handle_messages(now, router, &messages);
                    mesh.give_buffer(self.index, messages);
                }
            }
        }
        self.push_batches(mesh);
        self.tell_moved();
        self.tell_pending();
        self.hand_over(mesh);
    }

    /// Whether [`Self::exchange`] has more to do without anything new happening.
    #[must_use]
    pub fn has_more_to_tell(&self) -> bool {
        !self.walk.is_over() && !self.walk.is_blocked || self.pending.is_searching()
    }

    /// Whether there is room now for what there was none for: the last look before the core sleeps.
    #[must_use]
    pub fn can_hand_over(&self, mesh: &Mesh) -> bool {
        self.is_congested
            && (0..)
                .map(RouterIndex)
                .zip(&self.outlets)
                .any(|(router, outlet)| outlet.is_congested && mesh.has_room_up(self.index, router))
    }

    fn link_up(&mut self, router: RouterIndex, link: Link, partitions: u16) {
        if partitions != self.route_table.partitions() {
            // The uplinks see to it that no other link is up then.
            self.route_table = Routes::new(partitions);
            self.walk = Walk::default();
            let routes = &self.route_table;
            self.pending.repartition(|user| routes.partition_of(user));
        }
        if self.outlets.len() <= router.at() {
            self.outlets.resize_with(router.at() + 1, Outlet::default);
        }
        if let Some(outlet) = self.outlets.get_mut(router.at()) {
            outlet.link = Some(link);
        }
        self.count_routes();
    }

    fn link_down(&mut self, mesh: &Mesh, router: RouterIndex) {
        self.route_table.close(router);
        let Some(outlet) = self.outlets.get_mut(router.at()) else { return };
        outlet.link = None;
        mesh.give_buffer(self.index, std::mem::take(&mut outlet.batch));
        while let Some(batch) = outlet.batches.pop_front() {
            mesh.give_buffer(self.index, batch.frame);
        }
        self.count_routes();
    }

    /// A router has said what it owns: what is routed to it only now has to be told to it.
    fn take_claims(&mut self, router: RouterIndex, said_on: LinkGeneration, claims: &[Claim]) {
        let outlet = self.outlets.get_mut(router.at());
        let Some(link) = outlet.and_then(|outlet| outlet.link.as_mut()) else { return };
        if link.generation != said_on {
            return;
        }
        if link.snapshot == Snapshot::Awaited {
            link.snapshot = Snapshot::Due;
        }
        let moved = self.route_table.claim(router, claims);
        if !moved.is_empty() {
            self.walk.add(&moved);
            self.pending.untell(&moved);
        }
        self.count_routes();
    }

    /// For the health check: all shards hear the same, the first counts.
    pub(super) fn count_routes(&self) {
        if self.index == UPLINK_SHARD {
            self.counters.partitions.set(u64::from(self.route_table.partitions().max(1)));
            self.counters.partitions_unrouted.set(self.route_table.unrouted() as u64);
        }
    }

    /// What the router told about the window of its deliveries.
    pub(super) fn window_messages(&self, router: RouterIndex) -> u32 {
        let link = self.outlets.get(router.at()).and_then(|outlet| outlet.link);
        link.map_or(0, |link| link.window_messages)
    }

    /// Whether what this user says goes to a router that has no room for it.
    pub(super) fn is_congested_for(&self, user: &str) -> bool {
        self.is_congested
            && self.router_of(user).is_some_and(|router| is_congested(&self.outlets, router))
    }

    /// The router that a user is served by.
    pub(super) fn router_of(&self, user: &str) -> Option<RouterIndex> {
        self.route_table.router_of(self.route_table.partition_of(user))
    }

    /// Says something to the router of a user. Lost when there is none: the next one is told who is here.
    pub(super) fn say(&mut self, user: &str, message: &EdgeMessage<'_>) {
        let Some(router) = self.router_of(user) else { return };
        if let Some(outlet) = self.outlets.get_mut(router.at()) {
            outlet.say(router, message);
        }
    }

    /// Says something that is worth nothing later; dropped where it does not fit.
    pub(super) fn say_if_room(&mut self, user: &str, message: &EdgeMessage<'_>) {
        if self.is_congested_for(user) {
            self.counters.signals_dropped.add(1);
        } else {
            self.say(user, message);
        }
    }

    /// Where a Send to this partition goes now: nowhere before its router has been told who is here, so that those are
    /// repeated first which are unanswered.
    pub(super) fn way(
        routes: &Routes,
        walk: &Walk,
        outlets: &[Outlet],
        partition: PartitionId,
    ) -> Way<RouterIndex> {
        match routes.router_of(partition) {
            Some(router) if !walk.is_due(partition) && !is_congested(outlets, router) => {
                Way::Open(router)
            }
            Some(_) | None => Way::Shut,
        }
    }

    /// Whether the walk will register this connection.
    pub(super) fn is_walked_to(&self, user: &str, key: ConnKey) -> bool {
        self.walk.comes_to(self.route_table.partition_of(user), key.index())
    }

    /// Tells routers the next part of who is here, of the partitions that they got.
    fn tell_moved(&mut self) {
        if let Some(first) = self.walk.begin() {
            let end = self.conns.slots().min(first.saturating_add(WALK_SLOTS_MAX));
            for slot in first..end {
                let Some((key, conn)) = self.conns.at(slot) else { continue };
                let Some(session) = conn.session() else { continue };
                let partition = self.route_table.partition_of(&session.user);
                if !self.walk.walked.contains(partition) {
                    continue;
                }
                let router = self.route_table.router_of(partition);
                if router.is_some_and(|router| is_congested(&self.outlets, router)) {
                    self.walk.next = Some(slot);
                    self.walk.is_blocked = true;
                    return;
                }
                self.register(key, true);
            }
            self.walk.next = Some(end);
            if end < self.conns.slots() {
                return;
            }
            self.walk.end();
            self.pending.start_search();
        }
        if self.walk.is_over() {
            self.end_snapshots();
        }
    }

    /// Tells the routers that have been told of everybody that this was all.
    fn end_snapshots(&mut self) {
        let shard = u32::from(self.index);
        for (router, outlet) in (0..).map(RouterIndex).zip(&mut self.outlets) {
            let Some(link) = outlet.link.as_mut() else { continue };
            if link.snapshot == Snapshot::Due {
                link.snapshot = Snapshot::Told;
                outlet.say(router, &EdgeMessage::SnapshotEnd(SnapshotEnd { shard }));
            }
        }
    }

    /// Tells sends that wait for their router, or that the last one left unanswered.
    fn tell_pending(&mut self) {
        for _ in 0..RESENDS_MAX {
            let Self { pending, conns, route_table, walk, outlets, .. } = self;
            let here = |key| conns.get(key).is_some_and(|conn| conn.session().is_some());
            let way = |partition| Self::way(route_table, walk, outlets, partition);
            let Some((router, bytes)) = pending.poll_untold(here, way) else { return };
            if let Some(outlet) = outlets.get_mut(router.at()) {
                outlet.say_encoded(router, bytes);
            }
        }
    }

    fn hand_over(&mut self, mesh: &Mesh) {
        for (router, outlet) in (0..).map(RouterIndex).zip(&mut self.outlets) {
            outlet.close_batch(router, 0);
        }
        self.push_batches(mesh);
        for outlet in &mut self.outlets {
            if outlet.batch.capacity() == 0 && outlet.link.is_some() {
                outlet.batch = mesh.buffer(self.index);
            }
        }
    }

    /// Puts batches into the lane, as far as there is room for them and for their routers.
    fn push_batches(&mut self, mesh: &Mesh) {
        let (mut is_congested, mut has_opened) = (false, false);
        for outlet in &mut self.outlets {
            while let Some(batch) = outlet.batches.pop_front() {
                if let Err(Full(batch)) = mesh.try_send_up(self.index, batch) {
                    outlet.batches.push_front(batch);
                    break;
                }
            }
            let was_congested =
                std::mem::replace(&mut outlet.is_congested, !outlet.batches.is_empty());
            has_opened |= was_congested && !outlet.is_congested;
            is_congested |= outlet.is_congested;
        }
        self.is_congested = is_congested;
        if has_opened {
            self.walk.is_blocked = false;
            self.pending.start_search();
            for key in std::mem::take(&mut self.held) {
                // Those whose own router has no room yet are held again.
                self.update_receiving(key);
            }
        }
    }
}

impl Outlet {
    /// Adds a message for the router, which `router` names.
    pub(super) fn say(&mut self, router: RouterIndex, message: &EdgeMessage<'_>) {
        message.write(open_batch(&mut self.batch));
        self.close_batch(router, LINK_BATCH_BYTES);
    }

    /// The same for one that is encoded.
    pub(super) fn say_encoded(&mut self, router: RouterIndex, bytes: &[u8]) {
        open_batch(&mut self.batch).extend_from_slice(bytes);
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

fn is_congested(outlets: &[Outlet], router: RouterIndex) -> bool {
    outlets.get(router.at()).is_some_and(|outlet| outlet.is_congested)
}

fn open_batch(batch: &mut Vec<u8>) -> &mut Vec<u8> {
    if batch.is_empty() {
        let _start = framing::begin_frame(batch);
    }
    batch
}
