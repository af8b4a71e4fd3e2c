//! Instances as Eureka's API shows them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::registry::catalog::Action;
use crate::registry::instance::{CheckKind, EurekaInfo, EurekaStatus, Instance};

/// The name of an instance's application.
pub(super) fn application_name(instance: &Instance) -> String {
    instance.said.service.to_ascii_uppercase()
}

/// Whether an instance can be had at a virtual address.
pub(super) fn has_vip(instance: &Instance, vip: &str, secure: bool) -> bool {
    let info = info(instance);
    let addresses = if secure { info.secure_vip_address } else { info.vip_address };
    addresses.is_some_and(|addresses| addresses.split(',').any(|it| it.trim().eq_ignore_ascii_case(vip)))
}

/// What a client compares with its own count, to see whether it has missed a change.
pub(super) fn hash<'i>(all: impl Iterator<Item = &'i Instance>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    all.for_each(|instance| *counts.entry(instance.eureka_status().as_str()).or_default() += 1);
    counts.into_iter().map(|(status, count)| format!("{status}_{count}_")).collect()
}

/// An instance, and what has happened to it.
pub(super) fn instance(instance: &Instance, action: Action) -> Value {
    let info = info(instance);
    let enabled = |enabled: bool| if enabled { "true" } else { "false" };
    let mut data_center = Map::new();
    data_center.insert("@class".into(), info.data_center_class.as_str().into());
    data_center.insert("name".into(), info.data_center_name.as_str().into());
    if !info.data_center_metadata.is_empty() {
        data_center.insert("metadata".into(), json!(info.data_center_metadata));
    }
    let mut shown = json!({
        "instanceId": instance.said.id,
        "hostName": info.host_name,
        "app": application_name(instance),
        "ipAddr": info.ip_address,
        "status": instance.eureka_status().as_str(),
        "overriddenStatus": info.overridden.as_str(),
        "port": { "$": info.port, "@enabled": enabled(info.port_enabled) },
        "securePort": { "$": info.secure_port, "@enabled": enabled(info.secure_port_enabled) },
        "countryId": info.country_id,
        "dataCenterInfo": data_center,
        "leaseInfo": lease(instance),
        "metadata": instance.said.meta,
        "isCoordinatingDiscoveryServer": "false",
        "lastUpdatedTimestamp": instance.changed_ms.to_string(),
        "lastDirtyTimestamp": info.last_dirty_ms.to_string(),
        "actionType": action.as_str(),
    });
    let others = [
        ("homePageUrl", info.home_page_url),
        ("statusPageUrl", info.status_page_url),
        ("healthCheckUrl", info.health_check_url),
        ("secureHealthCheckUrl", info.secure_health_check_url),
        ("vipAddress", info.vip_address),
        ("secureVipAddress", info.secure_vip_address),
        ("appGroupName", info.app_group),
        ("asgName", info.asg),
    ];
    for (name, value) in others {
        if let Some(value) = value {
            shown[name] = value.into();
        }
    }
    shown
}

fn lease(instance: &Instance) -> Value {
    let lease = instance.said.checks.iter().find_map(|spec| match spec.kind {
        CheckKind::Lease { renewal, duration } => Some((renewal, duration)),
        CheckKind::Ttl(ttl) => Some((ttl / 3, ttl)),
        CheckKind::Probe(_) => None,
    });
    // Where isobar checks by itself there is none; what says so is what clients have for it.
    let (renewal, duration) =
        lease.map_or((30, 90), |(renewal, duration)| (renewal.as_secs().max(1), duration.as_secs().max(1)));
    json!({
        "renewalIntervalInSecs": renewal,
        "durationInSecs": duration,
        "registrationTimestamp": instance.registered_ms,
        "lastRenewalTimestamp": instance.renewed_ms,
        "evictionTimestamp": 0,
        "serviceUpTimestamp": instance.registered_ms,
    })
}

/// What an instance says, or would say if it had registered by this API.
fn info(instance: &Instance) -> EurekaInfo {
    if let Some(info) = &instance.said.eureka {
        return info.clone();
    }
    let said = &instance.said;
    EurekaInfo {
        host_name: said.address.clone(),
        ip_address: said.address.clone(),
        status: instance.eureka_status(),
        overridden: EurekaStatus::Unknown,
        port: said.port,
        port_enabled: said.port > 0,
        secure_port: 443,
        secure_port_enabled: false,
        country_id: 1,
        data_center_class: "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo".into(),
        data_center_name: "MyOwn".into(),
        data_center_metadata: BTreeMap::new(),
        home_page_url: None,
        status_page_url: None,
        health_check_url: None,
        secure_health_check_url: None,
        vip_address: Some(instance.service()),
        secure_vip_address: Some(instance.service()),
        app_group: None,
        asg: None,
        last_dirty_ms: instance.changed_ms,
    }
}
