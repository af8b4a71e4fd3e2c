//! A changed file is applied within a second, however it was changed, and a broken one changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Client, Scratch, TestProxy, eventually};

fn answering(body: &str) -> String {
    format!(
        r#"
        workers = 1
        [admin]
        address = "127.0.0.1:0"
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        respond = {{ body = "{body}" }}
        "#
    )
}

/// Makes edits in one way until one is applied within a second. One that is not may be the fault of a busy machine, three are
/// not.
async fn applied_within_a_second(client: &mut Client, way: &str, mut edit: impl FnMut(&str)) {
    let mut took = Vec::new();
    for n in 0..3 {
        let body = format!("{way} {n}");
        let start = Instant::now();
        edit(&answering(&body));
        while client.get("/").await.text() != body {
            assert!(start.elapsed() < Duration::from_secs(20), "{way}: not applied at all");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        took.push(start.elapsed());
        if start.elapsed() < Duration::from_secs(1) {
            return;
        }
    }
    panic!("{way}: applied after {took:?}");
}

#[tokio::test]
async fn each_way_of_editing_is_applied_within_a_second() {
    let dir = Scratch::new();
    let path = dir.write("lb.toml", answering("first"));
    let proxy = TestProxy::with_file(&path);
    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.text(), "first");

    applied_within_a_second(&mut client, "in place", |text| fs::write(&path, text).unwrap()).await;
    applied_within_a_second(&mut client, "renamed over", |text| {
        fs::rename(dir.write("lb.toml~", text), &path).unwrap();
    })
    .await;
    applied_within_a_second(&mut client, "removed and written", |text| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
    })
    .await;
    assert_eq!(proxy.handle().status().last_error, None);
    assert_eq!(proxy.counted(|listener| &listener.accepted), 1);
}

/// lb.toml -> ..data/lb.toml, ..data -> a directory for each version, swapped as a whole: how Kubernetes mounts a ConfigMap.
#[tokio::test]
async fn a_swapped_link_further_up_is_applied_within_a_second() {
    let dir = Scratch::new();
    let mut version = 0;
    let mut swap = |text: &str| {
        version += 1;
        let name = format!("..version-{version}");
        fs::create_dir(dir.path(&name)).unwrap();
        dir.write(Path::new(&name).join("lb.toml"), text);
        symlink(&name, dir.path("..data_tmp")).unwrap();
        fs::rename(dir.path("..data_tmp"), dir.path("..data")).unwrap();
        if version > 1 {
            fs::remove_dir_all(dir.path(format!("..version-{}", version - 1))).unwrap();
        }
    };
    swap(&answering("first"));
    symlink("..data/lb.toml", dir.path("lb.toml")).unwrap();
    let proxy = TestProxy::with_file(&dir.path("lb.toml"));
    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.text(), "first");
    applied_within_a_second(&mut client, "link", swap).await;
}

#[tokio::test]
async fn a_half_written_or_broken_file_changes_nothing() {
    let dir = Scratch::new();
    let path = dir.write("lb.toml", answering("first"));
    let proxy = TestProxy::with_file(&path);
    let status = || proxy.handle().status();
    let mut client = proxy.client().await;

    // A slow writer: half of the file stands there long enough to be read.
    let text = answering("second");
    dir.write("lb.toml", &text[..text.len() / 2]);
    eventually(|| status().last_error.is_some()).await;
    assert_eq!((client.get("/").await.text(), status().generation), ("first", 1));
    dir.write("lb.toml", &text);
    eventually(|| status().generation == 2).await;
    assert_eq!((client.get("/").await.text(), status().last_error.clone()), ("second", None));

    dir.write("lb.toml", answering("third").replace("respond", "responds"));
    eventually(|| status().last_error.is_some()).await;
    let said = status().last_error.clone().unwrap().text;
    assert!(said.contains("responds"), "{said}");
    assert_eq!((client.get("/").await.text(), status().generation, status().reloads_failed), ("second", 2, 2));

    // Gone altogether: what runs goes on.
    fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(client.get("/").await.text(), "second");
    dir.write("lb.toml", answering("fourth"));
    eventually(|| status().generation == 3).await;
    assert_eq!(client.get("/").await.text(), "fourth");
    assert_eq!(proxy.counted(|listener| &listener.accepted), 1, "all on one connection");
}

#[tokio::test]
async fn who_asks_for_a_reload_gets_one_and_is_told() {
    let dir = Scratch::new();
    dir.write("lb.toml", answering("first"));
    let proxy = TestProxy::with_file(&dir.path("lb.toml"));
    const RELOAD: &str = "POST /reload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    let mut client = proxy.client().await;
    for body in ["second", "third"] {
        dir.write("lb.toml", answering(body));
        let mut admin = Client::connect(proxy.admin_address()).await;
        admin.send(RELOAD).await;
        assert_eq!(admin.response().await.status(), 200);
        assert_eq!(client.get("/").await.text(), body, "applied by the time of the answer");
    }
    dir.write("lb.toml", "this is = not [a file");
    let mut admin = Client::connect(proxy.admin_address()).await;
    admin.send(RELOAD).await;
    let refused = admin.response().await;
    assert!(refused.status() == 422 && refused.text().contains("lb.toml:1"), "{}", refused.text());
    assert_eq!(client.get("/").await.text(), "third");
}

/// What a process does to the file, again and again, until the test is over.
struct Busy(std::sync::Arc<std::sync::atomic::AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Busy {
    fn doing(mut what: impl FnMut() + Send + 'static) -> Self {
        let over = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let until = std::sync::Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                what();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self(over, Some(thread))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

/// A bug: what was read was thrown away when another file had its name by then.
#[tokio::test]
async fn a_file_that_is_replaced_faster_than_it_is_read_is_applied() {
    let dir = Scratch::new();
    let path = dir.write("lb.toml", answering("first"));
    let proxy = TestProxy::with_file(&path);
    let mut client = proxy.client().await;
    let (to, beside) = (path.clone(), dir.path("lb.toml~"));
    let mut text = answering("second");
    let busy = Busy::doing(move || {
        text += "#";
        fs::write(&beside, &text).unwrap();
        fs::rename(&beside, &to).unwrap();
    });
    let start = Instant::now();
    while client.get("/").await.text() != "second" {
        assert!(start.elapsed() < Duration::from_secs(20), "not applied at all");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(busy);
    assert_eq!(proxy.handle().status().last_error, None);
}

#[tokio::test]
async fn half_of_a_file_that_never_rests_is_never_applied() {
    let dir = Scratch::new();
    let path = dir.write("lb.toml", answering("first"));
    let proxy = TestProxy::with_file(&path);
    let mut client = proxy.client().await;
    // Each beginning of it that ends behind a table is a configuration.
    let text = answering("half") + "[[route]]\npath = \"/other\"\nrespond = { body = \"other\" }\n";
    let half = text.len() - text.lines().rev().take(3).map(|line| line.len() + 1).sum::<usize>();
    let to = path.clone();
    let busy = Busy::doing(move || {
        use std::io::Write;
        let mut file = fs::File::create(&to).unwrap();
        file.write_all(&text.as_bytes()[..half]).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        file.write_all(&text.as_bytes()[half..]).unwrap();
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.get("/other").await.text(), "first", "no half of it");
    drop(busy);
    let start = Instant::now();
    while client.get("/other").await.text() != "other" {
        assert!(start.elapsed() < Duration::from_secs(20), "not applied when it rests");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.handle().status().reloads_failed, 0);
}
