//! A line per exchange, written off the worker threads.

/// Takes records from workers and has a thread of its own write them.
#[derive(Debug)]
pub struct AccessLog;
