//! The `end` records of flows that the kernel forwards.

use tidegate::mode::demo::lab::Site;
use tidegate::sys::rtnl::Family;

use super::*;

/// client -- gateway -- server
#[test]
fn the_end_of_a_forwarded_flow_tells_every_octet_of_both_directions() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let hello = flight("www.google.com");
        let mut servers = Vec::new();
        for (family, (out, back)) in Family::BOTH.into_iter().zip([(40, 25), (7, 31)]) {
            let server = SocketAddr::new(Site::A.address(family, 18), 443);
            let listener = lab.server.run(|| listen(family)).unwrap();
            let client = lab.client.run(|| client_socket(family, server)).unwrap();
            let mut buffer = [0; 2000];
            client.send(&hello).unwrap();
            let (_, from) = listener.recv_from(&mut buffer).unwrap();
            for n in 0..out {
                client.send(&numbered(n)).unwrap();
                listener.recv(&mut buffer).unwrap();
            }
            for _ in 0..back {
                answer(lab, server, from, &[9; 500]);
                client.recv(&mut buffer).unwrap();
            }
            servers.push((server, hello.len() as u64 + u64::from(out) * 300, back * 500));
        }
        let records = gateway.stop().unwrap().records();
        for (server, out, back) in servers {
            let ends = |r: &&serde_json::Value| r["kind"] == "end" && r["destination"] == server.ip().to_string();
            let [end] = records.iter().filter(ends).collect::<Vec<_>>()[..] else { panic!("{records:#?}") };
            assert_eq!((end["bytes_out"].as_u64(), end["bytes_in"].as_u64()), (Some(out), Some(back)), "{end}");
            assert_eq!((&end["closed_by"], &end["protocol"]), (&"shutdown".into(), &"udp".into()));
            assert_eq!((&end["domain"], &end["network"]), (&"www.google.com".into(), &"office".into()));
            assert!(end["duration_ms"].is_u64() && end["flow"].is_u64(), "{end}");
        }
    });
}

/// client -- gateway -- server
#[test]
fn a_blocked_flow_has_no_end_to_tell() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let server = SocketAddr::new(Site::A.address(Family::V4, 19), 443);
        let client = lab.client.run(|| client_socket(Family::V4, server)).unwrap();
        client.send(&flight("www.youtube.com")).unwrap();
        gateway.record(|r| r["domain"] == "www.youtube.com", DEADLINE).expect("a verdict");
        let records = gateway.stop().unwrap().records();
        assert!(records.iter().all(|record| record["kind"] != "end"), "{records:#?}");
    });
}

/// Sends from the very address and port that was asked.
fn answer(lab: &Lab, server: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let send = || {
        let mut outbox = tidegate::sys::udp::Outbox::new(None).unwrap();
        outbox.push(server, to, payload);
        outbox.flush();
        assert_eq!(outbox.dropped, 0);
    };
    lab.server.run(send).unwrap();
}
