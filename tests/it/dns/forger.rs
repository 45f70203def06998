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

/// Forgeries come first, in numbers; then the truth.
fn forged_first(query: &[u8]) -> Vec<Vec<u8>> {
    let forged = answered(query, 60, "203.0.113.1", "2001:db8:666::1");
    let id = u16::from_be_bytes([query[0], query[1]]);
    let mut answers = Vec::new();
    for n in 1..=2_500u16 {
        let mut wrong_id = forged.clone();
        wrong_id[..2].copy_from_slice(&id.wrapping_add(n).to_be_bytes());
        let mut wrong_name = forged.clone();
        wrong_name[13] ^= 1 + (n % 3) as u8;
        answers.extend([wrong_id, wrong_name]);
    }
    for n in 0..1_000 {
        let mut wrong_type = forged.clone();
        let end = query.len() - 3;
        wrong_type[end] = wrong_type[end].wrapping_add(1 + (n % 200) as u8);
        let mut not_an_answer = forged.clone();
        not_an_answer[2] &= 0x7f;
        let mut two_questions = forged.clone();
        two_questions[5] = 2;
        let mut trailing = forged.clone();
        trailing.push(0);
        answers.extend([wrong_type, not_an_answer, two_questions, trailing]);
    }
    answers.push(forged[..forged.len() - 2].to_vec());
    answers.push(answered(query, 60, "192.0.2.80", "2001:db8:80::1"));
    answers
}

#[test]
fn of_nine_thousand_forgeries_that_come_first_none_is_believed() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), forged_first);
            let answer = ask(lab, resolver.at, &question("www.example.", RecordType::A));
            assert_eq!(addresses(&answer), ["192.0.2.80".parse::<std::net::IpAddr>().unwrap()]);
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
