//! What routers are told when links come up and partitions move.
//!
//! ```text
//!   LinkUp ─► Owned ─► partitions move ─► their connections are told (the walk) ─► SnapshotEnd, once a link
//!                                           └─► then their unanswered sends, oldest first ─► then new ones
//! ```

use hawser_proto::partition::PartitionId;

use super::Shard;
use super::links::{Link, Snapshot};
use crate::conn::ConnKey;
use crate::mesh::{LANE_PARCELS_MAX, Mesh, Parcel, UPLINK_SHARD};
use crate::routes::PartitionSet;
use crate::timer::Now;

/// Slots looked at in one turn while connections are told.
const WALK_SLOTS_MAX: u32 = 1024;
/// Sends repeated in one turn.
const RESENDS_MAX: usize = 1024;

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
    /// These partitions have got a router: a walk that goes on no longer tells them, the next one does.
    pub(super) fn add(&mut self, moved: &PartitionSet) {
        self.walked.subtract(moved);
        self.moved.unite(moved);
    }

    /// Whether a partition's connections have not all been told: sends to it have to wait.
    pub(super) fn is_due(&self, partition: PartitionId) -> bool {
        self.walked.contains(partition) || self.moved.contains(partition)
    }

    /// Whether the connection in this slot will be told without anybody's doing.
    fn comes_to(&self, partition: PartitionId, slot: u32) -> bool {
        let ahead = self.next.is_some_and(|next| next <= slot);
        ahead && self.walked.contains(partition) || self.moved.contains(partition)
    }

    /// Where to go on, or to begin; `None` when nothing has moved.
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
            if let Parcel::Messages(router, messages) = parcel {
                self.handle_messages(now, router, &messages);
                mesh.give_buffer(self.index, messages);
            } else {
                self.handle_link(mesh, parcel);
            }
        }
        self.push_batches(mesh);
        self.tell_moved();
        self.tell_pending();
        self.links.close_batches();
        self.push_batches(mesh);
        self.links.take_buffers(mesh, self.index);
    }

    /// Whether [`Self::exchange`] has more to do without anything new happening.
    #[must_use]
    pub fn has_more_to_tell(&self) -> bool {
        let walk = &self.links.walk;
        !walk.is_over() && !walk.is_blocked || self.pending.is_searching()
    }

    /// Whether there is room now for what there was none for: the last look before the core sleeps.
    #[must_use]
    pub fn can_hand_over(&self, mesh: &Mesh) -> bool {
        self.links.can_push(mesh, self.index)
    }

    /// A link has come up or gone, or its router has said what it owns.
    fn handle_link(&mut self, mesh: &Mesh, parcel: Parcel) {
        match parcel {
            Parcel::LinkUp { router, link, window_messages, partitions } => {
                self.links.close(mesh, self.index, router);
                let snapshot = Snapshot::Awaited;
                let link = Link { generation: link, window_messages, snapshot };
                if self.links.open(router, link, partitions) {
                    let routes = self.links.routes();
                    self.pending.repartition(|user| routes.partition_of(user));
                }
            }
            Parcel::LinkDown { router } => self.links.close(mesh, self.index, router),
            Parcel::Owned { router, link, claims } => {
                let moved = self.links.claim(router, link, &claims);
                if !moved.is_empty() {
                    self.pending.untell(&moved);
                }
            }
            Parcel::Messages(..) => {}
        }
        self.count_routes();
    }

    /// For the health check: all shards hear the same, the first counts.
    pub(super) fn count_routes(&self) {
        if self.index == UPLINK_SHARD {
            let routes = self.links.routes();
            self.counters.partitions.set(u64::from(routes.partitions().max(1)));
            self.counters.partitions_unrouted.set(routes.unrouted() as u64);
        }
    }

    /// Tells the user's router that this connection is here, unless the walk will, or there is none: then the walk tells the
    /// next one.
    pub(super) fn register_new(&mut self, key: ConnKey) {
        let Some(session) = self.conns.get(key).and_then(|conn| conn.session()) else { return };
        let partition = self.links.routes().partition_of(&session.user);
        if !self.links.walk.comes_to(partition, key.index()) {
            self.register(key, false);
        }
    }

    /// Tells routers the next part of who is here, of the partitions that they got.
    fn tell_moved(&mut self) {
        if let Some(first) = self.links.walk.begin() {
            let end = self.conns.slots().min(first.saturating_add(WALK_SLOTS_MAX));
            for slot in first..end {
                let Some((key, conn)) = self.conns.at(slot) else { continue };
                let Some(session) = conn.session() else { continue };
                let partition = self.links.routes().partition_of(&session.user);
                if !self.links.walk.walked.contains(partition) {
                    continue;
                }
                let router = self.links.routes().router_of(partition);
                if router.is_some_and(|router| self.links.is_congested(router)) {
                    self.links.walk.next = Some(slot);
                    self.links.walk.is_blocked = true;
                    return;
                }
                self.register(key, true);
            }
            self.links.walk.next = Some(end);
            if end < self.conns.slots() {
                return;
            }
            self.links.walk.end();
            self.pending.start_search();
        }
        if self.links.walk.is_over() {
            self.links.end_snapshots(self.index);
        }
    }

    /// Tells sends that wait for their router, or that the last one left unanswered.
    fn tell_pending(&mut self) {
        for _ in 0..RESENDS_MAX {
            let conns = &self.conns;
            let here = |key| conns.get(key).is_some_and(|conn| conn.session().is_some());
            let way = |partition| self.links.way(partition);
            let Some((router, bytes)) = self.pending.poll_untold(here, way) else { return };
            self.links.say_encoded(router, bytes);
        }
    }

    fn push_batches(&mut self, mesh: &Mesh) {
        if !self.links.push_batches(mesh, self.index) {
            return;
        }
        self.links.walk.is_blocked = false;
        self.pending.start_search();
        for key in std::mem::take(&mut self.held) {
            // Those whose own router has no room yet are held again.
            self.update_receiving(key);
        }
    }
}
