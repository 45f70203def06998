//! A handshake message is read without a panic, and a name in it is the same when it is read again from its own form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::name::DomainName;
use tidegate::peek::{Carrier, Discovery, Outcome};

fuzz_target!(|message: &[u8]| {
    for carrier in [Carrier::Tcp, Carrier::Quic] {
        let discovery = Discovery::of_hello(message, carrier, true);
        if let Outcome::Name(name) = discovery.outcome {
            assert_eq!(DomainName::parse(name.as_str().as_bytes()), Ok(name));
        }
    }
});
