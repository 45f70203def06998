//! The last good copy of a list that is fetched: it serves whenever the network does not.
//!
//! Beside the copy lies what is known of it: how large it was, and what the server called it. A fetch is written to a
//! file of its own, read as a list, and only then renamed over the copy.
//!
//! Fails safe: whatever goes wrong leaves the copy as it is. One that others may write to is not used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Store, is_ours, make_own_folder, named_after};
use crate::list::reader::{self, Options, Refused};
use crate::list::refresh::{Decision, Fetched, Good, Why, decide};
use crate::sys::fetch::{self, Answer, Failure, Limits, Origin, Validators, Watch};

/// Where the copy of a list is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The copy itself, which need not be there yet.
    pub path: PathBuf,
}

/// What is known of a copy.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    /// The file that this is about: of another one it says nothing.
    inode: u64,
    octets: u64,
    sha256: String,
    entries: u64,
    ends_with_newline: bool,
    /// Seconds since 1970 when the server last said that this is its file.
    checked: u64,
    validators: Validators,
}

/// What was written beside the copy.
struct Arrived {
    sha256: String,
    validators: Validators,
}

impl Store {
    /// The copy of what `url` gives, read in this way. `None`: this store keeps nothing.
    pub fn copy_of(&self, url: &str, options: &Options) -> Option<Copy> {
        let path = named_after(self.folder.as_ref()?, url.as_bytes(), options).with_extension("list");
        Some(Copy { path })
    }
}

impl Copy {
    /// Whether there is one. The error says why the one that is there is not used.
    pub fn is_there(&self) -> io::Result<bool> {
        let own = match fs::symlink_metadata(&self.path) {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if own.is_file() && is_ours(&own) && is_ours(&fs::metadata(self.folder())?) {
            return Ok(true);
        }
        Err(io::Error::other(format!("others may write to {}", self.path.display())))
    }

    /// When the server last said that this is its file. `None`: nobody knows.
    pub fn checked(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.about()?.checked))
    }

    /// Asks the server whether it has another file by now, and takes that if it is one (SPEC V4).
    ///
    /// # Errors
    ///
    /// Why the copy stays as it is, which [`Why::NotModified`] is too.
    pub fn refresh(
        &self,
        origin: &Origin,
        options: &Options,
        limits: &Limits,
        now: SystemTime,
        watch: Watch<'_>,
    ) -> Result<Good, Why> {
        make_own_folder(self.folder()).map_err(not_kept)?;
        let _lock = self.lock()?;
        let about = if self.is_there().map_err(not_kept)? { self.about() } else { None };
        let known = about.as_ref().map(About::good).or_else(|| self.count(options));
        let part = Part(self.path.with_extension("part"));
        let (fetched, arrived) = match fetch_into(&part.0, origin, about.as_ref(), limits, watch) {
            Ok(Some(arrived)) => (Fetched::Whole(read(&part.0, options)), Some(arrived)),
            Ok(None) => (Fetched::NotModified, None),
            Err(Failure::CutShort) => (Fetched::CutShort, None),
            Err(Failure::Other(why)) => (Fetched::Failed(why), None),
        };
        match (decide(known.as_ref(), &fetched), arrived, about) {
            (Decision::Replace(good), Some(arrived), _) => self.replace(&part, good, arrived, now),
            (Decision::Replace(_), None, _) => Err(Why::CutShort),
            (Decision::Keep(Why::NotModified), _, Some(about)) => {
                self.note(&About { checked: seconds(now), ..about }).map_err(not_kept)?;
                Err(Why::NotModified)
            }
            (Decision::Keep(why), ..) => Err(why),
        }
    }

    fn replace(&self, part: &Part, good: Good, arrived: Arrived, now: SystemTime) -> Result<Good, Why> {
        let own = fs::metadata(&part.0).map_err(not_kept)?;
        fs::rename(&part.0, &self.path).map_err(not_kept)?;
        let about = About {
            inode: own.ino(),
            octets: own.len(),
            sha256: arrived.sha256,
            entries: good.entries,
            ends_with_newline: good.ends_with_newline,
            checked: seconds(now),
            validators: arrived.validators,
        };
        self.note(&about).map_err(not_kept)?;
        Ok(good)
    }

    /// `None` too if it is about another file: this program ended between the two.
    fn about(&self) -> Option<About> {
        let about: About = serde_json::from_slice(&fs::read(self.about_path()).ok()?).ok()?;
        let own = fs::symlink_metadata(&self.path).ok()?;
        (own.ino() == about.inode && own.len() == about.octets).then_some(about)
    }

    fn note(&self, about: &About) -> io::Result<()> {
        let beside = self.path.with_extension("about.new");
        let mut file = create(&beside)?;
        file.write_all(&serde_json::to_vec(about)?)?;
        file.sync_all()?;
        fs::rename(beside, self.about_path())
    }

    /// How large a copy is of which nothing is known.
    fn count(&self, options: &Options) -> Option<Good> {
        let report = read(&self.path, options).ok()?;
        Some(Good { entries: report.held(), ends_with_newline: report.ends_with_newline })
    }

    /// Held by the one that fetches, of all processes and threads.
    fn lock(&self) -> Result<Lock, Why> {
        let path = self.path.with_extension("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(not_kept)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => Err(Why::Failed("another fetch of it is under way".into())),
            Err(fs::TryLockError::Error(error)) => Err(not_kept(error)),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn about_path(&self) -> PathBuf {
        self.path.with_extension("about")
    }
}

/// Given back when it is dropped. A closed file alone would not do: a child that another thread is starting has the
/// same file open until it runs its own program, and the lock with it.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // If it cannot be, the lock ends with the last who has the file.
        let _ = self.0.unlock();
    }
}

impl About {
    fn good(&self) -> Good {
        Good { entries: self.entries, ends_with_newline: self.ends_with_newline }
    }
}

/// `None`: the server has what is known already.
fn fetch_into(
    path: &Path,
    origin: &Origin,
    known: Option<&About>,
    limits: &Limits,
    watch: Watch<'_>,
) -> Result<Option<Arrived>, Failure> {
    let unwritten = |error: io::Error| Failure::Other(format!("it cannot be kept: {error}"));
    let validators = known.map(|about| about.validators.clone()).unwrap_or_default();
    let mut out = Summed { out: BufWriter::new(create(path).map_err(unwritten)?), sum: Sha256::new() };
    let Answer::Whole(validators) = fetch::fetch(origin, &validators, limits, &mut out, watch)? else {
        return Ok(None);
    };
    let file = out.out.into_inner().map_err(|error| unwritten(error.into_error()))?;
    file.sync_all().map_err(unwritten)?;
    let sha256 = out.sum.finalize().iter().map(|octet| format!("{octet:02x}")).collect();
    if known.is_some_and(|about| about.sha256 == sha256) {
        return Ok(None);
    }
    Ok(Some(Arrived { sha256, validators }))
}

fn read(path: &Path, options: &Options) -> Result<reader::Report, Refused> {
    reader::read(File::open(path).map_err(Refused::Io)?, options, &mut |_, _| ())
}

/// A new file that only its owner may read or write.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// What is fetched, until it is the copy: gone with this.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // It is not there if it was renamed, and what is half fetched is of no use.
        _ = fs::remove_file(&self.0);
    }
}

struct Summed<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let written = self.out.write(octets)?;
        self.sum.update(octets.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn not_kept(error: io::Error) -> Why {
    Why::Failed(format!("it cannot be kept: {error}"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_given_back_though_a_child_that_starts_has_its_file_open() {
        let folder = tempfile::tempdir().unwrap();
        let copy = Copy { path: folder.path().join("a.list") };
        let lock = copy.lock().unwrap();
        assert!(copy.lock().is_err());
        let _of_a_child = lock.0.try_clone().unwrap();
        drop(lock);
        assert!(copy.lock().is_ok());
    }
}
