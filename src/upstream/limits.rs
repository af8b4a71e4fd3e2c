//! The settings of the machines that limit what is asked of an upstream, as its configuration has them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Upstream;
use super::adaptive_limit::GradientSettings;
use super::circuit_breaker::BreakerSettings;
use super::sliding_window::WindowSpan;
use crate::backend::Backend;
use crate::backend::limits::Permits;
use crate::backend::queue::{QueueDiscipline, QueueSettings};
use crate::config::{AdaptiveLimitConfig, BackendLimits, BreakerConfig, LimitsConfig, QueueConfig, QueueOrder};

/// The settings of the moment, handed to the machines with each event.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamLimits {
    /// The queue for backends with a free slot: its length and time.
    pub queue: QueueSettings,
    /// When backends are not asked for a while; `None`: they always are.
    pub breaker: Option<BreakerSettings>,
    /// How the limit for all backends together moves; `None`: there is none.
    pub adaptive: Option<GradientSettings>,
    /// Of a backend of which nothing else is said.
    backend: BackendLimits,
}

impl UpstreamLimits {
    /// What `config` comes to.
    pub(super) fn new(config: &LimitsConfig) -> Self {
        Self {
            queue: queue(&config.queue),
            breaker: config.breaker.as_ref().map(breaker),
            adaptive: config.adaptive.as_ref().map(gradient),
            backend: config.backend,
        }
    }

    /// Whether one of these backends, or all together, may be full.
    pub(super) fn bound<'b>(&self, backends: impl IntoIterator<Item = &'b Backend>) -> bool {
        self.adaptive.is_some() || backends.into_iter().any(|backend| self.of(backend) != BackendLimits::default())
    }

    fn of(&self, backend: &Backend) -> BackendLimits {
        backend.instance.limits.unwrap_or(self.backend)
    }
}

impl Upstream {
    /// From now on the limits of its configuration hold, also for requests of the snapshot before: a backend has one limit,
    /// each request. Waiting requests look again. Does not wait. Control plane only; before requests are served with
    /// it.
    pub fn enforce(&self) {
        self.enforce_at(self.roster().backends());
        self.state.room.queue.widened();
    }

    /// The same for these backends, before requests are served with them. Who waits is not told.
    pub(super) fn enforce_at(&self, backends: &[Backend]) {
        let bounded = self.limits.bound(backends);
        self.bounded.store(bounded, Ordering::Relaxed);
        if bounded {
            self.state.room.bound();
        }
        for backend in backends {
            let BackendLimits { max_in_flight, max_connections } = self.limits.of(backend);
            let connections = max_connections.unwrap_or(Permits::UNLIMITED);
            // Each request in flight has a connection to itself.
            backend.state.set_limits(max_in_flight.unwrap_or(Permits::UNLIMITED).min(connections), connections);
        }
    }

    /// Whether a backend, or all together, may be full: only then the queue matters.
    #[inline]
    pub fn is_bounded(&self) -> bool {
        self.bounded.load(Ordering::Relaxed)
    }
}

fn queue(config: &QueueConfig) -> QueueSettings {
    let QueueConfig { target, interval, .. } = *config;
    let order = match config.order {
        QueueOrder::Fifo => QueueDiscipline::Fifo,
        QueueOrder::Adaptive => QueueDiscipline::Adaptive { target, interval },
    };
    QueueSettings { max: config.length, timeout: config.timeout, order }
}

fn breaker(config: &BreakerConfig) -> BreakerSettings {
    BreakerSettings {
        window: WindowSpan::new(config.window),
        min_calls: config.min_calls,
        failure_ratio: ratio(config.failure_percent.into()),
        slow_after: config.slow_after,
        slow_ratio: ratio(config.slow_percent.into()),
        open_for: config.open_for,
        open_max: config.open_max,
        probes: config.probes,
    }
}

fn gradient(config: &AdaptiveLimitConfig) -> GradientSettings {
    GradientSettings {
        initial: config.initial,
        min: config.min,
        max: config.max,
        tolerance: ratio(config.tolerance_percent),
        smoothing: ratio(config.smoothing_percent.into()),
        queue: config.headroom.into(),
        long_windows: config.long_windows,
        window: config.window.max(Duration::from_millis(1)),
        min_samples: config.min_samples,
    }
}

fn ratio(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Vocabulary, parse};

    /// What the file says where it only switches them on is what the machines have for their defaults.
    #[test]
    fn the_defaults_of_the_file_are_those_of_the_machines() {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
                    backends = [\"10.0.0.1:80\"]\ncircuit_breaker = {}\nadaptive_limit = {}\n";
        let config = parse(text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
        let limits = UpstreamLimits::new(&config.upstreams[0].limits());
        assert_eq!(limits.queue, QueueSettings::default());
        assert_eq!(limits.breaker, Some(BreakerSettings::default()));
        assert_eq!(limits.adaptive, Some(GradientSettings::default()));
        assert!(limits.bound([]));
    }
}
