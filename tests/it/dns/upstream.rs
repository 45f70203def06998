//! `upstream`: the cache, and who waits for whom.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use super::resolver::*;
use super::{configuration, start};
use crate::gateway::{Gateway, at, until};
use crate::inside::in_lab;

fn start_with(lab: &Lab, upstream: &[SocketAddr]) -> Gateway {
    start(lab, &listed(upstream))
}

fn listed(upstream: &[SocketAddr]) -> String {
    let list: Vec<String> = upstream.iter().map(|at| format!("\"{at}\"")).collect();
    format!("upstream = [{}]", list.join(", "))
}

fn upstream(family: Family) -> SocketAddr {
    at(Site::A, family, 99, 5353)
}

/// What the client asks, where nobody listens.
fn asked() -> SocketAddr {
    at(Site::A, Family::V4, 53, 53)
}

#[test]
fn many_clients_that_ask_the_same_cost_one_question_and_later_ones_none() {
    in_lab(|lab| {
        let slow = |query: &[u8]| {
            thread::sleep(A_MOMENT);
            honest(query)
        };
        let resolver = Resolver::start(lab, upstream(Family::V6), slow);
        let _gateway = start_with(lab, &[resolver.at]);
        let stubs: Vec<_> = (0..100).map(|n| stub(lab, n % 20, asked())).collect();
        for stub in &stubs {
            stub.send(&question("www.example.", RecordType::A)).unwrap();
        }
        for stub in &stubs {
            let mut buffer = [0; 512];
            let length = stub.recv(&mut buffer).unwrap();
            assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()).len(), 1);
        }
        assert_eq!(resolver.asked().len(), 1);
        let again = ask(lab, asked(), &question("WWW.example.", RecordType::A));
        assert!(again.answers[0].ttl <= 60);
        let mut stream = connect_tcp(lab, asked());
        write_frame(&mut stream, &question("www.example.", RecordType::A));
        assert_eq!(addresses(&Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap()).len(), 1);
        assert_eq!(resolver.asked().len(), 1);
    });
}

#[test]
fn cookies_stop_here_and_the_answer_still_serves_all() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, upstream(Family::V4), honest);
        let _gateway = start_with(lab, &[resolver.at]);
        for n in 0..3 {
            assert_eq!(addresses(&ask(lab, asked(), &with_cookie(n))).len(), 1);
        }
        let heard = resolver.asked();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].1.ends_with(BARE_OPT));
    });
}

#[test]
fn cookies_stop_here_over_tcp_too() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, upstream(Family::V4), honest);
        let _gateway = start_with(lab, &[resolver.at]);
        let mut stream = connect_tcp(lab, asked());
        for n in 0..3 {
            write_frame(&mut stream, &with_cookie(n));
            assert_eq!(addresses(&Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap()).len(), 1);
        }
        let heard = resolver.asked();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].1.ends_with(BARE_OPT), "{:?}", heard[0].1);
    });
}

fn with_cookie(n: u8) -> Vec<u8> {
    let mut query = question("www.example.", RecordType::A);
    query[11] = 1;
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, n, 2, 3, 4, 5, 6, 7, 8]);
    query
}

const BARE_OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

/// The resolver of one client, who has it say what he likes, or nothing to a name that begins with `s`.
fn own(query: &[u8]) -> Vec<Vec<u8>> {
    if query[13] == b's' { vec![] } else { vec![answered(query, 60, "192.0.2.66", "2001:db8:66::1")] }
}

#[test]
fn a_connection_from_before_a_reload_asks_whom_the_policy_names_and_plants_nothing_for_others() {
    in_lab(|lab| {
        let own = Resolver::start(lab, asked(), own);
        let resolver = Resolver::start(lab, upstream(Family::V4), honest);
        let gateway = start(lab, "");
        let mut stream = connect_tcp(lab, asked());
        let mut reader = stream.try_clone().unwrap();
        let mut send = |name: &str| write_frame(&mut stream, &question(name, RecordType::A));
        send("silent.example.");
        send("first.example.");
        let mut next = || Message::from_vec(&read_frame(&mut reader).unwrap()).unwrap();
        let address = |message: &Message| addresses(message)[0].to_string();
        assert_eq!(address(&next()), "192.0.2.66");
        gateway.rewrite(&configuration("icmp-unreachable", &listed(&[resolver.at])));
        gateway.reload();
        send("bank.example.");
        let silent = next();
        assert_eq!(silent.metadata.response_code, ResponseCode::ServFail, "what nobody will answer now");
        assert_eq!(silent.queries[0].name().to_string(), "silent.example.");
        assert_eq!(address(&next()), "192.0.2.80");
        let other = exchange(&stub(lab, 7, asked()), &question("bank.example.", RecordType::A));
        assert_eq!(address(&Message::from_vec(&other).unwrap()), "192.0.2.80");
        assert_eq!((own.asked().len(), resolver.asked().len()), (2, 1));
        gateway.rewrite(&configuration("icmp-unreachable", ""));
        gateway.reload();
        send("bank.example.");
        assert_eq!(address(&next()), "192.0.2.66", "and back again");
    });
}

/// As a resolver does with a TSIG of a key that it does not know (RFC 8945, section 5.2.1): after a moment, NOTAUTH.
fn no_such_key(query: &[u8]) -> Vec<Vec<u8>> {
    thread::sleep(A_MOMENT);
    if query[11] == 0 {
        return honest(query);
    }
    let mut clean = query[..query.len() - TSIG.len()].to_vec();
    clean[11] = 0;
    let mut message = Message::from_vec(&clean).unwrap().into_response();
    message.metadata.response_code = ResponseCode::NotAuth;
    vec![message.to_vec().unwrap()]
}

/// With three octets of nothing as data.
const TSIG: [u8; 14] = [0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 3, 1, 2, 3];

#[test]
fn a_question_with_more_records_than_opt_is_answered_for_its_client_alone() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, upstream(Family::V4), no_such_key);
        let _gateway = start_with(lab, &[resolver.at]);
        let plain = question("www.example.", RecordType::A);
        let mut signed = [&plain[..], &TSIG].concat();
        signed[11] = 1;
        let (odd, other) = (stub(lab, 1, asked()), stub(lab, 2, asked()));
        odd.send(&signed).unwrap();
        until("the odd question is on its way", || resolver.asked().len(), |count| *count == 1);
        let answer = Message::from_vec(&exchange(&other, &plain)).unwrap();
        assert_eq!(addresses(&answer).len(), 1, "{answer}");
        let mut stream = connect_tcp(lab, asked());
        write_frame(&mut stream, &signed);
        let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NotAuth, "not what is kept for others");
    });
}

/// Set when the resolver may answer. A test has a process of its own, and so this to itself.
static MAY_ANSWER: AtomicBool = AtomicBool::new(false);

fn when_told(query: &[u8]) -> Vec<Vec<u8>> {
    while !MAY_ANSWER.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    honest(query)
}

/// Asks what is answered here, and returns what is heard before that answer: all that is known of the questions before.
fn heard_so_far(stub: &UdpSocket) -> Vec<Message> {
    let mut blocked = question("blocked.example.", RecordType::A);
    blocked[..2].copy_from_slice(&[0xff; 2]);
    stub.send(&blocked).unwrap();
    let next = || {
        let mut buffer = [0; 512];
        let length = stub.recv(&mut buffer).unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    };
    std::iter::repeat_with(next).take_while(|message| message.metadata.id != 0xffff).collect()
}

#[test]
fn one_client_that_asks_the_same_again_and_again_leaves_others_room_to_wait() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, upstream(Family::V4), when_told);
        let limits = "[limits.dns]\npatience = \"10s\"\nquestions_of_one = 8\nwaiting_for_one = 16";
        let gateway = start(lab, &format!("{}\n{limits}", listed(&[resolver.at])));
        let (greedy, other) = (stub(lab, 1, asked()), stub(lab, 2, asked()));
        let query = question("www.example.", RecordType::A);
        for n in 0..20 {
            greedy.send(&[&[0, n], &query[2..]].concat()).unwrap();
        }
        // One asks, and eight wait for it.
        let refused = heard_so_far(&greedy);
        assert!(refused.iter().all(|answer| answer.metadata.response_code == ResponseCode::ServFail));
        assert_eq!(refused.len(), 11);
        other.send(&query).unwrap();
        assert!(heard_so_far(&other).is_empty(), "it waits");
        MAY_ANSWER.store(true, Ordering::Relaxed);
        let mut buffer = [0; 512];
        for (stub, count) in [(&other, 1), (&greedy, 9)] {
            for _ in 0..count {
                let length = stub.recv(&mut buffer).unwrap();
                assert_eq!(addresses(&Message::from_vec(&buffer[..length]).unwrap()).len(), 1);
            }
        }
        // It waits no longer, and may again.
        MAY_ANSWER.store(false, Ordering::Relaxed);
        let query = question("later.example.", RecordType::A);
        for n in 0..9 {
            greedy.send(&[&[0, n], &query[2..]].concat()).unwrap();
        }
        assert!(heard_so_far(&greedy).is_empty());
        MAY_ANSWER.store(true, Ordering::Relaxed);
        let ended = gateway.stop();
        assert!(ended.messages.iter().any(|line| line.contains("refused_by_limit=11")), "{:#?}", ended.messages);
    });
}

#[test]
fn a_dead_upstream_is_followed_by_the_next_and_by_servfail_in_the_end() {
    in_lab(|lab| {
        let dead = Resolver::start(lab, at(Site::A, Family::V4, 98, 53), |_| Vec::new());
        let alive = Resolver::start(lab, upstream(Family::V4), honest);
        let gateway = start_with(lab, &[dead.at, alive.at]);
        assert_eq!(addresses(&ask(lab, asked(), &question("a.example.", RecordType::A))).len(), 1);
        assert_eq!((dead.asked().len(), alive.asked().len()), (1, 1));
        gateway.stop();
        let _gateway = start_with(lab, &[dead.at]);
        let answer = ask(lab, asked(), &question("a.example.", RecordType::A));
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

/// Another address each time, good for a second.
fn rotating(query: &[u8]) -> Vec<Vec<u8>> {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    vec![answered(query, 1, &format!("192.0.2.{next}"), &format!("2001:db8::{next}"))]
}

#[test]
fn a_ttl_of_one_second_is_kept_to() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, upstream(Family::V4), rotating);
        let _gateway = start_with(lab, &[resolver.at]);
        let seen = |message: Message| addresses(&message)[0];
        let first: IpAddr = seen(ask(lab, asked(), &question("a.example.", RecordType::A)));
        let begun = std::time::Instant::now();
        // Until the address turns, which it must about when the TTL ends.
        loop {
            let now = seen(ask(lab, asked(), &question("a.example.", RecordType::A)));
            let age = begun.elapsed().as_millis();
            if now != first {
                assert!(age >= 800, "{age} ms");
                break;
            }
            assert!(age < 1_500, "{age} ms");
            thread::sleep(std::time::Duration::from_millis(20));
        }
    });
}
