//! What this process takes of the host.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;

/// What could not be found out is 0.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Octets in memory, and of address space.
    pub resident: u64,
    pub virtual_memory: u64,
    pub descriptors: u64,
    pub most_descriptors: u64,
    pub threads: u64,
    /// Time on processors, in user space and in the kernel.
    pub cpu: Duration,
}

pub fn facts() -> Facts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map(|usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros.try_into().unwrap_or_default())
    });
    Facts {
        resident: field("VmRSS") << 10,
        virtual_memory: field("VmSize") << 10,
        descriptors: descriptors(),
        most_descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        threads: field("Threads"),
        cpu: cpu.unwrap_or_default(),
    }
}

/// Since Linux 6.2 the folder's size is their number; counting a hundred thousand takes a while.
fn descriptors() -> u64 {
    match fs::metadata("/proc/self/fd").map_or(0, |found| found.len()) {
        0 => fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
        number => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_memory_descriptors_and_time() {
        let facts = facts();
        assert!(facts.resident > 1 << 20 && facts.virtual_memory > facts.resident, "{facts:?}");
        assert!(facts.descriptors >= 3 && facts.most_descriptors >= facts.descriptors, "{facts:?}");
        assert!(facts.threads >= 1, "{facts:?}");
        let open: Vec<_> = (0..10).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(super::facts().descriptors >= 10 + 3);
        drop(open);
    }
}
