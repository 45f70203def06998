//! Ending a flow that was captured: what the client sees, and that nobody sees more (SPEC E1).
//!
//! | action | TCP | UDP |
//! |---|---|---|
//! | reset | RST at once | none: unreachable |
//! | unreachable | ICMP administratively prohibited, then RST: an established socket ignores the ICMP | the ICMP |
//! | discard | no packet, and none later: the client's segments find a drop rule where the socket was | the drop rule |
//!
//! Fails closed: whatever cannot be done as asked, a full set or a missing privilege, still ends the flow, by a reset,
//! and is told to the caller to be counted.

mod icmp;
mod repair;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::firewall::{FlowKey, FlowSet};
use crate::policy::{DropAction, Transport};
use crate::sys::nft::NftSocket;
use crate::sys::tcp::reset;
use icmp::{IcmpSocket, Refused};

/// Ends flows of the network namespace in which it was opened. Its calls block for microseconds; each worker may have
/// one of its own.
#[derive(Debug)]
pub struct Ender {
    nft: NftSocket,
    icmp: IcmpSocket,
    /// When the kernel had no room last.
    full: Option<Instant>,
}

/// How a flow ended.
#[derive(Debug)]
pub enum Ended {
    AsAsked,
    /// A client that should have seen something else, or nothing, has seen a reset.
    Reset {
        why: io::Error,
    },
}

impl Ender {
    /// Needs CAP_NET_ADMIN and CAP_NET_RAW over the namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self { nft: NftSocket::open()?, icmp: IcmpSocket::open()?, full: None })
    }

    /// One whose sockets were opened elsewhere, by [`Self::into_sockets`] of another process.
    pub fn from_sockets(nft: OwnedFd, icmp: OwnedFd, icmpv6: Option<OwnedFd>) -> Self {
        Self { nft: NftSocket::from_socket(nft), icmp: IcmpSocket::from_sockets(icmp, icmpv6), full: None }
    }

    /// Its sockets: nf_tables, ICMP, ICMPv6.
    pub fn into_sockets(self) -> (OwnedFd, OwnedFd, Option<OwnedFd>) {
        let (icmp, icmpv6) = self.icmp.into_sockets();
        (self.nft.into_socket(), icmp, icmpv6)
    }

    /// Ends a captured connection: its local address is the original destination. Nothing may lie in its send queue.
    pub fn end(&mut self, stream: OwnedFd, action: DropAction) -> Ended {
        let done = match action {
            DropAction::TcpReset => Ok(()),
            DropAction::IcmpUnreachable => self.send_unreachable(&stream),
            DropAction::Discard => self.silence(&stream),
        };
        match (action, done) {
            (DropAction::Discard, Ok(())) => Ended::AsAsked,
            (_, Ok(())) => {
                reset(stream);
                Ended::AsAsked
            }
            // The client has gone by itself.
            (_, Err(why)) if why.kind() == io::ErrorKind::NotConnected => {
                reset(stream);
                Ended::AsAsked
            }
            (_, Err(why)) => {
                reset(stream);
                Ended::Reset { why }
            }
        }
    }

    /// Tells the sender of a datagram that it is administratively prohibited, quoting the datagram.
    pub fn refuse_datagram(&self, client: SocketAddr, remote: SocketAddr, payload: &[u8]) -> io::Result<()> {
        self.icmp.send(&Refused::datagram(client, remote, payload))
    }

    /// From now on the packets of a TCP flow vanish (those of UDP: [`FlowSet::Silenced`]), until it has been quiet for
    /// `silence` (`None`: five minutes; later packets count five minutes in any case).
    pub fn discard_flow(&mut self, flow: &FlowKey, silence: Option<Duration>) -> io::Result<()> {
        let now = Instant::now();
        if self.full.is_some_and(|full| now.duration_since(full) < FULL) {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let done = self.nft.add_flow(FlowSet::Discarded, flow, silence);
        self.full = done.as_ref().err().filter(|error| error.source.raw_os_error() == Some(libc::ENFILE)).map(|_| now);
        Ok(done?)
    }

    fn send_unreachable(&self, stream: &impl AsFd) -> io::Result<()> {
        let (client, remote) = ends(stream)?;
        let sequence = repair::received(stream)?;
        self.icmp.send(&Refused::segment(client, remote, sequence))
    }

    /// In this order: once the drop rule stands, the socket may go without a word and no segment finds its place empty.
    fn silence(&mut self, stream: &impl AsFd) -> io::Result<()> {
        let (client, remote) = ends(stream)?;
        self.discard_flow(&FlowKey { transport: Transport::Tcp, client, remote }, None)?;
        repair::mute(stream)
    }
}

/// To be refused by a full set takes the kernel milliseconds, in which nobody else is served: it is not asked again at once.
const FULL: Duration = Duration::from_secs(1);

fn ends(stream: &impl AsFd) -> io::Result<(SocketAddr, SocketAddr)> {
    let socket = SockRef::from(stream);
    let address = |found: socket2::SockAddr| found.as_socket().ok_or(io::ErrorKind::Unsupported);
    Ok((address(socket.peer_addr()?)?, address(socket.local_addr()?)?))
}
