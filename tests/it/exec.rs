//! `tidegate exec`, with a command that tries what it may and what it may not.
//!
//! ```text
//!   lab.gateway: "the host"                         lab.server
//!   tidegate exec ── the command                    Site A: host 1 allowed.example, host 2 other.example
//!   /etc/resolv.conf names the resolver ----------- Site A: host 53
//! ```
//!
//! The command is this very binary, started again for the test [`visitor::inside_the_enclosure`], which does what an
//! environment variable tells it: nothing else need be installed.

mod host;
mod visitor;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use host::{ALLOWED, Host, OTHER};
use serde_json::Value;

use crate::inside::in_lab;

#[test]
fn what_is_allowed_by_name_works_on_every_port_and_protocol_and_the_rest_is_refused_unheard() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let done = host.exec(
            &["--allow", "allowed.example"],
            &[
                "tcp4 allowed.example 7000",
                "tcp6 allowed.example 7000",
                "udp4 allowed.example 7000",
                "udp6 allowed.example 7000",
                "resolve other.example",
                "resolve_tcp other.example",
                &format!("tcp {OTHER} 7000"),
                &format!("udp {OTHER} 7000"),
                &format!("http {OTHER} 80 allowed.example"),
                &format!("http {ALLOWED} 80 other.example"),
            ],
        );
        assert_eq!(done.status, Some(0), "{done:?}");
        let heard = ["heard"; 4];
        let refused = ["no such name", "no such name", "refused", "refused", "refused", "refused"];
        assert_eq!(done.results, [&heard[..], &refused].concat(), "{done:?}");
        assert_eq!(host.heard_by(OTHER), 0, "the server of a name that is not allowed has heard something");
        assert!(host.heard_by(ALLOWED) >= 4);
        for line in ["blocked the name other.example", "blocked tcp allowed.example (198.51.100.2:80): BINDING"] {
            assert!(done.errors.contains(line), "no word of `{line}` in {}", done.errors);
        }
    });
}

#[test]
fn a_blocked_name_is_blocked_in_dns_and_wherever_it_shows() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let done = host.exec(
            &["--block", "other.example", "--quiet"],
            &["resolve other.example", &format!("http {OTHER} 80 other.example"), "tcp4 allowed.example 7000"],
        );
        assert_eq!(done.results, ["no such name", "refused", "heard"], "{done:?}");
        assert_eq!(host.heard_by(OTHER), 0);
        assert_eq!(done.errors, "", "--quiet says nothing");
    });
}

#[test]
fn with_nothing_said_all_is_allowed_and_told_and_may_be_saved_as_a_policy() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let saved = host.folder().join("policy.toml");
        let save = saved.to_str().unwrap();
        let steps = ["tcp4 allowed.example 7000", "udp4 allowed.example 7000"];
        let done = host.exec(&["--save", save], &[&steps[..], &["resolve unvisited.example"]].concat());
        assert_eq!(done.results, ["heard"; 3], "{done:?}");
        let row = |protocol: &str| {
            let is_it = |line: &&str| line.starts_with("allowed.example") && line.contains(protocol);
            done.errors
                .lines()
                .find(is_it)
                .unwrap_or_else(|| panic!("no row of {protocol} in {}", done.errors))
                .to_owned()
        };
        assert!(row("tcp/7000").contains("allowed 1") && row("udp/7000").contains("198.51.100.1"), "{}", done.errors);

        let again = host.exec(&["--config", save], &[&steps[..], &["resolve other.example"]].concat());
        assert_eq!(
            again.results,
            ["heard", "heard", "no such name"],
            "{again:?}\n{:?}",
            std::fs::read_to_string(saved)
        );
    });
}

#[test]
fn records_go_to_a_file_with_every_verdict_and_its_end() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let records = host.folder().join("records");
        let arguments = ["--allow", "allowed.example", "--records", records.to_str().unwrap()];
        host.exec(
            &arguments,
            &["tcp4 allowed.example 7000", &format!("tcp {OTHER} 7000"), "udp4 allowed.example 7000"],
        );
        let text = std::fs::read_to_string(&records).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let has = |kind: &str, protocol: &str, verdict: Option<&str>| {
            records.iter().any(|r| r["kind"] == kind && r["protocol"] == protocol && r["verdict"].as_str() == verdict)
        };
        assert!(has("dns", "udp", Some("allow")), "{text}");
        assert!(has("domain", "tcp", Some("allow")) && has("domain", "udp", Some("allow")), "{text}");
        assert!(has("ip", "tcp", Some("block")), "{text}");
        assert!(has("end", "tcp", None) && has("end", "udp", None), "{text}");
    });
}

#[test]
fn status_signals_and_streams_are_the_commands_own() {
    in_lab(|lab| {
        let host = Host::new(lab);
        for (step, status) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("signal 15", 143), ("signal 9", 137)] {
            let done = host.exec(&["--quiet"], &[step]);
            assert_eq!(done.status, Some(status), "{step}: {done:?}");
        }
        assert_eq!(host.program(&["--quiet"], &["/no/such/program"]).status, Some(127));
        assert_eq!(host.program(&["--quiet"], &["/etc/passwd"]).status, Some(126));

        let mut command = host.command(&["--quiet"], &["copy"]);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let mut stdin = child.stdin.take().unwrap();
        let to_send = sent.clone();
        let sending = std::thread::spawn(move || stdin.write_all(&to_send).unwrap());
        let mut received = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        // The test harness of the binary says some words of its own before.
        assert!(received.ends_with(&sent), "{} of {} octets", received.len(), sent.len());
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_signal_to_tidegate_is_the_commands() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let mut running = host.start(&["--quiet"], &["say ready", "wait"]);
        running.result("ready");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(running.finish().status, Some(143));
    });
}

/// As programs do that leave their children to the kernel, and whoever they start inherits it.
#[test]
fn a_command_ends_for_tidegate_too_where_its_starter_ignores_the_ends_of_children() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let done = host.exec_by("trap '' CHLD; exec \"$@\"", &["--quiet"], &["exit 7"]);
        assert_eq!(done.status, Some(7), "{done:?}");
    });
}

#[test]
fn nothing_that_the_command_started_outlives_it() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let done = host.exec(&["--quiet"], &["daemon"]);
        // The daemon holds the end of standard output that was read until nobody held it any more.
        assert_eq!((done.results, done.status), (vec!["daemon runs".to_owned()], Some(0)));
    });
}

#[test]
fn without_tidegate_the_command_has_no_network() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let steps = [
            "tcp4 allowed.example 7000",
            "say ready",
            "until_orphaned",
            // Not whom it asks until then: what is on its way when tidegate ends may still arrive.
            &format!("tcp {OTHER} 7000"),
            &format!("tcp {} 7000", host::OTHER_V6),
            &format!("udp {OTHER} 7000"),
            "resolve allowed.example",
        ];
        let mut running = host.start(&["--quiet"], &steps);
        assert_eq!(running.result("ready"), ["heard"]);
        running.signal(nix::sys::signal::Signal::SIGKILL);
        let done = running.finish();
        assert_eq!(
            done.results,
            ["heard", "ready", "orphaned", "refused", "refused", "refused", "no such name"],
            "{done:?}"
        );
        assert_eq!(host.heard_by(OTHER), 0, "something got through");
    });
}

#[test]
fn every_way_out_that_is_not_the_network_is_shut() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let _abstract = host.abstract_listener("tidegate-test");
        // One of a program in a network namespace of its own, and one of the host's, deep down where nobody looks.
        let near = host.folder().join("agent.sock");
        let _near = std::os::unix::net::UnixListener::bind(&near).unwrap();
        let (deep, _deep) = host.path_listener("a/b/c/agent.sock");
        let (path, deep) = (near.to_str().unwrap(), deep.to_str().unwrap());
        let steps = [
            "nft",
            "route",
            "raw_socket",
            "packet_socket",
            "vsock",
            "transparent",
            "host_processes",
            "init_descriptors",
            "init_namespace",
            "abstract_socket tidegate-test",
            &format!("path_socket {path}"),
            &format!("path_socket {deep}"),
            "privileges",
            "ping_is_no_echo",
        ];
        let done = host.exec(&["--quiet"], &steps);
        assert_eq!(done.results, vec!["refused"; steps.len()], "{done:?}");

        let done = host.exec(&["--quiet", "--allow-socket", path], &[&format!("path_socket {path}")]);
        assert_eq!(done.results, ["reached"], "what is allowed is reached: {done:?}");
    });
}

/// As ssh does with the sockets of its connections, and programs that bind by a path from where they stand.
#[test]
fn sockets_are_hidden_by_whatever_name_they_were_bound() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let (bound, _moved) = host.path_listener("a/b/c/master.x7");
        let moved = bound.with_file_name("master");
        std::fs::hard_link(&bound, &moved).unwrap();
        std::fs::remove_file(&bound).unwrap();
        let (relative, _relative) = host.listener_from_its_folder("a/b/d", "agent.sock");
        let elsewhere = host.folder().join("a/b/e/engine.sock");
        std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
        let _elsewhere = lab.server.run(|| std::os::unix::net::UnixListener::bind(&elsewhere).unwrap()).unwrap();
        let mounted = host.mounted(&elsewhere, "a/b/f/engine.sock");
        for path in [moved, relative, mounted] {
            let path = path.to_str().unwrap();
            let done = host.exec(&["--quiet"], &[&format!("path_socket {path}")]);
            assert_eq!(done.results, ["refused"], "{path}: {done:?}");
        }
    });
}

/// As in a container whose engine covers parts of it.
#[test]
fn where_proc_cannot_be_mounted_anew_a_command_runs_all_the_same() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let none: Option<&str> = None;
        nix::mount::mount(Some("cover"), "/proc/fs", Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
        let steps = ["tcp4 allowed.example 7000", "init_namespace", "init_descriptors", "privileges"];
        let done = host.exec(&["--quiet"], &steps);
        assert_eq!(done.results, ["heard", "refused", "refused", "refused"], "{done:?}");
        assert!(done.errors.contains("/proc is not to be mounted"), "nothing was tested: {done:?}");

        let tidegate = env!("CARGO_BIN_EXE_tidegate");
        let nested = format!("exec {tidegate} exec --quiet -- \"$@\"");
        let done = host.exec_by(&nested, &["--block", "other.example", "--quiet"], &steps);
        assert_eq!(done.results, ["heard", "refused", "refused", "refused"], "{done:?}");
    });
}

#[test]
fn what_is_sent_from_another_address_than_the_commands_is_heard_by_nobody() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let servers = [(OTHER, "127.0.0.1"), (OTHER, "198.51.100.1"), (OTHER, "10.254.0.53"), (host::OTHER_V6, "::1")];
        let steps: Vec<String> = ["tcp_from", "udp_from"]
            .iter()
            .flat_map(|way| servers.map(|(server, own)| format!("{way} {own} {server} 7000")))
            .collect();
        let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
        for arguments in [&["--quiet", "--allow", "allowed.example"][..], &["--quiet"]] {
            let done = host.exec(arguments, &[&steps[..], &["tcp4 allowed.example 7000"]].concat());
            let (last, others) = done.results.split_last().unwrap();
            assert_eq!(last, "heard", "{done:?}");
            assert!(others.iter().all(|result| result == "refused" || result == "silence"), "{done:?}");
            assert_eq!(host.heard_by(OTHER), 0, "{arguments:?}: a flow that nobody judged got through: {done:?}");
        }
    });
}

#[test]
fn a_signal_to_its_process_group_does_not_reach_who_started_tidegate() {
    // Of that thread alone: whether this kernel has the scope.
    if !std::thread::spawn(|| tidegate::sys::landlock::scope().unwrap_or(false)).join().unwrap() {
        eprintln!("this kernel has no scopes of Landlock");
        return;
    }
    in_lab(|lab| {
        let host = Host::new(lab);
        let shell = "trap 'echo \"result: signalled\"' URG; \"$@\"; exit $?";
        let done = host.exec_by(shell, &["--quiet"], &["signal_group", "say done"]);
        assert_eq!(done.results, ["DONE", "done"], "{done:?}");
    });
}

#[test]
fn a_standard_stream_that_leads_past_tidegate_is_not_passed_on() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let socket = std::os::fd::OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut command = host.command(&["--quiet"], &["say ran"]);
        let done = command.stdin(socket).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stderr).contains("standard input is a socket"), "{done:?}");
        assert!(!String::from_utf8_lossy(&done.stdout).contains("ran"), "{done:?}");

        // What is covered inside is seen from a folder that was found outside, and so is a socket that was.
        let (near, _near) = host.path_listener("agent.sock");
        let found = |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
        let streams = [
            (File::open(near.parent().unwrap()).unwrap(), "/agent.sock", "a folder"),
            (found(near.parent().unwrap()), "/agent.sock", "a folder"),
            (found(&near), "", "a file that was not opened"),
        ];
        for (stream, below, what) in streams {
            let mut command = host.command(&["--quiet"], &[&format!("path_socket /proc/self/fd/0{below}")]);
            let done = command.stdin(stream).output().unwrap();
            assert_eq!(done.status.code(), Some(1), "{done:?}");
            assert!(String::from_utf8_lossy(&done.stderr).contains(&format!("standard input is {what}")), "{done:?}");
        }
    });
}

#[test]
fn the_command_gets_no_descriptor_beyond_its_streams() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let records = host.folder().join("records");
        // As a careless shell leaves them: one open file, and one that is tidegate's own.
        let shell = format!("exec 7</etc/passwd 9>{}; exec \"$@\"", records.display());
        let done = host.exec_by(&shell, &["--quiet", "--records", "9"], &["descriptors", "tcp4 allowed.example 7000"]);
        assert_eq!(done.results, ["refused", "heard"], "{done:?}");
        assert!(std::fs::read_to_string(&records).unwrap().contains("allowed.example"));
    });
}

#[test]
fn an_enclosed_command_may_enclose_another() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let tidegate = env!("CARGO_BIN_EXE_tidegate");
        let inner = ["--block", "other.example", "--quiet"];
        let steps = ["tcp4 allowed.example 7000", "resolve other.example", "udp6 allowed.example 7000"];
        let done = host.exec_by(&format!("exec {tidegate} exec --quiet -- \"$@\""), &inner, &steps);
        assert_eq!(done.results, ["heard", "no such name", "heard"], "{done:?}");
    });
}

#[test]
fn loopback_is_the_commands_own_but_for_ports_that_are_named() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let port = host.listen_on_loopback();
        let ask = format!("tcp 127.0.0.1 {port}");
        assert_eq!(host.exec(&["--quiet"], &[&ask]).results, ["refused"]);
        let done = host.exec(&["--quiet", "--host-port", &port.to_string()], &[&ask]);
        assert_eq!(done.results, ["heard"], "{done:?}");

        let mut running = host.start(&["--quiet", "--expose", "7123"], &["serve 7123", "wait"]);
        running.result("serving");
        assert_eq!(host.ask_loopback(7123), "heard");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.finish();
    });
}

#[test]
fn a_configuration_that_would_not_judge_the_command_is_refused() {
    in_lab(|lab| {
        let host = Host::new(lab);
        let file = host.folder().join("two.toml");
        let network = |name, ip| {
            format!(
                "[[network]]\nname = \"{name}\"\ndirections = \"outbound\"\nips = [{{ ip = \"{ip}\", maskbits = 24 }}]\n\
                 outbound = {{ policy = \"p\", drop = \"tcp-reset\" }}\n"
            )
        };
        let policy = "name = \"x\"\n[[policy]]\nname = \"p\"\ndefault = \"block\"\n";
        std::fs::write(&file, [policy, &network("a", "10.1.0.0"), &network("b", "10.2.0.0")].concat()).unwrap();
        let done = host.exec(&["--config", file.to_str().unwrap()], &["exit 0"]);
        assert_eq!(done.status, Some(2), "{done:?}");
        assert!(done.errors.contains("no Network of the configuration judges"), "{}", done.errors);

        std::fs::write(&file, [policy, &network("a", "10.1.0.0")].concat()).unwrap();
        let done = host.exec(&["--config", file.to_str().unwrap()], &[&format!("tcp {ALLOWED} 7000")]);
        assert_eq!(done.results, ["refused"], "{done:?}");
        assert_eq!(host.heard_by(ALLOWED), 0);
        let off = network("a", "10.1.0.0").replace("directions", "mode = \"off\"\ndirections");
        std::fs::write(&file, [policy, &off].concat()).unwrap();
        let done = host.exec(&["--config", file.to_str().unwrap()], &["exit 0"]);
        assert_eq!(done.status, Some(2), "a Network that is off judges nobody: {done:?}");

        let vain = host.exec(&["--allow", ".example", "--block", "a.example"], &["exit 0"]);
        assert_eq!(vain.status, Some(2), "{vain:?}");
    });
}
