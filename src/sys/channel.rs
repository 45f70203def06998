//! Messages with descriptors between two processes (unix(7), SOCK_SEQPACKET and SCM_RIGHTS).
//!
//! Fails closed: descriptors that find no room in a message are closed by the kernel, and whoever waits for them has
//! too few and says so.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
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
