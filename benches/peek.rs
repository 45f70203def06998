//! Nanoseconds to find the name in what a client sends first.
//!
//! `cargo bench --bench peek`. Best of several rounds for each row, so that a busy machine shows what the code costs.
//! `goal` is the most that is accepted; a row over it is marked.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use tidegate::peek::tcp::{Limits, Step, TcpPeek};
use tidegate::wire::tls::ClientHello;

const ROUNDS: usize = 40;
const TIMES: u32 = 2_000;

const HEAD: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: www.example.com:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) \
AppleWebKit/537.36\r\nAccept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, deflate\r\nCookie: a=b; c=d\r\n\r\n";

fn main() {
    let classic = hello(|need| need == 517);
    let large = post_quantum(&classic);
    let split: Vec<u8> = large[5..].chunks(100).flat_map(record).collect();
    let http2 = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x14\x01\x05\0\0\0\x01\x82\x86\x84\x01\x0f"
            .as_slice(),
        b"www.example.com",
    ]
    .concat();

    println!("{:44} {:>6} {:>8} {:>6}", "", "octets", "ns", "goal");
    row("hello, name", &classic, false, Some(1_000.0));
    row("hello, name and fingerprints", &classic, true, Some(4_000.0));
    row("large hello, name", &large, false, Some(2_000.0));
    row("large hello, name and fingerprints", &large, true, Some(6_000.0));
    row("large hello in records of 100, name", &split, false, None);
    row("request head", HEAD, false, Some(300.0));
    row("HTTP/2 preface and request", &http2, false, None);
    row("another protocol", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", false, None);
    dribble("large hello octet by octet, in all", &large);
    dribble("request head octet by octet, in all", HEAD);

    let message = &classic[5..];
    print(
        "  of the first row: the walk alone",
        message.len(),
        best(|| ClientHello::parse(message).unwrap().version),
        None,
    );
}

fn row(what: &str, bytes: &[u8], fingerprints: bool, goal: Option<f64>) {
    let limits = Limits { held: 65_536, fingerprints };
    let nanoseconds = best(|| {
        let step = TcpPeek::new(limits).look(bytes, false);
        assert!(matches!(step, Step::Found(_)));
        step
    });
    print(what, bytes.len(), nanoseconds, goal);
}

fn dribble(what: &str, bytes: &[u8]) {
    let limits = Limits { held: 65_536, fingerprints: false };
    let nanoseconds = best(|| {
        let mut peek = TcpPeek::new(limits);
        (1..=bytes.len()).find(|end| matches!(peek.look(&bytes[..*end], false), Step::Found(_))).unwrap()
    });
    print(what, bytes.len(), nanoseconds, None);
}

fn print(what: &str, octets: usize, nanoseconds: f64, goal: Option<f64>) {
    let (goal, mark) = match goal {
        Some(goal) => (format!("{goal:.0}"), if nanoseconds > goal { " OVER" } else { "" }),
        None => (String::new(), ""),
    };
    println!("{what:44} {octets:>6} {nanoseconds:>8.0} {goal:>6}{mark}");
}

/// Nanoseconds of one call, in the best of the rounds.
fn best<T>(mut call: impl FnMut() -> T) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        for _ in 0..TIMES {
            black_box(call());
        }
        begun.elapsed().as_nanos() as f64 / f64::from(TIMES)
    });
    rounds.fold(f64::MAX, f64::min)
}

/// The first captured hello of this length that came in one record.
fn hello(is_wanted: impl Fn(usize) -> bool) -> Vec<u8> {
    let table = include_str!("../tests/data/flights/tls.tsv");
    let row = table.lines().map(|row| row.split('\t').collect::<Vec<_>>()).find(|row| {
        let need: usize = row[3].parse().unwrap();
        is_wanted(need) && row[1] == "-" && row[2] != "-"
    });
    let row = row.unwrap();
    let need: usize = row[3].parse().unwrap();
    let octets = row[6].as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    octets.take(need).collect()
}

/// The same hello with 1.4 KB more before its extensions, as the key shares of post-quantum clients make it.
fn post_quantum(classic: &[u8]) -> Vec<u8> {
    let message = &classic[5..];
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let more = [0xfa, 0xfb].map(|kind| [&[0x7f, kind, 2, 0xb0][..], &[kind; 688]].concat()).concat();
    let extensions = [&more, &message[at + 2..]].concat();
    let length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
    let body = [&message[4..at], &length, &extensions].concat();
    record(&[&[1, 0][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), &body].concat())
}

fn record(piece: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &u16::try_from(piece.len()).unwrap().to_be_bytes(), piece].concat()
}
