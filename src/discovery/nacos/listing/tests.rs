use super::*;
use crate::config::{Vocabulary, parse};

fn config(keys: &str) -> NacosConfig {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         [[upstream.u.discovery]]\n[upstream.u.discovery.nacos]\nservice = \"users\"\n{keys}\n"
    );
    let config = parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
    (**config.upstreams[0].discovery[0].nacos.as_ref().unwrap()).clone()
}

/// As the documentation of the API has it, with more instances.
const LIST: &str = r#"{
  "name": "DEFAULT_GROUP@@users", "groupName": "DEFAULT_GROUP", "clusters": "", "cacheMillis": 10000,
  "hosts": [
    {"instanceId": "10.10.10.10#8888#DEFAULT#DEFAULT_GROUP@@users", "ip": "10.10.10.10", "port": 8888, "weight": 1.0, "healthy": true,
     "enabled": true, "ephemeral": true, "clusterName": "DEFAULT", "serviceName": "DEFAULT_GROUP@@users",
     "metadata": {"preserved.register.source": "SPRING_CLOUD", "zone": "eu-1a"}, "instanceHeartBeatInterval": 5000,
     "instanceHeartBeatTimeOut": 15000, "ipDeleteTimeout": 30000, "instanceIdGenerator": "simple"},
    {"ip": "2001:db8::7", "port": 8889, "weight": 3, "healthy": true, "enabled": true, "ephemeral": false, "clusterName": "HZ", "metadata": {"n": 5, "x": null}},
    {"ip": "users.internal", "port": 8890, "weight": 0.0, "metadata": null, "clusterName": null},
    {"ip": "10.10.10.11", "port": 1, "healthy": false},
    {"ip": "10.10.10.12", "port": 1, "enabled": false},
    {"ip": "10.10.10.13", "port": 0},
    {"ip": "10.10.10.14", "port": 1, "weight": -1.5},
    {"ip": "10.10.10.15"},
    7
  ],
  "lastRefTime": 1528787794594, "checksum": "", "allIPs": false, "reachProtectionThreshold": false, "valid": true}"#;

fn read(text: &str, keys: &str) -> Listing {
    Listing::read(text.as_bytes(), &config(keys), "zone").unwrap()
}

fn told(listing: &Listing) -> Vec<String> {
    let one = |it: &Instance| format!("{} {} {}", it.address, it.weight, it.place.zone.as_deref().unwrap_or("-"));
    listing.set.iter().map(|it| one(it)).collect()
}

#[test]
fn instances_are_read_with_what_is_said_of_them() {
    let listing = read(LIST, "");
    assert_eq!(listing.time, 1_528_787_794_594);
    assert_eq!(told(&listing), ["10.10.10.10:8888 1 eu-1a", "[2001:db8::7]:8889 3 HZ", "users.internal:8890 0 -"]);
    let labels = |n: usize| {
        let instance = listing.set.iter().nth(n).unwrap();
        instance.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(
        labels(0),
        [
            "cluster=DEFAULT",
            "id=10.10.10.10#8888#DEFAULT#DEFAULT_GROUP@@users",
            "preserved.register.source=SPRING_CLOUD",
            "zone=eu-1a"
        ]
    );
    assert_eq!(labels(1), ["cluster=HZ", "n=5"]);
    let refused: Vec<_> = listing.refused.iter().map(String::as_str).collect();
    assert_eq!(
        refused,
        [
            "instance 8: missing field `port`",
            "instance 9: invalid type: integer `7`, expected struct NacosInstance",
            "instance 6 (\"10.10.10.13\"): \"10.10.10.13:0\" is not an address with a port",
            "instance 7 (\"10.10.10.14\"): -1.5 is no weight",
        ]
    );
}

#[test]
fn what_was_not_asked_for_is_left_out_whatever_was_sent() {
    let addresses = |keys: &str| read(LIST, keys).set.iter().map(|it| it.address.to_string()).collect::<Vec<_>>();
    assert_eq!(addresses("clusters = [\"HZ\", \"SH\"]"), ["[2001:db8::7]:8889"]);
    assert_eq!(addresses("ephemeral = false"), ["[2001:db8::7]:8889"]);
    assert_eq!(addresses("ephemeral = true"), ["10.10.10.10:8888", "users.internal:8890"]);
    assert_eq!(addresses("unhealthy = true").len(), 4);
}

/// Weights with decimals are as many hundredths, of all instances then.
#[test]
fn weights_keep_their_ratio() {
    let weights = |weights: &[&str]| {
        let hosts: Vec<_> =
            (1..).zip(weights).map(|(n, it)| format!(r#"{{"ip":"10.0.0.{n}","port":1,"weight":{it}}}"#)).collect();
        let listing = read(&format!(r#"{{"hosts":[{}]}}"#, hosts.join(",")), "");
        listing.set.iter().map(|it| it.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights(&["1", "2.0", "10000"]), [1, 2, 10_000]);
    assert_eq!(weights(&["0.5", "1.0", "0", "0.001", "10000"]), [50, 100, 0, 1, 65_535]);
}

#[test]
fn the_forms_of_each_version_are_read() {
    let host = r#"{"ip":"10.0.0.1","port":80,"weight":1.0,"healthy":true,"enabled":true,"ephemeral":true,"clusterName":"DEFAULT"}"#;
    let list = format!(r#"{{"name":"users","groupName":"DEFAULT_GROUP","hosts":[{host}],"lastRefTime":5}}"#);
    for (text, time) in [
        (list.clone(), 5),
        (format!(r#"{{"code":0,"message":"success","data":{list}}}"#), 5),
        (format!(r#"{{"code":0,"message":"success","data":[{host}]}}"#), 0),
        (
            format!(
                r#"{{"requestId":"7","namespace":"public","serviceName":"users","groupName":"G","serviceInfo":{list}}}"#
            ),
            5,
        ),
        (format!(r#"{{"resultCode":200,"errorCode":0,"requestId":"7","success":true,"serviceInfo":{list}}}"#), 5),
    ] {
        let listing = read(&text, "");
        assert_eq!((told(&listing), listing.time), (vec!["10.0.0.1:80 1 -".to_owned()], time), "{text}");
    }
    // Nothing is registered.
    for text in [
        r#"{"name":"DEFAULT_GROUP@@users","hosts":[],"cacheMillis":10000,"lastRefTime":0}"#,
        r#"{"hosts":null}"#,
        r#"{"code":0,"data":[]}"#,
        r#"{"code":21008,"message":"service not exist","data":"service users is not found!"}"#,
    ] {
        assert!(read(text, "").set.is_empty(), "{text}");
    }
}

#[test]
fn what_is_no_list_is_an_error() {
    for text in ["", "<html>", "{}", "null", "7", "{\"hosts\":", r#"{"hosts":{}}"#, &"[".repeat(10_000)] {
        assert!(Listing::read(text.as_bytes(), &config(""), "zone").is_err(), "{text}");
    }
    let error = |text: &str| Listing::read(text.as_bytes(), &config(""), "zone").unwrap_err().to_string();
    assert_eq!(error(r#"{"code":30000,"message":"server error\n"}"#), "it answered code 30000: server error");
    assert_eq!(error(r#"{"name":"G@@orders","hosts":[]}"#), "it answered for another service: \"G@@orders\"");
}
