//! What an operator, or another thread of the edge, asks of one shard.
//!
//! A command travels through the shard's lane in the mesh ([`crate::mesh::Mesh::try_command`]) and is dealt with between two rounds of
//! completions. Where an answer is wanted, the command carries the way back.

use std::sync::Arc;

use crate::auth::ask::Verdict;
use crate::config::Config;
use crate::drain;

/// See the module.
#[derive(Debug)]
pub enum Command {
    /// Live by these knobs from now on. Only knobs that may change while the edge runs differ from those before.
    Reload(Arc<Config>),
    /// Shake hands by these certificates and tickets from now on; whoever is connected stays. Only for an edge that was started with TLS.
    Certificates(Arc<rustls::ServerConfig>),
    /// Send all clients away, or a share of them, over a window of time.
    Drain(drain::Order),
    /// Whose token a connection has brought, as the auth thread says.
    Verdict(Box<Verdict>),
}
