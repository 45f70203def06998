//! A list is read without a panic in every format, whole and in small pieces alike, and within its limits.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use tidegate::list::format::Format;
use tidegate::list::reader::{Limits, Options, read};

/// Gives a few octets at a time.
struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let size = into.len().min(7);
        self.0.read(&mut into[..size])
    }
}

fuzz_target!(|octets: &[u8]| {
    for format in Format::ALL.into_iter().map(Some).chain([None]) {
        let limits = Limits { octets: 1 << 20, entries: 100, reported: 3 };
        let options = Options { format, subdomains: octets.len().is_multiple_of(2), limits };
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        let first = read(octets, &options, &mut |line, entry| whole.push((line, format!("{entry:?}"))));
        let second = read(Pieces(octets), &options, &mut |line, entry| pieces.push((line, format!("{entry:?}"))));
        assert_eq!(whole, pieces);
        assert_eq!(first.as_ref().ok(), second.as_ref().ok());
        if let Ok(report) = first {
            assert!(report.taken <= 100 && report.first_bad.len() <= 3);
        }
    }
});
