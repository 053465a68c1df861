//! The one HTTP request of a connection: its head, and the answer, an upgrade or a refusal.
//!
//! RFC 9112 for the head (parsed by httparse), RFC 6455 section 4.2 for what an upgrade asks. Nothing but
//! upgrades is served; every other request gets a [`Refusal`] of its own. No I/O.
#![forbid(unsafe_code)]

pub mod extensions;
pub mod head;
pub mod origin;
pub mod refusal;
pub mod token;
pub mod upgrade;

pub use self::extensions::DeflateOffer;
pub use self::head::{Outcome, Routes, read_head};
pub use self::origin::AllowedOrigin;
pub use self::refusal::Refusal;
pub use self::token::token_of;
pub use self::upgrade::{Route, Subprotocol, Upgrade, write_upgrade};

/// Longest request head, in bytes: request line, headers and the empty line after them. Past it the
/// answer is 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest request line, in bytes, without its line end. Past it the answer is 414.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Most header lines of a request. Past it the answer is 431.
pub const HEADERS_MAX: usize = 64;

const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);
