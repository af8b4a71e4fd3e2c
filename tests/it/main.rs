//! Behaviour over real sockets, one file per behaviour.

#![allow(clippy::unwrap_used, missing_docs)]

mod layering;
