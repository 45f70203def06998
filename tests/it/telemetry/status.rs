//! `tidegate status` and `tidegate reload`, over the socket of a gateway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tidegate::mode::demo::lab::{Site, client_address};
use tidegate::sys::rtnl::Family;

use super::with_telemetry;
use crate::gateway::{DEADLINE, Gateway, at, connect, get, listen, servers};
use crate::inside::in_lab;

#[test]
fn status_tells_of_live_flows_lists_limits_and_sinks() {
    in_lab(|lab| {
        let accepted = listen(lab, 80);
        let gateway = Gateway::start(lab, &with_telemetry(""));
        let socket = gateway.folder().join("tidegate.sock");
        let flows = Family::BOTH.map(|family| {
            let mut client = connect(lab, at(Site::A, family, 1, 80));
            client.write_all(get("allowed.example").as_bytes()).unwrap();
            let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            server.read_exact(&mut vec![0; get("allowed.example").len()]).unwrap();
            server.write_all(&[b'x'; 5000]).unwrap();
            client.read_exact(&mut [0; 5000]).unwrap();
            (client, server)
        });

        let status = json(&socket);
        assert_eq!((&status["enforcer"], &status["generation"]), (&"edge-1".into(), &1.into()));
        for (client, _) in &flows {
            let row = row_of(&status, client);
            assert_eq!((&row["domain"], &row["type"]), (&"allowed.example".into(), &"HTTP".into()), "{row:#}");
            assert_eq!(row["bytes_in"], 5000, "{row:#}");
            assert_eq!(row["bytes_out"], get("allowed.example").len(), "{row:#}");
            assert_eq!((&row["network"], &row["verdict"]), (&"clients".into(), &"allow".into()), "{row:#}");
        }
        let of = |rows: &Value, key: &str, name: &str| {
            rows.as_array().unwrap().iter().find(|row| row[key] == name).unwrap_or_else(|| panic!("{name}")).clone()
        };
        assert_eq!(of(&status["limits"], "what", "flows")["used"], 2);
        assert_eq!(of(&status["lists"], "name", "blocked-names")["names"], 1);
        assert_eq!(of(&status["sinks"], "sink", "stdout")["failing"], false);
        assert_eq!(status["counters"]["flows"], 2);

        let table = tidegate(&["status", "--flows", "1", "--socket", socket.to_str().unwrap()]);
        let text = String::from_utf8(table.stdout).unwrap();
        assert!(table.status.success() && text.starts_with("tidegate "), "{text}");
        assert_eq!(text.matches("allowed.example (HTTP)").count(), 1, "{text}");
        drop(flows);
        gateway.stop();
    });
}

/// The kernel carries them, and counts.
#[test]
fn status_tells_of_udp_flows_that_the_kernel_carries() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &with_telemetry(""));
        let socket = gateway.folder().join("tidegate.sock");
        let server = lab.server.run(|| UdpSocket::bind("[::]:443")).unwrap().unwrap();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        for family in Family::BOTH {
            let to = at(Site::A, family, 1, 443);
            let from = SocketAddr::new(client_address(family, 0), 0);
            let client = lab.client.run(|| UdpSocket::bind(from)).unwrap().unwrap();
            // Five that are no QUIC tell that there is no name; the address is allowed.
            (0..5).for_each(|_| _ = client.send_to(b"hello", to).unwrap());
            (0..5).for_each(|_| _ = server.recv(&mut [0; 9]).unwrap());
            client.send_to(b"more", to).unwrap();
            server.recv(&mut [0; 9]).unwrap();
            let status = json(&socket);
            let source = client.local_addr().unwrap().to_string();
            let rows = status["flows"].as_array().unwrap();
            let row = rows.iter().find(|row| row["source"] == source).unwrap_or_else(|| panic!("{status:#}"));
            assert_eq!((&row["protocol"], &row["destination"]), (&"udp".into(), &to.to_string().into()));
            assert_eq!((&row["bytes_out"], &row["bytes_in"]), (&29.into(), &0.into()), "{row:#}");
        }
        gateway.stop();
    });
}

/// The program that was to replace the gateway would find no socket, and an administrator a stale one.
#[test]
fn the_socket_goes_with_the_gateway_and_that_of_a_killed_one_is_replaced() {
    in_lab(|lab| {
        let folder = tempfile::tempdir().unwrap();
        let text = with_telemetry(&format!("socket = \"{}\"\n", folder.path().join("s").display()));
        let (socket, start) = (folder.path().join("s"), || Gateway::start(lab, &text));
        let first = start();
        let pid = json(&socket)["pid"].clone();
        first.enforcer.kill().unwrap();
        let gone = tidegate(&["status", "--socket", socket.to_str().unwrap()]);
        assert_eq!(gone.status.code(), Some(1));

        let second = start();
        second.enforcer.message(|line| line.contains("ready"), DEADLINE).unwrap();
        assert_ne!(json(&socket)["pid"], pid);
        second.stop();
        assert!(!socket.exists());
    });
}

#[test]
fn reload_by_command_tells_whether_it_is_in_force_and_what_is_wrong() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let text = with_telemetry("");
        let gateway = Gateway::start(lab, &text);
        let config = gateway.folder().join("tidegate.toml");
        let socket = gateway.folder().join("tidegate.sock");
        json(&socket);
        let reload = || tidegate(&["reload", "--socket", socket.to_str().unwrap()]);

        gateway.rewrite(&text.replace("[\"blocked.example\"]", "[\"blocked.example\", \"unlisted.example\"]"));
        let done = reload();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(String::from_utf8(done.stdout).unwrap(), "in force, generation 2\n");
        let outcome = super::ask(lab, Family::V6, "unlisted.example");
        assert_eq!(outcome.saw, tidegate::mode::demo::client::Saw::Reset, "{outcome:?}");

        gateway.rewrite("name = \"edge-1\"\n[[network]]\nname = 7\n");
        let refused = reload();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{}:3:8: error: `network.name`", config.display())), "{said}");
        assert_eq!(json(&socket)["generation"], 2);

        let reasons: Vec<_> = gateway.stop().records().iter().filter_map(event_reason).collect();
        assert_eq!(reasons, ["STARTED", "RELOADED", "RELOAD_REFUSED", "STOPPING"]);
    });
}

fn event_reason(record: &Value) -> Option<String> {
    (record["kind"] == "event").then(|| record["reason"].as_str().unwrap().to_owned())
}

/// What `status --json` says, once the gateway has its socket.
fn json(socket: &Path) -> Value {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let output = tidegate(&["status", "--json", "--socket", socket.to_str().unwrap()]);
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).unwrap();
        }
        assert!(std::time::Instant::now() < deadline, "{output:?}");
    }
}

fn tidegate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().unwrap()
}

fn row_of(status: &Value, client: &TcpStream) -> Value {
    let source = client.local_addr().unwrap().to_string();
    let rows = status["flows"].as_array().unwrap();
    rows.iter().find(|row| row["source"] == source).unwrap_or_else(|| panic!("{source}: {status:#}")).clone()
}
