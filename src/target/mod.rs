//! The target of a request in canonical form: its authority and its path.
//!
//! A rule protects what it names only if all readers read a request alike: the route table, the comparison with the name in a TLS
//! handshake, redirects, and the backend. So a target and its authority are made canonical here, or refused, before anything compares
//! them, and nothing compares anything else.
//!
//! Pure: bytes in, bytes out. What a listener or a route does with spellings that servers read differently (`paths`) is decided by
//! [`route::path`](crate::route::path).

pub mod authority;
pub mod path;
pub mod raw_target;

pub use authority::Host;
