//! Logs of the process itself, to standard error.
//!
//! An event is a line in the queue of [`LogLines`]: a standard error that takes nothing holds up neither a worker nor the control plane.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::audit;
use super::line_writer::{LogLines, LogSink};
use crate::config::{LogConfig, LogFormat, log_filter};

/// Lines that may wait to be written.
const LINES_MAX: usize = 8192;

/// Begins to log. Where the process logs in a way of its own already (a test, a program that embeds isobar), that stays as
/// it is, and so does its level.
///
/// # Errors
/// When standard error cannot be written to by a thread of its own.
pub fn init(config: &LogConfig) -> io::Result<Logging> {
    super::panics::log_panics();
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = Arc::new(LogLines::open("log", LogSink::Stderr, LINES_MAX)?);
    let queue = QueueWriter(Arc::clone(&lines));
    let (subscriber, logging) = subscriber(config, move || queue.clone(), colours);
    Ok(match tracing::subscriber::set_global_default(subscriber) {
        Ok(()) => Logging { lines: Some(lines), ..logging },
        Err(_) => Logging { filter: None, ..logging },
    })
}

/// Takes an event, which comes as one piece.
#[derive(Clone, Debug)]
struct QueueWriter(Arc<LogLines>);

impl Write for QueueWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push_now(line.into());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Changes what is logged while it is. Clones are the same.
#[derive(Clone, Debug)]
pub struct Logging {
    /// `None` where the embedding program decides on it.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    levels: Arc<Mutex<Levels>>,
    /// On their way to standard error; `None` where they go elsewhere.
    lines: Option<Arc<LogLines>>,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Levels {
    /// What the configuration says.
    pub configured: String,
    /// What is set by hand instead for a time.
    pub raised: Option<Raised>,
    /// How often it was raised: tells the ends of two apart.
    times: u64,
}

/// A level for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// A level or a filter.
    pub level: String,
    /// The user who set it.
    pub by: String,
    /// When.
    pub since: SystemTime,
    /// When it ends.
    pub until: SystemTime,
    number: u64,
}

impl Levels {
    /// What is logged now.
    pub fn level(&self) -> &str {
        self.raised.as_ref().map_or(&self.configured, |raised| &raised.level)
    }
}

#[cfg(test)]
impl Logging {
    /// That of a subscriber without an output.
    pub(crate) fn apart(config: &LogConfig) -> Self {
        subscriber(config, io::sink, false).1
    }
}

impl Logging {
    /// Logs from now on what `level` says: a level (`info`) or a `tracing` filter (`info,isobar::proxy=debug`). A level that
    /// was raised for a time stays for its time.
    ///
    /// # Errors
    /// When it is neither. Nothing is changed then.
    pub fn set_level(&self, level: &str) -> Result<(), BadLevel> {
        let filter = parse(level, Floor::Off)?;
        let mut levels = self.lock();
        level.clone_into(&mut levels.configured);
        if levels.raised.is_none() {
            self.apply(filter);
        }
        Ok(())
    }

    /// Logs what `level` says until [`Logging::lower`] is called with what this returns, which the caller sees to.
    ///
    /// # Errors
    /// When it is neither a level nor a filter. Nothing is changed then.
    pub fn raise(&self, level: &str, by: &str, since: SystemTime, until: SystemTime) -> Result<Raised, BadLevel> {
        let filter = parse(level, Floor::Audit)?;
        let mut levels = self.lock();
        levels.times += 1;
        let raised = Raised { level: level.into(), by: by.into(), since, until, number: levels.times };
        levels.raised = Some(raised.clone());
        self.apply(filter);
        Ok(raised)
    }

    /// Logs again what the configuration says. With `only`, if nothing else was wanted meanwhile. Says what was logged.
    pub fn lower(&self, only: Option<&Raised>) -> Option<Raised> {
        let mut levels = self.lock();
        let ended = levels.raised.take_if(|raised| only.is_none_or(|only| only == raised))?;
        if let Ok(filter) = parse(&levels.configured, Floor::Off) {
            self.apply(filter);
        }
        Some(ended)
    }

    /// What is logged, and what would be.
    pub fn levels(&self) -> Levels {
        self.lock().clone()
    }

    /// Whether levels have any effect: not where the program around this logs in a way of its own.
    pub fn decides(&self) -> bool {
        self.filter.is_some()
    }

    /// Waits until what was logged is written, a second where standard error takes nothing. For the end of the process.
    pub fn flush(&self) {
        if let Some(lines) = &self.lines {
            lines.flush();
        }
    }

    /// Lines that were not written.
    pub fn dropped(&self) -> u64 {
        self.lines.as_ref().map_or(0, |lines| lines.rest().dropped())
    }

    fn apply(&self, filter: EnvFilter) {
        if let Some(handle) = &self.filter {
            // Fails only where the subscriber is gone, and then there is nothing to change.
            let _ = handle.reload(filter);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that says neither a level nor a filter.
#[derive(Debug)]
pub struct BadLevel {
    level: String,
    source: Option<ParseError>,
}

impl fmt::Display for BadLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neither a log level nor a filter: {:?}", self.level)
    }
}

impl Error for BadLevel {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

fn subscriber<W>(config: &LogConfig, writer: W, colours: bool) -> (impl Subscriber + Send + Sync + use<W>, Logging)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The check of the configuration has refused a level that does not parse.
    let filter = parse(&config.level, Floor::Off).unwrap_or_else(|_| EnvFilter::new("info"));
    let levels = Levels { configured: config.level.clone(), raised: None, times: 0 };
    let (filter, handle) = reload::Layer::new(filter);
    // What cannot be written is counted; to say so on standard error is what could not be done.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).log_internal_errors(false);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    (
        Registry::default().with(filter).with(lines),
        Logging { filter: Some(handle), levels: Arc::new(Mutex::new(levels)), lines: None },
    )
}

/// Whether changes by hand may go unseen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Floor {
    /// They may: the configuration that says so means it.
    Off,
    /// It cannot be set so in a running process.
    Audit,
}

/// Like [`EnvFilter::try_new`], but a few things differ. Changes by hand are logged whatever the level, unless the text speaks of them
/// itself. Libraries are heard where they are named, see [`quiet`]. White space around a part is none of it. And a lone word must
/// be a level: `EnvFilter` takes `inof` for the name of a module and then logs nothing at all.
fn parse(level: &str, floor: Floor) -> Result<EnvFilter, BadLevel> {
    let bad = |source| BadLevel { level: level.into(), source };
    let text = log_filter(level);
    if text.is_empty() || text.split(',').any(|part| lone(part).is_some_and(|level| level.is_none())) {
        return Err(bad(None));
    }
    let filter = EnvFilter::try_new(quiet(&text)).map_err(|source| bad(Some(source)))?;
    let silent = text.eq_ignore_ascii_case("off") || text.contains(audit::TARGET);
    if silent && floor == Floor::Off {
        return Ok(filter);
    }
    let audit = format!("{}=info", audit::TARGET).parse().map_err(|source| bad(Some(source)))?;
    Ok(filter.add_directive(audit))
}

/// A part of a filter that is a word alone: the level that it is, if it is one.
fn lone(part: &str) -> Option<Option<LevelFilter>> {
    (!part.contains(['=', '['])).then(|| LevelFilter::from_str(part).ok())
}

/// Keeps the libraries quiet where the filter does not speak of them. What it says of one, or of a module of one, holds.
///
/// At `debug` and `trace` they tell of each frame and each event of a socket, and what isobar says of a request could not be found among
/// that: such a level alone is isobar's, and all else is logged at `info`. `h2` is logged at `error`: it warns of frames that make
/// no sense, a line for each, and a client that sends them could fill a disk and have the workers wait for it. They are counted instead
/// (`listener::http2`).
fn quiet(filter: &str) -> Cow<'_, str> {
    // The last holds.
    let everything = filter.split(',').filter_map(lone).next_back().flatten();
    match everything {
        Some(LevelFilter::INFO | LevelFilter::WARN) => format!("h2=error,{filter}").into(),
        Some(level @ (LevelFilter::DEBUG | LevelFilter::TRACE)) => {
            let others = filter.split(',').filter(|part| lone(part).is_none());
            let others: String = others.flat_map(|part| [",", part]).collect();
            format!("info,h2=error,{OWN}={level}{others}").into()
        }
        _ => filter.into(),
    }
}

/// What the names of isobar's own modules begin with.
const OWN: &str = env!("CARGO_CRATE_NAME");

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    fn logged(format: LogFormat, level: &str, colours: bool, events: impl FnOnce(&Logging, &Lines)) {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = LogConfig { level: level.into(), format };
        let (subscriber, logging) = subscriber(&config, move || writer.clone(), colours);
        tracing::subscriber::with_default(subscriber, || events(&logging, &lines));
    }

    #[test]
    fn the_level_decides_and_can_be_changed() {
        logged(LogFormat::Text, "info", false, |logging, lines| {
            tracing::debug!("not yet");
            tracing::info!(upstream = "users", "kept");
            let text = lines.take();
            assert!(text.contains("INFO") && text.contains("kept upstream=\"users\""), "{text}");
            assert!(!text.contains("not yet") && !text.contains('\x1b'), "{text}");

            logging.set_level("warn,isobar=debug").unwrap();
            tracing::debug!("now");
            tracing::debug!(target: "hyper", "not this");
            let text = lines.take();
            assert!(text.contains("now") && !text.contains("not this"), "{text}");

            logging.set_level("error").unwrap();
            tracing::warn!("too little");
            assert_eq!(lines.take(), "");
        });
    }

    #[test]
    fn a_level_for_a_time_outlives_reloads_and_goes_back() {
        logged(LogFormat::Text, "warn", false, |logging, lines| {
            let debug_shown = || {
                tracing::debug!("looked");
                lines.take().contains("looked")
            };
            let now = SystemTime::now();
            assert!(!debug_shown());
            let first = logging.raise("debug", "uid 0", now, now).unwrap();
            assert!(debug_shown());
            logging.set_level("error").unwrap();
            assert!(debug_shown(), "a reload does not end it");
            assert_eq!(logging.levels().level(), "debug");
            let second = logging.raise("debug", "uid 0", now, now).unwrap();
            assert_eq!(logging.lower(Some(&first)), None, "another one has begun");
            assert!(debug_shown());
            assert_eq!(logging.lower(Some(&second)), Some(second.clone()));
            assert!(!debug_shown());
            assert_eq!((logging.levels().level(), logging.lower(None)), ("error", None));
            assert!(logging.raise("loud", "uid 0", now, now).is_err());
        });
    }

    #[test]
    fn changes_by_hand_are_logged_whatever_the_level() {
        logged(LogFormat::Text, "error", false, |logging, lines| {
            let seen = || {
                audit::refused("uid 0", "drain", "no");
                lines.take().contains("isobar::audit")
            };
            assert!(seen());
            let now = SystemTime::now();
            logging.raise("off,isobar::audit=off", "uid 0", now, now).unwrap();
            assert!(seen(), "and cannot be hidden by such a change");
            logging.lower(None);
            logging.set_level("off").unwrap();
            assert!(!seen(), "but the file can switch everything off");
            logging.set_level("info,isobar::audit=off").unwrap();
            assert!(!seen());
        });
    }

    #[test]
    fn who_may_not_change_anything_does_not_fill_the_log() {
        logged(LogFormat::Text, "error", false, |_, lines| {
            let strangers = audit::Strangers::default();
            for _ in 0..1000 {
                strangers.refused("192.0.2.1:80", &format!("POST /{}", "\u{e4}".repeat(10_000)), "no token");
            }
            let text = lines.take();
            assert_eq!(text.lines().count(), 10);
            assert!(text.len() < 10_000, "{}", text.len());
        });
    }

    #[test]
    fn white_space_around_a_part_is_none_of_it() {
        logged(LogFormat::Text, " info ", false, |logging, lines| {
            tracing::info!("seen");
            assert!(lines.take().contains("seen"));
            logging.set_level("warn , isobar=debug").unwrap();
            tracing::debug!("seen too");
            assert!(lines.take().contains("seen too"));
        });
    }

    #[test]
    fn a_level_alone_is_not_that_of_the_libraries() {
        logged(LogFormat::Text, "info", false, |logging, lines| {
            for (level, ours, theirs) in [
                ("info", false, false),
                ("debug", true, false),
                ("TRACE", true, false),
                ("debug,hyper=debug", true, true),
                ("isobar::proxy=info,debug", true, false),
                ("debug,isobar=info", false, false),
                ("isobar=debug", true, false),
            ] {
                logging.set_level(level).unwrap();
                tracing::debug!("ours");
                tracing::debug!(target: "hyper::proto", "theirs");
                tracing::debug!(target: "rustls::server", "theirs");
                tracing::info!(target: "somebody", "of note");
                let text = lines.take();
                assert_eq!((text.contains("ours"), text.contains("hyper::proto: theirs")), (ours, theirs), "{level}");
                assert!(!text.contains("rustls"), "{level}");
                assert_eq!(text.contains("of note"), level != "isobar=debug", "{level}");
            }
        });
    }

    #[test]
    fn what_peers_make_a_library_say_is_asked_for_by_its_name() {
        logged(LogFormat::Text, "info", false, |logging, lines| {
            for (level, seen) in [
                ("info", false),
                ("warn", false),
                ("off", false),
                ("isobar=info", false),
                ("info,isobar::proxy=debug", false),
                ("debug", false),
                ("debug,h2=debug", true),
                ("isobar=info,TRACE", false),
                ("info,h2=warn", true),
                ("info,h2::proto=warn", true),
                ("h2=warn,info", true),
                ("info,h2::codec=off", false),
                ("info,h2::codec=debug", false),
                ("info,h2x=off", false),
                ("info, debug", false),
                (" warn , isobar=debug ", false),
                ("debug,info", false),
            ] {
                logging.set_level(level).unwrap();
                tracing::warn!(target: "h2::proto::ping_pong", "what is this");
                assert_eq!(lines.take().contains("what is this"), seen, "{level}");
            }
        });
    }

    #[test]
    fn json_is_an_object_a_line() {
        logged(LogFormat::Json, "info", true, |_, lines| {
            tracing::warn!(backend = "10.0.0.1:9001", "could not connect");
            let text = lines.take();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["message"], "could not connect");
            assert_eq!(value["backend"], "10.0.0.1:9001");
            assert_eq!(value["level"], "WARN");
            assert_eq!(text.matches('\n').count(), 1);
        });
    }

    #[test]
    fn colours_only_where_asked_for() {
        logged(LogFormat::Text, "info", true, |_, lines| {
            tracing::info!("colourful");
            assert!(lines.take().contains('\x1b'));
        });
    }

    #[test]
    fn a_misspelt_level_changes_nothing() {
        logged(LogFormat::Text, "info", false, |logging, lines| {
            for bad in ["inof", "", " ", "isobar=loud", "info,hyper"] {
                assert!(logging.set_level(bad).is_err(), "{bad}");
            }
            tracing::info!("still here");
            assert!(lines.take().contains("still here"));
        });
    }

    #[test]
    fn beginning_twice_is_no_harm() {
        let config = LogConfig { level: "error".into(), format: LogFormat::Text };
        init(&config).unwrap();
        let second = init(&config).unwrap();
        assert!(second.filter.is_none());
        second.set_level("error").unwrap();
    }
}
