//! What the API server fills into workloads: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/>.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    DaemonSetUpdateStrategy, DeploymentStrategy, RollingUpdateDaemonSet, RollingUpdateDeployment,
    RollingUpdateStatefulSetStrategy, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Workload;
use crate::model::Defaults;
use crate::model::defaults::{claim, object_metadata, pod_spec, set};

/// Fills in what is missing. Twice is the same as once.
pub(in crate::model) fn apply(mut workload: Workload, defaults: &Defaults) -> Workload {
    let resource = workload.kind().resource();
    object_metadata(workload.metadata_mut(), resource, defaults);
    if let Some(template) = workload.template_mut() {
        self::template(template);
    }
    let percent = || IntOrString::String("25%".into());
    match &mut workload {
        Workload::Job(job) => {
            let job = Arc::make_mut(job);
            job.status = None;
            let (name, uid) = (job.metadata.name.clone().unwrap_or_default(), job.metadata.uid.clone().unwrap_or_default());
            if let Some(spec) = &mut job.spec {
                job_spec(spec);
                job_identity(spec, &name, &uid);
            }
        }
        Workload::CronJob(cron) => {
            let cron = Arc::make_mut(cron);
            cron.status = None;
            let spec = &mut cron.spec;
            set(&mut spec.concurrency_policy, "Allow");
            spec.suspend.get_or_insert(false);
            spec.successful_jobs_history_limit.get_or_insert(3);
            spec.failed_jobs_history_limit.get_or_insert(1);
        }
        Workload::Deployment(deployment) => {
            let deployment = Arc::make_mut(deployment);
            deployment.status = None;
            let spec = &mut deployment.spec;
            spec.replicas.get_or_insert(1);
            spec.revision_history_limit.get_or_insert(10);
            spec.progress_deadline_seconds.get_or_insert(600);
            let strategy = spec.strategy.get_or_insert_with(DeploymentStrategy::default);
            set(&mut strategy.type_, "RollingUpdate");
            if strategy.type_.as_deref() == Some("RollingUpdate") {
                let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDeployment::default);
                rolling.max_surge.get_or_insert_with(percent);
                rolling.max_unavailable.get_or_insert_with(percent);
            }
        }
        Workload::ReplicaSet(set) => {
            let set = Arc::make_mut(set);
            set.status = None;
            set.spec.replicas.get_or_insert(1);
        }
        Workload::StatefulSet(set) => {
            let set = Arc::make_mut(set);
            set.status = None;
            stateful_set(&mut set.spec);
        }
        Workload::DaemonSet(set) => {
            let set = Arc::make_mut(set);
            set.status = None;
            let spec = &mut set.spec;
            spec.revision_history_limit.get_or_insert(10);
            let strategy = spec.update_strategy.get_or_insert_with(DaemonSetUpdateStrategy::default);
            self::set(&mut strategy.type_, "RollingUpdate");
            if strategy.type_.as_deref() == Some("RollingUpdate") {
                let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDaemonSet::default);
                rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
                rolling.max_surge.get_or_insert(IntOrString::Int(0));
            }
        }
    }
    workload
}

fn stateful_set(spec: &mut StatefulSetSpec) {
    spec.replicas.get_or_insert(1);
    spec.revision_history_limit.get_or_insert(10);
    set(&mut spec.pod_management_policy, "OrderedReady");
    let strategy = spec.update_strategy.get_or_insert_with(StatefulSetUpdateStrategy::default);
    set(&mut strategy.type_, "RollingUpdate");
    if strategy.type_.as_deref() == Some("RollingUpdate") {
        let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateStatefulSetStrategy::default);
        rolling.partition.get_or_insert(0);
        rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
    }
    let retention = spec
        .persistent_volume_claim_retention_policy
        .get_or_insert_with(StatefulSetPersistentVolumeClaimRetentionPolicy::default);
    set(&mut retention.when_deleted, "Retain");
    set(&mut retention.when_scaled, "Retain");
    for claim in spec.volume_claim_templates.iter_mut().flatten() {
        claim.spec.iter_mut().for_each(self::claim);
    }
}

fn template(template: &mut PodTemplateSpec) {
    if let Some(spec) = &mut template.spec {
        pod_spec(spec);
    }
}

/// A Job that was made of a CronJob's template, which the API server leaves as it is.
pub(crate) fn made_job(spec: &mut JobSpec, name: &str, uid: &str) {
    job_spec(spec);
    job_identity(spec, name, uid);
}

fn job_spec(spec: &mut JobSpec) {
    // Without both it is one run; with parallelism alone, a queue that the pods themselves know the end of.
    if spec.completions.is_none() && spec.parallelism.is_none() {
        spec.completions = Some(1);
    }
    spec.parallelism.get_or_insert(1);
    let per_index = spec.backoff_limit_per_index.is_some();
    spec.backoff_limit.get_or_insert(if per_index { i32::MAX } else { 6 });
    set(&mut spec.completion_mode, "NonIndexed");
    spec.suspend.get_or_insert(false);
    spec.manual_selector.get_or_insert(false);
    set(&mut spec.pod_replacement_policy, if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" });
    for rule in spec.pod_failure_policy.iter_mut().flat_map(|p| &mut p.rules) {
        for pattern in rule.on_pod_conditions.iter_mut().flatten() {
            set(&mut pattern.status, "True");
        }
    }
}

/// The labels by which a Job knows its pods. `manualSelector` leaves them to the author.
pub(crate) fn job_identity(spec: &mut JobSpec, name: &str, uid: &str) {
    if spec.manual_selector == Some(true) {
        return;
    }
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", uid),
        ("controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
        ("job-name", name),
    ] {
        labels.insert(key.into(), value.into());
    }
    let selector = BTreeMap::from([("batch.kubernetes.io/controller-uid".to_owned(), uid.to_owned())]);
    spec.selector = Some(LabelSelector { match_labels: Some(selector), ..LabelSelector::default() });
}
