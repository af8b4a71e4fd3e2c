//! What came to listeners: connections, requests, TLS handshakes, streams of HTTP/2.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::registry::Unit;

use super::Scrape;
use super::family::Families;
use crate::config::{ListenerName, PathsKey};
use crate::listener::Listener;
use crate::telemetry::metrics::{AddressLimit, FloodKind, HandshakeFailure, handshake_index};

impl Scrape {
    pub(super) fn listeners(&self, families: &mut Families<'_>) -> fmt::Result {
        let names: Vec<_> = self.listeners.iter().map(|it| it.name()).collect();
        let labels: Vec<_> = names.iter().map(|name| [("listener", name.as_str())]).collect();
        let rows = || labels.iter().zip(&self.listeners).map(|(labels, it)| (&labels[..], it));
        let gauges = |value: fn(&Listener) -> u64| rows().map(move |(labels, it)| (labels, value(it) as f64));
        let counters = |value: fn(&Listener) -> u64| rows().map(move |(labels, it)| (labels, value(it)));

        let open = gauges(|it| it.open.load(Ordering::Relaxed) as u64);
        families.gauge("listener_connections", "Client connections open", None, open)?;
        let accepted = counters(|it| it.metrics.sum(|shard| &shard.accepted));
        families.counter("listener_connections_accepted", "Client connections accepted", None, accepted)?;
        let refused = counters(|it| it.metrics.sum(|shard| &shard.refused));
        let help = "Client connections refused because of max_connections";
        families.counter("listener_connections_refused", help, None, refused)?;
        let limited = rows().flat_map(|(labels, it)| {
            AddressLimit::ALL.map(|limit| {
                let count = it.metrics.sum(|shard| &shard.limited[limit as usize]);
                ([labels[0], ("limit", limit.as_str())], count)
            })
        });
        let limited: Vec<_> = limited.collect();
        let limited = limited.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Client connections closed at once because of a limit of their address";
        families.counter("listener_connections_limited", help, None, limited)?;
        let requests = counters(|it| it.metrics.sum(|shard| &shard.requests));
        families.counter("listener_requests", "Requests whose head was read", None, requests)?;
        let in_flight = gauges(|it| {
            // The ends first: an exchange that begins and ends in between must not make the difference negative.
            let ended = it.metrics.sum(|shard| &shard.ended);
            it.metrics.sum(|shard| &shard.requests).saturating_sub(ended)
        });
        families.gauge("listener_requests_in_flight", "Exchanges that have not ended", None, in_flight)?;
        let rejected = counters(|it| it.metrics.sum(|shard| &shard.rejected));
        let help = "Requests refused before a route was looked for: malformed, too large, too slow";
        families.counter("listener_requests_rejected", help, None, rejected)?;
        let left_out = counters(|it| it.metrics.sum(|shard| &shard.refusals_left_out));
        let help = "Refusals that the access log has no line for because there were too many";
        families.counter("listener_refusals_left_out", help, None, left_out)?;
        let misdirected = counters(|it| it.metrics.sum(|shard| &shard.misdirected));
        let help = "Requests for another host than the one that was named in the TLS handshake";
        families.counter("listener_requests_misdirected", help, None, misdirected)?;
        let paths = rows().flat_map(|(labels, it)| {
            PathsKey::ALL.map(|key| {
                ([labels[0], ("key", key.as_str())], it.metrics.sum(|shard| &shard.paths_refused[key as usize]))
            })
        });
        let paths: Vec<_> = paths.collect();
        let paths = paths.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Requests answered 400 because of their path, by the key of paths";
        families.counter("listener_paths_refused", help, None, paths)?;
        let bytes_in = counters(|it| it.metrics.sum(|shard| &shard.bytes_in));
        families.counter("listener_request_body", "Bytes of request bodies", Some(&Unit::Bytes), bytes_in)?;
        let bytes_out = counters(|it| it.metrics.sum(|shard| &shard.bytes_out));
        families.counter("listener_response_body", "Bytes of response bodies", Some(&Unit::Bytes), bytes_out)?;
        let slow = rows().flat_map(|(labels, it)| {
            [("request", 0), ("response", 1)]
                .map(|(body, index)| ([labels[0], ("body", body)], it.metrics.sum(|shard| &shard.slow_bodies[index])))
        });
        let slow: Vec<_> = slow.collect();
        let slow = slow.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Exchanges ended because the client was slower than min_bytes_per_second";
        families.counter("listener_slow_bodies", help, None, slow)?;
        let tunnels = gauges(|it| {
            let closed = it.metrics.sum(|shard| &shard.tunnels_closed);
            it.metrics.sum(|shard| &shard.tunnels_opened).saturating_sub(closed)
        });
        let help = "Exchanges and tunnels cut because the time to finish was over";
        families.counter("listener_exchanges_cut", help, None, counters(|it| it.metrics.sum(|shard| &shard.cut)))?;
        families.gauge("listener_tunnels", "Upgraded connections (WebSockets) open", None, tunnels)?;
        self.handshakes(families, &names)?;
        self.http2(families)
    }

    /// Of listeners that speak TLS.
    fn handshakes(&self, families: &mut Families<'_>, names: &[ListenerName]) -> fmt::Result {
        let listeners: Vec<_> = names.iter().map(ListenerName::as_str).zip(&self.listeners).collect();
        let all = listeners.iter().filter_map(|(name, it)| Some((*name, *it, it.tls.load_full()?)));
        let all: Vec<_> = all.collect();
        if all.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        for &(name, listener, _) in &all {
            for (new, version) in [(false, "1.2"), (true, "1.3")] {
                for (resumed, word) in [(false, "false"), (true, "true")] {
                    let labels = [("listener", name), ("version", version), ("resumed", word)];
                    done.push((labels, listener.metrics.sum(|it| &it.handshakes[handshake_index(new, resumed)])));
                }
            }
        }
        let done = done.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("tls_handshakes", "TLS handshakes that succeeded", None, done)?;
        let mut failed = Vec::new();
        for &(name, listener, _) in &all {
            for (index, failure) in HandshakeFailure::ALL.iter().enumerate() {
                let labels = [("listener", name), ("reason", failure.as_str())];
                failed.push((labels, listener.metrics.sum(|it| &it.handshake_failures[index])));
            }
        }
        let failed = failed.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("tls_handshake_failures", "TLS handshakes that failed, by why", None, failed)?;
        // A file may be named twice, and a series is there once.
        let mut ends = BTreeMap::new();
        for (name, _, tls) in &all {
            ends.extend(tls.certificates.iter().map(|it| ((*name, it.file.display().to_string()), it.at)));
        }
        let ends: Vec<_> = ends.iter().map(|((name, file), at)| ([("listener", *name), ("file", file)], *at)).collect();
        let ends = ends.iter().map(|(labels, at)| (&labels[..], *at as f64));
        let help = "When the certificate expires";
        families.gauge("tls_certificate_expiry_timestamp", help, Some(&Unit::Seconds), ends)?;
        let labels: Vec<_> = all.iter().map(|(name, it, _)| ([("listener", *name)], *it)).collect();
        let refused = labels.iter().map(|(labels, it)| (&labels[..], it.certificates_refused.load(Ordering::Relaxed)));
        families.counter("tls_certificates_refused", "Changed certificates that could not be used", None, refused)
    }

    fn http2(&self, families: &mut Families<'_>) -> fmt::Result {
        let names: Vec<_> = self.listeners.iter().map(|it| it.name()).collect();
        let labels: Vec<_> = names.iter().map(|name| [("listener", name.as_str())]).collect();
        let rows = || labels.iter().zip(&self.listeners).map(|(labels, it)| (labels, &it.metrics));

        let open = rows().map(|(labels, it)| {
            let closed = it.sum(|shard| &shard.http2_closed);
            (&labels[..], it.sum(|shard| &shard.http2_opened).saturating_sub(closed) as f64)
        });
        families.gauge(
            "listener_http2_connections",
            "Client connections open on which HTTP/2 is spoken",
            None,
            open,
        )?;
        let streams = rows().map(|(labels, it)| (&labels[..], it.sum(|shard| &shard.http2_streams)));
        families.counter("listener_http2_streams", "Streams of HTTP/2 begun", None, streams)?;
        let open = rows().map(|(labels, it)| {
            let ended = it.sum(|shard| &shard.http2_streams_ended);
            (&labels[..], it.sum(|shard| &shard.http2_streams).saturating_sub(ended) as f64)
        });
        families.gauge("listener_http2_streams_open", "Streams of HTTP/2 that have not ended", None, open)?;
        let resets = rows().flat_map(|(&[listener], it)| {
            let (client, proxy) =
                (it.sum(|shard| &shard.http2_resets_client), it.sum(|shard| &shard.http2_resets_proxy));
            [("client", client), ("proxy", proxy)].map(|(by, count)| ([listener, ("by", by)], count))
        });
        let resets: Vec<_> = resets.collect();
        let series = resets.iter().map(|(labels, count)| (&labels[..], *count));
        families.counter("listener_http2_resets", "Streams of HTTP/2 that were cut short, by whom", None, series)?;
        let floods = rows().flat_map(|(&[listener], it)| {
            FloodKind::ALL
                .map(|kind| ([listener, ("kind", kind.as_str())], it.sum(|shard| &shard.http2_floods[kind as usize])))
        });
        let floods: Vec<_> = floods.collect();
        let series = floods.iter().map(|(labels, count)| (&labels[..], *count));
        let help = "Connections of HTTP/2 ended because of a flood, by what was too much";
        families.counter("listener_http2_floods", help, None, series)
    }
}
