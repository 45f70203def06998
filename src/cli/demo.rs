//! `tidegate demo`: the verdict matrix live, with nothing configured and without root.

use std::process::ExitCode;

use clap::Args;

use super::is_coloured;
use crate::mode::demo::{self, DemoOptions};

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// One JSON object for programs instead of a page for people
    #[arg(long)]
    pub json: bool,
}

pub fn demo(args: &DemoArgs) -> ExitCode {
    let color = is_coloured(&std::io::stdout());
    demo::run(DemoOptions { json: args.json, color })
}
