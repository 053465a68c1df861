//! Where a session sits and where it calls from, both computed from its number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// Sessions that share a source address.
const PORTS: u32 = 10_000;
/// Ports start above those of most servers, so that one that listens on every address is seldom in the way.
const PORT_MIN: u32 = 10_240;
/// How often a session can come back before it uses a port again.
const WINDOWS: u32 = 5;
/// Rings that are filled at the same time.
const RINGS_AT_ONCE: u32 = 4;
const _: () = assert!(PORT_MIN + WINDOWS * PORTS <= 65_536);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    rings: u32,
    /// Sessions a ring.
    slots: u32,
    /// Second octet of all source addresses of this run: what an earlier run left in TIME_WAIT is not in the way.
    /// `None` when the kernel chooses, because the target is not on the loopback of IPv4.
    network: Option<u8>,
}

impl Places {
    pub(super) fn new(target: SocketAddr, rings: u32, slots: u32, seed: u64) -> Self {
        let is_here = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
        // 127.0 is left to servers.
        Self { rings, slots, network: is_here.then_some(1 + (seed % 254) as u8) }
    }

    /// Ring and slot of a session. Rings are filled a few at a time, which neighbours share: those who connect at once
    /// are then too many for none of them, and enough for each that it is worth entering the kernel.
    pub(super) fn slot(&self, session: u32) -> (usize, u32) {
        let group = session / (RINGS_AT_ONCE * self.slots);
        let (first, within) = (group * RINGS_AT_ONCE, session % (RINGS_AT_ONCE * self.slots));
        let rings = self.rings_from(first);
        ((first + within % rings) as usize, within / rings)
    }

    /// The session that sits there.
    pub(super) fn session(&self, ring: usize, slot: u32) -> u32 {
        let ring = ring as u32;
        let first = ring - ring % RINGS_AT_ONCE;
        first * self.slots + slot * self.rings_from(first) + ring % RINGS_AT_ONCE
    }

    /// Rings of the group that begins with this one; the last group may have fewer.
    fn rings_from(&self, first: u32) -> u32 {
        (self.rings - first).min(RINGS_AT_ONCE)
    }

    /// Where a session calls from at its `connect`th time: always another port, and never that of another session.
    ///
    /// The kernel's own search for a free port takes longer the more of them are taken, and stops at 28,000 a target.
    pub(super) fn source(&self, session: u32, connect: u8) -> Option<SocketAddrV4> {
        let (address, port) = (session / PORTS, session % PORTS);
        let window = u32::from(connect) % WINDOWS;
        let ip =
            Ipv4Addr::new(127, self.network?, (address / 254) as u8, 1 + (address % 254) as u8);
        Some(SocketAddrV4::new(ip, (PORT_MIN + window * PORTS + port) as u16))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn places() -> Places {
        Places::new("127.0.0.1:80".parse().unwrap(), 1023, 2500, 7)
    }

    #[test]
    fn no_two_sessions_call_from_one_place_and_none_twice_in_a_row() {
        let mut seen = BTreeSet::new();
        for session in (0..30_000).chain(2_535_000..2_545_000) {
            for connect in 0..2 {
                let source = places().source(session, connect).unwrap();
                assert!(source.ip().is_loopback() && source.ip().octets()[1] != 0, "{source}");
                assert!(seen.insert(source), "{source} twice");
            }
        }
    }

    #[test]
    fn a_session_is_found_again_by_its_ring_and_slot() {
        let mut taken = BTreeSet::new();
        for rings in 1..=9 {
            let places = Places::new("127.0.0.1:80".parse().unwrap(), rings, 100, 7);
            taken.clear();
            for session in 0..rings * 100 {
                let (ring, slot) = places.slot(session);
                assert!(ring < rings as usize && slot < 100, "{session} of {rings} rings");
                assert_eq!(places.session(ring, slot), session);
                assert!(taken.insert((ring, slot)));
            }
        }
    }

    #[test]
    fn elsewhere_than_on_loopback_the_kernel_chooses() {
        for target in ["10.0.0.1:80", "[::1]:80"] {
            assert_eq!(Places::new(target.parse().unwrap(), 1, 10, 7).source(3, 0), None);
        }
    }
}
