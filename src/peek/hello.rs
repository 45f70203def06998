//! What a complete ClientHello says, whatever carried it.

use super::{Discovery, Outcome, Via};
use crate::wire::fingerprint::{Carrier, Fingerprint};
use crate::wire::tls::ClientHello;

impl Discovery {
    /// Reads a complete handshake message, its header of four octets included.
    ///
    /// `carrier` tells TLS over TCP from QUIC. Fingerprints cost more than the name: `fingerprints` says whether they
    /// are wanted.
    pub fn of_hello(handshake: &[u8], carrier: Carrier, fingerprints: bool) -> Self {
        let via = match carrier {
            Carrier::Tcp => Via::Tls,
            Carrier::Quic => Via::Quic,
        };
        let hello = match ClientHello::parse(handshake) {
            Ok(hello) => hello,
            Err(fault) => return Self::unreadable(via, fault.into()),
        };
        let outcome = match hello.name() {
            Ok(Some(name)) => Outcome::Name(name),
            Ok(None) => Outcome::NoName,
            Err(fault) => Outcome::Unreadable(fault.into()),
        };
        let fingerprint = fingerprints.then(|| Box::new(Fingerprint::of(&hello, carrier)));
        Self { outcome, via: Some(via), fingerprint, ech: hello.has_encrypted_hello() }
    }
}
