//! The data plane: one request.

pub mod snapshot;

pub use snapshot::Snapshot;
