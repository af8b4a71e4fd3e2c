//! What clients of Eureka's API send: an instance.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::RegistryConfig;
use crate::registry::answer::RegistryRefusal;
use crate::registry::instance::{Api, CheckKind, CheckSpec, EurekaInfo, EurekaStatus, Registration, Status, Weights};

/// How long a heartbeat counts, and how often one comes, where a client says nothing of it.
const LEASE: Duration = Duration::from_secs(90);
const RENEWAL: Duration = Duration::from_secs(30);

/// Data center of a client that says nothing of it.
const DATA_CENTER_CLASS: &str = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";

/// A registration that a client at `peer` has sent for `app`.
pub(super) fn registration(
    sent: Value,
    app: &str,
    peer: IpAddr,
    config: &RegistryConfig,
) -> Result<Registration, RegistryRefusal> {
    let Value::Object(mut sent) = sent else { return Err(RegistryRefusal::bad("not an instance")) };
    let Some(Value::Object(mut fields)) = sent.remove("instance") else {
        return Err(RegistryRefusal::bad("Missing instance"));
    };
    let named = text(&fields, "app");
    if named.as_ref().is_some_and(|named| !named.eq_ignore_ascii_case(app)) {
        return Err(RegistryRefusal::bad(format!(
            "Mismatched appName, expecting {app} but was {}",
            named.unwrap_or_default()
        )));
    }
    let host_name = text(&fields, "hostName").ok_or_else(|| RegistryRefusal::bad("Missing hostname"))?;
    let data_center = table(fields.remove("dataCenterInfo"));
    let of_data_center = texts(data_center.get("metadata").cloned());
    // As Netflix's classes have it: what it says, or what its data center calls it, or its host.
    let id = text(&fields, "instanceId")
        .or_else(|| of_data_center.get("instance-id").cloned())
        .unwrap_or_else(|| host_name.clone());
    let ip_address = text(&fields, "ipAddr").unwrap_or_else(|| peer.to_canonical().to_string());
    let (port, port_enabled) = port(fields.get("port"), 0)?;
    let (secure_port, secure_port_enabled) = self::port(fields.get("securePort"), 443)?;
    let port_enabled = port_enabled.unwrap_or(port > 0);
    let secure_port_enabled = secure_port_enabled.unwrap_or(false);
    let status = |key: &str| match text(&fields, key) {
        None => Ok(None),
        Some(word) => {
            EurekaStatus::of(&word).map(Some).ok_or_else(|| RegistryRefusal::bad(format!("{word:?} is no status")))
        }
    };
    let (own, overridden) = (status("status")?, status("overriddenStatus")?.or(status("overriddenstatus")?));
    let lease = lease(table(fields.get("leaseInfo").cloned()), config)?;
    let number = |key: &str| text(&fields, key).and_then(|text| text.parse::<i64>().ok());
    let info = EurekaInfo {
        host_name: host_name.clone(),
        ip_address: ip_address.clone(),
        status: own.unwrap_or(EurekaStatus::Up),
        overridden: overridden.unwrap_or(EurekaStatus::Unknown),
        port,
        port_enabled,
        secure_port,
        secure_port_enabled,
        country_id: number("countryId").unwrap_or(1),
        data_center_class: text(&data_center, "@class").unwrap_or_else(|| DATA_CENTER_CLASS.into()),
        data_center_name: text(&data_center, "name").unwrap_or_else(|| "MyOwn".into()),
        data_center_metadata: of_data_center,
        home_page_url: text(&fields, "homePageUrl"),
        status_page_url: text(&fields, "statusPageUrl"),
        health_check_url: text(&fields, "healthCheckUrl"),
        secure_health_check_url: text(&fields, "secureHealthCheckUrl"),
        vip_address: text(&fields, "vipAddress"),
        secure_vip_address: text(&fields, "secureVipAddress"),
        app_group: text(&fields, "appGroupName"),
        asg: text(&fields, "asgName"),
        last_dirty_ms: number("lastDirtyTimestamp").and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
    };
    let check = CheckSpec {
        id: format!("eureka:{id}"),
        name: "Eureka lease".into(),
        notes: String::new(),
        kind: lease,
        initial: Status::Passing,
        deregister_after: None,
        passes_needed: 1,
        failures_needed: 1,
    };
    Ok(Registration {
        api: Api::Eureka,
        service: app.to_ascii_uppercase(),
        id,
        // Where there are several machines, their names often mean nothing to each other.
        address: if ip_address.is_empty() { host_name } else { ip_address },
        port: if port_enabled {
            port
        } else if secure_port_enabled {
            secure_port
        } else {
            0
        },
        tags: Vec::new(),
        meta: texts(fields.remove("metadata")),
        weights: Weights::default(),
        checks: vec![check],
        eureka: Some(info),
    })
}

fn lease(fields: Map<String, Value>, config: &RegistryConfig) -> Result<CheckKind, RegistryRefusal> {
    let seconds = |key: &str, default: Duration| {
        let seconds = text(&fields, key).and_then(|text| text.parse::<u64>().ok());
        seconds.filter(|seconds| *seconds > 0).map_or(default, Duration::from_secs)
    };
    let (renewal, duration) = (seconds("renewalIntervalInSecs", RENEWAL), seconds("durationInSecs", LEASE));
    if duration > config.max_ttl {
        return Err(RegistryRefusal::bad(format!(
            "a lease of {duration:?} is longer than max_ttl, {:?}",
            config.max_ttl
        )));
    }
    Ok(CheckKind::Lease { renewal, duration: duration.max(config.min_ttl) })
}

/// A port, and whether it is said to be used: `{"$": 8080, "@enabled": "true"}`, or a number alone.
fn port(value: Option<&Value>, default: u16) -> Result<(u16, Option<bool>), RegistryRefusal> {
    let (number, enabled) = match value {
        Some(Value::Object(table)) => (text(table, "$"), text(table, "@enabled").map(|it| it == "true")),
        Some(value) => (plain(value), None),
        None => return Ok((default, None)),
    };
    let number = match number {
        None => default,
        Some(text) => text.parse().map_err(|_| RegistryRefusal::bad(format!("{text:?} is no port")))?,
    };
    Ok((number, enabled))
}

/// A text, a number or a truth as a text.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A text; `None` where it is empty or not there.
fn text(fields: &Map<String, Value>, key: &str) -> Option<String> {
    fields.get(key).and_then(plain).filter(|text| !text.is_empty())
}

fn table(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(table)) => table,
        _ => Map::new(),
    }
}

/// Metadata: texts by their names. What begins with `@` is of the notation.
fn texts(value: Option<Value>) -> BTreeMap<String, String> {
    let entries = table(value).into_iter().filter(|(name, _)| !name.starts_with('@'));
    entries.filter_map(|(name, value)| Some((name, plain(&value)?))).collect()
}
