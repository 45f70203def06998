//! Descriptors of our own that the runtime waits for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that stays open and the same for as long as the value lives.
pub trait Steady: AsFd {}

impl Steady for OwnedFd {}
impl Steady for &OwnedFd {}
impl Steady for super::epoll::Epoll {}
impl Steady for super::timer::Timer {}
impl Steady for std::net::UdpSocket {}
impl<T: Steady> Steady for Rc<T> {}

/// Gives the raw number of a [`Steady`] descriptor, as the runtime asks for it.
#[derive(Debug)]
pub struct Raw<T>(pub T);

impl<T: Steady> AsRawFd for Raw<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<T: Steady> AsFd for Raw<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for octets, flows or ends to read. Must be called within a runtime.
pub fn readable<T: Steady>(inner: T) -> io::Result<AsyncFd<Raw<T>>> {
    // SAFETY: a `Steady` descriptor is open and the same until `inner` is dropped, which the `AsyncFd` outlasts.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(Raw(inner), Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
