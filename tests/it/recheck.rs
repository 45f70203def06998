//! Live flows under a new policy with `recheck = true`: what it forbids ends, what it allows goes on (SPEC R7). Without, no
//! flow ends, and what begins on one is judged by the new policy.
//!
//! ```text
//! client 10.1.0.2 (protected) -- gateway (tidegate run, reloaded) -- server (site A, site B)
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;
use tidegate::sys::udp::Outbox;

use crate::gateway::{DEADLINE, Gateway, at, connect, get, is_from, listen, protected, until};
use crate::inside::in_lab;

/// Nothing is blocked, but for what is in `blocked`; names are read on port 80 and of QUIC.
pub(crate) fn configuration(drop: &str, blocked: &str) -> String {
    let ips = Family::BOTH.map(protected);
    format!(
        r#"
name = "edge-1"
[gateway]
recheck = true
watch = false
[[list]]
name = "blocked"
verdict = "block"
entries = ["never.example"{blocked}]
[[policy]]
name = "out"
default = "allow"
lists = ["blocked"]
[[network]]
name = "clients"
directions = "outbound"
ips = [{}]
outbound = {{ policy = "out", drop = "{drop}" }}
[network.inspection]
type = "prefer-both"
"#,
        ips.join(", ")
    )
}

pub(crate) fn site_a() -> String {
    Family::BOTH.map(|family| format!(", \"{}\"", Site::A.prefix(family))).concat()
}

#[test]
fn flows_that_are_served_here_end_and_others_live_on_under_the_new_policy() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        for drop in ["tcp-reset", "icmp-unreachable", "discard"] {
            let gateway = Gateway::start(lab, &configuration(drop, ""));
            let mut kept = Vec::new();
            for family in Family::BOTH {
                kept.push(live(lab, &accepted, family, "kept.example"));
                let (mut client, mut server) = live(lab, &accepted, family, "later.example");
                gateway.rewrite(&configuration(drop, ", \"later.example\""));
                gateway.reload();
                let end = gateway.end_of(client.local_addr().unwrap());
                assert_eq!((&end["closed_by"], &end["domain"]), (&"policy".into(), &"later.example".into()), "{end}");
                assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                match drop {
                    "discard" => assert_silent(&mut client),
                    _ => assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset),
                }
                gateway.rewrite(&configuration(drop, ""));
                gateway.reload();
            }
            for (client, server) in &mut kept {
                exchange(client, server);
            }
            // What they ask for later is judged by the policy in force, not by the one that they began with.
            gateway.rewrite(&configuration(drop, ", \"later.example\""));
            gateway.reload();
            for (mut client, _server) in kept {
                client.write_all(get("later.example").as_bytes()).unwrap();
                let end = gateway.end_of(client.local_addr().unwrap());
                assert_eq!(end["closed_by"], "policy", "{end}");
            }
            gateway.stop();
        }
    });
}

/// The policy by which flows were last judged again may be older than the one that a flow begins with.
#[test]
fn what_a_flow_asks_for_later_is_judged_by_no_older_policy_than_its_beginning() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let gateway = Gateway::start(lab, &configuration("tcp-reset", ""));
        gateway.reload();
        for family in Family::BOTH {
            // By now the worker has heard of that reload.
            let (client, _server) = live(lab, &accepted, family, "later.example");
            drop(client);
        }
        let without = configuration("tcp-reset", ", \"later.example\"").replace("recheck = true", "recheck = false");
        gateway.rewrite(&without);
        gateway.reload();
        for family in Family::BOTH {
            let (mut client, mut server) = live(lab, &accepted, family, "kept.example");
            client.write_all(get("later.example").as_bytes()).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(gateway.end_of(client.local_addr().unwrap())["closed_by"], "policy");
        }
    });
}

#[test]
fn tcp_that_the_kernel_judged_ends_for_both_sides() {
    in_lab(|lab| {
        let accepted = listen(lab, 8443);
        let at_client = Tap::at_client(lab).unwrap();
        let at_server = Tap::at_server(lab).unwrap();
        for drop in ["tcp-reset", "discard"] {
            let gateway = Gateway::start(lab, &configuration(drop, ""));
            let flow = |site, family| {
                let client = connect(lab, at(site, family, 1, 8443));
                (client, accepted.recv_timeout(DEADLINE).unwrap().0)
            };
            let flows = Family::BOTH.map(|family| (flow(Site::A, family), flow(Site::B, family)));
            gateway.rewrite(&configuration(drop, &site_a()));
            gateway.reload();
            for ((mut client, mut server), (mut kept, mut kept_server)) in flows {
                let (source, destination) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
                let end = gateway.end_of(source);
                assert_eq!((&end["closed_by"], &end["action"]), (&"policy".into(), &drop.into()), "{end}");
                let before = (at_server.count(lab, destination).unwrap(), at_client.count(lab, source).unwrap());
                // Whoever speaks first.
                server.write_all(b"more").unwrap();
                client.write_all(b"more").unwrap();
                if drop == "tcp-reset" {
                    for side in [&mut client, &mut server] {
                        assert_eq!(side.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                    }
                } else {
                    let after = (at_server.count(lab, destination).unwrap(), at_client.count(lab, source).unwrap());
                    assert_eq!(after, before, "nothing passes in either direction");
                }
                exchange(&mut kept, &mut kept_server);
            }
            gateway.stop();
        }
    });
}

#[test]
fn udp_that_the_kernel_judged_and_udp_that_was_inspected_end_for_both_sides() {
    in_lab(|lab| {
        let hello = flight();
        for (drop, port) in [("icmp-unreachable", 9999), ("discard", 9999), ("icmp-unreachable", 443), ("discard", 443)]
        {
            let at_client = Tap::at_client(lab).unwrap();
            let at_server = Tap::at_server(lab).unwrap();
            let gateway = Gateway::start(lab, &configuration(drop, ""));
            let sink = lab.server.run(|| UdpSocket::bind(("::", port))).unwrap().unwrap();
            sink.set_read_timeout(Some(DEADLINE)).unwrap();
            let flow = |site, family| {
                let client = lab.client.run(|| UdpSocket::bind((client_address(family, 0), 0))).unwrap().unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                let server = at(site, family, 2, port);
                client.connect(server).unwrap();
                client.send(&hello).unwrap();
                sink.recv(&mut [0; 2000]).unwrap();
                assert_both_ways(lab, &client, server, &sink);
                (client, server)
            };
            let flows = Family::BOTH.map(|family| (flow(Site::A, family), flow(Site::B, family)));
            gateway.rewrite(&configuration(drop, &site_a()));
            gateway.reload();
            for ((client, server), (kept, kept_server)) in flows {
                let source = client.local_addr().unwrap();
                let end = gateway.end_of(source);
                assert_eq!(end["closed_by"], "policy", "{end}");
                let before = (at_server.count(lab, server).unwrap(), at_client.count(lab, source).unwrap());
                // An answer first, then the client: neither arrives.
                answer(lab, server, source);
                let _ = client.send(b"@short header");
                answer(lab, server, source);
                let after = (at_server.count(lab, server).unwrap(), at_client.count(lab, source).unwrap());
                assert_eq!(after, before, "{drop} {server}");
                assert_both_ways(lab, &kept, kept_server, &sink);
            }
            gateway.stop();
        }
    });
}

#[test]
fn a_flow_ends_for_what_it_asked_for_later_too() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let gateway = Gateway::start(lab, &configuration("tcp-reset", ""));
        for family in Family::BOTH {
            let (mut client, mut server) = live(lab, &accepted, family, "kept.example");
            exchange_of("later.example", &mut client, &mut server);
            exchange(&mut client, &mut server);
            gateway.rewrite(&configuration("tcp-reset", ", \"later.example\""));
            gateway.reload();
            let end = gateway.end_of(client.local_addr().unwrap());
            assert_eq!((&end["closed_by"], &end["domain"]), (&"policy".into(), &"later.example".into()), "{end}");
            assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            gateway.rewrite(&configuration("tcp-reset", ""));
            gateway.reload();
        }
    });
}

#[test]
fn a_flow_ends_for_a_later_quic_connection_too_and_none_of_them_passes_any_more() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("discard", ""));
        let (kept, later) = (flight_of("www.google.com"), flight_of("ogs.google.com"));
        for family in Family::BOTH {
            let (client, sink) = quic(lab, family);
            for hello in [&kept, &later] {
                client.send(hello).unwrap();
                assert!(heard(&sink, &client) == *hello);
            }
            gateway.rewrite(&configuration("discard", ", \"ogs.google.com\""));
            gateway.reload();
            let end = gateway.end_of(client.local_addr().unwrap());
            assert_eq!((&end["closed_by"], &end["domain"]), (&"policy".into(), &"ogs.google.com".into()), "{end}");
            let at_server = Tap::at_server(lab).unwrap();
            for datagram in [&later[..], b"@short header", &kept] {
                let _ = client.send(datagram);
            }
            assert_eq!(at_server.count(lab, client.peer_addr().unwrap()).unwrap(), 0);
            gateway.rewrite(&configuration("discard", ""));
            gateway.reload();
            assert_passes_by_and_by(&client, &sink, &later);
        }
    });
}

#[test]
fn a_quic_connection_that_was_blocked_on_a_flow_that_passes_is_judged_anew_too() {
    in_lab(|lab| {
        let (kept, later) = (flight_of("www.google.com"), flight_of("ogs.google.com"));
        for family in Family::BOTH {
            let gateway = Gateway::start(lab, &configuration("discard", ", \"ogs.google.com\""));
            let (client, sink) = quic(lab, family);
            client.send(&kept).unwrap();
            assert!(heard(&sink, &client) == kept);
            client.send(&later).unwrap();
            let source = client.local_addr().unwrap();
            let blocks = |r: &serde_json::Value| is_from(r, source) && r["verdict"] == "block";
            assert_eq!(gateway.enforcer.record(blocks, DEADLINE).unwrap()["domain"], "ogs.google.com");
            gateway.rewrite(&configuration("discard", ""));
            gateway.reload();
            assert_passes_by_and_by(&client, &sink, &later);
            gateway.stop();
        }
    });
}

#[test]
fn a_quic_connection_that_begins_after_a_reload_is_judged_by_the_policy_in_force_on_old_ports_too() {
    in_lab(|lab| {
        let without = |blocked| configuration("discard", blocked).replace("recheck = true", "recheck = false");
        let gateway = Gateway::start(lab, &without(""));
        for family in Family::BOTH {
            let (client, sink) = quic(lab, family);
            let [old, blocked, allowed] = ["www.google.com", "ogs.google.com", "meet.google.com"].map(flight_of);
            client.send(&old).unwrap();
            assert!(heard(&sink, &client) == old);
            gateway.rewrite(&without(", \"ogs.google.com\", \"www.google.com\""));
            gateway.reload();
            client.send(&blocked).unwrap();
            let source = client.local_addr().unwrap();
            let blocks = |r: &serde_json::Value| is_from(r, source) && r["domain"] == "ogs.google.com";
            let record = gateway.enforcer.record(blocks, DEADLINE).unwrap();
            assert_eq!(record["verdict"], "block", "{record}");
            // The connection that was there keeps the policy that it began with.
            for datagram in [&allowed, &old] {
                client.send(datagram).unwrap();
                assert!(heard(&sink, &client) == *datagram);
            }
            gateway.rewrite(&without(""));
            gateway.reload();
        }
    });
}

#[test]
fn where_a_reload_blocks_quic_no_connection_begins_on_old_ports_and_the_old_ones_go_on() {
    in_lab(|lab| {
        let inspected = configuration("discard", "").replace("recheck = true", "recheck = false");
        let gateway = Gateway::start(lab, &inspected);
        for family in Family::BOTH {
            let (client, sink) = quic(lab, family);
            let old = flight_of("www.google.com");
            client.send(&old).unwrap();
            assert!(heard(&sink, &client) == old);
            gateway.rewrite(&inspected.replace("prefer-both\"", "prefer-both\"\nquic = \"block\""));
            gateway.reload();
            for name in ["ogs.google.com", "meet.google.com"] {
                client.send(&flight_of(name)).unwrap();
                let source = client.local_addr().unwrap();
                let begins = |r: &serde_json::Value| is_from(r, source) && r["domain"] == name;
                let record = gateway.enforcer.record(begins, DEADLINE).unwrap();
                assert_eq!((&record["verdict"], &record["reason"]), (&"block".into(), &"QUIC".into()), "{record}");
            }
            client.send(b"@short header").unwrap();
            assert_eq!(heard(&sink, &client), b"@short header");
            gateway.rewrite(&inspected);
            gateway.reload();
        }
    });
}

/// A host may send in a flow that is not its own, and would have it let in with what it sends.
#[test]
fn a_flow_that_is_relayed_stays_ours_when_its_port_is_inspected_no_more() {
    in_lab(|lab| {
        // The kernel else knows the socket before it is asked for the way.
        lab.gateway.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_early_demux", "0")).unwrap().unwrap();
        let accepted = listen(lab, 80);
        let inspected = configuration("tcp-reset", "");
        let gateway = Gateway::start(lab, &inspected);
        let flows = Family::BOTH.map(|family| live(lab, &accepted, family, "kept.example"));
        gateway.rewrite(&inspected.replace("prefer-both\"", "prefer-both\"\nhttp_ports = [81]"));
        gateway.reload();
        for (mut client, mut server) in flows {
            exchange(&mut client, &mut server);
            let (ours, to) = (server.peer_addr().unwrap(), client.peer_addr().unwrap());
            let ours = SocketAddr::new(ours.ip().to_canonical(), ours.port());
            let meddler = lab.client.run(|| socket_of(ours)).unwrap();
            meddler.set_nonblocking(true).unwrap();
            let _ = meddler.connect(&to.into());
            for _ in 0..3 {
                exchange(&mut client, &mut server);
            }
        }
    });
}

/// An unconnected one of the client's.
fn socket_of(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// A flow to site A that was judged by its name, and both its ends.
fn live(lab: &Lab, accepted: &Receiver<(TcpStream, SocketAddr)>, family: Family, name: &str) -> (TcpStream, TcpStream) {
    let mut client = connect(lab, at(Site::A, family, 1, 80));
    client.write_all(get(name).as_bytes()).unwrap();
    let (mut server, source) = accepted.recv_timeout(DEADLINE).unwrap();
    assert_eq!(source.ip(), client.local_addr().unwrap().ip());
    server.read_exact(&mut vec![0; get(name).len()]).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    server.write_all(answer).unwrap();
    client.read_exact(&mut vec![0; answer.len()]).unwrap();
    (client, server)
}

/// A request and its answer of a flow that lives.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    exchange_of("kept.example", client, server);
}

fn exchange_of(name: &str, client: &mut TcpStream, server: &mut TcpStream) {
    let request = get(name);
    client.write_all(request.as_bytes()).unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    server.read_exact(&mut vec![0; request.len()]).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    server.write_all(answer).unwrap();
    client.read_exact(&mut vec![0; answer.len()]).unwrap();
}

/// A socket of the client to a server of QUIC, and the server's.
fn quic(lab: &Lab, family: Family) -> (UdpSocket, UdpSocket) {
    let client = lab.client.run(|| UdpSocket::bind((client_address(family, 0), 0))).unwrap().unwrap();
    let server = at(Site::A, family, 2, 443);
    client.connect(server).unwrap();
    let sink = lab.server.run(|| UdpSocket::bind(("::", server.port()))).unwrap().unwrap();
    sink.set_read_timeout(Some(DEADLINE)).unwrap();
    (client, sink)
}

/// A reload is in force a moment before those who judge again have heard of it. Each attempt has a moment to arrive:
/// more at once than the server's socket has room for would cost it what comes afterwards.
fn assert_passes_by_and_by(client: &UdpSocket, sink: &UdpSocket, datagram: &[u8]) {
    sink.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let again = || {
        client.send(datagram).unwrap();
        sink.recv(&mut [0; 2000]).is_ok()
    };
    until("what is allowed now passes", again, |passes| *passes);
}

/// The next datagram of this client. Stragglers of another, of which only one had to arrive, are passed over.
fn heard(sink: &UdpSocket, client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 2000];
    loop {
        let (length, from) = sink.recv_from(&mut buffer).unwrap();
        if SocketAddr::new(from.ip().to_canonical(), from.port()) == client.local_addr().unwrap() {
            buffer.truncate(length);
            return buffer;
        }
    }
}

fn assert_silent(client: &mut TcpStream) {
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(client.take_error().unwrap().is_none());
}

fn assert_both_ways(lab: &Lab, client: &UdpSocket, server: SocketAddr, sink: &UdpSocket) {
    client.send(b"@short header").unwrap();
    let mut buffer = [0; 2000];
    let (_, from) = sink.recv_from(&mut buffer).unwrap();
    let source = client.local_addr().unwrap();
    assert_eq!((from.ip().to_canonical(), from.port()), (source.ip(), source.port()));
    answer(lab, server, source);
    client.recv(&mut buffer).unwrap();
}

/// A datagram from the very address and port that was asked.
pub(crate) fn answer(lab: &Lab, server: SocketAddr, to: SocketAddr) {
    let send = || {
        let mut outbox = Outbox::new(None).unwrap();
        outbox.push(server, to, b"@answer");
        outbox.flush();
        assert_eq!(outbox.dropped, 0);
    };
    lab.server.run(send).unwrap();
}

pub(crate) fn flight() -> Vec<u8> {
    flight_of("www.google.com")
}

/// A captured first flight of QUIC with this name, of one datagram.
pub(crate) fn flight_of(name: &str) -> Vec<u8> {
    let flights = include_str!("../data/quic-flights.txt");
    let fits = |line: &&str| line.split(' ').next() == Some(name) && line.split(' ').count() == 4;
    let hex = flights.lines().find(fits).unwrap().split(' ').nth(3).unwrap();
    let octet = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(octet).collect()
}
