use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar::Isobar;
use isobar::backend::BackendState;
use isobar::embed::Running;
use isobar::middleware::MiddlewareFactory;
use isobar::proxy::Snapshot;
use isobar::supervisor::{Applied, Ended, Error, Handle};
use isobar::telemetry::metrics::{Counter, ListenerMetrics};

use super::backend::TestBackend;
use super::client::Client;
use super::message::Response;
use super::soon;

/// What a configuration says beside one worker, one listener, one route and one upstream, each key on a line of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keys<'a> {
    /// Keys of the listener.
    pub(crate) listener: &'a str,
    /// Keys of the route.
    pub(crate) route: &'a str,
    /// Keys of the upstream.
    pub(crate) upstream: &'a str,
    /// Whole tables.
    pub(crate) tables: &'a str,
}

impl Keys<'_> {
    /// The configuration, with these backends.
    pub(crate) fn text(self, pool: &[&TestBackend]) -> String {
        let Self { listener, route, upstream, tables } = self;
        format!(
            r#"
            workers = 1
            [[listener]]
            address = "127.0.0.1:0"
            {listener}
            [[route]]
            upstream = "u"
            {route}
            [upstream.u]
            backends = {}
            {upstream}
            {tables}
            "#,
            backends(pool)
        )
    }
}

/// A proxy under test. Dropped, it is stopped at once.
#[derive(Debug)]
pub(crate) struct TestProxy {
    running: Running,
}

impl TestProxy {
    /// Starts one as the text says, whose listeners take port 0. The admin address is served where the text has one, and
    /// is to take port 0 too.
    pub(crate) async fn with_config(text: impl Into<String>) -> Self {
        let text = text.into();
        let admin = text.contains("[admin]");
        let started = Isobar::builder().config_text(text.clone()).admin(admin).start();
        Self { running: started.unwrap_or_else(|error| panic!("{error}\nin\n{text}")) }
    }

    /// Starts one as the text says, with kinds of middleware of the test's own.
    pub(crate) async fn with_middleware(text: impl Into<String>, kinds: &[(&str, MiddlewareFactory)]) -> Self {
        let text = text.into();
        let mut builder = Isobar::builder().config_text(text.clone()).admin(text.contains("[admin]"));
        for (kind, factory) in kinds {
            builder = builder.middleware(*kind, Arc::clone(factory));
        }
        Self { running: builder.start().unwrap_or_else(|error| panic!("{error}\nin\n{text}")) }
    }

    /// Starts one that follows the file. The admin address is served where the file has one.
    pub(crate) fn with_file(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a configuration file");
        let started = Isobar::builder().config_file(path).admin(text.contains("[admin]")).start();
        Self { running: started.unwrap_or_else(|error| panic!("{error}\nin\n{text}")) }
    }

    /// Starts one worker with one listener, and one route to these backends by turns.
    pub(crate) async fn over(pool: &[&TestBackend]) -> Self {
        Self::with_keys(pool, Keys::default()).await
    }

    /// The same with further keys.
    pub(crate) async fn with_keys(pool: &[&TestBackend], keys: Keys<'_>) -> Self {
        Self::with_config(keys.text(pool)).await
    }

    /// Looks into it and steers it.
    pub(crate) fn handle(&self) -> &Handle {
        self.running.handle()
    }

    /// What requests are served with now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.handle().snapshot()
    }

    /// Where its first listener is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses()[0]
    }

    /// Where its listeners are, in the order of the configuration.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.running.listener_addresses()
    }

    /// Where its admin address is.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.running.admin_address().expect("an admin address")
    }

    /// A connection to its first listener.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address()).await
    }

    /// A GET over a connection of its own.
    pub(crate) async fn get(&self, target: &str) -> Response {
        self.client().await.get(target).await
    }

    /// A POST over a connection of its own.
    pub(crate) async fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.request("POST", target, &[], body).await
    }

    /// A request over a connection of its own. A body that is not empty gets its length.
    pub(crate) async fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response {
        let body = body.as_ref();
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("host: test\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut client = self.client().await;
        client.send([head.as_bytes(), body].concat()).await;
        client.response_to(method).await
    }

    /// Sends bytes over a connection of its own and reads what comes until it is closed.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.client().await;
        client.try_send(bytes).await;
        String::from_utf8_lossy(&client.read_to_end().await).into_owned()
    }

    /// Applies another configuration.
    pub(crate) async fn apply(&self, text: impl Into<String>) -> Result<Arc<Applied>, Arc<Error>> {
        soon(self.handle().apply_text(text)).await
    }

    /// Requests that hold a lease on any backend now.
    pub(crate) fn in_flight(&self) -> u32 {
        let snapshot = self.snapshot();
        let rosters: Vec<_> = snapshot.upstreams.iter().map(|upstream| upstream.roster()).collect();
        rosters.iter().flat_map(|roster| roster.backends()).map(|backend| backend.state.in_flight()).sum()
    }

    /// Requests that hold a lease on that backend now, in whatever upstream.
    pub(crate) fn in_flight_at(&self, backend: &TestBackend) -> u32 {
        let address = backend.address().to_string();
        let snapshot = self.snapshot();
        let rosters: Vec<_> = snapshot.upstreams.iter().map(|upstream| upstream.roster()).collect();
        let states = rosters.iter().flat_map(|roster| roster.backends()).map(|backend| &backend.state);
        states.filter(|state| state.address.to_string() == address).map(|state| state.in_flight()).sum()
    }

    /// What is known of that backend in that upstream. Panics where the upstream does not have it.
    #[track_caller]
    pub(crate) fn state(&self, upstream: &str, backend: &TestBackend) -> Arc<BackendState> {
        let address = backend.address().to_string();
        let roster = self.snapshot().upstream(upstream).expect("an upstream of that name").roster();
        let states = roster.backends().iter().map(|backend| &backend.state);
        Arc::clone(
            states.into_iter().find(|state| state.address.to_string() == address).expect("a backend of that address"),
        )
    }

    /// What all listeners together have counted.
    pub(crate) fn counted(&self, counter: impl Fn(&ListenerMetrics) -> &Counter) -> u64 {
        self.handle().listeners().iter().map(|listener| listener.metrics.sum(&counter)).sum()
    }

    /// Exchanges that have begun and not ended.
    pub(crate) fn exchanges(&self) -> u64 {
        let ended = self.counted(|metrics| &metrics.ended);
        self.counted(|metrics| &metrics.requests) - ended
    }

    /// Client connections open now, by worker.
    pub(crate) fn connections(&self) -> Vec<usize> {
        self.handle().connections()
    }

    /// Stops it: what is open may finish within `grace`.
    pub(crate) async fn stop(self, grace: Duration) -> Ended {
        soon(self.running.stop(grace)).await
    }
}

/// Backends as a configuration lists them.
pub(crate) fn backends(pool: &[&TestBackend]) -> String {
    let quoted: Vec<_> = pool.iter().map(|backend| format!("\"{}\"", backend.address())).collect();
    format!("[{}]", quoted.join(", "))
}
