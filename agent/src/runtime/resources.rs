//! What a pod's resources mean in numbers: quantities, QoS class, sums over containers. Pure.
//! <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/>

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Kubernetes' quality of service class: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Every container has CPU and memory limits, and requests equal to them.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// None has.
    BestEffort,
}

impl Qos {
    /// As `status.qosClass` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The class of a pod.
    pub fn of(spec: &PodSpec) -> Self {
        if let Some(pod) = spec.resources.as_ref().filter(|r| r.requests.is_some() || r.limits.is_some()) {
            return class_of([pod].into_iter());
        }
        class_of(all(spec).map(|c| c.resources.as_ref().unwrap_or(&NOTHING)))
    }
}

/// What binds a container: its own amounts, and the pod's limits where it has none of its own.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-level-resources/>
pub fn within(container: Option<&ResourceRequirements>, pod: Option<&ResourceRequirements>) -> ResourceRequirements {
    let mut bound = container.cloned().unwrap_or_default();
    for (name, limit) in pod.and_then(|pod| pod.limits.as_ref()).into_iter().flatten() {
        if matches!(name.as_str(), "cpu" | "memory") {
            bound.limits.get_or_insert_default().entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    bound
}

static NOTHING: ResourceRequirements = ResourceRequirements { claims: None, limits: None, requests: None };

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn class_of<'a>(containers: impl Iterator<Item = &'a ResourceRequirements>) -> Qos {
    let (mut any, mut guaranteed) = (false, true);
    for resources in containers {
        for name in ["cpu", "memory"] {
            let limit = amount(resources.limits.as_ref(), name);
            let request = amount(resources.requests.as_ref(), name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// In billionths; zero and absent are the same to the QoS class.
fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    list?.get(name).and_then(nano).filter(|n| *n > 0)
}

/// A quantity in billionths of its unit. `None`: not a quantity.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
pub fn nano(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = (text.get(..digits)?, text.get(digits..)?);
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || whole.len() > 19 || !plain(whole) || !plain(fraction) {
        return None;
    }
    // Nine digits are nanos; what is finer rounds up, as Kubernetes does.
    let finer = fraction.bytes().skip(9).any(|b| b != b'0');
    let nine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let base = format!("{whole}{nine}").parse::<i128>().ok()?.checked_add(i128::from(finer))?;
    let value = scale(base, suffix)?;
    Some(if negative { -value } else { value })
}

fn scale(base: i128, suffix: &str) -> Option<i128> {
    let ten = |power: i32| match u32::try_from(power) {
        Ok(up) => 10_i128.checked_pow(up).and_then(|by| base.checked_mul(by)),
        Err(_) => 10_i128.checked_pow(power.unsigned_abs()).map(|by| base.div_ceil_to(by)),
    };
    let two = |power: u32| base.checked_mul(1 << power);
    match suffix {
        "" => Some(base),
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => two(10),
        "Mi" => two(20),
        "Gi" => two(30),
        "Ti" => two(40),
        "Pi" => two(50),
        "Ei" => two(60),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            if power.abs() > 30 { None } else { ten(power) }
        }
    }
}

trait DivCeil {
    fn div_ceil_to(self, by: i128) -> i128;
}

impl DivCeil for i128 {
    fn div_ceil_to(self, by: i128) -> i128 {
        self.div_euclid(by) + i128::from(self.rem_euclid(by) != 0)
    }
}

/// In units of 10^-`digits`, rounded up and held within u64; 0 for what isn't a quantity, or is negative.
fn scaled(quantity: &Quantity, per: i128) -> u64 {
    let value = nano(quantity).unwrap_or_default().div_ceil_to(per).max(0);
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// One, in billionths.
pub const UNIT: i128 = 1_000_000_000;

/// CPU in thousandths of one.
pub fn millis(quantity: &Quantity) -> u64 {
    scaled(quantity, 1_000_000)
}

/// Bytes, or any count.
pub fn units(quantity: &Quantity) -> u64 {
    scaled(quantity, 1_000_000_000)
}

/// What one container, or a pod as a whole, asks for and may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// CPU asked for, in thousandths.
    pub cpu_request: u64,
    /// Bytes asked for.
    pub memory_request: u64,
    /// CPU at most; `None`: some part is without a limit.
    pub cpu_limit: Option<u64>,
    /// Bytes at most; `None`: some part is without a limit.
    pub memory_limit: Option<u64>,
    /// Bytes of the disk asked for.
    pub disk_request: u64,
    /// Bytes of the disk at most; `None`: some part is without a limit.
    pub disk_limit: Option<u64>,
}

impl Totals {
    /// Of one container. A request that is missing is as large as the limit.
    pub fn of(resources: Option<&ResourceRequirements>) -> Self {
        let resources = resources.unwrap_or(&NOTHING);
        let limit = |name: &str| resources.limits.as_ref().and_then(|l| l.get(name));
        let request = |name: &str| resources.requests.as_ref().and_then(|r| r.get(name)).or(limit(name));
        Self {
            cpu_request: request("cpu").map(millis).unwrap_or_default(),
            memory_request: request("memory").map(units).unwrap_or_default(),
            cpu_limit: limit("cpu").map(millis).filter(|n| *n > 0),
            memory_limit: limit("memory").map(units).filter(|n| *n > 0),
            disk_request: request("ephemeral-storage").map(units).unwrap_or_default(),
            disk_limit: limit("ephemeral-storage").map(units).filter(|n| *n > 0),
        }
    }

    /// Of a pod's containers: what they and its sidecars need together, or its most demanding init container beside the sidecars
    /// started before it, whichever is more.
    fn of_containers(spec: &PodSpec) -> Self {
        let mut running = Self { cpu_limit: Some(0), memory_limit: Some(0), disk_limit: Some(0), ..Self::default() };
        let mut peak = running;
        for init in spec.init_containers.iter().flatten() {
            let own = Self::of(init.resources.as_ref());
            if is_sidecar(init) {
                running = running.plus(own);
                peak = peak.max(running);
            } else {
                peak = peak.max(running.plus(own));
            }
        }
        let together = spec.containers.iter().fold(running, |sum, c| sum.plus(Self::of(c.resources.as_ref())));
        peak.max(together)
    }

    /// Of a pod: what its containers need, or what the pod itself says.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let mut total = Self::of_containers(spec);
        if let Some(pod) = &spec.resources {
            let own = Self::of(Some(pod));
            let says = |name: &str| [&pod.requests, &pod.limits].into_iter().flatten().any(|l| l.contains_key(name));
            if says("cpu") {
                (total.cpu_request, total.cpu_limit) = (own.cpu_request, own.cpu_limit.or(total.cpu_limit));
            }
            if says("memory") {
                (total.memory_request, total.memory_limit) = (own.memory_request, own.memory_limit.or(total.memory_limit));
            }
        }
        if let Some(overhead) = &spec.overhead {
            total.add_overhead(overhead);
        }
        total
    }

    fn add_overhead(&mut self, overhead: &BTreeMap<String, Quantity>) {
        let cpu = overhead.get("cpu").map(millis).unwrap_or_default();
        let memory = overhead.get("memory").map(units).unwrap_or_default();
        self.cpu_request = self.cpu_request.saturating_add(cpu);
        self.memory_request = self.memory_request.saturating_add(memory);
        self.cpu_limit = self.cpu_limit.map(|limit| limit.saturating_add(cpu));
        self.memory_limit = self.memory_limit.map(|limit| limit.saturating_add(memory));
    }

    fn plus(self, other: Self) -> Self {
        self.merge(other, u64::saturating_add)
    }

    fn max(self, other: Self) -> Self {
        self.merge(other, u64::max)
    }

    fn merge(self, other: Self, by: impl Fn(u64, u64) -> u64) -> Self {
        let both = |a: Option<u64>, b: Option<u64>| Some(by(a?, b?));
        Self {
            cpu_request: by(self.cpu_request, other.cpu_request),
            memory_request: by(self.memory_request, other.memory_request),
            cpu_limit: both(self.cpu_limit, other.cpu_limit),
            memory_limit: both(self.memory_limit, other.memory_limit),
            disk_request: by(self.disk_request, other.disk_request),
            disk_limit: both(self.disk_limit, other.disk_limit),
        }
    }
}

/// An init container that goes on beside the others (KEP-753).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod's containers need at most at one time, by whatever name: all that run together, or an init container beside the sidecars
/// before it.
pub fn together<K: Ord + Clone, N: Copy + Ord>(
    spec: &PodSpec,
    of: impl Fn(&Container) -> BTreeMap<K, N>,
    plus: fn(N, N) -> N,
) -> BTreeMap<K, N> {
    let (mut running, mut peak) = (BTreeMap::new(), BTreeMap::new());
    for init in spec.init_containers.iter().flatten() {
        let moment = merge(running.clone(), &of(init), plus);
        peak = merge(peak, &moment, N::max);
        if is_sidecar(init) {
            running = moment;
        }
    }
    let total = spec.containers.iter().fold(running, |sum, container| merge(sum, &of(container), plus));
    merge(total, &peak, N::max)
}

fn merge<K: Ord + Clone, N: Copy>(mut into: BTreeMap<K, N>, from: &BTreeMap<K, N>, how: fn(N, N) -> N) -> BTreeMap<K, N> {
    for (name, amount) in from {
        let merged = into.get(name).map_or(*amount, |there| how(*there, *amount));
        into.insert(name.clone(), merged);
    }
    into
}

/// Bytes by which a container is ranked: its request, with its part of what the pod as a whole asks for beyond its containers. A sidecar
/// stays as long as the least of the regular containers. The kubelet's rules.
pub fn oom_request(spec: &PodSpec, container: &Container) -> u64 {
    let own = |container: &Container| Totals::of(container.resources.as_ref()).memory_request;
    let part = spec.resources.as_ref().map_or(0, |pod| {
        let together = Totals::of_containers(spec).memory_request;
        let beyond = Totals::of(Some(pod)).memory_request.saturating_sub(together);
        beyond.checked_div(all(spec).count() as u64).unwrap_or_default()
    });
    let mut request = own(container);
    if is_sidecar(container) && spec.init_containers.iter().flatten().any(|init| init.name == container.name) {
        request = request.max(spec.containers.iter().map(own).min().unwrap_or_default());
    }
    request + part
}

/// The kernel's OOM killer takes best effort first, then who asked for little: the kubelet's formula.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior>
pub fn oom_score_adj(qos: Qos, critical: bool, memory_request: u64, node_memory: u64) -> i32 {
    if critical {
        return -997;
    }
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = (1000 * u128::from(memory_request)).checked_div(u128::from(node_memory)).unwrap_or_default();
            // Between a guaranteed pod's and a best effort pod's, never equal to either.
            (1000 - i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn q(text: &str) -> Quantity {
        Quantity(text.into())
    }

    #[rstest]
    #[case("1", Some(1_000_000_000))]
    #[case("0.5", Some(500_000_000))]
    #[case(".5", Some(500_000_000))]
    #[case("100m", Some(100_000_000))]
    #[case("1e3", Some(1_000_000_000_000))]
    #[case("1E", Some(1_000_000_000_000_000_000_000_000_000))]
    #[case("128Mi", Some(134_217_728_000_000_000))]
    #[case("1.5Gi", Some(1_610_612_736_000_000_000))]
    #[case("1n", Some(1))]
    #[case("0.1n", Some(1))]
    #[case("-1", Some(-1_000_000_000))]
    #[case("", None)]
    #[case(".", None)]
    #[case("1 Mi", None)]
    #[case("1mi", None)]
    #[case("1e99", None)]
    #[case("1-2", None)]
    #[case("99999999999999999999", None)]
    fn quantities(#[case] text: &str, #[case] expected: Option<i128>) {
        assert_eq!(nano(&q(text)), expected);
    }

    #[rstest]
    #[case("0.0001", 1)]
    #[case("1500u", 2)]
    #[case("2", 2000)]
    fn millis_round_up(#[case] text: &str, #[case] expected: u64) {
        assert_eq!(millis(&q(text)), expected);
    }

    fn spec(yaml: &str) -> PodSpec {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[rstest]
    #[case("containers: [{name: a}]", Qos::BestEffort)]
    #[case("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}]", Qos::Guaranteed)]
    #[case(
        "containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 1000m, memory: 1024Mi}}}]",
        Qos::Guaranteed
    )]
    #[case("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 10m}}}]", Qos::Burstable)]
    #[case("containers: [{name: a, resources: {limits: {memory: 1Gi}}}]", Qos::Burstable)]
    #[case("containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}}}, {name: b}]", Qos::Burstable)]
    #[case("containers: [{name: a, resources: {requests: {cpu: '0'}}}]", Qos::BestEffort)]
    #[case("{initContainers: [{name: i, resources: {requests: {cpu: 1m}}}], containers: [{name: a}]}", Qos::Burstable)]
    #[case("{resources: {limits: {cpu: '1', memory: 1Gi}}, containers: [{name: a}]}", Qos::Guaranteed)]
    fn qos_classes(#[case] yaml: &str, #[case] expected: Qos) {
        assert_eq!(Qos::of(&spec(yaml)), expected);
    }

    #[test]
    fn a_pods_total_is_its_hungriest_moment() {
        let total = Totals::of_pod(&spec(
            "initContainers:
- {name: side, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
- {name: once, resources: {requests: {cpu: 900m, memory: 1Gi}}}
containers:
- {name: a, resources: {requests: {cpu: 200m, memory: 64Mi}}}
- {name: b, resources: {requests: {cpu: 300m, memory: 64Mi}}}",
        ));
        assert_eq!(total.cpu_request, 1000);
        assert_eq!(total.memory_request, 1 << 30);
        assert_eq!(total.cpu_limit, None);
    }

    #[test]
    fn what_the_pod_asks_for_beyond_its_containers_is_shared_and_a_sidecar_stays_with_them() {
        let spec: PodSpec = serde_yaml::from_str(
            "resources: {requests: {memory: 100}}\n\
             initContainers: [{name: side, restartPolicy: Always, resources: {requests: {memory: 10}}}]\n\
             containers: [{name: a, resources: {requests: {memory: 20}}}, {name: b, resources: {requests: {memory: 30}}}]\n",
        )
        .unwrap();
        let request = |container: &Container| oom_request(&spec, container);
        assert_eq!(request(&spec.containers[0]), 33);
        assert_eq!(request(&spec.containers[1]), 43);
        assert_eq!(request(&spec.init_containers.as_ref().unwrap()[0]), 33);
    }

    #[rstest]
    #[case(Qos::Guaranteed, 0, -997)]
    #[case(Qos::BestEffort, 0, 1000)]
    #[case(Qos::Burstable, 0, 999)]
    #[case(Qos::Burstable, 4_000_000_000, 500)]
    #[case(Qos::Burstable, 8_000_000_000, 3)]
    fn oom_scores(#[case] qos: Qos, #[case] request: u64, #[case] expected: i32) {
        assert_eq!(oom_score_adj(qos, false, request, 8_000_000_000), expected);
    }
}
