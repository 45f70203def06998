//! Lines to anything that takes octets: standard output, as a rule.

use std::io::{self, Write};

use super::{Line, Progress, Sink};

/// Never leaves half a line: the rest of one that was cut short goes before the next.
#[derive(Debug)]
pub struct Stream<W> {
    to: W,
    /// Of a line that counts as written.
    rest: Vec<u8>,
    /// Serves again and again.
    text: Vec<u8>,
}

impl<W: Write> Stream<W> {
    pub fn new(to: W) -> Self {
        Self { to, rest: Vec::new(), text: Vec::new() }
    }

    /// The same after something that was cut short by others.
    pub fn after_half_a_line(to: W) -> Self {
        Self { rest: b"\n".to_vec(), ..Self::new(to) }
    }
}

impl<W: Write> Sink for Stream<W> {
    fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        let (taken, result) = write_some(&mut self.to, &rest);
        if let Err(error) = result {
            self.rest = rest.get(taken..).unwrap_or_default().to_vec();
            return Err(error);
        }
        self.text.clear();
        lines.iter().for_each(|line| self.text.extend_from_slice(line.json));
        let (taken, result) = write_some(&mut self.to, &self.text);
        let mut end = 0;
        for line in lines {
            let start = end;
            end += line.json.len();
            if start >= taken {
                break;
            }
            progress.written += 1;
            self.rest = self.text.get(taken..end).unwrap_or_default().to_vec();
        }
        result.and_then(|()| self.to.flush())
    }
}

/// How many octets were taken, and what came then.
fn write_some(to: &mut impl Write, octets: &[u8]) -> (usize, io::Result<()>) {
    let mut taken = 0;
    while let Some(left) = octets.get(taken..).filter(|left| !left.is_empty()) {
        match to.write(left) {
            Ok(0) => return (taken, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (taken, Err(error)),
        }
    }
    (taken, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::sink::Weight;
    use std::time::SystemTime;

    /// Takes so many octets, then has no room until it is emptied.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let count = octets.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(octets.get(..count).unwrap_or_default());
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn wherever_room_ends_each_line_arrives_whole_and_once() {
        let texts = ["{\"a\":1}\n", "{\"b\":22}\n", "{\"c\":333}\n"];
        let line = |text: &'static str| Line {
            json: text.as_bytes(),
            time: SystemTime::UNIX_EPOCH,
            kind: "ip",
            weight: Weight::Usual,
        };
        let lines = texts.map(line);
        let whole = texts.concat();
        for room in 0..=whole.len() {
            let mut stream = Stream::new(Narrow { room, taken: Vec::new() });
            let mut progress = Progress::default();
            let full = stream.write(&lines, &mut progress).is_err();
            assert_eq!(full, room < whole.len());
            stream.to.room = whole.len();
            let rest = lines.get(progress.written..).unwrap();
            stream.write(rest, &mut progress).unwrap();
            assert_eq!(stream.to.taken, whole.as_bytes(), "room for {room}");
            assert_eq!(progress, Progress { written: 3, lost: 0 });
        }
    }
}
