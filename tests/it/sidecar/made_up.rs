//! Sources that the application makes up. IPv6 lets any socket have any address (IPV6_FREEBIND), without any right.

use hickory_proto::rr::RecordType;
use socket2::Type;

use super::*;
use crate::dns::resolver::{Resolver, ask, bind, honest, question};

/// The answer would go to whomever the application chose, and quote what it wrote: a way out to any address.
#[test]
fn what_comes_from_an_address_of_somebody_else_is_not_answered_to_them() {
    in_pod(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("icmp-unreachable", "", ""));
        let resolver = Resolver::start(lab, at(Site::A, Family::V6, 53, 53), honest);
        // Blocked by its address.
        let victim = at(Site::B, Family::V6, 60, 0);
        lab.client
            .run(|| {
                for _ in 0..8 {
                    let socket = UdpSocket::from(bind(victim, Type::DGRAM));
                    let _ = socket.send_to(&question("secret.blocked.example.", RecordType::TXT), resolver.at);
                    let _ = socket.send_to(&flight("www.youtube.com"), at(Site::A, Family::V6, 61, 443));
                    let stream = bind(victim, Type::STREAM.nonblocking());
                    let _ = stream.connect(&at(Site::A, Family::V6, 62, 80).into());
                }
            })
            .unwrap();
        // Whatever was taken in before has been answered by then.
        for _ in 0..8 {
            ask(lab, resolver.at, &question("allowed.example.", RecordType::A));
        }
        let came = tap.packets(lab, |packet| packet.destination.ip() == victim.ip()).unwrap();
        assert!(came.is_empty(), "{came:#?}");
        sidecar.stop();
    });
}

/// Connection tracking remembers a flow of ours for a while after its end, and finds the application's in its place where
/// that takes the port that we had.
#[test]
fn a_port_that_was_ours_gives_the_application_no_way_past() {
    in_pod(|lab| {
        let accepted = crate::gateway::listen(lab, 80);
        let tap = Tap::at_server(lab).unwrap();
        let sidecar = Sidecar::start(lab, &configuration("tcp-reset", "", ""));
        for family in Family::BOTH {
            let to = at(Site::A, family, 63, 80);
            let mut client = connect(lab, to);
            client.write_all(crate::gateway::get("allowed.example").as_bytes()).unwrap();
            let (server, _) = accepted.recv_timeout(DEADLINE).unwrap();
            let ours = server.peer_addr().unwrap();
            let ours = SocketAddr::new(ours.ip().to_canonical(), ours.port());
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            assert!(client.read(&mut [0; 1]).is_err(), "the reset has come through");

            let before = tap.count(lab, to).unwrap();
            let saw = lab.client.run(|| {
                let socket = socket2::Socket::new(socket2::Domain::for_address(to), Type::STREAM, None).unwrap();
                socket.bind(&ours.into()).unwrap();
                let mut stream = match socket.connect_timeout(&to.into(), DEADLINE) {
                    Ok(()) => TcpStream::from(socket),
                    Err(error) => return error.kind(),
                };
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let asked = stream.write_all(crate::gateway::get("blocked.example").as_bytes());
                asked.and_then(|()| stream.read_exact(&mut [0; 1])).unwrap_err().kind()
            });
            assert_eq!(tap.count(lab, to).unwrap(), before, "{to} from {ours}: {saw:?}");
            assert_eq!(saw.unwrap(), ErrorKind::ConnectionReset);
        }
        sidecar.stop();
    });
}
