//! QUIC and other UDP through a gateway, with quinn and with captured first flights.
//!
//! ```text
//! client 10.1.0.2, fd00:1::2 -- gateway (tidegate run) -- server 198.51.100.0/24, 2001:db8:a::/64 and more
//! ```

mod crafted;
mod ends;
mod limits;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use rustix::process::{Signal, kill_process};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tidegate::mode::demo::enforcer::Enforcer;
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{Gateway, NAMES, configuration};
use crate::inside::in_lab;
use crate::nat;

const DEADLINE: Duration = Duration::from_secs(20);

/// client -- gateway -- server: a quinn client and a quinn server at each of two names.
#[test]
fn quic_to_an_allowed_name_is_forwarded_by_the_kernel_alone() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 7), 443);
            let client = Client::new(lab, &origin, family);
            let connection = client.connect(server, "good.example").unwrap();
            client.echo(&connection, 1);
            let record =
                gateway.record(|r| r["type"] == "QUIC" && r["destination"] == server.ip().to_string(), DEADLINE);
            let record = record.expect("a record of the verdict");
            assert_eq!((&record["domain"], &record["verdict"]), (&"good.example".into(), &"allow".into()));
            assert!(record["ja4"].as_str().unwrap().starts_with("q13d"), "{record}");
            // With tidegate stopped in its tracks, only the kernel can carry these.
            kill_process(gateway.pid(), Signal::STOP).unwrap();
            client.echo(&connection, 300_000);
            kill_process(gateway.pid(), Signal::CONT).unwrap();
        }
    });
}

/// client -- gateway -- server
#[test]
fn quic_to_a_blocked_name_never_reaches_the_server() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 8), 443);
            let client = Client::new(lab, &origin, family);
            let connecting = client.begin(server, "bad.example");
            let record = gateway.record(|r| r["destination"] == server.ip().to_string(), DEADLINE).unwrap();
            assert_eq!((&record["domain"], &record["verdict"]), (&"bad.example".into(), &"block".into()));
            drop(connecting);
            assert_eq!(tap.count(lab, server).unwrap(), 0);
        }
    });
}

/// client -- gateway -- server: two connections of one client socket to one server socket.
#[test]
fn a_second_connection_on_an_allowed_flow_is_judged_by_its_own_name() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 9), 443);
            let client = Client::new(lab, &origin, family);
            let first = client.connect(server, "good.example").unwrap();
            client.echo(&first, 1000);
            let before = origin.connections();
            let second = client.begin(server, "bad.example");
            let record = gateway
                .record(|r| r["domain"] == "bad.example" && r["destination"] == server.ip().to_string(), DEADLINE);
            assert_eq!(record.unwrap()["verdict"], "block");
            client.echo(&first, 1000);
            let third = client.connect(server, "also.good.example").unwrap();
            client.echo(&third, 1000);
            client.echo(&first, 1000);
            drop(second);
            assert_eq!(origin.connections(), before + 1, "the third, and not the second");
        }
    });
}

/// client -- gateway -- server: a captured flight and then numbered datagrams, as fast as one thread sends them.
#[test]
fn nothing_is_lost_or_doubled_when_the_kernel_takes_over() {
    in_lab(|lab| {
        let _gateway = gateway(lab, "discard", "");
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 10), 443);
            let listener = lab.server.run(|| listen(family)).unwrap();
            let client = lab.client.run(|| client_socket(family, server)).unwrap();
            let hello = flight("www.google.com");
            client.send(&hello).unwrap();
            const COUNT: u32 = 3_000;
            for n in 0..COUNT {
                client.send(&numbered(n)).unwrap();
            }
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 2000];
            let mut first = true;
            while seen.len() < COUNT as usize {
                let (length, from) =
                    listener.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{e}: only {} came", seen.len()));
                assert_eq!(from.ip().to_canonical(), client_address(family, 0));
                if std::mem::take(&mut first) {
                    assert!(buffer[..length] == hello, "the hello comes first");
                    continue;
                }
                let number = u32::from_be_bytes(buffer[1..5].try_into().unwrap());
                assert!(seen.insert(number), "{number} came twice");
            }
            listener.set_nonblocking(true).unwrap();
            assert_eq!(listener.recv_from(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    });
}

/// client -- gateway -- server
#[test]
fn a_blocked_flow_is_refused_at_once_for_all_its_packets() {
    for_each_action(|lab, gateway, action| {
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 11), 443);
            let client = lab.client.run(|| client_socket(family, server)).unwrap();
            let hello = flight("www.youtube.com");
            for round in 0..3 {
                client.send(&hello).unwrap();
                if action == "discard" {
                    continue;
                }
                let error = client.recv(&mut [0; 10]).unwrap_err();
                let expected = if family == Family::V4 { libc::EHOSTUNREACH } else { libc::EACCES };
                assert_eq!(error.raw_os_error(), Some(expected), "{action} {family:?}, datagram {round}: {error}");
            }
            let record = gateway.record(|r| r["destination"] == server.ip().to_string(), DEADLINE).unwrap();
            assert_eq!((&record["verdict"], &record["action"]), (&"block".into(), &action.into()));
            if action == "discard" {
                client.set_nonblocking(true).unwrap();
                assert_eq!(client.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            assert_eq!(tap.count(lab, server).unwrap(), 0);
        }
    });
}

/// client -- gateway -- server
#[test]
fn where_quic_is_blocked_udp_on_the_tls_ports_is_refused_at_its_first_packet_whatever_it_says() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        // Nobody would wait so long for a name.
        let gateway = gateway(lab, "icmp-unreachable", "quic = \"block\"\ntimeout = \"60s\"");
        for family in Family::BOTH {
            for (host, datagram) in [(40, flight("www.google.com")), (41, vec![7; 30])] {
                let server = SocketAddr::new(Site::A.address(family, host), 443);
                let client = lab.client.run(|| client_socket(family, server)).unwrap();
                client.send(&datagram).unwrap();
                let expected = if family == Family::V4 { libc::EHOSTUNREACH } else { libc::EACCES };
                assert_eq!(client.recv(&mut [0; 10]).unwrap_err().raw_os_error(), Some(expected));
                let record = gateway.record(|r| r["destination"] == server.ip().to_string(), DEADLINE).unwrap();
                assert_eq!((&record["verdict"], &record["reason"]), (&"block".into(), &"QUIC".into()), "{record}");
                assert_eq!(tap.count(lab, server).unwrap(), 0);
            }
            let elsewhere = SocketAddr::new(Site::A.address(family, 42), 4433);
            let client = lab.client.run(|| client_socket(family, elsewhere)).unwrap();
            let listener = lab.server.run(|| UdpSocket::bind(any(family, 4433)).unwrap()).unwrap();
            listener.set_read_timeout(Some(DEADLINE)).unwrap();
            client.send(&flight("www.google.com")).unwrap();
            listener.recv(&mut [0; 2000]).unwrap();
        }
    });
}

/// client -- gateway -- server
#[test]
fn udp_that_is_no_quic_is_judged_by_its_address() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let gateway = gateway(lab, "discard", "");
        for family in Family::BOTH {
            let passed = SocketAddr::new(Site::A.address(family, 12), 443);
            let blocked = SocketAddr::new(Site::B.address(family, 12), 443);
            let listener = lab.server.run(|| listen(family)).unwrap();
            for server in [passed, blocked] {
                let client = lab.client.run(|| client_socket(family, server)).unwrap();
                for n in 0..20u8 {
                    client.send(&[n; 30]).unwrap();
                }
                let record = gateway.record(
                    |r| r["destination"] == server.ip().to_string() && r["reason"] != "DOMAIN_INSPECT",
                    DEADLINE,
                );
                let verdict = if server == passed { "allow" } else { "block" };
                assert_eq!(record.unwrap()["verdict"], verdict);
            }
            let mut buffer = [0; 100];
            let came: BTreeSet<u8> = (0..20)
                .map(|_| {
                    listener.recv(&mut buffer).unwrap();
                    buffer[0]
                })
                .collect();
            assert_eq!(came, (0..20).collect());
            assert_eq!(tap.count(lab, blocked).unwrap(), 0);
        }
    });
}

/// client -- gateway -- server
#[test]
fn what_looks_like_quic_and_cannot_be_read_is_blocked() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let gateway = gateway(lab, "discard", "");
        let mut unknown = flight("www.google.com");
        unknown[1..5].copy_from_slice(&[0xfa, 0xce, 0xb0, 2]);
        let mut short = vec![0x9a; 60];
        short[0] = 0x45;
        let mut broken = flight("www.google.com");
        broken[600] ^= 1;
        for family in Family::BOTH {
            for (host, datagram) in [(20, &unknown), (21, &short), (22, &broken)] {
                let server = SocketAddr::new(Site::A.address(family, host), 443);
                let client = lab.client.run(|| client_socket(family, server)).unwrap();
                for _ in 0..6 {
                    client.send(datagram).unwrap();
                }
                let record = gateway.record(|r| r["destination"] == server.ip().to_string(), DEADLINE).unwrap();
                assert_eq!(
                    (&record["verdict"], &record["reason"]),
                    (&"block".into(), &"UNREADABLE".into()),
                    "{record}"
                );
                assert_eq!(tap.count(lab, server).unwrap(), 0);
            }
        }
    });
}

#[test]
fn prefer_ip_lets_the_address_decide_over_quic_too() {
    in_lab(|lab| every_cell_holds(lab, "prefer-ip"));
}

#[test]
fn prefer_domain_lets_the_name_decide_over_quic_too() {
    in_lab(|lab| every_cell_holds(lab, "prefer-domain"));
}

#[test]
fn prefer_both_blocks_what_either_blocks_over_quic_too() {
    in_lab(|lab| every_cell_holds(lab, "prefer-both"));
}

#[test]
fn explicit_lets_a_listed_name_decide_over_quic_too() {
    in_lab(|lab| every_cell_holds(lab, "explicit"));
}

/// client -- gateway -- server: tests/data/verdicts.toml, with a quinn client for each cell.
fn every_cell_holds(lab: &Lab, inspection: &str) {
    let table: toml::Table = include_str!("../data/verdicts.toml").parse().unwrap();
    let tap = &mut Tap::at_server(lab).unwrap();
    let addresses = each_site().map(|(family, site)| site.address(family, 44).to_string());
    let origin = Origin::with_names(lab, NAMES.map(str::to_owned).into_iter().chain(addresses).collect());
    let gateway = Gateway::start(lab, &configuration("icmp-unreachable", &format!("type = \"{inspection}\"")));
    for (family, site) in each_site() {
        let cells = &table[inspection];
        let row = if site == Site::A { "allow" } else { "block" };
        let named = NAMES.into_iter().enumerate().map(|(column, name)| (Some(name), &cells[row][column]));
        let nameless = (None, &cells["no_name"][usize::from(site == Site::B)]);
        for ((name, cell), host) in named.chain([nameless]).zip(41..) {
            let server = SocketAddr::new(site.address(family, host), 443);
            let client = Client::new(lab, &origin, family);
            let shown = name.map_or_else(|| server.ip().to_string(), str::to_owned);
            let passes = cell.as_str() == Some("A");
            let connecting = client.begin(server, &shown);
            let record = gateway.verdict_on(client.endpoint.local_addr().unwrap());
            let expected = [
                ("kind", Some(if name.is_some() { "domain" } else { "ip" })),
                ("protocol", Some("udp")),
                ("type", Some("QUIC")),
                ("domain", name),
                ("ip_verdict", Some(row)),
                ("inspection", Some(inspection)),
                ("verdict", Some(if passes { "allow" } else { "block" })),
                ("action", (!passes).then_some("icmp-unreachable")),
            ];
            for (field, value) in expected {
                assert_eq!(record[field].as_str(), value, "{field} of {record:#}");
            }
            if passes {
                let connection = client.runtime.block_on(connecting).unwrap().expect("a connection");
                client.echo(&connection, 1000);
            } else {
                assert_eq!(tap.count(lab, server).unwrap(), 0, "{record:#}");
            }
        }
    }
}

fn each_site() -> impl Iterator<Item = (Family, Site)> {
    Family::BOTH.into_iter().flat_map(|family| Site::BOTH.map(|site| (family, site)))
}

/// client -- gateway -- server: a hello that Chrome scattered over three datagrams, the last one first.
#[test]
fn a_hello_over_three_datagrams_passes_on_in_the_order_it_came() {
    in_lab(|lab| {
        let tap = &mut Tap::at_server(lab).unwrap();
        let gateway = gateway(lab, "discard", "timeout = \"30s\"");
        let [first, second, third] = flights("www.google.com", 3).try_into().unwrap();
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 15), 443);
            let listener = lab.server.run(|| listen(family)).unwrap();
            let client = lab.client.run(|| client_socket(family, server)).unwrap();
            client.send(&third).unwrap();
            client.send(&second).unwrap();
            assert_eq!(tap.count(lab, server).unwrap(), 0);
            client.send(&first).unwrap();
            let mut buffer = [0; 2000];
            for sent in [&third, &second, &first] {
                let length = listener.recv(&mut buffer).unwrap();
                assert!(buffer[..length] == **sent);
            }
        }
        drop(gateway);
    });
}

/// client -- gateway -- server: over veth the kernel carries several datagrams as one packet until somebody cuts it.
#[test]
fn a_hello_behind_a_short_header_in_one_segmented_packet_does_not_slip_through() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let hello = flight("www.youtube.com");
        let both = [numbered(7), vec![0; hello.len() - numbered(7).len()], hello.clone()].concat();
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 16), 443);
            let listener = lab.server.run(|| listen(family)).unwrap();
            let client = lab.client.run(|| client_socket(family, server)).unwrap();
            let opening = flight("www.google.com");
            client.send(&opening).unwrap();
            let mut buffer = [0; 2000];
            assert_eq!(listener.recv(&mut buffer).unwrap(), opening.len());
            client.send(&numbered(1)).unwrap();
            listener.recv(&mut buffer).unwrap();
            setsockopt(&client, sockopt::UdpGsoSegment, &(hello.len() as i32)).unwrap();
            client.send(&both).unwrap();
            let blocked =
                |r: &serde_json::Value| r["domain"] == "www.youtube.com" && r["destination"] == server.ip().to_string();
            let blocked = gateway.record(blocked, DEADLINE).expect("a verdict on the second hello");
            assert_eq!(blocked["verdict"], "block");
            setsockopt(&client, sockopt::UdpGsoSegment, &0).unwrap();
            client.send(&numbered(8)).unwrap();
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!((length, buffer[4]), (hello.len(), 7), "the first of the two passes");
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!((length, buffer[4]), (numbered(8).len(), 8), "the second does not");
        }
    });
}

/// client -- gateway -- server
#[test]
fn segmented_packets_of_an_allowed_flow_arrive_whole() {
    in_lab(|lab| {
        let _gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let client = Client::sending(lab, &origin, family, true);
            let connection = client.connect(SocketAddr::new(Site::A.address(family, 17), 443), "good.example").unwrap();
            client.echo(&connection, 2_000_000);
        }
    });
}

/// client -- gateway (masquerades) -- server
#[test]
fn what_is_sent_on_and_what_is_forwarded_are_both_masqueraded() {
    in_lab(|lab| {
        lab.gateway.run(nat::masquerade).unwrap();
        let gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let server = SocketAddr::new(Site::A.address(family, 14), 443);
            let client = Client::new(lab, &origin, family);
            let connection = client.connect(server, "good.example").unwrap();
            // Once that is answered the handshake, with its long headers, is over.
            client.echo(&connection, 1);
            kill_process(gateway.pid(), Signal::STOP).unwrap();
            client.echo(&connection, 100_000);
            kill_process(gateway.pid(), Signal::CONT).unwrap();
        }
        let sources = origin.sources();
        assert_eq!(sources.len(), 2);
        for source in sources {
            let masked = source.ip().to_canonical();
            let own = Family::BOTH.map(|family| client_address(family, 0));
            assert!(!own.contains(&masked), "{masked} is the client's own");
        }
    });
}

fn for_each_action(test: impl Fn(&Lab, &Enforcer, &str)) {
    in_lab(|lab| {
        for action in ["discard", "icmp-unreachable", "tcp-reset"] {
            let gateway = gateway(lab, action, "");
            test(lab, &gateway, action);
            gateway.stop().unwrap();
        }
    });
}

/// A gateway that blocks some names, and site B by address.
fn gateway(lab: &Lab, action: &str, more: &str) -> Enforcer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.toml");
    let text = format!(
        r#"
        name = "lab"
        [gateway]
        [telemetry]
        socket = "off"
        [[list]]
        name = "bad"
        verdict = "block"
        entries = ["bad.example", "www.youtube.com", "203.0.113.0/24", "2001:db8:b::/64"]
        [[policy]]
        name = "out"
        default = "allow"
        lists = ["bad"]
        [[network]]
        name = "office"
        directions = "outbound"
        ips = [{{ ip = "10.1.0.0", maskbits = 24 }}, {{ ip = "fd00:1::", maskbits = 64 }}]
        outbound = {{ policy = "out", drop = "{action}" }}
        [network.inspection]
        type = "prefer-both"
        {more}
        "#
    );
    std::fs::write(&path, text).unwrap();
    lab.gateway.run(unlimited_icmp).unwrap();
    Enforcer::start(&PathBuf::from(env!("CARGO_BIN_EXE_tidegate")), &lab.gateway, &path).unwrap()
}

/// The kernel's limit, one ICMP a second to a client, is not what is tested.
fn unlimited_icmp() {
    for limit in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
        std::fs::write(format!("/proc/sys/net/{limit}"), "0").unwrap();
    }
}

/// The first flight of a captured client, of one datagram, with this name.
pub(crate) fn flight(name: &str) -> Vec<u8> {
    flights(name, 1).remove(0)
}

fn flights(name: &str, datagrams: usize) -> Vec<Vec<u8>> {
    let flights = include_str!("../data/quic-flights.txt");
    let fits = |line: &&str| line.split(' ').next() == Some(name) && line.split(' ').count() == 3 + datagrams;
    let line = flights.lines().find(fits).unwrap();
    let octet = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    line.split(' ').skip(3).map(|hex| hex.as_bytes().chunks(2).map(octet).collect()).collect()
}

/// A datagram that looks like a packet with a short header, and can be told from every other.
fn numbered(number: u32) -> Vec<u8> {
    let mut datagram = vec![0x9a; 300];
    datagram[0] = 0x40;
    datagram[1..5].copy_from_slice(&number.to_be_bytes());
    datagram
}

fn any(family: Family, port: u16) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

pub(crate) fn listen(family: Family) -> UdpSocket {
    let socket = UdpSocket::bind(any(family, 443)).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(64 << 20).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

pub(crate) fn client_socket(family: Family, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(client_address(family, 0), 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// A QUIC server at every address of the lab's server, which echoes every stream.
pub(crate) struct Origin {
    _runtime: tokio::runtime::Runtime,
    /// Where the attempts that reached it came from.
    sources: Arc<Mutex<Vec<SocketAddr>>>,
    certificate: CertificateDer<'static>,
}

impl Origin {
    pub(crate) fn start(lab: &Lab) -> Self {
        Self::with_names(lab, ["good.example", "also.good.example", "bad.example"].map(str::to_owned).into())
    }

    fn with_names(lab: &Lab, names: Vec<String>) -> Self {
        let identity = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = identity.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let runtime = runtime();
        let endpoint = lab.server.run(|| {
            // Its IPv6 addresses are whole networks, which a socket may not answer from otherwise.
            std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
            runtime.block_on(async { Endpoint::server(config, any(Family::V6, 443)) })
        });
        let sources = Arc::default();
        runtime.spawn(accept(endpoint.unwrap().unwrap(), Arc::clone(&sources)));
        Self { _runtime: runtime, sources, certificate }
    }

    fn sources(&self) -> Vec<SocketAddr> {
        self.sources.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.sources().len()
    }
}

async fn accept(endpoint: Endpoint, sources: Arc<Mutex<Vec<SocketAddr>>>) {
    while let Some(incoming) = endpoint.accept().await {
        sources.lock().unwrap().push(incoming.remote_address());
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut out, mut coming)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    let all = coming.read_to_end(usize::MAX).await.unwrap();
                    out.write_all(&all).await.unwrap();
                    out.finish().unwrap();
                });
            }
        });
    }
}

/// A quinn endpoint: one socket for all of its connections.
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
}

impl Client {
    pub(crate) fn new(lab: &Lab, origin: &Origin, family: Family) -> Self {
        Self::sending(lab, origin, family, false)
    }

    /// `segmented`: datagrams of one length leave as one packet, which over veth stays one up to the gateway and beyond.
    fn sending(lab: &Lab, origin: &Origin, family: Family, segmented: bool) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(origin.certificate.clone()).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let runtime = runtime();
        let at = SocketAddr::new(client_address(family, 0), 0);
        let endpoint = lab.client.run(|| runtime.block_on(async { Endpoint::client(at) }));
        let mut endpoint = endpoint.unwrap().unwrap();
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        transport.enable_segmentation_offload(segmented);
        config.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(config);
        Self { runtime, endpoint }
    }

    /// Sends the first flight and what follows it, until the value is dropped.
    pub(crate) fn begin(&self, server: SocketAddr, name: &str) -> tokio::task::JoinHandle<Option<Connection>> {
        let _inside = self.runtime.enter();
        let connecting = self.endpoint.connect(server, name).unwrap();
        self.runtime.spawn(async move { connecting.await.ok() })
    }

    pub(crate) fn connect(&self, server: SocketAddr, name: &str) -> Option<Connection> {
        let connecting = self.begin(server, name);
        self.runtime.block_on(async { tokio::time::timeout(DEADLINE, connecting).await }).unwrap().unwrap()
    }

    pub(crate) fn echo(&self, connection: &Connection, length: usize) {
        let echoed = self.runtime.block_on(async {
            let exchange = async {
                let (mut out, mut coming) = connection.open_bi().await.unwrap();
                let sending = async {
                    out.write_all(&vec![7; length]).await.unwrap();
                    out.finish().unwrap();
                };
                let ((), all) = tokio::join!(sending, coming.read_to_end(usize::MAX));
                all.unwrap()
            };
            tokio::time::timeout(DEADLINE, exchange).await
        });
        assert!(echoed.unwrap() == vec![7; length]);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
