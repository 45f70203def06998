//! dnsmasq's configuration: names that it answers itself, with everything below them.

use std::net::IpAddr;

use super::{Emit, Line};
use crate::list::entry::{Bad, Entry, Reach};

pub(super) fn line(line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
    // `#` begins a comment only after a blank: `server=/name/#` is the usual servers.
    let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    let Some(text) = words.next() else { return Ok(Line::Empty) };
    if words.next().is_some() {
        return Err(WANTED);
    }
    let (key, value) = text.split_once('=').ok_or(WANTED)?;
    let (names, target) = value.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')).ok_or(WANTED)?;
    let excepted = match (key, target) {
        // The usual servers answer. As an address it is the one that leads nowhere, of both families.
        ("server" | "local", "#") => true,
        ("address", target) if matches!(target, "" | "#") || target.parse::<IpAddr>().is_ok() => false,
        ("server" | "local", "") => false,
        ("server" | "local", _) => return Err(Bad::Unsupported("it forwards queries, and blocks nothing")),
        _ => return Err(WANTED),
    };
    let entries = names.split('/').map(entry).collect::<Result<Vec<_>, _>>()?;
    for entry in entries {
        emit(if excepted { entry.as_exception() } else { entry });
    }
    Ok(Line::Taken)
}

fn entry(name: &str) -> Result<Entry<'_>, Bad> {
    if name == "#" {
        return Err(Bad::Unsupported("it is about every name"));
    }
    Entry::name(Reach::Tree, name.strip_prefix('.').unwrap_or(name))
}

const WANTED: Bad = Bad::Form("address=/name/, local=/name/ or server=/name/");
