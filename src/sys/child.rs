//! Child processes that do not outlive who started them.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Arranges that `command` is killed when the *thread* that starts it ends, be it by a crash: start it from a thread
/// that lives long enough.
pub fn end_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes the one system call prctl(2), and allocates nothing.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}
