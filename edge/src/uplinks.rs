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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hawser_proto::framing;
    use hawser_proto::link::{self, Ownership};
    use hawser_proto::view::link::{Deliver, Encoded, Heartbeat, HelloAck, RouterMessage};
    use prost::Message as _;

    use super::*;
    use crate::mesh::{Batch, LinkGeneration, Parcel};
    use crate::timer::TICK;
    use crate::uplink::{LinkError, LinkState, OUT_FRAMES_MAX, UplinkOutput};

    const A: RouterIndex = RouterIndex(0);
    const B: RouterIndex = RouterIndex(1);
    const LEASE: Duration = Duration::from_secs(3);

    /// The links to two routers, and the lanes of two shards.
    struct Rig {
        uplinks: Uplinks,
        mesh: Mesh,
        now: Now,
    }

    impl Rig {
        fn new() -> Self {
            let identity = EdgeIdentity { edge_id: "edge".into(), epoch: 1, region: String::new() };
            let uplinks = Uplinks::new(&identity, 2, 2, 7);
            let now = Now { tick: Tick(1), unix_ms: 1_000_000 };
            Self { uplinks, mesh: Mesh::new(2).unwrap(), now }
        }

        /// Lets time pass until a link asks to be connected, connects it, and lets the router answer.
        fn greet(&mut self, router: RouterIndex, partitions: u32) {
            while self.uplinks.link(router).state() != LinkState::Connecting {
                self.pass(TICK);
            }
            while self.uplinks.link(router).poll_output(self.now).is_some() {}
            self.uplinks.link(router).handle_connected(self.now, Ok(()));
            let Some(UplinkOutput::Send(hello)) = self.uplinks.link(router).poll_output(self.now)
            else {
                panic!("no hello")
            };
            self.uplinks.link(router).handle_sent(self.now, &self.mesh, hello, Ok(()));
            let lease_ms = LEASE.as_millis() as u32;
            let ack = HelloAck { protocol: 1, lease_ms, partitions, ..HelloAck::default() };
            self.says(router, &[RouterMessage::HelloAck(ack)]);
        }

        fn pass(&mut self, time: Duration) {
            self.now.tick = self.now.tick.after(time);
            self.uplinks.exchange(self.now, &self.mesh);
        }

        fn says(&mut self, router: RouterIndex, messages: &[RouterMessage<'_>]) {
            let mut frame = Vec::new();
            let mark = framing::begin_frame(&mut frame);
            messages.iter().for_each(|message| message.write(&mut frame));
            framing::finish_frame(&mut frame, mark);
            self.uplinks.handle_received(router, self.now, &self.mesh, &frame);
            self.uplinks.exchange(self.now, &self.mesh);
        }

        fn owns(&mut self, router: RouterIndex, partitions: u32, claims: &[(u32, u64)]) {
            let claim = |&(partition, epoch)| link::Claim { partition, epoch };
            let claims = claims.iter().map(claim).collect();
            let owned = Ownership { partitions, claims }.encode_to_vec();
            self.says(router, &[RouterMessage::Ownership(Encoded(&owned))]);
        }

        /// What a shard is handed, in words.
        fn handed(&self, shard: u16) -> Vec<String> {
            let parcels = std::iter::from_fn(|| self.mesh.take_down(shard));
            let told = parcels.map(|parcel| match parcel {
                Parcel::LinkUp { router, link, partitions, .. } => {
                    format!("{} up {} of {partitions}", router.0, link.0)
                }
                Parcel::LinkDown { router } => format!("{} down", router.0),
                Parcel::Owned { router, link, claims } => {
                    format!("{} owns {claims:?} on {}", router.0, link.0)
                }
                Parcel::Messages(router, _) => format!("{} says", router.0),
            });
            told.collect()
        }

        /// Why a link is down.
        fn error(&mut self, router: RouterIndex) -> LinkError {
            assert!(matches!(self.uplinks.link(router).state(), LinkState::Down(_)));
            self.uplinks.link(router).take_error().expect("a reason")
        }
    }

    #[test]
    fn every_shard_hears_who_is_linked_and_what_they_own_before_what_they_say() {
        let mut rig = Rig::new();
        rig.greet(B, 8);
        rig.owns(B, 8, &[(0, 3), (7, 4)]);
        rig.greet(A, 8);
        let deliver = Deliver { connection: 1, ..Deliver::default() };
        rig.says(A, &[RouterMessage::Deliver(deliver)]);
        let told = ["1 up 1 of 8", "1 owns [(0, 3), (7, 4)] on 1", "0 up 1 of 8"];
        assert_eq!(rig.handed(0), [&told[..], &["0 says"]].concat());
        assert_eq!(rig.handed(1), told);
        rig.uplinks.link(A).handle_closed(rig.now, 0);
        rig.greet(A, 8);
        rig.owns(A, 8, &[]);
        let back = ["0 up 2 of 8", "0 owns [] on 2"];
        let last = rig.handed(1);
        assert!(last.ends_with(&back.map(String::from)), "{last:?}");
        assert_eq!(rig.uplinks.link(B).take_owned(), Some(2));
    }

    #[test]
    fn a_router_that_does_not_speak_of_partitions_owns_everybody() {
        let mut rig = Rig::new();
        rig.greet(A, 0);
        assert_eq!(rig.handed(1), ["0 up 1 of 0", "0 owns [(0, 0)] on 1"]);
        // Neither changes that: what a later release says, and an Ownership from one that has none to give.
        let later = [0x0a, 0x05, 0xfa, 0x01, 0x02, 0x08, 0x01];
        let mut frame = Vec::new();
        let mark = framing::begin_frame(&mut frame);
        frame.extend_from_slice(&later);
        framing::finish_frame(&mut frame, mark);
        rig.uplinks.handle_received(A, rig.now, &rig.mesh, &frame);
        rig.owns(A, 4, &[(9, 9)]);
        assert_eq!(rig.uplinks.link(A).state(), LinkState::Up);
        assert_eq!(rig.handed(1), Vec::<String>::new());
    }

    #[test]
    fn a_router_of_another_cluster_is_refused_as_long_as_the_first_is_there() {
        let mut rig = Rig::new();
        rig.greet(A, 8);
        rig.greet(B, 16);
        let told = rig.error(B).to_string();
        assert!(told.contains("has 16 partitions") && told.contains("linked have 8"), "{told}");
        assert_eq!(rig.uplinks.link(A).state(), LinkState::Up);
        rig.uplinks.link(A).handle_closed(rig.now, 0);
        rig.greet(B, 16);
        assert_eq!(rig.uplinks.link(B).state(), LinkState::Up);
    }

    #[test]
    fn of_routers_that_own_everybody_there_is_one() {
        let mut rig = Rig::new();
        rig.greet(A, 0);
        rig.greet(B, 0);
        assert!(matches!(rig.error(B), LinkError::Misfit(_)));
        // It has what the other one has not, and the other one may come back.
        rig.uplinks.link(A).handle_closed(rig.now, 0);
        rig.greet(B, 0);
        assert!(matches!(rig.error(B), LinkError::Misfit(_)));
        rig.greet(A, 0);
        assert_eq!(rig.uplinks.link(A).state(), LinkState::Up);
    }

    #[test]
    fn an_ownership_that_cannot_be_ends_the_link() {
        for (partitions, claims) in
            [(4, vec![]), (8, vec![(8, 1)]), (8, vec![(70_000, 1)]), (8, vec![(1, 1); 9])]
        {
            let mut rig = Rig::new();
            rig.greet(A, 8);
            rig.owns(A, partitions, &claims);
            assert!(matches!(rig.error(A), LinkError::BadFrame(_)), "{partitions} {claims:?}");
        }
        let mut rig = Rig::new();
        rig.greet(A, 1025);
        assert!(matches!(rig.error(A), LinkError::BadFrame(_)));
    }

    #[test]
    fn a_router_that_does_not_read_keeps_nobody_from_the_other_and_is_given_up_after_a_lease() {
        let mut rig = Rig::new();
        rig.greet(A, 8);
        rig.greet(B, 8);
        let send = |rig: &Rig, router, shard| {
            let batch = Batch { router, link: LinkGeneration(1), frame: vec![1] };
            rig.mesh.try_send_up(shard, batch).is_ok()
        };
        let mut taken = 0;
        while send(&rig, A, 0) {
            taken += 1;
            assert!(taken <= 2 * OUT_FRAMES_MAX, "no bound");
            rig.uplinks.exchange(rig.now, &rig.mesh);
            // The first is on its way and does not get there.
            let _on_its_way = rig.uplinks.link(A).poll_output(rig.now);
        }
        assert!(!rig.mesh.has_room_up(1, A) && send(&rig, B, 1));
        rig.uplinks.exchange(rig.now, &rig.mesh);
        let Some(UplinkOutput::Send(bytes)) = rig.uplinks.link(B).poll_output(rig.now) else {
            panic!("held up")
        };
        rig.uplinks.link(B).handle_sent(rig.now, &rig.mesh, bytes, Ok(()));
        // It speaks all the while.
        for _ in 0..3 {
            for router in [A, B] {
                rig.says(router, &[RouterMessage::Heartbeat(Heartbeat { time_ms: 1 })]);
            }
            assert_eq!(rig.uplinks.link(A).state(), LinkState::Up);
            rig.pass(LEASE / 3);
        }
        assert_eq!(rig.error(A), LinkError::Stuck);
        assert_eq!(rig.uplinks.link(B).state(), LinkState::Up);
        rig.uplinks.exchange(rig.now, &rig.mesh);
        assert!(rig.mesh.has_room_up(1, A));
    }
}
