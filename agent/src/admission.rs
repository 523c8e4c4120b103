//! Whether a pod can be here at all: by what the machine has left, by what its kernel can do, by what it suffers from. The kubelet's
//! checks, reasons and sentences. The ledger is the only state: what each pod that may run has been promised.

mod place;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeSelector};
use tokio::sync::watch;

use crate::eviction::Condition;
use crate::model::{Origin, PodUid, SYSTEM_CRITICAL, ValidPod};
use crate::plugin::device::Devices;
use crate::plugin::device::ledger::Refusal;
use crate::runtime::recipe::{label, sandbox};
use crate::runtime::resources::{Qos, Totals};
use crate::runtime::{Settings, hugepages};
use crate::shutdown;

pub use place::Labels;
use place::Place;

/// What can be promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral_storage: u64,
    /// How many pods.
    pub pods: u64,
    /// Huge pages.
    pub huge_pages: hugepages::Amounts,
}

/// Why a pod can't be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The kubelet's word, such as `OutOfcpu`.
    pub reason: String,
    /// Its sentence.
    pub message: String,
}

impl Rejection {
    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// A condition of the node, and since when it is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Which.
    pub condition: Condition,
    /// As it is.
    pub holds: bool,
    /// Since then.
    pub since: Timestamp,
}

/// One for a node.
#[derive(Debug)]
pub struct Admission {
    room: Room,
    labels: Labels,
    /// What others have made of the node; nothing: it is no cluster's, or not known yet.
    place: Mutex<Option<Arc<Place>>>,
    devices: Arc<Devices>,
    ledger: Mutex<Ledger>,
    pressures: Mutex<Vec<Pressure>>,
    /// Whether the machine shuts down.
    going_down: watch::Sender<bool>,
    /// Counts what became better: room that was freed, a condition that ended.
    better: watch::Sender<u64>,
}

/// What is promised, by pod; a pod made again in its own place has a newer promise than the one that is returned.
#[derive(Debug, Default)]
struct Ledger {
    promises: HashMap<PodUid, (u64, Need)>,
    number: u64,
}

impl Ledger {
    fn others<'a>(&'a self, than: &'a PodUid) -> impl Iterator<Item = Need> + 'a {
        self.promises.iter().filter(move |(uid, _)| *uid != than).map(|(_, (_, need))| need.clone())
    }

    fn promise(&mut self, uid: &PodUid, need: Need) -> u64 {
        self.number += 1;
        self.promises.insert(uid.clone(), (self.number, need));
        self.number
    }
}

/// A pod's promise; its drop returns it.
#[derive(Debug)]
pub struct Lease {
    admission: Arc<Admission>,
    uid: PodUid,
    number: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut ledger = self.admission.lock();
        if ledger.promises.get(&self.uid).is_some_and(|(number, _)| *number == self.number) {
            ledger.promises.remove(&self.uid);
            self.admission.devices.release(&self.uid);
        }
        drop(ledger);
        self.admission.better.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Need {
    cpu_millis: u64,
    memory: u64,
    ephemeral_storage: u64,
    huge_pages: hugepages::Amounts,
}

impl Need {
    fn of(pod: &ValidPod) -> Self {
        let totals = Totals::of_pod(pod.spec());
        Self {
            cpu_millis: totals.cpu_request,
            memory: totals.memory_request,
            ephemeral_storage: totals.disk_request,
            huge_pages: hugepages::of_pod(pod.spec()),
        }
    }
}

impl Admission {
    /// Nothing is promised yet.
    pub fn new(room: Room, labels: Labels, devices: Arc<Devices>) -> Arc<Self> {
        let since = Timestamp::now();
        let pressures = Condition::ALL.map(|condition| Pressure { condition, holds: false, since });
        Arc::new(Self {
            room,
            labels,
            place: Mutex::default(),
            devices,
            ledger: Mutex::default(),
            pressures: Mutex::new(pressures.into()),
            going_down: watch::Sender::new(false),
            better: watch::Sender::new(0),
        })
    }

    /// The Node object as the API server has it.
    pub fn node_is(&self, node: &NodeObject) {
        let new = Some(Arc::new(Place::of(node)));
        let old = std::mem::replace(&mut *self.place.lock().unwrap_or_else(PoisonError::into_inner), new.clone());
        if old != new {
            self.better.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    fn place(&self) -> Option<Arc<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the node is the pod's place, as far as is known: whoever sent a pod of the API server knew it better.
    pub fn is_place_of(&self, pod: &ValidPod) -> Result<(), Rejection> {
        match self.place() {
            Some(place) => place.permits(pod),
            None if *pod.origin() == Origin::Api => Ok(()),
            None => place::permits(&self.labels, pod),
        }
    }

    /// Whether a selector of an object of the API server names this node.
    pub fn is_among(&self, nodes: &NodeSelector) -> bool {
        self.place().is_none_or(|place| place.labels().match_any(nodes))
    }

    /// What the node calls itself, by selectors.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// What can be promised at all.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Promises what the pod asks for, or says why not.
    pub fn admit(self: &Arc<Self>, pod: &ValidPod, settings: &Settings) -> Result<Lease, Rejection> {
        if *self.going_down.borrow() {
            return Err(Rejection::new(shutdown::REFUSED, shutdown::REFUSED_MESSAGE));
        }
        system_permits(pod)?;
        self.is_place_of(pod)?;
        self.pressure_permits(pod)?;
        machine_permits(pod, settings)?;
        let mut ledger = self.lock();
        let need = Need::of(pod);
        self.devices.reserve(pod).map_err(refused)?;
        if let Some(lack) = lacking(&self.room, ledger.others(pod.uid()), &need) {
            self.devices.release(pod.uid());
            return Err(lack.rejection());
        }
        let number = ledger.promise(pod.uid(), need);
        drop(ledger);
        Ok(Lease { admission: self.clone(), uid: pod.uid().clone(), number })
    }

    /// Of a pod that runs already: it has what it has.
    pub fn take(self: &Arc<Self>, pod: &ValidPod) -> Lease {
        let number = self.lock().promise(pod.uid(), Need::of(pod));
        self.devices.take(pod.uid());
        Lease { admission: self.clone(), uid: pod.uid().clone(), number }
    }

    /// Promises other amounts to a pod that has a lease: `PodResizePending`'s reason and message, if they can't be.
    pub fn resize(&self, pod: &ValidPod) -> Result<(), Rejection> {
        let need = Need::of(pod);
        let mut ledger = self.lock();
        if let Some(lack) = lacking(&self.room, std::iter::empty(), &need) {
            let (resource, asked, room) = (&lack.resource, lack.requested, lack.capacity);
            let message = format!("Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {room}");
            return Err(Rejection::new("Infeasible", message));
        }
        if let Some(lack) = lacking(&self.room, ledger.others(pod.uid()), &need) {
            return Err(Rejection::new("Deferred", lack.to_string()));
        }
        if let Some((_, promised)) = ledger.promises.get_mut(pod.uid()) {
            *promised = need;
        }
        drop(ledger);
        self.better.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// Whether the pod has a lease.
    pub fn has(&self, uid: &PodUid) -> bool {
        self.lock().promises.contains_key(uid)
    }

    /// Hears when room was freed or a condition ended.
    pub fn better(&self) -> watch::Receiver<u64> {
        self.better.subscribe()
    }

    /// What device plugins tell may make things better. Never returns.
    pub async fn follow_devices(&self) {
        let mut changed = self.devices.changed();
        while changed.changed().await.is_ok() {
            self.better.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// How the node is.
    pub fn pressures(&self) -> Vec<Pressure> {
        self.pressures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the node suffers from now. Returns the conditions that changed.
    pub fn suffers(&self, from: &[Condition]) -> Vec<Pressure> {
        let mut pressures = self.pressures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Vec::new();
        for pressure in pressures.iter_mut() {
            let holds = from.contains(&pressure.condition);
            if holds != pressure.holds {
                *pressure = Pressure { holds, since: Timestamp::now(), ..*pressure };
                changed.push(*pressure);
            }
        }
        drop(pressures);
        if changed.iter().any(|p| !p.holds) {
            self.better.send_modify(|n| *n = n.wrapping_add(1));
        }
        changed
    }

    /// The machine shuts down, and no pod comes in; or it was thought better of.
    pub fn go_down(&self, down: bool) {
        let turned = self.going_down.send_if_modified(|now| std::mem::replace(now, down) != down);
        if turned && !down {
            self.better.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Whether the machine shuts down, and when that turns.
    pub fn going_down(&self) -> watch::Receiver<bool> {
        self.going_down.subscribe()
    }

    /// The kubelet's: critical pods always; under memory pressure alone, those that asked for some; else none.
    fn pressure_permits(&self, pod: &ValidPod) -> Result<(), Rejection> {
        let holding: Vec<Condition> = self.pressures().iter().filter(|p| p.holds).map(|p| p.condition).collect();
        let critical = pod.spec().priority.is_some_and(|p| p >= SYSTEM_CRITICAL);
        let memory_alone = holding == [Condition::Memory];
        let fine = memory_alone && (Qos::of(pod.spec()) != Qos::BestEffort || tolerates_memory_pressure(pod));
        if holding.is_empty() || critical || fine {
            return Ok(());
        }
        let names: Vec<&str> = holding.iter().map(|c| c.name()).collect();
        Err(Rejection::new("Evicted", format!("The node had condition: [{}]. ", names.join(" "))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(refusal: Refusal) -> Rejection {
    match refusal {
        Refusal::Unknown(resource, requested) => Lack { resource: resource.into(), requested, used: 0, capacity: 0 }.rejection(),
        Refusal::Unavailable(why) => unexpected(&why),
    }
}

/// The kubelet's, when a pod can't have its devices.
pub fn unexpected(why: &str) -> Rejection {
    Rejection::new("UnexpectedAdmissionError", format!("Allocate failed due to {why}, which is unexpected"))
}

fn tolerates_memory_pressure(pod: &ValidPod) -> bool {
    pod.spec().tolerations.iter().flatten().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists") || t.value.as_deref().unwrap_or_default().is_empty();
        matches!(key, "" | "node.kubernetes.io/memory-pressure") && matches!(effect, "" | "NoSchedule") && exists
    })
}

/// Pods for another system. A manifest's is refused when it is read; the API server's come as they are.
fn system_permits(pod: &ValidPod) -> Result<(), Rejection> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if pod.spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    Ok(())
}

/// What the kernel or the configuration can't give.
fn machine_permits(pod: &ValidPod, settings: &Settings) -> Result<(), Rejection> {
    if let Err(error) = sandbox::sysctls(pod, settings) {
        return Err(Rejection::new("SysctlForbidden", error.message));
    }
    if label::needs_apparmor(pod) && !label::has_apparmor() {
        return Err(Rejection::new("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    }
    Ok(())
}

/// A resource of which there isn't enough.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lack {
    resource: Cow<'static, str>,
    requested: u64,
    used: u64,
    capacity: u64,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resource, requested, used, capacity } = self;
        write!(f, "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}")
    }
}

impl Lack {
    fn rejection(&self) -> Rejection {
        Rejection::new(&format!("OutOf{}", self.resource), self.to_string())
    }
}

/// The first resource that isn't there, in the kubelet's order.
fn lacking(room: &Room, others: impl Iterator<Item = Need>, need: &Need) -> Option<Lack> {
    let (mut used, mut pods) = (Need::default(), 0);
    for other in others {
        pods += 1;
        used.cpu_millis = used.cpu_millis.saturating_add(other.cpu_millis);
        used.memory = used.memory.saturating_add(other.memory);
        used.ephemeral_storage = used.ephemeral_storage.saturating_add(other.ephemeral_storage);
        for (size, amount) in other.huge_pages {
            let sum = used.huge_pages.entry(size).or_default();
            *sum = sum.saturating_add(amount);
        }
    }
    let lack = |resource: &'static str, requested, used, capacity| Lack { resource: resource.into(), requested, used, capacity };
    let huge = need.huge_pages.iter().map(|(size, requested)| {
        let of = |amounts: &hugepages::Amounts| amounts.get(size).copied().unwrap_or(0);
        let resource = hugepages::name(*size).into();
        Lack { resource, requested: *requested, used: of(&used.huge_pages), capacity: of(&room.huge_pages) }
    });
    [
        lack("pods", 1, pods, room.pods),
        lack("cpu", need.cpu_millis, used.cpu_millis, room.cpu_millis),
        lack("memory", need.memory, used.memory, room.memory),
        lack("ephemeral-storage", need.ephemeral_storage, used.ephemeral_storage, room.ephemeral_storage),
    ]
    .into_iter()
    .chain(huge)
    .find(|l| l.requested > 0 && l.used.saturating_add(l.requested) > l.capacity)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::Origin;

    const ROOM: Room =
        Room { cpu_millis: 2000, memory: 1 << 30, ephemeral_storage: 1 << 30, pods: 3, huge_pages: hugepages::Amounts::new() };

    fn pod(name: &str, spec: &str) -> ValidPod {
        let yaml = format!("{{metadata: {{name: {name}, uid: {name}}}, spec: {{{spec}}}}}");
        ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Stdin)
    }

    fn asks(name: &str, requests: &str) -> ValidPod {
        pod(name, &format!("containers: [{{name: a, resources: {{requests: {{{requests}}}}}}}]"))
    }

    fn devices() -> Arc<Devices> {
        Devices::open("/nowhere".as_ref(), "/nowhere".as_ref())
    }

    fn settings() -> Settings {
        Settings::below("/r".as_ref(), "p")
    }

    #[rstest]
    #[case("cpu: '1'", None)]
    #[case("cpu: 2500m", Some(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 2500, used: 500, capacity: 2000")))]
    #[case("memory: 1Gi", Some(("OutOfmemory", "Node didn't have enough resource: memory, requested: 1073741824, used: 1048576, capacity: 1073741824")))]
    #[case("ephemeral-storage: 2Gi", Some(("OutOfephemeral-storage", "Node didn't have enough resource: ephemeral-storage, requested: 2147483648, used: 0, capacity: 1073741824")))]
    #[case("hugepages-2Mi: 4Mi}, limits: {hugepages-2Mi: 4Mi", Some(("OutOfhugepages-2Mi", "Node didn't have enough resource: hugepages-2Mi, requested: 4194304, used: 0, capacity: 0")))]
    fn what_does_not_fit_says_so(#[case] requests: &str, #[case] expected: Option<(&str, &str)>) {
        let admission = Admission::new(ROOM, Labels::default(), devices());
        let _first = admission.admit(&asks("first", "cpu: 500m, memory: 1Mi"), &settings()).unwrap();
        let rejection = admission.admit(&asks("second", requests), &settings()).err();
        assert_eq!(rejection.as_ref().map(|r| (r.reason.as_str(), r.message.as_str())), expected);
    }

    #[test]
    fn a_lease_that_ends_makes_room() {
        let admission = Admission::new(Room { pods: 1, ..ROOM }, Labels::default(), devices());
        let better = admission.better();
        let lease = admission.admit(&asks("first", ""), &settings()).unwrap();
        assert_eq!(admission.admit(&asks("second", ""), &settings()).unwrap_err().reason, "OutOfpods");
        assert!(!better.has_changed().unwrap());
        drop(lease);
        assert!(better.has_changed().unwrap());
        assert!(admission.admit(&asks("second", ""), &settings()).is_ok());
    }

    #[test]
    fn a_resize_is_deferred_or_infeasible() {
        let admission = Admission::new(ROOM, Labels::default(), devices());
        let _first = admission.admit(&asks("first", "cpu: '1'"), &settings()).unwrap();
        let _second = admission.admit(&asks("second", "cpu: 500m"), &settings()).unwrap();
        let reason = |requests| admission.resize(&asks("first", requests)).err().map(|r| r.reason);
        assert_eq!(reason("cpu: '3'").as_deref(), Some("Infeasible"));
        assert_eq!(reason("cpu: 1600m").as_deref(), Some("Deferred"));
        assert_eq!(reason("cpu: 1500m"), None);
        assert_eq!(admission.resize(&asks("second", "cpu: 501m")).unwrap_err().reason, "Deferred");
    }

    #[rstest]
    #[case(&[], "", None)]
    #[case(&[Condition::Memory], "", Some("The node had condition: [MemoryPressure]. "))]
    #[case(&[Condition::Memory], "priority: 2000000000, ", None)]
    #[case(&[Condition::Memory], "tolerations: [{key: node.kubernetes.io/memory-pressure, operator: Exists}], ", None)]
    #[case(&[Condition::Memory], "resources: {requests: {cpu: 1m}}, ", None)]
    #[case(&[Condition::Disk], "resources: {requests: {cpu: 1m}}, ", Some("The node had condition: [DiskPressure]. "))]
    #[case(&[Condition::Memory, Condition::Pid], "", Some("The node had condition: [MemoryPressure PIDPressure]. "))]
    fn pressure_keeps_pods_out(#[case] conditions: &[Condition], #[case] spec: &str, #[case] expected: Option<&str>) {
        let admission = Admission::new(ROOM, Labels::default(), devices());
        admission.suffers(conditions);
        let rejection = admission.admit(&pod("p", &format!("{spec}containers: [{{name: a}}]")), &settings()).err();
        assert_eq!(rejection.map(|r| r.message).as_deref(), expected);
    }

    #[test]
    fn nobody_comes_in_as_the_node_goes_down() {
        let admission = Admission::new(ROOM, Labels::default(), devices());
        let better = admission.better();
        admission.go_down(true);
        let rejection = admission.admit(&pod("p", "priority: 2000001000, containers: [{name: a}]"), &settings()).unwrap_err();
        let said = (rejection.reason.as_str(), rejection.message.as_str());
        assert_eq!(said, ("NodeShutdown", "Pod was rejected as the node is shutting down."));
        assert!(!better.has_changed().unwrap());
        admission.go_down(false);
        assert!(better.has_changed().unwrap(), "who was turned away asks again");
        assert!(admission.admit(&pod("p", "containers: [{name: a}]"), &settings()).is_ok());
    }

    #[rstest]
    #[case("uid: p", "os: {name: linux}, ", None)]
    #[case("uid: p", "os: {name: windows}, ", Some(("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")))]
    #[case("labels: {kubernetes.io/os: linux}", "", None)]
    #[case("labels: {kubernetes.io/os: windows}", "", Some(("PodOSSelectorNodeLabelDoesNotMatch",
        "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label")))]
    fn pods_for_another_system(#[case] metadata: &str, #[case] spec: &str, #[case] expected: Option<(&str, &str)>) {
        let yaml = format!("{{metadata: {{name: p, {metadata}}}, spec: {{{spec}containers: [{{name: a}}]}}}}");
        let pod = ValidPod::trusted(serde_yaml::from_str(&yaml).unwrap(), Origin::Api);
        let rejection = Admission::new(ROOM, Labels::default(), devices()).admit(&pod, &settings()).err();
        assert_eq!(rejection.as_ref().map(|r| (r.reason.as_str(), r.message.as_str())), expected);
    }

    #[test]
    fn what_the_kernel_or_the_configuration_lacks_is_told() {
        let admission = Admission::new(ROOM, Labels::default(), devices());
        let unsafe_one = "securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}, containers: [{name: a}]";
        let rejection = admission.admit(&pod("p", unsafe_one), &settings()).unwrap_err();
        assert_eq!(rejection.reason, "SysctlForbidden");
        assert!(rejection.message.starts_with("forbidden sysctl: \"kernel.msgmax\" not allowlisted"), "{}", rejection.message);
    }
}
