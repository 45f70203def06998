//! Whether a sidecar is alive and ready, for an orchestrator's probes, where there is neither a shell nor a file.
//!
//! An abstract Unix socket: it belongs to the network namespace, is gone with its process, and needs no folder. Whoever
//! asks checks by which user it was opened, since the application shares the namespace.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// What a sidecar says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Listeners and rules are in place, and every worker works.
    Ready,
    /// It answers, and that is all.
    Live,
}

/// Where probes ask; does not block.
pub fn listen() -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&address()?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers a probe. One that does not listen is not waited for.
pub fn answer(mut asker: &UnixStream, state: State) {
    let word = match state {
        State::Ready => READY,
        State::Live => LIVE,
    };
    if asker.set_nonblocking(true).is_ok() {
        let _ = asker.write_all(word);
    }
}

/// Asks the sidecar of this network namespace, which must be of this user.
pub fn ask(user: u32, patience: Duration) -> io::Result<State> {
    let mut stream = UnixStream::connect_addr(&address()?)?;
    let found = getsockopt(&stream, PeerCredentials)?.uid();
    if found != user {
        let what = format!("user {found} answers, and not {user}: it is no sidecar");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    stream.set_read_timeout(Some(patience))?;
    let mut said = Vec::new();
    Read::by_ref(&mut stream).take(LONGEST).read_to_end(&mut said)?;
    match &said[..] {
        READY => Ok(State::Ready),
        LIVE => Ok(State::Live),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name("tidegate-sidecar")
}

const READY: &[u8] = b"ready\n";
const LIVE: &[u8] = b"live\n";
const LONGEST: u64 = 16;
