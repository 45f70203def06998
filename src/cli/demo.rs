//! `tidegate demo`: the verdict matrix live, with nothing configured and without root.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;

use crate::mode::demo::{self, DemoOptions};

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// One JSON object for programs instead of a page for people
    #[arg(long)]
    pub json: bool,
}

pub fn demo(args: &DemoArgs) -> ExitCode {
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    demo::run(DemoOptions { json: args.json, color })
}
