//! Bodies.

use bytes::Bytes;

/// What a message carries.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// All of it at once.
    Full(Bytes),
}
