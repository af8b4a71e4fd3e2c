//! The backends of an upstream as they were found: in its file, or by discovery.
//!
//! A set is complete, immutable and cheap to clone. It says what is to be, and knows nothing of how the backends do; that is
//! [`BackendState`](super::BackendState), which is found again by address when one set takes the place of another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rustls::pki_types::ServerName;

use crate::config::{Address, BackendConfig, BackendLimits, BackendPlacement};

/// What is said of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it is. Its identity in its upstream.
    pub address: Address,
    /// 0 to 65 535; 0 takes nothing new. 1 where nothing is said.
    pub weight: u16,
    /// Its tier and zone. The first tier and no zone where nothing is said.
    pub place: BackendPlacement,
    /// How much may be asked of it at a time; `None`: what its upstream says.
    pub limits: Option<BackendLimits>,
    /// The name that its certificate must be for, where its upstream speaks TLS; `None`: what the upstream says, else the host of
    /// the address. Under another name it is another backend, of which nothing is known.
    pub server_name: Option<ServerName<'static>>,
    /// What else is said of it, by name: shown at the admin address, and there for strategies of embedding programs.
    pub labels: Labels,
}

/// Names and values, sorted by name.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

impl Instance {
    /// A backend of weight 1 in the first tier of which nothing else is said.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            weight: 1,
            place: BackendPlacement::default(),
            limits: None,
            server_name: None,
            labels: Labels::new(),
        }
    }
}

impl From<&BackendConfig> for Instance {
    fn from(config: &BackendConfig) -> Self {
        let (limits, place) = (config.limits(), config.place());
        let BackendConfig { address, weight, .. } = config.clone();
        Self { address, weight, place, limits: Some(limits), server_name: None, labels: Labels::new() }
    }
}

/// All backends of an upstream at a time. Addresses are unique.
///
/// Two sets are equal where they say the same of the same backends in the same order.
#[derive(Clone, Debug, Eq)]
pub struct BackendSet(Arc<[Arc<Instance>]>);

/// In what a set differs from the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Backends that were not there, in the order of the set.
    pub came: Vec<Address>,
    /// Backends that are no longer there, in the order of the set before.
    pub gone: Vec<Address>,
    /// Backends of which something else is said, in the order of the set.
    pub changed: Vec<Address>,
}

impl BackendSet {
    /// A set in the order of addresses: a source that tells the same in another order tells nothing new. Of an address that
    /// is there more than once, the first counts.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Self {
        let mut instances: Vec<_> = instances.into_iter().map(Arc::new).collect();
        // Stable, so that the first of an address stays the first.
        instances.sort_by(|one, other| one.address.cmp(&other.address));
        instances.dedup_by(|later, first| later.address == first.address);
        Self(instances.into())
    }

    /// The backends of a file, in its order: rounds begin with the first.
    pub fn of_file(backends: &[BackendConfig]) -> Self {
        Self::in_order(backends.iter().map(|backend| Arc::new(Instance::from(backend))))
    }

    /// All backends of several sets, set by set. Of an address that is in several, the first set counts.
    pub fn merged<'s>(sets: impl IntoIterator<Item = &'s Self>) -> Self {
        let mut sets = sets.into_iter().filter(|set| !set.is_empty());
        let Some(first) = sets.next() else { return Self::default() };
        let rest: Vec<_> = sets.collect();
        if rest.is_empty() {
            return first.clone();
        }
        Self::in_order([first].into_iter().chain(rest).flat_map(|set| set.0.iter().cloned()))
    }

    /// In the order in which they come. Of an address that is there more than once, the first counts.
    pub fn in_order(instances: impl Iterator<Item = Arc<Instance>>) -> Self {
        let mut known = HashSet::new();
        Self(instances.filter(|instance| known.insert(instance.address.clone())).collect())
    }

    /// Those of which `keep` says so.
    pub fn filtered(&self, mut keep: impl FnMut(&Instance) -> bool) -> Self {
        Self(self.0.iter().filter(|instance| keep(instance)).cloned().collect())
    }

    /// The backends, in the order of the set.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Instance>> {
        self.0.iter()
    }

    /// What is said of the backend at that address.
    pub fn get(&self, address: &Address) -> Option<&Arc<Instance>> {
        self.0.iter().find(|instance| instance.address == *address)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In what this differs from the set `before`. A different order alone is no difference.
    pub fn difference(&self, before: &Self) -> Difference {
        if Arc::ptr_eq(&self.0, &before.0) {
            return Difference::default();
        }
        let mut known: HashMap<_, _> = before.iter().map(|instance| (&instance.address, instance)).collect();
        let mut difference = Difference::default();
        for instance in self.iter() {
            match known.remove(&instance.address) {
                None => difference.came.push(instance.address.clone()),
                Some(was) if was != instance => difference.changed.push(instance.address.clone()),
                Some(_) => {}
            }
        }
        let gone = before.iter().filter(|instance| known.contains_key(&instance.address));
        difference.gone = gone.map(|instance| instance.address.clone()).collect();
        difference
    }
}

impl Default for BackendSet {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl PartialEq for BackendSet {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl FromIterator<Instance> for BackendSet {
    fn from_iter<I: IntoIterator<Item = Instance>>(instances: I) -> Self {
        Self::new(instances)
    }
}

impl Difference {
    /// Whether the sets say the same of the same backends.
    pub fn is_empty(&self) -> bool {
        self.came.is_empty() && self.gone.is_empty() && self.changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(port: u16) -> Address {
        Address::Ip(([10, 0, 0, 1], port).into())
    }

    fn instance(port: u16, weight: u16) -> Instance {
        Instance { weight, ..Instance::new(address(port)) }
    }

    fn set(members: &[(u16, u16)]) -> BackendSet {
        members.iter().map(|&(port, weight)| instance(port, weight)).collect()
    }

    fn ports(set: &BackendSet) -> Vec<(Address, u16)> {
        set.iter().map(|it| (it.address.clone(), it.weight)).collect()
    }

    #[test]
    fn the_order_of_a_source_makes_no_difference_and_the_first_of_an_address_counts() {
        assert_eq!(set(&[(2, 1), (1, 5)]), set(&[(1, 5), (2, 1)]));
        assert_eq!(ports(&set(&[(2, 1), (1, 5), (2, 9)])), [(address(1), 5), (address(2), 1)]);
        assert_ne!(set(&[(1, 5)]), set(&[(1, 6)]));
    }

    #[test]
    fn a_file_keeps_its_order() {
        let config = |port| BackendConfig::new(address(port));
        let set = BackendSet::of_file(&[config(3), config(1), config(2)]);
        assert_eq!(set.iter().map(|it| it.address.clone()).collect::<Vec<_>>(), [3, 1, 2].map(address));
    }

    #[test]
    fn merged_sets_stand_behind_each_other_and_the_first_that_knows_an_address_counts() {
        let (one, other) = (set(&[(5, 1), (2, 2)]), set(&[(1, 3), (2, 4)]));
        assert_eq!(ports(&BackendSet::merged([&one, &other])), [(address(2), 2), (address(5), 1), (address(1), 3)]);
        assert_eq!(BackendSet::merged([&BackendSet::default(), &one]), one);
        assert!(BackendSet::merged([]).is_empty());
    }

    #[test]
    fn labels_are_a_difference() {
        let mut labelled = instance(1, 1);
        labelled.labels.insert("version".into(), "2".into());
        let difference = BackendSet::new([labelled]).difference(&set(&[(1, 1)]));
        assert_eq!(difference, Difference { changed: vec![address(1)], ..Difference::default() });
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_set_to_the_other(
            before in prop::collection::vec((0u16..20, 1u16..3), 0..20),
            after in prop::collection::vec((0u16..20, 1u16..3), 0..20)
        ) {
            let (before, after) = (set(&before), set(&after));
            let difference = after.difference(&before);
            let mut led: BTreeMap<_, _> = ports(&before).into_iter().collect();
            for gone in &difference.gone {
                prop_assert!(led.remove(gone).is_some());
            }
            for came in &difference.came {
                prop_assert!(led.insert(came.clone(), after.get(came).unwrap().weight).is_none());
            }
            for changed in &difference.changed {
                let weight = after.get(changed).unwrap().weight;
                prop_assert!(led.insert(changed.clone(), weight).is_some_and(|was| was != weight));
            }
            prop_assert_eq!(led.into_iter().collect::<Vec<_>>(), ports(&after));
            prop_assert_eq!(difference.is_empty(), before == after);
        }
    }
}
