use std::time::Duration;

use serde_json::json;

use super::message::is_expired;
use super::*;
use crate::backend::Instance;
use crate::config::ServicePort;

fn config(port: Option<ServicePort>) -> KubernetesConfig {
    KubernetesConfig {
        service: "users".into(),
        namespace: None,
        port,
        kubeconfig: None,
        context: None,
        zone_hints: false,
        prefer_ipv6: false,
        wait: Duration::from_secs(60),
        resync: Duration::from_secs(600),
        timeout: Duration::from_secs(10),
    }
}

fn slices() -> Slices {
    Slices::new(Wanted::of(&config(None)), 10_000)
}

/// A slice as the API server sends it.
fn slice(name: &str, version: u32, endpoints: Vec<Value>) -> Value {
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name, "namespace": "shop", "resourceVersion": version.to_string(), "uid": "u",
            "labels": { "kubernetes.io/service-name": "users", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" },
            "managedFields": [{ "manager": "kube-controller-manager", "fieldsV1": { "f:endpoints": {} } }]
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http" }]
    })
}

fn pod(address: &str, conditions: Value) -> Value {
    json!({ "addresses": [address], "conditions": conditions,
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": format!("p{address}"), "uid": format!("u{address}") },
            "nodeName": "node-1", "zone": "eu-1a" })
}

fn ready(address: &str) -> Value {
    pod(address, json!({ "ready": true, "serving": true, "terminating": false }))
}

fn draining(address: &str) -> Value {
    pod(address, json!({ "ready": false, "serving": true, "terminating": true }))
}

fn put(slices: &mut Slices, slice: Value) {
    let bytes = slice.to_string().len();
    slices.put(slice, bytes).unwrap();
}

fn said(slices: &Slices) -> Vec<(String, u16)> {
    slices.answer(None).set.iter().map(|it| (it.address.to_string(), it.weight)).collect()
}

fn of(slice: Value) -> Vec<(String, u16)> {
    let mut slices = slices();
    put(&mut slices, slice);
    said(&slices)
}

fn refused(slice: Value) -> Vec<String> {
    let mut slices = slices();
    put(&mut slices, slice);
    slices.answer(None).refused
}

fn expected(all: &[(&str, u16)]) -> Vec<(String, u16)> {
    all.iter().map(|(address, weight)| (format!("{address}:8080"), *weight)).collect()
}

#[test]
fn conditions_say_what_serves_and_what_drains() {
    for (conditions, weight) in [
        (json!({ "ready": true, "serving": true, "terminating": false }), Some(1)),
        // What is not said is to be taken for yes.
        (json!({}), Some(1)),
        (json!(null), Some(1)),
        (json!({ "ready": null, "serving": null, "terminating": null }), Some(1)),
        (json!({ "ready": true }), Some(1)),
        // `publishNotReadyAddresses`: ready whatever the pod says.
        (json!({ "ready": true, "serving": false, "terminating": true }), Some(1)),
        (json!({ "ready": false, "serving": true, "terminating": true }), Some(0)),
        (json!({ "ready": false, "terminating": true }), Some(0)),
        (json!({ "ready": false, "serving": false, "terminating": true }), None),
        (json!({ "ready": false, "serving": false, "terminating": false }), None),
        (json!({ "ready": false }), None),
        (json!({ "ready": false, "serving": true }), None),
    ] {
        let found = of(slice("a", 1, vec![ready("10.0.0.1"), pod("10.0.0.2", conditions.clone())]));
        let two = weight.map(|weight| ("10.0.0.2", weight));
        assert_eq!(found, expected(&[("10.0.0.1", 1)].into_iter().chain(two).collect::<Vec<_>>()), "{conditions}");
    }
    // No `conditions` at all.
    assert_eq!(of(slice("a", 1, vec![json!({ "addresses": ["10.0.0.1"] })])), expected(&[("10.0.0.1", 1)]));
}

#[test]
fn endpoints_that_drain_serve_while_none_is_ready() {
    let mut slices = slices();
    put(
        &mut slices,
        slice("a", 1, vec![draining("10.0.0.1"), draining("10.0.0.2"), pod("10.0.0.3", json!({ "ready": false }))]),
    );
    assert_eq!(said(&slices), expected(&[("10.0.0.1", 1), ("10.0.0.2", 1)]));
    // The next pod is ready in another slice.
    put(&mut slices, slice("b", 2, vec![ready("10.0.0.3")]));
    assert_eq!(said(&slices), expected(&[("10.0.0.1", 0), ("10.0.0.2", 0), ("10.0.0.3", 1)]));
    let labels = slices.answer(None).set.iter().map(|it| it.labels.contains_key("terminating")).collect::<Vec<_>>();
    assert_eq!(labels, [true, true, false]);
}

#[test]
fn an_endpoint_tells_its_pod_node_and_zone() {
    let mut slices = slices();
    let mut endpoint = ready("10.0.0.1");
    endpoint["hints"] = json!({ "forZones": [{ "name": "eu-1b" }, { "name": "eu-1c" }] });
    put(
        &mut slices,
        slice(
            "a",
            1,
            vec![endpoint, json!({ "addresses": ["10.0.0.2"], "targetRef": { "kind": "Node", "name": "n" } })],
        ),
    );
    let set = slices.answer(Some("7")).set;
    let all: Vec<&Instance> = set.iter().map(|it| &**it).collect();
    let labels: Vec<_> = all[0].labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["hint_zones=eu-1b,eu-1c", "node=node-1", "pod=p10.0.0.1", "zone=eu-1a"]);
    assert_eq!(all[0].place.zone.as_deref(), Some("eu-1a"));
    assert_eq!((all[1].labels.len(), all[1].place.zone.as_deref()), (0, None));
    assert_eq!(slices.answer(Some("7")).revision.as_deref(), Some("7"));
}

#[test]
fn hints_are_zones_where_they_are_wanted_and_all_have_them() {
    let with = |address: &str, hint: &[&str]| {
        let mut endpoint = ready(address);
        endpoint["hints"] = json!({ "forZones": hint.iter().map(|it| json!({ "name": it })).collect::<Vec<_>>() });
        endpoint
    };
    let zones = |zone_hints: bool, endpoints: Vec<Value>| {
        let mut slices = Slices::new(Wanted::of(&KubernetesConfig { zone_hints, ..config(None) }), 10_000);
        put(&mut slices, slice("a", 1, endpoints));
        let set = slices.answer(None).set;
        set.iter().map(|it| it.place.zone.as_deref().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let all = || vec![with("10.0.0.1", &["eu-1b"]), with("10.0.0.2", &["eu-1c", "eu-1a"])];
    assert_eq!(zones(false, all()), ["eu-1a", "eu-1a"]);
    assert_eq!(zones(true, all()), ["eu-1b", "eu-1a"], "its own zone, where it is among them");
    assert_eq!(zones(true, vec![with("10.0.0.1", &["eu-1b"]), ready("10.0.0.2")]), ["eu-1a", "eu-1a"]);
    // One that drains is not asked for a hint.
    assert_eq!(zones(true, vec![with("10.0.0.1", &["eu-1b"]), draining("10.0.0.2")]), ["eu-1b", "eu-1a"]);
}

#[test]
fn an_address_in_two_slices_counts_once() {
    let both = |one: Value, other: Value| {
        let mut slices = slices();
        put(&mut slices, slice("a", 1, vec![ready("10.0.0.9"), one]));
        put(&mut slices, slice("b", 2, vec![other]));
        said(&slices)
    };
    let once = |weight| expected(&[("10.0.0.1", weight), ("10.0.0.9", 1)]);
    assert_eq!(both(ready("10.0.0.1"), ready("10.0.0.1")), once(1));
    // A pod that terminates does so in all slices, whichever is late.
    assert_eq!(both(draining("10.0.0.1"), ready("10.0.0.1")), once(0));
    assert_eq!(both(ready("10.0.0.1"), draining("10.0.0.1")), once(0));
    // But the address may be another pod's by now.
    let mut other = ready("10.0.0.1");
    other["targetRef"]["uid"] = "another".into();
    assert_eq!(both(draining("10.0.0.1"), other.clone()), once(1));
    assert_eq!(both(other, draining("10.0.0.1")), once(1));
    assert_eq!(both(ready("10.0.0.1"), pod("10.0.0.1", json!({ "ready": false }))), once(1));
}

#[test]
fn a_pod_with_addresses_of_both_families_counts_once() {
    let six = |uid: &str| {
        let mut endpoint = ready("fd00::1");
        endpoint["targetRef"]["uid"] = uid.into();
        let mut six = slice("six", 2, vec![endpoint]);
        six["addressType"] = "IPv6".into();
        six
    };
    let all = |prefer_ipv6: bool, uid: &str| {
        let mut slices = Slices::new(Wanted::of(&KubernetesConfig { prefer_ipv6, ..config(None) }), 10_000);
        put(&mut slices, slice("four", 1, vec![ready("10.0.0.1")]));
        put(&mut slices, six(uid));
        said(&slices).into_iter().map(|(address, _)| address).collect::<Vec<_>>()
    };
    assert_eq!(all(false, "u10.0.0.1"), ["10.0.0.1:8080"]);
    assert_eq!(all(true, "u10.0.0.1"), ["[fd00::1]:8080"]);
    assert_eq!(all(false, "another"), ["10.0.0.1:8080", "[fd00::1]:8080"]);
    assert_eq!(of(six("alone")), [("[fd00::1]:8080".into(), 1)]);
}

#[test]
fn the_port_is_found_in_each_slice_for_itself() {
    let named = |port: Option<&str>, ports: Value| {
        let port = port.map(|port| match port.parse() {
            Ok(number) => ServicePort::Number(number),
            Err(_) => ServicePort::Name(port.into()),
        });
        let mut slices = Slices::new(Wanted::of(&config(port)), 10_000);
        let mut one = slice("a", 1, vec![ready("10.0.0.1")]);
        one["ports"] = ports;
        put(&mut slices, one);
        let Answer { set, refused, .. } = slices.answer(None);
        match set.iter().next() {
            Some(instance) => instance.address.to_string(),
            None => refused.join(";"),
        }
    };
    let both = || json!([{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "metrics", "port": 9900 }]);
    for (port, ports, what) in [
        (Some("http"), both(), "10.0.0.1:8080"),
        (Some("metrics"), both(), "10.0.0.1:9900"),
        (Some("9900"), both(), "10.0.0.1:9900"),
        (Some("htpp"), both(), "a: no port htpp: it has http (8080), metrics (9900)"),
        (Some("80"), both(), "a: no port 80: it has http (8080), metrics (9900)"),
        (None, both(), "a: `port` is needed: it has http (8080), metrics (9900)"),
        (None, json!([{ "name": "", "port": 8080 }]), "10.0.0.1:8080"),
        (None, json!([{ "port": 8080 }, { "name": "dns", "port": 53, "protocol": "UDP" }]), "10.0.0.1:8080"),
        (Some("dns"), json!([{ "name": "dns", "port": 53, "protocol": "UDP" }]), "a: no port dns: it has none for TCP"),
        // One whose pods have no such port says of none, and so does one that was written by hand.
        (Some("http"), json!([]), "a: no port http: it has none for TCP"),
        (Some("http"), json!(null), "a: no port http: it has none for TCP"),
        (None, json!([{ "name": null, "port": null }]), "a: `port` is needed: it has none for TCP"),
        (Some("8080"), json!(null), "10.0.0.1:8080"),
        (Some("8080"), json!([{ "name": "", "port": null }]), "10.0.0.1:8080"),
        (Some("8080"), json!([{ "port": 53, "protocol": "UDP" }]), "a: no port 8080: it has none for TCP"),
        (None, json!([{ "port": 0 }]), "a: `port` is needed: it has 0"),
    ] {
        assert_eq!(named(port, ports.clone()), what, "{port:?} {ports}");
    }
    // Named ports differ from slice to slice while a deployment changes them.
    let mut slices = Slices::new(Wanted::of(&config(Some(ServicePort::Name("http".into())))), 10_000);
    put(&mut slices, slice("a", 1, vec![ready("10.0.0.1")]));
    let mut other = slice("b", 2, vec![ready("10.0.0.2")]);
    other["ports"] = json!([{ "name": "http", "port": 9000 }]);
    put(&mut slices, other);
    assert_eq!(said(&slices), [("10.0.0.1:8080".into(), 1), ("10.0.0.2:9000".into(), 1)]);
}

#[test]
fn one_bad_slice_or_endpoint_costs_itself_alone() {
    let mut fqdn = slice("names", 1, vec![json!({ "addresses": ["users.internal"] })]);
    fqdn["addressType"] = "FQDN".into();
    assert_eq!(refused(fqdn), ["names: its addresses are names (FQDN), which belong into `backends`"]);
    let mut odd = slice("odd", 1, vec![ready("10.0.0.1")]);
    odd["addressType"] = "IPX".into();
    assert_eq!(refused(odd), ["odd: addresses of the type \"IPX\""]);
    let mut large = slice("large", 1, vec![ready("10.0.0.1")]);
    large["ports"] = json!([{ "port": 70_000 }]);
    assert!(refused(large)[0].starts_with("large: invalid value"));
    let bad = vec![
        ready("10.0.0.1"),
        ready("nowhere"),
        json!({ "addresses": [] }),
        json!(3),
        json!({ "addresses": ["10.0.0.2"], "conditions": { "ready": "yes" } }),
        json!({ "addresses": ["10.0.0.3"], "nodeName": "n".repeat(5000) }),
        // Only the first address has a meaning. A zone that cannot be one is none.
        json!({ "addresses": ["10.0.0.4", "10.0.0.5"], "zone": "a\u{1}" }),
    ];
    let mut slices = slices();
    put(&mut slices, slice("a", 1, bad));
    assert_eq!(said(&slices), expected(&[("10.0.0.1", 1), ("10.0.0.4", 1)]));
    let told: Vec<_> = slices.answer(None).refused;
    assert_eq!(told[..2], ["a: endpoint 2: \"nowhere\" is not an IP address", "a: endpoint 3: it has no address"]);
    assert_eq!(told.len(), 5);
    // Without endpoints there is nothing wrong, and nothing of another Service counts.
    let mut empty = slice("empty", 1, vec![]);
    (empty["ports"], empty["endpoints"]) = (json!(null), json!(null));
    assert!(refused(empty).is_empty());
    let mut others = slice("others", 1, vec![ready("10.0.0.1")]);
    others["metadata"]["labels"]["kubernetes.io/service-name"] = "orders".into();
    assert_eq!((of(others.clone()), refused(others)), (vec![], vec![]));
}

#[test]
fn slices_come_change_and_go() {
    let mut slices = slices();
    put(&mut slices, slice("a", 1, vec![ready("10.0.0.1")]));
    put(&mut slices, slice("b", 2, vec![ready("10.0.0.2")]));
    put(&mut slices, slice("a", 3, vec![ready("10.0.0.3")]));
    assert_eq!(said(&slices), expected(&[("10.0.0.2", 1), ("10.0.0.3", 1)]));
    assert_eq!(slices.take_out(&slice("a", 4, vec![])).unwrap(), "4");
    assert_eq!(slices.take_out(&slice("never", 5, vec![])).unwrap(), "5");
    assert_eq!(said(&slices), expected(&[("10.0.0.2", 1)]));
    // One that is given to another Service is gone from this one.
    let mut given = slice("b", 6, vec![ready("10.0.0.2")]);
    given["metadata"]["labels"] = json!({});
    put(&mut slices, given);
    assert_eq!(said(&slices), []);
}

#[test]
fn all_slices_together_are_bounded_however_they_come() {
    let mut slices = slices();
    for version in 1..50 {
        // The same again and again takes no more.
        slices.put(slice("a", version, vec![ready("10.0.0.1")]), 4000).unwrap();
    }
    slices.put(slice("b", 50, vec![]), 4000).unwrap();
    let error = slices.put(slice("c", 51, vec![]), 4000).unwrap_err();
    assert_eq!(error.to_string(), "its EndpointSlices have more than 10000 bytes");
    let items = vec![slice("a", 1, vec![]), slice("b", 1, vec![])];
    assert!(slices.emptied().add(items.clone(), 10_000).is_ok());
    assert!(slices.emptied().add(items, 10_001 + 1).is_err());
    for nameless in [json!({}), json!(3), json!({ "metadata": { "resourceVersion": "3" } }), slice("", 3, vec![])] {
        assert!(slices.put(nameless.clone(), 1).is_err(), "{nameless}");
    }
}

#[test]
fn pages_of_a_list_are_read() {
    let page = |metadata: Value, items: Value| {
        json!({ "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": items }).to_string()
    };
    let read = |text: &str| Page::read(text.as_bytes());
    let first = page(json!({ "resourceVersion": "10", "continue": "abc", "remainingItemCount": 3 }), json!([{}, {}]));
    let first = read(&first).unwrap();
    assert_eq!((&*first.version, first.next.as_deref(), first.items.len()), ("10", Some("abc"), 2));
    for last in [
        page(json!({ "resourceVersion": "10", "continue": "" }), json!(null)),
        page(json!({ "resourceVersion": "10" }), json!([])),
    ] {
        let last = read(&last).unwrap();
        assert_eq!((last.next, last.items.len()), (None, 0));
    }
    for (text, what) in [
        ("", "its answer is no list of EndpointSlices: EOF"),
        ("<html>", "its answer is no list of EndpointSlices: expected value"),
        ("{}", "its answer is no list of EndpointSlices: this is not Kubernetes' API"),
        (&page(json!({}), json!([])), "what it says has no version to go on from"),
        (&page(json!({ "resourceVersion": "1 2" }), json!([])), "what it says has no version to go on from"),
        (&page(json!({ "resourceVersion": "1".repeat(300) }), json!([])), "what it says has no version to go on from"),
        (
            &page(json!({ "resourceVersion": "1", "continue": "c".repeat(20_000) }), json!([])),
            "its list goes on by a token that is too long",
        ),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
    // However deep it is.
    let deep = format!(
        "{{\"kind\":\"EndpointSliceList\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{}]}}",
        "[".repeat(100_000)
    );
    assert!(read(&deep).is_err());
}

#[test]
fn each_event_of_a_watch_is_read() {
    let read =
        |kind: &str, object: Value| Event::read(json!({ "type": kind, "object": object }).to_string().as_bytes());
    assert!(matches!(read("ADDED", slice("a", 1, vec![])), Ok(Event::Put(_))));
    assert!(matches!(read("MODIFIED", slice("a", 1, vec![])), Ok(Event::Put(_))));
    assert!(matches!(read("DELETED", slice("a", 1, vec![])), Ok(Event::Gone(_))));
    let bookmark = json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": { "resourceVersion": "12746", "creationTimestamp": null }, "endpoints": null, "ports": null });
    assert!(matches!(read("BOOKMARK", bookmark), Ok(Event::Bookmark(_))));
    let status = |code: u16, reason: &str, message: &str| json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code });
    for expired in [
        status(410, "Expired", "too old resource version: 657887 (680402)"),
        status(410, "Gone", ""),
        status(504, "Timeout", "Timeout: Too large resource version: 90, current: 12"),
        status(0, "Expired", ""),
    ] {
        assert!(matches!(read("ERROR", expired.clone()), Ok(Event::Expired)), "{expired}");
    }
    for (line, what) in [
        (
            json!({ "type": "ERROR", "object": status(500, "InternalError", "etcdserver: no leader") }),
            "its watch has failed: 500 etcdserver: no leader",
        ),
        (json!({ "type": "ERROR", "object": null }), "its watch has failed: 0 "),
        (json!({ "type": "SYNC", "object": {} }), "a line of its watch is no event: this is not Kubernetes' API"),
        (json!({ "type": "ADDED" }), "a line of its watch makes no sense: this is not Kubernetes' API"),
        (json!([]), "a line of its watch makes no sense: this is not Kubernetes' API"),
    ] {
        assert_eq!(Event::read(line.to_string().as_bytes()).unwrap_err().to_string(), what);
    }
    assert_eq!(
        [400, 410, 504, 401, 403, 404, 429, 500, 503].map(is_expired),
        [true, true, true, false, false, false, false, false, false]
    );
}
