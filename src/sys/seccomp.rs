//! Filters of system calls (seccomp(2)): here for a command behind tidegate, for what namespaces do not hold back; in
//! [`service`] for tidegate itself.
//!
//! | refused | since |
//! |---|---|
//! | sockets of families other than UNIX, INET, INET6 and NETLINK | AF_VSOCK and others know no network namespace: a guest would speak to its hypervisor |
//! | io_uring | it makes sockets past this filter |
//! | request_key | the kernel has the host answer it: keys of the type `dns_resolver` ask the host's resolver |
//! | TIOCSTI and TIOCLINUX | they type into the terminal, for the shell to read when the command has ended |
//! | calls of the x32 ABI, and `socketcall` of 32-bit x86 | the same calls by another number |
//!
//! Fails closed: where the filter cannot be put in force, the program is not started.

pub mod service;

use std::io;

use libc::{c_ulong, sock_filter, sock_fprog};

/// Puts the filter in force for this thread and all that it starts, for good. Sets no_new_privs first, without which an
/// ordinary user may not.
pub fn confine() -> io::Result<()> {
    enforce(program())
}

fn enforce(mut filter: Vec<sock_filter>) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which lives through the call.
    #[allow(unsafe_code)]
    let done =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What differs between the ways to make system calls.
struct Abi {
    audit: u32,
    socket: u32,
    ioctl: u32,
    io_uring_setup: u32,
    request_key: u32,
    /// Every number from here on belongs to another ABI.
    beyond: Option<u32>,
    /// A call that takes the family from memory, where no filter sees it.
    socketcall: Option<u32>,
}

#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi {
        audit: 0xc000_003e,
        socket: 41,
        ioctl: 16,
        io_uring_setup: 425,
        request_key: 249,
        beyond: Some(0x4000_0000),
        socketcall: None,
    },
    Abi {
        audit: 0x4000_0003,
        socket: 359,
        ioctl: 54,
        io_uring_setup: 425,
        request_key: 287,
        beyond: None,
        socketcall: Some(102),
    },
];

#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[
    Abi {
        audit: 0xc000_00b7,
        socket: 198,
        ioctl: 29,
        io_uring_setup: 425,
        request_key: 218,
        beyond: None,
        socketcall: None,
    },
    Abi {
        audit: 0x4000_0028,
        socket: 281,
        ioctl: 54,
        io_uring_setup: 425,
        request_key: 310,
        beyond: None,
        socketcall: Some(102),
    },
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("src/sys/seccomp.rs needs the numbers of this architecture's system calls");

/// The ABIs one after another; a call of none of them does not exist.
fn program() -> Vec<sock_filter> {
    let mut program = Vec::new();
    for abi in ABIS {
        let body = abi.body();
        program.push(load(ARCHITECTURE));
        program.push(unless_equal(abi.audit, body.len()));
        program.extend(body);
    }
    program.push(answer(refusal(libc::ENOSYS)));
    program
}

impl Abi {
    fn body(&self) -> Vec<sock_filter> {
        let mut body = vec![load(NUMBER)];
        if let Some(beyond) = self.beyond {
            body.extend([unless_at_least(beyond, 1), answer(refusal(libc::ENOSYS))]);
        }
        for absent in [self.io_uring_setup, self.request_key] {
            body.extend([unless_equal(absent, 1), answer(refusal(libc::ENOSYS))]);
        }
        if let Some(socketcall) = self.socketcall {
            body.extend([unless_equal(socketcall, 1), answer(refusal(libc::ENOSYS))]);
        }
        let socket = one_of(FIRST_ARGUMENT, FAMILIES, libc::SECCOMP_RET_ALLOW, refusal(libc::EAFNOSUPPORT));
        body.push(unless_equal(self.socket, socket.len()));
        body.extend(socket);
        let ioctl = one_of(SECOND_ARGUMENT, TYPING, refusal(libc::EPERM), libc::SECCOMP_RET_ALLOW);
        body.push(unless_equal(self.ioctl, ioctl.len()));
        body.extend(ioctl);
        body.push(answer(libc::SECCOMP_RET_ALLOW));
        body
    }
}

fn one_of(argument: u32, values: &[u32], then: u32, otherwise: u32) -> Vec<sock_filter> {
    let mut code = vec![load(argument)];
    for value in values {
        code.extend([unless_equal(*value, 1), answer(then)]);
    }
    code.push(answer(otherwise));
    code
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips so many instructions unless what was loaded is `value`.
fn unless_equal(value: u32, skip: usize) -> sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    sock_filter { code, jt: 0, jf: u8::try_from(skip).unwrap_or(u8::MAX), k: value }
}

fn unless_at_least(value: u32, skip: usize) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16, ..unless_equal(value, skip) }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
}

/// Where the parts of `struct seccomp_data` stand. The lower half of an argument: families and ioctl numbers have no
/// more.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16 + if cfg!(target_endian = "big") { 4 } else { 0 };
const SECOND_ARGUMENT: u32 = FIRST_ARGUMENT + 8;

const FAMILIES: &[u32] = &[
    libc::AF_UNIX.unsigned_abs(),
    libc::AF_INET.unsigned_abs(),
    libc::AF_INET6.unsigned_abs(),
    libc::AF_NETLINK.unsigned_abs(),
];
const TYPING: &[u32] = &[0x5412, 0x541c];

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter's answer to a call, by the kernel's rules (bpf of Linux, Documentation/networking/filter.rst).
    fn run(audit: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let program = program();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) {
                0x20 => {
                    loaded = match step.k {
                        0 => number,
                        4 => audit,
                        16 => arguments[0],
                        24 => arguments[1],
                        other => panic!("reads at {other}"),
                    }
                }
                0x15 => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                0x35 => at += usize::from(if loaded >= step.k { step.jt } else { step.jf }),
                0x06 => return step.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_families_that_the_namespace_holds_and_no_typing_and_no_other_abi() {
        const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
        let refused = |errno| refusal(errno);
        for abi in ABIS {
            let cases = [
                (abi.socket, [1, 0], ALLOW),
                (abi.socket, [2, 0], ALLOW),
                (abi.socket, [10, 0], ALLOW),
                (abi.socket, [16, 0], ALLOW),
                (abi.socket, [40, 0], refused(libc::EAFNOSUPPORT)),
                (abi.socket, [17, 0], refused(libc::EAFNOSUPPORT)),
                (abi.ioctl, [0, 0x5412], refused(libc::EPERM)),
                (abi.ioctl, [0, 0x541c], refused(libc::EPERM)),
                (abi.ioctl, [0, 0x5413], ALLOW),
                (abi.io_uring_setup, [8, 0], refused(libc::ENOSYS)),
                (abi.request_key, [8, 0], refused(libc::ENOSYS)),
                (abi.socket + 1, [40, 0x5412], ALLOW),
            ];
            for (number, arguments, expected) in cases {
                assert_eq!(run(abi.audit, number, arguments), expected, "{:#x} {number} {arguments:?}", abi.audit);
            }
            if let Some(beyond) = abi.beyond {
                assert_eq!(run(abi.audit, beyond | abi.socket, [40, 0]), refused(libc::ENOSYS));
            }
            if let Some(socketcall) = abi.socketcall {
                assert_eq!(run(abi.audit, socketcall, [1, 0]), refused(libc::ENOSYS));
            }
        }
        assert_eq!(run(0x1234, 41, [2, 0]), refused(libc::ENOSYS));
    }
}
