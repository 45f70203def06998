//! What tidegate may do once it runs: as little as a gateway needs, on every thread.
//!
//! | what stays | why |
//! |---|---|
//! | CAP_NET_ADMIN | rules, routes, sockets bound to addresses of others, the kernel's packet log |
//! | CAP_NET_RAW | ICMP answers, datagrams sent on from the client's address |
//! | CAP_DAC_READ_SEARCH, for root alone and where the configuration cannot be read without | a file in the home of another user |
//! | files | see [`files`] |
//! | system calls | all but those of [`crate::sys::seccomp::service`] |
//!
//! All of it is per thread and inherited: it is done before the first thread is started.
//!
//! Fails closed: what cannot be given away ends the start, but for Landlock, which older kernels lack and which is said.

mod capabilities;
pub mod files;
mod user;

use std::fs::File;
use std::io;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use super::seccomp::service;
pub use capabilities::{become_user, keep_only};
pub use user::is_user;

/// Becomes `user`, if one is named, and gives up every capability but those of a gateway and every way to gain one.
/// `needed` is a file that must stay readable to root.
pub fn give_up(user: Option<&str>, needed: &Path) -> io::Result<()> {
    if let Some(user) = user {
        user::become_one(user)?;
    }
    reduce(user.map_or(Some(needed), |_| None))?;
    confine()
}

/// Gives up every way to gain a right, and the system calls that nothing here needs.
pub fn confine() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    service::confine()
}

/// Which of the capabilities that a gateway needs are lacking.
pub fn lacking() -> Vec<Capability> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    KEPT.into_iter().filter(|capability| !has(*capability)).collect()
}

fn reduce(needed: Option<&Path>) -> io::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let mut kept: CapsHashSet = KEPT.into_iter().filter(|own| permitted.contains(own)).collect();
    set(CapSet::Effective, &kept)?;
    if needed.is_some_and(refuses) && permitted.contains(&READ) {
        kept.insert(READ);
    }
    // Giving up parts of the bounding set takes a capability itself; without it there is nothing that could gain one,
    // for no program is ever started.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        let mut for_now = kept.clone();
        for_now.insert(Capability::CAP_SETPCAP);
        set(CapSet::Effective, &for_now)?;
        capabilities::bound(&kept)?;
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)
}

fn set(which: CapSet, to: &CapsHashSet) -> io::Result<()> {
    caps::set(None, which, to).map_err(io::Error::other)
}

fn refuses(file: &Path) -> bool {
    File::open(file).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
const READ: Capability = Capability::CAP_DAC_READ_SEARCH;
