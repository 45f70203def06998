//! Who a process is in a user namespace of its own: the ids that exist there, and the rights that go with them.

use std::fs;
use std::io;

use caps::{CapSet, Capability};
use nix::unistd::{Gid, Pid, Uid};

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

    /// Writes the maps for a process that has just entered its namespace and waits.
    pub(super) fn write_for(&self, process: Pid) -> io::Result<()> {
        if self.deny_setgroups {
            fs::write(format!("/proc/{process}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{process}/uid_map"), &self.users)?;
        fs::write(format!("/proc/{process}/gid_map"), &self.groups)
    }
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
