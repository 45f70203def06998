//! A hosts file: an address, then the names that it is given, each for itself.

use std::net::IpAddr;

use super::{Emit, Line, before_comment};
use crate::list::entry::{Bad, Entry, Reach};

pub(super) fn line(line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
    let mut words = before_comment(line, &['#']).split_whitespace();
    let Some(address) = words.next() else { return Ok(Line::Empty) };
    if !is_address(address) {
        return Err(Bad::Form("an address and then names"));
    }
    let names: Vec<&str> = words.collect();
    if names.is_empty() {
        return Err(Bad::Form("an address and then names"));
    }
    let mut found = Line::Ignored;
    // All of the line or nothing: a line with a bad name is reported as a whole.
    let entries = names.into_iter().filter(|name| !is_own_machine(name)).map(|name| Entry::name(Reach::Exact, name));
    for entry in entries.collect::<Result<Vec<_>, _>>()? {
        emit(entry);
        found = Line::Taken;
    }
    Ok(found)
}

/// With or without a zone, as in `fe80::1%lo0`.
pub(super) fn is_address(text: &str) -> bool {
    text.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// Names that such files give to the machine they are on, and that nobody means to list.
fn is_own_machine(name: &str) -> bool {
    const OWN: [&str; 12] = [
        "localhost",
        "localhost.localdomain",
        "local",
        "broadcasthost",
        "ip6-localhost",
        "ip6-loopback",
        "ip6-localnet",
        "ip6-mcastprefix",
        "ip6-allnodes",
        "ip6-allrouters",
        "ip6-allhosts",
        "0.0.0.0",
    ];
    OWN.iter().any(|own| own.eq_ignore_ascii_case(name))
}
