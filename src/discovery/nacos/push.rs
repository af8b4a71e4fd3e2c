//! Pushes of Nacos 2 and 3: a stream of gRPC over which a server sends the list of a service when it changes.
//!
//! One task has the connection for all sources of the same servers, namespace and login, as Nacos's own clients have it. It says who it is,
//! subscribes to each service, acknowledges what is pushed, and asks now and then whether the server is still there. A stream that breaks begins again
//! at the next server. Nothing fails by that: the sources ask for their lists meanwhile.
//!
//! A service is subscribed to whole, and its clusters are chosen by each source: Nacos knows only one subscription of a client to a service.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::payload::{self, Payload};
use super::servers::Servers;
use super::shared::Shared;
use super::subscription::{Pushed, Service, Subscription};
use crate::config::NacosConfig;
use crate::discovery::DiscoveryError;
use crate::discovery::asked::{Server, TlsFiles};
use crate::http_client::open;

/// How often a server is asked whether it is still there.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// The first pause after a stream has broken; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A stream that was open for so long was a good one.
const LASTED: Duration = Duration::from_secs(10);
/// A server may take a moment until it knows the client that it has just greeted.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a server may send ahead.
const WINDOW: u32 = 1024 * 1024;
/// Of an envelope around a list.
const ENVELOPE: usize = 64 * 1024;

/// What a source is told of its service.
pub(super) struct Following {
    config: Arc<NacosConfig>,
    bytes_max: usize,
    told: watch::Receiver<Pushed>,
}

impl Following {
    /// Subscribes to the service of `config`.
    pub(super) fn begin(config: &Arc<NacosConfig>, bytes_max: usize) -> Self {
        Self { config: Arc::clone(config), bytes_max, told: subscribe(config, bytes_max) }
    }

    /// Whether changes are pushed now.
    pub(super) fn is_live(&self) -> bool {
        matches!(*self.told.borrow(), Pushed::List(_))
    }

    /// Waits until something was pushed, and gives the message; `None` where nothing is pushed any more.
    pub(super) async fn changed(&mut self) -> Option<Bytes> {
        if self.told.changed().await.is_err() {
            // The task is gone, as with the runtime that it was of.
            self.told = subscribe(&self.config, self.bytes_max);
            sleep(PAUSE).await;
            return None;
        }
        match &*self.told.borrow_and_update() {
            Pushed::List(message) => Some(message.clone()),
            Pushed::Awaited | Pushed::Broken(_) => None,
        }
    }

    /// Why nothing is pushed, where that is known.
    pub(super) fn why_not(&self) -> Option<Arc<str>> {
        match &*self.told.borrow() {
            Pushed::Broken(why) => Some(Arc::clone(why)),
            Pushed::Awaited | Pushed::List(_) => None,
        }
    }
}

fn subscribe(config: &Arc<NacosConfig>, bytes_max: usize) -> watch::Receiver<Pushed> {
    let service = Service { group: Arc::clone(&config.group), name: Arc::clone(&config.service) };
    let (told, receiver) = watch::channel(Pushed::Awaited);
    let mut subscription = Subscription { service, told };
    let shared = Shared::of(config, bytes_max);
    let mut pushes = shared.pushes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(commands) = &*pushes {
        match commands.send(subscription) {
            Ok(()) => return receiver,
            Err(unsent) => subscription = unsent.0,
        }
    }
    let (commands, receives) = unbounded_channel();
    let link = Link::new(config, bytes_max);
    *pushes = Some(commands);
    let subscriptions = HashMap::from([(subscription.service, vec![Told { told: subscription.told, is_new: true }])]);
    tokio::spawn(run(link, Subscriptions(subscriptions), receives));
    receiver
}

/// Who is told of each service.
struct Subscriptions(HashMap<Service, Vec<Told>>);

struct Told {
    told: watch::Sender<Pushed>,
    /// Whether the service is to be subscribed to for it.
    is_new: bool,
}

impl Subscriptions {
    fn add(&mut self, subscription: Subscription) -> Service {
        let Subscription { service, told } = subscription;
        self.0.entry(service.clone()).or_default().push(Told { told, is_new: true });
        service
    }

    /// Takes away what is listened to by nothing any more, and says which services that are.
    fn clear(&mut self) -> Vec<Service> {
        let mut gone = Vec::new();
        self.0.retain(|service, all| {
            all.retain(|it| !it.told.is_closed());
            if all.is_empty() {
                gone.push(service.clone());
            }
            !all.is_empty()
        });
        gone
    }

    /// The services that are to be subscribed to.
    fn new_ones(&self) -> Vec<Service> {
        let new = self.0.iter().filter(|(_, all)| all.iter().any(|it| it.is_new));
        new.map(|(service, _)| service.clone()).collect()
    }

    fn tell(&mut self, service: &Service, message: &Bytes) {
        for it in self.0.get_mut(service).into_iter().flatten() {
            it.is_new = false;
            it.told.send_replace(Pushed::List(message.clone()));
        }
    }

    /// The stream has broken: all are to be subscribed to again.
    fn broken(&mut self, why: &Arc<str>) {
        for it in self.0.values_mut().flatten() {
            it.is_new = true;
            it.told.send_if_modified(|pushed| {
                let is_news = matches!(pushed, Pushed::List(_));
                *pushed = Pushed::Broken(Arc::clone(why));
                is_news
            });
        }
    }
}

/// Keeps a stream open until nothing listens any more.
async fn run(mut link: Link, mut subscriptions: Subscriptions, mut commands: UnboundedReceiver<Subscription>) {
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let Err(why) = link.follow(&mut subscriptions, &mut commands).await else { return };
        subscriptions.broken(&why.to_string().into());
        link.current = (link.current + 1) % link.servers.len().max(1);
        pause = if begun.elapsed() > LASTED { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
        let over = Instant::now() + pause.mul_f64(rand::random_range(0.75..1.0));
        loop {
            tokio::select! {
                () = sleep_until(over) => break,
                Some(subscription) = commands.recv() => drop(subscriptions.add(subscription)),
            }
        }
        subscriptions.clear();
        if subscriptions.0.is_empty() {
            return;
        }
    }
}

/// The servers' gRPC ports, one of which a stream is open to.
struct Link {
    config: Arc<NacosConfig>,
    bytes_max: usize,
    /// For logins.
    http: Servers,
    servers: Vec<Server>,
    current: usize,
}

impl Link {
    fn new(config: &Arc<NacosConfig>, bytes_max: usize) -> Self {
        let server = |url| {
            let mut url = crate::config::HttpUrl::clone(url);
            url.port = config.push_port(&url).unwrap_or(url.port);
            Server::new(url, bytes_max, TlsFiles { ca: config.ca.clone(), identity: None })
        };
        let servers = config.servers.iter().map(server).collect();
        let http = Servers::new(config, bytes_max);
        Self { config: Arc::clone(config), bytes_max, http, servers, current: 0 }
    }

    /// Opens a stream and tells what comes. Ends without an error when nothing listens any more.
    async fn follow(
        &mut self,
        subscriptions: &mut Subscriptions,
        commands: &mut UnboundedReceiver<Subscription>,
    ) -> Result<(), DiscoveryError> {
        let time = self.config.timeout;
        let late = |_| DiscoveryError::new(format!("no connection within {time:?}"));
        let Some(server) = self.servers.get_mut(self.current) else { return Err(DiscoveryError::new("no server")) };
        let authority = server.authority();
        let opened = async {
            let stream = open(server.to(time).await?, b"h2").await?;
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
            Ok::<_, DiscoveryError>(builder.handshake::<_, Bytes>(stream).await?)
        };
        let (requests, connection) = timeout(time, opened).await.map_err(late)??;
        let stream = Stream {
            requests,
            authority,
            time,
            bytes_max: self.bytes_max.saturating_add(ENVELOPE),
            http: &mut self.http,
            server: self.current,
            config: &self.config,
        };
        tokio::select! {
            ended = connection => {
                ended?;
                Err(DiscoveryError::new("the connection was closed"))
            }
            ended = stream.follow(subscriptions, commands) => ended,
        }
    }
}

/// A connection with HTTP/2.
struct Stream<'l> {
    requests: SendRequest<Bytes>,
    authority: String,
    time: Duration,
    bytes_max: usize,
    http: &'l mut Servers,
    server: usize,
    config: &'l NacosConfig,
}

/// What each answer has, and each message of a server.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    result_code: u32,
    #[serde(default)]
    error_code: u32,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    request_id: Option<String>,
}

/// `resultCode` of an answer that is none.
const OK: u32 = 200;
/// `errorCode`s: the client is not known yet, and it may not.
const UNKNOWN_CLIENT: u32 = 301;
const FORBIDDEN: u32 = 403;

impl Stream<'_> {
    async fn follow(
        mut self,
        subscriptions: &mut Subscriptions,
        commands: &mut UnboundedReceiver<Subscription>,
    ) -> Result<(), DiscoveryError> {
        self.done("ServerCheckRequest", &json!({ "module": "internal" })).await?;
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut to_server) =
            requests.send_request(self.request("/BiRequestStream/requestBiStream")?, false)?;
        let mut from_server = FromServer::new(response, self.bytes_max);
        let setup = json!({
            "module": "internal", "clientVersion": concat!("isobar:v", env!("CARGO_PKG_VERSION")),
            "tenant": *self.config.namespace, "labels": { "source": "sdk", "module": "naming" }, "abilities": {}
        });
        to_server.send_data(self.frame("ConnectionSetupRequest", &setup).await?, false)?;
        let mut alive = interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = from_server.next() => {
                    let Payload { kind, body } = message?;
                    let request: Envelope = serde_json::from_slice(&body).unwrap_or_default();
                    if let Some(answer) = kind.strip_suffix("Request") {
                        let said = json!({ "resultCode": OK, "errorCode": 0, "requestId": request.request_id });
                        let said = self.frame(&format!("{answer}Response"), &said).await?;
                        to_server.send_data(said, false)?;
                    }
                    match &*kind {
                        "NotifySubscriberRequest" => {
                            if let Some(service) = service_of(&body) {
                                subscriptions.tell(&service, &body);
                            }
                        }
                        "ConnectResetRequest" => return Err(DiscoveryError::new("the server asks for another to be taken")),
                        _ => {}
                    }
                }
                Some(subscription) = commands.recv() => {
                    let service = subscriptions.add(subscription);
                    self.subscribe(&service, subscriptions).await?;
                }
                // The first time at once.
                _ = alive.tick() => {
                    for service in subscriptions.clear() {
                        self.done("SubscribeServiceRequest", &self.subscription(&service, false)).await?;
                    }
                    if subscriptions.0.is_empty() {
                        return Ok(());
                    }
                    for service in subscriptions.new_ones() {
                        self.subscribe(&service, subscriptions).await?;
                    }
                    self.done("HealthCheckRequest", &json!({ "module": "internal" })).await?;
                }
            }
        }
    }

    /// Subscribes to a service. That it may not ends no stream: it is tried again with the next question whether the server is there.
    async fn subscribe(&mut self, service: &Service, subscriptions: &mut Subscriptions) -> Result<(), DiscoveryError> {
        let asked = self.subscription(service, true);
        let (said, envelope) = self.ask("SubscribeServiceRequest", &asked).await?;
        match envelope.result_code {
            OK => subscriptions.tell(service, &said),
            _ => {
                let why = refused(&envelope).to_string().into();
                for it in subscriptions.0.get_mut(service).into_iter().flatten() {
                    it.told.send_if_modified(|pushed| {
                        *pushed = Pushed::Broken(Arc::clone(&why));
                        false
                    });
                }
            }
        }
        Ok(())
    }

    fn subscription(&self, service: &Service, subscribe: bool) -> Value {
        json!({
            "module": "naming", "namespace": *self.config.namespace, "serviceName": *service.name, "groupName": *service.group,
            "subscribe": subscribe, "clusters": ""
        })
    }

    /// Asks what is to be done.
    async fn done(&mut self, kind: &str, body: &Value) -> Result<(), DiscoveryError> {
        let (_, envelope) = self.ask(kind, body).await?;
        if envelope.result_code == OK { Ok(()) } else { Err(refused(&envelope)) }
    }

    /// Asks, once more if the server does not know this client yet or any more.
    async fn ask(&mut self, kind: &str, body: &Value) -> Result<(Bytes, Envelope), DiscoveryError> {
        let (time, begun, mut has_renewed) = (self.time, Instant::now(), false);
        loop {
            let late = |_| DiscoveryError::new(format!("no answer to its {kind} within {time:?}"));
            let answer = timeout(time, self.call(kind, body)).await.map_err(late)??;
            let envelope: Envelope = serde_json::from_slice(&answer.body)
                .map_err(|_| DiscoveryError::new("a message is no JSON: this is not Nacos's API"))?;
            match envelope.error_code {
                UNKNOWN_CLIENT if envelope.result_code != OK && begun.elapsed() < time => sleep(UNKNOWN_PAUSE).await,
                FORBIDDEN if envelope.result_code != OK && !has_renewed => {
                    has_renewed = true;
                    let token = self.http.token(self.server, None).await?;
                    if token.is_none() {
                        return Ok((answer.body, envelope));
                    }
                    self.http.token(self.server, token.as_deref()).await?;
                }
                _ => return Ok((answer.body, envelope)),
            }
        }
    }

    async fn call(&mut self, kind: &str, body: &Value) -> Result<Payload, DiscoveryError> {
        let frame = self.frame(kind, body).await?;
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut send) = requests.send_request(self.request("/Request/request")?, false)?;
        send.send_data(frame, true)?;
        FromServer::new(response, self.bytes_max).next().await
    }

    async fn frame(&mut self, kind: &str, body: &Value) -> Result<Bytes, DiscoveryError> {
        let token = self.http.token(self.server, None).await?;
        let headers = token.as_deref().map(|token| ("accessToken", token));
        Ok(payload::frame(kind, headers.as_slice(), body.to_string().as_bytes()))
    }

    fn request(&self, path: &str) -> Result<Request<()>, DiscoveryError> {
        let request = Request::post(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")));
        Ok(request.body(())?)
    }
}

fn refused(envelope: &Envelope) -> DiscoveryError {
    let message = envelope.message.as_deref().unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(120).collect();
    DiscoveryError::new(format!("it answered {} {}: {message}", envelope.result_code, envelope.error_code))
}

/// Which service a push is of.
fn service_of(message: &[u8]) -> Option<Service> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Of {
        service_info: ServiceName,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ServiceName {
        name: String,
        #[serde(default)]
        group_name: Option<String>,
    }
    let Of { service_info: ServiceName { name, group_name } } = serde_json::from_slice(message).ok()?;
    let (group, name) = match name.split_once("@@") {
        Some((group, name)) => (group.to_owned(), name.to_owned()),
        None => (group_name?, name),
    };
    Some(Service { group: group.into(), name: name.into() })
}

/// The messages of a stream.
struct FromServer {
    response: ResponseFuture,
    body: Option<RecvStream>,
    buffer: BytesMut,
    bytes_max: usize,
}

impl FromServer {
    fn new(response: ResponseFuture, bytes_max: usize) -> Self {
        Self { response, body: None, buffer: BytesMut::new(), bytes_max }
    }

    /// The next message. What has come of it is kept where this is given up.
    async fn next(&mut self) -> Result<Payload, DiscoveryError> {
        let body = match &mut self.body {
            Some(body) => body,
            body => {
                let (head, stream) = (&mut self.response).await?.into_parts();
                if head.status != StatusCode::OK {
                    return Err(DiscoveryError::new(format!("it answered {} to gRPC", head.status.as_u16())));
                }
                if let Some(status) = head.headers.get("grpc-status") {
                    return Err(DiscoveryError::new(format!("it answered with gRPC's status {status:?}")));
                }
                body.insert(stream)
            }
        };
        loop {
            if let Some(message) = payload::take(&mut self.buffer, self.bytes_max).map_err(DiscoveryError::new)? {
                return Ok(message);
            }
            let Some(data) = body.data().await else { return Err(DiscoveryError::new("its stream has ended")) };
            let data = data?;
            self.buffer.extend_from_slice(&data);
            body.flow_control().release_capacity(data.len())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_of_the_service_that_its_list_names() {
        let of = |text: &str| service_of(text.as_bytes()).map(|it| format!("{} {}", it.group, it.name));
        let told = |text: &str| of(&format!(r#"{{"requestId":"1","serviceInfo":{text}}}"#));
        assert_eq!(told(r#"{"name":"users","groupName":"G","hosts":[]}"#).as_deref(), Some("G users"));
        assert_eq!(told(r#"{"name":"G@@users","groupName":"G","hosts":[]}"#).as_deref(), Some("G users"));
        assert_eq!(told(r#"{"name":"G@@users"}"#).as_deref(), Some("G users"));
        for text in [r#"{"name":"users"}"#, "null", r#"{"groupName":"G"}"#] {
            assert_eq!(told(text), None, "{text}");
        }
        assert_eq!(of("<html>"), None);
    }
}
