//! What the two Rust peers share: one thread, one listener, a task a connection.

#![forbid(unsafe_code)]

use std::future::Future;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

/// Why a connection or a server ended.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Accepts on 127.0.0.1 until the process ends, and gives each connection to a task that runs `handle`.
///
/// How a connection ends is of no interest here: the load client knows.
///
/// # Errors
/// When the port is taken, or the process is out of descriptors.
pub fn serve<H, F>(port: u16, handle: H) -> Result<(), Error>
where
    H: Fn(TcpStream) -> F,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(handle(stream));
        }
    })
}

/// The argument at `index` on the command line, as a number.
///
/// # Errors
/// When it is missing or not a number that fits.
pub fn argument<T: std::str::FromStr>(index: usize, name: &str) -> Result<T, Error> {
    let text = std::env::args().nth(index).ok_or_else(|| format!("{name} is missing"))?;
    text.parse().map_err(|_| format!("{name}: {text:?} is not a number that fits").into())
}
