//! UDP at the edge: captured datagrams with their original destination, and datagrams sent from any address.
//!
//! Two halves. [`listener`] and [`Inbox`] receive what TPROXY delivers, many datagrams a system call. [`Outbox`]
//! sends from addresses that are not this host's, also many a call: it holds one raw UDP socket per family, so
//! that it needs no socket bound to the address and port it speaks for (which would steal that flow's packets
//! from TPROXY, and collide with a name server of this host). [`from`] makes an ordinary socket with a chosen
//! source, for conversations that await an answer.
//!
//! Fails closed: a datagram whose original destination the kernel does not tell has none here; what cannot be
//! sent is dropped and counted, never sent from another address.

mod outbox;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub use outbox::Outbox;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A non-blocking socket to which TPROXY can deliver: transparent, shared with other workers by SO_REUSEPORT, and
/// told of original destinations. Needs CAP_NET_ADMIN or CAP_NET_RAW.
pub fn listener(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    // Room for a burst while the worker is busy elsewhere; the kernel caps it at rmem_max.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    make_transparent(&socket, at)?;
    tell_destinations(&socket, at.ip())?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// Makes a bound socket of another's such a one; `address` tells its family.
pub fn adopt(socket: BorrowedFd<'_>, address: IpAddr) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    if socket.r#type()? != Type::DGRAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not one for datagrams"));
    }
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    make_transparent(&socket, SocketAddr::new(address, 0))?;
    tell_destinations(&socket, address)
}

fn tell_destinations(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR),
        IpAddr::V6(_) => set_option(socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR),
    }
}

/// A non-blocking socket that sends from `source`; port 0 is the kernel's choice. `transparent` allows an address
/// that is not this host's, and needs CAP_NET_ADMIN or CAP_NET_RAW.
pub fn from(source: SocketAddr, transparent: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(source), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if transparent {
        make_transparent(&socket, source)?;
    }
    if source.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&source.into())?;
    Ok(socket.into())
}

/// Whether an address is one of this host's own.
pub fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// A received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    /// Where it was going before it was captured; `None` on a socket that was not asked to tell.
    pub to: Option<SocketAddr>,
    pub bytes: &'a [u8],
    /// It was longer than the buffer.
    pub truncated: bool,
}

/// Receives datagrams in batches, into memory of its own.
#[derive(Debug)]
pub struct Inbox {
    size: usize,
    buffers: Vec<u8>,
    slots: Vec<Slot>,
    received: usize,
}

#[derive(Clone)]
struct Slot {
    name: libc::sockaddr_storage,
    control: Control,
    length: usize,
    flags: libc::c_int,
    control_length: usize,
}

/// Ancillary data, aligned as the kernel's headers are.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({} bytes)", self.length)
    }
}

impl Inbox {
    /// `batch` datagrams a call, of at most `size` octets each.
    pub fn new(batch: usize, size: usize) -> Self {
        let slot = Slot { name: no_name(), control: Control([0; CONTROL]), length: 0, flags: 0, control_length: 0 };
        Self { size, buffers: vec![0; batch * size], slots: vec![slot; batch], received: 0 }
    }

    /// Receives what is there, up to a batch, and says how many. `WouldBlock` when there is nothing.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.received = 0;
        let mut vectors: [libc::iovec; MAX_BATCH] = [NO_VECTOR; MAX_BATCH];
        let mut headers: [libc::mmsghdr; MAX_BATCH] = [NO_HEADER; MAX_BATCH];
        let mut count = 0;
        let parts = self.slots.iter_mut().zip(self.buffers.chunks_exact_mut(self.size));
        for ((slot, buffer), (vector, header)) in parts.zip(vectors.iter_mut().zip(&mut headers)) {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_name = (&raw mut slot.name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
            // Of another width with another C library, as the flags are.
            header.msg_hdr.msg_controllen = CONTROL as _;
            count += 1;
        }
        // SAFETY: every header points at a name, a vector, a buffer and ancillary space that live past the call, each
        // with its true length; `count` headers are filled.
        #[allow(unsafe_code)]
        let got = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for (slot, header) in self.slots.iter_mut().zip(&headers).take(got) {
            slot.length = (header.msg_len as usize).min(self.size);
            slot.flags = header.msg_hdr.msg_flags;
            slot.control_length = header.msg_hdr.msg_controllen.min(CONTROL as _) as _;
        }
        self.received = got;
        Ok(got)
    }

    /// What the last call received. A datagram of an unknown family is left out.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.slots.iter().zip(self.buffers.chunks_exact(self.size)).take(self.received).filter_map(|(slot, buffer)| {
            Some(Datagram {
                from: address(&slot.name)?,
                to: original_destination(slot.control.0.get(..slot.control_length)?),
                bytes: buffer.get(..slot.length)?,
                truncated: slot.flags & libc::MSG_TRUNC != 0,
            })
        })
    }
}

/// The original destination among ancillary data: a sequence of headers, each with its length, level and kind.
fn original_destination(mut control: &[u8]) -> Option<SocketAddr> {
    while let Some((header, _)) = control.split_first_chunk::<HEADER>() {
        let (length, kinds) = header.split_first_chunk::<8>()?;
        let length = usize::from_ne_bytes(*length);
        let data = control.get(HEADER..length)?;
        let level = i32::from_ne_bytes(*kinds.first_chunk()?);
        let kind = i32::from_ne_bytes(*kinds.last_chunk()?);
        match (level, kind) {
            (libc::SOL_IP, libc::IP_ORIGDSTADDR) => return socket_address_v4(data),
            (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => return socket_address_v6(data),
            _ => control = control.get(length.next_multiple_of(8)..).unwrap_or_default(),
        }
    }
    None
}

/// struct sockaddr_in: family, port, address.
fn socket_address_v4(data: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*data.get(2..)?.first_chunk()?);
    let ip: [u8; 4] = *data.get(4..)?.first_chunk()?;
    Some(SocketAddrV4::new(ip.into(), port).into())
}

/// struct sockaddr_in6: family, port, flow, address, scope.
fn socket_address_v6(data: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*data.get(2..)?.first_chunk()?);
    let ip: [u8; 16] = *data.get(8..)?.first_chunk()?;
    let scope = u32::from_ne_bytes(*data.get(24..)?.first_chunk()?);
    Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: sockaddr_storage has no invalid bit patterns and no padding that is read here as anything but octets the
    // kernel or `no_name` wrote; the slice is as long as the value and lives no longer.
    #[allow(unsafe_code)]
    let bytes = unsafe { std::slice::from_raw_parts((&raw const *name).cast::<u8>(), size_of_val(name)) };
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => socket_address_v4(bytes),
        libc::AF_INET6 => socket_address_v6(bytes),
        _ => None,
    }
}

fn no_name() -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage is plain data for which all zeroes are a value.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::zeroed()
    }
}

fn make_transparent(socket: &Socket, at: SocketAddr) -> io::Result<()> {
    if at.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

fn set_option(socket: &impl AsFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let fd: BorrowedFd<'_> = socket.as_fd();
    // SAFETY: the option's value is an int that lives past the call, given with its own size.
    #[allow(unsafe_code)]
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams a system call, at most.
pub const MAX_BATCH: usize = 64;

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
/// Not written out, since with some C libraries it has padding that must be zero too.
// SAFETY: mmsghdr is plain data, pointers and numbers, for which all zeroes are a value.
#[allow(unsafe_code)]
const NO_HEADER: libc::mmsghdr = unsafe { std::mem::zeroed() };

/// struct cmsghdr: length, level, kind, as on every 64-bit Linux.
const HEADER: usize = 16;
/// Room for one original destination (16 or 28 octets) or one packet information (12 or 20).
const CONTROL: usize = 64;
const RECEIVE_BUFFER: usize = 4 << 20;

const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER, "the layout of ancillary data is that of 64-bit hosts");

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn loopbacks() -> [IpAddr; 2] {
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    }

    #[test]
    fn the_listener_tells_the_original_destination_of_each_datagram() {
        for ip in loopbacks() {
            let listener = listener((ip, 0).into()).unwrap();
            let at = listener.local_addr().unwrap();
            let client = UdpSocket::bind((ip, 0)).unwrap();
            for n in 0..3u8 {
                client.send_to(&[n; 5], at).unwrap();
            }
            let mut inbox = Inbox::new(8, 4);
            assert_eq!(inbox.receive(&listener).unwrap(), 3);
            for (n, datagram) in inbox.datagrams().enumerate() {
                assert_eq!(datagram.from, client.local_addr().unwrap());
                assert_eq!(datagram.to, Some(at));
                assert_eq!(datagram.bytes, [n as u8; 4]);
                assert!(datagram.truncated);
            }
            assert_eq!(inbox.receive(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(inbox.datagrams().count(), 0);
        }
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_local(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_local("192.0.2.1".parse().unwrap()));
        assert!(!is_local("2001:db8::1".parse().unwrap()));
    }
}
