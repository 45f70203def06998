//! A flow's first bytes say the same whole and octet by octet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::peek::tcp::{Limits, Step, TcpPeek};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { held: 8192, fingerprints: false };
    let whole = TcpPeek::new(limits).look(bytes, false);
    let mut peek = TcpPeek::new(limits);
    let found = (1..=bytes.len()).find_map(|end| match peek.look(&bytes[..end], false) {
        Step::Found(discovery) => Some(discovery),
        Step::NeedMore { .. } => None,
    });
    match whole {
        Step::Found(discovery) if !bytes.is_empty() => assert_eq!(found, Some(discovery)),
        _ => assert_eq!(found, None),
    }
});
