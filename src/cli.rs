//! The command line.
//!
//! Exit status: 0 done, 1 the work failed, 2 wrong usage or configuration.

pub mod check;
pub mod demo;
pub mod exec;
pub mod explain;
pub mod list;
pub mod probe;
pub mod report;
pub mod run;
pub mod status;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Fetching, Loaded, Mistakes};

/// A transparent, DNS- and TLS-aware forwarding proxy that knows the name behind each flow.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true)]
struct Cli {
    /// The configuration file, for commands that have one; may stand before or behind any
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway, or the sidecar of an application
    Run(run::RunArgs),
    /// Shows a running gateway: flows, counters, limits, lists, sinks
    Status(status::StatusArgs),
    /// Makes a running gateway read its configuration anew, and tells whether that is in force
    Reload(status::SocketArg),
    /// Prints every mistake of a configuration at once
    Check(ConfigArg),
    /// Tells what would happen to a flow, and why
    Explain(explain::ExplainArgs),
    /// Shows the verdict matrix live, between namespaces of its own
    Demo(demo::DemoArgs),
    /// Runs a command behind tidegate, as an ordinary user
    Exec(exec::ExecArgs),
    /// Creates, edits, duplicates, deletes, lists and shows Networks
    Network(NotBuilt),
    /// Shows and checks lists
    List(list::ListArgs),
    /// Turns a vendor's page into lists and a policy
    Import(NotBuilt),
    /// Prints the live address set
    Export(NotBuilt),
    /// Turns what a monitored Network did into a policy
    Learn(NotBuilt),
    /// Tells whether the sidecar of this network namespace is ready, by its exit status
    Probe(probe::ProbeArgs),
    /// Reports the resolvers in use
    Report(report::ReportArgs),
}

/// The configuration that a command works on.
#[derive(Clone, Debug, Args)]
pub struct ConfigArg {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIGURATION)]
    pub config: PathBuf,
}

/// The arguments of a command that does not exist yet: whatever they are, the answer is the same.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct NotBuilt {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<std::ffi::OsString>,
}

/// Where the configuration is unless told.
pub(crate) const CONFIGURATION: &str = "/etc/tidegate/tidegate.toml";
/// Wrong usage or configuration.
pub(crate) const USAGE: u8 = 2;

pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::status(&args),
        Command::Reload(args) => status::reload(&args),
        Command::Check(args) => check::check(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Exec(args) => exec::exec(args),
        Command::Network(_) => not_built("network"),
        Command::List(args) => list::list(&args),
        Command::Import(_) => not_built("import"),
        Command::Export(_) => not_built("export"),
        Command::Learn(_) => not_built("learn"),
        Command::Probe(args) => probe::probe(&args),
        Command::Report(args) => report::report(&args),
    }
}

fn not_built(command: &str) -> ExitCode {
    eprintln!("tidegate {command}: not built yet in version {}", env!("CARGO_PKG_VERSION"));
    ExitCode::from(USAGE)
}

impl ConfigArg {
    /// The configuration. Its mistakes and warnings go to standard error; mistakes end with exit status 2.
    pub fn load(&self) -> Result<Loaded, ExitCode> {
        Self::shown(config::load(&self.config))
    }

    /// The same with another patience for lists that were never fetched.
    pub fn load_with(&self, fetching: Fetching) -> Result<Loaded, ExitCode> {
        Self::shown(config::load_with(&self.config, fetching))
    }

    fn shown(loaded: Result<Loaded, Mistakes>) -> Result<Loaded, ExitCode> {
        match loaded {
            Ok(loaded) => {
                check::print(&loaded.warnings);
                Ok(loaded)
            }
            Err(mistakes) => {
                check::print(&mistakes);
                Err(ExitCode::from(USAGE))
            }
        }
    }
}

/// Prints what a command found out. A reader who has read enough is no failure: `tidegate check | head -1`.
fn say(text: impl Display) -> ExitCode {
    let mut out = io::stdout().lock();
    said(write!(out, "{text}").and_then(|()| out.flush()))
}

fn said(written: io::Result<()>) -> ExitCode {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("tidegate: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Whether what is written there may be coloured: on a terminal, unless NO_COLOR is set.
fn is_coloured(to: &impl IsTerminal) -> bool {
    to.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `5s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}
