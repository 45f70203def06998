//! Paths on which something narrower lies behind the gateway: what it says about a flow that is taken here reaches the
//! gateway, which alone can send less at a time, and not the host in whose name the gateway has sent.
//!
//! ```text
//! host === client (routes) -- gateway (tidegate run) -- server (routes) === host
//!      ^ packets of 1280 octets at most, towards the host            ^
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use ipnet::IpNet;
use tidegate::mode::demo::client::{self, Request};
use tidegate::mode::demo::lab::{Lab, Site, client_address, server_address};
use tidegate::mode::demo::tap::{Kind, Packet, Tap};
use tidegate::sys::netns::Namespace;
use tidegate::sys::rtnl::{Family, Rtnl};

use crate::gateway::{DEADLINE, Gateway, configuration};
use crate::inside::in_lab;
use crate::nat;

/// Of the client's network, but behind it.
const CLIENT: [&str; 2] = ["10.1.0.200", "fd00:1::c8"];
const SERVER: [&str; 2] = ["192.0.2.80", "2001:db8:c::80"];
const ROUTER: [&str; 2] = ["10.9.0.1/24", "fd00:9::1/64"];
const HOST: [&str; 2] = ["10.9.0.2/24", "fd00:9::2/64"];
const LINK_LOCAL: [&str; 2] = ["fe80::1/64", "fe80::2/64"];

/// As small as a link for IPv6 may be.
const NARROW: u32 = 1280;
const SHORT: usize = 100;
const LONG: usize = 200_000;

/// A host at `addresses` behind a link that is narrow towards it, and wide from it: it asks for segments that do not
/// fit. The gateway reaches it over `link` by `router`, of which `near` are the addresses.
fn behind(lab: &Lab, router: &Namespace, link: &str, near: fn(Family) -> IpAddr, addresses: [&str; 2]) -> Namespace {
    let host = Namespace::new().unwrap();
    let prefix = |text: &str| text.parse::<IpNet>().unwrap();
    let everywhere = |family| match family {
        Family::V4 => prefix("0.0.0.0/0"),
        Family::V6 => prefix("::/0"),
    };
    let end = |name: &str, own: [&str; 2], link_local: &str| {
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.set_up(name).unwrap();
        for address in [own[0], own[1], link_local] {
            rtnl.add_address(name, prefix(address)).unwrap();
        }
        rtnl
    };
    host.run(|| Rtnl::open().unwrap().add_veth("eth0", "narrow0", router.as_fd()).unwrap()).unwrap();
    router
        .run(|| {
            let mut rtnl = end("narrow0", ROUTER, LINK_LOCAL[0]);
            rtnl.set_mtu("narrow0", NARROW).unwrap();
            for (there, next) in addresses.iter().zip(HOST) {
                let there = IpNet::from(there.parse::<IpAddr>().unwrap());
                rtnl.add_route(there, Some(prefix(next).addr()), Some("narrow0"), false).unwrap();
            }
            for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
            }
        })
        .unwrap();
    host.run(|| {
        let mut rtnl = end("eth0", HOST, LINK_LOCAL[1]);
        rtnl.set_up("lo").unwrap();
        for ((family, own), next) in Family::BOTH.into_iter().zip(addresses).zip(ROUTER) {
            rtnl.add_address("lo", IpNet::from(own.parse::<IpAddr>().unwrap())).unwrap();
            rtnl.add_route(everywhere(family), Some(prefix(next).addr()), Some("eth0"), false).unwrap();
        }
    })
    .unwrap();
    lab.gateway
        .run(|| {
            let mut rtnl = Rtnl::open().unwrap();
            for (family, there) in Family::BOTH.into_iter().zip(addresses) {
                let there = IpNet::from(there.parse::<IpAddr>().unwrap());
                rtnl.add_route(there, Some(near(family)), Some(link), false).unwrap();
            }
        })
        .unwrap();
    host
}

/// What is said in a flow: the octets of a request's body, and those of its answer.
#[derive(Clone, Copy)]
struct Talk {
    body: usize,
    answer: usize,
}

impl Talk {
    fn request(self) -> Vec<u8> {
        let head = format!("POST / HTTP/1.1\r\nhost: allowed.example\r\ncontent-length: {}\r\n\r\n", self.body);
        [head.into_bytes(), vec![b'a'; self.body]].concat()
    }
}

const UPLOAD: Talk = Talk { body: LONG, answer: SHORT };
const DOWNLOAD: Talk = Talk { body: SHORT, answer: LONG };

/// Serves one connection at a time.
fn serve(place: &Namespace, talk: Talk) {
    let listener = place.run(|| TcpListener::bind(("::", 80))).unwrap().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            if stream.read_exact(&mut vec![0; talk.request().len()]).is_ok() {
                let _ = stream.write_all(&vec![b'a'; talk.answer]);
            }
        }
    });
}

/// True once all has been said.
fn says_all(place: &Namespace, source: IpAddr, destination: IpAddr, talk: Talk) -> bool {
    let request = Request { source, destination: SocketAddr::new(destination, 80), name: None, patience: DEADLINE };
    let mut stream = place.run(|| client::connect(&request)).unwrap().unwrap();
    stream.write_all(&talk.request()).is_ok() && stream.read_exact(&mut vec![0; talk.answer]).is_ok()
}

fn is_error(packet: &Packet) -> bool {
    matches!(packet.kind, Kind::Icmp { kind: 1..=3, .. })
}

#[test]
fn what_is_sent_to_a_server_behind_a_narrow_link_arrives_and_its_client_hears_of_no_error() {
    in_lab(uploads);
}

#[test]
fn so_it_is_where_the_gateway_masquerades() {
    in_lab(|lab| {
        lab.gateway.run(nat::masquerade).unwrap();
        uploads(lab);
    });
}

fn uploads(lab: &Lab) {
    let host = behind(lab, &lab.server, "server0", server_address, SERVER);
    serve(&host, UPLOAD);
    let _gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
    let at_client = Tap::at_client(lab).unwrap();
    for (family, server) in Family::BOTH.into_iter().zip(SERVER) {
        let all = says_all(&lab.client, client_address(family, 0), server.parse().unwrap(), UPLOAD);
        assert_eq!((all, at_client.packets(lab, is_error).unwrap()), (true, vec![]), "{family}");
    }
}

#[test]
fn what_is_sent_to_a_client_behind_a_narrow_link_arrives_and_its_server_hears_of_no_error() {
    in_lab(|lab| {
        let host = behind(lab, &lab.client, "client0", |family| client_address(family, 0), CLIENT);
        serve(&lab.server, DOWNLOAD);
        let _gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        let at_server = Tap::at_server(lab).unwrap();
        for (family, client) in Family::BOTH.into_iter().zip(CLIENT) {
            let all = says_all(&host, client.parse().unwrap(), Site::A.address(family, 1), DOWNLOAD);
            assert_eq!((all, at_server.packets(lab, is_error).unwrap()), (true, vec![]), "{family}");
        }
    });
}
