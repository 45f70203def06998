//! Names and the addresses that DNS gave for them (SPEC V11 and V12).
//!
//! ```text
//! client -- gateway -- server: allowed.example at host 1 of site B, whose addresses are blocked; a resolver in site A
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, HTTPS, SVCB};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use super::each_family;
use super::resolver::{Resolver, answered, ask, exchange, question, stub, with_question_of};
use crate::gateway::{Gateway, at, configuration, connect, get, listen, until};
use crate::inside::in_lab;

/// `allowed.example` and every other name stand at host 1 of site B.
fn at_host_1(query: &[u8]) -> Vec<Vec<u8>> {
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = ("203.0.113.1".parse().unwrap(), "2001:db8:b::1".parse().unwrap());
    vec![answered(query, 60, &v4.to_string(), &v6.to_string())]
}

/// Resolvers that may be asked, one for each family: a binding is for the client's address that asked.
struct Resolvers([Resolver; 2]);

impl Resolvers {
    fn tell_the_client_of(&self, lab: &Lab, family: Family) {
        let (resolver, kind) = match family {
            Family::V4 => (&self.0[0], RecordType::A),
            Family::V6 => (&self.0[1], RecordType::AAAA),
        };
        ask(lab, resolver.at, &question("allowed.example.", kind));
    }

    fn asked(&self) -> usize {
        self.0.iter().map(|resolver| resolver.asked().len()).sum()
    }
}

/// A gateway that trusts names only with what `inspection` says.
fn start(lab: &Lab, inspection: &str) -> (Gateway, Resolvers) {
    let resolvers = Family::BOTH.map(|family| Resolver::start(lab, at(Site::A, family, 53, 53), at_host_1));
    let [v4, v6] = resolvers.each_ref().map(|resolver| resolver.at.ip());
    let dns = format!("[network.dns]\nauthorized_resolvers = [\"{v4}\", \"{v6}\"]");
    let inspection = format!("type = \"explicit\"\n{inspection}\n{dns}");
    (Gateway::start(lab, &configuration("tcp-reset", &inspection)), Resolvers(resolvers))
}

#[test]
fn a_name_at_an_address_that_dns_never_gave_earns_nothing_and_its_server_sees_no_packet() {
    in_lab(|lab| {
        let (gateway, resolvers) = start(lab, "bind = \"enforce\"");
        let _accepted = listen(lab, 80);
        let tap = Tap::at_server(lab).unwrap();
        each_family(|family| {
            // What the client was told about host 1 says nothing about host 2.
            resolvers.tell_the_client_of(lab, family);
            let pinned = at(Site::B, family, 2, 80);
            let mut client = connect(lab, pinned);
            client.write_all(get("allowed.example").as_bytes()).unwrap();
            assert!(client.read(&mut [0; 1]).is_err(), "a reset");
            let record = gateway.verdict_on(client.local_addr().unwrap());
            for (field, value) in
                [("verdict", "block"), ("binding", "mismatch"), ("domain_verdict", "none"), ("reason", "BINDING")]
            {
                assert_eq!(record[field], value, "{record:#}");
            }
            assert_eq!(tap.count(lab, pinned).unwrap(), 0);
        });
    });
}

#[test]
fn a_name_at_the_address_that_dns_gave_the_client_earns_its_allow_without_another_question() {
    in_lab(|lab| {
        let (gateway, resolvers) = start(lab, "bind = \"enforce\"");
        let accepted = listen(lab, 80);
        each_family(|family| {
            resolvers.tell_the_client_of(lab, family);
            let asked = resolvers.asked();
            let mut client = connect(lab, at(Site::B, family, 1, 80));
            client.write_all(get("allowed.example").as_bytes()).unwrap();
            accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
            let record = gateway.verdict_on(client.local_addr().unwrap());
            assert_eq!((&record["verdict"], &record["binding"]), (&"allow".into(), &"match".into()), "{record:#}");
            assert_eq!(resolvers.asked(), asked);
        });
    });
}

#[test]
fn a_client_that_never_asked_is_helped_by_one_fresh_look_up() {
    in_lab(|lab| {
        let (gateway, resolvers) = start(lab, "bind = \"enforce\"");
        let accepted = listen(lab, 80);
        each_family(|family| {
            let asked = resolvers.asked();
            for _ in 0..2 {
                let mut client = connect(lab, at(Site::B, family, 1, 80));
                client.write_all(get("allowed.example").as_bytes()).unwrap();
                accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
                assert_eq!(gateway.verdict_on(client.local_addr().unwrap())["binding"], "match");
                assert_eq!(resolvers.asked(), asked + 1, "one question, whose answer is kept");
            }
        });
    });
}

#[test]
fn a_later_request_for_a_name_without_a_binding_ends_the_connection() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), |query| {
            // Names of nine letters and more (the first label's length) stand elsewhere.
            let elsewhere = query[12] > 8;
            let (v4, v6) = if elsewhere { ("203.0.113.9", "2001:db8:b::9") } else { ("203.0.113.1", "2001:db8:b::1") };
            vec![answered(query, 60, v4, v6)]
        });
        let dns = format!("[network.dns]\nauthorized_resolvers = [\"{}\"]", resolver.at.ip());
        let inspection = format!("type = \"explicit\"\nbind = \"enforce\"\n{dns}");
        let configuration = configuration("tcp-reset", &inspection)
            .replace(r#"entries = ["allowed.example"]"#, r#"entries = ["near.example", "elsewhere.example"]"#);
        let gateway = Gateway::start(lab, &configuration);
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::B, family, 1, 80));
            client.write_all(get("near.example").as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
            let mut head = vec![0; get("near.example").len()];
            server.read_exact(&mut head).unwrap();
            client.write_all(get("elsewhere.example").as_bytes()).unwrap();
            assert!(client.read(&mut [0; 1]).is_err(), "a reset");
            let mut rest = Vec::new();
            let _ = server.read_to_end(&mut rest);
            assert_eq!(rest, b"", "not one octet of it reached the server");
            assert_eq!(gateway.end_of(client.local_addr().unwrap())["closed_by"], "policy");
        });
    });
}

#[test]
fn a_mismatch_that_is_only_recorded_blocks_nothing() {
    in_lab(|lab| {
        let (gateway, _resolvers) = start(lab, "bind = \"log\"");
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::B, family, 2, 80));
            client.write_all(get("allowed.example").as_bytes()).unwrap();
            accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
            let record = gateway.verdict_on(client.local_addr().unwrap());
            assert_eq!((&record["verdict"], &record["binding"]), (&"allow".into(), &"mismatch".into()), "{record:#}");
        });
    });
}

#[test]
fn a_flow_that_shows_no_name_has_the_one_that_dns_gave_for_its_address() {
    in_lab(|lab| {
        let (gateway, resolvers) = start(lab, "use_bindings = true");
        let accepted = listen(lab, 80);
        each_family(|family| {
            resolvers.tell_the_client_of(lab, family);
            for (host, verdict, via) in [(1, "allow", "DNS"), (2, "block", "")] {
                let mut client = connect(lab, at(Site::B, family, host, 80));
                client.write_all(b"SSH-2.0-client\r\n").unwrap();
                if verdict == "allow" {
                    accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
                }
                let record = gateway.verdict_on(client.local_addr().unwrap());
                assert_eq!(record["verdict"], verdict, "{record:#}");
                assert_eq!(record["type"].as_str().unwrap_or_default(), via, "{record:#}");
            }
        });
    });
}

/// Whoever owns some name may send those who ask for it to any other, with hints of any address.
#[test]
fn a_hint_of_one_names_owner_binds_no_other_name_that_it_points_to() {
    in_lab(|lab| {
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), |query| {
            let mut message = Message::from_vec(query).unwrap().into_response();
            let question = message.queries[0].clone();
            if question.query_type() == RecordType::HTTPS {
                let mut service = SVCB::new(1, Name::from_ascii("allowed.example.").unwrap(), vec![]);
                let hint = IpHint(vec![A("203.0.113.9".parse().unwrap())]);
                service.svc_params.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(hint)));
                let data = RData::HTTPS(HTTPS(service));
                message.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                return vec![with_question_of(message.to_vec().unwrap(), query)];
            }
            at_host_1(query)
        });
        let dns = format!("[network.dns]\nauthorized_resolvers = [\"{}\"]", resolver.at.ip());
        let inspection = format!("type = \"explicit\"\nbind = \"enforce\"\n{dns}");
        let gateway = Gateway::start(lab, &configuration("tcp-reset", &inspection));
        ask(lab, resolver.at, &question("other.example.", RecordType::HTTPS));
        let mut client = connect(lab, at(Site::B, Family::V4, 9, 80));
        client.write_all(get("allowed.example").as_bytes()).unwrap();
        let record = gateway.verdict_on(client.local_addr().unwrap());
        assert_eq!((&record["verdict"], &record["binding"]), (&"block".into(), &"mismatch".into()), "{record:#}");
    });
}

/// V12: on ports that nobody inspects the kernel judges, by the name that DNS gave, for as long as its record lives.
#[test]
fn the_kernel_judges_by_the_name_that_dns_gave_on_ports_that_nobody_inspects() {
    in_lab(|lab| {
        let (gateway, resolvers) = start(lab, "use_bindings = true");
        let accepted = listen(lab, 9874);
        each_family(|family| {
            let named = at(Site::B, family, 1, 9874);
            // Before DNS has spoken the address decides, and it is blocked.
            let before = lab.client.run(|| try_to_connect(named)).unwrap();
            assert!(before.is_err());
            resolvers.tell_the_client_of(lab, family);
            let client = connect(lab, named);
            accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
            let record = gateway.verdict_on(client.local_addr().unwrap());
            for (field, value) in
                [("kind", "domain"), ("type", "DNS"), ("domain", "allowed.example"), ("verdict", "allow")]
            {
                assert_eq!(record[field], value, "{record:#}");
            }
            let unnamed = at(Site::B, family, 2, 9874);
            assert!(lab.client.run(|| try_to_connect(unnamed)).unwrap().is_err());
        });
    });
}

/// What makes room in the table of bindings, makes room in the kernel.
#[test]
fn the_kernel_forgets_a_name_that_had_to_make_room_for_others() {
    in_lab(|lab| {
        // One of each shard.
        let (_gateway, resolver) = start_with_few(lab, 16);
        let accepted = listen(lab, 9874);
        let named = at(Site::B, Family::V4, 1, 9874);
        ask(lab, resolver.at, &question("allowed.example.", RecordType::A));
        connect(lab, named);
        accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
        for number in 2..200 {
            ask(lab, resolver.at, &question(&format!("{number}.example."), RecordType::A));
        }
        let connected = || lab.client.run(|| try_to_connect(named)).unwrap();
        until("a refusal, long before the record ends", connected, Result::is_err);
    });
}

/// A client that asks for many names has its own make room, not those of others.
#[test]
fn a_client_that_asks_for_many_names_takes_none_from_another() {
    in_lab(|lab| {
        // Four of each shard.
        let (gateway, resolver) = start_with_few(lab, 64);
        let _accepted = listen(lab, 80);
        ask(lab, resolver.at, &question("allowed.example.", RecordType::A));
        let greedy = stub(lab, 1, resolver.at);
        for number in 2..250 {
            exchange(&greedy, &question(&format!("{number}.example."), RecordType::A));
        }
        let mut client = connect(lab, at(Site::B, Family::V4, 1, 80));
        client.write_all(b"SSH-2.0-client\r\n").unwrap();
        let record = gateway.verdict_on(client.local_addr().unwrap());
        assert_eq!((&record["verdict"], &record["domain"]), (&"allow".into(), &"allowed.example".into()), "{record:#}");
    });
}

/// A gateway that uses at most so many bindings, and a resolver that knows many names.
fn start_with_few(lab: &Lab, bindings: usize) -> (Gateway, Resolver) {
    let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), at_its_number);
    let dns = format!("[network.dns]\nauthorized_resolvers = [\"{}\"]", resolver.at.ip());
    let inspection = format!("type = \"explicit\"\nuse_bindings = true\n{dns}");
    let limits = format!("[limits.dns]\nbindings = {bindings}\n");
    (Gateway::start(lab, &(configuration("tcp-reset", &inspection) + &limits)), resolver)
}

/// `NUMBER.example` stands at host NUMBER of site B, any other name at host 1.
fn at_its_number(query: &[u8]) -> Vec<Vec<u8>> {
    let label = query.get(13..).unwrap_or_default().iter().take_while(|octet| octet.is_ascii_digit());
    let number = label.fold(0, |number, digit| number * 10 + u32::from(digit - b'0')).max(1);
    vec![answered(query, 60, &format!("203.0.113.{number}"), &format!("2001:db8:b::{number}"))]
}

fn try_to_connect(destination: std::net::SocketAddr) -> std::io::Result<std::net::TcpStream> {
    std::net::TcpStream::connect_timeout(&destination, crate::gateway::DEADLINE)
}
