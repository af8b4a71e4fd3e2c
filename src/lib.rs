//! isobar: a reverse-proxy load balancer and gateway.
//!
//! One binary, configured by one file, `lb.toml`. The modules in reading order:
//!
//! | Module | Holds |
//! |---|---|
//! | [`proxy`] | the data plane: one request from head to end; [`proxy::Proxy::handle`] is the page to read first |
//! | [`route`] | which route a request takes |
//! | [`middleware`] | plug-ins around an exchange |
//! | [`upstream`] | a named pool of interchangeable backends; leases |
//! | [`discovery`] | finds the backends of upstreams; a program's own ways to |
//! | [`health`] | asks backends by itself whether they are well |
//! | [`strategy`] | the algorithms that pick a backend |
//! | [`backend`] | one address, and what is known about it |
//! | [`transport`] | bytes to a backend and back: connections and their pools |
//! | [`relay`] | bytes both ways between two streams |
//! | [`exchange`] | one request with its response: identity, deadlines, bodies |
//! | [`http1`] | HTTP/1.1: bytes to messages and back |
//! | [`target`] | what a request asks for, in one form: its authority and its path |
//! | [`http_client`] | HTTP that isobar speaks by itself: what `isobar ctl` asks |
//! | [`header_names`] | names of header fields, in any spelling that a server reads |
//! | [`socket`] | a connection's bytes, in the clear or by TLS |
//! | [`tls`] | certificates and keys from their files to handshakes |
//! | [`listener`] | sockets to connections |
//! | [`handover`] | listening sockets from one process to the next |
//! | [`worker`] | a thread with its own event loop |
//! | [`supervisor`] | owns everything that runs; applies a changed file |
//! | [`admin`] | reads and steers a running process over HTTP |
//! | [`embed`] | an isobar inside a program: start it, look at it, stop it |
//! | [`config`] | text to meaning |
//! | [`file_descriptors`] | how many file descriptors there are, and what may take the next one |
//! | [`overload`] | whether there is more to do than the process can |
//! | [`telemetry`] | metrics, access log, logs |
//! | [`cli`] | one file per subcommand |
//!
//! A program may embed the library, with strategies of its own (see `examples/custom_strategy.rs`), its own ways to find backends
//! (see `examples/custom_discovery.rs`) and middleware of its own (see `examples/own_middleware.rs`).

pub mod admin;
pub mod backend;
pub mod cli;
pub mod config;
pub mod file_descriptors;
pub mod discovery;
pub mod registry;
pub mod embed;
mod eureka_xml;
pub mod exchange;
pub mod http_client;
pub mod header_names;
pub mod handover;
pub mod health;
pub mod http1;
pub mod listener;
pub mod middleware;
pub mod overload;
pub mod proxy;
pub mod relay;
pub mod route;
pub mod socket;
pub mod strategy;
pub mod supervisor;
pub mod target;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod upstream;
pub mod worker;

pub use embed::{Isobar, Running};
