//! podFailurePolicy: what a pod's failure means for its Job. Pure. The first rule that fits decides.

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::ContainerStatus;

use crate::workload::pods::Owned;

/// A rule's action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    FailJob,
    FailIndex,
    Ignore,
    Count,
}

/// What the policy says of a pod that failed, and the sentence for it.
pub(super) fn verdict(spec: &JobSpec, pod: &Owned) -> Option<(Verdict, String)> {
    let rules = &spec.pod_failure_policy.as_ref()?.rules;
    rules.iter().enumerate().find_map(|(at, rule)| {
        let because = fits(rule, pod)?;
        let verdict = match rule.action.as_str() {
            "FailJob" => Verdict::FailJob,
            "FailIndex" => Verdict::FailIndex,
            "Ignore" => Verdict::Ignore,
            _ => Verdict::Count,
        };
        Some((verdict, format!("{because} matching {} rule at index {at}", rule.action)))
    })
}

/// Whether the pod's failure counts for nothing.
pub(super) fn ignores(spec: &JobSpec, pod: &Owned) -> bool {
    matches!(verdict(spec, pod), Some((Verdict::Ignore, _)))
}

fn fits(rule: &PodFailurePolicyRule, pod: &Owned) -> Option<String> {
    let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.name();
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = ended(pod, codes)?;
        return Some(format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"));
    }
    let conditions = pod.pod.status.as_ref()?.conditions.as_ref()?;
    let pattern = rule.on_pod_conditions.iter().flatten().find(|pattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        conditions.iter().any(|c| c.type_ == pattern.type_ && c.status == status)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {}", pattern.type_))
}

fn ended<'a>(pod: &'a Owned, codes: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
    let ended = all.filter_map(|c: &ContainerStatus| Some((c.name.as_str(), c.state.as_ref()?.terminated.as_ref()?.exit_code)));
    ended.filter(|(_, code)| *code != 0).find(|(name, code)| {
        let named = codes.container_name.as_deref().is_none_or(|wanted| wanted == *name);
        let listed = codes.values.contains(code);
        named && if codes.operator == "NotIn" { !listed } else { listed }
    })
}
