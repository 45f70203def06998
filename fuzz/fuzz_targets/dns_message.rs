//! An answer is read, judged and written anew without a panic; what is written anew is read again, and says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::dns::review::addresses_of;
use tidegate::wire::dns::Message;
use tidegate::wire::dns::rebuild::{Change, rebuild};
use tidegate::wire::dns::svcb::{Service, Strip};

fuzz_target!(|octets: &[u8]| {
    let Ok(message) = Message::read(octets) else { return };
    for record in &message.records {
        assert!(record.data.end <= octets.len());
        let _ = (message.owner(record), message.name_in(record, 0));
        if let Ok(service) = Service::read(message.data(record)) {
            let _ = (service.hints().count(), service.without(Strip { ech: true, h3: true }, |ip| ip.is_ipv4()));
        }
    }
    let addresses = addresses_of(&message);
    let (mut same, mut fewer) = (Vec::new(), Vec::new());
    if rebuild(&message, |_| Change::Keep, &mut same).is_ok() {
        let read = Message::read(&same).expect("what is written is read");
        assert_eq!(read.records.len(), message.records.len());
        assert_eq!(addresses_of(&read).ok(), addresses.ok());
    }
    let mut odd = true;
    let every_other = |_: &_| {
        odd = !odd;
        if odd { Change::Remove } else { Change::Keep }
    };
    if rebuild(&message, every_other, &mut fewer).is_ok() {
        let read = Message::read(&fewer).expect("what is written is read");
        assert_eq!(read.records.len(), message.records.len().div_ceil(2));
    }
});
