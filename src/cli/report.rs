//! `tidegate report`: what records say of the past.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::said;

#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Who asked which resolver, and how often: look before authorizing some and no others
    Resolvers(ResolversArgs),
}

#[derive(Clone, Debug, Args)]
struct ResolversArgs {
    /// Files of records, as `tidegate run` writes them; none, or `-`: standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn report(args: &ReportArgs) -> ExitCode {
    let What::Resolvers(args) = &args.what;
    match resolvers(args) {
        Ok(tally) => said(tally.write(&mut io::stdout().lock(), args.json)),
        Err(error) => {
            eprintln!("tidegate report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn resolvers(args: &ResolversArgs) -> io::Result<Tally> {
    let mut tally = Tally::default();
    if args.files.is_empty() {
        tally.read(io::stdin().lock())?;
    }
    for file in &args.files {
        if file.as_os_str() == "-" {
            tally.read(io::stdin().lock())?;
        } else {
            let read = File::open(file).and_then(|opened| tally.read(BufReader::new(opened)));
            read.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
        }
    }
    if tally.skipped > 0 {
        eprintln!("tidegate report: {} lines are no records", tally.skipped);
    }
    Ok(tally)
}

/// How often each client asked each resolver.
#[derive(Debug, Default)]
struct Tally {
    pairs: BTreeMap<(IpAddr, IpAddr), Asked>,
    skipped: u64,
}

#[derive(Clone, Debug, Default)]
struct Asked {
    udp: u64,
    tcp: u64,
    refused: u64,
    last: String,
}

/// The fields of a record that count here.
#[derive(Debug, Deserialize)]
struct Seen {
    kind: String,
    #[serde(default)]
    time: String,
    source: IpAddr,
    destination: IpAddr,
    protocol: String,
    #[serde(default)]
    reason: String,
}

/// What happened to tidegate itself has no source.
fn is_event(line: &[u8]) -> bool {
    serde_json::from_slice(line).is_ok_and(|record: serde_json::Value| record["kind"] == "event")
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    resolver: IpAddr,
    client: IpAddr,
    questions: u64,
    udp: u64,
    tcp: u64,
    /// Refused because the resolver is not authorized.
    refused: u64,
    last: &'a str,
}

impl Tally {
    fn read(&mut self, records: impl BufRead) -> io::Result<()> {
        for line in records.split(b'\n') {
            let line = line?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Seen>(&line) {
                Ok(seen) if seen.kind == "dns" => self.count(seen),
                Ok(_) => {}
                Err(_) if is_event(&line) => {}
                Err(_) => self.skipped += 1,
            }
        }
        Ok(())
    }

    fn count(&mut self, seen: Seen) {
        let asked = self.pairs.entry((seen.destination, seen.source)).or_default();
        if seen.protocol == "tcp" {
            asked.tcp += 1;
        } else {
            asked.udp += 1;
        }
        asked.refused += u64::from(seen.reason == "RESOLVER");
        // The same form throughout, so the later one is the greater text.
        asked.last = seen.time.max(std::mem::take(&mut asked.last));
    }

    /// The most asked resolver first, and under each the most asking client.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut of_resolver: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for ((resolver, _), asked) in &self.pairs {
            *of_resolver.entry(*resolver).or_default() += asked.udp + asked.tcp;
        }
        let mut rows: Vec<Row<'_>> = self
            .pairs
            .iter()
            .map(|((resolver, client), asked)| Row {
                resolver: *resolver,
                client: *client,
                questions: asked.udp + asked.tcp,
                udp: asked.udp,
                tcp: asked.tcp,
                refused: asked.refused,
                last: &asked.last,
            })
            .collect();
        rows.sort_by_key(|row| {
            let total = of_resolver.get(&row.resolver).copied().unwrap_or(0);
            (Reverse(total), row.resolver, Reverse(row.questions), row.client)
        });
        rows
    }

    fn write(&self, out: &mut impl Write, json: bool) -> io::Result<()> {
        if json { self.write_json(out) } else { self.write_table(out) }
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        for row in self.rows() {
            serde_json::to_writer(&mut *out, &row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:<39}  {:<39}  {:>9}  {:>9}  {:>9}  last", "resolver", "client", "udp", "tcp", "refused")?;
        for row in self.rows() {
            let Row { resolver, client, udp, tcp, refused, last, .. } = row;
            let (resolver, client) = (resolver.to_string(), client.to_string());
            writeln!(out, "{resolver:<39}  {client:<39}  {udp:>9}  {tcp:>9}  {refused:>9}  {last}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &str = r#"
{"time":"2026-11-20T04:30:00.000Z","kind":"dns","source":"10.1.0.2","destination":"9.9.9.9","protocol":"udp","reason":"DEFAULT"}
{"time":"2026-11-20T04:30:05.000Z","kind":"dns","source":"10.1.0.2","destination":"9.9.9.9","protocol":"tcp","reason":"DEFAULT"}
{"time":"2026-11-20T04:30:01.000Z","kind":"dns","source":"10.1.0.2","destination":"9.9.9.9","protocol":"udp","reason":"DEFAULT"}
{"time":"2026-11-20T04:30:02.000Z","kind":"dns","source":"10.1.0.3","destination":"9.9.9.9","protocol":"udp","reason":"DOMAIN"}
{"time":"2026-11-20T04:30:03.000Z","kind":"dns","source":"fd00::2","destination":"2620:fe::fe","protocol":"udp","reason":"RESOLVER"}
{"time":"2026-11-20T04:30:03.000Z","kind":"domain","source":"10.1.0.9","destination":"192.0.2.1","protocol":"tcp","reason":"DOMAIN"}
not a record
"#;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        tally.read(RECORDS.as_bytes()).unwrap();
        tally
    }

    #[test]
    fn questions_are_counted_by_resolver_and_client_and_other_records_are_left_out() {
        let tally = tally();
        let rows: Vec<_> = tally
            .rows()
            .iter()
            .map(|row| (row.resolver.to_string(), row.client.to_string(), row.udp, row.tcp, row.refused))
            .collect();
        let row = |resolver: &str, client: &str, udp, tcp, refused| {
            (resolver.to_owned(), client.to_owned(), udp, tcp, refused)
        };
        let expected = [
            row("9.9.9.9", "10.1.0.2", 2, 1, 0),
            row("9.9.9.9", "10.1.0.3", 1, 0, 0),
            row("2620:fe::fe", "fd00::2", 1, 0, 1),
        ];
        assert_eq!(rows, expected);
        assert_eq!(tally.rows()[0].last, "2026-11-20T04:30:05.000Z");
        assert_eq!(tally.skipped, 1);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let mut text = Vec::new();
        tally().write_json(&mut text).unwrap();
        let lines: Vec<serde_json::Value> =
            String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["questions"], 3);
        assert_eq!(lines[2]["refused"], 1);
    }

    #[test]
    fn the_table_has_a_row_for_each_pair() {
        let mut text = Vec::new();
        tally().write_table(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().nth(1).unwrap().starts_with("9.9.9.9 "));
    }
}
