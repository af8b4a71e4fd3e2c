//! What the fuzz targets check. Each module has a `check` that takes any bytes and panics where something is wrong, so that a
//! kept input can be checked again without a fuzzer.

pub mod config;
pub mod connection;
pub mod headers;
mod http2;
pub mod inside;
pub mod response;
pub mod route;
pub mod strict;
