use super::*;
use crate::config::{Vocabulary, parse};

fn config(keys: &str) -> ConsulConfig {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         [[upstream.u.discovery]]\n[upstream.u.discovery.consul]\nservice = \"users\"\n{keys}\n"
    );
    let config = parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
    (**config.upstreams[0].discovery[0].consul.as_ref().unwrap()).clone()
}

fn target(keys: &str, index: u64) -> String {
    let config = config(keys);
    let request = request(&config, &instances_target(&config, index)).unwrap();
    request.uri().path_and_query().unwrap().to_string()
}

#[test]
fn a_query_says_all_that_is_configured_and_waits_only_with_an_index() {
    assert_eq!(target("", 0), "/v1/health/service/users?passing=1&stale");
    assert_eq!(target("", 7), "/v1/health/service/users?index=7&wait=300s&passing=1&stale");
    let keys = "address = \"http://10.0.0.7/consul/\"\ndatacenter = \"dc 1\"\nnamespace = \"n\"\npartition = \"p\"\n\
                tags = [\"a\", \"b\"]\nfilter = 'Service.Meta.v == \"2\"'\nwarning = true\nstale = false\nwait = \"1m\"";
    assert_eq!(
        target(keys, 1),
        "/consul/v1/health/service/users?index=1&wait=60s&dc=dc%201&ns=n&partition=p\
         &filter=Service.Meta.v%20%3D%3D%20%222%22&tag=a&tag=b"
    );
    let with_token = request(&config("token = \"secret\""), "/").unwrap();
    assert_eq!(with_token.headers()["x-consul-token"], "secret");
}

#[test]
fn services_are_asked_for_where_instances_are_and_only_those_with_the_tags_count() {
    let keys = "datacenter = \"a\"\ntags = [\"v2\", \"eu\"]\nfilter = \"Service.Meta.v == 2\"";
    assert_eq!(services_target(&config(keys), 7), "/v1/catalog/services?index=7&wait=300s&dc=a&stale");
    let body = br#"{"consul": [], "users": ["eu", "v2", "x"], "orders": ["v2"], "a b": ["eu", "v2"]}"#;
    let listing = read_services(body, &config(keys)).unwrap();
    assert_eq!(listing.services, [crate::config::Service::new("users", ["v2", "eu", "x"]).unwrap()]);
    assert_eq!(listing.refused.len(), 1);
    assert!(read_services(b"[]", &config("")).is_err());
    assert!(read_services(br#"{"users": null}"#, &config("")).is_err());
}

#[test]
fn an_answer_may_take_as_long_as_consul_may_wait_and_more() {
    let config = config("wait = \"160s\"\ntimeout = \"3s\"");
    assert_eq!(time(&config, 0), Duration::from_secs(3));
    assert_eq!(time(&config, 5), Duration::from_secs(173));
}

#[test]
fn an_index_that_goes_backwards_is_forgotten_and_none_is_0() {
    for (asked, answered, next) in [(0, 5, 5), (5, 5, 5), (5, 6, 6), (5, 4, 0), (0, 0, 1), (7, 0, 0)] {
        assert_eq!(next_index(asked, answered), next, "{asked} {answered}");
    }
    let mut headers = HeaderMap::new();
    assert!(index_of(&headers).is_err());
    headers.insert("x-consul-index", "17".parse().unwrap());
    assert_eq!(index_of(&headers).unwrap(), 17);
}

/// Two entries as Consul sends them, with what is not read.
const ANSWER: &str = r#"[
  {"Node": {"ID": "40e4a748", "Node": "foobar", "Address": "10.1.10.12", "Datacenter": "dc1",
            "TaggedAddresses": {"lan": "10.1.10.12"}, "Meta": {"zone": "eu-1a"}, "CreateIndex": 5},
   "Service": {"ID": "users-1", "Service": "users", "Tags": ["v2", "http"], "Address": "", "Port": 8000,
               "Meta": {"version": "2"}, "Weights": {"Passing": 10, "Warning": 1}, "EnableTagOverride": false},
   "Checks": [{"Node": "foobar", "CheckID": "serfHealth", "Status": "passing"}, {"CheckID": "service:users-1", "Status": "warning"}]},
  {"Node": {"Node": "other", "Address": "10.1.10.13", "Meta": null},
   "Service": {"ID": "users-2", "Service": "users", "Tags": null, "Address": "2001:db8::7", "Port": 8001, "Meta": {"zone": "eu-1b"}},
   "Checks": [{"Status": "passing"}]},
  {"Node": {"Node": "third", "Address": "10.1.10.14"}, "Service": {"ID": "users-3", "Address": "users.internal", "Port": 8002}, "Checks": [{"Status": "critical"}]},
  {"Node": {"Node": "fourth", "Address": "10.1.10.15"}, "Service": {"ID": "users-4", "Port": 0}},
  {"Node": {"Node": "fifth"}, "Service": {"ID": "users-5", "Port": 80}},
  {"Service": {"ID": "users-6", "Port": 80}},
  7
]"#;

#[test]
fn instances_are_read_with_what_is_said_of_them() {
    let answer = read(ANSWER.as_bytes(), &config("warning = true"), "zone").unwrap();
    let told = |it: &Instance| (it.address.to_string(), it.weight, it.place.zone.as_deref().map(str::to_owned));
    let instances: Vec<_> = answer.set.iter().map(|it| told(it)).collect();
    assert_eq!(
        instances,
        [
            ("10.1.10.12:8000".to_owned(), 1, Some("eu-1a".to_owned())),
            ("[2001:db8::7]:8001".to_owned(), 1, Some("eu-1b".to_owned())),
        ]
    );
    let first = answer.set.iter().next().unwrap();
    let labels: Vec<_> = first.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["datacenter=dc1", "id=users-1", "node=foobar", "tags=v2,http", "version=2"]);
    assert_eq!(answer.refused.len(), 4, "{:?}", answer.refused);
    assert_eq!(answer.refused[0], "entry 4 (\"users-4\"): \"10.1.10.15:0\" is not an address with a port");
}

#[test]
fn what_does_not_pass_or_lacks_a_tag_is_left_out_whatever_was_sent() {
    let addresses = |keys: &str| {
        let answer = read(ANSWER.as_bytes(), &config(keys), "zone").unwrap();
        answer.set.iter().map(|it| it.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(""), ["[2001:db8::7]:8001"]);
    assert_eq!(addresses("warning = true\ntags = [\"v2\"]"), ["10.1.10.12:8000"]);
    assert_eq!(addresses("warning = true\ntags = [\"v2\", \"v3\"]"), [""; 0]);
}

#[test]
fn what_is_no_list_is_an_error() {
    for body in ["", "<html>", "{}", "null", "[", &"[".repeat(10_000)] {
        assert!(read(body.as_bytes(), &config(""), "zone").is_err(), "{body}");
    }
    assert!(read(b"[]", &config(""), "zone").unwrap().set.is_empty());
}
