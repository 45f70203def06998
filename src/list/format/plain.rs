//! One entry a line: an address, a prefix or a name; `#` or `;` begins a comment.

use super::{Emit, Line, before_comment};
use crate::list::entry::{Bad, Entry};

pub(super) fn line(line: &str, subdomains: bool, emit: &mut Emit<'_>) -> Result<Line, Bad> {
    let text = before_comment(line, &['#', ';']);
    if text.is_empty() {
        return Ok(Line::Empty);
    }
    if text.contains(char::is_whitespace) {
        return Err(Bad::Form("one entry a line"));
    }
    let entry = Entry::parse(text)?;
    emit(if subdomains { entry.widened() } else { entry });
    Ok(Line::Taken)
}
