//! The registry that the process keeps.

use std::fmt;

use super::Scrape;
use super::family::Families;
use crate::registry::RegistryCounts;

impl Scrape {
    /// What is registered, and what has happened; nothing where there is no registry.
    pub(super) fn registry(&self, families: &mut Families<'_>) -> fmt::Result {
        let Some(counts) = self.registry else { return Ok(()) };
        let RegistryCounts { services, passing, warning, critical, kept, .. } = counts;
        let of_process = |value: usize| [(&[][..], value as f64)];
        families.gauge("registry_services", "Names with a registered instance", None, of_process(services))?;
        let labels = [[("status", "passing")], [("status", "warning")], [("status", "critical")]];
        let instances = labels.iter().zip([passing, warning, critical]);
        let instances = instances.map(|(labels, count)| (&labels[..], count as f64));
        families.gauge("registry_instances", "Registered instances", None, instances)?;
        let help = "Instances that are kept although their heartbeats do not come";
        families.gauge("registry_kept_instances", help, None, of_process(kept))?;
        let RegistryCounts { registrations, deregistrations, expirations, heartbeats, refused, .. } = counts;
        for (name, help, count) in [
            ("registry_registrations", "Registrations, repeated ones too", registrations),
            ("registry_deregistrations", "Registrations that were ended", deregistrations),
            ("registry_expirations", "Instances whose heartbeats have ceased", expirations),
            ("registry_heartbeats", "Heartbeats", heartbeats),
            ("registry_refused_requests", "Requests of clients that were refused", refused),
        ] {
            families.counter(name, help, None, [(&[][..], count)])?;
        }
        Ok(())
    }
}
