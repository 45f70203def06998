//! The page that a person reads: topology, a table for each inspection type, the ways to be refused, some records.

use std::fmt::Write;

use super::Report;
use super::flows::Flow;
use super::lab::Site;
use super::plan::{DROPS, EXPECTED, Named, Speaks, Trial};
use crate::policy::InspectionType;
use crate::sys::rtnl::Family;

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
    add(page, format_args!("  {}", paint.bold(&format!("{:<20}", inspection.as_str()))));
    for named in Named::ALL {
        add(page, format_args!("{:<COLUMN$}", heading(named)));
    }
    end_line(page);
    for (site, label) in [(Site::A, "address allowed"), (Site::B, "address blocked")] {
        add(page, format_args!("    {label:<18}"));
        for named in Named::ALL {
            let flows = report.matrix.iter().filter(|flow| {
                flow.trial.inspection == inspection && flow.trial.site == site && flow.trial.named == named
            });
            page.push_str(&cell(flows, paint));
        }
        end_line(page);
    }
    add(page, format_args!("    {}\n\n", paint.dim(in_words(inspection))));
}

fn heading(named: Named) -> &'static str {
    match named {
        Named::Allowed => "name allowed",
        Named::Blocked => "name blocked",
        Named::Unlisted => "unlisted",
        Named::NotAtAll => "no name",
    }
}

fn in_words(inspection: InspectionType) -> &'static str {
    match inspection {
        InspectionType::PreferIp => "the address decides, whatever the name",
        InspectionType::PreferDomain => "whatever name no list blocks passes; without one the address decides",
        InspectionType::PreferBoth => "what either blocks is blocked",
        InspectionType::Explicit => "a listed name decides, otherwise the address",
    }
}

/// What came of the flows of one cell, in [`COLUMN`] columns.
fn cell<'a>(flows: impl Iterator<Item = &'a Flow>, paint: Paint) -> String {
    let (mut right, mut all, mut passes) = (0, 0, false);
    for flow in flows {
        right += usize::from(flow.is_as_expected());
        all += 1;
        passes = flow.trial.passes;
    }
    let expected = if passes { "pass " } else { "block" };
    if right < all || all == 0 {
        return paint.red(&format!("{:<COLUMN$}", format!("WRONG {right}/{all}")));
    }
    let told = format!("{:<COLUMN$}", format!("{expected} {right}/{all}"));
    if passes { paint.green(&told) } else { paint.yellow(&told) }
}

fn refusals(page: &mut String, report: &Report, paint: Paint) {
    add(page, format_args!("  {}\n", paint.bold("a refused client, by drop action")));
    for drop in DROPS {
        let flows = || report.refusals.iter().filter(move |flow| flow.trial.drop == drop);
        let mut seen: Vec<String> = flows().map(Flow::experience).collect();
        seen.sort();
        seen.dedup();
        let arrived: usize = flows().map(|flow| flow.arrived).sum();
        let told = format!("the client saw {}; the server {arrived} packets", seen.join(" or "));
        let right = flows().all(Flow::is_as_expected);
        let told = if right { told } else { paint.red(&format!("{told}: WRONG")) };
        add(page, format_args!("    {:<18}{told}\n", drop.as_str()));
    }
    page.push('\n');
}

fn records(page: &mut String, report: &Report, paint: Paint) {
    add(page, format_args!("  {}\n", paint.bold("some records (each one line on standard output)")));
    let samples = [
        (Site::A, Named::Blocked, Speaks::Tls, Family::V4),
        (Site::B, Named::Allowed, Speaks::Http, Family::V6),
        (Site::A, Named::Allowed, Speaks::Quic, Family::V4),
        (Site::B, Named::NotAtAll, Speaks::Tls, Family::V4),
    ];
    for sample in samples {
        let mut flows = report.matrix.iter().filter(|flow| {
            let Trial { site, named, speaks, family, inspection, .. } = flow.trial;
            inspection == InspectionType::Explicit && sample == (site, named, speaks, family)
        });
        let record = flows.find_map(|flow| flow.record.as_ref());
        for line in record.into_iter().flat_map(|record| wrapped(&record.line)) {
            add(page, format_args!("    {}\n", paint.dim(&line)));
        }
    }
    page.push('\n');
}

/// A record broken into lines of at most [`WIDTH`] columns between its fields; the words stay as they are.
fn wrapped(record: &str) -> Vec<String> {
    let mut fields = record.split(",\"");
    let mut lines = vec![fields.next().unwrap_or_default().to_owned()];
    for field in fields {
        let Some(line) = lines.last_mut() else { break };
        line.push(',');
        if line.len() + field.len() < WIDTH {
            line.push_str(&format!("\"{field}"));
        } else {
            lines.push(format!(" \"{field}"));
        }
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

/// Ends a line, without the blanks at its end.
fn end_line(page: &mut String) {
    page.truncate(page.trim_end_matches(' ').len());
    page.push('\n');
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

const TOPOLOGY: &str = "    client ----------------- gateway ----------------- server
    10.1.0.2 ...             tidegate run              198.51.100.0/24  (address allowed)
    fd00:1::2 ...            (this very program)       203.0.113.0/24   (address blocked)
                                                       and two IPv6 networks alike

  Three network namespaces of this process: nothing is installed, nothing leaves
  the machine. allowed.example is on an allow list, blocked.example on a block
  list, unlisted.example on none. Each cell is six flows, TLS, HTTP and QUIC over
  IPv4 and IPv6, and counts those of which client, server and record agree: a
  blocked flow must not have sent the server a single packet.
";
const COLUMN: usize = 14;
const WIDTH: usize = 74;
const COMPLAINTS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_broken_between_fields_and_nothing_else_is_changed() {
        let record = format!(r#"{{"kind":"domain","domain":"{}","list":"a,\"b","flow":42}}"#, "x".repeat(60));
        let lines = wrapped(&record);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= WIDTH), "{lines:#?}");
        let joined: String = lines.iter().map(|line| line.trim_start()).collect();
        assert_eq!(joined, record);
    }

    #[test]
    fn colour_changes_no_word() {
        let coloured = Paint { color: true }.red("WRONG 3/4");
        assert_eq!(coloured, "\x1b[1;31mWRONG 3/4\x1b[0m");
        assert_eq!(Paint { color: false }.red("WRONG 3/4"), "WRONG 3/4");
    }
}
