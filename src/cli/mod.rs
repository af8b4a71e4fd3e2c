//! .

pub mod healthcheck;
