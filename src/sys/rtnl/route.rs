//! Routes and policy rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Family, Rtnl, RtnlError};

/// A policy rule "packets with this mark are routed by this table".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FwmarkRule {
    pub family: Family,
    /// Compared with the whole mark of a packet.
    pub mark: u32,
    pub table: u32,
    /// Lower comes first; the main table is asked at 32766.
    pub priority: u32,
}

impl Rtnl {
    /// Adds a route to `destination` of the main table; with a gateway, `onlink` takes it for a neighbour on `link`
    /// though no prefix there covers it.
    pub fn add_route(
        &mut self,
        destination: IpNet,
        gateway: Option<IpAddr>,
        link: Option<&str>,
        onlink: bool,
    ) -> Result<(), RtnlError> {
        let mut message = route(destination, u32::from(RouteHeader::RT_TABLE_MAIN));
        message.header.kind = RouteType::Unicast;
        message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        if let Some(gateway) = gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        if onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        if let Some(link) = link {
            message.attributes.push(RouteAttribute::Oif(self.link_index(link)?));
        }
        let operation = || match (gateway, link) {
            (Some(gateway), _) => format!("add route {destination} via {gateway}"),
            (None, link) => format!("add route {destination} dev {}", link.unwrap_or("?")),
        };
        let message = RouteNetlinkMessage::NewRoute(message);
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// Makes every address of `prefix` an address of this host, without a list of them: what serves a whole network
    /// from one namespace.
    pub fn add_local_prefix(&mut self, prefix: IpNet) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::NewRoute(self.local(prefix, LOCAL_TABLE)?);
        let operation = || format!("add route local {prefix} dev lo");
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// The same, where what is sent there without a source of its own comes from `source`.
    pub fn add_local_prefix_from(&mut self, prefix: IpNet, source: IpAddr) -> Result<(), RtnlError> {
        let mut message = self.local(prefix, LOCAL_TABLE)?;
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
        let operation = || format!("add route local {prefix} dev lo src {source}");
        self.change(operation, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// Where packets of the family can be sent from here: the prefixes of unicast routes, of any table, and of whole
    /// networks that are local.
    pub fn reachable(&mut self, family: Family) -> Result<Vec<IpNet>, RtnlError> {
        let request = route(default_of(family), u32::from(RouteHeader::RT_TABLE_UNSPEC));
        let operation = || format!("list {family} routes");
        let answer = self.query(operation, RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
        Ok(answer.iter().filter_map(|message| unicast(family, message)).collect())
    }

    /// Makes every address of the family local to this host in `table` (`local default dev lo`): how packets that a
    /// rule sends to the table reach a transparent socket. The link `lo` must be up.
    pub fn add_local_default(&mut self, family: Family, table: u32) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::NewRoute(self.local(default_of(family), table)?);
        let operation = || format!("add {family} route local default dev lo to table {table}");
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// Takes away what [`Rtnl::add_local_default`] added. A route that is not there is no error.
    pub fn delete_local_default(&mut self, family: Family, table: u32) -> Result<(), RtnlError> {
        let message = RouteNetlinkMessage::DelRoute(self.local(default_of(family), table)?);
        let operation = || format!("delete {family} route local default dev lo of table {table}");
        self.change(operation, message, 0, &[libc::ESRCH, libc::ENOENT])
    }

    /// Adds the rule; the same rule twice is one rule.
    pub fn add_fwmark_rule(&mut self, family: Family, mark: u32, table: u32, priority: u32) -> Result<(), RtnlError> {
        let rule = FwmarkRule { family, mark, table, priority };
        let operation = || format!("add {family} rule {priority}: fwmark {mark:#x} to table {table}");
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL, &[libc::EEXIST])
    }

    /// Takes the rule away. One that is not there is no error.
    pub fn delete_fwmark_rule(
        &mut self,
        family: Family,
        mark: u32,
        table: u32,
        priority: u32,
    ) -> Result<(), RtnlError> {
        let rule = FwmarkRule { family, mark, table, priority };
        let operation = || format!("delete {family} rule {priority}: fwmark {mark:#x} to table {table}");
        let message = RouteNetlinkMessage::DelRule(rule_message(rule));
        self.change(operation, message, 0, &[libc::ENOENT])
    }

    /// Every rule of the family that goes by a mark.
    pub fn fwmark_rules(&mut self, family: Family) -> Result<Vec<FwmarkRule>, RtnlError> {
        let mut request = RuleMessage::default();
        request.header.family = family.into();
        let operation = || format!("list {family} rules");
        let answer = self.query(operation, RouteNetlinkMessage::GetRule(request), NLM_F_DUMP)?;
        Ok(answer.iter().filter_map(|message| read_rule(family, message)).collect())
    }

    /// Whether packets with this mark are delivered to this host, wherever they go.
    pub fn delivers(&mut self, family: Family, mark: u32) -> Result<bool, RtnlError> {
        let (anywhere, length) = match family {
            Family::V4 => (IpAddr::V4(DOCUMENTATION_V4), 32),
            Family::V6 => (IpAddr::V6(DOCUMENTATION_V6), 128),
        };
        let mut request = RouteMessage::default();
        request.header.address_family = family.into();
        request.header.destination_prefix_length = length;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::from(anywhere)));
        request.attributes.push(RouteAttribute::Mark(mark));
        let operation = || format!("find the {family} route of packets marked {mark:#x}");
        let local = |message: &RouteNetlinkMessage| matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
        match self.query(operation, RouteNetlinkMessage::GetRoute(request), NLM_F_ACK) {
            Ok(answer) => Ok(answer.iter().any(local)),
            Err(error) if matches!(error.source.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn local(&mut self, prefix: IpNet, table: u32) -> Result<RouteMessage, RtnlError> {
        let mut message = route(prefix, table);
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.attributes.push(RouteAttribute::Oif(self.link_index("lo")?));
        Ok(message)
    }
}

fn default_of(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn route(destination: IpNet, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = RouteProtocol::Static;
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination.network())));
    }
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn rule_message(rule: FwmarkRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.into();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(rule.table),
    ];
    message
}

fn read_rule(family: Family, message: &RouteNetlinkMessage) -> Option<FwmarkRule> {
    let RouteNetlinkMessage::NewRule(rule) = message else { return None };
    let mut mark = None;
    let mut table = u32::from(rule.header.table);
    let mut priority = 0;
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Priority(value) => priority = *value,
            _ => {}
        }
    }
    Some(FwmarkRule { family, mark: mark?, table, priority })
}

fn unicast(family: Family, message: &RouteNetlinkMessage) -> Option<IpNet> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let prefix = route.header.destination_prefix_length;
    let leads_on = match route.header.kind {
        RouteType::Unicast => true,
        RouteType::Local => IpNet::max_prefix_len(&default_of(family)) > prefix,
        _ => false,
    };
    if !leads_on || route.header.address_family != family.into() {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    match destination {
        Some(address) => IpNet::new(address, prefix).ok(),
        None => Some(default_of(family)),
    }
}

/// The table in which the kernel keeps a host's own addresses.
const LOCAL_TABLE: u32 = 255;

/// Addresses that are nobody's (RFC 5737, RFC 3849).
const DOCUMENTATION_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DOCUMENTATION_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
