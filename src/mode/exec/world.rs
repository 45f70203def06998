//! The network that an enclosed command sees: `lo` alone, with one address of each family, and every other address of
//! the world behind it.
//!
//! ```text
//! lo  127.0.0.1, ::1          the command's own loopback
//!     10.254.0.1, fd00:254::1 whom its flows come from
//!     10.254.0.53             the resolver in its /etc/resolv.conf: answered by the host's own
//!     all else                captured, judged, relayed from the host
//! ```
//!
//! Fails closed: nothing here leads out but by the listeners, which are in place before the routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::firewall::{self, Capture};
use crate::mode::gateway::{Crew, Listeners};
use crate::sys::nft::NftSocket;
use crate::sys::rtnl::{Family, Rtnl};

/// The command's own addresses.
pub const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 254, 0, 1);
pub const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, 1);
/// Nobody: whoever asks it is answered by the host's resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 254, 0, 53);

/// The IPv6 destinations that this host has routes to. Where it has none, a command that tries IPv6 first must be told
/// so at once: inside, every connection succeeds before its server is asked.
pub(super) fn ipv6_of_host() -> Vec<IpNet> {
    // Without IPv6 in the kernel there is nothing to list.
    let routes = Rtnl::open().and_then(|mut rtnl| rtnl.reachable(Family::V6)).unwrap_or_default();
    let link_local = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
    let mut found: Vec<IpNet> = routes.into_iter().filter(|net| !link_local.contains(net)).collect();
    if found.iter().any(|net| net.prefix_len() == 0) {
        found.retain(|net| net.prefix_len() == 0);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Makes the network in the namespace of this process, which must hold nothing but `lo`. `ipv6`: the destinations of
/// IPv6 that exist.
pub(super) fn build(ipv6: &[IpNet]) -> io::Result<Listeners> {
    let mut rtnl = Rtnl::open().map_err(|error| error.into_io())?;
    rtnl.set_up("lo").map_err(|error| error.into_io())?;
    rtnl.add_address("lo", IpAddr::from(OWN_V4).into()).map_err(|error| error.into_io())?;
    let has_ipv6 = !ipv6.is_empty() && rtnl.add_address("lo", IpAddr::from(OWN_V6).into()).is_ok();
    let listeners = Listeners::open(&Crew { all: 1, asked: 1 })?;
    let capture = Capture {
        udp: Some(listeners.udp),
        dns_udp: Some(listeners.dns.udp),
        dns_tcp: Some(listeners.dns.tcp),
        ..Capture::tcp(listeners.tcp)
    };
    let own = [OWN_V4.into(), OWN_V6.into()];
    NftSocket::open()?.replace(&firewall::enclose(&capture, &own))?;
    let everywhere = IpNet::V4(Ipv4Net::default());
    rtnl.add_local_prefix_from(everywhere, OWN_V4.into()).map_err(|error| error.into_io())?;
    for net in ipv6.iter().filter(|_| has_ipv6) {
        rtnl.add_local_prefix_from(*net, OWN_V6.into()).map_err(|error| error.into_io())?;
    }
    // The command has no rights here, yet a server of its own may listen wherever it likes. A kernel or a container that
    // does not let this be changed keeps low ports from it.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(listeners)
}
