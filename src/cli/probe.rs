//! `tidegate probe`: for an orchestrator that asks by running a program in the sidecar's container.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::config::sidecar::USER;
use crate::mode::sidecar::probe::{State, ask};

#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// Whether it answers at all, ready or not
    #[arg(long)]
    live: bool,
    /// The number of the sidecar's user
    #[arg(long, value_name = "NUMBER", default_value_t = USER)]
    user: u32,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = super::duration)]
    patience: Duration,
}

pub fn probe(args: &ProbeArgs) -> ExitCode {
    match ask(args.user, args.patience) {
        Ok(State::Ready) => ExitCode::SUCCESS,
        Ok(State::Live) if args.live => ExitCode::SUCCESS,
        Ok(State::Live) => {
            eprintln!("tidegate probe: alive, and not ready");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidegate probe: no sidecar answers: {error}");
            ExitCode::FAILURE
        }
    }
}
