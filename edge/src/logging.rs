//! What is logged, and how: to standard error, as text or as JSON, by a filter that can be changed while the edge runs.
//!
//! Nothing is logged for a message. A connection's beginning and end are told at debug, with its id, address and user.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::LogFormat;

/// Changes what is logged.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<Targets, Registry>);

/// Begins to log, once a process.
#[must_use]
pub fn start(format: LogFormat, filter: Targets) -> LogFilter {
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    LogFilter(handle)
}

impl LogFilter {
    /// Logs by this filter from now on.
    pub fn set(&self, filter: Targets) {
        // It fails only when the subscriber is gone, which lives as long as the process.
        let _ = self.0.reload(filter);
    }
}
