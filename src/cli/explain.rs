//! `tidegate explain`: what would happen to a flow, and why.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArg;

#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArg,
}

pub fn explain(args: &ExplainArgs) -> ExitCode {
    _ = args;
    ExitCode::FAILURE
}
