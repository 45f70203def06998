//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

mod clock;
mod documents;
mod force;
mod geoip;
mod hand_over;
pub(crate) mod lists;
mod notices;
mod orders;
mod outlook;
mod reach;
mod rules;
mod scene;
mod settings;
mod sidecar;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::view::View;
use crate::admin::{self, Admin, Order};
use crate::config::{self, Loaded, Mistakes};
use crate::firewall::{Capture, Ruleset};
use crate::mode;
use crate::mode::gateway::hand_over::Spare;
use crate::mode::gateway::kernel;
use crate::mode::gateway::{Crew, Gateway, Listeners};
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::sys::activation;
use crate::sys::capture::{self, Watch};
use crate::sys::channel::Door;
use crate::sys::privileges;
use crate::sys::readable::readable;
use crate::telemetry::writers::Writers;
use crate::telemetry::{Happened, Telemetry, messages};

use clock::Clock;
use documents::Watched;
use hand_over::Taken;
use lists::Keeper;
use notices::Notices;
use orders::Asked;
pub use rules::install_rules;
use rules::{Listening, capture_of};
use scene::{Ear, End, Scene, entered};
use sidecar::{Probes, Sidecar};
use signals::Signals;

/// How the program ends, from the command line.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub drain: Duration,
    pub keep_rules: bool,
}

/// Whether the program begins in the place of another that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    Alone,
    /// Of the one that serves this network namespace, if any does.
    TakeOver,
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
    /// The configuration in force, with the lists that became others since it was read.
    loaded: Loaded,
    snapshot: Arc<ArcSwap<Snapshot>>,
    capture: Capture,
    sidecar: Option<Sidecar>,
    /// The rules in force.
    rules: Option<Ruleset>,
    watch: Option<Watch>,
    /// At the last look.
    intact: bool,
    /// When the kernel was told of all entries that end, or later.
    told: Clock,
    view: Option<Arc<View>>,
    notices: Notices,
    /// The first rules take the place of those of another tidegate that runs.
    takes_over: bool,
    bindings: Arc<Bindings>,
    /// Who judges live flows again.
    rechecks: Option<watch::Sender<Option<Arc<Snapshot>>>>,
    telemetry: Telemetry,
    generation: u64,
}

/// Runs a gateway or a sidecar until it is told to end.
pub fn run(loaded: Loaded, path: &Path, beginning: Beginning, ending: Ending) -> Result<(), Failure> {
    let sidecar = loaded.sidecar.as_ref().map(Sidecar::enter).transpose()?;
    let without_rights = sidecar.is_some();
    // Before the first thread, for each thread has its own.
    reach::confine(&loaded, path);
    let begin = if without_rights { give_up_rights } else { || () };
    messages::start(begin);
    let writers = Writers::start(&loaded.telemetry.sinks, &loaded.enforcer, begin)
        .map_err(|error| because("write records")(io::Error::other(error)))?;
    let telemetry = Telemetry::with_sinks(writers.queues(), loaded.telemetry.allowed, loaded.enforcer.clone());
    let result = serve(loaded, sidecar, path, (beginning, ending), &telemetry);
    writers.finish(LAST_RECORDS);
    say_what_happened(&telemetry);
    result
}

/// The kernel's packet log has one reader, and refuses others as it refuses those who lack the right.
fn unheard(error: io::Error) -> Failure {
    let refused = error.kind() == io::ErrorKind::PermissionDenied && privileges::lacking().is_empty();
    let another = "another tidegate serves this network namespace: end it, or take its place by --take-over";
    because("listen to what the kernel judges")(if refused { io::Error::other(another) } else { error })
}

/// Of the thread that calls.
fn give_up_rights() {
    if let Err(error) = privileges::keep_only(&[]) {
        tracing::error!(%error, "a thread keeps its capabilities");
    }
}

/// Those that the service manager holds, or new ones for so many workers.
fn listen(crew: &Crew, is_sidecar: bool) -> Result<Listeners, Failure> {
    let opened = because("open transparent listeners");
    if is_sidecar {
        return mode::sidecar::open(crew).map_err(opened);
    }
    let held = activation::inherited().and_then(|sockets| Listeners::held(sockets, crew));
    match held.map_err(because("take the listeners that the service manager holds"))? {
        Some(listeners) => Ok(listeners),
        None => Listeners::open(crew).map_err(opened),
    }
}

fn serve(
    loaded: Loaded,
    sidecar: Option<Sidecar>,
    path: &Path,
    (beginning, ending): (Beginning, Ending),
    telemetry: &Telemetry,
) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let mut settings = settings::of(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let bindings = Arc::new(Bindings::new(settings.bindings.clone()));
    let mut taken = take_over(beginning, sidecar.is_some())?;
    let listeners = match taken.as_mut().and_then(|taken| taken.listeners.take()) {
        Some(listeners) => listeners,
        None => listen(&settings.crew(), sidecar.is_some())?,
    };
    (settings.workers, settings.dns.workers) = (listeners.crew().all, listeners.crew().asked);
    if let Some(sidecar) = &sidecar {
        settings = sidecar.settings.adapt(settings);
    }
    let spare = Spare::of(&listeners).map_err(because("keep the listeners for who takes over"))?;
    let generation = taken.as_ref().map_or(1, |taken| taken.generation);
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(generation))),
        capture: capture_of(
            &loaded,
            &Listening {
                tcp: listeners.tcp,
                udp: listeners.udp,
                dns_udp: listeners.dns.udp,
                dns_tcp: listeners.dns.tcp,
            },
        ),
        sidecar,
        rules: None,
        watch: None,
        intact: true,
        told: Clock::now(),
        view: None,
        notices: Notices::default(),
        takes_over: taken.is_some(),
        bindings: bindings.clone(),
        rechecks: None,
        telemetry: telemetry.clone(),
        generation,
        loaded: loaded.clone(),
    };
    let log = match &mut taken {
        None => kernel::listen(),
        Some(taken) => {
            hand_over::remember(&bindings, std::mem::take(&mut taken.bound));
            taken.quieten().and_then(|()| taken.log.take().ok_or_else(|| io::ErrorKind::InvalidData.into()))
        }
    };
    let ear = log.and_then(|log| Ear::open(log, &app, telemetry)).map_err(unheard)?;
    app.apply(loaded)?;
    match &app.sidecar {
        Some(sidecar) => sidecar.settle()?,
        None => capture::warnings(settings.worker.flows).iter().for_each(|warning| tracing::warn!("{warning}")),
    }
    let judging = app.sidecar.as_ref().map_or(&app.snapshot, |sidecar| &sidecar.judging);
    let gateway = Gateway::start(listeners, &settings, bindings, judging, telemetry);
    let gateway = gateway.map_err(because("start the workers"))?;
    app.rechecks = Some(gateway.rechecks());
    if let Some(taken) = taken {
        taken.done().map_err(because("take over"))?;
    }
    // Whoever shares the namespace of a sidecar is whom it watches.
    let door = if app.sidecar.is_none() { open_door() } else { None };
    let view = Arc::new(outlook::view(&app, &gateway, &settings, telemetry));
    app.view = Some(view.clone());
    let (to, orders) = mpsc::channel(1);
    let shown = admin::Settings { metrics: app.loaded.telemetry.metrics, socket: app.loaded.telemetry.socket.clone() };
    let begin = if app.sidecar.is_some() { give_up_rights } else { || () };
    let admin = Admin::start(shown, view, to, begin).map_err(because("serve metrics and status"))?;
    telemetry.event(telemetry.happened(Happened::Started).generation(app.snapshot.load().generation));
    messages::say("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if app.sidecar.is_none() {
        spare.keep();
    }
    let mut scene = Scene { gateway, ear, spare: Some(spare), door };
    let end = app.follow(signals, path, orders, &mut scene)?;
    // Who takes over is looked at by the same address and socket.
    drop(admin);
    app.stop(scene, end, ending)
}

/// Who is succeeded, if anybody is.
fn take_over(beginning: Beginning, is_sidecar: bool) -> Result<Option<Taken>, Failure> {
    match beginning {
        Beginning::Alone => Ok(None),
        // At its door could stand the application.
        Beginning::TakeOver if is_sidecar => {
            let why = io::Error::new(io::ErrorKind::Unsupported, "a sidecar hands nothing over: start it anew");
            Err(because("take over")(why))
        }
        Beginning::TakeOver => Taken::ask().map_err(because("take over from the tidegate that runs")),
    }
}

fn open_door() -> Option<Door> {
    match Door::open(hand_over::NAME) {
        Ok(door) => Some(door),
        Err(error) => {
            tracing::warn!(%error, "nobody will be able to take over");
            None
        }
    }
}

impl App {
    /// Reloads at SIGHUP and when the configuration's files change, and takes lists that became others; returns at
    /// SIGTERM or SIGINT, and when another has taken over and nothing lives here any more. An error: a worker has ended,
    /// and what its listeners held is lost. The rules stay and drop what nobody takes.
    fn follow(
        &mut self,
        signals: Signals,
        path: &Path,
        mut orders: mpsc::Receiver<Order>,
        scene: &mut Scene,
    ) -> Result<End, Failure> {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        let (mut to, mut fresh) = mpsc::channel(1);
        let end = runtime.block_on(async {
            let mut door = scene.door.take().and_then(|door| readable(door.0).ok());
            let mut keeper = Keeper::start(&self.loaded, |_| true, &self.telemetry, &to);
            // Reading may take long, and fetch: an order to end does not wait for it.
            let mut reading = JoinSet::new();
            let mut again = false;
            let probes = Probes::open(self.sidecar.is_some());
            let mut waiting = Asked::default();
            let mut round = tokio::time::interval(ROUND);
            round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut watched = Watched::new(&self.loaded);
            let end = loop {
                let asked = tokio::select! {
                    _ = round.tick() => match scene.gateway.is_whole() {
                        true => {
                            self.keep_time();
                            self.mend();
                            self.notices.look(&self.telemetry);
                            false
                        }
                        false => break Err(because("go on")(io::Error::other("a worker has ended"))),
                    },
                    () = watched.changed() => true,
                    _ = hangup.recv() => true,
                    Some(Order::Reload(answer)) = orders.recv() => {
                        waiting.add(answer);
                        true
                    }
                    Some(read) = reading.join_next() => {
                        let outcome = self.reload(read);
                        waiting.answer(&outcome);
                        if outcome.is_ok() {
                            watched = Watched::new(&self.loaded);
                            // What is still on its way belongs to the configuration before.
                            (to, fresh) = mpsc::channel(1);
                            keeper = Keeper::start(&self.loaded, |_| true, &self.telemetry, &to);
                        }
                        std::mem::take(&mut again)
                    }
                    Some(fresh) = fresh.recv() => {
                        self.take(fresh);
                        false
                    }
                    channel = entered(&door) => match self.hand_over(&channel, scene) {
                        Ok(()) => {
                            // The name is free for the new one's own door before it hears that all is done.
                            drop(door.take());
                            // Whether or not it hears of it, it serves.
                            let _ = hand_over::say_done(&channel);
                            break Ok(End::HandedOver);
                        }
                        Err(error) => {
                            tracing::error!(%error, "nobody took over, and this one goes on");
                            false
                        }
                    },
                    Some(asker) = probes.next() => {
                        sidecar::answer(&asker, self.intact && scene.gateway.is_whole());
                        false
                    }
                    _ = terminate.recv() => break Ok(End::Asked),
                    _ = interrupt.recv() => break Ok(End::Asked),
                };
                match reading.is_empty() {
                    true if asked => {
                        waiting.begin();
                        read_beside(&mut reading, path);
                    }
                    _ => again |= asked,
                }
            };
            drop(keeper);
            reading.detach_all();
            if let Ok(End::HandedOver) = end {
                scene.gateway.leave();
                let mut look = tokio::time::interval(Duration::from_millis(100));
                while !scene.gateway.has_ended() {
                    tokio::select! {
                        _ = look.tick() => {}
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                    }
                }
            }
            end
        });
        // Whatever is being read or fetched is not waited for.
        runtime.shutdown_background();
        end
    }
}

fn read_beside(reading: &mut JoinSet<Result<Loaded, Mistakes>>, path: &Path) {
    let path = path.to_owned();
    reading.spawn_blocking(move || config::load(&path));
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

/// How often rules and routes are looked after.
const ROUND: Duration = Duration::from_secs(2);
/// How long sinks may take for what waits at the end.
const LAST_RECORDS: Duration = Duration::from_secs(3);
