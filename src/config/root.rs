//! The file as a whole: what stands at its top, and its tables.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::access_log::AccessLogConfig;
use super::admin::AdminConfig;
use super::check::{self, Check, value};
use super::dns::DnsConfig;
use super::error::Problem;
use super::field::Field;
use super::form::{About, Form, Listed, Maybe, Name, OnPart, Part, Span, UnderNames, variable};
use super::json_tree::Tree;
use super::listener::ListenerConfig;
use super::log::LogConfig;
use super::middleware::Middlewares;
use super::overload::OverloadConfig;
use super::raw;
use super::registry::RegistryConfig;
use super::report::Place;
use super::table::Table;
use super::visibility::FilePath;
use super::{MiddlewareConfig, RouteConfig, UpstreamConfig};

/// All of `lb.toml`, checked: the keys at its top, and its tables.
#[derive(Clone, Debug, PartialEq, Table)]
#[table(check = check::whole)]
pub struct Config {
    /// Threads that serve requests; `auto` is one per core.
    #[key(WorkersKey, default = "auto", reload = Restart)]
    pub workers: Option<NonZeroUsize>,
    /// After a signal to stop, how long everything is served as before, with `/readyz` saying 503, so that balancers in front notice first.
    #[key(Span, default = "0s")]
    pub shutdown_delay: Duration,
    /// Then: how long requests may go on once nothing more is accepted.
    #[key(Span, default = "30s")]
    pub shutdown_grace: Duration,
    /// After a reload, how long the connections of a removed listener, or requests to a removed upstream or backend, may go on.
    #[key(Span, default = "60s")]
    pub drain_limit: Duration,
    /// Where the process is, for those upstreams that prefer backends of the same zone.
    #[key(Maybe(Name), example = "eu-1a")]
    pub zone: Option<Arc<str>>,
    /// A directory for what is to outlive the process: the last good set of each source of `discovery`, so that a start serves while the registry
    /// is down. It is made where it is not there.
    #[key(Maybe(DirectoryPath), example = "/var/lib/isobar", reload = Restart)]
    pub state_dir: Option<PathBuf>,
    /// How the names of backends are looked up.
    #[key(Part, reload = AtOnce)]
    pub dns: DnsConfig,
    /// Where operators watch and steer the process.
    #[key(OnPart, reload = Restart)]
    pub admin: Option<AdminConfig>,
    /// A registry of services that this process keeps, for those who have none.
    #[key(Part, reload = Restart)]
    pub registry: Option<Arc<RegistryConfig>>,
    /// What is logged and how.
    #[key(Part)]
    pub log: LogConfig,
    /// Where a line for each exchange goes.
    #[key(Part)]
    pub access_log: Option<AccessLogConfig>,
    /// When the process refuses new requests because it has more to do than it can.
    #[key(Part)]
    pub overload: OverloadConfig,
    /// Where clients connect. In the order of the file; names and addresses are unique.
    #[key(Listed, name = "listener", required = true, reload = Connections)]
    pub listeners: Vec<Arc<ListenerConfig>>,
    /// Whether any of them asks clients for certificates, so that what tells backends of these may come from nowhere else.
    pub tells_identity: bool,
    /// Where requests go. In the order of the file, which decides only between patterns.
    #[key(Listed, name = "route", reload = Requests)]
    pub routes: Vec<Arc<RouteConfig>>,
    /// Pools of backends, each under its name.
    #[key(UnderNames, name = "upstream", reload = Requests)]
    pub upstreams: Vec<Arc<UpstreamConfig>>,
    /// Plug-ins around requests and responses, which listeners, routes and upstreams name. Sorted by name.
    #[key(Middlewares, otherwise = "none", reload = Requests)]
    pub middleware: Vec<Arc<MiddlewareConfig>>,
}

impl Default for Config {
    /// What a file means that says nothing: no listener, no route, no upstream.
    fn default() -> Self {
        Self::of_defaults()
    }
}

impl Config {
    /// Puts in place of the values that need a restart those that the process runs with, so that what is shown is what is so, and so that the
    /// next reload warns of them again.
    pub(crate) fn keep_the_running(&mut self, old: &Self) {
        // The token is looked at with each request, so a new one holds at once. An address that the file has switched off is still served until
        // the restart, and keeps its token.
        let token = self.admin.take().map(|admin| admin.token);
        let registry = self.registry.take();
        self.keep_what_needs_a_restart(old);
        // What the registry lets pass is looked at with each request too.
        if let (Some(running), Some(mut registry)) = (&mut self.registry, registry) {
            Arc::make_mut(&mut registry).keep_what_needs_a_restart(running);
            *running = registry;
        }
        if let (Some(admin), Some(token)) = (&mut self.admin, token) {
            admin.token = token;
        }
        self.log.keep_what_needs_a_restart(&old.log);
    }
}

/// A number of threads, or one per core.
struct WorkersKey;

impl Form<Option<NonZeroUsize>> for WorkersKey {
    type Written = raw::Workers;

    fn read(&self, check: &Check<'_>, place: Place, written: &raw::Workers) -> Option<Option<NonZeroUsize>> {
        match written {
            raw::Workers::Integer(workers) => {
                let workers = value::number_in(check, place, *workers, 1..=1024)?;
                Some(usize::try_from(workers).ok().and_then(NonZeroUsize::new))
            }
            raw::Workers::String(text) if text == "auto" => Some(None),
            raw::Workers::String(text) => {
                let problem = Problem::error(format!("unknown value {}", check.quote(place, text)));
                let suggestion = text.parse::<u16>().is_err().then(|| "auto".to_owned());
                check.add(place, problem.expected("a whole number or \"auto\"").suggest(suggestion));
                None
            }
        }
    }

    fn show(&self, value: &Option<NonZeroUsize>) -> Option<Tree> {
        Some(value.map_or_else(|| "auto".into(), |count| count.get().into()))
    }

    fn tell(&self, value: &Option<NonZeroUsize>) -> String {
        value.map_or_else(|| "one per core".into(), |count| count.to_string())
    }

    fn about(&self) -> About {
        let number = json!({ "type": "integer", "minimum": 1, "maximum": 1024 });
        About::new::<raw::Workers>(
            "a whole number, 1 to 1024, or `\"auto\"`",
            json!({ "anyOf": [number, { "enum": ["auto"] }, variable()] }),
        )
    }
}

/// The path of a directory.
struct DirectoryPath;

impl Form<PathBuf> for DirectoryPath {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, text: &FilePath) -> Option<PathBuf> {
        if value::is_file_path(text) {
            return Some(PathBuf::from(text.as_str()));
        }
        let problem = Problem::error(format!("{} is not a directory's path", check.quote(place, text)));
        check.add(place, problem.expected("the like of \"/var/lib/isobar\""));
        None
    }

    fn show(&self, value: &PathBuf) -> Option<Tree> {
        Some(value.display().to_string().into())
    }

    fn tell(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }

    fn about(&self) -> About {
        About::new::<FilePath>("a directory's path", json!({ "type": "string", "minLength": 1 }))
    }
}

/// The tables as they are written, for the checks that look at several of them.
pub(crate) type WrittenListeners = Field<Vec<Field<<ListenerConfig as Table>::Written>>>;
