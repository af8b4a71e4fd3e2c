//! One request with its response: its client, its deadlines, and the bodies on their way.

use std::cell::{Ref, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};

use crate::config::{Config, ListenerConfig, ListenerName};
use crate::file_descriptors::DescriptorSeats;
use crate::target::{Host, authority};
use crate::telemetry::metrics::{ListenerMetrics, Sharded};

pub mod body;
pub mod drained_sockets;
pub mod deadline;

pub use crate::http1::head::{HeadParts, HeaderLines, RequestHead, RuleLines};
pub use crate::http1::pass_through_headers::PassThrough;
pub use crate::http1::passes_through;
use deadline::Watch;

/// What all exchanges of a client connection share.
pub struct Client {
    /// The address the connection comes from.
    pub peer: SocketAddr,
    /// Whether `peer` is one of the listener's trusted proxies.
    pub trusted: bool,
    /// The lines that tell a backend about the client, with the host they were made for: the same for nearly all requests of a
    /// connection.
    pub lines: RefCell<(Option<HeaderValue>, Rc<HeaderLines>)>,
    /// `peer` without its port, as a header holds it.
    pub peer_text: HeaderValue,
    /// The port it came to, as a header holds it.
    pub port_text: HeaderValue,
    /// By which it came: `http` or `https`.
    pub scheme: &'static str,
    /// The host that it has named in its handshake, where requests for others are refused.
    pub indicated: Option<SniName>,
    /// What backends are told of its certificate: headers. Empty where it has shown none.
    pub identity: Vec<(HeaderName, HeaderValue)>,
    /// The settings of the listener when the connection was accepted. Not where its name is to be looked for: see
    /// [`Client::listener_name`].
    pub listener: Arc<ListenerConfig>,
    /// The listener's name, and the generation of the configuration that it is of.
    pub name: RefCell<(u64, ListenerName)>,
    /// What the listener counts.
    pub metrics: Arc<Sharded<ListenerMetrics>>,
    /// What its exchanges may have of connections to backends.
    pub seats: Rc<DescriptorSeats>,
}

impl Client {
    /// The listener's name in `config`, whose number is `generation`. A reload may rename a listener and keeps its
    /// connections: routes bound to the new name are theirs from then on. Looked up once per connection and generation.
    pub fn listener_name(&self, generation: u64, config: &Config) -> Ref<'_, ListenerName> {
        if self.name.borrow().0 != generation {
            self.rename(generation, config);
        }
        Ref::map(self.name.borrow(), |(_, name)| name)
    }

    /// The name that was looked up last: after a reload, that of the last request.
    pub fn last_name(&self) -> Ref<'_, ListenerName> {
        Ref::map(self.name.borrow(), |(_, name)| name)
    }

    /// A listener is known by its address. Several may have port 0: among those the name tells, as when a reload is planned.
    #[cold]
    fn rename(&self, generation: u64, config: &Config) {
        let mut known = self.name.borrow_mut();
        let mut same = config.listeners.iter().filter(|listener| listener.address == self.listener.address);
        let first = same.next().map(|listener| &listener.name);
        let named = first.filter(|&name| *name == known.1).is_some() || same.any(|listener| listener.name == known.1);
        // One that was removed, and whose connections drain, keeps its name.
        let name = if named { None } else { first.cloned() };
        known.0 = generation;
        if let Some(name) = name {
            known.1 = name;
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The host that a client has named in its TLS handshake (SNI).
pub struct SniName {
    name: Box<str>,
    /// Whether another may be asked for on the same connection.
    others: Box<dyn Fn(&str) -> bool>,
    /// The `Host` that was found to agree with it last: nearly all requests of a connection have the same.
    agreed: RefCell<Option<HeaderValue>>,
}

impl SniName {
    /// `others` says of any other host whether it may be asked for on the same connection.
    pub fn new(name: &str, others: Box<dyn Fn(&str) -> bool>) -> Self {
        let name = authority::name(name).unwrap_or_else(|| name.to_owned());
        Self { name: name.into(), others, agreed: RefCell::new(None) }
    }

    /// Whether a request with that `Host` field, in its canonical form, has come on the wrong connection.
    pub fn is_misdirected(&self, host: &HeaderValue) -> bool {
        self.agreed.borrow().as_ref() != Some(host) && !self.agrees(host)
    }

    #[cold]
    fn agrees(&self, host: &HeaderValue) -> bool {
        let name = Host::of(host.to_str().unwrap_or_default()).as_str();
        let agrees = name == &*self.name || (self.others)(name);
        if agrees {
            // A copy: the field itself is a part of the block that the request was read into.
            *self.agreed.borrow_mut() = HeaderValue::from_bytes(host.as_bytes()).ok();
        }
        agrees
    }
}

/// How it stands with a client that asks whether to send its body (`Expect: 100-continue`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expects {
    /// It does not ask, or has been told, or has not waited.
    #[default]
    Nothing,
    /// It is to be told once its body is wanted.
    Word,
    /// It is to be told once the backend says so.
    BackendsWord,
}

/// What an exchange asks of its client's side: of the connection, or of the stream where a connection has many.
pub trait ClientSide {
    /// An exchange begins.
    fn begin(&self);
    /// The response's body begins; each piece of it may take `idle`.
    fn body(&self, idle: Duration);
    /// The exchange is over.
    fn end(&self);
    /// The response was cut short, and its client may take the end of the connection for its end: it gets a reset instead.
    fn abort(&self);
    /// Whether the client does not take what it is sent.
    fn has_unsent(&self) -> bool;
    /// Sends an informational response now.
    fn inform(&self, head: &[u8]);
    /// A client that waits to be asked for its body is not asked before [`ClientSide::go_on`]. Whether it waits.
    fn hold(&self) -> bool;
    /// Whether the client still waits since [`ClientSide::hold`].
    fn holds(&self) -> bool;
    /// Asks a client that waits for its body.
    fn go_on(&self);
    /// The whole exchange has to be over at `at`, which the watch alone would find out too late. Only of streams of HTTP/2.
    fn alarm(&self, at: Instant);
}

/// One request with its response, as middleware sees it.
#[derive(Clone)]
pub struct Exchange {
    /// The connection it came by.
    pub client: Rc<Client>,
    /// What it waits for.
    pub watch: Rc<Watch>,
    /// Where it came from and its answer goes.
    pub side: Rc<dyn ClientSide>,
    /// When the request's head was read.
    pub started: Instant,
    /// The client's address: the connection's, or the one that a trusted proxy reports.
    pub client_ip: IpAddr,
    /// By which scheme the client has asked, `http` or `https`: the connection's, or the one that a trusted proxy reports.
    pub scheme: &'static str,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("client", &self.client)
            .field("client_ip", &self.client_ip)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::config::ListenerConfig;
    use deadline::Clock;

    struct Nowhere;

    impl ClientSide for Nowhere {
        fn begin(&self) {}
        fn body(&self, _: Duration) {}
        fn end(&self) {}
        fn abort(&self) {}
        fn has_unsent(&self) -> bool {
            false
        }
        fn inform(&self, _: &[u8]) {}
        fn hold(&self) -> bool {
            false
        }
        fn holds(&self) -> bool {
            false
        }
        fn go_on(&self) {}
        fn alarm(&self, _: Instant) {}
    }

    /// A client at 192.0.2.1 of a listener on port 8080.
    pub(crate) fn client(trusted: bool, change: impl FnOnce(&mut ListenerConfig)) -> Rc<Client> {
        let mut listener = ListenerConfig {
            max_header_bytes: 8192,
            header_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            ..ListenerConfig::new("main", ([127, 0, 0, 1], 8080))
        };
        change(&mut listener);
        Rc::new(Client {
            peer: ([192, 0, 2, 1], 4711).into(),
            trusted,
            lines: RefCell::default(),
            peer_text: HeaderValue::from_static("192.0.2.1"),
            port_text: HeaderValue::from_static("8080"),
            scheme: "http",
            indicated: None,
            identity: Vec::new(),
            name: RefCell::new((0, listener.name.clone())),
            listener: Arc::new(listener),
            metrics: Arc::new(Sharded::new(1)),
            seats: Rc::default(),
        })
    }

    /// An exchange of that client.
    pub(crate) fn exchange() -> Exchange {
        let client = client(false, |_| {});
        let watch = Watch::new(&Clock::new(), Duration::from_secs(1), 0);
        let (client_ip, scheme) = (client.peer.ip(), client.scheme);
        Exchange { client_ip, scheme, client, watch, side: Rc::new(Nowhere), started: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_agree_with_the_one_that_was_named() {
        let indicated = SniName::new("a.example", Box::new(|host| host == "b.example"));
        for (host, misdirected) in [
            ("a.example", false),
            ("a.example:8443", false),
            ("b.example:443", false),
            ("c.example", true),
            ("a.example.c.example", true),
            ("[::1]:443", true),
            ("[::1]", true),
            ("a.example", false),
        ] {
            // The second time it is compared with what was found the first time.
            for _ in 0..2 {
                assert_eq!(indicated.is_misdirected(&HeaderValue::from_static(host)), misdirected, "{host}");
            }
        }
    }
}
