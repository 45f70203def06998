//! Lines of any length, of which at most [`MAX_LINE`] octets are held.

use std::io::{self, BufRead};

use super::MAX_LINE;

pub(super) struct Lines<R> {
    source: R,
    /// Commas end a piece as lines do, outside comments.
    at_commas: bool,
    held: Vec<u8>,
    number: u64,
    octets: u64,
    /// The last piece ended with its line.
    ended: bool,
    /// What comes until the line ends is a comment.
    in_comment: bool,
}

pub(super) struct Piece<'a> {
    /// Of its line, from 1.
    pub number: u64,
    /// `None`: too long.
    pub text: Option<&'a [u8]>,
    pub beginning: &'a [u8],
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R, at_commas: bool) -> Self {
        Self { source, at_commas, held: Vec::new(), number: 0, octets: 0, ended: true, in_comment: false }
    }

    /// Lines that were begun.
    pub(super) fn count(&self) -> u64 {
        self.number
    }

    pub(super) fn octets(&self) -> u64 {
        self.octets
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        self.held.clear();
        let begins_line = self.ended;
        let mut length = 0_usize;
        let mut complete = false;
        while !complete {
            let chunk = self.source.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let end = if self.at_commas { end_of_piece(chunk, &mut self.in_comment) } else { end_of_line(chunk) };
            let piece = end.map_or(chunk, |end| chunk.get(..end).unwrap_or(chunk));
            let room = MAX_LINE.saturating_sub(self.held.len());
            self.held.extend_from_slice(piece.get(..room).unwrap_or(piece));
            length = length.saturating_add(piece.len());
            complete = end.is_some();
            if let Some(end) = end {
                self.ended = chunk.get(end) == Some(&b'\n');
            } else {
                self.ended = false;
            }
            let used = piece.len() + usize::from(complete);
            self.source.consume(used);
            self.octets += used as u64;
        }
        if length == 0 && !complete {
            return Ok(None);
        }
        self.number += u64::from(begins_line);
        self.in_comment &= !self.ended;
        let text = (length <= MAX_LINE).then_some(self.held.as_slice());
        Ok(Some(Piece { number: self.number, text, beginning: &self.held }))
    }
}

fn end_of_line(chunk: &[u8]) -> Option<usize> {
    chunk.iter().position(|octet| *octet == b'\n')
}

fn end_of_piece(chunk: &[u8], in_comment: &mut bool) -> Option<usize> {
    chunk.iter().position(|octet| {
        *in_comment |= matches!(octet, b'#' | b';');
        *octet == b'\n' || (*octet == b',' && !*in_comment)
    })
}
