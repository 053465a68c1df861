//! The one HTTP request of a connection: its head, and the answer, an upgrade or a refusal.
//!
//! RFC 9112 for the head (read by httparse), RFC 6455 section 4.2 for what an upgrade asks. No I/O.
#![forbid(unsafe_code)]

pub mod head;
pub mod refusal;

pub use self::head::{Outcome, Route, Routes, Subprotocol, Upgrade, read_head, write_upgrade};
pub use self::refusal::Refusal;

/// Longest request head, in bytes; past it the answer is 431.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header lines; past it the answer is 431.
pub const HEADERS_MAX: usize = 64;
