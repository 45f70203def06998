//! The kernel and the judgement that `explain` shows agree, over random policies and packets of every protocol.
//!
//! ```text
//! client 10.1.0.2-.31 -- gateway (rules alone, no tidegate) -- server 198.51.100.0/24, 203.0.113.0/24
//! ```

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use socket2::{Domain, Protocol as Number, Socket, Type};
use tidegate::firewall::{By, Capture, LOG_GROUP, Listener, LogTag, render};
use tidegate::list::geoip::{Code, Country, Database, Kind};
use tidegate::list::{DomainSet, List, ListVerdict};
use tidegate::mode::demo::lab::{Lab, Site, client_address, server_address};
use tidegate::policy::judge::{Binding, Facts, judge};
use tidegate::policy::network::{
    Bind, DNS_PORT, Dns, ENCRYPTED_DNS_PORT, Ech, HttpRequests, Inspection, Mode, Network, Otherwise, Port,
    ProtectedIp, Protocol, Quic, Rule,
};
use tidegate::policy::rules::{GeoRule, Policy};
use tidegate::policy::snapshot::Snapshot;
use tidegate::policy::{Direction, DropAction, InspectionType, IpVerdict, Reason};
use tidegate::sys::capture;
use tidegate::sys::nflog::PacketLog;
use tidegate::sys::rtnl::Family;
use tidegate::wire::ip::Headers;

use crate::inside::in_lab;
use crate::mmdb::{Mmdb, Record};

#[test]
fn kernel_and_judgement_agree_on_random_policies_and_packets() {
    in_lab(|lab| {
        let world = World::new(lab);
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let asked = (plans(), prop::collection::vec(packets(), 40..60));
        let outcome = TestRunner::new(config).run(&asked, |(plan, packets)| world.check(&plan, &packets));
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
        let (passed, blocked, recorded) = world.seen.into_inner();
        let by_code = world.by_code.get();
        assert!(by_code > 60, "{by_code} by country or ASN");
        // Policies that pass all or block all would prove nothing.
        assert!(
            passed > 300 && blocked > 300 && recorded > 600,
            "{passed} passed, {blocked} blocked, {recorded} records"
        );
    });
}

/// R0: where nobody listens, what a Network captures does not pass, and all else has the verdict of its address.
#[test]
fn what_explain_calls_inspected_or_a_question_is_captured_and_nothing_else() {
    in_lab(|lab| {
        let world = World::new(lab);
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let services = prop::collection::vec((any::<bool>(), 0u8..32, 0u8..32, 0u8..3, 0u8..4, 0u8..8), 5);
        // Encrypted DNS is of two minds: refused, let by, or inspected.
        let port = prop::sample::select([&PORTS[..], &[ENCRYPTED_DNS_PORT; 5]].concat());
        let packet = (0u8..8, places(1..3), prop::sample::select(vec![6u8, 17]), port);
        let asked = (plans(), services, prop::collection::vec(packet, 40..60));
        let outcome = TestRunner::new(config)
            .run(&asked, |(plan, services, packets)| world.check_captured(&plan.serving(&services), &packets));
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
        let (passed, blocked, captured) = world.seen.into_inner();
        assert!(
            passed > 300 && blocked > 50 && captured > 100,
            "{passed} passed, {blocked} blocked, {captured} captured"
        );
    });
}

/// Of services and of none.
const PORTS: [u16; 5] = [DNS_PORT, 80, 443, ENCRYPTED_DNS_PORT, 9871];

/// Whether it inspects; its TLS and HTTP ports among [`PORTS`]; QUIC; which resolvers are authorized; whether it is off.
type WrittenServices = (bool, u8, u8, u8, u8, u8);

/// An address of the lab: who, and in which family.
#[derive(Clone, Copy, Debug)]
struct Place {
    family: Family,
    /// 0: clients; 1, 2: the sites.
    kind: u8,
    host: u8,
}

impl Place {
    fn address(self) -> IpAddr {
        match self.kind {
            0 => client_address(self.family, self.host),
            1 => Site::A.address(self.family, self.host + 1),
            _ => Site::B.address(self.family, self.host + 1),
        }
    }

    fn prefix(self, length: u8) -> ipnet::IpNet {
        let lengths = match self.family {
            Family::V4 => [0, 8, 24, 28, 30, 31, 32, 32],
            Family::V6 => [0, 16, 64, 120, 126, 127, 128, 128],
        };
        ipnet::IpNet::new(self.address(), lengths[usize::from(length)]).unwrap().trunc()
    }
}

type WrittenList = (u8, Vec<(Place, u8, u8)>);
type WrittenRule = Option<(usize, u8)>;
/// Whether it allows, and the codes it names.
type WrittenGeo = Option<(bool, u8)>;
/// Whether it allows by default, the lists it has, its threshold; ASNs, countries.
type WrittenPolicy = (bool, u8, u8, WrittenGeo, WrittenGeo);
/// Whether it monitors; its prefixes with their Ports; outbound; inbound.
type WrittenNetwork = (bool, Vec<(Place, u8, usize)>, WrittenRule, WrittenRule);

/// A configuration, in numbers.
#[derive(Clone, Debug)]
struct Plan {
    lists: Vec<WrittenList>,
    /// Whether IPv4 is found in other prefixes too, and the code of each prefix: an ASN, and as often a country.
    databases: (bool, Vec<(Place, u8, u8)>),
    policies: Vec<WrittenPolicy>,
    networks: Vec<WrittenNetwork>,
}

/// Source's host, destination, protocol, destination port.
type Sent = (u8, Place, u8, u16);

fn places(kinds: std::ops::Range<u8>) -> impl Strategy<Value = Place> {
    (any::<bool>(), kinds, 0u8..8).prop_map(|(six, kind, host)| Place {
        family: if six { Family::V6 } else { Family::V4 },
        kind,
        host,
    })
}

fn plans() -> impl Strategy<Value = Plan> {
    let list = (0u8..4, prop::collection::vec((places(0..3), 2u8..8, 0u8..4), 0..8));
    let geo = || prop::option::weighted(0.9, (any::<bool>(), 0u8..16));
    let rule = || prop::option::weighted(0.8, (0usize..8, 0u8..3));
    let network =
        (prop::bool::weighted(0.2), prop::collection::vec((places(0..3), 0u8..8, 0usize..6), 1..4), rule(), rule());
    (
        prop::collection::vec(list, 1..5),
        (any::<bool>(), prop::collection::vec((places(0..3), 1u8..8, 0u8..8), 4..16)),
        prop::collection::vec((any::<bool>(), any::<u8>(), 1u8..100, geo(), geo()), 1..4),
        prop::collection::vec(network, 1..5),
    )
        .prop_map(|(lists, databases, policies, networks)| Plan { lists, databases, policies, networks })
}

fn packets() -> impl Strategy<Value = Sent> {
    let protocol = prop::sample::select(vec![6u8, 6, 17, 17, 1, 47, 50, 132, 150, 151, 152, 153, 253]);
    (0u8..8, places(1..3), protocol, 9870u16..9876)
}

impl Plan {
    fn snapshot(&self) -> Snapshot {
        let lists: Vec<_> = self.lists.iter().enumerate().map(|(number, list)| self.list(number, list)).collect();
        let (asns, countries) = (self.database(Kind::Asn), self.database(Kind::Country));
        let policy = |(number, (allows, of, least, asn, country)): (usize, &WrittenPolicy)| {
            let lists =
                lists.iter().enumerate().filter(|(place, _)| of >> place & 1 == 1).map(|(_, list)| list.clone());
            Arc::new(Policy {
                name: format!("policy {number}").into(),
                default: if *allows { IpVerdict::Allow } else { IpVerdict::Block },
                lists: lists.collect(),
                thresholds: [("malware".into(), *least)].into_iter().collect(),
                asns: geo_rule(asns.as_ref(), asn),
                countries: geo_rule(countries.as_ref(), country),
                fingerprints: Vec::new(),
            })
        };
        let policies: Vec<_> = self.policies.iter().enumerate().map(policy).collect();
        let rule = |written: &WrittenRule| {
            written.map(|(policy, drop)| Rule {
                policy: policies[policy % policies.len()].clone(),
                drop: [DropAction::Discard, DropAction::IcmpUnreachable, DropAction::TcpReset][usize::from(drop)],
            })
        };
        let ports = ports();
        // Configuration refuses two claims to one prefix.
        let mut claimed = HashSet::new();
        let networks = self.networks.iter().enumerate().map(|(number, (monitor, ips, outbound, inbound))| {
            let ips = ips.iter().map(|(place, length, port)| (place.prefix(*length), ports.get(*port).cloned()));
            Arc::new(Network {
                name: format!("network {number}").into(),
                description: String::new(),
                mode: if *monitor { Mode::Monitor } else { Mode::Enforce },
                ips: ips
                    .filter(|(prefix, _)| claimed.insert(*prefix))
                    .map(|(prefix, port)| ProtectedIp { prefix, port })
                    .collect(),
                outbound: rule(outbound),
                inbound: rule(inbound),
                inspection: None,
                dns: Dns::default(),
            })
        });
        Snapshot::new("edge-1".into(), 7, networks.collect())
    }

    /// The same with services.
    fn serving(&self, services: &[WrittenServices]) -> Snapshot {
        let of =
            |ports: u8| PORTS.iter().enumerate().filter(move |(at, _)| ports >> at & 1 == 1).map(|(_, port)| *port);
        let network = |(network, written): (&Arc<Network>, &WrittenServices)| {
            let (inspects, tls_ports, http_ports, quic, resolvers, off) = *written;
            let inspection = Inspection {
                kind: InspectionType::PreferBoth,
                tls_ports: of(tls_ports).collect(),
                http_ports: of(http_ports).collect(),
                quic: [Quic::Inspect, Quic::LeaveAlone, Quic::Block][usize::from(quic)],
                packets: 5,
                timeout: Duration::from_secs(1),
                unidentified: Otherwise::IpVerdict,
                unreadable: Otherwise::Block,
                bind: Bind::Off,
                use_bindings: false,
                ech: Ech::Allow,
                http: HttpRequests::Every,
            };
            let resolver = |host| Family::BOTH.map(|family| Place { family, kind: 1, host }.address());
            let authorized = (0..resolvers).flat_map(|host| resolver(2 * host));
            Arc::new(Network {
                mode: if off == 0 { Mode::Off } else { network.mode },
                inspection: inspects.then_some(inspection),
                dns: Dns { authorized_resolvers: authorized.collect(), ..Dns::default() },
                ..(**network).clone()
            })
        };
        let snapshot = self.snapshot();
        Snapshot::new("edge-1".into(), 7, snapshot.networks().iter().zip(services).map(network).collect())
    }

    /// `None`: no prefix has a code of this kind.
    fn database(&self, kind: Kind) -> Option<Arc<Database>> {
        let (aliases, prefixes) = &self.databases;
        let record = |code: u8| match usize::from(code) {
            code @ 0..4 => Record::Asn(CODES[code].parse().unwrap()),
            code => Record::Country(CODES[code].into()),
        };
        let of_kind = prefixes.iter().filter(|(.., code)| (*code < 4) == (kind == Kind::Asn));
        let networks = of_kind.map(|(place, length, code)| (place.prefix(*length), record(*code)));
        let octets = Mmdb { aliases: *aliases, ..Mmdb::new("Test", networks) }.octets();
        Database::read(&octets, kind).ok().map(Arc::new)
    }

    fn list(&self, number: usize, (verdict, entries): &WrittenList) -> Arc<List> {
        let verdict = match verdict {
            0 => ListVerdict::Allow,
            1 => ListVerdict::Block,
            _ => ListVerdict::Threat { category: "malware".into(), score: 50 },
        };
        let ends = |which: u8| match which {
            0 => Some(SystemTime::now() - Duration::from_secs(3600)),
            1 => Some(SystemTime::now() + Duration::from_secs(3600)),
            _ => None,
        };
        let prefixes = entries.iter().map(|(place, length, which)| (place.prefix(*length), ends(*which))).collect();
        Arc::new(List { name: format!("list {number}").into(), verdict, domains: DomainSet::default(), prefixes })
    }
}

/// The codes below 4 are ASNs, the others countries.
const CODES: [&str; 8] = ["64500", "64501", "64502", "4200000000", "KP", "DE", "US", "XK"];

fn geo_rule(database: Option<&Arc<Database>>, written: &WrittenGeo) -> Option<GeoRule> {
    let (database, (allows, of)) = (database?, (*written)?);
    let named = CODES.iter().skip(if database.kind() == Kind::Asn { 0 } else { 4 }).take(4);
    let codes = named.enumerate().filter(|(place, _)| of >> place & 1 == 1).map(|(_, code)| match database.kind() {
        Kind::Asn => Code::Asn(code.parse().unwrap()),
        Kind::Country => Code::Country(Country::of(code).unwrap()),
    });
    let verdict = if allows { IpVerdict::Allow } else { IpVerdict::Block };
    Some(GeoRule::new(verdict, codes.collect(), database.clone()))
}

fn ports() -> [Arc<Port>; 3] {
    let protocol = |number, ports: &[std::ops::RangeInclusive<u16>]| Protocol { number, ports: ports.to_vec() };
    [
        vec![protocol(6, &[9871..=9872, 9875..=9875]), protocol(17, &[9870..=9873])],
        vec![protocol(50, &[]), protocol(1, &[]), protocol(58, &[]), protocol(17, &[9875..=9875])],
        vec![protocol(6, &[1..=65535])],
    ]
    .map(|protocols| Arc::new(Port { name: "port".into(), description: String::new(), protocols }))
}

/// The lab with what looks on.
struct World<'a> {
    lab: &'a Lab,
    /// At the server: all IPv4, all IPv6.
    taps: [Socket; 2],
    log: std::cell::RefCell<PacketLog>,
    /// Packets that passed, packets that did not, judgements that were recorded.
    seen: std::cell::Cell<(usize, usize, usize)>,
    /// Judgements by country or ASN.
    by_code: std::cell::Cell<usize>,
    sentinel: std::cell::Cell<u16>,
    portless: std::cell::RefCell<HashSet<(IpAddr, IpAddr, u8)>>,
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab) -> Self {
        let tap = |ethertype: i32| {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Number::from(ethertype))).unwrap();
            socket.set_recv_buffer_size(1 << 20).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket
        };
        let taps = lab.server.run(|| [0x0008, 0xdd86].map(tap)).unwrap();
        let log = lab.gateway.run(|| PacketLog::open(LOG_GROUP, Duration::from_millis(20))).unwrap().unwrap();
        Self {
            lab,
            taps,
            log: log.into(),
            seen: Default::default(),
            by_code: Default::default(),
            sentinel: 40_000.into(),
            portless: Default::default(),
        }
    }

    fn check(&self, plan: &Plan, packets: &[Sent]) -> Result<(), TestCaseError> {
        let snapshot = plan.snapshot();
        let capture = Capture {
            directions: vec![Direction::Outbound, Direction::Inbound],
            ..Capture::tcp(Listener { v4: None, v6: None })
        };
        self.lab.gateway.run(|| capture::install(&render(&snapshot, &capture))).unwrap().unwrap();
        let (mut expected, mut tags) = (HashSet::new(), BTreeMap::new());
        // Sent once each: who sends it, and so its source port, makes it a flow of its own.
        let sent: Vec<_> = packets.iter().filter_map(|packet| self.send(*packet)).collect();
        for headers in &sent {
            let (passes, judged) = judged(&snapshot, headers);
            if passes {
                expected.insert(*headers);
            }
            for tag in judged {
                let network = &snapshot.networks()[tag.network];
                let lists = network.rule(tag.direction).unwrap().policy.lists.len();
                if matches!(tag.by, By::List(place) if place >= lists) {
                    self.by_code.set(self.by_code.get() + 1);
                }
                *tags.entry(format!("{headers:?} {tag}")).or_insert(0) += 1;
            }
        }
        let arrived: HashSet<_> = self.arrived().into_iter().filter(|headers| sent.contains(headers)).collect();
        prop_assert_eq!(&arrived, &expected, "what arrived, and what should have\n{}", render(&snapshot, &capture));
        let recorded = self.recorded(&sent, tags.values().sum());
        prop_assert_eq!(recorded, tags.clone(), "what was recorded, and what should have been");
        let (passed, blocked, records) = self.seen.get();
        self.seen.set((passed + arrived.len(), blocked + sent.len() - arrived.len(), records + tags.len()));
        Ok(())
    }

    fn check_captured(&self, snapshot: &Snapshot, packets: &[Sent]) -> Result<(), TestCaseError> {
        let nobody = Some(Listener::on(9));
        let capture = Capture {
            directions: vec![Direction::Outbound, Direction::Inbound],
            udp: nobody,
            dns_udp: nobody,
            dns_tcp: nobody,
            ..Capture::tcp(Listener::on(9))
        };
        self.lab.gateway.run(|| capture::install(&render(snapshot, &capture))).unwrap().unwrap();
        let sent: Vec<_> = packets.iter().filter_map(|packet| self.send(*packet)).collect();
        let captured = sent.iter().filter(|headers| is_captured(snapshot, headers)).count();
        let passes = |headers: &&Headers| !is_captured(snapshot, headers) && judged(snapshot, headers).0;
        let expected: HashSet<_> = sent.iter().filter(passes).copied().collect();
        let arrived: HashSet<_> = self.arrived().into_iter().filter(|headers| sent.contains(headers)).collect();
        prop_assert_eq!(&arrived, &expected, "what arrived, and what should have\n{}", render(snapshot, &capture));
        let (passed, blocked, before) = self.seen.get();
        let others = sent.len() - captured - arrived.len();
        self.seen.set((passed + arrived.len(), blocked + others, before + captured));
        Ok(())
    }

    /// A packet of a new flow from the client. A protocol without ports has one flow between two ends, and what was once
    /// let in stays so: `None` the second time.
    fn send(&self, (host, to, protocol, port): Sent) -> Option<Headers> {
        let source = client_address(to.family, host);
        let destination = to.address();
        let protocol = if protocol == 1 && to.family == Family::V6 { 58 } else { protocol };
        let has_ports = matches!(protocol, 6 | 17);
        if !has_ports && !self.portless.borrow_mut().insert((source, destination, protocol)) {
            return None;
        }
        let ports = self.lab.client.run(|| {
            let domain = Domain::for_address(SocketAddr::new(destination, port));
            let own = SocketAddr::new(source, 0);
            match protocol {
                17 => {
                    let socket = UdpSocket::bind(own).unwrap();
                    socket.send_to(b"datagram", SocketAddr::new(destination, port)).unwrap();
                    Some((socket.local_addr().unwrap().port(), port))
                }
                6 => {
                    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
                    socket.bind(&own.into()).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.connect(&SocketAddr::new(destination, port).into());
                    Some((socket.local_addr().unwrap().as_socket().unwrap().port(), port))
                }
                _ => {
                    let socket = Socket::new(domain, Type::RAW, Some(Number::from(i32::from(protocol)))).unwrap();
                    socket.bind(&own.into()).unwrap();
                    // As ICMP it is nothing that anybody answers.
                    let body = [if protocol == 58 { 200 } else { 8 }, 0, 1, 2, 3, 4, 5, 6];
                    socket.send_to(&body, &SocketAddr::new(destination, 0).into()).unwrap();
                    None
                }
            }
        });
        Some(Headers { source, destination, protocol, ports: ports.unwrap() })
    }

    /// What reached the server. A sentinel from the gateway comes behind it.
    fn arrived(&self) -> Vec<Headers> {
        let port = self.sentinel.get();
        self.sentinel.set(port + 1);
        let mut found = Vec::new();
        for (family, tap) in Family::BOTH.into_iter().zip(&self.taps) {
            let sentinel = SocketAddr::new(server_address(family), port);
            self.lab.gateway.run(|| UdpSocket::bind("[::]:0")?.send_to(b"", sentinel)).unwrap().unwrap();
            loop {
                let mut buffer = [0; 2048];
                let length = std::io::Read::read(&mut &*tap, &mut buffer).unwrap();
                let Some(headers) = Headers::parse(&buffer[..length]) else { continue };
                if headers.destination == sentinel.ip() && headers.ports.is_some_and(|(_, to)| to == port) {
                    break;
                }
                found.push(headers);
            }
        }
        found
    }

    /// The records of these packets, counted: as many as are expected, and whatever comes with them.
    fn recorded(&self, sent: &[Headers], expected: usize) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        let mut count = 0;
        let deadline = Instant::now() + DEADLINE;
        let mut quiet = false;
        while (count < expected || !quiet) && Instant::now() < deadline {
            quiet = true;
            let read = self.log.borrow_mut().read(|logged| {
                quiet = false;
                let Some(headers) = Headers::parse(logged.packet).filter(|headers| sent.contains(headers)) else {
                    return;
                };
                let tag: LogTag = logged.tag.parse().unwrap();
                *found.entry(format!("{headers:?} {tag}")).or_insert(0) += 1;
                count += 1;
            });
            match read {
                Ok(lost) => assert_eq!(lost, 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        found
    }
}

/// Whether the packet passes, and the tags of all who judged it: outbound by its source's Network, then inbound by its
/// destination's (SPEC N4).
fn judged(snapshot: &Snapshot, packet: &Headers) -> (bool, Vec<LogTag>) {
    let mut tags = Vec::new();
    let port = packet.ports.map(|(_, to)| to);
    let ends = [
        (Direction::Outbound, packet.source, packet.destination),
        (Direction::Inbound, packet.destination, packet.source),
    ];
    for (direction, own, remote) in ends {
        let Some(network) = snapshot.network_of(own, packet.protocol, port) else { continue };
        let Some(rule) = network.rule(direction) else { continue };
        let facts = Facts { remote, discovery: None, binding: Binding::Unknown, now: SystemTime::now() };
        let verdict = judge(network, direction, &facts);
        let lists = &rule.policy.lists;
        let by = match verdict.reason {
            Reason::Default => By::Default,
            Reason::Asn => By::List(lists.len()),
            Reason::Country => By::List(lists.len() + 1),
            _ => By::List(lists.iter().position(|list| Some(&list.name) == verdict.list.as_ref()).unwrap()),
        };
        let index = snapshot.networks().iter().position(|own| Arc::ptr_eq(own, network)).unwrap();
        tags.push(LogTag { generation: snapshot.generation, network: index, direction, by });
        if !verdict.pass && network.mode == Mode::Enforce {
            return (false, tags);
        }
    }
    (true, tags)
}

/// Whether it comes to tidegate, by the words of SPEC D1, D5, I1 and I6.
fn is_captured(snapshot: &Snapshot, packet: &Headers) -> bool {
    let Some((_, port)) = packet.ports else { return false };
    let ends = [
        (Direction::Outbound, packet.source, packet.destination),
        (Direction::Inbound, packet.destination, packet.source),
    ];
    ends.into_iter().any(|(direction, own, remote)| {
        let Some(network) = snapshot.network_of(own, packet.protocol, Some(port)) else { return false };
        if network.rule(direction).is_none() {
            return false;
        }
        let asks = direction == Direction::Outbound && (port == DNS_PORT || network.dns.refuses(remote, port));
        let inspected = network.inspection.as_ref().is_some_and(|own| match packet.protocol {
            6 => own.inspects_tcp(port),
            _ => own.inspects_udp(port),
        });
        // Monitor refuses nothing, and what is encrypted it cannot read.
        let refuses_in_vain = port != DNS_PORT && network.mode == Mode::Monitor;
        (asks && !refuses_in_vain) || inspected
    })
}

/// Far beyond what anything here needs.
const DEADLINE: Duration = Duration::from_secs(10);
