//! Lines to a file that is rotated by size and age.
//!
//! `records.jsonl` becomes `records.jsonl.1`, that `.2`, and so on; those past the number to keep go. A file that somebody
//! else moved away (logrotate) is made anew within a second, without a signal.
//!
//! Fails safe: if rotating fails, the old file goes on, and it is tried again; a full disk makes records wait.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::{Line, Progress, Sink, Stream};

/// When a file is put aside, and how many of those are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Before it grows past so many octets.
    pub size: u64,
    /// Once it was begun so long ago.
    pub age: Duration,
    pub keep: usize,
}

#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    rotation: Rotation,
    open: Open,
    looked: Instant,
    /// Rotating failed, and is left alone until then.
    again: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    stream: Stream<File>,
    inode: (u64, u64),
    size: u64,
    began: SystemTime,
}

impl FileSink {
    /// Opens or makes the file.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let open = Open::at(path)?;
        Ok(Self { path: path.to_owned(), rotation, open, looked: Instant::now(), again: None })
    }

    fn make_ready(&mut self, coming: u64) {
        let now = Instant::now();
        if now.duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.follow_path();
        }
        let age = SystemTime::now().duration_since(self.open.began).unwrap_or_default();
        let is_due = self.open.size + coming > self.rotation.size || age >= self.rotation.age;
        if self.open.size == 0 || !is_due || self.again.is_some_and(|again| now < again) {
            return;
        }
        self.again = match self.rotate() {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "cannot be rotated, and goes on");
                Some(now + RETRY)
            }
        };
    }

    /// Somebody else may have moved the file away.
    fn follow_path(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.open.inode) {
            return;
        }
        match Open::at(&self.path) {
            Ok(open) => self.open = open,
            Err(error) => tracing::warn!(file = %self.path.display(), %error, "cannot be made anew"),
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.rotation.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for number in (1..self.rotation.keep).rev() {
                rename_if_there(&self.aside(number), &self.aside(number + 1))?;
            }
            fs::rename(&self.path, self.aside(1))?;
        }
        self.open = Open::at(&self.path)?;
        Ok(())
    }

    fn aside(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Sink for FileSink {
    fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()> {
        let mut left = lines;
        while let Some(first) = left.first() {
            self.make_ready(first.json.len() as u64);
            let room = self.rotation.size.saturating_sub(self.open.size);
            let mut sum = 0;
            let fitting = left.iter().take_while(|line| {
                sum += line.json.len() as u64;
                sum <= room
            });
            // One that is longer than a whole file gets a file for itself.
            let count = fitting.count().max(1);
            let (now, later) = left.split_at_checked(count).unwrap_or((left, &[]));
            let before = progress.written;
            let result = self.open.stream.write(now, progress);
            let written = now.iter().take(progress.written - before);
            self.open.size += written.map(|line| line.json.len() as u64).sum::<u64>();
            result?;
            left = later;
        }
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            // Opening a pipe would wait for its reader, and rotating would rename a device.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file"));
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
        let found = file.metadata()?;
        let mut last = [b'\n'];
        if let Some(at) = found.len().checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        // Not every filesystem knows when a file was made.
        let began = if found.len() == 0 { Err(io::ErrorKind::NotFound.into()) } else { found.created() };
        Ok(Self {
            inode: (found.dev(), found.ino()),
            size: found.len(),
            began: began.unwrap_or_else(|_| SystemTime::now()),
            // A crash may have cut a line short.
            stream: if last == [b'\n'] { Stream::new(file) } else { Stream::after_half_a_line(file) },
        })
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Records tell who went where.
const MODE: u32 = 0o640;
/// How often the file is looked for at its path.
const LOOK: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sink::Weight;
    use std::os::unix::fs::PermissionsExt;

    const NEVER: Duration = Duration::from_secs(1 << 40);

    fn line(json: &[u8]) -> Line<'_> {
        Line { json, time: SystemTime::UNIX_EPOCH, kind: "ip", weight: Weight::Usual }
    }

    fn write(sink: &mut FileSink, texts: &[&str]) {
        let lines: Vec<_> = texts.iter().map(|text| line(text.as_bytes())).collect();
        let mut progress = Progress::default();
        sink.write(&lines, &mut progress).unwrap();
        assert_eq!(progress.written, texts.len());
    }

    fn contents(folder: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap()))
            .collect();
        found.sort();
        found
    }

    fn named(found: &[(String, String)]) -> Vec<(&str, &str)> {
        found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }

    #[test]
    fn files_are_put_aside_by_size_at_line_ends_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let mut sink = FileSink::open(&path, Rotation { size: 8, age: NEVER, keep: 2 }).unwrap();
        write(&mut sink, &["1234\n", "123\n", "abc\n", "defg\n", "longer than a file\n", "end\n"]);
        let found = contents(folder.path());
        assert_eq!(named(&found), [("r", "end\n"), ("r.1", "longer than a file\n"), ("r.2", "defg\n")]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_was_begun_long_ago_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let mut sink = FileSink::open(&path, Rotation { size: 99, age: Duration::from_secs(60), keep: 1 }).unwrap();
        write(&mut sink, &["a\n"]);
        write(&mut sink, &["b\n"]);
        sink.open.began -= Duration::from_secs(61);
        write(&mut sink, &["c\n"]);
        assert_eq!(named(&contents(folder.path())), [("r", "c\n"), ("r.1", "a\nb\n")]);
    }

    #[test]
    fn a_file_that_somebody_moved_away_is_made_anew_and_a_restart_goes_on_with_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let rotation = Rotation { size: 99, age: NEVER, keep: 1 };
        let mut sink = FileSink::open(&path, rotation).unwrap();
        write(&mut sink, &["a\n"]);
        fs::rename(&path, folder.path().join("moved")).unwrap();
        sink.looked -= LOOK;
        write(&mut sink, &["b\n"]);
        drop(sink);
        write(&mut FileSink::open(&path, rotation).unwrap(), &["c\n"]);
        assert_eq!(named(&contents(folder.path())), [("moved", "a\n"), ("r", "b\nc\n")]);
        fs::write(&path, "b\n{\"cut sho").unwrap();
        write(&mut FileSink::open(&path, rotation).unwrap(), &["c\n"]);
        assert_eq!(named(&contents(folder.path())), [("moved", "a\n"), ("r", "b\n{\"cut sho\nc\n")]);
    }

    #[test]
    fn a_full_disk_takes_nothing_and_loses_nothing() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut progress = Progress::default();
        let error = Stream::new(full).write(&[line(b"a\n")], &mut progress).unwrap_err();
        assert_eq!((error.kind(), progress), (io::ErrorKind::StorageFull, Progress::default()));
    }
}
