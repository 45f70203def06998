//! The client's side of an HTTP/2 connection is followed without a panic, and always onwards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::wire::http2::{Next, Requests};

fuzz_target!(|bytes: &[u8]| {
    let (mut requests, mut at) = (Requests::default(), 0);
    while let Ok(next) = requests.next(&bytes[at..]) {
        match next {
            Next::Needs(more) => return assert!(more > bytes.len() - at),
            Next::Pass(length) | Next::Request { length, .. } => {
                assert!(length > 0 && length <= bytes.len() - at);
                at += length;
            }
        }
    }
});
