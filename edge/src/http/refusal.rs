//! A whole HTTP answer that is not an upgrade, with the sentence that says why.

/// An answer after which the connection closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Status code (RFC 9110 section 15).
    pub status: u16,
    /// Header line that the status asks for, with its line end; may be empty.
    header: &'static str,
    /// For people.
    sentence: &'static str,
}

impl Refusal {
    /// An answer without a header of its own.
    #[must_use]
    pub const fn new(status: u16, sentence: &'static str) -> Self {
        Self { status, header: "", sentence }
    }

    /// 405: only GET upgrades.
    #[must_use]
    pub const fn method() -> Self {
        Self { status: 405, header: "Allow: GET\r\n", sentence: "only GET is answered here" }
    }

    /// 426 because the request asks for no upgrade (RFC 9110 section 15.5.22).
    #[must_use]
    pub const fn upgrade_required() -> Self {
        Self {
            status: 426,
            header: "Upgrade: websocket\r\n",
            sentence: "this path speaks WebSocket: ask for it with Upgrade: websocket",
        }
    }

    /// 426 because the request asks for another version (RFC 6455 section 4.4).
    #[must_use]
    pub const fn version() -> Self {
        Self {
            status: 426,
            header: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            sentence: "Sec-WebSocket-Version has to be 13",
        }
    }

    /// 503: no room for one more connection.
    #[must_use]
    pub const fn overloaded() -> Self {
        Self {
            status: 503,
            header: "Retry-After: 5\r\n",
            sentence: "this server holds as many connections as it may",
        }
    }

    /// 408: the head did not come in time.
    #[must_use]
    pub const fn timed_out() -> Self {
        Self::new(408, "the request head did not come in time")
    }

    /// Writes the answer at the end of `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        use std::io::Write as _;
        let Self { status, header, sentence } = self;
        let reason = match status {
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            426 => "Upgrade Required",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            505 => "HTTP Version Not Supported",
            _ => "Error",
        };
        // A Vec takes everything.
        let _ = write!(
            out,
            "HTTP/1.1 {status} {reason}\r\nConnection: close\r\n{header}\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{sentence}\n",
            sentence.len() + 1,
        );
    }
}
