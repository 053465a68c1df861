//! TLS: certificates, tickets, client certificates.

use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::duration;

use super::TIMEOUTS;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct TlsKnobs {
    /// Time from accept to the end of the TLS handshake, then the connection is closed; the request head has a time of its own behind it
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(TIMEOUTS))]
    pub tls_handshake_timeout: Duration,
}
