//! `make clusterbench`: a node of a real cluster in figures. Numbers, no pass or fail. Requests go by `kubectl proxy`: its hop is counted
//! against us.
//!
//! Single pods are of two kinds by turns: with a token of their service account, as a cluster gives it to all that don't say otherwise, for
//! which the agent waits for two answers of the API server; and without. Between two of them is half a second, since that is how single pods
//! come: what the agent keeps for the next pod is there by then (`Spares`). How those fare for which it isn't, the pods at once tell.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use e2e::{ApiServer, Builder, ControlPlane, NodeBox, Running, eventually, is_true, run};
use serde_json::{Value, json};

const ROUNDS: usize = 20;
const MANY: usize = 100;
/// Between single pods.
const PAUSE: Duration = Duration::from_millis(500);
/// After a burst the agent tells its events, at the kubelet's pace of 50 a second, and gives memory back.
const SETTLED: Duration = Duration::from_secs(20);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// With a network that the agent makes, whatever add-on's configuration lies on this machine.
fn builder() -> Builder {
    NodeBox::builder().argument("--network").argument("bridge").argument("--pod-cidr").argument("10.85.0.0/16").without_agent()
}

/// The API server asks no kubelet API whose certificate the cluster hasn't signed.
const CONFIGURATION: &str = "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nserverTLSBootstrap: true\n";

fn main() {
    let node = builder().config(CONFIGURATION).start();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let bench = Bench { node: &node, socket: node.folder().join("proxy.sock") };
    let _proxy = Running::start(kubectl(&node, &plane).arg("proxy").arg("--unix-socket").arg(&bench.socket));
    eventually("the proxy answers", || bench.ask("GET", "/api/v1/nodes/node", &Value::Null));

    let mut took = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (kind, took) in [Account::Token, Account::Nothing].into_iter().zip(&mut took) {
            thread::sleep(PAUSE);
            let one = bench.one(&format!("one-{round}-{}", kind.word()), kind);
            // The first fills caches.
            took.extend((round > 0).then_some(one));
        }
    }
    let [with, without] = &took;
    tell("created → the API server's answer", "–", with, |took| took.answered);
    tell("created → both containers' commands run", "25 ms", with, |took| took.run);
    tell("created → both containers' commands run, without a token", "25 ms", without, |took| took.run);
    tell("created → Running seen by a watch", "40 ms", with, |took| took.seen);
    tell("created → Running seen by a watch, without a token", "40 ms", without, |took| took.seen);
    tell("deleted with grace 0 → nothing left", "60 ms", with, |took| took.gone);
    let execs = bench.execs(&plane);
    tell("kubectl exec, to its exit code", "–", &execs, |exec| exec.exec);
    tell("the same over a kubectl that asks the API server as often", "10 ms", &execs, |exec| exec.exec - exec.asks);
    let at_once = bench.many();
    println!("| {MANY} pods at once, all commands run | 2000 ms | {at_once:.0} ms |");
    let memory = || resident(node.agent_pid()) as f64 / 1e6;
    println!("| agent's RSS, when it has just made {MANY} pods of the API server | – | {:.1} MB |", memory());
    thread::sleep(SETTLED);
    println!("| agent's RSS, {MANY} pods of the API server, 20 s later | 40 MB | {:.1} MB |", memory());
    drop(plane);
    drop(node);
    println!("| requests in an idle minute, {MANY} pods | 8 | {} |", idle_requests());
}

/// The administrator's, with no script between.
fn kubectl(node: &NodeBox, plane: &ControlPlane<'_>) -> Command {
    let program = e2e::workspace().join("target/e2e/controlplane/kubectl");
    let mut command = node.outside().command(program.to_str().expect("a path in UTF-8"));
    command.arg("--kubeconfig").arg(plane.folder().join("admin.kubeconfig"));
    // What it learns of the API goes with the node.
    command.arg("--cache-dir").arg(node.folder().join("kubectl"));
    command
}

fn tell<T>(what: &str, budget: &str, all: &[T], of: impl Fn(&T) -> f64) {
    let mut samples: Vec<f64> = all.iter().map(of).collect();
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    println!("| {what} | {budget} | p50 {:.1} ms, p90 {:.1} ms |", at(0.5), at(0.9));
}

/// What a pod has of its service account.
#[derive(Clone, Copy)]
enum Account {
    Token,
    Nothing,
}

impl Account {
    fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Nothing => "nothing",
        }
    }
}

fn pod(name: &str, containers: usize, account: Account) -> Value {
    let mounted = matches!(account, Account::Token);
    let container = |index: usize| json!({"name": format!("c{index}"), "image": "localhost/nodeagent-demo:latest", "imagePullPolicy": "Never", "args": ["stamp"]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
        "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": mounted,
            "containers": (0..containers).map(container).collect::<Vec<_>>()}})
}

/// Milliseconds from a pod's creation.
struct Took {
    /// Until the API server had taken it.
    answered: f64,
    /// Until its commands ran.
    run: f64,
    /// Until a watch saw it as Running.
    seen: f64,
    /// From its deletion until nothing was left of it.
    gone: f64,
}

/// Milliseconds of two commands, one after the other.
struct Exec {
    /// `kubectl exec`.
    exec: f64,
    /// kubectl's start, its certificates and its two questions, without the exec.
    asks: f64,
}

struct Bench<'a> {
    node: &'a NodeBox,
    socket: PathBuf,
}

impl Bench<'_> {
    /// The status and the body of an answer.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value), String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut stream = UnixStream::connect(&self.socket).map_err(failed)?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((code, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    fn create(&self, name: &str, containers: usize, account: Account) -> String {
        let mut wish = pod(name, containers, account);
        wish["metadata"].as_object_mut().unwrap().remove("uid");
        let (code, made) = self.ask("POST", PODS, &wish).expect("an answer");
        assert_eq!(code, 201, "{made}");
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    fn delete(&self, name: &str) {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let (code, answer) = self.ask("DELETE", &format!("{PODS}/{name}"), &options).expect("an answer");
        assert_eq!(code, 200, "{answer}");
    }

    /// A pod of two containers, from its creation to its end.
    fn one(&self, name: &str, account: Account) -> Took {
        let watching = self.watch(name);
        let (began, clock) = (now(), Instant::now());
        let uid = self.create(name, 2, account);
        let answered = clock.elapsed();
        let seen = watching.join().expect("it watched").duration_since(clock);
        let last = self.stamps(&HashSet::from([uid.clone()]), 2);
        let began_end = Instant::now();
        self.delete(name);
        let traces = ["run/nodeagent/pods", "var/lib/nodeagent/pods"].map(|folder| self.node.root().join(folder).join(&uid));
        while traces.iter().any(|trace| trace.exists()) {
            assert!(began_end.elapsed() < Duration::from_secs(60), "{traces:?} are left: {}", self.node.agent_output());
            thread::sleep(Duration::from_micros(200));
        }
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Took {
            answered: milliseconds(answered),
            run: last.saturating_sub(began) as f64 / 1e6,
            seen: milliseconds(seen),
            gone: milliseconds(began_end.elapsed()),
        }
    }

    /// Ends when a watch has shown the pod as Running.
    fn watch(&self, name: &str) -> thread::JoinHandle<Instant> {
        let mut stream = UnixStream::connect(&self.socket).expect("the proxy");
        write!(stream, "GET {PODS}?watch=true&fieldSelector=metadata.name%3D{name} HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("it reads");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        thread::spawn(move || {
            loop {
                let mut line = String::new();
                assert_ne!(reader.read_line(&mut line).expect("a line"), 0, "the watch ended");
                if line.contains("\"phase\":\"Running\"") {
                    return Instant::now();
                }
            }
        })
    }

    /// The latest time that a container of these pods printed, once so many have.
    fn stamps(&self, uids: &HashSet<String>, count: usize) -> u128 {
        eventually("all commands run", || {
            let folders = entries(&self.node.root().join("var/log/pods"));
            let theirs = folders
                .iter()
                .filter(|path| path.to_str().and_then(|path| path.rsplit('_').next()).is_some_and(|uid| uids.contains(uid)));
            let stamps: Vec<u128> = theirs.flat_map(|folder| entries(folder)).filter_map(|c| stamp(&c.join("0.log"))).collect();
            if stamps.len() == count { Ok(*stamps.iter().max().unwrap()) } else { Err(format!("{} of {count}", stamps.len())) }
        })
    }

    /// `kubectl exec` asks for the pod, then for the exec. The same program, asked for two objects, does all of that but what is beyond the
    /// API server's answer: a connection of its own for the stream, the way to the node, and the command.
    fn execs(&self, plane: &ControlPlane<'_>) -> Vec<Exec> {
        self.create("exec", 1, Account::Token);
        plane.until("pod", "exec", "is ready", |pod| is_true(pod, "Ready").then_some(()));
        let took = |words: &[&str]| {
            let mut command = kubectl(self.node, plane);
            let began = Instant::now();
            run(command.args(words)).ok();
            began.elapsed().as_secs_f64() * 1e3
        };
        let round = |_| {
            thread::sleep(PAUSE);
            let asks = took(&["get", "pod/exec", "node/node", "-o", "name"]);
            thread::sleep(PAUSE);
            Exec { exec: took(&["exec", "exec", "--", "/demo", "exit", "0"]), asks }
        };
        // The first fills caches.
        let all: Vec<Exec> = (0..=ROUNDS).map(round).skip(1).collect();
        self.delete("exec");
        all
    }

    fn many(&self) -> f64 {
        let uids = Mutex::new(HashSet::new());
        let began = now();
        thread::scope(|scope| {
            for part in 0..4 {
                let uids = &uids;
                scope.spawn(move || {
                    for number in (part..MANY).step_by(4) {
                        let uid = self.create(&format!("many-{number}"), 1, Account::Token);
                        uids.lock().unwrap().insert(uid);
                    }
                });
            }
        });
        let last = self.stamps(&uids.into_inner().unwrap(), MANY);
        last.saturating_sub(began) as f64 / 1e6
    }
}

/// What a node with many pods that do nothing asks in a minute, of a server that counts.
fn idle_requests() -> usize {
    let node = builder().start();
    let server = ApiServer::beside(&node);
    for number in 0..MANY {
        let name = format!("idle-{number}");
        server.put(&format!("{PODS}/{name}"), pod(&name, 1, Account::Token));
    }
    let mut command = node.agent_command();
    command.arg("--kubeconfig").arg(server.kubeconfig("{token: t}"));
    node.start_agent_with(command, "");
    eventually("all pods are told to run", || {
        let runs =
            |number: &usize| server.get(&format!("{PODS}/idle-{number}")).is_some_and(|pod| pod["status"]["phase"] == "Running");
        let running = (0..MANY).filter(runs).count();
        if running == MANY { Ok(()) } else { Err(format!("{running} of {MANY}")) }
    });
    thread::sleep(SETTLED);
    let before = server.asked().len();
    thread::sleep(Duration::from_secs(60));
    server.asked().len() - before
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos()
}

fn stamp(log: &Path) -> Option<u128> {
    std::fs::read_to_string(log).ok()?.lines().next()?.split(' ').nth(3)?.parse().ok()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// RSS in bytes.
fn resident(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) * 1024
}
