//! Which route a request takes.

/// .
#[derive(Debug)]
pub struct Table;
