//! Certificates that change, and those that cannot be used.

use std::path::Path;
use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::client::Resumption;

use crate::harness::{Keys, Scratch, TestBackend, eventually};

use super::{Authority, BOTH, Pair, connect, listed, proxy, text};

#[tokio::test]
async fn a_reload_with_bad_certificates_changes_nothing() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (good, other) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let proxy = proxy(&[&backend], &[good.write(&scratch, "a")], "").await;
    let mixed = Pair { certificate: good.certificate.clone(), key: other.key.clone() };
    for (listed, expected) in [
        (mixed.write(&scratch, "mixed"), "listener[0].tls.certificates[0].key: the key is not that of the certificate"),
        (listed(Path::new("/nowhere.pem"), &scratch.path("a.key")), "certificate: could not read /nowhere.pem"),
        (listed(&scratch.path("a.key"), &scratch.path("a.key")), "certificate: there is no certificate in"),
        (listed(&scratch.path("a.pem"), &scratch.path("a.pem")), "key: there is no private key in"),
    ] {
        let error = proxy.apply(text(&[&backend], &[listed], "")).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let config = Arc::new(authority.client(BOTH));
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == good.der());
    // And TLS may come and go: connections that are open keep what they have.
    let mut secure = connect(proxy.address(), &config, "localhost").await.unwrap();
    let address = proxy.address();
    proxy.apply(Keys::default().text(&[&backend])).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(secure.client.get("/").await.status(), 200);
    proxy.apply(text(&[&backend], &[other.write(&scratch, "b")], "")).await.unwrap();
    assert_eq!(proxy.address(), address);
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == other.der());
}

#[tokio::test]
async fn new_certificates_are_taken_under_load() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (old, new) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    for (name, pair) in [("old", &old), ("new", &new)] {
        std::fs::create_dir(scratch.path(name)).unwrap();
        pair.write(&scratch, &format!("{name}/a"));
    }
    // As Kubernetes does it: the folder is a link, which is swapped.
    std::os::unix::fs::symlink(scratch.path("old"), scratch.path("live")).unwrap();
    let listed = listed(&scratch.path("live/a.pem"), &scratch.path("live/a.key"));
    let proxy = proxy(&[&backend], &[listed], "").await;
    let (address, mut config) = (proxy.address(), authority.client(BOTH));
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let mut kept = connect(address, &config, "localhost").await.unwrap();
    assert!(kept.shown == old.der());

    std::os::unix::fs::symlink(scratch.path("new"), scratch.path("next")).unwrap();
    std::fs::rename(scratch.path("next"), scratch.path("live")).unwrap();
    let mut requests = 0;
    loop {
        let mut secure = connect(address, &config, "localhost").await.unwrap();
        assert_eq!(secure.client.get("/").await.status(), 200);
        assert_eq!(kept.client.get("/").await.status(), 200);
        requests += 1;
        if secure.shown == new.der() {
            break;
        }
        assert!(secure.shown == old.der() && requests < 10_000);
    }
    assert_eq!(proxy.handle().status().generation, 1, "without a reload");
    let failed = |index: usize| proxy.counted(|it| &it.handshake_failures[index]);
    assert_eq!((0..8).map(failed).sum::<u64>(), 0);
}

#[tokio::test]
async fn bad_new_certificates_keep_those_before() {
    let (authority, scratch, backend) = (Authority::new(), Scratch::new(), TestBackend::ok("a"));
    let (old, new) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let proxy = proxy(&[&backend], &[old.write(&scratch, "a")], "").await;
    let mut config = authority.client(BOTH);
    // Whoever resumes a session is shown no certificate.
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let refused = || proxy.handle().listeners()[0].certificates_refused.load(std::sync::atomic::Ordering::Relaxed);
    scratch.write("a.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    eventually(|| refused() == 1).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == old.der());
    std::fs::remove_file(scratch.path("a.pem")).unwrap();
    eventually(|| refused() == 2).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == old.der());
    new.write(&scratch, "a");
    let expiry = || proxy.handle().listeners()[0].tls.load_full().unwrap();
    let before = expiry();
    eventually(|| !Arc::ptr_eq(&before, &expiry())).await;
    assert!(connect(proxy.address(), &config, "localhost").await.unwrap().shown == new.der());
}

#[test]
fn a_check_reads_the_certificates() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let mut expired = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = CertificateParams::new(vec![]).unwrap();
    early.not_before = rcgen::date_time_ymd(3000, 1, 1);
    let (good, other) = (authority.pair(&["localhost"], false), authority.pair(&["localhost"], false));
    let chain = Pair { certificate: format!("{}{}", good.certificate, other.certificate), key: good.key.clone() };
    let check = |certificates: String| {
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.tls]";
        let text = format!("{listener}\ncertificates = [{certificates}]\n[[route]]\nrespond = {{ body = \"a\" }}\n");
        let file = scratch.write("lb.toml", text);
        let mut isobar = std::process::Command::new(env!("CARGO_BIN_EXE_isobar"));
        let output = isobar.arg("check").arg("--config").arg(file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(good.write(&scratch, "good")), (true, String::new()));
    for (listed, well, expected) in [
        (
            authority.signed(expired, false).write(&scratch, "expired"),
            true,
            &["certificate: the certificate expired "][..],
        ),
        (
            authority.signed(early, false).write(&scratch, "early"),
            true,
            &["the certificate is not valid yet", "is for no name: clients refuse it"],
        ),
        (chain.write(&scratch, "chain"), true, &["was not issued by the one behind it"]),
        (
            Pair { key: other.key, ..good }.write(&scratch, "mixed"),
            false,
            &["key: the key is not that of the certificate"],
        ),
    ] {
        let (success, said) = check(listed);
        assert_eq!(success, well, "{said}");
        for expected in expected {
            assert!(said.contains(expected) && said.contains("lb.toml:4:"), "{said}");
        }
    }
}
