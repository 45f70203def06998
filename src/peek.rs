//! What the first bytes of a flow say about its name.
//!
//! Three outcomes, never two (SPEC I4). Fails closed: what began as one of our protocols and cannot be read is
//! [`Outcome::Unreadable`], which is blocked unless a Network says otherwise.

mod hello;
#[cfg(test)]
pub(crate) mod samples;
pub mod tcp;
pub mod udp;
pub mod watch;

use std::fmt;

use crate::name::DomainName;
pub use crate::wire::fingerprint::{Carrier, Fingerprint};
use crate::wire::{Fault, Malformed};

/// Where a name was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    Dns,
    Http,
    Tls,
    Quic,
}

/// What peeking found, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    pub outcome: Outcome,
    /// The protocol that the bytes began as; `None` if they look like none of ours.
    pub via: Option<Via>,
    /// Present for a TLS or QUIC hello that was read to its end.
    pub fingerprint: Option<Box<Fingerprint>>,
    /// The hello carries an encrypted inner hello. GREASE looks the same on the wire (RFC 9849, 6.2).
    pub ech: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Name(DomainName),
    /// None of our protocols, or a well-formed hello or request that names nobody.
    NoName,
    Unreadable(Unreadable),
}

/// Why a flow that began as TLS, HTTP or QUIC could not be read to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    Malformed(Malformed),
    /// Two names that contradict each other: two SNIs, two Hosts, a Host beside another target (SPEC I8).
    Contradiction(Malformed),
    /// The beginning ran past the limit of held bytes.
    TooLong,
    /// The beginning did not end before the deadline.
    TimedOut,
    /// The client closed in the midst of it.
    Ended,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::Contradiction(what) => write!(f, "contradictory: {what}"),
            Self::TooLong => f.write_str("its beginning is longer than what is held"),
            Self::TimedOut => f.write_str("its beginning did not end in time"),
            Self::Ended => f.write_str("the client closed in the midst of its beginning"),
        }
    }
}

impl Discovery {
    pub fn no_name(via: Option<Via>) -> Self {
        Self { outcome: Outcome::NoName, via, fingerprint: None, ech: false }
    }

    /// What a well-formed request says: the name that it asks for, if it asks for one.
    pub fn of_request(name: Option<DomainName>) -> Self {
        let outcome = name.map_or(Outcome::NoName, Outcome::Name);
        Self { outcome, via: Some(Via::Http), fingerprint: None, ech: false }
    }

    pub fn unreadable(via: Via, why: Unreadable) -> Self {
        Self { outcome: Outcome::Unreadable(why), via: Some(via), fingerprint: None, ech: false }
    }
}

impl From<Fault> for Unreadable {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(what) => Self::Malformed(what),
            Fault::Contradiction(what) => Self::Contradiction(what),
        }
    }
}
