//! A second ClientHello, which follows a HelloRetryRequest in the clear (RFC 8446, section 4.1.2).
//!
//! The RFC forbids it another server name, but servers choose by the name in the second. It cannot come after any
//! other handshake message, nor after application data, unless that is early data, which a server that retries passes
//! over (section 4.2.10). The server's own first message settles it for good.
//!
//! In TLS 1.2 a resumed handshake goes on in encrypted handshake records, and one in 256 of those looks like the
//! beginning of a hello. The server's choice comes before them, so that they are not looked at.

use std::borrow::Cow;

use crate::peek::{Carrier, Discovery};
use crate::wire::Malformed;
use crate::wire::tls::records::{Followed, Records};
use crate::wire::tls::server_hello;
use crate::wire::tls::{CLIENT_HELLO, ClientHello};

/// Watches both sides of a flow whose first hello was judged.
#[derive(Clone, Debug)]
pub(super) struct SecondHello {
    records: Records,
    server: Records,
    /// The server's octets up to the end of its first message.
    answer: Vec<u8>,
    choice: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Open,
    /// The server went on with the first hello: there is no second.
    WentOn,
    /// It retries, or says what cannot be read.
    Retries,
}

pub(super) enum Next {
    More,
    Forward(usize),
    Judge(Discovery),
    Splice,
}

impl SecondHello {
    /// Goes on behind the first hello in `held`, of which `gone` octets are forwarded.
    pub(super) fn after(mut records: Records, held: &[u8], gone: usize) -> Self {
        let has_early_data = {
            let message: Cow<'_, [u8]> = records.message(held);
            ClientHello::parse(&message).is_ok_and(|hello| hello.read.early_data.is_some())
        };
        records.next_message();
        records.let_go(gone);
        records.passes_application_data = has_early_data;
        Self { records, server: Records::default(), answer: Vec::new(), choice: Choice::Open }
    }

    pub(super) fn wants_server(&self) -> bool {
        self.choice == Choice::Open
    }

    /// Whether the server went on with the first hello.
    pub(super) fn has_no_second(&self) -> bool {
        self.choice == Choice::WentOn
    }

    /// Octets that are kept of what the server said.
    pub(super) fn kept(&self) -> usize {
        self.answer.capacity()
    }

    pub(super) fn server(&mut self, new: &[u8]) {
        if self.choice != Choice::Open {
            return;
        }
        let room = LONGEST_ANSWER.saturating_sub(self.answer.len());
        self.answer.extend_from_slice(new.get(..room).unwrap_or(new));
        self.choice = match self.server.follow(&self.answer) {
            Ok(Followed::Needs(_)) if self.answer.len() < LONGEST_ANSWER => return,
            Ok(Followed::Message) if server_hello::goes_on(&self.server.message(&self.answer)) => Choice::WentOn,
            _ => Choice::Retries,
        };
        self.answer = Vec::new();
    }

    pub(super) fn next(&mut self, held: &[u8], fingerprints: bool) -> Result<Next, Malformed> {
        if self.records.next_record(held).is_some_and(|kind| !TLS_TYPES.contains(&kind)) {
            return Ok(Next::Splice);
        }
        let followed = self.records.follow(held);
        // Whatever stands behind another message, it is no hello.
        if self.records.message_type().is_some_and(|kind| kind != CLIENT_HELLO) {
            return Ok(Next::Splice);
        }
        let followed = followed?;
        let settled = self.records.settled().min(held.len());
        if settled > 0 {
            self.records.let_go(settled);
            return Ok(Next::Forward(settled));
        }
        Ok(match followed {
            Followed::Needs(_) => Next::More,
            Followed::ApplicationData => Next::Splice,
            Followed::Message => {
                Next::Judge(Discovery::of_hello(&self.records.message(held), Carrier::Tcp, fingerprints))
            }
        })
    }
}

/// Types of records that some server takes in a handshake: change_cipher_spec to heartbeat. Behind any other, between
/// messages, every server ends the connection, so that no second hello can follow.
const TLS_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const LONGEST_ANSWER: usize = 16 * 1024;
