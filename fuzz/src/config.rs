//! Any text as `lb.toml`: it is refused with every problem named and placed, or it is a configuration that can be used.

use std::sync::Arc;

use http::Request;
use isobar::config::{Config, HostPattern, PathPattern, Problems, Severity, Vocabulary, parse};
use isobar::route::RoutingTable;
use isobar::strategy::Factories;
use isobar::supervisor::reload_plan::plan;
use isobar::telemetry::metrics::Sharded;
use isobar::upstream::{Upstream, UpstreamState};

/// Reads `data` as a configuration.
pub fn check(data: &[u8]) {
    // What is no text is refused before it gets here.
    let Ok(text) = str::from_utf8(data) else { return };
    let env = |name: &str| (name.len() == 1).then(|| format!("/{name}"));
    let read = || parse(text, "lb.toml", &env, &Vocabulary::default());
    match read() {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                assert_eq!(warning.severity, Severity::Warning, "{warning}");
            }
            is_placed(text, &loaded.warnings.into_iter().collect());
            is_of_use(&loaded.config);
            let again = read().expect("the same text is taken again").config;
            assert_eq!(again, loaded.config, "the same text means the same");
            assert!(plan(&loaded.config, &again).is_empty(), "nothing changed: {:?}", plan(&loaded.config, &again));
        }
        Err(problems) => {
            assert!(problems.refuse(), "refused without an error: {problems:?}");
            is_placed(text, &problems);
        }
    }
}

/// Every problem says what is wrong, and names a place that the text has.
fn is_placed(text: &str, problems: &Problems) {
    for problem in problems {
        assert_eq!(problem.file, "lb.toml");
        assert!(!problem.what.is_empty(), "{problem:?}");
        assert!(problem.line > 0 && problem.column > 0, "without a place: {problem:?}");
        // Behind the last line end there is a line, which may be empty; behind the last character there is a column.
        let line = text.split('\n').nth(problem.line - 1);
        let line = line.unwrap_or_else(|| panic!("a line that is not there: {problem:?}"));
        assert!(problem.column <= line.chars().count() + 1, "a column that is not there: {problem:?}");
        let shown = problem.to_string();
        assert!(!shown.contains(['\n', '\r', '\0', '\u{1b}']), "more than a line, or more than text: {shown:?}");
    }
}

/// What a start builds from it can be built.
fn is_of_use(config: &Config) {
    assert!(plan(config, config).is_empty());
    let build = |config: &Arc<_>| {
        let config: &Arc<isobar::config::UpstreamConfig> = config;
        Upstream::build(Arc::clone(config), UpstreamState::new(config.name.clone(), 1), &Factories::default())
    };
    let upstreams: Vec<_> = config.upstreams.iter().map(build).collect();
    let table = RoutingTable::build(&config.routes, &upstreams, &[], &mut |_| Arc::new(Sharded::new(1)));
    assert_eq!(table.routes().len(), config.routes.len());
    let Some(listener) = config.listeners.first() else { return };
    for route in &config.routes {
        let host = match route.hosts.first() {
            Some(HostPattern::Exact(host)) => host.clone(),
            Some(HostPattern::Wildcard(suffix)) => format!("a{suffix}"),
            None => "a".to_owned(),
        };
        let path = match &route.path {
            PathPattern::Exact(path) => path,
            PathPattern::Prefix(prefix) => prefix,
            PathPattern::Regex(_) => "/",
        };
        // A key may hold what no client can ask for.
        let Ok(request) = Request::get(if path.is_empty() { "/" } else { path }).body(()) else { continue };
        let found = table.find(&listener.name, &host, &request.into_parts().0.into());
        let nothing_else = route.listeners.is_empty()
            && route.methods.is_empty()
            && route.headers.is_empty()
            && route.query.is_empty();
        let by_pattern = matches!(route.path, PathPattern::Regex(_));
        // An IPv6 address is asked for in brackets.
        assert!(
            found.is_some() || !nothing_else || by_pattern || host.contains(':'),
            "nobody gets to {:?}",
            route.name
        );
    }
}
