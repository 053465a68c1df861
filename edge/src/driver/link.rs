//! The link's socket: an ordinary descriptor on the ring of the uplink's shard.
//!
//! Each attempt has a number and buffers of its own, which live until the kernel has finished with all that was
//! submitted for it: what a broken link leaves behind cannot touch the next one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use socket2::{Domain, SockAddr, Socket, Type};

use super::ring::Ring;

/// Bytes taken from the router at once.
const RECEIVE_BYTES: usize = 256 * 1024;

/// Where the router is, names resolved.
#[derive(Debug, Clone)]
pub enum LinkAddress {
    /// TCP; tried in turn.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

impl LinkAddress {
    /// The address for attempt number `attempt`.
    fn pick(&self, attempt: u32) -> io::Result<SockAddr> {
        match self {
            Self::Tcp(addresses) => {
                let at = attempt as usize % addresses.len().max(1);
                let address = addresses.get(at).ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(SockAddr::from(*address))
            }
            Self::Unix(path) => SockAddr::unix(path),
        }
    }
}

/// One attempt and what may come of it.
#[derive(Debug)]
pub(super) struct LinkSocket {
    attempt: u32,
    socket: Socket,
    address: SockAddr,
    receive_buffer: Box<[u8]>,
    send_buffer: Option<Vec<u8>>,
    connecting: bool,
    receiving: bool,
}

impl LinkSocket {
    /// Starts attempt number `attempt`.
    pub(super) fn connect(
        ring: &mut Ring,
        address: &LinkAddress,
        attempt: u32,
    ) -> io::Result<Box<Self>> {
        let address = address.pick(attempt)?;
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        if address.domain() != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let link = Box::new(Self {
            attempt,
            socket,
            address,
            receive_buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            send_buffer: None,
            connecting: true,
            receiving: false,
        });
        ring.link_connect(attempt, link.socket.as_fd(), &link.address);
        Ok(link)
    }

    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(super) fn connected(&mut self) {
        self.connecting = false;
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receiving
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn receive(&mut self, ring: &mut Ring) {
        self.receiving = true;
        ring.link_receive(self.attempt, self.socket.as_fd(), &mut self.receive_buffer);
    }

    /// The bytes of a completed receive.
    pub(super) fn received(&mut self, bytes: usize) -> &[u8] {
        self.receiving = false;
        self.receive_buffer.get(..bytes).unwrap_or_default()
    }

    pub(super) fn send(&mut self, ring: &mut Ring, buffer: Vec<u8>) {
        let buffer = self.send_buffer.insert(buffer);
        ring.link_send(self.attempt, self.socket.as_fd(), buffer);
    }

    /// The buffer of a completed send.
    pub(super) fn sent(&mut self) -> Option<Vec<u8>> {
        self.send_buffer.take()
    }

    /// Makes all that is in the ring for this socket complete soon.
    pub(super) fn shut(&self) {
        // Refused when it was never connected: then its connect completes with an error by itself.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the kernel is finished with every buffer.
    pub(super) fn is_quiet(&self) -> bool {
        !self.connecting && !self.receiving && self.send_buffer.is_none()
    }
}
