//! Files of which the command sees another one.
//!
//! | file | what it sees |
//! |---|---|
//! | /etc/resolv.conf | other resolvers, and the rest as it was |
//! | what /etc/ssh/ssh_config includes | the same, as its own: in a user namespace root's files are nobody's, and ssh refuses to read them |
//!
//! Fails closed: what cannot be replaced, though it is there, ends the start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use rustix::fs::{Mode, OFlags};

use super::hiding::{bind, mount_tmpfs};
use super::identity;

#[derive(Debug)]
pub(super) struct Replacement {
    path: PathBuf,
    text: Vec<u8>,
}

/// Read outside, before the command's namespaces exist. A file that is not there is left out: nobody reads it either.
pub(super) fn gather(nameservers: &[IpAddr]) -> Vec<Replacement> {
    let mut all = Vec::new();
    if let Ok(path) = fs::canonicalize("/etc/resolv.conf") {
        let own = fs::read_to_string(&path).unwrap_or_default();
        all.push(Replacement { path, text: resolv_conf(&own, nameservers).into_bytes() });
    }
    // Where everybody is who he was, so is root.
    if !identity::may_map_all() {
        all.extend(included(Path::new(SSH_CONFIG)).into_iter().map(|(path, text)| Replacement { path, text }));
    }
    all
}

/// Puts them in place in the mount namespace of this process, which must be its own.
pub(super) fn replace(all: &[Replacement]) -> io::Result<()> {
    // Somewhere to write where nobody looks, gone again before the command starts; what was bound from it stays.
    let place = Path::new("/tmp");
    if let Some(covered) = all.iter().find(|one| one.path.starts_with(place)) {
        let what = format!("{} stands in {} and cannot be replaced", covered.path.display(), place.display());
        return Err(io::Error::other(what));
    }
    mount_tmpfs(place)?;
    let done = all.iter().enumerate().try_for_each(|(number, one)| put(one, &place.join(number.to_string())));
    umount2(place, MntFlags::MNT_DETACH)?;
    done
}

fn put(replacement: &Replacement, written: &Path) -> io::Result<()> {
    fs::write(written, &replacement.text)?;
    fs::set_permissions(written, fs::Permissions::from_mode(0o644))?;
    bind(written, &replacement.path)
}

/// The host's file with other resolvers: its search list and options stay.
fn resolv_conf(own: &str, nameservers: &[IpAddr]) -> String {
    let kept = own.lines().filter(|line| !line.trim_start().starts_with("nameserver"));
    let servers = nameservers.iter().map(|address| format!("nameserver {address}"));
    servers.chain(kept.map(str::to_owned)).map(|line| line + "\n").collect()
}

/// The files that an ssh configuration includes, and those that they do (ssh_config(5)), each with its text.
fn included(config: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folder = config.parent().unwrap_or(Path::new("/"));
    let mut found = BTreeMap::new();
    let mut unread = vec![read(config).unwrap_or_default()];
    while let Some(text) = unread.pop() {
        let text = String::from_utf8_lossy(&text).into_owned();
        for path in text.lines().flat_map(patterns).flat_map(|pattern| matching(&folder.join(pattern))) {
            let Some(text) = read(&path).filter(|_| found.len() < FILES && !found.contains_key(&path)) else {
                continue;
            };
            unread.push(text.clone());
            found.insert(path, text);
        }
    }
    found
}

fn patterns(line: &str) -> impl Iterator<Item = &str> {
    let mut words = line.split(|c: char| c.is_whitespace() || c == '=' || c == '"').filter(|word| !word.is_empty());
    let is_include = words.next().is_some_and(|word| word.eq_ignore_ascii_case("include"));
    words.filter(move |_| is_include)
}

/// The files of a pattern with a `*` in its last part, if any: what distributions write.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let candidates = match name.split_once('*') {
        None => vec![pattern.to_owned()],
        Some((start, end)) => {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let fits = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end)))
            };
            entries.map(|entry| entry.path()).filter(fits).collect()
        }
    };
    candidates.iter().filter_map(|path| fs::canonicalize(path).ok()).filter(|path| path.is_file()).collect()
}

/// `None`: it cannot be read, or is larger than any such file.
fn read(path: &Path) -> Option<Vec<u8>> {
    // A file that ssh cannot read either is as it was.
    let file: OwnedFd =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file).take(LARGEST + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= LARGEST).then_some(text)
}

const SSH_CONFIG: &str = "/etc/ssh/ssh_config";
/// Files that are replaced, and the octets of the largest.
const FILES: usize = 64;
const LARGEST: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_replaced_and_the_rest_of_the_file_stays() {
        let own = "search lan example.com\nnameserver 192.0.2.53\n nameserver 2001:db8::53\noptions ndots:2\n";
        let servers = ["10.254.0.53".parse().unwrap()];
        assert_eq!(resolv_conf(own, &servers), "nameserver 10.254.0.53\nsearch lan example.com\noptions ndots:2\n");
    }

    #[test]
    fn what_an_ssh_configuration_includes_is_found_with_what_that_includes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        fs::create_dir(at("d")).unwrap();
        let elsewhere = at("back-end");
        for (name, text) in [
            ("config", "# Include no\nInclude d/*.conf\n".to_owned()),
            ("d/20-a.conf", format!(" include \"{}\" absent\n", elsewhere.display())),
            ("d/30-b.conf", "Host *\nInclude config d/20-a.conf\n".to_owned()),
            ("d/README", "Include d/no\n".to_owned()),
            ("back-end", "Ciphers x\n".to_owned()),
        ] {
            fs::write(at(name), text).unwrap();
        }
        let found: Vec<PathBuf> = included(&at("config")).into_keys().collect();
        assert_eq!(found, [elsewhere, at("config"), at("d/20-a.conf"), at("d/30-b.conf")]);
    }
}
