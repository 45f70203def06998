//! What the command may change: it has the rights of the user who runs it.
//!
//! Fails closed: what cannot be told counts as changeable.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};

/// Whether the command may write this file, or put another one in its place.
pub fn is_in_reach(path: &Path) -> bool {
    let Ok(entries) = entries_on_the_way(path) else { return true };
    entries.last().is_none_or(|file| is_writable(file)) || entries.iter().any(|entry| is_replaceable(entry))
}

/// Every entry of a folder that is looked up on the way to a file, those that links lead through among them, and the
/// file's own last.
fn entries_on_the_way(path: &Path) -> io::Result<Vec<PathBuf>> {
    let absolute = std::path::absolute(path)?;
    let mut ahead: VecDeque<OsString> = parts(&absolute).collect();
    let (mut at, mut entries, mut links) = (PathBuf::from("/"), Vec::new(), 0);
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let entry = at.join(part);
        entries.push(entry.clone());
        if !fs::symlink_metadata(&entry)?.is_symlink() {
            at = entry;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let target = fs::read_link(&entry)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        parts(&target).rev().for_each(|part| ahead.push_front(part));
    }
    Ok(entries)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    let is_step = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned())
}

/// Or may be made so: whoever owns a file may change its mode.
fn is_writable(path: &Path) -> bool {
    let is_own = fs::metadata(path).is_ok_and(|about| about.uid() == Uid::effective().as_raw());
    is_own || access(path, AccessFlags::W_OK).is_ok()
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
/// As the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_file_of_ones_own_is_in_reach_and_one_of_the_kernel_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("list.txt");
        assert!(is_in_reach(&file), "it is not there, and may be made");
        fs::write(&file, "").unwrap();
        assert!(is_in_reach(&file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(is_in_reach(&file), "it may be replaced");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert!(is_in_reach(&link));
        assert_eq!(is_in_reach(Path::new("/proc/version")), Uid::effective().is_root());
    }

    #[test]
    fn a_file_of_ones_own_and_one_behind_a_link_of_ones_own_are_in_reach_wherever_they_stand() {
        if !Uid::effective().is_root() {
            return io::stderr()
                .write_all(b"SKIPPED, NOTHING WAS TESTED: another user is needed, and so root\n")
                .unwrap();
        }
        let [shut, open] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (folder, mode) in [(&shut, 0o755), (&open, 0o777)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        }
        let at = |folder: &tempfile::TempDir, name: &str| folder.path().join(name);
        let (file, own) = (at(&shut, "list.txt"), at(&shut, "own.txt"));
        for path in [&file, &own] {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        }
        symlink("list.txt", at(&shut, "short")).unwrap();
        symlink(&file, at(&open, "middle")).unwrap();
        symlink(at(&open, "middle"), at(&shut, "long")).unwrap();
        chown(&own, Some(SOMEBODY), None).unwrap();
        for (path, expected) in [(file, false), (at(&shut, "short"), false), (own, true), (at(&shut, "long"), true)] {
            assert_eq!(as_somebody(|| is_in_reach(&path)), expected, "{path:?}");
        }
    }

    /// On a thread of its own, which becomes that user for good.
    fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let user = rustix::thread::Uid::from_raw(SOMEBODY);
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    const SOMEBODY: u32 = 65_534;
}
