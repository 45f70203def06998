//! Processes that go on from a copy of this one, and programs that take one over.
//!
//! Fails loudly: a process with a second thread is refused, since its copy would hold locks that nobody releases.

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{ForkResult, Pid};

/// Goes on in a new process with `work`, whose result is its exit status. The caller must have no second thread.
pub fn fork(work: impl FnOnce() -> u8) -> io::Result<Pid> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be copied"));
    }
    // SAFETY: this process has one thread: no lock is held by another one, so the copy may do all that this one may.
    #[allow(unsafe_code)]
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // Nothing that the caller set up for its own end may run a second time.
            let status = catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED);
            // SAFETY: _exit(2) takes a number and does not return.
            #[allow(unsafe_code)]
            unsafe {
                libc::_exit(c_int::from(status))
            }
        }
    }
}

/// Gives a program the signals as a shell would: none blocked but those of `mask`, and a broken pipe ends it.
pub fn restore_signals(mask: &SigSet) -> io::Result<()> {
    set_default(Signal::SIGPIPE)?;
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?)
}

/// Makes the ends of children known to this process and to those that it starts: where whoever started it ignores them
/// (SIGCHLD), so does the kernel, and nobody hears how a child ended.
pub fn hear_of_children() -> io::Result<()> {
    set_default(Signal::SIGCHLD)
}

fn set_default(signal: Signal) -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    #[allow(unsafe_code)]
    unsafe {
        sigaction(signal, &default)?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: whoever calls this goes on to run another program, or to end: no descriptor is used again.
    #[allow(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on as one that no other program gets.
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: the system call sets flags of descriptors and touches no memory.
    #[allow(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor that this process was given by who started it, by its number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is looked up by the kernel for this one call, which makes a descriptor of our own of it or fails.
    #[allow(unsafe_code)]
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Becomes another program, looked for as a shell does; returns only if that fails.
pub fn become_program(arguments: &[CString], environment: &[CString]) -> io::Error {
    let Some(program) = arguments.first() else { return io::ErrorKind::InvalidInput.into() };
    match nix::unistd::execvpe(program, arguments, environment) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// The exit status of a process that panicked, as of a program that did.
const PANICKED: u8 = 101;
