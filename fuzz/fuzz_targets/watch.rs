//! Whatever a client and a server say, the relay is told to forward what is there and no more, and nothing twice.
//!
//! The first octet says how much the client sends at a time; what the server says stands behind the first 0xff 0xff.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::peek::tcp::{Budget, Limits, Step, TcpPeek};
use tidegate::peek::watch::{HttpRequestsJudged, Next, Watch};

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let cut = bytes.windows(2).position(|pair| pair == [0xff, 0xff]);
    let (client, server) = cut.map_or((bytes, &[][..]), |cut| (&bytes[..cut], &bytes[cut + 2..]));
    let mut server = server.chunks(7);
    let mut peek = TcpPeek::new(Limits { held: 4096, fingerprints: false });
    let (mut held, mut sent, mut watch) = (Vec::new(), 0, None);
    for new in client.chunks(usize::from(*size) + 1) {
        held.extend_from_slice(new);
        if watch.is_none() {
            let discovery = match peek.look(&held, false) {
                Step::Found(discovery) => discovery,
                Step::NeedMore { .. } if size % 2 == 0 => continue,
                Step::NeedMore { .. } => peek.give_up(Budget::Deadline).expect("a deadline ends every wait"),
            };
            watch = Some(Watch::after(peek.clone(), &discovery, &held, HttpRequestsJudged::Every));
        }
        let Some(watch) = &mut watch else { continue };
        if let Some(new) = server.next() {
            watch.server(new);
        }
        let mut judged = 0;
        loop {
            match watch.next(&held, false) {
                Next::Forward(count) => {
                    assert!(count > 0 && count <= held.len());
                    held.drain(..count);
                    sent += count;
                    judged = 0;
                }
                Next::Judge(_) => {
                    judged += 1;
                    assert!(judged <= held.len() + 1);
                }
                Next::More => break,
                Next::Splice => {
                    sent += held.len();
                    held.clear();
                    break;
                }
            }
        }
    }
    assert!(sent + held.len() <= client.len());
});
