//! Counters that cost a load and a store.
//!
//! Each worker writes its own shard only, so counting takes neither a lock nor a locked instruction and no
//! cache line goes back and forth between cores. Readers add the shards up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::{GrpcStatus, PathsKey};

/// A count that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the thread that owns the shard may call this: two writers lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// What was counted.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One value a worker, each on cache lines of its own.
#[derive(Debug)]
pub struct Sharded<T>(Box<[Shard<T>]>);

/// 128 bytes: x86 prefetches lines in pairs, and some ARM cores have lines that long.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard<T>(T);

impl<T: Default> Sharded<T> {
    /// `shards` of them, at least one.
    pub fn new(shards: usize) -> Self {
        Self((0..shards.max(1)).map(|_| Shard::default()).collect())
    }
}

impl<T> Sharded<T> {
    /// The shard of a worker. A number too high takes the last: wrong by a lost count, not by a panic.
    pub fn of(&self, worker: usize) -> &T {
        &self.0[worker.min(self.0.len() - 1)].0
    }

    /// All shards.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &shard.0)
    }

    /// A count, summed over the shards.
    pub fn sum(&self, counter: impl Fn(&T) -> &Counter) -> u64 {
        self.iter().map(|shard| counter(shard).get()).sum()
    }
}

/// What a worker counts of a backend.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    /// Times that a strategy picked it (attempts, retries included).
    pub picks: Counter,
    /// Responses by the first digit of their status: 1xx to 5xx at 0 to 4.
    pub responses: [Counter; 5],
    /// Connections made.
    pub connects: Counter,
    /// Of these, connections by TLS whose handshake was a whole one.
    pub handshakes_full: Counter,
    /// Of these, connections by TLS that took up an earlier session.
    pub handshakes_resumed: Counter,
    /// Connections that could not be made, timeouts included.
    pub connect_failures: Counter,
    /// Attempts that were sent and brought no response head.
    pub broken: Counter,
    /// Attempts whose response head did not come in time.
    pub timeouts: Counter,
}

/// What a worker counts of an upstream.
#[derive(Debug, Default)]
pub struct UpstreamMetrics {
    /// Exchanges by the first digit of the status that the client was answered with: 1xx to 5xx at 0 to 4.
    pub responses: [Counter; 5],
    /// Further attempts, by what they came after: those of [`RetryCause`] in its order.
    pub retries: [Counter; RetryCause::ALL.len()],
    /// Requests that were tried again and got an answer that was not to be tried again.
    pub retried_well: Counter,
    /// Requests that were tried again, and failed or got the last answer that no further attempt was made after.
    pub retried_in_vain: Counter,
    /// Further attempts that were not made because the retry budget was spent.
    pub retry_budget_spent: Counter,
    /// Second attempts while the first was slow.
    pub hedges: Counter,
    /// Those that were answered first.
    pub hedges_won: Counter,
    /// Those that were not made because their budget was spent.
    pub hedge_budget_spent: Counter,
    /// Requests that found no backend to pick.
    pub no_backend: Counter,
    /// How long those waited that had to wait for a backend with room, however it ended.
    pub queue_waits: Histogram,
    /// Requests that found as many waiting as may.
    pub queue_full: Counter,
    /// Requests that waited too long.
    pub queue_timeouts: Counter,
    /// Attempts that the circuit breaker refused.
    pub breaker_refused: Counter,
    /// Times that the circuit breaker opened.
    pub breaker_opened: Counter,
    /// Calls of gRPC by the status that they have come to: those of [`GrpcStatus`] in its order.
    pub grpc: [Counter; GrpcStatus::ALL.len()],
    /// From the request's head to the end of the response.
    pub durations: Histogram,
}

/// What a further attempt came after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// Nothing was sent: there was no connection, or it broke before.
    ConnectFailure,
    /// The connection broke before any byte of a response.
    Reset,
    /// The attempt took too long.
    Timeout,
    /// A response whose status is tried again.
    Status,
}

impl RetryCause {
    /// All of them, in the order that they are counted in.
    pub const ALL: [Self; 4] = [Self::ConnectFailure, Self::Reset, Self::Timeout, Self::Status];

    /// In metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailure => "connect_failure",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Status => "status",
        }
    }
}

impl UpstreamMetrics {
    /// Further attempts in all, over the shards.
    pub fn all_retries(shards: &Sharded<Self>) -> u64 {
        (0..RetryCause::ALL.len()).map(|index| shards.sum(|shard| &shard.retries[index])).sum()
    }
}

/// What a worker counts of a route.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// Exchanges by the first digit of the status that the client was answered with: 1xx to 5xx at 0 to 4.
    pub responses: [Counter; 5],
}

/// What a worker counts of a middleware.
#[derive(Debug, Default)]
pub struct MiddlewareMetrics {
    /// Requests that it has answered.
    pub answered: Counter,
    /// Requests that waited for it.
    pub waited: Counter,
    /// Those of them that were answered 504 because it took too long.
    pub timeouts: Counter,
}

/// What a worker counts of a listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed again.
    pub closed: Counter,
    /// Connections refused because of `max_connections`.
    pub refused: Counter,
    /// Connections closed at once because of a limit of their address: those of [`AddressLimit`] in its order.
    pub limited: [Counter; AddressLimit::ALL.len()],
    /// Requests whose head was read.
    pub requests: Counter,
    /// Exchanges that have ended; `requests - ended` are in flight.
    pub ended: Counter,
    /// Requests that were refused before a route was looked for (malformed, too large, too slow).
    pub rejected: Counter,
    /// Refusals, of these and of connections, that the access log has no line for because there were too many.
    pub refusals_left_out: Counter,
    /// Exchanges and tunnels that were cut because the time to finish was over.
    pub cut: Counter,
    /// Requests for another host than the one that their connection was made for.
    pub misdirected: Counter,
    /// Requests whose path was refused, by which key of `paths`: those of [`PathsKey`] in its order.
    pub paths_refused: [Counter; PathsKey::ALL.len()],
    /// Bytes of request bodies.
    pub bytes_in: Counter,
    /// Bytes of response bodies.
    pub bytes_out: Counter,
    /// Bodies that a client was too slow with: those of requests, and of responses.
    pub slow_bodies: [Counter; 2],
    /// Upgraded connections begun.
    pub tunnels_opened: Counter,
    /// Upgraded connections ended.
    pub tunnels_closed: Counter,
    /// TLS handshakes that succeeded, by [`handshake_index`].
    pub handshakes: [Counter; 4],
    /// TLS handshakes that failed, by why: those of [`HandshakeFailure`] in its order.
    pub handshake_failures: [Counter; HandshakeFailure::ALL.len()],
    /// Connections on which HTTP/2 began.
    pub http2_opened: Counter,
    /// Those that have ended.
    pub http2_closed: Counter,
    /// Streams of HTTP/2 begun.
    pub http2_streams: Counter,
    /// Those that have ended.
    pub http2_streams_ended: Counter,
    /// Streams that the client reset, or that broke with its connection.
    pub http2_resets_client: Counter,
    /// Streams that we reset, because a response was cut short or a request was malformed.
    pub http2_resets_proxy: Counter,
    /// Connections of HTTP/2 that were ended because of a flood: those of [`FloodKind`] in its order.
    pub http2_floods: [Counter; FloodKind::ALL.len()],
}

/// A limit that an address has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressLimit {
    /// Its connections at a time.
    Connections,
    /// Its TLS handshakes in a second.
    Handshakes,
}

impl AddressLimit {
    /// All of them, in the order that they are counted in.
    pub const ALL: [Self; 2] = [Self::Connections, Self::Handshakes];

    /// In metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
        }
    }
}

/// Where a handshake is counted: whether it was of TLS 1.3, not 1.2, and whether a session was resumed.
pub fn handshake_index(new: bool, resumed: bool) -> usize {
    usize::from(new) * 2 + usize::from(resumed)
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// It took too long, waiting for its turn included.
    Timeout,
    /// The client named a host that no certificate is for, or there is none that it can verify.
    NoCertificate,
    /// No version, cipher suite, group or protocol in common.
    Incompatible,
    /// The client ended it by an alert: mostly it does not trust the certificate.
    Alert,
    /// The client's certificate is missing or not to be trusted.
    ClientCertificate,
    /// What came is not TLS, or not as it should be.
    Protocol,
    /// What came is HTTP in the clear.
    PlainHttp,
    /// The connection ended.
    Closed,
}

impl HandshakeFailure {
    /// All of them, in the order that they are counted in.
    pub const ALL: [Self; 8] = [
        Self::Timeout,
        Self::NoCertificate,
        Self::Incompatible,
        Self::Alert,
        Self::ClientCertificate,
        Self::Protocol,
        Self::PlainHttp,
        Self::Closed,
    ];

    /// In metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::NoCertificate => "no_certificate",
            Self::Incompatible => "incompatible",
            Self::Alert => "alert",
            Self::ClientCertificate => "client_certificate",
            Self::Protocol => "protocol",
            Self::PlainHttp => "plain_http",
            Self::Closed => "closed",
        }
    }
}

/// What a client of HTTP/2 sends too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloodKind {
    /// Resets of its streams.
    Reset,
    /// What we have to reset its streams for.
    Error,
    /// Frames of one header block.
    Continuation,
    /// Bytes of one header block.
    HeaderBlock,
    /// A header block that does not end in time.
    SlowHeaders,
    /// SETTINGS.
    Settings,
    /// PING.
    Ping,
    /// PRIORITY.
    Priority,
    /// DATA without a byte.
    EmptyData,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// Unknown frames, and answers to what was not asked.
    Unknown,
    /// What the crate `h2` counts by itself.
    Other,
}

impl FloodKind {
    /// All of them, in the order that they are counted in.
    pub const ALL: [Self; 12] = [
        Self::Reset,
        Self::Error,
        Self::Continuation,
        Self::HeaderBlock,
        Self::SlowHeaders,
        Self::Settings,
        Self::Ping,
        Self::Priority,
        Self::EmptyData,
        Self::WindowUpdate,
        Self::Unknown,
        Self::Other,
    ];

    /// In metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Error => "error",
            Self::Continuation => "continuation",
            Self::HeaderBlock => "header_block",
            Self::SlowHeaders => "slow_headers",
            Self::Settings => "settings",
            Self::Ping => "ping",
            Self::Priority => "priority",
            Self::EmptyData => "empty_data",
            Self::WindowUpdate => "window_update",
            Self::Unknown => "unknown",
            Self::Other => "other",
        }
    }
}

/// Upper bounds of the buckets, in microseconds; one more bucket holds the rest.
pub const BUCKET_BOUNDS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// How long things took, counted in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKET_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        // Most requests of a fast service end in one of the first buckets: a scan from below beats a binary search.
        let bucket = BUCKET_BOUNDS_US.iter().position(|&bound| us <= bound).unwrap_or(BUCKET_BOUNDS_US.len());
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }

    /// The count in each bucket, the last of them without a bound, not cumulated.
    pub fn counts(&self) -> [u64; BUCKET_BOUNDS_US.len() + 1] {
        std::array::from_fn(|i| self.buckets[i].get())
    }

    /// All that was observed, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.get()
    }
}
