//! TLS to backends, as a configuration has it; and what is wrong with the files of all TLS.

use std::sync::Arc;
use std::time::SystemTime;

use super::reload_plan::{PlanStep, ReloadPlan};
use crate::config::{Config, Problem, Problems, Secured};
use crate::tls::Tls;
use crate::transport::tls::{BackendTls, SystemRoots};
use crate::upstream::Upstream;

/// The TLS of each upstream in its order, and what is odd about the files that it was made of.
type PreparedTls = (Vec<Option<Arc<BackendTls>>>, Vec<Problem>);

/// Reads what the upstreams' TLS needs and makes it, in their order. What would be as before is what was before, with its
/// sessions; upstreams that keep their keys and whose files differ are noted in the plan.
///
/// # Errors
/// Everything that is wrong with the files, those of the listeners too.
pub(super) fn prepare(
    config: &Config,
    plan: &mut ReloadPlan,
    before: &[Arc<Upstream>],
) -> Result<PreparedTls, Problems> {
    let was = |place: usize| match plan.upstreams.next.get(place) {
        Some((_, PlanStep::Kept { from } | PlanStep::Changed { from, .. })) => before.get(*from),
        _ => None,
    };
    let (made, problems) = read(config, |place| was(place).and_then(|upstream| upstream.tls.as_ref()));
    if problems.refuse() {
        return Err(refused(config));
    }
    let differs = |(place, tls): (usize, &Option<Arc<BackendTls>>)| {
        let identity = BackendTls::identity(tls.as_deref());
        was(place).is_some_and(|upstream| upstream.tls_identity() != identity).then_some(place)
    };
    let different: Vec<_> = made.iter().enumerate().filter_map(differs).collect();
    different.into_iter().for_each(|place| plan.files_differ(place));
    Ok((made, problems.into_vec()))
}

/// What is wrong or odd about the files that listeners and upstreams name for TLS. Nothing comes of them.
pub fn check_files(secured: &Secured) -> Vec<Problem> {
    let mut problems = Vec::new();
    for tls in &secured.listeners {
        let _ = Tls::load(tls, None, SystemTime::now(), &mut problems);
    }
    let mut system = SystemRoots::default();
    for (tls, protocol) in &secured.upstreams {
        let made = BackendTls::prepare(tls, *protocol, None, &mut system, &mut problems);
        problems.extend(made.err().map(|problem| *problem));
    }
    problems
}

/// Everything that is wrong with the files, where something is: what reads those of listeners does not read those of upstreams.
pub(super) fn refused(config: &Config) -> Problems {
    Problems::new(check_files(&Secured::of(config)))
}

fn read<'b>(
    config: &Config,
    before: impl Fn(usize) -> Option<&'b Arc<BackendTls>>,
) -> (Vec<Option<Arc<BackendTls>>>, Problems) {
    let mut system = SystemRoots::default();
    let (mut errors, mut problems) = (Vec::new(), Vec::new());
    let made = config.upstreams.iter().enumerate().map(|(place, upstream)| {
        let (tls, before) = (upstream.tls.as_ref()?, before(place));
        let made = BackendTls::prepare(tls, upstream.protocol, before, &mut system, &mut problems);
        made.map_err(|problem| errors.push(*problem)).ok()
    });
    let made = made.collect();
    problems.append(&mut errors);
    (made, Problems::new(problems))
}
