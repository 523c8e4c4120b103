//! Starts and ends of containers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use podholder::protocol::*;
use support::*;

#[test]
fn a_container_runs_and_its_end_and_output_are_told() {
    let mut pod = Pod::new();
    let recipe = pod.shell("app", "echo out; echo err >&2; exit 7");
    let ran = pod.run(&recipe);
    assert_eq!((ran.exit.code, ran.exit.signal), (7, None));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    let state = pod.state();
    assert_eq!(state.note, serde_json::json!({"from": "test"}));
    assert_eq!(state.containers.len(), 1);
    assert_eq!(state.containers[0].exit, Some(ran.exit));
    pod.call(Request::Forget { container: recipe.id.clone() }).unwrap();
    assert!(pod.state().containers.is_empty());
}
