//! From root to an ordinary user, with the capabilities kept.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::files::{CACHE, RUNTIME};
use nix::unistd::{Gid, Uid, User, chown, setgroups, setresgid, setresuid};

/// Does nothing where this process is that user already.
pub(super) fn become_one(name: &str) -> io::Result<()> {
    let user =
        find(name)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no user `{name}`")))?;
    if user.uid == Uid::effective() {
        return Ok(());
    }
    if !Uid::effective().is_root() {
        let what = format!("only root can become `{name}`");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    make_folders(user.uid, user.gid);
    rustix::thread::set_keep_capabilities(true)?;
    setgroups(&[user.gid])?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    Ok(())
}

/// Whether this host knows a user by this name or number. Where it cannot tell, it may.
pub fn is_user(name: &str) -> bool {
    find(name).map_or(true, |found| found.is_some())
}

fn find(name: &str) -> io::Result<Option<User>> {
    Ok(User::from_name(name)?.or_else(|| User::from_uid(Uid::from_raw(name.parse().ok()?)).ok().flatten()))
}

/// Folders for lists that are fetched, and for the socket. One that is there is left alone: whoever owns it decides what
/// lies in it.
fn make_folders(uid: Uid, gid: Gid) {
    for (folder, mode) in [(CACHE, 0o700), (RUNTIME, 0o755)] {
        // Where it cannot be made, those who need it say so.
        if DirBuilder::new().mode(mode).create(folder).is_ok() {
            let _ = chown(Path::new(folder), Some(uid), Some(gid));
        }
    }
}
