//! The known word that a mistyped one most likely meant.

/// Among more words than these no likeness is sought.
const MAX_KNOWN: usize = 1000;

/// The nearest of `known`, if it is near enough to be meant: two edits, or a third of a longer word.
pub(super) fn nearest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    // A long word is nobody's slip, and comparing costs its length squared for each known word.
    if written.len() > 64 || known.len() > MAX_KNOWN {
        return None;
    }
    let written = written.to_lowercase();
    let near = known.iter().map(|word| (edits(&written, word), *word)).min_by_key(|(edits, _)| *edits);
    near.filter(|(edits, word)| *edits < word.len() && *edits <= (word.len() / 3).clamp(1, 3)).map(|(_, word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differ = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + differ);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_that_was_meant() {
        let known = ["verdict", "entries", "file", "format", "subdomains", "tls_ports", "http_ports"];
        for (written, meant) in [
            ("verdit", Some("verdict")),
            ("entires", Some("entries")),
            ("sub_domains", Some("subdomains")),
            ("tls_port", Some("tls_ports")),
            ("File", Some("file")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, &known), meant, "{written}");
        }
    }
}
