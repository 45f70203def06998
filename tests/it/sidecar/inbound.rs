//! Flows that come in to the application.

use tidegate::mode::demo::lab::{client_address, server_address};

use super::*;

#[test]
fn inbound_flows_are_judged_by_the_address_of_who_opens_them_and_replies_pass() {
    in_pod(|lab| {
        let allowed = Family::BOTH.map(server_address).map(|address| format!("\"{address}\"")).join(", ");
        let text = configuration("tcp-reset", "", "inbound = { policy = \"in\", drop = \"tcp-reset\" }")
            .replace("name = \"in\"\n", "name = \"in\"\nlists = [\"servers\"]\n")
            + &format!("[[list]]\nname = \"servers\"\nverdict = \"allow\"\nentries = [{allowed}]\n");
        let sidecar = Sidecar::start(lab, &text);
        assert!(sidecar.enforcer.messages().iter().any(|line| line.contains("flows that come in to `app`")));
        for family in Family::BOTH {
            let to = SocketAddr::new(client_address(family, 0), 8080);
            let listener = lab.client.run(|| TcpListener::bind(to)).unwrap().unwrap();
            // One from an inspected port: what goes back to it is a reply, and no new flow.
            for source in [SocketAddr::new(server_address(family), 0), SocketAddr::new(server_address(family), 443)] {
                let mut near = lab.server.run(|| connect_from(source, to)).unwrap().unwrap();
                let (mut far, _) = listener.accept().unwrap();
                far.write_all(b"reply").unwrap();
                let mut octets = [0; 5];
                near.read_exact(&mut octets).unwrap();
                assert_eq!(&octets, b"reply");
            }
            let stranger = SocketAddr::new(Site::A.address(family, 9), 0);
            let refused = lab.server.run(|| connect_from(stranger, to)).unwrap().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            let fits = |r: &Value| r["direction"] == "inbound" && r["source"] == stranger.ip().to_string();
            assert_eq!(sidecar.enforcer.record(fits, DEADLINE).unwrap()["verdict"], "block");
            // The same Network's outbound flows are not judged as if they came in.
            let accepted = crate::gateway::listen(lab, 9000 + u16::from(family == Family::V6));
            let _out = connect(lab, at(Site::A, family, 1, 9000 + u16::from(family == Family::V6)));
            accepted.recv_timeout(DEADLINE).unwrap();
        }
        let (_origins, trust) = servers(lab);
        let outcome = tls(lab, &trust, at(Site::A, Family::V4, 1, 443), "allowed.example");
        assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
        sidecar.stop();
    });
}

fn connect_from(source: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    if source.is_ipv6() {
        socket.set_freebind_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&to.into(), DEADLINE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}
