//! With too much to do the proxy refuses early and visibly, recovers, and can be looked at meanwhile.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use isobar::Isobar;
use isobar::backend::Backend;
use isobar::overload::Cause;
use isobar::strategy::{Candidates, Cursor, Dice, Strategy};
use isobar::telemetry::events::EventKind;

use crate::harness::{Client, Keys, Scratch, TestBackend, eventually, free_address};

/// Blocks its worker, as nothing of isobar's own does, while it is told to.
#[derive(Debug)]
struct Blocking(Arc<AtomicBool>);

impl Strategy for Blocking {
    fn pick(&self, candidates: &Candidates<'_>, _: &mut Dice) -> Option<usize> {
        if self.0.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(120));
        }
        (!candidates.backends.is_empty()).then_some(0)
    }
}

#[tokio::test]
async fn a_worker_that_lags_refuses_until_it_has_caught_up() {
    let blocks = Arc::new(AtomicBool::new(true));
    let backend = TestBackend::ok("ok");
    let text = Keys {
        upstream: "strategy = \"blocking\"\nconnect_timeout = \"200ms\"",
        tables: "[overload]\nlag = \"40ms\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
        ..Keys::default()
    };
    let its = Arc::clone(&blocks);
    let factory =
        Arc::new(move |_: &[Backend], _: &Arc<Cursor>| Box::new(Blocking(Arc::clone(&its))) as Box<dyn Strategy>);
    let running = Isobar::builder().config_text(text.text(&[&backend])).strategy("blocking", factory).start().unwrap();
    let process = Arc::clone(running.handle().process());
    let mut events = process.events.listen();
    let address = running.listener_addresses()[0];
    let admin = running.admin_address().unwrap();
    // Always a few at work, so that the timers are always late.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            loop {
                let response = client.get("/").await;
                if response.status() == 503 {
                    return response;
                }
            }
        });
    }
    let refusal = clients.join_next().await.unwrap().unwrap();
    assert_eq!((refusal.header("retry-after"), refusal.header("connection")), (Some("1"), None));
    assert!(refusal.text().contains("there is too much to do at the moment"), "{}", refusal.text());
    blocks.store(false, SeqCst);
    // Who is refused costs nothing: it has caught up soon, and says so.
    eventually(|| process.refusing(Cause::Lag) == 0).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await.status(), 200);
    assert!(admin_says(admin, "/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(process.refused.sum(|it| it.of(Cause::Lag)) >= 1);
    let told = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match event.kind {
        EventKind::Overload { cause, worker, refuses, .. } => Some((cause, worker, refuses)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [("lag", Some(0), true), ("lag", Some(0), false)]);
}

#[tokio::test]
async fn with_few_descriptors_left_requests_are_refused_and_the_admin_address_still_answers() {
    let backend = TestBackend::ok("ok");
    let scratch = Scratch::new();
    let (address, admin) = (free_address().to_string(), free_address().to_string());
    let text = Keys::default().text(&[&backend]).replace("127.0.0.1:0", &address);
    let log = scratch.path("access.log");
    let tables = format!(
        "[admin]\naddress = \"{admin}\"\n[overload]\ndescriptors_percent = 95\n[access_log]\nenabled = true\noutput = {log:?}\n"
    );
    let text = format!("{text}\n{tables}");
    let file = scratch.write("lb.toml", &text);
    let child = Command::new("sh")
        .args(["-c", "ulimit -n 150; exec \"$0\" run --config \"$1\"", env!("CARGO_BIN_EXE_isobar")])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = Killed(child);
    eventually(|| [&address, &admin].iter().all(|it| std::net::TcpStream::connect(it.as_str()).is_ok())).await;
    let (address, admin) = (address.parse().unwrap(), admin.parse().unwrap());
    let mut early = Client::connect(address).await;
    assert_eq!(early.get("/").await.status(), 200);
    // Far from all that are dealt out, so that they stay below the percentage that they are dealt out by. A file with a lower one refuses.
    let mut held = Vec::new();
    for _ in 0..36 {
        held.push(Client::connect(address).await);
    }
    scratch.write("lb.toml", text.replace("descriptors_percent = 95", "descriptors_percent = 30"));
    let metrics = async || admin_says(admin, "/metrics").await;
    let refuses = "isobar_overload_refusing_workers{cause=\"descriptors\"} 1.0";
    let mut seen = metrics().await;
    for _ in 0..200 {
        if seen.contains(refuses) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        seen = metrics().await;
    }
    assert!(seen.contains(refuses), "{seen}");
    // Who has a connection is told, and gives it up.
    let refusal = early.get("/").await;
    assert_eq!((refusal.status(), refusal.header("connection")), (503, Some("close")));
    // Who comes is told without a request.
    drop(held.drain(..3));
    let late = Client::connect(address).await.read_to_end().await;
    assert!(String::from_utf8_lossy(&late).starts_with("HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&late));
    let line = r#""reason":"overloaded","ended_by":"proxy","detail":"there is too much to do at the moment""#;
    eventually(|| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(line))).await;
    drop(held);
    let mut recovered = false;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        recovered = metrics().await.contains("isobar_overload_refusing_workers{cause=\"descriptors\"} 0.0");
        if recovered {
            break;
        }
    }
    assert!(recovered, "it does not end");
    assert_eq!(Client::connect(address).await.get("/").await.status(), 200);
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The admin address answers a request for it by its own name only.
async fn admin_says(admin: SocketAddr, target: &str) -> String {
    let mut client = Client::connect(admin).await;
    client.send(format!("GET {target} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")).await;
    String::from_utf8_lossy(&client.read_to_end().await).into_owned()
}
