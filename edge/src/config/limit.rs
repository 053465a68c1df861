//! What one connection, user and address may do, and how many handshakes a core takes on.

use clap::Args;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct LimitKnobs {}
