//! What stands when tidegate does not: nothing that should be captured ever passes uncaptured (SPEC R0, R5).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate::mode::demo::client::{Saw, ask_http, ask_tls};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::mode::demo::tap::{Kind, Tap};
use tidegate::sys::nft::NftSocket;
use tidegate::sys::rtnl::{Family, Rtnl};

use crate::gateway::{Gateway, at, configuration, connect, request, servers};
use crate::inside::in_lab;

/// client -- gateway (tidegate, killed) -- server
#[test]
fn after_kill_9_no_captured_flow_reaches_a_server_and_the_next_start_works() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let configuration = configuration("tcp-reset", "type = \"prefer-both\"");
        let tap = Tap::at_server(lab).unwrap();
        Gateway::start(lab, &configuration).enforcer.kill().unwrap();

        for destination in inspected_destinations() {
            let opened = lab.client.run(|| open_without_waiting(destination)).unwrap();
            // The connection's SYN has left the client, and the sentinel behind it has arrived.
            assert_eq!(tap.count(lab, destination).unwrap(), 0, "{destination} after kill -9");
            drop(opened);
        }

        let gateway = Gateway::start(lab, &configuration);
        for family in Family::BOTH {
            let request = request(family, at(Site::A, family, 9, 443), Some("allowed.example"));
            let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        }
        gateway.stop();
    });
}

/// client -- gateway (no tidegate any more) -- server
#[test]
fn an_orderly_end_takes_every_rule_and_route_away() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        assert!(lab.gateway.run(|| NftSocket::open().unwrap().is_installed().unwrap()).unwrap());
        assert_eq!(mark_rules(lab), 2);
        gateway.stop();
        assert!(!lab.gateway.run(|| NftSocket::open().unwrap().is_installed().unwrap()).unwrap());
        assert_eq!(mark_rules(lab), 0);
        // What was blocked is forwarded again, as on any router.
        for family in Family::BOTH {
            let request = request(family, at(Site::B, family, 1, 80), Some("blocked.example"));
            let outcome = lab.client.run(|| ask_http(&request)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        }
    });
}

/// client -- gateway (tidegate, ended with --keep-rules) -- server
#[test]
fn rules_that_are_kept_go_on_shutting_captured_flows_out() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let configuration = configuration("tcp-reset", "type = \"prefer-both\"");
        let tap = Tap::at_server(lab).unwrap();
        let gateway = Gateway::start_with(lab, &configuration, |command| {
            command.arg("--keep-rules");
        });
        gateway.unwrap_or_else(|e| panic!("{e}")).stop();
        for destination in inspected_destinations() {
            let opened = lab.client.run(|| open_without_waiting(destination)).unwrap();
            assert_eq!(tap.count(lab, destination).unwrap(), 0, "{destination} with rules kept");
            drop(opened);
        }
    });
}

/// client -- gateway (tidegate, and another that tries to start) -- server
#[test]
fn a_second_one_beside_a_gateway_says_what_stands_in_its_way_and_changes_nothing() {
    in_lab(|lab| {
        let (_origins, trust) = servers(lab);
        let configuration = configuration("tcp-reset", "type = \"prefer-both\"");
        let gateway = Gateway::start(lab, &configuration);
        let refused = Gateway::try_start(lab, &configuration).map(drop).unwrap_err().to_string();
        assert!(refused.contains("another tidegate serves this network namespace"), "{refused}");
        let request = request(Family::V4, at(Site::A, Family::V4, 1, 443), Some("blocked.example"));
        let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
        assert_eq!(outcome.saw, Saw::Reset);
        assert_eq!(gateway.verdict_on(outcome.source.unwrap())["verdict"], "block");
    });
}

/// client -- gateway (tidegate) -- server
#[test]
fn ports_that_are_not_inspected_are_judged_by_address_in_the_kernel() {
    in_lab(|lab| {
        let accepted = crate::gateway::listen(lab, 8443);
        let tap = Tap::at_server(lab).unwrap();
        let gateway = Gateway::start(lab, &configuration("tcp-reset", "type = \"prefer-both\""));
        for family in Family::BOTH {
            let allowed = connect(lab, at(Site::A, family, 1, 8443));
            let (_, source) = accepted.recv_timeout(crate::gateway::DEADLINE).unwrap();
            assert_eq!(source, allowed.local_addr().unwrap());

            let blocked = at(Site::B, family, 1, 8443);
            let request = request(family, blocked, None);
            let outcome = lab.client.run(|| ask_http(&request)).unwrap();
            assert_eq!(outcome.saw, Saw::Reset);
            assert_eq!(tap.count(lab, blocked).unwrap(), 0);
        }
        gateway.stop();
        let passed = tap.packets(lab, |packet| packet.kind == Kind::Syn).unwrap();
        assert_eq!(passed.len(), 2, "{passed:?}");
    });
}

/// client (opens blocked flows all the time) -- gateway (tidegate, reloaded, killed, started) -- server
#[test]
fn no_blocked_flow_slips_through_a_reload_or_a_start_after_a_crash() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let configuration = configuration("tcp-reset", "type = \"prefer-both\"");
        let gateway = Gateway::start(lab, &configuration);
        let tap = Tap::at_server(lab).unwrap();
        let over = AtomicBool::new(false);
        let hammer = |family: Family| {
            let mut flows = 0;
            while !over.load(Ordering::Relaxed) {
                let mut request = request(family, at(Site::A, family, 1, 80), Some("blocked.example"));
                // While nobody listens nothing answers, and the next is tried.
                request.patience = Duration::from_millis(50);
                let outcome = lab.client.run(|| ask_http(&request)).unwrap();
                assert!(!matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
                flows += 1;
            }
            flows
        };
        std::thread::scope(|scope| {
            let hammers = Family::BOTH.map(|family| scope.spawn(move || hammer(family)));
            for _ in 0..20 {
                gateway.reload();
            }
            gateway.enforcer.kill().unwrap();
            let again = Gateway::start(lab, &configuration);
            again.reload();
            over.store(true, Ordering::Relaxed);
            for hammer in hammers {
                assert!(hammer.join().unwrap() > 0);
            }
            // While the rules stand: what clients still retransmit is forwarded when they are gone.
            for family in Family::BOTH {
                assert_eq!(tap.count(lab, at(Site::A, family, 1, 80)).unwrap(), 0, "{family}");
            }
            again.stop();
        });
    });
}

fn inspected_destinations() -> Vec<SocketAddr> {
    let sites = Site::BOTH.into_iter().flat_map(|site| Family::BOTH.map(|family| (site, family)));
    sites.flat_map(|(site, family)| [443, 80].map(|port| at(site, family, 33, port))).collect()
}

/// A socket whose SYN is on its way; the caller does not wait for what may never come.
fn open_without_waiting(destination: SocketAddr) -> socket2::Socket {
    let domain = socket2::Domain::for_address(destination);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&destination.into());
    socket
}

fn mark_rules(lab: &Lab) -> usize {
    let count = || {
        let mut rtnl = Rtnl::open().unwrap();
        Family::BOTH.iter().map(|family| rtnl.fwmark_rules(*family).unwrap().len()).sum()
    };
    lab.gateway.run(count).unwrap()
}
