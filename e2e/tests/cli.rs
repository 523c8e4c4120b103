//! The command line as a user types it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, Running, assert_eventually, eventually, pod};
use rstest::rstest;
use serde_json::Value;

fn quickstart() -> NodeBox {
    let node = NodeBox::start();
    node.apply_folder("quickstart");
    node.pod("web").is_ready();
    node.pod("twin").is_ready();
    node
}

#[rstest]
#[case::pods(&["get", "pods"], &["NAME   READY   STATUS    RESTARTS   AGE", "web    2/2     Running   0"])]
#[case::wide(&["get", "pods", "-A", "-o", "wide"], &["NAMESPACE   NAME   READY", "IP", "NODE"])]
#[case::several(&["get", "pods,nodes"], &["pod/web", "node/node   Ready"])]
#[case::named(&["get", "pod/web", "-o", "name"], &["pod/web\n"])]
#[case::labels(&["get", "pods", "-l", "app=shop", "--show-labels", "--no-headers"], &["app=shop"])]
#[case::fields(&["get", "pods", "--field-selector", "metadata.name=twin", "-o", "name"], &["pod/twin\n"])]
#[case::json(&["get", "pod", "web", "-o", "json"], &["\"kind\": \"Pod\""])]
#[case::yaml(&["get", "pods", "-o", "yaml"], &["kind: PodList", "podIP:"])]
#[case::events(&["get", "events"], &["Container started"])]
#[case::images(&["get", "images"], &["localhost/nodeagent-demo:latest", "IN USE"])]
#[case::image_ls(&["image", "ls"], &["localhost/nodeagent-demo:latest"])]
#[case::image_inspect(&["image", "inspect", "localhost/nodeagent-demo:latest"], &["\"Entrypoint\""])]
#[case::namespaces(&["get", "namespaces"], &["default"])]
#[case::describe(&["describe", "web"], &["Ports:          8080/TCP (host 8088)", "QoS Class:          Burstable", "Container started"])]
#[case::describe_node(&["describe", "node"], &["Capacity:", "default/web (Running)"])]
#[case::inspect(&["inspect", "web"], &["Holder:", "podholder", "HOST PID", "/demo serve --port 8080"])]
#[case::explain(&["explain", "web"], &["web: overlay", "It waits for nothing."])]
#[case::version(&["version"], &["Client Version: v", "(Kubernetes v1."])]
#[case::check(&["check"], &["This machine can run pods"])]
fn shows(#[case] words: &[&str], #[case] expected: &[&str]) {
    let node = quickstart();
    let output = node.run(words).ok();
    for text in expected.iter().filter(|text| **text != "podholder") {
        assert!(output.contains(text), "{text:?} in\n{output}");
    }
}

#[rstest]
#[case::pod(&["get", "pod", "nope"], "pods \"nope\" not found")]
#[case::kind(&["get", "ingresses"], "there are no ingresses here")]
#[case::container(&["logs", "web", "-c", "nope"], "choose one of: [web client]")]
#[case::command(&["exec", "web"], "<COMMAND>")]
#[case::deleted(&["delete", "nope"], "not found")]
#[case::never_stopped(&["start", "web"], "pod default/web was not stopped")]
#[case::unknown(&["start", "nope"], "no manifest has a pod default/nope")]
#[case::embedded(&["image", "rm", "localhost/nodeagent-demo:latest"], "is in use by the agent itself")]
#[case::no_port(&["kubeconfig"], "--listen 127.0.0.1:6443")]
#[case::port(&["port-forward", "web", "x"], "write LOCAL:REMOTE")]
fn says_what_is_wrong(#[case] words: &[&str], #[case] expected: &str) {
    let node = quickstart();
    let output = node.run(words).fails();
    assert!(output.contains(expected), "{output}");
}

#[test]
fn without_an_agent_it_says_how_to_start_one() {
    let node = NodeBox::builder().without_agent().start();
    let output = node.run(&["get", "pods"]).fails_with(1);
    assert!(output.contains("no agent answers at") && output.contains("nodeagent --manifests"), "{output}");
    // What needs none works.
    assert!(node.run(&["completions", "bash"]).ok().contains("nodeagent"));
    assert!(node.run(&["version"]).ok().contains("Agent Version: none"));
}

#[test]
fn every_command_has_help_with_examples() {
    let node = NodeBox::builder().without_agent().start();
    let commands = "get describe logs exec attach port-forward delete stop start inspect explain image kubeconfig validate check completions version";
    for command in commands.split(' ') {
        let help = node.run(&[command, "--help"]).ok();
        assert!(help.contains("Usage:") && help.contains("Examples:"), "{command}: {help}");
    }
}

#[test]
fn validate_tells_file_line_and_column() {
    let node = NodeBox::builder().without_agent().start();
    node.apply("good.yaml", &pod("good").runs("app", "sleep").yaml());
    assert!(node.run(&["validate", node.manifests().to_str().unwrap()]).ok().contains("1 pod valid"));
    node.apply("bad.yaml", &pod("bad").runs("app", "sleep").yaml().replace("containers:", "containres:"));
    let output = node.run(&["validate", node.manifests().to_str().unwrap()]).fails_with(1);
    assert!(output.contains("bad.yaml:") && output.contains("containers"), "{output}");
    let yaml = pod("piped").runs("app", "sleep").yaml();
    assert!(node.feed(&["validate", "-"], yaml.as_bytes()).ok().contains("1 pod valid"));
}

#[test]
fn exec_passes_everything_through() {
    let node = quickstart();
    let web = node.pod("web");
    assert!(node.run(&["exec", "web", "-c", "web", "--", "/demo", "exit", "7"]).fails_with(7).contains("exit code 7"));
    assert!(node.run(&["exec", "web", "--", "/nope"]).fails_with(127).contains("No such file or directory"));
    assert_eq!(web.container("web").exec(&["/demo", "tty"]).ok(), "not a terminal\n");
    // A hundred megabytes, in and out, whatever their bytes.
    let file = node.folder().join("input");
    let program = e2e::binary("nodeagent");
    let script = format!(
        "head -c 104857600 /dev/urandom >{file}; {program} --root {root} exec -i web -c web -- /demo cat <{file} | cmp - {file}",
        file = file.display(),
        program = program.display(),
        root = node.root().display()
    );
    node.inside("sh", &["-c", &script]).ok();
    // A terminal.
    let words = format!("{} --root {} exec -it web -c web -- /demo tty", program.display(), node.root().display());
    let output = node.inside("script", &["-qec", &words, "/dev/null"]).ok();
    assert!(output.contains("a terminal"), "{output}");
}

#[test]
fn an_exec_ends_with_its_client() {
    let node = quickstart();
    let _client = Running::start(&mut node.client(&["exec", "web", "-c", "web", "--", "/demo", "sleep", "1000"]));
    let sleeps = || node.run(&["inspect", "web"]).ok().contains("/demo sleep 1000");
    assert_eventually!(sleeps(), "the process is in the container");
    // In the box, whose PID namespace is its own: what the test started itself is nsenter.
    node.inside("pkill", &["-KILL", "-f", "exec web -c web"]).ok();
    assert_eventually!(!sleeps(), "the process is gone with its client");
}

#[test]
fn attach_joins_the_output() {
    let node = quickstart();
    Running::start(&mut node.client(&["attach", "web", "-c", "client"])).says("shop: call");
}

#[test]
fn port_forward_serves_many_at_once() {
    let node = quickstart();
    let forward = Running::start(&mut node.client(&["port-forward", "web", "18080:8080", ":8080"]));
    forward.says("Forwarding from 127.0.0.1:18080 -> 8080");
    let script = "for i in $(seq 30); do curl -sf --max-time 20 http://127.0.0.1:18080/json -o /dev/null & p=\"$p $!\"; done; for q in $p; do wait $q || exit 1; done";
    node.inside("sh", &["-c", script]).ok();
}

#[test]
fn watch_shows_changes() {
    let node = quickstart();
    let watching = Running::start(&mut node.client(&["get", "pods", "-w"]));
    watching.says("web");
    node.put(&pod("late").runs("app", "sleep"));
    watching.says("late");
    let objects = Running::start(&mut node.client(&["get", "pods", "-w", "-o", "name"]));
    objects.says("pod/late");
}

#[test]
fn logs_with_every_flag() {
    let node = quickstart();
    let client = node.pod("web").container("client");
    client.logged("call 3:");
    assert_eq!(client.logs(&["--tail", "2"]).lines().count(), 2);
    assert!(client.logs(&["--timestamps", "--tail", "1"]).starts_with("20"));
    assert!(client.logs(&["--since", "1h"]).contains("call 1:"));
    assert_eq!(client.logs(&["--since-time", "2100-01-01T00:00:00Z"]), "");
    assert_eq!(client.logs(&["--limit-bytes", "5"]).len(), 5);
    let all = node.run(&["logs", "web", "--all-containers", "--prefix"]).ok();
    assert!(all.contains("[pod/web/web] ") && all.contains("[pod/web/client] "), "{all}");
    let following = client.follow(&["--tail", "1"]);
    eventually("more comes", || if following.output().lines().count() > 2 { Ok(()) } else { Err(following.output()) });
    node.put(&pod("brief").runs("app", "exit 3"));
    node.pod("brief").container("app").was_restarted(1);
    assert_eventually!(node.run(&["logs", "brief", "-p"]).code == 0, "logs of the previous life");
}

#[test]
fn delete_warns_only_where_the_pod_comes_again() {
    let node = quickstart();
    let (twin, before) = (node.pod("twin"), node.pod("twin").container("web").id());
    let output = node.run(&["delete", "twin", "--now"]);
    assert!(output.code == 0 && output.stderr.contains("manifest is still there"), "{output}");
    assert_eventually!(twin.get().is_some_and(|pod| twin.container("web").status(&pod)["containerID"] != before.as_str()));
    // A pod that pays no heed to SIGTERM is still there when its manifest is gone.
    node.put(&pod("stubborn").runs("app", "stubborn")).is_ready();
    node.remove("stubborn.yaml");
    node.pod("stubborn").until("ends", |pod| {
        if pod["metadata"]["deletionTimestamp"].is_string() { Ok(()) } else { Err(pod["metadata"].to_string()) }
    });
    let output = node.run(&["delete", "stubborn", "--force"]);
    assert!(output.code == 0 && !output.stderr.contains("Warning"), "{output}");
    node.pod("stubborn").is_gone();
}

#[test]
fn stop_lasts_until_start() {
    let node = quickstart();
    assert!(node.run(&["stop", "twin"]).ok().contains("nodeagent start twin"));
    node.pod("twin").is_gone();
    // It stays so over a restart of the agent.
    node.stop_agent();
    node.start_agent();
    node.pod("web").is_ready();
    assert!(node.pod("twin").get().is_none());
    assert!(node.run(&["start", "twin"]).ok().contains("started"));
    node.pod("twin").is_ready();
}

#[test]
fn inspect_as_json_has_both_pids() {
    let node = quickstart();
    let output = node.run(&["inspect", "web", "-o", "json"]).ok();
    let object: Value = serde_json::from_str(&output).unwrap();
    let first = &object["containers"][0]["processes"][0];
    assert_eq!(first["containerPid"], 1, "{first}");
    assert!(first["pid"].as_i64().unwrap() > 1, "{first}");
}
