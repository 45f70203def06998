//! Nanoseconds to find the name in the first datagrams of a QUIC client.
//!
//! `cargo bench --bench quic`. Best of several rounds for each row, so that a busy machine shows what the code costs.
//! The goal is a verdict within 50 microseconds of the datagram that completes the hello.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use tidegate::peek::udp::{Budget, UdpPeek};
use tidegate::wire::quic::{ConnectionId, InitialKeys, Version};

const ROUNDS: usize = 40;
const TIMES: u32 = 500;

fn main() {
    let one = flight("www.google.com");
    let three = flight("signaler-pa.clients6.google.com");
    println!("{:48} {:>9} {:>8}", "", "datagrams", "ns");
    row("one Initial, name", &one, false);
    row("one Initial, name and fingerprints", &one, true);
    row("three Initials of Chrome coalesced, name", &three, false);
    row("three Initials of Chrome coalesced, all of it", &three, true);
    row("no QUIC", &[vec![0x16; 200]], false);
    row("a short header", &[vec![0x59; 1200]], false);
    let mut broken = one.clone();
    broken[0][600] ^= 1;
    row("an Initial that does not open", &broken, false);
    let id = ConnectionId::new(b"8 octets").unwrap();
    print("of it: keys", 1, best(|| assert!(black_box(InitialKeys::of_client(Version::V1, black_box(&id))).is_some())));
}

fn row(what: &str, datagrams: &[Vec<u8>], fingerprints: bool) {
    let budget = Budget { packets: 5, connections: 8, fingerprints };
    let mut scratch = Vec::new();
    let now = Instant::now();
    let time = best(|| {
        let mut peek = UdpPeek::default();
        for datagram in datagrams {
            black_box(peek.datagram(black_box(datagram), now, &budget, &mut scratch));
        }
    });
    print(what, datagrams.len(), time);
}

fn print(what: &str, datagrams: usize, time: f64) {
    println!("{what:48} {datagrams:>9} {time:>8.0}");
}

fn best(mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let begin = Instant::now();
        (0..TIMES).for_each(|_| work());
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// The longest flight with this name among the captured ones.
fn flight(name: &str) -> Vec<Vec<u8>> {
    let flights = include_str!("../tests/data/quic-flights.txt");
    let named = flights.lines().filter(|line| line.split(' ').next() == Some(name));
    let line = if name.starts_with("www") { named.clone().next() } else { named.max_by_key(|line| line.len()) };
    line.unwrap().split(' ').skip(3).map(unhex).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
