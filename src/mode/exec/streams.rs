//! The standard streams, which the command gets as they are.
//!
//! Fails closed: a socket that could be connected anew belongs to the host's network still, and is not passed on. A
//! connected UNIX stream can not, and is what many programs start others with. Nor is a folder passed on, or a file that
//! was only found and not opened (O_PATH): through them files are reached as they are outside, with the sockets that are
//! covered inside.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags};
use socket2::{Domain, SockRef, Type};

pub(super) fn check() -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [("input", stdin.as_fd()), ("output", stdout.as_fd()), ("error", stderr.as_fd())];
    for (name, stream) in &streams {
        if let Some(what) = place(stream) {
            return Err(io::Error::other(format!("standard {name} is {what}, by which the command could get past")));
        }
    }
    match streams.iter().find(|(_, stream)| leads_out(&SockRef::from(stream))) {
        None => Ok(()),
        Some((name, _)) => Err(io::Error::other(format!(
            "standard {name} is a socket of this host's network, by which the command could get past; put a pipe \
             between, as `cat |` or `| cat` do"
        ))),
    }
}

/// What it is, if it stands for a place among the files more than for what is in one.
fn place(stream: &impl AsFd) -> Option<&'static str> {
    let is_folder = rustix::fs::fstat(stream).is_ok_and(|about| FileType::from_raw_mode(about.st_mode).is_dir());
    let is_unopened = rustix::fs::fcntl_getfl(stream).is_ok_and(|flags| flags.contains(OFlags::PATH));
    match (is_folder, is_unopened) {
        (true, _) => Some("a folder"),
        (_, true) => Some("a file that was not opened (O_PATH)"),
        _ => None,
    }
}

fn leads_out(stream: &SockRef<'_>) -> bool {
    // Whatever is no socket has no domain.
    let Ok(domain) = stream.domain() else { return false };
    let is_stream = stream.r#type().is_ok_and(|kind| [Type::STREAM, Type::SEQPACKET].contains(&kind));
    domain != Domain::UNIX || !is_stream || stream.peer_addr().is_err()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn only_what_cannot_be_connected_anew_is_passed_on() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(!leads_out(&SockRef::from(&near)));
        assert!(!leads_out(&SockRef::from(&std::fs::File::open("/dev/null").unwrap())));
        let (near, _far) = UnixDatagram::pair().unwrap();
        assert!(leads_out(&SockRef::from(&near)));
        let unconnected = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        assert!(leads_out(&SockRef::from(&unconnected)));
        assert!(leads_out(&SockRef::from(&TcpListener::bind("127.0.0.1:0").unwrap())));
        assert!(leads_out(&SockRef::from(&UdpSocket::bind("127.0.0.1:0").unwrap())));
    }
}
