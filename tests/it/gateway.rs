//! A tidegate in the lab's gateway, with what tests ask of it.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tidegate::mode::demo::client::{self, Request, Trust};
use tidegate::mode::demo::enforcer::{Ended, Enforcer, StartError};
use tidegate::mode::demo::lab::{Lab, Site, client_address, client_network};
use tidegate::mode::demo::origin::Origins;
use tidegate::sys::rtnl::Family;

/// Far beyond what anything here needs: it turns a hang into a failure, and decides nothing else.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const NAMES: [&str; 3] = ["allowed.example", "blocked.example", "unlisted.example"];

/// A configuration with one Network that protects the client's addresses. [`Site::B`] is blocked by address,
/// `allowed.example` and `blocked.example` by name; the outbound drop action and the lines of `[network.inspection]`
/// are given.
pub(crate) fn configuration(drop: &str, inspection: &str) -> String {
    format!(
        r#"
name = "edge-1"
[[list]]
name = "blocked-addresses"
verdict = "block"
entries = ["{}", "{}"]
[[list]]
name = "allowed-names"
verdict = "allow"
entries = ["allowed.example"]
[[list]]
name = "blocked-names"
verdict = "block"
entries = ["blocked.example"]
[[policy]]
name = "out"
default = "allow"
lists = ["blocked-addresses", "allowed-names", "blocked-names"]
[[network]]
name = "clients"
directions = "outbound"
ips = [{}]
outbound = {{ policy = "out", drop = "{drop}" }}
[network.inspection]
{inspection}
"#,
        Site::B.prefix(Family::V4),
        Site::B.prefix(Family::V6),
        Family::BOTH.map(protected).join(", "),
    )
}

/// The client's network, as an element of `ips`.
pub(crate) fn protected(family: Family) -> String {
    let network = client_network(family);
    format!("{{ ip = \"{}\", maskbits = {} }}", network.network(), network.prefix_len())
}

/// A running tidegate and the folder of its configuration.
pub(crate) struct Gateway {
    pub(crate) enforcer: Enforcer,
    folder: TempDir,
}

impl Gateway {
    pub(crate) fn start(lab: &Lab, configuration: &str) -> Self {
        Self::try_start(lab, configuration).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn try_start(lab: &Lab, configuration: &str) -> Result<Self, StartError> {
        Self::start_with(lab, configuration, |_| {})
    }

    pub(crate) fn start_with(
        lab: &Lab,
        configuration: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Result<Self, StartError> {
        Self::start_prepared(lab, configuration, adjust, |_| {})
    }

    pub(crate) fn start_prepared(
        lab: &Lab,
        configuration: &str,
        adjust: impl FnOnce(&mut Command),
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, StartError> {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("run").arg("--config").arg(&file);
        // Its socket goes where no other test looks.
        command.env("RUNTIME_DIRECTORY", folder.path());
        adjust(&mut command);
        Ok(Self { enforcer: Enforcer::start_prepared(command, &lab.gateway, prepare)?, folder })
    }

    /// The record of the verdict on the flow from `source`, once it is there.
    pub(crate) fn verdict_on(&self, source: SocketAddr) -> Value {
        self.awaited(source, "a verdict", is_verdict)
    }

    /// The record with which the flow from `source` ended.
    pub(crate) fn end_of(&self, source: SocketAddr) -> Value {
        self.awaited(source, "an end", |record| record["kind"] == "end")
    }

    fn awaited(&self, source: SocketAddr, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let record = self.enforcer.record(|record| is_from(record, source) && fits(record), DEADLINE);
        record.unwrap_or_else(|| {
            panic!(
                "no record of {what} for the flow from {source}\nrecords: {:#?}\nmessages: {:#?}",
                self.enforcer.records(),
                self.enforcer.messages()
            )
        })
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Writes another configuration, which a reload will find.
    pub(crate) fn rewrite(&self, configuration: &str) {
        std::fs::write(self.folder.path().join("tidegate.toml"), configuration).unwrap();
    }

    /// A path in the folder of its configuration.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asks for a reload (SIGHUP) and waits until the configuration is in force.
    pub(crate) fn reload(&self) {
        let before = self.enforcer.messages().len();
        kill_process(self.enforcer.pid(), Signal::HUP).unwrap();
        let reloaded = self.enforcer.message_after(before, |line| line.contains("reloaded"), DEADLINE);
        assert!(reloaded.is_some(), "{:#?}", self.enforcer.messages());
    }

    pub(crate) fn stop(self) -> Ended {
        let ended = self.enforcer.stop().unwrap();
        drop(self.folder);
        assert!(ended.status.success(), "{:?}: {:#?}", ended.status, ended.messages);
        ended
    }
}

pub(crate) fn is_from(record: &Value, source: SocketAddr) -> bool {
    record["source"] == source.ip().to_string() && record["source_port"] == source.port()
}

/// The final word on a flow, not the note that it is held for its name.
pub(crate) fn is_verdict(record: &Value) -> bool {
    matches!(record["kind"].as_str(), Some("ip" | "domain")) && record["reason"] != "DOMAIN_INSPECT"
}

/// The lab's servers, and clients that trust them.
pub(crate) fn servers(lab: &Lab) -> (Origins, Trust) {
    let origins = Origins::start(lab, &NAMES).unwrap();
    let trust = Trust::new(origins.certificate(), NAMES[0]).unwrap();
    (origins, trust)
}

pub(crate) fn request(family: Family, destination: SocketAddr, name: Option<&str>) -> Request {
    Request { source: client_address(family, 0), destination, name: name.map(str::to_owned), patience: DEADLINE }
}

/// A connection from the client, which may be to the gateway's ear alone.
pub(crate) fn connect(lab: &Lab, destination: SocketAddr) -> TcpStream {
    let request = request(family_of(destination.ip()), destination, None);
    lab.client.run(|| client::connect(&request)).unwrap().unwrap()
}

/// The octets of a rustls client's first flight.
pub(crate) fn hello(trust: &Trust, name: Option<&str>) -> Vec<u8> {
    let mut octets = Vec::new();
    trust.connection(name).unwrap().write_tls(&mut octets).unwrap();
    octets
}

/// Accepts connections at a port of the server, and hands them over with their (plain) source address.
pub(crate) fn listen(lab: &Lab, port: u16) -> Receiver<(TcpStream, SocketAddr)> {
    let listener = lab.server.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((stream, source)) = listener.accept() {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let source = SocketAddr::new(source.ip().to_canonical(), source.port());
            if send.send((stream, source)).is_err() {
                return;
            }
        }
    });
    receive
}

/// An inspected flow to port 8080 that lives, and both its ends.
pub(crate) fn live(lab: &Lab, accepted: &Receiver<(TcpStream, SocketAddr)>, family: Family) -> (TcpStream, TcpStream) {
    let mut client = connect(lab, at(Site::A, family, 1, 8080));
    client.write_all(get("allowed.example").as_bytes()).unwrap();
    let (mut server, _) = accepted.recv_timeout(DEADLINE).unwrap();
    server.read_exact(&mut vec![0; get("allowed.example").len()]).unwrap();
    (client, server)
}

pub(crate) fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

pub(crate) fn at(site: Site, family: Family, host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(site.address(family, host), port)
}

/// An HTTP request that names `host`.
pub(crate) fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Sends and ignores the failures of a connection that the other end has ended.
pub(crate) fn send_anyway(mut stream: &TcpStream, octets: &[u8]) {
    let _ = stream.write_all(octets);
}

/// Asks again and again, and fails if what is wanted never comes.
pub(crate) fn until<T: Debug>(what: &str, mut ask: impl FnMut() -> T, is_so: impl Fn(&T) -> bool) {
    let begun = Instant::now();
    loop {
        let now = ask();
        if is_so(&now) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "in vain: {what}; at the last {now:?}");
        std::thread::yield_now();
    }
}
