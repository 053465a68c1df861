//! The registry in memory: one slice a partition.

use ahash::AHashMap;
use hashbrown::HashTable;

use super::programs::Programs;
use super::slots::{Mark, NOWHERE, Place, Slot, Slots};
use super::{
    ConnectionRef, EdgeId, Known, Outcome, Registration, Session, UnrecordedDevice, Until,
};

/// The index gives memory back when this many times more entries would fit than there are.
const SLACK_MAX: usize = 8;
/// Smaller indexes are left alone.
const INDEX_ENTRIES_MIN: usize = 1_024;
/// Slots looked at in one search for unrecorded devices.
const SEARCH_SLOTS: usize = 65_536;

/// User to connections, for the users of one partition.
#[derive(Debug, Default)]
pub struct Registry {
    slots: Slots,
    /// Place of each user's first slot; [`Slot::next`] leads to the others.
    users: HashTable<Place>,
    hasher: ahash::RandomState,
    edges: AHashMap<EdgeId, Link>,
    programs: Programs,
    /// Slots that are not [`Mark::Recorded`].
    unrecorded: usize,
    /// Slots that are [`Mark::Departed`].
    departed: usize,
    /// Slots below it may be of edges that are gone.
    sweeping: usize,
    /// Where the last search for unrecorded devices ended.
    searched: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    session: Session,
    up: bool,
    /// What earlier sessions told is gone.
    told: Session,
}

impl Registry {
    /// A link of an edge is up. What was registered before is suspended until it is told again.
    pub fn edge_up(&mut self, edge: EdgeId, session: Session) {
        let known = self.edges.get(&edge);
        if known.is_some_and(|link| link.session > session) {
            return;
        }
        let told = known.map_or(Session(0), |link| link.told);
        self.edges.insert(edge, Link { session, up: true, told });
    }

    /// The link of that session is down: its registrations are suspended.
    pub fn edge_down(&mut self, edge: EdgeId, session: Session) {
        if let Some(link) = self.edges.get_mut(&edge).filter(|link| link.session == session) {
            link.up = false;
        }
    }

    /// The edge is gone: its lease ended in `session`, or another start of it took over. Its registrations do
    /// not count any more; [`Registry::sweep`] gives back what they take.
    pub fn edge_gone(&mut self, edge: EdgeId, session: Session) {
        if self.edges.get(&edge).is_some_and(|link| link.session > session) {
            return;
        }
        self.edges.remove(&edge);
        self.sweeping = self.slots.len();
    }

    /// The edge has told all its connections in `session`: those that it told before and not now do not count
    /// any more; [`Registry::sweep`] gives back what they take.
    pub fn edge_told(&mut self, edge: EdgeId, session: Session) {
        if let Some(link) = self.edges.get_mut(&edge) {
            link.told = link.told.max(session);
            self.sweeping = self.slots.len();
        }
    }

    /// Whether [`Registry::sweep`] has something left to do.
    #[must_use]
    pub fn is_sweeping(&self) -> bool {
        self.sweeping > 0
    }

    /// Looks at up to `slots_max` slots and lets go of those that do not count any more; `gone` is told.
    pub fn sweep(
        &mut self,
        unix_ms: i64,
        slots_max: usize,
        mut gone: impl FnMut(&str, ConnectionRef),
    ) {
        // From the end down: what moves into a hole has been looked at already, and what is new is above.
        let top = self.sweeping.min(self.slots.len());
        self.sweeping = top.saturating_sub(slots_max);
        for place in (self.sweeping..top).rev() {
            let slot = self.slots.get(place as Place);
            if slot.mark != Mark::Departed && !self.counts(slot) {
                gone(slot.user(), slot.connection());
                self.depart(place as Place, unix_ms);
            }
        }
    }

    /// Whether messages of this session count.
    #[must_use]
    pub fn is_current(&self, edge: EdgeId, session: Session) -> bool {
        self.edges.get(&edge).is_some_and(|link| link.up && link.session == session)
    }

    /// Takes a connection in.
    pub fn register(&mut self, registration: &Registration<'_>) -> Outcome {
        let Registration { connection, user, device, .. } = *registration;
        let program = self.programs.place(registration.kind, registration.version);
        let mut outcome = Outcome::Registered;
        let place = match self.find(user, |slot| slot.device() == device) {
            None => self.insert(user, device, registration.unrecorded),
            Some(place) => {
                let slot = self.slots.get(place);
                let before = slot.connection();
                if self.counts(slot) && before != connection {
                    // Clocks of two edges differ, so only a snapshot is measured by them: what is live is newer.
                    if registration.snapshot && registration.connected_at_ms < slot.at_ms {
                        return Outcome::Outdated;
                    }
                    outcome = Outcome::Replaced(before);
                }
                place
            }
        };
        let slot = self.slots.get_mut(place);
        if slot.mark == Mark::Departed {
            slot.mark = Mark::Unrecorded;
            self.departed -= 1;
        }
        slot.connection = connection.connection;
        slot.edge = connection.edge;
        slot.session = registration.session;
        slot.at_ms = registration.connected_at_ms;
        slot.program = program;
        outcome
    }

    /// Forgets a connection. Answers whether it was known. An unrecorded device is remembered as departed.
    pub fn unregister(&mut self, unix_ms: i64, user: &str, connection: ConnectionRef) -> bool {
        let place = self.find_connection(user, connection);
        if let Some(place) = place {
            self.depart(place, unix_ms);
        }
        place.is_some()
    }

    /// Whether a connection is registered, live or suspended.
    #[must_use]
    pub fn is_known(&self, user: &str, connection: ConnectionRef) -> bool {
        self.find_connection(user, connection).is_some()
    }

    /// Whether something sent to a connection now would arrive.
    #[must_use]
    pub fn is_live(&self, user: &str, connection: ConnectionRef) -> bool {
        let place = self.find_connection(user, connection);
        place.is_some_and(|place| self.is_slot_live(self.slots.get(place)))
    }

    /// The connection of a device, live or suspended.
    #[must_use]
    pub fn of_device(&self, user: &str, device: &str) -> Option<ConnectionRef> {
        let place = self.find(user, |slot| slot.device() == device)?;
        let slot = self.slots.get(place);
        self.counts(slot).then(|| slot.connection())
    }

    /// The live connections of a user.
    pub fn live<'a>(&'a self, user: &str) -> impl Iterator<Item = Known<'a>> {
        let slots = self.places(user).map(|place| self.slots.get(place));
        slots.filter(|slot| self.is_slot_live(slot)).map(|slot| self.known(slot))
    }

    /// How many slots [`Registry::walk`] has to look at.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Looks at up to `slots_max` slots below `left`, and tells users and connections that are registered there, suspended ones
    /// included. Answers where to go on; everything was told at 0. What comes and goes between two calls may be told twice,
    /// and is never left out.
    pub fn walk(
        &self,
        left: usize,
        slots_max: usize,
        mut told: impl FnMut(&str, Known<'_>),
    ) -> usize {
        // From the end down, as in `sweep`.
        let top = left.min(self.slots.len());
        let rest = top.saturating_sub(slots_max);
        for place in (rest..top).rev() {
            let slot = self.slots.get(place as Place);
            if self.counts(slot) {
                told(slot.user(), self.known(slot));
            }
        }
        rest
    }

    /// How many connections are registered, suspended ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.slots.len() - self.departed
    }

    /// The device of a user of whom nobody but the registry knows; such a user has one.
    #[must_use]
    pub fn unrecorded(&self, user: &str) -> Option<&str> {
        let slot = self.slots.get(self.first(user)?);
        (slot.mark != Mark::Recorded).then(|| slot.device())
    }

    /// When that device connected or left, in milliseconds since the epoch; 0 when there is none.
    #[must_use]
    pub fn unrecorded_at_ms(&self, user: &str) -> i64 {
        let slot = self.first(user).map(|place| self.slots.get(place));
        slot.filter(|slot| slot.mark != Mark::Recorded).map_or(0, |slot| slot.at_ms)
    }

    /// How many unrecorded devices have left.
    #[must_use]
    pub fn departed(&self) -> usize {
        self.departed
    }

    /// The user's inbox, or the store, knows the user's devices from now on.
    pub fn note_recorded(&mut self, user: &str) {
        let Some(place) = self.first(user) else { return };
        let slot = self.slots.get_mut(place);
        match slot.mark {
            Mark::Recorded => {}
            Mark::Unrecorded => {
                slot.mark = Mark::Recorded;
                self.unrecorded -= 1;
            }
            Mark::Departed => self.remove(place),
        }
    }

    /// The next unrecorded devices that are due, at most `count`; goes round and round.
    pub fn next_unrecorded(&mut self, mut until: Until, count: usize) -> Vec<UnrecordedDevice> {
        let mut found = Vec::new();
        if self.unrecorded == 0 {
            return found;
        }
        for _ in 0..self.slots.len().min(SEARCH_SLOTS.max(count)) {
            if found.len() >= count {
                break;
            }
            self.searched = (self.searched + 1) % self.slots.len();
            let slot = self.slots.get(self.searched as Place);
            let is_due = match slot.mark {
                Mark::Recorded => false,
                Mark::Unrecorded => slot.at_ms <= until.came_ms,
                Mark::Departed if slot.at_ms <= until.left_ms => true,
                Mark::Departed => {
                    let is_one = until.others > 0;
                    until.others -= usize::from(is_one);
                    is_one
                }
            };
            if is_due {
                found.push(UnrecordedDevice {
                    user: slot.user().into(),
                    device: slot.device().into(),
                    seen_at_ms: slot.at_ms,
                });
            }
        }
        found
    }

    /// Whether a slot stands for a connection: it has not left, and neither has its edge.
    fn counts(&self, slot: &Slot) -> bool {
        let edge_has_it = |link: &Link| slot.session >= link.told;
        slot.mark != Mark::Departed && self.edges.get(&slot.edge).is_some_and(edge_has_it)
    }

    fn is_slot_live(&self, slot: &Slot) -> bool {
        slot.mark != Mark::Departed && self.is_current(slot.edge, slot.session)
    }

    fn known<'a>(&'a self, slot: &'a Slot) -> Known<'a> {
        Known {
            connection: slot.connection(),
            device: slot.device(),
            connected_at_ms: slot.at_ms,
            program: self.programs.get(slot.program),
        }
    }

    /// Place of the user's first slot. An unrecorded one is alone, and so the first.
    fn first(&self, user: &str) -> Option<Place> {
        let is_user = |place: &Place| self.slots.get(*place).user() == user;
        self.users.find(self.hasher.hash_one(user), is_user).copied()
    }

    fn places(&self, user: &str) -> impl Iterator<Item = Place> {
        let next =
            |place: &Place| Some(self.slots.get(*place).next).filter(|next| *next != NOWHERE);
        std::iter::successors(self.first(user), next)
    }

    fn find(&self, user: &str, is_it: impl Fn(&Slot) -> bool) -> Option<Place> {
        self.places(user).find(|place| is_it(self.slots.get(*place)))
    }

    fn find_connection(&self, user: &str, connection: ConnectionRef) -> Option<Place> {
        self.find(user, |slot| slot.connection() == connection && slot.mark != Mark::Departed)
    }

    fn insert(&mut self, user: &str, device: &str, unrecorded: bool) -> Place {
        let Self { slots, users, hasher, .. } = self;
        let mut slot = Slot::new(user, device);
        if unrecorded {
            slot.mark = Mark::Unrecorded;
            self.unrecorded += 1;
        }
        let hash = hasher.hash_one(user);
        let first = users.find_mut(hash, |place| slots.get(*place).user() == user);
        slot.next = first.as_deref().copied().unwrap_or(NOWHERE);
        let place = slots.push(slot);
        match first {
            Some(first) => *first = place,
            None => {
                let hash_of = |place: &Place| hasher.hash_one(slots.get(*place).user());
                users.insert_unique(hash, place, hash_of);
            }
        }
        place
    }

    /// A connection is gone: so is its slot, unless nobody else knows the device.
    fn depart(&mut self, place: Place, unix_ms: i64) {
        let slot = self.slots.get_mut(place);
        if slot.mark == Mark::Unrecorded {
            slot.mark = Mark::Departed;
            slot.at_ms = unix_ms;
            self.departed += 1;
        } else {
            self.remove(place);
        }
    }

    fn remove(&mut self, place: Place) {
        self.unlink(place);
        let last = self.slots.len() as Place - 1;
        let removed = self.slots.swap_remove(place);
        self.unrecorded -= usize::from(removed.mark != Mark::Recorded);
        self.departed -= usize::from(removed.mark == Mark::Departed);
        if last != place {
            self.follow(last, place);
        }
        let Self { slots, users, hasher, .. } = self;
        if users.capacity() > INDEX_ENTRIES_MIN && users.capacity() > SLACK_MAX * users.len() {
            users.shrink_to(2 * users.len(), |place| hasher.hash_one(slots.get(*place).user()));
        }
    }

    /// Takes a slot out of the list of its user.
    fn unlink(&mut self, place: Place) {
        let next = self.slots.get(place).next;
        let hash = self.hasher.hash_one(self.slots.get(place).user());
        match self.users.find_entry(hash, |first| *first == place) {
            Ok(entry) if next == NOWHERE => drop(entry.remove()),
            Ok(mut entry) => *entry.get_mut() = next,
            Err(_) => self.redirect(place, place, next),
        }
    }

    /// The slot that was at `from` is at `to` now: what led there follows.
    fn follow(&mut self, from: Place, to: Place) {
        let hash = self.hasher.hash_one(self.slots.get(to).user());
        match self.users.find_mut(hash, |first| *first == from) {
            Some(first) => *first = to,
            None => self.redirect(to, from, to),
        }
    }

    /// In the list of the user of `whose`: what leads to `from` leads to `to`.
    fn redirect(&mut self, whose: Place, from: Place, to: Place) {
        let leads_there = |place: &Place| self.slots.get(*place).next == from;
        let before = self.places(self.slots.get(whose).user()).find(leads_there);
        debug_assert!(before.is_some(), "a slot is in the list of its user");
        if let Some(before) = before {
            self.slots.get_mut(before).next = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClientProgram;
    use super::*;

    const EDGE: EdgeId = EdgeId(1);
    const OTHER: EdgeId = EdgeId(2);
    const LATER_MS: i64 = 5_000;

    fn connection(edge: EdgeId, connection: u64) -> ConnectionRef {
        ConnectionRef { edge, connection }
    }

    fn registration(
        user: &str,
        connection: ConnectionRef,
        session: u32,
        at: i64,
    ) -> Registration<'_> {
        Registration {
            connection,
            session: Session(session),
            user,
            device: "phone",
            connected_at_ms: at,
            kind: "app",
            version: "1",
            snapshot: false,
            unrecorded: false,
        }
    }

    impl Registry {
        fn tell(
            &mut self,
            user: &str,
            edge: EdgeId,
            number: u64,
            session: u32,
            at: i64,
        ) -> Outcome {
            self.register(&registration(user, connection(edge, number), session, at))
        }

        fn tell_snapshot(
            &mut self,
            user: &str,
            edge: EdgeId,
            number: u64,
            session: u32,
            at: i64,
        ) -> Outcome {
            let told = registration(user, connection(edge, number), session, at);
            self.register(&Registration { snapshot: true, ..told })
        }

        fn sweep_all(&mut self) -> Vec<(String, u64)> {
            let mut gone = Vec::new();
            while self.is_sweeping() {
                self.sweep(LATER_MS, 3, |user, connection| {
                    gone.push((user.to_owned(), connection.connection));
                });
            }
            gone
        }

        fn live_numbers(&self, user: &str) -> Vec<u64> {
            self.live(user).map(|known| known.connection.connection).collect()
        }
    }

    fn two_edges() -> Registry {
        let mut registry = Registry::default();
        registry.edge_up(EDGE, Session(1));
        registry.edge_up(OTHER, Session(1));
        registry
    }

    #[test]
    fn what_was_told_reads_back() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 200);
        let program = ClientProgram { kind: "app".to_owned(), version: "1".to_owned() };
        let known = Known {
            connection: connection(EDGE, 1),
            device: "phone",
            connected_at_ms: 200,
            program: &program,
        };
        assert_eq!(registry.live("bob").collect::<Vec<_>>(), [known]);
        assert_eq!(registry.of_device("bob", "phone"), Some(connection(EDGE, 1)));
        assert!(registry.is_known("bob", connection(EDGE, 1)));
        assert!(!registry.is_known("bob", connection(OTHER, 1)));
        assert!(!registry.is_live("carol", connection(EDGE, 1)));
    }

    #[test]
    fn a_later_connection_of_a_device_replaces_the_earlier_even_when_its_clock_is_behind() {
        let mut registry = two_edges();
        assert_eq!(registry.tell("bob", EDGE, 1, 1, 200), Outcome::Registered);
        let outcome = registry.tell("bob", OTHER, 2, 1, 100);
        assert_eq!(outcome, Outcome::Replaced(connection(EDGE, 1)));
        assert_eq!(registry.live_numbers("bob"), [2]);
        assert_eq!(registry.connections(), 1);
    }

    #[test]
    fn a_snapshot_does_not_bring_back_an_older_connection_and_equal_times_favour_the_later_arrival()
    {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 200);
        let outcome = registry.tell_snapshot("bob", OTHER, 2, 1, 199);
        assert_eq!(outcome, Outcome::Outdated);
        assert_eq!(registry.live_numbers("bob"), [1]);
        let outcome = registry.tell_snapshot("bob", OTHER, 2, 1, 200);
        assert_eq!(outcome, Outcome::Replaced(connection(EDGE, 1)));
    }

    #[test]
    fn a_link_that_is_down_suspends_and_telling_again_revives() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 0);
        registry.edge_down(EDGE, Session(1));
        assert!(registry.live_numbers("bob").is_empty());
        assert_eq!(registry.connections(), 1);
        registry.edge_up(EDGE, Session(2));
        assert!(registry.live_numbers("bob").is_empty());
        registry.tell_snapshot("bob", EDGE, 1, 2, 0);
        assert_eq!(registry.live_numbers("bob"), [1]);
        registry.edge_told(EDGE, Session(2));
        assert!(registry.sweep_all().is_empty());
    }

    #[test]
    fn what_a_snapshot_does_not_tell_again_is_dropped() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 0);
        registry.tell("carol", EDGE, 2, 1, 0);
        registry.tell("dave", OTHER, 3, 1, 0);
        registry.edge_up(EDGE, Session(2));
        registry.tell_snapshot("carol", EDGE, 2, 2, 0);
        registry.edge_told(EDGE, Session(2));
        assert_eq!(registry.sweep_all(), [("bob".to_owned(), 1)]);
        assert_eq!(registry.connections(), 2);
    }

    #[test]
    fn a_lease_that_ends_late_does_not_touch_the_next_session() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 0);
        registry.edge_down(EDGE, Session(1));
        registry.edge_up(EDGE, Session(2));
        registry.edge_gone(EDGE, Session(1));
        assert!(!registry.is_sweeping());
        registry.edge_down(EDGE, Session(2));
        registry.edge_gone(EDGE, Session(2));
        assert_eq!(registry.sweep_all().len(), 1);
        assert_eq!(registry.connections(), 0);
    }

    #[test]
    fn what_is_gone_counts_no_more_before_its_memory_is_back() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 200);
        registry.edge_gone(EDGE, Session(1));
        assert!(registry.is_sweeping());
        assert!(registry.live_numbers("bob").is_empty());
        assert_eq!(registry.of_device("bob", "phone"), None);
        // Neither is it in the way of a snapshot that is older, nor is anybody told that it was replaced.
        assert_eq!(registry.tell_snapshot("bob", OTHER, 2, 1, 100), Outcome::Registered);
        assert!(registry.sweep_all().is_empty());
        assert_eq!(registry.live_numbers("bob"), [2]);
    }

    #[test]
    fn a_stale_unregister_hits_nobody() {
        let mut registry = two_edges();
        registry.tell("bob", EDGE, 1, 1, 0);
        registry.tell("bob", OTHER, 1, 1, 0);
        assert!(!registry.unregister(LATER_MS, "bob", connection(EDGE, 1)));
        assert_eq!(registry.connections(), 1);
    }

    #[test]
    fn an_unrecorded_device_is_remembered_when_it_left_until_it_is_recorded_or_comes_back() {
        let mut registry = two_edges();
        let unrecorded = |number| Registration {
            unrecorded: true,
            ..registration("bob", connection(EDGE, number), 1, 100)
        };
        registry.register(&unrecorded(1));
        assert_eq!(registry.unrecorded("bob"), Some("phone"));
        assert!(registry.unregister(LATER_MS, "bob", connection(EDGE, 1)));
        assert_eq!((registry.connections(), registry.departed()), (0, 1));
        assert_eq!(registry.of_device("bob", "phone"), None);
        assert!(!registry.is_known("bob", connection(EDGE, 1)));
        let not_yet = Until { came_ms: LATER_MS, left_ms: LATER_MS - 1, others: 0 };
        assert_eq!(registry.next_unrecorded(not_yet, 9), []);
        assert_eq!(registry.next_unrecorded(Until { others: 1, ..not_yet }, 9).len(), 1);
        let left = registry.next_unrecorded(Until { left_ms: LATER_MS, ..not_yet }, 9);
        assert_eq!(left[0].seen_at_ms, LATER_MS);

        assert_eq!(registry.register(&unrecorded(2)), Outcome::Registered);
        assert_eq!((registry.connections(), registry.departed()), (1, 0));
        registry.note_recorded("bob");
        assert_eq!(registry.unrecorded("bob"), None);
        assert!(registry.next_unrecorded(Until::EVER, 9).is_empty());
        assert!(registry.unregister(LATER_MS, "bob", connection(EDGE, 2)));
        assert_eq!((registry.connections(), registry.departed()), (0, 0));

        registry.register(&unrecorded(3));
        registry.unregister(LATER_MS, "bob", connection(EDGE, 3));
        registry.note_recorded("bob");
        assert_eq!((registry.slots.len(), registry.users.len(), registry.unrecorded), (0, 0, 0));
    }

    #[test]
    fn searching_for_unrecorded_devices_finds_each_in_its_turn() {
        let mut registry = two_edges();
        for number in 0..10 {
            let user = format!("user {number}");
            let told = registration(&user, connection(EDGE, number), 1, 0);
            registry.register(&Registration { unrecorded: number % 2 == 0, ..told });
        }
        let mut found = Vec::new();
        for _ in 0..3 {
            found.extend(
                registry.next_unrecorded(Until::EVER, 2).into_iter().map(|device| device.user),
            );
        }
        assert_eq!(found[5], found[0]);
        found.truncate(5);
        found.sort_unstable();
        assert_eq!(found.concat(), "user 0user 2user 4user 6user 8");
    }

    #[test]
    fn a_walk_tells_everybody_whoever_comes_and_goes_between_its_steps() {
        let mut registry = two_edges();
        for number in 0..100 {
            registry.tell(&format!("user {number}"), EDGE, number, 1, 0);
        }
        registry.tell("of an edge that is gone", OTHER, 1, 1, 0);
        registry.edge_gone(OTHER, Session(1));
        let mut random = fastrand::Rng::with_seed(5);
        let mut gone = Vec::new();
        let mut told = Vec::new();
        let mut left = registry.slots();
        while left > 0 {
            left = registry.walk(left, 7, |user, known| {
                assert_eq!(user, format!("user {}", known.connection.connection));
                told.push(known.connection.connection);
            });
            let number = random.u64(..100);
            if registry.unregister(0, &format!("user {number}"), connection(EDGE, number)) {
                gone.push(number);
            }
        }
        for number in (0..100).filter(|number| !gone.contains(number)) {
            assert!(told.contains(&number), "{number} was not told");
        }
    }

    /// Random registrations, some of many devices of a user, against a plain list.
    #[test]
    fn any_order_of_coming_and_going_keeps_lists_and_places_right() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut registry = two_edges();
        let mut expected: Vec<(String, String, u64)> = Vec::new();
        for number in 0..20_000 {
            let growing = number % 8_000 < 5_000;
            if expected.is_empty() || random.u32(..100) < if growing { 70 } else { 10 } {
                let user = format!("user {}", random.u32(..800));
                let device = format!("device {}", random.u32(..4));
                let told = registration(&user, connection(EDGE, number), 1, 0);
                registry.register(&Registration { device: &device, ..told });
                expected.retain(|known| (&known.0, &known.1) != (&user, &device));
                expected.push((user, device, number));
            } else {
                let (user, device, number) = expected.swap_remove(random.usize(..expected.len()));
                assert_eq!(registry.of_device(&user, &device), Some(connection(EDGE, number)));
                assert!(registry.unregister(0, &user, connection(EDGE, number)));
                assert_eq!(registry.of_device(&user, &device), None);
            }
            assert_eq!(registry.connections(), expected.len());
        }
        for (user, device, number) in expected {
            assert_eq!(registry.of_device(&user, &device), Some(connection(EDGE, number)));
        }
        registry.edge_gone(EDGE, Session(1));
        registry.sweep_all();
        assert_eq!((registry.slots.len(), registry.users.len()), (0, 0));
        assert!(registry.users.capacity() <= INDEX_ENTRIES_MIN * 2);
    }
}
