//! Links and their addresses.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Rtnl, RtnlError};

impl Rtnl {
    /// The index of the link called `name`.
    pub fn link_index(&mut self, name: &str) -> Result<u32, RtnlError> {
        let operation = || format!("find link {name}");
        let answer = self.query(operation, RouteNetlinkMessage::GetLink(named(name)), NLM_F_ACK)?;
        answer
            .iter()
            .find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })
            .ok_or_else(|| RtnlError {
                operation: operation(),
                source: std::io::ErrorKind::NotFound.into(),
                detail: None,
            })
    }

    /// Creates a veth pair: `name` here, `peer` in the network namespace `peer_namespace`. A link called `name` that
    /// exists is an error: it need not be the pair that is wanted.
    pub fn add_veth(&mut self, name: &str, peer: &str, peer_namespace: BorrowedFd<'_>) -> Result<(), RtnlError> {
        let mut other_end = named(peer);
        other_end.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let mut link = named(name);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other_end))),
        ]));
        let operation = || format!("add veth pair {name} and {peer}");
        self.change(operation, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &[])
    }

    /// Sets the link up.
    pub fn set_up(&mut self, name: &str) -> Result<(), RtnlError> {
        let mut link = named(name);
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.change(|| format!("set link {name} up"), RouteNetlinkMessage::SetLink(link), 0, &[])
    }

    /// Sets the size, in octets, of the largest packet that the link sends.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), RtnlError> {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(|| format!("set the MTU of link {name} to {mtu}"), RouteNetlinkMessage::SetLink(link), 0, &[])
    }

    /// Gives the link another name; the kernel demands that it is down, or IFF_LIVE_RENAME_OK.
    pub fn rename_link(&mut self, name: &str, new: &str) -> Result<(), RtnlError> {
        let operation = || format!("rename link {name} to {new}");
        let mut link = LinkMessage::default();
        link.header.index = self.link_index(name)?;
        link.attributes.push(LinkAttribute::IfName(new.to_owned()));
        self.change(operation, RouteNetlinkMessage::SetLink(link), 0, &[])
    }

    /// Deletes the link, and with it the other end of a veth pair. A link that is not there is no error.
    pub fn delete_link(&mut self, name: &str) -> Result<(), RtnlError> {
        self.change(|| format!("delete link {name}"), RouteNetlinkMessage::DelLink(named(name)), 0, &[libc::ENODEV])
    }

    /// Adds an address with its prefix to the link. An IPv6 address is usable at once: no duplicate address detection.
    pub fn add_address(&mut self, name: &str, address: IpNet) -> Result<(), RtnlError> {
        let index = self.link_index(name)?;
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        let operation = || format!("add address {address} to link {name}");
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// Takes an address from the link. One that is not there is no error.
    pub fn delete_address(&mut self, name: &str, address: IpNet) -> Result<(), RtnlError> {
        let index = self.link_index(name)?;
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        self.change(|| format!("delete address {address} of link {name}"), message, 0, &[libc::EADDRNOTAVAIL])
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = match address.addr() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    if address.addr().is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}
