//! A middleware of one's own: `ask_first` asks another task, over a channel, whether a key may pass, and counts what each key has
//! downloaded.
//!
//! It does all that a middleware can: it waits before a request continues, answers those that may not pass, changes the head, wraps the
//! response's body as it streams, and remembers over reloads what it has seen.
//!
//! `cargo run --example own_middleware` sends a few requests through a proxy whose configuration names it. `-- lb.toml` serves that file
//! instead, until it is stopped.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use isobar::Isobar;
use isobar::cli::demo::user_service::{UserService, UserServiceOptions};
use isobar::middleware::{Answer, Middleware, MiddlewareFactory, RequestView, ResponseView, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// What `lb.toml` calls it: `[middleware.NAME.ask_first]`.
const KIND: &str = "ask_first";

const KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A key, and the channel for the answer: the user that it belongs to, if there is one.
type Question = (HeaderValue, oneshot::Sender<Option<HeaderValue>>);

/// What is remembered over reloads: bytes that each user has downloaded. Workers share it; a lock this short is no wait.
#[derive(Debug, Default)]
struct Downloads(Mutex<HashMap<String, u64>>);

impl Downloads {
    fn add(&self, user: &str, bytes: usize) {
        let mut downloads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *downloads.entry(user.to_owned()).or_default() += bytes as u64;
    }
}

/// Lets requests pass that have a known key.
#[derive(Debug)]
struct AskFirst {
    questions: mpsc::Sender<Question>,
    /// The header that tells a backend the user: the key `header` of its table.
    header: HeaderName,
    downloads: Arc<Downloads>,
}

impl Middleware for AskFirst {
    fn on_request<'a>(&'a self, request: RequestView<'a>) -> Step<'a> {
        let mut request = request;
        let Some(key) = request.head.get(&KEY) else {
            return Step::Answer(Answer::refuse(StatusCode::UNAUTHORIZED, "this takes a key"));
        };
        // Dropped when the client goes, or when the middleware's `timeout` is over.
        Step::wait(async move {
            let (answer, user) = oneshot::channel();
            let asked = self.questions.send((key, answer)).await;
            match user.await.ok().flatten().filter(|_| asked.is_ok()) {
                None => ControlFlow::Break(Answer::refuse(StatusCode::FORBIDDEN, "this key is not known")),
                Some(user) => {
                    request.own(KEY, None);
                    request.own(self.header.clone(), Some(user.clone()));
                    request.keep(user);
                    ControlFlow::Continue(())
                }
            }
        })
    }

    fn on_response(&self, response: &mut ResponseView<'_>) {
        let Some(user) = response.take::<HeaderValue>() else { return };
        let user = String::from_utf8_lossy(user.as_bytes()).into_owned();
        let downloads = Arc::clone(&self.downloads);
        response.wrap_body(|body| {
            let counted = body.map_frame(move |frame| {
                downloads.add(&user, frame.data_ref().map_or(0, |data| data.len()));
                frame
            });
            Box::pin(counted)
        });
    }
}

/// Makes it from its table.
fn factory(questions: mpsc::Sender<Question>) -> MiddlewareFactory {
    Arc::new(move |setup| {
        let header = setup.table.get("header").map_or(Some("x-user"), |value| value.as_str());
        let header = header.and_then(|text| text.parse().ok()).ok_or("header is not the name of a header")?;
        let downloads = setup.state(Downloads::default);
        Ok(Box::new(AskFirst { questions: questions.clone(), header, downloads }))
    })
}

/// Answers questions, a moment after each.
async fn know_keys(mut questions: mpsc::Receiver<Question>) {
    while let Some((key, answer)) = questions.recv().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // A request that has gone needs no answer.
        let _ = answer.send((key == "sesame").then(|| HeaderValue::from_static("ali")));
    }
}

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (questions, asked) = mpsc::channel(64);
    runtime.spawn(know_keys(asked));
    match std::env::args().nth(1) {
        Some(file) => serve(&file, questions),
        None => runtime.block_on(ask_a_few(questions)),
    }
}

/// Serves a file that may have `[middleware.NAME.ask_first]`, until the process is told to stop.
fn serve(file: &str, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let builder = Isobar::builder().config_file(file).middleware(KIND, factory(questions)).signals(true);
    let running = builder.start().map_err(io::Error::other)?;
    println!("listening on {:?}", running.listener_addresses());
    running.wait();
    Ok(())
}

/// Three requests: without a key, with an unknown one, and with a good one.
async fn ask_a_few(questions: mpsc::Sender<Question>) -> io::Result<()> {
    let options = UserServiceOptions { name: "one".into(), latency: Duration::ZERO, fail_rate: 0.0 };
    let service = UserService::bind(([127, 0, 0, 1], 0).into(), options).await?;
    let backend = service.address()?;
    tokio::spawn(service.serve(std::future::pending()));
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nmiddleware = [\"keys\"]\n[[route]]\nupstream = \"users\"\n\
         [upstream.users]\nbackends = [\"{backend}\"]\n[middleware.keys]\ntimeout = \"1s\"\n{KIND} = {{ header = \"x-user\" }}\n"
    );
    let builder = Isobar::builder().config_text(config).middleware(KIND, factory(questions)).admin(false);
    let running = builder.start().map_err(io::Error::other)?;
    for key in ["", "x-api-key: guess\r\n", "x-api-key: sesame\r\n"] {
        let mut client = TcpStream::connect(running.listener_addresses()[0]).await?;
        let request = format!("GET /users/1 HTTP/1.1\r\nhost: users\r\nconnection: close\r\n{key}\r\n");
        client.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        println!("{:20} {}", key.trim_end(), answer.lines().next().unwrap_or_default());
    }
    running.stop(Duration::from_secs(1)).await;
    Ok(())
}
