//! The opening handshake from our side: what was agreed on, and the answer that says so.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use sha1::{Digest as _, Sha1};

use super::DeflateOffer;

/// A good request for a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// Length of the head. Bytes after it are the first frames: a client should await the answer, one
    /// that did not loses nothing.
    pub head_bytes: usize,
    /// What the connection is for.
    pub route: Route,
    /// permessage-deflate, when it was offered in a form that we do.
    pub deflate: Option<DeflateOffer>,
    /// Where in the head the query string lies, without its `?`; empty when there is none.
    pub query: Range<usize>,
    /// Where in the head the token of `Authorization: Bearer` lies; empty when there is none.
    pub bearer: Range<usize>,
    pub(super) accept: AcceptKey,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The client protocol, in this form.
    Client(Subprotocol),
    /// Echo of every data message; the subprotocol when one of ours was offered.
    Echo(Option<Subprotocol>),
}

/// The form in which a client's messages are written, agreed on in `Sec-WebSocket-Protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// `hawser.v1.proto`: one protobuf message a binary message.
    Proto,
    /// `hawser.v1.json`: one JSON object a text message.
    Json,
}

impl Subprotocol {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proto => "hawser.v1.proto",
            Self::Json => "hawser.v1.json",
        }
    }

    /// Subprotocol names are compared as they are, upper and lower case apart (RFC 6455 section 11.3.4).
    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Proto, Self::Json].into_iter().find(|known| known.name().as_bytes() == name)
    }
}

/// Appends the answer that opens the WebSocket (RFC 6455 section 4.2.2); frames may follow at once.
pub fn write_upgrade(out: &mut Vec<u8>, upgrade: &Upgrade) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept.0);
    let subprotocol = match upgrade.route {
        Route::Client(subprotocol) => Some(subprotocol),
        Route::Echo(subprotocol) => subprotocol,
    };
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.name().as_bytes());
    }
    if let Some(offer) = upgrade.deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        offer.write_answer(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// `Sec-WebSocket-Accept`: base64 of a SHA-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AcceptKey([u8; ACCEPT_KEY_BYTES]);

const ACCEPT_KEY_BYTES: usize = 28;

impl AcceptKey {
    /// The answer to this `Sec-WebSocket-Key` (RFC 6455 section 4.2.2); `None` when it is not 16 bytes in
    /// base64. Set bits after the last byte are let pass: they are wrong, and harmless.
    pub(super) fn answering(key: &[u8]) -> Option<Self> {
        const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
        );
        let mut nonce = [0; 18];
        if key.len() != 24 || LENIENT.decode_slice(key, &mut nonce) != Ok(16) {
            return None;
        }
        let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let mut accept = [0; ACCEPT_KEY_BYTES];
        let written = STANDARD.encode_slice(digest, &mut accept);
        debug_assert_eq!(written, Ok(ACCEPT_KEY_BYTES));
        Some(Self(accept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 6455 section 1.3.
    const KEY: &[u8] = b"dGhlIHNhbXBsZSBub25jZQ==";

    fn answer(route: Route, deflate: Option<DeflateOffer>) -> String {
        let accept = AcceptKey::answering(KEY).unwrap();
        let mut out = Vec::new();
        let upgrade = Upgrade { head_bytes: 0, route, deflate, query: 0..0, bearer: 0..0, accept };
        write_upgrade(&mut out, &upgrade);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_answer_holds_the_accept_value_of_section_1_3_and_the_chosen_subprotocol() {
        let expected = "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Protocol: hawser.v1.json\r\n\r\n";
        assert_eq!(answer(Route::Client(Subprotocol::Json), None), expected);
    }

    #[test]
    fn without_a_subprotocol_the_answer_names_none() {
        assert!(answer(Route::Echo(None), None).ends_with("xOo=\r\n\r\n"));
    }

    #[test]
    fn an_offer_of_deflate_that_was_taken_is_answered() {
        let answer = answer(Route::Echo(None), Some(DeflateOffer::default()));
        let line = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert!(answer.ends_with(&format!("\r\n{line}\r\n\r\n")), "{answer}");
    }

    #[test]
    fn a_key_is_16_bytes_in_base64() {
        assert!(AcceptKey::answering(b"AAAAAAAAAAAAAAAAAAAAAB==").is_some(), "trailing bits");
        for key in
            ["", "dGhlIHNhbXBsZSBub25j", "dGhlIHNhbXBsZSBub25jZQAA", "dGhlIHNhbXBsZSBub25*ZQ=="]
        {
            assert_eq!(AcceptKey::answering(key.as_bytes()), None, "{key}");
        }
    }
}
