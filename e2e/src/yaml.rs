//! Small manifests for tests that are about something else, written as the tests' sentences.

use std::fmt::Write;

/// The embedded image.
pub const DEMO: &str = "localhost/nodeagent-demo:latest";

/// A Pod manifest in the making.
///
/// ```
/// let yaml = e2e::pod("web").runs("web", "serve --port 8080").spec("hostname: shop").yaml();
/// assert!(yaml.contains("args: [\"serve\", \"--port\", \"8080\"]"));
/// ```
#[derive(Debug, Clone)]
pub struct Manifest {
    name: String,
    metadata: Vec<String>,
    spec: Vec<String>,
    init: Vec<String>,
    containers: Vec<String>,
}

/// A pod of that name, with a grace period that tests can wait for.
pub fn pod(name: &str) -> Manifest {
    let spec = vec!["terminationGracePeriodSeconds: 5".into()];
    Manifest { name: name.into(), metadata: Vec::new(), spec, init: Vec::new(), containers: Vec::new() }
}

impl Manifest {
    /// metadata.name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A container of the demo image with these words as its args.
    #[must_use]
    pub fn runs(self, container: &str, words: &str) -> Self {
        self.runs_with(container, words, "")
    }

    /// The same, with more fields, one a line.
    #[must_use]
    pub fn runs_with(mut self, container: &str, words: &str, fields: &str) -> Self {
        self.containers.push(item(container, DEMO, "args", &words.split_whitespace().collect::<Vec<_>>(), fields));
        self
    }

    /// A container of another image; the command goes by `sh -c`.
    #[must_use]
    pub fn shell(mut self, container: &str, image: &str, script: &str) -> Self {
        self.containers.push(item(container, image, "command", &["sh", "-c", script], ""));
        self
    }

    /// A container of another image as it comes, with more fields, one a line.
    #[must_use]
    pub fn image(mut self, container: &str, image: &str, fields: &str) -> Self {
        self.containers.push(item(container, image, "args", &[], fields));
        self
    }

    /// An init container of the demo image.
    #[must_use]
    pub fn first_runs(self, container: &str, words: &str, fields: &str) -> Self {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.first(item(container, DEMO, "args", &words, fields))
    }

    fn first(mut self, item: String) -> Self {
        self.init.push(item);
        self
    }

    /// A line of the spec.
    #[must_use]
    pub fn spec(mut self, line: &str) -> Self {
        let field = line.split(':').next().unwrap_or_default();
        self.spec.retain(|other| other.split(':').next() != Some(field));
        self.spec.push(line.into());
        self
    }

    /// A line of the metadata.
    #[must_use]
    pub fn metadata(mut self, line: &str) -> Self {
        self.metadata.push(line.into());
        self
    }

    /// An emptyDir `shared`, mounted at /shared by every container that says `e2e::SHARED`.
    #[must_use]
    pub fn shares_a_folder(self) -> Self {
        self.spec("volumes: [{name: shared, emptyDir: {}}]")
    }

    /// The text.
    pub fn yaml(&self) -> String {
        let mut yaml = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n", self.name);
        for line in &self.metadata {
            let _ = writeln!(yaml, "  {line}");
        }
        yaml.push_str("spec:\n");
        for line in &self.spec {
            let _ = writeln!(yaml, "  {line}");
        }
        if !self.init.is_empty() {
            let _ = write!(yaml, "  initContainers:\n{}", self.init.concat());
        }
        let _ = write!(yaml, "  containers:\n{}", self.containers.concat());
        yaml
    }
}

/// A container's field that mounts the folder of [`Manifest::shares_a_folder`].
pub const SHARED: &str = "volumeMounts: [{name: shared, mountPath: /shared}]";

fn item(name: &str, image: &str, field: &str, words: &[&str], fields: &str) -> String {
    let mut yaml = format!("  - name: {name}\n    image: {image}\n");
    if !words.is_empty() {
        let quoted: Vec<String> = words.iter().map(|word| serde_json::Value::from(*word).to_string()).collect();
        let _ = writeln!(yaml, "    {field}: [{}]", quoted.join(", "));
    }
    for line in fields.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let _ = writeln!(yaml, "    {line}");
    }
    yaml
}
