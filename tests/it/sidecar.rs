//! A sidecar in the network namespace of an application.
//!
//! ```text
//! client (the test as the application, tidegate run as its sidecar) -- gateway (forwards) -- server
//! ```

mod closed;
mod inbound;
mod made_up;
mod questions;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tidegate::config::sidecar::USER;
use tidegate::mode::demo::client::{Outcome, Saw, ask_http, ask_tls};
use tidegate::mode::demo::enforcer::Enforcer;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, at, connect, is_from, is_verdict, request, servers};
use crate::inside::in_lab;
use crate::quic::{Client, Origin, client_socket, flight, listen};

/// Everything that the application sends is judged. [`Site::B`] is blocked by address.
fn configuration(drop: &str, sidecar: &str, network: &str) -> String {
    format!(
        r#"
name = "pod-1"
[sidecar]
{sidecar}
[[list]]
name = "allowed-names"
verdict = "allow"
entries = ["allowed.example", "good.example"]
[[list]]
name = "blocked"
verdict = "block"
entries = [".blocked.example", "bad.example", "www.youtube.com", "{}", "{}"]
[[policy]]
name = "out"
default = "allow"
lists = ["allowed-names", "blocked"]
[[policy]]
name = "in"
default = "block"
[[network]]
name = "app"
ips = [{{ ip = "0.0.0.0", maskbits = 0 }}, {{ ip = "::", maskbits = 0 }}]
outbound = {{ policy = "out", drop = "{drop}" }}
{network}
[network.inspection]
type = "prefer-both"
"#,
        Site::B.prefix(Family::V4),
        Site::B.prefix(Family::V6),
    )
}

struct Sidecar {
    enforcer: Enforcer,
    folder: TempDir,
}

impl Sidecar {
    fn start(lab: &Lab, configuration: &str) -> Self {
        Self::start_with(lab, configuration, &[])
    }

    fn start_with(lab: &Lab, configuration: &str, arguments: &[&str]) -> Self {
        let folder = folder_with(configuration);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("run").arg("--config").arg(folder.path().join("tidegate.toml")).args(arguments);
        let enforcer = Enforcer::start_command(command, &lab.client).unwrap_or_else(|e| panic!("{e}"));
        Self { enforcer, folder }
    }

    fn verdict_on(&self, source: SocketAddr) -> Value {
        let fits = |record: &Value| is_from(record, source) && is_verdict(record);
        self.enforcer.record(fits, DEADLINE).unwrap_or_else(|| panic!("{:#?}", self.enforcer.records()))
    }

    fn stop(self) {
        let ended = self.enforcer.stop().unwrap();
        assert!(ended.status.success(), "{:#?}", ended.messages);
        drop(self.folder);
    }
}

/// The sidecar's user reads it too.
fn folder_with(configuration: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(folder.path().join("tidegate.toml"), configuration).unwrap();
    folder
}

/// A sidecar needs a user besides the application's, which an ordinary user's namespace has not.
fn in_pod(body: impl FnOnce(&Lab)) {
    in_lab(|lab| {
        let users = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if users.split_whitespace().last() == Some("1") {
            let note = b"SKIPPED, NOTHING WAS TESTED: two users are needed, and so root\n";
            return std::io::stderr().write_all(note).unwrap();
        }
        body(lab);
    });
}

fn tls(lab: &Lab, trust: &tidegate::mode::demo::client::Trust, to: SocketAddr, name: &str) -> Outcome {
    let request = request(crate::gateway::family_of(to.ip()), to, Some(name));
    lab.client.run(|| ask_tls(&request, trust)).unwrap()
}

fn http(lab: &Lab, to: SocketAddr, name: &str) -> Outcome {
    let request = request(crate::gateway::family_of(to.ip()), to, Some(name));
    lab.client.run(|| ask_http(&request)).unwrap()
}

#[test]
fn tls_and_http_are_judged_by_name_and_a_blocked_flow_sends_nothing() {
    in_pod(|lab| {
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for family in Family::BOTH {
            for (host, name, passes) in [(1, "allowed.example", true), (2, "blocked.example", false)] {
                for port in [443, 80] {
                    let to = at(Site::A, family, host, port);
                    let outcome = if port == 443 { tls(lab, &trust, to, name) } else { http(lab, to, name) };
                    let expected =
                        if passes { matches!(outcome.saw, Saw::Answer(_)) } else { outcome.saw == Saw::Reset };
                    assert!(expected, "{to} {name}: {outcome:?} {:#?}", sidecar.enforcer.messages());
                    assert_eq!(tap.count(lab, to).unwrap() > 0, passes, "{to} {name}");
                    let record = sidecar.verdict_on(outcome.source.unwrap());
                    assert_eq!((&record["domain"], &record["direction"]), (&name.into(), &"outbound".into()));
                }
            }
        }
        sidecar.stop();
    });
}

#[test]
fn a_blocked_flow_ends_as_its_network_says() {
    in_pod(|lab| {
        let (_origins, trust) = servers(lab);
        for (drop, saw) in [("discard", Saw::Silence), ("icmp-unreachable", Saw::Reset)] {
            let sidecar = Sidecar::start(lab, &configuration(drop, "", ""));
            for family in Family::BOTH {
                let mut asked = request(family, at(Site::A, family, 2, 443), Some("blocked.example"));
                if saw == Saw::Silence {
                    // It cannot be awaited; the record says when it begins.
                    asked.patience = Duration::from_millis(500);
                }
                let outcome = lab.client.run(|| ask_tls(&asked, &trust)).unwrap();
                assert_eq!(outcome.saw, saw, "{drop}");
                assert_eq!(sidecar.verdict_on(outcome.source.unwrap())["action"], drop);
            }
            sidecar.stop();
        }
    });
}

#[test]
fn quic_is_judged_by_name_and_answered_from_the_address_that_was_asked() {
    in_pod(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("discard", "", ""));
        let origin = Origin::start(lab);
        for family in Family::BOTH {
            let client = Client::new(lab, &origin, family);
            let allowed = client.connect(at(Site::A, family, 7, 443), "good.example").unwrap();
            client.echo(&allowed, 200_000);

            let to = at(Site::A, family, 8, 443);
            let connecting = client.begin(to, "bad.example");
            let fits = |r: &Value| r["domain"] == "bad.example" && r["destination"] == to.ip().to_string();
            let record = sidecar.enforcer.record(fits, DEADLINE).unwrap();
            assert_eq!((&record["type"], &record["verdict"]), (&"QUIC".into(), &"block".into()));
            drop(connecting);
            assert_eq!(tap.count(lab, to).unwrap(), 0);
        }
        sidecar.stop();
    });
}

#[test]
fn other_ports_are_judged_by_address_in_the_kernel() {
    in_pod(|lab| {
        let accepted = crate::gateway::listen(lab, 9999);
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for family in Family::BOTH {
            let mut client = connect(lab, at(Site::A, family, 1, 9999));
            client.write_all(b"by address").unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let mut octets = [0; 10];
            server.read_exact(&mut octets).unwrap();
            server.write_all(&octets).unwrap();
            client.read_exact(&mut octets).unwrap();
            let record = sidecar.verdict_on(client.local_addr().unwrap());
            assert_eq!((&record["kind"], &record["verdict"]), (&"ip".into(), &"allow".into()));

            let to = at(Site::B, family, 1, 9999);
            let refused = lab.client.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
            let datagram = lab.client.run(|| {
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                socket.send_to(b"datagram", SocketAddr::new(to.ip(), 9)).map(drop)
            });
            assert!(datagram.unwrap().is_err(), "the kernel tells who sends");
            for port in [9999, 9] {
                assert_eq!(tap.count(lab, SocketAddr::new(to.ip(), port)).unwrap(), 0);
            }
        }
        sidecar.stop();
    });
}

#[test]
fn loopback_is_the_applications_own_but_not_our_listeners() {
    in_pod(|lab| {
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for address in ["127.0.0.1:443", "[::1]:443", "10.1.0.2:443", "[fd00:1::2]:443"] {
            let exchanged = lab.client.run(|| {
                let listener = TcpListener::bind(address).unwrap();
                let mut near = TcpStream::connect(address).unwrap();
                let (mut far, _) = listener.accept().unwrap();
                far.set_read_timeout(Some(DEADLINE)).unwrap();
                near.write_all(b"no protocol").unwrap();
                let mut octets = [0; 11];
                far.read_exact(&mut octets).map(|()| octets)
            });
            assert_eq!(&exchanged.unwrap().unwrap(), b"no protocol", "{address}");
        }
        let records = sidecar.enforcer.records();
        assert!(records.iter().all(|record| record["kind"] == "event"), "{records:#?}");
        sidecar.stop();
    });
}

/// What the documentation warns of: the kernel cannot tell another program of that user from tidegate.
#[test]
fn a_process_of_the_sidecars_user_passes_unjudged_and_the_start_says_so() {
    in_pod(|lab| {
        let _accepted = crate::gateway::listen(lab, 443);
        let tap = Tap::at_server(lab).unwrap();
        let mut sleeper = Command::new("/bin/sleep");
        sleeper.arg("600").uid(USER).gid(USER);
        // Not by entering as its user, who may not.
        let mut sleeper = lab.client.run(|| sleeper.spawn()).unwrap().unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        let told = |line: &str| line.contains("`sleep` runs as user 7469 too");
        assert!(sidecar.enforcer.messages().iter().any(|line| told(line)), "{:#?}", sidecar.enforcer.messages());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        for (user, passes) in [(USER, true), (USER + 1, false)] {
            for family in Family::BOTH {
                let to = at(Site::B, family, if passes { 40 } else { 41 }, 443);
                let mut command = Command::new("/bin/bash");
                command.args(["-c", &format!("exec 3<>/dev/tcp/{}/443; echo garbage >&3", to.ip())]);
                command.uid(user).gid(user);
                lab.client.run(|| command.status()).unwrap().unwrap();
                assert_eq!(tap.count(lab, to).unwrap() > 0, passes, "{to} as {user}");
            }
        }
        sidecar.stop();
    });
}

/// Its own answer, coming late, could be taken for the beginning of a flow, and the application's datagrams for replies.
#[test]
fn a_late_answer_opens_no_way_around_the_sidecar() {
    in_pod(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("discard", "", ""));
        for family in Family::BOTH {
            let to = at(Site::A, family, 18, 443);
            let server = lab.server.run(|| listen(family)).unwrap();
            let client = lab.client.run(|| client_socket(family, to)).unwrap();
            client.send(&flight("www.google.com")).unwrap();
            let mut buffer = [0; 2000];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            lab.client.run(forget_flows).unwrap();
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            lab.server
                .run(|| {
                    let mut outbox = tidegate::sys::udp::Outbox::new(None).unwrap();
                    outbox.push(to, from, b"late");
                    outbox.flush();
                })
                .unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"late");
            let before = tap.count(lab, to).unwrap();
            client.send(&flight("www.youtube.com")).unwrap();
            let fits = |r: &Value| r["domain"] == "www.youtube.com" && r["destination"] == to.ip().to_string();
            assert_eq!(sidecar.enforcer.record(fits, DEADLINE).unwrap()["verdict"], "block");
            assert_eq!(tap.count(lab, to).unwrap(), before);
        }
        sidecar.stop();
    });
}

#[test]
fn a_reload_judges_new_flows_anew_and_keeps_live_ones() {
    in_pod(|lab| {
        let accepted = crate::gateway::listen(lab, 80);
        let before = configuration("tcp-reset", "", "");
        let sidecar = Sidecar::start(lab, &before);
        for family in Family::BOTH {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            client.write_all(crate::gateway::get("unlisted.example").as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            // Port 80 is not inspected any more, and yet this flow is held by the sidecar.
            let file = sidecar.folder.path().join("tidegate.toml");
            std::fs::write(&file, before.replace("type = \"prefer-both\"", "type = \"prefer-both\"\nhttp_ports = []"))
                .unwrap();
            reload(&sidecar);
            server.write_all(b"answer").unwrap();
            let mut octets = [0; 6];
            client.read_exact(&mut octets).unwrap();
            assert_eq!(&octets, b"answer");
            std::fs::write(&file, before.replace("default = \"allow\"", "default = \"block\"")).unwrap();
            reload(&sidecar);
            assert_eq!(http(lab, at(Site::A, family, 1, 80), "unlisted.example").saw, Saw::Reset);
            std::fs::write(&file, &before).unwrap();
            reload(&sidecar);
        }
        sidecar.stop();
    });
}

/// As after a long silence: connection tracking knows of no flow any more.
fn forget_flows() {
    const DELETE: u16 = 1 << 8 | 2;
    const REQUEST_AND_ACK: u16 = 0x5;
    let mut message = 20u32.to_ne_bytes().to_vec();
    message.extend(DELETE.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 12]);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(&message, &netlink_sys::SocketAddr::new(0, 0), 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    assert_eq!(answer[16..20], [0; 4], "the kernel's acknowledgement");
}

fn reload(sidecar: &Sidecar) {
    let before = sidecar.enforcer.messages().len();
    kill_process(sidecar.enforcer.pid(), Signal::HUP).unwrap();
    let reloaded = sidecar.enforcer.message_after(before, |line| line.contains("reloaded"), DEADLINE);
    assert!(reloaded.is_some(), "{:#?}", sidecar.enforcer.messages());
}

/// Runs another tidegate in the application's namespace.
fn run_beside(lab: &Lab, arguments: &[&str]) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments);
    lab.client.enter(&mut command).unwrap();
    command.status().unwrap()
}
