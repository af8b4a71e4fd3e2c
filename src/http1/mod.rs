//! HTTP/1.1 on the wire (RFC 9112), for both sides: bytes to messages and back. Nothing here waits, and nothing knows of
//! exchanges; reading and writing is in [`crate::listener::http1`] and [`crate::transport::http1`].
//!
//! Why this is not hyper's: `docs/decisions/0006-http1-of-our-own.md`.

pub mod chunked;
mod field;
pub mod head;
mod header_name;
pub mod outgoing;
#[cfg(target_os = "linux")]
pub mod splice;
#[cfg(not(target_os = "linux"))]
#[path = "splice_unsupported.rs"]
pub mod pipe;
pub mod request;
pub mod response;
pub mod buffers;
pub mod pass_through_headers;

pub use header_name::passes as passes_through;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, or none is left.
    #[default]
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks: its length is not known.
    Chunked,
    /// By the end of the connection.
    Close,
}
