//! `Sec-WebSocket-Extensions`: which offer of permessage-deflate is taken (RFC 6455 section 9.1, RFC 7692 section 7.1).
//!
//! A client offers what it would do, the best first. An offer with a parameter that is unknown, repeated or out of range is
//! declined, and the next one looked at; what breaks the grammar itself is refused. Whatever a client offers, neither side takes a
//! window over from one message to the next: a server may ask that of any client (sections 7.1.1.1 and 7.1.1.2).

use crate::ws::WindowBits;

const NAME: &[u8] = b"permessage-deflate";
const ANSWER: &[u8] = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// An offer of permessage-deflate that we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DeflateOffer {
    /// The bound for our window, when the client asks for one (`server_max_window_bits`).
    asked_bits: Option<WindowBits>,
}

impl DeflateOffer {
    /// The window that our messages may refer back into.
    #[must_use]
    pub fn window_bits(self) -> WindowBits {
        self.asked_bits.unwrap_or(WindowBits::MAX)
    }

    /// Appends what the answer says: the header's value. The client's own window is left to it, ours is large enough for any.
    pub fn write_answer(self, out: &mut Vec<u8>) {
        out.extend_from_slice(ANSWER);
        if let Some(bits) = self.asked_bits {
            out.extend_from_slice(format!("; server_max_window_bits={}", bits.get()).as_bytes());
        }
    }
}

/// The first offer in one header line that we do; the outer `None` when the line breaks the grammar.
pub(super) fn first_deflate_offer(line: &[u8]) -> Option<Option<DeflateOffer>> {
    let (mut rest, mut taken) = (Rest(line), None);
    loop {
        // Empty items of a list are to be passed over (RFC 9110 section 5.6.1).
        while rest.eat(b',') {}
        if rest.0.is_empty() {
            return Some(taken);
        }
        let offer = extension(&mut rest)?;
        taken = taken.or(offer);
        if !rest.0.is_empty() && !rest.eat(b',') {
            return None;
        }
    }
}

/// Takes one extension with its parameters; the outer `None` when that breaks the grammar, the inner when it is not for us.
fn extension(rest: &mut Rest<'_>) -> Option<Option<DeflateOffer>> {
    let name = rest.token()?;
    let mut offer = name.eq_ignore_ascii_case(NAME).then(Offer::default);
    while rest.eat(b';') {
        let name = rest.token()?;
        let value = if rest.eat(b'=') { Some(rest.value()?) } else { None };
        offer = offer.and_then(|offer| offer.with(name, value));
    }
    Some(offer.map(|offer| DeflateOffer { asked_bits: offer.server_bits.flatten() }))
}

/// The parameters of an offer so far; each comes once (RFC 7692 section 7.1).
#[derive(Default)]
struct Offer {
    server_no_takeover: bool,
    client_no_takeover: bool,
    server_bits: Option<Option<WindowBits>>,
    client_bits: bool,
}

impl Offer {
    /// Takes one parameter in; `None` declines the offer.
    fn with(mut self, name: &[u8], value: Option<&[u8]>) -> Option<Self> {
        let repeated = match (name, value) {
            (b"server_no_context_takeover", None) => {
                std::mem::replace(&mut self.server_no_takeover, true)
            }
            (b"client_no_context_takeover", None) => {
                std::mem::replace(&mut self.client_no_takeover, true)
            }
            // A window of 8 bits is asked for rightly, and is the one that our compressor does not do.
            (b"server_max_window_bits", Some(value)) => {
                let bits = WindowBits::new(window_bits(value)?)?;
                self.server_bits.replace(Some(bits)).is_some()
            }
            (b"client_max_window_bits", value) => {
                if let Some(value) = value {
                    window_bits(value)?;
                }
                std::mem::replace(&mut self.client_bits, true)
            }
            _ => return None,
        };
        (!repeated).then_some(self)
    }
}

/// 8 to 15, without leading zeros (RFC 7692 section 7.1.2).
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// What is left of the line. White space may stand around everything.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Takes this byte, if it comes next.
    fn eat(&mut self, byte: u8) -> bool {
        let Some(rest) = self.0.trim_ascii_start().strip_prefix(&[byte]) else { return false };
        self.0 = rest.trim_ascii_start();
        true
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| !is_token_char(byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest.trim_ascii_start();
        (!token.is_empty()).then_some(token)
    }

    /// A token, or one in quotes, in which nothing has to be escaped, and is not.
    fn value(&mut self) -> Option<&'a [u8]> {
        let Some(quoted) = self.0.strip_prefix(b"\"") else { return self.token() };
        let end = quoted.iter().position(|&byte| !is_token_char(byte))?;
        let (token, rest) = quoted.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?.trim_ascii_start();
        (!token.is_empty()).then_some(token)
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
const fn is_token_char(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        || byte.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(line: &str) -> Option<Option<DeflateOffer>> {
        first_deflate_offer(line.as_bytes())
    }

    /// What is answered, or that nothing is.
    fn answer(line: &str) -> Option<String> {
        let offer = offer(line).unwrap_or_else(|| panic!("malformed: {line}"))?;
        let mut out = Vec::new();
        offer.write_answer(&mut out);
        String::from_utf8(out).ok()
    }

    const PLAIN: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn whatever_is_offered_no_window_is_taken_over() {
        for line in [
            "permessage-deflate",
            "PerMessage-Deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits = \"15\"",
            "permessage-deflate; server_no_context_takeover ; client_no_context_takeover",
            ", ,permessage-deflate ,",
            "x-webkit-deflate-frame; y=\"z\", permessage-deflate, permessage-deflate; server_max_window_bits=9",
        ] {
            assert_eq!(answer(line).as_deref(), Some(PLAIN), "{line}");
        }
    }

    #[test]
    fn a_bound_for_our_window_is_kept_and_answered() {
        for bits in 9..=15 {
            for value in [bits.to_string(), format!("\"{bits}\"")] {
                let line = format!("permessage-deflate; server_max_window_bits={value}");
                let expected = format!("{PLAIN}; server_max_window_bits={bits}");
                assert_eq!(answer(&line), Some(expected));
                assert_eq!(offer(&line).unwrap().unwrap().window_bits().get(), bits);
            }
        }
        assert_eq!(DeflateOffer::default().window_bits(), WindowBits::MAX);
    }

    #[test]
    fn an_offer_that_we_do_not_do_is_declined_and_the_next_one_taken() {
        for line in [
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=1",
            "permessage-deflate; server_max_window_bits=150",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; level=9",
            "permessage-bzip2",
        ] {
            assert_eq!(answer(line), None, "{line}");
            let followed = format!("{line}, permessage-deflate");
            assert_eq!(answer(&followed).as_deref(), Some(PLAIN), "{followed}");
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_told_apart_from_what_is_declined() {
        for line in ["", ",", " , "] {
            assert_eq!(offer(line), Some(None), "a list of nothing");
        }
        for line in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; ;",
            "permessage-deflate; =",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\" 9\"",
            "permessage-deflate; server_max_window_bits=9\"",
            "permessage-deflate; server_max_window_bits==9",
            "permessage-deflate server_max_window_bits",
            "permessage deflate",
            "permessage-deflate, (x)",
        ] {
            assert_eq!(offer(line), None, "{line}");
        }
    }
}
