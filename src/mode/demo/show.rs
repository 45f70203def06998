//! The page that a person reads: topology, a table for each inspection type, the ways to be refused, some records.

use std::fmt::Write;

use serde_json::Value;

use super::Report;
use super::flows::Flow;
use super::lab::Site;
use super::plan::{DROPS, EXPECTED, Named};
use crate::policy::{DropAction, InspectionType};

/// The whole page; `color` adds the escapes of a terminal and changes no word.
pub(super) fn page(report: &Report, color: bool) -> String {
    let paint = Paint { color };
    let mut page = String::new();
    introduction(&mut page, paint);
    for (inspection, ..) in EXPECTED {
        table(&mut page, report, inspection, paint);
    }
    refusals(&mut page, report, paint);
    records(&mut page, report, paint);
    summary(&mut page, report, paint);
    page
}

fn introduction(page: &mut String, paint: Paint) {
    let title = paint.bold("tidegate demo: real flows, judged by name and address");
    add(page, format_args!("\n  {title}\n\n{TOPOLOGY}\n"));
}

fn table(page: &mut String, report: &Report, inspection: InspectionType, paint: Paint) {
    add(page, format_args!("  {:<20}", ""));
    for named in Named::ALL {
        add(page, format_args!("{:<18}", named.name().unwrap_or("no name shown")));
    }
    page.push('\n');
    add(page, format_args!("  {}\n", paint.bold(inspection.as_str())));
    for (site, label) in [(Site::A, "address allowed"), (Site::B, "address blocked")] {
        add(page, format_args!("    {label:<18}"));
        for named in Named::ALL {
            let flows = report.matrix.iter().filter(|flow| {
                flow.trial.inspection == inspection && flow.trial.site == site && flow.trial.named == named
            });
            page.push_str(&cell(flows, paint));
        }
        page.push('\n');
    }
    page.push('\n');
}

/// What came of the flows of one cell, in 18 columns.
fn cell<'a>(flows: impl Iterator<Item = &'a Flow>, paint: Paint) -> String {
    let (mut right, mut all, mut passes) = (0, 0, false);
    for flow in flows {
        right += usize::from(flow.is_as_expected());
        all += 1;
        passes = flow.trial.passes;
    }
    let word = if passes { "pass" } else { "block" };
    match (right == all && all > 0, passes) {
        (true, true) => paint.green(&format!("{:<18}", format!("{word}  {right}/{all} ok"))),
        (true, false) => paint.yellow(&format!("{:<18}", format!("{word} {right}/{all} ok"))),
        (false, _) => paint.red(&format!("{:<18}", format!("{word} {right}/{all} WRONG"))),
    }
}

fn refusals(page: &mut String, report: &Report, paint: Paint) {
    add(page, format_args!("  {}\n", paint.bold("What a refused client sees (blocked.example, by drop action)")));
    for drop in DROPS {
        let flows = || report.refusals.iter().filter(move |flow| flow.trial.drop == drop);
        let mut seen: Vec<String> = flows().map(|flow| flow.saw.to_string()).collect();
        seen.sort();
        seen.dedup();
        let arrived: usize = flows().map(|flow| flow.arrived).sum();
        let told = format!("client: {:<14} server: {arrived} packets   {}", seen.join(", "), meaning(drop));
        let right = flows().all(Flow::is_as_expected);
        let told = if right { told } else { paint.red(&format!("{told}   WRONG")) };
        add(page, format_args!("    {:<18}{told}\n", drop.as_str()));
    }
    page.push('\n');
}

fn meaning(drop: DropAction) -> &'static str {
    match drop {
        DropAction::Discard => "(not one packet, until the client gives up)",
        DropAction::IcmpUnreachable => "(ICMP says prohibited, then a reset)",
        DropAction::TcpReset => "(ended at once)",
    }
}

fn records(page: &mut String, report: &Report, paint: Paint) {
    add(page, format_args!("  {}\n", paint.bold("Some of its records (one JSON line each, on its standard output)")));
    for named in [Named::Allowed, Named::Blocked, Named::NotAtAll] {
        let flow = report.matrix.iter().filter(|flow| flow.trial.named == named);
        let record = flow.filter(|flow| flow.trial.site == Site::B).find_map(|flow| flow.record.as_ref());
        for line in record.into_iter().flat_map(wrapped) {
            add(page, format_args!("    {}\n", paint.dim(&line)));
        }
    }
    page.push('\n');
}

/// The record as it was, broken into lines of at most [`WIDTH`] columns between its fields.
fn wrapped(record: &Value) -> Vec<String> {
    let mut lines = vec![String::from("{")];
    let fields = record.as_object().into_iter().flatten();
    for (index, (key, value)) in fields.enumerate() {
        let field = format!("{}{}:{value}", if index == 0 { "" } else { "," }, Value::from(key.as_str()));
        match lines.last_mut() {
            Some(line) if line.len() + field.len() <= WIDTH => line.push_str(&field),
            _ => lines.push(format!(" {field}")),
        }
    }
    if let Some(line) = lines.last_mut() {
        line.push('}');
    }
    lines
}

fn summary(page: &mut String, report: &Report, paint: Paint) {
    let all = report.flows().count();
    let wrong: Vec<&Flow> = report.flows().filter(|flow| !flow.is_as_expected()).collect();
    let refused = report.flows().filter(|flow| !flow.trial.passes);
    let leaked: usize = refused.map(|flow| flow.arrived).sum();
    for flow in wrong.iter().take(COMPLAINTS) {
        add(page, format_args!("  {}\n", paint.red(&flow.complaint())));
    }
    if !report.ended.status.success() {
        add(page, format_args!("  {}\n", paint.red(&format!("the gateway ended with {}", report.ended.status))));
        report.ended.messages.iter().for_each(|line| add(page, format_args!("  | {line}\n")));
    }
    let told = format!(
        "{} of {all} flows as expected; {leaked} packets of refused flows reached a server; {:.1} s",
        all - wrong.len(),
        report.took.as_secs_f64()
    );
    let told = if report.is_as_expected() { paint.green(&told) } else { paint.red(&told) };
    add(page, format_args!("  {told}\n\n"));
}

/// Writing to a String cannot fail.
fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}

#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const TOPOLOGY: &str = "\
    client  ------------------  gateway  ------------------  server
    10.1.0.2 and more           tidegate run                 198.51.100.0/24  2001:db8:a::/64  allowed
    fd00:1::2 and more          (this program)               203.0.113.0/24   2001:db8:b::/64  blocked

  Three network namespaces of this process: nothing is installed, nothing leaves the machine.
  allowed.example stands on an allow list, blocked.example on a block list, unlisted.example on none.
  Each cell is four flows: TLS and HTTP over IPv4 and IPv6. \"ok\" means that the client saw it, that the server
  was reached (or got not one packet), and that the gateway's record says so.
";
const WIDTH: usize = 108;
const COMPLAINTS: usize = 12;
