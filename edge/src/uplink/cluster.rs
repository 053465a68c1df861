//! What routers say of the cluster: how many partitions there are, and which are theirs.

use std::sync::Arc;

use hawser_proto::link::{self, Ownership};
use hawser_proto::partition::{PARTITIONS_MAX, PartitionId};
use prost::Message as _;

use super::LinkError;
use crate::routes::Claim;

/// What the links to other routers say about the cluster, which a router has to agree with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cluster {
    /// Partitions, as a router says that is linked.
    pub partitions: Option<u16>,
    /// Another router has owned every user.
    pub has_sole_owner: bool,
}

/// The number of partitions that a router says, if it can be a router of this cluster.
///
/// # Errors
/// A sentence for the operator.
pub(super) fn fitting(partitions: u32, cluster: Cluster) -> Result<u16, LinkError> {
    let told = u16::try_from(partitions).ok().filter(|partitions| *partitions <= PARTITIONS_MAX);
    let Some(told) = told else {
        let sentence = format!("{partitions} partitions are more than {PARTITIONS_MAX}");
        return Err(LinkError::BadFrame(sentence));
    };
    match cluster.partitions {
        Some(others) if others != told => Err(LinkError::Misfit(format!(
            "the router has {told} partitions, and the routers that are linked have {others} (0: one that owns every user): \
             --router may name routers of one cluster only"
        ))),
        _ if told == 0 && cluster.has_sole_owner => Err(LinkError::Misfit(
            "the router owns every user by itself, with its embedded queue, as another one does: --router may name one such"
                .to_owned(),
        )),
        Some(_) | None => Ok(told),
    }
}

/// Reads an `Ownership` of a cluster of so many partitions, which are not 0.
///
/// # Errors
/// It is none, or one of another cluster.
pub(super) fn read_claims(encoded: &[u8], partitions: u16) -> Result<Arc<[Claim]>, LinkError> {
    let owned = Ownership::decode(encoded).map_err(|e| LinkError::BadFrame(e.to_string()))?;
    let bad = |what: &str| LinkError::BadFrame(format!("Ownership {what}"));
    if owned.partitions != u32::from(partitions) {
        return Err(bad("of another number of partitions than HelloAck"));
    }
    if owned.claims.len() > usize::from(partitions) {
        return Err(bad("of more partitions than there are"));
    }
    let claim = |claim: &link::Claim| {
        let partition = PartitionId::try_from(claim.partition).ok();
        Some((partition.filter(|partition| *partition < partitions)?, claim.epoch))
    };
    let claims: Option<Arc<[Claim]>> = owned.claims.iter().map(claim).collect();
    claims.ok_or_else(|| bad("of a partition that does not exist"))
}
