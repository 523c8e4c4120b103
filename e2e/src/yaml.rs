//! Small manifests for tests that are about something else.

use std::fmt::Write;

/// The embedded image.
const DEMO: &str = "localhost/nodeagent-demo:latest";

/// A pod of demo containers, each `(name, words)`: `pod("web", &[("web", "serve --port 8080")])`.
pub fn pod(name: &str, containers: &[(&str, &str)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 5\n  containers:\n"
    );
    for (container_name, words) in containers {
        let _ = write!(yaml, "{}", container(container_name, words));
    }
    yaml
}

/// One item of `containers`, indented as [`pod`] has it.
pub fn container(name: &str, words: &str) -> String {
    let args: Vec<String> = words.split_whitespace().map(|word| format!("{word:?}")).collect();
    format!("  - name: {name}\n    image: {DEMO}\n    args: [{}]\n", args.join(", "))
}
