//! A query is read without a panic, and what is answered to it here is an answer to it, and no longer than it may be.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tidegate::dns::service::is_answer_to;
use tidegate::wire::dns::query::{self, Local, Query, Refused};
use tidegate::wire::dns::{Message, rcode};

fuzz_target!(|octets: &[u8]| {
    let mut made = Vec::new();
    let query = match Query::read(octets) {
        Ok(query) => query,
        Err(Refused::Ignore) => return,
        Err(Refused::Answer(code)) => {
            query::refuse(octets, code, &mut made);
            return assert!(made.get(2).is_some_and(|flags| flags & 0x80 != 0));
        }
    };
    let addresses: [IpAddr; 2] = [[192, 0, 2, 1].into(), [0x2001u16, 0xdb8, 0, 0, 0, 0, 0, 1].into()];
    for rcode in [rcode::NO_ERROR, rcode::NXDOMAIN, rcode::SERVFAIL] {
        let local = Local { rcode, addresses: &addresses, ttl: 60, error: Some(query::error::BLOCKED) };
        query::answer(&query, &local, &mut made);
        assert!(is_answer_to(query.question.octets, query.header.id, &made) && made.len() <= 512);
        Message::read(&made).expect("what is made is read");
    }
    query::truncate(&query, 0x8000, &mut made);
    assert!(is_answer_to(query.question.octets, query.header.id, &made));
    if query::without_options(&query, &mut made).is_some() {
        let read = Query::read(&made).expect("a query without its options is a query");
        assert!(read.edns.is_some_and(|edns| edns.options.is_empty()));
    }
});
