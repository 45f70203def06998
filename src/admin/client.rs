//! The other end of the local socket: `tidegate status` and `tidegate reload`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An answer of the gateway.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Asks the gateway at a socket. `path` with its query.
pub fn ask(socket: &Path, method: &str, path: &str, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: tidegate\r\n\r\n").as_bytes())?;
    let mut octets = Vec::new();
    stream.take(LARGEST).read_to_end(&mut octets)?;
    parse(&octets).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer of a gateway"))
}

fn parse(octets: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = response.parse(octets).ok()? else { return None };
    let length = response.headers.iter().find(|header| header.name == "content-length")?.value;
    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
    // An answer that was cut short is none.
    let body = octets.get(end..).filter(|body| body.len() == length)?;
    Some(Answer { status: response.code?, body: body.to_vec() })
}

/// Octets of an answer.
const LARGEST: u64 = 64 << 20;
