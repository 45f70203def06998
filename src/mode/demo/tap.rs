//! What arrives at one end of the lab: at the server's, the proof that a blocked flow sent nothing; at the client's,
//! what a refusal looks like on the wire.
//!
//! A packet socket for each family gives every packet in the order of arrival, and a thread keeps them. Counting first
//! sends a sentinel from the gateway and waits until it is there, so whatever was sent before the count is in the
//! count: no guessing how long a packet may take.
//!
//! Fails closed: a sentinel that does not come (lost with others to a full buffer, perhaps) is an error, never
//! "nothing was seen".

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::lab::{Lab, client_address, server_address};
use crate::sys::netns::Namespace;
use crate::sys::rtnl::Family;

/// A packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Ports are 0 where the protocol has none.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub kind: Kind,
    /// Where the packet was going that an ICMP error is about.
    pub quoted: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment that opens a connection.
    Syn,
    Reset,
    /// Any other TCP segment.
    Segment,
    Datagram,
    /// ICMP or ICMPv6, but not the neighbour discovery that IPv6 lives by.
    Icmp {
        kind: u8,
        code: u8,
    },
}

/// Sees all that arrives in one namespace from its making on.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    /// The address in that namespace that the gateway sends sentinels to, by family.
    end: fn(Family) -> IpAddr,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Packet>>,
    more: Condvar,
    ended: AtomicBool,
}

impl Tap {
    pub fn at_server(lab: &Lab) -> io::Result<Self> {
        Self::new(&lab.server, server_address)
    }

    pub fn at_client(lab: &Lab) -> io::Result<Self> {
        Self::new(&lab.client, |family| client_address(family, 0))
    }

    fn new(namespace: &Namespace, end: fn(Family) -> IpAddr) -> io::Result<Self> {
        let tap = Self { shared: Arc::default(), end };
        // Sockets for all protocols would see what leaves, too.
        for protocol in [ETHERTYPE_IPV4, ETHERTYPE_IPV6] {
            let socket = namespace.run(|| open(protocol))??;
            let shared = Arc::clone(&tap.shared);
            std::thread::Builder::new().name("tap".to_owned()).spawn(move || shared.keep(socket))?;
        }
        Ok(tap)
    }

    /// Every packet that was sent here before this call, and fits.
    pub fn packets(&self, lab: &Lab, fits: impl Fn(&Packet) -> bool) -> io::Result<Vec<Packet>> {
        self.catch_up(lab)?;
        Ok(self.shared.seen().iter().copied().filter(fits).collect())
    }

    /// How many packets were sent to `destination` before this call.
    pub fn count(&self, lab: &Lab, destination: SocketAddr) -> io::Result<usize> {
        Ok(self.packets(lab, |packet| packet.destination == destination)?.len())
    }

    fn catch_up(&self, lab: &Lab) -> io::Result<()> {
        // A port of its own for each: another tap's sentinel must not pass for ours.
        static SENTINELS: AtomicU16 = AtomicU16::new(0);
        let port = FIRST_SENTINEL_PORT + SENTINELS.fetch_add(1, Ordering::Relaxed) % SENTINEL_PORTS;
        for family in Family::BOTH {
            let sentinel = SocketAddr::new((self.end)(family), port);
            lab.gateway.run(|| UdpSocket::bind("[::]:0")?.send_to(b"sentinel", sentinel))??;
            self.shared.wait_for(sentinel)?;
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

fn open(protocol: u16) -> io::Result<Socket> {
    // The kernel wants it in network order.
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(LOOK_FOR_END))?;
    Ok(socket)
}

impl Shared {
    /// Keeps what arrives until the tap is gone.
    fn keep(&self, mut socket: Socket) {
        let mut head = [0; HEAD];
        while !self.ended.load(Ordering::Relaxed) {
            match socket.read(&mut head) {
                Ok(length) => {
                    if let Some(packet) = head.get(..length).and_then(read_packet) {
                        self.seen().push(packet);
                        self.more.notify_all();
                    }
                }
                Err(e)
                    if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NetworkDown) => {}
                Err(_) => return,
            }
        }
    }

    fn wait_for(&self, sentinel: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + SENTINEL_DEADLINE;
        let mut seen = self.seen();
        let mut looked_at = 0;
        loop {
            let new = seen.get(looked_at..).unwrap_or_default();
            if new.iter().any(|packet| packet.destination == sentinel) {
                return Ok(());
            }
            looked_at = seen.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(ErrorKind::TimedOut, "a sentinel never arrived"));
            }
            seen = self.more.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Packet>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_packet(packet: &[u8]) -> Option<Packet> {
    match packet.first()? >> 4 {
        4 => {
            let source = IpAddr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
            let destination = IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
            let header = usize::from(packet.first()? & 0x0f) * 4;
            read_ports(*packet.get(9)?, source, destination, packet.get(header..)?)
        }
        6 => {
            let source = IpAddr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
            let destination = IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?);
            read_ports(*packet.get(6)?, source, destination, packet.get(40..)?)
        }
        _ => None,
    }
}

fn read_ports(protocol: u8, source: IpAddr, destination: IpAddr, transport: &[u8]) -> Option<Packet> {
    let &[first, second, third, fourth, ..] = transport else { return None };
    let is_discovery = matches!(first, 130..=137 | 143);
    let kind = match protocol {
        TCP => match *transport.get(13)? & (SYN | ACK | RST) {
            SYN => Kind::Syn,
            flags if flags & RST != 0 => Kind::Reset,
            _ => Kind::Segment,
        },
        UDP => Kind::Datagram,
        ICMP => Kind::Icmp { kind: first, code: second },
        ICMPV6 if !is_discovery => Kind::Icmp { kind: first, code: second },
        _ => return None,
    };
    let (from, to) = match kind {
        Kind::Icmp { .. } => (0, 0),
        _ => (u16::from_be_bytes([first, second]), u16::from_be_bytes([third, fourth])),
    };
    let quoted = match kind {
        Kind::Icmp { .. } => transport.get(ICMP_HEADER..).and_then(read_packet).map(|quoted| quoted.destination),
        _ => None,
    };
    Some(Packet { source: SocketAddr::new(source, from), destination: SocketAddr::new(destination, to), kind, quoted })
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER: usize = 8;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longer than both headers with all their options, and than the same again behind one of ICMP.
const HEAD: usize = 240;
/// How often a thread looks whether its tap is gone.
const LOOK_FOR_END: Duration = Duration::from_millis(200);
const SENTINEL_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_SENTINEL_PORT: u16 = 20_000;
const SENTINEL_PORTS: u16 = 10_000;

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn packets_are_told_apart_by_family_and_kind() {
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        v4.extend([0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02]);
        let packet = read_packet(&v4).unwrap();
        assert_eq!(packet.source, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(packet.destination, "10.0.0.2:443".parse().unwrap());
        assert_eq!(packet.kind, Kind::Syn);
        for (flags, kind) in [(0x12, Kind::Segment), (0x14, Kind::Reset), (0x04, Kind::Reset)] {
            *v4.last_mut().unwrap() = flags;
            assert_eq!(read_packet(&v4).unwrap().kind, kind);
        }

        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 53, 0x01, 0xbb, 0, 8, 0, 0]);
        let packet = read_packet(&v6).unwrap();
        assert_eq!(packet.destination, "[2001:db8::2]:443".parse().unwrap());
        assert_eq!(packet.kind, Kind::Datagram);
    }

    #[test]
    fn a_packet_cut_short_is_no_packet() {
        let v4 = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        for length in 0..v4.len() {
            assert_eq!(read_packet(&v4[..length]), None);
        }
        assert_eq!(read_packet(&[0xff; 60]), None);
    }
}
