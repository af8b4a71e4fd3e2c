use serde_json::json;

use super::*;
use crate::config::Table;

fn read(value: &Value) -> Result<Registration, RegistryRefusal> {
    let peer = "10.0.0.9".parse().unwrap();
    registration(value.to_string().as_bytes(), peer, &RegistryConfig::of_defaults())
}

#[test]
fn what_gos_client_sends_is_read() {
    // As `hashicorp/consul/api` writes it, with all that it has no word for.
    let said = read(&json!({
        "ID": "users-1", "Name": "users", "Tags": ["v1"], "Port": 8080, "Address": "10.0.0.1",
        "EnableTagOverride": false, "Meta": { "zone": "a" }, "Weights": null, "Proxy": null, "Connect": null,
        "Check": {
            "TTL": "15s", "DeregisterCriticalServiceAfter": "1m30s", "Status": "passing", "Args": null, "Header": null,
        },
        "Checks": null,
    }));
    let said = said.unwrap();
    assert_eq!((said.service.as_str(), said.id.as_str(), said.port), ("users", "users-1", 8080));
    assert_eq!((said.tags.as_slice(), said.meta["zone"].as_str()), (&["v1".to_owned()][..], "a"));
    let [check] = &said.checks[..] else { panic!("{said:?}") };
    assert_eq!((check.id.as_str(), check.name.as_str()), ("service:users-1", "Service 'users' check"));
    assert_eq!((&check.kind, check.initial), (&CheckKind::Ttl(Duration::from_secs(15)), Status::Passing));
    assert_eq!(check.deregister_after, Some(Duration::from_secs(90)));
}

#[test]
fn keys_are_read_in_any_spelling_and_what_is_left_out_has_its_default() {
    let said = read(&json!({
        "name": "users",
        "checks": [
            { "http": "http://users.internal:81/health?x=1", "interval": "500ms", "header": { "X-A": ["1", "2"] },
              "success_before_passing": 2 },
            { "TCP": "[::1]:82", "Interval": "10s", "Timeout": "1s", "CheckID": "mine", "Name": "tcp" },
            {},
        ],
        "weights": { "passing": 5 },
    }));
    let said = said.unwrap();
    assert_eq!((said.id.as_str(), said.address.as_str(), said.port), ("users", "10.0.0.9", 0));
    assert_eq!(said.weights, Weights { passing: 5, warning: 0 });
    let [http, tcp] = &said.checks[..] else { panic!("{said:?}") };
    assert_eq!((http.id.as_str(), http.passes_needed, http.failures_needed), ("service:users:1", 3, 1));
    let CheckKind::Probe(Probe { target: ProbeTarget::Http(target), interval, .. }) = &http.kind else {
        panic!("{http:?}")
    };
    assert_eq!((target.host.as_str(), target.port, target.target.as_str()), ("users.internal", 81, "/health?x=1"));
    assert_eq!((target.headers.len(), *interval), (2, INTERVAL_MIN));
    let expected = ProbeTarget::Tcp { host: "::1".into(), port: 82 };
    assert!(matches!(&tcp.kind, CheckKind::Probe(probe) if probe.target == expected) && tcp.id == "mine", "{tcp:?}");
}

#[test]
fn what_makes_no_sense_is_refused_and_what_is_not_here_says_so() {
    let check = |check: Value| json!({ "Name": "users", "Check": check });
    for (value, status, word) in [
        (json!([]), 400, "no JSON object"),
        (json!({}), 400, "Missing service name"),
        (json!({ "Name": 5 }), 400, "name is no text"),
        (json!({ "Name": "users", "Port": 70_000 }), 400, "port is no whole number"),
        (json!({ "Name": "users", "Tags": [1] }), 400, "Tags is no list of texts"),
        (json!({ "Name": "users", "Meta": { "a": [] } }), 400, "Meta is no table of texts"),
        (json!({ "Name": "users", "Weights": { "Passing": 0, "Warning": 1 } }), 400, "Passing must be greater than 0"),
        (json!({ "Name": "users", "Kind": "connect-proxy" }), 501, "no proxies of a mesh"),
        (json!({ "Name": "users", "Namespace": "shop" }), 501, "no namespace"),
        (check(json!({ "Name": "x" })), 400, "a check needs TTL"),
        (check(json!({ "TTL": "soon" })), 400, "ttl is no duration"),
        (check(json!({ "TTL": "1000h" })), 400, "longer than max_ttl"),
        (check(json!({ "TTL": "5s", "HTTP": "http://a/" })), 400, "one of TTL, HTTP and TCP"),
        (check(json!({ "HTTP": "http://a/" })), 400, "Interval must be > 0"),
        (check(json!({ "HTTP": "file:///etc/passwd", "Interval": "5s" })), 400, "no URL that could be asked"),
        (check(json!({ "HTTP": "http://a@b/", "Interval": "5s" })), 400, "no URL that could be asked"),
        (check(json!({ "HTTP": "https://a/", "Interval": "5s", "TLSSkipVerify": true })), 501, "verifies certificates"),
        (check(json!({ "HTTP": "http://a/", "Interval": "5s", "Method": "TRACE" })), 400, "cannot ask by"),
        (check(json!({ "HTTP": "http://a/", "Interval": "5s", "Header": { "a\r\nb": ["c"] } })), 400, "cannot be sent"),
        (check(json!({ "TCP": "a", "Interval": "5s" })), 400, "no address with a port"),
        (check(json!({ "Args": ["sh"], "Interval": "5s" })), 501, "does not check by args"),
        (check(json!({ "GRPC": "a:1", "Interval": "5s" })), 501, "does not check by grpc"),
        (check(json!({ "TTL": "5s", "Status": "fine" })), 400, "Invalid check status"),
        (
            json!({ "Name": "users", "Checks": [{ "TTL": "5s", "CheckID": "a" }, { "TTL": "5s", "CheckID": "a" }] }),
            400,
            "two checks have the id",
        ),
    ] {
        let refused = read(&value).unwrap_err();
        assert!(refused.status == status && refused.text.contains(word), "{value}: {refused:?}");
    }
    let deep = "[".repeat(10_000);
    assert!(registration(deep.as_bytes(), "10.0.0.9".parse().unwrap(), &RegistryConfig::of_defaults()).is_err());
    let without = RegistryConfig { checks: false, ..RegistryConfig::of_defaults() };
    let asked = check(json!({ "TCP": "a:1", "Interval": "5s" })).to_string();
    assert_eq!(registration(asked.as_bytes(), "10.0.0.9".parse().unwrap(), &without).unwrap_err().status, 501);
}

#[test]
fn durations_are_gos() {
    for (value, expected) in [
        (json!("10s"), Some(10_000)),
        (json!("1m30s"), Some(90_000)),
        (json!("1.5h"), Some(5_400_000)),
        (json!("250ms"), Some(250)),
        (json!(2_000_000), Some(2)),
        (json!("10"), None),
        (json!(""), None),
        (json!("-5s"), None),
        (json!("5 parsecs"), None),
        (json!("99999999999999h"), None),
        (json!([]), None),
    ] {
        assert_eq!(duration(&value), expected.map(Duration::from_millis), "{value}");
    }
}
