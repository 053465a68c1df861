//! Listening sockets: one a shard on the same port (SO_REUSEPORT, socket(7)), so that the kernel spreads
//! connections over shards. What is set here is inherited by every accepted socket (tcp(7)).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// How long sent bytes may stay unacknowledged before the kernel gives the peer up (tcp(7), TCP_USER_TIMEOUT).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an address that is in use is tried again: the kernel takes a killed process's rings down, and the
/// listeners in them, some time after the process is gone. With 200,000 connections that is 2 s and more.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);
const ADDRESS_RETRY: Duration = Duration::from_millis(20);

/// Finds the port free, and which it is when `address` leaves the choice to the kernel.
///
/// Bound without SO_REUSEPORT first: with it, a second edge would quietly take half of the connections.
///
/// # Errors
/// What bind(2) says, above all that the address is in use, also after [`ADDRESS_PATIENCE`].
#[expect(
    clippy::disallowed_methods,
    reason = "before anything runs there is nobody to keep waiting"
)]
pub fn reserve(address: SocketAddr) -> io::Result<SocketAddr> {
    let start = std::time::Instant::now();
    loop {
        match try_reserve(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && start.elapsed() < ADDRESS_PATIENCE =>
            {
                std::thread::sleep(ADDRESS_RETRY);
            }
            outcome => return outcome,
        }
    }
}

fn try_reserve(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(1)?;
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// One shard's listener on `address`, which [`reserve`] has found free.
///
/// # Errors
/// What the socket calls say.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Ends a listener, and the accepts that are in a ring for it: those hold it open past its descriptor's close.
pub(super) fn end(listener: &TcpListener) {
    // Refused only when it never listened.
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}
