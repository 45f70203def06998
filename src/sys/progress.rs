//! How far the reading or fetching of a long file is, on a terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A line on standard error that is written anew as work goes on, and goes when it is done.
#[derive(Debug)]
struct Bar {
    name: String,
    shown: Option<Instant>,
}

/// Shows on standard error, if that is a terminal, how much of a file was read.
#[derive(Debug)]
struct Progress {
    file: File,
    bar: Bar,
    read: u64,
    length: u64,
}

/// `file`, with its progress shown if it is long and somebody looks.
pub fn of(file: File, path: &Path) -> Box<dyn Read> {
    let length = file.metadata().map_or(0, |about| about.len());
    if length < LONG || !io::stderr().is_terminal() {
        return Box::new(file);
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Box::new(Progress { file, bar: Bar::new(&name), read: 0, length })
}

/// Shows how many octets of `name` have come, and of how many if that is known, if somebody looks.
pub fn of_fetch(name: &str) -> Box<dyn FnMut(u64, Option<u64>)> {
    if !io::stderr().is_terminal() {
        return Box::new(|_, _| ());
    }
    let mut bar = Bar::new(name);
    Box::new(move |read, length| bar.show(read, length))
}

impl Bar {
    fn new(name: &str) -> Self {
        Self { name: name.escape_debug().to_string(), shown: None }
    }

    fn show(&mut self, done: u64, length: Option<u64>) {
        if self.shown.is_some_and(|last| last.elapsed() < STEP) {
            return;
        }
        self.shown = Some(Instant::now());
        // Nobody is served worse if this line is lost.
        _ = write!(io::stderr(), "{}", line(&self.name, done, length));
    }
}

fn line(name: &str, done: u64, length: Option<u64>) -> String {
    let Some(length) = length else { return format!("\r\x1b[K{name} {} KiB", done >> 10) };
    let percent = (done.saturating_mul(100) / length.max(1)).min(100);
    let full = usize::try_from(percent / 5).unwrap_or(0);
    format!("\r\x1b[K{name} [{}{}] {percent} %", "#".repeat(full), ".".repeat(20_usize.saturating_sub(full)))
}

impl Read for Progress {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read = self.read.saturating_add(read as u64);
        self.bar.show(self.read, Some(self.length));
        Ok(read)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown.is_some() {
            _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Octets from which reading takes long enough to be watched.
const LONG: u64 = 16 << 20;
const STEP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_with_the_file_and_never_runs_over() {
        assert_eq!(line("f", 0, Some(200)), "\r\x1b[Kf [....................] 0 %");
        assert_eq!(line("f", 50, Some(200)), "\r\x1b[Kf [#####...............] 25 %");
        assert_eq!(line("f", 999, Some(200)), "\r\x1b[Kf [####################] 100 %");
        assert_eq!(line("f", 0, Some(0)), "\r\x1b[Kf [....................] 0 %");
        assert_eq!(line("f", 5000, None), "\r\x1b[Kf 4 KiB");
    }
}
