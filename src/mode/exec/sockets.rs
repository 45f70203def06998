//! Where the path sockets of the host's programs stand.
//!
//! | which | where they are looked for |
//! |---|---|
//! | bound in this network namespace | the kernel's table, by the path that was bound |
//! | and moved or linked since, as ssh does with those of its connections | their folders |
//! | bound by a path from where the program stood | from where any process stands |
//! | of other network namespaces, mounted here, as an engine does in a container | the table of mounts |
//! | of other network namespaces | /run, the temporary folder and the home, some folders deep |
//!
//! Fails open: one that none of this finds is seen, as is one that is made later.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// All of them, by paths without links.
pub(super) fn find() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let bound = bound();
    // One by one as well: a folder may be closed to us that lets us through.
    found.extend(bound.iter().filter_map(|path| fs::canonicalize(path).ok()).filter(|path| is_socket(path)));
    let folders: BTreeSet<PathBuf> = bound.iter().filter_map(|path| fs::canonicalize(path.parent()?).ok()).collect();
    folders.iter().for_each(|folder| look_through(folder, 0, &mut found));
    for mount in mounts(&fs::read("/proc/self/mountinfo").unwrap_or_default()) {
        match mount.is_in_memory {
            true => look_through(&mount.point, 1, &mut found),
            false => found.extend(Some(mount.point).filter(|point| is_socket(point))),
        }
    }
    look_through(Path::new("/run"), RUN_DEPTH, &mut found);
    for folder in [Some(std::env::temp_dir()), std::env::home_dir()].into_iter().flatten() {
        look_through(&folder, 1, &mut found);
    }
    found
}

/// Every path to which a socket of this network namespace was bound.
fn bound() -> BTreeSet<PathBuf> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let names: Vec<&Path> = table.split(|octet| *octet == b'\n').skip(1).filter_map(name).collect();
    let (absolute, relative): (Vec<&Path>, Vec<&Path>) = names.into_iter().partition(|name| name.is_absolute());
    let mut paths: BTreeSet<PathBuf> = absolute.into_iter().map(Path::to_owned).collect();
    if !relative.is_empty() {
        let places = standing();
        paths.extend(relative.iter().flat_map(|name| places.iter().map(move |place| place.join(name))));
    }
    paths
}

/// What stands behind the seven columns of the table, unless it is the name of an abstract socket.
fn name(line: &[u8]) -> Option<&Path> {
    let mut rest = line;
    for _ in 0..7 {
        let column = rest.trim_ascii_start();
        rest = column.split_at_checked(column.iter().position(|octet| *octet == b' ')?)?.1;
    }
    let name = rest.strip_prefix(b" ")?;
    (!name.is_empty() && !name.starts_with(b"@")).then(|| Path::new(OsStr::from_bytes(name)))
}

/// The folders in which processes stand, as far as they are shown to us: only who is ours would serve us.
fn standing() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok()).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    is_in_memory: bool,
}

/// Every mount of a table (proc_pid_mountinfo(5)).
fn mounts(table: &[u8]) -> Vec<Mount> {
    let mount = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|octet| *octet == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let point = PathBuf::from(OsStr::from_bytes(&unescaped(fields.get(4)?)));
        Some(Mount { point, is_in_memory: *fields.get(dash + 1)? == b"tmpfs" })
    };
    table.split(|octet| *octet == b'\n').filter_map(mount).collect()
}

/// With three octal digits behind each backslash.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, others)) = rest.split_first() {
        let escaped = others.first_chunk::<3>().filter(|_| *first == b'\\');
        let escaped = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        octets.push(escaped.unwrap_or(*first));
        rest = others.get(if escaped.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    octets
}

fn look_through(folder: &Path, depth: u32, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => _ = found.insert(entry.path()),
            Ok(kind) if kind.is_dir() && depth > 0 => look_through(&entry.path(), depth - 1, found),
            _ => {}
        }
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket())
}

/// Folders below /run, one in another, that are looked through.
const RUN_DEPTH: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_behind_seven_columns_and_abstract_ones_are_none() {
        let line = |name: &str| format!("0000000000000000: 00000002 00000000 00010000 0001 01   17{name}");
        for (text, expected) in [
            (" /run/a b.sock", Some("/run/a b.sock")),
            (" agent.sock", Some("agent.sock")),
            (" @/tmp/.X11-unix/X0", None),
            (" ", None),
            ("", None),
        ] {
            assert_eq!(name(line(text).as_bytes()), expected.map(Path::new), "{text}");
        }
        assert_eq!(name(b"0: 2"), None);
    }

    #[test]
    fn mounts_are_read_with_what_is_escaped_in_them() {
        let table = b"36 35 98:0 /run/d.sock /door\\040of/d.sock rw shared:1 master:2 - ext4 /dev/root rw\n\
                      37 35 0:5 / /host\\134 rw - tmpfs none rw\n38 35\n";
        let mount = |point: &str, is_in_memory| Mount { point: point.into(), is_in_memory };
        assert_eq!(mounts(table), [mount("/door of/d.sock", false), mount("/host\\", true)]);
        assert_eq!(unescaped(b"\\9\\04"), b"\\9\\04");
    }
}
