//! Datagrams sent in the name of others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{CONTROL, Control, HEADER, MAX_BATCH, NO_HEADER, NO_VECTOR, make_transparent};

/// Sends datagrams from any address and port, in batches. Made once, with CAP_NET_RAW; sending needs nothing.
#[derive(Debug)]
pub struct Outbox {
    v4: Lane,
    /// `None` on a host without IPv6.
    v6: Option<Lane>,
    /// Datagrams that the kernel refused or had no room for.
    pub dropped: u64,
}

#[derive(Debug)]
struct Lane {
    socket: Socket,
    /// UDP headers and payloads, end to end.
    bytes: Vec<u8>,
    queue: Vec<Outgoing>,
}

#[derive(Clone, Copy, Debug)]
struct Outgoing {
    from: SocketAddr,
    to: SocketAddr,
    end: usize,
}

impl Outbox {
    /// `mark` is SO_MARK of what is sent, for rules and routes to know it by; it needs CAP_NET_ADMIN.
    pub fn new(mark: Option<u32>) -> io::Result<Self> {
        let v6 = match Lane::new(Domain::IPV6, mark) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            lane => Some(lane?),
        };
        Ok(Self { v4: Lane::new(Domain::IPV4, mark)?, v6, dropped: 0 })
    }

    /// One whose sockets were opened elsewhere, by [`Self::into_sockets`] of another process.
    pub fn from_sockets(v4: OwnedFd, v6: Option<OwnedFd>) -> Self {
        Self { v4: Lane::on(v4.into()), v6: v6.map(|socket| Lane::on(socket.into())), dropped: 0 }
    }

    /// Its sockets for IPv4 and IPv6.
    pub fn into_sockets(self) -> (OwnedFd, Option<OwnedFd>) {
        (self.v4.socket.into(), self.v6.map(|lane| lane.socket.into()))
    }

    /// Queues a datagram, and sends the queue when it is full. One of mixed families or over 65,507 octets is dropped.
    pub fn push(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let lane = if to.is_ipv4() { Some(&mut self.v4) } else { self.v6.as_mut() };
        let Some(lane) = lane.filter(|_| from.is_ipv4() == to.is_ipv4()) else {
            self.dropped += 1;
            return;
        };
        if !lane.push(from, to, payload) {
            self.dropped += 1;
            return;
        }
        if lane.queue.len() >= MAX_BATCH {
            self.dropped += lane.flush();
        }
    }

    pub fn flush(&mut self) {
        self.dropped += self.v4.flush() + self.v6.as_mut().map_or(0, Lane::flush);
    }
}

impl Lane {
    fn new(domain: Domain, mark: Option<u32>) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // A raw socket would be given a copy of every datagram that arrives here: bound to an address from
        // which nothing is ever received (RFC 5737, RFC 3849), it is given none.
        let nowhere: SocketAddr = match domain {
            Domain::IPV4 => (Ipv4Addr::new(192, 0, 2, 255), 0).into(),
            _ => (Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 0xffff), 0).into(),
        };
        make_transparent(&socket, nowhere)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.bind(&nowhere.into())?;
        Ok(Self::on(socket))
    }

    fn on(socket: Socket) -> Self {
        Self { socket, bytes: Vec::new(), queue: Vec::with_capacity(MAX_BATCH) }
    }

    fn push(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> bool {
        let Ok(length) = u16::try_from(payload.len() + UDP_HEADER) else { return false };
        let sum = checksum(from, to, length, payload);
        for field in [from.port(), to.port(), length, sum] {
            self.bytes.extend_from_slice(&field.to_be_bytes());
        }
        self.bytes.extend_from_slice(payload);
        self.queue.push(Outgoing { from, to, end: self.bytes.len() });
        true
    }

    /// Sends the queue and says how many could not be sent.
    fn flush(&mut self) -> u64 {
        let mut dropped = 0;
        let mut first = 0;
        while first < self.queue.len() {
            match self.send(first) {
                Ok(sent) => first += sent.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    dropped += (self.queue.len() - first) as u64;
                    break;
                }
                // The one at the head is refused (no route, a rule); those behind it may still go.
                Err(_) => {
                    dropped += 1;
                    first += 1;
                }
            }
        }
        self.queue.clear();
        self.bytes.clear();
        dropped
    }

    fn send(&self, first: usize) -> io::Result<usize> {
        let mut start = match first.checked_sub(1) {
            Some(before) => self.queue.get(before).map_or(0, |sent| sent.end),
            None => 0,
        };
        let mut names: [Option<SockAddr>; MAX_BATCH] = [const { None }; MAX_BATCH];
        let mut vectors: [libc::iovec; MAX_BATCH] = [NO_VECTOR; MAX_BATCH];
        let mut controls = [Control([0; CONTROL]); MAX_BATCH];
        let mut headers: [libc::mmsghdr; MAX_BATCH] = [NO_HEADER; MAX_BATCH];
        let mut count = 0;
        let parts = names.iter_mut().zip(&mut vectors).zip(controls.iter_mut().zip(&mut headers));
        for (one, ((name, vector), (control, header))) in self.queue.iter().skip(first).zip(parts) {
            let bytes = self.bytes.get(start..one.end).unwrap_or_default();
            start = one.end;
            // A raw socket takes no port.
            let name = name.insert(without_port(one.to).into());
            // The kernel only reads through this pointer.
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = name.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            // Of another width with another C library, as the flags are.
            header.msg_hdr.msg_controllen = source(control, one.from, one.to) as _;
            count += 1;
        }
        // SAFETY: every header points at a name, a vector, bytes and ancillary data that live past the call, each with
        // its true length; `count` headers are filled.
        #[allow(unsafe_code)]
        let sent =
            unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// Writes the packet information that makes `from` the source, and says how long it is.
fn source(control: &mut Control, from: SocketAddr, to: SocketAddr) -> usize {
    let (level, kind, data) = match (from.ip(), to) {
        (IpAddr::V4(from), _) => {
            // struct in_pktinfo: interface, source, (unused) destination.
            let mut data = [0; 20];
            data[4..8].copy_from_slice(&from.octets());
            (libc::SOL_IP, libc::IP_PKTINFO, (data, 12))
        }
        (IpAddr::V6(from), to) => {
            // struct in6_pktinfo: source, interface.
            let mut data = [0; 20];
            data[..16].copy_from_slice(&from.octets());
            if let SocketAddr::V6(to) = to {
                data[16..].copy_from_slice(&to.scope_id().to_ne_bytes());
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO, (data, 20))
        }
    };
    let (data, length) = data;
    let total = HEADER + length;
    control.0[..8].copy_from_slice(&total.to_ne_bytes());
    control.0[8..12].copy_from_slice(&level.to_ne_bytes());
    control.0[12..16].copy_from_slice(&kind.to_ne_bytes());
    control.0[HEADER..HEADER + 20].copy_from_slice(&data);
    total.next_multiple_of(8)
}

/// The UDP checksum over the pseudo-header (RFC 768; RFC 8200, section 8.1).
fn checksum(from: SocketAddr, to: SocketAddr, length: u16, payload: &[u8]) -> u16 {
    let mut sum = u64::from(length) * 2 + u64::from(UDP_NUMBER) + u64::from(from.port()) + u64::from(to.port());
    for ip in [from.ip(), to.ip()] {
        sum += match ip {
            IpAddr::V4(ip) => words(&ip.octets()),
            IpAddr::V6(ip) => words(&ip.octets()),
        };
    }
    sum += words(payload);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

fn words(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + last.first().map_or(0, |octet| u64::from(*octet) << 8)
}

const UDP_HEADER: usize = 8;
const UDP_NUMBER: u16 = 17;
const SEND_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn loopbacks() -> [IpAddr; 2] {
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    }

    #[test]
    fn the_outbox_speaks_for_addresses_and_ports_that_it_is_not_bound_to() {
        let mut outbox = Outbox::new(None).unwrap();
        for ip in loopbacks() {
            let client = UdpSocket::bind((ip, 0)).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            let at = client.local_addr().unwrap();
            let from: Vec<SocketAddr> = (0..MAX_BATCH as u16 + 3).map(|n| (ip, 5300 + n).into()).collect();
            for (n, from) in from.iter().enumerate() {
                outbox.push(*from, at, &vec![n as u8; n + 1]);
            }
            outbox.flush();
            let mut buffer = [0; 100];
            for (n, from) in from.iter().enumerate() {
                let (length, source) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((length, source), (n + 1, *from));
                assert!(buffer[..length].iter().all(|octet| *octet == n as u8));
            }
        }
        assert_eq!(outbox.dropped, 0);
    }

    #[test]
    fn the_outbox_drops_what_it_cannot_send_and_sends_the_rest() {
        let mut outbox = Outbox::new(None).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let at = client.local_addr().unwrap();
        let own: SocketAddr = "127.0.0.1:53".parse().unwrap();
        outbox.push("[::1]:53".parse().unwrap(), at, b"mixed");
        outbox.push(own, at, &[0; 65_536]);
        outbox.push(own, "255.255.255.255:9".parse().unwrap(), b"not allowed");
        outbox.push(own, at, b"good");
        outbox.flush();
        let mut buffer = [0; 100];
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, own));
        assert_eq!(outbox.dropped, 3);
    }

    #[test]
    fn a_large_datagram_passes_whole() {
        let mut outbox = Outbox::new(None).unwrap();
        for ip in loopbacks() {
            let client = UdpSocket::bind((ip, 0)).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            let payload: Vec<u8> = (0..60_001u32).map(|n| n as u8).collect();
            outbox.push((ip, 53).into(), client.local_addr().unwrap(), &payload);
            outbox.flush();
            let mut buffer = vec![0; 65_536];
            let (length, _) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], payload);
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_768() {
        // Summed with the pseudo-header and the header, a right checksum gives all ones.
        let sum = checksum("10.0.0.1:1234".parse().unwrap(), "10.0.0.2:53".parse().unwrap(), 13, b"hello");
        let total: u64 =
            words(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 13, 4, 210, 0, 53, 0, 13]) + u64::from(sum) + words(b"hello");
        let folded = (total & 0xffff) + (total >> 16);
        assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff);
    }
}
