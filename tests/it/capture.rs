//! The kernel's rules with real packets, without a proxy: what they hand over, what they drop, what they let alone.
//!
//! ```text
//! client 10.1.0.2 -- gateway (rules, sometimes a listener) -- server 203.0.113.0/24
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tidegate::config;
use tidegate::firewall::{
    Capture, Expression, FlowKey, FlowSet, Key, Listener, MARK, OnFailure, Rule, Ruleset, Verdict, render,
};
use tidegate::mode::demo::lab::{Lab, Site, client_address, gateway_address};
use tidegate::mode::demo::tap::{Packet, Tap};
use tidegate::policy::Transport;
use tidegate::policy::snapshot::Snapshot;
use tidegate::sys::capture;
use tidegate::sys::netns::Namespace;
use tidegate::sys::nft::NftSocket;
use tidegate::sys::rtnl::{Family, Rtnl};
use tidegate::sys::tcp;

use crate::inside::{in_lab, in_namespaces};

/// As a "next header" (RFC 8200 section 4.6).
const DESTINATION_OPTIONS: i32 = 60;

/// A port at which nobody listens.
const NOBODY: u16 = 9;

#[test]
fn rules_replace_those_that_stand_and_go_when_asked() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let rules = ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)));
                let mut nft = NftSocket::open().unwrap();
                assert!(!nft.is_installed().unwrap());
                for _ in 0..3 {
                    capture::install(&rules).unwrap();
                    assert!(nft.is_installed().unwrap());
                    assert_eq!(fwmark_rules(), 2, "one for each family");
                }
                for _ in 0..2 {
                    capture::remove().unwrap();
                    assert!(!nft.is_installed().unwrap());
                    assert_eq!(fwmark_rules(), 0);
                }
            })
            .unwrap();
    });
}

#[test]
fn a_refused_ruleset_names_its_object_and_leaves_the_old_rules() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let good = ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)));
                let mut nft = NftSocket::open().unwrap();
                nft.replace(&good).unwrap();
                nft.add_flow(FlowSet::Discarded, &flow(1), None).unwrap();
                let mut bad = good.clone();
                let missing =
                    Expression::InSet { key: vec![Key::DestinationPort], set: "nowhere".into(), negate: false };
                bad.chains.last_mut().unwrap().rules.push(Rule(vec![missing, Expression::Verdict(Verdict::Drop)]));
                let error = nft.replace(&bad).unwrap_err().to_string();
                assert!(error.contains("rule \"th dport @nowhere drop\" of chain forward"), "{error}");
                assert!(nft.remove_flow(FlowSet::Discarded, &flow(1)).unwrap(), "the old table stands, untouched");
            })
            .unwrap();
    });
}

#[test]
fn without_privilege_the_error_says_what_is_needed() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
                let error = capture::install(&ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)))).unwrap_err();
                assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            })
            .unwrap();
    });
}

#[test]
fn a_reload_changes_the_rules_and_keeps_discarded_flows() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let first = ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)));
                let second = ruleset(TWO_NETWORKS, &Capture::tcp(Listener::on(NOBODY)));
                capture::install(&first).unwrap();
                let mut nft = NftSocket::open().unwrap();
                nft.add_flow(FlowSet::Discarded, &flow(1), None).unwrap();
                capture::update(&first, &second).unwrap();
                nft.update(&second, &first).unwrap();
                assert!(nft.update(&second, &first).is_err(), "what stands is not the second: it was not all applied");
                assert!(nft.remove_flow(FlowSet::Discarded, &flow(1)).unwrap());
                // Whoever flushes the rules gets them back whole at the next reload.
                nft.remove().unwrap();
                capture::update(&first, &second).unwrap();
                nft.update(&second, &first).unwrap();
            })
            .unwrap();
    });
}

#[test]
fn flows_come_and_go_in_both_families_and_a_full_set_says_so() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let capture = Capture { discarded: 4, ..Capture::tcp(Listener::on(NOBODY)) };
                let mut nft = NftSocket::open().unwrap();
                nft.replace(&ruleset(OFFICE, &capture)).unwrap();
                let v6 = FlowKey {
                    transport: Transport::Udp,
                    client: "[fd00:1::2]:5000".parse().unwrap(),
                    remote: "[2001:db8:a::7]:443".parse().unwrap(),
                };
                for flow in [flow(1), v6] {
                    assert!(!nft.remove_flow(FlowSet::Discarded, &flow).unwrap());
                    for _ in 0..2 {
                        nft.add_flow(FlowSet::Discarded, &flow, Some(Duration::from_secs(9))).unwrap();
                    }
                    assert!(nft.remove_flow(FlowSet::Discarded, &flow).unwrap());
                    assert!(!nft.remove_flow(FlowSet::Discarded, &flow).unwrap());
                }
                let refused = (0..100).find_map(|n| nft.add_flow(FlowSet::Discarded, &flow(n), None).err()).unwrap();
                assert_eq!(refused.source.raw_os_error(), Some(nix::libc::ENFILE), "{refused}");
            })
            .unwrap();
    });
}

#[test]
fn thousands_of_protected_prefixes_install_in_one_transaction() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let prefix = |n| format!("{{ ip = \"10.{}.{}.0\", maskbits = 24 }}", n / 256, n % 256);
                let ips: Vec<String> = (0..2000).map(prefix).collect();
                let text = OFFICE.replace("{ ip = \"10.1.0.0\", maskbits = 24 }", &ips.join(", "));
                NftSocket::open().unwrap().replace(&ruleset(&text, &Capture::tcp(Listener::on(NOBODY)))).unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_host_that_does_not_forward_is_told_so() {
    in_lab(|lab| {
        assert_eq!(lab.gateway.run(|| capture::warnings(1)).unwrap(), [] as [String; 0]);
        let warnings = lab.client.run(|| capture::warnings(1)).unwrap();
        for key in ["net.ipv4.ip_forward is 0", "net.ipv6.conf.all.forwarding is 0"] {
            assert!(warnings.iter().any(|warning| warning.starts_with(key)), "{warnings:?}");
        }
    });
}

#[test]
fn a_host_without_ipv6_has_rules_all_the_same() {
    in_lab(|lab| {
        lab.gateway
            .run(|| {
                std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
                capture::install(&ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)))).unwrap();
                assert!(NftSocket::open().unwrap().is_installed().unwrap());
                capture::remove().unwrap();
            })
            .unwrap();
    });
}

/// A setting with which captured packets never arrive: that it is worth a warning.
#[test]
fn src_valid_mark_drops_what_is_captured() {
    in_lab(|lab| {
        let _listeners = install_with_listeners(lab, Capture::tcp);
        let destination = SocketAddr::new(Site::A.address(Family::V4, 7), 443);
        let connects = || lab.client.run(|| TcpStream::connect_timeout(&destination, A_MOMENT)).unwrap().is_ok();
        assert!(connects());
        lab.gateway.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/src_valid_mark", "1")).unwrap().unwrap();
        assert!(!connects());
        assert!(lab.gateway.run(|| capture::warnings(1)).unwrap()[0].contains("src_valid_mark"));
    });
}

/// R0: as after kill -9, the rules stand and nobody listens.
#[test]
fn with_rules_and_no_listener_nothing_inspected_reaches_the_server() {
    in_lab(|lab| {
        let capture = Capture { udp: Some(Listener::on(NOBODY)), ..Capture::tcp(Listener::on(NOBODY)) };
        lab.gateway.run(|| capture::install(&ruleset(OFFICE, &capture))).unwrap().unwrap();
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            for port in [80, 443] {
                try_connect(lab, family, port);
            }
            send_datagram(lab, family, 443, 100);
            try_connect(lab, family, 444);
            send_datagram(lab, family, 444, 100);
        }
        assert_eq!(count_ports(lab, &tap, |port| port == 80 || port == 443), 0);
        assert!(count_ports(lab, &tap, |port| port == 444) >= 4, "what is not inspected passes");
    });
}

#[test]
fn with_on_failure_open_what_nobody_takes_passes() {
    in_lab(|lab| {
        let open = Capture { on_failure: OnFailure::Open, ..Capture::tcp(Listener::on(NOBODY)) };
        lab.gateway.run(|| capture::install(&ruleset(OFFICE, &open))).unwrap().unwrap();
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            try_connect(lab, family, 443);
        }
        assert!(count_ports(lab, &tap, |port| port == 443) >= 2);
    });
}

/// A segment that is no SYN, of a connection that nobody holds: begun before tidegate, or held by one that died.
#[test]
fn a_connection_from_before_the_rules_is_cut_off() {
    in_lab(|lab| {
        for family in Family::BOTH {
            let listener = lab.server.run(|| TcpListener::bind("[::]:443")).unwrap().unwrap();
            let destination = SocketAddr::new(Site::A.address(family, 7), 443);
            let mut client = lab.client.run(|| TcpStream::connect_timeout(&destination, DEADLINE)).unwrap().unwrap();
            let (_server, _) = listener.accept().unwrap();
            lab.gateway
                .run(|| capture::install(&ruleset(OFFICE, &Capture::tcp(Listener::on(NOBODY)))))
                .unwrap()
                .unwrap();
            let tap = Tap::at_server(lab).unwrap();
            client.write_all(b"more").unwrap();
            assert_eq!(count_ports(lab, &tap, |port| port == 443), 0);
            lab.gateway.run(capture::remove).unwrap().unwrap();
        }
    });
}

#[test]
fn a_fragmented_datagram_to_an_inspected_port_is_dropped_whole() {
    in_lab(|lab| {
        let capture = Capture { udp: Some(Listener::on(NOBODY)), ..Capture::tcp(Listener::on(NOBODY)) };
        lab.gateway.run(|| capture::install(&ruleset(OFFICE, &capture))).unwrap().unwrap();
        let before = fragments_received(lab);
        for family in Family::BOTH {
            send_datagram(lab, family, 443, 9000);
        }
        let tap = Tap::at_server(lab).unwrap();
        assert_eq!(count_ports(lab, &tap, |port| port == 443), 0);
        assert_eq!(fragments_received(lab), before);
        for family in Family::BOTH {
            send_datagram(lab, family, 444, 9000);
        }
        assert!(count_ports(lab, &tap, |port| port == 444) >= 1);
        let after = fragments_received(lab);
        assert!(after[0] > before[0] && after[1] > before[1], "both families are counted: {before:?} {after:?}");
    });
}

#[test]
fn captured_flows_arrive_with_their_original_destination_and_the_server_hears_nothing() {
    in_lab(|lab| {
        let (v4, v6) = install_with_listeners(lab, Capture::tcp);
        let tap = Tap::at_server(lab).unwrap();
        for (family, listener) in [(Family::V4, v4), (Family::V6, v6)] {
            let destination = SocketAddr::new(Site::B.address(family, 7), 443);
            let mut client = lab.client.run(|| TcpStream::connect_timeout(&destination, DEADLINE)).unwrap().unwrap();
            client.write_all(b"hello").unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            assert_eq!(accepted.local_addr().unwrap(), destination);
            assert_eq!(peer, client.local_addr().unwrap());
            let mut bytes = [0; 5];
            accepted.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }
        assert_eq!(count_ports(lab, &tap, |port| port == 443), 0);
    });
}

/// Between the two steps of an installation, or when somebody takes the policy routes away.
#[test]
fn with_rules_and_a_listener_but_no_routes_nothing_reaches_the_server() {
    in_lab(|lab| {
        let _listeners = install_with_listeners(lab, Capture::tcp);
        lab.gateway
            .run(|| {
                let mut rtnl = Rtnl::open()?;
                for family in Family::BOTH {
                    rtnl.delete_fwmark_rule(family, MARK, MARK, tidegate::firewall::RULE_PRIORITY)?;
                }
                Ok::<_, tidegate::sys::rtnl::RtnlError>(())
            })
            .unwrap()
            .unwrap();
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            try_connect(lab, family, 443);
        }
        assert_eq!(count_ports(lab, &tap, |port| port == 443), 0);
    });
}

/// As after a destination NAT between the two hooks, or when another table has stopped the first.
#[test]
fn the_forward_hook_drops_what_the_first_hook_missed() {
    in_lab(|lab| {
        let capture = Capture { udp: Some(Listener::on(NOBODY)), ..Capture::tcp(Listener::on(NOBODY)) };
        let mut rules = ruleset(OFFICE, &capture);
        rules.chains.retain(|chain| chain.name != "prerouting");
        lab.gateway.run(|| capture::install(&rules)).unwrap().unwrap();
        let tap = Tap::at_server(lab).unwrap();
        for family in Family::BOTH {
            for port in [443, 444] {
                try_connect(lab, family, port);
                send_datagram(lab, family, port, 100);
            }
        }
        assert_eq!(count_ports(lab, &tap, |port| port == 443), 0);
        assert!(count_ports(lab, &tap, |port| port == 444) >= 4);
    });
}

#[test]
fn ipv6_extension_headers_hide_nothing() {
    in_lab(|lab| {
        let capture = Capture { udp: Some(Listener::on(NOBODY)), ..Capture::tcp(Listener::on(NOBODY)) };
        lab.gateway.run(|| capture::install(&ruleset(OFFICE, &capture))).unwrap().unwrap();
        let site = Site::A.address(Family::V6, 7);
        let server = |port| lab.server.run(|| UdpSocket::bind(("::", port))).unwrap().unwrap();
        let (inspected, free) = (server(443), server(444));
        let raw = lab
            .client
            .run(|| socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(DESTINATION_OPTIONS.into())))
            .unwrap()
            .unwrap();
        raw.bind(&SocketAddr::new(client_address(Family::V6, 0), 0).into()).unwrap();
        for port in [443, 444] {
            let packet = datagram_behind_options(client_address(Family::V6, 0), site, port);
            raw.send_to(&packet, &SocketAddr::new(site, 0).into()).unwrap();
        }
        free.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(free.recv(&mut [0; 8]).unwrap(), 0, "what was sent later has come");
        inspected.set_nonblocking(true).unwrap();
        assert_eq!(inspected.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn the_gateways_own_services_are_not_captured() {
    in_lab(|lab| {
        let _listeners = install_with_listeners(lab, Capture::tcp);
        for family in Family::BOTH {
            let own = SocketAddr::new(gateway_address(family), 443);
            let listener = lab.gateway.run(|| TcpListener::bind(own)).unwrap().unwrap();
            let client = lab.client.run(|| TcpStream::connect_timeout(&own, DEADLINE)).unwrap().unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
    });
}

#[test]
fn nobody_connects_to_a_listener_directly() {
    in_lab(|lab| {
        let (v4, v6) = install_with_listeners(lab, Capture::tcp);
        for listener in [v4, v6] {
            let own = listener.local_addr().unwrap();
            let outcome = lab.gateway.run(|| TcpStream::connect_timeout(&own, A_MOMENT)).unwrap();
            assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        }
    });
}

/// N4: the longest prefix whose Port covers the packet, in the kernel as in [`Snapshot::network_of`].
#[test]
fn the_longest_prefix_whose_port_covers_the_packet_decides() {
    in_lab(|lab| {
        let capture = Capture { udp: Some(Listener::on(NOBODY)), ..Capture::tcp(Listener::on(NOBODY)) };
        lab.gateway.run(|| capture::install(&ruleset(TWO_NETWORKS, &capture))).unwrap().unwrap();
        let tap = Tap::at_server(lab).unwrap();
        // By client: in the narrow Network for the ports of `web`, in it for all, not in it. It inspects port 444 alone.
        let cases = [
            [(80, true), (443, false), (444, false)],
            [(80, true), (443, true), (444, false)],
            [(80, false), (443, false), (444, true)],
        ];
        let cases =
            (0u8..).zip(cases).flat_map(|(client, of_client)| of_client.map(|(port, passes)| (client, port, passes)));
        for (client, port, passes) in cases {
            let source = SocketAddr::new(client_address(Family::V4, client), 0);
            let destination = SocketAddr::new(Site::A.address(Family::V4, client + 1), port);
            lab.client
                .run(|| {
                    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                    socket.bind(&source.into())?;
                    let _ = socket.connect_timeout(&destination.into(), A_MOMENT);
                    std::io::Result::Ok(())
                })
                .unwrap()
                .unwrap();
            let count = tap.count(lab, destination).unwrap();
            assert_eq!(count > 0, passes, "client {client} to port {port}: {count} packets");
        }
    });
}

pub(crate) fn install_with_listeners(
    lab: &Lab,
    capture: impl Fn(Listener) -> Capture + Sync,
) -> (TcpListener, TcpListener) {
    lab.gateway
        .run(|| {
            let v4 = listen("127.0.0.1:0");
            let v6 = listen("[::1]:0");
            let port = |listener: &TcpListener| Some(listener.local_addr().unwrap().port());
            let listener = Listener { v4: port(&v4), v6: port(&v6) };
            capture::install(&ruleset(OFFICE, &capture(listener))).unwrap();
            (v4, v6)
        })
        .unwrap()
}

fn listen(address: &str) -> TcpListener {
    let listener: OwnedFd = tcp::listen(address.parse().unwrap(), 16).unwrap();
    // A test that waits for a flow that never comes fails instead of hanging.
    socket2::SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).unwrap();
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(false).unwrap();
    listener
}

pub(crate) fn ruleset(text: &str, capture: &Capture) -> Ruleset {
    render(&snapshot(text), capture)
}

fn snapshot(text: &str) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidegate.toml");
    std::fs::write(&path, text).unwrap();
    config::load(&path).unwrap_or_else(|mistakes| panic!("{mistakes}")).snapshot(1)
}

fn fwmark_rules() -> usize {
    let mut rtnl = Rtnl::open().unwrap();
    Family::BOTH.iter().map(|family| rtnl.fwmark_rules(*family).unwrap().len()).sum()
}

fn flow(port: u16) -> FlowKey {
    FlowKey {
        transport: Transport::Tcp,
        client: SocketAddr::new([10, 1, 0, 2].into(), 1000 + port),
        remote: "203.0.113.7:443".parse().unwrap(),
    }
}

/// An IPv6 header's payload: eight octets of destination options, all padding (RFC 8200 section 4.6), then an empty
/// datagram.
fn datagram_behind_options(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { panic!("IPv6 alone has these") };
    let mut udp = [[0x30, 0x39], port.to_be_bytes(), [0, 8], [0, 0]].concat();
    let summed = [&from.octets()[..], &to.octets(), &[0, 0, 0, 8, 0, 0, 0, 17], &udp].concat();
    let sum: u32 = summed.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    udp[6..].copy_from_slice(&sum.to_be_bytes());
    [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat()
}

/// Whether it succeeds is not the question.
fn try_connect(lab: &Lab, family: Family, port: u16) {
    let destination = SocketAddr::new(Site::A.address(family, 7), port);
    let _ = lab.client.run(|| TcpStream::connect_timeout(&destination, A_MOMENT)).unwrap();
}

fn send_datagram(lab: &Lab, family: Family, port: u16, length: usize) {
    let destination = SocketAddr::new(Site::A.address(family, 7), port);
    let any: IpAddr = match family {
        Family::V4 => [0, 0, 0, 0].into(),
        Family::V6 => [0; 16].into(),
    };
    lab.client.run(|| UdpSocket::bind((any, 0))?.send_to(&vec![0; length], destination)).unwrap().unwrap();
}

fn count_ports(lab: &Lab, tap: &Tap, which: impl Fn(u16) -> bool) -> usize {
    let to_sites =
        |packet: &Packet| Site::BOTH.iter().any(|site| site.prefix(family(packet)).contains(&packet.destination.ip()));
    tap.packets(lab, |packet| to_sites(packet) && which(packet.destination.port())).unwrap().len()
}

fn family(packet: &Packet) -> Family {
    if packet.destination.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Fragments that the server was asked to put together: IPv4, IPv6.
fn fragments_received(lab: &Lab) -> [u64; 2] {
    lab.server
        .run(|| {
            let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut ip = v4.lines().filter(|line| line.starts_with("Ip:"));
            let at = ip.next().unwrap().split_whitespace().position(|word| word == "ReasmReqds").unwrap();
            let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let line = v6.lines().find(|line| line.starts_with("Ip6ReasmReqds")).unwrap();
            [ip.next().unwrap().split_whitespace().nth(at).unwrap(), line.split_whitespace().nth(1).unwrap()]
                .map(|number| number.parse().unwrap())
        })
        .unwrap()
}

const OFFICE: &str = r#"
name = "edge-1"
[[policy]]
name = "out"
default = "allow"
[[network]]
name = "office"
ips = [{ ip = "10.1.0.0", maskbits = 24 }, { ip = "fd00:1::", maskbits = 64 }]
directions = "outbound"
outbound = { policy = "out", drop = "discard" }
[network.inspection]
type = "prefer-both"
"#;

const TWO_NETWORKS: &str = r#"
name = "edge-1"
[[policy]]
name = "out"
default = "allow"
[[port]]
name = "web"
protocols = [{ protocol = "tcp", ports = ["79-80", "444"] }]
[[network]]
name = "wide"
ips = [{ ip = "0.0.0.0", maskbits = 0 }]
directions = "outbound"
outbound = { policy = "out", drop = "discard" }
[network.inspection]
type = "prefer-both"
[[network]]
name = "narrow"
ips = [{ ip = "10.1.0.2", maskbits = 31, port = "web" }, { ip = "10.1.0.3", maskbits = 32 }]
directions = "outbound"
outbound = { policy = "out", drop = "discard" }
[network.inspection]
type = "prefer-both"
tls_ports = [444]
http_ports = []
"#;

/// Far beyond what anything here needs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Long enough for a SYN to be sent: nobody waits for an answer.
const A_MOMENT: Duration = Duration::from_millis(50);
