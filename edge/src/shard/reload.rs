//! Knobs that change while the shard runs.

use std::sync::Arc;

use super::{Shard, deflater, framing, routes};
use crate::config::Config;
use crate::conn::{Mode, Session};
use crate::timer::{Now, Tick};

/// What clients were told about their intervals before a reload: a client that was told longer ones is given up by those,
/// for as long as it stays.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// When the intervals changed last, in milliseconds since the Unix epoch.
    changed_at_ms: i64,
    /// The longest silence that any client before that may allow itself, in ticks, by [`Mode`].
    silence_max: [u32; 3],
}

const MODES: [Mode; 3] = [Mode::Active, Mode::Idle, Mode::Background];

impl Told {
    fn change(&mut self, now: Now, old: &Config, new: &Config) {
        for (mode, longest) in MODES.into_iter().zip(&mut self.silence_max) {
            if old.silence_max(mode) != new.silence_max(mode) {
                self.changed_at_ms = now.unix_ms;
            }
            *longest = (*longest).max(Tick(0).after(old.silence_max(mode)).0);
        }
    }
}

impl Shard {
    /// What was made of the knobs at the start is made anew; the rest is read at each use.
    pub(super) fn reload(&mut self, now: Now, config: Arc<Config>) {
        self.routes = routes(&config);
        self.framing = framing(&config);
        // Messages do not lean on each other, so its compressors can go; new ones cost their memory once more.
        self.deflater = deflater(&config);
        self.address_quota = config.limit.address_quota();
        self.user_quota = config.limit.user_quota();
        self.allowances = config.allowances();
        self.told.change(now, &self.config, &config);
        self.config = config;
    }

    /// The longest that this client may be silent, by the intervals that it was told.
    pub(super) fn silence_end(&self, heard: Tick, session: &Session) -> Tick {
        let end = heard.after(self.config.silence_max(session.mode));
        if session.connected_at.unix_ms() > self.told.changed_at_ms {
            return end;
        }
        let told = self.told.silence_max[session.mode as usize];
        end.max(Tick(heard.0.saturating_add(told)))
    }
}
