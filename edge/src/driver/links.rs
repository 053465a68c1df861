//! The links to all routers, on the shard where the uplinks run: their sockets, and what is known of each by others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::link::{LinkAddress, LinkSocket};
use super::ring::{LinkEvent, Ring};
use crate::link_tls::{LinkTls, LinkTlsConfig};
use crate::mesh::Mesh;
use crate::metrics::Counters;
use crate::routes::RouterIndex;
use crate::timer::{Now, Tick};
use crate::uplink::{LinkError, LinkState, UplinkOutput};
use crate::uplinks::Uplinks;

/// A router, as `--router` names it, and whether it is linked; read by the health check.
#[derive(Debug)]
pub struct RouterSeen {
    /// Its address.
    pub name: String,
    /// It has answered the hello, and talks.
    pub is_up: AtomicBool,
}

/// Where a router is and how to talk to it.
pub struct RouterEnd {
    /// Its address.
    pub address: LinkAddress,
    /// How to shake hands with it, where TLS is spoken.
    pub tls: Option<LinkTlsConfig>,
}

/// The uplinks and where they go.
pub struct LinkEnds {
    /// The state machines.
    pub uplinks: Uplinks,
    /// By router.
    pub routers: Vec<RouterEnd>,
    /// By router.
    pub seen: Arc<[RouterSeen]>,
}

/// See the module.
pub(super) struct Links {
    ends: LinkEnds,
    /// By router.
    sockets: Vec<Place>,
    /// Sockets of links that are over, until the kernel is finished with their buffers.
    dying: Vec<(RouterIndex, Box<LinkSocket>)>,
    /// Attempts to reach any router: completions are told apart by their number.
    attempts: u32,
}

/// A router's socket.
#[derive(Default)]
struct Place {
    socket: Option<Box<LinkSocket>>,
    /// Attempts to reach this router: each tries the next of its addresses.
    attempts: u32,
    /// An outage was logged and is not over.
    outage: bool,
}

impl Links {
    pub(super) fn new(ends: LinkEnds) -> Self {
        let sockets = ends.routers.iter().map(|_| Place::default()).collect();
        Self { ends, sockets, dying: Vec::new(), attempts: 0 }
    }

    /// When [`Self::run`] has to be called at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        self.ends.uplinks.poll_timeout()
    }

    /// Something happened on the socket of this attempt.
    pub(super) fn handle(
        &mut self,
        now: Now,
        ring: &mut Ring,
        mesh: &Mesh,
        attempt: u32,
        event: LinkEvent,
    ) {
        let uplinks = &mut self.ends.uplinks;
        let live = (0..).map(RouterIndex).zip(&mut self.sockets).find_map(|(router, place)| {
            Some((router, place.socket.as_mut().filter(|socket| socket.attempt() == attempt)?))
        });
        let Some((router, socket)) = live else {
            return self.handle_dying(now, mesh, attempt, event);
        };
        match event {
            LinkEvent::Connected(result) => {
                socket.connected();
                // With TLS it is connected when the handshake is done.
                if result.is_err() || !socket.has_tls() {
                    uplinks.link(router).handle_connected(now, result);
                }
            }
            LinkEvent::Received(result) => match socket.received(result) {
                Ok(received) => {
                    if received.opened {
                        uplinks.link(router).handle_connected(now, Ok(()));
                    }
                    uplinks.handle_received(router, now, mesh, received.bytes);
                }
                Err(error) => uplinks.link(router).handle_failed(now, error),
            },
            LinkEvent::Sent(result) => {
                if let Some((buffer, result)) = socket.sent(result, true) {
                    uplinks.link(router).handle_sent(now, mesh, buffer, result);
                }
            }
        }
        socket.flush(ring);
    }

    /// What the kernel still says about a link that is over: buffers come back.
    fn handle_dying(&mut self, now: Now, mesh: &Mesh, attempt: u32, event: LinkEvent) {
        let found = self.dying.iter_mut().find(|(_, socket)| socket.attempt() == attempt);
        let Some((router, socket)) = found else { return };
        match event {
            LinkEvent::Connected(_) => socket.connected(),
            LinkEvent::Received(result) => drop(socket.received(result)),
            LinkEvent::Sent(result) => {
                if let Some((buffer, result)) = socket.sent(result, false) {
                    self.ends.uplinks.link(*router).handle_sent(now, mesh, buffer, result);
                }
            }
        }
        self.dying.retain(|(_, socket)| !socket.is_quiet());
    }

    /// Lets every uplink trade with the shards, and does what they ask for. Once a turn.
    pub(super) fn run(&mut self, now: Now, ring: &mut Ring, mesh: &Mesh, counters: &Counters) {
        self.ends.uplinks.exchange(now, mesh);
        let (mut ups, mut bad_messages) = (0, 0);
        for index in 0..self.sockets.len() {
            let router = RouterIndex(index as u8);
            self.run_link(now, ring, mesh, router);
            let counted = self.ends.uplinks.link(router).counters();
            ups += counted.ups;
            bad_messages += counted.bad_messages;
        }
        counters.link_ups.set(ups);
        counters.link_bad_messages.set(bad_messages);
    }

    fn run_link(&mut self, now: Now, ring: &mut Ring, mesh: &Mesh, router: RouterIndex) {
        let Self { ends: LinkEnds { uplinks, routers, seen }, sockets, dying, attempts } = self;
        let (end, seen, place) =
            (&routers[router.at()], &seen[router.at()], &mut sockets[router.at()]);
        let uplink = uplinks.link(router);
        if let Some(error) = uplink.take_error() {
            // Once an outage: each further attempt would say the same.
            if !std::mem::replace(&mut place.outage, true) {
                let router = &seen.name;
                tracing::warn!(router, "no link to the router: {error}; trying until there is one");
            }
        }
        while let Some(output) = uplink.poll_output(now) {
            match output {
                UplinkOutput::Close => {
                    if let Some(socket) = place.socket.take() {
                        socket.shut();
                        if !socket.is_quiet() {
                            dying.push((router, socket));
                        }
                    }
                }
                UplinkOutput::Connect => {
                    *attempts = attempts.wrapping_add(1);
                    place.attempts = place.attempts.wrapping_add(1);
                    match connect(ring, end, place.attempts, *attempts) {
                        Ok(socket) => place.socket = Some(socket),
                        Err(error) => uplink.handle_failed(now, error),
                    }
                }
                UplinkOutput::Send(buffer) => match &mut place.socket {
                    Some(socket) => socket.send(ring, buffer),
                    None => uplink.handle_sent(now, mesh, buffer, Err(libc::ENOTCONN)),
                },
            }
        }
        if let Some(socket) = &mut place.socket
            && !socket.is_receiving()
            && !socket.is_connecting()
            && uplink.wants_input()
        {
            socket.receive(ring);
        }
        let up = uplink.state() == LinkState::Up;
        if seen.is_up.swap(up, Ordering::Relaxed) != up && up {
            place.outage = false;
            tracing::info!(router = seen.name, "link to the router is up");
        }
        if let Some(partitions) = uplink.take_owned() {
            tracing::info!(
                router = seen.name,
                partitions,
                "the router says which partitions it owns"
            );
        }
    }
}

/// Starts an attempt: the `nth` to reach this router, which the ring knows as `attempt`.
fn connect(
    ring: &mut Ring,
    end: &RouterEnd,
    nth: u32,
    attempt: u32,
) -> Result<Box<LinkSocket>, LinkError> {
    let tls = end.tls.as_ref().map(LinkTls::new).transpose()?;
    let socket = end.address.pick(nth);
    let socket = socket.and_then(|address| LinkSocket::connect(ring, address, tls, attempt));
    socket.map_err(|error| LinkError::Socket(error.raw_os_error().unwrap_or(libc::EINVAL)))
}
