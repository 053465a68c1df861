//! The WebSocket server of Hawser: one shard per core.
//!
//! In the order in which a client's message travels: [`driver`] receives it, [`shard`] applies it to its
//! connection ([`conn`]), [`http`] reads the request head once and [`ws`] the frames, [`client`] the client
//! protocol; [`pending`] keeps sends until they are answered, [`routes`] says which router they are for, and [`mesh`]
//! carries them to its [`uplink`], one of the [`uplinks`]. Everything but the driver and [`admin`] is free of I/O and is told the time.

pub mod admin;
pub mod auth;
pub mod certs;
pub mod client;
pub mod command;
pub mod config;
pub mod conn;
pub mod drain;
pub mod driver;
pub mod http;
pub mod limits;
pub mod link_tls;
pub mod logging;
pub mod mesh;
pub mod meter;
pub mod metrics;
pub mod operator;
pub mod pending;
pub mod plan;
pub mod probe;
pub mod proxy;
pub mod quotas;
pub mod registry;
pub mod routes;
pub mod server;
pub mod shard;
pub mod shares;
pub mod systemd;
pub mod timer;
pub mod tls;
pub mod uplink;
pub mod uplinks;
pub mod watch;
pub mod ws;
