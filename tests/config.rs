//! Every configuration in the repository does what it is there for: the reference and the examples are valid, and the
//! malformed ones report exactly what is written beside them.
//!
//! `UPDATE_EXPECT=1 cargo test --test config` rewrites what is expected; read the difference before committing it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use isobar::config::{
    BodyLimit, Config, HeaderValues, HealthCheckConfig, LimitsConfig, Loaded, Problem, Problems, RouteConfig,
    TlsConfig, Vocabulary, load, parse,
};

#[path = "config/schema.rs"]
mod schema;
#[path = "config/secrets.rs"]
mod secrets;
#[path = "config/arbitrary_text.rs"]
mod arbitrary_text;

/// Every key with its default or an example.
const EVERY_KEY: &str = "tests/config/every_key.toml";

#[test]
fn the_example_is_valid() {
    let loaded = valid("lb.toml");
    assert_eq!(loaded.warnings, []);
    assert_eq!((loaded.config.listeners.len(), loaded.config.routes.len()), (1, 1));
    assert_eq!(loaded.config.upstreams[0].backends.len(), 3);
}

#[test]
fn every_key_is_valid_and_has_its_default() {
    let shown = uncommented(&read(EVERY_KEY));
    let shown = parse_here(&shown, EVERY_KEY).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(shown.warnings, []);
    let plain = valid(EVERY_KEY).config;
    // Upstreams and listeners show nothing but defaults; of routes, timeouts and the like do. A health check is shown, and
    // switched off by default.
    let mut upstream = (*shown.config.upstreams[0]).clone();
    assert_eq!(plain.upstreams[0].health_check, None);
    let check = upstream.health_check.take().expect("the one shown");
    // TLS is shown with files for examples, and is off by default.
    let tls = upstream.tls.take().expect("the one shown");
    assert_eq!((tls.server_name.as_deref(), tls.insecure_skip_verify), (Some("users.internal"), false));
    // Likewise, and what stands there is what the tables alone come to.
    assert_eq!(upstream.limits(), shown_limits());
    upstream.queue = plain.upstreams[0].queue;
    (upstream.circuit_breaker, upstream.adaptive_limit) = (None, None);
    // Nor is a zone of this process anybody's default.
    let zones = upstream.zone_preference.take().expect("the one shown");
    assert_eq!((&*zones.local, zones.load.len(), zones.backends_min), ("eu-1a", 1, 6));
    assert_eq!((plain.zone.as_deref(), shown.config.zone.as_deref()), (None, Some("eu-1a")));
    // Each kind of source is shown once.
    let sources = std::mem::take(&mut upstream.discovery);
    let names: Vec<_> = sources.iter().map(|source| &*source.name).collect();
    let expected = [
        "registry",
        "eureka users",
        "file /etc/isobar/users.json",
        "http https://directory.internal:443/users.json",
        "etcd /services/users/",
        "nacos users",
        "zookeeper /services/users",
        "registry users",
        "docker com.docker.compose.service=users",
        "push",
        "dns users.internal",
        "kubernetes users",
    ];
    assert_eq!(names, expected);
    assert_eq!((sources[0].max_removed_percent, sources[1].max_removed_percent), (Some(50), None));
    let removed: Vec<_> = sources.iter().map(|it| it.removed_percent()).collect();
    assert_eq!(removed, [50, 50, 100, 50, 50, 50, 50, 100, 100, 100, 100, 50]);
    // Name servers and domains are shown, and are those of the machine by default.
    let mut dns = shown.config.dns.clone();
    assert_eq!((std::mem::take(&mut dns.nameservers).len(), std::mem::take(&mut dns.search).len()), (2, 1));
    assert_eq!(dns, plain.dns);
    assert_eq!((&plain.state_dir, shown.config.state_dir.is_some()), (&None, true));
    assert_eq!(upstream, *plain.upstreams[0]);
    assert_eq!(*check, shown_check());
    // TLS is shown, and is off by default.
    let mut listener = (*shown.config.listeners[0]).clone();
    let tls = listener.tls.take().expect("the one shown");
    assert_eq!(*tls, shown_tls());
    assert_eq!(listener, *plain.listeners[0]);
    assert_eq!(shown.config.log, plain.log);
    // A token and a socket are shown, and are none by default.
    let mut admin = shown.config.admin.expect("an admin address");
    assert_eq!(admin.token.take().map(|token| token.reveal().to_owned()).as_deref(), Some("an-example-token"));
    assert_eq!(admin.unix_socket.take(), Some("/run/isobar.sock".into()));
    assert_eq!(Some(admin), plain.admin);
    assert_eq!(shown.config.access_log, plain.access_log);
    assert_eq!(shown.config.overload, plain.overload);
    // A size of bodies is shown, and is the listener's by default.
    let mut route = (*shown.config.routes[0]).clone();
    assert_eq!(route.max_body.take(), Some(BodyLimit::Bytes(10 << 20)));
    let of = |it: &RouteConfig| (it.upstream.clone(), it.timeouts, it.retries.clone(), it.expect, it.host.clone());
    assert_eq!(of(&route), of(&plain.routes[0]));
    assert_eq!((route.max_body, route.name), (plain.routes[0].max_body, plain.routes[0].name.clone()));
    assert_eq!(
        (shown.config.workers, shown.config.shutdown_grace, shown.config.drain_limit),
        (plain.workers, plain.shutdown_grace, plain.drain_limit)
    );
}

/// The defaults of TLS, and what the reference shows for an example.
fn shown_tls() -> TlsConfig {
    let tls =
        "[listener.tls]\ncertificates = [{ certificate = \"cert.pem\", key = \"key.pem\", ocsp = \"ocsp.der\" }]\n";
    let clients = "client_certificates = { ca = \"ca.pem\", mode = \"required\", crl = [\"crl.pem\"] }\n";
    let text = format!("{LISTENER}{tls}{clients}{ROUTE}[upstream.users]\nbackends = [\"10.0.0.1:80\"]\n");
    let listeners = parse_here(&text, "lb.toml").unwrap_or_else(|problems| panic!("{problems}")).config.listeners;
    (**listeners[0].tls.as_ref().expect("TLS")).clone()
}

/// The defaults of what limits an upstream, where it is switched on.
fn shown_limits() -> LimitsConfig {
    let tables = "[upstream.users.queue]\norder = \"adaptive\"\n[upstream.users.circuit_breaker]\n[upstream.users.adaptive_limit]\n";
    let text = format!("{LISTENER}{ROUTE}[upstream.users]\nbackends = [\"10.0.0.1:80\"]\n{tables}");
    let upstreams = parse_here(&text, "lb.toml").unwrap_or_else(|problems| panic!("{problems}")).config.upstreams;
    upstreams[0].limits()
}

/// The defaults of a health check, and what the reference shows for an example.
fn shown_check() -> HealthCheckConfig {
    let text = format!(
        "{LISTENER}{ROUTE}[upstream.users]\nbackends = [\"10.0.0.1:80\"]\n[upstream.users.health_check]\n\
         body = '\"status\": *\"up\"'\n"
    );
    let upstreams = parse_here(&text, "lb.toml").unwrap_or_else(|problems| panic!("{problems}")).config.upstreams;
    let mut check = (**upstreams[0].health_check.as_ref().expect("a health check")).clone();
    check.port = Some(9100);
    check.host = Some(HeaderValue::from_static("users.internal"));
    check.headers = HeaderValues(vec![(HeaderName::from_static("x-check"), HeaderValue::from_static("1"))]);
    check
}

#[test]
fn a_health_check_fits_itself_into_a_short_interval() {
    let text = format!(
        "{LISTENER}{ROUTE}[upstream.users]\nbackends = [\"10.0.0.1:80\"]\nhealth_check = {{ interval = \"500ms\" }}\n"
    );
    let upstreams = parse_here(&text, "lb.toml").unwrap_or_else(|problems| panic!("{problems}")).config.upstreams;
    let check = upstreams[0].health_check.as_ref().expect("a health check");
    let half = Duration::from_millis(500);
    assert_eq!((check.timeout, check.interval_in_doubt), (half, half));
    let off = parse_here(&text.replace("{ interval", "{ enabled = false, interval"), "lb.toml").unwrap();
    assert_eq!(off.config.upstreams[0].health_check, None);
}

#[test]
fn examples_are_valid_without_warnings() {
    for path in files("examples/configs", "toml") {
        assert_eq!(valid(&path).warnings, [], "{path}");
    }
}

#[test]
fn valid_ones_are_valid() {
    for path in files("tests/config/valid", "toml") {
        let warnings = valid(&path).warnings;
        // These are there to have little in them.
        let known = |it: &&Problem| ["there is no route", "no backends"].iter().any(|what| it.what.starts_with(what));
        assert_eq!(warnings.iter().find(|it| !known(it)), None, "{path}");
    }
}

#[test]
fn odd_ones_are_warned_of_as_is_written_beside_them() {
    let mut wrong = Vec::new();
    for path in files("tests/config/warned", "toml") {
        let expected = path.replace(".toml", ".txt");
        if !matches(&expected, &format!("{}\n", warnings(&path))) {
            wrong.push(expected);
        }
    }
    assert!(wrong.is_empty(), "differ, see UPDATE_EXPECT: {wrong:?}");
}

/// In the file itself the routes are called by whether they are.
#[test]
fn routes_that_are_never_reached_are_those_that_are_warned_of() {
    let path = "tests/config/warned/never_reached.toml";
    let text = read(path);
    let file: toml::Table = text.parse().unwrap();
    let names = file["route"].as_array().unwrap().iter().map(|route| route["name"].as_str().unwrap());
    let warned = valid(path).warnings;
    for (index, name) in names.enumerate() {
        let key = format!("route[{index}]");
        let is_warned_of = warned.iter().any(|it| it.key == key || it.key.starts_with(&format!("{key}.")));
        assert_eq!(is_warned_of, name.starts_with("never"), "{name}");
    }
}

#[test]
fn malformed_ones_report_what_is_written_beside_them() {
    let mut wrong = Vec::new();
    for path in files("tests/config/invalid", "toml") {
        let expected = path.replace(".toml", ".txt");
        if !matches(&expected, &format!("{}\n", report(&path))) {
            wrong.push(expected);
        }
    }
    assert!(wrong.is_empty(), "differ, see UPDATE_EXPECT: {wrong:?}");
}

#[test]
fn the_page_of_malformed_ones_is_up_to_date() {
    let mut page = String::from(
        "# What a malformed configuration prints\n\n\
         Every file of `tests/config/invalid` and what `isobar check` says about it. Written by \
         `UPDATE_EXPECT=1 cargo test --test config`, and checked by the same test. What is only odd is at the end.\n",
    );
    let malformed = files("tests/config/invalid", "toml").into_iter().map(|path| (report(&path), path));
    let odd = files("tests/config/warned", "toml").into_iter().map(|path| (warnings(&path), path));
    for (printed, path) in malformed.chain(odd) {
        let name = file_name(&path).trim_end_matches(".toml").replace('_', " ");
        let text = String::from_utf8_lossy(&fs::read(root().join(&path)).unwrap()).into_owned();
        let shown = if text.len() > 3000 { "(generated; long)\n".into() } else { text };
        let end = if shown.ends_with('\n') { "" } else { "\n" };
        let odd = if path.contains("/warned/") { "odd: " } else { "" };
        write!(page, "\n## {odd}{name}\n\n```toml\n{shown}{end}```\n\n```text\n{printed}\n```\n").unwrap();
    }
    assert!(matches("docs/configuration-errors.md", &page), "differs, see UPDATE_EXPECT");
}

#[test]
fn the_page_of_every_key_is_up_to_date() {
    assert!(matches("docs/reference.md", &isobar::config::reference()), "differs, see UPDATE_EXPECT");
}

#[test]
fn the_schema_for_editors_is_up_to_date() {
    assert!(matches("docs/lb.schema.json", &format!("{:#}\n", isobar::config::schema())), "differs, see UPDATE_EXPECT");
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let problems = parse_here(
        "worker = 2\nshutdown_grace = 5\n[[listener]]\naddress = 80\nbacklog = \"x\"\nvia = 1\n\
         [[route]]\nupstream = \"user\"\npath = \"x\"\n[upstream.users]\nstrategy = \"rr\"\nretries = -1\n\
         backends = [1, \"10.0.0.1\", { weight = true }]\n",
        "lb.toml",
    )
    .unwrap_err();
    let lines: Vec<_> = problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
    assert_eq!(
        lines,
        [
            (1, "worker"),
            (2, "shutdown_grace"),
            (4, "listener[0].address"),
            (5, "listener[0].backlog"),
            (6, "listener[0].via"),
            (8, "route[0].upstream"),
            (9, "route[0].path"),
            (11, "upstream.users.strategy"),
            (12, "upstream.users.retries"),
            (13, "upstream.users.backends[0]"),
            (13, "upstream.users.backends[1]"),
            (13, "upstream.users.backends[2].address"),
            (13, "upstream.users.backends[2].weight"),
        ]
    );
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_a_problem() {
    let problems = load(Path::new("nowhere/lb.toml"), &Vocabulary::default()).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems.to_string().starts_with("nowhere/lb.toml: could not read it: "), "{problems}");
    assert!(load(&root().join("tests"), &Vocabulary::default()).is_err());
}

#[test]
fn an_embedding_program_adds_strategies() {
    let text = format!("{LISTENER}{ROUTE}[upstream.users]\nstrategy = \"tides\"\nbackends = [\"10.0.0.1:80\"]\n");
    assert!(parse_here(&text, "lb.toml").is_err());
    let vocabulary = Vocabulary { strategies: vec!["tides".into()], ..Vocabulary::default() };
    let loaded = parse(&text, "lb.toml", &|_| None, &vocabulary).unwrap();
    assert_eq!(loaded.config.upstreams[0].strategy.as_str(), "tides");
}

#[test]
fn a_variable_may_stand_for_a_number_or_a_boolean() {
    let env = |name: &str| match name {
        "WORKERS" => Some("3".to_owned()),
        "VIA" => Some("true".to_owned()),
        _ => None,
    };
    let text = format!(
        "workers = \"${{WORKERS}}\"\n{LISTENER}via = \"${{VIA}}\"\nmax_body = \"${{SIZE:-2}}KiB\"\n{ROUTE}\
         [upstream.users]\nretries = \"${{RETRIES:-5}}\"\nbackends = [\"${{USERS:-10.0.0.1}}:80\"]\n"
    );
    let config = parse(&text, "lb.toml", &env, &Vocabulary::default()).unwrap().config;
    assert_eq!(config.workers.map(|workers| workers.get()), Some(3));
    assert!(config.listeners[0].via);
    assert_eq!(config.listeners[0].max_body, BodyLimit::Bytes(2048));
    assert_eq!(config.upstreams[0].retries.max, 5);
    assert_eq!(config.upstreams[0].backends[0].address.to_string(), "10.0.0.1:80");
}

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
const ROUTE: &str = "[[route]]\nupstream = \"users\"\n";

/// What `isobar check` would print about a file, named without its folder so that it does not matter where this runs.
fn report(path: &str) -> String {
    let problems = match load(&root().join(path), &Vocabulary::default()) {
        Ok(Loaded { warnings, .. }) => panic!("{path} is valid: {warnings:?}"),
        Err(problems) => problems.to_string(),
    };
    problems.replace(root().join(path).to_str().expect("a path in UTF-8"), "lb.toml")
}

/// The same of one that is valid and odd.
fn warnings(path: &str) -> String {
    let loaded = parse_here(&read(path), "lb.toml").unwrap_or_else(|problems| panic!("{path}: {problems}"));
    assert!(!loaded.warnings.is_empty(), "{path} is not odd");
    loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A file with every `# key = value` and `# [table]` taken at its word.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        let key: String = line.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        line.starts_with('[') || (!key.is_empty() && line[key.len()..].starts_with(" = "))
    };
    let lines = text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

fn valid(path: &str) -> Loaded {
    parse_here(&read(path), path).unwrap_or_else(|problems| panic!("{problems}"))
}

fn parse_here(text: &str, file: &str) -> Result<Loaded, Problems> {
    parse(text, file, &|_| None, &Vocabulary::default())
}

fn matches(path: &str, actual: &str) -> bool {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(root().join(path), actual).expect("a writable repository");
    }
    fs::read_to_string(root().join(path)).is_ok_and(|expected| expected == actual)
}

/// The files of a folder, named from the top of the repository.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root().join(folder)).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == extension));
    paths.sort();
    assert!(!paths.is_empty(), "nothing in {folder}");
    paths
        .iter()
        .map(|path| {
            format!("{folder}/{}", path.file_name().expect("a name in UTF-8").to_str().expect("a path in UTF-8"))
        })
        .collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the checks promise about every configuration that they let pass.
fn assert_sound(config: &Config) {
    let mut names: Vec<_> = config.routes.iter().map(|route| &route.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), config.routes.len());
    assert!(config.upstreams.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn what_passes_is_sound() {
    for path in files("tests/config/valid", "toml").into_iter().chain(files("examples/configs", "toml")) {
        assert_sound(&valid(&path).config);
    }
}

#[test]
fn a_route_changes_what_its_upstream_says_of_retries_key_by_key() {
    let loaded = load(&root().join("tests/config/valid/retries.toml"), &Vocabulary::default()).unwrap();
    let of = |index: usize| (*loaded.config.routes[index].retries).clone();
    let (orders, users) = (&loaded.config.upstreams[0].retries, &loaded.config.upstreams[1].retries);
    assert_eq!((users.max, users.body_buffer, users.attempt_timeout), (2, 0, Some(Duration::from_secs(2))));
    let reports = of(0);
    assert_eq!((reports.max, reports.attempt_timeout, reports.hedge), (1, None, None));
    assert!(reports.on.connect_failure && !reports.on.reset && !reports.on.timeout);
    assert_eq!(reports.on.statuses, [http::StatusCode::TOO_MANY_REQUESTS]);
    assert_eq!((reports.backoff.max, reports.body_buffer), (users.backoff.max, 0));
    assert_eq!(of(1), isobar::config::RetryConfig { max: 0, ..(**users).clone() });
    assert_eq!((orders.max, orders.hedge), (7, None));
    assert_eq!(of(2).hedge.map(|hedge| (hedge.percentile, hedge.budget_percent)), Some((90, 5)));
}
