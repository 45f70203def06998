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
    longest: usize,
    read: Vec<u8>,
}

/// What comes next in a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Message(Vec<u8>),
    /// Its length alone was looked at, and what follows is never read.
    TooLong,
    /// The stream ended, or a message has no octets.
    End,
}

impl Frames {
    /// Messages of at most `longest` octets.
    pub fn new(stream: OwnedReadHalf, longest: usize) -> Self {
        Self { stream, longest, read: Vec::new() }
    }

    /// May be cancelled and called again.
    pub async fn next(&mut self) -> Frame {
        loop {
            if let Some((length, rest)) = self.read.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length == 0 {
                    return Frame::End;
                }
                if length > self.longest {
                    return Frame::TooLong;
                }
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.read.drain(..2 + length);
                    return Frame::Message(message);
                }
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return Frame::End,
                Ok(_) => {}
            }
        }
    }
}
