//! Echo on fastwebsockets, upgraded by hyper: `fastwebsockets PORT`.

#![forbid(unsafe_code)]

use fastwebsockets::{FragmentCollector, OpCode, upgrade};
use hawser_peers::{Error, argument, serve};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

fn main() -> Result<(), Error> {
    serve(argument(1, "PORT")?, handle)
}

async fn handle(stream: TcpStream) -> Result<(), Error> {
    let connection =
        http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(accept));
    Ok(connection.with_upgrades().await?)
}

async fn accept(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Error> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::spawn(echo(upgraded));
    Ok(response)
}

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), Error> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            // The library answers the control frames, and the collector leaves no fragment.
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
        }
    }
}
