//! The HTTP side of a WebSocket client: the request, and the judgement of the answer (RFC 6455 section 4.1).

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};

use crate::target::Target;

/// Longest answer head that is taken, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most header fields that are taken.
const HEADERS_MAX: usize = 64;
/// Length of a key: 16 bytes in base64.
const KEY_BYTES: usize = 24;
/// What RFC 6455 section 1.3 has both sides append to the key.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The nonce of one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key([u8; KEY_BYTES]);

impl Key {
    /// From 16 random bytes; a load client may take them from any generator.
    pub(crate) fn new(nonce: u128) -> Self {
        let mut key = [0; KEY_BYTES];
        let written = BASE64.encode_slice(nonce.to_be_bytes(), &mut key);
        debug_assert_eq!(written, Ok(KEY_BYTES));
        Self(key)
    }
}

/// What the server has to answer in `Sec-WebSocket-Accept`.
pub(crate) fn accept(key: &[u8]) -> String {
    BASE64.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize())
}

/// Appends the request head.
pub(crate) fn write_request(
    out: &mut Vec<u8>,
    target: &Target,
    subprotocol: Option<&str>,
    key: Key,
) {
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(target.path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(target.host.as_bytes());
    out.extend_from_slice(b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ");
    out.extend_from_slice(&key.0);
    out.extend_from_slice(b"\r\nSec-WebSocket-Version: 13\r\n");
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Why an answer was not an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeError {
    /// Not HTTP, or a head over [`HEAD_BYTES_MAX`].
    NotHttp,
    /// An HTTP answer other than 101; `retry_after` when it says in seconds when to come back.
    Status { code: u16, reason: String, retry_after: Option<Duration> },
    /// 101 without what RFC 6455 section 4.1 asks for; names the header.
    Header(&'static str),
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp => f.write_str("the answer to the upgrade is not HTTP"),
            Self::Status { code, reason, .. } => {
                write!(f, "the upgrade was answered {code} {reason}")
            }
            Self::Header(name) => write!(f, "the upgrade was answered with a wrong {name}"),
        }
    }
}

/// Reads the answer head at the front of `input`.
///
/// Returns its length, or `None` when `input` ends too early.
///
/// # Errors
/// [`UpgradeError`] as soon as it is clear that there will be no WebSocket here.
pub(crate) fn read_answer(
    input: &[u8],
    subprotocol: Option<&str>,
    key: Key,
) -> Result<Option<usize>, UpgradeError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let taken = match answer.parse(input) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(UpgradeError::NotHttp),
    };
    let code = answer.code.unwrap_or_default();
    let header = |name: &str| {
        let found = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    if code != 101 {
        let reason = answer.reason.unwrap_or_default().to_owned();
        let seconds = header("Retry-After").and_then(|value| value.parse::<u32>().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        return Err(UpgradeError::Status { code, reason, retry_after });
    }
    let says = |name: &'static str, good: &dyn Fn(&str) -> bool| match header(name) {
        Some(value) if good(value) => Ok(()),
        _ => Err(UpgradeError::Header(name)),
    };
    says("Upgrade", &|value| value.eq_ignore_ascii_case("websocket"))?;
    says("Connection", &|value| {
        value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    })?;
    says("Sec-WebSocket-Accept", &|value| value == accept(&key.0))?;
    if header("Sec-WebSocket-Protocol") != subprotocol {
        return Err(UpgradeError::Header("Sec-WebSocket-Protocol"));
    }
    if header("Sec-WebSocket-Extensions").is_some() {
        return Err(UpgradeError::Header("Sec-WebSocket-Extensions"));
    }
    Ok(Some(taken))
}

/// A test's server reads a request from `stream`; `ACCEPT` in `answer` becomes what the request's key asks for.
#[cfg(test)]
pub(crate) fn answer_to(stream: &mut impl std::io::Read, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap();
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split('\r').next().unwrap();
    answer.replace("ACCEPT", &accept(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 6455 section 1.3: "the sample nonce".
    fn sample_key() -> Key {
        Key::new(u128::from_be_bytes(*b"the sample nonce"))
    }

    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: \
        Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: \
        chat\r\n\r\n";

    #[test]
    fn the_request_is_the_one_of_section_1_2() {
        let mut out = Vec::new();
        let target = "ws://127.0.0.1:9/chat".parse().unwrap();
        write_request(&mut out, &target, Some("chat"), sample_key());
        let expected = "GET /chat HTTP/1.1\r\nHost: 127.0.0.1:9\r\nUpgrade: websocket\r\nConnection: \
            Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: \
            13\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_answer_of_section_1_3_is_taken_once_it_is_whole() {
        for cut in 0..ANSWER.len() {
            assert_eq!(read_answer(&ANSWER[..cut], Some("chat"), sample_key()), Ok(None), "{cut}");
        }
        let with_rest = [ANSWER, b"\x81\x00"].concat();
        assert_eq!(read_answer(&with_rest, Some("chat"), sample_key()), Ok(Some(ANSWER.len())));
    }

    #[test]
    fn refusals_and_wrong_answers_are_told_apart() {
        let busy = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n";
        let error = read_answer(busy, None, sample_key()).unwrap_err();
        assert_eq!(error.to_string(), "the upgrade was answered 503 Service Unavailable");
        let UpgradeError::Status { retry_after, .. } = error else { panic!("{error:?}") };
        assert_eq!(retry_after, Some(Duration::from_secs(1)));
        let error = read_answer(b"\x16\x03\x01\x02", None, sample_key()).unwrap_err();
        assert_eq!(error, UpgradeError::NotHttp);
        let error = read_answer(&[b'H'; HEAD_BYTES_MAX], None, sample_key()).unwrap_err();
        assert_eq!(error, UpgradeError::NotHttp);
        let error = read_answer(ANSWER, Some("chat"), Key::new(1)).unwrap_err();
        assert_eq!(error, UpgradeError::Header("Sec-WebSocket-Accept"));
        let error = read_answer(ANSWER, None, sample_key()).unwrap_err();
        assert_eq!(error, UpgradeError::Header("Sec-WebSocket-Protocol"));
    }
}
