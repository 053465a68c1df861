//! Which router has which partition: a table of claims, of which the highest epoch is right.
//!
//! Routers say what they own (link.proto, `Ownership`), each for itself and in any order; an edge sees a partition that moves
//! claimed by two of them, or by none, for a while. A router of the release before, or one with the embedded engine, says
//! only that there are 0 partitions: its claim is on the one partition that then holds everybody, and nothing is hashed.

use hawser_proto::partition::{self, PARTITIONS_MAX, PartitionId};

/// Which of the routers that `--router` names, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouterIndex(pub u8);

impl RouterIndex {
    /// As an index into what there is one of for each router.
    #[must_use]
    pub fn at(self) -> usize {
        usize::from(self.0)
    }
}

/// A partition that a router says it owns, and the epoch of its ownership.
pub type Claim = (PartitionId, u64);

/// What a router claims that owns every user: the one partition of [`Routes`] for 0 partitions.
pub const EVERYBODY: [Claim; 1] = [(0, 0)];

/// Some of the partitions, in 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionSet([u64; PARTITIONS_MAX as usize / 64]);

impl PartitionSet {
    /// None of them.
    pub const EMPTY: Self = Self([0; PARTITIONS_MAX as usize / 64]);

    /// Adds one.
    pub fn insert(&mut self, partition: PartitionId) {
        if let Some(word) = self.0.get_mut(usize::from(partition / 64)) {
            *word |= 1 << (partition % 64);
        }
    }

    /// Takes those of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
    }

    /// Adds those of `other`.
    pub fn unite(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(&self, partition: PartitionId) -> bool {
        let word = self.0.get(usize::from(partition / 64)).copied().unwrap_or_default();
        word >> (partition % 64) & 1 == 1
    }

    /// Whether it is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

/// What is known of one partition.
#[derive(Debug, Clone, Copy, Default)]
struct Route {
    /// Of the last claim that was right; what is below it is not listened to any more.
    epoch: u64,
    /// Whose claim that was.
    claimed_by: Option<RouterIndex>,
    /// It still claims it, and its link is up.
    is_open: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Routes {
    /// As routers say it; with 0 the table has one route all the same.
    partitions: u16,
    table: Vec<Route>,
}

impl Routes {
    /// A table in which no partition has a router.
    #[must_use]
    pub fn new(partitions: u16) -> Self {
        Self { partitions, table: vec![Route::default(); usize::from(partitions.max(1))] }
    }

    /// How many partitions there are, 0 where a router owns every user.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition that a user belongs to. Hashes only where there are several.
    #[inline]
    #[must_use]
    pub fn partition_of(&self, user: &str) -> PartitionId {
        if self.table.len() <= 1 { 0 } else { partition::partition_of(user, self.partitions) }
    }

    /// The router to which a partition is routed; its link is up.
    #[inline]
    #[must_use]
    pub fn router_of(&self, partition: PartitionId) -> Option<RouterIndex> {
        let route = self.table.get(usize::from(partition))?;
        route.claimed_by.filter(|_| route.is_open)
    }

    /// How many partitions have no route.
    #[must_use]
    pub fn unrouted(&self) -> usize {
        self.table.iter().filter(|route| !route.is_open).count()
    }

    /// Takes in all that a router claims, which replaces what it claimed before. Returns the partitions that are routed to it
    /// from now on and were not a moment ago, or not under this epoch.
    ///
    /// Above the epoch that is known a claim wins; at or below it only that of the router which was right last: what it says
    /// of itself is newer than what it said.
    pub fn claim(&mut self, router: RouterIndex, claims: &[Claim]) -> PartitionSet {
        let (mut moved, mut claimed) = (PartitionSet::EMPTY, PartitionSet::EMPTY);
        for &(partition, epoch) in claims {
            let Some(route) = self.table.get_mut(usize::from(partition)) else { continue };
            claimed.insert(partition);
            let is_its_own = route.claimed_by.is_none_or(|by| by == router);
            if epoch <= route.epoch && !is_its_own {
                continue;
            }
            if !route.is_open || route.epoch != epoch || route.claimed_by != Some(router) {
                *route = Route { epoch, claimed_by: Some(router), is_open: true };
                moved.insert(partition);
            }
        }
        for (partition, route) in (0..).zip(&mut self.table) {
            if route.claimed_by == Some(router) && !claimed.contains(partition) {
                route.is_open = false;
            }
        }
        moved
    }

    /// A router's link is gone. Its partitions have no route until somebody claims them; their epochs stay.
    pub fn close(&mut self, router: RouterIndex) {
        self.claim(router, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RouterIndex = RouterIndex(0);
    const B: RouterIndex = RouterIndex(1);

    fn set(partitions: &[PartitionId]) -> PartitionSet {
        let mut set = PartitionSet::EMPTY;
        partitions.iter().for_each(|partition| set.insert(*partition));
        set
    }

    #[test]
    fn a_higher_epoch_wins_and_an_equal_or_lower_one_of_another_router_is_ignored() {
        let mut routes = Routes::new(4);
        assert_eq!(routes.claim(A, &[(0, 5), (1, 5)]), set(&[0, 1]));
        assert_eq!(routes.claim(B, &[(0, 5), (1, 4), (2, 1)]), set(&[2]));
        assert_eq!(routes.router_of(0), Some(A));
        assert_eq!(routes.claim(B, &[(0, 6), (1, 4), (2, 1)]), set(&[0]));
        // A has not heard yet that it lost it.
        assert_eq!(routes.claim(A, &[(0, 5), (1, 5)]), set(&[]));
        let owners = [0, 1, 2, 3].map(|partition| routes.router_of(partition));
        assert_eq!(owners, [Some(B), Some(A), Some(B), None]);
        assert_eq!(routes.unrouted(), 1);
    }

    #[test]
    fn what_a_router_no_longer_claims_has_no_route_and_keeps_its_epoch() {
        let mut routes = Routes::new(2);
        let _ = routes.claim(A, &[(0, 5), (1, 7)]);
        assert_eq!(routes.claim(A, &[(1, 7)]), set(&[]));
        assert_eq!((routes.router_of(0), routes.router_of(1)), (None, Some(A)));
        assert_eq!(routes.claim(B, &[(0, 5)]), set(&[]), "an owner of before");
        assert_eq!(routes.claim(B, &[(0, 6)]), set(&[0]));
    }

    #[test]
    fn a_link_that_goes_takes_its_routes_along_and_nobody_elses() {
        let mut routes = Routes::new(3);
        let _ = routes.claim(A, &[(0, 5), (1, 5)]);
        let _ = routes.claim(B, &[(2, 1)]);
        routes.close(A);
        assert_eq!((routes.unrouted(), routes.router_of(2)), (2, Some(B)));
        assert_eq!(routes.claim(B, &[(0, 4), (1, 6), (2, 1)]), set(&[1]));
        assert_eq!(routes.claim(A, &[(0, 5), (1, 5)]), set(&[0]), "the same claim on a new link");
    }

    #[test]
    fn a_router_whose_engine_was_made_anew_is_heard_about_what_it_owned() {
        let mut routes = Routes::new(1);
        let _ = routes.claim(A, &[(0, 900)]);
        assert_eq!(routes.claim(A, &[(0, 1)]), set(&[0]));
        assert_eq!(routes.claim(B, &[(0, 2)]), set(&[0]));
    }

    #[test]
    fn with_0_partitions_everybody_is_in_one_and_claims_beyond_the_table_mean_nothing() {
        let mut routes = Routes::new(0);
        assert_eq!((routes.partition_of("alice"), routes.partition_of("bob")), (0, 0));
        assert_eq!(routes.claim(A, &EVERYBODY), set(&[0]));
        assert_eq!(routes.claim(B, &[(7, 1), (PartitionId::MAX, 1)]), set(&[]));
        assert_eq!(routes.router_of(PartitionId::MAX), None);
    }

    #[test]
    fn a_set_holds_every_partition_there_can_be() {
        let mut all = PartitionSet::EMPTY;
        (0..PARTITIONS_MAX).for_each(|partition| all.insert(partition));
        assert!((0..PARTITIONS_MAX).all(|partition| all.contains(partition)));
        assert!(!all.contains(PARTITIONS_MAX));
        all.subtract(&set(&[1023]));
        assert!(!all.contains(1023) && all.contains(1022) && !all.is_empty());
    }
}
