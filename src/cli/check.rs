//! `tidegate check`: every mistake of a configuration at once.

use std::io::IsTerminal;
use std::process::ExitCode;

use super::ConfigArg;
use crate::config::{Fetching, Loaded, Mistakes};

/// Mistakes and warnings go to standard error, the summary of a good configuration to standard output.
pub fn check(args: &ConfigArg) -> ExitCode {
    match args.load_with(Fetching::Never) {
        Ok(loaded) => {
            println!("{}", summary(&args.config.display().to_string(), &loaded));
            ExitCode::SUCCESS
        }
        Err(status) => status,
    }
}

/// As excerpts, in colour on a terminal. The first line of each is for programs: `FILE:LINE:COLUMN: error: WHAT`.
pub(super) fn print(mistakes: &Mistakes) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    eprint!("{}", mistakes.render(colour));
}

fn summary(path: &str, loaded: &Loaded) -> String {
    let (names, prefixes) = loaded.lists.iter().fold((0_u64, 0_u64), |(names, prefixes), list| {
        (names + list.domains.len(), prefixes + list.prefixes.len() as u64)
    });
    format!(
        "{path}: good: enforcer `{}`, {}, {}, {} ({}, {})",
        loaded.enforcer,
        count(loaded.networks.len() as u64, "network"),
        count(loaded.policies.len() as u64, "policy"),
        count(loaded.lists.len() as u64, "list"),
        count(names, "name"),
        count(prefixes, "prefix"),
    )
}

fn count(number: u64, what: &str) -> String {
    match (number, what.strip_suffix('y'), what.ends_with('x')) {
        (1, ..) => format!("1 {what}"),
        (_, Some(stem), _) => format!("{number} {stem}ies"),
        (_, None, true) => format!("{number} {what}es"),
        (_, None, false) => format!("{number} {what}s"),
    }
}
