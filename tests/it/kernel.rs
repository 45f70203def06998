//! What nobody inspects, judged in the kernel under a running tidegate: what peers see, and what is recorded.
//!
//! ```text
//! client 10.1.0.2 (protected) -- gateway (tidegate) -- server (site A allowed, site B blocked)
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde_json::Value;
use tidegate::firewall::{
    Capture, Chain, Connection, Expression, Hook, Listener, MARK, RULE_PRIORITY, Rule, Ruleset, TABLE, render,
};
use tidegate::list::{DomainSet, List, ListVerdict, PrefixSet};
use tidegate::mode::demo::lab::{Site, client_address};
use tidegate::mode::demo::tap::{Kind, Tap};
use tidegate::policy::network::{Dns, Mode, Network, ProtectedIp, Rule as Outbound};
use tidegate::policy::rules::Policy;
use tidegate::policy::snapshot::Snapshot;
use tidegate::policy::{DropAction, IpVerdict};
use tidegate::sys::capture;
use tidegate::sys::nft::NftSocket;
use tidegate::sys::rtnl::{self, Family, Rtnl};

use crate::gateway::{DEADLINE, Gateway, at, get, is_from, listen, protected};
use crate::inside::in_lab;

/// No inspection. Outbound: site B is blocked by a list. Inbound: site A is allowed by a list, all else blocked.
fn both_directions(mode: &str, drop: &str) -> String {
    let prefixes = |site: Site| Family::BOTH.map(|family| format!("\"{}\"", site.prefix(family))).join(", ");
    let ips = Family::BOTH.map(protected);
    format!(
        r#"
name = "edge-1"
[[list]]
name = "site-a"
verdict = "allow"
entries = [{}]
[[list]]
name = "site-b"
verdict = "block"
entries = [{}]
[[policy]]
name = "out"
default = "allow"
lists = ["site-b"]
[[policy]]
name = "in"
default = "block"
lists = ["site-a"]
[[network]]
name = "clients"
mode = "{mode}"
ips = [{}]
outbound = {{ policy = "out", drop = "{drop}" }}
inbound = {{ policy = "in", drop = "{drop}" }}
"#,
        prefixes(Site::A),
        prefixes(Site::B),
        ips.join(", "),
    )
}

/// E2, outbound: before any handshake, and nothing reaches the server.
#[test]
fn a_blocked_client_sees_its_networks_drop_action_over_tcp_and_udp() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        for (drop, over_tcp) in [
            ("tcp-reset", [ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused]),
            ("icmp-unreachable", [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied]),
            ("discard", [ErrorKind::TimedOut, ErrorKind::TimedOut]),
        ] {
            let gateway = Gateway::start(lab, &both_directions("enforce", drop));
            for (family, expected) in Family::BOTH.into_iter().zip(over_tcp) {
                let blocked = at(Site::B, family, 1, 8443);
                let patience = if drop == "discard" { A_MOMENT } else { DEADLINE };
                let tried = lab.client.run(|| TcpStream::connect_timeout(&blocked, patience)).unwrap();
                assert_eq!(tried.unwrap_err().kind(), expected, "{drop} {blocked}");
                // No protocol but TCP has resets: all others are told by ICMP.
                let over_udp = match (drop, family) {
                    ("discard", _) => ErrorKind::WouldBlock,
                    (_, Family::V4) => ErrorKind::HostUnreachable,
                    (_, Family::V6) => ErrorKind::PermissionDenied,
                };
                assert_eq!(lab.client.run(|| ask_udp(blocked, patience)).unwrap(), over_udp, "{drop} {blocked}");
                assert_eq!(tap.count(lab, blocked).unwrap(), 0);
            }
            gateway.stop();
        }
    });
}

/// V5: entries end by the clock of the host, whatever becomes of it.
#[test]
fn entries_end_by_the_clock_of_the_host_when_it_was_set() {
    in_lab(|lab| {
        let (accepted, now) = (listen(lab, 8443), SystemTime::now());
        let remotes = Family::BOTH.map(|family| at(Site::B, family, 1, 8443));
        let ending = remotes.map(|remote| (IpNet::from(remote.ip()), Some(now + Duration::from_secs(3600))));
        let ruleset = blocking(ending.into_iter().collect());
        lab.gateway.run(|| capture::install(&ruleset)).unwrap().unwrap();
        let hour = Duration::from_secs(3600);
        for (set_to, blocked) in [(now, true), (now + 2 * hour, false), (now - 9 * hour, true), (now + hour, false)] {
            lab.gateway.run(|| capture::renew(&ruleset, set_to)).unwrap().unwrap();
            for remote in remotes {
                let tried = lab.client.run(|| TcpStream::connect_timeout(&remote, DEADLINE)).unwrap();
                assert_eq!(tried.is_err(), blocked, "{remote} {set_to:?}");
                if !blocked {
                    accepted.recv_timeout(DEADLINE).unwrap();
                }
            }
        }
    });
}

/// The rules of a Network of all hosts, whose flows to these addresses are reset.
fn blocking(prefixes: PrefixSet) -> Ruleset {
    let verdict = ListVerdict::Block;
    let list = Arc::new(List { name: "ending".into(), verdict, domains: DomainSet::default(), prefixes });
    let policy = Policy {
        name: "out".into(),
        default: IpVerdict::Allow,
        lists: vec![list],
        thresholds: Default::default(),
        asns: None,
        countries: None,
        fingerprints: Vec::new(),
    };
    let ips = ["0.0.0.0/0", "::/0"].map(|all| ProtectedIp { prefix: all.parse().unwrap(), port: None });
    let network = Network {
        name: "clients".into(),
        description: String::new(),
        mode: Mode::Enforce,
        ips: ips.to_vec(),
        outbound: Some(Outbound { policy: Arc::new(policy), drop: DropAction::TcpReset }),
        inbound: None,
        inspection: None,
        dns: Dns::default(),
    };
    let snapshot = Snapshot::new("edge-1".into(), 1, vec![Arc::new(network)]);
    render(&snapshot, &Capture::tcp(Listener { v4: None, v6: None }))
}

/// N5: who opens a flow is judged, and the other end may answer.
#[test]
fn flows_are_judged_by_who_opens_them_and_replies_pass() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &both_directions("enforce", "discard"));
        let accepted = listen(lab, 8443);
        let at_client = Tap::at_client(lab).unwrap();
        for family in Family::BOTH {
            // Outbound to an address that inbound does not allow: the replies come all the same.
            let server = SocketAddr::new(tidegate::mode::demo::lab::server_address(family), 8443);
            let mut client = lab.client.run(|| TcpStream::connect_timeout(&server, DEADLINE)).unwrap().unwrap();
            let (mut at_server, source) = accepted.recv_timeout(DEADLINE).unwrap();
            assert_eq!(source, client.local_addr().unwrap());
            at_server.write_all(b"reply").unwrap();
            let mut reply = [0; 5];
            client.read_exact(&mut reply).unwrap();

            let protected = SocketAddr::new(client_address(family, 0), 2222);
            let listener = lab.client.run(|| TcpListener::bind(protected)).unwrap().unwrap();
            // From that same address nobody may open a flow inwards.
            assert!(lab.server.run(|| TcpStream::connect_timeout(&protected, A_MOMENT)).unwrap().is_err());
            assert_eq!(at_client.count(lab, protected).unwrap(), 0, "not even a SYN");
            // From site A one may, and outbound has no say in the answer.
            let remote = at(Site::A, family, 9, 0);
            let mut remote = lab.server.run(|| connect_from(remote, protected)).unwrap();
            let (mut inside, _) = listener.accept().unwrap();
            inside.write_all(b"reply").unwrap();
            remote.read_exact(&mut reply).unwrap();
        }
        gateway.stop();
    });
}

/// A reply to a client whose own port is one that is inspected opens no flow: it must reach that client.
#[test]
fn replies_to_an_inspected_port_are_not_captured() {
    in_lab(|lab| {
        let text = both_directions("enforce", "discard") + "[network.inspection]\ntype = \"prefer-both\"\n";
        let gateway = Gateway::start(lab, &text);
        for family in Family::BOTH {
            let protected = SocketAddr::new(client_address(family, 0), 2222);
            let listener = lab.client.run(|| TcpListener::bind(protected)).unwrap().unwrap();
            for port in [443, 53, 80] {
                let remote = at(Site::A, family, 9, port);
                let mut remote = lab.server.run(|| connect_from(remote, protected)).unwrap();
                let (mut inside, _) = listener.accept().unwrap();
                inside.write_all(b"reply").unwrap();
                remote.read_exact(&mut [0; 5]).unwrap();
            }
        }
        gateway.stop();
    });
}

/// A protected server's flows are judged by name under its Network's inbound policy, and keep their source.
#[test]
fn inbound_flows_are_inspected_too() {
    in_lab(|lab| {
        let names = "[[list]]\nname = \"names\"\nverdict = \"block\"\nentries = [\"blocked.example\"]\n";
        let text = both_directions("enforce", "tcp-reset")
            .replace("lists = [\"site-a\"]", "lists = [\"site-a\", \"names\"]")
            .replace("[[policy]]\nname = \"out\"", &format!("{names}[[policy]]\nname = \"out\""))
            + "[network.inspection]\ntype = \"prefer-both\"\n";
        let gateway = Gateway::start(lab, &text);
        let at_client = Tap::at_client(lab).unwrap();
        for family in Family::BOTH {
            let protected = SocketAddr::new(client_address(family, 1), 80);
            let listener = lab.client.run(|| TcpListener::bind(protected)).unwrap().unwrap();
            let mut blocked = lab.server.run(|| connect_from(at(Site::A, family, 9, 0), protected)).unwrap();
            blocked.write_all(get("blocked.example").as_bytes()).unwrap();
            let ended = blocked.read(&mut [0; 1]).unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
            assert_eq!(at_client.count(lab, protected).unwrap(), 0, "not even a SYN");
            let record = gateway.verdict_on(blocked.local_addr().unwrap());
            assert_eq!((&record["direction"], &record["domain"]), (&"inbound".into(), &"blocked.example".into()));

            let mut allowed = lab.server.run(|| connect_from(at(Site::A, family, 9, 0), protected)).unwrap();
            allowed.write_all(get("other.example").as_bytes()).unwrap();
            let (mut inside, source) = listener.accept().unwrap();
            assert_eq!(source.ip(), allowed.local_addr().unwrap().ip());
            inside.read_exact(&mut [0; 16]).unwrap();
        }
        gateway.stop();
    });
}

#[test]
fn each_new_flow_is_recorded_once_with_who_judged_it_and_why() {
    in_lab(|lab| {
        let _accepted = listen(lab, 8443);
        let gateway = Gateway::start(lab, &both_directions("enforce", "tcp-reset"));
        for family in Family::BOTH {
            for (site, verdict, reason, list) in
                [(Site::A, "allow", "DEFAULT", Value::Null), (Site::B, "block", "BLOCK_LIST", "site-b".into())]
            {
                let destination = at(site, family, 3, 8443);
                let (source, _) = lab.client.run(|| datagrams(client_address(family, 2), destination, 5)).unwrap();
                let record = gateway.verdict_on(source);
                for (field, value) in [
                    ("kind", "ip".into()),
                    ("enforcer", "edge-1".into()),
                    ("network", "clients".into()),
                    ("policy", "out".into()),
                    ("direction", "outbound".into()),
                    ("protocol", "udp".into()),
                    ("source", source.ip().to_string().into()),
                    ("destination", destination.ip().to_string().into()),
                    ("destination_port", 8443.into()),
                    ("ip_verdict", verdict.into()),
                    ("verdict", verdict.into()),
                    ("reason", reason.into()),
                    ("list", list.clone()),
                    ("action", if verdict == "block" { "tcp-reset".into() } else { Value::Null }),
                ] {
                    assert_eq!(record[field], value, "{field} of {record}");
                }
                assert_eq!(of_flow(&gateway, source), 1);
            }
        }
        gateway.stop();
    });
}

/// N8: all is recorded as it would have been, and nothing is blocked.
#[test]
fn a_monitored_network_passes_and_records_what_it_would_have_done() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &both_directions("monitor", "discard"));
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            let blocked = at(Site::B, family, 3, 9000);
            let (source, _) = lab.client.run(|| datagrams(client_address(family, 2), blocked, 1)).unwrap();
            assert_eq!(tap.count(lab, blocked).unwrap(), 1);
            let record = gateway.verdict_on(source);
            assert_eq!((&record["verdict"], &record["action"]), (&"block".into(), &"monitor".into()), "{record}");
        }
        gateway.stop();
    });
}

/// A scanner on the outside: discarded means not one packet in answer.
#[test]
fn a_discarding_network_shows_a_scanner_nothing() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &both_directions("enforce", "discard"));
        let at_server = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            let remote = at(Site::B, family, 9, 0);
            for port in [22, 80, 443, 2222] {
                let protected = SocketAddr::new(client_address(family, 0), port);
                lab.server.run(|| start_connecting(remote, protected)).unwrap();
                lab.server.run(|| datagrams(remote.ip(), protected, 1)).unwrap();
            }
        }
        let from_client = at_server.packets(lab, |packet| !matches!(packet.kind, Kind::Datagram)).unwrap();
        assert_eq!(from_client, []);
        gateway.stop();
    });
}

/// R0: what is taken out of the kernel comes back by itself.
#[test]
fn rules_and_routes_that_somebody_removes_are_put_back() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &both_directions("enforce", "tcp-reset"));
        let blocked = at(Site::B, Family::V4, 1, 8443);
        let refused = || {
            let tried = lab.client.run(|| TcpStream::connect_timeout(&blocked, A_MOMENT)).unwrap();
            tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        let delivers = || lab.gateway.run(|| Rtnl::open().unwrap().delivers(rtnl::Family::V6, MARK).unwrap()).unwrap();
        assert!(refused() && delivers());
        let meddle = |with: &(dyn Fn() + Sync)| {
            let before = gateway.enforcer.messages().len();
            lab.gateway.run(with).unwrap();
            let said = gateway.enforcer.message_after(before, |line| line.contains("put back"), DEADLINE);
            assert!(said.is_some(), "{:#?}", gateway.enforcer.messages());
        };
        meddle(&|| NftSocket::open().unwrap().remove().unwrap());
        assert!(refused());
        meddle(&|| {
            Rtnl::open().unwrap().delete_fwmark_rule(rtnl::Family::V6, MARK, MARK, RULE_PRIORITY).unwrap();
        });
        assert!(delivers());
        let ended = gateway.stop();
        let counted = ended.messages.iter().any(|line| line.contains("rules_restored=2"));
        assert!(counted, "{:#?}", ended.messages);
        let recorded = ended.records().into_iter().filter(|record| record["reason"] == "RULES_RESTORED").count();
        assert_eq!(recorded, 2, "{:#?}", ended.lines);
    });
}

/// The other entries of the same set stay: nothing but the entry itself tells of it.
#[test]
fn an_entry_of_a_list_that_somebody_removes_is_put_back() {
    in_lab(|lab| {
        let mine = |family| format!("\"{}\"", Site::B.prefix(family));
        // More than are looked at in every round.
        let others = (0..100).map(|i| format!("\"192.{i}.2.0/24\", \"2001:db8:7:{i:x}0::/64\", ")).collect::<String>();
        let all = format!("entries = [{others}");
        let whole = both_directions("enforce", "tcp-reset").replace("entries = [\"1", &format!("{all}\"1"));
        let whole = whole.replace("entries = [\"2", &format!("{all}\"2"));
        let gateway = Gateway::start(lab, &whole);
        for family in Family::BOTH {
            let blocked = at(Site::B, family, 1, 8443);
            let refused = || {
                let tried = lab.client.run(|| TcpStream::connect_timeout(&blocked, A_MOMENT)).unwrap();
                tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            };
            assert!(refused());
            let before = gateway.enforcer.messages().len();
            let capture = Capture::tcp(Listener { v4: None, v6: None });
            let [standing, without] = [whole.clone(), whole.replace(&mine(family), "\"192.0.2.7\"")]
                .map(|text| crate::capture::ruleset(&text, &capture));
            lab.gateway.run(|| NftSocket::open().unwrap().update(&standing, &without)).unwrap().unwrap();
            let said = gateway.enforcer.message_after(before, |line| line.contains("put back"), DEADLINE);
            assert!(said.is_some(), "{:#?}", gateway.enforcer.messages());
            assert!(refused());
        }
        let ended = gateway.stop();
        let counted = ended.messages.iter().any(|line| line.contains("rules_restored=2"));
        assert!(counted, "{:#?}", ended.messages);
    });
}

/// Connection tracking may know a flow that nobody ever judged: it began before there were rules.
#[test]
fn a_flow_from_before_the_rules_is_judged_all_the_same() {
    in_lab(|lab| {
        let tracking = Rule(vec![Expression::Connection(&[Connection::Established]), Expression::Counter]);
        let chain = Chain::at(Hook::Forward, 0, "forward", vec![tracking]);
        let only_tracking = Ruleset { table: TABLE, sets: Vec::new(), lists: Vec::new(), chains: vec![chain] };
        lab.gateway.run(|| NftSocket::open().unwrap().replace(&only_tracking)).unwrap().unwrap();
        let accepted = listen(lab, 8443);
        let tap = Tap::at_server(lab).unwrap();
        let flows = [Site::A, Site::B].map(|site| {
            let destination = at(site, Family::V4, 1, 8443);
            let client = lab.client.run(|| TcpStream::connect_timeout(&destination, DEADLINE)).unwrap().unwrap();
            (client, accepted.recv_timeout(DEADLINE).unwrap().0, destination)
        });
        let capture = Capture::tcp(Listener { v4: None, v6: None });
        let rules = crate::capture::ruleset(&both_directions("enforce", "discard"), &capture);
        lab.gateway.run(|| capture::install(&rules)).unwrap().unwrap();
        let [(mut allowed, mut heard, _), (mut blocked, _, destination)] = flows;
        let before = tap.count(lab, destination).unwrap();
        for flow in [&mut allowed, &mut blocked] {
            flow.write_all(b"more").unwrap();
        }
        heard.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(tap.count(lab, destination).unwrap(), before, "not a segment more");
    });
}

/// Whatever a reload does to a list, what is blocked by the old and the new policy never passes, and what both allow
/// always does.
#[test]
fn a_list_that_changes_is_never_less_or_more_than_the_old_or_the_new_one() {
    in_lab(|lab| {
        let base = both_directions("enforce", "discard");
        let with = |more: &str| {
            let text = base.replace("[[policy]]\nname = \"out\"", &format!("{more}[[policy]]\nname = \"out\""));
            crate::capture::ruleset(
                &text.replace("lists = [\"site-b\"]", "lists = [\"site-b\", \"changing\"]"),
                &Capture::tcp(Listener { v4: None, v6: None }),
            )
        };
        let list = |entries: &str| {
            format!("[[list]]\nname = \"changing\"\nverdict = \"block\"\nentries = [\"198.51.100.1\", {entries}]\n")
        };
        let first = with(&list("\"198.51.100.2\", \"198.51.100.64/28\", \"2001:db8:a::2\""));
        let second = with(&list("\"198.51.100.3\", \"198.51.100.64/27\""));
        lab.gateway.run(|| capture::install(&first)).unwrap().unwrap();
        let tap = Tap::at_server(lab).unwrap();
        let [always_blocked, blocked_first, blocked_second, always_allowed] =
            [1, 2, 3, 4].map(|host| at(Site::A, Family::V4, host, 9000));
        let sent = std::sync::atomic::AtomicUsize::new(0);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for destination in [always_blocked, always_allowed] {
                        // A socket of its own, and so a flow of its own.
                        lab.client.run(|| datagrams(client_address(Family::V4, 0), destination, 1)).unwrap();
                    }
                    sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
            let mut nft = lab.gateway.run(NftSocket::open).unwrap().unwrap();
            for _ in 0..150 {
                nft.update(&first, &second).unwrap();
                nft.update(&second, &first).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(sent.load(std::sync::atomic::Ordering::Relaxed) > 20);
        assert_eq!(tap.count(lab, always_blocked).unwrap(), 0);
        assert_eq!(tap.count(lab, always_allowed).unwrap(), sent.load(std::sync::atomic::Ordering::Relaxed));
        for (from, to, passes) in [(&first, &second, [true, false]), (&second, &first, [false, true])] {
            lab.gateway.run(|| capture::update(from, to)).unwrap().unwrap();
            for (destination, passes) in [blocked_first, blocked_second].into_iter().zip(passes) {
                let before = tap.count(lab, destination).unwrap();
                lab.client.run(|| datagrams(client_address(Family::V4, 0), destination, 1)).unwrap();
                assert_eq!(tap.count(lab, destination).unwrap() > before, passes, "{destination}");
            }
        }
    });
}

fn of_flow(gateway: &Gateway, source: SocketAddr) -> usize {
    gateway.enforcer.records().iter().filter(|record| is_from(record, source)).count()
}

/// The error that a connected socket has in the end.
fn ask_udp(destination: SocketAddr, patience: Duration) -> ErrorKind {
    let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(destination).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send(b"question").unwrap();
    socket.recv(&mut [0; 16]).unwrap_err().kind()
}

fn datagrams(source: std::net::IpAddr, destination: SocketAddr, count: usize) -> (SocketAddr, UdpSocket) {
    let socket = UdpSocket::from(socket_at(SocketAddr::new(source, 0), socket2::Type::DGRAM));
    for _ in 0..count {
        socket.send_to(b"datagram", destination).unwrap();
    }
    (socket.local_addr().unwrap(), socket)
}

fn connect_from(source: SocketAddr, destination: SocketAddr) -> TcpStream {
    let socket = socket_at(source, socket2::Type::STREAM);
    socket.connect_timeout(&destination.into(), DEADLINE).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.into()
}

fn start_connecting(source: SocketAddr, destination: SocketAddr) {
    let socket = socket_at(source, socket2::Type::STREAM);
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&destination.into());
}

/// The sites' addresses are routed to the server, and not on its link.
fn socket_at(source: SocketAddr, kind: socket2::Type) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::for_address(source), kind, None).unwrap();
    if source.is_ipv6() {
        socket.set_freebind_v6(true).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    socket.bind(&source.into()).unwrap();
    socket
}

/// Long enough for a packet to be answered: what is discarded never is.
const A_MOMENT: Duration = Duration::from_millis(150);
