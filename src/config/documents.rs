//! The files that a configuration is written in, and whether they are still as they were.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::{files_in, matches};
use super::mistake::Source;

/// The configuration, what it includes, and where more of that may appear.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    files: Vec<PathBuf>,
    /// As `include` names them, seen from the working folder.
    patterns: Vec<PathBuf>,
    /// Files with nothing in them.
    blank: Vec<PathBuf>,
    /// When they were read.
    seen: Sight,
}

/// What is seen of the files at one time. Another one means that something was written, replaced, added or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight(Vec<(PathBuf, Option<State>)>);

/// Device, inode, length, and the time of the last change in nanoseconds.
pub(super) type State = (u64, u64, u64, i64, i64);

impl Documents {
    /// Of what was read: a look only now would take for read what somebody has written since.
    pub(super) fn new<'a>(sources: impl Iterator<Item = &'a Arc<Source>>, patterns: Vec<PathBuf>) -> Self {
        let (mut files, mut blank, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        for source in sources {
            files.push(source.path.clone());
            blank.extend(source.text.trim().is_empty().then(|| source.path.clone()));
            seen.push((source.path.clone(), source.state));
        }
        seen.sort();
        Self { files, patterns, blank, seen: Sight(seen) }
    }

    /// A file with nothing in it by now, though it had.
    pub(super) fn emptied_since(&self, before: &Self) -> Option<&Path> {
        let held = |file: &&PathBuf| before.files.contains(file) && !before.blank.contains(file);
        self.blank.iter().find(held).map(PathBuf::as_path)
    }

    /// What `include` still names, and matches no file by now, though it did.
    pub(super) fn lost_since(&self, before: &Self) -> Option<&Path> {
        let found = |own: &Self, pattern: &Path| own.files.iter().any(|file| is_matched(file, pattern));
        let lost = |pattern: &&PathBuf| found(before, pattern) && !found(self, pattern);
        self.patterns.iter().find(lost).map(PathBuf::as_path)
    }

    /// What was seen of them when they were read.
    pub fn as_read(&self) -> &Sight {
        &self.seen
    }

    /// Every folder in which one of them lies, or may come to lie.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().chain(&self.patterns).filter_map(|path| path.parent())
    }

    /// A file that cannot be seen is another one than before, too.
    pub fn look(&self) -> Sight {
        let mut files = self.files.clone();
        for pattern in &self.patterns {
            let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str()))
            else {
                continue;
            };
            files.extend(files_in(folder, name).unwrap_or_default());
        }
        files.sort();
        files.dedup();
        let state = |file: &Path| std::fs::metadata(file).ok().map(|about| state_of(&about));
        Sight(files.into_iter().map(|file| (file.clone(), state(&file))).collect())
    }
}

fn is_matched(file: &Path, pattern: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.as_encoded_bytes().to_owned());
    let matched = name(pattern).zip(name(file)).is_some_and(|(pattern, name)| matches(&pattern, &name));
    file.parent() == pattern.parent() && matched
}

pub(super) fn state_of(about: &Metadata) -> State {
    (about.dev(), about.ino(), about.len(), about.ctime(), about.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::document::open;
    use super::super::mistake::Report;
    use super::*;

    fn read(path: &Path) -> Arc<Source> {
        open(path, None, &Report::default()).unwrap()
    }

    #[test]
    fn what_is_written_after_a_file_was_read_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.toml");
        fs::write(&path, "a").unwrap();
        let source = read(&path);
        let untouched = Documents::new([&source].into_iter(), Vec::new());
        assert_eq!(untouched.look(), *untouched.as_read());
        fs::write(&path, "other").unwrap();
        let documents = Documents::new([&source].into_iter(), Vec::new());
        assert_ne!(documents.look(), *documents.as_read());
    }

    #[test]
    fn a_pattern_that_matches_nothing_any_more_is_told() {
        let of = |files: &[&str], patterns: &[&str]| Documents {
            files: files.iter().map(PathBuf::from).collect(),
            patterns: patterns.iter().map(PathBuf::from).collect(),
            ..Documents::default()
        };
        let both = of(&["t.toml", "a.d/1.toml", "a.d/2.toml"], &["a.d/*.toml", "b.d/*.toml"]);
        for (next, lost) in [
            (&both, None),
            (&of(&["t.toml", "a.d/2.toml"], &["a.d/*.toml", "b.d/*.toml"]), None),
            (&of(&["t.toml", "b.d/2.toml"], &["b.d/*.toml", "a.d/*.toml"]), Some("a.d/*.toml")),
            (&of(&["t.toml"], &["b.d/*.toml"]), None),
        ] {
            assert_eq!(next.lost_since(&both), lost.map(Path::new), "{next:?}");
        }
    }

    #[test]
    fn a_file_that_was_cut_to_nothing_is_told() {
        let of = |texts: &[(&str, &str)]| {
            let sources: Vec<_> = texts.iter().map(|(path, text)| Source::whole(path.into(), (*text).into())).collect();
            Documents::new(sources.iter(), Vec::new())
        };
        let before = of(&[("t.toml", "a = 1"), ("old.toml", "\n")]);
        for (texts, emptied) in [
            (&[("t.toml", "# nothing"), ("old.toml", "")][..], None),
            (&[("old.toml", "a = 1"), ("new.toml", "")], None),
            (&[("old.toml", ""), ("t.toml", "")], Some("t.toml")),
            (&[("t.toml", " \n")], Some("t.toml")),
        ] {
            assert_eq!(of(texts).emptied_since(&before), emptied.map(Path::new), "{texts:?}");
        }
    }

    #[test]
    fn what_is_written_replaced_added_or_removed_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("tidegate.toml"), "a").unwrap();
        fs::create_dir(at("more.d")).unwrap();
        let documents = Documents::new([&read(&at("tidegate.toml"))].into_iter(), vec![at("more.d").join("*.toml")]);
        let mut last = documents.look();
        let mut differs = |changed: bool, what: &str| {
            let now = documents.look();
            assert_eq!(now != last, changed, "{what}");
            last = now;
        };
        differs(false, "nothing");
        fs::write(at("tidegate.toml"), "other").unwrap();
        differs(true, "written");
        fs::write(at("new"), "other").unwrap();
        differs(false, "another file beside it");
        fs::rename(at("new"), at("tidegate.toml")).unwrap();
        differs(true, "replaced");
        fs::write(at("more.d").join("notes"), "").unwrap();
        differs(false, "what no pattern matches");
        fs::write(at("more.d").join("one.toml"), "").unwrap();
        differs(true, "added");
        fs::remove_file(at("more.d").join("one.toml")).unwrap();
        differs(true, "removed");
    }
}
