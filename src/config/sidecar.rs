//! `[sidecar]`: sharing the network namespace of an application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nix::unistd::User;

use super::mistake::{Place, Report};
use super::table::Table;
use crate::policy::network::Network;

/// `[sidecar]`. All of it takes effect at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarSettings {
    /// The user that tidegate becomes and whose packets are its own: a name of this host or a number, not 0; default
    /// 7469.
    pub user: u32,
    /// The user's group; for a number that no file knows, the same number.
    pub group: u32,
    /// What is kept of the capabilities. Default [`Capabilities::NetAdmin`].
    pub capabilities: Capabilities,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// CAP_NET_ADMIN, to change the rules at a reload and put them back when somebody damages them.
    NetAdmin,
    /// None: the rules of the start stand until the namespace ends.
    None,
}

pub(super) fn read(mut table: Table<'_>, report: &Report) -> SidecarSettings {
    let words = &[("net-admin", Capabilities::NetAdmin), ("none", Capabilities::None)];
    let (user, group) = user(&mut table, report).unwrap_or((USER, USER));
    SidecarSettings { user, group, capabilities: table.word("capabilities", words, Capabilities::NetAdmin) }
}

/// Flows that come in are judged in the kernel: an inspection that looks at nothing of them should not be trusted to.
pub(super) fn warn_of_inspected_inbound<'a>(
    networks: impl Iterator<Item = &'a Network>,
    place: &Place,
    report: &Report,
) {
    for network in networks.filter(|network| network.inbound.is_some() && network.inspection.is_some()) {
        let what = format!(
            "beside an application, inspection is of what it sends: flows that come in to `{}` have the verdict of \
             their address",
            network.name
        );
        report.warning(place, what, "mind it in the policy of `inbound`, or put a gateway in front");
    }
}

/// A question to a resolver on the loopback comes from the loopback, and is judged by a Network that protects this.
pub(super) fn warn_of_unseen_questions(networks: &[Arc<Network>], place: &Place, report: &Report) {
    let prefixes = || {
        let outbound = networks.iter().filter(|network| network.outbound.is_some());
        outbound.flat_map(|network| network.ips.iter().map(|ip| ip.prefix))
    };
    let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for loopback in loopbacks {
        let is_used = prefixes().any(|prefix| prefix.addr().is_ipv4() == loopback.is_ipv4());
        if is_used && !prefixes().any(|prefix| prefix.contains(&loopback)) {
            let what = format!(
                "no network with `outbound` covers {loopback}: questions to a resolver on the loopback, as many \
                 containers have one, are not seen"
            );
            let length = if loopback.is_ipv4() { 32 } else { 128 };
            let mend = format!("add `{{ ip = \"{loopback}\", maskbits = {length} }}` to `ips` of the network");
            report.warning(place, what, mend);
        }
    }
}

fn user(table: &mut Table<'_>, report: &Report) -> Option<(u32, u32)> {
    let value = table.take("user")?;
    if value.is_number() {
        let number = value.number(1..=u64::from(u32::MAX - 1)).and_then(|number| u32::try_from(number).ok())?;
        let known = User::from_uid(number.into()).ok().flatten();
        return Some((number, known.map_or(number, |user| user.gid.as_raw())));
    }
    let name = value.text()?;
    match User::from_name(&name.value) {
        Ok(Some(user)) if user.uid.is_root() => {
            let what = format!("`{}` is root, whom the application may be too", name.value);
            report.error(&name.place, what, "name a user that runs nothing else");
        }
        Ok(Some(user)) => return Some((user.uid.as_raw(), user.gid.as_raw())),
        _ => {
            report.error(&name.place, format!("this host knows no user `{}`", name.value), "write a number, as 7469");
        }
    }
    None
}

/// "ti", as the mark of packets and the priority of routes.
pub const USER: u32 = 7469;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::read_alone;

    #[test]
    fn a_user_is_a_number_or_a_name_that_is_known_and_never_root() {
        let read = |text: &str| read_alone(text, read);
        let number = |user| SidecarSettings { user, group: user, capabilities: Capabilities::NetAdmin };
        assert_eq!(read(""), (number(USER), vec![]));
        assert_eq!(read("user = 4000000000"), (number(4_000_000_000), vec![]));
        for (text, mistake) in [
            ("user = 0", "t:1:8: error: `user` is 0 here: write 1 to 4294967294"),
            (
                "user = \"root\"",
                "t:1:8: error: `root` is root, whom the application may be too: name a user that runs nothing else",
            ),
            ("user = \"no such one\"", "t:1:8: error: this host knows no user `no such one`: write a number, as 7469"),
        ] {
            assert_eq!(read(text).1, [mistake]);
        }
        assert_eq!(read("capabilities = \"none\"").0.capabilities, Capabilities::None);
    }
}
