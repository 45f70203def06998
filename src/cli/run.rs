//! `tidegate run`: the gateway.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ConfigArg;

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Leave the rules in the kernel at the end: what they capture is dropped until the next start
    #[arg(long)]
    pub keep_rules: bool,
    /// How long flows may go on after SIGTERM or SIGINT
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::duration)]
    pub drain: Duration,
}

pub fn run(args: RunArgs) -> ExitCode {
    if let Err(status) = args.config.load() {
        return status;
    }
    eprintln!("tidegate run: not built yet in version {}", env!("CARGO_PKG_VERSION"));
    ExitCode::FAILURE
}
