//! Three network namespaces in a row, as a real site has them, made of nothing but this process's rights.
//!
//! ```text
//!   client                          gateway                          server
//!   eth0 10.1.0.2-.31/24 ------- client0 10.1.0.1/24
//!        fd00:1::2-:1f/64                fd00:1::1/64
//!                                server0 10.2.0.1/24 ------- eth0 10.2.0.2/24
//!                                        fd00:2::1/64             fd00:2::2/64
//!                                                           and all of 198.51.100.0/24, 203.0.113.0/24,
//!                                                                      2001:db8:a::/64, 2001:db8:b::/64
//! ```
//!
//! Nothing reaches the machine's own network. All of it is gone when the [`Lab`], and what was started in it, is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::sys::netns::{Namespace, Unavailable};
use crate::sys::rtnl::{Family, Rtnl};

/// How many addresses of each family the client has: hosts of its network, in effect.
pub const CLIENTS: u8 = 30;

/// The two networks of the server's many addresses: policies are written about these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// 198.51.100.0/24 and 2001:db8:a::/64.
    A,
    /// 203.0.113.0/24 and 2001:db8:b::/64.
    B,
}

impl Site {
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    pub fn prefix(self, family: Family) -> IpNet {
        match (self, family) {
            (Self::A, Family::V4) => v4([198, 51, 100, 0], 24),
            (Self::B, Family::V4) => v4([203, 0, 113, 0], 24),
            (Self::A, Family::V6) => v6([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0], 64),
            (Self::B, Family::V6) => v6([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0], 64),
        }
    }

    /// The server's address number `host` in this network.
    pub fn address(self, family: Family, host: u8) -> IpAddr {
        numbered(self.prefix(family), host)
    }
}

/// The client's address number `host`, which counts from 0 to [`CLIENTS`] - 1.
pub fn client_address(family: Family, host: u8) -> IpAddr {
    numbered(client_network(family), FIRST_CLIENT.saturating_add(host))
}

/// The network of the client and of the gateway's side towards it.
pub fn client_network(family: Family) -> IpNet {
    match family {
        Family::V4 => v4([10, 1, 0, 0], 24),
        Family::V6 => v6([0xfd00, 1, 0, 0, 0, 0, 0, 0], 64),
    }
}

/// The network between gateway and server.
fn server_network(family: Family) -> IpNet {
    match family {
        Family::V4 => v4([10, 2, 0, 0], 24),
        Family::V6 => v6([0xfd00, 2, 0, 0, 0, 0, 0, 0], 64),
    }
}

/// The gateway's own address on the client's side.
pub fn gateway_address(family: Family) -> IpAddr {
    numbered(client_network(family), 1)
}

/// The server's own address, which belongs to neither [`Site`].
pub fn server_address(family: Family) -> IpAddr {
    numbered(server_network(family), 2)
}

/// The three namespaces, linked, addressed and routed.
#[derive(Debug)]
pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub server: Namespace,
    /// Why the gateway does not forward what is not captured, on a machine with a read-only /proc/sys.
    pub forwarding: io::Result<()>,
}

impl Lab {
    /// The calling process must be privileged or have entered a user namespace
    /// ([`crate::sys::netns::enter_user_namespace`]).
    pub fn new() -> Result<Self, Unavailable> {
        let (client, gateway, server) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        client.run(|| link(&gateway, "eth0", "client0"))??;
        server.run(|| link(&gateway, "eth0", "server0"))??;
        client.run(address_client)??;
        server.run(address_server)??;
        gateway.run(address_gateway)??;
        let forwarding = gateway.run(forward)?;
        Ok(Self { client, gateway, server, forwarding })
    }
}

fn link(gateway: &Namespace, name: &str, far: &str) -> Result<(), Unavailable> {
    use std::os::fd::AsFd;
    let mut rtnl = Rtnl::open()?;
    rtnl.add_veth(name, far, gateway.as_fd())?;
    rtnl.set_up(name)?;
    Ok(gateway.run(|| Rtnl::open()?.set_up(far))??)
}

fn address_client() -> Result<(), Unavailable> {
    let mut rtnl = Rtnl::open()?;
    add_link_local(&mut rtnl, "eth0", 2)?;
    for family in Family::BOTH {
        for host in 0..CLIENTS {
            rtnl.add_address("eth0", within(client_address(family, host), client_network(family)))?;
        }
        rtnl.add_route(everywhere(family), Some(gateway_address(family)), Some("eth0"), false)?;
    }
    Ok(())
}

fn address_server() -> Result<(), Unavailable> {
    let mut rtnl = Rtnl::open()?;
    add_link_local(&mut rtnl, "eth0", 2)?;
    for family in Family::BOTH {
        let network = server_network(family);
        rtnl.add_address("eth0", within(server_address(family), network))?;
        rtnl.add_route(everywhere(family), Some(numbered(network, 1)), Some("eth0"), false)?;
        for site in Site::BOTH {
            rtnl.add_local_prefix(site.prefix(family))?;
        }
    }
    Ok(())
}

fn address_gateway() -> Result<(), Unavailable> {
    let mut rtnl = Rtnl::open()?;
    for link in ["client0", "server0"] {
        add_link_local(&mut rtnl, link, 1)?;
    }
    for family in Family::BOTH {
        rtnl.add_address("client0", within(gateway_address(family), client_network(family)))?;
        rtnl.add_address("server0", within(numbered(server_network(family), 1), server_network(family)))?;
        for site in Site::BOTH {
            rtnl.add_route(site.prefix(family), Some(server_address(family)), Some("server0"), false)?;
        }
    }
    Ok(())
}

/// Neighbours are asked for from a link-local address; the kernel's own is not usable for a second or two.
fn add_link_local(rtnl: &mut Rtnl, link: &str, host: u8) -> Result<(), Unavailable> {
    Ok(rtnl.add_address(link, within(numbered(v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 64), host), v6([0; 8], 64)))?)
}

fn forward() -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => v4([0; 4], 0),
        Family::V6 => v6([0; 8], 0),
    }
}

/// The address, with the prefix length of its network.
fn within(address: IpAddr, network: IpNet) -> IpNet {
    IpNet::new_assert(address, network.prefix_len())
}

fn numbered(network: IpNet, host: u8) -> IpAddr {
    match network.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) | u32::from(host))),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) | u128::from(host))),
    }
}

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

const FIRST_CLIENT: u8 = 2;
