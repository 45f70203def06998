//! Initial packets made to measure: what one connection of a flow says never counts for another, nor after its verdict.
//!
//! ```text
//! client 10.1.0.0/24 -- gateway (tidegate run) -- server (an ear)
//! ```

use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};

use super::limits::counted;
use super::*;
use crate::dns::resolver::{A_MOMENT, Resolver, answered};
use crate::gateway::{at, is_from};

#[derive(Clone, Copy)]
struct Initial<'a> {
    first: &'a [u8],
    number: u64,
    size: usize,
}

const FIRST: Initial<'static> = Initial { first: b"first-id", number: 0, size: 1200 };
const SECOND: Initial<'static> = Initial { first: b"second-id", ..FIRST };

impl Initial<'_> {
    fn seal(&self, frames: &[u8]) -> Vec<u8> {
        const TAG: usize = 16;
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let keys = Keys::initial(Version::V1, suite, suite.quic.unwrap(), self.first, Side::Client).local;
        let mut header = vec![0xc3];
        header.extend(1u32.to_be_bytes());
        for id in [self.first, b"own"] {
            header.push(id.len() as u8);
            header.extend(id);
        }
        header.extend(varint(0));
        let mut payload = frames.to_vec();
        let rest = self.size.saturating_sub(header.len() + 8 + TAG);
        payload.resize(payload.len().max(rest).max(4), 0);
        header.extend(varint(4 + payload.len() + TAG));
        let number_at = header.len();
        header.extend((self.number as u32).to_be_bytes());
        let tag = keys.packet.encrypt_in_place(self.number, &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (first, number) = header.split_at_mut(number_at);
        keys.header.encrypt_in_place(&payload[..16], &mut first[0], number).unwrap();
        header.extend(payload);
        header
    }

    fn hello(&self, name: &str) -> Vec<u8> {
        self.seal(&crypto(&hello(name, 0)))
    }
}

fn varint(value: usize) -> [u8; 4] {
    (value as u32 | 0x8000_0000).to_be_bytes()
}

fn crypto(data: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(0), &varint(data.len()), data].concat()
}

/// A ClientHello with this name, and an extension of so many octets that means nothing.
fn hello(name: &str, padding: usize) -> Vec<u8> {
    let length = |value: usize| (value as u16).to_be_bytes();
    let list = [&[0][..], &length(name.len()), name.as_bytes()].concat();
    let names = [&length(list.len())[..], &list].concat();
    let mut extensions = [&[0, 0][..], &length(names.len()), &names].concat();
    extensions.extend([&[0x1a, 0x1a][..], &length(padding), &vec![7; padding]].concat());
    let suites = [&[3, 3][..], &[5; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&suites[..], &length(extensions.len()), &extensions].concat();
    [&(body.len() as u32 | 1 << 24).to_be_bytes()[..], &body].concat()
}

/// A client's socket towards the server, and the server's.
fn ends(lab: &Lab, server: SocketAddr) -> (UdpSocket, UdpSocket) {
    let ear = lab.server.run(|| UdpSocket::bind(("::", server.port()))).unwrap().unwrap();
    ear.set_read_timeout(Some(DEADLINE)).unwrap();
    (client(lab, server), ear)
}

fn client(lab: &Lab, server: SocketAddr) -> UdpSocket {
    let client = lab.client.run(|| UdpSocket::bind((client_address(Family::V4, 0), 0))).unwrap().unwrap();
    client.connect(server).unwrap();
    client
}

/// What the server hears until this, which passes.
fn heard_until(ear: &UdpSocket, last: &[u8]) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    loop {
        let mut buffer = vec![0; 65_535];
        let length = ear.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        if buffer == last {
            return heard;
        }
        heard.push(buffer);
    }
}

#[test]
fn a_fault_of_one_connection_is_its_own_whatever_else_the_datagram_holds() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("discard", "type = \"prefer-both\""));
        let server = at(Site::A, Family::V4, 2, 443);
        let (client, ear) = ends(lab, server);
        // Smaller than servers take (RFC 9000, section 14.1).
        let small = Initial { size: 0, ..FIRST };
        client.send(&small.hello("allowed.example")).unwrap();
        let other = Initial { number: 1, ..small }.hello("blocked.example");
        client.send(&[other, Initial { size: 0, ..SECOND }.seal(&[1])].concat()).unwrap();
        let evil = Initial { number: 1, ..FIRST }.hello("blocked.example");
        client.send(&evil).unwrap();
        let last = Initial { first: b"third-id", ..FIRST }.hello("allowed.example");
        client.send(&last).unwrap();
        assert!(!heard_until(&ear, &last).contains(&evil));
        let source = client.local_addr().unwrap();
        let blocks = gateway.stop().records().into_iter();
        assert_eq!(blocks.filter(|r| is_from(r, source) && r["verdict"] == "block").count(), 2);
    });
}

#[test]
fn a_look_up_that_ends_late_does_not_undo_a_block() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), |query| {
            std::thread::sleep(A_MOMENT);
            vec![answered(query, 60, "198.51.100.2", "2001:db8:a::2")]
        });
        let dns = format!("[network.dns]\nauthorized_resolvers = [\"{}\"]", resolver.at.ip());
        for bind in ["log", "enforce"] {
            let inspection = format!("type = \"explicit\"\nbind = \"{bind}\"\n{dns}");
            let gateway = Gateway::start(lab, &configuration("discard", &inspection));
            let server = at(Site::A, Family::V4, 2, 443);
            let (client, ear) = ends(lab, server);
            let opening = FIRST.hello("unlisted.example");
            client.send(&opening).unwrap();
            assert_eq!(heard_until(&ear, &opening), [[0; 0]; 0]);
            // Waits for the look-up of allowed.example.
            client.send(&Initial { size: 0, ..SECOND }.hello("allowed.example")).unwrap();
            let evil = Initial { number: 1, ..SECOND }.hello("blocked.example");
            client.send(&evil).unwrap();
            let source = client.local_addr().unwrap();
            let is_block = |r: &serde_json::Value| is_from(r, source) && r["verdict"] == "block";
            gateway.enforcer.record(is_block, DEADLINE).unwrap();
            std::thread::sleep(2 * A_MOMENT);
            client.send(&evil).unwrap();
            let last = Initial { first: b"third-id", ..FIRST }.hello("unlisted.example");
            client.send(&last).unwrap();
            assert!(!heard_until(&ear, &last).contains(&evil), "{bind}");
            gateway.stop();
        }
    });
}

/// 1,000 connections, each with 60,000 octets of a hello, of a client that may have 32 MiB of them.
#[test]
fn hellos_are_kept_within_a_limit() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("discard", "type = \"prefer-both\"\n[limits]\nworkers = 1"));
        let server = at(Site::A, Family::V4, 2, 443);
        // Where nobody listens, what passes comes back as an error.
        let (_, _ear) = ends(lab, server);
        let long = hello("allowed.example", 60_000);
        let clients: Vec<_> = (0..125).map(|_| client(lab, server)).collect();
        for (number, client) in clients.iter().enumerate() {
            for connection in 0..8usize {
                let first = [number.to_be_bytes(), connection.to_be_bytes()].concat();
                client.send(&Initial { first: &first, ..FIRST }.seal(&crypto(&long))).unwrap();
            }
            // What is held of them stays within its own limit.
            let source = client.local_addr().unwrap();
            gateway.enforcer.record(|r| is_from(r, source), DEADLINE).unwrap();
        }
        assert!(counted(&gateway.stop(), "refused_by_limit") > 300);
    });
}
