//! How far the reading of a long file is, on a terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Shows on standard error, if that is a terminal, how much of a file was read.
#[derive(Debug)]
pub struct Progress {
    file: File,
    name: String,
    read: u64,
    length: u64,
    shown: Option<Instant>,
}

/// `file`, with its progress shown if it is long and somebody looks.
pub fn of(file: File, path: &Path) -> Box<dyn Read> {
    let length = file.metadata().map_or(0, |about| about.len());
    if length < LONG || !io::stderr().is_terminal() {
        return Box::new(file);
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().escape_debug().to_string();
    Box::new(Progress { file, name, read: 0, length, shown: None })
}

impl Progress {
    fn show(&mut self) {
        if self.shown.is_some_and(|last| last.elapsed() < STEP) {
            return;
        }
        self.shown = Some(Instant::now());
        // Nobody is served worse if this line is lost.
        _ = write!(io::stderr(), "{}", line(&self.name, self.read, self.length));
    }
}

fn line(name: &str, read: u64, length: u64) -> String {
    let percent = (read.saturating_mul(100) / length.max(1)).min(100);
    let full = usize::try_from(percent / 5).unwrap_or(0);
    format!("\r\x1b[K{name} [{}{}] {percent} %", "#".repeat(full), ".".repeat(20_usize.saturating_sub(full)))
}

impl Read for Progress {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read = self.read.saturating_add(read as u64);
        self.show();
        Ok(read)
    }
}

impl Drop for Progress {
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
        assert_eq!(line("f", 0, 200), "\r\x1b[Kf [....................] 0 %");
        assert_eq!(line("f", 50, 200), "\r\x1b[Kf [#####...............] 25 %");
        assert_eq!(line("f", 999, 200), "\r\x1b[Kf [####################] 100 %");
        assert_eq!(line("f", 0, 0), "\r\x1b[Kf [....................] 0 %");
    }
}
