//! Us: the release build, in a box like podman's.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::NodeBox;
use serde_json::Value;

use crate::process::{self, Process};
use crate::readiness::Asked;
use crate::side::{self, Pods, Side, entries};
use crate::{disk, priority, stopwatch};

pub struct Nodeagent {
    node: NodeBox,
    stopwatch: PathBuf,
    /// What was found of the pods of that name: folders, cgroups, processes.
    traces: HashMap<&'static str, Vec<PathBuf>>,
}

impl Nodeagent {
    pub fn new() -> Self {
        let node = NodeBox::builder().with_registry().without_agent().start();
        disk::run_in_memory(&node.root());
        node.start_agent();
        priority::raise_cgroup(node.cgroup_parent());
        let stopwatch = stopwatch::put(node.folder());
        Self { node, stopwatch, traces: HashMap::new() }
    }

    /// Runs a client command; how long it took.
    fn time(&self, words: &[&str]) -> Duration {
        let mut command = self.node.command(self.stopwatch.to_str().expect("a path in UTF-8"));
        command.arg(e2e::binary("nodeagent")).arg("--root").arg(self.node.root()).args(words);
        stopwatch::lap(&mut command).took
    }

    /// The folders of these pods' logs: NAMESPACE_NAME_UID.
    fn logs(&self, pods: &Pods) -> Vec<PathBuf> {
        let prefix = format!("default_{}-", pods.name);
        let is_theirs = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        entries(&self.node.root().join("var/log/pods")).into_iter().filter(is_theirs).collect()
    }

    fn stamps(&self, pods: &Pods) -> Vec<u128> {
        let containers = self.logs(pods).into_iter().flat_map(|folder| entries(&folder));
        containers.filter_map(|folder| side::stamp(&folder.join("0.log"))).collect()
    }

    /// All folders and cgroups that carry a UID of these pods.
    fn folders(&self, pods: &Pods) -> Vec<PathBuf> {
        let logs = self.logs(pods);
        let uids: HashSet<&str> = logs.iter().filter_map(|path| path.to_str()?.rsplit('_').next()).collect();
        let mut found = Vec::new();
        for folder in ["run/nodeagent/pods", "var/lib/nodeagent/pods"] {
            found.extend(entries(&self.node.root().join(folder)));
        }
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            below(&hierarchy.join(self.node.cgroup_parent()), &mut found);
        }
        let names_one = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            uids.iter().any(|uid| name.contains(uid))
        };
        found.into_iter().filter(names_one).collect()
    }

    fn holders(&self) -> Vec<Process> {
        let mut processes = process::tree(self.node.pid());
        // The agent is a child of what entered the box; the holders of one that was killed are the box's PID 1's.
        processes.extend(process::tree(self.node.agent_pid()));
        processes.retain(|process| process.arguments.starts_with("podholder"));
        processes.sort_by_key(|process| process.pid);
        processes.dedup_by_key(|process| process.pid);
        processes
    }

    /// Those of pods, without the one that waits for the next.
    fn pods_holders(&self) -> Vec<Process> {
        let mut holders = self.holders();
        holders.retain(|process| !process.arguments.starts_with("podholder (spare)"));
        holders
    }

    /// RSS.
    pub fn agent_memory(&self) -> u64 {
        process::resident_memory(self.node.agent_pid())
    }

    /// Kills the agent, starts another; how long until it shows these pods as running, none of them restarted.
    pub fn restart(&self, pods: &Pods) -> Duration {
        let before: Vec<i32> = self.pods_holders().iter().map(|holder| holder.pid).collect();
        self.node.kill_agent();
        let took = std::thread::scope(|scope| {
            let began = Instant::now();
            // Looks by itself: the harness's own look is a client program's run.
            let known = scope.spawn(move || {
                while self.untouched() < pods.count {
                    assert!(began.elapsed() < Duration::from_secs(60), "pods are lost");
                    std::thread::sleep(Duration::from_millis(1));
                }
                began.elapsed()
            });
            self.node.start_agent();
            known.join().expect("it looked")
        });
        assert_eq!(before, self.pods_holders().iter().map(|holder| holder.pid).collect::<Vec<_>>(), "holders changed");
        took
    }

    /// How many pods run of which no container was ever restarted, as the local API tells.
    fn untouched(&self) -> usize {
        let text = get(&self.node.root().join("run/nodeagent/agent.sock"), "/api/v1/pods").unwrap_or_default();
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let runs_on = |pod: &&Value| {
            let statuses = pod["status"]["containerStatuses"].as_array();
            let untouched = |status: &Value| status["restartCount"] == 0 && status["state"]["running"].is_object();
            pod["status"]["phase"] == "Running" && statuses.is_some_and(|all| all.iter().all(untouched))
        };
        list["items"].as_array().map_or(0, |items| items.iter().filter(runs_on).count())
    }

    /// Processor time of all that runs in the pods' cgroups, what has ended there too.
    pub fn processor_of_pods(&self) -> Duration {
        let parent = self.node.cgroup_parent();
        let usages = entries(Path::new("/sys/fs/cgroup")).into_iter().map(|h| h.join(parent).join("cpuacct.usage"));
        let v1 = usages.filter_map(|path| std::fs::read_to_string(path).ok()).find_map(|text| text.trim().parse().ok());
        let v2 = || {
            let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(parent).join("cpu.stat")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok()).map(|us| us * 1000)
        };
        Duration::from_nanos(v1.or_else(v2).expect("the pods' cgroups count processor time"))
    }

    /// The agent's own processor time.
    pub fn processor_of_agent(&self) -> Duration {
        process::processor_time(self.node.agent_pid())
    }

    /// Puts a file of so many pods, and waits until all run.
    pub fn apply(&self, file: &str, yaml: &str, pods: usize) {
        self.node.apply(file, yaml);
        e2e::eventually("all pods run", || {
            let running = self.untouched();
            if running == pods { Ok(()) } else { Err(format!("{running} of {pods}")) }
        });
    }

    /// Takes a file away, and waits until its pods are gone.
    pub fn withdraw(&self, file: &str) {
        self.node.remove(file);
        e2e::eventually("all pods are gone", || {
            let left = self.pods_holders().len();
            if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
        });
    }

    /// How long each of so many edits of a ConfigMap takes, from the file's rename until a container can read it, beside so many other
    /// files.
    pub fn edits(&self, files: usize, edits: usize) -> Vec<Duration> {
        let map = |name: &str, color: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{color: {color}}}\n")
        };
        let others: Vec<String> = (0..files).map(|number| format!("other-{number}")).collect();
        others.iter().for_each(|name| self.node.apply(&format!("{name}.yaml"), &map(name, "blue")));
        self.node.apply("edited.yaml", &map("edited", "none"));
        let mounts = "imagePullPolicy: Never\nvolumeMounts: [{name: v, mountPath: /v}]";
        let manifest =
            e2e::pod("reader").spec("volumes: [{name: v, configMap: {name: edited}}]").runs_with("main", "sleep", mounts);
        let reader = self.node.put(&manifest);
        reader.is_ready();
        // Its number is that of the box's own PID namespace.
        let seen = format!("/proc/{}/root/proc/{}/root/v/color", self.node.agent_pid(), reader.container("main").host_pid());
        let one = |number: usize| {
            let color = format!("color-{number}");
            let text = map("edited", &color);
            let began = Instant::now();
            self.node.apply("edited.yaml", &text);
            while std::fs::read_to_string(&seen).expect("the volume is there") != color {
                assert!(began.elapsed() < Duration::from_secs(10), "edit {number} was never seen");
                std::thread::sleep(Duration::from_micros(100));
            }
            began.elapsed()
        };
        let times = (0..edits).map(one).collect();
        self.node.remove("reader.yaml");
        reader.is_gone();
        ["edited"]
            .into_iter()
            .chain(others.iter().map(String::as_str))
            .for_each(|name| self.node.remove(&format!("{name}.yaml")));
        times
    }

    /// How long it takes, so many times, from a readiness probe's answer until connections to the Service are accepted, and until they
    /// are refused, beside so many other Services.
    pub fn flips(&self, services: usize, times: usize) -> [Vec<Duration>; 2] {
        const ADDRESS: &str = "10.96.5.5";
        let service = |name: &str, app: &str, more: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 8080}}]{more}}}\n"
            )
        };
        let others: Vec<String> = (0..services).map(|number| service(&format!("other-{number}"), "other", "")).collect();
        self.node.apply("others.yaml", &others.join("---\n"));
        self.node.apply("service.yaml", &service("flipped", "flipped", &format!(", clusterIP: {ADDRESS}")));
        let other = e2e::pod("other").metadata("labels: {app: other}").runs_with("main", "serve", "imagePullPolicy: Never");
        let other = self.node.put(&other);
        let asked = Asked::new(format!("/proc/{}/ns/net", self.node.pid()).into());
        let probe = format!(
            "imagePullPolicy: Never\nreadinessProbe: {{httpGet: {{host: 127.0.0.1, port: {}}}, periodSeconds: 1, failureThreshold: 1}}",
            asked.port
        );
        let pod = self.node.put(&e2e::pod("flipped").metadata("labels: {app: flipped}").runs_with("main", "serve", &probe));
        other.is_ready();
        pod.is_ready();
        let service = SocketAddr::new(ADDRESS.parse().expect("an address"), 80);
        asked.flip(true, service);
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..times {
            let [ready, unready] = &mut found;
            unready.push(asked.flip(false, service));
            ready.push(asked.flip(true, service));
        }
        for file in ["flipped.yaml", "service.yaml", "others.yaml", "other.yaml"] {
            self.node.remove(file);
        }
        pod.is_gone();
        other.is_gone();
        found
    }

    /// What `explain` tells of these pods' starts.
    pub fn steps(&self, pods: &Pods) -> Vec<Value> {
        let path = |number| format!("/apis/nodeagent.dev/v1/namespaces/default/pods/{}-{number}/explain", pods.name);
        let texts = (0..pods.count).map(|number| get(&self.node.root().join("run/nodeagent/agent.sock"), &path(number)));
        texts.map(|text| serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()).collect()
    }
}

impl Side for Nodeagent {
    fn name(&self) -> &'static str {
        "us"
    }

    fn start(&mut self, pods: &Pods) -> Duration {
        let others: HashSet<i32> = self.pods_holders().iter().map(|holder| holder.pid).collect();
        let yaml = pods.yaml();
        let began = side::now();
        self.node.apply(&pods.file(), &yaml);
        let stamps = e2e::eventually("all containers run", || {
            let stamps = self.stamps(pods);
            if stamps.len() == pods.commands() { Ok(stamps) } else { Err(format!("{} of {}", stamps.len(), pods.commands())) }
        });
        let mut traces = self.folders(pods);
        let holders = self.pods_holders().into_iter().filter(|holder| !others.contains(&holder.pid));
        traces.extend(holders.map(|holder| format!("/proc/{}", holder.pid).into()));
        self.traces.insert(pods.name, traces);
        side::until_last(began, &stamps)
    }

    fn stop(&mut self, pods: &Pods) -> Duration {
        let mut traces = self.traces.remove(pods.name).expect("they were started");
        let began = Instant::now();
        self.node.remove(&pods.file());
        while let Some(trace) = traces.last() {
            if !trace.exists() {
                traces.pop();
                continue;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{} is left: {}", trace.display(), self.node.agent_output());
            std::thread::sleep(Duration::from_micros(200));
        }
        let took = began.elapsed();
        // Logs may stay a while: the next pods of that name must not be taken for these.
        self.logs(pods).iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
        took
    }

    fn memory_beside(&self) -> u64 {
        self.holders().iter().map(|holder| process::proportional_memory(holder.pid)).sum()
    }

    fn processor(&self) -> Duration {
        let holders: Duration = self.holders().iter().map(|holder| process::processor_time(holder.pid)).sum();
        holders + process::processor_time(self.node.agent_pid())
    }

    fn pull(&mut self, image: &str) -> Duration {
        // Not removed but moved out of the way: without a journal, ext4 walks over what was deleted in the last minute whenever
        // it makes a file.
        self.node.stop_agent();
        let images = self.node.root().join("var/lib/nodeagent/images");
        std::fs::rename(&images, self.node.folder().join(format!("images-{}", side::now()))).expect("the folder can be written");
        self.node.start_agent();
        self.time(&["image", "pull", &format!("docker.io/{image}")])
    }

    fn output(&mut self, bytes: usize) -> Duration {
        let pod = self.node.put(&side::wordy(bytes));
        let last = pod.becomes("Succeeded").container("c0").logs(&["--tail", "1"]);
        self.node.remove("wordy.yaml");
        pod.is_gone();
        side::wordy_took(&last).unwrap_or_else(|| panic!("its last line was {last:?}"))
    }

    fn exec(&mut self, pods: &Pods, words: &[&str]) -> Duration {
        self.time(&[&["exec", &format!("{}-0", pods.name), "-c", "c0", "--"], words].concat())
    }
}

/// All folders below, each before its parent.
fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

/// The body of an answer; nothing if nobody answers.
fn get(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string())
}
