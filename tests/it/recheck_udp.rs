//! UDP that the kernel forwards under a new policy with `recheck = true`, where more than the policy has changed.
//!
//! ```text
//! client 10.1.0.2 (protected) -- gateway (tidegate run, reloaded; masquerades or not) -- server (site A)
//! ```

use std::net::{SocketAddr, UdpSocket};

use serde_json::Value;
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at};
use crate::hand_over::{sink, take_over};
use crate::inside::in_lab;
use crate::nat::masquerade;
use crate::recheck::{answer, configuration, flight, site_a};

const DROPS: [&str; 2] = ["discard", "icmp-unreachable"];

#[test]
fn a_masqueraded_flow_ends_for_both_sides() {
    in_lab(|lab| {
        lab.gateway.run(masquerade).unwrap();
        let taps = Taps::new(lab);
        for drop in DROPS {
            let gateway = Gateway::start(lab, &configuration(drop, ""));
            let flows = Family::BOTH.map(|family| Quic::begin(lab, family));
            gateway.rewrite(&configuration(drop, &site_a()));
            gateway.reload();
            for flow in flows {
                assert_ne!(flow.seen.ip(), flow.source().ip());
                let end = flow.end(&gateway);
                assert_eq!(end["bytes_in"], ANSWER, "{end}");
                assert_eq!(taps.passing(&flow), (0, 0), "{drop}: out and in, {:?}", flow.server);
            }
            gateway.stop();
        }
    });
}

#[test]
fn a_flow_ends_for_both_sides_when_its_port_is_inspected_no_more() {
    in_lab(|lab| {
        let taps = Taps::new(lab);
        for drop in DROPS {
            for without in ["quic = false", "tls_ports = [8443]"] {
                let gateway = Gateway::start(lab, &configuration(drop, ""));
                let flows = Family::BOTH.map(|family| Quic::begin(lab, family));
                gateway.rewrite(&(configuration(drop, &site_a()) + without));
                gateway.reload();
                for flow in flows {
                    let end = flow.end(&gateway);
                    assert_eq!(end["bytes_in"], ANSWER, "{end}");
                    assert_eq!(taps.passing(&flow), (0, 0), "{drop}, {without}: out and in, {:?}", flow.server);
                }
                gateway.stop();
            }
        }
    });
}

#[test]
fn a_flow_that_a_tidegate_before_let_in_ends_for_both_sides() {
    in_lab(|lab| {
        let taps = Taps::new(lab);
        for drop in DROPS {
            let old = Gateway::start(lab, &configuration(drop, ""));
            let flows = Family::BOTH.map(|family| Quic::begin(lab, family));
            let gateway = take_over(lab, &configuration(drop, ""));
            old.enforcer.message(|line| line.contains("ended:"), DEADLINE).unwrap();
            gateway.rewrite(&configuration(drop, &site_a()));
            gateway.reload();
            for flow in flows {
                flow.end(&gateway);
                assert_eq!(taps.passing(&flow), (0, 0), "{drop}: out and in, {:?}", flow.server);
            }
            gateway.stop();
            old.stop();
        }
    });
}

/// An inspected flow to site A that was let in, and is forwarded.
struct Quic<'a> {
    lab: &'a Lab,
    server: SocketAddr,
    client: UdpSocket,
    _sink: UdpSocket,
    /// The client, as the server sees it.
    seen: SocketAddr,
}

impl<'a> Quic<'a> {
    fn begin(lab: &'a Lab, family: Family) -> Self {
        let (server, sink) = (at(Site::A, family, 2, 443), sink(lab, family));
        let client = lab.client.run(|| UdpSocket::bind((client_address(family, 0), 0))).unwrap().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.connect(server).unwrap();
        client.send(&flight()).unwrap();
        let (_, seen) = sink.recv_from(&mut [0; 2000]).unwrap();
        client.send(b"@short header").unwrap();
        sink.recv(&mut [0; 2000]).unwrap();
        answer(lab, server, seen);
        client.recv(&mut [0; 2000]).unwrap();
        Self { lab, server, client, _sink: sink, seen }
    }

    fn source(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }

    fn end(&self, gateway: &Gateway) -> Value {
        let end = gateway.end_of(self.source());
        assert_eq!(end["closed_by"], "policy", "{end}");
        end
    }
}

struct Taps<'a> {
    lab: &'a Lab,
    at_server: Tap,
    at_client: Tap,
}

impl<'a> Taps<'a> {
    fn new(lab: &'a Lab) -> Self {
        Self { lab, at_server: Tap::at_server(lab).unwrap(), at_client: Tap::at_client(lab).unwrap() }
    }

    /// How much arrives on either side when both go on: the server first, for the client may be told that it is refused.
    fn passing(&self, flow: &Quic<'_>) -> (usize, usize) {
        let count = || {
            let there = self.at_server.count(self.lab, flow.server).unwrap();
            (there, self.at_client.count(self.lab, flow.source()).unwrap())
        };
        let before = count();
        for _ in 0..3 {
            answer(flow.lab, flow.server, flow.seen);
            let _ = flow.client.send(b"@short header");
        }
        let after = count();
        (after.0 - before.0, after.1 - before.1)
    }
}

/// Octets of the payload of an answer.
const ANSWER: usize = b"@answer".len();
