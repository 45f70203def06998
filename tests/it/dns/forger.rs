//! Answers that are not what they claim to be.

use std::net::{SocketAddr, UdpSocket};

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tidegate::mode::demo::lab::Site;
use tidegate::sys::rtnl::Family;

use super::resolver::*;
use super::{configuration, start};
use crate::gateway::{Gateway, at};
use crate::inside::in_lab;

/// Two hundred forgeries come first, then the truth.
fn forged_first(query: &[u8]) -> Vec<Vec<u8>> {
    let forged = answered(query, 60, "203.0.113.1", "2001:db8:666::1");
    let id = u16::from_be_bytes([query[0], query[1]]);
    let mut answers = Vec::new();
    for n in 1..=28u16 {
        let changed = |at: usize, octet: u8| {
            let mut answer = forged.clone();
            answer[at] ^= octet;
            answer
        };
        let mut wrong_id = forged.clone();
        wrong_id[..2].copy_from_slice(&id.wrapping_add(n).to_be_bytes());
        let wrong_name = changed(13, n as u8);
        let wrong_type = changed(query.len() - 3, n as u8);
        let wrong_class = changed(query.len() - 1, 1 << (n % 4 + 1));
        let not_an_answer = changed(2, 0x80);
        let two_questions = changed(5, 3);
        let trailing = [&forged[..], &[n as u8]].concat();
        answers.extend([wrong_id, wrong_name, wrong_type, wrong_class, not_an_answer, two_questions, trailing]);
    }
    for end in [0, 2, 12, forged.len() - 1] {
        answers.push(forged[..end].to_vec());
    }
    answers.push(answered(query, 60, "192.0.2.80", "2001:db8:80::1"));
    answers
}

#[test]
fn of_ten_thousand_forgeries_that_come_first_none_is_believed() {
    assert_eq!(forged_first(&question("www.example.", RecordType::A)).len(), 201);
    in_lab(|lab| {
        let _gateway = start(lab, "");
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), forged_first);
            for n in 0..50 {
                let answer = ask(lab, resolver.at, &question(&format!("www{n}.example."), RecordType::A));
                assert_eq!(addresses(&answer), ["192.0.2.80".parse::<std::net::IpAddr>().unwrap()]);
            }
        }
    });
}

/// The forger stands beside the resolver and sees every question, but may not send from its address or port.
#[test]
fn forgeries_from_another_address_or_port_are_not_believed() {
    in_lab(|lab| {
        for dns in ["".to_owned(), format!("upstream = [\"{}\"]", at(Site::A, Family::V4, 53, 53).ip())] {
            let gateway = Gateway::start(lab, &configuration("discard", &dns));
            let resolver = at(Site::A, Family::V4, 53, 53);
            let beside: Vec<SocketAddr> =
                vec![at(Site::A, Family::V4, 53, 54), at(Site::A, Family::V4, 52, 53), at(Site::B, Family::V4, 53, 53)];
            let (honest, forgers): (UdpSocket, Vec<UdpSocket>) = lab
                .server
                .run(|| {
                    let forgers = beside.iter().map(|at| UdpSocket::bind(at).unwrap()).collect();
                    (UdpSocket::bind(resolver).unwrap(), forgers)
                })
                .unwrap();
            let server = std::thread::spawn(move || {
                let mut buffer = [0; 512];
                let (length, from) = honest.recv_from(&mut buffer).unwrap();
                let query = &buffer[..length];
                let forged = answered(query, 60, "203.0.113.1", "2001:db8:666::1");
                for n in 0..600u16 {
                    for forger in &forgers {
                        forger.send_to(&forged, from).unwrap();
                    }
                    let elsewhere = SocketAddr::new(from.ip(), from.port() ^ (1 + n));
                    honest.send_to(&forged, elsewhere).unwrap();
                }
                honest.send_to(&answered(query, 60, "192.0.2.80", "2001:db8:80::1"), from).unwrap();
            });
            let octets = exchange(&stub(lab, 0, resolver), &question("www.example.", RecordType::A));
            let answer = Message::from_vec(&octets).unwrap();
            assert_eq!(addresses(&answer), ["192.0.2.80".parse::<std::net::IpAddr>().unwrap()]);
            server.join().unwrap();
            gateway.stop();
        }
    });
}
