//! Eureka's REST API, as its clients of Spring, Node and Python use it: to register, renew and cancel, to say how an instance does from outside, and
//! to look up applications, whole or by what has changed.
//!
//! Made from the descriptions of its [operations](https://github.com/Netflix/eureka/wiki/Eureka-REST-operations). JSON and XML say the same
//! (`eureka_xml`).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, StatusCode, header};
use serde_json::{Value, json};

mod register;
mod view;

use super::answer::{RegistryAnswer, RegistryRefusal, body, empty};
use super::ask::Ask;
use super::catalog::{Action, NotChanged, Renewal};
use super::instance::{EurekaStatus, Instance, InstanceKey};
use super::{NotSaved, limits, too_large};
use crate::eureka_xml;

/// More instances are shown beside the thread that all of the control plane has.
const MANY: usize = 200;

/// Answers a request for `/eureka/…`; `path` is what follows.
pub(super) async fn answer(ask: &Ask<'_>, path: &[&str]) -> Result<RegistryAnswer, RegistryRefusal> {
    // Netflix's own servers have another beginning than Spring's.
    let path = path.strip_prefix(&["v2"]).unwrap_or(path);
    let reads = ask.method == Method::GET || ask.method == Method::HEAD;
    if reads && !ask.rights.may_read() {
        return Err(denied(ask));
    }
    match (ask.method.as_str(), path) {
        (_, ["apps"]) if reads => all(ask, |_| true, None).await,
        (_, ["apps", "delta"]) if reads => delta(ask).await,
        (_, ["apps", app]) if reads => application(ask, app),
        (_, ["apps", app, id]) if reads => {
            instance(ask, |it| it.said.id == *id && it.said.service.eq_ignore_ascii_case(app))
        }
        (_, ["instances", id]) if reads => instance(ask, |it| it.said.id == *id),
        (_, [vips @ ("vips" | "svips"), vip]) if reads => {
            let (secure, vip) = (*vips == "svips", (*vip).to_owned());
            all(ask, move |it| view::has_vip(it, &vip, secure), Some("-1")).await
        }
        ("POST", ["apps", app]) => register(ask, app).await,
        ("PUT", ["apps", app, id]) => renew(ask, app, id),
        ("DELETE", ["apps", app, id]) => {
            let key = owned(ask, app, id)?;
            ask.registry.deregister(&key).map_err(|_| unknown(app, id))?;
            saved(ask, StatusCode::OK).await
        }
        ("PUT", ["apps", app, id, "status"]) => {
            let status = status(ask.query.get("value").unwrap_or_default())?;
            set_override(ask, app, id, Some(status), None).await
        }
        ("DELETE", ["apps", app, id, "status"]) => {
            let said = ask.query.get("value").map(status).transpose()?;
            set_override(ask, app, id, None, said).await
        }
        ("PUT", ["apps", app, id, "metadata"]) => set_metadata(ask, app, id).await,
        (_, ["apps", ..]) => {
            Err(RegistryRefusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} is not for {}", ask.method, ask.path)))
        }
        _ => Err(RegistryRefusal::not_here(format!("isobar's registry has no {} {}", ask.method, ask.path))),
    }
}

async fn register(ask: &Ask<'_>, app: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    let is_xml =
        ask.headers.get(header::CONTENT_TYPE).is_some_and(|it| it.as_bytes().windows(3).any(|it| it == b"xml"));
    let sent = if is_xml {
        eureka_xml::read(ask.body).map_err(|error| RegistryRefusal::bad(format!("not XML of an instance: {error}")))?
    } else {
        serde_json::from_slice(ask.body)
            .map_err(|error| RegistryRefusal::bad(format!("not JSON of an instance: {error}")))?
    };
    let said = register::registration(sent, app, ask.peer.ip(), &ask.config)?;
    limits::refuse(&said).map_err(RegistryRefusal::bad)?;
    if !ask.rights.may_write(&said.service) {
        return Err(denied(ask));
    }
    ask.registry.register(said)?;
    saved(ask, StatusCode::NO_CONTENT).await
}

fn renew(ask: &Ask<'_>, app: &str, id: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    let key = owned(ask, app, id)?;
    let dirty = ask.query.get("lastDirtyTimestamp").and_then(|text| text.parse().ok());
    let renewal = ask.registry.change(|catalog, now, _| catalog.renew(&key, dirty, now));
    match renewal {
        Renewal::Done => Ok(empty(StatusCode::OK)),
        // What the client says to that is all that it is.
        Renewal::Register => Err(unknown(app, id)),
    }
}

async fn set_override(
    ask: &Ask<'_>,
    app: &str,
    id: &str,
    status: Option<EurekaStatus>,
    said: Option<EurekaStatus>,
) -> Result<RegistryAnswer, RegistryRefusal> {
    let key = owned(ask, app, id)?;
    let set = ask.registry.change(|catalog, now, _| catalog.set_override(&key, status, said, now));
    set.map_err(|_| unknown(app, id))?;
    saved(ask, StatusCode::OK).await
}

async fn set_metadata(ask: &Ask<'_>, app: &str, id: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    let key = owned(ask, app, id)?;
    let known = ask.registry.lock().get(&key).map(|it| it.said.meta.clone()).ok_or_else(|| unknown(app, id))?;
    let added: BTreeMap<_, _> = ask.query.pairs().iter().cloned().collect();
    let mut all = known;
    all.extend(added.clone());
    limits::meta(all.iter()).map_err(RegistryRefusal::bad)?;
    let set = ask.registry.change(|catalog, now, _| catalog.set_meta(&key, added, now));
    set.map_err(|error| match error {
        NotChanged::Unknown => unknown(app, id),
        NotChanged::TooLarge(most) => too_large(most),
    })?;
    saved(ask, StatusCode::OK).await
}

/// Applications with those of their instances that are wanted; nothing is found where `version` is given and there are none.
async fn all(
    ask: &Ask<'_>,
    wanted: impl Fn(&Instance) -> bool,
    version: Option<&'static str>,
) -> Result<RegistryAnswer, RegistryRefusal> {
    let instances: Vec<_> = ask.registry.lock().all().filter(|it| wanted(it)).cloned().collect();
    if version.is_some() && instances.is_empty() {
        return Err(RegistryRefusal::new(StatusCode::NOT_FOUND, "no instance has this address"));
    }
    let hash = view::hash(instances.iter().map(|it| &**it));
    let shown = instances.into_iter().map(|it| (Action::Added, it)).collect();
    applications(ask, shown, hash, version.unwrap_or("1").to_owned()).await
}

async fn delta(ask: &Ask<'_>) -> Result<RegistryAnswer, RegistryRefusal> {
    let (changes, hash, index) = {
        let mut catalog = ask.registry.lock();
        let now = super::now().at;
        let changes = catalog.delta(now);
        let hash = view::hash(catalog.all().map(|it| &**it));
        (changes, hash, catalog.index())
    };
    applications(ask, changes, hash, index.to_string()).await
}

async fn applications(
    ask: &Ask<'_>,
    instances: Vec<(Action, Arc<Instance>)>,
    hash: String,
    version: String,
) -> Result<RegistryAnswer, RegistryRefusal> {
    let as_json = wants_json(ask);
    let many = instances.len() > MANY;
    let show = move || {
        let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (action, instance) in &instances {
            by_name.entry(view::application_name(instance)).or_default().push(view::instance(instance, *action));
        }
        let all: Vec<_> =
            by_name.into_iter().map(|(name, instances)| json!({ "name": name, "instance": instances })).collect();
        let applications = json!({ "versions__delta": version, "apps__hashcode": hash, "application": all });
        written("applications", applications, as_json)
    };
    if !many {
        return Ok(show());
    }
    let shown = tokio::task::spawn_blocking(show).await;
    shown.map_err(|error| RegistryRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn application(ask: &Ask<'_>, app: &str) -> Result<RegistryAnswer, RegistryRefusal> {
    let instances: Vec<_> = ask.registry.lock().of_service(app).cloned().collect();
    let Some(first) = instances.first() else {
        return Err(RegistryRefusal::new(StatusCode::NOT_FOUND, format!("no application is called {app:?}")));
    };
    let shown: Vec<_> = instances.iter().map(|it| view::instance(it, Action::Added)).collect();
    let application = json!({ "name": view::application_name(first), "instance": shown });
    Ok(written("application", application, wants_json(ask)))
}

fn instance(ask: &Ask<'_>, wanted: impl Fn(&Instance) -> bool) -> Result<RegistryAnswer, RegistryRefusal> {
    let found = ask.registry.lock().all().find(|it| wanted(it)).cloned();
    let found = found.ok_or_else(|| RegistryRefusal::new(StatusCode::NOT_FOUND, "no instance has this id"))?;
    Ok(written("instance", view::instance(&found, Action::Added), wants_json(ask)))
}

fn written(name: &str, value: Value, as_json: bool) -> RegistryAnswer {
    if as_json {
        let mut whole = serde_json::Map::new();
        whole.insert(name.into(), value);
        body(Value::Object(whole).to_string(), "application/json")
    } else {
        body(eureka_xml::written(name, &value), "application/xml")
    }
}

/// As Eureka's server has it: XML, unless JSON is asked for.
fn wants_json(ask: &Ask<'_>) -> bool {
    ask.headers.get_all(header::ACCEPT).iter().any(|accept| accept.as_bytes().windows(4).any(|it| it == b"json"))
}

/// The instance, where the client may change it.
fn owned(ask: &Ask<'_>, app: &str, id: &str) -> Result<InstanceKey, RegistryRefusal> {
    if !ask.rights.may_write(app) {
        return Err(denied(ask));
    }
    let key = InstanceKey::of_eureka(app, id);
    let is_known = ask.registry.lock().get(&key).is_some();
    if is_known { Ok(key) } else { Err(unknown(app, id)) }
}

fn status(word: &str) -> Result<EurekaStatus, RegistryRefusal> {
    EurekaStatus::of(word).ok_or_else(|| RegistryRefusal::bad(format!("{word:?} is no status")))
}

async fn saved(ask: &Ask<'_>, status: StatusCode) -> Result<RegistryAnswer, RegistryRefusal> {
    ask.registry.clock.notify_one();
    match ask.registry.saved().await {
        Ok(()) => Ok(empty(status)),
        Err(NotSaved) => {
            let what = "what was changed could not be written to the disk of the registry";
            Err(RegistryRefusal::new(StatusCode::INTERNAL_SERVER_ERROR, what))
        }
    }
}

/// Without a token one is asked for; with one that may not, there is nothing to ask for.
fn denied(ask: &Ask<'_>) -> RegistryRefusal {
    match ask.rights.token() {
        None => RegistryRefusal::new(
            StatusCode::UNAUTHORIZED,
            "a token is needed: as the password of a URL, or Authorization: Bearer",
        ),
        Some(name) => {
            RegistryRefusal::new(StatusCode::FORBIDDEN, format!("token {name:?} is not for this application"))
        }
    }
}

fn unknown(app: &str, id: &str) -> RegistryRefusal {
    RegistryRefusal::new(StatusCode::NOT_FOUND, format!("no instance {id:?} of {app:?} is registered as it says"))
}
