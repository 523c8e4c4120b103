//! `make conformance`: Kubernetes' own node tests, with this agent as the node of a real cluster. Prints what passed, failed and was skipped
//! by name, and holds it against the committed list of what passes, which may only grow.
//!
//! `conformance [--procs N] [--minutes N] [--accept] [PATTERN]`: PATTERN is matched against `Kubernetes e2e suite NAME` of the tests that the list is about;
//! `--accept` adds what passes to the list; `--minutes N` ends it after so long, with a report of what ran; `--output DIR` keeps the agent's words and those of failed tests.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, thread};

use e2e::{ControlPlane, NodeBox, Running, eventually, run, workspace};
use serde_json::Value;

/// Where the tests' images are. Kubernetes' tests run a registry of their own at port 5000 of the node.
const REGISTRY: &str = "127.0.0.1:5001";
/// What the list is about.
const TESTS: &str = r"\[sig-node\].*\[NodeConformance\]";

fn main() -> ExitCode {
    let wish = Wish::of(env::args().skip(1));
    let programs = workspace().join("target/e2e/conformance");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let node = node(folder.path());
    let _registry = registry(&node, &programs);
    let plane = ControlPlane::beside(&node);
    let report = with_approvals(&plane, || {
        join(&node, &plane);
        tests(&wish, &node, &plane, &programs)
    });
    if let Some(output) = &wish.output {
        fs::create_dir_all(output).expect("the folder can be made");
        fs::write(output.join("agent.log"), node.agent_output()).expect("the folder can be written");
    }
    let results = Results::of(&report);
    results.tell(wish.output.as_deref());
    let list = workspace().join("e2e/conformance/passes.txt");
    let listed = fs::read_to_string(&list).unwrap_or_default();
    let known: BTreeSet<&str> = listed.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let lost = results.lost(&known, wish.pattern == TESTS);
    let new: Vec<&String> = results.passed.iter().filter(|name| !known.contains(name.as_str())).collect();
    for name in &lost {
        println!("LOST {name}{}", if results.ran(name) { "" } else { " (it did not run)" });
    }
    println!("{} passed, {} failed, {} skipped", results.passed.len(), results.failed.len(), results.skipped.len());
    println!("{} of the list did not pass, {} pass that are not in it", lost.len(), new.len());
    if wish.accept && !new.is_empty() {
        let head: String = listed.lines().filter(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        let all: BTreeSet<&str> = known.iter().copied().chain(new.iter().map(|name| name.as_str())).collect();
        let lines: String = all.into_iter().flat_map(|name| [name, "\n"]).collect();
        fs::write(&list, format!("{head}{lines}")).expect("the list can be written");
    }
    if lost.is_empty() && !results.passed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the command line asks for.
struct Wish {
    procs: usize,
    minutes: usize,
    accept: bool,
    output: Option<PathBuf>,
    pattern: String,
}

impl Wish {
    fn of(mut words: impl Iterator<Item = String>) -> Self {
        let mut wish = Self { procs: 4, minutes: 180, accept: false, output: None, pattern: TESTS.into() };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--procs" => wish.procs = words.next().and_then(|n| n.parse().ok()).expect("--procs NUMBER"),
                "--minutes" => wish.minutes = words.next().and_then(|n| n.parse().ok()).expect("--minutes NUMBER"),
                "--accept" => wish.accept = true,
                "--output" => wish.output = Some(words.next().expect("--output DIR").into()),
                _ => wish.pattern = word,
            }
        }
        wish
    }
}

fn node(folder: &Path) -> NodeBox {
    let registries = folder.join("registries.conf");
    let insecure = |place: &str| format!("[[registry]]\nlocation = \"{place}\"\ninsecure = true\n");
    fs::write(&registries, insecure(REGISTRY) + &insecure("localhost:5000")).expect("the folder can be written");
    let configuration = format!(
        "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nserverTLSBootstrap: true\n\
         images: {{registriesConf: {}, gcHighThresholdPercent: 100}}\n",
        registries.display()
    );
    NodeBox::builder().config(&configuration).argument("--network").argument("bridge").without_agent().start()
}

fn registry(node: &NodeBox, programs: &Path) -> Running {
    let configuration = node.folder().join("conformance-registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n",
        programs.join("registry").display()
    );
    fs::write(&configuration, text).expect("the folder can be written");
    let registry = Running::start(node.command("docker-registry").arg("serve").arg(&configuration));
    eventually("the registry answers", || node.curl(&format!("http://{REGISTRY}/v2/")).result());
    registry
}

/// Somebody approves what the node asks for, as long as `work` takes.
fn with_approvals<T>(plane: &ControlPlane<'_>, work: impl FnOnce() -> T) -> T {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                plane.script(&["approve"]);
                thread::sleep(std::time::Duration::from_secs(5));
            }
        });
        // Also when the work panics.
        let _over = Over(&over);
        work()
    })
}

fn join(node: &NodeBox, plane: &ControlPlane<'_>) {
    plane.joins(node);
    // Tests ask pods from outside, as on a flat network.
    let range = plane.until("node", "node", "has a range", |node| node["spec"]["podCIDR"].as_str().map(ToOwned::to_owned));
    run(node.outside().command("ip").args(["route", "add", &range, "via", e2e::INSIDE])).ok();
}

/// Runs them, and gives the runner's report.
fn tests(wish: &Wish, node: &NodeBox, plane: &ControlPlane<'_>, programs: &Path) -> Value {
    let folder = node.folder();
    let repositories = folder.join("repositories.yaml");
    let text = format!(
        "promoterE2eRegistry: {REGISTRY}/e2e-test-images\ngcRegistry: {REGISTRY}\ngcEtcdRegistry: {REGISTRY}\n\
         dockerLibraryRegistry: {REGISTRY}/library\n"
    );
    fs::write(&repositories, text).expect("the folder can be written");
    let mut command = node.outside().command("env");
    command
        .arg("--chdir")
        .arg(folder)
        .arg(format!("KUBE_TEST_REPO_LIST={}", repositories.display()))
        .arg(programs.join("ginkgo"));
    command.args(["--procs", &wish.procs.to_string(), "--no-color", "--silence-skips", "--keep-going"]);
    command.args(["--timeout", &format!("{}m", wish.minutes)]);
    command.args(["--focus", &wish.pattern]).args(["--output-dir"]).arg(folder).args(["--json-report", "report.json"]);
    command.arg(programs.join("e2e.test")).args(["--", "--provider=skeleton", "--num-nodes=1", "--disable-log-dump"]);
    command.arg(format!("--kubeconfig={}", plane.folder().join("admin.kubeconfig").display()));
    command.arg(format!("--kubectl-path={}", workspace().join("target/e2e/controlplane/kubectl").display()));
    let said = run(&mut command);
    let report = fs::read(folder.join("report.json")).unwrap_or_else(|e| panic!("the runner wrote no report: {e}\n{said}"));
    serde_json::from_slice(&report).expect("the report is JSON")
}

/// What became of each test.
#[derive(Default)]
struct Results {
    passed: BTreeSet<String>,
    /// And what it said at last, and all of it.
    failed: BTreeMap<String, (String, String)>,
    skipped: BTreeMap<String, String>,
}

impl Results {
    fn of(report: &Value) -> Self {
        let mut results = Self::default();
        let reports = report.as_array().into_iter().flatten();
        let specs = reports.flat_map(|one| one["SpecReports"].as_array().into_iter().flatten());
        for spec in specs.filter(|spec| spec["LeafNodeType"] == "It") {
            let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&spec["LeafNodeText"]]);
            let name = texts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
            let message = spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
            match spec["State"].as_str().unwrap_or_default() {
                "passed" => drop(results.passed.insert(name)),
                // What the pattern leaves out is skipped without a word.
                "skipped" | "pending" if message.is_empty() => {}
                "skipped" | "pending" => drop(results.skipped.insert(name, message)),
                _ => {
                    let whole = spec["CapturedGinkgoWriterOutput"].as_str().unwrap_or_default().to_owned();
                    results.failed.insert(name, (message, whole));
                }
            }
        }
        results
    }

    /// Whether anything came of a test: not, if time was up before, or if none has this name.
    fn ran(&self, name: &str) -> bool {
        self.passed.contains(name) || self.failed.contains_key(name) || self.skipped.contains_key(name)
    }

    /// Tests of the list that did not pass. Where `whole` of it was to run, one that didn't is lost too.
    fn lost<'a>(&self, list: &BTreeSet<&'a str>, whole: bool) -> Vec<&'a str> {
        let lost = |name: &str| !self.passed.contains(name) && (whole || self.ran(name));
        list.iter().copied().filter(|name| lost(name)).collect()
    }

    fn tell(&self, output: Option<&Path>) {
        for name in &self.passed {
            println!("passed {name}");
        }
        for (name, reason) in &self.skipped {
            println!("skipped {name}: {}", first_lines(reason, 1));
        }
        for (number, (name, (message, whole))) in self.failed.iter().enumerate() {
            println!("failed {name}\n    {}", first_lines(message, 6).replace('\n', "\n    "));
            if let Some(output) = output {
                let text = format!("{name}\n\n{message}\n\n{whole}");
                fs::write(output.join(format!("failed-{number}.log")), text).expect("the folder can be written");
            }
        }
    }
}

fn first_lines(text: &str, count: usize) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).take(count).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_of_the_list_did_not_pass_is_lost_and_so_is_who_did_not_run() {
        let spec = |name: &str, state: &str, why: &str| serde_json::json!({"LeafNodeType": "It", "LeafNodeText": name, "State": state, "Failure": {"Message": why}});
        let specs = [
            spec("good", "passed", ""),
            spec("bad", "failed", "oops"),
            spec("unfit", "skipped", "not here"),
            spec("out of time", "skipped", ""),
        ];
        let results = Results::of(&serde_json::json!([{"SpecReports": specs}]));
        let list = BTreeSet::from(["good", "bad", "unfit", "out of time", "renamed"]);
        assert_eq!(results.lost(&list, true), ["bad", "out of time", "renamed", "unfit"]);
        assert_eq!(results.lost(&list, false), ["bad", "unfit"]);
        assert!(!results.ran("renamed") && !results.ran("out of time") && results.ran("unfit"));
    }
}
