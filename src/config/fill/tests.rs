use std::collections::BTreeSet;

use crate::config::{Config, FileText, Loaded, Problems, Service, Services, Vocabulary, parse};

const FILE: &str = r#"
[[listener]]
address = "127.0.0.1:0"

[upstream.services]
strategy = "random"
max_in_flight = 100
services = { allow = ["*"], settings = ["strategy", "max_in_flight"] }
health_check = { path = "/{service}/health" }

[[upstream.services.discovery]]
consul = { service = "{service}" }

[upstream.fixed]
backends = ["127.0.0.1:9001"]

[[route]]
path_prefix = "/{service}/"
strip_prefix = true
upstream = "services"

[[route]]
name = "host"
hosts = ["{service}.example.com"]
upstream = "services"

[[route]]
path_prefix = "/fixed/"
upstream = "fixed"
"#;

const TAGS: &str = r#"
[[listener]]
address = "127.0.0.1:0"

[upstream.services]
services = { allow = ["*"] }

[[upstream.services.discovery]]
consul = { service = "{service}" }

[[route]]
hosts = ["*.example.com"]
path_prefix = "/"
service_tags = "urlprefix-"
upstream = "services"
"#;

fn load(file: &str) -> Result<Loaded, Problems> {
    parse(file, "lb.toml", &|_| None, &Vocabulary::default())
}

fn template(file: &str) -> std::sync::Arc<FileText> {
    let loaded = load(file).unwrap();
    assert_eq!(loaded.warnings, []);
    loaded.template.unwrap()
}

fn fill(file: &str, services: &[Service]) -> Loaded {
    let services = Services::from([("services".into(), services.to_vec())]);
    template(file).fill(&Vocabulary::default(), &Services::new(), &services).unwrap()
}

fn service(name: &str, tags: &[&str]) -> Service {
    Service::new(name, tags.iter().copied()).unwrap()
}

fn upstreams(config: &Config) -> BTreeSet<&str> {
    config.upstreams.iter().map(|it| it.name.as_str()).collect()
}

fn routes(config: &Config) -> Vec<String> {
    let told = |route: &crate::config::RouteConfig| {
        format!("{} -> {}", route.name, route.upstream.as_ref().map_or("", |it| it.as_str()))
    };
    config.routes.iter().map(|route| told(route)).collect()
}

#[test]
fn a_file_without_services_known_has_the_upstream_that_they_are_made_of_and_no_route_there() {
    let loaded = load(FILE).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(upstreams(&loaded.config), ["fixed", "services"].into());
    assert_eq!(routes(&loaded.config), ["/fixed/* -> fixed"]);
}

#[test]
fn each_service_has_an_upstream_and_routes_with_its_name_in_all_texts() {
    let loaded = fill(FILE, &[service("users", &[]), service("Orders", &[])]);
    let Loaded { config, left_out, .. } = loaded;
    assert_eq!(upstreams(&config), ["fixed", "services", "services:Orders", "services:users"].into());
    assert_eq!(
        routes(&config),
        [
            "/users/* -> services:users",
            "/Orders/* -> services:Orders",
            "host:users -> services:users",
            "host:Orders -> services:Orders",
            "/fixed/* -> fixed"
        ]
    );
    assert_eq!(config.routes[3].hosts[0].to_string(), "orders.example.com");
    assert!(config.routes[0].strip_prefix && !config.routes[2].strip_prefix);
    let users = config.upstreams.iter().find(|it| it.name.as_str() == "services:users").unwrap();
    assert_eq!(&*users.discovery[0].consul.as_ref().unwrap().service, "users");
    assert!(format!("{:?}", users.health_check).contains("/users/health"));
    assert!(users.services.is_none() && left_out.is_empty());
}

#[test]
fn a_service_sets_what_the_file_lets_it_set_and_nothing_else() {
    let tags = ["isobar.strategy=least_connections", "isobar.max_in_flight=7", "isobar.max_connections=3"];
    let Loaded { config, left_out, .. } = fill(FILE, &[service("users", &tags)]);
    let users = config.upstreams.iter().find(|it| it.name.as_str() == "services:users").unwrap();
    assert_eq!(
        (users.strategy.as_str(), users.max_in_flight, users.max_connections),
        ("least_connections", Some(7), None)
    );
    assert_eq!(left_out, []);
    for tag in [
        "isobar.strategy=${HOME}",
        "isobar.strategy=",
        "isobar.max_in_flight=-1",
        "isobar.max_in_flight=\"7\"",
        "isobar.max_in_flight=99999999999",
    ] {
        let Loaded { config, left_out, .. } = fill(FILE, &[service("users", &[tag])]);
        let users = config.upstreams.iter().find(|it| it.name.as_str() == "services:users").unwrap();
        assert_eq!((users.strategy.as_str(), users.max_in_flight, left_out.len()), ("random", Some(100), 1), "{tag}");
    }
}

#[test]
fn a_service_that_would_make_the_file_wrong_costs_itself_alone() {
    let bad = service("bad", &["isobar.strategy=nonsense"]);
    let many: Vec<_> = (0..40).map(|it| service(&format!("s{it}"), &[])).chain([bad, service("fixed", &[])]).collect();
    let Loaded { config, left_out, .. } = fill(FILE, &many);
    let mut names: Vec<_> = left_out.iter().map(|it| &*it.service.name).collect();
    names.sort_unstable();
    // One has a path of the file's own.
    assert_eq!(names, ["bad", "fixed"]);
    assert!(left_out.iter().any(|it| it.why.contains("nonsense")), "{left_out:?}");
    assert_eq!(upstreams(&config).len(), 2 + 40);
}

#[test]
fn tags_say_hosts_and_paths_within_those_of_the_route() {
    let users = service("users", &["urlprefix-/users strip=/users", "urlprefix-api.example.com/v1", "other"]);
    let others = [
        service("outside", &["urlprefix-evil.test/"]),
        service("silent", &[]),
        service("users2", &["urlprefix-api.example.com/v1"]),
    ];
    let Loaded { config, left_out, .. } = fill(TAGS, &[&[users][..], &others].concat());
    assert_eq!(
        routes(&config),
        ["*.example.com/users/* -> services:users", "api.example.com/v1/* -> services:users"],
        "{left_out:?}"
    );
    assert!(config.routes[0].strip_prefix);
    let mut told: Vec<_> = left_out.iter().map(|it| &*it.service.name).collect();
    told.sort_unstable();
    assert_eq!(told, ["outside", "users2"]);
}

#[test]
fn of_two_that_want_the_same_the_one_that_is_served_has_it() {
    let wants = |name: &str| service(name, &["urlprefix-api.example.com/v1"]);
    let of = |service: Service| Services::from([("services".into(), vec![service])]);
    let fill = |settled, others| template(TAGS).fill(&Vocabulary::default(), &settled, &others).unwrap();
    for (served, other) in [("a", "b"), ("b", "a")] {
        let Loaded { config, left_out, .. } = fill(of(wants(served)), of(wants(other)));
        assert_eq!(routes(&config), [format!("api.example.com/v1/* -> services:{served}")]);
        assert_eq!(left_out.iter().map(|it| &*it.service.name).collect::<Vec<_>>(), [other]);
    }
}

#[test]
fn a_service_may_be_called_as_the_stand_in_and_have_just_what_the_route_lets_it_have() {
    let file = TAGS.replace("\"*.example.com\"", "\"shop.example.com\"");
    let tags =
        ["urlprefix-shop.example.com/", "urlprefix- shop.example.com/", "urlprefix-shop.example.com/ proto=http"];
    let Loaded { config, left_out, .. } = fill(&file, &[service("a-service", &tags)]);
    assert_eq!((routes(&config), left_out), (vec!["shop.example.com/* -> services:a-service".to_owned()], vec![]));
    // Each within a place of its own.
    let file = TAGS.replace("path_prefix = \"/\"", "path_prefix = \"/{service}/\"");
    let users = service("users", &["urlprefix-/users/v1", "urlprefix-/orders/v1"]);
    let Loaded { config, left_out, .. } = fill(&file, &[users]);
    assert_eq!((routes(&config), left_out.len()), (vec!["*.example.com/users/v1/* -> services:users".to_owned()], 1));
}

#[test]
fn variables_of_the_environment_are_the_files_alone() {
    let file = FILE.replace("\"random\"", "\"${service:-random}\"");
    let Loaded { config, .. } = fill(&file, &[service("users", &[])]);
    let users = config.upstreams.iter().find(|it| it.name.as_str() == "services:users").unwrap();
    assert_eq!(users.strategy.as_str(), "random");
    assert_eq!(super::named("${service} $${service} {service}", "x"), "${service} $${service} x");
}

#[test]
fn what_cannot_be_made_is_told_before_any_service_is_there() {
    for (from, to, what) in [
        ("allow = [\"*\"], ", "", "nothing says which services may be reached"),
        (
            "consul = { service = \"{service}\" }",
            "consul = { service = \"users\" }",
            "does not ask for each service by its name",
        ),
        ("consul = { service = \"{service}\" }", "file = { path = \"/a/{service}.json\" }", "lists no services"),
        ("[[upstream.services.discovery]]\nconsul = { service = \"{service}\" }", "", "nothing lists services"),
        ("strategy = \"random\"", "backends = [\"127.0.0.1:1\"]", "each service would have these backends"),
        ("{service}.example.com", "{service}.exa mple.com", "is not a host"),
        ("consul = { service = \"{service}\" }", "consul = { service = \"api-{service}\" }", "by its name"),
        ("consul = { service = \"{service}\" }", "etcd = { prefix = \"/a/{service}-v1/\" }", "by its name"),
        ("path_prefix = \"/{service}/\"", "path = \"/a\"\nservice_tags = \"urlprefix-\"", "the route has path too"),
        ("path_prefix = \"/fixed/\"", "service_tags = \"urlprefix-\"", "there are no services whose tags"),
    ] {
        let file = FILE.replace(from, to);
        assert_ne!(file, FILE, "{from}");
        let problems = load(&file).unwrap_err().to_string();
        assert!(problems.contains(what), "{what} is not in {problems}");
    }
}

#[test]
fn an_upstream_of_the_file_that_is_called_like_a_made_one_stays_what_it_is() {
    let file = FILE
        .replace("[upstream.fixed]", "[upstream.\"services:users\"]\nbackends = [\"127.0.0.1:7\"]\n[upstream.fixed]");
    let services = Services::from([("services".into(), vec![service("users", &[])])]);
    let template = load(&file).unwrap().template.unwrap();
    let Loaded { config, .. } = template.fill(&Vocabulary::default(), &Services::new(), &services).unwrap();
    let users = config.upstreams.iter().find(|it| it.name.as_str() == "services:users").unwrap();
    assert_eq!(users.backends.len(), 1);
    // Nor is one that is called as the stand-in is taken for it.
    let file = file.replace("services:users", "services:a-service");
    let loaded = load(&file).unwrap();
    assert_eq!(upstreams(&loaded.config), ["fixed", "services", "services:a-service"].into());
    assert_eq!(routes(&loaded.config), ["/fixed/* -> fixed"]);
}
