//! Errors and answers about flows that are held here: whoever writes them does not speak past the verdict.
//!
//! ```text
//! client (protected) -- gateway (tidegate run) -- server (site B is blocked by address, but for allowed names)
//! ```

use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tidegate::mode::demo::lab::{Site, client_address};
use tidegate::mode::demo::tap::{Kind, Packet, Tap};
use tidegate::sys::netns::Namespace;
use tidegate::sys::rtnl::Family;

use crate::dns::resolver::{bind, question};
use crate::gateway::{DEADLINE, Gateway, at, configuration, connect, is_from};
use crate::inside::in_lab;
use hickory_proto::rr::RecordType;

/// Holds flows to site B for their name, and refuses questions to whoever is no resolver.
const HELD: &str =
    "type = \"prefer-domain\"\ntimeout = \"60s\"\n[network.dns]\nauthorized_resolvers = [\"192.0.2.53\"]";
const TCP: u8 = 6;
const UDP: u8 = 17;

/// `from` says that the packet of a flow from `source` to `destination` could not be delivered.
fn complain(place: &Namespace, from: IpAddr, protocol: u8, source: SocketAddr, destination: SocketAddr) {
    let (domain, kind) = match from {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let message = unreachable(protocol, source, destination);
    place
        .run(|| {
            let socket = Socket::new(domain, Type::RAW, Some(kind)).unwrap();
            if from.is_ipv6() {
                socket.set_freebind_v6(true).unwrap();
            }
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            socket.send_to(&message, &SocketAddr::new(source.ip(), 0).into()).unwrap();
        })
        .unwrap();
}

/// An ICMP error that quotes a packet, with what somebody wants to say behind it.
fn unreachable(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    const PORT: u8 = 3;
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let transport = [&ports[..], &[0; 16], b"what nobody should hear"].concat();
    let length = u16::try_from(transport.len()).unwrap();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (length + 20).to_be_bytes();
            let head = [&[0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0][..], &source.octets()];
            let mut head = [&head.concat()[..], &destination.octets()].concat();
            write_sum(&mut head, 10);
            let mut message = [&[3, PORT, 0, 0, 0, 0, 0, 0][..], &head, &transport].concat();
            write_sum(&mut message, 2);
            message
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = length.to_be_bytes();
            let head = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            // The kernel writes the sum.
            let before = [1, 4, 0, 0, 0, 0, 0, 0];
            [&before[..], &head, &source.octets(), &destination.octets(), &transport].concat()
        }
        _ => panic!("two families"),
    }
}

/// RFC 1071
fn write_sum(octets: &mut [u8], place: usize) {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = octets.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    octets[place..place + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// An ICMP packet that is no discovery of neighbours or routers.
fn is_error(packet: &Packet) -> bool {
    matches!(packet.kind, Kind::Icmp { kind: 1..=3, .. })
}

#[test]
fn errors_about_a_held_flow_reach_neither_its_server_nor_its_client() {
    in_lab(|lab| {
        let _gateway = Gateway::start(lab, &configuration("tcp-reset", HELD));
        let (at_server, at_client) = (Tap::at_server(lab).unwrap(), Tap::at_client(lab).unwrap());
        for family in Family::BOTH {
            let server = at(Site::B, family, 7, 443);
            let client = connect(lab, server);
            let own = client.local_addr().unwrap();
            complain(&lab.client, own.ip(), TCP, server, own);
            complain(&lab.server, server.ip(), TCP, own, server);
            let heard = |tap: &Tap, by: IpAddr| {
                tap.packets(lab, |packet| is_error(packet) && packet.destination.ip() == by).unwrap()
            };
            assert_eq!(heard(&at_server, server.ip()), [], "{family:?}");
            assert_eq!(heard(&at_client, own.ip()), [], "{family:?}");
        }
    });
}

#[test]
fn a_refused_resolver_answers_nothing_and_hears_of_no_error() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("discard", HELD));
        let (at_server, at_client) = (Tap::at_server(lab).unwrap(), Tap::at_client(lab).unwrap());
        for family in Family::BOTH {
            let resolver = at(Site::B, family, 53, 53);
            let stub = lab.client.run(|| UdpSocket::bind((client_address(family, 2), 0)).unwrap()).unwrap();
            let own = stub.local_addr().unwrap();
            stub.send_to(&question("www.example.", RecordType::A), resolver).unwrap();
            gateway.enforcer.record(|record| is_from(record, own), DEADLINE).unwrap();
            complain(&lab.client, own.ip(), UDP, resolver, own);
            lab.server
                .run(|| UdpSocket::from(bind(resolver, Type::DGRAM)).send_to(b"an answer", own).unwrap())
                .unwrap();
            complain(&lab.server, resolver.ip(), UDP, own, resolver);
            let from_there = |packet: &Packet| packet.source.ip() == resolver.ip();
            assert_eq!(at_client.packets(lab, from_there).unwrap(), [], "{family:?}");
            let to_there = |packet: &Packet| packet.destination.ip() == resolver.ip();
            assert_eq!(at_server.packets(lab, to_there).unwrap(), [], "{family:?}");
        }
    });
}
