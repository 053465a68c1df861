//! Who may use the server API: keys with scopes and rates, from a file that is read again on SIGHUP.
//!
//! ```toml
//! [[key]]
//! name = "orders"                    # also whom its messages come from
//! sha256 = "9f86d081884c7d65..."     # of the key: printf %s KEY | sha256sum
//! scopes = ["publish", "online"]
//! per_second = 100                   # requests; left out: no limit
//! burst = 200                        # at once after a pause; left out: as per_second
//! ```
//!
//! The file has no secret in it: a key is known by its digest.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ahash::AHashSet;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::Deserialize;
use tokio::time::Instant;

use super::error::ApiError;
use crate::limits;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    /// Send messages, from the key's name.
    Publish,
    /// Send them from anybody.
    PublishAs,
    /// See who is connected.
    Online,
    /// Close connections.
    Disconnect,
    /// See how long an inbox is.
    Inbox,
    /// See where a message is.
    Trace,
}

impl Scope {
    /// As the file and the document have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::PublishAs => "publish_as",
            Self::Online => "online",
            Self::Disconnect => "disconnect",
            Self::Inbox => "inbox",
            Self::Trace => "trace",
        }
    }
}

/// A key that is known.
#[derive(Debug)]
pub(super) struct Key {
    /// Its name, for people, and whom messages come from that say nothing else.
    pub(super) name: String,
    sha256: [u8; SHA256_OUTPUT_LEN],
    scopes: Vec<Scope>,
    meter: Option<Mutex<Meter>>,
}

impl Key {
    /// Whether it has this scope.
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Takes one request, unless the key is over its rate.
    ///
    /// # Errors
    /// After how many seconds it is not any more.
    fn admit(&self, now: Instant) -> Result<(), u64> {
        let Some(meter) = &self.meter else { return Ok(()) };
        meter.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }

    /// Counts so many requests more: one that asked for many things.
    pub(super) fn charge(&self, requests: usize) {
        if let Some(meter) = &self.meter {
            meter.lock().unwrap_or_else(PoisonError::into_inner).owed += requests as f64;
        }
    }
}

/// A debt in requests that time takes away; within the burst everything passes.
#[derive(Debug)]
struct Meter {
    per_second: f64,
    burst: f64,
    owed: f64,
    at: Instant,
}

impl Meter {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), burst: burst.into(), owed: 0.0, at: now }
    }

    fn admit(&mut self, now: Instant) -> Result<(), u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.owed = (self.owed - passed * self.per_second).max(0.0);
        let over = self.owed + 1.0 - self.burst;
        if over > 0.0 {
            return Err((over / self.per_second).ceil() as u64);
        }
        self.owed += 1.0;
        Ok(())
    }
}

/// All keys, exchanged when the file is read again.
#[derive(Debug)]
pub(super) struct Keys {
    path: PathBuf,
    current: RwLock<Arc<[Arc<Key>]>>,
}

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// A sentence that names the knob and what is wrong in the file.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let current = RwLock::new(read(path)?);
        Ok(Self { path: path.to_owned(), current })
    }

    /// Reads the file again. Meters begin anew.
    ///
    /// # Errors
    /// As [`Keys::load`]; the keys of before stay.
    pub(super) fn reload(&self) -> Result<usize, String> {
        let keys = read(&self.path)?;
        let count = keys.len();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(count)
    }

    /// The key that was shown, if it may be used for this, now.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit(
        &self,
        shown: &str,
        scope: Scope,
        now: Instant,
    ) -> Result<Arc<Key>, ApiError> {
        let Some(key) = self.find(shown) else {
            return Err(ApiError::unauthenticated("the key is not known"));
        };
        if !key.may(scope) {
            let scope = scope.name();
            return Err(ApiError::permission_denied(format!("the key lacks the scope {scope}")));
        }
        key.admit(now).map_err(ApiError::over_rate)?;
        Ok(key)
    }

    /// Compares with every key, in constant time each, so that neither which nor how much of one matches can be told by time.
    fn find(&self, shown: &str) -> Option<Arc<Key>> {
        let sha256 = digest(&SHA256, shown.as_bytes());
        let keys = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let mut found = None;
        for key in keys.iter() {
            if verify_slices_are_equal(&key.sha256, sha256.as_ref()).is_ok() {
                found = Some(Arc::clone(key));
            }
        }
        found
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    key: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
    per_second: Option<u32>,
    burst: Option<u32>,
}

fn read(path: &Path) -> Result<Arc<[Arc<Key>]>, String> {
    let refuse =
        |problem: &dyn std::fmt::Display| format!("--api-keys: {}: {problem}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    parse(&text, Instant::now()).map_err(|problem| refuse(&problem))
}

fn parse(text: &str, now: Instant) -> Result<Arc<[Arc<Key>]>, String> {
    let file: KeyFile = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count() + 1, error.message())
    })?;
    if !(1..=limits::API_KEYS_MAX).contains(&file.key.len()) {
        return Err(format!("has {} keys; allowed are 1 to 1,024", file.key.len()));
    }
    let mut names = AHashSet::new();
    let mut digests = AHashSet::new();
    let mut keys = Vec::new();
    for entry in file.key {
        let name = entry.name.clone();
        let key = key(entry, now).map_err(|problem| format!("key {name:?} {problem}"))?;
        if !names.insert(name.clone()) || !digests.insert(key.sha256) {
            return Err(format!("key {name:?} has the name or the digest of another"));
        }
        keys.push(Arc::new(key));
    }
    Ok(keys.into())
}

fn key(entry: KeyEntry, now: Instant) -> Result<Key, String> {
    let KeyEntry { name, sha256, scopes, per_second, burst } = entry;
    if !(1..=limits::USER_BYTES_MAX).contains(&name.len()) || name.contains(char::is_control) {
        return Err("has no name of 1 to 64 bytes".to_owned());
    }
    let Some(sha256) = from_hex(&sha256) else {
        return Err("has no sha256 of 64 hexadecimal digits".to_owned());
    };
    if scopes.is_empty() {
        return Err("has no scope".to_owned());
    }
    let meter = match (per_second, burst) {
        (None, None) => None,
        (Some(0), _) | (_, Some(0)) => return Err("has a rate of 0; leave the key out".to_owned()),
        (Some(rate), burst) => Some(Mutex::new(Meter::new(rate, burst.unwrap_or(rate), now))),
        (None, Some(_)) => return Err("has a burst, and no per_second".to_owned()),
    };
    Ok(Key { name, sha256, scopes, meter })
}

fn from_hex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * SHA256_OUTPUT_LEN)?;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn entry(more: &str) -> String {
        format!("[[key]]\nname = \"orders\"\nsha256 = \"{SECRET}\"\nscopes = [\"publish\"]\n{more}")
    }

    #[tokio::test]
    async fn a_key_is_known_by_its_digest_and_has_its_scopes_alone() {
        let keys = Keys {
            path: PathBuf::new(),
            current: RwLock::new(parse(&entry(""), Instant::now()).unwrap()),
        };
        let now = Instant::now();
        assert_eq!(keys.admit("secret", Scope::Publish, now).unwrap().name, "orders");
        let refused = |shown, scope| keys.admit(shown, scope, now).unwrap_err();
        assert_eq!(
            refused("secret", Scope::PublishAs),
            ApiError::permission_denied("the key lacks the scope publish_as")
        );
        for shown in ["Secret", "", "secret ", SECRET] {
            assert_eq!(
                refused(shown, Scope::Publish),
                ApiError::unauthenticated("the key is not known")
            );
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said() {
        let now = Instant::now();
        let said = |text: &str| parse(text, now).unwrap_err();
        assert!(said("").contains("key"));
        assert!(said("key = []").contains("0 keys"));
        assert!(said(&entry("scope = 1")).contains("scope"));
        assert!(said(&entry("burst = 5")).contains("per_second"));
        assert!(said(&entry("per_second = 0")).contains("rate of 0"));
        assert!(said(&entry("").replace("2bb", "xbb")).contains("sha256"));
        let wrong = said(&entry("").replace("publish", "punish"));
        assert!(wrong.starts_with("line 4: ") && wrong.contains("punish"), "{wrong}");
        assert!(said(&entry("").replace("orders", "")).contains("name"));
        assert!(said(&[entry(""), entry("")].concat()).contains("another"));
    }

    #[tokio::test]
    async fn a_burst_passes_then_the_rate_and_who_waits_hears_how_long() {
        let start = Instant::now();
        let mut meter = Meter::new(2, 3, start);
        for _ in 0..3 {
            assert_eq!(meter.admit(start), Ok(()));
        }
        assert_eq!(meter.admit(start), Err(1));
        let later = start + Duration::from_millis(500);
        assert_eq!((meter.admit(later), meter.admit(later)), (Ok(()), Err(1)));
        meter.owed += 10.0;
        assert_eq!(meter.admit(later), Err(6));
        assert_eq!(meter.admit(later + Duration::from_secs(3600)), Ok(()));
    }
}
