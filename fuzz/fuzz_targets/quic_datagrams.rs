//! Whatever datagrams a client sends, nothing passes that was not judged to pass, and little is remembered.
//!
//! Each datagram stands behind an octet that says what it is and two with its length: octets as they are, or frames to
//! be sealed in an Initial packet of one of four connections, which blind octets never are.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};
use tidegate::peek::udp::{Budget, Status, UdpPeek};

fuzz_target!(|bytes: &[u8]| {
    let budget = Budget { packets: 5, connections: 3, fingerprints: true };
    let (mut peek, mut scratch, now) = (UdpPeek::default(), Vec::new(), Instant::now());
    let (mut rest, mut number) = (bytes, 0);
    while let Some((&[kind, high, low], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (body, tail) = tail.split_at(tail.len().min(length));
        rest = tail;
        let datagram = if kind & 1 == 0 { body.to_vec() } else { sealed(kind >> 1 & 3, number, body) };
        number += 1;
        let reading = peek.datagram(&datagram, now, &budget, &mut scratch);
        for (subject, _) in reading.judge {
            peek.settle(subject, false);
        }
        assert_ne!(peek.status(reading.depends_on), Status::Pass);
        assert!(peek.weight() <= MOST);
    }
    for (subject, _) in peek.expire() {
        peek.settle(subject, false);
    }
    assert!(!peek.is_open());
});

fn sealed(connection: u8, number: u64, frames: &[u8]) -> Vec<u8> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let id = [connection; 8];
    let keys = Keys::initial(Version::V1, suite, suite.quic.expect("a suite for QUIC"), &id, Side::Client).local;
    let mut header = vec![0xc3, 0, 0, 0, 1, 8];
    header.extend(id);
    header.extend([0, 0]);
    let mut payload = frames.to_vec();
    payload.resize(payload.len().max(4), 0);
    header.extend(((4 + payload.len() + TAG) as u32 | 0x8000_0000).to_be_bytes());
    let number_at = header.len();
    header.extend((number as u32).to_be_bytes());
    let tag = keys.packet.encrypt_in_place(number, &header, &mut payload).expect("room in a Vec");
    payload.extend(tag.as_ref());
    let (first, packet_number) = header.split_at_mut(number_at);
    keys.header.encrypt_in_place(&payload[..16], &mut first[0], packet_number).expect("a whole sample");
    header.extend(payload);
    header
}

const TAG: usize = 16;
/// Three connections with a hello each.
const MOST: usize = 3 * (2 << 16);
