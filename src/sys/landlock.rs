//! What Landlock (landlock(7)) holds back besides: signals to processes outside, and abstract sockets of theirs.
//!
//! A pid namespace does not end a process group: a signal to group 0 reaches the members outside, the caller of tidegate
//! among them.
//!
//! Fails open where the kernel has no such scopes (before 6.12, or Landlock switched off), and says so by its result.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_uint};

/// `struct landlock_ruleset_attr`, as of ABI 6.
#[repr(C)]
struct Attributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Confines this thread and all that it starts, for good; no_new_privs must be set. `false`: this kernel cannot.
pub fn scope() -> io::Result<bool> {
    // No access to files is handled: that would forbid every mount, which browsers and containers make inside.
    let attributes =
        Attributes { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL };
    let (size, flags): (usize, c_uint) = (size_of::<Attributes>(), 0);
    // SAFETY: the kernel reads `size` octets of `attributes`, which lives through the call.
    #[allow(unsafe_code)]
    let ruleset = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, flags) };
    let Some(ruleset) = done(ruleset)? else { return Ok(false) };
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    #[allow(unsafe_code)]
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    // SAFETY: the call takes numbers alone.
    #[allow(unsafe_code)]
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), flags) };
    Ok(done(restricted)?.is_some())
}

/// `None`: the kernel knows no Landlock, has it switched off, or knows no scopes.
fn done(result: c_long) -> io::Result<Option<c_int>> {
    if result >= 0 {
        return Ok(c_int::try_from(result).ok());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::E2BIG | libc::EINVAL) => Ok(None),
        _ => Err(error),
    }
}

const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const SCOPE_SIGNAL: u64 = 1 << 1;
