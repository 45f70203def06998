//! Whose rights this process has: becoming a user, and keeping few capabilities.
//!
//! Capabilities belong to threads, and a new thread has those of the one that starts it: all of this comes before threads.
//!
//! Fails loudly: a step that the kernel refuses is an error, and then nothing may go on.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Becomes this user and group, for good and with no other group, and keeps these capabilities alone. Needs to be root,
/// or that user with these capabilities already.
pub fn become_user(user: u32, group: u32, keep: &[Capability]) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        bound(&keep.iter().copied().collect())?;
    }
    if Uid::effective() != user || Uid::current() != user {
        nix::sys::prctl::set_keepcaps(true)?;
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    }
    keep_only(keep)?;
    // Neither a set-user-id file nor one with capabilities gives any back.
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Gives up every capability of the calling thread but these.
pub fn keep_only(keep: &[Capability]) -> io::Result<()> {
    let keep: CapsHashSet = keep.iter().copied().collect();
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    }
    for (set, wanted) in
        [(CapSet::Effective, &keep), (CapSet::Inheritable, &CapsHashSet::new()), (CapSet::Permitted, &keep)]
    {
        caps::set(None, set, wanted).map_err(|error| missing(&keep, &error))?;
    }
    Ok(())
}

/// Takes all but these out of the bounding set. Needs CAP_SETPCAP.
pub(super) fn bound(kept: &CapsHashSet) -> io::Result<()> {
    for capability in caps::all() {
        if !kept.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn missing(keep: &CapsHashSet, error: &caps::errors::CapsError) -> io::Error {
    let mut names: Vec<_> = keep.iter().map(ToString::to_string).collect();
    names.sort();
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{error}: this needs {}", names.join(" and ")))
}
