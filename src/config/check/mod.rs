//! From what the file says to what it means, with every problem on the way.
//!
//! A value that is wrong is reported and stands for its default from there on, so that the checks after it do not report
//! its consequences; any error in the report means that no [`Config`] comes out.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::error::{Problem, Problems, Severity};
use super::file::ReadFile;
use super::fill::{self, Filling, LeftOut};
use super::form::{self, Form, Literal, OnPart};
use super::raw;
use super::reader::{self, Env};
use super::report::{Place, Report, quote};
use super::secret_file::Access;
use super::services::{Service, Services};
use super::table::Table;
use super::unquoted;
use super::{AdminConfig, Secured, UpstreamName};

mod listener;
mod middleware;
mod route;
mod overlap;
pub(crate) mod unreachable;
mod redirect_loop;
mod registry;
mod upstream;
pub(crate) mod value;

/// The names that a configuration may use beside isobar's own.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// Strategies that an embedding program supplies.
    pub strategies: Vec<String>,
    /// Kinds of middleware that it supplies.
    pub middleware: Vec<String>,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the file means.
    pub config: Config,
    /// What is odd about it, in the order of the file.
    pub warnings: Vec<Problem>,
    /// The file, where it has upstreams with `services`: as the services change it is read again.
    pub template: Option<Arc<FileText>>,
    /// What tags of services begin with that say routes.
    pub service_tags: Arc<[Arc<str>]>,
    /// Services of which something could not be taken.
    pub left_out: Vec<LeftOut>,
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct FileText {
    text: String,
    name: String,
    access: Option<Access>,
}

/// A configuration that cannot be used.
#[derive(Clone, Debug)]
pub struct RefusedConfig {
    /// Why, warnings included.
    pub problems: Problems,
    /// What of its TLS could be read all the same: what is wrong with those files is to be told at the same time.
    pub secured: Secured,
}

impl From<Problems> for RefusedConfig {
    fn from(problems: Problems) -> Self {
        Self { problems, secured: Secured::default() }
    }
}

/// Reads a file and checks it, with variables from the process's environment.
///
/// A file that cannot be read is a problem like any other.
pub fn load(path: &Path, vocabulary: &Vocabulary) -> Result<Loaded, Problems> {
    load_whole(path, vocabulary).map_err(|refused| refused.problems)
}

/// The same as [`load`], with what is left of a file that is refused.
pub fn load_whole(path: &Path, vocabulary: &Vocabulary) -> Result<Loaded, RefusedConfig> {
    ReadFile::read(path)?.load(vocabulary)
}

impl ReadFile {
    /// Checks it, with variables from the process's environment.
    ///
    /// # Errors
    /// When it says what cannot be: with what is left of it.
    pub fn load(self, vocabulary: &Vocabulary) -> Result<Loaded, RefusedConfig> {
        let (text, name, access) = self.text()?;
        FileText { text, name, access: Some(access) }.load(
            &|name| std::env::var(name).ok(),
            vocabulary,
            &Services::new(),
        )
    }

    /// Its text, its name, and the users that may read it.
    fn text(self) -> Result<(String, String, Access), Problems> {
        let Self { name, bytes, access, .. } = self;
        match String::from_utf8(bytes) {
            Ok(text) => Ok((text, name, access)),
            Err(error) => Err(not_utf8(&name, &error)),
        }
    }
}

/// Reads where a file has the admin address, whatever else is wrong with the file: what runs is looked into and steered while
/// its file is being written, and from a shell that has not the variables that the file names. `None` where it has neither an address nor a
/// socket; a token that cannot be read is none.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has `[admin]` wrong.
pub fn load_admin(path: &Path) -> Result<Option<AdminConfig>, Problems> {
    let (text, file, access) = ReadFile::read(path)?.text()?;
    let report = Report::new(&file, &text);
    let (vocabulary, filling) = (Vocabulary::default(), Filling::default());
    let check = Check { report: &report, vocabulary: &vocabulary, access: Some(access), filling: &filling };
    let env: &Env<'_> = &|name| std::env::var(name).ok();
    let admin = read_toml(&text, &report).map(|root| {
        let raw: raw::File = reader::read(&root, &report, env);
        form::read(&check, &OnPart, &raw.admin, None, || OnPart.absent(&check, Literal::Nothing))
    });
    let problems = report.finish();
    let Some(admin) = admin else { return Err(problems) };
    let is_of_admin = |problem: &Problem| {
        let own = problem.key.strip_prefix("admin").filter(|rest| rest.is_empty() || rest.starts_with('.'));
        problem.severity == Severity::Error && own.is_some_and(|rest| rest != ".token")
    };
    let wrong: Problems = problems.into_vec().into_iter().filter(is_of_admin).collect();
    if wrong.is_empty() { Ok(admin) } else { Err(wrong) }
}

/// Says where a file stops being text.
fn not_utf8(file: &str, error: &std::string::FromUtf8Error) -> Problems {
    let valid = error.utf8_error().valid_up_to();
    let before = String::from_utf8_lossy(&error.as_bytes()[..valid]);
    let report = Report::new(file, &before);
    report.add(report.place("", valid), Problem::error("not UTF-8").expected("a text file in UTF-8"));
    report.finish()
}

/// Checks a text, with variables from `env`. Problems name the file as `file`.
pub fn parse(
    text: &str,
    file: &str,
    env: &dyn Fn(&str) -> Option<String>,
    vocabulary: &Vocabulary,
) -> Result<Loaded, Problems> {
    parse_whole(text, file, env, vocabulary).map_err(|refused| refused.problems)
}

/// The same as [`parse`], with what is left of a text that is refused.
pub fn parse_whole(
    text: &str,
    file: &str,
    env: &dyn Fn(&str) -> Option<String>,
    vocabulary: &Vocabulary,
) -> Result<Loaded, RefusedConfig> {
    let (text, name) = (text.to_owned(), file.to_owned());
    FileText { text, name, access: None }.load(env, vocabulary, &Services::new())
}

impl FileText {
    /// Checks it with services filled in, and with variables from the process's environment. A service that would make it wrong is left out: one
    /// of `others` rather than one that is `settled`, which is served already; the first of those comes first.
    ///
    /// # Errors
    /// When it is wrong without any service.
    pub fn fill(
        &self,
        vocabulary: &Vocabulary,
        settled: &Services,
        others: &Services,
    ) -> Result<Loaded, RefusedConfig> {
        let env: &Env<'_> = &|name| std::env::var(name).ok();
        let mut all = settled.clone();
        others.iter().for_each(|(upstream, more)| all.entry(upstream.clone()).or_default().extend_from_slice(more));
        let whole = match self.load(env, vocabulary, &all) {
            Ok(loaded) => return Ok(loaded),
            Err(whole) => whole,
        };
        // Which of them it is: halves that do no harm are taken at once.
        let (mut taken, mut left_out) = (Services::new(), Vec::new());
        let listed = |services: &Services| {
            let each = |(upstream, all): (&UpstreamName, &Vec<Service>)| {
                all.iter().map(|service| (upstream.clone(), service.clone())).collect::<Vec<_>>()
            };
            services.iter().flat_map(each).collect::<Vec<_>>()
        };
        let mut parts = vec![listed(others), listed(settled)];
        while let Some(mut part) = parts.pop() {
            let mut with = taken.clone();
            for (upstream, service) in &part {
                with.entry(upstream.clone()).or_default().push(service.clone());
            }
            match (self.load(env, vocabulary, &with), &part[..]) {
                (Ok(_), _) => taken = with,
                (Err(_), []) => return Err(whole),
                (Err(refused), [(upstream, service)]) => {
                    let why = refused.problems.iter().find(|it| it.severity == Severity::Error);
                    let why = format!("not served: {}", why.map(ToString::to_string).unwrap_or_default());
                    left_out.push(LeftOut { upstream: upstream.clone(), service: service.clone(), why });
                }
                (Err(_), several) => {
                    let rest = part.split_off(several.len() / 2);
                    parts.extend([rest, part]);
                }
            }
        }
        let mut loaded = self.load(env, vocabulary, &taken)?;
        loaded.left_out.append(&mut left_out);
        Ok(loaded)
    }

    fn load(&self, env: &Env<'_>, vocabulary: &Vocabulary, services: &Services) -> Result<Loaded, RefusedConfig> {
        let Self { text, name, access } = self;
        let report = Report::new(name, text);
        let numbers = fill::numbers(services);
        let mut root = read_toml(text, &report);
        let filling = root.as_mut().and_then(|root| match root.get_mut() {
            DeValue::Table(root) => Some(fill::fill(root, services, &numbers)),
            _ => None,
        });
        let filling = filling.unwrap_or_default();
        let check = Check { report: &report, vocabulary, access: *access, filling: &filling };
        let config = root.and_then(|root| {
            let file: raw::File = reader::read(&root, &report, env);
            Config::read(&check, Place::FILE, &file)
        });
        let problems = report.finish();
        match config {
            Some(config) if !problems.refuse() => {
                let template = filling.is_needed().then(|| Arc::new(self.clone()));
                let Filling { left_out, service_tags, .. } = filling;
                let service_tags = service_tags.into_iter().collect();
                Ok(Loaded { config, warnings: problems.into_vec(), template, service_tags, left_out })
            }
            Some(config) => Err(RefusedConfig { problems, secured: Secured::of(&config) }),
            None => Err(problems.into()),
        }
    }
}

/// The file as TOML, or what toml has against it.
///
/// After an error of syntax toml's guess at the rest is not worth further reports; a key that is there twice leaves no doubt
/// about the rest, so the rest is checked too.
fn read_toml<'t>(text: &'t str, report: &Report<'_>) -> Option<Spanned<DeValue<'t>>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let (mut doubtful, mut unquoted_lines) = (false, HashSet::new());
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let line = text.get(..span.start).map(|before| before.matches('\n').count());
        // Further errors of the line come of the first.
        if unquoted_lines.contains(&line) {
            continue;
        }
        if let Some(unquoted) = unquoted::look(text, span.start, error.message()) {
            doubtful = true;
            unquoted_lines.insert(line);
            report.add(report.place("", unquoted.start), unquoted.problem);
            continue;
        }
        let place = report.place("", span.start);
        let problem = if error.message() == "duplicate key" {
            let key = text.get(span).unwrap_or_default();
            Problem::error(format!("duplicate key {}", quote(key))).expected("it once in its table")
        } else {
            doubtful = true;
            Problem::error(one_line(error.message()))
        };
        report.add(place, problem);
    }
    (!doubtful).then(|| Spanned::new(root.span(), DeValue::Table(root.into_inner())))
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

/// What the checks share.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) report: &'a Report<'a>,
    pub(crate) vocabulary: &'a Vocabulary,
    /// The users that may read the file; `None` where it is none.
    pub(crate) access: Option<Access>,
    /// What of the file was made for services.
    pub(crate) filling: &'a Filling,
}

impl Check<'_> {
    /// Adds a problem.
    pub(crate) fn add(&self, place: Place, problem: Problem) {
        self.report.add(place, problem);
    }

    /// The text that stands at a place, as a problem may have it.
    pub(crate) fn quote(&self, place: Place, text: &str) -> String {
        self.report.quote(place, text)
    }

    /// The same of what is no text, or needs no quotes.
    pub(crate) fn show(&self, place: Place, value: impl Display) -> String {
        self.report.show(place, value)
    }

    /// The same of what another key says, or its default where it says nothing.
    pub(crate) fn show_other(&self, place: Option<Place>, value: impl Display) -> String {
        place.map_or_else(|| value.to_string(), |place| self.show(place, &value))
    }
}

/// What looks at several tables of the file together.
pub(crate) fn whole(check: &Check<'_>, _: Place, file: &raw::File, mut config: Config) -> Option<Config> {
    let listeners = listener::listeners(check, &file.listeners, config.admin.as_ref().and_then(|admin| admin.address));
    let mut upstreams = upstream::upstreams(check, file, &listeners, config.zone.as_ref());
    registry::registry(check, file, &config, &listeners, &mut upstreams);
    let routes = route::routes(check, file, &listeners, &upstreams);
    config.tells_identity =
        listeners.iter().filter_map(|it| it.config.tls.as_ref()).any(|it| it.client_certificates.is_some());
    config.listeners = listeners.into_iter().map(|it| Arc::new(it.config)).collect();
    config.routes = routes.into_iter().map(Arc::new).collect();
    config.upstreams = upstreams.into_iter().map(Arc::new).collect();
    // What stands for services to come was only to be checked.
    let stands_in = |upstream: &UpstreamName| check.filling.is_stand_in(upstream.as_str());
    config.routes.retain(|route| !route.upstream.as_ref().is_some_and(stands_in));
    config.upstreams.retain(|upstream| !stands_in(&upstream.name));
    config.middleware = middleware::middleware(check, file).into_iter().map(Arc::new).collect();
    Some(config)
}
