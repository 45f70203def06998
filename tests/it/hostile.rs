//! Hostile forms of a hello, delivered to a rustls server: the measure is the name that the server was asked for.
//!
//! ```text
//! client -- gateway (tidegate run) -- server (rustls)
//!           and, to see what the forms are worth, from the gateway's own namespace straight to the server
//! ```

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rustls::server::Acceptor;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::peek::{Discovery, Outcome};
use tidegate::sys::netns::Namespace;
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, listen, send_anyway};
use crate::inside::in_lab;

#[allow(dead_code)]
#[path = "../../src/peek/samples.rs"]
mod samples;

const FORMS: &str = include_str!("../data/hostile-tls.txt");
/// Without these a rustls server does not come to look at the name.
const NEEDED: [(&str, &str); 3] =
    [("ext=000d", "ext=000d,000404030804"), ("ext=002b", "ext=002b,020304"), ("ext=000a", "ext=000a,0002001d")];

#[test]
fn no_form_of_a_hello_brings_a_blocked_name_to_a_rustls_server() {
    in_lab(|lab| {
        let inspection = "type = \"prefer-both\"\ntimeout = \"30s\"";
        let gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let (client, mut server) = (&lab.client, Server::start(lab));
        for family in Family::BOTH {
            let destination = at(Site::A, family, 3, 443);
            let straight = deliver_all(&lab.gateway, destination, &mut server);
            assert!(straight.iter().filter(|name| is_blocked(name)).count() > 10, "{straight:?}");
            let through = deliver_all(client, destination, &mut server);
            assert!(!through.iter().any(|name| is_blocked(name)), "{through:?}");
        }
        gateway.stop();
    });
}

#[test]
fn every_well_formed_hello_with_an_allowed_name_reaches_the_server_as_without_a_gateway() {
    in_lab(|lab| {
        let inspection = "type = \"prefer-both\"\ntimeout = \"30s\"";
        let _gateway = Gateway::start(lab, &configuration("tcp-reset", inspection));
        let mut server = Server::start(lab);
        let destination = at(Site::A, Family::V4, 3, 443);
        for row in rows().filter(|row| row.starts_with("blocked.example |")) {
            let octets = octets(&row.replace("blocked", "allowed").replace("BLOCKED", "ALLOWED"));
            let mut seen = |from| {
                deliver(from, destination, &octets);
                server.seen_until_marker(from, destination)
            };
            assert_eq!(seen(&lab.client), seen(&lab.gateway), "{row}");
        }
    });
}

fn is_blocked(name: &str) -> bool {
    name.to_ascii_lowercase().contains("blocked")
}

fn rows() -> impl Iterator<Item = String> {
    FORMS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let missing = NEEDED.iter().filter(|(kind, _)| !line.contains(kind)).map(|(_, word)| *word);
        [line].into_iter().chain(missing).collect::<Vec<_>>().join(" ")
    })
}

fn octets(row: &str) -> Vec<u8> {
    samples::rows(row, samples::recipe).remove(0).bytes
}

/// Every form, and the names that the server was asked for.
fn deliver_all(from: &Namespace, destination: SocketAddr, server: &mut Server) -> Vec<String> {
    rows().for_each(|row| deliver(from, destination, &octets(&row)));
    server.seen_until_marker(from, destination)
}

/// Sends, and waits until the other side has had enough.
fn deliver(from: &Namespace, destination: SocketAddr, octets: &[u8]) {
    let mut stream = from.run(|| TcpStream::connect_timeout(&destination, DEADLINE)).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    send_anyway(&stream, octets);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A rustls server that goes no further than a client's hello.
struct Server {
    names: Receiver<String>,
}

impl Server {
    fn start(lab: &Lab) -> Self {
        let accepted = listen(lab, 443);
        let (send, names) = mpsc::channel();
        thread::spawn(move || accepted.iter().for_each(|(stream, _)| spawn_reader(stream, send.clone())));
        Self { names }
    }

    /// Sends a last hello of a name of its own, and takes all names that came before it.
    fn seen_until_marker(&mut self, from: &Namespace, destination: SocketAddr) -> Vec<String> {
        deliver(from, destination, &octets("marker.example | marker | sni=marker.example ext=000d,000404030804"));
        std::iter::from_fn(|| Some(self.names.recv_timeout(DEADLINE).unwrap()))
            .take_while(|name| name != "marker.example")
            .collect()
    }
}

fn spawn_reader(mut stream: TcpStream, names: Sender<String>) {
    thread::spawn(move || {
        let mut acceptor = Acceptor::default();
        while acceptor.read_tls(&mut stream).is_ok_and(|count| count > 0) {
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().unwrap_or("none").to_owned();
                    return names.send(name).unwrap_or_default();
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    });
}
