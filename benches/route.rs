//! Finding the route of a request: `cargo bench --bench route`.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, StatusCode};
use isobar::config::{HostPattern, ListenerName, PathPattern, Respond, RouteConfig};
use isobar::exchange::RequestHead;
use isobar::route::{Reading, RoutingTable};
use isobar::target::Host;
use isobar::telemetry::metrics::Sharded;

fn route(host: Option<HostPattern>, path: PathPattern) -> Arc<RouteConfig> {
    let name = format!("{host:?} {path:?}");
    Arc::new(RouteConfig {
        hosts: host.into_iter().collect(),
        path,
        respond: Some(Respond { status: StatusCode::OK, content_type: None, body: Bytes::new() }),
        ..RouteConfig::new(name.as_str())
    })
}

fn prefix(text: impl Into<String>) -> PathPattern {
    PathPattern::Prefix(text.into())
}

fn table(routes: impl IntoIterator<Item = Arc<RouteConfig>>) -> RoutingTable {
    let routes: Vec<_> = routes.into_iter().collect();
    RoutingTable::build(&routes, &[], &[], &mut |_| Arc::new(Sharded::new(1)))
}

/// `hosts` × `prefixes` routes.
fn grid(hosts: usize, prefixes: usize) -> RoutingTable {
    table((0..hosts * prefixes).map(|i| {
        let host = HostPattern::Exact(format!("host-{}.example.com", i / prefixes));
        route(Some(host), prefix(format!("/service-{}/v1", i % prefixes)))
    }))
}

fn request(uri: &str) -> RequestHead {
    Request::get(uri).body(()).unwrap_or_default().into_parts().0.into()
}

fn find(criterion: &mut Criterion) {
    let listener = ListenerName::from("main");
    let usual = ["", "/users", "/orders"].map(|path| route(None, prefix(path)));
    let mut group = criterion.benchmark_group("route");
    for (name, table, host, uri) in [
        ("3, any host, /users", table(usual.clone()), "127.0.0.1:8080", "/users/1"),
        ("3, any host, rest", table(usual), "127.0.0.1:8080", "/favicon.ico"),
        ("1, hit", grid(1, 1), "host-0.example.com", "/service-0/v1/users/1"),
        ("100, hit", grid(10, 10), "host-7.example.com", "/service-7/v1/users/1"),
        ("10000, hit", grid(1_000, 10), "host-777.example.com", "/service-7/v1/users/1"),
        (
            "10000, hit, Host: as written by people",
            grid(1_000, 10),
            "Host-777.Example.com:8080",
            "/service-7/v1/users/1",
        ),
        ("10000, hit, one host", grid(1, 10_000), "host-0.example.com", "/service-7777/v1/users/1"),
        ("1, host missed", grid(1, 1), "host-x.example.com", "/service-0/v1/users/1"),
        ("10000, host missed", grid(1_000, 10), "host-x.example.com", "/service-7/v1/users/1"),
        ("1, path missed", grid(1, 1), "host-0.example.com", "/service-x/v1/users/1"),
        ("10000, path missed", grid(1_000, 10), "host-777.example.com", "/service-x/v1/users/1"),
        ("10000, path of 8000 slashes", grid(1, 10_000), "host-0.example.com", &"/".repeat(8_000)),
    ] {
        let request = request(uri);
        assert_eq!(
            table.find_index(&listener, Host::of(host), Reading::plain(request.uri.path()), &request).is_none(),
            name.contains("missed") || name.contains("slashes"),
            "{name}"
        );
        group.bench_function(name, |bencher| {
            let (asked, path) = (Host::of(host), Reading::plain(request.uri.path()));
            bencher.iter(|| {
                table.find_index(black_box(&listener), black_box(asked), black_box(path), black_box(&request))
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = find
}
criterion_main!(benches);
