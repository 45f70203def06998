//! A long day in short: mixed traffic, a reload every second, a hand-over every minute (of a soak of 20).
//!
//! ```text
//! client (HTTP, TLS, QUIC, DNS; allowed and blocked) -- gateway (reloaded, replaced) -- server (a tap counts)
//! ```
//!
//! Not run by `cargo test`: `tests/soak/soak.sh [SECONDS]` does it with a release build.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidegate::mode::demo::client::{Saw, Trust, ask_http, ask_tls};
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, get, listen, live, request, servers};
use crate::hand_over::{question, resolver, sink, take_over};
use crate::inside::in_lab;
use crate::recheck::flight_of;

#[test]
#[ignore = "runs for 20 minutes: tests/soak/soak.sh"]
fn nothing_is_lost_leaks_or_grows() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let accepted = listen(lab, 8080);
        let _resolvers = Family::BOTH.map(|family| resolver(lab, family));
        let tap = Tap::at_server(lab).unwrap();
        let texts = ["", "\"reloaded.example\", "].map(text);
        let mut serving = Gateway::start(lab, &texts[0]);
        let (over, counts) = (AtomicBool::new(false), Counts::default());
        let length = Duration::from_secs(setting("TIDEGATE_SOAK", 1200));
        // At least two in any run.
        let between = (length / 3).min(Duration::from_secs(60));
        std::thread::scope(|scope| {
            let (over, counts, trust) = (&over, &counts, &trust);
            let hammers = Family::BOTH.map(|family| {
                [
                    scope.spawn(move || in_client(lab, || allowed(family, trust, over, counts))),
                    scope.spawn(move || in_client(lab, || blocked(family, trust, over, counts))),
                    scope.spawn(move || in_client(lab, || datagrams(lab, family, over, counts))),
                ]
            });
            let mut flows = Family::BOTH.map(|family| live(lab, &accepted, family));
            let (mut olds, mut lives, mut reloads): (Vec<Gateway>, Vec<Life>, usize) = Default::default();
            let (began, mut handed) = (Instant::now(), Instant::now());
            while began.elapsed() < length && !hammers.iter().flatten().any(|hammer| hammer.is_finished()) {
                std::thread::sleep(Duration::from_secs(1));
                reloads += 1;
                serving.rewrite(&texts[reloads % 2]);
                serving.reload();
                flows.iter_mut().for_each(|(client, server)| exchange(client, server));
                if handed.elapsed() >= between {
                    lives.push(Life::of(&serving));
                    let next = take_over(lab, &texts[0]);
                    olds.push(std::mem::replace(&mut serving, next));
                    handed = Instant::now();
                    // Those of before live on in the old one, and end only now; others begin.
                    flows.iter_mut().for_each(|(client, server)| exchange(client, server));
                    flows = Family::BOTH.map(|family| live(lab, &accepted, family));
                    println!("{:>5} s  {}  {:?}", began.elapsed().as_secs(), counts.told(), lives.last().unwrap());
                }
            }
            over.store(true, Ordering::Relaxed);
            hammers.into_iter().flatten().for_each(|hammer| hammer.join().unwrap());
            for to in forbidden() {
                assert_eq!(tap.count(lab, to).unwrap(), 0, "{to}");
            }
            drop(flows);
            for old in olds {
                let ended = old.enforcer.message(|line| line.contains("ended:"), DEADLINE);
                assert!(ended.is_some(), "an old one lives on: {:#?}", old.enforcer.messages());
            }
            let left = descriptors_at_rest(&serving);
            println!("reloads {reloads}, hand-overs {}, {}, descriptors at the end {left}", lives.len(), counts.told());
            let (first, last) = (lives.first().unwrap(), lives.last().unwrap());
            // Each was measured as old as the other.
            assert!(last.memory * 100 <= first.memory * 105, "memory: {first:?}, then {last:?}");
            serving.stop();
        });
    });
}

/// A name on the list that changes nothing for anybody who asks here.
fn text(name: &str) -> String {
    configuration("tcp-reset", "type = \"prefer-both\"\nhttp_ports = [80, 8080]")
        .replace(
            "entries = [\"blocked.example\"]",
            &format!("entries = [{name}\"blocked.example\", \"www.youtube.com\"]"),
        )
        .replace("[[policy]]", "[gateway]\nwatch = false\n[[policy]]")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[derive(Debug, Default)]
struct Counts {
    allowed: AtomicUsize,
    blocked: AtomicUsize,
    questions: AtomicUsize,
    datagrams: AtomicUsize,
}

impl Counts {
    fn told(&self) -> String {
        let [allowed, blocked, questions, datagrams] =
            [&self.allowed, &self.blocked, &self.questions, &self.datagrams].map(|count| count.load(Ordering::Relaxed));
        format!("allowed {allowed}, blocked {blocked}, questions {questions}, datagrams {datagrams}")
    }
}

/// A process shortly before another takes over.
#[derive(Debug)]
struct Life {
    /// Of its own, in KiB.
    memory: u64,
    #[expect(dead_code, reason = "it is printed")]
    descriptors: usize,
}

impl Life {
    fn of(gateway: &Gateway) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid(gateway))).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { memory, descriptors: descriptors(gateway) }
    }
}

fn pid(gateway: &Gateway) -> i32 {
    gateway.enforcer.pid().as_raw_nonzero().get()
}

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", pid(gateway))).unwrap().count()
}

/// Waits until no flow holds a descriptor any more: a fresh gateway has fewer than so many.
fn descriptors_at_rest(gateway: &Gateway) -> usize {
    const BASE: usize = 100;
    let until = Instant::now() + DEADLINE;
    while descriptors(gateway) > BASE && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    let left = descriptors(gateway);
    assert!(left <= BASE, "{left} descriptors without a flow");
    left
}

fn in_client(lab: &Lab, work: impl FnOnce() + Send) {
    lab.client.run(work).unwrap();
}

fn allowed(family: Family, trust: &Trust, over: &AtomicBool, counts: &Counts) {
    while !over.load(Ordering::Relaxed) {
        for (port, name) in [(443, "allowed.example"), (80, "allowed.example"), (80, "unlisted.example")] {
            let request = request(family, at(Site::A, family, 1, port), Some(name));
            let outcome = if port == 443 { ask_tls(&request, trust) } else { ask_http(&request) };
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{request:?}: {outcome:?}");
            counts.allowed.fetch_add(1, Ordering::Relaxed);
        }
        question(family);
        counts.questions.fetch_add(1, Ordering::Relaxed);
        rest();
    }
}

fn blocked(family: Family, trust: &Trust, over: &AtomicBool, counts: &Counts) {
    while !over.load(Ordering::Relaxed) {
        for to in forbidden().into_iter().filter(|to| to.is_ipv4() == (family == Family::V4)) {
            let request = request(family, to, Some("blocked.example"));
            let outcome = if to.port() == 443 { ask_tls(&request, trust) } else { ask_http(&request) };
            assert!(!matches!(outcome.saw, Saw::Answer(_)), "{request:?}: {outcome:?}");
            counts.blocked.fetch_add(1, Ordering::Relaxed);
        }
        rest();
    }
}

/// By name at site A, by address at site B.
fn forbidden() -> Vec<SocketAddr> {
    let of = |family| {
        [(Site::A, 80, 66), (Site::A, 443, 66), (Site::B, 8443, 66), (Site::A, 443, 67)]
            .map(|(site, port, host)| at(site, family, host, port))
    };
    Family::BOTH.iter().flat_map(|family| of(*family)).collect()
}

/// QUIC, as its first flight: what is allowed arrives with all that follows, what is blocked does not.
fn datagrams(lab: &Lab, family: Family, over: &AtomicBool, counts: &Counts) {
    let to = at(Site::A, family, 9, 443);
    let server = sink(lab, family);
    let (good, bad) = (flight_of("www.google.com"), flight_of("www.youtube.com"));
    while !over.load(Ordering::Relaxed) {
        let client = UdpSocket::bind((client_address(family, 0), 0)).unwrap();
        let mut buffer = [0; 2000];
        client.send_to(&good, to).unwrap();
        server.recv(&mut buffer).unwrap();
        for _ in 0..20 {
            client.send_to(b"@short header", to).unwrap();
            server.recv(&mut buffer).unwrap();
        }
        let blocked = UdpSocket::bind((client_address(family, 0), 0)).unwrap();
        for octets in [&bad[..], b"@short header"] {
            let _ = blocked.send_to(octets, at(Site::A, family, 67, 443));
        }
        counts.datagrams.fetch_add(22, Ordering::Relaxed);
        rest();
    }
}

/// Others have the processor too.
fn rest() {
    std::thread::sleep(Duration::from_millis(setting("TIDEGATE_SOAK_REST", 20)));
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    server.write_all(answer).unwrap();
    client.read_exact(&mut vec![0; answer.len()]).unwrap();
    let request = get("allowed.example");
    client.write_all(request.as_bytes()).unwrap();
    server.read_exact(&mut vec![0; request.len()]).unwrap();
}
