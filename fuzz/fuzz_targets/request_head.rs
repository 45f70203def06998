//! A request head is read without a panic, and its body followed to the same end in all splits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::wire::http::body::Follow;
use tidegate::wire::http::{HeadEnd, Request};

fuzz_target!(|bytes: &[u8]| {
    let _ = Request::parse_simple(bytes);
    let Ok(Some(end)) = HeadEnd::default().find(bytes) else { return };
    let Ok(request) = Request::parse(&bytes[..end]) else { return };
    let body = &bytes[end..];
    let whole = Follow::new(request.body).follow(body);
    let (mut follow, mut at) = (Follow::new(request.body), 0);
    for shown in 0..=body.len() {
        match follow.follow(&body[at..shown]) {
            Ok(part) => {
                at += part.length;
                if part.is_last {
                    break;
                }
            }
            Err(_) => return assert!(whole.is_err()),
        }
    }
    if let Ok(whole) = whole {
        assert_eq!(at, whole.length);
    }
});
