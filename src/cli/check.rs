//! `tidegate check`: every mistake of a configuration at once.

use std::io::{self, Write};
use std::process::ExitCode;

use super::{ConfigArg, is_coloured, say};
use crate::config::{Fetching, Loaded, Mistakes};

/// Mistakes and warnings go to standard error, the summary of a good configuration to standard output.
pub fn check(args: &ConfigArg) -> ExitCode {
    match args.load_with(Fetching::Never) {
        Ok(loaded) => say(summary(&args.config.display().to_string(), &loaded)),
        Err(status) => status,
    }
}

/// As excerpts, in colour on a terminal. The first line of each is for programs: `FILE:LINE:COLUMN: error: WHAT`.
pub(super) fn print(mistakes: &Mistakes) {
    let mut err = io::stderr().lock();
    // Whoever closed standard error learns it from the exit status alone.
    _ = err.write_all(mistakes.render(is_coloured(&err)).as_bytes());
}

fn summary(path: &str, loaded: &Loaded) -> String {
    let (names, prefixes) = loaded.lists.iter().fold((0_u64, 0_u64), |(names, prefixes), list| {
        (names + list.domains.len(), prefixes + list.prefixes.len() as u64)
    });
    format!(
        "{path}: good: enforcer `{}`, {}, {}, {} ({}, {})\n",
        loaded.enforcer,
        count(loaded.networks.len() as u64, "network"),
        count(loaded.policies.len() as u64, "policy"),
        count(loaded.lists.len() as u64, "list"),
        count(names, "name"),
        count(prefixes, "prefix"),
    )
}

pub(super) fn count(number: u64, what: &str) -> String {
    match (number, what.strip_suffix('y'), what.ends_with('x')) {
        (1, ..) => format!("1 {what}"),
        (_, Some(stem), _) => format!("{number} {stem}ies"),
        (_, None, true) => format!("{number} {what}es"),
        (_, None, false) => format!("{number} {what}s"),
    }
}
