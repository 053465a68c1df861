//! The auth thread: all that tokens need of the network, on a runtime of its own, so that no shard ever waits.
//!
//! Shards ask through a bounded channel ([`super::ask`]); answers go back as commands through the mesh. How it is
//! doing is told by [`Health`].

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hawser_proto::knobs::UsageError;
use tokio::sync::mpsc;

use super::ask::{self, Ask, Asks, Verdict};
use super::fetch::Fetcher;
use super::jwt::Jwt;
use super::owner::Owner;
use super::{Identity, Refused, http_client};
use crate::command::Command;
use crate::config::{AdmissionKnobs, ServiceUrl};
use crate::mesh::{Full, Mesh};

/// A shard whose commands are full is tried again after this long, and given up after so many tries: its connection has a
/// deadline of its own.
const DELIVER_AGAIN: Duration = Duration::from_millis(5);
const DELIVERIES_MAX: usize = 1000;
/// The same trouble, come again, is told in the log after so many milliseconds.
const TELL_AGAIN_MS: i64 = 10_000;

/// Ready to be started.
pub struct Service {
    work: Work,
    asks: mpsc::Receiver<Ask>,
    health: Arc<Health>,
}

enum Work {
    Keys(Fetcher),
    Owner(Box<Owner>),
}

impl Service {
    pub(super) fn of_keys(
        knobs: &AdmissionKnobs,
        jwt: Arc<Jwt>,
    ) -> Result<(Asks, Self), UsageError> {
        let knob = "--jwt-jwks-url";
        let url = wanted(knob, knobs.jwt_jwks_url.as_ref())?;
        let fetcher = Fetcher {
            jwt,
            url,
            client: http_client::client(knob, knobs.auth_timeout)?,
            refresh: knobs.jwt_jwks_refresh,
            refetch_min: knobs.jwt_jwks_refetch_min,
        };
        let has_files = !knobs.jwt_key_file.is_empty()
            || !knobs.jwt_hs256_key_file.is_empty()
            || knobs.jwt_jwks_file.is_some();
        let health = Health { keys_wanted: !has_files, ..Health::default() };
        Ok(Self::new(Work::Keys(fetcher), health))
    }

    pub(super) fn of_owner(knobs: &AdmissionKnobs) -> Result<(Asks, Self), UsageError> {
        let knob = "--auth-url";
        let url = wanted(knob, knobs.auth_url.as_ref())?.secret().clone();
        let client = http_client::client(knob, knobs.auth_timeout)?;
        Ok(Self::new(
            Work::Owner(Box::new(Owner { knobs: knobs.clone(), url, client })),
            Health::default(),
        ))
    }

    fn new(work: Work, health: Health) -> (Asks, Self) {
        let (asks, receiver) = ask::channel();
        (asks, Self { work, asks: receiver, health: Arc::new(health) })
    }

    /// How it is doing.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Works until the last shard is gone.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(self, mesh: Arc<Mesh>) -> Result<(), UsageError> {
        let told =
            |error: std::io::Error| UsageError(format!("--auth-url: no thread to ask it: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(told)?;
        let desk = Desk { mesh, health: self.health };
        let work = move || {
            runtime.block_on(async move {
                match self.work {
                    Work::Keys(fetcher) => fetcher.run(self.asks, desk).await,
                    Work::Owner(owner) => owner.run(self.asks, desk).await,
                }
            });
        };
        std::thread::Builder::new().name("auth".into()).spawn(work).map_err(told)?;
        Ok(())
    }
}

fn wanted(knob: &str, url: Option<&ServiceUrl>) -> Result<ServiceUrl, UsageError> {
    let url = url.ok_or_else(|| UsageError(format!("{knob}: is missing")))?;
    if url.is_in_the_clear() {
        tracing::warn!(
            "{knob}: {url} is not https: whoever stands between can read and change what is said"
        );
    }
    Ok(url.clone())
}

/// Where answers are handed out.
pub(super) struct Desk {
    mesh: Arc<Mesh>,
    pub(super) health: Arc<Health>,
}

impl Desk {
    /// Takes an answer to its shard. While that one takes none, nobody else gets theirs: no more is asked for than can
    /// be answered.
    pub(super) async fn deliver(&mut self, ask: &Ask, outcome: Result<Identity, Refused>) {
        let mut command = Command::Verdict(Box::new(Verdict { key: ask.key, outcome }));
        for _ in 0..DELIVERIES_MAX {
            if self.mesh.commands_are_few(ask.shard) {
                match self.mesh.try_command(ask.shard, command) {
                    Ok(()) => return,
                    Err(Full(back)) => command = back,
                }
            }
            tokio::time::sleep(DELIVER_AGAIN).await;
        }
        tracing::warn!(
            shard = ask.shard,
            "a shard takes no commands, an answer to a token is dropped"
        );
    }
}

/// How the auth thread is doing; read by the admin thread.
#[derive(Debug, Default)]
pub struct Health {
    /// Without keys nobody can be let in, and they come from here.
    keys_wanted: bool,
    /// Why it does not work at the moment. Locked for a moment by the auth thread and by who asks.
    trouble: Mutex<Option<String>>,
    told_at_ms: AtomicI64,
    pub(super) fetched_at_ms: AtomicI64,
    pub(super) fetches: AtomicU64,
    pub(super) fetch_failures: AtomicU64,
    pub(super) calls_allowed: AtomicU64,
    pub(super) calls_refused: AtomicU64,
    pub(super) calls_late: AtomicU64,
    pub(super) calls_failed: AtomicU64,
    pub(super) calls_in_flight: AtomicU64,
    pub(super) cache_hits: AtomicU64,
}

impl Health {
    /// What does not work at the moment, in a sentence for the operator.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether no token can be checked at all: the keys were never to be had.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.keys_wanted && self.fetched_at_ms.load(Ordering::Relaxed) == 0
    }

    /// Notes what does not work; told in the log when it is new, and not more often than [`TELL_AGAIN_MS`] where it comes
    /// and goes.
    pub(super) fn trouble(&self, sentence: String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.as_deref() != Some(&sentence) {
            let now_ms = unix_ms();
            if now_ms - self.told_at_ms.load(Ordering::Relaxed) >= TELL_AGAIN_MS {
                self.told_at_ms.store(now_ms, Ordering::Relaxed);
                tracing::warn!("{sentence}");
            }
            *trouble = Some(sentence);
        }
    }

    /// Notes that it works.
    pub(super) fn mend(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Appends the metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let fetched_at_seconds = self.fetched_at_ms.load(Ordering::Relaxed) / 1000;
        let _ = write!(
            out,
            "# HELP edge_jwks_fetches_total fetches of keys, by outcome\n\
             # TYPE edge_jwks_fetches_total counter\n\
             edge_jwks_fetches_total{{outcome=\"good\"}} {}\n\
             edge_jwks_fetches_total{{outcome=\"failed\"}} {}\n\
             # HELP edge_jwks_fetched_timestamp_seconds when keys were fetched last, 0 for never\n\
             # TYPE edge_jwks_fetched_timestamp_seconds gauge\n\
             edge_jwks_fetched_timestamp_seconds {fetched_at_seconds}\n\
             # HELP edge_auth_calls_total questions to --auth-url, by outcome\n\
             # TYPE edge_auth_calls_total counter\n\
             edge_auth_calls_total{{outcome=\"allowed\"}} {}\n\
             edge_auth_calls_total{{outcome=\"refused\"}} {}\n\
             edge_auth_calls_total{{outcome=\"late\"}} {}\n\
             edge_auth_calls_total{{outcome=\"failed\"}} {}\n\
             # HELP edge_auth_calls_in_flight questions to --auth-url without an answer yet\n\
             # TYPE edge_auth_calls_in_flight gauge\n\
             edge_auth_calls_in_flight {}\n\
             # HELP edge_auth_cache_hits_total tokens answered as --auth-url did a while ago\n\
             # TYPE edge_auth_cache_hits_total counter\n\
             edge_auth_cache_hits_total {}\n",
            get(&self.fetches),
            get(&self.fetch_failures),
            get(&self.calls_allowed),
            get(&self.calls_refused),
            get(&self.calls_late),
            get(&self.calls_failed),
            get(&self.calls_in_flight),
            get(&self.cache_hits),
        );
    }
}

/// What time it is in the calendar.
#[expect(
    clippy::disallowed_methods,
    reason = "the auth thread is at the rim, and has a clock of its own"
)]
pub(super) fn unix_ms() -> i64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnKey;
    use crate::mesh::COMMANDS_MAX;

    #[test]
    fn answers_wait_for_a_shard_and_leave_room_for_an_operator() {
        let mesh = Arc::new(Mesh::new(1).unwrap());
        let mut desk = Desk { mesh: mesh.clone(), health: Arc::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ask = |number| Ask {
            shard: 0,
            key: ConnKey::from_bits(number),
            token: "t".into(),
            device: "d".into(),
            address: [127, 0, 0, 1].into(),
            asked_at_ms: 0,
        };
        let mut taken = Vec::new();
        let mut take = |max| {
            while let Some(Command::Verdict(verdict)) = mesh.take_command(0) {
                taken.push(verdict.key.to_bits());
                if taken.len() == max {
                    break;
                }
            }
            taken.len()
        };
        runtime.block_on(async {
            let half = COMMANDS_MAX as u64 / 2;
            for number in 0..half {
                desk.deliver(&ask(number), Err(Refused::ByService)).await;
            }
            let next = ask(half);
            let mut waits = std::pin::pin!(desk.deliver(&next, Err(Refused::ByService)));
            let briefly = tokio::time::timeout(4 * DELIVER_AGAIN, waits.as_mut()).await;
            assert!(briefly.is_err(), "it waits");
            assert_eq!(take(1), 1);
            waits.await;
            assert_eq!(take(usize::MAX), COMMANDS_MAX / 2 + 1);
        });
        assert!(taken.is_sorted(), "in their order");
    }

    #[test]
    fn trouble_is_told_until_it_works_again() {
        let health = Health { keys_wanted: true, ..Health::default() };
        assert_eq!((health.told(), health.is_closed()), (None, true));
        health.trouble("it is away".into());
        assert_eq!(health.told().as_deref(), Some("it is away"));
        health.fetched_at_ms.store(1_790_000_000_000, Ordering::Relaxed);
        assert!(!health.is_closed());
        health.mend();
        assert_eq!(health.told(), None);
        let mut metrics = String::new();
        health.render(&mut metrics);
        assert!(metrics.contains("edge_jwks_fetched_timestamp_seconds 1790000000\n"), "{metrics}");
    }
}
