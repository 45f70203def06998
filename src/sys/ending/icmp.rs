//! ICMP "administratively prohibited" from the gateway, quoting the packet that it is about.
//!
//! RFC 792 and RFC 1812 section 5.2.7.1 (type 3, code 13), RFC 4443 section 3.1 (type 1, code 1).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::firewall::{TCP, UDP};

/// Raw sockets that send and never receive. A kernel without IPv6 has only the one.
#[derive(Debug)]
pub(super) struct IcmpSocket {
    v4: Socket,
    v6: Option<Socket>,
}

/// A packet that is refused, as far as the answer quotes it.
#[derive(Debug)]
pub(super) struct Refused {
    client: SocketAddr,
    remote: SocketAddr,
    protocol: u8,
    /// The header above IP, and what followed it.
    transport: Vec<u8>,
    /// The length that the transport part had in full.
    length: usize,
}

impl IcmpSocket {
    pub(super) fn open() -> io::Result<Self> {
        let v4 = raw(Domain::IPV4, Protocol::ICMPV4)?;
        let v6 = match raw(Domain::IPV6, Protocol::ICMPV6) {
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other?),
        };
        Ok(Self { v4, v6 })
    }

    pub(super) fn from_sockets(v4: OwnedFd, v6: Option<OwnedFd>) -> Self {
        Self { v4: v4.into(), v6: v6.map(Socket::from) }
    }

    pub(super) fn into_sockets(self) -> (OwnedFd, Option<OwnedFd>) {
        (self.v4.into(), self.v6.map(OwnedFd::from))
    }

    pub(super) fn send(&self, refused: &Refused) -> io::Result<()> {
        let mut to = refused.client;
        // To a raw socket the port is the protocol.
        to.set_port(0);
        match (refused.client.ip().to_canonical(), refused.remote.ip().to_canonical()) {
            (IpAddr::V4(client), IpAddr::V4(remote)) => {
                to.set_ip(client.into());
                self.v4.send_to(&message_v4(refused, client, remote), &to.into())?;
            }
            (IpAddr::V6(client), IpAddr::V6(remote)) => {
                let socket = self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                socket.send_to(&message_v6(refused, client, remote), &to.into())?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}

impl Refused {
    /// `sequence`: that of the segment, or any that the client has sent and not given up.
    pub(super) fn segment(client: SocketAddr, remote: SocketAddr, sequence: u32) -> Self {
        const HEADER_OF_FIVE_WORDS: u8 = 5 << 4;
        const ACK: u8 = 0x10;
        let mut transport = ports(client, remote);
        transport.extend(sequence.to_be_bytes());
        transport.extend([0; 4]);
        transport.extend([HEADER_OF_FIVE_WORDS, ACK, 0, 0]);
        transport.extend([0; 4]);
        let length = transport.len();
        Self { client, remote, protocol: TCP, transport, length }
    }

    pub(super) fn datagram(client: SocketAddr, remote: SocketAddr, payload: &[u8]) -> Self {
        const HEADER: usize = 8;
        let length = HEADER + payload.len();
        let mut transport = ports(client, remote);
        transport.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        transport.extend([0; 2]);
        transport.extend(payload.iter().take(LONGEST_QUOTE));
        Self { client, remote, protocol: UDP, transport, length }
    }
}

fn message_v4(refused: &Refused, client: Ipv4Addr, remote: Ipv4Addr) -> Vec<u8> {
    const UNREACHABLE: u8 = 3;
    const ADMINISTRATIVELY_PROHIBITED: u8 = 13;
    const IP_HEADER: usize = 20;
    /// RFC 1812 section 4.3.2.3: the answer is at most 576 bytes long.
    const LONGEST_V4_QUOTE: usize = 576 - 2 * IP_HEADER - 8;
    let total = u16::try_from(IP_HEADER + refused.length).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, QUOTED_HOPS, refused.protocol, 0, 0]);
    header.extend(client.octets());
    header.extend(remote.octets());
    write_checksum(&mut header, 10);

    let mut message = vec![UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0, 0, 0, 0, 0, 0];
    message.extend(header);
    message.extend(refused.transport.iter().take(LONGEST_V4_QUOTE));
    write_checksum(&mut message, 2);
    message
}

/// The kernel fills the checksum in.
fn message_v6(refused: &Refused, client: Ipv6Addr, remote: Ipv6Addr) -> Vec<u8> {
    const UNREACHABLE: u8 = 1;
    const ADMINISTRATIVELY_PROHIBITED: u8 = 1;
    let mut message = vec![UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0, 0, 0, 0, 0, 0];
    message.extend([0x60, 0, 0, 0]);
    message.extend(u16::try_from(refused.length).unwrap_or(u16::MAX).to_be_bytes());
    message.extend([refused.protocol, QUOTED_HOPS]);
    message.extend(client.octets());
    message.extend(remote.octets());
    message.extend(&refused.transport);
    message
}

fn ports(client: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    [client.port().to_be_bytes(), remote.port().to_be_bytes()].concat()
}

/// RFC 1071, over bytes whose checksum field is zero.
fn write_checksum(bytes: &mut [u8], at: usize) {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or(u16::MAX);
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

/// What a raw socket receives nobody would read: every ICMP packet of the host.
fn raw(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    refuse_everything(&socket, domain)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refuse_everything(socket: &Socket, domain: Domain) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const SOL_RAW: libc::c_int = 255;
    const ICMP_FILTER: libc::c_int = 1;
    const ICMPV6_FILTER: libc::c_int = 1;
    // One bit for each type. ICMP knows 32 types, ICMPv6 has 256.
    let all = [u32::MAX; 8];
    let (level, option, words) =
        if domain == Domain::IPV4 { (SOL_RAW, ICMP_FILTER, 1) } else { (libc::IPPROTO_ICMPV6, ICMPV6_FILTER, 8) };
    let length = (words * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel reads `length` bytes, at most those of `all`.
    #[allow(unsafe_code)]
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, all.as_ptr().cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const QUOTED_HOPS: u8 = 63;
/// RFC 4443 section 2.4 (c): the answer fits the smallest MTU, 1,280 bytes, with two IPv6 headers, its own and UDP's.
const LONGEST_QUOTE: usize = 1280 - 2 * 40 - 8 - 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quote_shows_whose_packet_was_refused() {
        let refused =
            Refused::segment("10.1.0.2:41000".parse().unwrap(), "203.0.113.7:443".parse().unwrap(), 0x01020304);
        let message = message_v4(&refused, [10, 1, 0, 2].into(), [203, 0, 113, 7].into());
        assert_eq!(message[..2], [3, 13]);
        let (ip, tcp) = message[8..].split_at(20);
        assert_eq!(ip[..4], [0x45, 0, 0, 40]);
        assert_eq!(ip[9], 6);
        assert_eq!(ip[12..], [10, 1, 0, 2, 203, 0, 113, 7]);
        assert_eq!(tcp[..8], [0xa0, 0x28, 0x01, 0xbb, 1, 2, 3, 4]);
        for summed in [&message[..], ip] {
            let mut sum = summed.to_vec();
            sum.extend([0; 2]);
            let end = sum.len() - 2;
            write_checksum(&mut sum, end);
            assert_eq!(sum[end..], [0, 0], "a checksum over itself is zero");
        }
    }

    #[test]
    fn a_long_datagram_is_quoted_as_far_as_the_answer_may_reach() {
        let payload = [7; 9000];
        let v4 = Refused::datagram("10.1.0.2:41000".parse().unwrap(), "203.0.113.7:443".parse().unwrap(), &payload);
        assert_eq!(message_v4(&v4, [10, 1, 0, 2].into(), [203, 0, 113, 7].into()).len(), 576 - 20);
        let v6 = Refused::datagram("[fd00::2]:41000".parse().unwrap(), "[2001:db8::7]:443".parse().unwrap(), &payload);
        let message = message_v6(&v6, "fd00::2".parse().unwrap(), "2001:db8::7".parse().unwrap());
        assert_eq!(message.len(), 1280 - 40);
        assert_eq!(message[..2], [1, 1]);
        assert_eq!(message[12..14], 9008_u16.to_be_bytes(), "the length of the whole datagram");
    }
}
