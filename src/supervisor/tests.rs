use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::embed::{Isobar, Running};
use crate::upstream::Upstream;

fn text(upstreams: &str) -> String {
    with_listeners("[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n", upstreams)
}

fn with_listeners(listeners: &str, upstreams: &str) -> String {
    let routes = if upstreams.contains("[upstream.u]") { "[[route]]\nupstream = \"u\"\n" } else { "" };
    format!("workers = 1\nshutdown_grace = \"1s\"\n{listeners}\n{routes}\n{upstreams}")
}

const U: &str = "[upstream.u]\nbackends = [\"127.0.0.1:9001\", \"127.0.0.1:9002\"]\n";
const V: &str = "[upstream.v]\nbackends = [\"127.0.0.1:9003\"]\n";

fn start(text: &str) -> Running {
    Isobar::builder().config_text(text).admin(false).start().unwrap()
}

fn upstream(running: &Running, name: &str) -> Arc<Upstream> {
    Arc::clone(running.handle().snapshot().upstream(name).unwrap())
}

async fn apply(running: &Running, text: &str) -> Arc<Applied> {
    running.handle().apply_text(text).await.unwrap()
}

#[tokio::test]
async fn what_is_kept_is_the_same_and_what_is_replaced_stands_on_the_same_state() {
    let running = start(&text(&format!("{U}{V}")));
    let (u, v) = (upstream(&running, "u"), upstream(&running, "v"));
    u.state.cursors.first().advance();

    let changed =
        U.replace("\"127.0.0.1:9001\", ", "").replace("backends", "strategy = \"least_connections\"\nbackends");
    let applied = apply(&running, &text(&format!("{changed}{V}"))).await;
    assert_eq!((applied.generation, running.handle().snapshot().generation), (2, 2));
    let (u2, v2) = (upstream(&running, "u"), upstream(&running, "v"));
    assert!(Arc::ptr_eq(&v, &v2), "kept");
    assert!(!Arc::ptr_eq(&u, &u2) && Arc::ptr_eq(&u.state, &u2.state), "replaced on the same state");
    assert!(Arc::ptr_eq(&u.roster().backends()[1].state, &u2.roster().backends()[0].state), "same backend");
    assert_eq!(u2.state.cursors.first().position(), 1, "the round goes on");

    apply(&running, &text(V)).await;
    assert!(running.handle().snapshot().upstream("u").is_none());
    apply(&running, &text(&format!("{U}{V}"))).await;
    assert!(!Arc::ptr_eq(&u.state, &upstream(&running, "u").state), "what comes back is new");
    running.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_listener_keeps_its_sockets_under_other_settings_and_another_name() {
    let running = start(&text(U));
    let before = running.handle().listeners();
    apply(&running, &text(U).replace("name = \"web\"", "name = \"front\"\nmax_connections = 7")).await;
    let after = running.handle().listeners();
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    let config = after[0].config.load();
    assert_eq!((config.name.as_str(), config.max_connections), ("front", 7));
    running.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn listeners_come_and_go() {
    let free = free_address();
    let running = start(&text(U));
    let first = running.listener_addresses()[0];
    let other = format!("[[listener]]\nname = \"other\"\naddress = \"{free}\"\n");

    apply(&running, &with_listeners(&other, U)).await;
    assert_eq!(running.listener_addresses(), [free]);
    TcpStream::connect(free).unwrap();
    eventually(|| is_free(first)).await;
    running.stop(Duration::ZERO).await;
    eventually(|| is_free(free)).await;
}

#[tokio::test]
async fn an_address_that_is_taken_changes_nothing() {
    let running = start(&text(U));
    let before = running.handle().snapshot();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let more = format!(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"late\"\naddress = \"{address}\"\n"
    );

    let refused = running.handle().apply_text(with_listeners(&more, V)).await.unwrap_err();
    let said = refused.to_string();
    assert!(said.starts_with(&format!("could not listen on {address} (listener late): ")), "{said}");
    assert!(Arc::ptr_eq(&before, &running.handle().snapshot()));
    assert_eq!(running.listener_addresses().len(), 1);
    let status = running.handle().status();
    assert_eq!((status.generation, status.reloads_failed), (1, 1));
    assert_eq!(status.last_error.as_ref().map(|it| it.text.as_str()), Some(said.as_str()));

    apply(&running, &text(V)).await;
    assert_eq!(running.handle().status().last_error, None, "a good one clears it");
    running.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = free_address();
    let both = [free, taken.local_addr().unwrap()].map(|it| format!("[[listener]]\naddress = \"{it}\"\n")).concat();
    let failed = Isobar::builder().config_text(with_listeners(&both, U)).admin(false).start();
    assert!(matches!(failed, Err(Error::Bind { .. })));
    assert!(is_free(free));
}

#[tokio::test]
async fn a_file_is_followed_and_a_broken_one_is_not_served() {
    let file = Scratch::new("followed", &text(U));
    let running = Isobar::builder().config_file(&file.0).admin(false).start().unwrap();
    let handle = running.handle().clone();
    assert_eq!(handle.status().file.as_ref(), Some(&file.0));

    std::fs::write(&file.0, text(&format!("{U}{V}\n[[route]]\npath_prefix = \"/v\"\nupstream = \"v\"\n"))).unwrap();
    eventually(|| handle.status().generation == 2).await;
    assert!(handle.snapshot().upstream("v").is_some());

    std::fs::write(&file.0, "this is = not [a file").unwrap();
    eventually(|| handle.status().last_error.is_some()).await;
    assert_eq!(handle.snapshot().generation, 2);

    let refused = handle.reload().await.unwrap_err();
    assert!(matches!(*refused, Error::Config(_)));
    assert_eq!(handle.status().reloads_failed, 2);

    std::fs::write(&file.0, text(U)).unwrap();
    eventually(|| handle.status().generation == 3).await;
    assert_eq!(handle.status().last_error, None);

    assert_eq!(handle.reload().await.unwrap().generation, 4, "who asks for a reload gets one");
    running.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn reloads_that_wait_together_are_done_together() {
    let running = start(&text(U));
    let handle = running.handle().clone();
    let asked: Vec<_> = (0..40)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.reload().await.unwrap().generation })
        })
        .collect();
    let mut generations = Vec::new();
    for task in asked {
        generations.push(task.await.unwrap());
    }
    let last = handle.snapshot().generation;
    assert_eq!(generations.iter().max(), Some(&last));
    assert!(last < 40, "40 requests made {last} generations");
    running.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn after_the_stop_nothing_is_applied() {
    let running = start(&text(U));
    let handle = running.handle().clone();
    assert_eq!(running.stop(Duration::from_secs(1)).await, Ended::Stopped { cut: 0 });
    assert!(handle.status().stopping);
    assert!(matches!(*handle.reload().await.unwrap_err(), Error::Stopping));
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Asked by binding: a connection would disturb another test that has been given the port in the meantime.
fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[tokio::test]
async fn what_is_read_while_the_file_is_written_is_thrown_away() {
    let file = Scratch::new("written", &text(U));
    let running = Isobar::builder().config_file(&file.0).watch(false).admin(false).start().unwrap();
    let handle = running.handle();
    // The control task takes up one command after the other, but reloads that wait together are one.
    let noticed = async |seen| {
        let trigger = command_loop::Trigger::File(Some(seen));
        handle.commands.send(command_loop::ControlCommand::Reload { trigger, reply: None }).await.unwrap();
        eventually(|| handle.commands.capacity() == handle.commands.max_capacity()).await;
    };
    let counted = |text: &str| {
        std::fs::write(&file.0, text).unwrap();
        let status = handle.status();
        (status.reloads_applied, status.reloads_failed)
    };
    let seen = || file_watch::Stamp::of(&file.0).unwrap();

    let before = seen();
    for half in ["[[listener]]\naddr", &text("")] {
        counted(half);
        noticed(before).await;
        handle.apply_text(&text(U)).await.unwrap();
    }
    assert_eq!(counted(&text(V)), (2, 0), "neither refused nor applied");
    noticed(seen()).await;
    eventually(|| handle.status().reloads_applied == 3).await;
    assert!(handle.snapshot().upstream("v").is_some());
    running.stop(Duration::ZERO).await;
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    for _ in 0..250 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 5 seconds");
}

/// A configuration file, gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isobar-supervisor-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
