//! What is told of a pod: by others, whose words the node hears and leaves as they are, and by the node, that it will not have it.

use e2e::{ControlPlane, is_true};
use serde_json::Value;

use super::node;

const GATED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: gated}
spec:
  terminationGracePeriodSeconds: 1
  readinessGates: [{conditionType: example.com/balanced}]
  containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}]
";

fn condition<'a>(pod: &'a Value, type_: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|c| c["type"] == type_)).unwrap_or(&Value::Null)
}

#[test]
fn a_readiness_gate_is_somebody_elses_to_open_and_to_close() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(GATED);
    let says = |status: &str| {
        let patch = format!(
            r#"{{"status": {{"conditions": [{{"type": "example.com/balanced", "status": "{status}", "reason": "Theirs"}}]}}}}"#
        );
        plane.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", &patch]).ok();
    };
    plane.until("pod", "gated", "runs and isn't ready", |pod| {
        let closed = condition(pod, "Ready")["reason"] == "ReadinessGatesNotReady";
        (closed && is_true(pod, "ContainersReady")).then_some(())
    });
    says("True");
    let pod = plane.until("pod", "gated", "is ready", |pod| is_true(pod, "Ready").then(|| pod.clone()));
    // Nothing is left of what was said while it wasn't, and what they said is as they said it.
    let ready = condition(&pod, "Ready");
    assert!(ready["reason"].is_null() && ready["message"].is_null(), "{ready}");
    assert_eq!(condition(&pod, "example.com/balanced")["reason"], "Theirs");

    // Told while nobody is here.
    node.kill_agent();
    says("False");
    plane.joins(&node);
    let pod =
        plane.until("pod", "gated", "isn't ready", |pod| (condition(pod, "Ready")["status"] == "False").then(|| pod.clone()));
    assert_eq!(condition(&pod, "example.com/balanced")["status"], "False");
    says("True");
    plane.until("pod", "gated", "is ready again", |pod| is_true(pod, "Ready").then_some(()));
}

#[test]
fn a_pod_for_another_system_has_failed() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: panes}, spec: {nodeName: node, os: {name: windows}, \
         containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}]}}",
    );
    let status =
        plane.until("pod", "panes", "has failed", |pod| (pod["status"]["phase"] == "Failed").then(|| pod["status"].clone()));
    assert_eq!(status["reason"], "PodOSNotSupported", "{status}");
    assert!(
        status["message"].as_str().unwrap().ends_with("Failed to admit pod as the OS field doesn't match node OS"),
        "{status}"
    );
    assert!(status["podIP"].is_null(), "{status}");
}

#[test]
fn the_api_server_carries_logs_and_commands_in_websockets_of_any_age() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: says}, spec: {terminationGracePeriodSeconds: 1, containers: [\
         {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}, \
         {name: once, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [echo, container is alive], restartPolicy: Never}]}}",
    );
    node.pod("says").container("once").exited_with(0);
    node.pod("says").container("main").is_running();
    let ask = |protocol: &str, path: &str| {
        let url = format!("https://{}:6443/api/v1/namespaces/default/pods/says/{path}", e2e::OUTSIDE);
        let words = ["--silent", "--insecure", "--max-time", "20", "--header", "Origin: http://localhost"];
        let identity = ["--cert", "pki/client-admin.crt", "--key", "pki/client-admin.key"];
        let mut command = node.outside().command("env");
        command.arg("--chdir").arg(plane.folder()).arg("curl").args(words).args(identity).args(e2e::websocket(Some(protocol)));
        e2e::run(command.arg(url)).all()
    };
    for _ in 0..10 {
        let said = ask("binary.k8s.io", "log?container=once");
        assert!(said.contains("container is alive"), "{said}");
    }
    let said = ask("base64.binary.k8s.io", "log?container=once");
    assert!(said.contains("Y29udGFpbmVyIGlzIGFsaXZlCg=="), "{said}");
    for (protocol, hello) in
        [("channel.k8s.io", "\u{1}hi\n"), ("v4.base64.channel.k8s.io", "1aGkK"), ("v5.channel.k8s.io", "\u{1}hi\n")]
    {
        let said = ask(protocol, "exec?container=main&command=/demo&command=echo&command=hi&stdout=1");
        assert!(said.contains(hello), "{protocol}: {said}");
    }
}

#[test]
fn a_state_that_somebody_writes_over_is_put_back_and_nobody_fights_over_it() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {terminationGracePeriodSeconds: 1, \
         containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}]}}",
    );
    plane.until("pod", "web", "runs", super::runs);
    let writes = |kind: &str, patch: &str| {
        plane.kubectl(&["patch", "pod", "web", "--subresource=status", "--type", kind, "-p", patch]).ok();
    };
    let repairs = || node.agent_output().matches("somebody else has changed the pod's state").count();
    let whole = |pod: &Value| {
        let runs = pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
        (super::runs(pod).is_some() && runs && pod["status"]["podIP"].is_string()).then_some(())
    };
    let is_whole = || plane.until("pod", "web", "is as the node says", whole);
    writes("strategic", r#"{"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Theirs"}]}}"#);
    is_whole();
    let pod = plane.get("pod", "web").unwrap();
    assert!(condition(&pod, "Ready")["reason"].is_null(), "{pod:#}");
    writes("merge", r#"{"status": {"containerStatuses": null, "phase": "Pending", "podIP": null, "podIPs": null}}"#);
    is_whole();
    // What is theirs stays.
    writes("strategic", r#"{"status": {"conditions": [{"type": "example.com/theirs", "status": "True"}]}}"#);
    // Written over while no agent is here.
    node.kill_agent();
    writes("merge", r#"{"status": {"containerStatuses": null}}"#);
    plane.joins(&node);
    is_whole();
    // An agent that has told nothing itself keeps what it found.
    writes("merge", r#"{"status": {"containerStatuses": null}}"#);
    is_whole();
    let pod = plane.get("pod", "web").unwrap();
    assert_eq!(condition(&pod, "example.com/theirs")["status"], "True", "{pod:#}");

    // Somebody who doesn't give up: ours is written once in ten seconds at most, and stands in the end.
    let (before, begun) = (repairs(), std::time::Instant::now());
    for _ in 0..20 {
        writes("merge", r#"{"status": {"phase": "Pending"}}"#);
    }
    let most = usize::try_from(begun.elapsed().as_secs() / 10).unwrap() + 2;
    let done = repairs() - before;
    assert!(done <= most, "{done} repairs, {most} at most:\n{}", node.agent_output());
    is_whole();
    assert_eq!(node.pod("web").container("main").restarts(), 0);
}

/// What it refers to goes with it, its token first of all.
#[test]
fn who_is_forced_to_end_misses_nothing() {
    const PODS: [&str; 3] = ["one", "two", "three"];
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let pod = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: main, \
             image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [serve]}}]}}}}\n---\n"
        )
    };
    plane.apply(&PODS.map(pod).concat());
    for name in PODS {
        plane.until("pod", name, "runs", |pod| is_true(pod, "Ready").then_some(()));
    }
    plane.kubectl(&[&["delete", "pod", "--grace-period=0", "--force"][..], &PODS].concat()).ok();
    for name in PODS {
        node.pod(name).is_gone();
    }
    let said = node.agent_output();
    assert!(!said.contains("FailedMount"), "{said}");
}

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  podReplacementPolicy: Failed
  template:
    spec:
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 2
      containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [stubborn]}]
---
apiVersion: v1
kind: Pod
metadata: {name: kept, finalizers: [example.com/mine]}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [stubborn]}]
";

/// Whoever keeps a pod by a finalizer waits for its last word, the job controller too: a phase that it stays in, whatever its policy says.
#[test]
fn a_pod_that_was_asked_to_end_is_over_and_those_who_wait_for_it_go_on() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(JOB);
    let pods = || {
        let list = plane.kubectl(&["get", "pods", "-l", "job-name=work", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&list).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    };
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    let first = e2e::eventually("the job has a pod that runs", || match pods().as_slice() {
        [pod] if pod["status"]["phase"] == "Running" => Ok(name(pod)),
        pods => Err(format!("{pods:?}")),
    });
    plane.until("pod", "kept", "runs", super::runs);
    plane.kubectl(&["delete", "pod", "kept", &first, "--wait=false"]).ok();
    plane.is_gone("pod", &first);
    e2e::eventually("the job has another pod", || match pods().as_slice() {
        [pod] if name(pod) != first && pod["status"]["phase"] == "Running" => Ok(()),
        pods => Err(format!("{pods:?}")),
    });
    assert_eq!(plane.get("job", "work").unwrap()["status"]["failed"], 1);

    let is_over = || {
        plane.until("pod", "kept", "has failed and is kept", |pod| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            let over = pod["status"]["phase"] == "Failed" && pod["metadata"]["deletionTimestamp"].is_string();
            (over && ended["exitCode"] == 137).then(|| pod["status"].clone())
        })
    };
    let told = is_over();
    node.pod("kept").is_gone();
    node.kill_agent();
    plane.joins(&node);
    assert_eq!(is_over(), told);
    assert!(node.pod("kept").get().is_none());
    plane.kubectl(&["patch", "pod", "kept", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]).ok();
    plane.is_gone("pod", "kept");
}

/// The kubelet API asks the cluster whose a token is, and what its owner may.
#[test]
fn a_token_may_what_its_account_may() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.kubectl(&["create", "serviceaccount", "scraper"]).ok();
    let token = plane.kubectl(&["create", "token", "scraper"]).ok();
    let ask = |token: &str, path: &str| {
        let (header, url) = (format!("Authorization: Bearer {token}"), format!("https://127.0.0.1:10250{path}"));
        let words = ["--silent", "--insecure", "--max-time", "20", "--write-out", "\n%{http_code}", "--header", &header, &url];
        let said = node.inside("curl", &words).ok();
        let (body, code) = said.rsplit_once('\n').unwrap();
        (code.to_owned(), body.to_owned())
    };
    let token = token.trim();
    let (code, body) = ask(token, "/metrics");
    assert_eq!(code, "403", "{body}");
    assert!(body.contains("system:serviceaccount:default:scraper") && body.contains("metrics"), "{body}");
    assert_eq!(ask("eyJhbGciOiJub25lIn0.e30.", "/metrics").0, "401");
    plane.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: scraper}\n\
         rules: [{apiGroups: [\"\"], resources: [nodes/metrics], verbs: [get]}]\n",
    );
    plane.kubectl(&["create", "clusterrolebinding", "scraper", "--clusterrole=scraper", "--serviceaccount=default:scraper"]).ok();
    // A no is remembered for half a minute.
    let metrics = e2e::eventually("it may now", || match ask(token, "/metrics") {
        (code, body) if code == "200" => Ok(body),
        (code, body) => Err(format!("{code} {body}")),
    });
    assert!(metrics.contains("kubelet_"), "{metrics}");
    // So much and no more.
    assert_eq!(ask(token, "/pods").0, "403");
    plane.kubectl(&["delete", "serviceaccount", "scraper"]).ok();
}
