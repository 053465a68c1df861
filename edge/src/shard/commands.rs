//! What an operator asks of this shard.

use std::sync::Arc;

use super::Shard;
use crate::command::Command;
use crate::mesh::{COMMANDS_MAX, Mesh};
use crate::timer::Now;

impl Shard {
    /// Takes what waits in the lane; once a turn.
    pub(super) fn take_commands(&mut self, now: Now, mesh: &Mesh) {
        for _ in 0..COMMANDS_MAX {
            let Some(command) = mesh.take_command(self.index) else { break };
            self.handle_command(now, command);
        }
    }

    fn handle_command(&mut self, _now: Now, command: Command) {
        match command {
            Command::Reload(config) => self.config = Arc::clone(&config),
        }
    }
}
