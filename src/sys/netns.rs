//! Network namespaces, made and entered with or without root.
//!
//! Making one needs CAP_SYS_ADMIN. Who has it not becomes root of a new *user* namespace first, which the kernel
//! grants to single-threaded processes alone. Hence two doors, and the same way behind both:
//!
//! ```text
//! enter_user_namespace()          the calling process, before its first thread
//! in_user_namespace(&mut command) a child, between fork and exec, whatever the parent has for threads
//!        -> Namespace::new() -> Namespace::{run, spawn, enter}
//! ```
//!
//! A namespace lives as long as its descriptor, a thread or a process in it. Nothing is mounted or named anywhere.
//!
//! Fails loudly: a machine that forbids any of this is told which switch forbids it ([`Unavailable`]).

mod obstacle;

pub use obstacle::Unavailable;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::{self, JoinHandle};

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid};

use crate::sys::rtnl::Rtnl;

/// A network namespace of its own.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// Makes a namespace in which nothing but `lo` exists, which is up.
    pub fn new() -> Result<Self, Unavailable> {
        on_a_thread("netns-new", || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Unavailable::network(e.into()))?;
            let namespace = Self::current().map_err(Unavailable::network)?;
            Rtnl::open()?.set_up("lo")?;
            Ok(namespace)
        })
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Ok(Self { descriptor: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// Runs `work` on a thread inside the namespace and waits for it. A panic of `work` goes on in the caller.
    /// Sockets that `work` opens and returns stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread("netns-run", || {
            self.join()?;
            Ok(work())
        })
    }

    /// Starts a thread called `name` (at most 15 bytes are shown by the kernel) inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<T>>> {
        let namespace = Self { descriptor: self.descriptor.try_clone()? };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            namespace.join()?;
            Ok(work())
        })
    }

    /// Arranges that `command` starts inside the namespace.
    pub fn enter(&self, command: &mut Command) -> io::Result<()> {
        let namespace = Self { descriptor: self.descriptor.try_clone()? };
        // SAFETY: between fork and exec the closure makes the one system call setns(2), and allocates nothing.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || namespace.join());
        }
        Ok(())
    }

    fn join(&self) -> io::Result<()> {
        Ok(setns(&self.descriptor, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether this process may make network namespaces and act as root in them as it is.
pub fn is_privileged() -> bool {
    [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW]
        .iter()
        .all(|capability| caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false))
}

/// Makes the calling process root of a new user namespace, unless it is privileged already. It must have no second
/// thread yet: the kernel refuses with EINVAL otherwise.
pub fn enter_user_namespace() -> Result<(), Unavailable> {
    if is_privileged() {
        return Ok(());
    }
    Identity::of_this_process().become_root().map_err(Unavailable::user)
}

/// Arranges that `command` starts as root of a new user namespace, unless this process is privileged already. What
/// cannot be arranged fails the start of the command; [`Unavailable::user`] tells why from its error.
pub fn in_user_namespace(command: &mut Command) {
    if is_privileged() {
        return;
    }
    let identity = Identity::of_this_process();
    // SAFETY: between fork and exec the closure makes system calls on short fixed paths and ready-made strings; it
    // allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || identity.become_root());
    }
}

/// The id maps by which this user is root inside, composed before a fork.
struct Identity {
    users: String,
    groups: String,
}

impl Identity {
    fn of_this_process() -> Self {
        Self { users: format!("0 {} 1", Uid::effective()), groups: format!("0 {} 1", Gid::effective()) }
    }

    fn become_root(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", &self.users)?;
        std::fs::write("/proc/self/gid_map", &self.groups)
    }
}

/// Runs `work` on a thread of its own, so that what it does to its namespaces ends with it.
fn on_a_thread<T: Send, E: Send + From<io::Error>>(
    name: &str,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
