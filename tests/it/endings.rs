//! What a blocked client sees, by drop action (SPEC E1), and that its server never hears of it.
//!
//! ```text
//! client -- gateway (tidegate run) -- server
//!        ^ tap                     ^ tap
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::{Kind, Packet, Tap};
use tidegate::sys::rtnl::Family;

use crate::gateway::{Gateway, at, configuration, connect, get, hello, servers};
use crate::inside::in_lab;

#[test]
fn tcp_reset_ends_the_client_at_once_and_sends_nothing_upstream() {
    in_lab(|lab| {
        each_refusal(lab, "tcp-reset", |refused| {
            let error = refused.client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let arrived = refused.arrived_at_client(lab);
            assert!(arrived.iter().any(|packet| packet.kind == Kind::Reset), "{arrived:?}");
            assert!(!arrived.iter().any(is_icmp), "{arrived:?}");
        });
    });
}

#[test]
fn icmp_unreachable_says_prohibited_before_the_reset_and_sends_nothing_upstream() {
    in_lab(|lab| {
        each_refusal(lab, "icmp-unreachable", |refused| {
            let error = refused.client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let arrived = refused.arrived_at_client(lab);
            let (kind, code) = if refused.destination.is_ipv4() { (3, 13) } else { (1, 1) };
            let prohibited = arrived.iter().position(|packet| packet.kind == Kind::Icmp { kind, code });
            let reset = arrived.iter().position(|packet| packet.kind == Kind::Reset);
            assert!(prohibited.is_some() && prohibited < reset, "{arrived:?}");
        });
    });
}

#[test]
fn discard_is_silence_then_and_later_and_sends_nothing_upstream() {
    in_lab(|lab| {
        each_refusal(lab, "discard", |refused| {
            // More to answer: data that retransmits, and the client's end.
            let _ = refused.client.write_all(b"is anybody there?");
            refused.client.shutdown(std::net::Shutdown::Write).unwrap();
            let arrived = refused.arrived_at_client(lab);
            assert!(!arrived.iter().any(|packet| packet.kind == Kind::Reset || is_icmp(packet)), "{arrived:?}");
            refused.client.set_nonblocking(true).unwrap();
            assert_eq!(refused.client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        });
    });
}

/// A flow that was refused: the verdict on it has been recorded.
struct Refused<'a> {
    client: TcpStream,
    source: SocketAddr,
    destination: SocketAddr,
    tap: &'a Tap,
}

impl Refused<'_> {
    /// What has come to the client's end of this flow so far, and any ICMP.
    fn arrived_at_client(&mut self, lab: &Lab) -> Vec<Packet> {
        let source = self.source;
        let fits = |packet: &Packet| packet.destination == source || is_icmp(packet);
        self.tap.packets(lab, fits).unwrap()
    }
}

/// Refuses a TLS and an HTTP flow of each family by name under the drop action.
fn each_refusal(lab: &Lab, drop: &str, mut look: impl FnMut(&mut Refused<'_>)) {
    let (_origins, trust) = servers(lab);
    let gateway = Gateway::start(lab, &configuration(drop, "type = \"prefer-both\""));
    let at_server = Tap::at_server(lab).unwrap();
    for family in Family::BOTH {
        for (port, first_flight) in
            [(443, hello(&trust, Some("blocked.example"))), (80, get("blocked.example").into_bytes())]
        {
            let at_client = Tap::at_client(lab).unwrap();
            let destination = at(Site::A, family, 1, port);
            let mut client = connect(lab, destination);
            let source = client.local_addr().unwrap();
            assert_eq!(source.ip(), client_address(family, 0));
            client.write_all(&first_flight).unwrap();
            assert_refused(&gateway.verdict_on(source), drop);
            look(&mut Refused { client, source, destination, tap: &at_client });
            assert_eq!(at_server.count(lab, destination).unwrap(), 0, "{destination}");
        }
    }
    gateway.stop();
}

fn assert_refused(record: &Value, drop: &str) {
    assert_eq!(record["verdict"], "block", "{record:#}");
    assert_eq!(record["domain"], "blocked.example", "{record:#}");
    assert_eq!(record["reason"], "DOMAIN", "{record:#}");
    assert_eq!(record["list"], "blocked-names", "{record:#}");
    assert_eq!(record["action"], drop, "{record:#}");
}

fn is_icmp(packet: &Packet) -> bool {
    matches!(packet.kind, Kind::Icmp { .. })
}
