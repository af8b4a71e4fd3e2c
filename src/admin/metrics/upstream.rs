//! What became of requests, by route, by middleware and by upstream; retries and hedges.

use std::fmt;
use std::time::Instant;

use prometheus_client::registry::Unit;

use super::family::{Durations, Families};
use super::{Scrape, by_class};
use crate::config::GrpcStatus;
use crate::telemetry::clock;
use crate::telemetry::metrics::{Counter, MiddlewareMetrics, RetryCause, Sharded, UpstreamMetrics};
use crate::upstream::retry_budget::BudgetSettings;

impl Scrape {
    pub(super) fn routes(&self, families: &mut Families<'_>) -> fmt::Result {
        let series = self.snapshot.routes.routes().iter().flat_map(|route| {
            by_class(&route.metrics, |shard| &shard.responses)
                .map(|(class, count)| ([("route", route.name.as_str()), ("class", class)], count))
        });
        let series: Vec<_> = series.collect();
        let help = "Exchanges by the class of the status the client was answered with";
        families.counter("route_responses", help, None, series.iter().map(|(labels, count)| (&labels[..], *count)))
    }

    pub(super) fn middleware(&self, families: &mut Families<'_>) -> fmt::Result {
        let counted = |counter: fn(&MiddlewareMetrics) -> &Counter| {
            let installed = self.snapshot.middleware.installed.iter();
            let named = installed.filter_map(|it| Some((it.name()?, it.state.as_ref()?)));
            named.map(|(name, state)| ([("middleware", name.as_str())], state.metrics.sum(counter))).collect::<Vec<_>>()
        };
        let mut family = |name, help, counter| {
            let counted = counted(counter);
            families.counter(name, help, None, counted.iter().map(|(labels, count)| (&labels[..], *count)))
        };
        family("middleware_answered", "Requests that it has answered", |it| &it.answered)?;
        family("middleware_waited", "Requests that waited for it", |it| &it.waited)?;
        family("middleware_timeouts", "Requests that waited for it in vain", |it| &it.timeouts)
    }

    pub(super) fn upstreams(&self, families: &mut Families<'_>) -> fmt::Result {
        let upstreams = &self.snapshot.upstreams;
        let labels: Vec<_> = upstreams.iter().map(|it| [("upstream", it.name().as_str())]).collect();
        let metrics: Vec<&Sharded<UpstreamMetrics>> = upstreams.iter().map(|it| &it.state.metrics).collect();
        let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
            labels.iter().zip(&metrics).map(move |(labels, metrics)| (&labels[..], metrics.sum(counter)))
        };

        let responses = labels.iter().zip(&metrics).flat_map(|(&[upstream], metrics)| {
            by_class(metrics, |shard| &shard.responses).map(move |(class, count)| ([upstream, ("class", class)], count))
        });
        let responses: Vec<_> = responses.collect();
        let help = "Exchanges by the class of the status the client was answered with";
        let series = responses.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_responses", help, None, series)?;
        // Most upstreams never see a call, and each would have as many series as there are statuses.
        let called = labels
            .iter()
            .zip(&metrics)
            .filter(|(_, metrics)| metrics.iter().any(|shard| shard.grpc.iter().any(|counter| counter.get() > 0)));
        let calls = called.flat_map(|(&[upstream], metrics)| {
            GrpcStatus::ALL.map(|status| {
                let count = metrics.sum(|shard| &shard.grpc[usize::from(status.code())]);
                ([upstream, ("status", status.as_str())], count)
            })
        });
        let calls: Vec<_> = calls.collect();
        let help = "Calls of gRPC by the status that they came to";
        families.counter(
            "upstream_grpc_calls",
            help,
            None,
            calls.iter().map(|(labels, count)| (&labels[..], *count)),
        )?;
        let help = "From the request's head to the end of the response";
        let sum = |metrics| Durations::sum(metrics, |shard: &UpstreamMetrics| &shard.durations);
        let durations = labels.iter().zip(&metrics).map(|(labels, metrics)| (&labels[..], sum(metrics)));
        families.histogram("upstream_request_duration", help, Some(&Unit::Seconds), durations)?;
        self.retries(families)?;
        let help = "Requests that found no backend to pick";
        families.counter("upstream_no_backend", help, None, counters(|shard| &shard.no_backend))
    }

    fn retries(&self, families: &mut Families<'_>) -> fmt::Result {
        let upstreams = &self.snapshot.upstreams;
        let metrics = || upstreams.iter().map(|it| (("upstream", it.name().as_str()), &it.state.metrics));

        let retries = metrics().flat_map(|(upstream, metrics)| {
            RetryCause::ALL.into_iter().enumerate().map(move |(index, cause)| {
                ([upstream, ("cause", cause.as_str())], metrics.sum(|shard| &shard.retries[index]))
            })
        });
        let retries: Vec<_> = retries.collect();
        let series = retries.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_retries", "Further attempts by what they came after", None, series)?;
        let retried = metrics().flat_map(|(upstream, metrics)| {
            let (well, vain) = (metrics.sum(|it| &it.retried_well), metrics.sum(|it| &it.retried_in_vain));
            [("answered", well), ("failed", vain)].map(|(result, count)| ([upstream, ("result", result)], count))
        });
        let retried: Vec<_> = retried.collect();
        let series = retried.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("upstream_retried_requests", "Requests tried again, by what came of it", None, series)?;

        let labels: Vec<_> = metrics().map(|(upstream, _)| [upstream]).collect();
        let counters = |counter: fn(&UpstreamMetrics) -> &Counter| {
            labels.iter().zip(upstreams).map(move |(labels, it)| (&labels[..], it.state.metrics.sum(counter)))
        };
        let help = "Further attempts that were not made because the retry budget was spent";
        families.counter("upstream_retry_budget_spent", help, None, counters(|shard| &shard.retry_budget_spent))?;
        let now_ms = clock::now_ms(Instant::now());
        let available = labels.iter().zip(upstreams).map(|(labels, it)| {
            let settings = BudgetSettings::retries(&it.config.retry_budget);
            (&labels[..], it.state.retry_budget.available(&settings, now_ms) as f64)
        });
        let help = "Further attempts that could be made now";
        families.gauge("upstream_retry_budget_available", help, None, available)?;
        let help = "Second attempts while the first was slow";
        families.counter("upstream_hedges", help, None, counters(|shard| &shard.hedges))?;
        let help = "Second attempts that were answered first";
        families.counter("upstream_hedges_won", help, None, counters(|shard| &shard.hedges_won))?;
        let help = "Second attempts that were not made because their budget was spent";
        families.counter("upstream_hedge_budget_spent", help, None, counters(|shard| &shard.hedge_budget_spent))
    }
}
