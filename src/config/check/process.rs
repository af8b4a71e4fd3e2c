//! What concerns the process as a whole: workers, the admin address, logs.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::Check;
use super::listener::socket_address;
use super::value::{choice, number, number_in};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::raw;
use crate::config::report::quote;
use crate::config::{AccessLogConfig, AccessLogFormat, AccessLogOutput, LogConfig, LogFormat};

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9900);
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Threads; `None` is one per core.
pub(super) fn workers(check: &Check<'_>, field: &Field<raw::Workers>) -> Option<NonZeroUsize> {
    match field.given()? {
        (place, raw::Workers::Integer(workers)) => {
            let workers = number_in(check, place, *workers, 1..=1024)?;
            usize::try_from(workers).ok().and_then(NonZeroUsize::new)
        }
        (_, raw::Workers::String(text)) if text == "auto" => None,
        (place, raw::Workers::String(text)) => {
            let problem = Problem::error(format!("unknown value {}", quote(text)));
            let suggestion = text.parse::<u16>().is_err().then(|| "auto".to_owned());
            check.add(place, problem.expected("a whole number or \"auto\"").suggest(suggestion));
            None
        }
    }
}

/// The admin address; `None` when switched off.
pub(super) fn admin(check: &Check<'_>, field: &Field<raw::Admin>) -> Option<SocketAddr> {
    let Some(admin) = field.value() else { return Some(ADMIN) };
    let address = admin.address.given().and_then(|(place, text)| socket_address(check, place, text));
    admin.enabled.value().copied().unwrap_or(true).then(|| address.unwrap_or(ADMIN))
}

/// `[log]`
pub(super) fn log(check: &Check<'_>, field: &Field<raw::Log>) -> LogConfig {
    let default = raw::Log::default();
    let log = field.value().unwrap_or(&default);
    LogConfig {
        level: level(check, &log.level),
        format: choice(check, &log.format, LogFormat::Text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
    }
}

/// A level or a filter. tracing takes a misspelt level for the name of a module to log everything of, so the words that
/// stand alone are looked at here.
fn level(check: &Check<'_>, field: &Field<String>) -> String {
    let default = "info".to_owned();
    let Some((place, text)) = field.given() else { return default };
    let words = text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[']));
    for word in words {
        if !LEVELS.contains(&word.to_lowercase().as_str()) {
            let problem = Problem::error(format!("unknown level {}", quote(word))).one_of(word, LEVELS);
            check.add(place, problem);
            return default;
        }
    }
    if let Err(error) = EnvFilter::try_new(text) {
        let problem = Problem::error(format!("{} is not a filter: {error}", quote(text)));
        check.add(place, problem.expected("a level, or a filter such as \"info,isobar::proxy=debug\""));
        return default;
    }
    text.clone()
}

/// `[access_log]`; `None` when it is off.
pub(super) fn access_log(check: &Check<'_>, field: &Field<raw::AccessLog>) -> Option<AccessLogConfig> {
    let access_log = field.value()?;
    let formats = [("json", AccessLogFormat::Json), ("combined", AccessLogFormat::Combined)];
    let buffer = number(check, &access_log.buffer, 8192, 1..=1_000_000);
    let config = AccessLogConfig {
        format: choice(check, &access_log.format, AccessLogFormat::Json, &formats),
        output: output(check, &access_log.output),
        buffer: usize::try_from(buffer).unwrap_or_default(),
    };
    access_log.enabled.value().copied().unwrap_or(false).then_some(config)
}

fn output(check: &Check<'_>, field: &Field<String>) -> AccessLogOutput {
    match field.given() {
        None => AccessLogOutput::Stdout,
        Some((_, text)) if text == "stdout" => AccessLogOutput::Stdout,
        Some((place, text)) if text.is_empty() || text.contains('\0') => {
            let problem = Problem::error(format!("{} is not a file's path", quote(text)));
            check.add(place, problem.expected("\"stdout\" or the path of a file"));
            AccessLogOutput::Stdout
        }
        Some((_, text)) => AccessLogOutput::File(PathBuf::from(text)),
    }
}
