//! Behaviour over real sockets: a proxy as an embedding program starts it, scripted backends, and clients that send what
//! they please. One file per behaviour.

// A harness is test code too, but clippy takes only what is inside `#[test]` for it.
#![allow(clippy::unwrap_used)]

mod harness;
mod client_gone;
mod errors;
mod forwarding;
mod headers;
mod limits;
mod retries;
mod routes;
mod seeing;
mod smoke;
mod smuggling;
mod strategies;
mod timeouts;
mod truncated;
mod upgrade;
mod workers;
