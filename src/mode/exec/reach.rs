//! What the command may change: it has the rights of the user who runs it.
//!
//! Fails closed: what cannot be told counts as changeable.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, Uid, access};

/// Whether the command may write this file, or put another one in its place.
pub fn is_in_reach(path: &Path) -> bool {
    let Ok(absolute) = std::path::absolute(path) else { return true };
    let Ok(resolved) = fs::canonicalize(path) else { return true };
    is_writable(&resolved) || [absolute, resolved].iter().any(|path| path.ancestors().any(is_replaceable))
}

fn is_writable(path: &Path) -> bool {
    access(path, AccessFlags::W_OK).is_ok()
}

/// Whether the folder lets its entry be renamed.
fn is_replaceable(entry: &Path) -> bool {
    let Some(folder) = entry.parent() else { return false };
    if !is_writable(folder) {
        return false;
    }
    let (Ok(about), Ok(of_entry)) = (fs::metadata(folder), fs::symlink_metadata(entry)) else { return true };
    let own = Uid::effective();
    let is_own = own.is_root() || [about.uid(), of_entry.uid()].contains(&own.as_raw());
    is_own || about.mode() & STICKY == 0
}

const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_ones_own_is_in_reach_and_one_of_the_kernel_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("list.txt");
        assert!(is_in_reach(&file), "it is not there, and may be made");
        fs::write(&file, "").unwrap();
        assert!(is_in_reach(&file));
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        assert!(is_in_reach(&file), "it may be replaced");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert!(is_in_reach(&link));
        assert_eq!(is_in_reach(Path::new("/proc/version")), Uid::effective().is_root());
    }
}
