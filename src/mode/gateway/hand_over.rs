//! The sockets of a gateway on their way to another process: a message for each worker, a letter for each descriptor.
//!
//! Both processes hold the same sockets for a moment, so that no queue is ever closed: what waits in it is taken by the
//! one or by the other (SPEC R8).
//!
//! Fails closed: a message with a letter that nobody knows, or with too few descriptors, is not taken over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Listeners, Sockets, dns};
use crate::firewall::Listener;
use crate::proxy::udp::Way;
use crate::sys::channel::{Channel, Message};
use crate::sys::ending::Ender;
use crate::sys::tcp;
use crate::sys::udp::Outbox;

/// The listeners of every worker once more, kept for whoever takes over.
#[derive(Debug)]
pub struct Spare(Vec<Vec<(u8, OwnedFd)>>);

impl Spare {
    pub fn of(listeners: &Listeners) -> io::Result<Self> {
        let worker = |(own, dns): (&Sockets, &dns::Sockets)| {
            let tcp = own.tcp.iter().map(|socket| (b't', socket.as_fd()));
            let udp = own.udp.iter().map(|(socket, _)| (b'u', socket.as_fd()));
            let dns_udp = dns.udp.iter().map(|socket| (b'd', socket.as_fd()));
            let dns_tcp = dns.tcp.iter().map(|socket| (b'D', socket.as_fd()));
            let all = tcp.chain(udp).chain(dns_udp).chain(dns_tcp);
            all.map(|(letter, socket)| Ok((letter, socket.try_clone_to_owned()?))).collect()
        };
        listeners.workers.iter().zip(&listeners.dns.workers).map(worker).collect::<io::Result<_>>().map(Self)
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// All of them, each with its letter.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (u8, BorrowedFd<'_>)> {
        self.0.iter().flatten().map(|(letter, socket)| (*letter, socket.as_fd()))
    }

    /// One message for each worker.
    pub fn send(&self, to: &Channel) -> io::Result<()> {
        for worker in &self.0 {
            let letters: Vec<u8> = worker.iter().map(|(letter, _)| *letter).collect();
            let sockets: Vec<BorrowedFd<'_>> = worker.iter().map(|(_, socket)| socket.as_fd()).collect();
            to.send(&letters, &sockets)?;
        }
        Ok(())
    }
}

impl Listeners {
    /// Those of another process, from so many messages as it has workers.
    pub fn take_over(messages: Vec<Message>) -> io::Result<Self> {
        let none = Listener { v4: None, v6: None };
        let dns = dns::Listeners { udp: none, tcp: none, workers: Vec::new() };
        let mut all = Self { tcp: none, udp: none, dns, workers: Vec::new() };
        for message in messages {
            all.add(message)?;
        }
        if all.workers.is_empty() {
            return Err(incomplete());
        }
        Ok(all)
    }

    fn add(&mut self, message: Message) -> io::Result<()> {
        if message.octets.len() != message.descriptors.len() {
            return Err(incomplete());
        }
        let mut own = Sockets { tcp: Vec::new(), udp: Vec::new(), ender: Ender::open()? };
        let mut dns = dns::Sockets { udp: Vec::new(), tcp: Vec::new(), outbox: Outbox::new(None)? };
        for (letter, socket) in message.octets.into_iter().zip(message.descriptors) {
            let at = tcp::local_address(&socket)?;
            // The rules must name its port.
            let ports = match letter {
                b't' => {
                    own.tcp.push(socket);
                    &mut self.tcp
                }
                b'u' => {
                    own.udp.push((socket.into(), Way::Kernel));
                    &mut self.udp
                }
                b'd' => {
                    dns.udp.push(socket.into());
                    &mut self.dns.udp
                }
                b'D' => {
                    dns.tcp.push(socket);
                    &mut self.dns.tcp
                }
                _ => return Err(incomplete()),
            };
            let port = if at.is_ipv4() { &mut ports.v4 } else { &mut ports.v6 };
            if port.is_some_and(|port| port != at.port()) {
                return Err(incomplete());
            }
            *port = Some(at.port());
        }
        self.workers.push(own);
        self.dns.workers.push(dns);
        Ok(())
    }
}

fn incomplete() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the sockets that were to be taken over did not arrive whole")
}
