//! What a router does about each partition, given the bucket. No I/O.
//!
//! ```text
//!                claimed              has too many          released             freed
//!  Elsewhere ───────────────► Here ────────────────► Leaving ────────► Released ───────► Elsewhere
//!      ▲      tell Gained      │     tell Wanted        │                  │
//!      └───────────────────────┴────────────────────────┴──────────────────┘
//!            another has claimed it, or our lease ran out: tell Lost
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::shares::shares;
use super::table::{Owner, Table};
use crate::claims::Change;
use crate::queue::PartitionId;

/// A partition whose owner lives and does not let go is taken from it after so many leases, at least
/// [`HANDOVER_MIN`]: the owner may hang.
const HANDOVER_LEASES: u32 = 10;
const HANDOVER_MIN: Duration = Duration::from_secs(30);
/// The entry of a router that died is removed after so many leases.
const BURY_LEASES: u32 = 10;

/// Where a partition is, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Elsewhere,
    Here,
    Leaving,
    Released,
}

/// To be done to the bucket, or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Write our claim over this revision.
    Claim(PartitionId, u64),
    /// Write over this revision that nobody has it.
    Free(PartitionId, u64),
    /// Remove the entry of a dead router, when it still has this revision.
    Bury(String, u64),
    /// Tell the router.
    Tell(Change),
}

/// How far the partitions are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    pub(super) here: usize,
    pub(super) to_come: usize,
    pub(super) to_go: usize,
    pub(super) routers: usize,
}

/// One router's part.
#[derive(Debug)]
pub(super) struct Decisions {
    me: Owner,
    lease: Duration,
    places: Vec<Place>,
    /// Since when another has what shall be here.
    awaited: Vec<Option<Instant>>,
    /// Until when a partition that could not be served here is left to others.
    resting: Vec<Option<Instant>>,
    pub(super) progress: Progress,
}

impl Decisions {
    pub(super) fn new(me: Owner, lease: Duration, partitions: u16) -> Self {
        let count = usize::from(partitions);
        Self {
            me,
            lease,
            places: vec![Place::Elsewhere; count],
            awaited: vec![None; count],
            resting: vec![None; count],
            progress: Progress::default(),
        }
    }

    /// Looks at the whole bucket.
    pub(super) fn decide(&mut self, now: Instant, table: &Table) -> Vec<Action> {
        let mut live: Vec<&Owner> =
            table.live(now, self.lease).filter(|o| self.me != **o).collect();
        live.push(&self.me);
        live.sort_by(|a, b| a.router.cmp(&b.router));
        let owners: Vec<Option<usize>> = table
            .claims
            .iter()
            .map(|claim| live.iter().position(|live| Some(*live) == claim.owner.as_ref()))
            .collect();
        let me = live.iter().position(|owner| **owner == self.me).unwrap_or(0);
        self.progress = Progress { routers: live.len(), ..Progress::default() };
        let mut actions = Vec::new();
        for (partition, share) in shares(&owners, live.len()).into_iter().enumerate() {
            let owner = owners[partition];
            let (is_mine, is_wanted) = (owner == Some(me), share == me);
            let is_free = owner.is_none();
            let revision = table.claims[partition].revision;
            let id = partition as PartitionId;
            match self.places[partition] {
                Place::Elsewhere if is_wanted => {
                    self.progress.to_come += 1;
                    if self.may_claim(now, partition, is_mine || is_free) {
                        actions.push(Action::Claim(id, revision));
                    }
                }
                Place::Elsewhere if is_mine => actions.push(Action::Free(id, revision)),
                Place::Elsewhere => self.awaited[partition] = None,
                Place::Here | Place::Leaving if !is_mine => {
                    self.places[partition] = Place::Elsewhere;
                    actions.push(Action::Tell(Change::Lost(id)));
                }
                Place::Here if is_wanted => self.progress.here += 1,
                Place::Here => {
                    self.progress.to_go += 1;
                    self.places[partition] = Place::Leaving;
                    actions.push(Action::Tell(Change::Wanted(id)));
                }
                Place::Leaving => self.progress.to_go += 1,
                Place::Released if is_mine => {
                    self.progress.to_go += 1;
                    actions.push(Action::Free(id, revision));
                }
                Place::Released => self.places[partition] = Place::Elsewhere,
            }
        }
        actions.extend(self.burials(now, table));
        actions
    }

    fn may_claim(&mut self, now: Instant, partition: usize, is_there_to_take: bool) -> bool {
        if self.resting[partition].is_some_and(|until| now < until) {
            return false;
        }
        if is_there_to_take {
            return true;
        }
        let since = *self.awaited[partition].get_or_insert(now);
        now.duration_since(since) >= (self.lease * HANDOVER_LEASES).max(HANDOVER_MIN)
    }

    fn burials(&self, now: Instant, table: &Table) -> Vec<Action> {
        let dead = table.members.iter().filter(|(_, known)| {
            known.owner != self.me && now.duration_since(known.seen_at) > self.lease * BURY_LEASES
        });
        dead.map(|(key, known)| Action::Bury(key.clone(), known.revision)).collect()
    }

    /// A claim is written: the partition is here.
    pub(super) fn claimed(&mut self, partition: PartitionId) -> Change {
        let index = usize::from(partition);
        self.places[index] = Place::Here;
        (self.awaited[index], self.resting[index]) = (None, None);
        Change::Gained(partition)
    }

    /// The router serves a partition no more. One that nobody wanted is left to others for a lease.
    pub(super) fn released(&mut self, now: Instant, partition: PartitionId) {
        let index = usize::from(partition);
        let Some(place) = self.places.get_mut(index) else { return };
        match *place {
            Place::Here => {
                *place = Place::Released;
                self.resting[index] = Some(now + self.lease);
            }
            Place::Leaving => *place = Place::Released,
            Place::Elsewhere | Place::Released => {}
        }
    }

    /// Nothing is ours any more: others have not heard of us for a lease.
    pub(super) fn lose_all(&mut self) -> Vec<Change> {
        let mut lost = Vec::new();
        for (partition, place) in self.places.iter_mut().enumerate() {
            if matches!(*place, Place::Here | Place::Leaving) {
                lost.push(Change::Lost(partition as PartitionId));
            }
            *place = Place::Elsewhere;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{Entry, Member, member_key};
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);
    const PARTITIONS: u16 = 10;

    /// Routers around one bucket that always answers.
    struct World {
        now: Instant,
        revision: u64,
        table: Table,
        routers: Vec<(Owner, Decisions, Vec<Change>)>,
    }

    impl World {
        fn new() -> Self {
            let (now, table) = (Instant::now(), Table::new(PARTITIONS));
            Self { now, revision: 0, table, routers: Vec::new() }
        }

        fn start(&mut self, router: &str) {
            let owner = Owner { router: router.to_owned(), start: self.revision };
            let decisions = Decisions::new(owner.clone(), LEASE, PARTITIONS);
            self.routers.push((owner, decisions, Vec::new()));
        }

        fn kill(&mut self, router: &str) {
            self.routers.retain(|(owner, ..)| owner.router != router);
        }

        /// A second passes: all say that they are there, look, and do what they decided.
        fn turn(&mut self, releases: bool) {
            self.now += Duration::from_secs(1);
            for index in 0..self.routers.len() {
                self.revision += 1;
                let (owner, ..) = &self.routers[index];
                let member = Some(Member { owner: owner.clone(), address: String::new() });
                let (key, revision) = (member_key(&owner.router), self.revision);
                self.table.note(self.now, Entry::Member { key, member, revision });
            }
            for (owner, decisions, told) in &mut self.routers {
                for action in decisions.decide(self.now, &self.table) {
                    self.revision += 1;
                    let mut write = |partition: PartitionId, over, owner| {
                        assert_eq!(self.table.claims[usize::from(partition)].revision, over);
                        let revision = self.revision;
                        self.table.note(self.now, Entry::Claim { partition, owner, revision });
                    };
                    match action {
                        Action::Claim(partition, over) => {
                            write(partition, over, Some(owner.clone()));
                            told.push(decisions.claimed(partition));
                        }
                        Action::Free(partition, over) => write(partition, over, None),
                        Action::Bury(key, revision) => {
                            let entry = Entry::Member { key, member: None, revision };
                            self.table.note(self.now, entry);
                        }
                        Action::Tell(change) => {
                            told.push(change);
                            if let Change::Wanted(partition) = change
                                && releases
                            {
                                decisions.released(self.now, partition);
                            }
                        }
                    }
                }
            }
        }

        fn counts(&self) -> Vec<usize> {
            self.routers.iter().map(|(_, decisions, _)| decisions.progress.here).collect()
        }

        fn told(&mut self, router: &str) -> Vec<Change> {
            let found = self.routers.iter_mut().find(|(owner, ..)| owner.router == router);
            std::mem::take(&mut found.unwrap().2)
        }
    }

    #[tokio::test]
    async fn partitions_spread_when_a_router_comes_and_come_back_when_it_dies() {
        let mut world = World::new();
        world.start("a");
        world.turn(true);
        assert_eq!(world.told("a").len(), 10);
        world.start("b");
        for _ in 0..4 {
            world.turn(true);
        }
        assert_eq!(world.counts(), [5, 5]);
        assert_eq!(world.told("a").len(), 5, "five were wanted");
        assert_eq!(world.told("b").len(), 5);
        world.kill("b");
        for _ in 0..3 {
            world.turn(true);
            assert!(world.told("a").is_empty(), "its lease has not run out");
        }
        world.turn(true);
        assert_eq!(world.told("a").len(), 5);
        for _ in 0..30 {
            world.turn(true);
        }
        assert_eq!(world.table.members.len(), 1, "the dead one is buried");
        assert_eq!(world.counts(), [10]);
    }

    #[tokio::test]
    async fn an_owner_that_does_not_let_go_is_overruled_in_the_end() {
        let mut world = World::new();
        world.start("a");
        world.turn(false);
        world.start("b");
        for _ in 0..29 {
            world.turn(false);
        }
        assert!(world.told("b").is_empty());
        for _ in 0..4 {
            world.turn(false);
        }
        assert_eq!(world.told("b").len(), 5);
        let lost = world.told("a").into_iter().filter(|told| matches!(told, Change::Lost(_)));
        assert_eq!(lost.count(), 5);
    }

    #[tokio::test]
    async fn a_router_that_starts_again_is_not_who_it_was() {
        let mut world = World::new();
        world.start("a");
        world.turn(true);
        world.kill("a");
        world.start("a");
        world.turn(true);
        assert_eq!(world.told("a").len(), 10);
    }

    #[tokio::test]
    async fn a_partition_that_could_not_be_served_rests_for_a_lease() {
        let mut world = World::new();
        world.start("a");
        world.turn(true);
        world.told("a");
        let now = world.now;
        world.routers[0].1.released(now, 4);
        world.turn(true);
        world.turn(true);
        assert!(world.told("a").is_empty());
        assert_eq!(world.table.claims[4].owner, None);
        world.turn(true);
        assert_eq!(world.told("a"), [Change::Gained(4)]);
    }

    #[tokio::test]
    async fn what_was_lost_with_the_lease_is_claimed_again_where_nobody_took_it() {
        let mut world = World::new();
        world.start("a");
        world.turn(true);
        world.told("a");
        assert_eq!(world.routers[0].1.lose_all().len(), 10);
        world.turn(true);
        assert_eq!(world.told("a").len(), 10);
    }
}
