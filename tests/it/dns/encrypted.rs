//! DNS over TLS and over QUIC, which nobody on the way can read: refused, but for authorized resolvers.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use hickory_proto::rr::RecordType;
use tidegate::mode::demo::lab::{Lab, Site, gateway_address};
use tidegate::mode::demo::tap::{Kind, Tap};
use tidegate::sys::rtnl::Family;

use super::configuration;
use super::resolver::*;
use crate::gateway::{DEADLINE, Gateway, at};
use crate::inside::in_lab;

/// Of DoT (TCP) and DoQ (UDP).
const ENCRYPTED: u16 = 853;

fn start(lab: &Lab, drop: &str) -> Gateway {
    let authorized = Family::BOTH.map(|family| format!("\"{}\"", authorized(family)));
    Gateway::start(lab, &configuration(drop, &format!("authorized_resolvers = [{}]", authorized.join(", "))))
}

fn authorized(family: Family) -> IpAddr {
    at(Site::A, family, 53, 0).ip()
}

/// How a connection ends: while connect() still waits, or just after.
fn error_of_connection(lab: &Lab, to: SocketAddr) -> ErrorKind {
    match lab.client.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap() {
        Err(refused) => refused.kind(),
        Ok(mut stream) => {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.read(&mut [0; 2]).unwrap_err().kind()
        }
    }
}

fn assert_refused(lab: &Lab, gateway: &Gateway, to: SocketAddr) {
    let stub = stub(lab, 0, to);
    stub.send(&[0xc0; 1200]).unwrap();
    let refused = stub.recv(&mut [0; 512]).unwrap_err().raw_os_error();
    assert_eq!(refused, Some(if to.is_ipv4() { libc::EHOSTUNREACH } else { libc::EACCES }), "{to}");
    assert_eq!(error_of_connection(lab, to), ErrorKind::ConnectionReset, "{to}");
    for protocol in ["udp", "tcp"] {
        let fits = |record: &serde_json::Value| {
            record["protocol"] == protocol
                && record["destination"] == to.ip().to_string()
                && record["destination_port"] == ENCRYPTED
        };
        let record = gateway.enforcer.record(fits, DEADLINE).unwrap();
        assert_eq!((&record["reason"], &record["verdict"]), (&"RESOLVER".into(), &"block".into()), "{record}");
    }
}

#[test]
fn encrypted_dns_to_another_resolver_gets_no_packet_and_the_client_sees_the_drop_action() {
    in_lab(|lab| {
        let gateway = start(lab, "icmp-unreachable");
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            let other = at(Site::A, family, 54, ENCRYPTED);
            assert_refused(lab, &gateway, other);
            assert_eq!(tap.count(lab, other).unwrap(), 0);
            assert_refused(lab, &gateway, SocketAddr::new(gateway_address(family), ENCRYPTED));
        }
    });
}

#[test]
fn discarded_encrypted_dns_hears_nothing() {
    in_lab(|lab| {
        let gateway = start(lab, "discard");
        let (client, server) = (Tap::at_client(lab).unwrap(), Tap::at_server(lab).unwrap());
        for family in Family::BOTH {
            let other = at(Site::A, family, 54, ENCRYPTED);
            let stub = stub(lab, 0, other);
            stub.send(&[0xc0; 1200]).unwrap();
            let mut stream = connect_tcp(lab, other);
            stream.write_all(&[22, 3, 1, 0, 200]).unwrap();
            for source in [stub.local_addr().unwrap(), stream.local_addr().unwrap()] {
                let fits = |record: &serde_json::Value| record["source_port"] == source.port();
                let record = gateway.enforcer.record(fits, DEADLINE).unwrap();
                assert_eq!((&record["reason"], &record["action"]), (&"RESOLVER".into(), &"discard".into()));
            }
            assert_eq!(server.count(lab, other).unwrap(), 0);
        }
        // The handshake is done before anybody is judged.
        let heard = client.packets(lab, |packet| match packet.kind {
            Kind::Icmp { .. } | Kind::Reset => true,
            Kind::Datagram => packet.source.port() == ENCRYPTED,
            Kind::Syn | Kind::Segment => false,
        });
        assert_eq!(heard.unwrap(), []);
    });
}

#[test]
fn an_authorized_resolver_is_reached_over_encrypted_dns_and_nobody_reads_on_the_way() {
    in_lab(|lab| {
        let _gateway = start(lab, "icmp-unreachable");
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, SocketAddr::new(authorized(family), ENCRYPTED), honest);
            let query = question("blocked.example.", RecordType::A);
            let stub = stub(lab, 3, resolver.at);
            exchange(&stub, &query);
            let mut stream = connect_tcp(lab, resolver.at);
            write_frame(&mut stream, &query);
            read_frame(&mut stream).unwrap();
            let whole = |from: SocketAddr| (from, query.clone());
            assert_eq!(resolver.asked(), [stub.local_addr(), stream.local_addr()].map(|from| whole(from.unwrap())));
        }
    });
}

#[test]
fn where_a_network_only_monitors_encrypted_dns_passes_and_is_recorded_as_what_would_be_refused() {
    in_lab(|lab| {
        let authorized = format!("authorized_resolvers = [\"{}\"]", authorized(Family::V4));
        let text = configuration("discard", &authorized).replace("directions =", "mode = \"monitor\"\ndirections =");
        let gateway = Gateway::start(lab, &text);
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 54, ENCRYPTED), honest);
            let query = question("a.example.", RecordType::A);
            let stub = stub(lab, 3, resolver.at);
            exchange(&stub, &query);
            let source = stub.local_addr().unwrap();
            let record = gateway.enforcer.record(|record| record["source_port"] == source.port(), DEADLINE).unwrap();
            let said = ["verdict", "reason", "action"].map(|field| record[field].as_str().unwrap());
            assert_eq!(said, ["block", "RESOLVER", "monitor"], "{record}");
        }
    });
}

#[test]
fn without_authorized_resolvers_encrypted_dns_passes() {
    in_lab(|lab| {
        let _gateway = Gateway::start(lab, &configuration("discard", ""));
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 54, ENCRYPTED), honest);
            exchange(&stub(lab, 0, resolver.at), &question("a.example.", RecordType::A));
            assert_eq!(resolver.asked().len(), 1);
        }
    });
}
