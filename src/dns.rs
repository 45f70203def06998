//! DNS of protected hosts: interception, forwarding, blocked answers, and reading answers into bindings.

pub mod cache;
