//! Why a machine makes no namespaces: the switches that can forbid them, and how each is turned.

use std::fmt;
use std::io;

use crate::sys::rtnl::RtnlError;

/// Namespaces cannot be made here: what was refused, and every switch found in the way.
#[derive(Debug)]
pub struct Unavailable {
    pub refused: &'static str,
    pub source: io::Error,
    /// Each says what stands in the way and how to remove it. Empty where nothing known was found.
    pub obstacles: Vec<String>,
}

impl Unavailable {
    /// A user namespace was refused with `source`.
    pub fn user(source: io::Error) -> Self {
        let mut obstacles = Machine::read().obstacles(true);
        if source.raw_os_error() == Some(libc::EINVAL) {
            obstacles.push("a process with more than one thread may not enter a user namespace".to_owned());
        }
        Self { refused: "a new user namespace", source, obstacles }
    }

    /// A network namespace, or root's rights in it, was refused with `source`.
    pub fn network(source: io::Error) -> Self {
        let obstacles = Machine::read().obstacles(!super::is_privileged());
        Self { refused: "a new network namespace", source, obstacles }
    }

    /// A link between namespaces, its addresses or routes were refused.
    pub fn link(error: RtnlError) -> Self {
        let mut obstacles = Vec::new();
        if !std::path::Path::new("/proc/thread-self/net/if_inet6").exists() {
            obstacles.push("the kernel has no IPv6: boot without `ipv6.disable=1`".to_owned());
        } else if error.errno() == Some(libc::EOPNOTSUPP) {
            obstacles.push("the kernel has no veth links: `modprobe veth`, or CONFIG_VETH is needed".to_owned());
        }
        Self { refused: "a link between namespaces", source: error.into_io(), obstacles }
    }
}

impl From<io::Error> for Unavailable {
    fn from(source: io::Error) -> Self {
        Self::network(source)
    }
}

impl From<RtnlError> for Unavailable {
    fn from(error: RtnlError) -> Self {
        Self::link(error)
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine refuses {}: {}", self.refused, self.source)?;
        for obstacle in &self.obstacles {
            write!(f, "\n  - {obstacle}")?;
        }
        if self.obstacles.is_empty() {
            f.write_str("\n  - no switch is known that explains it; as root it may work")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What /proc says about namespaces. `None`: the machine has no such switch.
#[derive(Debug, Default)]
struct Machine {
    max_user_namespaces: Option<u64>,
    max_net_namespaces: Option<u64>,
    unprivileged_userns_clone: Option<u64>,
    apparmor_restricts: Option<u64>,
    kernel_has_user: bool,
    kernel_has_net: bool,
    seccomp_filter: bool,
}

impl Machine {
    fn read() -> Self {
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self {
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            max_net_namespaces: number("/proc/sys/user/max_net_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            kernel_has_user: std::path::Path::new("/proc/self/ns/user").exists(),
            kernel_has_net: std::path::Path::new("/proc/self/ns/net").exists(),
            seccomp_filter: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
        }
    }

    /// What stands in the way; `as_user` when a user namespace is needed too.
    fn obstacles(&self, as_user: bool) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |present: bool, text: &str| {
            if present {
                found.push(text.to_owned());
            }
        };
        say(!self.kernel_has_net, "the kernel has no network namespaces: CONFIG_NET_NS is needed");
        say(
            self.max_net_namespaces == Some(0),
            "user.max_net_namespaces is 0: `sysctl -w user.max_net_namespaces=1000` allows them",
        );
        if as_user {
            say(!self.kernel_has_user, "the kernel has no user namespaces: CONFIG_USER_NS is needed, or root");
            say(
                self.max_user_namespaces == Some(0),
                "user.max_user_namespaces is 0: `sysctl -w user.max_user_namespaces=1000` allows them, or run as root",
            );
            say(
                self.unprivileged_userns_clone == Some(0),
                "kernel.unprivileged_userns_clone is 0: `sysctl -w kernel.unprivileged_userns_clone=1` allows them, \
                 or run as root",
            );
            say(
                self.apparmor_restricts.is_some_and(|value| value != 0),
                "kernel.apparmor_restrict_unprivileged_userns is on: give the program an AppArmor profile with \
                 `userns,`, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run as root",
            );
        }
        say(
            self.seccomp_filter,
            "a seccomp filter is in force (a container's, most likely): start the container with \
             `--security-opt seccomp=unconfined` or `--cap-add SYS_ADMIN --cap-add NET_ADMIN`",
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_machine() -> Machine {
        Machine { kernel_has_user: true, kernel_has_net: true, ..Machine::default() }
    }

    #[test]
    fn a_machine_that_forbids_nothing_has_no_obstacle() {
        assert!(open_machine().obstacles(true).is_empty());
    }

    #[test]
    fn each_switch_in_the_way_is_named() {
        let cases: [(&str, Machine); 6] = [
            ("user.max_user_namespaces", Machine { max_user_namespaces: Some(0), ..open_machine() }),
            ("user.max_net_namespaces", Machine { max_net_namespaces: Some(0), ..open_machine() }),
            ("kernel.unprivileged_userns_clone", Machine { unprivileged_userns_clone: Some(0), ..open_machine() }),
            ("kernel.apparmor_restrict_unprivileged_userns", Machine { apparmor_restricts: Some(1), ..open_machine() }),
            ("CONFIG_USER_NS", Machine { kernel_has_user: false, ..open_machine() }),
            ("seccomp", Machine { seccomp_filter: true, ..open_machine() }),
        ];
        for (switch, machine) in cases {
            let obstacles = machine.obstacles(true);
            assert_eq!(obstacles.len(), 1, "{switch}: {obstacles:?}");
            assert!(obstacles[0].contains(switch), "{switch}: {obstacles:?}");
        }
    }

    #[test]
    fn root_is_not_sent_after_the_switches_of_user_namespaces() {
        let machine = Machine { max_user_namespaces: Some(0), apparmor_restricts: Some(1), ..open_machine() };
        assert!(machine.obstacles(false).is_empty());
    }
}
