//! Echo on tokio-tungstenite: `tokio-tungstenite PORT [READ_BUFFER_BYTES]`. Without the second, the library's default.

#![forbid(unsafe_code)]

use futures_util::{SinkExt as _, StreamExt as _};
use hawser_peers::{Error, argument, serve};
use tokio::net::TcpStream;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

fn main() -> Result<(), Error> {
    let mut config = WebSocketConfig::default();
    if std::env::args().len() > 2 {
        config = config.read_buffer_size(argument(2, "READ_BUFFER_BYTES")?);
    }
    serve(argument(1, "PORT")?, move |stream| echo(stream, config))
}

async fn echo(stream: TcpStream, config: WebSocketConfig) -> Result<(), Error> {
    let mut socket = accept_async_with_config(stream, Some(config)).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        // The library answers the control frames.
        if message.is_binary() || message.is_text() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
