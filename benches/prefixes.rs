//! A million prefixes in the kernel: loading them, changing one, and what packets pay for them.
//!
//! `cargo bench --bench prefixes`, as root (a million entries in one transaction need a larger socket buffer than
//! others may have; `PREFIXES` sets another number). Packets go through a lab of three namespaces on this machine; the
//! rates hold for nobody else, the ratios do. `tracked` has one rule, `ct state established accept`, as every stateful
//! firewall has: what it costs is connection tracking. `at two hooks` has it before routing too, where whoever captures
//! packets must look: there is no less that captures and judges. `by hand` is the same list in one interval set of the `nft`
//! program, where that is installed.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::{IpNet, Ipv4Net};
use tidegate::firewall::{
    Capture, Chain, Connection, Expression, Hook, Listener, Rule, Ruleset, TABLE, Verdict, render,
};
use tidegate::list::{DomainSet, List, ListVerdict};
use tidegate::mode::demo::lab::{Lab, Site, client_address, client_network};
use tidegate::policy::network::{Dns, Mode, Network, ProtectedIp};
use tidegate::policy::rules::Policy;
use tidegate::policy::snapshot::Snapshot;
use tidegate::policy::{Direction, DropAction, IpVerdict, network};
use tidegate::sys::netns;
use tidegate::sys::nft::{NftSocket, Sample};
use tidegate::sys::rtnl::Family;

const ROUNDS: usize = 7;
const PACKETS: u32 = 200_000;
const FLOWS: u32 = 4_000;

fn main() {
    if !netns::is_privileged() {
        netns::enter_user_namespace().unwrap();
    }
    let count: u32 = std::env::var("PREFIXES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let lab = Lab::new().unwrap();
    let (small, whole, changed) = (ruleset(16, None), ruleset(count, None), ruleset(count, Some("192.0.2.1/32")));
    load(&lab, count, &whole, &changed);
    rates(&lab, &small, &whole);
}

fn load(lab: &Lab, count: u32, whole: &Ruleset, changed: &Ruleset) {
    let mut nft = lab.gateway.run(NftSocket::open).unwrap().unwrap();
    let before = kernel_memory();
    let begun = Instant::now();
    nft.replace(whole).unwrap();
    let loaded = begun.elapsed();
    let octets = kernel_memory().saturating_sub(before) * 1024 / u64::from(count);
    println!("{count} prefixes: loaded in {loaded:.2?}, {octets} octets of kernel memory each");
    let (mut times, mut compared) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let (from, to) = if round % 2 == 0 { (whole, changed) } else { (changed, whole) };
        let begun = Instant::now();
        assert_eq!(to.lists[0].changes_from(Some(&from.lists[0])).count(), 1);
        compared.push(begun.elapsed());
        let begun = Instant::now();
        nft.update(from, to).unwrap();
        times.push(begun.elapsed());
    }
    let (all, compared) = (median(times), median(compared));
    let kernel = all.saturating_sub(compared);
    let mut has_all = || {
        let begun = Instant::now();
        (nft.has_all(&whole.lists, SystemTime::now()).unwrap(), begun.elapsed())
    };
    // While the kernel makes room in a table, not all that is there is seen.
    let (stands, looked) = Some(has_all()).filter(|(stands, _)| *stands).unwrap_or_else(&mut has_all);
    assert!(stands);
    let sample = Sample::of(&whole.lists);
    let begun = Instant::now();
    assert!(nft.has(&sample, SystemTime::now()).unwrap());
    println!("looked after: all entries in {looked:.2?}, a sample in {:.2?}", begun.elapsed());
    println!(
        "one entry changed: {all:.2?}, of which {compared:.2?} to compare the lists and {kernel:.2?} for the kernel"
    );
    let mut alone = Vec::new();
    let few = [ruleset(16, None), ruleset(16, Some("192.0.2.1/32"))];
    nft.replace(&few[0]).unwrap();
    for round in 0..20 {
        let begun = Instant::now();
        nft.update(&few[round % 2], &few[(round + 1) % 2]).unwrap();
        alone.push(begun.elapsed());
    }
    println!("one entry changed of a list of 16: {:.2?}", median(alone));
}

/// What stands in the gateway.
enum Way<'a> {
    NoRules,
    Ours(&'a Ruleset),
    /// The same list in one set of `nft`'s, loaded once and hooked in while it is measured.
    ByHand,
}

/// A table of one interval set and two rules, as one writes it by hand; `None` without the `nft` program.
fn by_hand(lab: &Lab, whole: &Ruleset) -> Option<Duration> {
    use std::fmt::Write as _;
    let mut text = "table inet byhand {\nset blocked { type ipv4_addr; flags interval; elements = { ".to_owned();
    for entry in whole.lists[0].entries() {
        write!(text, "{},", entry.prefix).unwrap();
    }
    // Connection tracking runs from the first rule that asks for it, wherever that hangs: this one comes later.
    text += "} }\nchain judge { ip daddr @blocked drop; }\n}\n";
    let file = std::env::temp_dir().join(format!("byhand-{}.nft", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let begun = Instant::now();
    let made = lab.gateway.run(|| Command::new("nft").arg("-f").arg(&file).status()).unwrap();
    std::fs::remove_file(&file).unwrap();
    made.is_ok_and(|status| status.success()).then(|| begun.elapsed())
}

fn nft(lab: &Lab, command: &str) {
    assert!(lab.gateway.run(|| Command::new("nft").arg(command).status()).unwrap().unwrap().success());
}

/// Packets a second through the gateway, by what stands there; the rounds alternate.
fn rates(lab: &Lab, small: &Ruleset, whole: &Ruleset) {
    let (tracked, twice) = (tracked(&[Hook::Forward]), tracked(&[Hook::Prerouting, Hook::Forward]));
    let mut ways = vec![
        ("no rules", Way::NoRules),
        ("tracked", Way::Ours(&tracked)),
        ("at two hooks", Way::Ours(&twice)),
        ("16 prefixes", Way::Ours(small)),
        ("all prefixes", Way::Ours(whole)),
    ];
    match by_hand(lab, whole) {
        Some(took) => {
            println!("by hand, one interval set: loaded by nft in {took:.2?}");
            ways.push(("all by hand", Way::ByHand));
        }
        None => println!("by hand: there is no nft program"),
    }
    let mut of_flow = vec![Vec::new(); ways.len()];
    let mut new_flows = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        for (place, (_, way)) in ways.iter().enumerate() {
            let mut own = lab.gateway.run(NftSocket::open).unwrap().unwrap();
            match way {
                Way::Ours(rules) => own.replace(rules).unwrap(),
                Way::NoRules | Way::ByHand => own.remove().unwrap(),
            }
            let hooked = matches!(way, Way::ByHand);
            if hooked {
                nft(lab, "add chain inet byhand forward { type filter hook forward priority 0; }");
                nft(lab, "add rule inet byhand forward ct state established accept");
                nft(lab, "add rule inet byhand forward jump judge");
            }
            of_flow[place].push(one_flow(lab, round));
            new_flows[place].push(lab.client.run(|| many_flows(round * ways.len() + place)).unwrap());
            if hooked {
                nft(lab, "delete chain inet byhand forward");
            }
        }
    }
    println!("{:14} {:>14} {:>7} {:>14} {:>7}", "", "packets/s", "ratio", "new flows/s", "ratio");
    let rate = |count: u32, all: &Vec<Duration>| f64::from(count) / median(all.clone()).as_secs_f64();
    for (place, (name, _)) in ways.iter().enumerate() {
        let (packets, flows) = (rate(PACKETS, &of_flow[place]), rate(FLOWS, &new_flows[place]));
        let (plain, plainly_new) = (rate(PACKETS, &of_flow[0]), rate(FLOWS, &new_flows[0]));
        println!("{name:14} {packets:14.0} {:7.2} {flows:14.0} {:7.2}", packets / plain, flows / plainly_new);
    }
}

/// Of a flow that has been answered, as nearly all are.
fn one_flow(lab: &Lab, round: usize) -> Duration {
    let host = u8::try_from(round % 200).unwrap() + 1;
    let to = SocketAddr::new(Site::A.address(Family::V4, host), 9000);
    let server = lab.server.run(|| UdpSocket::bind(to)).unwrap().unwrap();
    socket2::SockRef::from(&server).set_recv_buffer_size(4096).unwrap();
    let client = lab.client.run(|| UdpSocket::bind((client_address(Family::V4, 0), 0))).unwrap().unwrap();
    client.connect(to).unwrap();
    client.send(&[0; 64]).unwrap();
    server.recv(&mut [0; 64]).unwrap();
    server.send_to(&[0; 64], client.local_addr().unwrap()).unwrap();
    client.recv(&mut [0; 64]).unwrap();
    let begun = Instant::now();
    for _ in 0..PACKETS {
        let _ = client.send(&[0; 64]);
    }
    begun.elapsed()
}

/// Each packet to another port.
fn many_flows(number: usize) -> Duration {
    let socket = UdpSocket::bind((client_address(Family::V4, 1), 0)).unwrap();
    let host = u8::try_from(number % 200).unwrap() + 1;
    let to = Site::B.address(Family::V4, host);
    let begun = Instant::now();
    for port in 0..u16::try_from(FLOWS).unwrap() {
        let _ = socket.send_to(&[0; 64], SocketAddr::new(to, 20_000 + port));
    }
    begun.elapsed()
}

fn tracked(hooks: &[Hook]) -> Ruleset {
    let accept = Expression::Verdict(Verdict::Accept);
    let rule = || Rule(vec![Expression::Connection(&[Connection::Established]), accept.clone()]);
    let chain = |(number, hook): (usize, &Hook)| Chain::at(*hook, 0, format!("established_{number}"), vec![rule()]);
    let chains = hooks.iter().enumerate().map(chain).collect();
    Ruleset { table: TABLE, sets: Vec::new(), lists: Vec::new(), chains }
}

/// A Network of the lab's clients that blocks so many prefixes of five lengths, and perhaps one more.
fn ruleset(count: u32, more: Option<&str>) -> Ruleset {
    let prefix = |number: u32| {
        let length = [32, 30, 28, 26, 24][number as usize % 5];
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0x0b00_0000 + number * 2048), length).unwrap())
    };
    let more: Vec<IpNet> = more.iter().map(|text| text.parse().unwrap()).collect();
    let list = List {
        name: "million".into(),
        verdict: ListVerdict::Block,
        domains: DomainSet::default(),
        prefixes: (0..count).map(prefix).chain(more).map(|prefix| (prefix, None)).collect(),
    };
    let policy = Arc::new(Policy {
        name: "out".into(),
        default: IpVerdict::Allow,
        lists: vec![Arc::new(list)],
        thresholds: Default::default(),
        asns: None,
        countries: None,
        fingerprints: Vec::new(),
    });
    let network = Network {
        name: "clients".into(),
        description: String::new(),
        mode: Mode::Enforce,
        ips: Family::BOTH.map(|family| ProtectedIp { prefix: client_network(family), port: None }).into(),
        outbound: Some(network::Rule { policy, drop: DropAction::Discard }),
        inbound: None,
        inspection: None,
        dns: Dns::default(),
    };
    let capture = Capture {
        directions: vec![Direction::Outbound, Direction::Inbound],
        ..Capture::tcp(Listener { v4: None, v6: None })
    };
    render(&Snapshot::new("edge-1".into(), 1, vec![Arc::new(network)]), &capture)
}

/// What the kernel's own structures take, in KiB.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let of = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    of("Slab:") + of("VmallocUsed:")
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all[all.len() / 2]
}
