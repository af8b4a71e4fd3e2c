//! What a configuration holds that may be a secret is told nowhere: not by the admin address, in no log, by no check of the file. And
//! files with secrets that everybody can read are warned of.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use isobar::config::{Kind, keys};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use toml::Value;

use crate::harness::{Client, Scratch, TestBackend, TestProxy, backends, eventually, soon};

/// A configuration that holds `MARK` wherever a secret can be, and is good.
fn marked(scratch: &Scratch, backend: &TestBackend) -> String {
    let socket = scratch.path("s");
    format!(
        r#"
        workers = 1
        [admin]
        address = "127.0.0.1:0"
        token = "MARK-of-the-token"
        unix_socket = {socket:?}
        [registry]
        address = "127.0.0.1:0"
        token = [{{ name = "all", token = "MARK-of-the-registry" }}]
        [log]
        level = "debug"
        [[listener]]
        address = "127.0.0.1:0"
        middleware = ["rules"]
        [[route]]
        name = "all"
        path_prefix = "/a"
        headers = {{ "x-api-key" = "MARK1", "x-like" = {{ regex = "MARK2.*" }} }}
        query = {{ "key" = "MARK3", "like" = {{ regex = "MARK4.*" }} }}
        upstream = "u"
        request_headers = {{ set = {{ "authorization" = "Basic MARK5" }}, add = {{ "x-plain" = "MARK6" }} }}
        response_headers = {{ set = {{ "x-set" = "MARK7" }}, add = {{ "set-cookie" = "id=MARK8" }} }}
        [[route]]
        name = "gone"
        path_prefix = "/gone"
        headers = {{ "x-api-key" = "MARK9" }}
        upstream = "nobody"
        request_headers = {{ set = {{ "authorization" = "Basic MARK10" }} }}
        [[route]]
        name = "found"
        path = "/found"
        upstream = "found"
        [[route]]
        name = "elsewhere"
        path = "/elsewhere"
        redirect = {{ to = "https://example.com/login?token=MARK11&MARK12#MARK13" }}
        [[route]]
        name = "here"
        path = "/here"
        respond = {{ body = "MARK14" }}
        [upstream.u]
        backends = {0}
        [upstream.u.health_check]
        interval = "20ms"
        path = "/health?key=MARK15&MARK16"
        headers = {{ "x-check" = "MARK17" }}
        body = "MARK18"
        [upstream.nobody]
        backends = ["127.0.0.1:1"]
        protocol = "http2"
        health_check = {{ type = "grpc", interval = "20ms", headers = {{ "x-check" = "MARK19" }} }}
        [upstream.found]
        [[upstream.found.discovery]]
        consul = {{ address = "http://127.0.0.1:1", service = "users", token = "MARK24" }}
        [[upstream.found.discovery]]
        http = {{ url = "http://127.0.0.1:1/users", token = "MARK25" }}
        [[upstream.found.discovery]]
        push = {{ token = "MARK26-of-the-push" }}
        [[upstream.found.discovery]]
        etcd = {{ endpoints = ["http://127.0.0.1:1"], prefix = "/users/", username = "isobar", password = "MARK27" }}
        [[upstream.found.discovery]]
        zookeeper = {{ servers = ["127.0.0.1:1"], path = "/users", username = "isobar", password = "MARK28" }}
        [[upstream.found.discovery]]
        eureka = {{ application = "users", servers = ["http://127.0.0.1:1/eureka"], username = "me", password = "MARK29" }}
        [[upstream.found.discovery]]
        nacos = {{ service = "users", servers = ["http://127.0.0.1:1"], username = "me", password = "MARK30" }}
        [middleware.rules.headers]
        request = {{ set = {{ "x-one" = "MARK20" }}, add = {{ "x-two" = "MARK21" }} }}
        response = {{ set = {{ "x-three" = "MARK22" }}, add = {{ "x-four" = "MARK23" }} }}
        "#,
        backends(&[backend])
    )
}

/// Keys whose values cannot hold a secret where they are good: it would have to be in a query or a login.
fn is_without(key: &str, kind: Kind) -> bool {
    match kind {
        Kind::Plain | Kind::Table | Kind::File => true,
        Kind::Location => !["route[].redirect.to", "upstream.*.health_check.path"].contains(&key),
        Kind::Sensitive | Kind::Secret => false,
    }
}

/// The keys of a value that hold the mark.
fn marks(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if text.contains("MARK") => drop(found.insert(path.to_owned())),
        Value::Array(members) => members.iter().for_each(|member| marks(&format!("{path}[]"), member, found)),
        Value::Table(table) => {
            for (name, value) in table {
                let named = keys::join(path, name);
                let path = if keys::kind(&named).is_some() { named } else { keys::join(path, "*") };
                marks(&path, value, found);
            }
        }
        _ => {}
    }
}

/// A running `isobar`, killed with the test. It logs to a file.
struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    fn start(scratch: &Scratch, file: &Path) -> Self {
        let log = scratch.path("log");
        let stderr = fs::File::create(&log).unwrap();
        let child = isobar("run", file).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn isobar(command: &str, file: &Path) -> Command {
    let mut isobar = Command::new(env!("CARGO_BIN_EXE_isobar"));
    isobar.args([command, "--config"]).arg(file).env_remove("RUST_LOG").stdin(Stdio::null());
    isobar
}

/// What the admin socket answers, head and all.
async fn ask(socket: &Path, request: &str) -> String {
    let mut stream = soon(UnixStream::connect(socket)).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_secret_of_the_file_is_told_nowhere() {
    let (scratch, backend) = (Scratch::new(), TestBackend::ok("well"));
    let text = marked(&scratch, &backend);
    let mut marked = BTreeSet::new();
    marks("", &Value::Table(text.parse().unwrap()), &mut marked);
    let wanted = keys::all().iter().filter(|(key, kind)| !is_without(key, **kind)).map(|(key, _)| key.clone());
    assert_eq!(marked, wanted.collect(), "a key that may hold a secret needs a mark in this test");

    let file = scratch.path("lb.toml");
    let write = |text: String| {
        fs::write(&file, text).unwrap();
        file.clone()
    };
    let process = Process::start(&scratch, &write(text.replace("MARK", "s3cr3t-a")));
    eventually(|| process.log().contains("started")).await;
    let log = process.log();
    let address = log.split("listening ").nth(1).unwrap().split("address=").nth(1).unwrap();
    let address = address.split_whitespace().next().unwrap().parse().unwrap();
    // The routes are there, and say what they are to say to those whom it concerns.
    for (head, status, said) in [
        ("GET /a?key=s3cr3t-a3&like=s3cr3t-a4 HTTP/1.1\r\nx-api-key: s3cr3t-a1\r\nx-like: s3cr3t-a2", 200, "s3cr3t-a8"),
        ("GET /gone HTTP/1.1\r\nx-api-key: s3cr3t-a9", 502, ""),
        ("GET /found HTTP/1.1", 503, ""),
        ("GET /elsewhere HTTP/1.1", 308, "s3cr3t-a13"),
        ("GET /here HTTP/1.1", 200, ""),
    ] {
        let mut client = Client::connect(address).await;
        client.send(format!("{head}\r\nhost: test\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!(response.status(), status, "{head}");
        let fields = ["set-cookie", "location"].map(|name| response.header(name).unwrap_or_default().to_owned());
        assert!(fields.concat().contains(said), "{fields:?}");
    }
    eventually(|| process.log().matches("health check failed").count() > 4).await;
    // The registries are asked, and do not answer.
    eventually(|| process.log().contains("consul") && process.log().contains("http")).await;

    let socket = scratch.path("s");
    let mut told = vec![ask(&socket, "GET /config").await, ask(&socket, "GET /upstreams").await];
    assert!(told[0].contains("(hidden, 9 characters)") && told[0].contains("?token=(hidden)"), "{}", told[0]);
    // Other values of every one of them, and of numbers, which are told.
    write(text.replace("MARK", "s3cr3t-b-").replace("interval = \"20ms\"", "interval = \"30ms\""));
    told.push(ask(&socket, "POST /reload").await);
    assert!(
        told[2].contains("health_check.interval 20ms -> 30ms") && told[2].contains("request_headers"),
        "{}",
        told[2]
    );
    told.push(ask(&socket, "GET /config").await);
    // Each of them wrong. What is right but for its sense is refused where it stands.
    let wrong = text
        .replace("MARK-of-the-token", "MARK of the token")
        .replace("MARK", "s3cr3t-c")
        .replace("/health?", "health ?")
        .replace("\"s3cr3t-c1\"", "[\"s3cr3t-c1\"]")
        .replace(".*\"", "(\"")
        .replace("Basic ", "Basic\\n")
        .replace("\"s3cr3t-c14\"", "[\"s3cr3t-c14\"]")
        .replace("https://example.com/", "https://me:s3cr3t-c@example.com/ ");
    write(wrong);
    told.push(ask(&socket, "POST /reload").await);
    told.push(ask(&socket, "GET /config").await);
    assert!(told[4].contains("422") && told[5].contains("last_error"), "{}", told[4]);
    let checked = isobar("check", &file).output().unwrap();
    told.push(String::from_utf8_lossy(&checked.stderr).into_owned());
    assert!(told[6].lines().count() > 8, "{}", told[6]);
    let mut events = Command::new(env!("CARGO_BIN_EXE_isobar"));
    events.arg("ctl").arg("--admin").arg(format!("unix:{}", socket.display())).args(["events", "--recent"]);
    let events = events.args(["--kind", "reload_failed", "--count", "1"]).output().unwrap();
    told.push(String::from_utf8_lossy(&events.stdout).into_owned());
    assert!(told[7].contains("reload_failed"), "{}", told[7]);
    eventually(|| process.log().contains("configuration refused")).await;
    told.push(process.log());
    for told in told {
        assert!(!told.contains("s3cr3t"), "{told}");
    }
}

/// A certificate and its key, the key with that mode.
fn pair(scratch: &Scratch, mode: u32) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = scratch.write("a.pem", made.cert.pem());
    let key = scratch.write("a.key", made.signing_key.serialize_pem());
    fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    (certificate.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned())
}

fn with_keys(certificate: &str, key: &str) -> String {
    let pair = format!("{{ certificate = {certificate:?}, key = {key:?} }}");
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificates = [{pair}] }}\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nbackends = [\"127.0.0.1:1\"]\ntls = {{ ca = {certificate:?}, client_certificate = {pair} }}\n"
    )
}

#[tokio::test]
async fn a_private_key_that_everybody_can_read_is_warned_of() {
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true)] {
        let scratch = Scratch::new();
        let (certificate, key) = pair(&scratch, mode);
        let text = with_keys(&certificate, &key);
        let check = isobar("check", &scratch.write("lb.toml", &text)).output().unwrap();
        assert!(check.status.success(), "a warning refuses nothing");
        let proxy = TestProxy::with_config(text.clone()).await;
        let started = proxy.handle().status().warnings.join("\n");
        let reloaded = proxy.handle().reload().await.unwrap();
        let reloaded: Vec<_> = reloaded.warnings.iter().map(ToString::to_string).collect();
        for said in [String::from_utf8(check.stderr).unwrap(), started, reloaded.join("\n")] {
            if !warned {
                assert_eq!(said, "", "{mode:o}");
                continue;
            }
            let what = format!(
                "the private key is open to everybody: {key} has mode 0644; expected chmod o-rwx {key}, so that it is not"
            );
            let of = |name: &str| said.lines().any(|line| line.contains(&format!("warning: {name}: {what}")));
            assert!(of("listener[0].tls.certificates[0].key") && of("upstream.u.tls.client_certificate.key"), "{said}");
            assert_eq!(said.lines().count(), 2, "{said}");
        }
    }
}

#[tokio::test]
async fn what_the_environment_says_of_a_file_is_not_told_when_it_cannot_be_read() {
    let scratch = Scratch::new();
    let text = with_keys("${KEYS}/missing.pem", "${KEYS}/missing.key");
    let mut check = isobar("check", &scratch.write("lb.toml", text));
    let check = check.env("KEYS", scratch.path("s3cr3t")).output().unwrap();
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(!check.status.success() && said.contains("could not read \"${KEYS}/missing.key\": "), "{said}");
    assert!(!said.contains("s3cr3t"), "{said}");
}
