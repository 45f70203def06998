//! What a client sees of a captured flow that is ended, packet by packet (SPEC E1).
//!
//! ```text
//! client (tap) -- gateway (rules, a listener that ends what it accepts) -- server
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::{Domain, Socket, Type};

use tidegate::firewall::Capture;
use tidegate::mode::demo::lab::{Lab, Site, client_address, gateway_address};
use tidegate::mode::demo::tap::{Kind, Packet, Tap};
use tidegate::policy::DropAction;
use tidegate::sys::ending::{Ended, Ender};
use tidegate::sys::rtnl::Family;

use crate::capture::{DEADLINE, install_with_listeners};
use crate::inside::in_lab;

#[test]
fn a_discarded_client_hears_nothing_more_whatever_it_sends() {
    in_lab(|lab| {
        for (family, listener) in listeners(lab, 65_536) {
            let (mut client, accepted) = captured(lab, family, &listener, 0);
            let tap = Tap::at_client(lab).unwrap();
            let mut ender = ender(lab);
            assert!(matches!(ender.end(accepted, DropAction::Discard), Ended::AsAsked));
            client.write_all(b"is anybody there?").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(to_client(lab, &tap), []);
            // Leaves with a reset of its own.
            let local = client.local_addr().unwrap();
            socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(client);
            assert_eq!(to_client(lab, &tap), []);

            let (again, _accepted) = captured(lab, family, &listener, local.port());
            assert_eq!(again.local_addr().unwrap(), local, "the same ports, a new flow: it is taken in");
        }
    });
}

#[test]
fn a_reset_client_knows_at_once() {
    in_lab(|lab| {
        for (family, listener) in listeners(lab, 65_536) {
            let (mut client, accepted) = captured(lab, family, &listener, 0);
            let tap = Tap::at_client(lab).unwrap();
            assert!(matches!(ender(lab).end(accepted, DropAction::TcpReset), Ended::AsAsked));
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(to_client(lab, &tap), [Kind::Reset]);
        }
    });
}

#[test]
fn an_unreachable_client_is_told_by_the_gateway_about_its_own_segment_and_then_reset() {
    in_lab(|lab| {
        for (family, listener) in listeners(lab, 65_536) {
            let (mut client, accepted) = captured(lab, family, &listener, 0);
            let tap = Tap::at_client(lab).unwrap();
            let before = misquotes(lab);
            assert!(matches!(ender(lab).end(accepted, DropAction::IcmpUnreachable), Ended::AsAsked));
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(to_client(lab, &tap), [prohibited(family), Kind::Reset]);
            let from_gateway = |packet: &Packet| packet.source.ip() == gateway_address(family);
            let icmp = |packet: &Packet| from_gateway(packet) && packet.kind == prohibited(family);
            assert_eq!(tap.packets(lab, icmp).unwrap().len(), 1, "it comes from the gateway's own address");
            assert_eq!(misquotes(lab), before, "the client's kernel found the connection that the quote is about");
        }
    });
}

#[test]
fn a_full_table_of_discarded_flows_resets_and_says_why() {
    in_lab(|lab| {
        for (family, listener) in listeners(lab, 2) {
            let mut ender = ender(lab);
            let refused = (0..50).find_map(|_| {
                let (client, accepted) = captured(lab, family, &listener, 0);
                match ender.end(accepted, DropAction::Discard) {
                    Ended::AsAsked => None,
                    Ended::Reset { why } => Some((client, why)),
                }
            });
            let (mut client, why) = refused.unwrap();
            assert!(why.to_string().contains("discarded"), "{why}");
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn without_the_privilege_a_discarded_flow_is_reset_rather_than_kept() {
    in_lab(|lab| {
        for (family, listener) in listeners(lab, 65_536) {
            let (mut client, accepted) = captured(lab, family, &listener, 0);
            let outcome = lab
                .gateway
                .run(|| {
                    let mut ender = Ender::open().unwrap();
                    caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
                    ender.end(accepted, DropAction::Discard)
                })
                .unwrap();
            assert!(matches!(outcome, Ended::Reset { .. }), "{outcome:?}");
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_refused_datagram_is_an_error_at_the_socket_that_sent_it() {
    in_lab(|lab| {
        let ender = ender(lab);
        let tap = Tap::at_client(lab).unwrap();
        for family in Family::BOTH {
            let remote = SocketAddr::new(Site::B.address(family, 9), 443);
            let client = lab.client.run(|| UdpSocket::bind((client_address(family, 0), 0))).unwrap().unwrap();
            client.connect(remote).unwrap();
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            ender.refuse_datagram(client.local_addr().unwrap(), remote, b"quic").unwrap();
            let error = client.recv(&mut [0]).unwrap_err();
            let expected = match family {
                Family::V4 => nix::libc::EHOSTUNREACH,
                Family::V6 => nix::libc::EACCES,
            };
            assert_eq!(error.raw_os_error(), Some(expected), "{error}");
            let icmp = tap.packets(lab, |packet| packet.source.ip() == gateway_address(family)).unwrap();
            assert!(icmp.iter().any(|packet| packet.kind == prohibited(family)), "{icmp:?}");
        }
    });
}

fn listeners(lab: &Lab, discarded: u32) -> [(Family, TcpListener); 2] {
    let (v4, v6) = install_with_listeners(lab, |listener| Capture { discarded, ..Capture::tcp(listener) });
    [(Family::V4, v4), (Family::V6, v6)]
}

fn ender(lab: &Lab) -> Ender {
    lab.gateway.run(Ender::open).unwrap().unwrap()
}

/// A connection as both ends of its captured half have it, after the client's first bytes. Port 0: any.
fn captured(lab: &Lab, family: Family, listener: &TcpListener, port: u16) -> (TcpStream, OwnedFd) {
    let from = SocketAddr::new(client_address(family, 0), port);
    let destination = SocketAddr::new(Site::B.address(family, 9), 443);
    let open = || {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&destination.into(), DEADLINE)?;
        io::Result::Ok(TcpStream::from(socket))
    };
    let mut client = lab.client.run(open).unwrap().unwrap();
    client.write_all(b"hello").unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    (client, accepted.into())
}

/// The kinds of what came to the client, whoever sent it, but for the tap's own sentinels.
fn to_client(lab: &Lab, tap: &Tap) -> Vec<Kind> {
    let sent_here = |packet: &Packet| Family::BOTH.iter().any(|f| packet.destination.ip() == client_address(*f, 0));
    let seen = tap.packets(lab, |packet| sent_here(packet) && packet.kind != Kind::Datagram).unwrap();
    seen.into_iter().map(|packet| packet.kind).collect()
}

fn prohibited(family: Family) -> Kind {
    match family {
        Family::V4 => Kind::Icmp { kind: 3, code: 13 },
        Family::V6 => Kind::Icmp { kind: 1, code: 1 },
    }
}

/// ICMP errors at the client that quote no connection of its own, or a sequence number that it never sent.
fn misquotes(lab: &Lab) -> [u64; 3] {
    lab.client
        .run(|| {
            let row = |file: &str, protocol: &str, column: &str| -> u64 {
                let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
                let mut rows = text.lines().filter(|line| line.starts_with(protocol));
                let at = rows.next().unwrap().split_whitespace().position(|word| word == column).unwrap();
                rows.next().unwrap().split_whitespace().nth(at).unwrap().parse().unwrap()
            };
            let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let v6 = v6.lines().find_map(|line| line.strip_prefix("Icmp6InErrors")).unwrap();
            [
                row("snmp", "Icmp:", "InErrors"),
                row("netstat", "TcpExt:", "OutOfWindowIcmps"),
                v6.trim().parse().unwrap(),
            ]
        })
        .unwrap()
}
