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
