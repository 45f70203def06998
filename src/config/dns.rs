//! `[network.dns]` (SPEC section 5).

use std::net::{IpAddr, SocketAddr};

use super::mistake::Report;
use super::network::address;
use super::table::Table;
use super::value::Located;
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
    let mut surplus = most;
    for item in table.array(key).iter().filter_map(|item| item.text()) {
        let Some(value) = read(&item, report) else { continue };
        if found.contains(&value) {
            report.warning(&item.place, format!("`{}` is named twice", item.value), "name it once");
        } else if found.len() >= most {
            surplus += 1;
            let what = format!("`{}` is number {surplus} in `{key}`", item.value);
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

#[cfg(test)]
mod tests {
    use super::super::table::read_alone;
    use super::*;

    #[test]
    fn the_eleventh_resolver_and_the_fifth_answer_are_named() {
        let text = r#"
authorized_resolvers = [
    "9.9.9.1", "9.9.9.2", "9.9.9.3", "9.9.9.4", "9.9.9.5", "9.9.9.6", "9.9.9.7", "9.9.9.8", "9.9.9.9", "9.9.9.10",
    "2620:fe::fe", "9.9.9.12",
]
answer_ips = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::3"]
"#;
        let (dns, mistakes) = read_alone(text, read);
        assert_eq!((dns.authorized_resolvers.len(), dns.answer_ips.len()), (10, 4));
        assert_eq!(
            mistakes,
            [
                "t:4:5: error: `2620:fe::fe` is number 11 in `authorized_resolvers`: leave it out: at most 10",
                "t:4:20: error: `9.9.9.12` is number 12 in `authorized_resolvers`: leave it out: at most 10",
                "t:6:71: error: `2001:db8::3` is number 5 in `answer_ips`: leave it out: at most 4",
            ]
        );
    }

    #[test]
    fn upstream_resolvers_have_port_53_unless_they_say_another() {
        let text =
            r#"upstream = ["9.9.9.9", "9.9.9.9:5353", "2620:fe::fe", "[2620:fe::fe]:853", "9.9.9.9:0", "dns.example"]"#;
        let (dns, mistakes) = read_alone(text, read);
        let written: Vec<String> = dns.upstream.iter().map(SocketAddr::to_string).collect();
        assert_eq!(written, ["9.9.9.9:53", "9.9.9.9:5353", "[2620:fe::fe]:53", "[2620:fe::fe]:853"]);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }
}
