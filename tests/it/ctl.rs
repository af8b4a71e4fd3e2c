//! `isobar ctl` against a running `isobar`, both the real binary; and the transcripts of docs/operations.md, replayed.
//!
//! `UPDATE_EXPECT=1 cargo test --test it ctl` rewrites the transcripts; read the difference before committing it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regex::Regex;

use crate::harness::{Client, Scratch, TestBackend, eventually, free_address};

/// A running `isobar` in a folder of its own, killed with the test.
struct Process {
    child: Child,
    folder: Scratch,
    log: Arc<Mutex<String>>,
}

impl Process {
    async fn start(text: &str) -> Self {
        let folder = Scratch::new();
        folder.write("lb.toml", text);
        let mut child = isobar(&folder.path(""), &["run"]).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let process = Self { child, folder, log };
        eventually(|| process.log().contains("started")).await;
        process
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Where its listener is.
    fn address(&self) -> std::net::SocketAddr {
        let log = self.log();
        let rest = log.split("listening ").nth(1).expect("a line about the listener");
        rest.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    fn ctl(&self, arguments: &str) -> Output {
        let arguments: Vec<_> = ["ctl"].into_iter().chain(arguments.split_whitespace()).collect();
        isobar(&self.folder.path(""), &arguments).output().unwrap()
    }

    /// What it says where all is well.
    fn said(&self, arguments: &str) -> String {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn isobar(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isobar"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("RUST_LOG").env_remove("ISOBAR_ADMIN_TOKEN");
    command
}

fn config(admin: &str, backends: &[&TestBackend]) -> String {
    let backends: Vec<_> = backends.iter().map(|backend| format!("\"{}\"", backend.address())).collect();
    format!(
        "workers = 1\n[admin]\naddress = \"127.0.0.1:0\"\n{admin}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\nupstream = \"users\"\n[upstream.users]\nbackends = [{}]\n",
        backends.join(", ")
    )
}

const SOCKET: &str = "unix_socket = \"isobar.sock\"";

#[tokio::test]
async fn the_transcripts_are_true() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(&page).unwrap();
    let backends = ["a", "b", "c"].map(TestBackend::ok);
    let ports: Vec<_> = backends.iter().map(|it| it.address().port().to_string()).collect();
    let ports: Vec<_> = ["19001", "19002", "19003"].into_iter().zip(&ports).collect();
    let real = |text: &str| ports.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(shown, real));
    let shown = |text: &str| ports.iter().fold(text.to_owned(), |text, (shown, real)| text.replace(*real, shown));

    let file = block(&text, "toml");
    let file = file.replace("[admin]", "[admin]\naddress = \"127.0.0.1:0\"").replace("0.0.0.0:8080", "127.0.0.1:0");
    let process = Process::start(&real(&file)).await;
    let (mut replayed, mut commands, mut output_of) = (String::new(), 0, None);
    for line in text.lines() {
        match (&mut output_of, line) {
            (None, "```console") => output_of = Some(false),
            (Some(_), "```") => output_of = None,
            (Some(_), line) if line.starts_with("$ isobar ctl ") => {
                let output = process.ctl(&real(&line["$ isobar ctl ".len()..]));
                let said = [output.stdout, output.stderr].concat();
                replayed += &format!("{line}\n{}", shown(&String::from_utf8(said).unwrap()));
                commands += 1;
                continue;
            }
            // What it said when the page was written.
            (Some(_), _) => continue,
            (None, _) => {}
        }
        replayed += &format!("{line}\n");
    }
    assert!(commands >= 18, "{commands} commands: is the test blind?");
    let replayed = normal(&replayed);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&page, &replayed).unwrap();
    }
    let text = normal(&fs::read_to_string(&page).unwrap());
    for (is, said) in replayed.lines().zip(text.lines()) {
        assert_eq!(is, said, "docs/operations.md differs, see UPDATE_EXPECT");
    }
    assert_eq!(replayed.lines().count(), text.lines().count());

    let log = normal(&shown(&process.log()));
    for line in block(&text, "text").lines() {
        assert!(log.contains(line), "the audit log has no line {line}\n{log}");
    }
}

/// Times and users as the page has them.
fn normal(text: &str) -> String {
    let time = Regex::new(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z").unwrap();
    let text = time.replace_all(text, "2026-03-01T09:05:07.042Z");
    Regex::new(r"uid \d+").unwrap().replace_all(&text, "uid 1000").into_owned()
}

/// The first fenced block of that language.
fn block(text: &str, language: &str) -> String {
    let (_, rest) = text.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn drain_waits_until_nothing_is_in_flight() {
    let slow = TestBackend::slow("a", Duration::from_millis(1500));
    let process = Process::start(&config(SOCKET, &[&slow])).await;
    let mut client = Client::connect(process.address()).await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let address = slow.address();
    eventually(|| slow.requests() == 1).await;
    let late = process.ctl(&format!("drain users {address} --wait --timeout 300ms"));
    assert_eq!(late.status.code(), Some(4), "{late:?}");
    assert!(String::from_utf8_lossy(&late.stderr).contains("still 1 in flight"), "{late:?}");
    let said = process.said(&format!("drain users {address} --wait"));
    assert!(said.ends_with("nothing in flight\n"), "{said}");
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn it_is_told_where_and_with_which_token() {
    let a = TestBackend::ok("a");
    let token = "0123456789abcdef";
    let process = Process::start(&config(&format!("{SOCKET}\ntoken = \"{token}\""), &[&a])).await;
    // By the file in its folder: over the socket.
    assert!(process.said("drain users 1 --help").contains("Usage"));
    let address = a.address().to_string();
    process.said(&format!("undrain users {address}"));
    let socket = process.folder.path("isobar.sock");
    let elsewhere = std::env::temp_dir();
    let run = |arguments: &[&str], environment: Option<&str>| {
        let mut command = isobar(&elsewhere, arguments);
        if let Some(token) = environment {
            command.env("ISOBAR_ADMIN_TOKEN", token);
        }
        command.output().unwrap()
    };
    let at_socket = format!("unix:{}", socket.display());
    assert!(run(&["ctl", "--admin", &at_socket, "upstreams"], None).status.success());
    process.folder.write("other.toml", config(SOCKET, &[&a]));
    process.said("backends --config other.toml");
    let nobody = run(&["ctl", "--admin", "127.0.0.1:1", "upstreams"], None);
    assert_eq!(nobody.status.code(), Some(3));
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(said.starts_with("isobar: could not ask isobar at 127.0.0.1:1: "), "{said}");
    assert_eq!(run(&["ctl", "--admin", &at_socket, "weight", "users", &address, "many"], None).status.code(), Some(2));
    assert_eq!(run(&["ctl", "--admin", &at_socket, "backends", "user"], None).status.code(), Some(1));
    assert!(!process.log().contains(token), "the token is in no log");
}

#[tokio::test]
async fn without_a_file_that_says_where_it_asks_the_default_address() {
    let folder = Scratch::new();
    let run = |arguments: &[&str]| {
        let output = isobar(&folder.path(""), arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // Something may well listen there; it has no such upstream.
    let asked =
        |(code, said): &(Option<i32>, String)| matches!(code, Some(1 | 3)) && !said.contains("could not read it");
    let absent = run(&["ctl", "backends", "of-no-test"]);
    assert!(asked(&absent), "{absent:?}");
    if absent.0 == Some(3) {
        let said = "isobar: there is no lb.toml here, so the default address was asked; --admin or --config says where it is\n\
                    isobar: could not ask isobar at 127.0.0.1:9900: ";
        assert!(absent.1.starts_with(said), "{}", absent.1);
    }
    folder.write("lb.toml", "[admin\n");
    let broken = run(&["ctl", "backends", "of-no-test"]);
    assert!(asked(&broken), "{broken:?}");
    let said = "isobar: lb.toml does not say where isobar is asked; asking at 127.0.0.1:9900\n";
    assert!(broken.1.starts_with(said), "{}", broken.1);
    assert_eq!(broken.1.contains("lb.toml:1:7: "), broken.0 == Some(3), "{}", broken.1);
    // Mistakes elsewhere are none of its business.
    folder.write("lb.toml", "[admin]\naddress = \"127.0.0.1:1\"\n[[route]]\nnope = 1\n");
    let (code, said) = run(&["ctl", "backends"]);
    assert_eq!(code, Some(3));
    assert!(said.starts_with("isobar: could not ask isobar at 127.0.0.1:1: "), "{said}");
    folder.write("lb.toml", "[admin]\nenabled = false\n");
    let off = run(&["ctl", "backends"]);
    let said = "isobar: lb.toml has switched the admin address off and has no unix_socket\n";
    assert_eq!((off.0, off.1.as_str()), (Some(2), said));
}

#[tokio::test]
async fn only_the_socket_is_served_where_the_address_is_off() {
    let a = TestBackend::ok("a");
    let text = config(&format!("enabled = false\n{SOCKET}"), &[&a]);
    let process = Process::start(&text).await;
    eventually(|| process.log().contains("admin listening socket=isobar.sock")).await;
    assert!(process.said("upstreams").contains("users"));
    assert!(process.said("config").contains("\"enabled\": false"));
    let ready = isobar(&process.folder.path(""), &["healthcheck", "--config", "lb.toml"]).output().unwrap();
    assert_eq!(ready.status.code(), Some(0), "{ready:?}");
    process.said("reload");
    assert!(!process.log().contains("restart"), "{}", process.log());
    let pid = process.child.id();
    let listening = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
    let sockets: Vec<_> = sockets.iter().filter_map(|it| fs::read_link(it.path()).ok()).collect();
    let is_own = |inode: &str| sockets.iter().any(|it| it.to_str() == Some(&format!("socket:[{inode}]")));
    let own = listening.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = own.filter(|line| line[3] == "0A" && is_own(line[9])).count();
    assert_eq!(own, 1, "the listener of its one worker");
}

#[tokio::test]
async fn the_start_tells_where_the_admin_address_is() {
    let a = TestBackend::ok("a");
    let process = Process::start(&config(SOCKET, &[&a])).await;
    eventually(|| process.log().contains("admin listening address=127.0.0.1:")).await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("admin listening")).unwrap();
    assert!(line.ends_with("socket=isobar.sock"), "{line}");
    let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap();
    let ready = isobar(&std::env::temp_dir(), &["healthcheck", "--admin", address]).output().unwrap();
    assert_eq!(ready.status.code(), Some(0), "{ready:?}");
}

#[tokio::test]
async fn at_debug_a_request_has_its_line_and_libraries_have_none() {
    let a = TestBackend::ok("a");
    let process = Process::start(&config(SOCKET, &[&a])).await;
    let get = async || Client::connect(process.address()).await.get("/a?token=secret").await.status();
    assert_eq!(get().await, 200);
    process.said("log debug --for 1m");
    assert_eq!(get().await, 200);
    let line =
        format!("status=200 route=\"/*\" upstream=\"users\" backend={} attempts=1 reason=\"complete\"", a.address());
    eventually(|| process.log().contains(&line)).await;
    let log = process.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("DEBUG isobar::proxy::account: request ")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("client=127.0.0.1 method=GET host=\"test\" path=\"/a\" "), "{}", lines[0]);
    assert!(!log.contains("secret"), "{log}");
    let foreign: Vec<_> = log.lines().filter(|line| !line.contains(" isobar::")).collect();
    assert_eq!(foreign, [""; 0]);
}

#[tokio::test]
async fn the_address_takes_the_token() {
    let a = TestBackend::ok("a");
    // The port of the admin address is not told anywhere, so it is taken before.
    let port = free_address().port();
    let text = config("token = \"0123456789abcdef\"", &[&a]);
    let text = text.replacen("address = \"127.0.0.1:0\"", &format!("address = \"127.0.0.1:{port}\""), 1);
    let process = Process::start(&text).await;
    let elsewhere = std::env::temp_dir();
    let at = format!("127.0.0.1:{port}");
    let run = |token: Option<&str>, environment: Option<&str>| {
        let mut command = isobar(&elsewhere, &["ctl", "--admin", &at, "reset-stats"]);
        command.args(token.map(|token| ["--token", token]).into_iter().flatten());
        command.envs(environment.map(|token| ("ISOBAR_ADMIN_TOKEN", token)));
        command.output().unwrap().status.code()
    };
    assert_eq!([run(None, None), run(Some("wrong"), None), run(None, Some("wrong"))], [Some(1); 3]);
    assert_eq!([run(Some("0123456789abcdef"), None), run(None, Some("0123456789abcdef"))], [Some(0); 2]);
    process.said("reset-stats");
    assert!(process.log().contains("who=\"token from 127.0.0.1:"), "{}", process.log());
    assert!(process.log().contains("why=\"the token is wrong\""), "{}", process.log());
    // Who has no token cannot fill the log.
    for _ in 0..40 {
        let mut stranger = Client::connect(at.parse().unwrap()).await;
        stranger.send(format!("POST /reload HTTP/1.1\r\nhost: {at}\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(stranger.response().await.status(), 401);
    }
    process.said("reset-stats");
    eventually(|| process.log().matches("what=\"reset statistics\"").count() == 4).await;
    let refused = process.log().matches("outcome=\"refused\"").count();
    assert!((4..=20).contains(&refused), "{refused} lines: {}", process.log());
}

#[tokio::test]
async fn a_log_level_for_a_time_goes_back_by_itself_and_outlives_reloads() {
    let a = TestBackend::ok("a");
    let process = Process::start(&config(SOCKET, &[&a])).await;
    assert_eq!(process.said("log"), "info\n");
    assert!(process.said("log debug --for 2s").starts_with("debug until 20"));
    process.said("reload");
    assert!(process.log().contains("DEBUG isobar::supervisor::command_loop: reloading"), "{}", process.log());
    eventually(|| process.said("log") == "info\n").await;
    assert!(process.log().contains("who=\"its time is over\" what=\"log\" from=\"debug\" to=\"info\""));
    let bad = process.ctl("log debgu");
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("did you mean \"debug\"?"), "{bad:?}");
}

#[tokio::test]
async fn the_socket_of_a_process_that_was_killed_is_replaced_and_that_of_one_that_lives_is_not() {
    let a = TestBackend::ok("a");
    let mut process = Process::start(&config(SOCKET, &[&a])).await;
    let socket: PathBuf = process.folder.path("isobar.sock");
    let second = isobar(&process.folder.path(""), &["run"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("isobar.sock (the key admin.unix_socket): another process listens there"), "{said}");
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    assert!(socket.exists(), "killed, it could not remove it");
    process.log.lock().unwrap().clear();
    process.child = isobar(&process.folder.path(""), &["run"]).stderr(Stdio::null()).spawn().unwrap();
    eventually(|| process.ctl("upstreams").status.success()).await;
    let pid = process.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    process.child.wait().unwrap();
    assert!(!socket.exists(), "ended as asked, it does");
}
