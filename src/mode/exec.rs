//! `tidegate exec`: one command behind tidegate, as an ordinary user, with nothing installed.
//!
//! ```text
//!   the host's namespace                  the command's: user, network, mount, ipc, pid
//!   tidegate <---- sockets passed out ---- builder, then init (pid 1)
//!     | judges, dials, answers DNS           | starts the command in a user namespace below, and reaps
//!     v                                      v
//!   servers, the host's resolver           command -> lo -> TPROXY -> the sockets that tidegate serves
//! ```
//!
//! The command's only link is `lo`; whatever it sends past its own loopback is captured, on every port. It has no right
//! over its network: not to the rules, the routes or raw sockets. Its own are its terminal, its signals (it stands in
//! tidegate's process group), its streams and its exit status.
//!
//! Held back besides: descriptors above 2, and standard streams that are sockets of the host's network; privileges by
//! setuid files (no_new_privs), the host's processes (not seen, not signalled, not traced; the process group by Landlock,
//! where the kernel has its scopes), abstract sockets, System V IPC, the path sockets of the host's programs, sockets of
//! families that know no namespace, io_uring, keys that the kernel has the host answer, and typing into the terminal.
//!
//! **Not held back.** Files and devices: the command reads and writes what its user may, also what other programs run
//! later (shell start files, crontabs where a user may write them, keys, list files), and cgroups that are its user's.
//! What listens at a path socket that is let through acts outside. Path sockets that are made after the start outside of
//! /run/user, and named pipes. Whatever listens on an address of the host other than loopback, if the policy allows that
//! address. Run by root, the command is root over files and devices, and over settings in /proc/sys by which the kernel
//! starts programs outside; only its network is taken away. What may be told by timing, load or the terminal.
//!
//! Fails closed: a step that cannot be done ends the start before the command's first instruction; when tidegate is
//! killed its listeners go with it, and the rules inside refuse what they captured.

mod hiding;
mod identity;
mod inside;
mod passing;
mod ports;
pub mod reach;
mod replacing;
mod signals;
mod sockets;
mod streams;
pub mod tally;
pub mod world;

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use self::hiding::Hiding;
use self::identity::Identity;
use self::inside::{ENTERED, FAILED, GO, Lines, NOTE, Plan, SIGNAL, STATUS, STILL, STOPPED};
use self::passing::Passed;
use self::ports::Ports;
use self::signals::{Signals, Terminal};
use self::tally::Tally;
use super::gateway::{self, Gateway};
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::sys::channel::{Channel, Message};
use crate::sys::fork::fork;
use crate::sys::limits::raise_descriptors;
use crate::sys::netns::Unavailable;
use crate::telemetry::{Queue, Telemetry};

/// What to run, and how.
#[derive(Debug)]
pub struct Settings {
    /// The program, looked for as a shell does, and its arguments; at least one.
    pub command: Vec<OsString>,
    /// Who judges its flows: [`world::OWN_V4`] and [`world::OWN_V6`] are their source.
    pub snapshot: Snapshot,
    pub gateway: gateway::Settings,
    /// Records that wait to be written; more are dropped and counted.
    pub records_waiting: usize,
    /// What stands as resolvers in the command's /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// Where records go, as JSON lines.
    pub records: Option<File>,
    /// Say each block on standard error.
    pub notices: bool,
    /// Ports of the command's loopback that the host's loopback reaches.
    pub expose: Vec<u16>,
    /// Ports of the host's loopback that the command's reaches.
    pub host_ports: Vec<u16>,
    /// Path sockets of the host that the command may use.
    pub sockets: Vec<PathBuf>,
    /// How long flows may go on once the command has ended: what it sent last is still on its way.
    pub drain: Duration,
    pub beside: Beside,
}

/// Started beside the command, once there may be threads, with what judges its flows.
pub struct Beside(pub Box<Start>);

type Start = dyn FnOnce(Arc<ArcSwap<Snapshot>>, Telemetry) -> io::Result<()>;

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    /// The command's exit status; 128 and the signal if one ended it.
    pub status: u8,
    /// With whom it spoke.
    pub tally: Tally,
    /// Records that found no room.
    pub records_dropped: u64,
}

/// Why the command was not run.
#[derive(Debug)]
pub enum Failure {
    Namespaces(Unavailable),
    /// The program cannot be run: what a shell calls 126 and 127.
    Program(io::Error),
    Step(&'static str, io::Error),
}

/// Runs the command to its end. The calling process must have one thread.
pub fn run(settings: Settings) -> Result<Outcome, Failure> {
    streams::check().map_err(step("pass the standard streams on"))?;
    let signals = Signals::hold().map_err(step("hold signals"))?;
    let terminal = Terminal::remember();
    let exposed = ports::open_exposed(&settings.expose).map_err(step("listen on a port to expose"))?;
    let plan = plan(&settings, signals.mask)?;
    // The first process inside becomes a child of this one when the builder has ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| step("adopt")(error.into()))?;
    let (near, far) = lines().map_err(step("open a channel"))?;
    let ours = Cell::new(Some((near, exposed)));
    let builder = fork(|| {
        // In the copy: tidegate's end of a line is closed when tidegate is gone, and its ports with it.
        drop(ours.take());
        inside::build(&plan, &far)
    })
    .map_err(step("start a process"))?;
    drop(far);
    let Some((near, exposed)) = ours.take() else { return Err(step("go on")(io::ErrorKind::BrokenPipe.into())) };
    // The command has been given the limit that it is used to.
    raise_descriptors().map_err(step("read the limit of descriptors"))?;
    let enclosed = admit(&near.control, builder)?;
    let running = Running::start(settings, enclosed, near, exposed)?;
    let outcome = running.finish(&signals);
    terminal.restore();
    outcome
}

fn plan(settings: &Settings, mask: SigSet) -> Result<Plan, Failure> {
    let environment = hiding::environment(std::env::vars_os(), &settings.sockets);
    let environment = environment.into_iter().map(|(name, value)| {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        entry
    });
    Ok(Plan {
        arguments: inside::c_strings(settings.command.iter().cloned()).map_err(step("read the command"))?,
        environment: inside::c_strings(environment).map_err(step("read the environment"))?,
        replacements: replacing::gather(&settings.nameservers),
        hiding: Hiding::gather(&settings.sockets).map_err(step("find a socket to allow"))?,
        ipv6: world::ipv6_of_host(),
        host_ports: settings.host_ports.clone(),
        mask,
        inner: Identity::inner().map_err(step("read who this is"))?,
    })
}

fn lines() -> io::Result<(Lines, Lines)> {
    let (control, far_control) = Channel::pair()?;
    let (sockets, far_sockets) = Channel::pair()?;
    Ok((Lines { control, sockets }, Lines { control: far_control, sockets: far_sockets }))
}

/// What the builder leaves behind.
struct Enclosed {
    passed: Passed,
    init: Pid,
}

/// Gives the builder its identity, and waits for its work.
fn admit(control: &Channel, builder: Pid) -> Result<Enclosed, Failure> {
    let entered = next(control).map_err(|error| Failure::Namespaces(Unavailable::user(error)))?;
    if entered.octets != ENTERED {
        return Err(Failure::Namespaces(Unavailable::user(io::ErrorKind::InvalidData.into())));
    }
    let identity = Identity::outer().map_err(step("read who this is"))?;
    identity.write_for(&entered).map_err(|error| Failure::Namespaces(Unavailable::user(error)))?;
    control.send(GO, &[]).map_err(step("go on"))?;
    let sockets = control.receive().and_then(|message| message.ok_or_else(|| io::ErrorKind::BrokenPipe.into()));
    let sockets = sockets.map_err(step("make the command's network"))?;
    if let Some(error) = failure(&sockets.octets) {
        return Err(Failure::Namespaces(Unavailable::network(error)));
    }
    let passed = passing::take(sockets).map_err(step("take the sockets over"))?;
    let init = next(control).map_err(step("start the first process inside"))?;
    let init = init.octets.first_chunk().map(|pid| Pid::from_raw(i32::from_ne_bytes(*pid)));
    let init = init.ok_or_else(|| step("start the first process inside")(io::ErrorKind::InvalidData.into()))?;
    // It has nothing more to do.
    let _ = waitpid(builder, None);
    Ok(Enclosed { passed, init })
}

fn next(control: &Channel) -> io::Result<Message> {
    let message = control.receive()?.ok_or(io::ErrorKind::BrokenPipe)?;
    match failure(&message.octets) {
        Some(error) => Err(error),
        None => Ok(message),
    }
}

/// The error that a process inside tells of.
fn failure(octets: &[u8]) -> Option<io::Error> {
    let (errno, text) = octets.strip_prefix(&[FAILED])?.split_first_chunk()?;
    let errno = i32::from_ne_bytes(*errno);
    let text = String::from_utf8_lossy(text).into_owned();
    Some(if errno == 0 { io::Error::other(text) } else { io::Error::from_raw_os_error(errno) })
}

/// The command and those who serve it.
struct Running {
    control: Channel,
    init: Pid,
    gateway: Gateway,
    queue: Queue,
    telemetry: Telemetry,
    tallying: JoinHandle<Tally>,
    drain: Duration,
    /// Open for as long as the command runs, though nobody asks for sockets.
    _ports: Option<Ports>,
}

impl Running {
    /// Starts who serves, then the command.
    fn start(
        settings: Settings,
        enclosed: Enclosed,
        lines: Lines,
        exposed: Vec<std::net::TcpListener>,
    ) -> Result<Self, Failure> {
        let (queue, writer) = Queue::of_records(settings.records_waiting);
        let telemetry = Telemetry::new(queue.clone());
        let tally = Tally::new(settings.records, settings.notices);
        let tallying = std::thread::Builder::new()
            .name("records".into())
            .spawn(move || tally.take(writer))
            .map_err(step("start the writer of records"))?;
        let snapshot = Arc::new(ArcSwap::from_pointee(settings.snapshot));
        let bindings = Arc::new(Bindings::new(settings.gateway.bindings.clone()));
        let listeners = enclosed.passed.listeners;
        let gateway = Gateway::start(listeners, &settings.gateway, bindings, &snapshot, &telemetry)
            .map_err(step("start the worker"))?;
        (settings.beside.0)(snapshot, telemetry.clone()).map_err(step("keep lists as new as their sources"))?;
        let ports = Ports::new(enclosed.passed.host_ports, exposed, lines.sockets);
        let ports = ports.serve().map_err(step("serve ports"))?;
        // Where init has failed, it has said why.
        let _ = lines.control.send(GO, &[]);
        Ok(Self {
            control: lines.control,
            init: enclosed.init,
            gateway,
            queue,
            telemetry,
            tallying,
            drain: settings.drain,
            _ports: ports,
        })
    }

    fn finish(self, signals: &Signals) -> Result<Outcome, Failure> {
        let status = self.follow(signals);
        // With init every process of the command's world has ended.
        let _ = waitpid(self.init, None);
        // What was sent last may not have been taken in yet.
        std::thread::sleep(SETTLE);
        self.gateway.stop(self.drain);
        self.queue.close();
        let tally = self.tallying.join().unwrap_or_default();
        Ok(Outcome { status: status?, tally, records_dropped: self.telemetry.dropped() })
    }

    /// Passes signals on until the command has ended.
    fn follow(&self, signals: &Signals) -> Result<u8, Failure> {
        loop {
            let sources = [signals.descriptor.as_fd(), self.control.as_fd()];
            let mut polled = sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(step("wait for the command")(error.into())),
            }
            let [signalled, said] = [0, 1].map(|place| polled.get(place).is_some_and(|one| !one.revents().is_empty()));
            if signalled {
                while let Some(signal) = signals.next() {
                    let _ = self.control.send(&[SIGNAL, signal], &[]);
                }
            }
            if said && let Some(status) = self.listen()? {
                return Ok(status);
            }
        }
    }

    fn listen(&self) -> Result<Option<u8>, Failure> {
        let Some(message) = self.control.receive().map_err(step("hear of the command"))? else {
            // Somebody killed init, and with it all that was inside.
            return Ok(Some(128 + 9));
        };
        if let Some(error) = failure(&message.octets) {
            return Err(Failure::Program(error));
        }
        match message.octets.split_first() {
            Some((&STATUS, status)) => {
                let status = status.first_chunk().map_or(1, |status| i32::from_ne_bytes(*status));
                Ok(Some(u8::try_from(status).unwrap_or(1)))
            }
            Some((&NOTE, text)) => {
                let _ = writeln!(io::stderr(), "tidegate exec: {}", String::from_utf8_lossy(text));
                Ok(None)
            }
            // It may go on again: a signal from the terminal stops and continues both at once.
            Some((&STOPPED, _)) => {
                let _ = self.control.send(&[STOPPED], &[]);
                Ok(None)
            }
            Some((&STILL, _)) => {
                signals::stop_like_the_command();
                let _ = self.control.send(&[SIGNAL, signals::CONTINUE], &[]);
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

fn step(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Step(what, error)
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespaces(unavailable) => write!(f, "{unavailable}"),
            Self::Program(error) => write!(f, "cannot run the command: {error}"),
            Self::Step(what, error) => write!(f, "could not {what}: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

/// How long what the command sent last may take from the kernel's queues to the worker.
const SETTLE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_inside_keeps_its_reason() {
        let told = [&[FAILED], &libc::EPERM.to_ne_bytes()[..], b"Operation not permitted"].concat();
        assert_eq!(failure(&told).unwrap().raw_os_error(), Some(libc::EPERM));
        let told = [&[FAILED], &0_i32.to_ne_bytes()[..], b"cannot cover /run/x"].concat();
        assert_eq!(failure(&told).unwrap().to_string(), "cannot cover /run/x");
        assert!(failure(GO).is_none());
    }
}
