//! Who may come in: tokens and their keys, the check by HTTP, Origin, the PROXY protocol.

use clap::Args;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct AdmissionKnobs {}
