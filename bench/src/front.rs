//! Where the clients of a run go in: one server, or several with a balancer before them.

use crate::target::Target;

/// Hands each connect the next server in turn that takes new clients.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    doors: Vec<Door>,
    next: usize,
}

#[derive(Clone, Debug)]
struct Door {
    target: Target,
    open: bool,
}

impl Front {
    /// All of `targets`, at least one, take clients.
    pub(crate) fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        let door = |target| Door { target, open: true };
        let doors: Vec<_> = targets.into_iter().map(door).collect();
        assert!(!doors.is_empty(), "a front needs a server");
        Self { doors, next: 0 }
    }

    /// The first of the servers.
    pub(crate) fn first(&self) -> &Target {
        &self.doors[0].target
    }

    /// From now on a server takes new clients, or none: it is about to leave, or away.
    pub(crate) fn set_open(&mut self, server: usize, open: bool) {
        self.doors[server].open = open;
    }

    /// Where the next client connects to. When no server takes clients it is sent to one all the same, and will see.
    pub(crate) fn pick(&mut self) -> &Target {
        let doors = self.doors.len();
        let in_turn = (self.next..self.next + doors).map(|server| server % doors);
        let server = in_turn.clone().find(|server| self.doors[*server].open);
        let server = server.unwrap_or(self.next);
        self.next = (server + 1) % doors;
        &self.doors[server].target
    }
}

impl From<Target> for Front {
    fn from(target: Target) -> Self {
        Self::new([target])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_round_the_servers_that_take_them() {
        let target = |port| Target::local(([127, 0, 0, 1], port).into(), "/");
        let mut front = Front::new((1..=3).map(target));
        let ports = |front: &mut Front| {
            let ports = std::iter::repeat_with(|| front.pick().address.port());
            ports.take(4).collect::<Vec<_>>()
        };
        assert_eq!(ports(&mut front), [1, 2, 3, 1]);
        front.set_open(1, false);
        assert_eq!(ports(&mut front), [3, 1, 3, 1]);
        (0..3).for_each(|server| front.set_open(server, false));
        assert_eq!(ports(&mut front).len(), 4, "somebody has to be asked");
    }
}
