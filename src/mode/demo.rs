//! `tidegate demo`.

pub mod lab;
pub mod tap;
