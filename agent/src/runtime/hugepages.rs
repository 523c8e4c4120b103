//! Huge pages: what pods ask for (`hugepages-2Mi`), and what the machine has. Sizes and amounts in bytes.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::resources::{together, units};

/// Amounts by the size of a page.
pub type Amounts = BTreeMap<u64, u64>;

/// What a container may have; its requests are the same.
pub fn of_container(resources: Option<&ResourceRequirements>) -> Amounts {
    let limits = resources.and_then(|r| r.limits.as_ref()).into_iter().flatten();
    limits.filter_map(|(name, amount)| Some((size(name)?, units(amount)))).collect()
}

/// What a pod needs at most at one time: all that run together, or an init container beside the sidecars before it.
pub fn of_pod(spec: &PodSpec) -> Amounts {
    if let Some(own) = spec.resources.as_ref().map(|r| of_container(Some(r))).filter(|own| !own.is_empty()) {
        return own;
    }
    together(spec, |container| of_container(container.resources.as_ref()), u64::saturating_add)
}

fn size(resource: &str) -> Option<u64> {
    let text = resource.strip_prefix("hugepages-")?;
    Some(units(&Quantity(text.to_owned()))).filter(|size| *size > 0)
}

/// Every size that the machine knows, with the bytes that its administrator has set aside.
pub fn of_machine() -> Amounts {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    sizes
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
            let size = kib.checked_mul(1024)?;
            Some((size, size.saturating_mul(pages.trim().parse().ok()?)))
        })
        .collect()
}

/// `hugepages-2Mi`.
pub fn name(size: u64) -> String {
    format!("hugepages-{}", crate::eviction::bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_needs_what_its_hungriest_moment_does() {
        let spec = "initContainers:
- {name: once, resources: {limits: {hugepages-2Mi: 8Mi}}}
- {name: side, restartPolicy: Always, resources: {limits: {hugepages-2Mi: 2Mi}}}
containers:
- {name: a, resources: {limits: {hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi, memory: 1Gi}}}";
        let needs = of_pod(&serde_yaml::from_str(spec).unwrap());
        assert_eq!(needs, Amounts::from([(2 << 20, 8 << 20), (1 << 30, 1 << 30)]));
        assert_eq!(name(2 << 20), "hugepages-2Mi");
    }
}
