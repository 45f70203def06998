//! The ground that every other test stands on: the namespaces, their links and the count of what arrives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use tidegate::mode::demo::lab::{CLIENTS, Lab, Site, client_address};
use tidegate::mode::demo::tap::{Kind, Tap};
use tidegate::sys::netns::Namespace;
use tidegate::sys::rtnl::{Family, FwmarkRule, Rtnl, RtnlError};

use crate::inside::{in_lab, in_namespaces};

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn a_new_namespace_has_nothing_but_its_own_loopback() {
    in_namespaces(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let outside = listener.local_addr().unwrap();
        let namespace = Namespace::new().unwrap();
        namespace
            .run(|| {
                let refused = TcpStream::connect(outside).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
                let unreachable = TcpStream::connect("192.0.2.1:80").unwrap_err();
                assert_eq!(unreachable.kind(), std::io::ErrorKind::NetworkUnreachable);
            })
            .unwrap();
    });
}

#[test]
fn rules_and_routes_applied_twice_are_there_once_and_deleted_twice_are_gone() {
    in_namespaces(|| {
        let applied = Namespace::new().unwrap().run(|| {
            let mut rtnl = Rtnl::open()?;
            for family in Family::BOTH {
                for _ in 0..2 {
                    rtnl.add_local_default(family, 29801)?;
                    rtnl.add_fwmark_rule(family, 0x7469, 29801, 7469)?;
                }
                let rule = FwmarkRule { family, mark: 0x7469, table: 29801, priority: 7469 };
                assert_eq!(rtnl.fwmark_rules(family)?, [rule]);
                for _ in 0..2 {
                    rtnl.delete_local_default(family, 29801)?;
                    rtnl.delete_fwmark_rule(family, 0x7469, 29801, 7469)?;
                }
                assert_eq!(rtnl.fwmark_rules(family)?, []);
            }
            Ok::<_, RtnlError>(())
        });
        applied.unwrap().unwrap();
    });
}

#[test]
fn links_and_addresses_come_once_are_renamed_and_go() {
    in_namespaces(|| {
        let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let near = here.run(|| {
            let mut rtnl = Rtnl::open()?;
            rtnl.add_veth("near", "far", there.as_fd())?;
            let twice = rtnl.add_veth("near", "farther", there.as_fd()).unwrap_err();
            assert!(twice.to_string().contains("near") && twice.to_string().contains("farther"), "{twice}");
            for address in ["192.0.2.1/24", "2001:db8::1/64"].map(|text| text.parse().unwrap()) {
                for _ in 0..2 {
                    rtnl.add_address("near", address)?;
                }
                assert!(UdpSocket::bind((address.addr(), 0)).is_ok(), "{address}");
                for _ in 0..2 {
                    rtnl.delete_address("near", address)?;
                }
                assert!(UdpSocket::bind((address.addr(), 0)).is_err(), "{address}");
            }
            Ok::<_, RtnlError>(rtnl)
        });
        let mut near = near.unwrap().unwrap();
        let far = there.run(|| {
            let mut rtnl = Rtnl::open()?;
            rtnl.rename_link("far", "away")?;
            assert!(rtnl.link_index("far").is_err());
            rtnl.link_index("away")?;
            Ok::<_, RtnlError>(rtnl)
        });
        // The socket is of the namespace where it was opened.
        for _ in 0..2 {
            near.delete_link("near").unwrap();
        }
        assert_eq!(far.unwrap().unwrap().link_index("away").unwrap_err().errno(), Some(libc::ENODEV));
    });
}

#[test]
fn a_command_started_in_a_namespace_sees_that_one() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        let name = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut command = std::process::Command::new("/usr/bin/readlink");
        command.arg("/proc/self/ns/net");
        namespace.enter(&mut command).unwrap();
        let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(seen.trim(), namespace.run(name).unwrap().to_str().unwrap());
        assert_ne!(seen.trim(), name().to_str().unwrap());
    });
}

#[test]
fn a_panic_inside_a_namespace_reaches_the_caller() {
    in_namespaces(|| {
        let namespace = Namespace::new().unwrap();
        let panic = std::panic::catch_unwind(|| namespace.run(|| panic!("seen"))).unwrap_err();
        assert_eq!(*panic.downcast::<&str>().unwrap(), "seen");
    });
}

/// client -- gateway (forwards, no tidegate) -- server
#[test]
fn plain_tcp_crosses_the_gateway_and_is_counted() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let listener = lab.server.run(|| TcpListener::bind("[::]:443")).unwrap().unwrap();
        for (family, site) in each_family_and_site() {
            let destination = SocketAddr::new(site.address(family, 7), 443);
            let mut client = connect(lab, destination);
            let (mut accepted, source) = listener.accept().unwrap();
            let source = SocketAddr::new(source.ip().to_canonical(), source.port());
            assert_eq!(source, client.local_addr().unwrap());
            client.write_all(b"ping").unwrap();
            let mut bytes = [0; 4];
            accepted.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"ping");

            let to_it = tap.packets(lab, |packet| packet.destination == destination).unwrap();
            assert_eq!(to_it.iter().filter(|packet| packet.kind == Kind::Syn).count(), 1, "{to_it:?}");
            assert!(to_it.len() >= 3, "the handshake's end and the data too: {to_it:?}");
            let other = SocketAddr::new(site.address(family, 8), 443);
            assert_eq!(tap.count(lab, other).unwrap(), 0);
        }
    });
}

/// client -- gateway (forwards, no tidegate) -- server
#[test]
fn every_datagram_that_was_sent_is_counted() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        for (family, site) in each_family_and_site() {
            let destination = SocketAddr::new(site.address(family, 9), 443);
            let source = SocketAddr::new(client_address(family, CLIENTS - 1), 5000);
            let client = lab.client.run(|| UdpSocket::bind(source)).unwrap().unwrap();
            for _ in 0..25 {
                client.send_to(b"datagram", destination).unwrap();
            }
            let seen = tap.packets(lab, |packet| packet.destination == destination).unwrap();
            assert_eq!(seen.len(), 25);
            assert!(seen.iter().all(|packet| packet.kind == Kind::Datagram && packet.source == source), "{seen:?}");
        }
    });
}

fn connect(lab: &Lab, destination: SocketAddr) -> TcpStream {
    let stream = lab.client.run(|| TcpStream::connect_timeout(&destination, DEADLINE)).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn each_family_and_site() -> impl Iterator<Item = (Family, Site)> {
    Family::BOTH.into_iter().flat_map(|family| Site::BOTH.into_iter().map(move |site| (family, site)))
}
