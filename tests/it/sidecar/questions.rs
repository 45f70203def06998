//! DNS of the application: of resolvers far away, and of one on the loopback, as engines of containers have it.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tidegate::mode::demo::lab::client_network;

use super::*;
use crate::dns::resolver::{
    Resolver, addresses, ask, connect_tcp, exchange, honest, question, read_frame, write_frame,
};

#[test]
fn blocked_names_are_answered_here_and_others_by_the_resolver_that_was_asked() {
    in_pod(|lab| {
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), honest);
            let blocked = ask(lab, resolver.at, &question("www.blocked.example.", RecordType::A));
            assert_eq!(blocked.metadata.response_code, ResponseCode::NXDomain);
            assert!(resolver.asked().is_empty());
            let answer = ask(lab, resolver.at, &question("allowed.example.", RecordType::A));
            assert_eq!(addresses(&answer), ["192.0.2.80".parse::<std::net::IpAddr>().unwrap()]);
            let asker = resolver.asked()[0].0.ip().to_canonical();
            assert!(client_network(family).contains(&asker), "{asker} is no address of the namespace");

            let mut stream = connect_tcp(lab, resolver.at);
            for (name, asked) in [("www.blocked.example.", 1), ("allowed.example.", 2)] {
                write_frame(&mut stream, &question(name, RecordType::A));
                assert!(read_frame(&mut stream).is_some());
                assert_eq!(resolver.asked().len(), asked, "{name}");
            }
        }
        sidecar.stop();
    });
}

#[test]
fn a_resolver_on_the_loopback_is_no_way_around() {
    in_pod(|lab| {
        let at = "127.0.0.11:53".parse::<SocketAddr>().unwrap();
        let resolver = lab.client.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        resolver.set_read_timeout(Some(DEADLINE)).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        let stub = lab.client.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(at).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket
        });
        let stub = stub.unwrap();
        for _ in 0..3 {
            let blocked = exchange(&stub, &question("www.blocked.example.", RecordType::A));
            assert_eq!(blocked[3] & 0xf, 3, "NXDOMAIN");
            let query = question("allowed.example.", RecordType::A);
            stub.send(&query).unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = resolver.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[12..length], query[12..], "the allowed question, and no other");
            resolver.send_to(&honest(&buffer[..length])[0], from).unwrap();
            let length = stub.recv(&mut buffer).unwrap();
            assert_eq!((&buffer[..2], buffer[7]), (&query[..2], 1), "{length}");
        }
        sidecar.stop();
    });
}

/// `check` warns of it.
#[test]
fn a_resolver_on_the_loopback_is_asked_unseen_where_no_network_covers_the_loopback() {
    in_pod(|lab| {
        let at = "127.0.0.53:53".parse::<SocketAddr>().unwrap();
        let resolver = lab.client.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        resolver.set_read_timeout(Some(DEADLINE)).unwrap();
        let everywhere = "ips = [{ ip = \"0.0.0.0\", maskbits = 0 }, { ip = \"::\", maskbits = 0 }]";
        let query = question("www.blocked.example.", RecordType::A);
        let loopback = "{ ip = \"127.0.0.1\", maskbits = 32 }";
        for (more, is_seen) in [("", false), (loopback, true)] {
            let ips = format!("ips = [{{ ip = \"10.1.0.0\", maskbits = 24 }}, {more}]");
            let written = configuration("tcp-reset", "", "").replace(everywhere, &ips);
            let warnings = tidegate::config::load_text("t", written.clone()).unwrap().warnings.to_string();
            assert_eq!(warnings.contains("covers 127.0.0.1: questions"), !is_seen, "{warnings}");
            let sidecar = Sidecar::start(lab, &written);
            let stub = lab.client.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
            stub.set_read_timeout(Some(DEADLINE)).unwrap();
            stub.connect(at).unwrap();
            stub.send(&query).unwrap();
            let mut buffer = [0; 2000];
            if is_seen {
                stub.recv(&mut buffer).unwrap();
                assert_eq!(buffer[3] & 0xf, 3, "NXDOMAIN");
            } else {
                assert_eq!(resolver.recv(&mut buffer).unwrap(), query.len());
            }
            sidecar.stop();
        }
    });
}

/// Docker's listens at a port of the kernel's choice, which everybody may read in /proc/net, and has port 53 translated.
#[test]
fn the_resolver_of_an_engine_is_reached_by_no_other_port() {
    in_pod(|lab| {
        let sockets = || {
            let udp = UdpSocket::bind("127.0.0.11:0").unwrap();
            (TcpListener::bind(udp.local_addr().unwrap()).unwrap(), udp)
        };
        let (tcp, udp) = lab.client.run(sockets).unwrap();
        let at = udp.local_addr().unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        let asked = lab.client.run(|| {
            let stub = UdpSocket::bind("127.0.0.1:0").unwrap();
            let sent = stub.send_to(&question("www.blocked.example.", RecordType::A), at);
            (sent.map(drop), TcpStream::connect_timeout(&at, DEADLINE).map(drop))
        });
        assert!(matches!(asked.unwrap(), (Err(_), Err(_))), "it has been reached");
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        assert_eq!(udp.recv(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        sidecar.stop();
    });
}
