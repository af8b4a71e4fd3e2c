//! What the process tells about itself: metrics, events, access log, logs.
//!
//! A leaf: imports nothing else of this crate but the configuration, how descriptors are dealt out, and what overload is.

pub mod metrics;
pub mod events;
pub mod line_writer;
pub mod access_log;
pub mod audit;
pub mod logging;
pub mod log_throttle;
pub mod calendar;
pub mod clock;
pub mod process_resources;
pub mod process;
pub mod heartbeat;
pub mod panics;
