//! The kernel's packet log: copies of packets that our rules judged, each with a tag (nfnetlink_log).
//!
//! Never stalls the kernel: copies that find no room are lost, and the numbers that the kernel gives them tell how many.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attributes::Attributes;
use super::netfilter::{self, ERROR, messages};

/// Hears what is logged to one group, in the network namespace in which it was opened.
pub struct PacketLog {
    socket: Socket,
    /// The number of the next copy, once one has come.
    expected: Option<u32>,
    buffer: Vec<u8>,
}

/// A packet that a rule logged.
#[derive(Clone, Copy, Debug)]
pub struct Logged<'a> {
    pub tag: &'a str,
    /// From its IP header on; it may be cut off.
    pub packet: &'a [u8],
}

impl std::fmt::Debug for PacketLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketLog").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl AsFd for PacketLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket keeps its descriptor open for as long as it is borrowed.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.socket.as_raw_fd())
        }
    }
}

impl PacketLog {
    /// Needs CAP_NET_ADMIN over the network namespace; one process at a time may have a group. `patience`: how long
    /// [`Self::read`] waits.
    pub fn open(group: u16, patience: Duration) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it a full buffer is an error of the next read, and says less than the numbers do.
        socket.set_no_enobufs(true)?;
        // Where the first is not allowed, the second goes as far as it may.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER));
        let patience = TimeVal::new(patience.as_secs().try_into().unwrap_or(1), patience.subsec_micros().into());
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        let mut log = Self { socket, expected: None, buffer: Vec::with_capacity(MESSAGE) };
        log.configure(group)?;
        Ok(log)
    }

    /// One that [`Self::open`] of another process made, and that now is to be read here.
    pub fn from_socket(socket: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, and goes over to the socket that will close it.
        #[allow(unsafe_code)]
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Self { socket, expected: None, buffer: Vec::with_capacity(MESSAGE) }
    }

    /// Hands over what has come, or returns after `patience` without. Returns the number of copies that were lost
    /// before these.
    pub fn read(&mut self, mut each: impl FnMut(Logged<'_>)) -> io::Result<u32> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Ok(0),
            Err(e) => return Err(e),
        }
        let mut lost = 0;
        for (kind, body) in messages(&self.buffer) {
            if kind != PACKET {
                continue;
            }
            let Some((_, attributes)) = body.split_at_checked(4) else { continue };
            let (mut tag, mut packet) = ("", &[][..]);
            for (kind, value) in Attributes(attributes) {
                match kind {
                    NFULA_PREFIX => tag = std::str::from_utf8(value).unwrap_or("").trim_end_matches('\0'),
                    NFULA_PAYLOAD => packet = value,
                    NFULA_SEQ => lost += left_out(&mut self.expected, value),
                    _ => {}
                }
            }
            each(Logged { tag, packet });
        }
        Ok(lost)
    }

    fn configure(&mut self, group: u16) -> io::Result<()> {
        const BIND: u8 = 1;
        const COPY_PACKET: u8 = 2;
        const WITH_NUMBERS: u16 = 1;
        let mut mode = COPIED.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        for (number, attributes) in [
            (1, vec![(1, vec![BIND])]),
            (
                2,
                vec![
                    (2, mode),
                    (3, KERNEL_BUFFER.to_be_bytes().to_vec()),
                    (4, HUNDREDTHS_TO_GATHER.to_be_bytes().to_vec()),
                    (6, WITH_NUMBERS.to_be_bytes().to_vec()),
                ],
            ),
        ] {
            self.socket.send(&request(group, number, &attributes), 0)?;
            self.acknowledged()?;
        }
        Ok(())
    }

    /// The kernel answers within `send`; what it logs may come in between, before anybody relies on it.
    fn acknowledged(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT)?;
            for (kind, body) in messages(&self.buffer) {
                if kind != ERROR {
                    continue;
                }
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) };
            }
        }
    }
}

/// How many numbers were left out before this one.
fn left_out(expected: &mut Option<u32>, number: &[u8]) -> u32 {
    let Ok(number) = <[u8; 4]>::try_from(number).map(u32::from_be_bytes) else { return 0 };
    let lost = expected.map_or(0, |expected| number.wrapping_sub(expected));
    *expected = Some(number.wrapping_add(1));
    lost
}

fn request(group: u16, number: u32, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend(group.to_be_bytes());
    for (kind, value) in attributes {
        netfilter::put(&mut body, *kind, value);
    }
    netfilter::request(CONFIGURE, netfilter::ACK, number, &body)
}

/// NFNL_SUBSYS_ULOG
const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIGURE: u16 = SUBSYSTEM | 1;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_SEQ: u16 = 12;

/// Octets of each packet; a rule may ask for less.
const COPIED: u32 = 256;
/// What the kernel gathers before it sends, in octets and in hundredths of a second.
const KERNEL_BUFFER: u32 = 32 * 1024;
const HUNDREDTHS_TO_GATHER: u32 = 5;
/// A message of the kernel is never longer.
const MESSAGE: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_were_left_out_are_counted_across_their_wrap() {
        let mut expected = None;
        let numbers = [u32::MAX - 2, u32::MAX - 1, 1, 2, 5];
        let lost: Vec<_> = numbers.iter().map(|number| left_out(&mut expected, &number.to_be_bytes())).collect();
        assert_eq!(lost, [0, 0, 2, 0, 2]);
        assert_eq!(left_out(&mut expected, &[1]), 0);
    }

    #[test]
    fn damaged_messages_are_left_alone() {
        let good = request(7, 1, &[(1, vec![1])]);
        assert_eq!(messages(&good).count(), 1);
        for length in 0..good.len() {
            assert_eq!(messages(&good[..length]).count(), 0);
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
