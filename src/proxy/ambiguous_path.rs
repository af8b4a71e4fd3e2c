//! The route of a request whose path servers read differently, and what its backend is sent.

use crate::config::{PathPattern, PathRule};
use crate::exchange::RequestHead;
use crate::route::{self, Reading, Route};
use crate::target::{self, Host, authority};

use super::running::RunningExchange;
use super::{HeldSnapshot, ProxyError, host};

/// The route of a request whose path is read so.
pub(super) fn find<'a>(
    running: &'a RunningExchange,
    snapshot: &HeldSnapshot,
    path: Reading<'_>,
    head: &RequestHead,
) -> Result<&'a Route, ProxyError> {
    let index = find_index(running, snapshot, path, head)?;
    Ok(running.routed(snapshot.route(index)))
}

fn find_index(
    running: &RunningExchange,
    snapshot: &HeldSnapshot,
    path: Reading<'_>,
    head: &RequestHead,
) -> Result<usize, ProxyError> {
    let listener = running.exchange.client.listener_name(snapshot.generation, &snapshot.config);
    let routes = &snapshot.routes;
    // To take it out of the field costs more than all else here.
    let host = if routes.looks_at_hosts() { host(head) } else { Host::NONE };
    routes.find_index(&listener, host, path, head).ok_or(ProxyError::NoRoute)
}

/// The route of a request whose path is not plain: that of how a server reads it which decodes everything. The path becomes what the
/// backend is sent, by the rules of the route and of its listener.
#[cold]
pub(super) fn find_spelled<'a>(
    running: &'a RunningExchange,
    snapshot: &HeldSnapshot,
    head: &mut RequestHead,
) -> Result<&'a Route, ProxyError> {
    let path = tidy(head)?;
    let matched = target::path::matched(&path);
    let listener = &running.exchange.client.listener.paths;
    let settled = |rules| route::path::settle(&path, &rules).map_err(ProxyError::Path);
    let index = match find_index(running, snapshot, (&matched).into(), head) {
        Ok(index) => index,
        // What the listener refuses is told so even where nothing would serve it.
        Err(no_route) => return settled(*listener).and(Err(no_route)),
    };
    let rules = snapshot.routes.get(index).config.paths.over(listener);
    let sent = settled(rules).and_then(|sent| {
        let index = otherwise(running, snapshot, head, index, &sent)?;
        Ok((index, sent.into_owned()))
    });
    let route = running.routed(snapshot.route(sent.as_ref().map_or(index, |&(index, _)| index)));
    replace(head, &sent?.1)?;
    Ok(route)
}

/// The number of the route to take for a path that is sent so, where that with number `index` was found for it.
///
/// # Errors
/// A backend that reads the path in another way takes it for what another route is for: then the route depends on a guess.
fn otherwise(
    running: &RunningExchange,
    snapshot: &HeldSnapshot,
    head: &RequestHead,
    index: usize,
    sent: &str,
) -> Result<usize, ProxyError> {
    const GUESS: ProxyError = ProxyError::BadRequest("its route depends on how the path is read");
    let routes = &snapshot.routes;
    let listener = running.exchange.client.listener_name(snapshot.generation, &snapshot.config);
    let find = |host: Host<'_>, path: &str| routes.find_index(&listener, host, Reading::plain(path), head);
    // A server that reads the path as a reference finds another host in it, and another path. What is left for a route of every host or path
    // means no host in particular: sloppy clients begin paths with two slashes, and so do names in object stores.
    if let Some((named, path)) = target::path::as_reference(sent) {
        let named = authority::canonical(named.as_bytes());
        let by_name = named.and_then(|named| find(Host::of(&named), &path));
        let by_name = by_name.filter(|&other| !routes.get(other).config.hosts.is_empty());
        let by_path = find(host(head), &path);
        let by_path = by_path.filter(|&other| routes.get(other).config.path != PathPattern::Prefix(String::new()));
        if by_name.or(by_path).is_some_and(|other| other != index) {
            return Err(GUESS);
        }
    }
    if target::path::has_dots(sent) || target::path::has_slashes_in_parameters(sent) {
        let same = target::path::guesses(sent).iter().all(|path| find(host(head), path) == Some(index));
        return if same { Ok(index) } else { Err(GUESS) };
    }
    // A backend that takes encoded slashes for parts of names. A prefix or an exact path that is found so is a part of what was found;
    // a pattern may be another's, and its route says whether its backend is such a one.
    let literal = target::path::literal(sent).and_then(|literal| find(host(head), &literal));
    let Some(other) = literal.filter(|&other| other != index) else { return Ok(index) };
    let config = &routes.get(other).config;
    let vouches = [config.paths.encoded_slashes, config.paths.backslashes].contains(&Some(PathRule::Keep));
    match config.path {
        PathPattern::Regex(_) if vouches => Ok(other),
        PathPattern::Regex(_) => Err(GUESS),
        _ => Ok(index),
    }
}

/// The path as all servers read it.
pub(super) fn tidy(head: &RequestHead) -> Result<String, ProxyError> {
    match target::path::tidy(head.uri.path()) {
        Ok(path) => Ok(path.into_owned()),
        Err(target::path::Nul) => Err(ProxyError::BadRequest("the path has an escaped NUL")),
    }
}

/// Puts another path in the place of a request's.
pub(super) fn replace(head: &mut RequestHead, path: &str) -> Result<(), ProxyError> {
    if path == head.uri.path() {
        return Ok(());
    }
    route::path::replace(head, path).map_err(ProxyError::BadRequest)
}
