//! Parsers over bytes that an adversary chose.
//!
//! Pure: no socket, clock or task. Nothing here indexes, casts or allocates by a number that it has not checked.
//! Fails closed: what a parser cannot read to the end is [`Malformed`], with the field and the RFC section.

pub mod dns;
pub mod fingerprint;
pub mod hpack;
pub mod http;
pub mod http2;
pub mod ip;
pub mod quic;
pub mod reader;
pub mod tls;

use std::fmt;

use crate::name::{DomainName, NotAName};

/// Bytes that began as a known protocol and then broke its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The field that could not be read, in the RFC's words.
    pub field: &'static str,
    /// Where the rule stands: `RFC 8446, 4.1.2`.
    pub section: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.field, self.section)
    }
}

impl std::error::Error for Malformed {}

/// Why the bytes of a protocol cannot be read to one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They break the protocol's rules.
    Malformed(Malformed),
    /// They name two hosts, so that two readers could see different names (SPEC I8).
    Contradiction(Malformed),
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::Contradiction(what) => write!(f, "contradictory names: {what}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The name in a field that a server would compare with the names it serves. An IP literal names nobody (SPEC I8).
pub fn server_name(octets: &[u8], fault: Malformed) -> Result<Option<DomainName>, Fault> {
    match DomainName::parse(octets) {
        Ok(name) => Ok(Some(name)),
        Err(NotAName::IpLiteral) => Ok(None),
        Err(_) => Err(Fault::Malformed(fault)),
    }
}
