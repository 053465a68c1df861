//! Request head to upgrade or refusal (RFC 9112 sections 2 to 5, RFC 6455 section 4.2.1).
//!
//! Reads in two steps: [`find_end`] looks at each byte once, as it comes, for the empty line and for
//! what already cannot become a head; httparse then parses the whole head, once.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::extensions::{self, DeflateOffer};
use super::token::bearer;
use super::upgrade::AcceptKey;
use super::{
    AllowedOrigin, HEAD_BYTES_MAX, HEADERS_MAX, REQUEST_LINE_BYTES_MAX, Refusal, Route,
    Subprotocol, Upgrade,
};

/// Which paths are served and for which pages, and what is agreed to there.
#[derive(Clone, Debug)]
pub struct Routes {
    /// Where clients connect.
    pub client_path: String,
    /// Where every data message is given back; `None`: nowhere.
    pub echo_path: Option<String>,
    /// Whether permessage-deflate is done with those who offer it.
    pub deflate: bool,
    /// Pages that may connect; empty: any.
    pub origins: Vec<AllowedOrigin>,
}

/// What has arrived amounts to this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a whole head yet: call again with more.
    Incomplete,
    /// A request that is to be answered with `write_upgrade`.
    Upgrade(Upgrade),
    /// A request that is to be answered with [`Refusal::write`]; then close.
    Refused(Refusal),
}

/// Reads a request head from `input`, everything that has arrived so far, of which the first `scanned`
/// bytes were given before.
///
/// Looks at each byte once, and parses once, when the end has come: a head that arrives byte by byte
/// costs little more than one in a piece. What cannot become a head is refused as soon as that shows. How
/// the bytes were cut makes no difference. Looks at no more than [`HEAD_BYTES_MAX`] bytes.
#[must_use]
pub fn read_head(input: &[u8], scanned: usize, routes: &Routes) -> Outcome {
    let read = find_end(input, scanned).and_then(|end| match end {
        Some(end) => parse(&input[..end], routes).map(Some),
        None => Ok(None),
    });
    match read {
        Ok(Some(upgrade)) => Outcome::Upgrade(upgrade),
        Ok(None) => Outcome::Incomplete,
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// Looks for the empty line that ends the head, from `scanned` on, and returns where the head ends.
fn find_end(input: &[u8], scanned: usize) -> Result<Option<usize>, Refusal> {
    let leading_bytes = leading_bytes(input);
    let line_end_max = leading_bytes + REQUEST_LINE_BYTES_MAX + "\r".len();
    for (at, &byte) in input.iter().enumerate().take(HEAD_BYTES_MAX).skip(scanned) {
        match byte {
            b'\n' if input[..at].ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
            // A lone line feed may be taken for a line end (RFC 9112 section 2.2). No client sends it,
            // and two readers that differ on it can be played against each other.
            b'\n' if !input[..at].ends_with(b"\r") => return Err(Refusal::MALFORMED),
            b'\n' | b'\r' | b'\t' | b' '..=b'~' | 0x80.. => {}
            _control => return Err(Refusal::MALFORMED),
        }
        if at == line_end_max && !input[leading_bytes..=at].contains(&b'\n') {
            return Err(Refusal::REQUEST_LINE_TOO_LONG);
        }
    }
    if input.len() >= HEAD_BYTES_MAX { Err(Refusal::HEAD_TOO_LONG) } else { Ok(None) }
}

/// One empty line before the request is passed over (RFC 9112 section 2.2).
fn leading_bytes(head: &[u8]) -> usize {
    if head.starts_with(b"\r\n") { 2 } else { 0 }
}

/// Parses a whole head and judges the request.
fn parse(head: &[u8], routes: &Routes) -> Result<Upgrade, Refusal> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(Refusal::MALFORMED),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TOO_MANY_HEADERS),
        Err(httparse::Error::Version) => return parse_other_version(head, routes),
        Err(_) => return Err(Refusal::MALFORMED),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Refusal::MALFORMED);
    };
    if version == 0 {
        return Err(Refusal::VERSION);
    }
    let fields = Fields::gather(request.headers, routes.deflate)?;
    if method == "HEAD" {
        return Err(Refusal::METHOD_HEAD);
    }
    let (path, query) = split_target(target);
    let (route, accept) = fields.judge(method, path, routes)?;

    let target_end = leading_bytes(head) + method.len() + " ".len() + target.len();
    let query = target_end - query.len()..target_end;
    let bearer = fields.bearer()?.map_or(0..0, |token| place_of(token, head));
    let deflate = fields.deflate;
    Ok(Upgrade { head_bytes: head.len(), accept, route, deflate, query, bearer })
}

/// Where `part`, a slice of `head`, lies in it.
fn place_of(part: &[u8], head: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    debug_assert!(start + part.len() <= head.len());
    start..start + part.len()
}

/// A version that httparse does not know: HTTP/1.2 and up are read as 1.1 (RFC 9110 section 2.5).
#[cold]
fn parse_other_version(head: &[u8], routes: &Routes) -> Result<Upgrade, Refusal> {
    let start = leading_bytes(head);
    let line_bytes = head[start..].iter().position(|&byte| byte == b'\r');
    let line_end = start + line_bytes.ok_or(Refusal::MALFORMED)?;
    let mut words = head[start..line_end].split(|&byte| byte == b' ');
    match (words.nth(2), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']), None) => {
            let mut head = head.to_vec();
            head[line_end - 1] = b'1';
            parse(&head, routes)
        }
        (Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']), None) => {
            Err(Refusal::VERSION)
        }
        _ => Err(Refusal::MALFORMED),
    }
}

/// Splits a request target into path and query (RFC 9112 sections 3.2.1 and 3.2.2: a server has to
/// take the absolute form, too).
fn split_target(target: &str) -> (&str, &str) {
    let path_and_query = match target.split_once("://") {
        Some((_scheme, rest)) if !target.starts_with('/') => {
            rest.find(['/', '?']).map_or("", |at| &rest[at..])
        }
        _ => target,
    };
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    (if path.is_empty() { "/" } else { path }, query)
}

/// What the headers say, as far as it matters here.
#[derive(Default)]
struct Fields<'a> {
    upgrade_websocket: bool,
    connection_upgrade: bool,
    version: Once<'a>,
    key: Once<'a>,
    authorization: Once<'a>,
    origin: Once<'a>,
    /// The first one offered that we speak.
    subprotocol: Option<Subprotocol>,
    /// The first offer of permessage-deflate that we do.
    deflate: Option<DeflateOffer>,
    has_body: bool,
}

/// A header that is to come once.
#[derive(Clone, Copy, Default)]
enum Once<'a> {
    #[default]
    Missing,
    Value(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Missing => Self::Value(value),
            Self::Value(_) | Self::Repeated => Self::Repeated,
        };
    }
}

impl<'a> Fields<'a> {
    /// Takes what matters from the header lines; refuses what RFC 9112 wants refused on any path.
    fn gather(headers: &[httparse::Header<'a>], deflate: bool) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let mut host = Once::Missing;
        for header in headers {
            let value = header.value.trim_ascii();
            let named = |name: &str| header.name.eq_ignore_ascii_case(name);
            if named("Host") {
                host.add(value);
            } else if named("Upgrade") {
                fields.upgrade_websocket |= lists(value, b"websocket");
            } else if named("Connection") {
                fields.connection_upgrade |= lists(value, b"upgrade");
            } else if named("Sec-WebSocket-Key") {
                fields.key.add(value);
            } else if named("Sec-WebSocket-Version") {
                fields.version.add(value);
            } else if named("Sec-WebSocket-Protocol") {
                let offered = || items(value).find_map(Subprotocol::from_name);
                fields.subprotocol = fields.subprotocol.or_else(offered);
            } else if deflate && named("Sec-WebSocket-Extensions") {
                let offer = extensions::first_deflate_offer(value).ok_or(Refusal::EXTENSIONS)?;
                fields.deflate = fields.deflate.or(offer);
            } else if named("Authorization") {
                fields.authorization.add(value);
            } else if named("Origin") {
                fields.origin.add(value);
            } else if named("Transfer-Encoding") {
                fields.has_body = true;
            } else if named("Content-Length") {
                fields.has_body |= value != b"0";
            }
        }
        match host {
            Once::Value(host) if is_host(host) => Ok(fields),
            Once::Value(_) | Once::Missing | Once::Repeated => Err(Refusal::HOST),
        }
    }

    /// The token in Authorization, when one is there.
    fn bearer(&self) -> Result<Option<&'a [u8]>, Refusal> {
        match self.authorization {
            Once::Missing => Ok(None),
            Once::Value(value) => Ok(bearer(value)),
            Once::Repeated => Err(Refusal::TOKENS),
        }
    }

    /// Whether a page may connect. A program that is no browser sends no Origin.
    fn judge_origin(&self, allowed: &[AllowedOrigin]) -> Result<(), Refusal> {
        let admitted = match self.origin {
            Once::Missing => true,
            Once::Value(origin) => allowed.iter().any(|entry| entry.admits(origin)),
            Once::Repeated => false,
        };
        if admitted || allowed.is_empty() { Ok(()) } else { Err(Refusal::ORIGIN) }
    }

    /// The checks of RFC 6455 section 4.2.1, and ours, in the order in which a person would want to
    /// hear of them.
    fn judge(
        &self,
        method: &str,
        path: &str,
        routes: &Routes,
    ) -> Result<(Route, AcceptKey), Refusal> {
        let is_client = path == routes.client_path;
        if !is_client && routes.echo_path.as_deref() != Some(path) {
            return Err(Refusal::PATH);
        }
        if method != "GET" {
            return Err(Refusal::METHOD);
        }
        if self.has_body {
            return Err(Refusal::BODY);
        }
        self.judge_origin(&routes.origins)?;
        if !(self.upgrade_websocket && self.connection_upgrade) {
            return Err(Refusal::UPGRADE);
        }
        if !matches!(self.version, Once::Value(b"13")) {
            return Err(Refusal::WEBSOCKET_VERSION);
        }
        let accept = match self.key {
            Once::Value(key) => AcceptKey::answering(key).ok_or(Refusal::KEY)?,
            Once::Missing | Once::Repeated => return Err(Refusal::KEY),
        };
        let route = match (is_client, self.subprotocol) {
            (true, Some(subprotocol)) => Route::Client(subprotocol),
            (true, None) => return Err(Refusal::SUBPROTOCOL),
            (false, subprotocol) => Route::Echo(subprotocol),
        };
        Ok((route, accept))
    }
}

/// The items of a comma-separated list (RFC 9110 section 5.6.1).
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn lists(list: &[u8], token: &[u8]) -> bool {
    items(list).any(|item| item.eq_ignore_ascii_case(token))
}

/// Rough form of `uri-host [":" port]` (RFC 9110 section 7.2): what would end a host is not in it.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\,\"<>^`{|}".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request of RFC 6455 section 1.3, offering our subprotocols.
    const GOOD: &str = "GET /ws?token=t HTTP/1.1\r\n\
        Host: server.example.com\r\n\
        Upgrade: websocket\r\n\
        Connection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://example.com\r\n\
        Sec-WebSocket-Protocol: chat, hawser.v1.json, hawser.v1.proto\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    fn routes() -> Routes {
        Routes {
            client_path: "/ws".into(),
            echo_path: Some("/echo".into()),
            deflate: true,
            origins: Vec::new(),
        }
    }

    /// Reads in a piece and byte by byte, which has to come to the same.
    fn read(input: &[u8]) -> Outcome {
        let whole = read_head(input, 0, &routes());
        let single = (1..=input.len())
            .map(|end| read_head(&input[..end], end - 1, &routes()))
            .find(|outcome| *outcome != Outcome::Incomplete);
        assert_eq!(single.unwrap_or(Outcome::Incomplete), whole, "byte by byte");
        whole
    }

    fn upgrade(head: &str) -> Upgrade {
        let outcome = read(head.as_bytes());
        let Outcome::Upgrade(upgrade) = outcome else { panic!("{outcome:?} for {head}") };
        upgrade
    }

    fn refusal(head: &str) -> Refusal {
        let outcome = read(head.as_bytes());
        let Outcome::Refused(refusal) = outcome else { panic!("{outcome:?} for {head}") };
        refusal
    }

    /// The good request with one place of it changed.
    fn with(old: &str, new: &str) -> String {
        assert!(GOOD.contains(old), "{old}");
        GOOD.replacen(old, new, 1)
    }

    #[test]
    fn the_request_of_section_1_3_is_upgraded() {
        let upgrade = upgrade(GOOD);
        assert_eq!(Some(upgrade.accept), AcceptKey::answering(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(upgrade.head_bytes, GOOD.len());
        assert_eq!(&GOOD[upgrade.query], "token=t");
        assert_eq!(upgrade.route, Route::Client(Subprotocol::Json));
    }

    #[test]
    fn a_head_is_incomplete_at_every_cut_and_leaves_the_frames_behind_it() {
        for cut in 0..GOOD.len() {
            assert_eq!(read(&GOOD.as_bytes()[..cut]), Outcome::Incomplete, "cut at {cut}");
        }
        let followed = [GOOD.as_bytes(), b"\x81\x85\0\0\0\0\r\n\r\n"].concat();
        let Outcome::Upgrade(upgrade) = read(&followed) else { panic!() };
        assert_eq!(upgrade.head_bytes, GOOD.len());
    }

    #[test]
    fn tokens_are_found_in_any_case_in_lists_and_over_several_lines() {
        upgrade(&with("Upgrade: websocket", "uPGRADE:\th2c ,WebSocket"));
        upgrade(&with("Connection: Upgrade", "Connection: keep-alive\r\nconnection: ,, UPGRADE ,"));
        let lines = "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: hawser.v1.proto";
        let head = with("Sec-WebSocket-Protocol: chat, hawser.v1.json, hawser.v1.proto", lines);
        assert_eq!(upgrade(&head).route, Route::Client(Subprotocol::Proto));
    }

    #[test]
    fn every_form_of_target_and_minor_version_is_taken() {
        let absolute = with("/ws?token=t", "HTTP://server.example.com/ws?token=t://x");
        assert_eq!(&absolute[upgrade(&absolute).query], "token=t://x");
        let none = with("?token=t", "");
        assert_eq!(&none[upgrade(&none).query], "");
        let newer = with("HTTP/1.1", "HTTP/1.7");
        assert_eq!(&newer[upgrade(&newer).query], "token=t");
        let late = ["\r\n", GOOD].concat();
        assert_eq!(&late[upgrade(&late).query], "token=t");
        upgrade(&with("Origin: http://example.com", "Content-Length: 0"));
    }

    #[test]
    fn deflate_is_agreed_to_where_it_is_offered_and_switched_on() {
        let offers = |lines: &str| with("Origin: http://example.com", lines);
        let offered = offers("Sec-WebSocket-Extensions: permessage-deflate");
        assert_eq!(upgrade(&offered).deflate, Some(DeflateOffer::default()));
        assert_eq!(upgrade(GOOD).deflate, None);
        let second = "Sec-WebSocket-Extensions: permessage-deflate; x\r\nsec-websocket-extensions: permessage-deflate";
        assert_eq!(upgrade(&offers(second)).deflate, Some(DeflateOffer::default()));

        let malformed = offers("Sec-WebSocket-Extensions: permessage-deflate; =");
        assert_eq!(refusal(&malformed), Refusal::EXTENSIONS);
        let off = Routes { deflate: false, ..routes() };
        for head in [offered, malformed] {
            let outcome = read_head(head.as_bytes(), 0, &off);
            assert!(matches!(outcome, Outcome::Upgrade(Upgrade { deflate: None, .. })));
        }
    }

    #[test]
    fn the_echo_path_needs_no_subprotocol_and_exists_only_when_named() {
        let echo = with("/ws?token=t", "/echo");
        assert_eq!(upgrade(&echo).route, Route::Echo(Some(Subprotocol::Json)));
        let plain = echo.replace("hawser", "other");
        assert_eq!(upgrade(&plain).route, Route::Echo(None));
        let no_echo = Routes { echo_path: None, ..routes() };
        let outcome = read_head(plain.as_bytes(), 0, &no_echo);
        assert_eq!(outcome, Outcome::Refused(Refusal::PATH));
    }

    #[test]
    fn a_page_connects_when_its_origin_is_on_the_list_or_there_is_no_list() {
        let listed = |list: &[&str], head: &str| {
            let origins = list.iter().map(|entry| entry.parse().unwrap()).collect();
            match read_head(head.as_bytes(), 0, &Routes { origins, ..routes() }) {
                Outcome::Upgrade(_) => true,
                Outcome::Refused(refusal) => {
                    assert_eq!(refusal, Refusal::ORIGIN);
                    false
                }
                Outcome::Incomplete => panic!("{head}"),
            }
        };
        let none = with("Origin: http://example.com\r\n", "");
        let twice = with("Origin: ", "Origin: http://example.com\r\nOrigin: ");
        assert!(listed(&[], GOOD) && listed(&[], &none) && listed(&[], &twice));
        let list = &["https://a.example", "http://example.com"][..];
        assert!(listed(list, GOOD) && listed(list, &none) && !listed(list, &twice));
        assert!(!listed(&["https://*.example.com"], GOOD));
        assert!(!listed(list, &with("http://example.com", "http://example.com.evil.example")));
        assert!(!listed(list, &with("/ws", "/echo").replace("http://example.com", "null")));
    }

    #[test]
    fn every_fault_has_its_refusal() {
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let version = "Sec-WebSocket-Version: 13";
        let host = "Host: server.example.com\r\n";
        let cases = [
            (with("GET /ws?token=t HTTP/1.1", "GET /ws"), Refusal::MALFORMED),
            (with("GET /ws?token=t HTTP/1.1", "GET /w s HTTP/1.1"), Refusal::MALFORMED),
            (with("GET", "G(T"), Refusal::MALFORMED),
            (with("Upgrade: ", "Upgrade : "), Refusal::MALFORMED),
            (with("Origin: ", "Origin "), Refusal::MALFORMED),
            (with("Origin: ", " Origin: "), Refusal::MALFORMED),
            (with("HTTP/1.1\r\n", "HTTP/1.1\n"), Refusal::MALFORMED),
            (with("example", "exa\0mple"), Refusal::MALFORMED),
            (with("example", "exa\rmple"), Refusal::MALFORMED),
            ("\r\n\r\n".to_owned(), Refusal::MALFORMED),
            ("\x16\x03\x01\x02".to_owned(), Refusal::MALFORMED),
            (with("HTTP/1.1", "HTTP/1.x"), Refusal::MALFORMED),
            (with("HTTP/1.1", "HTTP/1.0"), Refusal::VERSION),
            (with("HTTP/1.1", "HTTP/2.0"), Refusal::VERSION),
            (with(host, ""), Refusal::HOST),
            (with(host, &host.repeat(2)), Refusal::HOST),
            (with("server.example.com", "server, other"), Refusal::HOST),
            (with("/ws", "/"), Refusal::PATH),
            (with("/ws", "/ws/"), Refusal::PATH),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Refusal::PATH),
            (with("GET", "POST"), Refusal::METHOD),
            (with("GET", "HEAD"), Refusal::METHOD_HEAD),
            (with("Origin: http://example.com", "Content-Length: 5"), Refusal::BODY),
            (with("Origin: http://example.com", "Transfer-Encoding: chunked"), Refusal::BODY),
            (with("Upgrade: websocket", "Upgrade: websockets"), Refusal::UPGRADE),
            (with("Connection: Upgrade", "Connection: keep-alive"), Refusal::UPGRADE),
            ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Refusal::UPGRADE),
            (with(version, "Sec-WebSocket-Version: 8"), Refusal::WEBSOCKET_VERSION),
            (with(version, "X: 13"), Refusal::WEBSOCKET_VERSION),
            (with(version, &[version, "\r\n", version].concat()), Refusal::WEBSOCKET_VERSION),
            (with(key, "X: y"), Refusal::KEY),
            (with(key, &[key, "\r\n", key].concat()), Refusal::KEY),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), Refusal::KEY),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA"), Refusal::KEY),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25*ZQ=="), Refusal::KEY),
            (with("hawser.v1.json, hawser.v1.proto", "hawser.v2.json"), Refusal::SUBPROTOCOL),
            (with("Sec-WebSocket-Protocol", "X"), Refusal::SUBPROTOCOL),
        ];
        for (head, expected) in cases {
            assert_eq!(refusal(&head), expected, "{head}");
        }
    }

    #[test]
    fn each_length_is_taken_at_its_bound_and_refused_past_it() {
        let line_bytes = GOOD.find('\r').unwrap();
        let path = |more: usize| with("token=t", &"t".repeat("token=t".len() + more));
        let room = REQUEST_LINE_BYTES_MAX - line_bytes;
        upgrade(&path(room));
        assert_eq!(refusal(&path(room + 1)), Refusal::REQUEST_LINE_TOO_LONG);
        assert_eq!(refusal(&"G".repeat(HEAD_BYTES_MAX)), Refusal::REQUEST_LINE_TOO_LONG);

        let origin =
            |more: usize| with("example.com\r\nSec", &format!("{:e<1$}\r\nSec", "e", more));
        let room = HEAD_BYTES_MAX - origin(0).len();
        upgrade(&origin(room));
        assert_eq!(refusal(&origin(room + 2)), Refusal::HEAD_TOO_LONG);

        let headers =
            |more: usize| with("Origin: ", &["X: y\r\n".repeat(more), "Origin: ".into()].concat());
        upgrade(&headers(HEADERS_MAX - 7));
        assert_eq!(refusal(&headers(HEADERS_MAX - 6)), Refusal::TOO_MANY_HEADERS);
    }
}
