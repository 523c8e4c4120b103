//! A folder's pod becomes the API server's, and back: it runs on, whoever it is of and whenever the agent is killed.

use e2e::{ControlPlane, NodeBox, eventually};
use serde_json::Value;

use super::{node, runs};

const WEB: &str = "# by hand
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - {name: first, image: 'localhost/nodeagent-demo:latest', imagePullPolicy: Never, args: [echo, begun]}
  containers:
  - name: main
    image: localhost/nodeagent-demo:latest
    imagePullPolicy: Never
    args: [serve]
    envFrom: [{secretRef: {name: keys}}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: app, mountPath: /app}]
  - {name: side, image: 'localhost/nodeagent-demo:latest', imagePullPolicy: Never, args: [sleep]}
  volumes: [{name: app, configMap: {name: app}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {DOOR: open sesame}
";

/// What stays of a pod: of each container its process, ID and restarts, and the pod's address.
fn identity(node: &NodeBox) -> Vec<String> {
    let pod = node.pod("web");
    let container = |name: &str| {
        let container = pod.container(name);
        format!("{name} {} {} {}", container.host_pid(), container.id(), container.restarts())
    };
    vec![container("main"), container("side"), pod.ip(), pod.container("first").id()]
}

/// As the API server has it: IDs, starts and restarts.
fn told(pod: &Value) -> String {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    statuses.map(|s| format!("{} {} {}\n", s["containerID"], s["state"]["running"]["startedAt"], s["restartCount"])).collect()
}

fn with_web(node: &NodeBox) -> (ControlPlane<'_>, Vec<String>) {
    let plane = ControlPlane::beside(node);
    node.apply("web.yaml", WEB);
    plane.joins(node);
    node.pod("web").is_ready();
    (plane, identity(node))
}

fn adopt(plane: &ControlPlane<'_>, node: &NodeBox) {
    let kubeconfig = plane.folder().join("admin.kubeconfig");
    node.run(&["adopt", "web", "--kubeconfig", kubeconfig.to_str().unwrap()]).ok();
}

fn file(node: &NodeBox, name: &str) -> Option<String> {
    std::fs::read_to_string(node.manifests().join(name)).ok()
}

#[test]
fn a_files_pod_becomes_the_api_servers_and_a_files_again_and_runs_on() {
    let node = node();
    let (plane, before) = with_web(&node);
    let mirror = plane.until("pod", "web-node", "is shown", |pod| runs(pod).map(|()| pod.clone()));
    node.pod("web").container("main").logged("listening");
    adopt(&plane, &node);
    let pod = plane.until("pod", "web", "runs", |pod| runs(pod).map(|()| pod.clone()));
    assert_eq!(told(&pod), told(&mirror), "nothing was started");
    assert_eq!(pod["status"]["podIP"], mirror["status"]["podIP"]);
    assert_eq!(identity(&node), before);
    plane.is_gone("pod", "web-node");
    eventually("the manifest is aside", || match (file(&node, "web.yaml"), file(&node, "web.yaml.adopted")) {
        (None, Some(text)) if text == WEB => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // It is one of the API server's: by kubectl its logs go on, edits arrive, what it refers to is followed.
    let logs = plane.kubectl(&["logs", "web", "-c", "main"]).ok();
    assert!(logs.contains("listening"), "{logs}");
    let seen = plane.kubectl(&["exec", "web", "-c", "main", "--", "/demo", "read", "/app/greeting"]).ok();
    assert_eq!(seen.trim(), "hello");
    plane.kubectl(&["patch", "configmap", "app", "-p", r#"{"data": {"greeting": "good evening"}}"#]).ok();
    eventually("the API server's ConfigMap is in the volume", || {
        let said = node.pod("web").container("main").demo("read /app/greeting");
        if said.trim() == "good evening" { Ok(()) } else { Err(said) }
    });
    plane.kubectl(&["label", "pod", "web", "tier=front"]).ok();
    node.pod("web").until("has the label", |pod| {
        if pod["metadata"]["labels"]["tier"] == "front" { Ok(()) } else { Err(pod["metadata"].to_string()) }
    });
    node.kill_agent();
    plane.joins(&node);
    plane.until("pod", "web", "runs still", runs);
    assert_eq!(identity(&node), before);

    // Back, as it is by now.
    let said = node.run(&["adopt", "--back", "web"]).ok();
    assert!(said.contains("web.yaml"), "{said}");
    plane.is_gone("pod", "web");
    let mirror = plane.until("pod", "web-node", "is shown again", |pod| runs(pod).map(|()| pod.clone()));
    assert_eq!(told(&mirror), told(&pod));
    assert_eq!(mirror["metadata"]["labels"]["tier"], "front");
    assert_eq!(identity(&node), before);
    let written = file(&node, "web.yaml").expect("the manifest is written");
    assert!(written.contains("good evening") && written.contains("tier: front"), "{written}");
    node.kill_agent();
    plane.joins(&node);
    node.apply("web.yaml", &written.replace("tier: front", "tier: back"));
    plane.until("pod", "web-node", "is edited", |pod| (pod["metadata"]["labels"]["tier"] == "back").then_some(()));
    assert_eq!(identity(&node), before);
    node.remove("web.yaml");
    node.pod("web").is_gone();
    plane.is_gone("pod", "web-node");
}

#[test]
fn an_agent_that_is_killed_on_the_way_finishes_it_and_nothing_runs_twice() {
    let node = node();
    let (plane, before) = with_web(&node);
    // Killed before it sees what was created by its offer.
    let socket = node.root().join("run/nodeagent/agent.sock");
    let url = "http://localhost/apis/nodeagent.dev/v1/namespaces/default/pods/web/adoption";
    let offer = node.inside("curl", &["--silent", "--unix-socket", socket.to_str().unwrap(), "--request", "POST", url]).ok();
    let offer: Value = serde_json::from_str(&offer).unwrap();
    node.kill_agent();
    for object in offer["objects"].as_array().unwrap().iter().chain([&offer["pod"]]) {
        plane.apply(&object.to_string());
    }
    plane.joins(&node);
    let pod = plane.until("pod", "web", "runs", |pod| runs(pod).map(|()| pod.clone()));
    assert_eq!(identity(&node), before);
    assert!(told(&pod).contains(&node.pod("web").container("main").id()));
    eventually("the manifest is aside", || if file(&node, "web.yaml").is_none() { Ok(()) } else { Err("it is there".into()) });
    // The way back with the API server away, and killed before that is there again.
    plane.script(&["stop", "kube-apiserver"]).ok();
    node.run(&["adopt", "--back", "web"]).ok();
    assert_eq!(file(&node, "web.yaml").as_deref(), Some(WEB), "as it was written by hand");
    node.kill_agent();
    plane.starts(&node);
    eventually("the new agent cares for it", || {
        if identity(&node) == before { Ok(()) } else { Err(format!("{:?}", identity(&node))) }
    });
    plane.script(&["start", "kube-apiserver"]).ok();
    plane.is_gone("pod", "web");
    plane.until("pod", "web-node", "is shown", runs);
    assert_eq!(identity(&node), before);
    // A second time from the beginning, and deleted at the API server: there it ends for good.
    adopt(&plane, &node);
    plane.until("pod", "web", "runs", runs);
    assert_eq!(identity(&node), before);
    plane.kubectl(&["delete", "pod", "web", "--wait=false"]).ok();
    plane.is_gone("pod", "web");
    node.pod("web").is_gone();
}

#[test]
fn what_cannot_run_on_is_refused_and_stays_as_it_is() {
    let node = node();
    let (plane, before) = with_web(&node);
    let kubeconfig = plane.folder().join("admin.kubeconfig");
    let adopt = |name: &str| node.run(&["adopt", name, "--kubeconfig", kubeconfig.to_str().unwrap()]).all();
    // The API server's own of this name says something else.
    plane.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: app}, data: {greeting: other}}");
    assert!(adopt("web").contains("ConfigMap default/app is there and says something else than the file"));
    assert!(adopt("none").contains("not found"));
    // Its rules would change the pod.
    plane.kubectl(&["delete", "configmap", "app"]).ok();
    plane.apply(
        "{apiVersion: v1, kind: LimitRange, metadata: {name: l}, spec: {limits: [{type: Container, defaultRequest: {ephemeral-storage: 1Mi}}]}}",
    );
    let refused = adopt("web");
    assert!(
        refused.contains("the API server would make another pod of it") && refused.contains("containers[0].resources"),
        "{refused}"
    );
    let back = node.run(&["adopt", "--back", "web"]).all();
    assert!(back.contains("the pod is not the API server's"), "{back}");
    assert!(plane.get("pod", "web").is_none());
    assert_eq!((identity(&node), file(&node, "web.yaml").as_deref()), (before, Some(WEB)));
}
