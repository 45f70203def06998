//! `tidegate demo`: the whole verdict matrix, live, on a machine with nothing configured and without root.
//!
//! A real gateway (this program's own `run`) stands between real clients and real servers in namespaces of their own;
//! each flow is asked about three times: what the client saw, what reached the server, what the gateway recorded.
//!
//! Fails closed: status 0 only if all three were as expected for every flow. A machine that cannot do it is told what
//! is missing.

pub mod client;
pub mod enforcer;
mod flows;
pub mod lab;
pub mod origin;
mod plan;
pub mod quic;
mod show;
pub mod tap;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::client::Trust;
use self::enforcer::{Ended, Enforcer, StartError};
use self::flows::{Flow, Record};
use self::lab::Lab;
use self::origin::Origins;
use self::plan::Named;
use self::quic::QuicOrigin;
use self::tap::Tap;
use crate::sys::netns::{self, Unavailable};

/// How to present what happened.
#[derive(Clone, Copy, Debug)]
pub struct DemoOptions {
    /// One JSON object instead of text.
    pub json: bool,
    /// Text with colours.
    pub color: bool,
}

/// Runs the demo and prints it on standard output. Status 0: everything was as expected; 1: it was not, or this
/// machine cannot show it.
///
/// To be called before the process has a second thread: without root it enters a user namespace.
pub fn run(options: DemoOptions) -> ExitCode {
    match demonstrate() {
        Ok(report) => {
            let text = if options.json { report.to_json() } else { show::page(&report, options.color) };
            let written = io::stdout().lock().write_all(text.as_bytes());
            ExitCode::from(u8::from(written.is_err() || !report.is_as_expected()))
        }
        Err(trouble) => {
            eprintln!("tidegate demo cannot run: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that the demo found out.
#[derive(Debug)]
struct Report {
    matrix: Vec<Flow>,
    refusals: Vec<Flow>,
    ended: Ended,
    took: Duration,
}

fn demonstrate() -> Result<Report, Trouble> {
    let begun = Instant::now();
    netns::enter_user_namespace()?;
    let lab = Lab::new()?;
    let names: Vec<&str> = Named::ALL.iter().filter_map(|named| named.name()).collect();
    let origins = Origins::start(&lab, &names).map_err(step("start servers"))?;
    let quic = QuicOrigin::start(&lab, &names).map_err(step("start a QUIC server"))?;
    let trust =
        |certificate| Trust::new(certificate, names.first().copied().unwrap_or_default()).map_err(io::Error::other);
    let trust = trust(origins.certificate()).and_then(|tls| Ok([tls, trust(quic.certificate())?]));
    let trust = trust.map_err(step("read its certificates"))?;
    let taps = Tap::at_server(&lab).and_then(|server| Ok((server, Tap::at_client(&lab)?)));
    let (server, client) = taps.map_err(step("count packets (AF_PACKET sockets)"))?;
    let configuration = Configuration::write(&plan::configuration());
    let configuration = configuration.map_err(step("write to the folder of temporary files (TMPDIR)"))?;
    let program = std::env::current_exe().map_err(step("find its own program (/proc/self/exe)"))?;
    let gateway = Enforcer::start(&program, &lab.gateway, &configuration.file)?;
    drop(configuration);

    let mut matrix = flows::make(&lab, &trust, plan::matrix()).map_err(step("open flows"))?;
    let mut refusals = flows::make(&lab, &trust, plan::refusals()).map_err(step("open flows"))?;

    // Before the rules go: what the clients still retransmit is then forwarded as on any router.
    let packets = server.packets(&lab, |_| true).and_then(|server| Ok((server, client.packets(&lab, |_| true)?)));
    let (at_server, at_client) = packets.map_err(step("count packets"))?;
    let ended = gateway.stop().map_err(step("end its gateway"))?;
    let records: Vec<_> = ended.lines.iter().filter_map(|line| Record::read(line)).collect();
    for flow in matrix.iter_mut().chain(&mut refusals) {
        flow.complete(&at_server, &at_client, &records);
    }
    Ok(Report { matrix, refusals, ended, took: begun.elapsed() })
}

impl Report {
    fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.matrix.iter().chain(&self.refusals)
    }

    fn is_as_expected(&self) -> bool {
        self.ended.status.success() && self.flows().all(Flow::is_as_expected)
    }

    fn to_json(&self) -> String {
        let flows: Vec<Value> = self.flows().map(Flow::to_json).collect();
        let right = self.flows().filter(|flow| flow.is_as_expected()).count();
        let summary = serde_json::json!({
            "flows": flows.len(),
            "as_expected": right,
            "gateway_status": self.ended.status.code(),
            "seconds": self.took.as_secs_f64(),
            "ok": self.is_as_expected(),
        });
        format!("{:#}\n", serde_json::json!({ "summary": summary, "flows": flows }))
    }
}

/// The gateway's configuration in a folder of its own, which goes when this does.
struct Configuration {
    folder: PathBuf,
    file: PathBuf,
}

impl Configuration {
    fn write(text: &str) -> io::Result<Self> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let folder = std::env::temp_dir().join(format!("tidegate-demo-{}-{now}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let configuration = Self { file: folder.join("tidegate.toml"), folder };
        std::fs::write(&configuration.file, text)?;
        Ok(configuration)
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Why there is nothing to show.
#[derive(Debug)]
enum Trouble {
    Machine(Unavailable),
    Gateway(StartError),
    Step(&'static str, io::Error),
}

fn step(what: &'static str) -> impl Fn(io::Error) -> Trouble {
    move |error| Trouble::Step(what, error)
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(unavailable) => unavailable.fmt(f),
            Self::Gateway(error) => write!(f, "its gateway did not start: {error}"),
            Self::Step(what, error) => write!(f, "could not {what}: {error}"),
        }
    }
}

impl From<Unavailable> for Trouble {
    fn from(unavailable: Unavailable) -> Self {
        Self::Machine(unavailable)
    }
}

impl From<StartError> for Trouble {
    fn from(error: StartError) -> Self {
        Self::Gateway(error)
    }
}
