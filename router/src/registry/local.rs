//! The registry in memory: one slice a partition.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::{ClientProgram, ConnectionRef, EdgeId, Outcome, Registration, Session};

/// Client programs that are told apart; further ones are counted as one.
const PROGRAMS_MAX: usize = 256;

// With the user's and the device's id on the heap a connection stays below 200 bytes.
const _: () = assert!(size_of::<Registration>() <= 56);

/// User to connections, for the users of one partition.
#[derive(Debug, Default)]
pub struct Registry {
    users: AHashMap<Box<str>, Vec<Registration>>,
    connections: usize,
    edges: AHashMap<EdgeId, Link>,
    programs: AHashSet<Arc<ClientProgram>>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    session: Session,
    up: bool,
}

impl Registry {
    /// A link of an edge is up. What was registered before is suspended until it is told again.
    pub fn edge_up(&mut self, edge: EdgeId, session: Session) {
        if self.edges.get(&edge).is_some_and(|link| link.session > session) {
            return;
        }
        self.edges.insert(edge, Link { session, up: true });
    }

    /// The link of that session is down: its registrations are suspended.
    pub fn edge_down(&mut self, edge: EdgeId, session: Session) {
        if let Some(link) = self.edges.get_mut(&edge).filter(|link| link.session == session) {
            link.up = false;
        }
    }

    /// The edge is gone: its lease ended in `session`, or another start of it took over.
    pub fn edge_gone(&mut self, edge: EdgeId, session: Session) -> Vec<(Box<str>, ConnectionRef)> {
        if self.edges.get(&edge).is_some_and(|link| link.session > session) {
            return Vec::new();
        }
        self.edges.remove(&edge);
        self.drop_where(|registration| registration.connection.edge == edge)
    }

    /// The edge has told all its connections in `session`: drops those that it told before and not now.
    pub fn edge_told(&mut self, edge: EdgeId, session: Session) -> Vec<(Box<str>, ConnectionRef)> {
        self.drop_where(|registration| {
            registration.connection.edge == edge && registration.session < session
        })
    }

    /// Whether messages of this session count.
    #[must_use]
    pub fn is_current(&self, edge: EdgeId, session: Session) -> bool {
        self.edges.get(&edge).is_some_and(|link| link.up && link.session == session)
    }

    /// Whether something sent to it now would arrive.
    #[must_use]
    pub fn is_live(&self, registration: &Registration) -> bool {
        self.is_current(registration.connection.edge, registration.session)
    }

    /// Takes a connection in. `snapshot`: it may have been told before, and is not necessarily news.
    pub fn register(&mut self, user: &str, registration: Registration, snapshot: bool) -> Outcome {
        if !self.users.contains_key(user) {
            self.users.insert(user.into(), Vec::with_capacity(1));
        }
        let Some(registrations) = self.users.get_mut(user) else { return Outcome::Outdated };
        let same = registrations.iter_mut().find(|known| known.device == registration.device);
        let Some(known) = same else {
            registrations.push(registration);
            self.connections += 1;
            return Outcome::Registered;
        };
        let before = known.connection;
        if before == registration.connection {
            *known = registration;
            return Outcome::Registered;
        }
        // Clocks of two edges differ, so only a snapshot is measured by them: what is live is newer.
        if snapshot && registration.connected_at_ms < known.connected_at_ms {
            return Outcome::Outdated;
        }
        *known = registration;
        Outcome::Replaced(before)
    }

    /// Forgets a connection and gives its device.
    pub fn unregister(&mut self, user: &str, connection: ConnectionRef) -> Option<Box<str>> {
        let registrations = self.users.get_mut(user)?;
        let index = registrations.iter().position(|known| known.connection == connection)?;
        let device = registrations.swap_remove(index).device;
        if registrations.is_empty() {
            self.users.remove(user);
        }
        self.connections -= 1;
        Some(device)
    }

    /// The registration of a connection.
    #[must_use]
    pub fn find(&self, user: &str, connection: ConnectionRef) -> Option<&Registration> {
        self.users.get(user)?.iter().find(|known| known.connection == connection)
    }

    /// The connection of a device, live or suspended.
    #[must_use]
    pub fn of_device(&self, user: &str, device: &str) -> Option<ConnectionRef> {
        let known = self.users.get(user)?.iter().find(|known| &*known.device == device)?;
        Some(known.connection)
    }

    /// The live connections of a user.
    pub fn live<'a>(&'a self, user: &str) -> impl Iterator<Item = &'a Registration> {
        let registrations = self.users.get(user).map_or(&[][..], Vec::as_slice);
        registrations.iter().filter(|registration| self.is_live(registration))
    }

    /// How many connections are registered, suspended ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// The shared form of a client program.
    pub fn program(&mut self, kind: &str, version: &str) -> Arc<ClientProgram> {
        let program = ClientProgram { kind: kind.to_owned(), version: version.to_owned() };
        if let Some(known) = self.programs.get(&program) {
            return Arc::clone(known);
        }
        let full = self.programs.len() >= PROGRAMS_MAX;
        let program = if full {
            ClientProgram { kind: "other".to_owned(), version: String::new() }
        } else {
            program
        };
        let program = Arc::new(program);
        if !full {
            self.programs.insert(Arc::clone(&program));
        }
        program
    }

    fn drop_where(
        &mut self,
        dropped: impl Fn(&Registration) -> bool,
    ) -> Vec<(Box<str>, ConnectionRef)> {
        let mut gone = Vec::new();
        self.users.retain(|user, registrations| {
            registrations.retain(|registration| {
                let drop_it = dropped(registration);
                if drop_it {
                    gone.push((user.clone(), registration.connection));
                }
                !drop_it
            });
            !registrations.is_empty()
        });
        self.connections -= gone.len();
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: EdgeId = EdgeId(1);
    const OTHER: EdgeId = EdgeId(2);

    fn registration(edge: EdgeId, connection: u64, session: u32, at: i64) -> Registration {
        Registration {
            connection: ConnectionRef { edge, connection },
            session: Session(session),
            device: "phone".into(),
            connected_at_ms: at,
            program: Arc::new(ClientProgram { kind: String::new(), version: String::new() }),
        }
    }

    fn live(registry: &Registry) -> Vec<u64> {
        registry.live("bob").map(|registration| registration.connection.connection).collect()
    }

    fn two_edges() -> Registry {
        let mut registry = Registry::default();
        registry.edge_up(EDGE, Session(1));
        registry.edge_up(OTHER, Session(1));
        registry
    }

    #[test]
    fn a_later_connection_of_a_device_replaces_the_earlier_even_when_its_clock_is_behind() {
        let mut registry = two_edges();
        assert_eq!(
            registry.register("bob", registration(EDGE, 1, 1, 200), false),
            Outcome::Registered
        );
        let outcome = registry.register("bob", registration(OTHER, 2, 1, 100), false);
        assert_eq!(outcome, Outcome::Replaced(ConnectionRef { edge: EDGE, connection: 1 }));
        assert_eq!(live(&registry), [2]);
        assert_eq!(registry.connections(), 1);
    }

    #[test]
    fn a_snapshot_does_not_bring_back_an_older_connection_and_equal_times_favour_the_later_arrival()
    {
        let mut registry = two_edges();
        registry.register("bob", registration(EDGE, 1, 1, 200), false);
        let outcome = registry.register("bob", registration(OTHER, 2, 1, 199), true);
        assert_eq!(outcome, Outcome::Outdated);
        assert_eq!(live(&registry), [1]);
        let outcome = registry.register("bob", registration(OTHER, 2, 1, 200), true);
        assert_eq!(outcome, Outcome::Replaced(ConnectionRef { edge: EDGE, connection: 1 }));
    }

    #[test]
    fn a_link_that_is_down_suspends_and_telling_again_revives() {
        let mut registry = two_edges();
        registry.register("bob", registration(EDGE, 1, 1, 0), false);
        registry.edge_down(EDGE, Session(1));
        assert!(live(&registry).is_empty());
        assert_eq!(registry.connections(), 1);
        registry.edge_up(EDGE, Session(2));
        assert!(live(&registry).is_empty());
        registry.register("bob", registration(EDGE, 1, 2, 0), true);
        assert_eq!(live(&registry), [1]);
        assert!(registry.edge_told(EDGE, Session(2)).is_empty());
    }

    #[test]
    fn what_a_snapshot_does_not_tell_again_is_dropped() {
        let mut registry = two_edges();
        registry.register("bob", registration(EDGE, 1, 1, 0), false);
        registry.register("carol", registration(EDGE, 2, 1, 0), false);
        registry.register("dave", registration(OTHER, 3, 1, 0), false);
        registry.edge_up(EDGE, Session(2));
        registry.register("carol", registration(EDGE, 2, 2, 0), true);
        let gone = registry.edge_told(EDGE, Session(2));
        assert_eq!(gone, [("bob".into(), ConnectionRef { edge: EDGE, connection: 1 })]);
        assert_eq!(registry.connections(), 2);
    }

    #[test]
    fn a_lease_that_ends_late_does_not_touch_the_next_session() {
        let mut registry = two_edges();
        registry.register("bob", registration(EDGE, 1, 1, 0), false);
        registry.edge_down(EDGE, Session(1));
        registry.edge_up(EDGE, Session(2));
        assert!(registry.edge_gone(EDGE, Session(1)).is_empty());
        registry.edge_down(EDGE, Session(2));
        assert_eq!(registry.edge_gone(EDGE, Session(2)).len(), 1);
        assert_eq!(registry.connections(), 0);
    }

    #[test]
    fn a_stale_unregister_hits_nobody() {
        let mut registry = two_edges();
        registry.register("bob", registration(EDGE, 1, 1, 0), false);
        registry.register("bob", registration(OTHER, 1, 1, 0), false);
        let stale = ConnectionRef { edge: EDGE, connection: 1 };
        assert_eq!(registry.unregister("bob", stale), None);
        assert_eq!(registry.connections(), 1);
    }

    #[test]
    fn client_programs_are_shared_and_bounded() {
        let mut registry = Registry::default();
        let one = registry.program("app", "1");
        assert!(Arc::ptr_eq(&one, &registry.program("app", "1")));
        for number in 0..2 * PROGRAMS_MAX {
            registry.program("app", &number.to_string());
        }
        assert_eq!(registry.programs.len(), PROGRAMS_MAX);
        assert_eq!(registry.program("new", "1").kind, "other");
    }
}
