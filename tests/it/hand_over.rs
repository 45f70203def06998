//! One tidegate takes over from another under load: no attempt is lost, no flow ends, and nothing is refused (SPEC R8).
//!
//! ```text
//! client (asks all the time) -- gateway (tidegate run, tidegate run --take-over, ...) -- server
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tidegate::mode::demo::client::{Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site, client_address, server_address};
use tidegate::sys::channel::Channel;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, connect, is_from, listen, live, request, servers};
use crate::inside::in_lab;
use crate::recheck::flight;

#[test]
fn no_attempt_is_lost_and_no_flow_ends_when_another_takes_over_and_another_again() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let (accepted, _uninspected) = (listen(lab, 8080), listen(lab, 8443));
        let resolvers = Family::BOTH.map(|family| resolver(lab, family));
        let text = text();
        let mut serving = Gateway::start(lab, &text);
        let mut flows = Family::BOTH.map(|family| live(lab, &accepted, family));
        let quic = Family::BOTH.map(|family| Quic::begin(lab, family));
        let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _end = Over(&over);
            let (mut hammers, over, asked) = (Vec::new(), &over, &asked);
            for family in Family::BOTH {
                for host in 1..3 {
                    hammers.push(scope.spawn(move || hammer(lab, over, || ask_once(family, host), asked)));
                }
                hammers.push(scope.spawn(move || hammer(lab, over, || question(family), asked)));
            }
            for round in 1..=3 {
                let enough = asked.load(Ordering::Relaxed) + 300;
                while asked.load(Ordering::Relaxed) < enough && !hammers.iter().any(|hammer| hammer.is_finished()) {
                    std::thread::yield_now();
                }
                let next = take_over(lab, &text);
                let old = std::mem::replace(&mut serving, next);
                let handed = old.enforcer.message(|line| line.contains("handed over"), DEADLINE);
                assert!(handed.is_some(), "{round}: {:#?}", old.enforcer.messages());
                flows.iter_mut().for_each(|(client, server)| exchange(client, server));
                quic.iter().for_each(Quic::exchange);
                if round == 1 {
                    // The first ends once those flows have that began with it.
                    for (client, server) in std::mem::replace(&mut flows, Family::BOTH.map(|f| live(lab, &accepted, f)))
                    {
                        drop((client, server));
                    }
                    let ended = old.enforcer.message(|line| line.contains("ended:"), DEADLINE);
                    assert!(ended.is_some(), "{:?}\n{:#?}", unended(&old), old.enforcer.messages());
                }
                old.stop();
                if round > 1 {
                    // What is told to end ends, and its flows with it.
                    flows = Family::BOTH.map(|family| live(lab, &accepted, family));
                }
            }
            over.store(true, Ordering::Relaxed);
            hammers.into_iter().for_each(|hammer| hammer.join().unwrap());
        });
        assert!(asked.load(Ordering::Relaxed) > 900);
        // The kernel's judgements are told to who serves now.
        for family in Family::BOTH {
            let source = connect(lab, at(Site::A, family, 3, 8443)).local_addr().unwrap();
            serving.enforcer.record(|record| is_from(record, source) && record["kind"] == "ip", DEADLINE).unwrap();
        }
        quic.iter().for_each(Quic::exchange);
        serving.stop();
        drop(resolvers);
    });
}

#[test]
fn who_gives_up_or_is_a_stranger_changes_nothing() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &text());
        for said in [&b"tidegate takes over, version 1"[..], b"tidegate takes over, version 0", b"?"] {
            let before = gateway.enforcer.messages().len();
            let channel = lab.gateway.run(|| Channel::connect(b"tidegate/hand-over")).unwrap().unwrap();
            channel.send(said, &[]).unwrap();
            drop(channel);
            let said = gateway.enforcer.message_after(before, |line| line.contains("nobody took over"), DEADLINE);
            assert!(said.is_some(), "{:#?}", gateway.enforcer.messages());
            for family in Family::BOTH {
                lab.client.run(|| ask_once(family, 1)).unwrap();
            }
        }
        // Without anybody to take over from, it starts as usual.
        gateway.stop();
        let gateway = take_over(lab, &text());
        lab.client.run(|| ask_once(Family::V4, 1)).unwrap();
        gateway.stop();
    });
}

fn text() -> String {
    configuration("tcp-reset", "type = \"prefer-domain\"\nhttp_ports = [80, 8080]\nhttp = \"first-request\"")
        .replace("entries = [\"allowed.example\"]", "entries = [\"allowed.example\", \"www.google.com\"]")
}

/// Lets the hammers end when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The flows that were let in and have not ended.
fn unended(gateway: &Gateway) -> Vec<String> {
    let records = gateway.enforcer.records();
    let has_ended = |flow: &serde_json::Value| records.iter().any(|own| own["kind"] == "end" && own["flow"] == *flow);
    let live = |own: &&serde_json::Value| own["verdict"] == "allow" && own["flow"].is_u64() && !has_ended(&own["flow"]);
    records.iter().filter(live).map(ToString::to_string).collect()
}

pub(crate) fn take_over(lab: &Lab, text: &str) -> Gateway {
    let adjust = |command: &mut std::process::Command| {
        command.arg("--take-over");
    };
    Gateway::start_with(lab, text, adjust).unwrap_or_else(|e| panic!("{e}"))
}

fn hammer(lab: &Lab, over: &AtomicBool, ask: impl Fn() + Sync, asked: &AtomicUsize) {
    let work = || {
        while !over.load(Ordering::Relaxed) {
            ask();
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    lab.client.run(work).unwrap();
}

/// A connection of its own, which must be answered.
fn ask_once(family: Family, host: u8) {
    let request = request(family, at(Site::A, family, host, 80), Some("allowed.example"));
    let outcome = ask_http(&request);
    assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
}

/// A question over UDP, asked once, which must be answered.
pub(crate) fn question(family: Family) {
    let socket = UdpSocket::bind((client_address(family, 0), 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect((server_address(family), 53)).unwrap();
    let mut query =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07allowed\x07example\x00\x00\x01\x00\x01".to_vec();
    query[1] = socket.local_addr().unwrap().port() as u8;
    socket.send(&query).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!((&answer[..2], answer[2] & 0x80, answer[3] & 0xf), (&query[..2], 0x80, 0), "{:?}", &answer[..length]);
}

/// Answers every question with nothing.
pub(crate) fn resolver(lab: &Lab, family: Family) -> UdpSocket {
    let socket = lab.server.run(|| UdpSocket::bind((server_address(family), 53))).unwrap().unwrap();
    let own = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = own.recv_from(&mut message) {
            message[2] |= 0x80;
            let _ = own.send_to(&message[..length], from);
        }
    });
    socket
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut octets = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut octets).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut octets).unwrap();
}

/// Takes the datagrams of one family that come to port 443 of the server.
pub(crate) fn sink(lab: &Lab, family: Family) -> UdpSocket {
    use socket2::{Domain, Socket, Type};
    let open = || {
        let (domain, any) = match family {
            Family::V4 => (Domain::IPV4, SocketAddr::from(([0; 4], 443))),
            Family::V6 => (Domain::IPV6, SocketAddr::from(([0u16; 8], 443))),
        };
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        if family == Family::V6 {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&any.into()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        UdpSocket::from(socket)
    };
    lab.server.run(open).unwrap()
}

/// A flow to an address that is blocked, which its name has let in: without its place in the kernel's set it would end.
struct Quic {
    client: UdpSocket,
    server: UdpSocket,
}

impl Quic {
    fn begin(lab: &Lab, family: Family) -> Self {
        let to = at(Site::B, family, 7, 443);
        let server = sink(lab, family);
        let client = lab.client.run(|| UdpSocket::bind((client_address(family, 0), 0))).unwrap().unwrap();
        client.connect(to).unwrap();
        client.send(&flight()).unwrap();
        server.recv(&mut [0; 2000]).unwrap();
        let flow = Self { client, server };
        flow.exchange();
        flow
    }

    fn exchange(&self) {
        let mut buffer = [0; 2000];
        self.client.send(b"@short header").unwrap();
        let length = self.server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"@short header");
    }
}
