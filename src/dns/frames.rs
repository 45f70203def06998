//! Messages on a stream (RFC 1035, section 4.2.2).

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// A message behind its length (RFC 1035, section 4.2.2).
pub fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Messages out of a stream.
#[derive(Debug)]
pub struct Frames {
    stream: OwnedReadHalf,
    read: Vec<u8>,
}

impl Frames {
    pub fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The next message; `None` when the stream ends or a message has no octets. May be cancelled and called again.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.read.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length == 0 {
                    return None;
                }
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.read.drain(..2 + length);
                    return Some(message);
                }
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
