//! `tidegate run`: the gateway, or the sidecar.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{ConfigArg, is_coloured};
use crate::app::{self, Beginning, Ending};
use crate::config::{self, Runs};
use crate::sys::privileges;
use crate::telemetry::messages::{self, Messages};

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Put the rules in place, closed as after a crash, and end: before an application that starts with its sidecar
    #[arg(long)]
    pub rules_only: bool,
    /// Leave the rules in the kernel at the end: what they capture is dropped until the next start
    #[arg(long)]
    pub keep_rules: bool,
    /// Take the place of the gateway that runs here, which serves what it has until that ends; without one, start as usual
    #[arg(long)]
    pub take_over: bool,
    /// How long flows may go on after SIGTERM or SIGINT
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::duration)]
    pub drain: Duration,
}

pub fn run(args: RunArgs) -> ExitCode {
    let path = &args.config.config;
    if let Runs::Gateway { user } = config::runs(path)
        && let Err(error) = privileges::give_up(user.as_deref(), path)
    {
        eprintln!("tidegate run: could not give up privileges: {error}");
        return ExitCode::FAILURE;
    }
    // Read with what is left, so that a reload finds what the start has found.
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    log_to_standard_error();
    let ending = Ending { drain: args.drain, keep_rules: args.keep_rules };
    let beginning = if args.take_over { Beginning::TakeOver } else { Beginning::Alone };
    let done = if args.rules_only { app::install_rules(&loaded) } else { app::run(loaded, path, beginning, ending) };
    messages::flush();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tidegate run: {failure}");
            let lacking = privileges::lacking();
            if !lacking.is_empty() {
                let lacking: Vec<_> = lacking.iter().map(ToString::to_string).collect();
                eprintln!("  it lacks {}: run it as root, or by containers/tidegate.service", lacking.join(" and "));
            }
            ExitCode::FAILURE
        }
    }
}

/// Messages for the operator; `RUST_LOG` chooses which. Records go to standard output, and nowhere near these.
fn log_to_standard_error() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Messages::default)
        .with_target(false)
        .with_ansi(is_coloured(&std::io::stderr()));
    // A second call finds the first still in force.
    let _ = subscriber.try_init();
}
