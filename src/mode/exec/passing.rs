//! The sockets that are opened inside and served from outside: one message, a letter for each descriptor.
//!
//! Fails closed: a message with a letter that nobody knows, or with too few descriptors, serves nothing.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};

use crate::firewall::Listener;
use crate::mode::gateway::dns;
use crate::mode::gateway::{Listeners, Sockets};
use crate::proxy::udp::Way;
use crate::sys::channel::{Channel, Message};
use crate::sys::ending::Ender;
use crate::sys::udp::Outbox;

/// What is served from outside.
pub(super) struct Passed {
    pub(super) listeners: Listeners,
    /// `--host-port`, in the order in which they were asked for; each port once for each family that exists.
    pub(super) host_ports: Vec<TcpListener>,
}

/// Opened inside.
pub(super) fn pass(to: &Channel, listeners: Listeners, host_ports: Vec<TcpListener>) -> io::Result<()> {
    let mut parcel = Parcel::default();
    for worker in listeners.workers {
        worker.tcp.into_iter().for_each(|socket| parcel.add(b't', socket));
        for (socket, _) in worker.udp {
            parcel.add(b'u', socket.into());
            parcel.add_outbox(b"oO", Outbox::new(None)?);
        }
        let (nft, icmp, icmpv6) = worker.ender.into_sockets();
        parcel.add(b'n', nft);
        parcel.add(b'i', icmp);
        icmpv6.into_iter().for_each(|socket| parcel.add(b'I', socket));
    }
    for worker in listeners.dns.workers {
        worker.udp.into_iter().for_each(|socket| parcel.add(b'd', socket.into()));
        worker.tcp.into_iter().for_each(|socket| parcel.add(b'D', socket));
        parcel.add_outbox(b"rR", worker.outbox);
    }
    host_ports.into_iter().for_each(|socket| parcel.add(b'h', socket.into()));
    let descriptors: Vec<_> = parcel.descriptors.iter().map(AsFd::as_fd).collect();
    to.send(&parcel.letters, &descriptors)
}

#[derive(Default)]
struct Parcel {
    letters: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Parcel {
    fn add(&mut self, letter: u8, descriptor: OwnedFd) {
        self.letters.push(letter);
        self.descriptors.push(descriptor);
    }

    fn add_outbox(&mut self, [v4, v6]: &[u8; 2], outbox: Outbox) {
        let (socket, socket_v6) = outbox.into_sockets();
        self.add(*v4, socket);
        socket_v6.into_iter().for_each(|socket| self.add(*v6, socket));
    }
}

/// Arrived outside.
pub(super) fn take(message: Message) -> io::Result<Passed> {
    let mut shelf = Shelf { letters: message.octets, descriptors: message.descriptors };
    let tcp = shelf.all(b't');
    let udp = shelf.all(b'u').into_iter().map(|socket| {
        let outbox = Outbox::from_sockets(shelf.one(b'o')?, shelf.maybe(b'O'));
        Ok((socket.into(), Way::Relay(outbox)))
    });
    let udp = udp.collect::<io::Result<_>>()?;
    let ender = Ender::from_sockets(shelf.one(b'n')?, shelf.one(b'i')?, shelf.maybe(b'I'));
    let dns = dns::Sockets {
        udp: shelf.all(b'd').into_iter().map(Into::into).collect(),
        tcp: shelf.all(b'D'),
        outbox: Outbox::from_sockets(shelf.one(b'r')?, shelf.maybe(b'R')),
    };
    let host_ports = shelf.all(b'h').into_iter().map(TcpListener::from).collect();
    if !shelf.letters.is_empty() || !shelf.descriptors.is_empty() || tcp.is_empty() {
        return Err(incomplete());
    }
    // The rules that name the ports stand already.
    let none = Listener { v4: None, v6: None };
    let listeners = Listeners {
        tcp: none,
        udp: none,
        dns: dns::Listeners { udp: none, tcp: none, workers: vec![dns] },
        workers: vec![Sockets { tcp, udp, ender }],
    };
    Ok(Passed { listeners, host_ports })
}

struct Shelf {
    letters: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Shelf {
    fn maybe(&mut self, letter: u8) -> Option<OwnedFd> {
        let place = self.letters.iter().position(|own| *own == letter)?;
        self.letters.remove(place);
        (place < self.descriptors.len()).then(|| self.descriptors.remove(place))
    }

    fn one(&mut self, letter: u8) -> io::Result<OwnedFd> {
        self.maybe(letter).ok_or_else(incomplete)
    }

    fn all(&mut self, letter: u8) -> Vec<OwnedFd> {
        std::iter::from_fn(|| self.maybe(letter)).collect()
    }
}

fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the sockets of the namespace did not arrive whole")
}
