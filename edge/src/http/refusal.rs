//! Why a request is not upgraded, and the whole HTTP answer that says so.

/// An answer after which the connection closes: one constant a fault, with the status and the header line
/// that HTTP asks for, and a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Status code (RFC 9110 section 15).
    pub status: u16,
    /// Header lines that the status asks for, with their line ends; may be empty.
    headers: &'static str,
    /// The body; empty where there may be none.
    sentence: &'static str,
}

impl Refusal {
    /// The head breaks the grammar of RFC 9112.
    pub const MALFORMED: Self = Self::new(400, "this is not a well-formed HTTP/1.1 request head");
    /// HTTP/1.0, which cannot upgrade (RFC 6455 section 4.1), or a major version other than 1.
    pub const VERSION: Self = Self::new(505, "HTTP/1.1 is spoken here");
    /// The request line is over `REQUEST_LINE_BYTES_MAX` (RFC 9112 section 3: 414).
    pub const REQUEST_LINE_TOO_LONG: Self = Self::new(414, "the request line is longer than 8 KiB");
    /// The head is over `HEAD_BYTES_MAX`.
    pub const HEAD_TOO_LONG: Self = Self::new(431, "the request head is longer than 16 KiB");
    /// There are more than `HEADERS_MAX` header lines.
    pub const TOO_MANY_HEADERS: Self = Self::new(431, "the request has more than 64 header lines");
    /// No Host, several, or one that is no host (RFC 9112 section 3.2).
    pub const HOST: Self =
        Self::new(400, "a request has exactly one Host header, with a host in it");
    /// Nothing is served at the path.
    pub const PATH: Self = Self::new(404, "there is nothing at this path");
    /// The path is served, the method is not GET.
    pub const METHOD: Self =
        Self { headers: "Allow: GET\r\n", ..Self::new(405, "only GET is answered here") };
    /// The method is HEAD, whose answer has no body (RFC 9110 section 9.3.2).
    pub const METHOD_HEAD: Self = Self { sentence: "", ..Self::METHOD };
    /// The request announces a body.
    pub const BODY: Self = Self::new(400, "a request that upgrades has no body");
    /// The request asks for no upgrade to WebSocket.
    pub const UPGRADE: Self = Self {
        headers: "Upgrade: websocket\r\n",
        ..Self::new(426, "this path speaks WebSocket: ask for it with Upgrade and Connection")
    };
    /// Not exactly one `Sec-WebSocket-Version`, or another than 13 (RFC 6455 section 4.4).
    pub const WEBSOCKET_VERSION: Self = Self {
        headers: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ..Self::new(426, "Sec-WebSocket-Version has to be 13")
    };
    /// Not exactly one `Sec-WebSocket-Key` of 16 bytes.
    pub const KEY: Self =
        Self::new(400, "a request has exactly one Sec-WebSocket-Key, 16 bytes in base64");
    /// `Sec-WebSocket-Extensions` that breaks the grammar of RFC 6455 section 9.1.
    pub const EXTENSIONS: Self =
        Self::new(400, "Sec-WebSocket-Extensions is not a well-formed list of extensions");
    /// The client path, and none of our subprotocols is offered.
    pub const SUBPROTOCOL: Self =
        Self::new(400, "Sec-WebSocket-Protocol has to offer hawser.v1.proto or hawser.v1.json");

    /// Plain HTTP on a port that speaks TLS.
    pub const TLS_WANTED: Self = Self::new(400, "this port speaks TLS: ask with https or wss");

    /// A page whose Origin is not on the list (RFC 6455 section 10.2).
    pub const ORIGIN: Self = Self::new(403, "pages of this origin may not connect");
    /// More than one token (RFC 6750 section 3.1).
    pub const TOKENS: Self = Self {
        headers: "WWW-Authenticate: Bearer error=\"invalid_request\"\r\n",
        ..Self::new(
            400,
            "a request has its token in one place: Authorization, or access_token in the query",
        )
    };

    const fn new(status: u16, sentence: &'static str) -> Self {
        Self { status, headers: "", sentence }
    }

    /// 503: no room for one more connection.
    #[must_use]
    pub const fn overloaded() -> Self {
        Self {
            headers: "Retry-After: 5\r\n",
            ..Self::new(503, "this server holds as many connections as it may")
        }
    }

    /// 503: more handshakes are under way than a core takes on at a time.
    #[must_use]
    pub const fn busy() -> Self {
        Self {
            headers: "Retry-After: 2\r\n",
            ..Self::new(503, "too many clients are connecting at this moment")
        }
    }

    /// 429: this address has all that one may have (RFC 6585 section 4).
    #[must_use]
    pub const fn too_many() -> Self {
        Self {
            headers: "Retry-After: 10\r\n",
            ..Self::new(429, "too many connections, connects or failures from this address")
        }
    }

    /// 401: the token is no good, as this sentence says (RFC 6750 section 3.1).
    #[must_use]
    pub const fn unauthorized(sentence: &'static str) -> Self {
        Self {
            headers: "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n",
            ..Self::new(401, sentence)
        }
    }

    /// 503: the token cannot be checked at the moment, as this sentence says.
    #[must_use]
    pub const fn unchecked(sentence: &'static str) -> Self {
        Self { headers: "Retry-After: 5\r\n", ..Self::new(503, sentence) }
    }

    /// 408: the head did not come in time.
    #[must_use]
    pub const fn timed_out() -> Self {
        Self::new(408, "the request head did not come in time")
    }

    /// Appends the whole answer. Send it, then close.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { status, headers, sentence } = self;
        let line_end = if sentence.is_empty() { "" } else { "\n" };
        // An Upgrade header has to be named in Connection (RFC 9110 section 7.8).
        let connection = if headers.contains("Upgrade: ") { "close, Upgrade" } else { "close" };
        let answer = format!(
            "HTTP/1.1 {status} {phrase}\r\nConnection: {connection}\r\n{headers}\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: {body_bytes}\r\n\
             {GUARDS}\r\n{sentence}{line_end}",
            phrase = phrase(*status),
            body_bytes = sentence.len() + line_end.len(),
        );
        out.extend_from_slice(answer.as_bytes());
    }
}

/// A browser that shows the answer takes it for the text it is, and does nothing with it.
const GUARDS: &str =
    "X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'\r\n";

const fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(refusal: Refusal) -> String {
        let mut out = Vec::new();
        refusal.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_complete_and_closes() {
        let expected = "HTTP/1.1 404 Not Found\r\n\
             Connection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 30\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'\r\n\r\n\
             there is nothing at this path\n";
        assert_eq!(answer(Refusal::PATH), expected);
    }

    #[test]
    fn each_status_brings_the_headers_it_has_to() {
        for (refusal, lines) in [
            (Refusal::METHOD, &["Allow: GET", "Connection: close"][..]),
            (Refusal::METHOD_HEAD, &["Allow: GET", "Content-Length: 0"]),
            (Refusal::UPGRADE, &["Upgrade: websocket", "Connection: close, Upgrade"]),
            (Refusal::WEBSOCKET_VERSION, &["Sec-WebSocket-Version: 13", "Upgrade: websocket"]),
            (Refusal::overloaded(), &["Retry-After: 5"]),
            (Refusal::busy(), &["HTTP/1.1 503 Service Unavailable", "Retry-After: 2"]),
            (Refusal::too_many(), &["HTTP/1.1 429 Too Many Requests", "Retry-After: 10"]),
            (
                Refusal::unauthorized("token has expired"),
                &["HTTP/1.1 401 Unauthorized", "WWW-Authenticate: Bearer error=\"invalid_token\""],
            ),
            (Refusal::unchecked("try again"), &["Retry-After: 5"]),
            (Refusal::timed_out(), &["HTTP/1.1 408 Request Timeout"]),
        ] {
            let answer = answer(refusal);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let length = format!("Content-Length: {}", body.len());
            for line in lines.iter().chain([&length.as_str()]) {
                assert!(head.split("\r\n").any(|found| found == *line), "{line} in {answer}");
            }
        }
    }
}
