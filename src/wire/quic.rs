//! QUIC as a client begins it: Initial packets of versions 1 and 2 and of the drafts from 23 on.
//!
//! Anybody on the path can read an Initial packet: its keys come from the first destination connection ID
//! (RFC 9001, section 5.2). [`packet`] reads one packet of a datagram, [`InitialKeys`] open it, [`frames`] finds
//! the CRYPTO frames in it and [`CryptoStream`] puts them in order.
//!
//! Fails closed: a length that points outside the datagram is [`Malformed`](super::Malformed), two CRYPTO frames that
//! disagree are an error, and what does not authenticate is never read.

mod crypto_stream;
#[cfg(test)]
pub(crate) mod forge;
mod frames;
mod keys;
mod packet;

pub use crypto_stream::{CryptoStream, Refused};
pub use frames::{Crypto, frames};
pub use keys::{InitialKeys, Opened};
pub use packet::{ConnectionId, Kind, LongHeader, Packet, packet};

/// A version of QUIC whose Initial packets can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Drafts 23 to 28.
    Draft23,
    /// Drafts 29 to 32.
    Draft29,
    /// RFC 9000, and drafts 33 and 34, which share its salt.
    V1,
    /// RFC 9369.
    V2,
}

impl Version {
    /// The version with this number on the wire; `None` for one that nobody here reads.
    pub fn from_wire(number: u32) -> Option<Self> {
        match number {
            0x0000_0001 | 0xff00_0021 | 0xff00_0022 => Some(Self::V1),
            0x6b33_43cf => Some(Self::V2),
            0xff00_0017..=0xff00_001c => Some(Self::Draft23),
            0xff00_001d..=0xff00_0020 => Some(Self::Draft29),
            _ => None,
        }
    }
}
