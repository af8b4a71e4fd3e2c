//! Behaviour over real sockets: a proxy as an embedding program starts it, scripted backends, and clients that send what
//! they please. One file per behaviour.

// A harness is test code too, but clippy takes only what is inside `#[test]` for it.
#![allow(clippy::unwrap_used)]

mod harness;
mod addresses;
mod backend_tls;
mod backend_http2;
mod breaker;
mod cancel;
mod early_answers;
mod client_gone;
mod connection_age;
mod consul;
mod consul_cluster;
mod ctl;
mod descriptors;
mod discovery;
mod dns;
mod docker;
mod knot;
mod errors;
mod etcd;
mod eureka;
mod faults;
mod grpc;
mod file_edits;
mod forwarding;
mod headers;
mod health;
mod hosts;
mod told;
mod idle;
mod killed_backend;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(feature = "kubernetes")]
mod kube_apiserver;
mod large;
mod last_resort;
mod layering;
mod levers;
mod limits;
mod overload;
mod outliers;
mod blame;
mod panics;
mod middleware;
mod nacos;
mod paths;
mod picking;
mod process;
mod queue;
mod refusals;
mod registries;
mod registry;
mod embedded_registry;
mod reload_under_load;
mod restarts;
mod retries;
mod attempts;
mod retry_budget;
mod hedging;
mod http2;
mod http2_frames;
mod routes;
mod secrets;
mod seeing;
mod services;
mod slow;
mod smoke;
mod smuggling;
mod stop;
mod storm;
mod survives_a_reload;
mod takeover;
mod strategies;
mod timeouts;
mod tls;
mod truncated;
mod turns;
mod upgrade;
mod workers;
mod wrapped_bodies;
mod zookeeper;
