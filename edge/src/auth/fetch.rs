//! Keys from `--jwt-jwks-url`: fetched at the start, again every `--jwt-jwks-refresh`, and when a token names one that is
//! not known, but then not more often than `--jwt-jwks-refetch-min`. Whatever goes wrong, the last good keys stay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ask::Ask;
use super::http_client;
use super::jwt::Jwt;
use super::keys::{self, KEYS_BYTES_MAX, Key, Secrets};
use super::service::{Desk, unix_ms};
use crate::config::ServiceUrl;

/// After a fetch that failed the next comes so soon, then after twice the time, up to the usual interval.
const RETRY_MIN: Duration = Duration::from_secs(1);

pub(super) struct Fetcher {
    pub(super) jwt: Arc<Jwt>,
    pub(super) url: ServiceUrl,
    pub(super) client: Client,
    pub(super) refresh: Duration,
    pub(super) refetch_min: Duration,
}

impl Fetcher {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(self, mut asks: mpsc::Receiver<Ask>, mut desk: Desk) {
        let mut failures = 0;
        let mut next = Instant::now();
        let mut last: Option<Instant> = None;
        let mut asked = Vec::new();
        loop {
            let came = tokio::select! {
                () = tokio::time::sleep_until(next) => None,
                count = asks.recv_many(&mut asked, super::ask::ASKS_MAX) => Some(count),
            };
            if came == Some(0) {
                return;
            }
            let may_fetch = last.is_none_or(|last| last.elapsed() >= self.refetch_min);
            if came.is_none() || may_fetch {
                last = Some(Instant::now());
                failures = if self.fetch(&desk).await { 0 } else { failures + 1 };
                next = Instant::now() + self.wait(failures);
            }
            for ask in asked.drain(..) {
                let outcome = self.jwt.check(unix_ms(), &ask.token);
                desk.deliver(&ask, outcome).await;
            }
        }
    }

    fn wait(&self, failures: u32) -> Duration {
        match failures {
            0 => self.refresh,
            _ => RETRY_MIN.saturating_mul(1 << (failures - 1).min(16)).min(self.refresh),
        }
    }

    /// Fetches once; says whether that went well.
    async fn fetch(&self, desk: &Desk) -> bool {
        let outcome = self.try_fetch().await;
        let health = &desk.health;
        match outcome {
            Ok(keys) => {
                self.jwt.set_fetched(keys);
                health.fetches.fetch_add(1, Ordering::Relaxed);
                health.fetched_at_ms.store(unix_ms(), Ordering::Relaxed);
                health.mend();
                true
            }
            Err(fault) => {
                health.fetch_failures.fetch_add(1, Ordering::Relaxed);
                health.trouble(format!("--jwt-jwks-url: {} {fault}", self.url));
                false
            }
        }
    }

    async fn try_fetch(&self) -> Result<Vec<Key>, String> {
        let request = self.client.get(self.url.secret().clone());
        let response = request.send().await.map_err(http_client::sentence)?;
        if response.status() != StatusCode::OK {
            return Err(format!("answers with status {}", response.status().as_u16()));
        }
        let body = http_client::body(response, KEYS_BYTES_MAX).await?;
        keys::from_jwks(&body, Secrets::Refused)
    }
}
