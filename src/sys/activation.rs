//! Sockets that a service manager keeps for us, and gives us at start (sd_listen_fds(3), FDSTORE in sd_notify(3)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::fcntl_dupfd_cloexec;
use sd_notify::NotifyState;

/// The sockets that were given to this process, each with its name. Only the first call gets them.
pub fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let own = |(descriptor, name)| {
        // SAFETY: LISTEN_PID names this process, so that whoever started it left these descriptors open for it; nobody
        // here has closed or claimed them, and only this call, which is made once, ever does.
        #[allow(unsafe_code)]
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        (name, socket)
    };
    Ok(sd_notify::listen_fds_with_names()?.map(own).collect())
}

/// Gives a command these sockets as a service manager does, but for LISTEN_PID, which it cannot know. To be called last
/// of all that prepares the command: whatever stands where they go is closed.
pub fn give(command: &mut Command, sockets: Vec<(String, OwnedFd)>) {
    let names: Vec<_> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    let give = move || {
        let above = |(_, socket): &(String, OwnedFd)| fcntl_dupfd_cloexec(socket, ABOVE);
        for (number, own) in sockets.iter().enumerate() {
            let (own, place) = (above(own)?, FIRST + number as i32);
            // SAFETY: the place belongs to nobody in this process, which is about to become another program.
            #[allow(unsafe_code)]
            if unsafe { libc::dup2(own.as_raw_fd(), place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls alone, and allocates nothing.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(give);
    }
}

/// How many sockets the service manager would keep: none where there is no such manager, or it was not told to.
pub fn room() -> usize {
    std::env::var("FDSTORE").ok().and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// Has the service manager keep a socket, under a name by which it gives it to the next process of the service.
pub fn keep(name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[socket])
}

/// SD_LISTEN_FDS_START
const FIRST: i32 = 3;
/// Beyond every place that a socket is given.
const ABOVE: i32 = 512;
