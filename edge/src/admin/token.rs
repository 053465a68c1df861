//! The token that lets somebody act at the admin address.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use hawser_proto::knobs::UsageError;

/// Shorter ones can be guessed, longer ones are something else.
const TOKEN_BYTES: RangeInclusive<usize> = 16..=1024;

/// Holds its digest alone.
#[derive(Debug)]
pub struct Token(Digest);

impl Token {
    /// From a file that holds it and nothing else but white space around it.
    ///
    /// # Errors
    /// A sentence that names `--admin-token-file`, and shows nothing of the token.
    pub fn read(path: &Path) -> Result<Self, UsageError> {
        let unfit =
            |told: &str| UsageError(format!("--admin-token-file: {} {told}", path.display()));
        let text =
            fs::read_to_string(path).map_err(|error| unfit(&format!("cannot be read: {error}")))?;
        let token = text.trim();
        if !TOKEN_BYTES.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let (min, max) = TOKEN_BYTES.into_inner();
            return Err(unfit(&format!(
                "has to hold one token of {min} to {max} visible ASCII characters, such as openssl rand -hex 32 gives"
            )));
        }
        Ok(Self(digest(&SHA256, token.as_bytes())))
    }

    /// Whether a request's `Authorization` header carries it (RFC 6750 section 2.1). How long this takes says nothing about the
    /// token: what is compared are digests.
    #[must_use]
    pub fn is_in(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked("Bearer ".len()) else {
            return false;
        };
        let given = digest(&SHA256, token.trim_ascii());
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && verify_slices_are_equal(given.as_ref(), self.0.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Token, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, text).unwrap();
        Token::read(&path).map_err(|UsageError(sentence)| sentence)
    }

    #[test]
    fn the_token_of_the_file_is_taken_and_no_other() {
        let token = read("0123456789abcdef\n").unwrap();
        for authorization in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
            assert!(token.is_in(authorization.as_bytes()), "{authorization}");
        }
        for authorization in [
            "",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!token.is_in(authorization.as_bytes()), "{authorization}");
        }
    }

    #[test]
    fn a_file_without_a_token_is_refused_in_a_sentence_that_does_not_show_it() {
        for text in ["", "short", "two words in a file, no token", &"x".repeat(1025)] {
            let told = read(text).unwrap_err();
            assert!(told.starts_with("--admin-token-file: ") && told.contains("16 to 1024"));
            assert!(text.is_empty() || !told.contains(text), "{told}");
        }
        let UsageError(told) = Token::read(Path::new("/nowhere/token")).unwrap_err();
        assert!(told.starts_with("--admin-token-file: /nowhere/token cannot be read: "), "{told}");
    }
}
