//! A gateway over its life, and the settings that change its bias.
//!
//! ```text
//! client -- gateway (tidegate run) -- server
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::{Signal, kill_process};
use tidegate::mode::demo::client::{Saw, ask_http, ask_tls, connect as connect_from};
use tidegate::mode::demo::enforcer::Enforcer;
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, connect, get, hello, is_from, listen, request, servers};
use crate::inside::in_lab;

const FIRST_REQUEST: &str = "type = \"prefer-both\"\nhttp = \"first-request\"";

#[test]
fn a_reload_judges_new_flows_anew_and_keeps_live_ones() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let before = configuration("tcp-reset", FIRST_REQUEST);
        let gateway = Gateway::start(lab, &before);
        for family in Family::BOTH {
            gateway.rewrite(&before);
            gateway.reload();
            let (mut client, mut server) = live_flow(lab, &accepted, family);

            gateway.rewrite(&before.replace("[\"blocked.example\"]", "[\"blocked.example\", \"unlisted.example\"]"));
            gateway.reload();
            let request = request(family, at(Site::A, family, 2, 80), Some("unlisted.example"));
            let outcome = lab.client.run(|| ask_http(&request)).unwrap();
            assert_eq!(outcome.saw, Saw::Reset, "{:#?}", gateway.enforcer.messages());

            assert_alive(&mut client, &mut server);
        }
        gateway.stop();
    });
}

#[test]
fn a_reload_with_mistakes_changes_nothing_and_says_so() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        gateway.rewrite("[[network]]\nname = 7\n");
        kill_process(gateway.enforcer.pid(), Signal::HUP).unwrap();
        gateway.enforcer.message(|line| line.contains("not in force"), DEADLINE).unwrap();
        for (name, passes) in [("allowed.example", true), ("blocked.example", false)] {
            for family in Family::BOTH {
                let request = request(family, at(Site::A, family, 1, 443), Some(name));
                let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
                assert_eq!(matches!(outcome.saw, Saw::Answer(_)), passes, "{name}: {outcome:?}");
            }
        }
        gateway.stop();
    });
}

#[test]
fn a_file_that_changes_is_in_force_by_itself_and_one_with_mistakes_never() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let before = configuration("tcp-reset", "type = \"prefer-both\"");
        let gateway = Gateway::start(lab, &before);
        let outcome = |name: &str| {
            let request = request(Family::V6, at(Site::A, Family::V6, 2, 80), Some(name));
            lab.client.run(|| ask_http(&request)).unwrap().saw
        };
        gateway.rewrite("[[network]]\nname = 7\n");
        gateway.enforcer.message(|line| line.contains("has mistakes"), DEADLINE).unwrap();
        assert!(matches!(outcome("unlisted.example"), Saw::Answer(_)));
        assert_eq!(outcome("blocked.example"), Saw::Reset);

        gateway.rewrite(&before.replace("[\"blocked.example\"]", "[\"unlisted.example\"]"));
        gateway.enforcer.message(|line| line.contains("reloaded"), DEADLINE).unwrap();
        assert_eq!(outcome("unlisted.example"), Saw::Reset);
        assert!(matches!(outcome("blocked.example"), Saw::Answer(_)));
        gateway.stop();
    });
}

/// A disk that is full, a folder that is being replaced: what is gone is not what somebody wrote.
#[test]
fn a_configuration_that_has_lost_its_networks_changes_nothing_and_says_so() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::tempdir().unwrap();
        let (text, included) = (configuration("tcp-reset", FIRST_REQUEST), folder.path().join("all.toml"));
        let (top, objects) = text.split_at(text.find("[[").unwrap());
        let top = format!("{top}include = [\"{}/*.toml\"]\n", folder.path().display());
        std::fs::write(&included, objects).unwrap();
        let more = folder.path().join("more.toml");
        let another = "[[network]]\nname = \"another\"\nips = [{ ip = \"10.99.0.0\", maskbits = 16 }]\n\
                       directions = \"outbound\"\noutbound = { policy = \"out\", drop = \"tcp-reset\" }\n";
        std::fs::write(&more, another).unwrap();
        let gateway = Gateway::start(lab, &top);
        let becomes = |change: &dyn Fn(), said: &str| {
            let before = gateway.enforcer.messages().len();
            change();
            let heard = gateway.enforcer.message_after(before, |line| line.contains(said), DEADLINE);
            assert!(heard.is_some(), "{said}: {:#?}", gateway.enforcer.messages());
            for family in Family::BOTH {
                let request = request(family, at(Site::A, family, 2, 80), Some("blocked.example"));
                assert_eq!(lab.client.run(|| ask_http(&request)).unwrap().saw, Saw::Reset, "{said}");
            }
        };
        let gone = "no network acts on this enforcer any more";
        becomes(&|| gateway.rewrite(""), gone);
        becomes(&|| gateway.rewrite(&top), "reloaded");
        becomes(&|| std::fs::write(&more, "").unwrap(), "more.toml is empty");
        becomes(&|| std::fs::remove_file(&more).unwrap(), "reloaded");
        becomes(&|| std::fs::remove_file(&included).unwrap(), gone);
        becomes(&|| std::fs::write(&included, objects).unwrap(), "reloaded");
        becomes(&|| gateway.rewrite(&text), "reloaded");
        gateway.stop();
    });
}

#[test]
fn at_an_orderly_end_live_flows_may_finish() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let gateway = start_with(lab, &["--drain", "60s"]);
        let mut flows: Vec<_> = Family::BOTH.iter().map(|family| live_flow(lab, &accepted, *family)).collect();
        kill_process(gateway.enforcer.pid(), Signal::TERM).unwrap();
        for (client, server) in &mut flows {
            assert_alive(client, server);
        }
        drop(flows);
        gateway.stop();
    });
}

#[test]
fn past_the_drain_live_flows_are_reset_on_both_sides() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let gateway = start_with(lab, &["--drain", "0s"]);
        let flows = Family::BOTH.map(|family| live_flow(lab, &accepted, family));
        let records = gateway.stop().records();
        for (mut client, mut server) in flows {
            let source = client.local_addr().unwrap();
            for side in [&mut client, &mut server] {
                assert_eq!(side.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            let end = records.iter().find(|r| is_from(r, source) && r["kind"] == "end").unwrap();
            assert_eq!(end["closed_by"], "shutdown", "{end:#}");
        }
    });
}

#[test]
fn a_flow_that_idles_past_the_limit_is_ended() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let text = configuration("tcp-reset", FIRST_REQUEST) + "[limits]\nidle = \"1s\"\n";
        let gateway = Gateway::start(lab, &text);
        for family in Family::BOTH {
            let (mut client, mut server) = live_flow(lab, &accepted, family);
            let source = client.local_addr().unwrap();
            assert_eq!(gateway.end_of(source)["closed_by"], "idle");
            for side in [&mut client, &mut server] {
                // An end or a reset: no octet, and no wait for the reader's own deadline.
                assert!(!matches!(side.read(&mut [0; 1]), Ok(1..)));
                assert!(side.take_error().unwrap().is_none());
            }
        }
        gateway.stop();
    });
}

#[test]
fn few_descriptors_refuse_flows_and_take_them_again_when_some_are_free() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, configuration("tcp-reset", "type = \"prefer-both\"")).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -n 530 && exec \"$0\" run --config \"$1\""]);
        command.arg(env!("CARGO_BIN_EXE_tidegate")).arg(&file).env("RUNTIME_DIRECTORY", folder.path());
        let gateway = Enforcer::start_command(command, &lab.gateway).unwrap();

        let open = |host| {
            let request = request(Family::V4, at(Site::A, Family::V4, host, 80), None);
            let mut client = lab.client.run(|| connect_from(&request)).unwrap().ok()?;
            is_answered(&mut client).then_some(client)
        };
        let mut live: Vec<TcpStream> = (1..200).map_while(open).collect();
        assert!((1..199).contains(&live.len()), "{} flows were taken", live.len());
        assert!(live.iter_mut().all(is_answered));
        let ended = live.pop().unwrap().local_addr().unwrap();
        gateway.record(|record| is_from(record, ended) && record["kind"] == "end", DEADLINE).unwrap();
        assert!(open(200).is_some());
        drop(live);
        assert!(gateway.stop().unwrap().status.success());
    });
}

#[test]
fn a_network_that_only_monitors_records_a_block_and_lets_it_pass() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let text = configuration("tcp-reset", "type = \"prefer-both\"")
            .replace("directions = \"outbound\"", "directions = \"outbound\"\nmode = \"monitor\"");
        let gateway = Gateway::start(lab, &text);
        for family in Family::BOTH {
            let request = request(family, at(Site::A, family, 1, 443), Some("blocked.example"));
            let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
            let record = gateway.verdict_on(outcome.source.unwrap());
            assert_eq!((&record["verdict"], &record["action"]), (&"block".into(), &"monitor".into()), "{record:#}");
        }
    });
}

#[test]
fn a_network_of_another_enforcer_or_switched_off_captures_nothing() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        for line in ["enforcers = [\"edge-2\"]", "enforcers = []", "mode = \"off\""] {
            let text = configuration("tcp-reset", "type = \"prefer-both\"")
                .replace("directions = \"outbound\"", &format!("directions = \"outbound\"\n{line}"));
            let gateway = Gateway::start(lab, &text);
            for family in Family::BOTH {
                let request = request(family, at(Site::A, family, 1, 443), Some("blocked.example"));
                let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
                assert!(matches!(outcome.saw, Saw::Answer(_)), "{line}: {outcome:?}");
            }
            let records = gateway.stop().records();
            assert!(records.iter().all(|record| record["kind"] == "event"), "{line}: {records:#?}");
        }
    });
}

#[test]
fn unidentified_flows_are_blocked_where_the_network_demands_a_name() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let gateway =
            Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\"\nunidentified = \"block\""));
        for family in Family::BOTH {
            let destination = at(Site::A, family, 1, 443);
            let outcome = lab.client.run(|| ask_tls(&request(family, destination, None), &trust)).unwrap();
            assert_eq!(outcome.saw, Saw::Reset);
            assert_eq!(gateway.verdict_on(outcome.source.unwrap())["reason"], "UNIDENTIFIED");
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        }
    });
}

#[test]
fn unreadable_flows_get_the_verdict_of_their_address_where_the_network_says_so() {
    in_lab(|lab| {
        let accepted = listen(lab, 443);
        let (tap, trust) = (Tap::at_server(lab).unwrap(), trust());
        let gateway =
            Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\"\nunreadable = \"ip-verdict\""));
        let mut broken = hello(&trust, Some("allowed.example"));
        // The length of the session id, which then covers all that follows and more.
        broken[43] = 0xff;
        for family in Family::BOTH {
            let mut client = connect(lab, at(Site::A, family, 1, 443));
            client.write_all(&broken).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = vec![0; broken.len()];
            server.read_exact(&mut received).unwrap();
            assert_eq!(received, broken);

            let destination = at(Site::B, family, 1, 443);
            let mut client = connect(lab, destination);
            client.write_all(&broken).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let record = gateway.verdict_on(client.local_addr().unwrap());
            assert_eq!(record["verdict"], "block", "{record:#}");
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        }
    });
}

#[test]
fn http_2_with_prior_knowledge_is_judged_by_its_authority() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let tap = Tap::at_server(lab).unwrap();
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        for family in Family::BOTH {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            let octets = http_2("allowed.example");
            client.write_all(&octets).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut received = vec![0; octets.len()];
            server.read_exact(&mut received).unwrap();
            assert_eq!(received, octets);

            let destination = at(Site::A, family, 2, 80);
            let mut client = connect(lab, destination);
            client.write_all(&http_2("blocked.example")).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let record = gateway.verdict_on(client.local_addr().unwrap());
            assert_eq!((&record["domain"], &record["type"]), (&"blocked.example".into(), &"HTTP".into()));
            assert_eq!(tap.count(lab, destination).unwrap(), 0);
        }
    });
}

/// client (remote) -- gateway -- server (protected)
#[test]
fn inbound_flows_are_judged_by_the_address_of_who_opens_them_and_by_name() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let gateway = Gateway::start(lab, &inbound_configuration());
        for family in Family::BOTH {
            let cases = [(0, "allowed.example", true), (0, "blocked.example", false), (5, "allowed.example", false)];
            for (host, (client, name, passes)) in (1..).zip(cases) {
                let destination = at(Site::A, family, host, 443);
                let mut request = request(family, destination, Some(name));
                request.source = client_address(family, client);
                let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
                assert_eq!(matches!(outcome.saw, Saw::Answer(_)), passes, "{request:?}: {outcome:?}");
                assert_eq!(tap.count(lab, destination).unwrap() > 0, passes, "{request:?}");
                let record = gateway.verdict_on(outcome.source.unwrap());
                assert_eq!(record["direction"], "inbound", "{record:#}");
            }
        }
    });
}

#[test]
fn hundreds_of_flows_at_once_are_all_relayed() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        let open = || -> Vec<TcpStream> {
            (0..400_u16)
                .map(|n| {
                    let family = Family::BOTH[usize::from(n % 2)];
                    let request = request(family, at(Site::A, family, (n % 250) as u8, 80), None);
                    connect_from(&request).unwrap()
                })
                .collect()
        };
        let mut clients = lab.client.run(open).unwrap();
        for client in &mut clients {
            client.write_all(get("allowed.example").as_bytes()).unwrap();
        }
        for client in &mut clients {
            let mut answer = [0; 15];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
        }
        drop(clients);
        let ended = gateway.stop();
        let ends = ended.records().iter().filter(|record| record["kind"] == "end").count();
        assert_eq!(ends, 400);
    });
}

fn start_with(lab: &Lab, arguments: &[&str]) -> Gateway {
    let adjust = |command: &mut Command| {
        command.args(arguments);
    };
    Gateway::start_with(lab, &configuration("tcp-reset", FIRST_REQUEST), adjust).unwrap_or_else(|e| panic!("{e}"))
}

/// A flow that has been judged, and both its ends.
fn live_flow(
    lab: &Lab,
    accepted: &std::sync::mpsc::Receiver<(TcpStream, std::net::SocketAddr)>,
    family: Family,
) -> (TcpStream, TcpStream) {
    let mut client = connect(lab, at(Site::A, family, 1, 80));
    client.write_all(get("unlisted.example").as_bytes()).unwrap();
    let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
    server.read_exact(&mut vec![0; get("unlisted.example").len()]).unwrap();
    (client, server)
}

fn assert_alive(client: &mut TcpStream, server: &mut TcpStream) {
    let mut octets = [0; 4];
    client.write_all(b"ping").unwrap();
    read_until(server, b"ping");
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut octets).unwrap();
    assert_eq!(&octets, b"pong");
}

fn read_until(stream: &mut TcpStream, end: &[u8]) {
    let mut received = Vec::new();
    let mut octet = [0];
    while !received.ends_with(end) {
        stream.read_exact(&mut octet).unwrap();
        received.push(octet[0]);
    }
}

/// Whether a request is answered, and not reset.
fn is_answered(client: &mut TcpStream) -> bool {
    let mut octet = [0];
    if client.write_all(get("allowed.example").as_bytes()).is_err() || client.read_exact(&mut octet).is_err() {
        return false;
    }
    read_until(client, b"\n");
    read_until(client, b" asked ");
    read_until(client, b"\n");
    true
}

fn trust() -> tidegate::mode::demo::client::Trust {
    let certificate = rcgen::generate_simple_self_signed(vec!["allowed.example".to_owned()]).unwrap();
    tidegate::mode::demo::client::Trust::new(certificate.cert.der(), "allowed.example").unwrap()
}

/// Preface, SETTINGS and one request (RFC 9113, 3.4; RFC 7541, 6.1 and 6.2.1).
fn http_2(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x41, authority.len() as u8];
    block.extend(authority.as_bytes());
    let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    octets.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    octets.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    octets.extend(block);
    octets
}

fn inbound_configuration() -> String {
    let prefix = |family| {
        let prefix = Site::A.prefix(family);
        format!("{{ ip = \"{}\", maskbits = {} }}", prefix.network(), prefix.prefix_len())
    };
    format!(
        r#"
name = "edge-1"
[[list]]
name = "blocked"
verdict = "block"
entries = ["{}", "{}", "blocked.example"]
[[policy]]
name = "in"
default = "allow"
lists = ["blocked"]
[[network]]
name = "servers"
directions = "inbound"
ips = [{}, {}]
inbound = {{ policy = "in", drop = "tcp-reset" }}
[network.inspection]
type = "prefer-both"
"#,
        client_address(Family::V4, 5),
        client_address(Family::V6, 5),
        prefix(Family::V4),
        prefix(Family::V6),
    )
}
