//! Metrics as the encoder of `prometheus-client` wants them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeExemplarValue, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use crate::telemetry::metrics::{BUCKET_BOUNDS_US, Histogram, Sharded};

/// A histogram as the encoder wants it.
pub(super) struct Durations {
    sum: f64,
    count: u64,
    /// Upper bounds in seconds with the counts, not cumulated.
    buckets: [(f64, u64); BUCKET_BOUNDS_US.len() + 1],
}

impl Durations {
    /// What the shards hold of `histogram`, added up.
    pub(super) fn sum<T>(metrics: &Sharded<T>, histogram: impl Fn(&T) -> &Histogram) -> Self {
        let bound = |index: usize| BUCKET_BOUNDS_US.get(index).map_or(f64::INFINITY, |&us| us as f64 / 1e6);
        let mut buckets = std::array::from_fn(|index| (bound(index), 0));
        let mut sum_us = 0;
        for shard in metrics.iter() {
            let histogram = histogram(shard);
            sum_us += histogram.sum_us();
            for (bucket, count) in buckets.iter_mut().zip(histogram.counts()) {
                bucket.1 += count;
            }
        }
        Self { sum: sum_us as f64 / 1e6, count: buckets.iter().map(|(_, count)| count).sum(), buckets }
    }
}

type MetricLabels<'a> = &'a [(&'a str, &'a str)];

/// Writes a metric with all its series at a time.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl<'a> Families<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    pub(super) fn counter<'l, V: EncodeCounterValue + EncodeExemplarValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (MetricLabels<'l>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in series {
            with(&mut family, labels, |metric| metric.encode_counter(&value, None::<&Exemplar<MetricLabels<'_>, V>>))?;
        }
        Ok(())
    }

    pub(super) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (MetricLabels<'l>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            with(&mut family, labels, |metric| metric.encode_gauge(&value))?;
        }
        Ok(())
    }

    pub(super) fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (MetricLabels<'l>, Durations)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, Durations { sum, count, buckets }) in series {
            with(&mut family, labels, |metric| {
                metric.encode_histogram::<MetricLabels<'_>>(sum, count, &buckets, None)
            })?;
        }
        Ok(())
    }
}

fn with(
    family: &mut MetricEncoder<'_>,
    labels: MetricLabels<'_>,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { write(family) } else { write(&mut family.encode_family(&labels)?) }
}
