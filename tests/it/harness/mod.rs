//! What the tests share: a scripted backend, a proxy under test, a client that sends bytes as they are.
//!
//! Everything waits at most [`PATIENCE`], generous because the machine may be busy, and panics then.

// A helper that only some configurations or branches use is no reason for a warning.
#![allow(dead_code, unused_imports)]

use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

mod backend;
mod client;
pub(crate) mod dns;
mod log;
mod message;
mod proxy;
mod scratch;

pub(crate) use backend::{After, Peer, TestBackend, free_address, take_port};
pub(crate) use client::Client;
pub(crate) use dns::{Dns, Mood, Record};
pub(crate) use log::Log;
pub(crate) use message::{Cut, Head, Message, Response, Stream, body_of};
pub(crate) use proxy::{Keys, TestProxy, backends};
pub(crate) use scratch::Scratch;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: what {caller} waits for");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits for `future`.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("not within {PATIENCE:?}: what {caller} waits for"),
        }
    }
}

/// Waits until nobody listens there any more. Asked by binding: a connection would disturb another test that has been given
/// the port in the meantime.
#[track_caller]
pub(crate) fn unbound(address: std::net::SocketAddr) -> impl Future<Output = ()> {
    eventually(move || std::net::TcpListener::bind(address).is_ok())
}
