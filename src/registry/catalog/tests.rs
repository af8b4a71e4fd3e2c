use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::registry::instance::{EurekaInfo, HttpTarget, Probe, ProbeTarget, Weights};
use crate::registry::store::{self, Saved};

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> CatalogRules {
    CatalogRules { instances_max: 100, guard: GuardRules { expired_percent: 50, hold: Duration::from_secs(300) } }
}

/// A clock that stands still until it is told to go on.
struct Clock {
    zero: Instant,
    now: Duration,
}

impl Clock {
    fn new() -> Self {
        Self { zero: Instant::now(), now: Duration::ZERO }
    }

    fn go(&mut self, seconds: u64) -> Now {
        self.now += SECOND * seconds as u32;
        self.now()
    }

    fn now(&self) -> Now {
        Now { at: self.zero + self.now, ms: 1_800_000_000_000 + self.now.as_millis() as u64 }
    }
}

fn check(id: &str, kind: CheckKind) -> CheckSpec {
    CheckSpec {
        id: id.into(),
        name: id.into(),
        notes: String::new(),
        kind,
        initial: Status::Critical,
        deregister_after: None,
        passes_needed: 1,
        failures_needed: 1,
    }
}

fn said(service: &str, id: &str, checks: Vec<CheckSpec>) -> Registration {
    Registration {
        api: Api::Consul,
        service: service.into(),
        id: id.into(),
        address: "10.0.0.1".into(),
        port: 8080,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        checks,
        eureka: None,
    }
}

fn with_ttl(service: &str, id: &str) -> Registration {
    said(service, id, vec![check(&format!("service:{id}"), CheckKind::Ttl(SECOND * 10))])
}

fn tcp(port: u16) -> CheckKind {
    let target = ProbeTarget::Tcp { host: "10.0.0.1".into(), port };
    CheckKind::Probe(Probe { target, interval: SECOND * 10, timeout: SECOND })
}

fn eureka(app: &str, id: &str) -> Registration {
    let lease = CheckKind::Lease { renewal: SECOND * 30, duration: SECOND * 90 };
    let info = EurekaInfo {
        host_name: "host".into(),
        ip_address: "10.0.0.1".into(),
        status: EurekaStatus::Up,
        overridden: EurekaStatus::Unknown,
        port: 8080,
        port_enabled: true,
        secure_port: 443,
        secure_port_enabled: false,
        country_id: 1,
        data_center_class: "c".into(),
        data_center_name: "MyOwn".into(),
        data_center_metadata: BTreeMap::new(),
        home_page_url: None,
        status_page_url: None,
        health_check_url: None,
        secure_health_check_url: None,
        vip_address: Some("users".into()),
        secure_vip_address: None,
        app_group: None,
        asg: None,
        last_dirty_ms: 1000,
    };
    let lease = CheckSpec { initial: Status::Passing, ..check(&format!("eureka:{id}"), lease) };
    Registration { api: Api::Eureka, eureka: Some(info), ..said(app, id, vec![lease]) }
}

/// What stands under a name: ids with their statuses.
fn seen(catalog: &Catalog, service: &str) -> Vec<(String, Status)> {
    catalog.of_service(service).map(|it| (it.said.id.clone(), it.status())).collect()
}

#[test]
fn an_instance_is_critical_until_its_first_heartbeat_and_after_its_last() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    assert_eq!(catalog.register(with_ttl("Users", "a"), clock.now(), &rules()), Ok(true));
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)]);
    let index = catalog.index_of("USERS");
    catalog.heartbeat("service:a", Status::Passing, "fine", clock.go(5)).unwrap();
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)]);
    assert!(catalog.index_of("users") > index);
    // Further ones change nothing that anyone waits for.
    let (index, version) = (catalog.index(), catalog.version());
    catalog.heartbeat("service:a", Status::Passing, "still", clock.go(9)).unwrap();
    assert_eq!((catalog.index(), catalog.version()), (index, version));
    let next = catalog.tick(clock.go(9), &rules()).next.unwrap();
    assert_eq!(next, clock.now().at + SECOND);
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)]);
    assert_eq!(catalog.tick(clock.go(1), &rules()).expired, [InstanceKey::of_consul("a")]);
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)]);
    catalog.heartbeat("service:a", Status::Warning, "", clock.go(100)).unwrap();
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Warning)]);
    assert_eq!(catalog.heartbeat("service:b", Status::Passing, "", clock.now()), Err(Unknown));
}

#[test]
fn what_is_critical_for_too_long_is_deregistered() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    let mut spec = check("service:a", CheckKind::Ttl(SECOND * 10));
    spec.deregister_after = Some(SECOND * 60);
    catalog.register(said("users", "a", vec![spec]), clock.now(), &rules()).unwrap();
    catalog.heartbeat("service:a", Status::Passing, "", clock.now()).unwrap();
    let ticked = catalog.tick(clock.go(10), &rules());
    assert_eq!((ticked.expired.len(), ticked.next), (1, Some(clock.now().at + SECOND * 60)));
    assert_eq!(catalog.tick(clock.go(59), &rules()).deregistered, []);
    let index = catalog.index_of("users");
    assert_eq!(catalog.tick(clock.go(1), &rules()).deregistered, [InstanceKey::of_consul("a")]);
    assert_eq!(seen(&catalog, "users"), []);
    assert!(catalog.index_of("users") > index, "those that wait for the service are told");
    assert!(catalog.of_check("service:a").is_none());
}

#[test]
fn to_register_again_keeps_what_is_known_and_an_id_may_move_to_another_service() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    catalog.register(with_ttl("users", "a"), clock.now(), &rules()).unwrap();
    catalog.heartbeat("service:a", Status::Passing, "", clock.now()).unwrap();
    catalog.set_maintenance(&InstanceKey::of_consul("a"), Some("repair".into()), clock.now()).unwrap();
    let index = catalog.index();
    assert_eq!(catalog.register(with_ttl("users", "a"), clock.go(9), &rules()), Ok(false));
    assert_eq!(catalog.index(), index);
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)], "it is under repair still");
    catalog.set_maintenance(&InstanceKey::of_consul("a"), None, clock.now()).unwrap();
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)]);
    // The registration counted as a heartbeat.
    assert_eq!(catalog.tick(clock.go(9), &rules()).expired, []);
    let before = catalog.index_of("users");
    assert_eq!(catalog.register(with_ttl("orders", "a"), clock.now(), &rules()), Ok(true));
    assert_eq!((seen(&catalog, "users").len(), seen(&catalog, "orders").len()), (0, 1));
    assert!(catalog.index_of("users") > before && catalog.services().count() == 1);
}

#[test]
fn there_are_no_more_than_there_may_be_and_checks_belong_to_one() {
    let clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    let few = CatalogRules { instances_max: 2, ..rules() };
    catalog.register(with_ttl("users", "a"), clock.now(), &few).unwrap();
    let thief = said("orders", "b", vec![check("service:a", CheckKind::Ttl(SECOND))]);
    assert_eq!(catalog.register(thief, clock.now(), &few), Err(NotRegistered::CheckTaken("service:a".into())));
    catalog.register(with_ttl("users", "b"), clock.now(), &few).unwrap();
    assert_eq!(catalog.register(with_ttl("users", "c"), clock.now(), &few), Err(NotRegistered::Full(2)));
    assert_eq!(catalog.register(with_ttl("users", "b"), clock.now(), &few), Ok(false));
    catalog.deregister(&InstanceKey::of_consul("a"), clock.now()).unwrap();
    assert_eq!(catalog.register(with_ttl("users", "c"), clock.now(), &few), Ok(true));
}

#[test]
fn a_mass_expiry_is_held_and_those_that_leave_in_order_are_not() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    for number in 0..10 {
        let id = format!("i{number}");
        catalog.register(with_ttl("users", &id), clock.now(), &rules()).unwrap();
        catalog.heartbeat(&format!("service:{id}"), Status::Passing, "", clock.now()).unwrap();
    }
    assert_eq!(catalog.tick(clock.go(10), &rules()).expired, []);
    assert_eq!(catalog.kept(), 10);
    assert!(seen(&catalog, "users").iter().all(|(_, status)| *status == Status::Passing));
    catalog.deregister(&InstanceKey::of_consul("i0"), clock.now()).unwrap();
    for number in 1..8 {
        catalog.heartbeat(&format!("service:i{number}"), Status::Passing, "", clock.go(1)).unwrap();
    }
    // Two of nine: these are believed to be gone.
    let expired = catalog.tick(clock.now(), &rules()).expired;
    assert_eq!(expired, [InstanceKey::of_consul("i8"), InstanceKey::of_consul("i9")]);
    assert_eq!((catalog.kept(), catalog.all().len()), (0, 9));
}

#[test]
fn a_lease_that_is_not_renewed_is_gone_and_an_override_outlives_a_registration() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    let key = InstanceKey::of_eureka("USERS", "a");
    assert_eq!(catalog.renew(&key, None, clock.now()), Renewal::Register);
    catalog.register(eureka("USERS", "a"), clock.now(), &rules()).unwrap();
    assert_eq!(catalog.renew(&key, Some(1000), clock.go(60)), Renewal::Done);
    assert_eq!(catalog.renew(&key, Some(2000), clock.now()), Renewal::Register, "it says other things by now");
    catalog.set_override(&key, Some(EurekaStatus::OutOfService), None, clock.now()).unwrap();
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)]);
    catalog.register(eureka("USERS", "a"), clock.now(), &rules()).unwrap();
    assert_eq!(catalog.get(&key).unwrap().eureka_status(), EurekaStatus::OutOfService);
    catalog.set_override(&key, None, Some(EurekaStatus::Up), clock.now()).unwrap();
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)]);
    assert_eq!(catalog.tick(clock.go(90), &rules()).expired, [key]);
    assert_eq!(catalog.all().len(), 0);
}

#[test]
fn deltas_tell_the_last_change_of_each_for_three_minutes() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    let actions = |catalog: &mut Catalog, now: Now| -> Vec<(String, &'static str)> {
        catalog.delta(now.at).into_iter().map(|(action, it)| (it.said.id.clone(), action.as_str())).collect()
    };
    catalog.register(eureka("USERS", "a"), clock.now(), &rules()).unwrap();
    catalog.register(eureka("USERS", "b"), clock.now(), &rules()).unwrap();
    catalog.set_override(&InstanceKey::of_eureka("users", "a"), Some(EurekaStatus::Down), None, clock.go(100)).unwrap();
    assert_eq!(actions(&mut catalog, clock.now()), [("a".into(), "MODIFIED"), ("b".into(), "ADDED")]);
    catalog.deregister(&InstanceKey::of_eureka("users", "b"), clock.now()).unwrap();
    assert_eq!(actions(&mut catalog, clock.go(100)), [("a".into(), "MODIFIED"), ("b".into(), "DELETED")]);
    assert_eq!(actions(&mut catalog, clock.go(100)), []);
}

#[test]
fn probes_come_due_once_each_and_what_another_registration_asked_says_nothing() {
    let mut clock = Clock::new();
    let mut catalog = Catalog::new(clock.now());
    let mut spec = check("service:a", tcp(1));
    spec.failures_needed = 2;
    catalog.register(said("users", "a", vec![spec.clone()]), clock.now(), &rules()).unwrap();
    let (due, next) = catalog.take_due_probes(8, clock.now().at);
    assert_eq!((due.len(), next), (1, None));
    assert_eq!(catalog.take_due_probes(8, clock.go(100).at).0.len(), 0, "it is under way");
    catalog.probed(&due[0], Status::Passing, "ok", clock.now());
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)]);
    assert_eq!(catalog.take_due_probes(8, clock.go(9).at).1, Some(clock.now().at + SECOND));
    let due = catalog.take_due_probes(8, clock.go(1).at).0;
    catalog.probed(&due[0], Status::Critical, "no", clock.now());
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Passing)], "the first of two");
    let due = catalog.take_due_probes(8, clock.go(10).at).0;
    catalog.probed(&due[0], Status::Critical, "no", clock.now());
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)]);
    let due = catalog.take_due_probes(8, clock.go(10).at).0;
    spec.kind = tcp(2);
    catalog.register(said("users", "a", vec![spec]), clock.now(), &rules()).unwrap();
    catalog.probed(&due[0], Status::Passing, "ok", clock.now());
    assert_eq!(seen(&catalog, "users"), [("a".into(), Status::Critical)]);
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isobar-registry-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_written_is_known_after_a_start_and_its_heartbeats_count_anew() {
    let (scratch, mut clock) = (Scratch::new("store"), Clock::new());
    let path = store::path(&scratch.0);
    let mut catalog = store::read(&path, clock.now()).unwrap();
    catalog.register(with_ttl("users", "a"), clock.now(), &rules()).unwrap();
    catalog.heartbeat("service:a", Status::Passing, "", clock.now()).unwrap();
    let http = HttpTarget {
        tls: false,
        host: "10.0.0.1".into(),
        port: 80,
        target: "/health?x=1".into(),
        method: "GET".into(),
        headers: vec![("x".into(), "y".into())],
        body: String::new(),
    };
    let probe = Probe { target: ProbeTarget::Http(http), interval: SECOND, timeout: SECOND };
    catalog
        .register(said("users", "b", vec![check("service:b", CheckKind::Probe(probe))]), clock.now(), &rules())
        .unwrap();
    catalog.set_maintenance(&InstanceKey::of_consul("b"), Some("why".into()), clock.now()).unwrap();
    catalog.register(eureka("USERS", "c"), clock.now(), &rules()).unwrap();
    store::write(&path, &Saved::of(&catalog)).unwrap();
    let again = store::read(&path, clock.go(1000)).unwrap();
    let whole = |catalog: &Catalog| -> Vec<_> {
        catalog.all().map(|it| (it.said.clone(), it.status(), it.maintenance.clone(), it.registered_ms)).collect()
    };
    assert_eq!(whole(&again), whole(&catalog));
    assert!(again.index() > catalog.index());
    let mut again = again;
    assert_eq!(again.tick(clock.go(9), &rules()).expired, []);
    assert_eq!(again.tick(clock.go(1), &rules()).expired, [InstanceKey::of_consul("a")]);
    // Half a file is told, and not taken for an empty one.
    let text = std::fs::read(&path).unwrap();
    for length in [0, 1, text.len() / 2, text.len() - 1] {
        std::fs::write(&path, &text[..length]).unwrap();
        assert!(store::read(&path, clock.now()).is_err(), "{length}");
    }
    assert!(store::set_aside(&path).unwrap().exists() && !path.exists());
}

/// What a client or time may do.
#[derive(Clone, Debug)]
enum Deed {
    Register { service: u8, id: u8, lease: bool },
    Deregister { id: u8 },
    Heartbeat { id: u8, status: u8 },
    Renew { service: u8, id: u8 },
    Maintain { id: u8, on: bool },
    Probe { status: u8 },
    Wait { seconds: u8 },
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    let (service, id) = (0_u8..3, 0_u8..6);
    prop_oneof![
        (service.clone(), id.clone(), any::<bool>()).prop_map(|(service, id, lease)| Deed::Register {
            service,
            id,
            lease
        }),
        id.clone().prop_map(|id| Deed::Deregister { id }),
        (id.clone(), 0_u8..3).prop_map(|(id, status)| Deed::Heartbeat { id, status }),
        (service, id.clone()).prop_map(|(service, id)| Deed::Renew { service, id }),
        (id, any::<bool>()).prop_map(|(id, on)| Deed::Maintain { id, on }),
        (0_u8..3).prop_map(|status| Deed::Probe { status }),
        (0_u8..120).prop_map(|seconds| Deed::Wait { seconds }),
        Just(Deed::Restart),
    ]
}

proptest! {
    /// Whatever happens in whatever order: all that is looked up by says the same, no index goes back, each change of what a service shows has an
    /// index of its own, and nothing is lost by a restart.
    #[test]
    fn what_is_known_fits_together(deeds in proptest::collection::vec(deed(), 1..60)) {
        let mut clock = Clock::new();
        let mut catalog = Catalog::new(clock.now());
        let show = |catalog: &Catalog, service: u8| seen(catalog, &format!("s{service}"));
        for deed in deeds {
            let before: Vec<_> = (0..3).map(|it| (show(&catalog, it), catalog.index_of(&format!("s{it}")))).collect();
            let index = catalog.index();
            match deed {
                Deed::Register { service, id, lease: false } => {
                    let mut said = with_ttl(&format!("s{service}"), &format!("i{id}"));
                    if id % 2 == 0 {
                        said.checks.push(check(&format!("probe:i{id}"), tcp(service.into())));
                    }
                    let _ = catalog.register(said, clock.now(), &rules());
                }
                Deed::Register { service, id, lease: true } => {
                    let _ = catalog.register(eureka(&format!("S{service}"), &format!("i{id}")), clock.now(), &rules());
                }
                Deed::Deregister { id } => drop(catalog.deregister(&InstanceKey::of_consul(&format!("i{id}")), clock.now())),
                Deed::Heartbeat { id, status } => {
                    let status = [Status::Passing, Status::Warning, Status::Critical][usize::from(status)];
                    let _ = catalog.heartbeat(&format!("service:i{id}"), status, status.as_str(), clock.now());
                }
                Deed::Probe { status } => {
                    let status = [Status::Passing, Status::Warning, Status::Critical][usize::from(status)];
                    let (due, next) = catalog.take_due_probes(2, clock.now().at);
                    prop_assert!(due.len() == 2 || next.is_none_or(|next| next > clock.now().at));
                    // The second is under way for ever.
                    due.iter().take(1).for_each(|probe| catalog.probed(probe, status, status.as_str(), clock.now()));
                }
                Deed::Renew { service, id } => {
                    catalog.renew(&InstanceKey::of_eureka(&format!("s{service}"), &format!("i{id}")), None, clock.now());
                }
                Deed::Maintain { id, on } => {
                    let key = InstanceKey::of_consul(&format!("i{id}"));
                    let _ = catalog.set_maintenance(&key, on.then(|| "why".into()), clock.now());
                }
                Deed::Wait { seconds } => {
                    let now = clock.go(seconds.into());
                    let ticked = catalog.tick(now, &rules());
                    prop_assert!(ticked.next.is_none_or(|next| next > now.at), "it would be looked at again and again");
                }
                Deed::Restart => {
                    let instances: Vec<_> = catalog.all().map(|it| Instance::clone(it)).collect();
                    catalog = Catalog::restored(instances, catalog.index(), clock.now());
                }
            }
            prop_assert!(catalog.index() >= index);
            for service in 0..3 {
                let (shown, at) = &before[usize::from(service)];
                let now = catalog.index_of(&format!("s{service}"));
                prop_assert!(now >= *at, "an index went backwards");
                prop_assert!(*shown == show(&catalog, service) || now > *at, "a change has no index");
            }
            let by_service: usize = catalog.services().map(|(_, instances)| instances.count()).sum();
            prop_assert_eq!(by_service, catalog.all().len());
            prop_assert!(catalog.services().all(|(name, mut instances)| instances.all(|it| it.service() == name)));
            for instance in catalog.all() {
                prop_assert_eq!(instance.checks.len(), instance.said.checks.len());
                if instance.said.api == Api::Consul {
                    let found = catalog.of_check(&instance.said.checks[0].id).map(|it| it.key());
                    prop_assert_eq!(found, Some(instance.key()));
                }
            }
            let known: usize = catalog.all().filter(|it| it.said.api == Api::Consul).map(|it| it.checks.len()).sum();
            prop_assert_eq!(catalog.checks.len(), known);
            prop_assert_eq!(catalog.text_bytes, catalog.all().map(|it| it.text_bytes()).sum::<usize>());
            let mut probes = ProbeQueue::default();
            catalog.all().for_each(|instance| probes.put(instance));
            prop_assert_eq!(&catalog.probes, &probes);
        }
    }
}
