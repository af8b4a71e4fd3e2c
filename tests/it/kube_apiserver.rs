//! The source `kubernetes` and the manifests of `examples/kubernetes`, against a real kube-apiserver with etcd. `tests/registries/kube-apiserver.sh`
//! and `tests/registries/etcd.sh` get them.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use isobar::http_client::{Fetch, FetchLimits, To, Trust};
use isobar::telemetry::events::EventKind;
use serde_json::{Value, json};

use crate::harness::{Scratch, TestBackend, free_address};
use crate::registry::{Load, Process, Took, comes_to, conditions, has, has_now, start};

/// How long a cluster may take to start on a machine that is busy.
const START: Duration = Duration::from_secs(120);

/// An API server of this test's own, with its store.
struct Cluster {
    store: [SocketAddr; 2],
    address: SocketAddr,
    options: &'static [&'static str],
    files: Scratch,
    etcd: Process,
    apiserver: Process,
    client: Fetch,
    store_client: Fetch,
}

fn fetched(name: &str) -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/registries").join(name);
    if fetched.exists() { fetched } else { name.into() }
}

impl Cluster {
    async fn start(options: &'static [&'static str]) -> Self {
        let files = Scratch::new();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(files.path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(files.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(files.path("tokens.csv"), "the-token-of-an-admin,admin,1,system:masters\n").unwrap();
        let (store, address) = ([free_address(), free_address()], free_address());
        let limits = FetchLimits { time: Duration::from_secs(10), body: 4 * 1024 * 1024 };
        let trust = Trust::new(Some(made.cert.pem().as_bytes())).unwrap();
        let to = To::Server { host: "127.0.0.1".into(), port: address.port(), tls: Some(trust) };
        let etcd = Self::run_etcd(store, &files);
        let apiserver = Self::run_apiserver(store[0], address, options, &files);
        let client = Fetch::new(to, limits);
        let store_client = Fetch::new(To::Address(store[0]), limits);
        let cluster = Self { store, address, options, files, etcd, apiserver, client, store_client };
        cluster.wait().await;
        cluster
    }

    fn run_etcd(store: [SocketAddr; 2], files: &Scratch) -> Process {
        let [client, peer] = store.map(|it| format!("http://{it}"));
        let mut command = Command::new(fetched("etcd"));
        command.arg("--data-dir").arg(files.path("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        Process::run(&mut command, "tests/registries/etcd.sh gets etcd")
    }

    fn run_apiserver(store: SocketAddr, address: SocketAddr, options: &[&str], files: &Scratch) -> Process {
        let mut command = Command::new(fetched("kube-apiserver"));
        let file = |name: &str| files.path(name).display().to_string();
        command.args([
            format!("--etcd-servers=http://{store}"),
            format!("--bind-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            format!("--tls-cert-file={}", file("cert.pem")),
            format!("--tls-private-key-file={}", file("key.pem")),
            format!("--service-account-key-file={}", file("cert.pem")),
            format!("--service-account-signing-key-file={}", file("key.pem")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--cert-dir={}", file("")),
        ]);
        command.args(["--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC"]);
        command.args(["--service-cluster-ip-range=10.96.0.0/24", "--disable-admission-plugins=ServiceAccount"]);
        command.args(options);
        Process::run(&mut command, "tests/registries/kube-apiserver.sh gets kube-apiserver")
    }

    async fn wait(&self) {
        let begun = Instant::now();
        while self
            .ask_with("the-token-of-an-admin", "GET", "/readyz", "", Bytes::new())
            .await
            .is_none_or(|it| it.0 != 200)
        {
            assert!(begun.elapsed() < START, "kube-apiserver does not start");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Begins anew; `empty`: without what its store knew.
    async fn restart(&mut self, empty: bool) {
        self.apiserver.kill();
        if empty {
            self.etcd.kill();
            std::fs::remove_dir_all(self.files.path("data")).unwrap();
            self.etcd = Self::run_etcd(self.store, &self.files);
        }
        self.apiserver = Self::run_apiserver(self.store[0], self.address, self.options, &self.files);
        self.wait().await;
    }

    async fn ask_with(&self, token: &str, method: &str, path: &str, kind: &str, body: Bytes) -> Option<(u16, Value)> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let request = request.header("authorization", format!("Bearer {token}")).header("content-type", kind);
        let answer = self.client.whole(request.body(Full::from(body)).unwrap()).await.ok()?;
        let said = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
        Some((answer.status().as_u16(), said))
    }

    async fn ask(&self, method: &str, path: &str, kind: &str, body: impl Into<Bytes>) -> (u16, Value) {
        self.ask_with("the-token-of-an-admin", method, path, kind, body.into()).await.expect("an answer")
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, said) = self.ask("POST", path, "application/json", body.to_string()).await;
        assert!(status < 300, "{path}: {said}");
        said
    }

    /// Writes a slice of the Service `users`, as it is now.
    async fn slice(&self, name: &str, backends: &[&TestBackend]) {
        let path = format!("{SLICES}/{name}?fieldManager=test&force=true");
        let endpoints = backends.iter().map(|it| json!({ "addresses": [it.address().ip()], "zone": "eu-1a" }));
        let ports = backends.first().map(|it| json!([{ "name": "http", "port": it.address().port() }]));
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "users" } },
            "endpoints": endpoints.collect::<Vec<_>>(), "ports": ports,
        });
        let (status, said) = self.ask("PATCH", &path, "application/apply-patch+yaml", slice.to_string()).await;
        assert!(status < 300, "{said}");
    }

    async fn delete(&self, name: &str) {
        let (status, said) = self.ask("DELETE", &format!("{SLICES}/{name}"), "application/json", "").await;
        assert_eq!(status, 200, "{said}");
    }

    /// The last version of the store, after some that have nothing to do with slices. All before are forgotten.
    async fn compact(&self) {
        let mut revision = String::new();
        for path in ["/v3/kv/put"; 20].into_iter().chain(["/v3/kv/compaction"]) {
            let body = match path {
                "/v3/kv/put" => json!({ "key": "eA==", "value": "eA==" }),
                _ => json!({ "revision": revision, "physical": true }),
            };
            let request = Request::post(format!("http://{}{path}", self.store[0])).body(Full::from(body.to_string()));
            let answer = self.store_client.whole(request.unwrap()).await.unwrap();
            let said: Value = serde_json::from_slice(answer.body()).unwrap();
            revision = said["header"]["revision"].as_str().unwrap().to_owned();
        }
    }

    /// The source `kubernetes` of one who asks with this token.
    fn source(&self, token: &str, more: &str) -> String {
        let config = self.files.path("config");
        std::fs::write(self.files.path("token"), token).unwrap();
        let text = json!({
            "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("https://{}", self.address), "certificate-authority": "cert.pem" } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u", "namespace": "shop" } }],
            "users": [{ "name": "u", "user": { "tokenFile": "token" } }],
        });
        std::fs::write(&config, text.to_string()).unwrap();
        format!(
            "kubernetes = {{ service = \"users\", port = \"http\", kubeconfig = {config:?}, wait = \"2s\", timeout = \"2s\" }}\n{more}"
        )
    }
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

/// A backend at an address of this machine that the API server takes for one of a pod: it refuses loopback.
fn backend() -> TestBackend {
    // Nothing is sent: it tells the address by which this machine would.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.200:9").expect("a network beside loopback");
    let address: IpAddr = socket.local_addr().unwrap().ip();
    let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
    TestBackend::ok("ok").moved_to((address, port).into())
}

/// The objects of the manifests, in the order in which `kubectl apply` takes them.
fn manifests() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kubernetes");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let texts: Vec<String> =
        texts.flat_map(|text| text.split("\n---\n").map(str::to_owned).collect::<Vec<_>>()).collect();
    texts.into_iter().map(|text| (text.clone(), serde_saphyr::from_str(&text).unwrap())).collect()
}

/// Where an object of a manifest is.
fn path_of(object: &Value) -> String {
    let (kind, api) = (object["kind"].as_str().unwrap(), object["apiVersion"].as_str().unwrap());
    let api = if api.contains('/') { format!("/apis/{api}") } else { format!("/api/{api}") };
    let kinds = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().map_or_else(String::new, |it| format!("/namespaces/{it}"));
    format!("{api}{namespace}/{}/{}", kinds.to_lowercase(), metadata["name"].as_str().unwrap())
}

async fn apply(cluster: &Cluster, text: &str, object: &Value, more: &str) -> (u16, Value) {
    let path = format!("{}?fieldManager=test&fieldValidation=Strict{more}", path_of(object));
    cluster.ask("PATCH", &path, "application/apply-patch+yaml", text.to_owned()).await
}

#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn the_shipped_rights_are_enough_and_a_change_is_seen_within_a_second() {
    let (a, b) = (backend(), backend());
    let cluster = Cluster::start(&[]).await;
    cluster.post("/api/v1/namespaces", json!({ "metadata": { "name": "shop" } })).await;
    let (rights, rest): (Vec<_>, Vec<_>) =
        manifests().into_iter().partition(|(_, object)| object["kind"].as_str().unwrap().starts_with("Role"));
    assert_eq!(rights.len(), 2);
    for (text, object) in
        rest.iter().filter(|(_, it)| ["Namespace", "ServiceAccount"].contains(&it["kind"].as_str().unwrap()))
    {
        assert!(apply(&cluster, text, object, "").await.0 < 300);
    }
    let account = "/api/v1/namespaces/gateway/serviceaccounts/isobar/token";
    let token = cluster.post(account, json!({ "spec": { "expirationSeconds": 3600 } })).await;
    let token = token["status"]["token"].as_str().unwrap();
    cluster.slice("users-a", &[&a]).await;
    // Without its Role it is told what is missing.
    let running = start(&cluster.source(token, "max_removed_percent = 100"));
    comes_to(&running, "failing").await;
    let events = running.handle().events().listen_after(0).since;
    let told = events.iter().find_map(|event| match &event.kind {
        EventKind::Discovery { evidence, .. } => Some(evidence.clone()),
        _ => None,
    });
    let expected = "it may not list EndpointSlices: a Role in \"shop\" must allow to list and watch endpointslices of discovery.k8s.io \
                    (endpointslices.discovery.k8s.io is forbidden: User \"system:serviceaccount:gateway:isobar\" cannot list resource";
    assert!(told.as_ref().unwrap().starts_with(expected), "{told:?}");
    for (text, object) in &rights {
        assert!(apply(&cluster, text, object, "").await.0 < 300);
    }
    has(&running, [&a]).await;
    comes_to(&running, "current").await;
    // And it has no other right.
    for path in [
        "/api/v1/namespaces/shop/secrets",
        "/api/v1/namespaces/shop/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/discovery.k8s.io/v1/namespaces/gateway/endpointslices",
        &format!("{SLICES}/users-a"),
    ] {
        let status = cluster.ask_with(token, "GET", path, "application/json", Bytes::new()).await.unwrap().0;
        assert_eq!(status, 403, "{path}");
    }
    let mut took = Took::default();
    for n in 0..100 {
        let begun = Instant::now();
        if n % 2 == 0 {
            cluster.slice("users-b", &[&b]).await;
            has(&running, [&a, &b]).await;
        } else {
            cluster.delete("users-b").await;
            has(&running, [&a]).await;
        }
        took.since(begun);
    }
    took.end_within_a_second();
    assert_eq!(conditions(&running), ["failing", "current"]);
    // Another Service's is no business of this one.
    let other = json!({ "metadata": { "name": "orders", "labels": { "kubernetes.io/service-name": "orders" } }, "addressType": "IPv4",
                        "endpoints": [{ "addresses": ["10.0.0.1"] }], "ports": [{ "name": "http", "port": 1 }] });
    cluster.post(SLICES, other).await;
    cluster.slice("users-a", &[&b]).await;
    has(&running, [&b]).await;
}

#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn a_real_api_server_that_is_killed_hangs_forgets_and_compacts_costs_no_request() {
    let (a, b) = (backend(), backend());
    // Without the cache of watches, what etcd has compacted away is gone for them too.
    let mut cluster = Cluster::start(&["--watch-cache=false"]).await;
    let fill = async |cluster: &Cluster| {
        cluster.post("/api/v1/namespaces", json!({ "metadata": { "name": "shop" } })).await;
        cluster.slice("users-a", &[&a]).await;
        cluster.slice("users-b", &[&b]).await;
    };
    fill(&cluster).await;
    let running = start(&cluster.source("the-token-of-an-admin", "removal_hold = \"1h\""));
    has(&running, [&a, &b]).await;
    let load = Load::begin(&running);
    // What the next watch would go on from is compacted away, again and again.
    for _ in 0..3 {
        cluster.compact().await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    cluster.delete("users-b").await;
    has(&running, [&a]).await;
    cluster.slice("users-b", &[&b]).await;
    has(&running, [&a, &b]).await;
    assert_eq!(conditions(&running), ["current"]);
    // Restarted with what it knew.
    cluster.apiserver.kill();
    comes_to(&running, "failing").await;
    cluster.restart(false).await;
    comes_to(&running, "current").await;
    cluster.apiserver.signal("STOP");
    comes_to(&running, "failing").await;
    cluster.apiserver.signal("CONT");
    comes_to(&running, "current").await;
    // It comes back empty, and with versions of long ago.
    cluster.apiserver.kill();
    comes_to(&running, "failing").await;
    cluster.restart(true).await;
    comes_to(&running, "holding").await;
    assert!(has_now(&running, [&a, &b]));
    fill(&cluster).await;
    comes_to(&running, "current").await;
    has(&running, [&a, &b]).await;
    let expected = ["current", "failing", "current", "failing", "current", "failing", "holding", "current"];
    assert_eq!(conditions(&running), expected);
    let asked = load.end().await;
    assert_eq!(a.requests() + b.requests(), asked);
    assert!(asked > 1000, "{asked}");
}

#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn the_manifests_are_what_kubernetes_takes() {
    let cluster = Cluster::start(&[]).await;
    let manifests = manifests();
    cluster.post("/api/v1/namespaces", json!({ "metadata": { "name": "shop" } })).await;
    let (namespace, object) = &manifests[0];
    let (status, said) = apply(&cluster, namespace, object, "").await;
    assert!(status < 300, "{said}");
    for (text, object) in &manifests {
        let (status, said) = apply(&cluster, text, object, "&dryRun=All&force=true").await;
        assert!(status < 300, "{}: {said}", path_of(object));
        // A key that is misspelt is seen.
        let wrong = text.replacen("\nmetadata:", "\nmetadato: {}\nmetadata:", 1);
        assert!(apply(&cluster, &wrong, object, "&dryRun=All&force=true").await.0 >= 400, "{}", path_of(object));
    }
    // The pods are as the namespace wants them: nothing of theirs is privileged.
    let deployment = manifests.iter().find(|(_, object)| object["kind"] == "Deployment").expect("a Deployment");
    let mut pod = deployment.1["spec"]["template"].clone();
    pod["metadata"]["name"] = "isobar".into();
    let pods = "/api/v1/namespaces/gateway/pods?dryRun=All&fieldValidation=Strict";
    cluster.post(pods, pod.clone()).await;
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
    let (status, said) = cluster.ask("POST", pods, "application/json", pod.to_string()).await;
    assert!(status == 403 && said["message"].as_str().unwrap().contains("PodSecurity"), "{said}");
}
