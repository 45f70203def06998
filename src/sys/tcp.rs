//! Transparent TCP sockets: taking flows that TPROXY delivered, and dialling on their behalf.
//!
//! Fails closed: a socket that cannot be made transparent is an error, never an ordinary socket, since an ordinary
//! one would show the gateway's address to the server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::SockRef;

/// A listener that TPROXY may deliver to. With port 0 the kernel chooses one.
///
/// Several may share an address and port: the kernel spreads new flows over them.
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(family(address.ip()), SocketType::STREAM, FLAGS, None)?;
    let options = SockRef::from(&socket);
    options.set_reuse_address(true)?;
    options.set_reuse_port(true)?;
    if address.is_ipv6() {
        options.set_only_v6(true)?;
    }
    set_transparent(&options, address.ip())?;
    // Accepted sockets inherit them: no system call for each.
    set_flow_options(&options)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Makes a listener of another's such a one; `address` tells its family.
pub fn adopt(socket: BorrowedFd<'_>, address: IpAddr) -> io::Result<()> {
    let options = SockRef::from(&socket);
    if !options.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    options.set_nonblocking(true)?;
    set_transparent(&options, address)?;
    set_flow_options(&options)
}

/// The next flow and who opened it, or `WouldBlock`.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let (socket, peer) = rustix::net::acceptfrom_with(listener, FLAGS)?;
    let peer = peer.ok_or(Errno::NOTCONN)?;
    Ok((socket, SocketAddr::try_from(peer)?))
}

/// For a flow that TPROXY delivered: where its client meant it to go.
pub fn local_address(socket: impl AsFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
}

/// Begins a connection to `to` from the address `from`, at a port that the kernel chooses, or from this host's own
/// address. The socket becomes writable, or fails, when the handshake ends.
pub fn dial(from: Option<IpAddr>, to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(family(to.ip()), SocketType::STREAM, FLAGS, None)?;
    let options = SockRef::from(&socket);
    options.set_tcp_nodelay(true)?;
    options.set_out_of_band_inline(true)?;
    if let Some(from) = from {
        set_transparent(&options, from)?;
        // The port is chosen at connect: one may then serve many destinations.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    }
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// How a connection attempt ended, once its socket has become writable.
pub fn dial_result(socket: impl AsFd) -> io::Result<()> {
    match rustix::net::sockopt::socket_error(socket)? {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads what has come; `Ok(0)` is the peer's end.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(count)
}

/// Sends as much as the socket takes.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

/// Ends our sending half (RFC 9293, 3.6).
pub fn end_sending(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// Closes with a reset, whatever is unsent (RFC 9293, 3.10.4).
pub fn reset(socket: OwnedFd) {
    let _ = SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO));
}

/// How many segments with data the kernel has received on this connection (`tcpi_data_segs_in`).
pub fn data_segments_received(socket: impl AsFd) -> io::Result<u32> {
    let mut info = [0u8; TCP_INFO_LEN];
    let mut length = TCP_INFO_LEN as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives through the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    info[DATA_SEGS_IN..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(|| Errno::INVAL.into())
}

/// Urgent octets stay where they stand in the stream (RFC 6093, section 2): what is not read in its place is lost.
fn set_flow_options(options: &SockRef<'_>) -> io::Result<()> {
    options.set_tcp_nodelay(true)?;
    options.set_out_of_band_inline(true)?;
    options.set_keepalive(true)
}

fn set_transparent(options: &SockRef<'_>, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => options.set_ip_transparent_v4(true),
        IpAddr::V6(_) => options.set_ip_transparent_v6(true),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// Where `tcpi_data_segs_in` stands in `struct tcp_info` of linux/tcp.h, and enough room to hold it.
const DATA_SEGS_IN: usize = 152;
const TCP_INFO_LEN: usize = 192;
