//! The links of an edge, one a router, and what they share: the shards' lanes, and a cluster to agree on.

use crate::mesh::{LANE_PARCELS_MAX, Mesh};
use crate::routes::RouterIndex;
use crate::timer::{Now, Tick};
use crate::uplink::{Cluster, EdgeIdentity, Uplink};

/// See the module.
pub struct Uplinks {
    links: Box<[Uplink]>,
    /// Who hands over first in the next turn: where lanes are short of room, everybody gets some.
    first: usize,
    /// The router that has owned every user, until one says that there are partitions.
    sole_owner: Option<RouterIndex>,
}

impl Uplinks {
    /// Links that are down and try at once, to so many routers. `seed` spreads the attempts of a fleet.
    #[must_use]
    pub fn new(identity: &EdgeIdentity, routers: u8, shards: u16, seed: u64) -> Self {
        let link = |index| {
            let seed = seed.wrapping_add(u64::from(index));
            Uplink::new(RouterIndex(index), identity.clone(), shards, seed)
        };
        Self { links: (0..routers).map(link).collect(), first: 0, sole_owner: None }
    }

    /// All of them, each with the router that it leads to.
    pub fn iter(&self) -> impl Iterator<Item = (RouterIndex, &Uplink)> {
        (0..).map(RouterIndex).zip(&self.links)
    }

    /// The one to this router.
    ///
    /// # Panics
    /// There is no such router.
    #[must_use]
    pub fn link(&mut self, router: RouterIndex) -> &mut Uplink {
        &mut self.links[router.at()]
    }

    /// Bytes from a router. Not to be called while its link's [`Uplink::wants_input`] says no.
    pub fn handle_received(&mut self, router: RouterIndex, now: Now, mesh: &Mesh, bytes: &[u8]) {
        let others = self.iter().filter(|(other, _)| *other != router);
        let cluster = Cluster {
            partitions: others.filter_map(|(_, link)| link.partitions()).next(),
            has_sole_owner: self.sole_owner.is_some_and(|owner| owner != router),
        };
        let link = self.link(router);
        link.set_cluster(cluster);
        link.handle_received(now, mesh, bytes);
        match link.partitions() {
            Some(0) => self.sole_owner = Some(router),
            Some(_) => self.sole_owner = None,
            None => {}
        }
    }

    /// Moves what waits: parcels into the lanes, batches out of them; looks at deadlines. Call it once a turn.
    pub fn exchange(&mut self, now: Now, mesh: &Mesh) {
        let links = self.links.len();
        for at in 0..links {
            self.links[(self.first + at) % links].exchange(now, mesh);
        }
        self.first = (self.first + 1) % links.max(1);
        for shard in 0..mesh.shards() {
            for _ in 0..LANE_PARCELS_MAX {
                let Some(batch) = mesh.take_up(shard) else { break };
                match self.links.get_mut(batch.router.at()) {
                    Some(link) => link.take_batch(now, mesh, shard, batch),
                    None => mesh.give_buffer(shard, batch.frame),
                }
            }
        }
    }

    /// When [`Self::exchange`] has to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        self.links.iter().filter_map(Uplink::poll_timeout).min()
    }
}
