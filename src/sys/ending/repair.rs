//! TCP_REPAIR: looking into a connection, and leaving it without a word. Needs CAP_NET_ADMIN over its namespace.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// The sequence number that the client's next byte will have.
pub(super) fn received(stream: &impl AsFd) -> io::Result<u32> {
    const TCP_QUEUE_SEQ: libc::c_int = 21;
    const RECEIVE_QUEUE: libc::c_int = 1;
    const OFF_WITHOUT_PROBE: libc::c_int = -1;
    mute(stream)?;
    let sequence = set(stream, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE).and_then(|()| get(stream, TCP_QUEUE_SEQ));
    set(stream, libc::TCP_REPAIR, OFF_WITHOUT_PROBE)?;
    sequence
}

/// From here on closing the connection sends nothing.
pub(super) fn mute(stream: &impl AsFd) -> io::Result<()> {
    set(stream, libc::TCP_REPAIR, 1)
}

fn set(stream: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel reads `length` bytes at the address of `value`.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::setsockopt(stream.as_fd().as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(stream: &impl AsFd, option: libc::c_int) -> io::Result<u32> {
    let mut value: u32 = 0;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes at `value`.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
