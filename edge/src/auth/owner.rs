//! The owner's own service, `--auth-url`, is asked about every token.
//!
//! POST, `{"token": .., "device_id": .., "address": ..}`; `device_id` is left out when the token came with the request for
//! the WebSocket. What it may answer:
//!
//! - 200, `{"user": .., "expires_at": .., "device": .., "permissions": [..], "rate_class": ..}`; all but `user` may be left
//!   out, and mean what the claims of a token mean (`expires_at` is `exp`).
//! - 401 or 403: the client is refused.
//! - Anything else, or nothing in time: the client is asked to come back.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::AHashMap;
use aws_lc_rs::digest;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ask::Ask;
use super::service::{Desk, unix_ms};
use super::{DeviceId, Grant, Identity, Refused, http_client, user_id};
use crate::config::AdmissionKnobs;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Answers remembered; at the bound the oldest goes. About 200 bytes each.
const CACHE_ANSWERS_MAX: usize = 64 * 1024;

pub(super) struct Owner {
    pub(super) knobs: AdmissionKnobs,
    pub(super) url: reqwest::Url,
    pub(super) client: Client,
}

/// How a question to the service ended.
struct Answer {
    ask: Ask,
    /// `Err`: why there is none.
    outcome: Result<Result<Identity, Refused>, Failure>,
}

enum Failure {
    Late,
    Wrong(String),
}

impl Owner {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(self, mut asks: mpsc::Receiver<Ask>, mut desk: Desk) {
        let mut calls = JoinSet::new();
        let mut cache = Cache::new(self.knobs.auth_cache);
        loop {
            tokio::select! {
                ask = asks.recv(), if calls.len() < self.knobs.auth_calls_max => {
                    let Some(ask) = ask else { return };
                    match cache.find(&ask, Instant::now()) {
                        Some(outcome) => {
                            desk.health.cache_hits.fetch_add(1, Ordering::Relaxed);
                            desk.deliver(&ask, outcome).await;
                        }
                        None => self.call(&mut calls, ask),
                    }
                }
                Some(done) = calls.join_next() => {
                    let Ok(Answer { ask, outcome }) = done else { continue };
                    let outcome = self.note(&desk, &mut cache, &ask, outcome);
                    desk.deliver(&ask, outcome).await;
                }
            }
            desk.health.calls_in_flight.store(calls.len() as u64, Ordering::Relaxed);
        }
    }

    fn call(&self, calls: &mut JoinSet<Answer>, ask: Ask) {
        let waited = unix_ms().saturating_sub(ask.asked_at_ms);
        let waited = Duration::from_millis(u64::try_from(waited).unwrap_or(0));
        // What a question waited for its turn is taken off; the connection waits no longer.
        let left = self.knobs.auth_timeout.saturating_sub(waited);
        let question = Question {
            token: &ask.token,
            device_id: Some(&*ask.device).filter(|device| !device.is_empty()),
            address: ask.address,
        };
        let body = serde_json::to_vec(&question).unwrap_or_default();
        let request = self
            .client
            .post(self.url.clone())
            .timeout(left)
            .header("content-type", "application/json")
            .body(body);
        let knobs = self.knobs.clone();
        calls.spawn(async move {
            let outcome =
                if left.is_zero() { Err(Failure::Late) } else { answer(request, &knobs).await };
            Answer { ask, outcome }
        });
    }

    /// Counts and remembers an answer; says what the client is told.
    fn note(
        &self,
        desk: &Desk,
        cache: &mut Cache,
        ask: &Ask,
        outcome: Result<Result<Identity, Refused>, Failure>,
    ) -> Result<Identity, Refused> {
        let health = &desk.health;
        let (counter, trouble) = match &outcome {
            Ok(Ok(_)) => (&health.calls_allowed, None),
            Ok(Err(_)) => (&health.calls_refused, None),
            Err(Failure::Late) => (&health.calls_late, Some("does not answer in time")),
            Err(Failure::Wrong(fault)) => (&health.calls_failed, Some(fault.as_str())),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let url = self.knobs.auth_url.as_ref();
        match (trouble, url) {
            (Some(fault), Some(url)) => health.trouble(format!("--auth-url: {url} {fault}")),
            _ => health.mend(),
        }
        let outcome = outcome.unwrap_or(Err(Refused::Unavailable));
        if !outcome.is_err_and(Refused::is_retryable) {
            cache.insert(ask, outcome, Instant::now());
        }
        outcome
    }
}

#[derive(Serialize)]
struct Question<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<&'a str>,
    address: IpAddr,
}

async fn answer(
    request: reqwest::RequestBuilder,
    knobs: &AdmissionKnobs,
) -> Result<Result<Identity, Refused>, Failure> {
    let failure = |error: reqwest::Error| match error.is_timeout() {
        true => Failure::Late,
        false => Failure::Wrong(http_client::sentence(error)),
    };
    let response = request.send().await.map_err(failure)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(Err(Refused::ByService)),
        status => return Err(Failure::Wrong(format!("answers with status {}", status.as_u16()))),
    }
    let body = http_client::body(response, ANSWER_BYTES_MAX).await.map_err(Failure::Wrong)?;
    let allowed: Allowed = serde_json::from_slice(&body)
        .map_err(|error| Failure::Wrong(format!("answers with what is not understood: {error}")))?;
    allowed.identity(knobs).map_err(|fault| Failure::Wrong(fault.into())).map(|identity| {
        match identity.expires_at_ms {
            Some(at) if at <= unix_ms() => Err(Refused::Expired),
            _ => Ok(identity),
        }
    })
}

#[derive(Deserialize)]
struct Allowed {
    user: String,
    expires_at: Option<f64>,
    device: Option<String>,
    permissions: Option<Vec<String>>,
    rate_class: Option<String>,
}

impl Allowed {
    fn identity(&self, knobs: &AdmissionKnobs) -> Result<Identity, &'static str> {
        let user = user_id(&self.user).map_err(|_| "names a user with other than 1 to 64 bytes")?;
        let device = self.device.as_deref().map(DeviceId::from).transpose();
        let device = device.map_err(|_| "names a device with more than 40 bytes")?;
        let rate_class = self.rate_class.as_deref().map_or(0, |name| knobs.rate_class(name));
        let permissions = self.permissions.as_ref().map(|names| names.iter().map(String::as_str));
        Ok(Identity {
            user,
            device,
            expires_at_ms: self.expires_at.map(|seconds| (seconds * 1000.0) as i64),
            grant: Grant::new(permissions, rate_class),
        })
    }
}

/// Answers of a while ago, by a digest of what was asked; tokens are not kept.
struct Cache {
    keep: Duration,
    answers: AHashMap<Digest, (Instant, Result<Identity, Refused>)>,
    /// Oldest first.
    order: VecDeque<(Instant, Digest)>,
}

type Digest = [u8; digest::SHA256_OUTPUT_LEN];

impl Cache {
    fn new(keep: Duration) -> Self {
        Self { keep, answers: AHashMap::new(), order: VecDeque::new() }
    }

    fn digest(ask: &Ask) -> Option<Digest> {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [&*ask.token, &*ask.device, &*ask.address.to_string()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        context.finish().as_ref().try_into().ok()
    }

    fn find(&mut self, ask: &Ask, now: Instant) -> Option<Result<Identity, Refused>> {
        self.forget(now, CACHE_ANSWERS_MAX);
        let (_, outcome) = self.answers.get(&Self::digest(ask)?)?;
        let expired = |identity: Identity| identity.expires_at_ms.is_some_and(|at| at <= unix_ms());
        Some(if outcome.is_ok_and(expired) { Err(Refused::Expired) } else { *outcome })
    }

    fn insert(&mut self, ask: &Ask, outcome: Result<Identity, Refused>, now: Instant) {
        if self.keep.is_zero() {
            return;
        }
        self.forget(now, CACHE_ANSWERS_MAX - 1);
        let Some(digest) = Self::digest(ask) else { return };
        self.answers.insert(digest, (now, outcome));
        self.order.push_back((now, digest));
    }

    /// Forgets what is too old, and the oldest until at most `max` are left.
    fn forget(&mut self, now: Instant, max: usize) {
        while let Some((at, digest)) = self.order.front() {
            if now < *at + self.keep && self.order.len() <= max {
                return;
            }
            // A newer answer to the same question stands further behind.
            if self.answers.get(digest).is_some_and(|(newest, _)| newest == at) {
                self.answers.remove(digest);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnKey;

    fn ask(token: &str, device: &str, address: &str) -> Ask {
        Ask {
            shard: 0,
            key: ConnKey::from_bits(1),
            token: token.into(),
            device: device.into(),
            address: address.parse().unwrap(),
            asked_at_ms: 0,
        }
    }

    #[test]
    fn an_answer_counts_for_its_time_and_for_what_was_asked() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut cache = Cache::new(Duration::from_secs(30));
        let (refused, question) = (Err(Refused::ByService), ask("t", "d", "127.0.0.1"));
        cache.insert(&question, refused, start);
        for other in [ask("t", "", "127.0.0.1"), ask("td", "", "127.0.0.1"), ask("t", "d", "::1")] {
            assert_eq!(cache.find(&other, start), None, "{other:?}");
        }
        assert_eq!(cache.find(&question, after(20)), Some(refused));
        let identity = Identity::unbounded(user_id("alice").unwrap());
        cache.insert(&question, Ok(identity), after(20));
        assert_eq!(cache.find(&question, after(40)), Some(Ok(identity)));
        assert_eq!(cache.find(&question, after(50)), None);
        assert!(cache.answers.is_empty() && cache.order.is_empty());
    }

    #[test]
    fn at_the_bound_the_oldest_answer_goes() {
        let now = Instant::now();
        let mut cache = Cache::new(Duration::from_secs(30));
        for number in 0..=CACHE_ANSWERS_MAX {
            cache.insert(&ask(&number.to_string(), "", "::1"), Err(Refused::ByService), now);
        }
        assert_eq!(cache.answers.len(), CACHE_ANSWERS_MAX);
        assert_eq!(cache.find(&ask("0", "", "::1"), now), None);
        assert!(cache.find(&ask("1", "", "::1"), now).is_some());
    }
}
