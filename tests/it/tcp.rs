//! TCP flows through a gateway: names found however they come, and relays that lose nothing.
//!
//! ```text
//! client -- gateway (tidegate run) -- server
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tidegate::mode::demo::client::{Saw, ask_http, ask_tls};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{
    DEADLINE, Gateway, at, configuration, connect, get, hello, is_from, listen, protected, request, reset, send_anyway,
    servers,
};
use crate::inside::in_lab;

#[test]
fn a_hello_in_one_byte_segments_is_read_to_its_name() {
    in_lab(|lab| {
        // However slow the machine: only the octets count here.
        let inspection = "type = \"prefer-both\"\ntimeout = \"30s\"";
        let gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let (_origins, trust) = servers(lab);
        each_family(|family| {
            let octets = hello(&trust, Some("blocked.example"));
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 443), |stream| one_by_one(stream, &octets));
            let octets = get("blocked.example").into_bytes();
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 80), |stream| one_by_one(stream, &octets));
            let octets = hello(&trust, Some("allowed.example"));
            assert_answered(lab, at(Site::A, family, 2, 443), 0x16, |stream| one_by_one(stream, &octets));
            let octets = get("allowed.example").into_bytes();
            assert_answered(lab, at(Site::A, family, 2, 80), b'H', |stream| one_by_one(stream, &octets));
        });
    });
}

/// The kernel may count octets that came since the last read: none of these flows is settled without them.
#[test]
fn no_request_in_one_byte_segments_is_judged_before_its_name_is_read() {
    in_lab(|lab| {
        let inspection = "type = \"prefer-both\"\ntimeout = \"30s\"";
        let gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let tap = Tap::at_server(lab).unwrap();
        let destination = at(Site::A, Family::V4, 1, 80);
        let octets = get("blocked.example").into_bytes();
        for _ in 0..150 {
            let (source, saw) = send_and_read(lab, destination, |stream| one_by_one(stream, &octets));
            assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(gateway.verdict_on(source)["domain"], "blocked.example");
        }
        assert_eq!(tap.count(lab, destination).unwrap(), 0);
    });
}

#[test]
fn a_hello_split_over_tls_records_is_read_to_its_name() {
    in_lab(|lab| {
        let gateway = start(lab);
        let (_origins, trust) = servers(lab);
        each_family(|family| {
            let octets = in_records(&hello(&trust, Some("blocked.example")), 9);
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 443), |stream| send_anyway(stream, &octets));
            let octets = in_records(&hello(&trust, Some("allowed.example")), 9);
            assert_answered(lab, at(Site::A, family, 2, 443), 0x16, |stream| send_anyway(stream, &octets));
        });
    });
}

#[test]
fn tls_on_an_http_port_and_http_on_a_tls_port_are_known_by_their_octets() {
    in_lab(|lab| {
        let gateway = start(lab);
        let (_origins, trust) = servers(lab);
        each_family(|family| {
            let octets = hello(&trust, Some("blocked.example"));
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 80), |stream| send_anyway(stream, &octets));
            let octets = get("blocked.example").into_bytes();
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 443), |stream| send_anyway(stream, &octets));
        });
    });
}

#[test]
fn a_hello_below_64_kib_is_read_and_one_above_is_unreadable_and_blocked() {
    in_lab(|lab| {
        let gateway = start(lab);
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        each_family(|family| {
            let large = padded(&hello(&trust, Some("blocked.example")), 60_000);
            assert_blocked_by_name(lab, &gateway, at(Site::A, family, 1, 443), |stream| send_anyway(stream, &large));

            let too_large = padded(&hello(&trust, Some("allowed.example")), 70_000);
            let destination = at(Site::A, family, 2, 443);
            let (source, saw) = send_and_read(lab, destination, |stream| send_anyway(stream, &too_large));
            let record = gateway.verdict_on(source);
            assert_eq!(record["reason"], "UNREADABLE", "{record:#}");
            assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        });
    });
}

#[test]
fn a_malformed_hello_and_contradicting_hosts_are_unreadable_and_blocked() {
    in_lab(|lab| {
        let gateway = start(lab);
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let mut broken = hello(&trust, Some("allowed.example"));
        // The length of the session id, which then covers all that follows and more.
        broken[43] = 0xff;
        let two_hosts = b"GET / HTTP/1.1\r\nhost: allowed.example\r\nhost: blocked.example\r\n\r\n".to_vec();
        let other_target = b"GET http://blocked.example/ HTTP/1.1\r\nhost: allowed.example\r\n\r\n".to_vec();
        each_family(|family| {
            for (octets, port) in [(&broken, 443), (&two_hosts, 80), (&other_target, 80)] {
                let destination = at(Site::A, family, 1, port);
                let (source, saw) = send_and_read(lab, destination, |stream| send_anyway(stream, octets));
                let record = gateway.verdict_on(source);
                assert_eq!((&record["verdict"], &record["reason"]), (&"block".into(), &"UNREADABLE".into()));
                assert!(record["detail"].is_string(), "{record:#}");
                assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert_eq!(tap.count(lab, destination).unwrap(), 0);
            }
        });
    });
}

#[test]
fn a_silent_client_gets_the_verdict_of_its_address_when_the_time_is_over() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"explicit\"\ntimeout = \"200ms\""));
        let accepted = listen(lab, 443);
        let tap = Tap::at_server(lab).unwrap();
        each_family(|family| {
            // A server that speaks first.
            let mut client = connect(lab, at(Site::A, family, 1, 443));
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.write_all(b"220 welcome").unwrap();
            client.read_exact(&mut [0; 11]).unwrap();
            let record = gateway.verdict_on(client.local_addr().unwrap());
            assert_eq!((&record["kind"], &record["verdict"]), (&"ip".into(), &"allow".into()), "{record:#}");

            let destination = at(Site::B, family, 1, 443);
            let (source, saw) = send_and_read(lab, destination, |_| {});
            assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let record = gateway.verdict_on(source);
            assert_eq!((&record["kind"], &record["verdict"]), (&"ip".into(), &"block".into()), "{record:#}");
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        });
    });
}

#[test]
fn octets_of_no_protocol_get_the_verdict_of_their_address_and_arrive_whole() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"explicit\"\ntimeout = \"200ms\""));
        let accepted = listen(lab, 443);
        let tap = Tap::at_server(lab).unwrap();
        let octets: Vec<u8> = (0..4000_u32).map(|n| (n * 7 + 0x80) as u8).collect();
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 443));
            client.write_all(&octets).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = vec![0; octets.len()];
            server.read_exact(&mut received).unwrap();
            assert_eq!(received, octets);

            let destination = at(Site::B, family, 1, 443);
            let (source, saw) = send_and_read(lab, destination, |stream| send_anyway(stream, &octets));
            assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let record = gateway.verdict_on(source);
            assert_eq!((&record["kind"], &record["verdict"]), (&"ip".into(), &"block".into()), "{record:#}");
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        });
    });
}

#[test]
fn octets_that_some_server_passes_over_neither_wait_nor_hide_the_request_behind_them() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\"\ntimeout = \"60s\""));
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let source = client.local_addr().unwrap();
            client.write_all(b"\x05\x01\0").unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.read_exact(&mut [0; 3]).unwrap();
            client.write_all(get("blocked.example").as_bytes()).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let mut more = Vec::new();
            let _ = server.read_to_end(&mut more);
            assert!(!more.contains(&b'\n'), "{}", String::from_utf8_lossy(&more));
            let is_block = |record: &Value| is_from(record, source) && record["verdict"] == "block";
            let record = gateway.enforcer.record(is_block, DEADLINE).unwrap();
            assert_eq!(record["reason"], "UNREADABLE", "{record:#}");
        });
    });
}

#[test]
fn a_flow_that_its_address_blocks_is_noted_while_it_is_held_for_its_name() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"explicit\""));
        let (_origins, _) = servers(lab);
        let mut sources = Vec::new();
        each_family(|family| {
            let request = request(family, at(Site::B, family, 1, 80), Some("allowed.example"));
            let outcome = lab.client.run(|| ask_http(&request)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
            sources.push(outcome.source.unwrap());
        });
        let records = gateway.stop().records();
        for source in sources {
            let of_it: Vec<&Value> = records.iter().filter(|record| is_from(record, source)).collect();
            let story: Vec<_> = of_it
                .iter()
                .map(|r| [&r["kind"], &r["reason"], &r["verdict"]].map(|v| v.as_str().unwrap_or("-")))
                .collect();
            assert_eq!(
                story,
                [["ip", "DOMAIN_INSPECT", "allow"], ["domain", "DOMAIN", "allow"], ["end", "-", "-"]],
                "{of_it:#?}"
            );
        }
    });
}

#[test]
fn a_half_closed_flow_goes_on_in_the_other_direction() {
    in_lab(|lab| {
        let gateway = start(lab);
        let accepted = listen(lab, 80);
        let answer = vec![b'a'; 300_000];
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let asked = get("allowed.example");
            client.write_all(asked.as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = String::new();
            server.read_to_string(&mut received).unwrap();
            assert_eq!(received, asked);
            server.write_all(&answer).unwrap();
            drop(server);
            let mut seen = Vec::new();
            client.read_to_end(&mut seen).unwrap();
            assert_eq!(seen, answer);

            let end = gateway.end_of(client.local_addr().unwrap());
            assert_eq!(end["bytes_out"], asked.len(), "{end:#}");
            assert_eq!(end["bytes_in"], answer.len(), "{end:#}");
            assert_eq!(end["closed_by"], "client", "{end:#}");
            assert!(end["duration_ms"].is_u64(), "{end:#}");
        });
    });
}

#[test]
fn a_server_that_ends_first_still_hears_the_client_out() {
    in_lab(|lab| {
        let gateway = start(lab);
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            client.write_all(post("allowed.example", 8).as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            client.write_all(b"the rest").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut received = String::new();
            server.read_to_string(&mut received).unwrap();
            assert!(received.ends_with("the rest"), "{received}");
            assert_eq!(gateway.end_of(client.local_addr().unwrap())["closed_by"], "server");
        });
    });
}

#[test]
fn bulk_in_both_directions_at_once_arrives_whole_and_is_counted() {
    const OCTETS: usize = 8 << 20;
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        for watch in ["first-request", "every-request"] {
            let inspection = format!("type = \"prefer-both\"\nhttp = \"{watch}\"");
            let gateway = Gateway::start(lab, &configuration("tcp-reset", &inspection));
            each_family(|family| {
                let mut client = connect(lab, at(Site::A, family, 1, 80));
                let asked = post("allowed.example", OCTETS);
                client.write_all(asked.as_bytes()).unwrap();
                let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
                server.read_exact(&mut vec![0; asked.len()]).unwrap();
                let source = client.local_addr().unwrap();
                let other = thread::spawn(move || exchange(server, 3, 11, OCTETS));
                exchange(client, 11, 3, OCTETS);
                other.join().unwrap();
                let end = gateway.end_of(source);
                assert_eq!(end["bytes_out"], asked.len() + OCTETS, "{end:#}");
                assert_eq!(end["bytes_in"], OCTETS, "{end:#}");
            });
            gateway.stop();
        }
    });
}

#[test]
fn every_request_of_a_connection_is_judged_and_a_blocked_one_never_arrives() {
    in_lab(|lab| {
        let gateway = start(lab);
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let source = client.local_addr().unwrap();
            let asked = get("allowed.example");
            client.write_all(asked.as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.read_exact(&mut vec![0; asked.len()]).unwrap();
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            client.read_exact(&mut [0; 27]).unwrap();

            client.write_all(get("blocked.example").as_bytes()).unwrap();
            let error = client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let mut more = Vec::new();
            let _ = server.read_to_end(&mut more);
            assert!(more.is_empty(), "{}", String::from_utf8_lossy(&more));
            let is_block = |record: &Value| is_from(record, source) && record["verdict"] == "block";
            let record = gateway.enforcer.record(is_block, DEADLINE).unwrap();
            assert_eq!(record["domain"], "blocked.example", "{record:#}");
            assert_eq!(gateway.end_of(source)["closed_by"], "policy");
        });
    });
}

#[test]
fn with_first_request_what_follows_is_not_judged() {
    in_lab(|lab| {
        let inspection = "type = \"prefer-both\"\nhttp = \"first-request\"";
        let _gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let both = get("allowed.example") + &get("blocked.example");
            client.write_all(both.as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = vec![0; both.len()];
            server.read_exact(&mut received).unwrap();
            assert_eq!(received, both.as_bytes());
        });
    });
}

#[test]
fn every_request_is_judged_where_the_network_of_the_source_or_of_the_destination_wants_it() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let inspection = |http| format!("[network.inspection]\ntype = \"prefer-both\"\nhttp = \"{http}\"\n");
        let servers = Family::BOTH.map(|family| {
            let site = Site::A.prefix(family);
            format!("{{ ip = \"{}\", maskbits = {} }}", site.network(), site.prefix_len())
        });
        let clients = Family::BOTH.map(protected).join(", ");
        let (rule, open) =
            ("{ policy = \"strict\", drop = \"tcp-reset\" }", "{ policy = \"open\", drop = \"tcp-reset\" }");
        for (first, second, of_clients, of_servers) in
            [("first-request", "every-request", open, rule), ("every-request", "first-request", rule, open)]
        {
            let text = format!(
                "name = \"edge-1\"\n[[list]]\nname = \"bad\"\nverdict = \"block\"\nentries = [\"blocked.example\"]\n\
                 [[policy]]\nname = \"strict\"\ndefault = \"allow\"\nlists = [\"bad\"]\n\
                 [[policy]]\nname = \"open\"\ndefault = \"allow\"\n\
                 [[network]]\nname = \"clients\"\ndirections = \"outbound\"\nips = [{clients}]\noutbound = {of_clients}\n{}\
                 [[network]]\nname = \"servers\"\ndirections = \"inbound\"\nips = [{}]\ninbound = {of_servers}\n{}",
                inspection(first),
                servers.join(", "),
                inspection(second),
            );
            let gateway = Gateway::start(lab, &text);
            each_family(|family| {
                let mut client = connect(lab, at(Site::A, family, 1, 80));
                let asked = get("allowed.example");
                client.write_all(asked.as_bytes()).unwrap();
                let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
                server.read_exact(&mut vec![0; asked.len()]).unwrap();
                client.write_all(get("blocked.example").as_bytes()).unwrap();
                assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert_eq!(gateway.end_of(client.local_addr().unwrap())["closed_by"], "policy");
            });
            gateway.stop();
        }
    });
}

#[test]
fn urgent_octets_arrive_in_their_place() {
    in_lab(|lab| {
        let _gateway = start(lab);
        let accepted = listen(lab, 80);
        each_family(|family| {
            let client = connect(lab, at(Site::A, family, 1, 80));
            let body = vec![b'b'; 1 << 20];
            let asked = post("allowed.example", body.len() + 2);
            let (head, rest) = asked.as_bytes().split_at(20);
            for (piece, urgent) in [(head, &rest[..1]), (&rest[1..], b"!"), (&body, b"!")] {
                (&client).write_all(piece).unwrap();
                assert_eq!(socket2::SockRef::from(&client).send_out_of_band(urgent).unwrap(), 1);
            }
            client.shutdown(Shutdown::Write).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            assert!(received == [asked.as_bytes(), b"!", &body, b"!"].concat(), "{} octets", received.len());
            // And the other way.
            socket2::SockRef::from(&server).send_out_of_band(b"urgent").unwrap();
            drop(server);
            let mut received = Vec::new();
            (&client).read_to_end(&mut received).unwrap();
            assert_eq!(received, b"urgent");
        });
    });
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    in_lab(|lab| {
        let gateway = start(lab);
        let accepted = listen(lab, 80);
        each_family(|family| {
            for client_resets in [true, false] {
                let mut client = connect(lab, at(Site::A, family, 1, 80));
                let source = client.local_addr().unwrap();
                client.write_all(get("allowed.example").as_bytes()).unwrap();
                let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
                server.read_exact(&mut [0; 1]).unwrap();
                let (resetting, mut other) = if client_resets { (client, server) } else { (server, client) };
                reset(resetting);
                let error = other.read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                let by = if client_resets { "client-reset" } else { "server-reset" };
                assert_eq!(gateway.end_of(source)["closed_by"], by);
            }
        });
    });
}

#[test]
fn the_answer_of_a_server_that_resets_a_body_reaches_the_client() {
    in_lab(|lab| {
        let gateway = start(lab);
        let accepted = listen(lab, 80);
        each_family(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let asked = post("allowed.example", 8);
            client.write_all(asked.as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.read_exact(&mut vec![0; asked.len()]).unwrap();
            // Both are there when the gateway looks again.
            kill_process(gateway.enforcer.pid(), Signal::STOP).unwrap();
            client.write_all(b"the body").unwrap();
            server.write_all(b"HTTP/1.1 413 Content Too Large\r\n\r\n").unwrap();
            reset(server);
            kill_process(gateway.enforcer.pid(), Signal::CONT).unwrap();
            let mut answer = Vec::new();
            assert_eq!(client.read_to_end(&mut answer).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
            assert_eq!(gateway.end_of(client.local_addr().unwrap())["closed_by"], "server-reset");
        });
    });
}

#[test]
fn a_client_that_resets_before_its_verdict_costs_its_server_nothing() {
    in_lab(|lab| {
        let gateway = start(lab);
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let octets = hello(&trust, Some("allowed.example"));
        each_family(|family| {
            for sent in [0, 1, 50, octets.len() - 1] {
                let destination = at(Site::A, family, 1, 443);
                let mut client = connect(lab, destination);
                client.write_all(&octets[..sent]).unwrap();
                reset(client);
                assert_eq!(tap.count(lab, destination).unwrap(), 0, "after {sent} octets");
            }
            // And the gateway is as well as before.
            let request = request(family, at(Site::A, family, 2, 443), Some("allowed.example"));
            let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        });
        gateway.stop();
    });
}

#[test]
fn a_server_that_refuses_ends_its_client_with_a_reset() {
    in_lab(|lab| {
        let gateway = start(lab);
        each_family(|family| {
            let octets = get("allowed.example").into_bytes();
            let (source, saw) = send_and_read(lab, at(Site::A, family, 1, 80), |stream| send_anyway(stream, &octets));
            assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(gateway.verdict_on(source)["verdict"], "allow");
            assert_eq!(gateway.end_of(source)["closed_by"], "refused");
        });
    });
}

#[test]
fn flows_past_the_limit_are_reset_and_taken_again_when_others_have_ended() {
    in_lab(|lab| {
        let mut text = configuration("tcp-reset", "type = \"prefer-both\"");
        text.push_str("[limits]\nflows = 2\n");
        let gateway = Gateway::start(lab, &text);
        let accepted = listen(lab, 80);
        let open = |family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            send_anyway(&client, get("allowed.example").as_bytes());
            let accepted = accepted.recv_timeout(DEADLINE).unwrap();
            client.write_all(b"more").unwrap();
            (client, accepted)
        };
        let first = open(Family::V4);
        let second = open(Family::V6);
        // The reset may come before the client has seen its connection begin.
        let third = request(Family::V4, at(Site::A, Family::V4, 2, 80), Some("allowed.example"));
        assert_eq!(lab.client.run(|| ask_http(&third)).unwrap().saw, Saw::Reset);
        let ended = first.0.local_addr().unwrap();
        drop(first);
        gateway.end_of(ended);
        open(Family::V6);
        drop(second);
        gateway.stop();
    });
}

fn start(lab: &Lab) -> Gateway {
    Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""))
}

fn each_family(test: impl FnMut(Family)) {
    Family::BOTH.into_iter().for_each(test);
}

/// Connects, lets `send` speak, and reads the first octet of whatever comes back.
fn send_and_read(
    lab: &Lab,
    destination: SocketAddr,
    send: impl FnOnce(&TcpStream),
) -> (SocketAddr, std::io::Result<u8>) {
    let mut client = connect(lab, destination);
    let source = client.local_addr().unwrap();
    send(&client);
    let mut octet = [0];
    (source, client.read_exact(&mut octet).map(|()| octet[0]))
}

fn assert_blocked_by_name(lab: &Lab, gateway: &Gateway, destination: SocketAddr, send: impl FnOnce(&TcpStream)) {
    let tap = Tap::at_server(lab).unwrap();
    let (source, saw) = send_and_read(lab, destination, send);
    assert_eq!(saw.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let record = gateway.verdict_on(source);
    assert_eq!(record["domain"], "blocked.example", "{record:#}");
    assert_eq!(record["verdict"], "block", "{record:#}");
    assert_eq!(tap.count(lab, destination).unwrap(), 0, "{destination}");
}

fn assert_answered(lab: &Lab, destination: SocketAddr, first: u8, send: impl FnOnce(&TcpStream)) {
    let (_, saw) = send_and_read(lab, destination, send);
    assert_eq!(saw.unwrap(), first, "{destination}");
}

fn one_by_one(stream: &TcpStream, octets: &[u8]) {
    octets.chunks(1).for_each(|octet| send_anyway(stream, octet));
}

/// The head of a request with a body of `length` octets.
fn post(host: &str, length: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n")
}

/// The handshake message of a single record, spread over records of `size` octets (RFC 8446, 5.1).
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(5);
    let mut records = Vec::new();
    for fragment in message.chunks(size) {
        records.extend(&header[..3]);
        records.extend((fragment.len() as u16).to_be_bytes());
        records.extend(fragment);
    }
    records
}

/// The hello with a padding extension (RFC 7685) that brings its message to `length` octets, in full-sized records.
fn padded(hello: &[u8], length: usize) -> Vec<u8> {
    let mut message = hello[5..].to_vec();
    let extensions = extensions_at(&message);
    let padding = length - message.len() - 4;
    message.extend(21_u16.to_be_bytes());
    message.extend((padding as u16).to_be_bytes());
    message.resize(length, 0);
    let body = message.len() - 4;
    message[1..4].copy_from_slice(&(body as u32).to_be_bytes()[1..]);
    let all = message.len() - extensions - 2;
    message[extensions..extensions + 2].copy_from_slice(&(all as u16).to_be_bytes());
    let mut single = hello[..5].to_vec();
    single.extend(message);
    in_records(&single, 1 << 14)
}

/// Where the length of the extensions stands in a ClientHello message (RFC 8446, 4.1.2).
fn extensions_at(message: &[u8]) -> usize {
    let session = 4 + 2 + 32;
    let suites = session + 1 + usize::from(message[session]);
    let compression = suites + 2 + usize::from(u16::from_be_bytes([message[suites], message[suites + 1]]));
    compression + 1 + usize::from(message[compression])
}

/// Sends a sequence of octets and receives another at the same time, to the end of both.
fn exchange(stream: TcpStream, send: u32, receive: u32, length: usize) {
    let sequence = move |seed: u32| (0..length as u32).map(move |n| (n.wrapping_mul(seed) >> 3) as u8);
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(&sequence(send).collect::<Vec<u8>>()).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    (&stream).read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert_eq!(received.len(), length);
    assert!(received.into_iter().eq(sequence(receive)), "octets were changed on the way");
}

#[test]
fn a_fingerprint_that_is_only_to_be_told_passes_and_one_that_is_demanded_blocks() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let expected = "3fed133de60c35724739b913924b6c24";
        for (demand, verdict, alert) in [("alert", "allow", "fingerprint"), ("require", "block", "")] {
            let rules = format!("[{{ domains = [\"allowed.example\"], {demand} = \"{expected}\" }}]");
            let configuration = configuration("tcp-reset", "type = \"prefer-both\"")
                .replace("default = \"allow\"", &format!("default = \"allow\"\nfingerprints = {rules}"));
            let gateway = Gateway::start(lab, &configuration);
            each_family(|family| {
                let mut client = connect(lab, at(Site::A, family, 1, 443));
                client.write_all(&hello(&trust, Some("allowed.example"))).unwrap();
                let record = gateway.verdict_on(client.local_addr().unwrap());
                assert_eq!(record["verdict"], verdict, "{record:#}");
                assert_eq!(record["alert"].as_str().unwrap_or_default(), alert, "{record:#}");
                assert_ne!(record["ja3"], expected);
            });
            gateway.stop();
        }
    });
}
