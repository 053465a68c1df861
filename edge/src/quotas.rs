//! How many connections an address and a user may have, how often they may connect and how often fail, over all shards.
//!
//! The one thing besides mesh, shares and counters that cores share, and the only one behind locks: it is touched when a client
//! connects and when it leaves, never by a message, and only while a limit of it is set. Entries lie in stripes with a lock each, so two
//! cores seldom meet. What is settled (nobody connected, nothing owed) is forgotten.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use hashbrown::HashMap;

use crate::conn::Peer;
use crate::meter::{Debt, Rate};
use crate::timer::Tick;

/// Stripes of a table; more than cores meet in.
const STRIPES: usize = 256;
/// Entries of one stripe. Beyond that a newcomer is let in without being counted: a flood from millions of addresses is not stopped by
/// limits for each of them, and must not cost memory without bound.
const STRIPE_ENTRIES_MAX: usize = 16 * 1024;

/// What one address or one user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Connections at one time.
    pub connections_max: Option<u32>,
    /// Connects.
    pub connects: Option<Rate>,
    /// Failures: bad requests, bad tokens, broken TLS handshakes.
    pub failures: Option<Rate>,
}

impl Quota {
    /// Whether anything is limited.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.connections_max.is_some() || self.connects.is_some() || self.failures.is_some()
    }
}

/// Which quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// [`Quota::connections_max`].
    Connections,
    /// [`Quota::connects`].
    Connects,
    /// [`Quota::failures`].
    Failures,
}

#[derive(Debug, Default)]
struct Entry {
    connections: u32,
    connects: Debt,
    failures: Debt,
    at: Tick,
}

impl Entry {
    fn pass_time(&mut self, now: Tick, quota: &Quota) {
        // The clocks of shards are one, but a stripe may be reached a tick later by who read it earlier.
        let ticks = now.0.saturating_sub(self.at.0);
        self.at = self.at.max(now);
        for (debt, rate) in
            [(&mut self.connects, quota.connects), (&mut self.failures, quota.failures)]
        {
            match rate {
                Some(rate) => debt.leak(ticks, rate),
                None => *debt = Debt::default(),
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.connections == 0 && self.connects.is_settled() && self.failures.is_settled()
    }
}

#[derive(Debug)]
struct Stripe {
    entries: HashMap<u128, Entry, RandomState>,
    /// Entries at which settled ones are looked for.
    sweep_at: usize,
}

impl Default for Stripe {
    fn default() -> Self {
        Self { entries: HashMap::default(), sweep_at: SWEEP_ENTRIES_MIN }
    }
}

/// A stripe below this is not worth a look.
const SWEEP_ENTRIES_MIN: usize = 64;

impl Stripe {
    /// The entry of `key`, as of now; `None` when there is no room for it.
    fn entry(&mut self, key: u128, now: Tick, quota: &Quota) -> Option<&mut Entry> {
        if self.entries.len() >= self.sweep_at && !self.entries.contains_key(&key) {
            self.entries.retain(|_, entry| {
                entry.pass_time(now, quota);
                !entry.is_settled()
            });
            self.sweep_at = (2 * self.entries.len()).clamp(SWEEP_ENTRIES_MIN, STRIPE_ENTRIES_MAX);
            if self.entries.len() >= STRIPE_ENTRIES_MAX {
                return None;
            }
        }
        let entry =
            self.entries.entry(key).or_insert_with(|| Entry { at: now, ..Entry::default() });
        entry.pass_time(now, quota);
        Some(entry)
    }
}

/// Counts of one kind of key. Every method takes the quota, because an operator may change it while the edge runs.
#[derive(Debug)]
struct Table {
    stripes: Box<[Mutex<Stripe>]>,
}

impl Table {
    fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    fn stripe(&self, key: u128) -> MutexGuard<'_, Stripe> {
        // Multiplied and folded, because neighbouring addresses differ in few bits.
        let mixed = ((key ^ (key >> 64)) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let at = (mixed >> 32) as usize % STRIPES;
        // Nothing in there panics half-way.
        self.stripes[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one connection, or says what is used up. `Ok(false)`: let in without being counted.
    fn enter(&self, key: u128, now: Tick, quota: &Quota) -> Result<bool, Exceeded> {
        if !quota.limits() {
            return Ok(false);
        }
        let mut stripe = self.stripe(key);
        let Some(entry) = stripe.entry(key, now, quota) else { return Ok(false) };
        if quota.failures.is_some_and(|rate| !entry.failures.has_room(rate)) {
            return Err(Exceeded::Failures);
        }
        if quota.connections_max.is_some_and(|max| entry.connections >= max) {
            return Err(Exceeded::Connections);
        }
        if quota.connects.is_some_and(|rate| !entry.connects.has_room(rate)) {
            return Err(Exceeded::Connects);
        }
        entry.connections += 1;
        if quota.connects.is_some() {
            entry.connects.add(1);
        }
        Ok(true)
    }

    /// A counted connection has gone.
    fn leave(&self, key: u128) {
        let mut stripe = self.stripe(key);
        if let Some(entry) = stripe.entries.get_mut(&key) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.is_settled() {
                stripe.entries.remove(&key);
            }
        }
    }

    fn fail(&self, key: u128, now: Tick, quota: &Quota) {
        if quota.failures.is_none() {
            return;
        }
        if let Some(entry) = self.stripe(key).entry(key, now, quota) {
            entry.failures.add(1);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Quotas {
    addresses: Table,
    users: Table,
    hasher: RandomState,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { addresses: Table::new(), users: Table::new(), hasher: RandomState::new() }
    }
}

impl Quotas {
    /// A client connects from an address. Returns whether it was counted; then [`Self::leave_address`] has to follow.
    ///
    /// # Errors
    /// What is used up.
    pub fn enter_address(&self, peer: Peer, now: Tick, quota: &Quota) -> Result<bool, Exceeded> {
        self.addresses.enter(address_key(peer), now, quota)
    }

    /// A counted client of this address has gone.
    pub fn leave_address(&self, peer: Peer) {
        self.addresses.leave(address_key(peer));
    }

    /// A client of this address did something that only a faulty or hostile one does.
    pub fn fail_address(&self, peer: Peer, now: Tick, quota: &Quota) {
        self.addresses.fail(address_key(peer), now, quota);
    }

    /// A user connects. Returns whether it was counted; then [`Self::leave_user`] has to follow.
    ///
    /// # Errors
    /// What is used up.
    pub fn enter_user(&self, user: &str, now: Tick, quota: &Quota) -> Result<bool, Exceeded> {
        self.users.enter(self.user_key(user), now, quota)
    }

    /// A counted connection of this user has gone.
    pub fn leave_user(&self, user: &str) {
        self.users.leave(self.user_key(user));
    }

    /// Two users with one key would share a quota; with 64 random bits that does not happen.
    fn user_key(&self, user: &str) -> u128 {
        u128::from(self.hasher.hash_one(user))
    }
}

/// An IPv4 address as it is; of an IPv6 address the network of 64 bits, within which one customer has all addresses (RFC 6177).
fn address_key(peer: Peer) -> u128 {
    match peer.address().ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota {
        connections_max: Some(2),
        connects: Some(Rate { per_second: 1, burst: 3 }),
        failures: Some(Rate { per_second: 1, burst: 2 }),
    };

    fn peer(text: &str) -> Peer {
        Peer::from(text.parse::<std::net::SocketAddr>().unwrap())
    }

    #[test]
    fn an_address_has_so_many_connections_and_connects_so_often() {
        let (quotas, here) = (Quotas::default(), peer("192.0.2.1:1"));
        let enter = |tick| quotas.enter_address(here, Tick(tick), &QUOTA);
        assert_eq!((enter(0), enter(0)), (Ok(true), Ok(true)));
        assert_eq!(enter(0), Err(Exceeded::Connections));
        assert_eq!(quotas.enter_address(peer("192.0.2.2:1"), Tick(0), &QUOTA), Ok(true));
        quotas.leave_address(here);
        assert_eq!(enter(0), Ok(true));
        quotas.leave_address(here);
        assert_eq!(enter(0), Err(Exceeded::Connects), "three at once, then one a second");
        assert_eq!(enter(10), Ok(true));
    }

    #[test]
    fn failures_close_the_door_until_they_are_forgotten() {
        let (quotas, here) = (Quotas::default(), peer("[2001:db8::1]:1"));
        let neighbour = peer("[2001:db8::ffff]:9");
        for _ in 0..2 {
            quotas.fail_address(here, Tick(0), &QUOTA);
        }
        assert_eq!(quotas.enter_address(neighbour, Tick(0), &QUOTA), Err(Exceeded::Failures));
        assert_eq!(quotas.enter_address(neighbour, Tick(10), &QUOTA), Ok(true));
    }

    #[test]
    fn without_limits_nobody_is_counted() {
        let quotas = Quotas::default();
        for _ in 0..1000 {
            assert_eq!(quotas.enter_user("alice", Tick(0), &Quota::default()), Ok(false));
        }
    }

    #[test]
    fn what_is_settled_is_forgotten_and_the_tables_have_a_bound() {
        let quotas = Quotas::default();
        let quota = Quota { connections_max: Some(1), ..Quota::default() };
        let held = || -> usize {
            quotas.users.stripes.iter().map(|stripe| stripe.lock().unwrap().entries.len()).sum()
        };
        for n in 0..10_000 {
            assert_eq!(quotas.enter_user(&format!("user{n}"), Tick(0), &quota), Ok(true));
        }
        assert_eq!(held(), 10_000);
        for n in 0..10_000 {
            quotas.leave_user(&format!("user{n}"));
        }
        assert_eq!(held(), 0);

        let mut stripe = Stripe::default();
        let live = |entry: Option<&mut Entry>| entry.map(|entry| entry.connections = 1).is_some();
        let taken = (0..).take_while(|key| live(stripe.entry(*key, Tick(0), &quota))).count();
        assert_eq!(taken, STRIPE_ENTRIES_MAX);
    }
}
