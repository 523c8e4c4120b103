//! A node of its own in a temporary folder: real holder, real cgroups, an image of busybox. Dropping it removes all.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nodeagent::model::{Defaults, ValidPod, load};
use nodeagent::runtime::recipe::env::NoObjects;
use nodeagent::runtime::volumes::{Input, Volumes};
use nodeagent::runtime::{Error, Runtime, Sandbox, Settings, StartInput, Started};
use oci_spec::image::ImageConfiguration;
use podholder::protocol::{Event, Exit};
use tempfile::TempDir;

/// For anything to happen: no test measures time, this only turns a hang into a failure.
pub const LIMIT: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "/bin/busybox";

pub struct Node {
    pub root: TempDir,
    pub runtime: Arc<Runtime>,
    pub layers: Vec<PathBuf>,
    pub image: ImageConfiguration,
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = tempfile::Builder::new().prefix("na").tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut settings = Settings::below(root.path(), &format!("nodeagent-test-{}-{number}", std::process::id()));
        change(&mut settings);
        let layer = root.path().join("layer");
        busybox(&layer);
        let config = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh", "-c", "echo from the image"], "StopSignal": "SIGINT"}}"#;
        let runtime = Arc::new(Runtime::new(settings).expect("root, and a writable cgroup tree, are needed"));
        Self { root, runtime, layers: vec![layer], image: serde_json::from_str(config).unwrap() }
    }

    /// An agent that starts anew on this node.
    pub fn next_life(&self) -> Arc<Runtime> {
        Arc::new(Runtime::new(self.runtime.settings().clone()).unwrap())
    }

    /// The container's log, without the format.
    pub fn log(&self, pod: &ValidPod, container: &str) -> String {
        let path = self.runtime.settings().container_log(pod, container, 0);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }

    pub async fn start(&self, sandbox: &Sandbox, container: &str) -> Result<Started, Error> {
        start(&self.runtime, self, sandbox, container).await
    }

    /// Starts a container and waits for its end.
    pub async fn run(&self, sandbox: &Sandbox, container: &str) -> (Started, Exit, String) {
        let mut events = sandbox.holder.events();
        let started = self.start(sandbox, container).await.unwrap();
        let exit = exit_of(&mut events, &started.id).await;
        let log = self.log(&sandbox.pod, container);
        (started, exit, log)
    }

    pub async fn sandbox(&self, manifest: &str) -> Sandbox {
        let pod = pod(manifest);
        volumes(&self.runtime, &pod).unwrap();
        let mut beginning = self.runtime.begin_sandbox(&pod, serde_json::json!({"from": "test"})).unwrap();
        let early = beginning.wires();
        let (sandbox, late) = self.runtime.make_sandbox(&pod, beginning, || {}).await.unwrap();
        let wires = early.or(late);
        let own = rustix::fs::stat("/proc/self/ns/net").unwrap().st_ino;
        assert!(
            wires.is_none_or(|wires| rustix::fs::fstat(&wires.netns).unwrap().st_ino != own),
            "the way leads into the host's network"
        );
        self.runtime.write_files(&pod, &["10.9.8.7".parse().unwrap()]).unwrap();
        sandbox
    }
}

/// The pod's volumes, of which none is made of objects or images.
pub fn volumes(runtime: &Runtime, pod: &ValidPod) -> Result<Volumes, Error> {
    runtime.prepare_volumes(Input {
        pod,
        pod_ips: &[],
        objects: &NoObjects,
        images: &BTreeMap::new(),
        mounted: &BTreeMap::new(),
        disks: &[],
    })
}

async fn start(runtime: &Runtime, node: &Node, sandbox: &Sandbox, name: &str) -> Result<Started, Error> {
    let pod = &sandbox.pod;
    let container = pod.all_containers().find(|c| c.name == name).expect("no such container in the manifest");
    let input = StartInput {
        pod,
        container,
        attempt: 0,
        image: &node.image,
        layers: &node.layers,
        pod_ips: &["10.9.8.7".parse().unwrap()],
        volumes: &volumes(runtime, pod).unwrap(),
        objects: &NoObjects,
        beside: None,
        grant: None,
        note: serde_json::Value::Null,
    };
    runtime.start_container(sandbox, input).await
}

pub async fn exit_of(events: &mut tokio::sync::broadcast::Receiver<Event>, id: &str) -> Exit {
    let wait = async {
        loop {
            if let Event::Exited { container, exit } = events.recv().await.expect("the holder hung up")
                && container == id
            {
                return exit;
            }
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the container doesn't end")
}

/// A manifest's only pod: `spec` is indented by two.
pub fn pod(spec: &str) -> ValidPod {
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: web}}\nspec:\n{spec}");
    let loaded = load(Path::new("test.yaml"), text.as_bytes(), &Defaults { node_name: "node".into() });
    assert!(loaded.errors.is_empty(), "{:?}", loaded.errors);
    loaded.pods.into_iter().next().expect("no pod in the manifest")
}

/// One container `app` that runs a script, and more of the spec before it.
pub fn script(script: &str, more: &str) -> String {
    let script: String = script.lines().map(|line| format!("      {line}\n")).collect();
    format!("{more}  containers:\n  - name: app\n    image: busybox\n    command: [sh, -c]\n    args:\n    - |\n{script}")
}

fn busybox(layer: &Path) {
    assert!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is needed: apt-get install busybox-static");
    for dir in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
    }
    fs::copy(BUSYBOX, layer.join("bin/busybox")).unwrap();
    for applet in
        "sh cat dd echo env grep hostname id kill ls mkdir mknod mount ps pwd sleep stat tail touch true false head unshare wc cut umount df"
            .split(' ')
    {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/tmp:/bin/sh\n").unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\nbob:x:1001:\nstaff:x:50:bob\n").unwrap();
}

impl Drop for Node {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        // A test's own executor may be in the middle of a panic: clean up on another.
        let cleaned = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            executor.block_on(async {
                for uid in runtime.leftovers() {
                    runtime.remove_pod(&uid, None).await.unwrap();
                }
                runtime.cgroups().remove().await.unwrap();
            });
        });
        let result = cleaned.join();
        assert!(result.is_ok() || std::thread::panicking(), "the node can't be cleaned up");
    }
}
