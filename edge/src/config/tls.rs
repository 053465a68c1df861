//! TLS: certificates, tickets, client certificates.

use clap::Args;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct TlsKnobs {}
