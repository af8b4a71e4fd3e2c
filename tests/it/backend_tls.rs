//! TLS to backends: who is verified and how, what a failed handshake comes to, and what lives on over a reload.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use isobar::Isobar;
use isobar::backend::{BackendSet, Instance};
use isobar::config::Address;
use isobar::discovery;
use isobar::telemetry::metrics::{BackendMetrics, Counter};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::backend_http2::{Backend as Http2Backend, Script};
use crate::harness::{Client, Scratch, TestBackend, TestProxy, body_of, eventually, soon};

/// Issues certificates.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM.
struct Certified {
    certificate: String,
    key: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ca {}", NEXT.fetch_add(1, SeqCst));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str) -> Certified {
        self.issue_with(name, |_| {})
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Certified { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// Speaks TLS in front of a backend that speaks in the clear.
struct Front {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    full: AtomicUsize,
    resumed: AtomicUsize,
    failed: AtomicUsize,
    open: AtomicUsize,
    alpn: AtomicUsize,
}

impl Front {
    async fn new(backend: &TestBackend, certified: &Certified) -> Self {
        Self::asking(backend, certified, None).await
    }

    /// One behind which HTTP/2 is spoken too, elsewhere.
    async fn of_both(backend: &TestBackend, http2: SocketAddr, certified: &Certified) -> Self {
        Self::start(backend, Some(http2), certified, None).await
    }

    /// One that asks for a certificate of somebody's.
    async fn asking(backend: &TestBackend, certified: &Certified, clients: Option<&Ca>) -> Self {
        Self::start(backend, None, certified, clients).await
    }

    async fn start(
        backend: &TestBackend,
        http2: Option<SocketAddr>,
        certified: &Certified,
        clients: Option<&Ca>,
    ) -> Self {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
                let provider = Arc::new(default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2.is_some() {
            config.alpn_protocols.push(b"h2".to_vec());
            config.alpn_protocols.reverse();
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let (to, counted) = (backend.address(), Arc::clone(&counts));
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, counts) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else {
                        counts.failed.fetch_add(1, SeqCst);
                        return;
                    };
                    let resumed = tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                    if resumed { &counts.resumed } else { &counts.full }.fetch_add(1, SeqCst);
                    if tls.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
                        counts.alpn.fetch_add(1, SeqCst);
                    }
                    counts.open.fetch_add(1, SeqCst);
                    let to = http2.filter(|_| tls.get_ref().1.alpn_protocol() == Some(b"h2")).unwrap_or(to);
                    if let Ok(mut backend) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut tls, &mut backend).await;
                    }
                    counts.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, counts, task }
    }

    fn handshakes(&self) -> (usize, usize) {
        (self.counts.full.load(SeqCst), self.counts.resumed.load(SeqCst))
    }

    fn open(&self) -> usize {
        self.counts.open.load(SeqCst)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One worker, one route and one upstream with these backends and keys.
fn text(backends: &[String], keys: &str) -> String {
    let (listener, route) = ("[[listener]]\naddress = \"127.0.0.1:0\"", "[[route]]\nupstream = \"u\"");
    format!("workers = 1\n{listener}\n{route}\n[upstream.u]\nbackends = {backends:?}\n{keys}\n")
}

fn by_ip(front: &Front) -> String {
    front.address.to_string()
}

fn by_name(front: &Front) -> String {
    format!("localhost:{}", front.address.port())
}

fn counted(proxy: &TestProxy, counter: impl Fn(&BackendMetrics) -> &Counter) -> u64 {
    let roster = proxy.snapshot().upstream("u").unwrap().roster();
    roster.backends().iter().map(|backend| backend.state.metrics.sum(&counter)).sum()
}

/// A CA that is written to a file, and the key that names it.
fn trusted(scratch: &Scratch) -> (Ca, String) {
    let ca = Ca::new();
    let key = format!("tls = {{ ca = {:?} }}", scratch.write("ca.pem", &ca.pem));
    (ca, key)
}

#[tokio::test]
async fn a_backend_is_verified_by_its_ip_address_or_its_name() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::echo();
    let ip = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let name = Front::new(&backend, &ca.issue("localhost")).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&ip), by_name(&name)], &tls)).await;
    for _ in 0..4 {
        let response = proxy.get("/x?y").await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!((ip.handshakes(), name.handshakes()), ((1, 0), (1, 0)), "connections are kept");
    assert_eq!((ip.counts.alpn.load(SeqCst), name.counts.alpn.load(SeqCst)), (1, 1));
    assert_eq!(backend.last_head().target(), "/x?y");
    assert_eq!((backend.requests(), proxy.in_flight()), (4, 0));
}

#[tokio::test]
async fn who_is_not_trusted_is_not_asked_and_another_is() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let (good, bad) = (TestBackend::ok("good"), TestBackend::ok("bad"));
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let certificates = [
        Ca::new().issue("127.0.0.1"),
        ca.issue("127.0.0.2"),
        ca.issue("localhost"),
        ca.issue_with("127.0.0.1", expired),
    ];
    let front = Front::new(&good, &ca.issue("127.0.0.1")).await;
    for certified in &certificates {
        let wrong = Front::new(&bad, certified).await;
        let tls = format!("outlier_detection = {{ enabled = false }}\n{tls}");
        let proxy = TestProxy::with_config(text(&[by_ip(&wrong), by_ip(&front)], &tls)).await;
        for _ in 0..4 {
            // A POST may not be sent twice; it was not sent at all.
            let response = proxy.post("/", "a body").await;
            assert_eq!((response.status(), response.text()), (200, "good"));
        }
        assert!(counted(&proxy, |metrics| &metrics.connect_failures) >= 2);
        let alone = TestProxy::with_config(text(&[by_ip(&wrong)], &tls)).await;
        let response = alone.get("/").await;
        assert_eq!(response.status(), 502);
        assert!(response.text().contains("a backend's certificate is not good"), "{}", response.text());
        assert!(!response.text().contains("127.0.0.1"), "{}", response.text());
    }
    assert_eq!(bad.requests(), 0);
}

#[tokio::test]
async fn who_speaks_no_tls_is_no_backend() {
    let backend = TestBackend::scripted(async |peer| {
        let _ = peer.stream.more().await;
        peer.respond("400 Bad Request", "what?").await;
    });
    let scratch = Scratch::new();
    let (_, tls) = trusted(&scratch);
    let proxy = TestProxy::with_config(text(&[backend.address().to_string()], &format!("retries = 0\n{tls}"))).await;
    let response = proxy.get("/").await;
    assert_eq!(response.status(), 502);
    assert!(response.text().contains("no secure connection to a backend could be made"), "{}", response.text());
    assert_eq!((proxy.in_flight(), proxy.state("u", &backend).connections()), (0, 0));
}

#[tokio::test]
async fn a_handshake_takes_part_of_the_time_for_connecting() {
    let silent = TestBackend::scripted(async |peer| peer.gone().await);
    let scratch = Scratch::new();
    let (_, tls) = trusted(&scratch);
    let keys = format!("retries = 0\nconnect_timeout = \"100ms\"\n{tls}");
    let proxy = TestProxy::with_config(text(&[silent.address().to_string()], &keys)).await;
    assert_eq!(proxy.get("/").await.status(), 504);
    eventually(|| silent.open() == 0 && proxy.state("u", &silent).connections() == 0).await;
}

#[tokio::test]
async fn another_name_may_be_asked_for() {
    let scratch = Scratch::new();
    let ca = Ca::new();
    let path = scratch.write("ca.pem", &ca.pem);
    let backend = TestBackend::ok("a");
    let front = Front::new(&backend, &ca.issue("users.internal")).await;
    for (name, status) in [("users.internal", 200), ("Users.Internal", 200), ("others.internal", 502)] {
        let tls = format!("tls = {{ ca = {path:?}, server_name = {name:?} }}");
        let proxy = TestProxy::with_config(text(&[by_ip(&front)], &tls)).await;
        assert_eq!(proxy.get("/").await.status(), status, "{name}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks() {
    let scratch = Scratch::new();
    let (ca, clients) = (Ca::new(), Ca::new());
    let path = scratch.write("ca.pem", &ca.pem);
    let backend = TestBackend::ok("a");
    let front = Front::asking(&backend, &ca.issue("127.0.0.1"), Some(&clients)).await;
    let shown = |issuer: &Ca, name: &str| {
        let Certified { certificate, key } = issuer.issue("isobar");
        let certificate = scratch.write(format!("{name}.pem"), certificate);
        let key = scratch.write(format!("{name}.key"), key);
        format!("tls = {{ ca = {path:?}, client_certificate = {{ certificate = {certificate:?}, key = {key:?} }} }}")
    };
    let good = TestProxy::with_config(text(&[by_ip(&front)], &shown(&clients, "good"))).await;
    assert_eq!(good.get("/").await.status(), 200);
    for tls in [shown(&ca, "of_another"), format!("tls = {{ ca = {path:?} }}")] {
        let proxy = TestProxy::with_config(text(&[by_ip(&front)], &format!("retries = 0\n{tls}"))).await;
        assert_eq!(proxy.get("/").await.status(), 502);
    }
    assert_eq!(backend.requests(), 1);
}

#[tokio::test]
async fn sessions_are_taken_up_again() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::ok("a");
    let front = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let keys = format!("pool = {{ max_idle = 0 }}\n{tls}");
    let proxy = TestProxy::with_config(text(&[by_ip(&front)], &keys)).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    // Another upstream's keys, the same TLS: the sessions live on.
    proxy.apply(text(&[by_ip(&front)], &format!("connect_timeout = \"2s\"\n{keys}"))).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(front.handshakes(), (1, 3));
    let counts = (counted(&proxy, |it| &it.handshakes_full), counted(&proxy, |it| &it.handshakes_resumed));
    assert_eq!(counts, (1, 3));
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::scripted(async |peer| {
        while let Some(message) = peer.request().await {
            peer.respond("200 OK", &message.body).await;
        }
    });
    let front = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&front)], &tls)).await;
    let body = body_of(5_000_000);
    for _ in 0..2 {
        let response = proxy.post("/", &body).await;
        assert!(response.status() == 200 && response.body == body);
    }
    assert_eq!(front.handshakes(), (1, 0));
    eventually(|| proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn web_sockets_go_through() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::upgrading();
    let front = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&front)], &tls)).await;
    let mut client: Client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 101);
    for size in [1, 1000, 300_000] {
        let bytes = body_of(size);
        client.send(&bytes).await;
        assert!(client.exact(size).await == bytes);
    }
    drop(client);
    eventually(|| proxy.in_flight() == 0 && front.open() == 0).await;
}

#[tokio::test]
async fn auto_speaks_what_the_backend_takes_and_http1_to_switch() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let (backend, http2) = (TestBackend::upgrading(), Http2Backend::new(Script::default()).await);
    let certified = ca.issue("127.0.0.1");
    let both = Front::of_both(&backend, http2.address, &certified).await;
    let check = "health_check = { interval = \"20ms\", initial = \"unhealthy\" }";
    for protocol in ["auto", "http2"] {
        let keys = format!("protocol = {protocol:?}\n{check}\n{tls}");
        let proxy = TestProxy::with_config(text(&[by_ip(&both)], &keys)).await;
        let roster = || proxy.snapshot().upstream("u").unwrap().roster();
        eventually(|| roster().backends()[0].state.health.verdict().as_str() == "healthy").await;
        let response = proxy.post("/", "by http/2").await;
        assert_eq!((response.status(), response.text()), (200, "by http/2"));
        assert_eq!(backend.requests(), 0);
    }
    let proxy = TestProxy::with_config(text(&[by_ip(&both)], &format!("protocol = \"auto\"\n{tls}"))).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(soon(client.stream.head()).await.unwrap().unwrap().status(), 101);
    client.send("hello").await;
    assert_eq!(client.exact(5).await, b"hello");
    drop(client);
    eventually(|| proxy.in_flight() == 0).await;
    let plain = TestBackend::ok("by http/1.1");
    let one = Front::new(&plain, &certified).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&one)], &format!("protocol = \"auto\"\n{tls}"))).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.text(), "by http/1.1");
    }
    assert_eq!(one.handshakes(), (1, 0));
    let proxy = TestProxy::with_config(text(&[by_ip(&one)], &format!("protocol = \"http2\"\n{tls}"))).await;
    assert_eq!(proxy.get("/").await.status(), 502);
}

#[tokio::test]
async fn a_reload_keeps_connections_of_the_same_tls_and_closes_others() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::ok("a");
    let front = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&front)], &tls)).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    proxy.apply(text(&[by_ip(&front)], &format!("connect_timeout = \"2s\"\n{tls}"))).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!((front.handshakes(), front.open()), ((1, 0), 1), "the same connection");
    // Another file in the same place is other TLS.
    scratch.write("ca.pem", format!("{}{}", Ca::new().pem, ca.pem));
    let applied = proxy.apply(text(&[by_ip(&front)], &tls)).await.unwrap();
    assert!(applied.plan.upstreams.changed().next().is_some());
    eventually(|| front.open() == 0).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(front.handshakes(), (2, 0), "nor are its sessions");
    // The keys are as they were: only the file says that it is another.
    scratch.write("ca.pem", &Ca::new().pem);
    let applied = proxy.apply(text(&[by_ip(&front)], &tls)).await.unwrap();
    let changes: Vec<_> = applied.plan.upstreams.changed().map(|(name, _)| name.to_string()).collect();
    assert_eq!(changes, ["u"]);
    assert_eq!(proxy.get("/").await.status(), 502);
    // In the clear is other TLS too.
    proxy.apply(text(&[backend.address().to_string()], "")).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_file_that_is_missing_or_wrong_changes_nothing() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::ok("a");
    let front = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let proxy = TestProxy::with_config(text(&[by_ip(&front)], &tls)).await;
    let nothing = scratch.write("nothing.pem", "no certificate");
    let (one, other) = (ca.issue("a"), ca.issue("b"));
    let certificate = scratch.write("a.pem", &one.certificate);
    let (key, not_its_key) = (scratch.write("a.key", &one.key), scratch.write("b.key", &other.key));
    let missing = scratch.path("missing.pem");
    let shown = |certificate: &PathBuf, key: &PathBuf| {
        format!("{{ client_certificate = {{ certificate = {certificate:?}, key = {key:?} }} }}")
    };
    for (tls, key, what) in [
        (format!("{{ ca = {missing:?} }}"), "upstream.u.tls.ca", "could not read"),
        (format!("{{ ca = {nothing:?} }}"), "upstream.u.tls.ca", "has no certificate in it"),
        (shown(&certificate, &not_its_key), "upstream.u.tls.client_certificate.key", "is not the key of"),
        (shown(&certificate, &nothing), "upstream.u.tls.client_certificate.key", "has no private key in it"),
        (shown(&nothing, &key), "upstream.u.tls.client_certificate.certificate", "has no certificate in it"),
    ] {
        let text = text(&[by_ip(&front)], &format!("tls = {tls}"));
        let refused = proxy.apply(text.clone()).await.unwrap_err().to_string();
        assert!(refused.contains(key) && refused.contains(what) && refused.starts_with("lb.toml:"), "{refused}");
        let file = scratch.write("lb.toml", text);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_isobar"))
            .args(["check", "--config"])
            .arg(file)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(key) && said.contains(what), "{said}");
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(proxy.snapshot().generation, 1);
}

#[tokio::test]
async fn health_checks_speak_tls_too() {
    let scratch = Scratch::new();
    let (ca, tls) = trusted(&scratch);
    let backend = TestBackend::ok("a");
    let good = Front::new(&backend, &ca.issue("127.0.0.1")).await;
    let bad = Front::new(&backend, &Ca::new().issue("127.0.0.1")).await;
    for kind in ["http", "tcp"] {
        let check = format!("health_check = {{ type = {kind:?}, interval = \"20ms\", unhealthy_after = 1 }}\n{tls}");
        let proxy = TestProxy::with_config(text(&[by_ip(&good), by_ip(&bad)], &check)).await;
        let verdicts = || -> Vec<&'static str> {
            let roster = proxy.snapshot().upstream("u").unwrap().roster();
            roster.backends().iter().map(|backend| backend.state.health.verdict().as_str()).collect()
        };
        eventually(|| verdicts() == ["healthy", "unhealthy"]).await;
        let roster = proxy.snapshot().upstream("u").unwrap().roster();
        let failure = || roster.backends()[1].state.health.look().1.and_then(|check| check.failure).unwrap_or_default();
        eventually(|| failure() == "certificate has an unknown issuer").await;
    }
}

#[tokio::test]
async fn without_verification_any_certificate_will_do_and_a_warning_says_so() {
    let backend = TestBackend::ok("a");
    let front = Front::new(&backend, &Ca::new().issue("somebody.else")).await;
    let text = text(&[by_ip(&front)], "tls = { insecure_skip_verify = true }");
    let proxy = TestProxy::with_config(text.clone()).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let applied = proxy.apply(text).await.unwrap();
    let warnings: Vec<_> = applied.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("are not verified"), "{warnings:?}");
}

#[tokio::test]
async fn a_source_may_say_the_name_of_each_certificate() {
    let (scratch, ca) = (Scratch::new(), Ca::new());
    let path = scratch.write("ca.pem", &ca.pem);
    let backend = TestBackend::ok("ok");
    let front = Front::new(&backend, &ca.issue("a.internal")).await;
    let named = |name: &'static str| {
        let server_name = Some(name.try_into().unwrap());
        BackendSet::new([Instance { server_name, ..Instance::new(Address::Ip(front.address)) }])
    };
    let (pusher, pushed) = discovery::pushed();
    pusher.push(named("a.internal"));
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n[upstream.u]\nbackends = []\n\
         tls = {{ ca = {path:?} }}\n\
         health_check = {{ path = \"/\", interval = \"30ms\", interval_in_doubt = \"30ms\", initial = \"healthy\" }}\n"
    );
    let builder = Isobar::builder().config_text(text).admin(false);
    let running = builder.discovery("u", "pushed", pushed).start().unwrap();
    let mut client = Client::connect(running.listener_addresses()[0]).await;
    assert_eq!(client.get("/").await.status(), 200);
    // Under another name it is another backend: what was connected under the first is not used for it.
    for (name, is_its) in [("b.internal", false), ("a.internal", true)] {
        pusher.push(named(name));
        let roster = || running.handle().snapshot().upstream("u").unwrap().roster();
        eventually(|| *roster().set() == named(name)).await;
        assert_eq!(client.get("/").await.status() == 200, is_its, "{name}");
        // Health checks ask for it too.
        let verdict = if is_its { "healthy" } else { "unhealthy" };
        eventually(|| {
            let roster = roster();
            let health = &roster.backends()[0].state.health;
            health.look().1.is_some() && health.verdict().as_str() == verdict
        })
        .await;
    }
}
