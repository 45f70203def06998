//! DNS through the gateway: who may be asked, what is answered here, and what is read before it is released.
//!
//! ```text
//! client (stubs) -- gateway (tidegate run) -- server (resolvers, honest and not)
//! ```

mod binding;
mod encrypted;
mod forger;
pub(crate) mod resolver;
mod upstream;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use socket2::Type;
use tidegate::mode::demo::lab::{Lab, Site, client_address, gateway_address};
use tidegate::mode::demo::tap::{Kind, Tap};
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, is_from, protected, send_anyway};
use crate::inside::in_lab;
use resolver::*;

/// `blocked.example` and all below it are blocked, `allowed.example` is allowed.
pub(crate) fn configuration(drop: &str, dns: &str) -> String {
    format!(
        r#"
name = "edge-1"
[[list]]
name = "blocked-names"
verdict = "block"
entries = [".blocked.example", "use-application-dns.net", "mask.icloud.com", "203.0.113.66"]
[[list]]
name = "allowed-names"
verdict = "allow"
entries = ["allowed.example"]
[[policy]]
name = "out"
default = "allow"
lists = ["blocked-names", "allowed-names"]
[[network]]
name = "clients"
directions = "outbound"
ips = [{}]
outbound = {{ policy = "out", drop = "{drop}" }}
[network.dns]
{dns}
"#,
        Family::BOTH.map(protected).join(", "),
    )
}

fn start(lab: &Lab, dns: &str) -> Gateway {
    Gateway::start(lab, &configuration("icmp-unreachable", dns))
}

fn each_family(each: impl FnMut(Family)) {
    Family::BOTH.into_iter().for_each(each);
}

/// The kernel knows the flow, and let it in, from the time when nobody looked at questions.
#[test]
fn a_stub_that_asked_before_its_network_was_judged_is_heard_all_the_same() {
    in_lab(|lab| {
        let judged = configuration("icmp-unreachable", "");
        let left_alone = judged.replace("directions = ", "mode = \"off\"\ndirections = ");
        let gateway = Gateway::start(lab, &left_alone);
        each_family(|family| {
            gateway.rewrite(&left_alone);
            gateway.reload();
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), honest);
            let stub = stub(lab, 3, resolver.at);
            let query = question("blocked.example.", RecordType::A);
            for _ in 0..3 {
                exchange(&stub, &query);
            }
            assert_eq!(resolver.asked().len(), 3);
            gateway.rewrite(&judged);
            gateway.reload();
            assert_eq!(Message::from_vec(&exchange(&stub, &query)).unwrap().response_code, ResponseCode::NXDomain);
            assert_eq!(resolver.asked().len(), 3, "not a question more");
        });
    });
}

/// As resolvers do that were told which port to ask from.
#[test]
fn an_answer_from_a_protected_server_to_one_that_asks_from_port_53_is_no_question() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        each_family(|family| {
            let server = SocketAddr::new(client_address(family, 3), 53);
            let asking = at(Site::A, family, 53, 53);
            let bound = |at| UdpSocket::from(bind(at, Type::DGRAM));
            let server_socket = lab.client.run(|| bound(server)).unwrap();
            let asking_socket = lab.server.run(|| bound(asking)).unwrap();
            let query = question("blocked.example.", RecordType::A);
            for socket in [&server_socket, &asking_socket] {
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
            }
            for _ in 0..2 {
                asking_socket.send_to(&query, server).unwrap();
                let mut buffer = [0; 512];
                let (length, from) = server_socket.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (&query[..], asking));
                server_socket.send_to(b"any answer", from).unwrap();
                let (length, from) = asking_socket.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (&b"any answer"[..], server));
            }
        });
    });
}

#[test]
fn a_question_is_forwarded_byte_for_byte_from_the_clients_own_address_with_a_fresh_id_and_port() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        each_family(|family| {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), honest);
            let mut query = question("www.AllowEd.example.", RecordType::A);
            query[11] = 1;
            // An OPT with an option that nobody knows.
            query.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 7, 0xfd, 0xe9, 0, 3, 1, 2, 3]);
            let stub = stub(lab, 3, resolver.at);
            for _ in 0..20 {
                let answer = exchange(&stub, &query);
                assert_eq!(answer[..2], query[..2]);
                assert_eq!(answer[12..29], query[12..29], "the case of the question");
            }
            let asked = resolver.asked();
            assert_eq!(asked.len(), 20);
            for (from, message) in &asked {
                assert_eq!(from.ip(), client_address(family, 3));
                assert_eq!(message[2..], query[2..]);
            }
            let distinct = |of: fn(&(SocketAddr, Vec<u8>)) -> u16| {
                let mut seen: Vec<u16> = asked.iter().map(of).collect();
                seen.sort_unstable();
                seen.dedup();
                seen.len()
            };
            assert!(distinct(|(from, _)| from.port()) >= 18);
            assert!(distinct(|(_, message)| u16::from_be_bytes([message[0], message[1]])) >= 18);
        });
    });
}

#[test]
fn a_blocked_name_is_answered_here_and_causes_no_packet_upstream() {
    in_lab(|lab| {
        let gateway = start(lab, r#"answer_ips = ["10.9.9.9", "fd00:9::9"]"#);
        let tap = Tap::at_server(lab).unwrap();
        each_family(|family| {
            let resolver = at(Site::A, family, 53, 53);
            let answer = ask(lab, resolver, &question("ads.blocked.example.", RecordType::A));
            assert_eq!(addresses(&answer), ["10.9.9.9".parse::<IpAddr>().unwrap()]);
            let answer = ask(lab, resolver, &question("blocked.example.", RecordType::AAAA));
            assert_eq!(addresses(&answer), ["fd00:9::9".parse::<IpAddr>().unwrap()]);
            let answer = ask(lab, resolver, &question("blocked.example.", RecordType::TXT));
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!((answer.answers.len(), answer.authorities.len()), (0, 1));
            let mut odd = question("aXb.blocked.example.", RecordType::A);
            odd[14] = b'.';
            assert_eq!(addresses(&ask(lab, resolver, &odd)).len(), 1, "a dot within a label hides nothing");
            for canary in ["use-application-dns.net.", "mask.icloud.com."] {
                let answer = ask(lab, resolver, &question(canary, RecordType::A));
                assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{canary}");
            }
            let mut stream = connect_tcp(lab, resolver);
            write_frame(&mut stream, &question("blocked.example.", RecordType::A));
            let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
            assert_eq!(addresses(&answer), ["10.9.9.9".parse::<IpAddr>().unwrap()]);
            assert_eq!(tap.count(lab, resolver).unwrap(), 0);
        });
        let record = gateway.enforcer.record(|record| record["domain"] == "ads.blocked.example", DEADLINE).unwrap();
        for (field, value) in [
            ("kind", "dns"),
            ("network", "clients"),
            ("policy", "out"),
            ("direction", "outbound"),
            ("protocol", "udp"),
            ("type", "DNS"),
            ("qtype", "A"),
            ("domain_verdict", "block"),
            ("verdict", "block"),
            ("reason", "DOMAIN"),
            ("list", "blocked-names"),
            ("rcode", "NOERROR"),
        ] {
            assert_eq!(record[field], value, "{field} of {record}");
        }
    });
}

#[test]
fn without_answer_addresses_a_blocked_name_does_not_exist() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        let answer = ask(lab, at(Site::A, Family::V4, 53, 53), &question("blocked.example.", RecordType::A));
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(matches!(answer.authorities[0].data, RData::SOA(_)));
    });
}

#[test]
fn an_unauthorized_resolver_gets_no_packet_and_the_client_sees_the_drop_action() {
    in_lab(|lab| {
        let authorized = |family| at(Site::A, family, 53, 53);
        let list = format!(
            "authorized_resolvers = [\"{}\", \"{}\"]",
            authorized(Family::V4).ip(),
            authorized(Family::V6).ip()
        );
        let gateway = start(lab, &list);
        let tap = Tap::at_server(lab).unwrap();
        each_family(|family| {
            let resolver = Resolver::start(lab, authorized(family), honest);
            assert_eq!(addresses(&ask(lab, resolver.at, &question("a.example.", RecordType::A))).len(), 1);
            let other = at(Site::A, family, 54, 53);
            let stub = stub(lab, 0, other);
            stub.send(&question("a.example.", RecordType::A)).unwrap();
            let refused = stub.recv(&mut [0; 512]).unwrap_err().raw_os_error();
            assert_eq!(refused, Some(if family == Family::V4 { libc::EHOSTUNREACH } else { libc::EACCES }));
            // Whether the reset comes while connect() still waits, or just after.
            let stream = lab.client.run(|| TcpStream::connect_timeout(&other, DEADLINE)).unwrap();
            match stream {
                Err(refused) => assert_eq!(refused.kind(), ErrorKind::ConnectionReset),
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    assert_eq!(stream.read(&mut [0; 2]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                }
            }
            assert_eq!(tap.count(lab, other).unwrap(), 0);
            let source = stub.local_addr().unwrap();
            let fits = |record: &serde_json::Value| record["source_port"] == source.port() && record["kind"] == "dns";
            let record = gateway.enforcer.record(fits, DEADLINE).unwrap();
            assert_eq!((&record["reason"], &record["verdict"]), (&"RESOLVER".into(), &"block".into()));
        });
    });
}

#[test]
fn a_discarded_question_gets_nothing_and_a_reset_one_icmp() {
    in_lab(|lab| {
        for (drop, hears) in [("discard", false), ("tcp-reset", true)] {
            let gateway = Gateway::start(lab, &configuration(drop, "authorized_resolvers = [\"192.0.2.1\"]"));
            let tap = Tap::at_client(lab).unwrap();
            let other = at(Site::A, Family::V4, 54, 53);
            let stub = stub(lab, 0, other);
            stub.send(&question("a.example.", RecordType::A)).unwrap();
            let source = stub.local_addr().unwrap();
            gateway.enforcer.record(|record| record["source_port"] == source.port(), DEADLINE).unwrap();
            let icmp = tap.packets(lab, |packet| matches!(packet.kind, Kind::Icmp { .. })).unwrap();
            assert_eq!(!icmp.is_empty(), hears, "{drop}");
            gateway.stop();
        }
    });
}

#[test]
fn a_closed_world_answers_unlisted_names_itself() {
    in_lab(|lab| {
        let _gateway = start(lab, r#"unlisted = "block""#);
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        let code = |name: &str| ask(lab, resolver.at, &question(name, RecordType::A)).metadata.response_code;
        assert_eq!(code("allowed.example."), ResponseCode::NoError);
        for name in ["tunnel.allowed.example.", "unlisted.example.", ".", "123."] {
            assert_eq!(code(name), ResponseCode::NXDomain, "{name}");
        }
        assert_eq!(resolver.asked().len(), 1);
    });
}

/// `www.example` leads to `ads.blocked.example`, which has an address.
fn alias(query: &[u8]) -> Vec<Vec<u8>> {
    let mut message = Message::from_vec(&answered(query, 60, "192.0.2.1", "2001:db8::1")).unwrap();
    let target = Name::from_ascii("ads.blocked.example.").unwrap();
    message.answers[0].name = target.clone();
    let link = Record::from_rdata(message.queries[0].name().clone(), 60, RData::CNAME(CNAME(target)));
    message.answers.insert(0, link);
    vec![message.to_vec().unwrap()]
}

#[test]
fn an_alias_to_a_blocked_name_is_answered_as_blocked() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        each_family(|family| {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), alias);
            let answer = ask(lab, resolver.at, &question("www.example.", RecordType::A));
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            assert!(answer.answers.is_empty());
            let mut stream = connect_tcp(lab, resolver.at);
            write_frame(&mut stream, &question("www.example.", RecordType::A));
            let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        });
    });
}

#[test]
fn a_dead_resolver_is_servfail_within_two_seconds() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), |_| Vec::new());
        let stub = stub(lab, 0, resolver.at);
        let query = question("a.example.", RecordType::A);
        let begun = Instant::now();
        let answer = Message::from_vec(&exchange(&stub, &query)).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(begun.elapsed().as_millis() < 2000, "{:?}", begun.elapsed());
        let mut stream = connect_tcp(lab, resolver.at);
        write_frame(&mut stream, &query);
        let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(resolver.asked().len(), 2);
    });
}

/// As large as TCP allows.
fn huge(query: &[u8]) -> Vec<Vec<u8>> {
    let mut message = answered(query, 60, "192.0.2.1", "2001:db8::1");
    let mut count = 1u16;
    while message.len() + 12 + 200 <= 65_535 {
        message.extend([0xc0, 12, 255, 0, 0, 1, 0, 0, 0, 60, 0, 200]);
        message.extend([0xc0; 200]);
        count += 1;
    }
    message[6..8].copy_from_slice(&count.to_be_bytes());
    vec![message]
}

#[test]
fn a_tcp_answer_of_64_kib_passes_byte_for_byte() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        each_family(|family| {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), huge);
            let query = question("big.example.", RecordType::A);
            let mut stream = connect_tcp(lab, resolver.at);
            write_frame(&mut stream, &query);
            let answer = read_frame(&mut stream).unwrap();
            assert!(answer.len() > 65_000);
            assert_eq!(answer, huge(&query)[0]);
            assert_eq!(resolver.asked()[0].0.ip(), stream.local_addr().unwrap().ip());
        });
    });
}

#[test]
fn fifty_questions_in_a_row_on_one_connection_are_all_answered() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        let mut stream = connect_tcp(lab, resolver.at);
        let name =
            |n: u16| if n.is_multiple_of(5) { format!("n{n}.blocked.example.") } else { format!("n{n}.example.") };
        for n in 0..50 {
            let mut query = question(&name(n), RecordType::A);
            query[..2].copy_from_slice(&n.to_be_bytes());
            write_frame(&mut stream, &query);
        }
        let mut seen = Vec::new();
        for _ in 0..50 {
            let answer = Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap();
            assert_eq!(answer.queries[0].name().to_string(), name(answer.metadata.id));
            assert_eq!(answer.answers.is_empty(), answer.metadata.id.is_multiple_of(5));
            seen.push(answer.metadata.id);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<u16>>());
        assert_eq!(resolver.asked().len(), 40);
    });
}

#[test]
fn malformed_queries_never_reach_a_resolver() {
    in_lab(|lab| {
        let gateway = start(lab, "");
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        let good = question("a.example.", RecordType::A);
        let with = |at: usize, octet: u8| {
            let mut query = good.clone();
            query[at] = octet;
            query
        };
        let stub = stub(lab, 0, resolver.at);
        let formerr = [
            with(5, 2),
            with(5, 0),
            with(7, 1),
            with(12, 0xc0),
            with(12, 63),
            [&good[..], &[0]].concat(),
            good[..good.len() - 1].to_vec(),
        ];
        for query in &formerr {
            assert_eq!(exchange(&stub, query)[3] & 15, 1, "{query:?}");
        }
        assert_eq!(exchange(&stub, &with(2, 0x29))[3] & 15, 4, "an update");
        for ignored in [vec![], vec![0; 5], with(2, 0x81), vec![0xff; 4000], vec![0; 60_000]] {
            stub.send(&ignored).unwrap();
        }
        let mut stream = connect_tcp(lab, resolver.at);
        write_frame(&mut stream, &[0; 4096]);
        assert_eq!(read_frame(&mut stream).unwrap()[3] & 15, 1);
        write_frame(&mut stream, &[]);
        assert!(read_frame(&mut stream).is_none(), "a message without octets ends the connection");
        assert_eq!(exchange(&stub, &good)[..2], good[..2]);
        assert_eq!(resolver.asked().len(), 1);
        let unread = |record: &serde_json::Value| record["reason"] == "UNREADABLE" && record["action"] == "discard";
        gateway.enforcer.record(unread, DEADLINE).unwrap();
        let ended = gateway.stop();
        assert!(ended.messages.iter().any(|line| line.contains("dns_unread=5")), "{:#?}", ended.messages);
    });
}

/// A question with so many octets, most of them padding (RFC 7830).
fn padded(octets: u16) -> Vec<u8> {
    let mut query = question("a.example.", RecordType::A);
    query[11] = 1;
    let padding = octets - query.len() as u16 - 15;
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0]);
    query.extend((padding + 4).to_be_bytes());
    query.extend([0, 12]);
    query.extend(padding.to_be_bytes());
    query.resize(octets.into(), 0);
    query
}

#[test]
fn a_question_too_long_for_a_datagram_is_read_over_tcp_no_more() {
    in_lab(|lab| {
        let gateway = start(lab, "");
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        let mut stream = connect_tcp(lab, resolver.at);
        write_frame(&mut stream, &padded(4096));
        assert_eq!(addresses(&Message::from_vec(&read_frame(&mut stream).unwrap()).unwrap()).len(), 1);
        // Its length alone: none of the rest is waited for.
        stream.write_all(&4097u16.to_be_bytes()).unwrap();
        assert!(read_frame(&mut stream).is_none(), "it ends the connection");
        let mut stream = connect_tcp(lab, resolver.at);
        let source = stream.local_addr().unwrap();
        send_anyway(&stream, &[&60_000u16.to_be_bytes()[..], &padded(60_000)].concat());
        assert!(read_frame(&mut stream).is_none());
        let record = gateway.enforcer.record(|record| is_from(record, source), DEADLINE).unwrap();
        let said = ["verdict", "reason", "action"].map(|field| record[field].as_str().unwrap());
        assert_eq!(said, ["block", "UNREADABLE", "discard"], "{record:#}");
        assert_eq!(resolver.asked().len(), 1);
        let ended = gateway.stop();
        assert!(ended.messages.iter().any(|line| line.contains("dns_unread=2")), "{:#?}", ended.messages);
    });
}

#[test]
fn a_resolver_on_the_gateway_is_intercepted_too() {
    in_lab(|lab| {
        let _gateway = start(lab, "");
        each_family(|family| {
            let own = SocketAddr::new(gateway_address(family), 53);
            let udp = lab.gateway.run(|| UdpSocket::bind(own).unwrap()).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    udp.send_to(&honest(&buffer[..length])[0], from).unwrap();
                }
            });
            assert_eq!(addresses(&ask(lab, own, &question("a.example.", RecordType::A))).len(), 1);
            let answer = ask(lab, own, &question("blocked.example.", RecordType::A));
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        });
    });
}

#[test]
fn where_any_resolver_may_be_asked_one_whose_address_is_on_a_block_list_is_asked_nothing() {
    in_lab(|lab| {
        let resolvers = Family::BOTH.map(|family| at(Site::B, family, 66, 53));
        let listed = resolvers.map(|resolver| format!("\"{}\"", resolver.ip())).join(", ");
        let gateway = Gateway::start(lab, &configuration("discard", "").replace("\"203.0.113.66\"", &listed));
        for at in resolvers {
            let resolver = Resolver::start(lab, at, honest);
            let stub = stub(lab, 0, at);
            stub.send(&question("a.example.", RecordType::A)).unwrap();
            let source = stub.local_addr().unwrap();
            let record = gateway.enforcer.record(|record| is_from(record, source), DEADLINE).unwrap();
            let said = ["verdict", "reason", "list"].map(|field| record[field].as_str().unwrap());
            assert_eq!(said, ["block", "BLOCK_LIST", "blocked-names"], "{record:#}");
            assert_eq!(resolver.asked(), []);
        }
    });
}

fn monitored(dns: &str) -> String {
    configuration("discard", dns).replace("directions =", "mode = \"monitor\"\ndirections =")
}

#[test]
fn a_monitored_network_answers_nothing_itself_and_records_what_it_would_have_done() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &monitored(""));
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        let answer = ask(lab, resolver.at, &question("blocked.example.", RecordType::A));
        assert_eq!(addresses(&answer).len(), 1);
        let record = gateway.enforcer.record(|record| record["domain"] == "blocked.example", DEADLINE).unwrap();
        assert_eq!((&record["verdict"], &record["action"]), (&"block".into(), &"monitor".into()));
    });
}

#[test]
fn a_monitored_network_records_the_answer_that_it_would_have_blocked_and_releases_it() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &monitored(""));
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), alias);
        let answer = ask(lab, resolver.at, &question("www.example.", RecordType::A));
        assert_eq!(answer.answers.len(), 2);
        let record = gateway.enforcer.record(|record| record["domain"] == "www.example", DEADLINE).unwrap();
        let said = ["verdict", "action", "reason", "list"].map(|field| record[field].as_str().unwrap_or_default());
        assert_eq!(said, ["block", "monitor", "BLOCK_LIST", "blocked-names"], "{record:#}");
        assert_eq!(record["answers"], serde_json::json!(["192.0.2.1"]), "{record:#}");
    });
}

/// Two addresses, of which one is on the block list.
fn with_a_blocked_address(query: &[u8]) -> Vec<Vec<u8>> {
    let mut message = Message::from_vec(&answered(query, 60, "192.0.2.80", "2001:db8:80::1")).unwrap();
    message.add_answer(Record::from_rdata(message.queries[0].name().clone(), 60, RData::A(A::new(203, 0, 113, 66))));
    vec![message.to_vec().unwrap()]
}

#[test]
fn blocked_addresses_are_taken_out_of_an_answer_unless_the_network_only_monitors() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), with_a_blocked_address);
        let filter = "filter_answers = true";
        for (text, count) in [(configuration("discard", filter), 1), (monitored(filter), 2)] {
            let gateway = Gateway::start(lab, &text);
            let answer = ask(lab, resolver.at, &question("www.example.", RecordType::A));
            assert_eq!(addresses(&answer).len(), count, "{text}");
            gateway.stop();
        }
    });
}

/// An address of five octets.
fn with_an_odd_address(query: &[u8]) -> Vec<Vec<u8>> {
    let mut answer = answered(query, 60, "192.0.2.80", "2001:db8:80::1");
    let length = answer.len() - 5;
    answer[length] = 5;
    answer.push(0);
    vec![answer]
}

#[test]
fn an_answer_that_cannot_be_read_passes_where_the_network_only_monitors() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), with_an_odd_address);
        let query = question("www.example.", RecordType::A);
        let gateway = start(lab, "");
        assert_eq!(ask(lab, resolver.at, &query).metadata.response_code, ResponseCode::ServFail);
        gateway.stop();
        let _gateway = Gateway::start(lab, &monitored(""));
        assert_eq!(exchange(&stub(lab, 0, resolver.at), &query), with_an_odd_address(&query)[0]);
    });
}

#[test]
fn what_each_of_two_networks_does_is_recorded_where_the_resolvers_only_monitors() {
    in_lab(|lab| {
        let servers = r#"
[[policy]]
name = "in"
default = "block"
[[network]]
name = "servers"
mode = "monitor"
directions = "inbound"
ips = [{ ip = "198.51.100.0", maskbits = 24 }]
inbound = { policy = "in", drop = "discard" }
"#;
        let gateway = Gateway::start(lab, &(configuration("discard", "") + servers));
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), honest);
        for (name, code, expected) in [
            ("blocked.example", ResponseCode::NXDomain, ["clients", "out", "outbound", "DOMAIN", "dns-answer"]),
            ("www.example", ResponseCode::NoError, ["servers", "in", "inbound", "DEFAULT", "monitor"]),
        ] {
            let answer = ask(lab, resolver.at, &question(&format!("{name}."), RecordType::A));
            assert_eq!(answer.metadata.response_code, code);
            let record = gateway.enforcer.record(|record| record["domain"] == name, DEADLINE).unwrap();
            let fields = ["network", "policy", "direction", "reason", "action"];
            assert_eq!(record["verdict"], "block", "{record:#}");
            assert_eq!(fields.map(|field| record[field].as_str().unwrap_or_default()), expected, "{record:#}");
        }
    });
}
