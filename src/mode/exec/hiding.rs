//! What of the host's file system an enclosed command does not see: its processes, and the sockets of its programs,
//! by which another program would act for the command (a container engine, D-Bus, an agent of keys, a display).
//!
//! When the command starts every path socket is covered that [`sockets::find`] finds: those that are bound in the host's
//! network namespace, wherever they stand, and others in the usual places. Below /run/user nothing is left, since sockets
//! come and go there. A socket that is made elsewhere later is seen. The device by which a program acts as the guest of
//! vsock is covered as well, and tidegate's own compiled lists.
//!
//! Fails closed: a socket that cannot be covered, though it can be reached, ends the start.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags};

use super::sockets;
use crate::sys::list_store::Store;

/// What is seen and what is not, gathered outside, before the command's namespaces exist.
#[derive(Debug)]
pub(super) struct Hiding {
    sockets: Vec<PathBuf>,
    /// Let through although they stand below a folder that is emptied.
    kept: Vec<(PathBuf, OwnedFd)>,
    runtime_folders: Vec<OsString>,
    /// Where compiled lists are: those in force are mapped from there.
    lists: Option<PathBuf>,
}

impl Hiding {
    /// `allowed`: the sockets that the command may use.
    pub(super) fn gather(allowed: &[PathBuf]) -> io::Result<Self> {
        let allowed: Vec<PathBuf> = allowed.iter().map(|path| canonical(path)).collect::<io::Result<_>>()?;
        let mut sockets = sockets::find();
        sockets.extend(Some(PathBuf::from(VHOST_VSOCK)).filter(|device| device.exists()));
        sockets.retain(|path| !path.starts_with(RUN_USER) && !allowed.contains(path));
        let below = allowed.iter().filter(|path| path.starts_with(RUN_USER));
        let open =
            |path: &PathBuf| Ok((path.clone(), rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?));
        let kept = below.map(open).collect::<io::Result<_>>()?;
        let runtime_folders = fs::read_dir(RUN_USER)
            .map_or_else(|_| Vec::new(), |all| all.flatten().map(|one| one.file_name()).collect());
        let lists = Store::from_environment().folder().map(Path::to_owned);
        Ok(Self { sockets: sockets.into_iter().collect(), kept, runtime_folders, lists })
    }

    /// Covers them in the mount namespace of this process, which must be its own.
    pub(super) fn cover(&self) -> io::Result<()> {
        for path in &self.sockets {
            bind(Path::new("/dev/null"), path).or_else(|error| if is_reachable(path) { Err(error) } else { Ok(()) })?;
        }
        if let Some(lists) = self.lists.as_ref().filter(|folder| folder.is_dir()) {
            mount_tmpfs(lists)?;
        }
        if Path::new(RUN_USER).is_dir() {
            mount_tmpfs(Path::new(RUN_USER))?;
            for folder in &self.runtime_folders {
                let folder = Path::new(RUN_USER).join(folder);
                fs::create_dir(&folder)?;
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
            }
        }
        for (path, descriptor) in &self.kept {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            File::create(path)?;
            bind(&PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())), path)?;
        }
        Ok(())
    }
}

/// Cuts this mount namespace off from the host's: what is mounted from here on is seen on this side alone.
pub(super) fn part_from_host() -> io::Result<()> {
    Ok(mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?)
}

/// Shows the processes of this pid namespace alone.
pub(super) fn hide_processes() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, NONE)?)
}

/// The environment that the command gets: no word of sockets that it cannot reach.
pub(super) fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
    allowed: &[PathBuf],
) -> Vec<(OsString, OsString)> {
    let names_allowed = |value: &OsString| {
        let value = value.as_bytes();
        allowed
            .iter()
            .any(|path| value.windows(path.as_os_str().len().max(1)).any(|part| part == path.as_os_str().as_bytes()))
    };
    let display = allowed.iter().any(|path| path.starts_with("/tmp/.X11-unix"));
    all.filter(|(name, value)| {
        let is_of_socket = SOCKET_VARIABLES.iter().any(|own| name == own) && !names_allowed(value);
        !is_of_socket && (name != "DISPLAY" || display)
    })
    .collect()
}

fn canonical(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn is_reachable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

pub(super) fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("cannot cover {}: {error}", to.display()))
    })
}

pub(super) fn mount_tmpfs(place: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tidegate"), place, Some("tmpfs"), flags, Some("mode=0755,size=16m"))?)
}

const NONE: Option<&str> = None;
const RUN_USER: &str = "/run/user";
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// Variables that tell programs of sockets.
const SOCKET_VARIABLES: &[&str] = &[
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "WAYLAND_DISPLAY",
    "WAYLAND_SOCKET",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "PULSE_SERVER",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, value: &str, allowed: &[&str]) -> bool {
        let allowed: Vec<PathBuf> = allowed.iter().map(PathBuf::from).collect();
        !environment([(name.into(), value.into())].into_iter(), &allowed).is_empty()
    }

    #[test]
    fn variables_that_name_a_hidden_socket_are_not_passed_on() {
        let agent = "/tmp/ssh-x/agent.1";
        assert!(!kept("SSH_AUTH_SOCK", agent, &[]));
        assert!(kept("SSH_AUTH_SOCK", agent, &[agent]));
        assert!(!kept("SSH_AUTH_SOCK", agent, &["/tmp/ssh-y/agent.1"]));
        let bus = "unix:path=/run/user/1000/bus";
        assert!(!kept("DBUS_SESSION_BUS_ADDRESS", bus, &[]));
        assert!(kept("DBUS_SESSION_BUS_ADDRESS", bus, &["/run/user/1000/bus"]));
        assert!(!kept("DISPLAY", ":0", &[agent]));
        assert!(kept("DISPLAY", ":0", &["/tmp/.X11-unix/X0"]));
        assert!(kept("PATH", "/bin", &[]));
    }
}
