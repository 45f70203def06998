//! Hosts that write other sources into their packets than their own: no rule is walked past in a server's name.
//!
//! ```text
//! client 10.1.0.0/24, fd00:1::/64 (protected, and a liar) -- gateway (tidegate run) -- server (site A allowed, B blocked)
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use hickory_proto::rr::RecordType;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate::mode::demo::lab::{Lab, Site, client_address, gateway_address, server_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::{Family, Rtnl};

use crate::dns::resolver::{Resolver, answered, bind, question};
use crate::gateway::{DEADLINE, Gateway, at, is_from, protected};
use crate::inside::in_lab;
use crate::quic::flight;

/// Of the client's network, and of nobody until somebody takes it.
const ACCOMPLICE: u8 = 120;

/// Judged outbound alone, as most are.
fn configuration(more: &str) -> String {
    let prefixes = Family::BOTH.map(|family| format!("\"{}\"", Site::B.prefix(family))).join(", ");
    let ips = Family::BOTH.map(protected);
    format!(
        r#"
name = "edge-1"
[gateway]
{more}
[[list]]
name = "site-b"
verdict = "block"
entries = [{prefixes}]
[[policy]]
name = "out"
default = "allow"
lists = ["site-b"]
[[network]]
name = "clients"
directions = "outbound"
ips = [{}]
outbound = {{ policy = "out", drop = "discard" }}
"#,
        ips.join(", "),
    )
}

/// A socket that sends in the name of `source`.
fn forger(source: SocketAddr, kind: Type, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(source), kind, Some(protocol)).unwrap();
    match source {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => socket.set_freebind_v6(true).unwrap(),
    }
    socket.set_nonblocking(true).unwrap();
    socket.bind(&source.into()).unwrap();
    socket
}

/// From the client's side, through the gateway, to an address that nobody has yet.
fn forge(lab: &Lab, source: SocketAddr, to: SocketAddr) {
    lab.client
        .run(|| {
            forger(source, Type::DGRAM, Protocol::UDP).send_to(b"from far away", &to.into()).unwrap();
            // Nothing comes of it but the packet that asks for a connection.
            let _ = forger(source, Type::STREAM, Protocol::TCP).connect(&to.into());
        })
        .unwrap();
}

fn lead_through_the_gateway(lab: &Lab, address: IpAddr) {
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let lead = || Rtnl::open()?.add_route(IpNet::from(address), Some(gateway_address(family)), Some("eth0"), false);
    lab.client.run(lead).unwrap().unwrap();
}

fn take(lab: &Lab, address: IpAddr) {
    lab.client.run(|| Rtnl::open()?.add_address("lo", IpNet::from(address))).unwrap().unwrap();
}

/// What reaches a blocked server once a flow from it to the client was made up, over UDP and TCP.
fn datagrams_past_the_rules(lab: &Lab, gateway: &Gateway, family: Family, port: u16) -> usize {
    let tap = Tap::at_server(lab).unwrap();
    let accomplice = SocketAddr::new(client_address(family, ACCOMPLICE), port);
    let server = at(Site::B, family, 9, port);
    forge(lab, server, accomplice);
    take(lab, accomplice.ip());
    let (udp, tcp) = lab
        .client
        .run(|| {
            let udp = UdpSocket::bind(accomplice).unwrap();
            for _ in 0..3 {
                udp.send_to(b"out", server).unwrap();
            }
            let tcp = forger(accomplice, Type::STREAM, Protocol::TCP);
            let _ = tcp.connect(&server.into());
            (udp, tcp)
        })
        .unwrap();
    // What is judged at last shows that all before has been seen.
    let last = lab.client.run(|| UdpSocket::bind(SocketAddr::new(client_address(family, 1), port)).unwrap()).unwrap();
    last.send_to(b"blocked", server).unwrap();
    let source = last.local_addr().unwrap();
    gateway.enforcer.record(|record| is_from(record, source) && record["verdict"] == "block", DEADLINE).unwrap();
    drop((udp, tcp));
    tap.count(lab, server).unwrap()
}

#[test]
fn a_flow_that_a_client_makes_up_in_a_blocked_servers_name_opens_nothing() {
    in_lab(|lab| {
        for family in Family::BOTH {
            lead_through_the_gateway(lab, client_address(family, ACCOMPLICE));
        }
        // What the rule is for: without it the same gets through.
        for (more, ports) in [("", 5000), ("reverse_path = false", 5001)] {
            let gateway = Gateway::start(lab, &configuration(more));
            for family in Family::BOTH {
                let passed = datagrams_past_the_rules(lab, &gateway, family, ports);
                assert_eq!(passed > 0, !more.is_empty(), "{family:?} {more:?}: {passed} packets");
                let address = client_address(family, ACCOMPLICE);
                lab.client.run(|| Rtnl::open()?.delete_address("lo", IpNet::from(address))).unwrap().unwrap();
            }
            let counted = gateway.stop().messages.iter().any(|line| line.contains("forged="));
            assert!(counted, "the connection that answers one is never let in");
        }
    });
}

/// Addresses that the gateway reaches by way of the server, and that nobody has.
fn behind_the_server(lab: &Lab) -> [IpAddr; 2] {
    let nowhere: [IpAddr; 2] = ["192.0.2.77".parse().unwrap(), "2001:db8:c::77".parse().unwrap()];
    for (family, to) in Family::BOTH.into_iter().zip(nowhere) {
        let lead = || Rtnl::open()?.add_route(IpNet::from(to), Some(server_address(family)), Some("server0"), false);
        lab.gateway.run(lead).unwrap().unwrap();
    }
    nowhere
}

/// Connection tracking calls a flow new until it is answered, and some never are.
#[test]
fn a_flow_that_was_let_in_and_has_no_answer_yet_is_nobody_elses_to_speak_in() {
    in_lab(|lab| {
        let nowhere = behind_the_server(lab).map(|address| SocketAddr::new(address, 5140));
        for (more, host) in [("", 3), ("reverse_path = false", 4)] {
            let gateway = Gateway::start(lab, &configuration(more));
            let tap = Tap::at_server(lab).unwrap();
            for (family, to) in Family::BOTH.into_iter().zip(nowhere) {
                let from = SocketAddr::new(client_address(family, host), 5000);
                let before = tap.count(lab, to).unwrap();
                lab.client.run(|| UdpSocket::bind(from).unwrap().send_to(b"one way", to).unwrap()).unwrap();
                assert_eq!(tap.count(lab, to).unwrap(), before + 1);
                lab.server
                    .run(|| {
                        let forger = forger(from, Type::DGRAM, Protocol::UDP);
                        for _ in 0..3 {
                            forger.send_to(b"from elsewhere", &to.into()).unwrap();
                        }
                    })
                    .unwrap();
                let passed = tap.count(lab, to).unwrap() - before - 1;
                assert_eq!(passed > 0, !more.is_empty(), "{family:?} {more:?}: {passed} packets");
            }
            let counted = gateway.stop().messages.iter().any(|line| line.contains("forged=6"));
            assert_eq!(counted, more.is_empty());
        }
    });
}

/// A server could else have a flow to itself opened in a client's name, and speak in it. QUIC is looked at before connection
/// tracking, which tells the rest what begins.
#[test]
fn quic_and_questions_in_a_clients_name_from_elsewhere_are_not_heard() {
    in_lab(|lab| {
        let nowhere = behind_the_server(lab);
        let said = [(443, flight("www.google.com")), (53, question("a.example.", RecordType::A))];
        for (more, host) in [("", 3), ("reverse_path = false", 4)] {
            let text = configuration(more) + "[network.inspection]\ntype = \"prefer-both\"\n";
            let gateway = Gateway::start(lab, &text);
            let sources = Family::BOTH.map(|family| SocketAddr::new(client_address(family, host), 5000));
            for (from, to) in sources.into_iter().zip(nowhere) {
                lab.server
                    .run(|| {
                        let forger = forger(from, Type::DGRAM, Protocol::UDP);
                        for (port, datagram) in &said {
                            forger.send_to(datagram, &SocketAddr::new(to, *port).into()).unwrap();
                        }
                    })
                    .unwrap();
            }
            if !more.is_empty() {
                for source in sources {
                    for port in [443, 53] {
                        let heard = |record: &_| is_from(record, source) && record["destination_port"] == port;
                        gateway.enforcer.record(heard, DEADLINE).unwrap();
                    }
                }
            }
            let ended = gateway.stop();
            let dropped = ended.messages.iter().any(|line| line.contains("forged=4"));
            assert_eq!(dropped, more.is_empty(), "{:?}", ended.messages);
            let is_heard = ended.records().iter().any(|record| sources.iter().any(|source| is_from(record, *source)));
            assert_eq!(is_heard, !more.is_empty(), "{:?}", ended.records());
        }
    });
}

#[test]
fn an_answer_in_a_resolvers_name_from_the_clients_side_is_not_taken() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration(""));
        for family in Family::BOTH {
            let asking = client_address(family, ACCOMPLICE);
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), |_| Vec::new());
            take(lab, asking);
            let stub = lab.client.run(|| UdpSocket::bind(SocketAddr::new(asking, 0)).unwrap()).unwrap();
            stub.send_to(&question("never.example.", RecordType::A), resolver.at).unwrap();
            let (from, query) = loop {
                if let Some(asked) = resolver.asked().into_iter().next() {
                    break asked;
                }
                std::thread::yield_now();
            };
            // The liar knows all that it would have to guess.
            let answer = answered(&query, 60, "203.0.113.9", "2001:db8:b::9");
            lab.client.run(|| Rtnl::open()?.delete_address("lo", IpNet::from(asking))).unwrap().unwrap();
            lead_through_the_gateway(lab, asking);
            lab.client
                .run(|| forger(resolver.at, Type::DGRAM, Protocol::UDP).send_to(&answer, &from.into()).unwrap())
                .unwrap();
            let source = stub.local_addr().unwrap();
            let record = gateway.enforcer.record(|record| is_from(record, source), DEADLINE).unwrap();
            assert_eq!(record["rcode"], "SERVFAIL", "{record:#}");
        }
    });
}

/// An IPv6 packet to whose fragment header the rest belongs.
fn fragment(source: Ipv6Addr, to: Ipv6Addr, next: u8, offset: u16, more: bool, id: u32, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len() + 8).unwrap();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([44, 64]);
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(fragment_header(next, offset, more, id));
    packet.extend(rest);
    packet
}

/// `offset` in units of eight octets (RFC 8200, section 4.5).
fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let place = (offset << 3) | u16::from(more);
    [&[next, 0][..], &place.to_be_bytes(), &id.to_be_bytes()].concat()
}

/// A datagram as two fragments, each within a fragment that is whole in itself.
fn nested(from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> [Vec<u8>; 2] {
    const OPTIONS: u8 = 60;
    const FRAGMENT: u8 = 44;
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let length = u16::try_from(payload.len() + 8).unwrap();
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
    let mut datagram = [&ports, payload].concat();
    let sum = checksum(*from.ip(), *to.ip(), 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let whole = [&options(OPTIONS)[..], &options(17), &datagram].concat();
    let inside = |offset, more, part: &[u8]| [fragment_header(OPTIONS, offset, more, 7), part.to_vec()].concat();
    let outer = |id, rest: &[u8]| fragment(*from.ip(), *to.ip(), FRAGMENT, 0, false, id, rest);
    [outer(8, &inside(0, true, &whole[..8])), outer(9, &inside(1, false, &whole[8..]))]
}

/// RFC 8200, section 8.1.
fn checksum(source: Ipv6Addr, to: Ipv6Addr, protocol: u32, octets: &[u8]) -> u16 {
    let length = u32::try_from(octets.len()).unwrap().to_be_bytes();
    let all = [&source.octets()[..], &to.octets(), &length, &protocol.to_be_bytes(), octets].concat();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = all.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn fragments_within_fragments_of_which_no_port_can_be_read_do_not_pass() {
    in_lab(|lab| {
        let _gateway = Gateway::start(lab, &configuration(""));
        let (SocketAddr::V6(to), IpAddr::V6(own)) = (at(Site::A, Family::V6, 9, 53), client_address(Family::V6, 2))
        else {
            panic!("not IPv6")
        };
        let listen = |port| {
            let at = SocketAddrV6::new(*to.ip(), port, 0, 0);
            let socket: UdpSocket = lab.server.run(|| bind(at.into(), Type::DGRAM).into()).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket
        };
        let (asked, witness) = (listen(53), listen(4000));
        lab.client
            .run(|| {
                let raw = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(255))).unwrap();
                let from = SocketAddrV6::new(own, 4001, 0, 0);
                let question = question("www.blocked.example.", RecordType::A);
                for packet in nested(from, to, &question) {
                    raw.send_to(&packet, &SocketAddrV6::new(*to.ip(), 0, 0, 0).into()).unwrap();
                }
                // What was sent before has been forwarded, or not, when this arrives.
                let plain = UdpSocket::bind(SocketAddrV6::new(own, 4001, 0, 0)).unwrap();
                plain.send_to(b"after them", (*to.ip(), 4000)).unwrap();
            })
            .unwrap();
        witness.recv(&mut [0; 100]).unwrap();
        asked.set_nonblocking(true).unwrap();
        assert_eq!(asked.recv(&mut [0; 1000]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    });
}

/// A datagram behind an authentication header (RFC 4302): of no port to the rules, of all ports to connection tracking.
fn authenticated(from: SocketAddrV6, to: SocketAddrV6) -> Vec<u8> {
    let mut datagram = [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &[0, 9, 0, 0, b'x']].concat();
    let sum = checksum(*from.ip(), *to.ip(), 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let header = [&[17, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1][..], &[0; 12]].concat();
    let length = u16::try_from(header.len() + datagram.len()).unwrap().to_be_bytes();
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    [&[0x60, 0, 0, 0][..], &length, &[51, 64], &source, &destination, &header, &datagram].concat()
}

const BLOCKED_PORTS: &str = r#"
name = "edge-1"
[gateway]
[[policy]]
name = "none"
default = "block"
[[port]]
name = "some"
protocols = [{ protocol = "udp", ports = ["8000-9000"] }]
[[network]]
name = "clients"
ips = [{ ip = "fd00:1::", maskbits = 64, port = "some" }]
outbound = { policy = "none", drop = "discard" }
inbound = { policy = "none", drop = "discard" }
"#;

#[test]
fn what_follows_an_authentication_header_lets_no_flow_in() {
    in_lab(|lab| {
        let _gateway = Gateway::start(lab, BLOCKED_PORTS);
        let (own, remote) = (client_address(Family::V6, 2), Site::B.address(Family::V6, 3));
        for (opener, from, other, to) in
            [(&lab.client, own, &lab.server, remote), (&lab.server, remote, &lab.client, own)]
        {
            let listen = |port| {
                let socket: UdpSocket = other.run(|| bind(SocketAddr::new(to, port), Type::DGRAM).into()).unwrap();
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                socket
            };
            let (blocked, witness) = (listen(8500), listen(7500));
            let (SocketAddr::V6(source), SocketAddr::V6(destination)) =
                (SocketAddr::new(from, 4001), SocketAddr::new(to, 8500))
            else {
                panic!("not IPv6")
            };
            opener
                .run(|| {
                    let raw = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(255))).unwrap();
                    raw.send_to(
                        &authenticated(source, destination),
                        &SocketAddrV6::new(*destination.ip(), 0, 0, 0).into(),
                    )
                    .unwrap();
                    let plain = UdpSocket::from(bind(source.into(), Type::DGRAM));
                    plain.send_to(b"plain", destination).unwrap();
                    plain.send_to(b"of a port that is not judged", (to, 7500)).unwrap();
                })
                .unwrap();
            witness.recv(&mut [0; 100]).unwrap();
            blocked.set_nonblocking(true).unwrap();
            assert_eq!(blocked.recv(&mut [0; 100]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        }
    });
}
