//! What client and edge, edge and router say to each other.
//!
//! [`client`] and [`link`] hold the messages as prost types, generated from `client.proto` and
//! `link.proto`; [`view`] the same messages borrowed, for the data path; [`framing`] the length-prefixed
//! frames of a link; [`partition`] says which slice a user belongs to; [`knobs`] reads flags, environment and
//! file of either process.
#![forbid(unsafe_code)]

pub mod framing;
pub mod knobs;
pub mod partition;
pub mod view;

/// Client protocol, `client.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    clippy::disallowed_types,
    unreachable_pub,
    reason = "generated code; the .proto file holds the contract"
)]
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/hawser.client.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/hawser.client.v1.serde.rs"));
}

/// Link protocol, `link.proto`.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    reason = "generated code; the .proto file holds the contract"
)]
pub mod link {
    include!(concat!(env!("OUT_DIR"), "/hawser.link.v1.rs"));
}
