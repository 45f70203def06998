//! kill -9 under load, again and again: nothing that is blocked reaches a server, and the next start is as good as the first.
//!
//! ```text
//! client (TCP, UDP, DNS that are blocked, all the time) -- gateway (killed, started) -- server (a tap counts)
//! ```
//!
//! `TIDEGATE_CRASHES=100 cargo test --test it crash` does it so often; `tests/soak/crash.sh` does that with a release build.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::mode::demo::client::{Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site, client_address};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{Gateway, at, configuration, request, servers};
use crate::inside::in_lab;
use crate::recheck::flight_of;

#[test]
fn nothing_leaks_at_any_kill_and_each_start_finds_its_rules() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let text = configuration("discard", "type = \"prefer-both\"")
            .replace("entries = [\"blocked.example\"]", "entries = [\"blocked.example\", \"www.youtube.com\"]");
        let mut gateway = Some(Gateway::start(lab, &text));
        let first = rules(lab);
        let (over, tried) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let (over, tried) = (&over, &tried);
            let hammers = Family::BOTH.map(|family| scope.spawn(move || hammer(lab, family, over, tried)));
            for round in 1..=rounds() {
                let enough = tried.load(Ordering::Relaxed) + 10;
                gateway.take().unwrap().enforcer.kill().unwrap();
                // Some meet nobody.
                while tried.load(Ordering::Relaxed) < enough && !hammers.iter().any(|hammer| hammer.is_finished()) {
                    std::thread::yield_now();
                }
                assert_eq!(rules(lab), first, "round {round}: killed");
                gateway = Some(Gateway::start(lab, &text));
                assert_eq!(rules(lab), first, "round {round}: started");
                for family in Family::BOTH {
                    let request = request(family, at(Site::A, family, 200, 80), Some("allowed.example"));
                    let outcome = lab.client.run(|| ask_http(&request)).unwrap();
                    assert!(matches!(outcome.saw, Saw::Answer(_)), "round {round}: the first new flow: {outcome:?}");
                }
                for to in destinations() {
                    assert_eq!(tap.count(lab, to).unwrap(), 0, "round {round}: {to}");
                }
            }
            over.store(true, Ordering::Relaxed);
            hammers.into_iter().for_each(|hammer| hammer.join().unwrap());
            for to in destinations() {
                assert_eq!(tap.count(lab, to).unwrap(), 0, "{to}");
            }
        });
        println!("{} attempts over {} kills, none of them at the server", tried.load(Ordering::Relaxed), rounds());
        gateway.unwrap().stop();
    });
}

fn rounds() -> usize {
    std::env::var("TIDEGATE_CRASHES").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// Blocked by name on port 80 and of QUIC, by address elsewhere; questions go to an address that is blocked as well.
fn destinations() -> Vec<SocketAddr> {
    let of = |family| {
        [(Site::A, 80), (Site::A, 443), (Site::B, 8443), (Site::B, 9999)].map(|(site, port)| at(site, family, 1, port))
    };
    Family::BOTH.iter().flat_map(|family| of(*family)).collect()
}

fn hammer(lab: &Lab, family: Family, over: &AtomicBool, tried: &AtomicUsize) {
    let hello = flight_of("www.youtube.com");
    let work = || {
        while !over.load(Ordering::Relaxed) {
            let mut blocked = request(family, at(Site::A, family, 1, 80), Some("blocked.example"));
            blocked.patience = Duration::from_millis(30);
            assert!(!matches!(ask_http(&blocked).saw, Saw::Answer(_)));
            assert!(TcpStream::connect_timeout(&at(Site::B, family, 1, 8443), Duration::from_millis(5)).is_err());
            let socket = UdpSocket::bind((client_address(family, 0), 0)).unwrap();
            for (octets, to) in [(&hello[..], at(Site::A, family, 1, 443)), (b"text", at(Site::B, family, 1, 9999))] {
                // An ICMP answer to the one before is no matter.
                let _ = socket.send_to(octets, to);
            }
            tried.fetch_add(1, Ordering::Relaxed);
        }
    };
    lab.client.run(work).unwrap();
}

/// The ruleset as `nft` writes it, without counters and elements; nothing where there is no `nft`.
fn rules(lab: &Lab) -> String {
    let list = || Command::new("nft").args(["-s", "-t", "list", "table", "inet", "tidegate"]).output();
    let Ok(output) = lab.gateway.run(list).unwrap() else { return String::new() };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Listeners have other ports each time.
    let text = String::from_utf8(output.stdout).unwrap();
    let masked = |line: &str| match line.contains("tproxy") || line.contains("dport") && line.contains("drop") {
        true => line.split(|c: char| c.is_ascii_digit()).collect::<String>(),
        false => line.to_owned(),
    };
    text.lines().map(masked).collect::<Vec<_>>().join("\n")
}
