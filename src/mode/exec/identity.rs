//! Who a process is in a user namespace of its own: the ids that exist there, and the rights that go with them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use caps::{CapSet, Capability};
use nix::unistd::{Gid, Uid};
use rustix::fs::{Mode, OFlags};

use crate::sys::channel::Message;

/// The maps of a user namespace below this process's own.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    users: String,
    groups: String,
    /// The kernel's price for a map that anybody may write.
    deny_setgroups: bool,
}

impl Identity {
    /// For the namespace that owns the command's network: an ordinary user is root there and nobody else exists; for
    /// root everybody is who he was.
    pub(super) fn outer() -> io::Result<Self> {
        if may_map_all() {
            return Ok(Self { users: same("uid_map")?, groups: same("gid_map")?, deny_setgroups: false });
        }
        let (users, groups) = (format!("0 {} 1", Uid::effective()), format!("0 {} 1", Gid::effective()));
        Ok(Self { users, groups, deny_setgroups: true })
    }

    /// For the command's own, below the first: an ordinary user is himself again.
    pub(super) fn inner() -> io::Result<Self> {
        if may_map_all() {
            return Self::outer();
        }
        let (users, groups) = (format!("{} 0 1", Uid::effective()), format!("{} 0 1", Gid::effective()));
        Ok(Self { users, groups, deny_setgroups: true })
    }

    /// Writes the maps for a process that has just entered its namespace, has sent [`own_folder`], and waits.
    pub(super) fn write_for(&self, entered: &Message) -> io::Result<()> {
        let folder = entered.descriptors.first().ok_or(io::ErrorKind::InvalidData)?;
        let folder = format!("/proc/self/fd/{}", folder.as_raw_fd());
        if self.deny_setgroups {
            fs::write(format!("{folder}/setgroups"), "deny")?;
        }
        fs::write(format!("{folder}/uid_map"), &self.users)?;
        fs::write(format!("{folder}/gid_map"), &self.groups)
    }
}

/// What /proc has of this process. By its number another one might be found: where /proc cannot be mounted anew it is that
/// of a pid namespace above.
pub(super) fn own_folder() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

pub(super) fn may_map_all() -> bool {
    [Capability::CAP_SETUID, Capability::CAP_SETGID]
        .iter()
        .all(|capability| caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false))
}

/// Every id of this namespace as itself.
fn same(map: &str) -> io::Result<String> {
    let own = fs::read_to_string(format!("/proc/self/{map}"))?;
    let same = own.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (inside, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("{inside} {inside} {count}\n"))
    });
    Ok(same.collect())
}
