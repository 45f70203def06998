//! The two processes inside. The first makes the namespaces and the network, passes the sockets out and is gone; the
//! second is the first of the pid namespace: it hides what is to be hidden, starts the command, and ends with it.
//!
//! ```text
//! tidegate ── fork ── builder: user, network, mount, ipc and pid namespace; network; sockets passed out
//!                        └── fork ── init (pid 1): mounts; reaps; ends when the command does, and all with it
//!                                       └── fork ── command: a user namespace below, seccomp, no descriptors, exec
//! ```
//!
//! Fails closed: a step that cannot be done ends the start, before the command's first instruction.

use std::ffi::{CString, OsString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use super::hiding::{self, Hiding};
use super::identity::{self, Identity};
use super::replacing::{self, Replacement};
use super::{passing, world};
use crate::sys::channel::{Channel, Message};
use crate::sys::fork::{become_program, close_from_on_exec, fork, restore_signals};
use crate::sys::{landlock, seccomp};

/// All that is decided outside.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) replacements: Vec<Replacement>,
    pub(super) hiding: Hiding,
    pub(super) ipv6: Vec<IpNet>,
    pub(super) host_ports: Vec<u16>,
    /// The signals that were blocked when tidegate was started.
    pub(super) mask: SigSet,
    pub(super) inner: Identity,
}

/// The conversations with tidegate.
#[derive(Debug)]
pub(super) struct Lines {
    /// In order: [`ENTERED`], `GO` back; the sockets; init's pid; then GO again, what init has to tell, and the command's
    /// end.
    pub(super) control: Channel,
    /// A request for a socket each, and the socket.
    pub(super) sockets: Channel,
}

/// "My namespaces are made", and "I may run the command".
pub(super) const ENTERED: &[u8] = b"entered";
pub(super) const GO: &[u8] = b"go";
/// What messages of init begin with.
pub(super) const FAILED: u8 = b'!';
pub(super) const NOTE: u8 = b'?';
pub(super) const STATUS: u8 = b'=';
pub(super) const SIGNAL: u8 = b's';
/// "The command has been stopped"; "is it still?" back; and "it is".
pub(super) const STOPPED: u8 = b'z';
pub(super) const STILL: u8 = b'Z';

/// The builder's work.
pub(super) fn build(plan: &Plan, lines: &Lines) -> u8 {
    match try_build(plan, lines) {
        Ok(()) => 0,
        Err(error) => tell_failure(&lines.control, &error),
    }
}

fn try_build(plan: &Plan, lines: &Lines) -> io::Result<()> {
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(flags)?;
    lines.control.send(ENTERED, &[identity::own_folder()?.as_fd()])?;
    expect_go(&lines.control)?;
    let listeners = world::build(&plan.ipv6)?;
    let host_ports = open_host_ports(&plan.host_ports)?;
    passing::pass(&lines.control, listeners, host_ports)?;
    let init = fork(|| init(plan, lines))?;
    lines.control.send(&init.as_raw().to_ne_bytes(), &[])
}

fn open_host_ports(ports: &[u16]) -> io::Result<Vec<TcpListener>> {
    let mut opened = Vec::new();
    for port in ports {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            match TcpListener::bind((address, *port)) {
                Err(error) if address.is_ipv6() && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                socket => opened.push(socket?),
            }
        }
    }
    Ok(opened)
}

/// The work of the pid namespace's first process.
fn init(plan: &Plan, lines: &Lines) -> u8 {
    match try_init(plan, lines) {
        Ok(()) => 0,
        Err(error) => tell_failure(&lines.control, &error),
    }
}

fn try_init(plan: &Plan, lines: &Lines) -> io::Result<()> {
    hiding::part_from_host()?;
    let unhidden = hiding::hide_processes().err();
    plan.hiding.cover()?;
    replacing::replace(&plan.replacements)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let ended = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    expect_go(&lines.control)?;
    // Not before: it could come in the place of our pid, which the builder may not have sent yet.
    if let Some(error) = unhidden {
        let note =
            format!("the host's processes stay visible, though out of reach: /proc is not to be mounted: {error}");
        lines.control.send(&[&[NOTE], note.as_bytes()].concat(), &[])?;
    }
    let command = start(plan)?;
    Watch { lines, ended, command, outside: true, stopped: false, asked: false }.run()
}

/// Starts the command; an error if it cannot become the program.
fn start(plan: &Plan) -> io::Result<Pid> {
    let (near, far) = Channel::pair()?;
    let command = fork(|| {
        let error = become_command(plan, &far);
        let _ = far.send(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes(), &[]);
        1
    })?;
    drop(far);
    match near.receive()? {
        Some(entered) if entered.octets == ENTERED => {
            plan.inner.write_for(&entered)?;
            near.send(GO, &[])?;
        }
        Some(failed) => return Err(errno_of(&failed)),
        None => {}
    }
    // The end of the conversation is the beginning of the program.
    match near.receive()? {
        None => Ok(command),
        Some(failed) => Err(errno_of(&failed)),
    }
}

fn errno_of(failed: &Message) -> io::Error {
    io::Error::from_raw_os_error(failed.octets.first_chunk().map_or(libc::EIO, |errno| i32::from_ne_bytes(*errno)))
}

fn become_command(plan: &Plan, line: &Channel) -> io::Error {
    let prepared = || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        line.send(ENTERED, &[identity::own_folder()?.as_fd()])?;
        expect_go(line)?;
        close_from_on_exec(3)?;
        rustix::thread::set_no_new_privs(true)?;
        landlock::scope()?;
        seccomp::confine()?;
        restore_signals(&plan.mask)
    };
    match prepared() {
        Ok(()) => become_program(&plan.arguments, &plan.environment),
        Err(error) => error,
    }
}

/// What init does while the command runs.
struct Watch<'a> {
    lines: &'a Lines,
    ended: SignalFd,
    command: Pid,
    /// tidegate lives. When it does not the command goes on, without network.
    outside: bool,
    /// The command is.
    stopped: bool,
    /// tidegate wants to know whether it is, once it is looked at again.
    asked: bool,
}

impl Watch<'_> {
    fn run(mut self) -> io::Result<()> {
        loop {
            if let Some(status) = self.reap()? {
                let message = [&[STATUS], &status.to_ne_bytes()[..]].concat();
                // Nobody may be there to hear it.
                let _ = self.lines.control.send(&message, &[]);
                return Ok(());
            }
            if std::mem::take(&mut self.asked) && self.stopped {
                let _ = self.lines.control.send(&[STILL], &[]);
            }
            let [ended, control, sockets] = self.wait()?;
            if ended {
                while let Ok(Some(_)) = self.ended.read_signal() {}
            }
            if control {
                self.obey()?;
            }
            if sockets {
                self.make_socket()?;
            }
        }
    }

    fn wait(&self) -> io::Result<[bool; 3]> {
        let sources = [self.ended.as_fd(), self.lines.control.as_fd(), self.lines.sockets.as_fd()];
        let mut polled = sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
        let count = if self.outside { 3 } else { 1 };
        match poll(&mut polled[..count], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok([0, 1, 2].map(|place| place < count && polled.get(place).is_some_and(|one| !one.revents().is_empty())))
    }

    /// Takes in whoever has ended, and tells how the command did, or that it has been stopped.
    fn reap(&mut self) -> io::Result<Option<i32>> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED)) {
                Ok(WaitStatus::Exited(pid, status)) if pid == self.command => return Ok(Some(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.command => {
                    return Ok(Some(128 + signal as i32));
                }
                Ok(WaitStatus::Stopped(pid, _)) if pid == self.command => {
                    self.stopped = true;
                    let _ = self.lines.control.send(&[STOPPED], &[]);
                }
                Ok(WaitStatus::Continued(pid)) if pid == self.command => self.stopped = false,
                Ok(WaitStatus::StillAlive) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A signal for the command, or the question whether it is stopped.
    fn obey(&mut self) -> io::Result<()> {
        let Some(message) = self.lines.control.receive()? else {
            self.outside = false;
            return Ok(());
        };
        match message.octets[..] {
            [SIGNAL, number] => {
                if let Ok(signal) = Signal::try_from(i32::from(number)) {
                    // It may have ended by now.
                    let _ = kill(self.command, signal);
                }
            }
            [STOPPED] => self.asked = true,
            _ => {}
        }
        Ok(())
    }

    fn make_socket(&mut self) -> io::Result<()> {
        let Some(message) = self.lines.sockets.receive()? else {
            self.outside = false;
            return Ok(());
        };
        let domain = if message.octets.first() == Some(&b'6') { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
        match socket2::Socket::new(domain, socket2::Type::STREAM.cloexec(), None) {
            Ok(socket) => self.lines.sockets.send(b"socket", &[OwnedFd::from(socket).as_fd()]),
            Err(_) => self.lines.sockets.send(b"none", &[]),
        }
    }
}

fn expect_go(line: &Channel) -> io::Result<()> {
    match line.receive()? {
        Some(message) if message.octets == GO => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "tidegate has gone away")),
    }
}

fn tell_failure(line: &Channel, error: &io::Error) -> u8 {
    let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
    let _ = line.send(&[&[FAILED], &errno[..], error.to_string().as_bytes()].concat(), &[]);
    1
}

/// As C has them; an argument with a NUL in it cannot be one.
pub(super) fn c_strings(texts: impl IntoIterator<Item = OsString>) -> io::Result<Vec<CString>> {
    let text = |text: OsString| CString::new(text.into_vec()).map_err(|_| io::ErrorKind::InvalidInput.into());
    texts.into_iter().map(text).collect()
}
