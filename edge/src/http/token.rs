//! The token that a request brings: in Authorization, or in the query (RFC 6750 sections 2.1 and 2.3).
//!
//! Browsers can set no header on a WebSocket, so the query is their way besides Connect. It is looked at here and
//! written into no log.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::{Refusal, Upgrade};

/// Parameter of the query.
const PARAMETER: &str = "access_token";

/// The token in the head of a request, if there is one; `head` is what `upgrade` was read from. Whatever is
/// not text becomes something that no token is.
///
/// # Errors
/// [`Refusal::TOKENS`] when it stands in more than one place.
pub fn token_of<'a>(head: &'a [u8], upgrade: &Upgrade) -> Result<Option<Cow<'a, str>>, Refusal> {
    let text = |range: &std::ops::Range<usize>| {
        String::from_utf8_lossy(head.get(range.clone()).unwrap_or_default())
    };
    let bearer = Some(text(&upgrade.bearer)).filter(|token| !token.is_empty());
    let query = text(&upgrade.query);
    let mut places = bearer.into_iter().chain(match query {
        Cow::Borrowed(query) => in_query(query),
        // Not UTF-8, so it is no query that we could have been sent on purpose.
        Cow::Owned(_) => None,
    });
    let token = places.next();
    if places.next().is_some() || repeats(head, upgrade) { Err(Refusal::TOKENS) } else { Ok(token) }
}

fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('='))
}

fn in_query(query: &str) -> Option<Cow<'_, str>> {
    let value = parameters(query).next().filter(|value| !value.is_empty())?;
    Some(percent_decode_str(value).decode_utf8_lossy())
}

fn repeats(head: &[u8], upgrade: &Upgrade) -> bool {
    let query = head.get(upgrade.query.clone()).and_then(|query| str::from_utf8(query).ok());
    query.is_some_and(|query| parameters(query).nth(1).is_some())
}

/// Where in a value of Authorization the token lies: after the scheme Bearer, in any case, and a space.
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Outcome, Routes, read_head};

    fn read(query: &str, authorization: &str) -> Result<Option<String>, Refusal> {
        let head = format!(
            "GET /ws{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             {authorization}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: hawser.v1.proto\r\n\r\n"
        );
        let routes = Routes {
            client_path: "/ws".into(),
            echo_path: None,
            deflate: false,
            origins: Vec::new(),
        };
        match read_head(head.as_bytes(), 0, &routes) {
            Outcome::Upgrade(upgrade) => {
                token_of(head.as_bytes(), &upgrade).map(|token| token.map(Cow::into_owned))
            }
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Incomplete => panic!("{head}"),
        }
    }

    #[test]
    fn a_token_is_found_in_either_place() {
        let found = |query, authorization| read(query, authorization).unwrap();
        assert_eq!(found("", ""), None);
        assert_eq!(found("", "Authorization: Bearer a.b.c\r\n"), Some("a.b.c".into()));
        assert_eq!(found("", "authorization:  bEARER   a.b.c \r\n"), Some("a.b.c".into()));
        assert_eq!(found("?access_token=a.b.c", ""), Some("a.b.c".into()));
        assert_eq!(found("?x=1&access_token=a%2Eb+c%3D&y", ""), Some("a.b+c=".into()));
        for none in ["?access_token=", "?access_token", "?token=x", "?xaccess_token=y"] {
            assert_eq!(found(none, ""), None, "{none}");
        }
        assert_eq!(found("", "Authorization: Basic dTpw\r\n"), None);
        assert_eq!(found("", "Authorization: Bearer\r\n"), None);
    }

    #[test]
    fn a_token_in_two_places_is_refused() {
        let bearer = "Authorization: Bearer a\r\n";
        assert_eq!(read("?access_token=a", bearer), Err(Refusal::TOKENS));
        assert_eq!(read("?access_token=a&access_token=a", ""), Err(Refusal::TOKENS));
        assert_eq!(read("", &bearer.repeat(2)), Err(Refusal::TOKENS));
    }

    #[test]
    fn what_is_not_text_becomes_what_no_token_is() {
        assert_eq!(read("?access_token=%ff%fe", ""), Ok(Some("\u{fffd}\u{fffd}".into())));
    }
}
