//! What operators do by hand, over the admin address: each lever under load, through reloads, and who may pull it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::{Keys, Scratch, TestBackend, TestProxy, eventually, soon};

const ADMIN: &str = "[admin]\naddress = \"127.0.0.1:0\"";
const TOKEN: &str = "0123456789abcdef";

/// A request to the admin address, and its status and body.
async fn ask(admin: SocketAddr, method: &str, path: &str, lines: &str, body: &str) -> (u16, Value) {
    let stream = soon(TcpStream::connect(admin)).await.unwrap();
    exchange(stream, method, path, lines, body).await
}

async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    method: &str,
    path: &str,
    lines: &str,
    body: &str,
) -> (u16, Value) {
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{lines}content-length: {length}\r\n\r\n{body}");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn path(backend: &TestBackend, behind: &str) -> String {
    format!("/upstreams/u/backends/{}{behind}", backend.address())
}

async fn pull(proxy: &TestProxy, backend: &TestBackend, lever: &str, body: &str) -> Value {
    let (method, lever) = lever.split_once(' ').unwrap_or(("POST", lever));
    let path = path(backend, &format!("/{lever}"));
    let (status, answer) = ask(proxy.admin_address(), method, &path, "", body).await;
    assert_eq!(status, 200, "{lever}: {answer}");
    answer
}

/// Sends requests all the time; `ended` says how many there were, of which none may have failed.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn on(proxy: &TestProxy) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = Vec::new();
        for _ in 0..6 {
            let (stop, done, mut client) = (Arc::clone(&stop), Arc::clone(&done), proxy.client().await);
            clients.push(tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    assert_eq!(client.get("/").await.status(), 200);
                    done.fetch_add(1, SeqCst);
                }
            }));
        }
        Self { stop, done, clients }
    }

    async fn more(&self, n: usize) {
        let until = self.done.load(SeqCst) + n;
        eventually(|| self.done.load(SeqCst) >= until).await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        for client in self.clients {
            soon(client).await.expect("no request failed");
        }
        self.done.load(SeqCst)
    }
}

fn keys<'a>(upstream: &'a str) -> Keys<'a> {
    Keys { upstream, tables: ADMIN, ..Keys::default() }
}

#[tokio::test]
async fn each_lever_works_under_load_and_no_request_fails() {
    let brief = Duration::from_millis(2);
    let (a, b) = (TestBackend::slow("a", brief), TestBackend::slow("b", brief));
    let proxy =
        TestProxy::with_keys(&[&a, &b], keys("strategy = \"weighted_round_robin\"\nslow_start = { enabled = false }"))
            .await;
    let load = Load::on(&proxy).await;
    for (take_out, body, give_back) in [
        ("drain", "", "undrain"),
        ("disable", "", "enable"),
        ("eject", "", "uneject"),
        ("eject", r#"{"for": "1h"}"#, "uneject"),
        ("PUT weight", r#"{"weight": 0}"#, "DELETE weight"),
    ] {
        load.more(50).await;
        let answer = pull(&proxy, &a, take_out, body).await;
        assert_eq!((&answer["changed"], &answer["state"]["ready"]), (&json!(true), &json!(false)), "{answer}");
        // Under way when it was taken out: they finish.
        eventually(|| proxy.in_flight_at(&a) == 0).await;
        let before = a.requests();
        load.more(100).await;
        assert_eq!(a.requests(), before, "{take_out}");
        let answer = pull(&proxy, &a, give_back, "").await;
        assert_eq!((&answer["changed"], &answer["state"]["ready"]), (&json!(true), &json!(true)), "{answer}");
        load.more(100).await;
        assert!(a.requests() > before + 20, "{give_back}: {} after {before}", a.requests());
    }
    pull(&proxy, &a, "PUT weight", r#"{"weight": 9}"#).await;
    let before = (a.requests(), b.requests());
    load.more(500).await;
    let (of_a, of_b) = (a.requests() - before.0, b.requests() - before.1);
    assert!(of_a > 6 * of_b, "{of_a} to {of_b} at 9 to 1");
    assert!(load.end().await > 1000);
}

#[tokio::test]
async fn a_drained_backend_finishes_what_it_has() {
    let (a, b) = (TestBackend::slow("a", Duration::from_millis(400)), TestBackend::ok("b"));
    let proxy = TestProxy::with_keys(&[&a, &b], keys("")).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| proxy.in_flight_at(&a) == 1).await;
    let answer = pull(&proxy, &a, "drain", "").await;
    assert_eq!(answer["state"]["in_flight"], 1);
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (200, "a"));
    for _ in 0..4 {
        assert_eq!(proxy.get("/").await.text(), "b");
    }
}

#[tokio::test]
async fn a_time_ends_by_itself() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::with_keys(&[&a, &b], keys("")).await;
    let mut events = proxy.handle().events().listen();
    for lever in ["drain", "disable", "eject"] {
        let answer = pull(&proxy, &a, lever, r#"{"for": "300ms"}"#).await;
        assert!(answer["to"].as_str().unwrap().contains(" until 2"), "{answer}");
        let roster = || proxy.snapshot().upstream("u").unwrap().roster();
        assert_eq!(roster().ready().len(), 1, "{lever}");
        eventually(|| roster().ready().len() == 2).await;
        let told = [soon(events.recv()).await.unwrap(), soon(events.recv()).await.unwrap()];
        let told = told.map(|event| serde_json::to_value(&event.kind).unwrap());
        assert_eq!((&told[0]["what"], &told[1]["who"]), (&json!(lever), &json!("its time is over")), "{told:?}");
    }
}

#[tokio::test]
async fn what_is_set_survives_a_storm_of_reloads() {
    let backends = [TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"), TestBackend::ok("d")];
    let [a, b, c, d] = &backends;
    let pool = [a, b, c, d];
    let text = |retries: usize| {
        let upstream = format!("strategy = \"weighted_round_robin\"\nretries = {}", retries % 3);
        Keys { upstream: &upstream, tables: ADMIN, ..Keys::default() }.text(&pool)
    };
    let proxy = TestProxy::with_config(text(0)).await;
    pull(&proxy, a, "drain", "").await;
    pull(&proxy, b, "eject", "").await;
    pull(&proxy, c, "disable", r#"{"for": "1h"}"#).await;
    pull(&proxy, d, "PUT weight", r#"{"weight": 7}"#).await;
    let load = Load::on(&proxy).await;
    for round in 1..=10 {
        proxy.apply(text(round)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // An edit that leaves one out for a moment does not give it back either.
    proxy.apply(Keys { tables: ADMIN, ..Keys::default() }.text(&[b, c, d])).await.unwrap();
    let (_, answer) = ask(proxy.admin_address(), "GET", "/upstreams/u", "", "").await;
    assert_eq!(answer["absent"][0]["address"], a.address().to_string(), "{answer}");
    proxy.apply(text(0)).await.unwrap();
    assert!(load.end().await > 100);
    assert_eq!([a.requests(), b.requests(), c.requests()], [0; 3]);
    let (_, answer) = ask(proxy.admin_address(), "GET", "/upstreams/u", "", "").await;
    let [of_a, of_b, of_c, of_d] = [0, 1, 2, 3].map(|index| &answer["backends"][index]["by_hand"]);
    assert!(of_a["drain"]["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{answer}");
    assert!(of_b["eject"].is_object() && of_c["disable"]["until"].is_string(), "{answer}");
    assert_eq!((&of_d["weight"]["weight"], &answer["backends"][3]["weight"]), (&json!(7), &json!(7)));
    assert_eq!(answer["backends"][3]["weight_in_file"], 1);
}

#[tokio::test]
async fn repeated_it_changes_nothing_and_says_so() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::with_keys(&[&a, &b], keys("")).await;
    for (lever, body) in [("undrain", ""), ("drain", ""), ("PUT weight", r#"{"weight": 3}"#), ("DELETE weight", "")] {
        pull(&proxy, &a, lever, body).await;
        let again = pull(&proxy, &a, lever, body).await;
        assert_eq!((&again["changed"], &again["from"]), (&json!(false), &again["to"]), "{lever}");
    }
    let note = pull(&proxy, &a, "PUT weight", r#"{"weight": 3}"#).await;
    assert_eq!(note["notes"], json!(["round_robin ignores weights above 0"]));
    let last = pull(&proxy, &b, "eject", "").await;
    assert_eq!(last["notes"], json!(["no backend of the upstream is ready: its requests are answered 503"]));
    assert_eq!(proxy.get("/").await.status(), 503);
}

#[tokio::test]
async fn mistakes_are_told_with_the_nearest_name() {
    let a = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&a], keys("")).await;
    let address = a.address();
    let wrong = format!("{}1", address.to_string().trim_end_matches(|c: char| c.is_ascii_digit()));
    for (method, path, body, status, meant) in [
        ("GET", "/upstream".to_owned(), "", 404, Some("/upstreams".to_owned())),
        ("GET", "/upstreams/U".into(), "", 404, Some("u".into())),
        ("POST", format!("/upstreams/U/backends/{address}/drain"), "", 404, Some("u".into())),
        ("POST", format!("/upstreams/u/backends/{wrong}/drain"), "", 404, None),
        ("POST", format!("/upstreams/u/backends/{address}/drain"), r#"{"fro": "1s"}"#, 400, Some("for".into())),
        ("POST", format!("/upstreams/u/backends/{address}/drain"), r#"{"for": "soon"}"#, 400, None),
        ("POST", format!("/upstreams/u/backends/{address}/undrain"), r#"{"for": "1s"}"#, 400, None),
        ("PUT", format!("/upstreams/u/backends/{address}/weight"), r#"{"weight": 70000}"#, 400, None),
        ("POST", format!("/upstreams/u/backends/{address}/weight"), "", 405, None),
        ("GET", format!("/upstreams/u/backends/{address}/drain"), "", 405, None),
    ] {
        let (got, answer) = ask(proxy.admin_address(), method, &path, "", body).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer["error"].is_string() && answer["where"].is_string(), "{answer}");
        if let Some(meant) = meant {
            assert_eq!(answer["did_you_mean"], meant, "{path}");
        }
    }
    let (_, answer) = ask(proxy.admin_address(), "GET", "/upstreams/u", "", "").await;
    assert_eq!(answer["backends"][0]["by_hand"]["drain"], Value::Null);
}

#[tokio::test]
async fn a_hundred_changes_at_once_leave_one_state() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy =
        TestProxy::with_keys(&[&a, &b], keys("strategy = \"weighted_round_robin\"\nslow_start = { enabled = false }"))
            .await;
    let load = Load::on(&proxy).await;
    let admin = proxy.admin_address();
    let changes = (0..100).map(|n| {
        let path = path(&a, if n % 3 == 0 { "/weight" } else { ["/drain", "/undrain"][n % 2] });
        tokio::spawn(async move {
            let (method, body) =
                if n % 3 == 0 { ("PUT", format!("{{\"weight\": {n}}}")) } else { ("POST", String::new()) };
            ask(admin, method, &path, "", &body).await
        })
    });
    let changes: Vec<_> = changes.collect();
    let mut drains = 0i32;
    let mut lasts = Vec::new();
    for change in changes {
        let (status, answer) = soon(change).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        match (answer["changed"] == true, answer["lever"].as_str().unwrap()) {
            (true, "drain") => drains += 1,
            (true, "undrain") => drains -= 1,
            (_, "weight") => lasts.push(answer["to"].as_str().unwrap().to_owned()),
            _ => {}
        }
    }
    let (_, answer) = ask(admin, "GET", &path(&a, ""), "", "").await;
    // Each change that was told was one, so they add up to what is there.
    assert_eq!(drains == 1, answer["by_hand"]["drain"].is_object(), "{drains}: {answer}");
    assert!(drains == 0 || drains == 1);
    assert!(lasts.contains(&format!("weight {}", answer["weight"])));
    load.end().await;
}

#[tokio::test]
async fn who_may_change_something() {
    let scratch = Scratch::new();
    let socket = scratch.path("isobar.sock");
    let a = TestBackend::ok("a");
    let tables = |address: &str, more: &str| format!("[admin]\naddress = \"{address}:0\"\n{more}");
    let token = format!("token = \"{TOKEN}\"");
    let sent = |token: &str| format!("authorization: Bearer {token}\r\n");
    let (none, right, wrong) = (String::new(), sent(TOKEN), sent("0123456789abcdeX"));
    for (address, more, header, expected) in [
        ("127.0.0.1", "", &none, 200),
        ("127.0.0.1", &token, &none, 401),
        ("127.0.0.1", &token, &wrong, 401),
        ("127.0.0.1", &token, &right, 200),
        ("0.0.0.0", "", &none, 403),
        ("0.0.0.0", "", &right, 403),
        ("0.0.0.0", &token, &none, 401),
        ("0.0.0.0", &token, &wrong, 401),
        ("0.0.0.0", &token, &right, 200),
    ] {
        let more = format!("{more}\nunix_socket = \"{}\"", socket.display());
        let proxy = TestProxy::with_keys(&[&a], Keys { tables: &tables(address, &more), ..Keys::default() }).await;
        let admin = SocketAddr::from(([127, 0, 0, 1], proxy.admin_address().port()));
        for change in ["POST /reload", "POST /stats/reset", &format!("POST {}", path(&a, "/drain"))] {
            let (method, path) = change.split_once(' ').unwrap();
            let (status, answer) = ask(admin, method, path, header, "").await;
            assert_eq!(status, expected, "{address} {more} {header:?} {change}: {answer}");
            // The socket needs nothing, and who cannot change may read.
            let stream = soon(UnixStream::connect(&socket)).await.unwrap();
            assert_eq!(exchange(stream, method, path, "", "").await.0, 200);
            // A web page may not, whatever it has.
            let page = format!("{right}origin: http://127.0.0.1\r\n");
            assert_eq!(ask(admin, method, path, &page, "").await.0, 403);
        }
        let (status, answer) = ask(admin, "GET", "/upstreams/u", "", "").await;
        assert_eq!(status, 200);
        let by = answer["backends"][0]["by_hand"]["drain"]["by"].as_str().unwrap().to_owned();
        match (expected, more.contains(TOKEN)) {
            (200, true) => assert!(by.starts_with("token from 127.0.0.1:"), "{by}"),
            (200, false) => assert!(by.starts_with("127.0.0.1:"), "{by}"),
            _ => assert!(by.starts_with("uid "), "{by}"),
        }
        let (_, config) = ask(admin, "GET", "/config", &right, "").await;
        assert!(!config.to_string().contains(TOKEN), "the token is not shown");
        drop(proxy);
        eventually(|| !socket.exists()).await;
    }
}

#[tokio::test]
async fn a_new_token_holds_after_a_reload() {
    let a = TestBackend::ok("a");
    let text = |token: &str| {
        let tables = format!("{ADMIN}\ntoken = \"{token}\"");
        Keys { tables: &tables, ..Keys::default() }.text(&[&a])
    };
    let proxy = TestProxy::with_config(text(TOKEN)).await;
    let status = async |token: &str| {
        let line = format!("authorization: Bearer {token}\r\n");
        ask(proxy.admin_address(), "POST", "/stats/reset", &line, "").await.0
    };
    assert_eq!(status(TOKEN).await, 200);
    let applied = proxy.apply(text("another-token-of-ours")).await.unwrap();
    let settings: Vec<_> = applied.plan.settings.iter().map(ToString::to_string).collect();
    assert_eq!(settings, ["admin.token"]);
    assert_eq!((status(TOKEN).await, status("another-token-of-ours").await), (401, 200));
}

/// Reads a stream of events until it has so many lines of data.
async fn data(stream: &mut TcpStream, n: usize) -> (String, Vec<Value>) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let lines: Vec<_> = text.split("\n\n").filter_map(|block| block.split("data: ").nth(1)).collect();
        if lines.len() >= n && text.ends_with("\n\n") || n == 0 && text.contains(": listening") {
            let lines = lines.iter().map(|line| serde_json::from_str(line.trim()).unwrap()).collect();
            return (text, lines);
        }
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "ended after {text:?}");
        // Pieces of a chunked body: sizes stand on lines of their own, and no data line begins with one.
        text += &String::from_utf8_lossy(&buffer[..read]).replace("\r\n", "");
    }
}

async fn listen(admin: SocketAddr, query: &str, lines: &str) -> TcpStream {
    let mut stream = soon(TcpStream::connect(admin)).await.unwrap();
    let request = format!("GET /events{query} HTTP/1.0\r\nhost: localhost\r\n{lines}\r\n");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    stream
}

#[tokio::test]
async fn events_are_told_as_they_come_and_again_to_who_comes_back() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::with_keys(&[&a, &b], keys("")).await;
    let admin = proxy.admin_address();
    let mut all = listen(admin, "", "").await;
    let mut reloads = listen(admin, "?kind=reloaded,reload_failed", "").await;
    let (head, _) = data(&mut all, 0).await;
    assert!(head.contains("text/event-stream"), "{head}");
    data(&mut reloads, 0).await;
    pull(&proxy, &a, "drain", "").await;
    assert!(proxy.apply("nonsense").await.is_err());
    pull(&proxy, &a, "undrain", "").await;
    let (text, told) = data(&mut all, 3).await;
    let kinds: Vec<_> = told.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["by_hand", "reload_failed", "by_hand"]);
    assert_eq!((&told[0]["what"], &told[0]["backend"]), (&json!("drain"), &json!(a.address().to_string())));
    let (_, told) = data(&mut reloads, 1).await;
    assert_eq!(told[0]["kind"], "reload_failed");

    let id = text.split("id: ").nth(1).unwrap().split("event").next().unwrap().trim().to_owned();
    let mut back = listen(admin, "", &format!("last-event-id: {id}\r\n")).await;
    let (_, told) = data(&mut back, 2).await;
    assert_eq!((&told[0]["kind"], &told[1]["what"]), (&json!("reload_failed"), &json!("undrain")));
    let mut lost = listen(admin, "", "last-event-id: 17c-5\r\n").await;
    let (_, told) = data(&mut lost, 1).await;
    assert_eq!(told[0], json!({ "kind": "gap", "missed": null }), "of another process");
}

#[tokio::test]
async fn listeners_have_a_bound_and_give_their_place_back() {
    let a = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&a], keys("")).await;
    let admin = proxy.admin_address();
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let mut stream = listen(admin, "", "").await;
        data(&mut stream, 0).await;
        listeners.push(stream);
    }
    let (status, answer) = ask(admin, "GET", "/events", "", "").await;
    assert_eq!((status, &answer["error"]), (503, &json!("16 listen already")));
    assert_eq!(ask(admin, "GET", "/upstreams", "", "").await.0, 200, "others are served");
    listeners.pop();
    for _ in 0..1000 {
        let mut stream = listen(admin, "", "").await;
        let mut head = [0; 15];
        soon(stream.read_exact(&mut head)).await.unwrap();
        if head.ends_with(b"200 OK") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place was not given back");
}

#[tokio::test]
async fn a_disabled_backend_is_not_checked_and_its_first_check_after_that_decides() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let check = "health_check = { path = \"/health\", interval = \"100ms\" }";
    let proxy = TestProxy::with_keys(&[&a, &b], keys(check)).await;
    eventually(|| a.requests() > 2).await;
    pull(&proxy, &a, "disable", "").await;
    // One may be under way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = a.requests();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.requests(), before);
    let answer = pull(&proxy, &a, "enable", "").await;
    assert_eq!(answer["notes"], json!(["still gets no requests: not checked yet"]));
    eventually(|| proxy.snapshot().upstream("u").unwrap().roster().ready().len() == 2).await;
    assert!(a.requests() > before);
}
