//! Integration tests: real packets between namespaces of their own.

#![allow(clippy::unwrap_used, clippy::panic)]

mod architecture;
mod inside;
mod namespaces;
mod quic;
