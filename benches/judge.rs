//! Nanoseconds to judge a flow once its name is known, and to peek and judge together.
//!
//! `cargo bench --bench judge`. The policy has an allow list, a block list of 100,000 names and one of 10,000 prefixes,
//! none of which holds what is asked: the longest way. `goal` is the most that is accepted.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::{IpNet, Ipv4Net};
use tidegate::list::{List, ListVerdict};
use tidegate::name::Pattern;
use tidegate::peek::Discovery;
use tidegate::peek::tcp::{Limits, Step, TcpPeek};
use tidegate::peek::udp::{self, UdpPeek};
use tidegate::policy::judge::{Binding, Facts, judge};
use tidegate::policy::network::*;
use tidegate::policy::rules::Policy;
use tidegate::policy::snapshot::Snapshot;
use tidegate::policy::{Direction, DropAction, InspectionType, IpVerdict};

const ROUNDS: usize = 20;
const TIMES: u32 = 20_000;

fn main() {
    let snapshot = snapshot();
    let client = IpAddr::from(Ipv4Addr::new(10, 1, 0, 2));
    let network = snapshot.network_of(client, 6, Some(443)).unwrap();
    let hello = hello();
    let limits = |fingerprints| Limits { held: 65_536, fingerprints };
    let discovery = found(TcpPeek::new(limits(false)).look(&hello, false));
    println!("{:48} {:>8} {:>6}", "", "ns", "goal");
    row("which Network", None, || snapshot.network_of(client, 6, Some(443)).is_some());
    row("judgement", None, || judge(network, Direction::Outbound, &facts(&discovery)));
    for fingerprints in [false, true] {
        let what = format!("peek and judgement, fingerprints: {fingerprints}");
        row(&what, Some(5_000.0), || {
            let discovery = found(TcpPeek::new(limits(fingerprints)).look(&hello, false));
            let network = snapshot.network_of(client, 6, Some(443)).unwrap();
            judge(network, Direction::Outbound, &facts(&discovery))
        });
    }
    row_of_quic(&snapshot, client);
}

/// From the datagram that completes a hello to its verdict.
fn row_of_quic(snapshot: &Snapshot, client: IpAddr) {
    let flights = include_str!("../tests/data/quic-flights.txt");
    let flight = flights.lines().find(|line| line.starts_with("www.google.com ")).unwrap();
    let hex = flight.split(' ').nth(3).unwrap();
    let datagram: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let budget = udp::Budget { packets: 5, connections: 8, fingerprints: true };
    let (now, mut scratch) = (Instant::now(), Vec::new());
    row("QUIC: peek and judgement, fingerprints: true", Some(50_000.0), || {
        let reading = UdpPeek::default().datagram(&datagram, now, &budget, &mut scratch);
        let (_, discovery) = reading.judge.into_iter().next().unwrap();
        let network = snapshot.network_of(client, 17, Some(443)).unwrap();
        judge(network, Direction::Outbound, &facts(&discovery))
    });
}

fn facts(discovery: &Discovery) -> Facts<'_> {
    let remote = IpAddr::from(Ipv4Addr::new(203, 0, 113, 7));
    Facts { remote, discovery: Some(discovery), binding: Binding::Unknown, now: SystemTime::UNIX_EPOCH }
}

/// The best of the rounds: a busy machine then shows what the code costs.
fn row<T>(what: &str, goal: Option<f64>, mut call: impl FnMut() -> T) {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..TIMES {
            black_box(call());
        }
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(TIMES));
    }
    let (limit, mark) = match goal {
        Some(goal) => (format!("{goal:.0}"), if best > goal { " OVER" } else { "" }),
        None => (String::new(), ""),
    };
    println!("{what:48} {best:>8.0} {limit:>6}{mark}");
}

fn found(step: Step) -> Discovery {
    match step {
        Step::Found(discovery) => discovery,
        Step::NeedMore { .. } => unreachable!("the hello is whole"),
    }
}

fn snapshot() -> Snapshot {
    let names = (0..100_000).map(|n| (Pattern::parse(&format!(".name-{n}.example.net")).unwrap(), None));
    let prefixes = (0..10_000u32).map(|n| {
        let address = Ipv4Addr::from(0x0b00_0000 + n * 512);
        (IpNet::from(Ipv4Net::new(address, 24).unwrap()), None)
    });
    let list = |name: &str, verdict| List {
        name: name.into(),
        verdict,
        domains: Default::default(),
        prefixes: Default::default(),
    };
    let allowed = [(Pattern::parse("allowed.example").unwrap(), None)];
    let lists = vec![
        Arc::new(List { domains: allowed.into_iter().collect(), ..list("allowed", ListVerdict::Allow) }),
        Arc::new(List { domains: names.collect(), ..list("names", ListVerdict::Block) }),
        Arc::new(List { prefixes: prefixes.collect(), ..list("prefixes", ListVerdict::Block) }),
    ];
    let policy = Arc::new(Policy {
        name: "out".into(),
        default: IpVerdict::Allow,
        lists,
        thresholds: Default::default(),
        asns: None,
        countries: None,
        fingerprints: Vec::new(),
    });
    let network = Network {
        name: "clients".into(),
        description: String::new(),
        mode: Mode::Enforce,
        ips: vec![ProtectedIp { prefix: "10.1.0.0/16".parse().unwrap(), port: None }],
        outbound: Some(Rule { policy, drop: DropAction::TcpReset }),
        inbound: None,
        inspection: Some(inspection()),
        dns: Dns::default(),
    };
    Snapshot::new("bench".into(), 1, vec![Arc::new(network)])
}

fn inspection() -> Inspection {
    Inspection {
        kind: InspectionType::PreferBoth,
        tls_ports: vec![443],
        http_ports: vec![80],
        quic: Quic::Inspect,
        packets: 5,
        timeout: Duration::from_secs(1),
        unidentified: Otherwise::IpVerdict,
        unreadable: Otherwise::Block,
        bind: Bind::Off,
        use_bindings: false,
        ech: Ech::Allow,
        http: HttpRequests::Every,
    }
}

/// The first flight of a real client.
fn hello() -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "www.some-service.example.com".try_into().unwrap();
    let mut octets = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut octets).unwrap();
    octets
}
