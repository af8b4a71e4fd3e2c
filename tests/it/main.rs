//! Behaviour over real sockets: a proxy as an embedding program starts it, scripted backends, and clients that send what
//! they please. One file per behaviour.

// A harness is test code too, but clippy takes only what is inside `#[test]` for it.
#![allow(clippy::unwrap_used)]

mod harness;
mod forwarding;
mod layering;
mod smoke;
mod survives_a_reload;
