//! Datagrams relayed by ordinary sockets of this host, where the kernel cannot forward: the flows of an enclosed command.
//!
//! ```text
//! client -> captured -> judged -> a socket of the flow's own -> server
//! client <- Outbox of the client's namespace, in the server's name <- the socket, connected to that server
//! ```
//!
//! Fails closed: only what comes from the very address and port that was asked is given to the client; a flow without a
//! socket loses its datagrams, counted.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use tokio::io::unix::AsyncFd;

use crate::firewall::FlowKey;
use crate::proxy::flow::Closing;
use crate::sys::epoll::Epoll;
use crate::sys::readable::{Raw, readable};
use crate::sys::udp::{self, Inbox, Outbox};
use crate::telemetry::Telemetry;

/// The flows of one listener that pass.
pub(super) struct Relay {
    epoll: AsyncFd<Raw<Epoll>>,
    /// Speaks to clients in the servers' names.
    answers: Outbox,
    telemetry: Telemetry,
    places: Vec<Option<Upstream>>,
    free: Vec<usize>,
    of: HashMap<FlowKey, usize>,
    inbox: Inbox,
    ready: Vec<u64>,
}

#[derive(Debug)]
struct Upstream {
    key: FlowKey,
    socket: UdpSocket,
    sent: u64,
    received: u64,
    closing: Box<Closing>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("flows", &self.of.len()).finish_non_exhaustive()
    }
}

impl Relay {
    pub(super) fn new(answers: Outbox, telemetry: Telemetry) -> io::Result<Self> {
        Ok(Self {
            epoll: readable(Epoll::new()?)?,
            answers,
            telemetry,
            places: Vec::new(),
            free: Vec::new(),
            of: HashMap::new(),
            inbox: Inbox::new(udp::MAX_BATCH, MAX_DATAGRAM),
            ready: Vec::new(),
        })
    }

    /// Opens a flow that may pass; `closing` is told its octets at its end.
    pub(super) fn begin(&mut self, key: &FlowKey, closing: Box<Closing>) -> io::Result<()> {
        if self.of.contains_key(key) {
            return Ok(());
        }
        let any = match key.remote.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = udp::from((any, 0).into(), false)?;
        socket.connect(key.remote)?;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.epoll.get_ref().0.watch_input(&socket, place as u64)?;
        let upstream = Upstream { key: *key, socket, sent: 0, received: 0, closing };
        if let Some(slot) = self.places.get_mut(place) {
            *slot = Some(upstream);
        }
        self.of.insert(*key, place);
        Ok(())
    }

    /// Sends a datagram on; false if it could not be sent.
    pub(super) fn send(&mut self, key: &FlowKey, payload: &[u8]) -> bool {
        let place = self.of.get(key).copied();
        let Some(upstream) = place.and_then(|place| self.places.get_mut(place)?.as_mut()) else { return false };
        // What an earlier datagram came to is told to whoever sends next: then the second attempt goes out.
        let sent = upstream.socket.send(payload).or_else(|_| upstream.socket.send(payload));
        upstream.sent += sent.as_ref().map_or(0, |count| *count as u64);
        sent.is_ok()
    }

    /// The flow has ended.
    pub(super) fn end(&mut self, key: &FlowKey) {
        let Some(place) = self.of.remove(key) else { return };
        if let Some(upstream) = self.places.get_mut(place).and_then(Option::take) {
            self.free.push(place);
            upstream.record_end(&self.telemetry, "idle");
        }
    }

    /// Waits until servers have answered.
    pub(super) async fn answered(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.epoll.readable().await?;
            self.epoll.get_ref().0.ready(&mut self.ready)?;
            if !self.ready.is_empty() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Gives clients what was answered.
    pub(super) fn carry_answers(&mut self) {
        for place in std::mem::take(&mut self.ready) {
            self.carry(place);
        }
        self.answers.flush();
        for _ in 0..std::mem::take(&mut self.answers.dropped) {
            self.telemetry.count(|c| &c.datagrams_unsent);
        }
    }

    fn carry(&mut self, place: u64) {
        let place = usize::try_from(place).ok().and_then(|place| self.places.get_mut(place)?.as_mut());
        let Some(upstream) = place else { return };
        // An error is an ICMP message: the client may ask again.
        if self.inbox.receive(&upstream.socket).is_err() {
            return;
        }
        for datagram in self.inbox.datagrams().filter(|datagram| !datagram.truncated) {
            upstream.received += datagram.bytes.len() as u64;
            self.answers.push(upstream.key.remote, upstream.key.client, datagram.bytes);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for upstream in self.places.drain(..).flatten() {
            upstream.record_end(&self.telemetry, "shutdown");
        }
    }
}

impl Upstream {
    fn record_end(self, telemetry: &Telemetry, closed_by: &'static str) {
        telemetry.record(self.closing.record(self.sent, self.received, closed_by));
    }
}

const MAX_DATAGRAM: usize = 65_535;
