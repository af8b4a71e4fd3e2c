//! What the log says of a start and of a reload.

use std::fmt::Display;
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::Applied;
use super::reload_plan::DifferenceList;
use crate::config::{Config, Problem};
use crate::file_descriptors::DescriptorPlan;
use crate::listener::Listener;

/// Kept upstreams that get a line each at `info`. Past these, lines that say that nothing happened would bury those that
/// say what did: one line counts them, and each has its own at `debug`. Changes always have a line each.
const KEPT_LINES_MAX: usize = 20;

/// Names of routes in the one line about them.
const ROUTES_NAMED_MAX: usize = 8;

pub(super) fn started(config: &Config, listeners: &[Arc<Listener>], workers: usize) {
    for listener in listeners {
        info!(listener = %listener.config.load().name, address = %listener.address, "listening");
    }
    info!(workers, routes = config.routes.len(), upstreams = config.upstreams.len(), "started");
}

/// What the descriptors of the process are enough for, and whether that is less than the file allows.
pub(super) fn descriptors(config: &Config, plan: &DescriptorPlan) {
    let Some(limit) = plan.limit else { return };
    let allowed = config.listeners.iter().map(|listener| listener.max_connections as u64).sum::<u64>();
    let fit = plan.connections;
    if allowed > fit {
        warn!(
            limit,
            connections = fit,
            max_connections = allowed,
            "the limit of file descriptors has room for fewer clients than max_connections; further ones wait until others end"
        );
    } else {
        info!(limit, connections = fit, max_connections = allowed, "file descriptors");
    }
}

pub(super) fn warnings(warnings: &[Problem]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

pub(super) fn applied(applied: &Applied) {
    let Applied { generation, plan, warnings, took } = applied;
    self::warnings(warnings);
    for change in &plan.restart {
        warn!(%change, "takes effect after a restart");
    }
    if plan.is_empty() {
        return info!(generation, "reloaded, nothing changed");
    }
    for change in &plan.settings {
        info!(%change, "setting changed");
    }
    listeners(applied);
    routes(applied);
    middleware(applied);
    upstreams(applied);
    info!(generation, took_us = took.as_micros() as u64, "reloaded");
}

/// What other services have changed.
pub(super) fn services(Applied { generation, plan, took, .. }: &Applied) {
    let upstreams = &plan.upstreams;
    info!(
        generation,
        added = %NamedCount(upstreams.added().map(ToString::to_string).collect()),
        changed = %NamedCount(upstreams.changed().map(|(name, _)| name.to_string()).collect()),
        removed = %NamedCount(upstreams.removed.iter().map(|(name, _)| name.to_string()).collect()),
        took_us = took.as_micros() as u64,
        "services changed"
    );
}

fn listeners(Applied { plan, .. }: &Applied) {
    for (listener, changes) in plan.listeners.changed() {
        info!(%listener, changes = %DifferenceList(changes), "listener changed");
    }
    for listener in plan.listeners.added() {
        info!(%listener, "listener added");
    }
    for (listener, _) in &plan.listeners.removed {
        info!(%listener, "listener removed, its connections are drained");
    }
}

fn routes(Applied { plan, .. }: &Applied) {
    let routes = &plan.routes;
    if routes.is_unchanged() {
        return;
    }
    info!(
        kept = routes.kept().count(),
        changed = %NamedCount(routes.changed().map(|(name, changes)| format!("{name} ({})", DifferenceList(changes))).collect()),
        added = %NamedCount(routes.added().map(ToString::to_string).collect()),
        removed = %NamedCount(routes.removed.iter().map(|(name, _)| name.to_string()).collect()),
        "routes changed"
    );
}

fn middleware(Applied { plan, .. }: &Applied) {
    for (middleware, changes) in plan.middleware.changed() {
        info!(%middleware, changes = %DifferenceList(changes), "middleware changed");
    }
    for middleware in plan.middleware.added() {
        info!(%middleware, "middleware added");
    }
    for (middleware, _) in &plan.middleware.removed {
        info!(%middleware, "middleware removed");
    }
}

fn upstreams(Applied { plan, .. }: &Applied) {
    let upstreams = &plan.upstreams;
    let kept = upstreams.kept().count();
    for upstream in upstreams.kept() {
        if kept <= KEPT_LINES_MAX {
            info!(%upstream, "upstream kept");
        } else {
            debug!(%upstream, "upstream kept");
        }
    }
    if kept > KEPT_LINES_MAX {
        info!(kept, "upstreams kept");
    }
    for (upstream, changes) in upstreams.changed() {
        info!(%upstream, changes = %DifferenceList(changes), "upstream replaced");
    }
    for upstream in upstreams.added() {
        info!(%upstream, "upstream added");
    }
    for (upstream, _) in &upstreams.removed {
        info!(%upstream, "upstream removed");
    }
}

/// A count, and the first few names.
struct NamedCount(Vec<String>);

impl Display for NamedCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.len())?;
        for (i, name) in self.0.iter().take(ROUTES_NAMED_MAX).enumerate() {
            write!(f, "{} {name}", if i == 0 { ":" } else { "," })?;
        }
        if self.0.len() > ROUTES_NAMED_MAX { f.write_str(", …") } else { Ok(()) }
    }
}
