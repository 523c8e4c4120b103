//! A manifest's text to pods or errors: each wrong manifest with the exact lines that it gets.

use std::path::Path;

use nodeagent::model::{Defaults, Loaded, load};
use rstest::rstest;

fn loaded(text: impl AsRef<[u8]>) -> Loaded {
    load(Path::new("web.yaml"), text.as_ref(), &Defaults { node_name: "node1".into() })
}

fn errors(text: impl AsRef<[u8]>) -> Vec<String> {
    loaded(text).errors.iter().map(ToString::to_string).collect()
}

/// A pod with this spec, indented by two below `spec:` on line 5. The one container begins on line 7.
fn pod(more: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: app\n    image: nginx\n{more}")
}

#[test]
fn a_plain_pod_gets_its_defaults() {
    let loaded = loaded(pod(""));
    assert_eq!(loaded.errors, []);
    let pod = &loaded.pods[0];
    assert_eq!(pod.to_string(), "default/web");
    assert_eq!(pod.spec().termination_grace_period_seconds, Some(30));
    assert_eq!(pod.spec().containers[0].image_pull_policy.as_deref(), Some("Always"));
}

#[rstest]
#[case::unknown_field("    imagee: x\n", "web.yaml:9:5: spec.containers[0].imagee: unknown field, did you mean \"image\"?")]
#[case::wrong_case(
    "    volumemounts: []\n",
    "web.yaml:9:5: spec.containers[0].volumemounts: unknown field, did you mean \"volumeMounts\"?"
)]
#[case::far_off("    frobnicate: 1\n", "web.yaml:9:5: spec.containers[0].frobnicate: unknown field")]
#[case::number_for_string(
    "    env:\n    - name: PORT\n      value: 8080\n",
    "web.yaml:11:14: spec.containers[0].env[0].value: Invalid value: 8080: must be a string, not an integer: put it in quotes"
)]
#[case::string_for_number(
    "    ports:\n    - containerPort: \"80\"\n",
    "web.yaml:10:22: spec.containers[0].ports[0].containerPort: Invalid value: \"80\": must be an integer, not a string: write it without quotes"
)]
#[case::too_large(
    "    ports:\n    - containerPort: 5000000000\n",
    "web.yaml:10:22: spec.containers[0].ports[0].containerPort: Invalid value: 5000000000: must be between -2147483648 and 2147483647"
)]
#[case::map_for_list(
    "    command: sh\n",
    "web.yaml:9:14: spec.containers[0].command: Invalid value: \"sh\": must be a list, not a string: begin each element with \"- \""
)]
#[case::duplicate_key("    image: redis\n", "web.yaml:9:5: duplicate key \"image\": it is on line 8, column 5 already")]
#[case::tab("\tcommand: [sh]\n", "web.yaml:9:1: a tab can't indent in YAML: use spaces")]
fn a_wrong_container(#[case] more: &str, #[case] expected: &str) {
    assert_eq!(errors(pod(more)), [expected]);
}
