//! What arrives at the server's link: the proof that a blocked flow sent nothing.
//!
//! A packet socket keeps every packet in the order of arrival. Counting first sends a sentinel from the gateway and
//! reads up to it, so whatever was sent before the count is in the count: no waiting, no guessing.
//!
//! Fails closed: a sentinel that does not come is an error, never "nothing was seen".

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::lab::{Lab, server_address};
use crate::sys::rtnl::Family;

/// A TCP segment or UDP datagram (or a fragment's first part) that reached the server's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment that opens a connection.
    Syn,
    /// Any other TCP segment.
    Segment,
    Datagram,
}

/// Sees all that arrives in the server's namespace from its making on.
#[derive(Debug)]
pub struct Tap {
    socket: Socket,
    seen: Vec<Packet>,
    sentinels: u16,
}

impl Tap {
    pub fn new(lab: &Lab) -> io::Result<Self> {
        let socket = lab.server.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ETH_P_ALL_ON_THE_WIRE)))?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            socket.set_read_timeout(Some(SENTINEL_DEADLINE))?;
            io::Result::Ok(socket)
        })??;
        Ok(Self { socket, seen: Vec::new(), sentinels: 0 })
    }

    /// Every packet that was sent to the server before this call, and fits.
    pub fn packets(&mut self, lab: &Lab, fits: impl Fn(&Packet) -> bool) -> io::Result<Vec<Packet>> {
        self.catch_up(lab)?;
        Ok(self.seen.iter().copied().filter(fits).collect())
    }

    /// How many packets were sent to `destination` before this call.
    pub fn count(&mut self, lab: &Lab, destination: SocketAddr) -> io::Result<usize> {
        Ok(self.packets(lab, |packet| packet.destination == destination)?.len())
    }

    /// Each family has its own wait for the neighbour's address, so each has its own sentinel.
    fn catch_up(&mut self, lab: &Lab) -> io::Result<()> {
        Family::BOTH.iter().try_for_each(|family| self.read_to_sentinel(lab, *family))
    }

    fn read_to_sentinel(&mut self, lab: &Lab, family: Family) -> io::Result<()> {
        self.sentinels = self.sentinels.wrapping_add(1);
        let port = FIRST_SENTINEL_PORT.saturating_add(self.sentinels % SENTINEL_PORTS);
        let sentinel = SocketAddr::new(server_address(family), port);
        lab.gateway.run(|| UdpSocket::bind("[::]:0")?.send_to(b"sentinel", sentinel))??;
        let deadline = Instant::now() + SENTINEL_DEADLINE;
        let mut head = [0; HEAD];
        loop {
            let length = (&self.socket).read(&mut head)?;
            match head.get(..length).and_then(read_packet) {
                Some(packet) if packet.destination == sentinel => return Ok(()),
                Some(packet) => self.seen.push(packet),
                None => {}
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the sentinel never reached the server"));
            }
        }
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
    let &[s0, s1, d0, d1, ..] = transport else { return None };
    let kind = match protocol {
        6 if transport.get(13)? & 0x12 == 0x02 => Kind::Syn,
        6 => Kind::Segment,
        17 => Kind::Datagram,
        _ => return None,
    };
    let source = SocketAddr::new(source, u16::from_be_bytes([s0, s1]));
    let destination = SocketAddr::new(destination, u16::from_be_bytes([d0, d1]));
    Some(Packet { source, destination, kind })
}

/// ETH_P_ALL as the kernel wants it: in network order.
const ETH_P_ALL_ON_THE_WIRE: i32 = 0x0003_u16.to_be() as i32;
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longer than both headers with all their options.
const HEAD: usize = 160;
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
        *v4.last_mut().unwrap() = 0x12;
        assert_eq!(read_packet(&v4).unwrap().kind, Kind::Segment);

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
