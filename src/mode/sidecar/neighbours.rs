//! Who else is in this network namespace, and whether the rules could take its packets for ours.
//!
//! Other containers' processes are seen only where the pid namespace is shared too. What is not seen is not vouched for.

use std::collections::BTreeSet;
use std::path::Path;

/// Reasons to fear that packets of others pass for ours, or pass by; one for each kind of process. Only root sees the
/// namespaces of everybody.
pub fn warnings(user: u32) -> Vec<String> {
    let own = std::fs::read_link("/proc/self/ns/net").ok();
    let here = |process: &Path| own.is_some() && std::fs::read_link(process.join("ns/net")).ok() == own;
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let others = processes.filter(|process| is_another(process) && here(process));
    let found: BTreeSet<String> = others
        .filter_map(|process| {
            let status = std::fs::read_to_string(process.join("status")).ok()?;
            danger(&status, user)
        })
        .collect();
    found.into_iter().collect()
}

fn is_another(process: &Path) -> bool {
    let number = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    number.is_some_and(|number| number != std::process::id())
}

/// What a process can do that it should not, by its /proc/PID/status.
fn danger(status: &str, user: u32) -> Option<String> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let name = field("Name")?.trim();
    if field("Uid")?.split_whitespace().any(|id| id.parse() == Ok(user)) {
        return Some(format!("`{name}` runs as user {user} too: what it sends passes for ours, unjudged"));
    }
    let permitted = u64::from_str_radix(field("CapPrm")?.trim(), 16).ok()?;
    let has = |(bit, _): &&(u32, &str)| permitted >> bit & 1 == 1;
    let held: Vec<&str> = DANGEROUS.iter().filter(has).map(|(_, name)| *name).collect();
    (!held.is_empty()).then(|| format!("`{name}` has {}, and could pass for us or pass by", held.join(", ")))
}

/// Capabilities by their numbers (linux/capability.h).
const DANGEROUS: &[(u32, &str)] =
    &[(7, "CAP_SETUID"), (12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_could_pass_for_us_is_told_and_an_ordinary_one_is_not() {
        let status = |uid: &str, permitted: &str| format!("Name:\tcurl\nUid:\t{uid}\nCapPrm:\t{permitted}\n");
        let told = |uid, permitted| danger(&status(uid, permitted), 7469);
        assert_eq!(told("1000\t1000\t1000\t1000", "0000000000000000"), None);
        assert!(told("1000\t7469\t1000\t1000", "0000000000000000").unwrap().contains("`curl` runs as user 7469"));
        let docker = told("0\t0\t0\t0", "00000000a80425fb").unwrap();
        assert!(docker.contains("CAP_SETUID, CAP_NET_RAW"), "{docker}");
        for cut in ["", "Name:", "Name:\tx\nUid:\t1\nCapPrm:\tz"] {
            assert_eq!(danger(cut, 7469), None);
        }
    }
}
