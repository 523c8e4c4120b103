//! Which devices there are, and whose they are. Pure; what the kubelet would say is said in its words.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::model::PodUid;
use crate::model::validate::names;
use crate::runtime::resources::{is_sidecar, together, units};

/// How many devices of each resource.
pub type Counts = BTreeMap<String, u64>;
/// The devices of each resource.
pub type Ids = BTreeMap<String, BTreeSet<String>>;
/// The same of each container.
pub type Held = BTreeMap<String, Ids>;

/// The extended resources that a container may have; what it asks for is the same.
pub fn of_container(container: &Container) -> Counts {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let extended = limits.into_iter().flatten().filter(|(name, _)| names::is_extended_resource(name));
    extended.map(|(name, amount)| (name.clone(), units(amount))).filter(|(_, amount)| *amount > 0).collect()
}

/// Whether any container of it asks for an extended resource.
pub fn asks(spec: &PodSpec) -> bool {
    containers(spec).any(|(container, _)| !of_container(container).is_empty())
}

/// How long a container keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It ends before the next one begins.
    Passing,
    /// It runs beside the others.
    Lasting,
}

/// In the order in which they begin.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (&Container, Stay)> {
    let stay = |init: &Container| if is_sidecar(init) { Stay::Lasting } else { Stay::Passing };
    let init = spec.init_containers.iter().flatten().map(move |init| (init, stay(init)));
    init.chain(spec.containers.iter().map(|container| (container, Stay::Lasting)))
}

/// What a pod takes in all: what a container that ends leaves, the next ones have.
pub fn of_pod(spec: &PodSpec) -> Counts {
    together(spec, of_container, u64::saturating_add)
}

/// What becomes of a resource that no plugin has told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is somebody else's to count, as for the kubelet.
    Passes,
    /// Its plugin is yet to come.
    Waits,
}

/// Why a pod can't have its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No plugin has told of the resource; and how many are asked for.
    Unknown(String, u64),
    /// The kubelet's sentence.
    Unavailable(String),
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Ledger {
    resources: BTreeMap<String, Resource>,
    pods: HashMap<PodUid, Entry>,
}

#[derive(Debug, Default)]
struct Resource {
    healthy: BTreeSet<String>,
    unhealthy: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Entry {
    need: Counts,
    held: Held,
}

impl Entry {
    fn holds(&self, resource: &str) -> BTreeSet<&String> {
        self.held.values().filter_map(|ids| ids.get(resource)).flatten().collect()
    }

    /// What was promised to it and isn't chosen yet.
    fn awaits(&self, resource: &str) -> usize {
        let need = self.need.get(resource).copied().unwrap_or(0);
        usize::try_from(need).unwrap_or(usize::MAX).saturating_sub(self.holds(resource).len())
    }
}

impl Ledger {
    /// A resource that there was before; nobody has told of its devices yet.
    pub fn know(&mut self, resource: &str) {
        self.resources.entry(resource.to_owned()).or_default();
    }

    /// Whether a plugin has ever told of it.
    pub fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    /// All resources, with how many there are, and how many of them are well.
    pub fn amounts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.resources.iter().map(|(name, devices)| {
            let well = devices.healthy.len();
            (name.as_str(), well + devices.unhealthy.len(), well)
        })
    }

    /// A plugin's list: ID, and whether the device is well.
    pub fn update(&mut self, resource: &str, devices: impl IntoIterator<Item = (String, bool)>) {
        let mut new = Resource::default();
        for (id, well) in devices {
            if well { &mut new.healthy } else { &mut new.unhealthy }.insert(id);
        }
        self.resources.insert(resource.to_owned(), new);
    }

    /// Its plugin is gone: it may come back.
    pub fn doubt(&mut self, resource: &str) {
        if let Some(devices) = self.resources.get_mut(resource) {
            devices.unhealthy.append(&mut devices.healthy);
        }
    }

    /// Its plugin did not come back.
    pub fn forget(&mut self, resource: &str) {
        self.update(resource, []);
    }

    /// Promises a pod what it asks for; what it had before is free.
    pub fn reserve(&mut self, uid: &PodUid, need: &Counts, unknown: Unknown) -> Result<(), Refusal> {
        self.pods.remove(uid);
        for (resource, asked) in need {
            let Some(devices) = self.resources.get(resource) else {
                match unknown {
                    Unknown::Passes => continue,
                    Unknown::Waits => return Err(Refusal::Unknown(resource.clone(), *asked)),
                }
            };
            if devices.healthy.is_empty() {
                let message = format!("no healthy devices present; cannot allocate unhealthy devices {resource}");
                return Err(Refusal::Unavailable(message));
            }
            let awaited: usize = self.pods.values().map(|entry| entry.awaits(resource)).sum();
            let available = self.available(resource).len().saturating_sub(awaited);
            if *asked > available as u64 {
                return Err(Refusal::Unavailable(unavailable(resource, *asked, available)));
            }
        }
        self.pods.insert(uid.clone(), Entry { need: need.clone(), held: Held::new() });
        Ok(())
    }

    /// Of a pod that runs already.
    pub fn restore(&mut self, uid: &PodUid, held: Held) {
        self.pods.insert(uid.clone(), Entry { need: Counts::new(), held });
    }

    /// What nobody has of it, and is well.
    pub fn available(&self, resource: &str) -> BTreeSet<String> {
        let held: BTreeSet<&String> = self.pods.values().flat_map(|entry| entry.holds(resource)).collect();
        let healthy = self.resources.get(resource).map(|devices| &devices.healthy);
        healthy.into_iter().flatten().filter(|id| !held.contains(id)).cloned().collect()
    }

    /// Gives a container so many devices: those first that the pod has over, then those that go well with them, then whichever.
    pub fn hold(
        &mut self,
        (uid, container): (&PodUid, &str),
        (resource, needed): (&str, u64),
        (over, preferred): (&BTreeSet<String>, &[String]),
    ) -> Result<BTreeSet<String>, String> {
        let needed_count = usize::try_from(needed).unwrap_or(usize::MAX);
        let mut ids: BTreeSet<String> = over.iter().take(needed_count).cloned().collect();
        let available = self.available(resource);
        let mut missing = needed_count.saturating_sub(ids.len());
        if missing > available.len() {
            return Err(unavailable(resource, missing as u64, available.len()));
        }
        for id in preferred.iter().filter(|id| available.contains(*id)).chain(&available) {
            if missing == 0 {
                break;
            }
            missing -= usize::from(ids.insert(id.clone()));
        }
        let entry = self.pods.get_mut(uid).ok_or("the pod was let go")?;
        entry.held.entry(container.to_owned()).or_default().insert(resource.to_owned(), ids.clone());
        Ok(ids)
    }

    /// All that a pod has.
    pub fn held(&self, uid: &PodUid) -> Option<&Held> {
        self.pods.get(uid).map(|entry| &entry.held)
    }

    /// A pod gives back all that it has. Says whether it had any.
    pub fn release(&mut self, uid: &PodUid) -> bool {
        self.pods.remove(uid).is_some()
    }
}

fn unavailable(resource: &str, asked: u64, available: usize) -> String {
    format!("requested number of devices unavailable for {resource}. Requested: {asked}, Available: {available}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const GPU: &str = "v.com/gpu";

    fn spec(yaml: &str) -> PodSpec {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn counts(n: u64) -> Counts {
        [(GPU.to_owned(), n)].into()
    }

    fn ledger(well: &[&str], ill: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        let list = |ids: &[&str], well: bool| ids.iter().map(|id| ((*id).to_owned(), well)).collect::<Vec<_>>();
        ledger.update(GPU, [list(well, true), list(ill, false)].concat());
        ledger
    }

    fn uid(text: &str) -> PodUid {
        PodUid::new(text)
    }

    #[rstest]
    #[case("containers: [{name: a, resources: {limits: {v.com/gpu: 2, cpu: 1, hugepages-2Mi: 4Mi}}}]", 2)]
    #[case("containers: [{name: a, resources: {limits: {v.com/gpu: 2}}}, {name: b, resources: {limits: {v.com/gpu: 1}}}]", 3)]
    #[case(
        "initContainers: [{name: i, resources: {limits: {v.com/gpu: 2}}}], containers: [{name: a, resources: {limits: {v.com/gpu: 1}}}]",
        2
    )]
    #[case(
        "initContainers: [{name: i, restartPolicy: Always, resources: {limits: {v.com/gpu: 2}}}], containers: [{name: a, resources: {limits: {v.com/gpu: 1}}}]",
        3
    )]
    fn what_a_pod_takes(#[case] yaml: &str, #[case] expected: u64) {
        let spec = spec(&format!("{{{yaml}}}"));
        assert_eq!(of_pod(&spec), counts(expected));
        assert!(asks(&spec));
    }

    #[rstest]
    #[case::fits(&["1", "2"], &[], 2, None)]
    #[case::too_many(&["1", "2"], &[], 3, Some("requested number of devices unavailable for v.com/gpu. Requested: 3, Available: 2"))]
    #[case::ill(&["1"], &["2"], 2, Some("requested number of devices unavailable for v.com/gpu. Requested: 2, Available: 1"))]
    #[case::all_ill(&[], &["1"], 1, Some("no healthy devices present; cannot allocate unhealthy devices v.com/gpu"))]
    fn promises(#[case] well: &[&str], #[case] ill: &[&str], #[case] asked: u64, #[case] refused: Option<&str>) {
        let expected = refused.map(|text| Refusal::Unavailable(text.into()));
        assert_eq!(ledger(well, ill).reserve(&uid("p"), &counts(asked), Unknown::Waits).err(), expected);
    }

    #[test]
    fn a_promise_counts_before_and_after_devices_are_chosen_and_ends_with_the_pod() {
        let mut ledger = ledger(&["1", "2", "3"], &[]);
        ledger.reserve(&uid("p"), &counts(2), Unknown::Waits).unwrap();
        assert!(ledger.reserve(&uid("q"), &counts(2), Unknown::Waits).is_err());
        let ids = ledger.hold((&uid("p"), "a"), (GPU, 2), (&BTreeSet::new(), &["3".into(), "nonsense".into()])).unwrap();
        assert_eq!(ids, ["1".to_owned(), "3".into()].into());
        assert!(ledger.reserve(&uid("q"), &counts(2), Unknown::Waits).is_err());
        ledger.reserve(&uid("q"), &counts(1), Unknown::Waits).unwrap();
        assert!(ledger.release(&uid("p")));
        ledger.reserve(&uid("r"), &counts(2), Unknown::Waits).unwrap();
    }

    #[test]
    fn a_resource_without_a_plugin_waits_or_passes() {
        let mut ledger = Ledger::default();
        let refused = ledger.reserve(&uid("p"), &counts(1), Unknown::Waits).unwrap_err();
        assert_eq!(refused, Refusal::Unknown(GPU.into(), 1));
        ledger.reserve(&uid("p"), &counts(1), Unknown::Passes).unwrap();
        ledger.know(GPU);
        assert!(ledger.reserve(&uid("p"), &counts(1), Unknown::Passes).is_err());
    }

    #[test]
    fn a_plugin_that_is_gone_leaves_its_devices_in_doubt_and_pods_theirs() {
        let mut ledger = ledger(&["1", "2"], &["3"]);
        ledger.reserve(&uid("p"), &counts(1), Unknown::Waits).unwrap();
        ledger.hold((&uid("p"), "a"), (GPU, 1), (&BTreeSet::new(), &[])).unwrap();
        ledger.doubt(GPU);
        assert_eq!(ledger.amounts().collect::<Vec<_>>(), [(GPU, 3, 0)]);
        ledger.forget(GPU);
        assert_eq!(ledger.amounts().collect::<Vec<_>>(), [(GPU, 0, 0)]);
        ledger.update(GPU, [("1".into(), true), ("2".into(), true)]);
        assert_eq!(ledger.available(GPU), ["2".to_owned()].into());
    }

    proptest! {
        /// Whatever comes and goes, no device is two pods', and what was promised can be had as long as all are well.
        #[test]
        fn no_device_is_given_twice(steps in prop::collection::vec((0_u8..6, 0_u64..4, any::<bool>()), 1..40)) {
            let all: Vec<String> = (0..6).map(|n| n.to_string()).collect();
            let mut ledger = ledger(&all.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
            for (pod, count, begins) in steps {
                let pod = uid(&pod.to_string());
                if begins && ledger.reserve(&pod, &counts(count), Unknown::Waits).is_ok() {
                    let ids = ledger.hold((&pod, "a"), (GPU, count), (&BTreeSet::new(), &[])).unwrap();
                    prop_assert_eq!(ids.len() as u64, count);
                } else {
                    ledger.release(&pod);
                }
                let held: Vec<_> = ledger.pods.values().flat_map(|entry| entry.holds(GPU)).collect();
                let unique: BTreeSet<_> = held.iter().collect();
                prop_assert_eq!(held.len(), unique.len());
            }
        }
    }
}
