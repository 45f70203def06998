//! Listeners that a service manager holds while one tidegate ends and another begins (SPEC R8).
//!
//! ```text
//! client (asks while nobody serves) -- gateway (tidegate run; this test as service manager; tidegate run) -- server
//! ```

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tidegate::mode::demo::enforcer::StartError;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::activation;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, connect, get, servers};
use crate::hand_over::{question, resolver};
use crate::inside::in_lab;

#[test]
fn what_comes_while_nobody_serves_waits_for_the_next_in_listeners_that_the_service_manager_holds() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let _resolvers = Family::BOTH.map(|family| resolver(lab, family));
        let text = configuration("tcp-reset", "type = \"prefer-domain\"") + "[limits]\nworkers = 8\n";
        let manager = Manager::new();
        let first = Gateway::start_with(lab, &text, |command| {
            command.arg("--keep-rules").env("NOTIFY_SOCKET", &manager.path).env("FDSTORE", "64");
        });
        // Of eight workers two take questions over UDP.
        let expected = [("dns-tcp", 16), ("dns-udp", 4), ("tcp", 16), ("udp", 16)];
        let mut held = manager.held(expected.iter().map(|(_, number)| number).sum());
        let number_of = |kind| held.iter().filter(|(name, _)| name == kind).count();
        assert_eq!(expected.map(|(name, _)| (name, number_of(name))), expected);
        first.unwrap_or_else(|e| panic!("{e}")).stop();
        std::thread::scope(|scope| {
            // The kernel shakes hands for whoever will accept.
            let waiting = Family::BOTH.map(|family| {
                let mut client = connect(lab, at(Site::A, family, 1, 80));
                client.write_all(get("allowed.example").as_bytes()).unwrap();
                client.set_read_timeout(Some(DEADLINE)).unwrap();
                client
            });
            let asking = Family::BOTH.map(|family| scope.spawn(move || lab.client.run(|| question(family)).unwrap()));
            held.retain(|(name, _)| ["tcp", "dns-udp"].contains(&name.as_str()));
            let _second = start_with(lab, &text, held).unwrap_or_else(|e| panic!("{e}"));
            for mut client in waiting {
                let mut answer = [0; 12];
                client.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200");
            }
            asking.into_iter().for_each(|asked| asked.join().unwrap());
        });
    });
}

#[test]
fn a_socket_by_a_name_that_means_nothing_ends_the_start() {
    in_lab(|lab| {
        let held = vec![("http".to_owned(), UnixDatagram::unbound().unwrap().into())];
        let started = start_with(lab, &configuration("tcp-reset", "type = \"prefer-both\""), held);
        let why = started.map(drop).unwrap_err().to_string();
        assert!(why.contains("a socket `http`: it can be one of tcp, udp, dns-tcp, dns-udp"), "{why}");
    });
}

/// Keeps what it is given, as systemd does for a service with FileDescriptorStoreMax.
struct Manager {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { _folder: folder, path, socket }
    }

    /// The first so many sockets that it was given to keep, each with its name.
    fn held(&self, count: usize) -> Vec<(String, OwnedFd)> {
        let mut held = Vec::new();
        while held.len() < count {
            let mut octets = [0; 512];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received =
                recvmsg(&self.socket, &mut [IoSliceMut::new(&mut octets)], &mut control, RecvFlags::CMSG_CLOEXEC);
            let received = received.unwrap();
            let text = String::from_utf8_lossy(&octets[..received.bytes]).into_owned();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            for message in control.drain() {
                if let (RecvAncillaryMessage::ScmRights(sockets), Some(name)) = (message, name) {
                    assert!(text.lines().any(|line| line == "FDSTORE=1"), "{text}");
                    held.extend(sockets.map(|socket| (name.to_owned(), socket)));
                }
            }
        }
        held
    }
}

/// A gateway that begins with these sockets. Its process is the shell's, which alone knows its number.
fn start_with(lab: &Lab, text: &str, sockets: Vec<(String, OwnedFd)>) -> Result<Gateway, StartError> {
    let with_its_number = |command: &mut Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        *command = shell;
    };
    Gateway::start_prepared(lab, text, with_its_number, |command| activation::give(command, sockets))
}
