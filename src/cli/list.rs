//! `tidegate list`: what lists hold, what is wrong with a file, and who holds a name or an address.

mod find;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::ConfigArg;
use crate::config::{Fetching, ListSource, Loaded};
use crate::list::List;
use crate::list::compile::compile;
use crate::list::format::Format;
use crate::list::reader::{Options, Report};
use crate::sys::progress;

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(subcommand)]
    command: ListCommand,
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// Prints each list of the configuration: its verdict, size, memory and policies
    Stat(ConfigArg),
    /// Reads a list file and prints every bad line, and counts
    Check(CheckArgs),
    /// Compiles the large list files of the configuration, so that the next start only opens them
    Build(ConfigArg),
    /// Prints which lists hold a name or an address, by which entry and line, and which policies that touches
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
        ListCommand::Stat(config) => with(config, |loaded| loaded.lists.iter().for_each(|list| stat(list, loaded))),
        ListCommand::Build(config) => match config.load_with(Fetching::Patiently) {
            Ok(loaded) => {
                loaded.list_sources.iter().for_each(built);
                ExitCode::SUCCESS
            }
            Err(status) => status,
        },
        ListCommand::Find(args) => with(&args.config, |loaded| find::find(&args.wanted, loaded)),
    }
}

fn with(config: &ConfigArg, work: impl FnOnce(&Loaded)) -> ExitCode {
    match config.load() {
        Ok(loaded) => {
            work(&loaded);
            ExitCode::SUCCESS
        }
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
        Ok((compiled, report)) => {
            println!("{}", bad_lines(path, &report) + &summary(path, &report, compiled.doubled));
            ExitCode::SUCCESS
        }
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

fn stat(list: &Arc<List>, loaded: &Loaded) {
    println!("{}", line_of(list, loaded));
}

fn line_of(list: &Arc<List>, loaded: &Loaded) -> String {
    let policies: Vec<&str> = loaded
        .policies
        .iter()
        .filter(|policy| policy.lists.iter().any(|own| Arc::ptr_eq(own, list)))
        .map(|policy| &*policy.name)
        .collect();
    let octets = list.domains.footprint() + list.prefixes.footprint();
    format!(
        "{}: {}, {} names, {} address ranges, {octets} octets; policies: {}",
        list.name,
        verdict(list),
        list.domains.len(),
        list.prefixes.len(),
        if policies.is_empty() { "none".to_owned() } else { policies.join(", ") },
    )
}

fn verdict(list: &List) -> String {
    match &list.verdict {
        crate::list::ListVerdict::Allow => "allow".to_owned(),
        crate::list::ListVerdict::Block => "block".to_owned(),
        crate::list::ListVerdict::Threat { category, score } => format!("threat ({category}, {score})"),
    }
}

fn built(source: &ListSource) {
    for file in &source.states {
        let state = match &file.compiled {
            Some(compiled) => format!("compiled in {}", compiled.display()),
            None => "held in memory".to_owned(),
        };
        println!("{}: {}: {state}", source.list, file.path.display());
    }
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
    fn formats_are_told_by_their_words() {
        assert_eq!(format("auto").unwrap().0, None);
        for own in Format::ALL {
            assert_eq!(format(own.as_str()).unwrap().0, Some(own));
        }
        assert!(format("other").is_err());
    }
}
