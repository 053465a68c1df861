//! The real router process, spoken to over real sockets in link.proto.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "a test may panic and waits by the clock; what it starts ends when its handle is dropped"
)]

mod api;
mod faults;
mod harness;
mod inboxes;
mod links;
mod redis;
mod restart;
mod start;
mod traffic;
