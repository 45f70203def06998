//! Parsers over bytes that an adversary chose.
//!
//! Pure: no socket, clock or task. Nothing here indexes, casts or allocates by a number that it has not checked.
//! Fails closed: what a parser cannot read to the end is [`Malformed`], with the field and the RFC section.

pub mod quic;

use std::fmt;

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
