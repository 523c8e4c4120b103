//! The API server's own rules for a pod, in its own words and field paths, each with its line and column. All errors are told, not
//! the first alone. Knows no file and does no I/O.

mod affinity;
mod container;
mod env;
mod job;
pub mod names;
mod network_policy;
mod object;
mod pod;
mod probe;
mod report;
mod resources;
mod security;
mod service;
mod volume;
mod workload;

use k8s_openapi::api::core::v1::Pod;

use super::error::Problem;
use super::exported;
use super::load::Defaults;
use super::path::Path;
use super::yaml::Node;
pub use object::{object, warnings as object_warnings};
pub use report::Report;
pub(super) use volume::sources as volume_sources;
pub use workload::{selects, workload};

/// Checks a pod that has its defaults against the text that it came from.
pub fn pod(pod: &Pod, root: &Node) -> Vec<Problem> {
    let mut report = Report::new(root);
    pod::metadata(&mut report, &pod.metadata);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match &pod.spec {
        Some(spec) => pod::spec(&mut report, &Path::ROOT.child("spec"), spec, name),
        None => report.required(&Path::ROOT.child("spec"), ""),
    }
    report.finish()
}

/// What a pod, before its defaults, says that this node won't follow.
pub fn warnings(pod: &Pod, root: &Node, defaults: &Defaults) -> Vec<Problem> {
    let mut report = Report::new(root);
    let asked = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    if !asked.is_empty() && !defaults.node_name.is_empty() && asked != defaults.node_name {
        let message = format!("is {asked:?}, but a file's pod runs on the node that reads it: {:?}", defaults.node_name);
        report.say(&Path::ROOT.child("spec").child("nodeName"), message);
    }
    let spec = Path::ROOT.child("spec");
    let without_effect = [
        ("evictionResponders", pod.spec.as_ref().is_some_and(|s| s.eviction_responders.is_some())),
        ("schedulingGroup", pod.spec.as_ref().is_some_and(|s| s.scheduling_group.is_some())),
    ];
    for (name, _) in without_effect.into_iter().filter(|(_, is_set)| *is_set) {
        report.say(&spec.child(name), "is for a cluster's controllers: the pod runs without it");
    }
    for (i, volume) in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).enumerate() {
        if exported::is_token_volume(volume) {
            let message = "a cluster added it, and only its API server issues such tokens: the pod runs without it";
            report.say(&Path::ROOT.child("spec").child("volumes").index(i), message);
        }
    }
    report.finish()
}
