//! `tidegate status` and `tidegate reload`: a gateway that runs, over its local socket.

mod table;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{CONFIGURATION, USAGE, say};
use crate::admin::client::{Answer, ask};
use crate::admin::status::Status;
use crate::config;
use crate::config::telemetry::default_socket;

#[derive(Clone, Debug, Args)]
pub struct SocketArg {
    /// The configuration file of the gateway: its `telemetry.socket` is asked
    #[arg(long, value_name = "FILE", default_value = CONFIGURATION)]
    config: PathBuf,
    /// The socket of the gateway, whatever its configuration says
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    socket: SocketArg,
    /// One JSON object, on one line
    #[arg(long)]
    json: bool,
    /// Again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How many live flows are shown, those that have moved the most octets
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    flows: usize,
}

pub fn status(args: &StatusArgs) -> ExitCode {
    let socket = match args.socket.path() {
        Ok(socket) => socket,
        Err(status) => return status,
    };
    loop {
        let asked = ask(&socket, "GET", &format!("/status?flows={}", args.flows), PATIENCE);
        let shown = asked.and_then(understood).and_then(|answer| show(&answer, args));
        match shown {
            Ok(()) if args.watch => std::thread::sleep(SECOND),
            Ok(()) => return ExitCode::SUCCESS,
            // Whoever read this has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tidegate status: {}: {error}", socket.display());
                return ExitCode::FAILURE;
            }
        }
    }
}

pub fn reload(args: &SocketArg) -> ExitCode {
    let socket = match args.path() {
        Ok(socket) => socket,
        Err(status) => return status,
    };
    match ask(&socket, "POST", "/reload", PATIENCE_TO_RELOAD) {
        Ok(Answer { status: 200, body }) => {
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            say(format_args!("in force, generation {}\n", answer["generation"]))
        }
        Ok(Answer { body, .. }) => {
            eprintln!("tidegate reload: not in force: {}", String::from_utf8_lossy(&body).trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidegate reload: {}: {error}", socket.display());
            ExitCode::FAILURE
        }
    }
}

impl SocketArg {
    fn path(&self) -> Result<PathBuf, ExitCode> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let Some(telemetry) = config::telemetry_of(&self.config) else {
            // Nobody has to have one, but whoever names one means it.
            if self.config != Path::new(CONFIGURATION) && !self.config.exists() {
                eprintln!("tidegate: there is no configuration {}", self.config.display());
                return Err(ExitCode::from(USAGE));
            }
            // One that cannot be read here, or says nothing of it, leaves the usual place.
            return Ok(default_socket());
        };
        telemetry.socket.ok_or_else(|| {
            eprintln!("tidegate: `telemetry.socket` is \"off\" in {}: --socket PATH", self.config.display());
            ExitCode::from(USAGE)
        })
    }
}

fn understood(answer: Answer) -> io::Result<Answer> {
    if answer.status == 200 {
        return Ok(answer);
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer.body).trim_end().to_owned()))
}

fn show(answer: &Answer, args: &StatusArgs) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        out.write_all(&answer.body)?;
        return writeln!(out);
    }
    let status: Status = serde_json::from_slice(&answer.body)?;
    if args.watch && out.is_terminal() {
        // To the corner, and nothing below.
        write!(out, "\x1b[H\x1b[2J")?;
    }
    table::write(&status, &mut out)?;
    out.flush()
}

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// Lists of which there is no copy yet may have to be fetched.
const PATIENCE_TO_RELOAD: Duration = Duration::from_secs(180);
