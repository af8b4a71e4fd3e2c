//! What clients of Consul's API send: registrations and checks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use serde_json::{Map, Value};

use crate::config::RegistryConfig;
use crate::registry::answer::RegistryRefusal;
use crate::registry::instance::{
    Api, CheckKind, CheckSpec, HttpTarget, Probe, ProbeTarget, Registration, Status, Weights,
};

/// The shortest time between two probes, and the shortest that one may be critical before its instance is deregistered, as Consul has them.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);
/// How long a probe may take, if nothing is said of it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// No probe takes longer, and none is made less often.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(60);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// Headers of a probe.
const HEADERS_MAX: usize = 16;
/// Bytes of a probe's address, headers and body.
const PROBE_TEXT_BYTES_MAX: usize = 2_048;

/// Ways of checking that Consul has and this registry has not.
const OTHER_CHECKS: [&str; 11] = [
    "args",
    "scriptargs",
    "script",
    "shell",
    "dockercontainerid",
    "grpc",
    "udp",
    "h2ping",
    "aliasnode",
    "aliasservice",
    "osservice",
];

/// A JSON object whose keys are written as one likes: Consul takes `DeregisterCriticalServiceAfter` and `deregister_critical_service_after`.
struct Fields(Map<String, Value>);

impl Fields {
    fn of(value: Value, what: &str) -> Result<Self, RegistryRefusal> {
        let Value::Object(table) = value else { return Err(RegistryRefusal::bad(format!("{what} is no JSON object"))) };
        let plain = |key: String| key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect::<String>();
        // `null` is what some clients write for what is not there.
        Ok(Self(
            table.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (plain(key), value)).collect(),
        ))
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    /// A text, or nothing where it is empty.
    fn text(&mut self, key: &str) -> Result<Option<String>, RegistryRefusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(_) => Err(RegistryRefusal::bad(format!("{key} is no text"))),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, RegistryRefusal> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(RegistryRefusal::bad(format!("{key} is neither true nor false"))),
        }
    }

    fn number(&mut self, key: &str, most: u64) -> Result<Option<u64>, RegistryRefusal> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| *number <= most) {
                Some(number) => Ok(Some(number)),
                None => Err(RegistryRefusal::bad(format!("{key} is no whole number from 0 to {most}"))),
            },
        }
    }

    fn time(&mut self, key: &str) -> Result<Option<Duration>, RegistryRefusal> {
        match self.take(key) {
            None => Ok(None),
            // Some clients send an empty text, and Go's 0 for what is not set.
            Some(value) if value == "" || value == 0 => Ok(None),
            Some(value) => duration(&value)
                .map(Some)
                .ok_or_else(|| RegistryRefusal::bad(format!("{key} is no duration: the like of \"10s\""))),
        }
    }
}

/// A duration as Go writes it, or a number of nanoseconds.
pub(super) fn duration(value: &Value) -> Option<Duration> {
    let text = match value {
        Value::Number(number) => return number.as_u64().map(Duration::from_nanos),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let (mut rest, mut seconds) = (text, 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| behind.starts_with(unit))?;
        seconds += number * factor;
        rest = behind.get(unit.len()..)?;
    }
    (seconds < 1e9).then(|| Duration::from_secs_f64(seconds))
}

/// A registration that a client at `peer` has sent.
pub(super) fn registration(
    body: &[u8],
    peer: IpAddr,
    config: &RegistryConfig,
) -> Result<Registration, RegistryRefusal> {
    let mut fields = Fields::of(parsed(body)?, "the registration")?;
    let service = fields.text("name")?.or(fields.text("service")?);
    let service = service.ok_or_else(|| RegistryRefusal::bad("Missing service name"))?;
    let id = fields.text("id")?.unwrap_or_else(|| service.clone());
    if fields.text("kind")?.is_some()
        || fields.take("proxy").is_some_and(|proxy| proxy["DestinationServiceName"].is_string())
    {
        return Err(RegistryRefusal::not_here(
            "isobar's registry has no proxies of a mesh: services without Kind and Proxy",
        ));
    }
    for key in ["namespace", "partition", "ns"] {
        if fields.text(key)?.is_some_and(|value| value != "default") {
            return Err(RegistryRefusal::not_here(format!("isobar's registry has no {key}")));
        }
    }
    // On the agent of its own machine a service may leave its address out. Here it is where the request comes from.
    let address = fields.text("address")?.unwrap_or_else(|| peer.to_canonical().to_string());
    let port = fields.number("port", u64::from(u16::MAX))?.unwrap_or(0) as u16;
    let weights = match fields.take("weights") {
        None => Weights::default(),
        Some(value) => weights(value)?,
    };
    let mut all = Vec::new();
    all.extend(fields.take("check"));
    match fields.take("checks") {
        None => {}
        Some(Value::Array(checks)) => all.extend(checks),
        Some(_) => return Err(RegistryRefusal::bad("Checks is no list")),
    }
    // An empty one is what some clients send for none.
    all.retain(|check| check.as_object().is_none_or(|fields| !fields.is_empty()));
    let several = all.len() > 1;
    let checks = (1..).zip(all).map(|(number, value)| {
        let default = if several { format!("service:{id}:{number}") } else { format!("service:{id}") };
        check(value, &default, &format!("Service '{service}' check"), config)
    });
    let checks = checks.collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) = checks.iter().enumerate().find(|(at, it)| checks[..*at].iter().any(|other| other.id == it.id))
    {
        return Err(RegistryRefusal::bad(format!("two checks have the id {:?}", twice.1.id)));
    }
    let (tags, meta) = (texts(fields.take("tags"), "Tags")?, table(fields.take("meta"), "Meta")?);
    Ok(Registration { api: Api::Consul, service, id, address, port, tags, meta, weights, checks, eureka: None })
}

/// A check that is registered apart from its service.
pub(super) fn check_of_service(body: &[u8], config: &RegistryConfig) -> Result<(String, CheckSpec), RegistryRefusal> {
    let value = parsed(body)?;
    let mut fields = Fields::of(value.clone(), "the check")?;
    let service = fields.text("serviceid")?.ok_or_else(|| {
        RegistryRefusal::not_here("isobar's registry checks services and no nodes: a check needs a ServiceID")
    })?;
    let name = fields.text("name")?.ok_or_else(|| RegistryRefusal::bad("Missing check name"))?;
    Ok((service, check(value, &name, &name, config)?))
}

/// What `/v1/agent/check/update` says.
pub(super) fn check_update(body: &[u8]) -> Result<(Status, String), RegistryRefusal> {
    let mut fields = Fields::of(parsed(body)?, "the update")?;
    let word = fields.text("status")?.unwrap_or_default();
    let status = Status::of(&word).ok_or_else(|| RegistryRefusal::bad(format!("Invalid check status: {word:?}")))?;
    Ok((status, fields.text("output")?.unwrap_or_default()))
}

fn check(
    value: Value,
    default_id: &str,
    default_name: &str,
    config: &RegistryConfig,
) -> Result<CheckSpec, RegistryRefusal> {
    let mut fields = Fields::of(value, "a check")?;
    let id = fields.text("checkid")?.or(fields.text("id")?).unwrap_or_else(|| default_id.to_owned());
    let name = fields.text("name")?.unwrap_or_else(|| default_name.to_owned());
    let notes = fields.text("notes")?.unwrap_or_default();
    let initial = match fields.text("status")? {
        None => Status::Critical,
        Some(word) => {
            Status::of(&word).ok_or_else(|| RegistryRefusal::bad(format!("Invalid check status: {word:?}")))?
        }
    };
    let deregister_after = fields.time("deregistercriticalserviceafter")?.map(|after| after.max(DEREGISTER_AFTER_MIN));
    let passes_needed = fields.number("successbeforepassing", 100)?.unwrap_or(0) as u32;
    let failures_needed = fields.number("failuresbeforecritical", 100)?.unwrap_or(0) as u32;
    let kind = kind(&mut fields, config)?;
    Ok(CheckSpec {
        id,
        name,
        notes,
        kind,
        initial,
        deregister_after,
        // Consul counts those that do nothing yet.
        passes_needed: passes_needed + 1,
        failures_needed: failures_needed + 1,
    })
}

fn kind(fields: &mut Fields, config: &RegistryConfig) -> Result<CheckKind, RegistryRefusal> {
    if let Some(other) = OTHER_CHECKS
        .into_iter()
        .find(|key| fields.0.get(*key).is_some_and(|value| value != "" && value != &Value::Array(Vec::new())))
    {
        return Err(RegistryRefusal::not_here(format!(
            "isobar's registry does not check by {other}: TTL, HTTP and TCP are what it has"
        )));
    }
    let (ttl, http, tcp) = (fields.time("ttl")?, fields.text("http")?, fields.text("tcp")?);
    match (ttl, http, tcp) {
        (Some(ttl), None, None) => {
            if ttl > config.max_ttl {
                return Err(RegistryRefusal::bad(format!(
                    "a TTL of {ttl:?} is longer than max_ttl, {:?}",
                    config.max_ttl
                )));
            }
            Ok(CheckKind::Ttl(ttl.max(config.min_ttl)))
        }
        (None, Some(url), None) => probe(ProbeTarget::Http(http_target(&url, fields)?), fields, config),
        (None, None, Some(address)) => probe(tcp_target(&address)?, fields, config),
        (None, None, None) => Err(RegistryRefusal::bad("a check needs TTL, or HTTP or TCP with Interval")),
        _ => Err(RegistryRefusal::bad("a check has one of TTL, HTTP and TCP")),
    }
}

fn probe(target: ProbeTarget, fields: &mut Fields, config: &RegistryConfig) -> Result<CheckKind, RegistryRefusal> {
    if !config.checks {
        return Err(RegistryRefusal::not_here("this registry runs no checks (checks = false): TTL is what it has"));
    }
    let interval =
        fields.time("interval")?.ok_or_else(|| RegistryRefusal::bad("Interval must be > 0 for HTTP or TCP checks"))?;
    let interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
    let timeout = fields.time("timeout")?.unwrap_or(PROBE_TIMEOUT).clamp(Duration::from_millis(1), PROBE_TIMEOUT_MAX);
    Ok(CheckKind::Probe(Probe { target, interval, timeout }))
}

fn tcp_target(address: &str) -> Result<ProbeTarget, RegistryRefusal> {
    let wrong = || RegistryRefusal::bad(format!("{address:?} is no address with a port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || address.len() > PROBE_TEXT_BYTES_MAX {
        return Err(wrong());
    }
    Ok(ProbeTarget::Tcp { host: host.to_owned(), port })
}

fn http_target(url: &str, fields: &mut Fields) -> Result<HttpTarget, RegistryRefusal> {
    let wrong = || RegistryRefusal::bad(format!("{url:?} is no URL that could be asked"));
    let uri: Uri =
        if url.len() <= PROBE_TEXT_BYTES_MAX { url.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    let authority =
        uri.authority().filter(|it| !it.host().is_empty() && !it.as_str().contains('@')).ok_or_else(wrong)?;
    if tls && fields.flag("tlsskipverify")? {
        return Err(RegistryRefusal::not_here(
            "isobar's registry verifies certificates: TLSSkipVerify is not what it has",
        ));
    }
    let method = fields.text("method")?.unwrap_or_else(|| "GET".into()).to_ascii_uppercase();
    if !["GET", "HEAD", "POST", "PUT", "OPTIONS"].contains(&method.as_str()) {
        return Err(RegistryRefusal::bad(format!("a check cannot ask by {method:?}")));
    }
    let mut headers = Vec::new();
    if let Some(Value::Object(table)) = fields.take("header") {
        for (name, values) in table {
            for value in texts(Some(values), "a header")? {
                let good = http::HeaderName::try_from(&name).is_ok() && http::HeaderValue::try_from(&value).is_ok();
                if !good || name.len() + value.len() > PROBE_TEXT_BYTES_MAX || headers.len() >= HEADERS_MAX {
                    return Err(RegistryRefusal::bad(format!(
                        "header {name:?} of a check cannot be sent, or there are too many"
                    )));
                }
                headers.push((name.clone(), value));
            }
        }
    }
    let body = fields.text("body")?.unwrap_or_default();
    if body.len() > PROBE_TEXT_BYTES_MAX {
        return Err(RegistryRefusal::bad("the body of a check is too long"));
    }
    Ok(HttpTarget {
        tls,
        host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        target: uri.path_and_query().map_or("/", |it| it.as_str()).to_owned(),
        method,
        headers,
        body,
    })
}

fn weights(value: Value) -> Result<Weights, RegistryRefusal> {
    let mut fields = Fields::of(value, "Weights")?;
    let mut of = |key| Ok(fields.number(key, u64::from(u16::MAX))?.map(|weight| weight as u16));
    let (passing, warning) = (of("passing")?, of("warning")?);
    match (passing, warning) {
        // What Go has where nothing is set.
        (None | Some(0), None | Some(0)) => Ok(Weights::default()),
        (None | Some(0), _) => Err(RegistryRefusal::bad("Passing must be greater than 0")),
        (Some(passing), warning) => Ok(Weights { passing, warning: warning.unwrap_or(0) }),
    }
}

fn parsed(body: &[u8]) -> Result<Value, RegistryRefusal> {
    serde_json::from_slice(body).map_err(|error| RegistryRefusal::bad(format!("Request decode failed: {error}")))
}

fn texts(value: Option<Value>, what: &str) -> Result<Vec<String>, RegistryRefusal> {
    let wrong = || RegistryRefusal::bad(format!("{what} is no list of texts"));
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            values.into_iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(Value::String(text)) => Ok(vec![text]),
        Some(_) => Err(wrong()),
    }
}

fn table(value: Option<Value>, what: &str) -> Result<BTreeMap<String, String>, RegistryRefusal> {
    let wrong = || RegistryRefusal::bad(format!("{what} is no table of texts"));
    match value {
        None => Ok(BTreeMap::new()),
        Some(Value::Object(table)) => table
            .into_iter()
            .map(|(key, value)| value.as_str().map(|text| (key, text.to_owned())).ok_or_else(wrong))
            .collect(),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
