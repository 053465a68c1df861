//! Who a client is: from a token to an [`Identity`].
//!
//! ```text
//!   token ─► Auth::check ─┬─ --dev-auth: the token is the user id
//!                         ├─ keys: signature and claims (jwt.rs), with keys that are exchanged from outside (keys.rs)
//!                         └─ Ask: what the shard cannot say by itself it asks the auth thread (service.rs), whose
//!                            answer comes back as a Command
//! ```
//!
//! Everything but the service is free of I/O and is told the time. A token is written into no log and no error.

pub mod ask;
mod fetch;
mod http_client;
pub mod jwt;
pub mod keys;
mod owner;
pub mod service;
#[cfg(test)]
#[path = "../tests/support/tokens.rs"]
pub(crate) mod tokens;
mod verified;

use std::sync::Arc;

use arrayvec::ArrayString;
use hawser_proto::client::error::Code;
use hawser_proto::knobs::UsageError;

use self::ask::{Ask, Asks};
use self::jwt::Jwt;
use self::service::Service;
use crate::config::Config;
use crate::limits;

/// A user id by value.
pub type UserId = ArrayString<{ limits::USER_ID_BYTES_MAX }>;

/// A device id by value.
pub type DeviceId = ArrayString<{ limits::DEVICE_ID_BYTES_MAX }>;

/// Who a token says a client is, and what it lets the client do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The one device for which the token is good; `None`: any.
    pub device: Option<DeviceId>,
    /// When the token expires, in milliseconds since the Unix epoch; `None`: never.
    pub expires_at_ms: Option<i64>,
    /// What it lets the client do.
    pub grant: Grant,
}

impl Identity {
    /// A user who may do everything, for ever, from any device.
    fn unbounded(user: UserId) -> Self {
        Self { user, device: None, expires_at_ms: None, grant: Grant::ALL }
    }

    /// Whether the token is good for this device.
    #[must_use]
    pub fn fits_device(&self, device: &str) -> bool {
        self.device.is_none_or(|own| own.as_str() == device)
    }
}

/// What a token may let a client do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Permission {
    /// Send to users.
    SendUsers = 1,
    /// Send to groups.
    SendGroups = 2,
    /// Signal to users.
    Signals = 4,
}

impl Permission {
    const ALL: [Self; 3] = [Self::SendUsers, Self::SendGroups, Self::Signals];

    /// What claims and metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SendUsers => "send:users",
            Self::SendGroups => "send:groups",
            Self::Signals => "signals",
        }
    }
}

/// Permissions and rate class in one byte, as a session keeps them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Grant(u8);

impl Grant {
    /// Highest number of a rate class.
    pub const CLASSES_MAX: usize = 31;
    /// Everything, in the rate class of all who have none.
    pub const ALL: Self = Self(0b111);

    /// These permissions by name, unknown ones passed over, in this rate class; a class above the highest counts as 0.
    fn new<'a>(permissions: Option<impl IntoIterator<Item = &'a str>>, rate_class: u8) -> Self {
        let bits = permissions.map_or(Self::ALL.0, |names| {
            let known = |name| Permission::ALL.into_iter().find(|known| known.name() == name);
            names.into_iter().filter_map(known).fold(0, |bits, permission| bits | permission as u8)
        });
        let class = if usize::from(rate_class) <= Self::CLASSES_MAX { rate_class } else { 0 };
        Self(bits | class << 3)
    }

    /// Whether this is among the permissions.
    #[must_use]
    pub fn allows(self, permission: Permission) -> bool {
        self.0 & permission as u8 != 0
    }

    /// The rate class: 0, or the place in `--rate-classes`, from 1.
    #[must_use]
    pub fn rate_class(self) -> u8 {
        self.0 >> 3
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = Permission::ALL.into_iter().filter(|p| self.allows(*p)).map(Permission::name);
        f.debug_list().entries(names).finish()?;
        write!(f, " in class {}", self.rate_class())
    }
}

/// Why a client is not let in. The texts are for its developer and name nothing secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no token.
    Missing,
    /// The token is longer than [`limits::TOKEN_BYTES_MAX`].
    TooLong,
    /// It is not a JSON Web Token.
    Malformed,
    /// It is signed in a way that no key here is for; `none` among them.
    Algorithm,
    /// It names a key that is not known.
    UnknownKey,
    /// The signature is not that of a key.
    Signature,
    /// It has expired.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// It comes from another issuer.
    Issuer,
    /// It is meant for another service.
    Audience,
    /// A claim is missing, repeated, or not of its kind.
    Claims,
    /// The user id is empty, over its bound, or has control characters in it.
    User,
    /// It is good for another device.
    Device,
    /// It is of another user than the one before it.
    OtherUser,
    /// The owner's service says no.
    ByService,
    /// The service, or the keys, cannot be had at the moment.
    Unavailable,
    /// Too many tokens wait to be checked.
    Overloaded,
}

impl Refused {
    /// All of them, for metrics.
    pub const ALL: [Self; 17] = [
        Self::Missing,
        Self::TooLong,
        Self::Malformed,
        Self::Algorithm,
        Self::UnknownKey,
        Self::Signature,
        Self::Expired,
        Self::NotYetValid,
        Self::Issuer,
        Self::Audience,
        Self::Claims,
        Self::User,
        Self::Device,
        Self::OtherUser,
        Self::ByService,
        Self::Unavailable,
        Self::Overloaded,
    ];

    /// In a sentence.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Missing => "token is missing",
            Self::TooLong => "token: at most 4,096 bytes",
            Self::Malformed => "token is not a JSON Web Token",
            Self::Algorithm => {
                "token is not signed with RS256, ES256, EdDSA or HS256, as the keys here are"
            }
            Self::UnknownKey => "token is signed with a key that is not known here",
            Self::Signature => "token has a wrong signature",
            Self::Expired => "token has expired",
            Self::NotYetValid => "token is not valid yet",
            Self::Issuer => "token comes from another issuer",
            Self::Audience => "token is meant for another audience",
            Self::Claims => "token lacks a claim, or has one twice or of the wrong kind",
            Self::User => "user id of the token: 1 to 64 bytes without control characters",
            Self::Device => "token is for another device",
            Self::OtherUser => "token of another user",
            Self::ByService => "token refused",
            Self::Unavailable => "tokens cannot be checked at the moment, try again",
            Self::Overloaded => "too many tokens wait to be checked, try again",
        }
    }

    /// What the metric `edge_admission_refused_total` calls it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Claims => "claims",
            Self::User => "user",
            Self::Device => "device",
            Self::OtherUser => "other_user",
            Self::ByService => "by_service",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
        }
    }

    /// What the client is told.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Unavailable => Code::Unavailable,
            Self::Overloaded => Code::Overloaded,
            Self::Missing
            | Self::TooLong
            | Self::Malformed
            | Self::Algorithm
            | Self::UnknownKey
            | Self::Signature
            | Self::Expired
            | Self::NotYetValid
            | Self::Issuer
            | Self::Audience
            | Self::Claims
            | Self::User
            | Self::Device
            | Self::OtherUser
            | Self::ByService => Code::Unauthenticated,
        }
    }

    /// Whether the same token may be good later.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Overloaded)
    }
}

/// What comes of a token at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// This.
    Now(Result<Identity, Refused>),
    /// The auth thread has to be asked ([`Auth::try_ask`]).
    Ask,
}

/// What checks tokens; a shard has its own copy, which shares the keys with all others.
#[derive(Clone)]
pub struct Auth {
    way: Way,
    asks: Option<Asks>,
}

#[derive(Clone)]
enum Way {
    Dev,
    Jwt(Arc<Jwt>),
    Owner,
}

impl Default for Auth {
    /// [`Self::dev`], which the knobs let on loopback alone; the server says always which it wants.
    fn default() -> Self {
        Self::dev()
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.way {
            Way::Dev => "--dev-auth",
            Way::Jwt(_) => "keys",
            Way::Owner => "--auth-url",
        })
    }
}

impl Auth {
    /// The token is the user id: for development, on loopback alone.
    #[must_use]
    pub fn dev() -> Self {
        Self { way: Way::Dev, asks: None }
    }

    /// Keys that are there, and none that has to be fetched.
    fn keys(jwt: Arc<Jwt>) -> Self {
        Self { way: Way::Jwt(jwt), asks: None }
    }

    /// Everybody's token has to be asked about; the test that holds the other end answers.
    #[cfg(test)]
    pub(crate) fn asking(asks: Asks) -> Self {
        Self { way: Way::Owner, asks: Some(asks) }
    }

    /// What the knobs ask for; reads the files of keys. Where something has to be asked over the network, also the
    /// service that does so, to be started.
    ///
    /// # Errors
    /// A sentence that names the knob and the file.
    pub fn load(config: &Config) -> Result<(Self, Option<Service>), UsageError> {
        let knobs = &config.admission;
        if knobs.auth_url.is_some() {
            let (asks, service) = Service::of_owner(knobs)?;
            return Ok((Self { way: Way::Owner, asks: Some(asks) }, Some(service)));
        }
        if !knobs.has_keys() {
            return Ok((Self::dev(), None));
        }
        let jwt = Arc::new(Jwt::load(knobs)?);
        let mut auth = Self::keys(jwt.clone());
        if knobs.jwt_jwks_url.is_none() {
            return Ok((auth, None));
        }
        let (asks, service) = Service::of_keys(knobs, jwt)?;
        auth.asks = Some(asks);
        Ok((auth, Some(service)))
    }

    /// Whose token this is.
    #[must_use]
    pub fn check(&self, unix_ms: i64, token: &str) -> Checked {
        if token.is_empty() {
            return Checked::Now(Err(Refused::Missing));
        }
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Checked::Now(Err(Refused::TooLong));
        }
        match &self.way {
            Way::Dev => Checked::Now(user_id(token).map(Identity::unbounded)),
            Way::Jwt(jwt) => match jwt.check(unix_ms, token) {
                // The key may have been published since.
                Err(Refused::UnknownKey | Refused::Unavailable) if self.asks.is_some() => {
                    Checked::Ask
                }
                checked => Checked::Now(checked),
            },
            Way::Owner => Checked::Ask,
        }
    }

    /// Asks the auth thread; the answer is a [`crate::command::Command::Verdict`].
    ///
    /// # Errors
    /// [`Refused::Overloaded`] when too many questions wait.
    pub fn try_ask(&self, ask: Ask) -> Result<(), Refused> {
        self.asks.as_ref().map_or(Err(Refused::Unavailable), |asks| asks.try_ask(ask))
    }

    /// How long after its expiry a token still counts, in milliseconds.
    #[must_use]
    pub fn skew_ms(&self) -> i64 {
        match &self.way {
            Way::Jwt(jwt) => jwt.skew_ms(),
            Way::Dev | Way::Owner => 0,
        }
    }

    /// Reads the files of keys again; takes their keys, and what these knobs ask of a token, from now on for all shards.
    ///
    /// # Errors
    /// A sentence that names the knob and the file; all stays as it was.
    pub fn reload(&self, config: &Config) -> Result<(), UsageError> {
        match &self.way {
            Way::Jwt(jwt) => jwt.reload(&config.admission),
            Way::Dev | Way::Owner => Ok(()),
        }
    }
}

/// A user id as the protocols allow it.
fn user_id(text: &str) -> Result<UserId, Refused> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Refused::User);
    }
    UserId::from(text).map_err(|_| Refused::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_holds_every_mix_of_permissions_and_class() {
        for class in [0, 1, 31] {
            for bits in 0..8 {
                let names = Permission::ALL.into_iter().filter(|p| bits & *p as u8 != 0);
                let grant = Grant::new(Some(names.map(Permission::name)), class);
                for permission in Permission::ALL {
                    assert_eq!(grant.allows(permission), bits & permission as u8 != 0);
                }
                assert_eq!(grant.rate_class(), class);
            }
        }
        assert_eq!(Grant::new(None::<[&str; 0]>, 0), Grant::ALL);
        assert_eq!(Grant::new(Some(["read:messages", "signals"]), 200), Grant(4));
        assert_eq!(format!("{:?}", Grant::new(Some(["signals"]), 3)), "[\"signals\"] in class 3");
    }

    #[test]
    fn in_development_the_token_is_the_user() {
        let who = |token: &str| match Auth::dev().check(0, token) {
            Checked::Now(checked) => checked.map(|identity| identity.user.to_string()),
            Checked::Ask => panic!("nobody is to be asked"),
        };
        assert_eq!(who("alice"), Ok("alice".into()));
        assert_eq!(who(""), Err(Refused::Missing));
        assert_eq!(who(&"a".repeat(64)), Ok("a".repeat(64)));
        assert_eq!(who(&"a".repeat(65)), Err(Refused::User));
        assert_eq!(who("a\nb"), Err(Refused::User));
        assert_eq!(who(&"a".repeat(limits::TOKEN_BYTES_MAX + 1)), Err(Refused::TooLong));
    }

    #[test]
    fn reasons_have_labels_of_their_own() {
        let mut labels = Refused::ALL.map(Refused::label).to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Refused::ALL.len());
    }
}
