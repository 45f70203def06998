//! The listeners of every worker: new ones, and those that a service manager holds, in whose queues waits what comes while no
//! tidegate runs.
//!
//! They are known by name: `tcp` and `udp` for inspected flows, `dns-tcp` and `dns-udp` for questions. A worker gets one of
//! each name and family, but for `dns-udp`, which only some have; of what is not held, each gets its own.
//!
//! Fails closed: a socket with another name, or of which some worker would get none, ends the start.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::hand_over::Spare;
use super::{BACKLOG, Crew, Listeners, dns, lacks_family};
use crate::sys::channel::Message;
use crate::sys::{activation, tcp, udp};

/// By the letter that [`super::hand_over`] has for each.
const NAMES: [(u8, &str); 4] = [(b't', "tcp"), (b'u', "udp"), (b'D', "dns-tcp"), (b'd', "dns-udp")];

type Sockets = Vec<OwnedFd>;

impl Listeners {
    /// With the sockets that were held, each under its name; `None` if there are none. There are as many workers as
    /// sockets of a kind.
    pub fn held(sockets: Vec<(String, OwnedFd)>, crew: &Crew) -> io::Result<Option<Self>> {
        let mut groups: BTreeMap<(u8, bool), Sockets> = BTreeMap::new();
        for (name, socket) in sockets {
            let Some((letter, _)) = NAMES.iter().find(|(_, own)| *own == name) else { return Err(unknown(&name)) };
            let is_ipv6 = tcp::local_address(&socket)?.is_ipv6();
            groups.entry((*letter, is_ipv6)).or_default().push(socket);
        }
        let Some(all) = groups.values().map(Vec::len).max() else { return Ok(None) };
        Self::of(groups, &Crew { all, ..*crew }).map(Some)
    }

    /// Opens them at ports of the kernel's choice. Nothing is accepted yet. A host without one of the families gets
    /// none for it, and the rules drop what it should have had.
    pub fn open(crew: &Crew) -> io::Result<Self> {
        Self::of(BTreeMap::new(), crew)
    }

    /// These, and new ones of every kind that is not among them.
    fn of(mut groups: BTreeMap<(u8, bool), Sockets>, crew: &Crew) -> io::Result<Self> {
        for (letter, _) in NAMES {
            for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                let group = groups.entry((letter, address.is_ipv6())).or_default();
                match group.len() {
                    0 => *group = open(letter, address, crew.of(letter))?,
                    _ => adapt(letter, address, group, crew.all)?,
                }
            }
        }
        Self::take_over(of_each_worker(groups, crew.all))
    }
}

impl Crew {
    fn of(&self, letter: u8) -> usize {
        if letter == b'd' { self.asked.clamp(1, self.all) } else { self.all }
    }
}

/// What each worker gets: the first ones, of what there is less of than workers.
fn of_each_worker(groups: BTreeMap<(u8, bool), Sockets>, workers: usize) -> Vec<Message> {
    let mut messages: Vec<_> = (0..workers).map(|_| Message { octets: Vec::new(), descriptors: Vec::new() }).collect();
    for ((letter, _), sockets) in groups {
        for (message, socket) in messages.iter_mut().zip(sockets) {
            message.octets.push(letter);
            message.descriptors.push(socket);
        }
    }
    messages
}

/// One for each of these workers, all at the port that the kernel gave the first; none on a host without the family.
fn open(letter: u8, address: IpAddr, workers: usize) -> io::Result<Sockets> {
    let mut sockets = Sockets::new();
    let mut at = SocketAddr::new(address, 0);
    for _ in 0..workers {
        let opened = match letter {
            b't' => tcp::listen(at, BACKLOG),
            b'D' => tcp::listen(at, dns::BACKLOG),
            _ => udp::listener(at).map(OwnedFd::from),
        };
        let socket = match opened {
            Err(error) if at.port() == 0 && lacks_family(&error) => return Ok(sockets),
            opened => opened?,
        };
        at = tcp::local_address(&socket)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Whoever opened them may not have known what TPROXY needs.
fn adapt(letter: u8, address: IpAddr, sockets: &[OwnedFd], workers: usize) -> io::Result<()> {
    let name = name_of(letter);
    if letter != b'd' && sockets.len() != workers {
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        return Err(io::Error::other(format!(
            "the service manager holds {} sockets `{name}` for {family} and {workers} of another kind: as many of each",
            sockets.len()
        )));
    }
    for socket in sockets {
        match letter {
            b't' | b'D' => tcp::adopt(socket.as_fd(), address),
            _ => udp::adopt(socket.as_fd(), address),
        }
        .map_err(|error| io::Error::new(error.kind(), format!("the socket `{name}` that is held: {error}")))?;
    }
    Ok(())
}

impl Spare {
    /// Has the service manager hold all of them, if it was told to hold as many.
    pub fn keep(&self) {
        let sockets: Vec<_> = self.sockets().collect();
        let room = activation::room();
        if room < sockets.len() {
            if room > 0 {
                tracing::warn!(sockets = sockets.len(), room, "the service manager has no room for the listeners");
            }
            return;
        }
        for (letter, socket) in sockets {
            if let Err(error) = activation::keep(name_of(letter), socket) {
                return tracing::warn!(%error, "the service manager does not hold the listeners");
            }
        }
    }
}

fn name_of(letter: u8) -> &'static str {
    NAMES.iter().find(|(own, _)| *own == letter).map_or("", |(_, name)| name)
}

fn unknown(name: &str) -> io::Error {
    let known = NAMES.map(|(_, name)| name).join(", ");
    io::Error::other(format!("the service manager gave a socket `{name}`: it can be one of {known}"))
}
