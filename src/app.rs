//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::limits::Limits;
use crate::config::{self, Loaded};
use crate::firewall::{self, Capture, Ruleset};
use crate::mode::gateway::{self, Gateway, Listeners};
use crate::peek;
use crate::policy::snapshot::Snapshot;
use crate::proxy::{proof, relay, udp, worker};
use crate::sys::capture;
use crate::sys::limits::raise_descriptors;
use crate::telemetry::{Queue, Telemetry};

/// How the program ends, from the command line.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub drain: Duration,
    pub keep_rules: bool,
}

/// What could not be done, and why.
#[derive(Debug)]
pub struct Failure {
    what: &'static str,
    error: io::Error,
}

/// The running program.
#[derive(Debug)]
struct App {
    snapshot: Arc<ArcSwap<Snapshot>>,
    capture: Capture,
    /// The rules in force.
    rules: Option<Ruleset>,
    generation: u64,
}

/// Runs a gateway until it is told to end.
pub fn run(loaded: Loaded, path: &Path, ending: Ending) -> Result<(), Failure> {
    let (queue, writer) = Queue::new(loaded.limits.records);
    let telemetry = Telemetry::new(queue.clone());
    let writing = std::thread::Builder::new()
        .name("records".into())
        .spawn(move || writer.run(io::stdout()))
        .map_err(because("start the writer of records"))?;
    let result = serve(loaded, path, ending, &telemetry);
    queue.close();
    // A writer that panicked has written what it could.
    let _ = writing.join();
    say_what_happened(&telemetry);
    result
}

fn serve(loaded: Loaded, path: &Path, ending: Ending, telemetry: &Telemetry) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let settings = settings(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let listeners = Listeners::open(settings.workers).map_err(because("open transparent listeners"))?;
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(1))),
        capture: Capture {
            udp: Some(listeners.udp),
            dns_udp: Some(listeners.dns.udp),
            dns_tcp: Some(listeners.dns.tcp),
            ..Capture::tcp(listeners.tcp)
        },
        rules: None,
        generation: 1,
    };
    app.apply(&loaded)?;
    for warning in capture::warnings() {
        tracing::warn!("{warning}");
    }
    let gateway =
        Gateway::start(listeners, &settings, &app.snapshot, telemetry).map_err(because("start the workers"))?;
    eprintln!("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    app.follow(signals, path);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Live flows need the rules that bring their packets here: they go last.
    gateway.stop(ending.drain);
    if ending.keep_rules { Ok(()) } else { capture::remove().map_err(because("take the rules away")) }
}

/// The signals that `run` obeys, kept from the moment this is made.
#[derive(Debug)]
struct Signals {
    runtime: Runtime,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let hangup = signal(SignalKind::hangup())?;
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        drop(inside);
        Ok(Self { runtime, hangup, terminate, interrupt })
    }
}

impl App {
    /// Puts a checked configuration in force.
    fn apply(&mut self, loaded: &Loaded) -> Result<(), Failure> {
        let next = loaded.snapshot(self.generation);
        let ruleset = firewall::render(&next, &self.capture);
        // First who judges, then what is captured: nothing is captured that nobody would judge.
        self.snapshot.store(Arc::new(next));
        self.generation += 1;
        match &self.rules {
            None => capture::install(&ruleset),
            Some(standing) => capture::update(standing, &ruleset),
        }
        .map_err(because("put the rules in place"))?;
        self.rules = Some(ruleset);
        Ok(())
    }

    /// Reloads at SIGHUP; returns at SIGTERM or SIGINT.
    fn follow(&mut self, signals: Signals, path: &Path) {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = hangup.recv() => self.reload(path),
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                }
            }
        });
    }

    fn reload(&mut self, path: &Path) {
        match config::load(path) {
            Ok(loaded) => match self.apply(&loaded) {
                Ok(()) => tracing::info!(generation = self.generation, "reloaded"),
                Err(failure) => tracing::error!("the new configuration is not in force: {failure}"),
            },
            Err(mistakes) => {
                tracing::error!("the configuration has mistakes and is not in force:\n{mistakes}");
            }
        }
    }
}

fn settings(limits: &Limits) -> io::Result<gateway::Settings> {
    let descriptors = usize::try_from(raise_descriptors()?).unwrap_or(usize::MAX);
    let possible = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_OF_A_FLOW;
    if possible < limits.flows {
        tracing::warn!(flows = possible, "the limit of open descriptors allows fewer flows than limits.flows");
    }
    let workers = match limits.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        number => number,
    };
    Ok(gateway::Settings {
        workers,
        worker: worker::Settings {
            flows: limits.flows.min(possible),
            peek: peek::tcp::Limits { held: limits.held_bytes, fingerprints: true },
            dial_from: worker::DialFrom::Client,
            proof: proof::Settings::new(resolvers()),
        },
        relay: relay::Settings { idle: limits.idle, connect: CONNECT },
        dns: limits.dns.dns.clone(),
        // Each worker has a table for each family.
        udp: udp::Settings { flows: (limits.flows / workers).max(1), ..udp::Settings::default() },
        bindings: limits.dns.bindings.clone(),
    })
}

/// This host's own resolvers; without the file, none.
fn resolvers() -> Vec<std::net::SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    crate::dns::lookup::resolvers_of_host(&text)
}

/// A last line for the operator: what was counted, so that no limit is passed in silence.
fn say_what_happened(telemetry: &Telemetry) {
    let counters: Vec<_> = telemetry.counters().all().into_iter().filter(|(_, count)| *count > 0).collect();
    let counters: Vec<_> = counters.iter().map(|(name, count)| format!("{name}={count}")).collect();
    tracing::info!(records_dropped = telemetry.dropped(), "ended: {}", counters.join(" "));
}

fn because(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure { what, error }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "could not {}: {}", self.what, self.error)
    }
}

impl std::error::Error for Failure {}

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// Its two sockets.
const DESCRIPTORS_OF_A_FLOW: usize = 2;
/// For listeners, netlink, logs, pipes in flight and flows that are being refused.
const RESERVED_DESCRIPTORS: usize = 512;
