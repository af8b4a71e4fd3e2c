//! What concerns the process as a whole: workers, the admin address, logs.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::Check;
use super::listener::socket_address;
use super::value::{choice, is_file_path, number, number_in};
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::kind::{FilePath, Word};
use crate::config::raw;
use crate::config::report::Place;
use crate::config::{AccessLogConfig, AccessLogFormat, AccessLogOutput, LogConfig, LogFormat};
use crate::config::{AdminConfig, Secret, log_filter};

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
            let problem = Problem::error(format!("unknown value {}", check.quote(place, text)));
            let suggestion = text.parse::<u16>().is_err().then(|| "auto".to_owned());
            check.add(place, problem.expected("a whole number or \"auto\"").suggest(suggestion));
            None
        }
    }
}

/// Shorter tokens can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;
/// What the kernel takes for the path of a socket, less what is put behind it while it is made.
const SOCKET_PATH_BYTES_MAX: usize = 96;

/// `[admin]`; `None` where there is neither an address nor a socket.
pub(super) fn admin(check: &Check<'_>, field: &Field<raw::Admin>) -> Option<AdminConfig> {
    let plain = AdminConfig { address: Some(ADMIN), token: None, unix_socket: None };
    let Some(admin) = field.value() else { return Some(plain) };
    let address = admin.address.given().and_then(|(place, text)| socket_address(check, place, text));
    let token = admin.token.given().and_then(|(place, text)| token(check, place, text.reveal()));
    let unix_socket = admin.unix_socket.given().and_then(|(place, text)| unix_socket(check, place, text));
    let on = admin.enabled.value().copied().unwrap_or(true);
    let address = on.then(|| address.unwrap_or(ADMIN));
    (on || unix_socket.is_some()).then_some(AdminConfig { address, token, unix_socket })
}

/// What is wrong with it is said without saying it.
fn token(check: &Check<'_>, place: Place, text: &str) -> Option<Secret> {
    let good = |c: char| c.is_ascii_graphic();
    if text.len() >= TOKEN_CHARACTERS_MIN && text.chars().all(good) {
        // What comes from the environment is not in the file.
        if let Some(access) = check.access.filter(|access| access.is_everybodys() && !check.report.is_filled(place)) {
            let problem = Problem::warning(format!("the token can be read by everybody: this file has mode {access}"));
            let mend = access.mend(check.report.file());
            check.add(
                place,
                problem.expected(format!("it from the environment, \"${{ISOBAR_ADMIN_TOKEN}}\", or {mend}")),
            );
        }
        return Some(Secret::from(text));
    }
    let what = match text.len() {
        0 => "the token is empty",
        1..TOKEN_CHARACTERS_MIN => "the token is too short",
        _ => "the token cannot be sent in a header",
    };
    let expected = format!("at least {TOKEN_CHARACTERS_MIN} letters, digits or signs, without spaces");
    check.add(place, Problem::error(what).expected(expected));
    None
}

fn unix_socket(check: &Check<'_>, place: Place, text: &str) -> Option<PathBuf> {
    if !text.ends_with('/') && is_file_path(text) && text.len() <= SOCKET_PATH_BYTES_MAX {
        return Some(PathBuf::from(text));
    }
    let expected = format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes, such as \"/run/isobar.sock\"");
    check.add(place, Problem::error(format!("{} is not a socket's path", check.quote(place, text))).expected(expected));
    None
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
fn level(check: &Check<'_>, field: &Field<Word>) -> String {
    let default = "info".to_owned();
    let Some((place, text)) = field.given() else { return default };
    let text = log_filter(text);
    let words = text.split(',').filter(|word| !word.contains(['=', '[']));
    for word in words {
        if !LEVELS.contains(&word.to_lowercase().as_str()) {
            let problem = Problem::error(format!("unknown level {}", check.quote(place, word))).one_of(word, LEVELS);
            check.add(place, problem);
            return default;
        }
    }
    if let Err(error) = EnvFilter::try_new(&text) {
        let why = if check.report.is_filled(place) { String::new() } else { format!(": {error}") };
        let problem = Problem::error(format!("{} is not a filter{why}", check.quote(place, &text)));
        check.add(place, problem.expected("a level, or a filter such as \"info,isobar::proxy=debug\""));
        return default;
    }
    text
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

fn output(check: &Check<'_>, field: &Field<FilePath>) -> AccessLogOutput {
    match field.given() {
        None => AccessLogOutput::Stdout,
        Some((_, text)) if text.as_str() == "stdout" => AccessLogOutput::Stdout,
        Some((place, text)) if !is_file_path(text) => {
            let problem = Problem::error(format!("{} is not a file's path", check.quote(place, text)));
            check.add(place, problem.expected("\"stdout\" or the path of a file"));
            AccessLogOutput::Stdout
        }
        Some((_, text)) => AccessLogOutput::File(PathBuf::from(text.as_str())),
    }
}
