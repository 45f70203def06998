//! The sockets from which resolvers are asked, each at a port drawn at random.
//!
//! An answer counts only if it comes to the port that asked, from the address that was asked (the sockets are connected),
//! with the id of a question that waits there. Fails closed: all else is thrown away, and the wait goes on.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use ring::rand::{SecureRandom, SystemRandom};

use crate::sys::epoll::Epoll;
use crate::sys::udp::{self, Inbox};

/// Open sockets, by the place that is the key of their events.
#[derive(Debug)]
pub struct Ports {
    places: Vec<Option<Port>>,
    free: Vec<u32>,
    /// The places from which each upstream resolver is asked with this host's own address.
    pools: HashMap<SocketAddr, Vec<u32>>,
    random: Random,
    pool: usize,
    uses: u32,
}

#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    uses_left: u32,
    /// Ids in flight, each with whom its answer is for. So few that they are looked through.
    waiting: Vec<(u16, u32)>,
}

/// A question in flight: where its answer must come, and with which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub place: u32,
    pub id: u16,
}

impl Ports {
    /// `pool` sockets for each upstream resolver, each for `uses` questions.
    pub fn new(pool: usize, uses: u32) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            pools: HashMap::new(),
            random: Random::default(),
            pool: pool.max(1),
            uses: uses.max(1),
        }
    }

    /// Asks `resolver`, from a socket of its own at the address of `client`, or from a pooled one of this host.
    /// The query leaves with a fresh id, and its answer will be told by `token`.
    pub fn ask(
        &mut self,
        epoll: &Epoll,
        client: Option<SocketAddr>,
        resolver: SocketAddr,
        query: &mut [u8],
        token: u32,
    ) -> io::Result<Ticket> {
        let place = match client {
            Some(client) => self.open(epoll, Some(client), resolver, 1)?,
            None => self.pooled(epoll, resolver)?,
        };
        let ticket = self.ticket(place)?;
        if let Some(id) = query.get_mut(..2) {
            id.copy_from_slice(&ticket.id.to_be_bytes());
        }
        let port = self.port(place)?;
        port.uses_left = port.uses_left.saturating_sub(1);
        port.waiting.push((ticket.id, token));
        // A refusal of an earlier question is told to whoever sends next: then the second attempt goes out.
        let sent = port.socket.send(query).or_else(|_| port.socket.send(query));
        match sent {
            Ok(_) => Ok(ticket),
            Err(error) => {
                self.forget(ticket);
                Err(error)
            }
        }
    }

    /// Who waits at `place` for an answer with this id.
    pub fn waiter(&self, place: u32, id: u16) -> Option<u32> {
        let port = self.places.get(place as usize)?.as_ref()?;
        port.waiting.iter().find(|(own, _)| *own == id).map(|(_, token)| *token)
    }

    /// The question is answered or given up. Its socket goes with the last question that may leave from it.
    pub fn forget(&mut self, ticket: Ticket) {
        let Ok(port) = self.port(ticket.place) else { return };
        let Some(at) = port.waiting.iter().position(|(id, _)| *id == ticket.id) else { return };
        port.waiting.swap_remove(at);
        if port.waiting.is_empty() && port.uses_left == 0 {
            self.close(ticket.place);
        }
    }

    /// Receives what has come to `place`.
    pub fn receive(&mut self, place: u32, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.receive(&self.port(place)?.socket)
    }

    fn port(&mut self, place: u32) -> io::Result<&mut Port> {
        self.places.get_mut(place as usize).and_then(Option::as_mut).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn pooled(&mut self, epoll: &Epoll, resolver: SocketAddr) -> io::Result<u32> {
        let pool = self.pool;
        let draw = self.random.next()? as usize % pool;
        let places = self.pools.entry(resolver).or_default();
        if let Some(place) = places.get(draw).copied()
            && self.port(place).is_ok_and(|port| port.uses_left > 0)
        {
            return Ok(place);
        }
        let fresh = self.open(epoll, None, resolver, self.uses)?;
        let places = self.pools.entry(resolver).or_default();
        match places.get_mut(draw) {
            Some(place) => *place = fresh,
            None => places.push(fresh),
        }
        Ok(fresh)
    }

    fn open(&mut self, epoll: &Epoll, client: Option<SocketAddr>, resolver: SocketAddr, uses: u32) -> io::Result<u32> {
        let socket = self.bind(client, resolver)?;
        socket.connect(resolver)?;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(None);
                u32::try_from(self.places.len() - 1).map_err(|_| io::ErrorKind::OutOfMemory)?
            }
        };
        if let Err(error) = epoll.watch_input(&socket, place.into()) {
            self.free.push(place);
            return Err(error);
        }
        if let Some(slot) = self.places.get_mut(place as usize) {
            *slot = Some(Port { socket, uses_left: uses, waiting: Vec::new() });
        }
        Ok(place)
    }

    /// A socket at a random port; if several are taken, at one of the kernel's choice.
    fn bind(&mut self, client: Option<SocketAddr>, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let unspecified: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let mut source = client.unwrap_or(unspecified);
        for _ in 0..TRIES {
            let port = FIRST_PORT + self.random.next()? % (u16::MAX - FIRST_PORT);
            source.set_port(port);
            match udp::from(source, client.is_some()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
        source.set_port(0);
        udp::from(source, client.is_some())
    }

    fn ticket(&mut self, place: u32) -> io::Result<Ticket> {
        loop {
            let id = self.random.next()?;
            if self.waiter(place, id).is_none() {
                return Ok(Ticket { place, id });
            }
        }
    }

    fn close(&mut self, place: u32) {
        if let Some(slot) = self.places.get_mut(place as usize).filter(|slot| slot.is_some()) {
            *slot = None;
            self.free.push(place);
            for places in self.pools.values_mut() {
                places.retain(|pooled| *pooled != place);
            }
        }
    }
}

/// Numbers that nobody can foretell, drawn from the kernel many at a time.
#[derive(Debug)]
struct Random {
    source: SystemRandom,
    drawn: [u8; DRAWN],
    used: usize,
}

impl Default for Random {
    fn default() -> Self {
        Self { source: SystemRandom::new(), drawn: [0; DRAWN], used: DRAWN }
    }
}

impl Random {
    fn next(&mut self) -> io::Result<u16> {
        if self.used >= DRAWN {
            self.source.fill(&mut self.drawn).map_err(|_| io::Error::other("no randomness"))?;
            self.used = 0;
        }
        let number = self.drawn.get(self.used..).and_then(|rest| rest.first_chunk().copied());
        self.used += 2;
        Ok(u16::from_ne_bytes(number.unwrap_or_default()))
    }
}

/// Below it are ports that services listen on.
const FIRST_PORT: u16 = 1024;
const TRIES: usize = 8;
const DRAWN: usize = 512;
