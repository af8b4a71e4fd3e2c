//! `[listener.http2]`: what one connection of HTTP/2 may have and do.

use super::check::Check;
use super::error::Problem;
use super::form::{Size, Whole};
use super::report::Place;
use super::table::Table;

/// HTTP/2, for clients that begin with it. Enabled by default; with `enabled = false` the listener speaks HTTP/1.1 alone. Limits are those of one
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, check = Self::check, reload = Connections)]
pub struct Http2Config {
    /// Requests (streams) at a time. One more is refused, and the client may send it again.
    #[key(Whole(1..=10_000), default = 128)]
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body that may be under way and not taken by its backend.
    #[key(Size("64KiB", "1GiB"), default = "256KiB")]
    pub stream_window: u32,
    /// The same for all requests together: what a connection can make isobar hold. Not below `stream_window`.
    #[key(Size("64KiB", "1GiB"), default = "1MiB")]
    pub connection_window: u32,
    /// Requests that the client takes back in a second, and as many that it makes isobar refuse. More is a flood, and the connection ends.
    #[key(Whole(1..=1_000_000), default = 200)]
    pub resets_per_second: u32,
    /// Frames of each kind that carry nothing, in a second. More is a flood, and the connection ends.
    #[key(Whole(10..=1_000_000), default = 1000)]
    pub control_frames_per_second: u32,
}

impl Http2Config {
    fn check(check: &Check<'_>, _: Place, written: &WrittenHttp2Config, it: Self) -> Option<Self> {
        if let (Some(place), true) = (written.connection_window.place(), it.connection_window < it.stream_window) {
            let shown = check.show_other(written.stream_window.place(), it.stream_window);
            let problem = Problem::error(format!("below stream_window, which is {shown}"));
            check.add(place, problem.expected("stream_window at least"));
        }
        Some(it)
    }
}

impl Default for Http2Config {
    fn default() -> Self {
        Self::of_defaults()
    }
}
