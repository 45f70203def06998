//! Sinks that fail, metrics, and status, of a gateway that goes on carrying flows.
//!
//! ```text
//! client -- gateway (tidegate run; metrics, socket, sinks) -- server
//! ```

mod exposition;
mod sinks;
mod status;

use std::net::SocketAddr;

use tidegate::mode::demo::client::{Outcome, Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use crate::gateway::{at, configuration, request};

/// The usual Network, and `[telemetry]` as given.
fn with_telemetry(lines: &str) -> String {
    configuration("tcp-reset", "type = \"prefer-both\"") + "[telemetry]\n" + lines
}

/// An HTTP request that names `name`, to the server.
fn ask(lab: &Lab, family: Family, name: &str) -> Outcome {
    let request = request(family, at(Site::A, family, 1, 80), Some(name));
    lab.client.run(|| ask_http(&request)).unwrap()
}

/// An allowed flow; tells its client's address.
fn pass(lab: &Lab, family: Family) -> SocketAddr {
    let outcome = ask(lab, family, "allowed.example");
    assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
    outcome.source.unwrap()
}

/// A flow that is blocked by its name.
fn be_blocked(lab: &Lab, family: Family) -> SocketAddr {
    let outcome = ask(lab, family, "blocked.example");
    assert_eq!(outcome.saw, Saw::Reset, "{outcome:?}");
    outcome.source.unwrap()
}
