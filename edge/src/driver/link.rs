//! A link's socket: an ordinary descriptor on the ring of the uplinks' shard.
//!
//! Each attempt has a number and buffers of its own, which live until the kernel has finished with all that was
//! submitted for it: what a broken link leaves behind cannot touch the next one.
//!
//! With TLS, what the uplink gives to send is sealed here at once and kept until all of it is out, so that both look the
//! same to the uplink.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use socket2::{Domain, SockAddr, Socket, Type};

use super::ring::Ring;
use crate::link_tls::{LinkTls, Received};
use crate::uplink::LinkError;

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
    /// The address for attempt number `attempt` to reach this router.
    pub(super) fn pick(&self, attempt: u32) -> io::Result<SockAddr> {
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
    tls: Option<LinkTls>,
    receive_buffer: Box<[u8]>,
    /// What the kernel sends.
    send_buffer: Option<Vec<u8>>,
    /// What the uplink gave to send, where that was sealed into other buffers.
    sealed: Option<Vec<u8>>,
    connecting: bool,
    receiving: bool,
}

impl LinkSocket {
    /// Starts an attempt, which `attempt` tells from all others of the edge. `address` is one of the router's.
    pub(super) fn connect(
        ring: &mut Ring,
        address: SockAddr,
        tls: Option<LinkTls>,
        attempt: u32,
    ) -> io::Result<Box<Self>> {
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        if address.domain() != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let link = Box::new(Self {
            attempt,
            socket,
            address,
            tls,
            receive_buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            send_buffer: None,
            sealed: None,
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

    /// What a completed receive brought.
    pub(super) fn received(
        &mut self,
        result: Result<usize, i32>,
    ) -> Result<Received<'_>, LinkError> {
        self.receiving = false;
        let ended = match result {
            Ok(0) => LinkError::Closed,
            Ok(bytes) => {
                let bytes = self.receive_buffer.get(..bytes).unwrap_or_default();
                return match &mut self.tls {
                    Some(tls) => tls.handle_received(bytes),
                    None => Ok(Received { opened: false, bytes }),
                };
            }
            Err(errno) => LinkError::Socket(errno),
        };
        Err(match &self.tls {
            Some(tls) => tls.handle_closed(ended),
            None => ended,
        })
    }

    /// Whether TLS is spoken here, so that the uplink has to wait for its handshake.
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Sends what the uplink gave. One at a time.
    pub(super) fn send(&mut self, ring: &mut Ring, buffer: Vec<u8>) {
        match &mut self.tls {
            Some(tls) => {
                tls.write(&buffer);
                self.sealed = Some(buffer);
                self.flush(ring);
            }
            None => self.submit(ring, buffer),
        }
    }

    /// Sends what TLS has to say, unless something is on its way.
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        if self.send_buffer.is_some() || self.connecting {
            return;
        }
        let Some(tls) = &mut self.tls else { return };
        let sealed = tls.poll_transmit();
        if !sealed.is_empty() {
            self.submit(ring, sealed);
        }
    }

    fn submit(&mut self, ring: &mut Ring, buffer: Vec<u8>) {
        let buffer = self.send_buffer.insert(buffer);
        ring.link_send(self.attempt, self.socket.as_fd(), buffer);
    }

    /// A send of so many bytes has completed, or failed. When that was the last of what the uplink gave, or nothing more is
    /// sent because the link is not `live`, answers its buffer and what became of it.
    pub(super) fn sent(
        &mut self,
        result: Result<usize, i32>,
        live: bool,
    ) -> Option<(Vec<u8>, Result<(), i32>)> {
        let buffer = self.send_buffer.take()?;
        let result = match result {
            Ok(sent) if sent == buffer.len() => Ok(()),
            Ok(_) => Err(libc::EPIPE),
            Err(errno) => Err(errno),
        };
        match &self.tls {
            None => Some((buffer, result)),
            // What was sealed meanwhile follows, and then the buffer is given back.
            Some(tls) if live && result.is_ok() && tls.wants_transmit() => None,
            Some(_) => self.sealed.take().map(|buffer| (buffer, result)),
        }
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
