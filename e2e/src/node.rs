//! A node in a box: an agent with namespaces, folders and cgroups of its own, and a wire to an outside host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::namespaces::child_of;
use crate::{Isolated, Manifest, Output, Outside, Pod, Running, Snapshot, command, eventually, paths, registry, run, snapshot};

/// What a node is made with.
#[derive(Debug, Default)]
pub struct Builder {
    registry: bool,
    damage: Option<fn(&Path)>,
    disk: Option<u32>,
    configuration: Option<String>,
    arguments: Vec<String>,
    environment: Vec<String>,
    agent: NotYet,
    name: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum NotYet {
    #[default]
    Started,
    Waits,
}

impl Builder {
    /// A registry on its loopback that has library/{busybox,nginx,redis,debian}, and docker.io mirrored to it.
    #[must_use]
    pub fn with_registry(mut self) -> Self {
        self.registry = true;
        self
    }

    /// The same over a copy of the storage, to which this has been done.
    #[must_use]
    pub fn with_registry_after(mut self, damage: fn(&Path)) -> Self {
        self.damage = Some(damage);
        self
    }

    /// The agent's `--root` is a disk of its own, of so many MiB.
    #[must_use]
    pub fn disk(mut self, mebibytes: u32) -> Self {
        self.disk = Some(mebibytes);
        self
    }

    /// The agent's `--config`.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        self.configuration = Some(yaml.into());
        self
    }

    /// More words for the agent's command line.
    #[must_use]
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.into());
        self
    }

    /// A variable of the agent's environment: `NAME=VALUE`.
    #[must_use]
    pub fn environment(mut self, variable: String) -> Self {
        self.environment.push(variable);
        self
    }

    /// The agent is not started yet.
    #[must_use]
    pub fn without_agent(mut self) -> Self {
        self.agent = NotYet::Waits;
        self
    }

    /// Another name than `node`.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The node, its agent answering.
    #[track_caller]
    pub fn start(self) -> NodeBox {
        self.wired(Outside::of)
    }

    /// The same, wired to the host that another node is wired to.
    #[track_caller]
    pub fn start_beside(self, other: &NodeBox) -> NodeBox {
        self.wired(|inside| other.outside().shared(inside))
    }

    #[track_caller]
    fn wired(self, wire: impl FnOnce(&Isolated) -> Outside) -> NodeBox {
        let node = NodeBox::build(&self, wire);
        if self.agent == NotYet::Started {
            node.start_agent();
        }
        node
    }
}

/// How full the machine's disk is, is none of the tests' business: only a node with a disk of its own, or a test that says so, minds.
fn careless_of_the_disk(yaml: &str) -> String {
    let mut text = yaml.to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if !text.contains("evictionHard") {
        text.push_str("evictionHard: {memory.available: 100Mi}\n");
    }
    if !text.contains("images:") {
        text.push_str("images: {gcHighThresholdPercent: 100}\n");
    }
    text
}

/// The node. Its end takes everything along that it made, wherever the test failed.
#[derive(Debug)]
pub struct NodeBox {
    name: String,
    agent: Mutex<Option<Running>>,
    registry: Option<Running>,
    arguments: Vec<String>,
    environment: Vec<String>,
    has_disk: bool,
    cgroup_parent: String,
    outside: Option<Outside>,
    inside: Option<Isolated>,
    folder: tempfile::TempDir,
}

impl NodeBox {
    /// A node with nothing special.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A node with something special.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn build(with: &Builder, wire: impl FnOnce(&Isolated) -> Outside) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cgroup_parent = format!("nodeagent-e2e-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix("nodeagent-e2e-").tempdir().expect("a temporary folder");
        let inside = Isolated::machine();
        let name = with.name.clone().unwrap_or_else(|| "node".into());
        run(inside.command("hostname").arg(&name)).ok();
        let outside = wire(&inside);
        std::fs::create_dir_all(folder.path().join("manifests")).expect("the folder can be written");
        std::fs::create_dir_all(folder.path().join("root")).expect("the folder can be written");
        // The box has a MNT namespace of its own: the machine's files stay as they are.
        let in_place = |path: &str, text: &str| {
            let file = folder.path().join(path.replace('/', "-"));
            std::fs::write(&file, text).expect("the folder can be written");
            run(inside.command("mount").arg("--bind").arg(&file).arg(path)).ok();
        };
        in_place("/etc/containers/registries.conf", &registry::registries_conf());
        // Nobody answers there, which is known at once: no name of the world is waited for.
        in_place("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
        if let Some(mebibytes) = with.disk {
            let size = format!("size={mebibytes}m,mode=755");
            run(inside.command("mount").args(["-t", "tmpfs", "-o", &size, "disk"]).arg(folder.path().join("root"))).ok();
        }
        let registry = match with.damage {
            Some(damage) => Some(registry::start_after(damage, &inside, folder.path())),
            None => with.registry.then(|| registry::start(&inside, folder.path())),
        };
        let (inside, outside, has_disk) = (Some(inside), Some(outside), with.disk.is_some());
        let (arguments, environment) = (with.arguments.clone(), with.environment.clone());
        let agent = Mutex::new(None);
        let node = Self { name, agent, registry, arguments, environment, has_disk, cgroup_parent, outside, inside, folder };
        let head = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\n";
        node.configure(with.configuration.as_deref().unwrap_or(head));
        node
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The agent's `--root`.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The folder that the agent watches.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// A folder for the test's own files; it ends with the node.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The agent's `--config`.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Writes it anew, for the agent that is started next.
    #[track_caller]
    pub fn configure(&self, yaml: &str) {
        let text = if self.has_disk { yaml.into() } else { careless_of_the_disk(yaml) };
        std::fs::write(self.configuration(), text).expect("the folder can be written");
    }

    /// The name of its cgroups.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    fn isolated(&self) -> &Isolated {
        self.inside.as_ref().expect("set until drop")
    }

    /// The box's PID 1, in the machine's PID namespace.
    pub fn pid(&self) -> i32 {
        self.isolated().pid()
    }

    /// The host that is wired to this node.
    pub fn outside(&self) -> &Outside {
        self.outside.as_ref().expect("set until drop")
    }

    /// A program, to be run inside, with an environment that holds nothing of the machine's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.isolated().command("env");
        command.args(["--ignore-environment", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"]);
        command.arg(format!("HOME={}", self.folder.path().display()));
        command.arg(format!("PWD={}", self.folder.path().display())).arg(program);
        command
    }

    /// What a program says that is run inside.
    #[track_caller]
    pub fn inside(&self, program: &str, words: &[&str]) -> Output {
        run(self.command(program).args(words))
    }

    /// A CSI driver of that name, with these variables, that has registered with the agent.
    #[track_caller]
    pub fn csi_driver(&self, name: &str, variables: &[&str]) -> Running {
        let mut command = self.command("env");
        command.args(variables).arg(paths::plugin("csi")).arg(self.root().join("var/lib/kubelet")).arg(name);
        let driver = Running::start(&mut command);
        driver.says("status true");
        driver
    }

    // --- the agent ---

    /// The command that runs the agent.
    pub fn agent_command(&self) -> Command {
        self.agent_command_on(self.manifests().to_str().expect("a path in UTF-8"))
    }

    /// The same with another source of manifests.
    pub fn agent_command_on(&self, manifests: &str) -> Command {
        let mut command = self.command("env");
        command.args(&self.environment).arg(paths::binary("nodeagent"));
        command.args(["--manifests", manifests, "--root"]).arg(self.root());
        command.args(["--node-name", &self.name, "--cgroup-parent", &self.cgroup_parent]).args(&self.arguments);
        command.arg("--config").arg(self.configuration());
        command
    }

    /// Starts the agent and waits until it answers.
    #[track_caller]
    pub fn start_agent(&self) {
        self.start_agent_with(self.agent_command(), "");
    }

    /// Starts the agent by this command, with this standard input, and waits until it answers.
    #[track_caller]
    pub fn start_agent_with(&self, mut command: Command, input: &str) {
        let mut agent = Running::start(&mut command);
        agent.write(input);
        agent.close_input();
        eventually("the agent answers", || {
            assert!(agent.is_alive(), "the agent has ended:\n{}", agent.output());
            run(&mut self.client(&["version"])).result()?;
            run(&mut self.client(&["get", "pods", "-A"])).result().map_err(|e| format!("{e}\n{}", agent.output()))
        });
        *self.agent.lock().unwrap() = Some(agent);
    }

    /// The agent's process, in the machine's PID namespace.
    #[track_caller]
    pub fn agent_pid(&self) -> i32 {
        let agent = self.agent.lock().unwrap();
        // nsenter waits for its child, which execs env, which execs the agent.
        child_of(agent.as_ref().expect("the agent runs").pid()).expect("the agent runs")
    }

    /// What the agent has written to its own outputs.
    pub fn agent_output(&self) -> String {
        self.agent.lock().unwrap().as_ref().map(Running::output).unwrap_or_default()
    }

    /// kill -9 of the agent alone.
    #[track_caller]
    pub fn kill_agent(&self) {
        self.signal_agent("KILL");
    }

    /// SIGTERM, and the status with which the agent ends.
    #[track_caller]
    pub fn stop_agent(&self) -> i32 {
        self.signal_agent("TERM")
    }

    #[track_caller]
    fn signal_agent(&self, signal: &str) -> i32 {
        let pid = self.agent_pid();
        run(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()])).ok();
        let mut agent = self.agent.lock().unwrap().take().expect("the agent runs");
        agent.ends()
    }

    /// What power loss does: every process ends at once, and what is on tmpfs is gone. The disk stays.
    pub fn reboot(&self) {
        self.inside("sh", &["-c", "kill -9 -1"]);
        self.agent.lock().unwrap().take();
        eventually("only PID 1 is left", || {
            let listing = self.inside("ps", &["-e", "-o", "pid="]).ok();
            // PID 1, and ps itself.
            if listing.lines().count() <= 2 { Ok(()) } else { Err(listing) }
        });
        std::fs::remove_dir_all(self.root().join("run")).ok();
        self.remove_cgroups();
        // Links end with their namespaces; the box's own bridge and tables would not outlive a boot.
        let links = self.inside("ip", &["-oneline", "link", "show", "type", "bridge"]).ok();
        for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
            self.inside("ip", &["link", "delete", name]);
        }
        self.inside("nft", &["flush", "ruleset"]).ok();
    }

    /// A client command of the agent's program.
    pub fn client(&self, words: &[&str]) -> Command {
        let mut command = self.command(paths::binary("nodeagent").to_str().expect("a path in UTF-8"));
        command.arg("--root").arg(self.root()).args(words);
        command
    }

    /// What a client command says.
    pub fn run(&self, words: &[&str]) -> Output {
        run(&mut self.client(words))
    }

    /// What a client command says to this standard input.
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Output {
        command::feed(&mut self.client(words), input)
    }

    // --- manifests ---

    /// Puts a manifest into the folder, atomically, as a good editor does.
    #[track_caller]
    pub fn apply(&self, file: &str, yaml: &str) {
        let target = self.manifests().join(file);
        std::fs::create_dir_all(target.parent().expect("below the folder")).expect("the folder can be written");
        let draft = self.folder.path().join("draft");
        std::fs::write(&draft, yaml).expect("the folder can be written");
        std::fs::rename(&draft, &target).expect("the folder can be written");
    }

    /// Puts a pod into the folder, in a file of its name.
    #[track_caller]
    pub fn put(&self, manifest: &Manifest) -> Pod<'_> {
        self.apply(&format!("{}.yaml", manifest.name()), &manifest.yaml());
        Pod::named(self, manifest.name().to_string())
    }

    /// Copies a folder of the repository's manifests, such as `quickstart`.
    #[track_caller]
    pub fn apply_folder(&self, name: &str) {
        let folder = paths::workspace().join("manifests").join(name);
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a folder that can be read").path();
            let yaml = std::fs::read_to_string(&path).expect("a manifest that can be read");
            self.apply(path.file_name().unwrap().to_str().unwrap(), &yaml);
        }
    }

    /// Takes a manifest out of the folder.
    #[track_caller]
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).expect("the manifest is there");
    }

    // --- questions ---

    /// A pod: `web` or `namespace/web`.
    pub fn pod(&self, name: &str) -> Pod<'_> {
        Pod::named(self, name.to_string())
    }

    /// The Node object.
    #[track_caller]
    pub fn object(&self) -> Value {
        serde_json::from_str(&self.run(&["get", "node", &self.name, "-o", "json"]).ok()).expect("JSON")
    }

    /// `STATUS REASON` of one of the node's conditions.
    #[track_caller]
    pub fn condition(&self, kind: &str) -> String {
        let all = self.object()["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("no condition {kind} in {all:?}"));
        format!("{} {}", found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
    }

    /// `REASON MESSAGE` of each event, of whatever object.
    pub fn events(&self) -> Vec<String> {
        let output = self.run(&["get", "events", "-A", "-o", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"));
        let line = |event: &serde_json::Value| {
            format!("{} {}", event["reason"].as_str().unwrap_or_default(), event["message"].as_str().unwrap_or_default())
        };
        list["items"].as_array().into_iter().flatten().map(line).collect()
    }

    /// Waits for an event that has all of these words.
    #[track_caller]
    pub fn tells(&self, words: &[&str]) -> String {
        eventually(&format!("the node tells {words:?}"), || {
            let events = self.events();
            let told = events.iter().find(|event| words.iter().all(|word| event.contains(word)));
            told.cloned().ok_or_else(|| events.join("\n"))
        })
    }

    /// What `curl` gets on the node.
    pub fn curl(&self, url: &str) -> Output {
        self.inside("curl", &["--silent", "--show-error", "--fail", "--max-time", "10", url])
    }

    /// What `curl` gets from the outside host.
    pub fn curl_from_outside(&self, url: &str) -> Output {
        self.outside().curl(url)
    }

    /// The machine as it is, as far as the agent could have changed it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.isolated(), &self.cgroup_parent, &self.root())
    }

    /// Waits until the machine is as it was.
    #[track_caller]
    pub fn is_as(&self, before: &Snapshot) {
        eventually("the machine is as before", || {
            let changes = self.snapshot().since(before);
            if changes.is_empty() { Ok(()) } else { Err(changes.join("\n")) }
        });
    }

    /// What the agent left of them. The last processes may still be on their way out: a few tries, no error in a drop.
    fn remove_cgroups(&self) {
        for _ in 0..100 {
            let left = snapshot::cgroups(&self.cgroup_parent);
            if left.is_empty() {
                return;
            }
            for path in left {
                std::fs::remove_dir(path).ok();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for NodeBox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let agent = self.agent.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            let output = agent.as_ref().map(Running::output).unwrap_or_default();
            let lines: Vec<&str> = output.lines().collect();
            eprintln!("the agent's last words:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        self.agent.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        self.registry.take();
        self.outside.take();
        self.inside.take();
        self.remove_cgroups();
    }
}
