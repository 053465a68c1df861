//! What an operator asks of this shard.

use hawser_proto::view::client::{GoAway, ServerFrame};

use super::Shard;
use crate::command::Command;
use crate::conn::{CloseReason, ConnKey, Farewell, Phase};
use crate::drain::{self, Drain, Order};
use crate::http;
use crate::mesh::{COMMANDS_MAX, Mesh};
use crate::timer::{Now, Tick};

impl Shard {
    /// Takes what waits in the lane; once a turn.
    pub(super) fn take_commands(&mut self, now: Now, mesh: &Mesh) {
        for _ in 0..COMMANDS_MAX {
            let Some(command) = mesh.take_command(self.index) else { break };
            self.handle_command(now, command);
        }
    }

    fn handle_command(&mut self, now: Now, command: Command) {
        // An answer that nobody waits for any more is dropped.
        match command {
            Command::Reload(config) => self.reload(now, config),
            Command::Certificates(config) => {
                if let Some(shared) = &mut self.tls {
                    shared.set_config(config);
                }
            }
            Command::Drain(order) => self.begin_drain(now, order),
            Command::List { first, answer } => {
                let _ = answer.send(self.list(now, first));
            }
            Command::Find { user, answer } => {
                let shown = self.connections_of(&user).into_iter();
                let shown = shown.filter_map(|key| Some(self.show(now, key, self.conns.get(key)?)));
                let _ = answer.send(shown.collect());
            }
            Command::CloseUser { user, answer } => {
                let keys = self.connections_of(&user);
                for key in &keys {
                    self.close(now, *key, CloseReason::Operator);
                }
                let _ = answer.send(keys.len());
            }
            Command::Close { key, answer } => {
                let is_here = self.conns.get(key).is_some();
                self.close(now, key, CloseReason::Operator);
                let _ = answer.send(is_here);
            }
            Command::Verdict(verdict) => self.handle_verdict(now, *verdict),
        }
    }

    /// Lets clients go from now on. A rebalance does not stop a drain that goes on already.
    fn begin_drain(&mut self, now: Now, order: Order) {
        if self.leaves_by().is_some() {
            return;
        }
        let drain = Drain::new(order, self.conns.len(), self.conns.slots(), now.tick);
        self.counters.draining.set(u64::from(drain.leaves()));
        self.drain = Some(drain);
        self.advance_drain(now);
    }

    /// When the drain of this shard ends, if one goes on after which the shard is to end: nobody new is to be let in then.
    #[must_use]
    pub fn leaves_by(&self) -> Option<Tick> {
        self.drain.as_ref().filter(|drain| drain.leaves()).map(Drain::until)
    }

    /// Tells as many to go as the curve asks for.
    pub(super) fn advance_drain(&mut self, now: Now) {
        let Some(mut drain) = self.drain.take() else { return };
        while let Some(slot) = drain.poll_slot(now.tick) {
            if let Some((key, _)) = self.conns.at(slot)
                && drain.takes()
            {
                self.send_away(now, key, drain.farewell());
            }
        }
        // One that ends the shard stays, so that whoever still comes is noticed.
        if drain.leaves() || drain.next_tick().is_some() {
            self.drain = Some(drain);
        }
    }

    /// Asks one client to go. Its sends are answered first; `close_timeout` bounds that.
    fn send_away(&mut self, now: Now, key: ConnKey, farewell: Farewell) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.phase {
            Phase::Closing(_) => {}
            Phase::Proxy { .. } => self.remove(key, farewell.reason()),
            Phase::Head { .. } => self.refuse(now, key, &http::Refusal::overloaded()),
            Phase::Asking(asking) if asking.is_handshake() => {
                self.refuse(now, key, &http::Refusal::overloaded());
            }
            Phase::Echo | Phase::Asking(_) | Phase::Connecting(..) => {
                self.close(now, key, farewell.reason());
            }
            Phase::Session(session) => {
                session.leaving = Some(farewell);
                let reason = farewell.reason().text();
                let reconnect_after_ms = drain::reconnect_after_ms(key.index());
                self.schedule(key, now.tick.after(self.config.close_timeout));
                self.tell(key, &ServerFrame::GoAway(GoAway { reason, reconnect_after_ms }));
                self.close_when_answered(now, key);
            }
        }
    }

    /// Ends a session that was told to go, when none of its sends waits any more.
    pub(super) fn close_when_answered(&mut self, now: Now, key: ConnKey) {
        let Some(session) = self.conns.get(key).and_then(|conn| conn.session()) else { return };
        if let Some(farewell) = session.leaving
            && session.sends_in_flight == 0
        {
            self.close(now, key, farewell.reason());
        }
    }
}
