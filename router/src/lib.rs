//! Moves messages between edges and the durable queue.
//!
//! In reading order, which is also the way a message travels: [`link`] takes frames from an edge
//! (over TLS: [`link_tls`]), [`owner`]
//! brings them to the [`hub`] of a partition, which decides; [`queue`] makes durable what it appends;
//! [`inbox`] and [`delivery`] bring it to the devices that [`registry`] knows; [`outgoing`] takes it back to
//! the edge. [`api`] lets other services ask and send. [`store`] keeps what outlives a checkpoint; [`claims`] says which partitions are ours. [`hub`] and everything below it is free of I/O.
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod claims;
pub mod config;
mod data;
pub mod delivery;
pub mod edges;
pub mod engine;
pub mod health;
pub mod hub;
pub mod inbox;
pub mod keeper;
pub mod limits;
pub mod link;
pub mod link_tls;
pub mod metrics;
pub mod outgoing;
pub mod owner;
pub mod queue;
pub mod record;
pub mod registry;
pub mod saver;
pub mod server;
#[cfg(test)]
mod services;
mod sharing;
pub mod state;
pub mod store;
pub mod takeover;
