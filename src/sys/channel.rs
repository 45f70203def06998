//! Messages with descriptors between two processes (unix(7), SOCK_SEQPACKET and SCM_RIGHTS).
//!
//! Fails closed: descriptors that find no room in a message are closed by the kernel, and whoever waits for them has
//! too few and says so.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with, socketpair, sockopt,
};

/// One end. Calls wait.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What came: octets, at least one, and descriptors.
#[derive(Debug)]
pub struct Message {
    pub octets: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Somebody who listens by this name in the network namespace, if anybody does.
    pub fn connect(name: &[u8]) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        Ok(Self(socket))
    }

    /// Whose process is at the other end, and its number.
    pub fn peer(&self) -> io::Result<(u32, u32)> {
        let peer = sockopt::socket_peercred(&self.0)?;
        Ok((peer.uid.as_raw(), peer.pid.as_raw_pid().unsigned_abs()))
    }

    /// How long a call may wait for the other end.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        Ok(sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(patience))?)
    }

    /// Sends at least one octet and at most [`MAX_DESCRIPTORS`] descriptors.
    pub fn send(&self, octets: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.0, &[IoSlice::new(octets)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message; `None` when the other end is gone.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut octets = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let count = loop {
            let vectors = &mut [IoSliceMut::new(&mut octets)];
            match recvmsg(&self.0, vectors, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                other => break other?.bytes,
            }
        };
        octets.truncate(count);
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        Ok((count > 0).then_some(Message { octets, descriptors }))
    }
}

/// Waits for others by a name that belongs to the network namespace and lies in no folder.
#[derive(Debug)]
pub struct Door(pub OwnedFd);

impl Door {
    /// An error if somebody has the name.
    pub fn open(name: &[u8]) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        listen(&socket, 1)?;
        Ok(Self(socket))
    }

    /// Does not wait.
    pub fn enter(door: &impl AsFd) -> io::Result<Channel> {
        Ok(Channel(accept_with(door, SocketFlags::CLOEXEC)?))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub const MAX_DESCRIPTORS: usize = 64;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
/// Octets of a message; longer ones are cut.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_come_with_their_message_and_the_end_is_told() {
        let (near, far) = Channel::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        near.send(b"take this", &[passed.as_fd()]).unwrap();
        drop((near, passed));
        let message = far.receive().unwrap().unwrap();
        assert_eq!(message.octets, b"take this");
        let [descriptor] = <[OwnedFd; 1]>::try_from(message.descriptors).unwrap();
        UnixStream::from(descriptor).write_all(b"heard").unwrap();
        let mut heard = String::new();
        kept.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "heard");
        assert!(far.receive().unwrap().is_none());
    }
}
