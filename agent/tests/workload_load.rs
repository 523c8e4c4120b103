//! Manifests of workloads to objects or errors: each wrong one with the exact line that it gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use nodeagent::model::{Defaults, Loaded, Workload, load};
use rstest::rstest;

fn loaded(text: &str) -> Loaded {
    load(Path::new("w.yaml"), text.as_bytes(), &Defaults { node_name: "node1".into() })
}

fn errors(text: &str) -> Vec<String> {
    loaded(text).errors.iter().map(ToString::to_string).collect()
}

const TEMPLATE: &str = "  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers: [{name: c, image: i}]\n";

/// The spec begins on line 5, `more` on line 6.
fn apps(kind: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n{more}{TEMPLATE}"
    )
}

/// `more` begins on line 5.
fn job(more: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: web}}\nspec:\n{more}  template:\n    spec:\n      restartPolicy: Never\n      containers: \
         [{{name: c, image: i}}]\n"
    )
}

/// `more` begins on line 5.
fn cron(more: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: web}}\nspec:\n{more}  jobTemplate:\n    spec:\n      template:\n        spec: \
         {{restartPolicy: Never, containers: [{{name: c, image: i}}]}}\n"
    )
}

#[test]
fn defaults_are_the_api_servers() {
    let all = [
        apps("Deployment", ""),
        apps("StatefulSet", ""),
        apps("DaemonSet", ""),
        apps("ReplicaSet", ""),
        job(""),
        cron("  schedule: '@daily'\n"),
    ];
    let loaded = loaded(&all.join("---\n"));
    assert_eq!(loaded.errors, []);
    let value = |index: usize| serde_json::to_value(loaded.workloads[index].object()).unwrap();
    let deployment = value(0);
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 600);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(value(1)["spec"]["podManagementPolicy"], "OrderedReady");
    assert_eq!(value(1)["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"], "Retain");
    assert_eq!(value(2)["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    let job = value(4);
    assert_eq!((job["spec"]["completions"].as_i64(), job["spec"]["backoffLimit"].as_i64()), (Some(1), Some(6)));
    let uid = job["metadata"]["uid"].as_str().unwrap();
    assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "web");
    assert_eq!(value(5)["spec"]["successfulJobsHistoryLimit"], 3);
    assert!(matches!(loaded.workloads[5].object(), Workload::CronJob(_)));
}

#[rstest]
#[case::replicas(
    "Deployment",
    "  replicas: -1\n",
    "w.yaml:6:3: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
)]
#[case::unknown("Deployment", "  replica: 1\n", "w.yaml:6:3: spec.replica: unknown field, did you mean \"replicas\"?")]
#[case::strategy(
    "Deployment",
    "  strategy: {type: Rolling}\n",
    "w.yaml:6:14: spec.strategy.type: Unsupported value: \"Rolling\": supported values: \"Recreate\", \"RollingUpdate\""
)]
#[case::recreate(
    "Deployment",
    "  strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}\n",
    "w.yaml:6:30: spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"
)]
#[case::standstill(
    "Deployment",
    "  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}\n",
    "w.yaml:6:43: spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
)]
#[case::percent(
    "Deployment",
    "  strategy: {rollingUpdate: {maxSurge: much}}\n",
    "w.yaml:6:30: spec.strategy.rollingUpdate.maxSurge: Invalid value: \"much\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
)]
#[case::too_much(
    "Deployment",
    "  strategy: {rollingUpdate: {maxUnavailable: 101%}}\n",
    "w.yaml:6:30: spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"
)]
#[case::deadline(
    "Deployment",
    "  minReadySeconds: 9\n  progressDeadlineSeconds: 9\n",
    "w.yaml:7:3: spec.progressDeadlineSeconds: Invalid value: 9: must be greater than minReadySeconds"
)]
#[case::management(
    "StatefulSet",
    "  podManagementPolicy: Random\n",
    "w.yaml:6:3: spec.podManagementPolicy: Invalid value: \"Random\": must be 'OrderedReady' or 'Parallel'"
)]
#[case::claim(
    "StatefulSet",
    "  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce]}}]\n",
    "w.yaml:6:51: spec.volumeClaimTemplates[0].spec.resources.requests[storage]: Required value"
)]
#[case::retention(
    "StatefulSet",
    "  persistentVolumeClaimRetentionPolicy: {whenScaled: Drop}\n",
    "w.yaml:6:42: spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Drop\": supported values: \"Retain\", \"Delete\""
)]
#[case::daemon(
    "DaemonSet",
    "  updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}\n",
    "w.yaml:6:36: spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"
)]
fn a_wrong_set(#[case] kind: &str, #[case] more: &str, #[case] expected: &str) {
    assert_eq!(errors(&apps(kind, more)), [expected]);
}

#[rstest]
#[case::no_selector(
    apps("Deployment", "").replace("  selector: {matchLabels: {app: web}}\n", ""),
    "w.yaml:4:1: spec.selector: Required value"
)]
#[case::other_selector(
    apps("Deployment", "").replace("selector: {matchLabels: {app: web}}", "selector: {matchLabels: {app: api}}"),
    "w.yaml:7:16: spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
)]
#[case::restart_policy(
    apps("DaemonSet", "").replace("      containers", "      restartPolicy: Never\n      containers"),
    "w.yaml:9:7: spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""
)]
#[case::container_of_the_template(
    apps("Deployment", "").replace("image: i", "imagee: i"),
    "w.yaml:9:30: spec.template.spec.containers[0].imagee: unknown field, did you mean \"image\"?"
)]
#[case::no_image(
    apps("Deployment", "").replace(", image: i", ""),
    "w.yaml:9:20: spec.template.spec.containers[0].image: Required value"
)]
#[case::version(
    apps("Deployment", "").replace("apps/v1", "apps/v1beta1"),
    "w.yaml:1:1: apiVersion: Unsupported value: \"apps/v1beta1\": supported values: \"apps/v1\""
)]
#[case::always(
    job("").replace("Never", "Always"),
    "w.yaml:7:7: spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
)]
#[case::per_index(
    job("  backoffLimitPerIndex: 1\n"),
    "w.yaml:5:3: spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"
)]
#[case::indexed(
    job("  completionMode: Indexed\n  parallelism: 2\n"),
    "w.yaml:4:1: spec.completions: Required value: when completion mode is Indexed"
)]
#[case::on_failure(
    job("  podFailurePolicy: {rules: [{action: Count, onExitCodes: {operator: In, values: [1]}}]}\n").replace("Never", "OnFailure"),
    "w.yaml:8:7: spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified"
)]
#[case::zero(
    job("  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [0]}}]}\n"),
    "w.yaml:5:85: spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator"
)]
#[case::neither(
    job("  podFailurePolicy: {rules: [{action: FailJob}]}\n"),
    "w.yaml:5:30: spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
)]
#[case::success_without_indexes(
    job("  successPolicy: {rules: [{succeededCount: 1}]}\n"),
    "w.yaml:5:3: spec.successPolicy: Invalid value: requires indexed completion mode"
)]
#[case::schedule(
    cron("  schedule: 61 * * * *\n"),
    "w.yaml:5:3: spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"
)]
#[case::no_schedule(cron("  suspend: true\n"), "w.yaml:4:1: spec.schedule: Required value")]
#[case::zone_in_schedule(
    cron("  schedule: TZ=UTC 0 * * * *\n"),
    "w.yaml:5:3: spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
)]
#[case::zone(
    cron("  schedule: 0 * * * *\n  timeZone: Europe/Bremen\n"),
    "w.yaml:6:3: spec.timeZone: Invalid value: \"Europe/Bremen\": unknown time zone Europe/Bremen"
)]
#[case::concurrency(
    cron("  schedule: 0 * * * *\n  concurrencyPolicy: Maybe\n"),
    "w.yaml:6:3: spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\""
)]
#[case::long_name(
    cron("  schedule: 0 * * * *\n").replace("name: web}", "name: a1234567890123456789012345678901234567890123456789123}"),
    "w.yaml:3:12: metadata.name: Invalid value: \"a1234567890123456789012345678901234567890123456789123\": must be no more than 52 characters"
)]
#[case::elsewhere(
    "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\n".into(),
    "w.yaml:2:1: kind: Unsupported value: \"Ingress\": supported values: \"ConfigMap\", \"CronJob\", \"DaemonSet\", \"Deployment\", \"Job\", \
     \"Namespace\", \"NetworkPolicy\", \"PersistentVolumeClaim\", \"Pod\", \"ReplicaSet\", \"Secret\", \"Service\", \"StatefulSet\", \"List\": only a cluster has a controller \
     for it; a container's hostPort is reached from outside"
)]
fn a_wrong_manifest(#[case] text: String, #[case] expected: &str) {
    assert_eq!(errors(&text), [expected]);
}

proptest::proptest! {
    /// A manifest of which some bytes are others: no panic, whatever it comes to.
    #[test]
    fn no_manifest_panics(which in 0usize..6, changes in proptest::collection::vec((0usize..1000, proptest::num::u8::ANY), 1..6)) {
        let claims = "  volumeClaimTemplates: [{metadata: {name: d}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]\n";
        let text = match which {
            0 => apps("Deployment", "  strategy: {rollingUpdate: {maxSurge: 10%, maxUnavailable: 2}}\n"),
            1 => apps("StatefulSet", claims),
            2 => apps("DaemonSet", "  minReadySeconds: 5\n"),
            3 => apps("ReplicaSet", "  replicas: 3\n"),
            4 => job("  completionMode: Indexed\n  completions: 9\n  successPolicy: {rules: [{succeededIndexes: 1-3, succeededCount: 2}]}\n"),
            _ => cron("  schedule: '*/5 1-4 * jan mon'\n  timeZone: Europe/Berlin\n"),
        };
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let loaded = load(Path::new("w.yaml"), &bytes, &Defaults::default());
        proptest::prop_assert!(loaded.workloads.len() + loaded.pods.len() + loaded.objects.len() <= 1);
    }
}
