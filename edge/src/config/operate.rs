//! How the edge is run: drain, logs, the admin address.

use clap::Args;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct OperateKnobs {}
