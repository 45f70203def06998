//! The standard streams, which the command gets as they are.
//!
//! Fails closed: a socket that could be connected anew belongs to the host's network still, and is not passed on. A
//! connected UNIX stream can not, and is what many programs start others with. Nor is a folder passed on, through which
//! the files would be seen as they are outside, with the sockets that are covered inside.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use socket2::{Domain, SockRef, Type};

pub(super) fn check() -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [("input", stdin.as_fd()), ("output", stdout.as_fd()), ("error", stderr.as_fd())];
    if let Some((name, _)) = streams.iter().find(|(_, stream)| is_folder(stream)) {
        return Err(io::Error::other(format!("standard {name} is a folder, by which the command could get past")));
    }
    match streams.iter().find(|(_, stream)| leads_out(&SockRef::from(stream))) {
        None => Ok(()),
        Some((name, _)) => Err(io::Error::other(format!(
            "standard {name} is a socket of this host's network, by which the command could get past; put a pipe \
             between, as `cat |` or `| cat` do"
        ))),
    }
}

fn is_folder(stream: &impl AsFd) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|about| FileType::from_raw_mode(about.st_mode).is_dir())
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
