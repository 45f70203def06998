//! Signals that tidegate gets and the command should have, and the terminal that both share.
//!
//! The command stands in tidegate's process group: what the terminal sends (Ctrl-C, Ctrl-Z, a new size) reaches both, and
//! only what another process sends to tidegate alone is passed on. What the command sends to its group stays inside, where
//! the kernel has Landlock's scopes.

use std::io::{self, IsTerminal};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use crate::sys::fork::hear_of_children;

const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// What lets the command go on.
pub(super) const CONTINUE: u8 = Signal::SIGCONT as u8;

/// Signals that no longer end this process, but wait to be read.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) descriptor: SignalFd,
    /// What was blocked before: the command's own.
    pub(super) mask: SigSet,
}

impl Signals {
    /// Must be made before the first thread.
    pub(super) fn hold() -> io::Result<Self> {
        hear_of_children()?;
        let mut held = SigSet::empty();
        PASSED_ON.iter().for_each(|signal| held.add(*signal));
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), Some(&mut mask))?;
        let descriptor = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor, mask })
    }

    /// The next one that the command has not had itself.
    pub(super) fn next(&self) -> Option<u8> {
        loop {
            let signal = self.descriptor.read_signal().ok()??;
            if is_for_us_alone(&signal) {
                return u8::try_from(signal.ssi_signo).ok();
            }
        }
    }
}

/// Stops this process as the command has been, for the shell to see: one that suspends itself (an editor, at Ctrl-Z) would
/// leave its terminal to nobody. Returns when both are to go on.
pub(super) fn stop_like_the_command() {
    // Without a terminal there is no job control, and nobody who would let this process go on.
    if io::stdin().is_terminal() {
        let _ = kill(Pid::this(), Signal::SIGSTOP);
    }
}

/// Whether a process sent it. The kernel sends to the whole group of the terminal.
fn is_for_us_alone(signal: &siginfo) -> bool {
    const SI_KERNEL: i32 = 0x80;
    signal.ssi_code != SI_KERNEL
}

/// The terminal, as the caller of tidegate left it: a command that made itself the foreground does not always give
/// that back.
#[derive(Debug)]
pub(super) struct Terminal {
    foreground: Option<Pid>,
}

impl Terminal {
    pub(super) fn remember() -> Self {
        let stdin = io::stdin();
        let own = getpgrp();
        let foreground = stdin.is_terminal().then(|| tcgetpgrp(&stdin).ok()).flatten().filter(|group| *group == own);
        Self { foreground }
    }

    pub(super) fn restore(&self) {
        let Some(own) = self.foreground else { return };
        let stdin = io::stdin();
        if tcgetpgrp(&stdin).is_ok_and(|group| group == own) {
            return;
        }
        // A process in the background is stopped when it does this, unless it holds the signal.
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let mut before = SigSet::empty();
        if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before)).is_ok() {
            let _ = tcsetpgrp(&stdin, own);
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
    }
}
