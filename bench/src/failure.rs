//! Why a run has no result, and the exit status that says so.

use std::fmt;
use std::io;

/// Ends a run. The sentence is for the person who typed the command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A flag is wrong; the sentence names it.
    Usage(String),
    /// The target does not answer, or not as it should.
    Unreachable(String),
    /// Something on our side of the network broke.
    Broken(String),
}

impl Failure {
    /// 64 for usage, as sysexits has it; 2 for a target out of reach; 1 for the rest, which is also the status of a
    /// run that found a fault.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unreachable(_) => 2,
            Self::Broken(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(sentence) | Self::Unreachable(sentence) | Self::Broken(sentence) => {
                f.write_str(sentence)
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}
