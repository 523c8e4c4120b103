//! The cluster that this node is of, if it is of one. Names and meanings are the kubelet's, where it has them.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::check::Checker;
use super::file::Declared;
use super::{Flags, Paths};
use crate::model::validate::names;

/// How this node is one of a cluster's.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The way to the API server, and who the node is there.
    pub kubeconfig: PathBuf,
    /// By what it asks for its first certificate: then `kubeconfig` is written.
    pub bootstrap: Option<PathBuf>,
    /// Whether the cluster signs the kubelet API's certificate.
    pub server_tls_bootstrap: bool,
    /// What the cloud calls this machine.
    pub provider_id: Option<String>,
    /// What the node is tainted with when it is registered.
    pub taints: Vec<Taint>,
}

/// One of `registerWithTaints`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaintSection {
    key: String,
    value: Option<String>,
    effect: String,
}

pub(super) fn cluster(c: &mut Checker<'_>, flags: &Flags, declared: &Declared, paths: &Paths) -> Option<Cluster> {
    let kubeconfig = flags.kubeconfig.clone().or_else(|| c.path("kubeconfig", declared.kubeconfig.as_ref()));
    let bootstrap =
        flags.bootstrap_kubeconfig.clone().or_else(|| c.path("bootstrapKubeconfig", declared.bootstrap_kubeconfig.as_ref()));
    let taints = taints(c, &declared.register_with_taints);
    let provider_id = flags.provider_id.clone().or_else(|| declared.provider_id.clone()).filter(|id| !id.is_empty());
    let kubeconfig = kubeconfig.or_else(|| bootstrap.is_some().then(|| paths.lib().join("kubeconfig")))?;
    let server_tls_bootstrap = declared.server_tls_bootstrap.unwrap_or(false);
    Some(Cluster { kubeconfig, bootstrap, server_tls_bootstrap, provider_id, taints })
}

fn taints(c: &mut Checker<'_>, declared: &[TaintSection]) -> Vec<Taint> {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    for taint in declared {
        let mut wrong = names::qualified_name(&taint.key);
        wrong.extend(names::label_value(taint.value.as_deref().unwrap_or_default()));
        if !EFFECTS.contains(&taint.effect.as_str()) {
            wrong.push(format!("effect {:?}: supported values: {}", taint.effect, EFFECTS.map(|e| format!("{e:?}")).join(", ")));
        }
        for wrong in wrong {
            c.file("registerWithTaints", format!("Invalid value: {:?}: {wrong}", taint.key));
        }
    }
    let taint =
        |t: &TaintSection| Taint { key: t.key.clone(), value: t.value.clone(), effect: t.effect.clone(), time_added: None };
    declared.iter().map(taint).collect()
}
