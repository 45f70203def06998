//! The files that tidegate may still open (Landlock).
//!
//! Folders rather than files, for a file is often replaced by another of its name. Nothing may be executed.
//!
//! Fails open, aloud: a kernel without Landlock (before 5.13, or switched off) confines nothing, and the log says so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};

/// Where root keeps lists that are fetched, if the service manager names no other folder.
pub const CACHE: &str = "/var/cache/tidegate";
/// The same for what is there only while it runs.
pub const RUNTIME: &str = "/run/tidegate";

/// Folders, each with all that lies below.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    pub read: BTreeSet<PathBuf>,
    /// To be read as well.
    pub write: BTreeSet<PathBuf>,
}

impl Allowed {
    /// The folder in which a file lies, to be read.
    pub fn read_beside(&mut self, file: &Path) {
        self.read.insert(folder_of(file));
    }

    /// The folder in which a file lies, to be written to.
    pub fn write_beside(&mut self, file: &Path) {
        self.write.insert(folder_of(file));
    }
}

/// Allows these, and what every program needs, to this thread and all that it starts, for good. `Err` says why not all
/// of it is in force.
pub fn confine(allowed: &Allowed) -> Result<(), String> {
    let read = AccessFs::from_read(ABI::V5) & !BitFlags::from(AccessFs::Execute);
    let write = AccessFs::from_write(ABI::V5) | read;
    let written = write & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let confine = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .scope(Scope::Signal)?
            .create()?
            .add_rules(path_beneath_rules(ALWAYS.iter().map(Path::new), read))?
            .add_rules(path_beneath_rules(&allowed.read, read))?
            .add_rules(path_beneath_rules(&allowed.write, written))?
            .restrict_self()
    };
    match confine() {
        Ok(done) if done.ruleset == RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock: what may be opened is not confined".to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("Landlock cannot be used, what may be opened is not confined: {error}")),
    }
}

/// Links are followed: what is meant is where the file lies.
fn folder_of(file: &Path) -> PathBuf {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    folder.to_owned()
}

/// What the C library and the kernel's own settings are read from, whenever a server's name is looked up or a counter
/// asked for. /etc as a whole, for /etc/resolv.conf is replaced by another file of its name.
const ALWAYS: &[&str] = &[
    "/etc",
    "/proc",
    "/sys/fs/cgroup",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/usr",
    "/lib",
    "/lib64",
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;
    use std::io::Write;

    use super::*;

    #[test]
    fn nothing_but_what_is_allowed_can_be_opened() {
        let [read, write, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        for folder in [&read, &write, &other] {
            fs::write(folder.path().join("file"), "text").unwrap();
        }
        let mut allowed = Allowed::default();
        allowed.read_beside(&read.path().join("file"));
        allowed.write_beside(&write.path().join("file"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(why) = confine(&allowed) {
                    // As on a kernel of before 5.13: it must be said, and nothing more.
                    let note = format!("SKIPPED, NOTHING WAS TESTED: {why}\n");
                    return std::io::stderr().write_all(note.as_bytes()).unwrap();
                }
                assert_eq!(fs::read(read.path().join("file")).unwrap(), b"text");
                fs::write(write.path().join("new"), "text").unwrap();
                fs::rename(write.path().join("new"), write.path().join("file")).unwrap();
                fs::read("/etc/hostname").or_else(|_| fs::read("/etc/passwd")).unwrap();
                for refused in [
                    fs::write(read.path().join("file"), "other"),
                    fs::write(other.path().join("file"), "other"),
                    fs::read(other.path().join("file")).map(drop),
                    fs::write("/etc/tidegate-test", "other"),
                ] {
                    assert_eq!(refused.unwrap_err().kind(), PermissionDenied);
                }
            });
        });
    }
}
