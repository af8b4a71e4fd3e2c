//! The parts of Consul's HTTP API that client libraries use to register, to look up services, and to say how they do.
//!
//! Its answers are made from [its documentation](https://developer.hashicorp.com/consul/api-docs). One process plays the agent and the server: an
//! agent's services are all services.

use std::time::Duration;

use http::header::HeaderValue;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

mod register;
mod view;

use super::answer::{RegistryAnswer, RegistryRefusal, empty, json as answer_json};
use super::ask::Ask;
use super::catalog::{Catalog, Unknown};
use super::instance::{Api, Instance, InstanceKey, Status};
use super::{NotSaved, limits};

/// How long a query with an index waits that says nothing of it, and the longest.
const WAIT: Duration = Duration::from_secs(300);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Answers a request for `/v1/…`; `path` is what follows.
pub(super) async fn answer(ask: &Ask<'_>, path: &[&str]) -> Result<RegistryAnswer, RegistryRefusal> {
    refuse_elsewhere(ask)?;
    let reads = ask.method == Method::GET || ask.method == Method::HEAD;
    match path {
        ["agent", "service", "register"]
        | ["agent", "service", "deregister", _]
        | ["agent", "service", "maintenance", _]
        | ["agent", "check", "register"]
        | ["agent", "check", "deregister" | "pass" | "warn" | "fail" | "update", _] => {
            if ask.method != Method::PUT {
                return Err(not_allowed(ask, "PUT"));
            }
            change(ask, path).await
        }
        ["kv", ..] if reads => Err(RegistryRefusal::new(StatusCode::NOT_FOUND, "this registry has no keys and values")),
        _ if reads => {
            if !ask.rights.may_read() {
                return Err(denied("read"));
            }
            read(ask, path).await
        }
        _ => Err(RegistryRefusal::not_here(format!("isobar's registry has no {} {}", ask.method, ask.path))),
    }
}

/// What only another datacenter, or Consul Enterprise, could answer.
fn refuse_elsewhere(ask: &Ask<'_>) -> Result<(), RegistryRefusal> {
    let ours = &ask.config.datacenter;
    if ask.query.get("dc").is_some_and(|dc| !dc.is_empty() && *dc != **ours) {
        return Err(RegistryRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter"));
    }
    for key in ["ns", "partition", "peer", "sg"] {
        if ask.query.get(key).is_some_and(|value| !matches!(value, "" | "default")) {
            return Err(RegistryRefusal::not_here(format!("isobar's registry has no {key}")));
        }
    }
    for key in ["filter", "node-meta"] {
        if ask.query.get(key).is_some_and(|value| !value.is_empty()) {
            return Err(RegistryRefusal::not_here(format!("isobar's registry has no {key}; it has tag and passing")));
        }
    }
    Ok(())
}

async fn read(ask: &Ask<'_>, path: &[&str]) -> Result<RegistryAnswer, RegistryRefusal> {
    let shown = view::Shown::of(ask);
    match path {
        ["status", "leader"] => Ok(answer_json(&shown.leader().into())),
        ["status", "peers"] => Ok(answer_json(&json!([shown.leader()]))),
        ["agent", "self"] => Ok(answer_json(&shown.agent())),
        ["agent", "members"] => Ok(answer_json(&json!([shown.member()]))),
        ["agent", "services"] => Ok(of_all(ask, |all| shown.agent_services(all))),
        ["agent", "checks"] => Ok(of_all(ask, |all| shown.agent_checks(all))),
        ["agent", "service", id] => agent_service(ask, &shown, id),
        ["agent", "health", "service", "id", id] => agent_health(ask, &shown, |it| it.said.id == *id),
        ["agent", "health", "service", "name", name] => {
            agent_health(ask, &shown, |it| it.said.service.eq_ignore_ascii_case(name))
        }
        ["catalog", "datacenters"] => Ok(answer_json(&json!([&*ask.config.datacenter]))),
        ["catalog", "nodes"] => blocking(ask, None, |catalog| json!([shown.catalog_node(catalog.index())])).await,
        ["catalog", "services"] => blocking(ask, None, view::catalog_services).await,
        ["catalog", "service", name] => {
            blocking(ask, Some(name), |catalog| listed(ask, catalog, name, |it| shown.catalog_service(it))).await
        }
        ["health", "service", name] => {
            blocking(ask, Some(name), |catalog| listed(ask, catalog, name, |it| shown.health_service(it))).await
        }
        ["health", "checks", name] => {
            blocking(ask, Some(name), |catalog| {
                catalog.of_service(name).flat_map(|instance| shown.checks(instance)).collect()
            })
            .await
        }
        ["health", "state", state] => {
            let wanted = Status::of(state);
            if wanted.is_none() && *state != "any" {
                return Err(RegistryRefusal::bad(format!("{state:?} is no state: any, passing, warning or critical")));
            }
            blocking(ask, None, |catalog| {
                let all = catalog.all().flat_map(|instance| shown.checks(instance));
                all.filter(|check| wanted.is_none_or(|wanted| check["Status"] == wanted.as_str())).collect()
            })
            .await
        }
        _ => Err(RegistryRefusal::not_here(format!("isobar's registry has no {}", ask.path))),
    }
}

/// The instances of a service that a query is for.
fn listed(ask: &Ask<'_>, catalog: &Catalog, name: &str, show: impl Fn(&Instance) -> Value) -> Value {
    let tags: Vec<_> = ask.query.all("tag").filter(|tag| !tag.is_empty()).collect();
    let passing = ask.query.has("passing");
    let instances = catalog
        .of_service(name)
        .filter(|instance| instance.has_tags(&tags) && (!passing || instance.status() == Status::Passing));
    instances.map(|instance| show(instance)).collect()
}

fn of_all(ask: &Ask<'_>, show: impl FnOnce(&mut dyn Iterator<Item = &Instance>) -> Value) -> RegistryAnswer {
    let catalog = ask.registry.lock();
    let shown = show(&mut catalog.all().map(|it| &**it));
    drop(catalog);
    answer_json(&shown)
}

/// An instance by its id, and a hash of what is said of it.
fn agent_service(ask: &Ask<'_>, shown: &view::Shown<'_>, id: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    let instance = ask.registry.lock().all().find(|it| it.said.id == id).cloned();
    let instance = instance.ok_or_else(|| unknown_service(id))?;
    let mut service = shown.service(&instance);
    let hash = format!("{:016x}", instance.modified);
    service["ContentHash"] = hash.clone().into();
    service["Datacenter"] = (*ask.config.datacenter).into();
    let mut answer = answer_json(&service);
    answer.headers_mut().extend(
        HeaderValue::try_from(hash).ok().map(|hash| (http::HeaderName::from_static("x-consul-contenthash"), hash)),
    );
    Ok(answer)
}

/// How instances do, by the status of the answer: 200, 429 or 503, and 404 where there are none.
fn agent_health(
    ask: &Ask<'_>,
    shown: &view::Shown<'_>,
    wanted: impl Fn(&Instance) -> bool,
) -> Result<RegistryAnswer, RegistryRefusal> {
    let by_name = ask.path.contains("/health/service/name/");
    let found: Vec<_> = ask.registry.lock().all().filter(|it| wanted(it)).cloned().collect();
    let Some(worst) = found.iter().map(|it| it.status()).max() else {
        return Err(RegistryRefusal::new(StatusCode::NOT_FOUND, "ServiceId not found"));
    };
    let status = match worst {
        Status::Passing => StatusCode::OK,
        Status::Warning => StatusCode::TOO_MANY_REQUESTS,
        Status::Critical => StatusCode::SERVICE_UNAVAILABLE,
    };
    let all: Vec<_> = found
        .iter()
        .map(|it| json!({ "AggregatedStatus": it.status().as_str(), "Service": shown.service(it), "Checks": shown.own_checks(it) }))
        .collect();
    let mut answer = match (ask.query.get("format"), by_name) {
        (Some("text"), _) => super::answer::body(worst.as_str(), "text/plain"),
        (_, true) => answer_json(&all.into()),
        (_, false) => answer_json(&all.into_iter().next().unwrap_or_default()),
    };
    *answer.status_mut() = status;
    Ok(answer)
}

/// Answers when the index of a service, or of all, is another than the query's.
async fn blocking(
    ask: &Ask<'_>,
    service: Option<&str>,
    show: impl Fn(&Catalog) -> Value,
) -> Result<RegistryAnswer, RegistryRefusal> {
    let asked = match ask.query.get("index") {
        None | Some("") => 0,
        Some(text) => text.parse::<u64>().map_err(|_| RegistryRefusal::bad("Invalid index"))?,
    };
    let wait = match ask.query.get("wait") {
        None | Some("") => WAIT,
        Some(text) => register::duration(&text.into()).ok_or_else(|| RegistryRefusal::bad("Invalid wait time"))?,
    };
    let wait = wait.min(WAIT_MAX);
    let jitter = wait.mul_f64(f64::from(rand::random::<u16>()) / f64::from(u16::MAX) / 16.0);
    let deadline = Instant::now() + wait + jitter;
    let index_of = |catalog: &Catalog| service.map_or(catalog.index(), |name| catalog.index_of(name));
    let mut changes = ask.registry.changes();
    let mut stopped = ask.stopped.clone();
    loop {
        let (index, shown) = {
            let catalog = ask.registry.lock();
            let index = index_of(&catalog);
            // An index from the future is one of another registry.
            (index, (asked != index || Instant::now() >= deadline).then(|| show(&catalog)))
        };
        if let Some(shown) = shown {
            return Ok(with_index(answer_json(&shown), index));
        }
        let changed = timeout_at(deadline, async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                _ = stopped.changed() => false,
            }
        });
        if changed.await == Ok(false) {
            let (index, shown) = {
                let catalog = ask.registry.lock();
                (index_of(&catalog), show(&catalog))
            };
            return Ok(with_index(answer_json(&shown), index));
        }
    }
}

fn with_index(mut answer: RegistryAnswer, index: u64) -> RegistryAnswer {
    let headers = answer.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(index));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    headers.insert("x-consul-effective-consistency", HeaderValue::from_static("leader"));
    answer
}

async fn change(ask: &Ask<'_>, path: &[&str]) -> Result<RegistryAnswer, RegistryRefusal> {
    match path {
        ["agent", "service", "register"] => register(ask).await,
        ["agent", "service", "deregister", id] => {
            let key = owned(ask, id)?;
            changed(ask.registry.deregister(&key), || unknown_service(id))?;
            saved(ask).await
        }
        ["agent", "service", "maintenance", id] => {
            let key = owned(ask, id)?;
            let reason = match ask.query.get("enable") {
                Some("true" | "1") => Some(reason(ask.query.get("reason"))?),
                Some("false" | "0") => None,
                _ => return Err(RegistryRefusal::bad("Missing value for enable")),
            };
            let set = ask.registry.change(|catalog, now, _| catalog.set_maintenance(&key, reason, now));
            changed(set, || unknown_service(id))?;
            saved(ask).await
        }
        ["agent", "check", "register"] => add_check(ask).await,
        ["agent", "check", "deregister", id] => {
            owned_check(ask, id)?;
            let removed = ask.registry.change(|catalog, now, rules| catalog.remove_check(id, now, rules));
            changed(removed, || unknown_check(id))?;
            saved(ask).await
        }
        ["agent", "check", "update", id] => {
            let (status, output) = register::check_update(ask.body)?;
            heartbeat(ask, id, status, &output)
        }
        ["agent", "check", verb, id] => {
            let status = match *verb {
                "pass" => Status::Passing,
                "warn" => Status::Warning,
                _ => Status::Critical,
            };
            heartbeat(ask, id, status, ask.query.get("note").unwrap_or_default())
        }
        _ => Err(unknown_service(ask.path)),
    }
}

async fn register(ask: &Ask<'_>) -> Result<RegistryAnswer, RegistryRefusal> {
    let said = register::registration(ask.body, ask.peer.ip(), &ask.config)?;
    limits::refuse(&said).map_err(RegistryRefusal::bad)?;
    may_write(ask, &said.service)?;
    let key = said.key();
    // In this API an id may have been another service's.
    if let Some(before) = ask.registry.lock().get(&key) {
        may_write(ask, &before.said.service)?;
    }
    ask.registry.register(said)?;
    saved(ask).await
}

async fn add_check(ask: &Ask<'_>) -> Result<RegistryAnswer, RegistryRefusal> {
    let (service_id, spec) = register::check_of_service(ask.body, &ask.config)?;
    let key = owned(ask, &service_id)?;
    let said = ask
        .registry
        .lock()
        .get(&key)
        .map(|instance| instance.said.clone())
        .ok_or_else(|| unknown_service(&service_id))?;
    let mut with_it = said;
    with_it.checks.retain(|check| check.id != spec.id);
    with_it.checks.push(spec);
    limits::refuse(&with_it).map_err(RegistryRefusal::bad)?;
    ask.registry.register(with_it)?;
    saved(ask).await
}

fn heartbeat(ask: &Ask<'_>, check_id: &str, status: Status, output: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    owned_check(ask, check_id)?;
    let (before, beaten) = ask.registry.change(|catalog, now, _| {
        let before = catalog.status_of_check(check_id);
        (before, catalog.heartbeat(check_id, status, output, now))
    });
    changed(beaten, || unknown_check(check_id))?;
    if before != Some(status) {
        // Another time counts from now on.
        ask.registry.clock.notify_one();
    }
    Ok(empty(StatusCode::OK))
}

/// The instance of an id, where the client may change it.
fn owned(ask: &Ask<'_>, id: &str) -> Result<InstanceKey, RegistryRefusal> {
    let key = InstanceKey::of_consul(id);
    let service = ask.registry.lock().get(&key).map(|instance| instance.said.service.clone());
    match service {
        Some(service) => may_write(ask, &service).map(|()| key),
        // A client that may register nothing is told nothing.
        None if !ask.rights.may_read() => Err(denied("write")),
        None => Err(unknown_service(id)),
    }
}

fn owned_check(ask: &Ask<'_>, check_id: &str) -> Result<(), RegistryRefusal> {
    let service = ask.registry.lock().of_check(check_id).map(|instance| instance.said.service.clone());
    match service {
        Some(service) => may_write(ask, &service),
        None if !ask.rights.may_read() => Err(denied("write")),
        None => Err(unknown_check(check_id)),
    }
}

fn may_write(ask: &Ask<'_>, service: &str) -> Result<(), RegistryRefusal> {
    if ask.rights.may_write(service) { Ok(()) } else { Err(denied("write")) }
}

async fn saved(ask: &Ask<'_>) -> Result<RegistryAnswer, RegistryRefusal> {
    ask.registry.clock.notify_one();
    ask.registry.checks.notify_one();
    match ask.registry.saved().await {
        Ok(()) => Ok(empty(StatusCode::OK)),
        Err(NotSaved) => {
            let what = "what was changed could not be written to the disk of the registry";
            Err(RegistryRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, what))
        }
    }
}

fn changed(result: Result<(), Unknown>, refusal: impl FnOnce() -> RegistryRefusal) -> Result<(), RegistryRefusal> {
    result.map_err(|Unknown| refusal())
}

fn reason(text: Option<&str>) -> Result<String, RegistryRefusal> {
    /// Characters of a reason.
    const LONGEST: usize = 512;
    let text = text.filter(|text| !text.is_empty()).unwrap_or("Maintenance mode is enabled for this service");
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        return Err(RegistryRefusal::bad(format!(
            "the reason is longer than {LONGEST} bytes, or has control characters"
        )));
    }
    Ok(text.to_owned())
}

fn denied(what: &str) -> RegistryRefusal {
    RegistryRefusal::new(StatusCode::FORBIDDEN, format!("Permission denied: the token may not {what} this"))
}

fn unknown_service(id: &str) -> RegistryRefusal {
    RegistryRefusal::new(
        StatusCode::NOT_FOUND,
        format!("Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name."),
    )
}

fn unknown_check(id: &str) -> RegistryRefusal {
    RegistryRefusal::new(
        StatusCode::NOT_FOUND,
        format!(
            "Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name, and that it is one with a TTL."
        ),
    )
}

fn not_allowed(ask: &Ask<'_>, method: &str) -> RegistryRefusal {
    let text = format!("method {} not allowed: {method}", ask.method);
    RegistryRefusal::new(StatusCode::METHOD_NOT_ALLOWED, text)
}

impl Instance {
    /// Whether it can be seen in Consul's API under its id alone.
    pub(super) fn is_of_consul(&self) -> bool {
        self.said.api == Api::Consul
    }
}
