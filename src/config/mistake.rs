//! What is wrong with a configuration: where, what, and how to mend it.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use super::documents::State;

/// A text that mistakes point into.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// The number of the first line of `text`, from 1: list files are held one line at a time.
    first_line: usize,
    /// Where each line of `text` begins.
    starts: Vec<usize>,
    /// Which state of the file it is, if it is one.
    pub(super) state: Option<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and is probably not what was meant.
    Warning,
}

/// One mistake, at one place.
#[derive(Clone, Debug)]
pub struct Mistake {
    pub severity: Severity,
    pub what: String,
    /// How to mend it.
    pub mend: String,
    source: Arc<Source>,
    span: Range<usize>,
}

/// Every mistake of a configuration, in the order of its files and lines.
#[derive(Clone, Debug, Default)]
pub struct Mistakes(pub Vec<Mistake>);

/// Where readers leave what they find, so that one mistake does not hide the next.
#[derive(Debug, Default)]
pub(super) struct Report(RefCell<Vec<Mistake>>);

/// A place in a [`Source`], by octets.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    pub(super) span: Range<usize>,
}

impl Source {
    pub(super) fn whole(path: PathBuf, text: String) -> Arc<Self> {
        Self::part(path, text, 1)
    }

    /// The same of a file that was in this state when reading it began.
    pub(super) fn file(path: PathBuf, text: String, state: State) -> Arc<Self> {
        Arc::new(Self { state: Some(state), ..Self::lines(path, text, 1) })
    }

    /// Some lines of a file, from the one with this number.
    pub(super) fn part(path: PathBuf, text: String, first_line: usize) -> Arc<Self> {
        Arc::new(Self::lines(path, text, first_line))
    }

    fn lines(path: PathBuf, text: String, first_line: usize) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(ends).collect();
        Self { path, text, first_line, starts, state: None }
    }

    /// Line and column of an octet, both from 1; the column counts characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let (line, start) = self.line_of(at);
        let column = self.text.get(start..boundary(&self.text, at)).unwrap_or_default().chars().count();
        (self.first_line + line, column + 1)
    }

    /// The index of the line that holds an octet, and where it begins.
    fn line_of(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
        (line, self.starts.get(line).copied().unwrap_or_default())
    }

    fn line_from(&self, start: usize) -> &str {
        self.text.get(start..).unwrap_or_default().lines().next().unwrap_or_default()
    }
}

impl Place {
    pub(super) fn start_of(source: &Arc<Source>) -> Self {
        Self { source: source.clone(), span: 0..0 }
    }

    /// `FILE:LINE`, to point from one place to another.
    pub(super) fn line(&self) -> String {
        format!("{}:{}", self.source.path.display(), self.source.position(self.span.start).0)
    }
}

impl Report {
    pub(super) fn error(&self, place: &Place, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Error, place, what.into(), mend.into());
    }

    pub(super) fn warning(&self, place: &Place, what: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Warning, place, what.into(), mend.into());
    }

    fn add(&self, severity: Severity, place: &Place, what: String, mend: String) {
        let Place { source, span } = place.clone();
        // What a file says may hold escapes for the terminal.
        let (what, mend) = (normalize_untrusted_str(&what), normalize_untrusted_str(&mend));
        self.0.borrow_mut().push(Mistake { severity, what, mend, source, span });
    }

    pub(super) fn errors(&self) -> usize {
        self.0.borrow().iter().filter(|mistake| mistake.severity == Severity::Error).count()
    }

    /// All that was found, each file's in the order of its lines.
    pub(super) fn into_mistakes(self) -> Mistakes {
        let mut found = self.0.into_inner();
        found.sort_by(|a, b| a.order().cmp(&b.order()));
        Mistakes(found)
    }
}

impl Mistakes {
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|mistake| mistake.severity == Severity::Error)
    }

    /// `colour`: for a terminal.
    pub fn render(&self, colour: bool) -> String {
        self.0.iter().map(|mistake| mistake.render(colour)).collect()
    }
}

impl Mistake {
    /// Line and column, both from 1.
    pub fn position(&self) -> (usize, usize) {
        self.source.position(self.span.start)
    }

    fn order(&self) -> (Severity, &std::path::Path, usize, usize) {
        (self.severity, &self.source.path, self.source.first_line, self.span.start)
    }

    /// The line that programs read, then the place as an excerpt that says how to mend it.
    fn render(&self, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let (index, start) = self.source.line_of(self.span.start);
        let line = self.source.line_from(start);
        let span = boundary(line, self.span.start - start)..boundary(line, self.span.end.saturating_sub(start));
        let annotation = AnnotationKind::Primary.span(span.start..span.end.max(span.start)).label(&self.mend);
        let snippet = Snippet::source(line).line_start(self.source.first_line + index).annotation(annotation);
        let excerpt = renderer.render(&[Group::with_level(level).element(snippet)]);
        format!("{}\n{excerpt}\n", self.head())
    }

    fn head(&self) -> String {
        let (line, column) = self.position();
        let path = self.source.path.display();
        format!("{path}:{line}:{column}: {}: {}", self.severity, self.what)
    }
}

/// The last boundary between characters that is not past `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One line: `FILE:LINE:COLUMN: error: WHAT: MEND`.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.head(), self.mend)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mistake| writeln!(f, "{mistake}"))
    }
}

impl std::error::Error for Mistakes {}
