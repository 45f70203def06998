//! `tidegate list`: what lists hold, what is wrong with a file, and who holds a name or an address.

mod find;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::check::count;
use super::{ConfigArg, say};
use crate::config::source::State;
use crate::config::{Fetching, GeoSource, ListSource, Loaded};
use crate::list::List;
use crate::list::compile::compile;
use crate::list::format::Format;
use crate::list::reader::{Options, Report};
use crate::policy::rules::{GeoRule, Policy};
use crate::sys::progress;

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(subcommand)]
    command: ListCommand,
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// Prints each list of the configuration: its verdict, size, memory, policies and, if it is fetched, its age
    Stat(ConfigArg),
    /// Reads a list file and prints every bad line, and counts
    Check(CheckArgs),
    /// Compiles the large list files of the configuration, so that the next start only opens them
    Build(ConfigArg),
    /// Prints which lists hold a name or an address, by which entry and line, its country and ASN, and which policies
    /// that touches
    Find(find::FindArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The list file
    file: PathBuf,
    /// How it is written: auto, plain, hosts, adblock, dnsmasq, rpz, cidr, csv or json
    #[arg(long, default_value = "auto", value_parser = format)]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug)]
struct FormatArg(Option<Format>);

pub fn list(args: &ListArgs) -> ExitCode {
    match &args.command {
        ListCommand::Check(args) => check(&args.file, args.format.0),
        ListCommand::Stat(config) => with(config, stat),
        ListCommand::Build(config) => match config.load_with(Fetching::Patiently) {
            Ok(loaded) => {
                let built: String = loaded.list_sources.iter().map(built).collect();
                say(if built.is_empty() { "nothing to compile: no list has a large file\n".to_owned() } else { built })
            }
            Err(status) => status,
        },
        ListCommand::Find(args) => with(&args.config, |loaded| find::account(&args.wanted, loaded, SystemTime::now())),
    }
}

fn with(config: &ConfigArg, work: impl FnOnce(&Loaded) -> String) -> ExitCode {
    match config.load() {
        Ok(loaded) => say(work(&loaded)),
        Err(status) => status,
    }
}

fn format(word: &str) -> Result<FormatArg, String> {
    if word == "auto" {
        return Ok(FormatArg(None));
    }
    let format = Format::ALL.into_iter().find(|format| format.as_str() == word);
    format.map(|format| FormatArg(Some(format))).ok_or_else(|| "no such format".to_owned())
}

fn check(path: &Path, format: Option<Format>) -> ExitCode {
    let mut options = Options { format, ..Options::default() };
    options.limits.reported = usize::MAX;
    let outcome = std::fs::File::open(path)
        .map_err(crate::list::reader::Refused::Io)
        .and_then(|file| compile(progress::of(file, path), &options));
    match outcome {
        Ok((compiled, report)) => say(bad_lines(path, &report) + &summary(path, &report, compiled.doubled) + "\n"),
        Err(why) => {
            eprintln!("{}: this is no list: {why}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn bad_lines(path: &Path, report: &Report) -> String {
    let line = |bad: &crate::list::reader::BadLine| {
        // What a file says may hold escapes for the terminal.
        format!("{}:{}:1: skipped: {}: {}\n", path.display(), bad.number, bad.why, bad.text.escape_debug())
    };
    report.first_bad.iter().map(line).collect()
}

fn summary(path: &Path, report: &Report, doubled: u64) -> String {
    format!(
        "{}: {} format, {} lines: {} entries taken, {doubled} of them doubled, {} lines skipped, {} not about names{}",
        path.display(),
        report.format,
        report.lines,
        report.taken,
        report.bad,
        report.ignored,
        if report.ends_with_newline { "" } else { "; the last line has no end, so it may be cut short" },
    )
}

fn stat(loaded: &Loaded) -> String {
    let now = SystemTime::now();
    let lists = loaded.lists.iter().map(|list| {
        let source = loaded.list_sources.iter().find(|source| source.list == list.name);
        let remote = source.and_then(|source| source.remote.as_ref());
        line_of(list, loaded) + &remote.map(|remote| age(remote.copy.checked(), now)).unwrap_or_default() + "\n"
    });
    let databases = loaded.geoip.iter().map(|source| {
        let (kind, ranges) = (source.database.kind().word(), count(source.database.len() as u64, "address range"));
        let policies = rules_over(source, loaded);
        format!("{}: the {kind} database, {ranges}; policies: {policies}\n", source.path.display())
    });
    let all: String = lists.chain(databases).collect();
    if all.is_empty() { "no lists\n".to_owned() } else { all }
}

fn line_of(list: &Arc<List>, loaded: &Loaded) -> String {
    let uses = |policy: &Policy| policy.lists.iter().any(|own| Arc::ptr_eq(own, list));
    let octets = list.domains.footprint() + list.prefixes.footprint();
    format!(
        "{}: {}, {}, {}, {octets} octets; policies: {}",
        list.name,
        verdict(list),
        count(list.domains.len(), "name"),
        count(list.prefixes.len() as u64, "address range"),
        policies(loaded, uses),
    )
}

/// How old a fetched copy is: `checked` is when its server last said that this is its file.
fn age(checked: Option<SystemTime>, now: SystemTime) -> String {
    let Some(checked) = checked else { return "; fetched nobody knows when".to_owned() };
    let seconds = now.duration_since(checked).unwrap_or_default().as_secs();
    format!("; fetched or confirmed {} ago", humantime::format_duration(Duration::from_secs(seconds)))
}

fn rules_over(source: &GeoSource, loaded: &Loaded) -> String {
    let is_of = |rule: &GeoRule| Arc::ptr_eq(&rule.database, &source.database);
    policies(loaded, |policy| policy.geo_rules().any(is_of))
}

fn policies(loaded: &Loaded, which: impl Fn(&Policy) -> bool) -> String {
    let names: Vec<&str> = loaded.policies.iter().filter(|own| which(own)).map(|own| &*own.name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn verdict(list: &List) -> String {
    match &list.verdict {
        crate::list::ListVerdict::Allow => "allow".to_owned(),
        crate::list::ListVerdict::Block => "block".to_owned(),
        crate::list::ListVerdict::Threat { category, score } => format!("threat ({category}, {score})"),
    }
}

fn built(source: &ListSource) -> String {
    let line = |file: &State| {
        let state = match &file.compiled {
            Some(compiled) => format!("compiled in {}", compiled.display()),
            None => "held in memory".to_owned(),
        };
        format!("{}: {}: {state}\n", source.list, file.path.display())
    };
    source.states.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::reader::read;

    #[test]
    fn a_checked_file_shows_each_bad_line_by_place_and_every_count() {
        let text = "a.example\nb d\x1b\na.example\n0.0.0.0";
        let report = read(text.as_bytes(), &Options::default(), &mut |_, _| ()).unwrap();
        let path = Path::new("l.txt");
        assert_eq!(bad_lines(path, &report), "l.txt:2:1: skipped: not one entry a line: b d\\u{1b}\n");
        assert_eq!(
            summary(path, &report, 1),
            "l.txt: plain format, 4 lines: 3 entries taken, 1 of them doubled, 1 lines skipped, 0 not about names; \
             the last line has no end, so it may be cut short"
        );
    }

    #[test]
    fn the_age_of_a_copy_is_told_for_people() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(age(Some(at(100)), at(3765)), "; fetched or confirmed 1h 1m 5s ago");
        assert_eq!(age(Some(at(100)), at(0)), "; fetched or confirmed 0s ago", "the clock was put back");
        assert_eq!(age(None, at(0)), "; fetched nobody knows when");
    }

    #[test]
    fn formats_are_told_by_their_words() {
        assert_eq!(format("auto").unwrap().0, None);
        for own in Format::ALL {
            assert_eq!(format(own.as_str()).unwrap().0, Some(own));
        }
        assert!(format("other").is_err());
    }
}
