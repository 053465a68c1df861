//! What systemd is told when it started the edge (`Type=notify`), and how it learns that a shard is stuck.
//!
//! Without systemd, that is without `NOTIFY_SOCKET` in the environment, nothing is said and nobody misses it.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often shards are looked at when no watchdog asks for it.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The edge accepts connections.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The knobs are being read again; [`ready`] ends that.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("systemd cannot be told of a reload: {error}"),
    }
}

/// The edge is on its way out, and needs so much time for it, whatever `TimeoutStopSec` says.
pub fn stopping(within: Duration) {
    let micros = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// All shards are alive, and what `systemctl status` shows.
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// What `systemctl status` shows, without a sign of life: before long systemd will end this process.
pub fn stuck(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// How often to look whether the shards are alive: three times within what the watchdog grants.
#[must_use]
pub fn look_interval() -> Duration {
    sd_notify::watchdog_enabled().map_or(LOOK_INTERVAL, |limit| limit / 3)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd cannot be told {states:?}: {error}");
    }
}
