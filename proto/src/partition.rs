//! The slices of the users: who owns a partition has the inboxes of its users.

use xxhash_rust::xxh3::xxh3_64;

/// Number of a partition, below the count that the cluster was made with.
pub type PartitionId = u16;

/// Most partitions a cluster may have. A message id keeps the partition in its upper 16 bits.
pub const PARTITIONS_MAX: u16 = 1_024;

/// The partition of a user, of `partitions`, which is not 0. It is the same in every release: stores depend on it, and edges
/// and routers agree by it.
#[must_use]
pub fn partition_of(user: &str, partitions: u16) -> PartitionId {
    (xxh3_64(user.as_bytes()) % u64::from(partitions)) as PartitionId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_user_is_pinned() {
        assert_eq!(partition_of("alice", 64), 48);
        assert_eq!(partition_of("bob", 64), 37);
        assert_eq!(partition_of("anybody", 1), 0);
    }
}
