//! TLS to backends, as a configuration has it.

use std::sync::Arc;

use super::plan::{Plan, Step};
use crate::config::{Config, Problem, Problems};
use crate::transport::tls::{BackendTls, SystemRoots};
use crate::upstream::Upstream;

/// Reads what the upstreams' TLS needs and makes it, in their order. What would be as before is what was before, with its
/// sessions; upstreams that keep their keys and whose files differ are noted in the plan.
///
/// # Errors
/// Everything that is wrong with the files.
pub(super) fn prepare(
    config: &Config,
    plan: &mut Plan,
    before: &[Arc<Upstream>],
) -> Result<Vec<Option<Arc<BackendTls>>>, Problems> {
    let was = |place: usize| match plan.upstreams.next.get(place) {
        Some((_, Step::Kept { from } | Step::Changed { from, .. })) => before.get(*from),
        _ => None,
    };
    let (made, problems) = read(config, |place| was(place).and_then(|upstream| upstream.tls.as_ref()));
    if !problems.is_empty() {
        return Err(problems.into_iter().collect());
    }
    let differs = |(place, tls): (usize, &Option<Arc<BackendTls>>)| {
        let identity = BackendTls::identity(tls.as_deref());
        was(place).is_some_and(|upstream| upstream.tls_identity() != identity).then_some(place)
    };
    let different: Vec<_> = made.iter().enumerate().filter_map(differs).collect();
    different.into_iter().for_each(|place| plan.files_differ(place));
    Ok(made)
}

/// What is wrong with the files that a configuration names.
///
/// # Errors
/// Everything that is.
pub fn check_files(config: &Config) -> Result<(), Problems> {
    let (_, problems) = read(config, |_| None);
    if problems.is_empty() { Ok(()) } else { Err(problems.into_iter().collect()) }
}

fn read<'b>(
    config: &Config,
    before: impl Fn(usize) -> Option<&'b Arc<BackendTls>>,
) -> (Vec<Option<Arc<BackendTls>>>, Vec<Problem>) {
    let mut system = SystemRoots::default();
    let mut problems = Vec::new();
    let made = config.upstreams.iter().enumerate().map(|(place, upstream)| {
        let made = BackendTls::prepare(upstream.tls.as_ref()?, upstream.protocol, before(place), &mut system);
        made.map_err(|problem| problems.push(*problem)).ok()
    });
    let made = made.collect();
    (made, problems)
}
