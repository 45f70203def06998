//! What stands when the sidecar does not, what it can do, and who may ask.

use tidegate::sys::nft::NftSocket;
use tidegate::sys::rtnl::Rtnl;

use super::*;

#[test]
fn after_kill_9_only_what_its_address_allows_leaves() {
    in_pod(|lab| {
        let (_origins, trust) = servers(lab);
        let accepted = crate::gateway::listen(lab, 9999);
        let tap = Tap::at_server(lab).unwrap();
        let configuration = configuration("tcp-reset", "", "");
        Sidecar::start(lab, &configuration).enforcer.kill().unwrap();
        assert_closed(lab, &tap);
        for family in Family::BOTH {
            let _by_address = connect(lab, at(Site::A, family, 1, 9999));
            accepted.recv_timeout(DEADLINE).unwrap();
        }
        let sidecar = Sidecar::start(lab, &configuration);
        for family in Family::BOTH {
            let outcome = tls(lab, &trust, at(Site::A, family, 1, 443), "allowed.example");
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        }
        sidecar.stop();
    });
}

#[test]
fn rules_alone_are_closed_until_a_sidecar_comes() {
    in_pod(|lab| {
        let (_origins, trust) = servers(lab);
        let tap = Tap::at_server(lab).unwrap();
        let configuration = configuration("tcp-reset", "", "");
        let folder = folder_with(&configuration);
        let file = folder.path().join("tidegate.toml");
        assert!(run_beside(lab, &["run", "--rules-only", "--config", file.to_str().unwrap()]).success());
        assert_closed(lab, &tap);
        let sidecar = Sidecar::start(lab, &configuration);
        let outcome = tls(lab, &trust, at(Site::A, Family::V4, 1, 443), "allowed.example");
        assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        sidecar.stop();
    });
}

#[test]
fn an_orderly_end_takes_the_rules_away_or_keeps_them_as_asked() {
    in_pod(|lab| {
        let configuration = configuration("tcp-reset", "", "");
        for (arguments, sidecar, stay) in
            [(&[][..], "", false), (&["--keep-rules"], "", true), (&[], "capabilities = \"none\"", true)]
        {
            let configuration = configuration.replace("[sidecar]\n", &format!("[sidecar]\n{sidecar}\n"));
            Sidecar::start_with(lab, &configuration, arguments).stop();
            let stand = lab.client.run(|| NftSocket::open().unwrap().is_installed().unwrap()).unwrap();
            assert_eq!(stand, stay, "{arguments:?} {sidecar}");
        }
        Sidecar::start(lab, &configuration).stop();
        let rules = || Rtnl::open().unwrap().fwmark_rules(Family::V4).unwrap().len();
        assert_eq!(lab.client.run(rules).unwrap(), 0);
    });
}

#[test]
fn it_runs_as_its_own_user_with_one_capability_or_none() {
    in_pod(|lab| {
        let (_origins, trust) = servers(lab);
        for (sidecar, most) in [("", 1 << 12), ("capabilities = \"none\"", 0), ("user = 4242", 1 << 12)] {
            let user = if sidecar.starts_with("user") { 4242 } else { USER };
            let sidecar = Sidecar::start(lab, &configuration("tcp-reset", sidecar, ""));
            let tasks = format!("/proc/{}/task", sidecar.enforcer.pid().as_raw_nonzero());
            let mut seen = 0;
            for task in std::fs::read_dir(tasks).unwrap() {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                assert!(field("Uid:").split_whitespace().all(|id| id == user.to_string()), "{status}");
                assert_eq!(field("Groups:"), "");
                // Of those that it began with, none can come back.
                let bound = u64::from_str_radix(field("CapBnd:"), 16).unwrap();
                assert_eq!(bound & !(1 << 12 | 1 << 13), 0, "{status}");
                for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                    let held = u64::from_str_radix(field(set), 16).unwrap();
                    assert_eq!(held & !most, 0, "{set} {status}");
                    seen |= held;
                }
            }
            assert_eq!(seen, most);
            for (name, passes) in [("allowed.example", true), ("blocked.example", false)] {
                let outcome = tls(lab, &trust, at(Site::A, Family::V6, 1, 443), name);
                assert_eq!(matches!(outcome.saw, Saw::Answer(_)), passes, "{outcome:?}");
            }
            sidecar.enforcer.kill().unwrap();
        }
    });
}

#[test]
fn a_sidecar_takes_nothing_over_from_whoever_is_at_the_door() {
    in_pod(|lab| {
        let folder = folder_with(&configuration("tcp-reset", "", ""));
        let file = folder.path().join("tidegate.toml");
        assert_eq!(run_beside(lab, &["run", "--take-over", "--config", file.to_str().unwrap()]).code(), Some(1));
    });
}

#[test]
fn probes_tell_whether_it_is_there() {
    in_pod(|lab| {
        assert_eq!(run_beside(lab, &["probe"]).code(), Some(1));
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        assert_eq!(run_beside(lab, &["probe"]).code(), Some(0));
        assert_eq!(run_beside(lab, &["probe", "--live"]).code(), Some(0));
        assert_eq!(run_beside(lab, &["probe", "--user", "1"]).code(), Some(1), "not whom it asked for");
        sidecar.enforcer.kill().unwrap();
        assert_eq!(run_beside(lab, &["probe", "--live"]).code(), Some(1));
    });
}

/// Nothing that a Network inspects leaves, nor what its address forbids.
fn assert_closed(lab: &Lab, tap: &Tap) {
    for family in Family::BOTH {
        for to in [at(Site::A, family, 30, 443), at(Site::A, family, 30, 80), at(Site::A, family, 30, 53)] {
            lab.client.run(|| open_without_waiting(to)).unwrap();
            let datagram = || {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).unwrap();
                (0..3).for_each(|_| _ = socket.send_to(&flight("www.google.com"), to));
            };
            if to.port() != 80 {
                lab.client.run(datagram).unwrap();
            }
            assert_eq!(tap.count(lab, to).unwrap(), 0, "{to}");
        }
        let to = at(Site::B, family, 30, 9999);
        lab.client.run(|| open_without_waiting(to)).unwrap();
        assert_eq!(tap.count(lab, to).unwrap(), 0, "{to}");
    }
}

/// The SYN has left, or was dropped, when this returns.
fn open_without_waiting(to: SocketAddr) -> socket2::Socket {
    let kind = socket2::Type::STREAM.nonblocking();
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), kind, None).unwrap();
    let _ = socket.connect(&to.into());
    socket
}

/// Any socket may be bound to a link. Its packets are not to be routed over the loopback, and leave by no other way.
#[test]
fn a_socket_that_is_bound_to_the_link_gets_nothing_out() {
    in_pod(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for family in Family::BOTH {
            for port in [443, 80, 53] {
                let to = at(Site::A, family, 64, port);
                lab.client
                    .run(|| {
                        for kind in [socket2::Type::STREAM.nonblocking(), socket2::Type::DGRAM] {
                            let socket = socket2::Socket::new(socket2::Domain::for_address(to), kind, None).unwrap();
                            socket.bind_device(Some(b"eth0")).unwrap();
                            let _ = socket.connect(&to.into());
                            if (port, kind) != (80, socket2::Type::DGRAM) {
                                let _ = socket.send(&flight("www.youtube.com"));
                            }
                        }
                    })
                    .unwrap();
                assert_eq!(tap.count(lab, to).unwrap(), 0, "{to}");
            }
        }
        sidecar.stop();
    });
}
