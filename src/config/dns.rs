//! `[network.dns]` (SPEC section 5).

use std::net::{IpAddr, SocketAddr};

use super::mistake::Report;
use super::network::address;
use super::reader::{Located, Table};
use crate::policy::network::Dns;

/// SPEC D1 and D2.
const MAX_RESOLVERS: usize = 10;
const MAX_ANSWERS: usize = 4;
const MAX_UPSTREAMS: usize = 10;

pub(super) fn read(mut table: Table<'_>, report: &Report) -> Dns {
    Dns {
        authorized_resolvers: addresses(&mut table, "authorized_resolvers", MAX_RESOLVERS, report),
        answer_ips: addresses(&mut table, "answer_ips", MAX_ANSWERS, report),
        unlisted_blocks: table.word("unlisted", &[("resolve", false), ("block", true)], false),
        upstream: at_most(&mut table, "upstream", MAX_UPSTREAMS, report, upstream),
        strip_ech: table.flag("strip_ech", false),
        filter_answers: table.flag("filter_answers", false),
        rebind_protection: table.flag("rebind_protection", false),
    }
}

fn addresses(table: &mut Table<'_>, key: &'static str, most: usize, report: &Report) -> Vec<IpAddr> {
    at_most(table, key, most, report, address)
}

fn at_most<T: PartialEq>(
    table: &mut Table<'_>,
    key: &'static str,
    most: usize,
    report: &Report,
    read: impl Fn(&Located<String>, &Report) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for item in table.array(key).iter().filter_map(|item| item.text()) {
        let Some(value) = read(&item, report) else { continue };
        if found.contains(&value) {
            report.warning(&item.place, format!("`{}` is named twice", item.value), "name it once");
        } else if found.len() >= most {
            let what = format!("`{}` is one too many in `{key}`", item.value);
            report.error(&item.place, what, format!("leave it out: at most {most}"));
        } else {
            found.push(value);
        }
    }
    found
}

/// An address, whose port is then 53, or an address with a port.
fn upstream(written: &Located<String>, report: &Report) -> Option<SocketAddr> {
    if let Ok(address) = written.value.parse::<SocketAddr>()
        && address.port() > 0
    {
        return Some(address);
    }
    address(written, report).map(|address| SocketAddr::new(address, 53))
}
