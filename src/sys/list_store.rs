//! List files on disk, and the compiled form of the large ones.
//!
//! A large source is compiled once, into a file of the cache folder that is then mapped: the next start opens it without
//! reading the text. It is written beside and renamed into place, so there is no moment without a list, and a set in use
//! stays what it is. What is fetched stays here as well: see [`copy`].
//!
//! Fails closed: a compiled file that is damaged, of another state of its source, or in a folder that others may write
//! to is not used; the source is compiled again, in memory if it must be.

pub mod copy;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::mapped::Mapped;
use super::privileges::files::CACHE;
use crate::list::compile::{Builder, Compiled, compile};
use crate::list::file::{self, Octets, Stamp};
use crate::list::prefixes::Exceptions;
use crate::list::reader::{Options, Refused, Report};
use crate::list::refresh::Good;
use crate::list::{DomainSet, PrefixSet};

/// Where compiled lists, and copies of those that are fetched, are kept.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// `None`: nowhere, every list is in memory.
    folder: Option<PathBuf>,
    /// Octets of text from which a source is kept compiled.
    least: u64,
}

/// A list file, ready to be asked.
#[derive(Debug)]
pub struct Opened {
    pub domains: DomainSet,
    pub prefixes: PrefixSet,
    /// What reading the text showed; `None` if the compiled file was as new as the text.
    pub read: Option<Summary>,
    /// Where the compiled file is, if it is in one.
    pub compiled: Option<PathBuf>,
    /// Which state of the file this is: see [`state_of`].
    pub state: Stamp,
    ends_with_newline: bool,
}

#[derive(Clone, Debug)]
pub struct Summary {
    pub report: Report,
    /// Entries that were there already.
    pub doubled: u64,
    /// Why it is not kept compiled although it is large.
    pub not_kept: Option<Arc<io::Error>>,
}

impl Store {
    /// Compiled files in `folder`, which is made if need be, for sources of at least `least` octets.
    pub fn new(folder: PathBuf, least: u64) -> Self {
        Self { folder: Some(folder), least }
    }

    /// The folder that the service manager gives (`CACHE_DIRECTORY`), else `/var/cache/tidegate` for root and for whom
    /// root has given it to, and `tidegate` in the cache folder of anybody else.
    pub fn from_environment() -> Self {
        let given = |name| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
        let own = || match is_roots_cache_ours() {
            true => Some(PathBuf::from(CACHE)),
            false => {
                let caches = given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")))?;
                Some(caches.join("tidegate"))
            }
        };
        Self { folder: given("CACHE_DIRECTORY").or_else(own), least: LEAST_KEPT }
    }

    /// Where it is, if it is anywhere.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Opens the compiled form of `source`, or reads it. `wrap` sees the octets of the text as they are read: for
    /// progress.
    pub fn load(
        &self,
        source: &Path,
        options: &Options,
        wrap: impl FnOnce(File) -> Box<dyn Read>,
    ) -> Result<Opened, Refused> {
        // Before it is opened: opening a pipe waits for somebody to write to it.
        if !fs::metadata(source).map_err(Refused::Io)?.is_file() {
            return Err(Refused::Io(io::Error::other("it is not a regular file")));
        }
        let text = File::open(source).map_err(Refused::Io)?;
        let about = text.metadata().map_err(Refused::Io)?;
        let stamp = stamp_of(&about, options);
        let kept =
            self.folder.as_ref().filter(|_| about.len() >= self.least).map(|folder| kept_at(folder, source, options));
        if let Some(opened) = kept.as_ref().and_then(|path| open_kept(path, stamp)) {
            let ends_with_newline = has_last_newline(&text, about.len());
            return Ok(Opened { ends_with_newline, ..opened });
        }
        let (compiled, report) = compile(wrap(text), options)?;
        let mut summary = Summary { report, doubled: compiled.doubled, not_kept: None };
        if let Some(path) = &kept {
            match keep(&compiled, path, stamp) {
                Ok(()) => {
                    if let Some(opened) = open_kept(path, stamp) {
                        let ends_with_newline = summary.report.ends_with_newline;
                        return Ok(Opened { read: Some(summary), ends_with_newline, ..opened });
                    }
                    summary.not_kept = Some(Arc::new(io::Error::other("what was written is not what is read")));
                }
                Err(error) => summary.not_kept = Some(Arc::new(error)),
            }
        }
        let ends_with_newline = summary.report.ends_with_newline;
        let (domains, prefixes) = compiled.into_sets().map_err(Refused::Io)?;
        Ok(Opened { domains, prefixes, read: Some(summary), compiled: None, state: stamp, ends_with_newline })
    }
}

impl Opened {
    /// A file in which there is no entry yet.
    pub fn empty(source: &Path, options: &Options) -> io::Result<Self> {
        let state = state_of(source, options)?;
        let (domains, prefixes) = Builder::new(Exceptions::Always).finish().into_sets()?;
        Ok(Self { domains, prefixes, read: None, compiled: None, state, ends_with_newline: false })
    }

    /// How large it is, for the next state of its file to be compared with.
    pub fn good(&self) -> Good {
        let entries = self.domains.held() + self.prefixes.len() as u64;
        Good { entries, ends_with_newline: self.ends_with_newline }
    }
}

fn is_roots_cache_ours() -> bool {
    let own = nix::unistd::Uid::effective();
    own.is_root() || fs::metadata(CACHE).is_ok_and(|folder| folder.is_dir() && folder.uid() == own.as_raw())
}

/// Which state a file is in now: another one as soon as it is replaced or written to.
pub fn state_of(source: &Path, options: &Options) -> io::Result<Stamp> {
    Ok(stamp_of(&fs::metadata(source)?, options))
}

/// Another state of the source, other options or another version of this program have another stamp.
fn stamp_of(about: &fs::Metadata, options: &Options) -> Stamp {
    let mut hash = Sha256::new();
    for number in [about.dev(), about.ino(), about.len()] {
        hash.update(number.to_le_bytes());
    }
    for number in [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    hash.update(options.format.map_or("auto", |format| format.as_str()));
    hash.update([u8::from(options.subdomains)]);
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(READING.to_le_bytes());
    hash.finalize().into()
}

fn kept_at(folder: &Path, source: &Path, options: &Options) -> PathBuf {
    let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    named_after(folder, source.as_os_str().as_encoded_bytes(), options).with_extension("tdg")
}

/// A name for each source and way of reading it, so that two lists over one source do not overwrite each other.
fn named_after(folder: &Path, source: &[u8], options: &Options) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(source);
    hash.update(options.format.map_or("auto", |format| format.as_str()));
    hash.update([u8::from(options.subdomains)]);
    let name: String = hash.finalize().iter().take(16).map(|octet| format!("{octet:02x}")).collect();
    folder.join(name)
}

fn open_kept(path: &Path, stamp: Stamp) -> Option<Opened> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
    is_ours(&file.metadata().ok()?).then_some(())?;
    let octets: Octets = Arc::new(Mapped::open(&file).ok()?);
    if !file::has_stamp((*octets).as_ref(), stamp) {
        return None;
    }
    let (domains, prefixes) = file::open(octets).ok()?;
    let compiled = Some(path.to_owned());
    Some(Opened { domains, prefixes, read: None, compiled, state: stamp, ends_with_newline: false })
}

fn has_last_newline(text: &File, length: u64) -> bool {
    let mut last = [0];
    length > 0 && text.read_exact_at(&mut last, length - 1).is_ok_and(|()| last == *b"\n")
}

fn keep(compiled: &Compiled, path: &Path, stamp: Stamp) -> io::Result<()> {
    make_own_folder(path.parent().ok_or_else(|| io::Error::other("it has no folder"))?)?;
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = write_beside(compiled, &beside, stamp).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What is half written is of no use; that it cannot be removed either changes nothing.
        _ = fs::remove_file(&beside);
    }
    written
}

fn make_own_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    match is_ours(&fs::metadata(folder)?) {
        true => Ok(()),
        false => Err(io::Error::other(format!("others may write to {}", folder.display()))),
    }
}

/// The file holds the secret of its hashes, so only its owner may read it.
fn write_beside(compiled: &Compiled, path: &Path, stamp: Stamp) -> io::Result<()> {
    _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    compiled.write_to(stamp, &mut file)?;
    file.flush()?;
    file.sync_all()
}

/// Owned by this user or root, and written to by nobody else.
fn is_ours(about: &fs::Metadata) -> bool {
    let owners = [0, nix::unistd::Uid::effective().as_raw()];
    owners.contains(&about.uid()) && about.mode() & 0o022 == 0
}

/// One more whenever a text comes to say something else than before: what was compiled of it until then is not used.
const READING: u32 = 2;
/// Octets of text from which a list is kept compiled: smaller ones are read in the time that opening takes.
const LEAST_KEPT: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;
    use crate::list::format::Format;
    use crate::name::DomainName;

    struct Place {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::new(folder.path().join("cache"), 0);
            Self { folder, store }
        }

        fn source(&self) -> PathBuf {
            self.folder.path().join("list.txt")
        }

        fn write(&self, text: &str) {
            // A new file each time, as editors and downloads do, so that it has another identity.
            let beside = self.folder.path().join("list.new");
            fs::write(&beside, text).unwrap();
            fs::rename(beside, self.source()).unwrap();
        }

        fn load(&self) -> Opened {
            self.load_with(&Options::default()).unwrap()
        }

        fn load_with(&self, options: &Options) -> Result<Opened, Refused> {
            self.store.load(&self.source(), options, |file| Box::new(file))
        }
    }

    fn holds(opened: &Opened, name: &str) -> bool {
        opened.domains.holds(&DomainName::parse(name.as_bytes()).unwrap(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_list_is_compiled_once_and_again_when_its_source_is_another() {
        let place = Place::new();
        place.write("a.example\n192.0.2.0/24\n");
        let first = place.load();
        assert!(first.read.is_some() && holds(&first, "a.example"));
        let second = place.load();
        assert!(second.read.is_none() && second.compiled.is_some() && holds(&second, "a.example"));
        assert!(second.prefixes.holds("192.0.2.9".parse().unwrap(), SystemTime::UNIX_EPOCH));
        place.write("b.example\n");
        let third = place.load();
        assert!(third.read.is_some() && holds(&third, "b.example") && !holds(&third, "a.example"));
        assert!(holds(&second, "a.example"), "a set in use stays what it is");
    }

    #[test]
    fn a_damaged_or_shortened_compiled_file_is_built_again() {
        let place = Place::new();
        place.write("a.example\n");
        let path = place.load().compiled.unwrap();
        let good = fs::read(&path).unwrap();
        for damage in [&good[..good.len() / 2], &good[..good.len() - 1], b"", b"something else"] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, damage).unwrap();
            let again = place.load();
            assert!(again.read.is_some() && holds(&again, "a.example"));
            assert!(place.load().read.is_none());
        }
        let mut flipped = good.clone();
        flipped[300] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, flipped).unwrap();
        assert!(holds(&place.load(), "a.example"));
    }

    #[test]
    fn a_compiled_file_that_others_may_write_to_is_not_trusted() {
        let place = Place::new();
        place.write("a.example\n");
        let path = place.load().compiled.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(place.load().read.is_some(), "read again from its source");
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        place.write("b.example\n");
        let opened = place.load();
        assert!(opened.compiled.is_none() && holds(&opened, "b.example"));
        assert!(opened.read.unwrap().not_kept.unwrap().to_string().contains("others may write"));
    }

    #[test]
    fn two_ways_of_reading_one_file_are_two_lists() {
        let place = Place::new();
        place.write("a.example\n");
        let wide = Options { subdomains: true, ..Options::default() };
        for _ in 0..2 {
            assert!(!holds(&place.load(), "x.a.example"));
            assert!(holds(&place.load_with(&wide).unwrap(), "x.a.example"));
        }
        assert!(place.load().read.is_none() && place.load_with(&wide).unwrap().read.is_none());
    }

    #[test]
    fn what_is_no_list_is_refused_and_a_good_compiled_file_is_no_excuse() {
        let place = Place::new();
        place.write("a.example\n");
        place.load();
        place.write("<html>gone</html>");
        assert!(matches!(place.load_with(&Options::default()), Err(Refused::WebPage)));
        let hosts = Options { format: Some(Format::Hosts), ..Options::default() };
        place.write("a.example\n");
        assert!(matches!(place.load_with(&hosts), Err(Refused::Nothing { bad: 1 })));
        fs::remove_file(place.source()).unwrap();
        assert!(matches!(place.load_with(&Options::default()), Err(Refused::Io(_))));
        assert!(matches!(place.store.load(place.folder.path(), &hosts, |f| Box::new(f)), Err(Refused::Io(_))));
    }

    #[test]
    fn a_store_without_a_folder_keeps_everything_in_memory() {
        let place = Place::new();
        place.write("a.example\n");
        let opened = Store::default().load(&place.source(), &Options::default(), |f| Box::new(f)).unwrap();
        assert!(opened.compiled.is_none() && opened.read.unwrap().not_kept.is_none());
        assert!(!place.folder.path().join("cache").exists());
    }
}
