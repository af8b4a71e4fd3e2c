use super::*;
use crate::backend::Instance;
use crate::config::{Vocabulary, parse};

fn config(keys: &str) -> DockerConfig {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\n\
         [[upstream.u.discovery]]\n[upstream.u.discovery.docker]\n{keys}\n"
    );
    let config = parse(&text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
    (**config.upstreams[0].discovery[0].docker.as_ref().unwrap()).clone()
}

/// A container as Docker lists it, with what is not read.
fn container(id: &str, labels: &Value, more: &Value) -> Value {
    let mut container = json!({
        "Id": id.repeat(64), "Names": [format!("/{id}-1")], "Image": "users:2", "ImageID": "sha256:1", "Command": "serve", "Created": 1,
        "Ports": [{ "PrivatePort": 8080, "Type": "tcp" }], "Labels": labels, "State": "running", "Status": "Up 5 minutes",
        "HostConfig": { "NetworkMode": "front" }, "Mounts": [],
        "NetworkSettings": { "Networks": { "front": { "IPAMConfig": null, "NetworkID": "7", "IPAddress": "172.18.0.2", "IPPrefixLen": 16,
                                                       "GlobalIPv6Address": "" } } }
    });
    for (key, value) in more.as_object().unwrap() {
        container[key] = value.clone();
    }
    container
}

fn all(list: &[Value], keys: &str) -> Answer {
    let labels = ["isobar.upstream=u".into()];
    let (body, leaving) = (Value::from(list).to_string(), HashSet::from(["l".repeat(64)]));
    read(body.as_bytes(), &config(keys), &labels, &leaving, "zone").unwrap().0
}

/// Its address and weight, or what is wrong with it.
fn one(labels: Value, more: Value, keys: &str) -> String {
    let mut labels = labels;
    labels["isobar.upstream"] = "u".into();
    let answer = all(&[container("a", &labels, &more)], keys);
    match (answer.set.iter().next(), answer.refused.first()) {
        (Some(it), None) => format!("{} {}", it.address, it.weight),
        (None, Some(what)) => what.strip_prefix("container \"a-1\": ").unwrap().to_owned(),
        (None, None) => "left out".into(),
        (Some(_), Some(_)) => panic!(),
    }
}

#[test]
fn a_container_is_a_backend_with_what_its_labels_say() {
    let labels = json!({ "isobar.upstream": "u", "isobar.port": "9000", "isobar.weight": "3", "isobar.zone": "eu-1a", "isobar.backup": "true",
                         "isobar.label.version": "2", "com.docker.compose.service": "users" });
    let answer = all(&[container("a", &labels, &json!({}))], "");
    let instance: &Instance = answer.set.iter().next().unwrap();
    assert_eq!((instance.address.to_string().as_str(), instance.weight), ("172.18.0.2:9000", 3));
    assert_eq!(instance.place.zone.as_deref(), Some("eu-1a"));
    assert_eq!(instance.place.tier, crate::config::Tier::Backup);
    let shown: Vec<_> = instance.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(shown, ["container=a-1", "id=aaaaaaaaaaaa", "image=users:2", "version=2"]);
}

#[test]
fn a_port_is_that_of_the_label_of_the_key_or_the_one_that_is_exposed() {
    let ports = |ports: Value| json!({ "Ports": ports });
    let two = json!([{ "PrivatePort": 8080, "Type": "tcp" }, { "IP": "0.0.0.0", "PrivatePort": 8443, "PublicPort": 443, "Type": "tcp" }]);
    // Published for IPv4 and IPv6, and one of UDP.
    let twice = json!([{ "IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp" },
                       { "IP": "::", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp" }, { "PrivatePort": 53, "Type": "udp" }]);
    assert_eq!(one(json!({}), json!({}), ""), "172.18.0.2:8080 1");
    assert_eq!(one(json!({}), ports(twice.clone()), ""), "172.18.0.2:80 1");
    assert_eq!(one(json!({}), ports(two.clone()), "port = 8443"), "172.18.0.2:8443 1");
    assert_eq!(one(json!({ "isobar.port": "1" }), ports(two.clone()), "port = 8443"), "172.18.0.2:1 1");
    assert_eq!(
        one(json!({}), ports(two.clone()), ""),
        "it exposes the ports 8080, 8443: label isobar.port says which one"
    );
    for none in [json!([]), Value::Null] {
        assert_eq!(one(json!({}), ports(none), ""), "it exposes no port: label isobar.port says which one it has");
    }
    for wrong in ["0", "http", "70000", ""] {
        assert_eq!(
            one(json!({ "isobar.port": wrong }), json!({}), ""),
            format!("label isobar.port is {wrong:?}, which is no port")
        );
    }
    // As it is published.
    assert_eq!(one(json!({}), ports(twice), "published = true\nhost = \"10.0.0.7\""), "10.0.0.7:32768 1");
    let at = json!([{ "IP": "192.168.1.5", "PrivatePort": 80, "PublicPort": 8000, "Type": "tcp" }]);
    assert_eq!(one(json!({}), ports(at), "published = true"), "192.168.1.5:8000 1");
    assert_eq!(one(json!({}), json!({}), "published = true"), "it does not publish its port 8080");
}

#[test]
fn an_address_is_that_in_the_network_that_is_meant() {
    let networks = |networks: Value| json!({ "NetworkSettings": { "Networks": networks } });
    let two =
        networks(json!({ "app_back": { "IPAddress": "172.19.0.3" }, "app_front": { "IPAddress": "172.18.0.3" } }));
    assert_eq!(
        one(json!({}), two.clone(), ""),
        "it is in the networks \"app_back\", \"app_front\": label isobar.network says which one"
    );
    assert_eq!(one(json!({ "isobar.network": "app_front" }), two.clone(), ""), "172.18.0.3:8080 1");
    // Compose has put the project's name before it.
    assert_eq!(one(json!({ "isobar.network": "front" }), two.clone(), ""), "172.18.0.3:8080 1");
    assert_eq!(one(json!({}), two.clone(), "network = \"back\""), "172.19.0.3:8080 1");
    assert_eq!(one(json!({ "isobar.network": "app_front" }), two.clone(), "network = \"back\""), "172.18.0.3:8080 1");
    assert_eq!(
        one(json!({ "isobar.network": "ront" }), two, ""),
        "it is not in the network \"ront\", but in \"app_back\", \"app_front\""
    );
    // The key is for those that are in several.
    assert_eq!(one(json!({}), json!({}), "network = \"back\""), "172.18.0.2:8080 1");
    let six = networks(json!({ "six": { "IPAddress": "", "GlobalIPv6Address": "2001:db8::2" } }));
    assert_eq!(one(json!({}), six, ""), "[2001:db8::2]:8080 1");
    for (network, what) in [
        (json!({ "none": { "IPAddress": "" } }), "it has no address in the network \"none\""),
        (json!({}), "it is in no network"),
        (Value::Null, "it is in no network"),
    ] {
        assert_eq!(one(json!({}), networks(network), ""), what);
    }
    let mode = |mode: &str| json!({ "HostConfig": { "NetworkMode": mode }, "NetworkSettings": { "Networks": { "host": { "IPAddress": "" } } } });
    assert_eq!(one(json!({}), mode("host"), ""), "127.0.0.1:8080 1");
    assert_eq!(one(json!({}), mode("host"), "host = \"docker-1.internal\""), "docker-1.internal:8080 1");
    let what = "it uses the network of another container: that one needs the labels";
    assert_eq!(one(json!({}), mode("container:0a1b"), ""), what);
}

#[test]
fn only_containers_that_run_and_are_not_known_to_be_ill_count() {
    let told = |more: Value| one(json!({}), more, "");
    for status in ["Up 1 second", "Up 5 minutes (healthy)", "Up 2 hours (Paused no more)"] {
        assert_eq!(told(json!({ "Status": status })), "172.18.0.2:8080 1", "{status}");
    }
    for status in ["Up 1 second (health: starting)", "Up 5 minutes (unhealthy)", "Up 5 minutes (starting)"] {
        assert_eq!(told(json!({ "Status": status })), "left out", "{status}");
    }
    // As later versions say it.
    for (health, expected) in [
        ("none", "172.18.0.2:8080 1"),
        ("healthy", "172.18.0.2:8080 1"),
        ("starting", "left out"),
        ("unhealthy", "left out"),
    ] {
        assert_eq!(told(json!({ "Health": { "Status": health, "FailingStreak": 0 } })), expected, "{health}");
    }
    for state in ["paused", "exited", "restarting", "created", "dead", "removing"] {
        assert_eq!(told(json!({ "State": state })), "left out", "{state}");
    }
    let leaving = all(&[container("l", &json!({ "isobar.upstream": "u" }), &json!({}))], "");
    assert!(leaving.set.is_empty() && leaving.refused.is_empty());
}

#[test]
fn one_bad_container_costs_itself_alone() {
    let labels = |port: &str| json!({ "isobar.upstream": "u", "isobar.port": port });
    let list = [
        container("a", &labels("80"), &json!({})),
        container("b", &labels("x"), &json!({})),
        json!(7),
        json!({ "Labels": {} }),
        container("c", &json!({ "isobar.upstream": "other" }), &json!({})),
        container("d", &Value::Null, &json!({})),
        container("e", &json!({ "isobar.upstream": "u", "isobar.weight": "much" }), &json!({})),
        container("f", &json!({ "isobar.upstream": "u", "isobar.weight": "70000" }), &json!({})),
    ];
    let answer = all(&list, "");
    assert_eq!(answer.set.len(), 1);
    assert_eq!(answer.refused.len(), 5, "{:?}", answer.refused);
    assert_eq!(answer.refused[3], "container \"e-1\": label isobar.weight is \"much\", which is no number");
}

#[test]
fn what_is_no_list_is_an_error() {
    for body in ["", "<html>", "{}", "null", "[", "{\"message\":\"page not found\"}"] {
        assert!(read(body.as_bytes(), &config(""), &[], &HashSet::new(), "zone").is_err(), "{body}");
    }
}

#[test]
fn what_is_missing_without_an_event_is_doubtful_where_it_is_much() {
    let ids = |ids: &str| ids.chars().map(|id| id.to_string()).collect::<HashSet<_>>();
    let (now, hold) = (Instant::now(), Duration::from_secs(60));
    let mut known = Known::default();
    assert!(!known.is_doubtful(&ids("abcd"), now, hold));
    // One of four, and two that events have told of.
    assert!(!known.is_doubtful(&ids("abc"), now, hold));
    known.told_of = ids("a");
    known.leaving.insert("b".into(), now);
    assert!(!known.is_doubtful(&ids("c"), now, hold));
    known.told_of = ids("c");
    assert!(!known.is_doubtful(&ids(""), now, hold));
    assert!(!known.is_doubtful(&ids("xyz"), now, hold));
    // All, and most, as long as the time is not over or they are back.
    assert!(known.is_doubtful(&ids(""), now, hold));
    assert!(known.is_doubtful(&ids("z"), now + Duration::from_secs(59), hold));
    assert!(!known.is_doubtful(&ids("z"), now + Duration::from_secs(60), hold));
    assert!(known.is_doubtful(&ids(""), now + Duration::from_secs(70), hold));
    assert!(!known.is_doubtful(&ids("z"), now + Duration::from_secs(71), hold));
}
