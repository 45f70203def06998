//! Where the body of a request ends (RFC 9112, section 6).
//!
//! Fails closed: both lengths at once, several of one, a coding other than `chunked`, chunk extensions and chunk sizes
//! in any form but digits are refused, since servers have differed over each of them and a request that one server
//! reads as a body is another server's next request.

use super::{HeadEnd, field};
use crate::wire::Malformed;

/// What follows a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Nothing,
    /// So many octets.
    Length(u64),
    Chunked,
}

impl Body {
    /// The body that the two fields tell of.
    pub(super) fn of(
        transfer_encoding: Option<&[u8]>,
        content_length: Option<&[u8]>,
        is_http_11: bool,
    ) -> Result<Self, Malformed> {
        match (transfer_encoding, content_length) {
            (None, None) => Ok(Self::Nothing),
            (None, Some(digits)) => match number(digits, 10) {
                Some(0) => Ok(Self::Nothing),
                Some(length) => Ok(Self::Length(length)),
                None => Err(AMBIGUOUS),
            },
            (Some(coding), None) if is_http_11 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Self::Chunked),
            (Some(_), _) => Err(AMBIGUOUS),
        }
    }
}

/// A number of nothing but digits, small enough that no server's counter overflows.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() || digits.len() > MOST_DIGITS || !digits.iter().all(|digit| char::from(*digit).is_digit(radix))
    {
        return None;
    }
    u64::from_str_radix(str::from_utf8(digits).ok()?, radix).ok()
}

/// Follows a body through the bytes of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Follow(Stage);

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// So many octets of a body of known length are left.
    Length(u64),
    ChunkSize,
    /// So many octets of a chunk are left.
    Chunk(u64),
    ChunkEnd,
    Trailer(HeadEnd),
    Ended,
}

/// How far a body was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Octets that belong to the body and need not be held.
    pub length: usize,
    /// The body ends behind them.
    pub is_last: bool,
}

impl Follow {
    pub fn new(body: Body) -> Self {
        Self(match body {
            Body::Nothing => Stage::Ended,
            Body::Length(length) => Stage::Length(length),
            Body::Chunked => Stage::ChunkSize,
        })
    }

    /// Follows the body through `bytes`, which begin with what was not part of it the last time.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<Part, Malformed> {
        let mut length = 0;
        loop {
            let there = bytes.get(length..).unwrap_or_default();
            let Some(step) = self.step(there)? else { return Ok(Part { length, is_last: false }) };
            length += step;
            if matches!(self.0, Stage::Ended) {
                return Ok(Part { length, is_last: true });
            }
        }
    }

    /// Passes over one element; `None` if it has not come yet.
    fn step(&mut self, there: &[u8]) -> Result<Option<usize>, Malformed> {
        match &mut self.0 {
            Stage::Ended => Ok(Some(0)),
            Stage::Length(left) | Stage::Chunk(left) => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(there.len());
                *left = left.saturating_sub(step as u64);
                match self.0 {
                    Stage::Length(0) => self.0 = Stage::Ended,
                    Stage::Chunk(0) => self.0 = Stage::ChunkEnd,
                    _ => return Ok((step > 0).then_some(step)),
                }
                Ok(Some(step))
            }
            Stage::ChunkSize => {
                let Some(feed) = there.iter().take(LONGEST_SIZE_LINE).position(|octet| *octet == b'\n') else {
                    return if there.len() < LONGEST_SIZE_LINE { Ok(None) } else { Err(CHUNK) };
                };
                let digits = there.get(..=feed).and_then(|line| line.strip_suffix(b"\r\n")).ok_or(CHUNK)?;
                self.0 = match number(digits, 16).ok_or(CHUNK)? {
                    0 => Stage::Trailer(HeadEnd::default()),
                    size => Stage::Chunk(size),
                };
                Ok(Some(feed + 1))
            }
            Stage::ChunkEnd => match there {
                [b'\r', b'\n', ..] => {
                    self.0 = Stage::ChunkSize;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err(CHUNK),
            },
            Stage::Trailer(line) => {
                let Some(end) = line.find_line(there)? else { return Ok(None) };
                if end.is_empty {
                    self.0 = Stage::Ended;
                    return Ok(Some(end.at));
                }
                check_trailer(there.get(..end.at).and_then(|line| line.strip_suffix(b"\r\n")).ok_or(CHUNK)?)?;
                *line = HeadEnd::default();
                Ok(Some(end.at))
            }
        }
    }
}

/// A trailer that a careless server would merge into the head (RFC 9110, section 6.5.1).
fn check_trailer(line: &[u8]) -> Result<(), Malformed> {
    let (name, _) = field(line)?;
    let is_forbidden = [&b"host"[..], b"content-length", b"transfer-encoding", b"upgrade"]
        .iter()
        .any(|forbidden| name.eq_ignore_ascii_case(forbidden));
    if is_forbidden { Err(CHUNK) } else { Ok(()) }
}

/// Far from where any counter overflows, in either radix.
const MOST_DIGITS: usize = 15;
const LONGEST_SIZE_LINE: usize = MOST_DIGITS + 2;

pub(super) const AMBIGUOUS: Malformed = Malformed { field: "message body length", section: "RFC 9112, 6.3" };
const CHUNK: Malformed = Malformed { field: "chunked body", section: "RFC 9112, 7.1" };
