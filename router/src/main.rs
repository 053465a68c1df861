//! The router process: arguments, start, signals, stop.
#![deny(unsafe_code)]

mod heap;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use hawser_proto::knobs::USAGE_EXIT_STATUS;
use hawser_router::config::Config;
use hawser_router::server::{Server, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    heap::settle();
    let config = Config::from_process();
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => return refuse(&format!("--log: {error}")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime did not start");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> ExitCode {
    tracing::info!(?config, "starting");
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => {
            tracing::error!(%error, "signals cannot be handled");
            return ExitCode::FAILURE;
        }
    };
    let server = match Server::start(config).await {
        Ok(server) => server,
        Err(StartError::Usage(sentence)) => return refuse(&sentence),
        Err(StartError::Failed(sentence)) => {
            tracing::error!("{sentence}");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(
        listen = server.addresses().join(","),
        admin = server.admin_address(),
        api = server.api_address(),
        "serving"
    );
    match server.serve(stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Usage(sentence) | StartError::Failed(sentence)) => {
            tracing::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Completes on SIGTERM or SIGINT. SIGHUP, which the server API listens to, does not end a router without one any more.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    drop(signal(SignalKind::hangup())?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("hawser-router: {sentence}");
    ExitCode::from(USAGE_EXIT_STATUS as u8)
}
