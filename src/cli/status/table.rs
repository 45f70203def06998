//! A status as tables for a person.

use std::io::{self, Write};
use std::time::Duration;

use crate::admin::status::{FlowRow, Status};

pub(super) fn write(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let Status { enforcer, version, pid, generation, networks, .. } = status;
    writeln!(out, "tidegate {version} `{enforcer}`, process {pid}, up {}", time(status.uptime))?;
    let since = time(status.in_force_for);
    writeln!(
        out,
        "generation {generation} in force for {since}, {networks} networks; {}",
        octets(status.resident_bytes)
    )?;

    let limits = status.limits.iter();
    table(
        out,
        ["limit", "used", "most"],
        limits.map(|own| [own.what.clone(), own.used.to_string(), own.most.to_string()]),
    )?;
    let sinks = status.sinks.iter().map(|own| {
        let state = if own.failing { "failing" } else { "well" };
        let numbers = [own.waiting.to_string(), own.written.to_string(), own.dropped.to_string()];
        let [waiting, written, dropped] = numbers;
        [own.sink.clone(), state.to_owned(), waiting, written, dropped]
    });
    table(out, ["sink", "state", "waiting", "written", "dropped"], sinks)?;
    let lists = status.lists.iter().map(|own| {
        let age = own.age.map_or_else(|| "-".to_owned(), time);
        [own.name.clone(), own.verdict.clone(), own.names.to_string(), own.prefixes.to_string(), age]
    });
    table(out, ["list", "verdict", "names", "prefixes", "age"], lists)?;
    let verdicts = status.verdicts.iter();
    table(
        out,
        ["judged", "verdict", "reason", "number"],
        verdicts.map(|own| [own.kind.clone(), own.verdict.clone(), own.reason.clone(), own.count.to_string()]),
    )?;
    table(out, ["counter", "number"], status.counters.iter().map(|(name, count)| [name.clone(), count.to_string()]))?;
    let titles = ["flow", "source", "destination", "name", "verdict", "out", "in", "age"];
    table(out, titles, status.flows.iter().map(flow))
}

fn flow(flow: &FlowRow) -> [String; 8] {
    let name = match (&flow.domain, &flow.via) {
        (Some(name), Some(via)) => format!("{name} ({via})"),
        (Some(name), None) => name.clone(),
        (None, _) => "-".to_owned(),
    };
    [
        format!("{} {}", flow.flow, flow.protocol),
        flow.source.to_string(),
        flow.destination.to_string(),
        name,
        flow.verdict.clone(),
        octets(flow.bytes_out),
        octets(flow.bytes_in),
        time(flow.age),
    ]
}

/// Columns as wide as their widest; nothing for no rows.
fn table<const N: usize>(
    out: &mut impl Write,
    titles: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let printable = |cell: String| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let rows: Vec<[String; N]> = rows.map(|row| row.map(printable)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let titles = titles.map(str::to_owned);
    let mut widths = [0; N];
    for row in rows.iter().chain([&titles]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    writeln!(out)?;
    for row in std::iter::once(&titles).chain(&rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn time(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    // Its two largest units are enough.
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn octets(number: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| number >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", number as f64 / (1_u64 << shift) as f64),
        None => format!("{number} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_can_write_to_the_terminal() {
        let mut out = Vec::new();
        let rows = [["a".to_owned(), "1".to_owned()], ["long\u{1b}[2J".to_owned(), "22".to_owned()]];
        table(&mut out, ["name", "n"], rows.into_iter()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\nname      n\na         1\nlong?[2J  22\n");
        let mut none = Vec::new();
        table(&mut none, ["name"], std::iter::empty()).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([octets(0), octets(1023), octets(1536), octets(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([time(0), time(59), time(90_061)], ["0s", "59s", "1day 1h"]);
    }
}
