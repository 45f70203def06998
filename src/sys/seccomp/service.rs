//! The filter of tidegate's own threads: what a gateway never does, whoever has taken it over.
//!
//! | refused | what it would give |
//! |---|---|
//! | starting a program or a process | a shell |
//! | looking into or steering other processes | their secrets |
//! | mounts, namespaces, chroot | another view of the files, and back out |
//! | kernel modules, BPF, perf, keyrings, userfaultfd, io_uring | the parts of the kernel with the most faults |
//! | clock, host name, swap, reboot, quotas, ports of the hardware | the host |
//! | sockets of other families than UNIX, INET, INET6 and NETLINK | packets past the rules |
//! | calls of another ABI | all of that by another number |
//!
//! A list of what is refused, not of what is allowed: a C library that needs another call tomorrow still runs.
//!
//! Fails closed: where the filter cannot be put in force, tidegate does not start.

use std::io;

use libc::{c_long, sock_filter};

use super::{
    ABIS, ARCHITECTURE, FAMILIES, FIRST_ARGUMENT, NUMBER, answer, enforce, load, one_of, refusal, unless_at_least,
    unless_equal,
};

/// Puts the filter in force for this thread and all that it starts, for good.
pub fn confine() -> io::Result<()> {
    enforce(program())
}

fn program() -> Vec<sock_filter> {
    let own = ABIS.first().map_or(0, |abi| abi.audit);
    let mut program = vec![load(ARCHITECTURE), equal_or(own), answer(refusal(libc::ENOSYS)), load(NUMBER)];
    if let Some(beyond) = ABIS.first().and_then(|abi| abi.beyond) {
        program.extend([unless_at_least(beyond, 1), answer(refusal(libc::ENOSYS))]);
    }
    for (calls, errno) in [(REFUSED, libc::EPERM), (UNKNOWN, libc::ENOSYS)] {
        for call in calls {
            program.extend([unless_equal(number(*call), 1), answer(refusal(errno))]);
        }
    }
    let clone = [
        load(FIRST_ARGUMENT),
        sock_filter { code: (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16, jt: 1, jf: 0, k: THREAD },
        answer(refusal(libc::EPERM)),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    program.push(unless_equal(number(libc::SYS_clone), clone.len()));
    program.extend(clone);
    let socket = one_of(FIRST_ARGUMENT, FAMILIES, libc::SECCOMP_RET_ALLOW, refusal(libc::EAFNOSUPPORT));
    program.push(unless_equal(number(libc::SYS_socket), socket.len()));
    program.extend(socket);
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// Skips the next instruction if what was loaded is `value`.
fn equal_or(value: u32) -> sock_filter {
    sock_filter { jt: 1, jf: 0, ..unless_equal(value, 0) }
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// A clone with this flag makes a thread, any other a process.
const THREAD: u32 = libc::CLONE_THREAD.unsigned_abs();

/// Their callers know what to do where a kernel has not got them: `clone3` keeps its flags where no filter sees them.
const UNKNOWN: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
];

const REFUSED: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    /// On a thread of its own, for a filter never goes again.
    fn confined<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                confine().unwrap();
                work()
            });
            confined.join().unwrap()
        })
    }

    #[test]
    fn no_program_and_no_process_starts_any_more_but_threads_do() {
        confined(|| {
            let program = [CString::new("/bin/true").unwrap()];
            let refused = crate::sys::fork::become_program(&program, &[]);
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
            let refused = std::process::Command::new("/bin/true").spawn().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        });
    }

    #[test]
    fn sockets_of_other_families_and_namespaces_are_refused() {
        confined(|| {
            use rustix::net::{AddressFamily, SocketType, socket};
            let open = |family| socket(family, SocketType::DGRAM, None).map(drop);
            for family in [AddressFamily::UNIX, AddressFamily::INET] {
                assert_eq!(open(family), Ok(()));
            }
            assert_eq!(open(AddressFamily::PACKET), Err(rustix::io::Errno::AFNOSUPPORT));
            let refused = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));
        });
    }
}
