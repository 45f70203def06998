//! Whether a server turned the connection to another protocol (RFC 9110, sections 7.8 and 9.3.6).
//!
//! Only the head of the first final response is read. Fails closed: a response that cannot be read did not switch.

use super::HeadEnd;

/// What the server said to the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not yet known.
    Open,
    /// 101, or 2xx to CONNECT: what follows is another protocol.
    Switched,
    /// HTTP/1 goes on.
    Stayed,
}

/// Follows the server's bytes up to the end of the first final response head.
#[derive(Clone, Debug, Default)]
pub struct FirstResponse {
    /// What came of the head in progress, at most [`LONGEST`] octets.
    held: Vec<u8>,
    end: HeadEnd,
    is_settled: bool,
}

impl FirstResponse {
    /// Takes the next bytes from the server. `is_tunnel`: the request was CONNECT.
    pub fn follow(&mut self, new: &[u8], is_tunnel: bool) -> Answer {
        if self.is_settled {
            return Answer::Stayed;
        }
        let room = LONGEST.saturating_sub(self.held.len());
        self.held.extend_from_slice(new.get(..room).unwrap_or(new));
        let answer = self.read(is_tunnel);
        if answer != Answer::Open {
            *self = Self { is_settled: true, ..Self::default() };
        }
        answer
    }

    /// Octets that are kept of the head in progress.
    pub fn kept(&self) -> usize {
        self.held.capacity()
    }

    fn read(&mut self, is_tunnel: bool) -> Answer {
        loop {
            match self.end.find(&self.held) {
                Err(_) => return Answer::Stayed,
                Ok(None) if self.held.len() >= LONGEST => return Answer::Stayed,
                Ok(None) => return Answer::Open,
                Ok(Some(end)) => match status(&self.held) {
                    Some(101) if !is_tunnel => return Answer::Switched,
                    Some(100..=199) => {
                        self.held.drain(..end.min(self.held.len()));
                        self.end = HeadEnd::default();
                    }
                    Some(200..=299) if is_tunnel => return Answer::Switched,
                    _ => return Answer::Stayed,
                },
            }
        }
    }
}

/// The code of `HTTP/1.1 101 Switching Protocols` (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    let (code, after) = rest.split_first_chunk::<3>()?;
    if !matches!(after.first(), Some(b' ' | b'\r')) || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(code).ok()?.parse().ok()
}

const LONGEST: usize = 16 * 1024;
