//! An epoll instance for many sockets, itself watched by the runtime as one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches a socket for everything, edge-triggered; its events carry `key`, and [`URGENT`] with it once urgent data has
    /// come. Closing the socket ends it.
    pub fn watch(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.0, socket, EventData::new_u64(key), flags)?)
    }

    /// Watches a socket for what comes in, for as long as any of it is unread; its events carry `key`.
    pub fn watch_input(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, socket, EventData::new_u64(key), EventFlags::IN)?)
    }

    /// The keys of sockets that have become ready, without waiting.
    pub fn ready(&self, keys: &mut Vec<u64>) -> io::Result<()> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let (events, _) = epoll::wait(&self.0, &mut events[..], Some(&NOW))?;
        keys.clear();
        let urgent = |flags: EventFlags| if flags.contains(EventFlags::PRI) { URGENT } else { 0 };
        keys.extend(events.iter().map(|event| event.data.u64() | urgent(event.flags)));
        Ok(())
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The bit of a key that is not its owner's.
pub const URGENT: u64 = 1 << 63;
/// Events taken at once.
pub const BATCH: usize = 128;
