//! A pod on a node, in questions that wait for their answer.

use serde_json::Value;

use crate::{NodeBox, Output, Running, eventually};

/// `NAMESPACE/NAME` on a node.
#[derive(Debug, Clone)]
pub struct Pod<'a> {
    node: &'a NodeBox,
    namespace: String,
    name: String,
}

impl<'a> Pod<'a> {
    pub(crate) fn named(node: &'a NodeBox, name: String) -> Self {
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (namespace.to_string(), name.to_string()),
            None => ("default".into(), name),
        };
        Self { node, namespace, name }
    }

    /// The words of a client command about this pod.
    fn words<'b>(&'b self, verb: &[&'b str], more: &[&'b str]) -> Vec<&'b str> {
        [verb, &[&self.name, "-n", &self.namespace], more].concat()
    }

    /// The object as `get -o json` shows it, unless there is no such pod.
    pub fn get(&self) -> Option<Value> {
        let output = self.node.run(&self.words(&["get", "pod"], &["-o", "json"]));
        if output.code != 0 {
            assert!(output.all().contains("not found"), "{output}");
            return None;
        }
        Some(serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}")))
    }

    /// Waits for a state that the question finds right. `look` says what is wrong so far.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Result<T, String>) -> T {
        eventually(&format!("pod {}/{} {what}", self.namespace, self.name), || look(&self.get().ok_or("there is no such pod")?))
    }

    /// Waits for this phase.
    #[track_caller]
    pub fn becomes(&self, phase: &str) -> &Self {
        self.until(&format!("becomes {phase}"), |pod| {
            if pod["status"]["phase"] == phase { Ok(()) } else { Err(pretty(&pod["status"])) }
        });
        self
    }

    /// Waits until it runs and all its containers are ready.
    #[track_caller]
    pub fn is_ready(&self) -> &Self {
        self.until("is ready", |pod| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            if ready { Ok(()) } else { Err(pretty(&pod["status"])) }
        });
        self
    }

    /// Waits until the node has refused it for this reason, with a message that has these words.
    #[track_caller]
    pub fn is_rejected(&self, reason: &str, message: &str) {
        self.until(&format!("is rejected as {reason}"), |pod| {
            let status = &pod["status"];
            let said = status["message"].as_str().unwrap_or_default();
            let fine = status["phase"] == "Failed" && status["reason"] == reason && said.contains(message);
            if fine { Ok(()) } else { Err(pretty(status)) }
        });
    }

    /// Waits until there is no such pod.
    #[track_caller]
    pub fn is_gone(&self) {
        eventually(&format!("pod {}/{} is gone", self.namespace, self.name), || {
            self.get().map_or(Ok(()), |pod| Err(pretty(&pod["status"])))
        });
    }

    /// metadata.uid.
    #[track_caller]
    pub fn uid(&self) -> String {
        self.until("has a uid", |pod| pod["metadata"]["uid"].as_str().map(str::to_string).ok_or_else(|| pretty(pod)))
    }

    /// status.podIP.
    #[track_caller]
    pub fn ip(&self) -> String {
        self.until("has an IP", |pod| text(&pod["status"]["podIP"]))
    }

    /// One of its containers.
    pub fn container(&self, name: &str) -> Container<'a> {
        Container { pod: self.clone(), name: name.into() }
    }

    /// A client command about it: `VERB NAME -n NAMESPACE`, then more words.
    pub fn run(&self, verb: &[&str], more: &[&str]) -> Output {
        self.node.run(&self.words(verb, more))
    }

    /// `REASON MESSAGE` of each event about it.
    pub fn events(&self) -> Vec<String> {
        let output = self.node.run(&["get", "events", "-n", &self.namespace, "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"));
        let about = |event: &&Value| event["involvedObject"]["name"] == self.name.as_str();
        let line = |event: &Value| {
            format!("{} {}", event["reason"].as_str().unwrap_or_default(), event["message"].as_str().unwrap_or_default())
        };
        list["items"].as_array().into_iter().flatten().filter(about).map(line).collect()
    }

    /// Waits for an event that has all of these words.
    #[track_caller]
    pub fn tells(&self, words: &[&str]) -> String {
        eventually(&format!("pod {}/{} tells {words:?}", self.namespace, self.name), || {
            let events = self.events();
            let told = events.iter().find(|event| words.iter().all(|word| event.contains(word)));
            told.cloned().ok_or_else(|| events.join("\n"))
        })
    }
}

/// A container of a pod on a node.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    pod: Pod<'a>,
    name: String,
}

impl Container<'_> {
    /// Its containerStatus.
    pub fn status(&self, pod: &Value) -> Value {
        let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
        let all = lists.iter().flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
        all.into_iter().find(|status| status["name"] == self.name.as_str()).cloned().unwrap_or(Value::Null)
    }

    /// Waits for a status that the question finds right.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        self.pod.until(&format!("container {} {what}", self.name), |pod| {
            let status = self.status(pod);
            look(&status).ok_or_else(|| pretty(&pod["status"]))
        })
    }

    /// Waits until it runs.
    #[track_caller]
    pub fn is_running(&self) -> &Self {
        self.until("is running", |status| status["state"]["running"].is_object().then_some(()));
        self
    }

    /// Waits until it waits for this reason, such as `CrashLoopBackOff`; returns the message.
    #[track_caller]
    pub fn waits_because(&self, reason: &str) -> String {
        self.until(&format!("waits because of {reason}"), |status| {
            let waiting = &status["state"]["waiting"];
            (waiting["reason"] == reason).then(|| waiting["message"].as_str().unwrap_or_default().to_string())
        })
    }

    /// Waits until it has ended, for good or to be started again; returns `state.terminated` or `lastState.terminated`.
    #[track_caller]
    pub fn ended(&self) -> Value {
        self.until("has ended", |status| {
            [&status["state"]["terminated"], &status["lastState"]["terminated"]].into_iter().find(|end| end.is_object()).cloned()
        })
    }

    /// Waits until it has ended with this status.
    #[track_caller]
    pub fn exited_with(&self, code: i64) -> Value {
        let end = self.ended();
        assert_eq!(end["exitCode"], code, "{}", pretty(&end));
        end
    }

    /// Waits until it was restarted this many times at least.
    #[track_caller]
    pub fn was_restarted(&self, times: u64) {
        self.until(&format!("was restarted {times} times"), |status| (status["restartCount"].as_u64()? >= times).then_some(()));
    }

    /// restartCount now.
    #[track_caller]
    pub fn restarts(&self) -> u64 {
        self.until("has a restart count", |status| status["restartCount"].as_u64())
    }

    /// containerID now.
    #[track_caller]
    pub fn id(&self) -> String {
        self.until("has an ID", |status| text(&status["containerID"]).ok())
    }

    /// `exec` without a terminal.
    pub fn exec(&self, words: &[&str]) -> Output {
        self.pod.run(&["exec"], &[&["-c", &self.name, "--"], words].concat())
    }

    /// A command of the demo program, which must succeed; its output without the last line break.
    #[track_caller]
    pub fn demo(&self, words: &str) -> String {
        let words: Vec<&str> = std::iter::once("/demo").chain(words.split_whitespace()).collect();
        self.exec(&words).ok().trim_end().to_string()
    }

    /// `logs` with these flags.
    #[track_caller]
    pub fn logs(&self, flags: &[&str]) -> String {
        self.pod.run(&["logs"], &[&["-c", &self.name], flags].concat()).ok()
    }

    /// Waits until its log has this text.
    #[track_caller]
    pub fn logged(&self, text: &str) -> String {
        eventually(&format!("container {} logged {text:?}", self.name), || {
            let output = self.pod.run(&["logs"], &["-c", &self.name]);
            if output.code == 0 && output.stdout.contains(text) { Ok(output.stdout) } else { Err(output.to_string()) }
        })
    }

    /// `logs -f` with more flags, running beside the test.
    pub fn follow(&self, flags: &[&str]) -> Running {
        let words = self.pod.words(&["logs"], &[&["-f", "-c", &self.name], flags].concat());
        Running::start(&mut self.pod.node.client(&words))
    }

    /// Its first process, in the box's PID namespace.
    #[track_caller]
    pub fn host_pid(&self) -> i32 {
        let namespace = self.demo_namespace();
        let listing =
            self.pod.node.inside("sh", &["-c", "for p in /proc/[0-9]*; do echo ${p#/proc/} $(readlink $p/ns/pid); done"]);
        let pids = listing.ok();
        let mut found: Vec<i32> = pids
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, theirs)| theirs.contains(&namespace))
            .filter_map(|(pid, _)| pid.parse().ok())
            .collect();
        found.sort_unstable();
        *found.first().unwrap_or_else(|| panic!("no process in PID namespace {namespace}: {pids}"))
    }

    /// The inode of its PID namespace, as it sees it itself.
    fn demo_namespace(&self) -> String {
        let page = self.exec(&["/demo", "namespace", "pid"]).ok();
        page.trim().to_string()
    }
}

/// JSON for eyes.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_string).ok_or_else(|| "empty".into())
}
