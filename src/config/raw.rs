//! What `lb.toml` says, before anybody asks whether it makes sense: a struct for each table, a field for each key.
//!
//! A type's serde name is what [`reader`](super::reader) tells the user it expects there. Reasons and defaults of the keys
//! are in `lb.toml` at the top of the repository; a test proves that it has every one of them.

use serde::Deserialize;

use super::field::{Field, Named};

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub(super) workers: Field<Workers>,
    pub(super) shutdown_grace: Field<Duration>,
    pub(super) drain_limit: Field<Duration>,
    pub(super) zone: Field<String>,
    pub(super) admin: Field<Admin>,
    pub(super) log: Field<Log>,
    pub(super) access_log: Field<AccessLog>,
    pub(super) overload: Field<Overload>,
    pub(super) listener: Field<Tables<Listener>>,
    pub(super) route: Field<Tables<Route>>,
    pub(super) upstream: Field<Named<Upstream>>,
}

/// Tables under the same name: `[[listener]]`.
pub(super) type Tables<T> = Vec<Field<T>>;

#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"auto\"", rename_all = "snake_case")]
pub(super) enum Workers {
    Integer(i64),
    String(String),
}

/// A duration as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a duration with its unit, such as \"5s\" or \"500ms\"")]
pub(super) struct Duration(pub(super) String);

/// A number of bytes as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a size, such as \"64KiB\", \"10MB\" or 1024", rename_all = "snake_case")]
pub(super) enum Size {
    Integer(i64),
    String(String),
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Admin {
    pub(super) enabled: Field<bool>,
    pub(super) address: Field<String>,
    pub(super) token: Field<String>,
    pub(super) unix_socket: Field<String>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Field<String>,
    pub(super) format: Field<String>,
}

/// `[access_log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessLog {
    pub(super) enabled: Field<bool>,
    pub(super) format: Field<String>,
    pub(super) output: Field<String>,
    pub(super) buffer: Field<i64>,
}

/// `[overload]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Overload {
    pub(super) enabled: Field<bool>,
    pub(super) lag: Field<Duration>,
    pub(super) descriptors_percent: Field<i64>,
    pub(super) memory_percent: Field<i64>,
}

/// `[[listener]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listener {
    pub(super) name: Field<String>,
    pub(super) address: Field<String>,
    pub(super) backlog: Field<i64>,
    pub(super) max_connections: Field<i64>,
    pub(super) max_connections_per_address: Field<Limit>,
    pub(super) max_header_bytes: Field<Size>,
    pub(super) max_headers: Field<i64>,
    pub(super) max_body: Field<Size>,
    pub(super) header_timeout: Field<Duration>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) min_bytes_per_second: Field<i64>,
    pub(super) trusted_proxies: Field<Vec<Field<String>>>,
    pub(super) forwarded: Field<bool>,
    pub(super) forwarded_headers: Field<Vec<Field<String>>>,
    pub(super) via: Field<bool>,
    pub(super) paths: Field<Paths>,
    pub(super) redirect_to_https: Field<bool>,
    pub(super) https_port: Field<i64>,
    pub(super) tls: Field<Tls>,
    pub(super) http2: Field<Http2>,
}

/// `paths = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Paths {
    pub(super) dot_segments: Field<String>,
    pub(super) encoded_slashes: Field<String>,
    pub(super) duplicate_slashes: Field<String>,
    pub(super) backslashes: Field<String>,
}

/// `[listener.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) certificates: Field<Tables<Certificate>>,
    pub(super) unknown_names: Field<String>,
    pub(super) misdirected: Field<String>,
    pub(super) profile: Field<String>,
    pub(super) handshake_timeout: Field<Duration>,
    pub(super) max_handshakes: Field<i64>,
    pub(super) handshakes_per_second_per_address: Field<Limit>,
    pub(super) hsts: Field<Duration>,
    pub(super) client_certificates: Field<ClientCertificates>,
}

/// `client_certificates = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientCertificates {
    pub(super) ca: Field<String>,
    pub(super) mode: Field<String>,
    pub(super) crl: Field<Vec<Field<String>>>,
}

/// `certificates = [{ .. }]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    pub(super) certificate: Field<String>,
    pub(super) key: Field<String>,
    pub(super) ocsp: Field<String>,
}

/// `http2` of a listener.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Http2 {
    pub(super) enabled: Field<bool>,
    pub(super) max_concurrent_streams: Field<i64>,
    pub(super) stream_window: Field<Size>,
    pub(super) connection_window: Field<Size>,
    pub(super) resets_per_second: Field<i64>,
    pub(super) control_frames_per_second: Field<i64>,
}

/// `[[route]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) name: Field<String>,
    pub(super) listeners: Field<Vec<Field<String>>>,
    pub(super) hosts: Field<Vec<Field<String>>>,
    pub(super) path: Field<String>,
    pub(super) path_prefix: Field<String>,
    pub(super) path_regex: Field<String>,
    pub(super) methods: Field<Vec<Field<String>>>,
    pub(super) headers: Field<Named<ValueMatch>>,
    pub(super) query: Field<Named<ValueMatch>>,
    pub(super) paths: Field<Paths>,
    pub(super) upstream: Field<String>,
    pub(super) redirect: Field<Redirect>,
    pub(super) respond: Field<Respond>,
    pub(super) strip_prefix: Field<bool>,
    pub(super) replace_prefix: Field<String>,
    pub(super) host: Field<String>,
    pub(super) timeouts: Field<Timeouts>,
    pub(super) retries: Field<Retries>,
    pub(super) request_headers: Field<HeaderEdits>,
    pub(super) response_headers: Field<HeaderEdits>,
}

/// What a header or query parameter must be.
#[derive(Debug, Deserialize)]
#[serde(rename = "a string, { regex = \"..\" }, { present = true } or { present = false }", rename_all = "snake_case")]
pub(super) enum ValueMatch {
    String(String),
    Table(ValueMatchTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueMatchTable {
    pub(super) present: Field<bool>,
    pub(super) regex: Field<String>,
}

/// `redirect = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Redirect {
    pub(super) to: Field<String>,
    pub(super) status: Field<i64>,
}

/// `respond = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Respond {
    pub(super) status: Field<i64>,
    pub(super) body: Field<String>,
    pub(super) content_type: Field<String>,
}

/// `timeouts = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Timeouts {
    pub(super) response_head: Field<Duration>,
    pub(super) body_idle: Field<Duration>,
    pub(super) exchange: Field<Duration>,
    pub(super) tunnel_idle: Field<Duration>,
    pub(super) grpc_idle: Field<Duration>,
    pub(super) grpc_timeout_max: Field<Duration>,
}

/// `request_headers = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeaderEdits {
    pub(super) set: Field<Named<String>>,
    pub(super) add: Field<Named<String>>,
    pub(super) remove: Field<Vec<Field<String>>>,
}

/// `[upstream.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) strategy: Field<String>,
    pub(super) backends: Field<Vec<Field<Backend>>>,
    pub(super) connect_timeout: Field<Duration>,
    pub(super) retries: Field<Retries>,
    pub(super) retry_budget: Field<RetryBudget>,
    pub(super) pool: Field<Pool>,
    pub(super) protocol: Field<String>,
    pub(super) tls: Field<BackendTls>,
    pub(super) health_check: Field<HealthCheck>,
    pub(super) outlier_detection: Field<OutlierDetection>,
    pub(super) slow_start: Field<SlowStart>,
    pub(super) panic_threshold: Field<i64>,
    pub(super) overprovisioning: Field<f64>,
    pub(super) zone_preference: Field<ZonePreference>,
    pub(super) max_in_flight: Field<Limit>,
    pub(super) max_connections: Field<Limit>,
    pub(super) queue: Field<Queue>,
    pub(super) circuit_breaker: Field<CircuitBreaker>,
    pub(super) adaptive_limit: Field<AdaptiveLimit>,
}

/// A number of things at a time as written.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number or \"unlimited\"", rename_all = "snake_case")]
pub(super) enum Limit {
    Integer(i64),
    String(String),
}

/// A backend: its address, or a table with it.
#[derive(Debug, Deserialize)]
#[serde(rename = "an address, or { address = \"..\", weight = 1 }", rename_all = "snake_case")]
pub(super) enum Backend {
    String(String),
    Table(BackendTable),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendTable {
    pub(super) address: Field<String>,
    pub(super) weight: Field<i64>,
    pub(super) priority: Field<i64>,
    pub(super) backup: Field<bool>,
    pub(super) zone: Field<String>,
    pub(super) max_in_flight: Field<Limit>,
    pub(super) max_connections: Field<Limit>,
}

/// Further attempts: how many, or a table with more.
#[derive(Debug, Deserialize)]
#[serde(rename = "a whole number, or a table such as { max = 2 }", rename_all = "snake_case")]
pub(super) enum Retries {
    Integer(i64),
    Table(Box<RetriesTable>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RetriesTable {
    pub(super) max: Field<i64>,
    pub(super) on: Field<Vec<Field<Condition>>>,
    pub(super) grpc_statuses: Field<Vec<Field<String>>>,
    pub(super) attempt_timeout: Field<Duration>,
    pub(super) backoff: Field<Backoff>,
    pub(super) body_buffer: Field<Size>,
    pub(super) response_buffer: Field<Size>,
    pub(super) hedge: Field<Hedge>,
}

/// Why there may be a further attempt.
#[derive(Debug, Deserialize)]
#[serde(rename = "\"connect_failure\", \"reset\", \"timeout\" or a status such as 503", rename_all = "snake_case")]
pub(super) enum Condition {
    Integer(i64),
    String(String),
}

/// `backoff = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Backoff {
    pub(super) base: Field<Duration>,
    pub(super) max: Field<Duration>,
    pub(super) retry_after_max: Field<Duration>,
}

/// `hedge = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Hedge {
    pub(super) enabled: Field<bool>,
    pub(super) percentile: Field<i64>,
    pub(super) min_delay: Field<Duration>,
    pub(super) budget_percent: Field<i64>,
}

/// `retry_budget = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RetryBudget {
    pub(super) percent: Field<i64>,
    pub(super) per_second: Field<i64>,
}

/// `pool = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) max_idle: Field<i64>,
    pub(super) idle_timeout: Field<Duration>,
}

/// `[upstream.NAME.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct BackendTls {
    pub(super) enabled: Field<bool>,
    pub(super) ca: Field<String>,
    pub(super) server_name: Field<String>,
    pub(super) client_certificate: Field<ClientCertificate>,
    pub(super) insecure_skip_verify: Field<bool>,
}

/// `client_certificate = { .. }`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientCertificate {
    pub(super) certificate: Field<String>,
    pub(super) key: Field<String>,
}

/// `[upstream.NAME.health_check]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HealthCheck {
    pub(super) enabled: Field<bool>,
    #[serde(rename = "type")]
    pub(super) kind: Field<String>,
    pub(super) path: Field<String>,
    pub(super) service: Field<String>,
    pub(super) host: Field<String>,
    pub(super) method: Field<String>,
    pub(super) headers: Field<Named<String>>,
    pub(super) statuses: Field<Vec<Field<Statuses>>>,
    pub(super) body: Field<String>,
    pub(super) body_limit: Field<Size>,
    pub(super) port: Field<i64>,
    pub(super) interval: Field<Duration>,
    pub(super) interval_in_doubt: Field<Duration>,
    pub(super) jitter_percent: Field<i64>,
    pub(super) timeout: Field<Duration>,
    pub(super) unhealthy_after: Field<i64>,
    pub(super) healthy_after: Field<i64>,
    pub(super) initial: Field<String>,
}

/// `[upstream.NAME.queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Queue {
    pub(super) length: Field<i64>,
    pub(super) timeout: Field<Duration>,
    pub(super) order: Field<String>,
    pub(super) target: Field<Duration>,
    pub(super) interval: Field<Duration>,
}

/// `[upstream.NAME.circuit_breaker]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CircuitBreaker {
    pub(super) enabled: Field<bool>,
    pub(super) window: Field<Duration>,
    pub(super) min_calls: Field<i64>,
    pub(super) failure_percent: Field<i64>,
    pub(super) slow_after: Field<Duration>,
    pub(super) slow_percent: Field<i64>,
    pub(super) open_for: Field<Duration>,
    pub(super) open_max: Field<Duration>,
    pub(super) probes: Field<i64>,
}

/// `[upstream.NAME.adaptive_limit]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AdaptiveLimit {
    pub(super) enabled: Field<bool>,
    pub(super) initial: Field<i64>,
    pub(super) min: Field<i64>,
    pub(super) max: Field<i64>,
    pub(super) tolerance_percent: Field<i64>,
    pub(super) smoothing_percent: Field<i64>,
    pub(super) headroom: Field<i64>,
    pub(super) long_windows: Field<i64>,
    pub(super) window: Field<Duration>,
    pub(super) min_samples: Field<i64>,
}

/// `[upstream.NAME.outlier_detection]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OutlierDetection {
    pub(super) enabled: Field<bool>,
    pub(super) consecutive_gateway_errors: Field<i64>,
    pub(super) consecutive_local_errors: Field<i64>,
    pub(super) count_server_errors: Field<bool>,
    pub(super) interval: Field<Duration>,
    pub(super) window: Field<Duration>,
    pub(super) failure_percent: Field<i64>,
    pub(super) failure_volume: Field<i64>,
    pub(super) success_deviations: Field<f64>,
    pub(super) success_gap_percent: Field<i64>,
    pub(super) success_volume: Field<i64>,
    pub(super) success_intervals: Field<i64>,
    pub(super) latency_deviations: Field<f64>,
    pub(super) latency_ratio: Field<f64>,
    pub(super) latency_excess: Field<Duration>,
    pub(super) latency_volume: Field<i64>,
    pub(super) latency_intervals: Field<i64>,
    pub(super) backends_min: Field<i64>,
    pub(super) ejection_time: Field<Duration>,
    pub(super) ejection_time_max: Field<Duration>,
    pub(super) jitter_percent: Field<i64>,
    pub(super) forgive_after: Field<Duration>,
    pub(super) max_ejected_percent: Field<i64>,
}

/// `[upstream.NAME.slow_start]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SlowStart {
    pub(super) enabled: Field<bool>,
    pub(super) window: Field<Duration>,
    pub(super) aggression: Field<f64>,
    pub(super) minimum_percent: Field<i64>,
}

/// `[upstream.NAME.zone_preference]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ZonePreference {
    pub(super) enabled: Field<bool>,
    pub(super) backends_min: Field<i64>,
    pub(super) load: Field<Named<i64>>,
}

/// A status or a range of them.
#[derive(Debug, Deserialize)]
#[serde(rename = "a status such as 200, or a range such as \"200-299\"", rename_all = "snake_case")]
pub(super) enum Statuses {
    Integer(i64),
    String(String),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::de::value::{Error, StrDeserializer};
    use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
    use serde::forward_to_deserialize_any;
    use toml::{Table, Value};

    use super::*;

    #[test]
    fn the_reference_has_every_key() {
        let mut known = BTreeSet::new();
        File::deserialize(Walk { path: String::new(), keys: &mut known }).unwrap();
        assert!(
            known.contains("upstream.*.backends[].weight") && known.contains("route[].headers.*.regex"),
            "{known:?}"
        );

        let reference = include_str!("../../lb.toml");
        let is_key = |line: &str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let lines = reference.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
        let table: Table = lines.collect::<Vec<_>>().join("\n").parse().unwrap();
        let mut shown = BTreeSet::new();
        collect("", &Value::Table(table), &known, &mut shown);

        // A route may have each of the upstream's keys, which are explained there.
        let explained = |key: &str| {
            let of_upstream = key.strip_prefix("route[].retries.").map(|key| format!("upstream.*.retries.{key}"));
            of_upstream.is_some_and(|key| shown.contains(&key))
        };
        let missing: Vec<_> = known.difference(&shown).filter(|key| !explained(key)).collect();
        assert!(missing.is_empty(), "not in lb.toml: {missing:?}");
    }

    /// The keys of a value, named as [`Walk`] names them.
    fn collect(path: &str, value: &Value, known: &BTreeSet<String>, shown: &mut BTreeSet<String>) {
        match value {
            Value::Array(members) => {
                members.iter().for_each(|member| collect(&format!("{path}[]"), member, known, shown));
            }
            Value::Table(table) => {
                for (key, value) in table {
                    let named = join(path, key);
                    let path = if known.contains(&named) { named } else { join(path, "*") };
                    collect(&path, value, known, shown);
                    shown.insert(path);
                }
            }
            _ => {}
        }
    }

    fn join(path: &str, key: &str) -> String {
        if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
    }

    /// Gives a type every key it asks for, and notes them: a file that has everything.
    struct Walk<'k> {
        path: String,
        keys: &'k mut BTreeSet<String>,
    }

    impl Walk<'_> {
        fn at(&mut self, path: String) -> Walk<'_> {
            Walk { path, keys: self.keys }
        }
    }

    impl<'de> Deserializer<'de> for Walk<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_str("")
        }

        fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_bool(true)
        }

        fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_i64(1)
        }

        fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_f64(1.0)
        }

        fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_newtype_struct(self)
        }

        fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let path = format!("{}[]", self.path);
            visitor.visit_seq(Parts { place: None, value: Some(Walk { path, ..self }) })
        }

        fn deserialize_tuple_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            _: usize,
            visitor: V,
        ) -> Result<V::Value, Error> {
            visitor.visit_seq(Parts { place: Some(0), value: Some(self) })
        }

        fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_map(Keys { keys: &["*"], walk: self })
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            visitor.visit_map(Keys { keys: fields, walk: self })
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            // The table where there is one: it is the one with keys.
            visitor.visit_enum(Variant(variants.last().unwrap(), self))
        }

        forward_to_deserialize_any! {
            i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char str string bytes byte_buf option unit unit_struct tuple
            identifier ignored_any
        }
    }

    struct Parts<'k> {
        place: Option<usize>,
        value: Option<Walk<'k>>,
    }

    impl<'de> de::SeqAccess<'de> for Parts<'_> {
        type Error = Error;

        fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
            if let Some(place) = self.place.take() {
                return seed.deserialize(place.into_deserializer()).map(Some);
            }
            self.value.take().map(|value| seed.deserialize(value)).transpose()
        }
    }

    struct Keys<'k> {
        keys: &'static [&'static str],
        walk: Walk<'k>,
    }

    impl<'de> de::MapAccess<'de> for Keys<'_> {
        type Error = Error;

        fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
            let Some(key) = self.keys.first() else { return Ok(None) };
            seed.deserialize(Name(key)).map(Some)
        }

        fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
            let path = join(&self.walk.path, self.keys[0]);
            self.keys = &self.keys[1..];
            self.walk.keys.insert(path.clone());
            seed.deserialize(self.walk.at(path))
        }
    }

    /// A key: a text, or a field with one.
    struct Name(&'static str);

    impl<'de> Deserializer<'de> for Name {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_str(self.0)
        }

        fn deserialize_tuple_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            _: usize,
            visitor: V,
        ) -> Result<V::Value, Error> {
            let (mut none, path) = (BTreeSet::new(), String::new());
            visitor.visit_seq(Parts { place: Some(0), value: Some(Walk { path, keys: &mut none }) })
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple map struct enum identifier ignored_any
        }
    }

    struct Variant<'k>(&'static str, Walk<'k>);

    impl<'de, 'k> de::EnumAccess<'de> for Variant<'k> {
        type Error = Error;
        type Variant = Walk<'k>;

        fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Walk<'k>), Error> {
            let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
            Ok((seed.deserialize(name)?, self.1))
        }
    }

    impl<'de> de::VariantAccess<'de> for Walk<'_> {
        type Error = Error;

        fn unit_variant(self) -> Result<(), Error> {
            Ok(())
        }

        fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
            seed.deserialize(self)
        }

        fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
            self.deserialize_seq(visitor)
        }

        fn struct_variant<V: Visitor<'de>>(
            self,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            self.deserialize_struct("", fields, visitor)
        }
    }
}
