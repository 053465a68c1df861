//! Request head to decision: upgrade, refuse, or wait for more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use httparse::{EMPTY_HEADER, Header, Request, Status};
use sha1::{Digest as _, Sha1};

use super::{HEAD_BYTES_MAX, HEADERS_MAX, Refusal};

/// Where WebSockets are spoken.
#[derive(Debug, Clone)]
pub struct Routes {
    /// The client protocol.
    pub client_path: String,
    /// Every message is given back.
    pub echo_path: Option<String>,
}

/// The client protocol's two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// `hawser.v1.proto`
    Proto,
    /// `hawser.v1.json`
    Json,
}

impl Subprotocol {
    /// As in Sec-WebSocket-Protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proto => "hawser.v1.proto",
            Self::Json => "hawser.v1.json",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Proto, Self::Json].into_iter().find(|subprotocol| subprotocol.name() == name)
    }
}

/// Which service was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The client protocol, in this form.
    Client(Subprotocol),
    /// The echo, under a subprotocol that the client offered, or none.
    Echo(Option<Subprotocol>),
}

/// A request that is to be upgraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Where the head ends and frames begin.
    pub head_bytes: usize,
    /// Which service.
    pub route: Route,
    /// Value of Sec-WebSocket-Accept (RFC 6455 section 4.2.2).
    accept: [u8; 28],
}

/// What to do with the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for more.
    Incomplete,
    /// Answer with [`write_upgrade`].
    Upgrade(Upgrade),
    /// Answer with [`Refusal::write`] and close.
    Refused(Refusal),
}

/// Reads the request head from all bytes collected so far, of which the first `scanned` were looked at before.
///
/// Parses only when the head's end has come or it is too long, so a client that sends a byte at a time costs
/// one look at each byte.
#[must_use]
pub fn read_head(input: &[u8], scanned: usize, routes: &Routes) -> Outcome {
    let from = scanned.saturating_sub(3);
    let end = input.get(from..).and_then(find_end).map(|at| from + at);
    match end {
        Some(end) if end <= HEAD_BYTES_MAX => match read_whole(&input[..end], routes) {
            Ok(upgrade) => Outcome::Upgrade(upgrade),
            Err(refusal) => Outcome::Refused(refusal),
        },
        None if input.len() <= HEAD_BYTES_MAX && looks_like_http(input) => Outcome::Incomplete,
        None if input.len() <= HEAD_BYTES_MAX => Outcome::Refused(malformed()),
        Some(_) | None => {
            Outcome::Refused(Refusal::new(431, "the request head is longer than 16 KiB"))
        }
    }
}

/// Writes the answer that ends the handshake (RFC 6455 section 4.2.2).
pub fn write_upgrade(out: &mut Vec<u8>, upgrade: &Upgrade) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    let subprotocol = match upgrade.route {
        Route::Client(subprotocol) => Some(subprotocol),
        Route::Echo(subprotocol) => subprotocol,
    };
    if let Some(subprotocol) = subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.name().as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

fn malformed() -> Refusal {
    Refusal::new(400, "not an HTTP/1.1 request head")
}

/// Index behind the empty line.
fn find_end(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4)
}

/// Whether the first bytes can begin a request: what speaks TLS or something else by mistake is told at once
/// instead of after the deadline.
fn looks_like_http(input: &[u8]) -> bool {
    input
        .iter()
        .take(8)
        .take_while(|byte| **byte != b' ')
        .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn read_whole(head: &[u8], routes: &Routes) -> Result<Upgrade, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(bytes)) if bytes == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, "more than 64 header lines"));
        }
        Err(httparse::Error::Version) => return Err(Refusal::new(505, "HTTP/1.1 is spoken here")),
        Ok(_) | Err(_) => return Err(malformed()),
    }
    if request.version != Some(1) {
        return Err(Refusal::new(505, "HTTP/1.1 is spoken here"));
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _query)| path);
    let echo = routes.echo_path.as_deref() == Some(path);
    if !echo && path != routes.client_path {
        return Err(Refusal::new(404, "there is nothing at this path"));
    }
    if request.method != Some("GET") {
        return Err(Refusal::method());
    }
    let fields = Fields(request.headers);
    fields.only("host")?.ok_or(Refusal::new(400, "the Host header is missing"))?;
    if fields.all("transfer-encoding").next().is_some()
        || fields.only("content-length")?.is_some_and(|length| length != "0")
    {
        return Err(Refusal::new(400, "a request that upgrades has no body"));
    }
    if !fields.lists("upgrade", "websocket") || !fields.lists("connection", "upgrade") {
        return Err(Refusal::upgrade_required());
    }
    if fields.only("sec-websocket-version")? != Some("13") {
        return Err(Refusal::version());
    }
    let key = fields.only("sec-websocket-key")?.unwrap_or_default();
    if key.len() != 24 || BASE64.decode(key).ok().is_none_or(|bytes| bytes.len() != 16) {
        return Err(Refusal::new(400, "Sec-WebSocket-Key has to be 16 bytes in base64"));
    }
    let offered = fields.items("sec-websocket-protocol").find_map(Subprotocol::from_name);
    let route = if echo {
        Route::Echo(offered)
    } else {
        Route::Client(offered.ok_or(Refusal::new(
            400,
            "Sec-WebSocket-Protocol has to offer hawser.v1.proto or hawser.v1.json",
        ))?)
    };
    Ok(Upgrade { head_bytes: head.len(), route, accept: accept(key) })
}

/// RFC 6455 section 4.2.2, step 5.4.
fn accept(key: &str) -> [u8; 28] {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; 28];
    let written = BASE64.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(28));
    accept
}

struct Fields<'h>(&'h [Header<'h>]);

impl<'h> Fields<'h> {
    /// Values of every line of this name; one that is not text cannot be what we look for.
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'h str> + use<'h> {
        let headers = self.0;
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| std::str::from_utf8(header.value).unwrap_or("\u{fffd}").trim())
    }

    /// The value of a line that may stand once.
    fn only(&self, name: &'static str) -> Result<Option<&'h str>, Refusal> {
        let mut all = self.all(name);
        let first = all.next();
        if all.next().is_some() {
            return Err(Refusal::new(400, "a header that may stand once stands twice"));
        }
        Ok(first)
    }

    /// The items of a list, over all lines of this name (RFC 9110 section 5.6.1).
    fn items(&self, name: &'static str) -> impl Iterator<Item = &'h str> + use<'h> {
        self.all(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|item| !item.is_empty())
    }

    fn lists(&self, name: &'static str, token: &str) -> bool {
        self.items(name).any(|item| item.eq_ignore_ascii_case(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[&str] = &[
        "GET /ws?token=x HTTP/1.1",
        "Host: edge.example",
        "Upgrade: WebSocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat, hawser.v1.json",
        "Sec-WebSocket-Protocol: hawser.v1.proto",
    ];

    fn routes() -> Routes {
        Routes { client_path: "/ws".into(), echo_path: Some("/echo".into()) }
    }

    fn head(lines: &[&str]) -> Vec<u8> {
        (lines.join("\r\n") + "\r\n\r\n").into_bytes()
    }

    /// The good head with the line that starts like `line` replaced, or `line` added.
    fn with(line: &str) -> Vec<u8> {
        let name = line.split_once([':', ' ']).map_or(line, |(name, _)| name);
        let mut lines: Vec<&str> = GOOD.iter().copied().filter(|l| !l.starts_with(name)).collect();
        if name == "GET" || !GOOD[0].starts_with(name) && line.contains(" HTTP/") {
            lines.retain(|l| !l.contains(" HTTP/"));
            lines.insert(0, line);
        } else {
            lines.push(line);
        }
        head(&lines)
    }

    fn without(name: &str) -> Vec<u8> {
        head(&GOOD.iter().copied().filter(|l| !l.starts_with(name)).collect::<Vec<_>>())
    }

    fn status(head: &[u8]) -> u16 {
        match read_head(head, 0, &routes()) {
            Outcome::Refused(refusal) => refusal.status,
            Outcome::Upgrade(_) => 101,
            Outcome::Incomplete => 0,
        }
    }

    #[test]
    fn the_accept_value_of_section_1_3_comes_out() {
        assert_eq!(&accept("dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_good_head_upgrades_wherever_it_is_cut_and_what_follows_is_left() {
        let mut input = head(GOOD);
        let head_bytes = input.len();
        input.extend_from_slice(b"frames");
        for cut in 0..head_bytes {
            assert_eq!(read_head(&input[..cut], 0, &routes()), Outcome::Incomplete, "cut at {cut}");
            let Outcome::Upgrade(upgrade) = read_head(&input, cut, &routes()) else {
                panic!("{cut}")
            };
            assert_eq!(upgrade.head_bytes, head_bytes);
            assert_eq!(upgrade.route, Route::Client(Subprotocol::Json));
        }
    }

    #[test]
    fn the_answer_names_the_chosen_subprotocol() {
        let Outcome::Upgrade(upgrade) = read_head(&head(GOOD), 0, &routes()) else { panic!() };
        let mut out = Vec::new();
        write_upgrade(&mut out, &upgrade);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Protocol: hawser.v1.json\r\n\r\n"
        );
    }

    #[test]
    fn the_echo_asks_for_no_subprotocol() {
        let lines: Vec<&str> = GOOD[1..6].to_vec();
        let lines: Vec<&str> = std::iter::once("GET /echo HTTP/1.1").chain(lines).collect();
        let Outcome::Upgrade(upgrade) = read_head(&head(&lines), 0, &routes()) else { panic!() };
        assert_eq!(upgrade.route, Route::Echo(None));
    }

    #[test]
    fn every_fault_has_its_status() {
        for (bytes, expected) in [
            (with("GET /nowhere HTTP/1.1"), 404),
            (with("GET / HTTP/1.1"), 404),
            (with("POST /ws HTTP/1.1"), 405),
            (with("GET /ws HTTP/1.0"), 505),
            (with("GET /ws HTTP/2.0"), 505),
            (with("GET  /ws  HTTP/1.1"), 400),
            (with("GET /ws"), 400),
            (without("Host"), 400),
            (with("Content-Length: 5"), 400),
            (with("Transfer-Encoding: chunked"), 400),
            (with("Content-Length: 0"), 101),
            (without("Upgrade"), 426),
            (with("Upgrade: h2c"), 426),
            (without("Connection"), 426),
            (with("Connection: close"), 426),
            (without("Sec-WebSocket-Version"), 426),
            (with("Sec-WebSocket-Version: 8"), 426),
            (without("Sec-WebSocket-Key"), 400),
            (with("Sec-WebSocket-Key: c2hvcnQ="), 400),
            (with("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!!!"), 400),
            (without("Sec-WebSocket-Protocol"), 400),
            (with("Sec-WebSocket-Protocol: chat"), 400),
            (with("Bad Header: x"), 400),
            (b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), 400),
            (b"\r\n\r\n".to_vec(), 400),
        ] {
            assert_eq!(status(&bytes), expected, "{}", String::from_utf8_lossy(&bytes));
        }
        for twice in ["Host: other", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="] {
            let lines: Vec<&str> = GOOD.iter().copied().chain([twice]).collect();
            assert_eq!(status(&head(&lines)), 400, "{twice}");
        }
    }

    #[test]
    fn heads_that_do_not_end_or_hold_too_much_are_431() {
        let many: Vec<String> = (0..70).map(|n| format!("X-{n}: y")).collect();
        let lines: Vec<&str> =
            GOOD.iter().copied().chain(many.iter().map(String::as_str)).collect();
        assert_eq!(status(&head(&lines)), 431);
        let mut endless = b"GET /ws HTTP/1.1\r\nX: ".to_vec();
        endless.resize(HEAD_BYTES_MAX, b'a');
        assert_eq!(status(&endless), 0);
        endless.push(b'a');
        assert_eq!(status(&endless), 431);
        endless.extend_from_slice(b"\r\n\r\n");
        assert_eq!(status(&endless), 431);
    }

    #[test]
    fn refusals_are_whole_answers_with_the_header_that_their_status_asks_for() {
        for (refusal, header) in [
            (Refusal::method(), "Allow: GET\r\n"),
            (Refusal::version(), "Sec-WebSocket-Version: 13\r\n"),
            (Refusal::upgrade_required(), "Upgrade: websocket\r\n"),
            (Refusal::overloaded(), "Retry-After: 5\r\n"),
        ] {
            let mut out = Vec::new();
            refusal.write(&mut out);
            let answer = String::from_utf8(out).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {} ", refusal.status)), "{answer}");
            assert!(
                answer.contains(header) && answer.contains("Connection: close\r\n"),
                "{answer}"
            );
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
        }
    }
}
