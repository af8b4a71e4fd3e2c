use http::{HeaderName, Method};
use proptest::prelude::*;

use super::*;
use crate::config::{HeaderMatch, QueryMatch, Redirect, UpstreamConfig, ValueMatch};
use crate::strategy::Factories;
use crate::upstream::UpstreamState;

/// A route from a line such as `GET a.example,*.a.example /api/* x-a=1 ?q=1 @main`: methods in capitals, paths after a slash
/// (`/*` at the end for a prefix, `~` in front for a pattern), `?` for the query, `@` for a listener, the rest by `=` or `.`.
fn route(name: &str, line: &str) -> Arc<RouteConfig> {
    let respond = config::Respond { status: StatusCode::OK, content_type: None, body: Bytes::new() };
    let mut config = RouteConfig { respond: Some(respond), ..RouteConfig::new(name) };
    for word in line.split_whitespace() {
        if let Some(listener) = word.strip_prefix('@') {
            config.listeners.push(listener.into());
        } else if let Some((name, value)) = word.strip_prefix('?').and_then(|query| query.split_once('=')) {
            config.query.push(QueryMatch { name: name.into(), value: ValueMatch::Exact(value.into()) });
        } else if let Some(pattern) = word.strip_prefix('~') {
            config.path = PathPattern::Regex(Regex::new(&format!("^(?:{pattern})$")).unwrap());
        } else if let Some(prefix) = word.strip_suffix("/*") {
            config.path = PathPattern::Prefix(prefix.into());
        } else if word.starts_with('/') {
            config.path = PathPattern::Exact(word.into());
        } else if let Some((name, value)) = word.split_once('=') {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            config.headers.push(HeaderMatch { name, value: ValueMatch::Exact(value.into()) });
        } else if word.bytes().all(|byte| byte.is_ascii_uppercase()) {
            config.methods.push(word.parse().unwrap());
        } else {
            config.hosts.extend(word.split(',').map(|host| match host.strip_prefix('*') {
                Some(suffix) => HostPattern::Wildcard(suffix.into()),
                None => HostPattern::Exact(host.into()),
            }));
        }
    }
    Arc::new(config)
}

fn routes(lines: &[&str]) -> Vec<Arc<RouteConfig>> {
    lines.iter().map(|line| route(line, line)).collect()
}

fn table(routes: &[Arc<RouteConfig>]) -> RoutingTable {
    RoutingTable::build(routes, &[], &[], &mut |_| Arc::new(Sharded::new(1)))
}

/// A request from a line such as `POST a.example:80 /x?q=1 x-a=1 @main`; the method may be left out, the host is `-` for
/// none.
fn request(line: &str) -> (ListenerName, String, RequestHead) {
    let (mut listener, mut host, mut parts) = ("main", "", RequestHead::default());
    for word in line.split_whitespace() {
        if let Some(name) = word.strip_prefix('@') {
            listener = name;
        } else if word.starts_with('/') || word == "*" {
            parts.uri = word.parse().unwrap();
        } else if let Some((name, value)) = word.split_once('=') {
            parts.headers().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        } else if let Some(method) = [Method::GET, Method::POST, Method::OPTIONS].into_iter().find(|m| m == word) {
            parts.method = method;
        } else if word != "-" {
            host = word;
        }
    }
    (listener.into(), host.to_owned(), parts)
}

fn find<'a>(table: &'a RoutingTable, line: &str) -> Option<&'a str> {
    let (listener, host, parts) = request(line);
    table.find(&listener, &host, &parts).map(|route| route.name.as_str())
}

/// Each route is named by its line. Checked in the order written and in the reverse, which must not matter.
fn check(lines: &[&str], expected: &[(&str, Option<&str>)]) {
    let mut routes = routes(lines);
    for order in ["written", "reversed"] {
        let table = table(&routes);
        for (request, route) in expected {
            assert_eq!(find(&table, request), *route, "{request} among {lines:?}, {order}");
        }
        routes.reverse();
    }
}

#[test]
fn hosts_exact_then_longest_wildcard_then_any() {
    let [any, com, example, deep, exact] = ["/*", "*.com", "*.example.com", "*.b.example.com", "a.example.com"];
    check(
        &[any, com, example, deep, exact],
        &[
            ("a.example.com /", Some(exact)),
            ("b.example.com /", Some(example)),
            ("x.a.example.com /", Some(example)),
            ("x.b.example.com /", Some(deep)),
            ("x.y.b.example.com /", Some(deep)),
            ("xb.example.com /", Some(example)),
            ("example.com /", Some(com)),
            ("com /", Some(any)),
            ("example.org /", Some(any)),
            ("- /", Some(any)),
        ],
    );
}

#[test]
fn hosts_in_any_case_with_port_and_final_dot() {
    let [exact, wildcard, v6, v4] = ["a.example.com", "*.example.com", "[::1]", "10.0.0.1"];
    check(
        &[exact, wildcard, v6, v4],
        &[
            ("A.Example.COM /", Some(exact)),
            ("a.example.com:8080 /", Some(exact)),
            ("a.example.com. /", Some(exact)),
            ("A.example.com.:8080 /", Some(exact)),
            ("X.EXAMPLE.com:1 /", Some(wildcard)),
            (".example.com /", None),
            ("[::1] /", Some(v6)),
            ("[::1]:8080 /", Some(v6)),
            ("[::2]:8080 /", None),
            ("10.0.0.1 /", Some(v4)),
            ("10.0.0.1:80 /", Some(v4)),
            ("10.0.0.1.example.com:80 /", Some(wildcard)),
        ],
    );
}

#[test]
fn a_host_longer_than_any_name_takes_the_same_route_in_any_case() {
    let [wildcard, any] = ["*.example.com", "/*"];
    for (labels, expected) in [(241, Some(wildcard)), (242, None), (300, None)] {
        let long = format!("{}.example.com", "A".repeat(labels));
        let lower = long.to_lowercase();
        check(&[wildcard, any], &[(&format!("{long} /"), expected), (&format!("{lower} /"), expected)]);
    }
}

#[test]
fn an_ipv6_host_may_be_configured_without_brackets() {
    let table = table(&[route("v6", "2001:db8::1")]);
    assert_eq!(find(&table, "[2001:db8::1]:80 /"), Some("v6"));
}

#[test]
fn paths_exact_then_longest_prefix_then_patterns() {
    let [exact, long, short, pattern] = ["/api/users", "/api/users/*", "/api/*", "~/[a-z]+/.*"];
    check(
        &[exact, long, short, pattern],
        &[
            ("/api/users", Some(exact)),
            ("/api/users?x=/api", Some(exact)),
            ("/api/users/", Some(long)),
            ("/api/users/1", Some(long)),
            ("/api/usersx", Some(short)),
            ("/api", Some(short)),
            ("/api/", Some(short)),
            ("/apix", None),
            ("/apix/", Some(pattern)),
            ("/API/x", None),
            ("/%61pi/x", Some(short)),
            ("//api", Some(short)),
            ("/;v=1/api;v=2/x", Some(short)),
            ("/api%2Fusers", Some(exact)),
            ("/", None),
        ],
    );
}

#[test]
fn the_empty_prefix_matches_every_path() {
    check(&["/*", "/a/*"], &[("/", Some("/*")), ("/b", Some("/*")), ("OPTIONS *", Some("/*")), ("//", Some("/*"))]);
    check(&["/*", "~/[0-9]+"], &[("/1", Some("~/[0-9]+")), ("/a", Some("/*"))]);
    check(&["/a/*"], &[("OPTIONS *", None), ("/", None)]);
}

#[test]
fn patterns_in_the_order_of_the_file() {
    let [narrow, wide] = ["~/[a-z]+/1", "~/.*"];
    assert_eq!(find(&table(&routes(&[narrow, wide])), "/a/1"), Some(narrow));
    assert_eq!(find(&table(&routes(&[wide, narrow])), "/a/1"), Some(wide));
    // A pattern stands where it first stands in the file, with all the routes that have it.
    let lines = ["~/a.*", "~/.*", "~/a.* x-a=1"];
    assert_eq!(find(&table(&routes(&lines)), "/a x-a=1"), Some(lines[2]));
    assert_eq!(find(&table(&routes(&lines)), "/a"), Some(lines[0]));
    assert_eq!(find(&table(&routes(&lines)), "/b x-a=1"), Some(lines[1]));
}

#[test]
fn what_else_a_route_asks_for() {
    let [plain, get, header, both, all] =
        ["/a/*", "GET /a/*", "x-a=1 x-b=1 /a/*", "GET POST x-a=1 x-b=1 /a/*", "GET x-a=1 x-b=1 ?q=1 @main /a/*"];
    check(
        &[plain, get, header, both, all],
        &[
            ("GET /a", Some(get)),
            ("POST /a", Some(plain)),
            ("OPTIONS /a x-a=1 x-b=1", Some(header)),
            ("OPTIONS /a x-a=1 x-b=2", Some(plain)),
            ("OPTIONS /a x-a=0 x-a=1 x-b=1", Some(header)),
            ("POST /a x-a=1 x-b=1", Some(both)),
            ("GET /a?q=1 x-a=1 x-b=1", Some(all)),
            ("GET /a?q=0&q=%31 x-a=1 x-b=1", Some(all)),
            ("GET /a?q=2 x-a=1 x-b=1", Some(both)),
            ("GET /a?q=1 x-a=1 x-b=1 @other", Some(both)),
        ],
    );
}

#[test]
fn equally_specific_routes_in_the_order_of_the_file() {
    let (a, b) = ("x-a=1", "x-b=1");
    assert_eq!(find(&table(&routes(&[a, b])), "/ x-a=1 x-b=1"), Some(a));
    assert_eq!(find(&table(&routes(&[b, a])), "/ x-a=1 x-b=1"), Some(b));
}

#[test]
fn a_route_that_does_not_fit_leaves_the_request_to_less_specific_ones() {
    let [exact, prefix, pattern, root] =
        ["a.b.c POST /x/y", "a.b.c x-a=1 /x/*", "a.b.c ?q=1 ~/x/.*", "a.b.c @other /*"];
    let [wildcard, wide, any] = ["*.b.c x-b=1 /x/*", "*.c OPTIONS /x/*", "/x/*"];
    check(
        &[exact, prefix, pattern, root, wildcard, wide, any],
        &[
            ("POST a.b.c /x/y x-a=1 x-b=1", Some(exact)),
            ("GET a.b.c /x/y?q=1 x-a=1 x-b=1", Some(prefix)),
            ("GET a.b.c /x/y?q=1 x-b=1", Some(pattern)),
            ("GET a.b.c /x/y?q=1 @other", Some(pattern)),
            ("GET a.b.c /x/y @other", Some(root)),
            ("GET a.b.c /x/y x-b=1", Some(wildcard)),
            ("OPTIONS a.b.c /x/y", Some(wide)),
            ("GET a.b.c /x/y", Some(any)),
            ("GET a.b.c /y", None),
        ],
    );
}

#[test]
fn host_counts_before_path_and_path_before_the_rest() {
    let [host, path, constrained] = ["a.b", "*.b /x", "/x GET x-a=1 ?q=1 @main"];
    check(&[host, path, constrained], &[("a.b /x?q=1 x-a=1", Some(host)), ("c.b /x?q=1 x-a=1", Some(path))]);
    check(&["/x/y/*", "/x/* GET"], &[("/x/y", Some("/x/y/*")), ("/x/z", Some("/x/* GET"))]);
}

#[test]
fn a_route_stands_at_each_of_its_hosts() {
    let both = "a.b,*.c,*.a.b";
    check(&[both], &[("a.b /", Some(both)), ("x.c /", Some(both)), ("x.a.b /", Some(both)), ("b /", None)]);
}

#[test]
fn no_routes() {
    check(&[], &[("a.b /", None), ("- /", None), ("OPTIONS *", None)]);
}

#[test]
fn actions_are_resolved() {
    let redirect = Redirect { status: StatusCode::FOUND, location: vec![config::LocationPart::Path] };
    let with = |name: &str, line: &str, upstream: Option<&str>| {
        Arc::new(RouteConfig {
            upstream: upstream.map(Into::into),
            redirect: upstream.is_none().then(|| redirect.clone()),
            respond: None,
            host: Some(HeaderValue::from_static("inside")),
            ..(*route(name, line)).clone()
        })
    };
    let configs = [
        with("users", "/users/*", Some("users")),
        with("lost", "/users/lost/*", Some("nowhere")),
        with("moved", "/moved", None),
    ];
    let upstream = Upstream::build(
        Arc::new(UpstreamConfig::new("users", Vec::new())),
        UpstreamState::new("users".into(), 1),
        &Factories::default(),
    );
    let mut asked_for = Vec::new();
    let table = RoutingTable::build(&configs, &[Arc::clone(&upstream)], &[], &mut |name| {
        asked_for.push(name.to_string());
        Arc::new(Sharded::new(1))
    });
    assert_eq!(asked_for, ["users", "lost", "moved"]);

    let action = |line| {
        let (listener, host, parts) = request(line);
        &table.find(&listener, &host, &parts).unwrap().action
    };
    let RouteAction::Forward(forward) = action("/users/1") else { panic!("not forwarded") };
    assert!(Arc::ptr_eq(&forward.upstream, &upstream));
    assert_eq!(forward.host.as_ref().unwrap(), "inside");
    assert!(matches!(action("/moved"), RouteAction::Redirect(found) if *found == redirect));
    // Not the users: whoever wrote the route meant somewhere else.
    assert!(
        matches!(action("/users/lost"), RouteAction::Respond(found) if found.status == StatusCode::SERVICE_UNAVAILABLE)
    );
}

/// The rules of the module's head, applied to every route in turn.
fn find_naively(
    routes: &[Arc<RouteConfig>],
    (listener, host, head): &(ListenerName, String, RequestHead),
) -> Option<usize> {
    let path = head.uri.path();
    let asked = MatchInput { listener, head, path: Reading::plain(path) };
    let mut best: Option<(_, usize)> = None;
    for (index, route) in routes.iter().enumerate() {
        let hosts: Vec<Option<&HostPattern>> = match route.hosts.as_slice() {
            [] => vec![None],
            hosts => hosts.iter().map(Some).collect(),
        };
        for pattern in hosts {
            let host_rank = match pattern {
                None => Some((0, 0)),
                Some(HostPattern::Wildcard(suffix)) => {
                    (host.ends_with(suffix) && host != suffix).then_some((1, suffix.len()))
                }
                Some(HostPattern::Exact(name)) => (name == host).then_some((2, 0)),
            };
            let path_rank = match &route.path {
                PathPattern::Exact(exact) => (exact == path).then_some((2, 0)),
                PathPattern::Prefix(prefix) if prefix.is_empty() => Some((-1, 0)),
                PathPattern::Prefix(prefix) => {
                    (prefix.is_empty() || prefix == path || path.starts_with(&format!("{prefix}/")))
                        .then_some((1, prefix.len() as isize))
                }
                PathPattern::Regex(regex) => {
                    let same = |other: &Arc<RouteConfig>| {
                        other.path == route.path
                            && pattern.map_or(other.hosts.is_empty(), |pattern| other.hosts.contains(pattern))
                    };
                    let first = routes.iter().position(same).unwrap();
                    regex.is_match(path).then_some((0, -(first as isize)))
                }
            };
            let (Some(host_rank), Some(path_rank)) = (host_rank, path_rank) else { continue };
            if !matcher::matches(route, &asked) {
                continue;
            }
            let rank = (host_rank, path_rank, matcher::constraints(route), -(index as isize));
            if best.as_ref().is_none_or(|(best, _)| rank > *best) {
                best = Some((rank, index));
            }
        }
    }
    best.map(|(_, index)| index)
}

fn some_words(words: &'static [&'static str], max: usize) -> impl Strategy<Value = String> {
    proptest::sample::subsequence(words, 0..=max).prop_map(|words| words.join(" "))
}

const PREFIXES_AND_PATHS: [&str; 12] =
    ["/*", "/a/*", "/b/*", "/a/b/*", "/ab/*", "/a/b/a/*", "/", "/a", "/a/", "/a/b", "/b", "/a/b/a"];
const PATTERNS: [&str; 4] = ["~/a.*", "~/.*b", "~.*", "~/[ab]/[ab]"];
const PATHS: [&str; 12] = ["/", "*", "/a", "/a/", "/ab", "/ab/", "/a/b", "/a/bb", "/a/b/", "/a/b/a", "/a/b/a/b", "//a"];

fn any_route(paths: &'static [&'static str]) -> impl Strategy<Value = String> {
    (
        proptest::sample::select(&["", "", "x.y", "a.x.y", "*.y", "*.x.y", "*.a.x.y", "a.x.y,*.y", "x.y,*.x.y"][..]),
        proptest::sample::select(paths),
        some_words(&["GET", "POST", "h=1", "h=2", "k=1", "?q=1", "@main", "@other"], 3),
    )
        .prop_map(|(host, path, rest)| format!("{host} {path} {rest}"))
}

fn any_request() -> impl Strategy<Value = String> {
    (
        proptest::sample::select(&["-", "y", "x.y", "a.x.y", "b.x.y", "b.a.x.y", "ax.y", "z"][..]),
        proptest::sample::select(&PATHS[..]),
        proptest::sample::select(&["", "?q=1", "?q=2&q=%31"][..]),
        some_words(&["POST", "h=1", "h=2", "k=1", "@other"], 5),
    )
        .prop_map(|(host, path, query, rest)| match path {
            "*" => format!("{host} {path} {rest}"),
            _ => format!("{host} {path}{query} {rest}"),
        })
}

proptest! {
    #[test]
    fn the_table_agrees_with_the_rules(
        lines in proptest::collection::vec(
            prop_oneof![3 => any_route(&PREFIXES_AND_PATHS).boxed(), 1 => any_route(&PATTERNS).boxed()], 0..24),
        asked in proptest::collection::vec(any_request(), 16),
    ) {
        let routes: Vec<_> = lines.iter().map(|line| route(line, line)).collect();
        let table = table(&routes);
        for line in asked {
            let asked = request(&line);
            let expected = find_naively(&routes, &asked);
            let path = Reading::plain(asked.2.uri.path());
            let found = table.find_index(&asked.0, Host::of(&asked.1), path, &asked.2);
            prop_assert_eq!(found, expected, "{} among {:#?}", line, lines);
        }
    }

    /// Where no two routes of the same host and path ask for equally much, and no pattern stands beside another.
    #[test]
    fn the_order_of_the_file_does_not_matter(
        lines in proptest::collection::vec(any_route(&PREFIXES_AND_PATHS), 0..24),
        patterns in proptest::sample::select(&PATTERNS[..]),
        asked in proptest::collection::vec(any_request(), 16),
        seed in any::<[u32; 25]>(),
    ) {
        let mut taken = std::collections::HashSet::new();
        let mut routes: Vec<_> = lines.iter().map(|line| route(line, line)).collect();
        routes.push(route("pattern", patterns));
        routes.retain(|route| {
            let hosts = if route.hosts.is_empty() { vec![None] } else { route.hosts.iter().cloned().map(Some).collect() };
            let slots: Vec<_> = hosts
                .into_iter()
                .map(|host| (host, format!("{:?}", route.path), matcher::constraints(route)))
                .collect();
            let free = slots.iter().all(|slot| !taken.contains(slot));
            if free {
                taken.extend(slots);
            }
            free
        });
        let first = table(&routes);
        let mut shuffled: Vec<_> = routes.into_iter().zip(seed).collect();
        shuffled.sort_by_key(|&(_, place)| place);
        let second = table(&shuffled.into_iter().map(|(route, _)| route).collect::<Vec<_>>());
        for line in asked {
            prop_assert_eq!(find(&first, &line), find(&second, &line), "{}", line);
        }
    }
}
