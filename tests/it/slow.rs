//! Clients that begin a hello and never end it: each is let go at the deadline, holds little, and harms nobody.
//!
//! ```text
//! 30 clients with 2,000 connections -- gateway (tidegate run) -- server
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tidegate::mode::demo::client::{self, Request, Saw, ask_http, ask_tls};
use tidegate::mode::demo::lab::{CLIENTS, Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{
    DEADLINE, Gateway, at, configuration, get, hello, is_from, listen, request, send_anyway, servers, until,
};
use crate::inside::in_lab;

const SLOW: usize = 2000;
/// The default of `limits.held_bytes`.
const MOST_HELD: u64 = 64 << 10;

#[test]
fn half_sent_hellos_end_at_the_deadline_hold_little_and_harm_no_flow_beside_them() {
    in_lab(|lab| {
        raise_descriptors();
        // Long enough for all of them to be there at once.
        let inspection = "type = \"prefer-both\"\ntimeout = \"10s\"";
        let gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let process = Process::of(&gateway);
        let sockets = process.sockets();
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        good_flows(lab, &trust);
        let memory = process.memory();

        let whole = hello(&trust, Some("allowed.example"));
        let half = &whole[..whole.len() - 1];
        let large =
            [&[0x16, 3, 1, 0x40, 0, 1, 0, 0xf0, 0][..], &vec![7; 16_380], &[0x16, 3, 1, 0x40, 0], &vec![7; 14_000]];
        let large = large.concat();
        let slow: Vec<TcpStream> = (0..SLOW)
            .map(|n| {
                let stream = connect(lab, n);
                send_anyway(&stream, if n % 2 == 0 { half } else { &large });
                stream
            })
            .collect();
        until("all are held", || process.sockets().checked_sub(sockets), |held| *held >= Some(SLOW));
        good_flows(lab, &trust);
        let grown = process.memory().saturating_sub(memory);
        assert!(grown <= SLOW as u64 * MOST_HELD, "{grown} octets for {SLOW} flows");
        eprintln!("{SLOW} half-sent hellos: {} octets each", grown / SLOW as u64);

        for stream in &slow {
            let mut stream = stream;
            assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        for stream in slow.iter().take(2) {
            let record = gateway.verdict_on(stream.local_addr().unwrap());
            assert_eq!(record["reason"], "UNREADABLE", "{record:#}");
            assert_eq!(record["detail"], "its beginning did not end in time", "{record:#}");
        }
        let sources: Vec<SocketAddr> = slow.iter().map(|stream| stream.local_addr().unwrap()).collect();
        drop(slow);
        until("sockets are back at their base", || process.sockets(), |now| *now <= sockets);
        good_flows(lab, &trust);
        let records = gateway.stop().records();
        let last = sources.last().unwrap();
        assert!(records.iter().any(|record| is_from(record, *last) && record["verdict"] == "block"));
        for family in Family::BOTH {
            assert_eq!(tap.count(lab, at(Site::A, family, 9, 443)).unwrap(), 0);
        }
    });
}

#[test]
fn one_client_that_begins_much_and_ends_nothing_takes_no_room_from_another() {
    in_lab(|lab| {
        let limits = "[limits]\nheld_bytes_in_all = \"1MiB\"\n";
        let inspection = "type = \"prefer-both\"\ntimeout = \"30s\"\nhttp_ports = [80, 8080]";
        let gateway = Gateway::start(lab, &(configuration("tcp-reset", inspection) + limits));
        let (accepted, _origins) = (listen(lab, 8080), servers(lab));
        let begun = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(60_000));
        let ask = |port, said: &str| {
            let destination = at(Site::A, Family::V4, 1, port);
            let request =
                Request { source: client_address(Family::V4, 1), destination, name: None, patience: DEADLINE };
            let stream = lab.client.run(|| client::connect(&request)).unwrap().unwrap();
            send_anyway(&stream, said.as_bytes());
            stream
        };
        let is_reached = |line: &str| line.contains("limits.held_bytes_in_all is reached");
        let other = request(Family::V4, at(Site::A, Family::V4, 2, 80), Some("allowed.example"));
        let others_pass = || {
            let outcome = lab.client.run(|| ask_http(&other)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        };
        // Four have room in a quarter of it.
        let first: Vec<TcpStream> = (0..6).map(|_| ask(80, &begun)).collect();
        assert!(gateway.enforcer.message(is_reached, DEADLINE).is_some(), "{:?}", gateway.enforcer.messages());
        others_pass();
        drop(first);
        // The same of later requests, once the first has let the flow in.
        let flow = |_| (ask(8080, &get("allowed.example")), accepted.recv_timeout(DEADLINE).unwrap());
        let later: Vec<_> = (0..6).map(flow).collect();
        later.iter().for_each(|(client, _)| send_anyway(client, begun.as_bytes()));
        let ended = gateway.enforcer.record(|record| record["closed_by"] == "limit", DEADLINE);
        assert!(ended.is_some(), "{:#?}", gateway.enforcer.records());
        others_pass();
    });
}

#[test]
fn what_is_kept_of_flows_that_may_yet_name_somebody_counts_as_held() {
    in_lab(|lab| {
        let limits = "[limits]\nheld_bytes_in_all = \"1MiB\"\n";
        let inspection = "type = \"prefer-both\"\ntimeout = \"100ms\"\nhttp_ports = [8080]";
        let _gateway = Gateway::start(lab, &(configuration("tcp-reset", inspection) + limits));
        let accepted = listen(lab, 8080);
        let begun = &[b'a'; 60_000];
        std::thread::spawn(move || {
            // Each of which all has come is told so, and kept.
            let greet = |(mut stream, _): (TcpStream, SocketAddr)| {
                stream.read_exact(&mut vec![0; begun.len()]).and_then(|()| stream.write_all(b"!")).map(|()| stream)
            };
            accepted.iter().map(greet).collect::<Vec<_>>()
        });
        for family in Family::BOTH {
            let ask = |_| {
                let mut stream = crate::gateway::connect(lab, at(Site::A, family, 1, 8080));
                send_anyway(&stream, begun);
                let is_let_in = stream.read_exact(&mut [0]).is_ok();
                (stream, is_let_in)
            };
            let flows: Vec<_> = (0..6).map(ask).collect();
            // Four have room in a quarter of it; two where twice the memory was had for what came piece by piece.
            let let_in = flows.iter().filter(|(_, is_let_in)| *is_let_in).count();
            assert!((2..=4).contains(&let_in), "{let_in} of them were let in");
        }
    });
}

fn connect(lab: &Lab, n: usize) -> TcpStream {
    let family = Family::BOTH[n / 2 % 2];
    let source: IpAddr = client_address(family, (n % usize::from(CLIENTS)) as u8);
    let request = Request { source, destination: at(Site::A, family, 9, 443), name: None, patience: DEADLINE };
    lab.client.run(|| client::connect(&request)).unwrap().unwrap()
}

fn good_flows(lab: &Lab, trust: &client::Trust) {
    for family in Family::BOTH {
        let tls = request(family, at(Site::A, family, 2, 443), Some("allowed.example"));
        let http = request(family, at(Site::A, family, 2, 80), Some("allowed.example"));
        let saw = lab.client.run(|| [ask_tls(&tls, trust), ask_http(&http)]).unwrap();
        assert!(saw.iter().all(|outcome| matches!(outcome.saw, Saw::Answer(_))), "{saw:?}");
    }
}

/// What the kernel says of a running gateway.
struct Process(PathBuf);

impl Process {
    fn of(gateway: &Gateway) -> Self {
        Self(PathBuf::from(format!("/proc/{}", gateway.enforcer.pid().as_raw_nonzero())))
    }

    /// Open sockets: pipes are kept for the next flow, and few.
    fn sockets(&self) -> usize {
        let targets =
            std::fs::read_dir(self.0.join("fd")).unwrap().filter_map(|fd| fd.unwrap().path().read_link().ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Resident memory in octets.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(self.0.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

/// Two thousand connections are more than many shells allow.
fn raise_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}
