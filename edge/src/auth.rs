//! Token to identity. One kind for now: `--dev-auth`, where the token is the user id itself.

use arrayvec::ArrayString;

use crate::limits;

/// A user id by value.
pub type UserId = ArrayString<{ limits::USER_ID_BYTES_MAX }>;

/// Why a token is refused. The texts are for the client's developer and name nothing secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The token is empty.
    Missing,
    /// The user id in it is longer than [`limits::USER_ID_BYTES_MAX`].
    UserIdTooLong,
}

impl Refused {
    /// In a sentence.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "token is empty",
            Self::UserIdTooLong => "user id over 64 bytes",
        }
    }
}

/// What checks tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// The token is the user id: for development, on loopback alone.
    Dev,
}

impl Auth {
    /// Whose token this is.
    ///
    /// # Errors
    /// [`Refused`] with the sentence for the client.
    pub fn check(self, token: &str) -> Result<UserId, Refused> {
        match self {
            Self::Dev if token.is_empty() => Err(Refused::Missing),
            Self::Dev => UserId::from(token).map_err(|_| Refused::UserIdTooLong),
        }
    }
}
