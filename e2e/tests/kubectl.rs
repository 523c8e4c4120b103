//! kubectl as a user types it, against a machine without any cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use e2e::{NodeBox, Output, Running, assert_eventually, eventually, pod, run};

const PORT: &str = "127.0.0.1:16443";

/// A node that kubectl works against, with the quickstart's pods ready.
fn node() -> NodeBox {
    assert!(Command::new("kubectl").arg("version").arg("--client").output().is_ok(), "kubectl is missing: install it");
    let node = NodeBox::builder().argument("--listen").argument(PORT).start();
    node.run(&["kubeconfig", "--output", node.folder().join("kubeconfig").to_str().unwrap()]).ok();
    node.apply_folder("quickstart");
    node.pod("web").is_ready();
    node.pod("twin").is_ready();
    node
}

fn command(node: &NodeBox, words: &[&str]) -> Command {
    let mut command = node.command("kubectl");
    command.arg("--kubeconfig").arg(node.folder().join("kubeconfig")).args(words);
    command
}

fn kubectl(node: &NodeBox, words: &[&str]) -> Output {
    run(&mut command(node, words))
}

/// With this in its environment: `KUBECTL_…_WEBSOCKETS=false` makes kubectl speak SPDY.
fn by(node: &NodeBox, variable: &str, words: &[&str]) -> Command {
    let mut command = node.command("env");
    command.arg(variable).arg("kubectl");
    command.arg("--kubeconfig").arg(node.folder().join("kubeconfig")).args(words);
    command
}

#[test]
fn get_shows_pods_in_every_form() {
    let node = node();
    let table = kubectl(&node, &["get", "pods"]).ok();
    assert!(table.lines().any(|line| line.starts_with("web ") && line.contains("2/2") && line.contains("Running")), "{table}");
    let wide = kubectl(&node, &["get", "pods", "-A", "-o", "wide", "--show-labels"]).ok();
    assert!(wide.starts_with("NAMESPACE") && wide.contains(&node.pod("web").ip()) && wide.contains("app=shop"), "{wide}");
    assert_eq!(kubectl(&node, &["get", "pod", "web", "-o", "jsonpath={.status.podIP}"]).ok(), node.pod("web").ip());
    assert!(kubectl(&node, &["get", "pod", "web", "-o", "yaml"]).ok().contains("\nkind: Pod\n"));
    assert!(kubectl(&node, &["get", "pods", "-o", "json"]).ok().contains("\"kind\": \"List\""));
    assert_eq!(kubectl(&node, &["get", "pods", "-l", "app=shop", "-o", "name"]).ok(), "pod/twin\npod/web\n");
    assert_eq!(kubectl(&node, &["get", "pods", "--field-selector", "metadata.name=web", "-o", "name"]).ok(), "pod/web\n");
    assert!(kubectl(&node, &["get", "nodes"]).ok().contains("Ready"));
    assert!(kubectl(&node, &["get", "images"]).ok().contains("localhost/nodeagent-demo:latest"));
    assert!(kubectl(&node, &["get", "namespaces"]).ok().contains("default"));
    assert!(kubectl(&node, &["get", "pod", "nope"]).fails_with(1).contains("pods \"nope\" not found"));
    let resources = kubectl(&node, &["api-resources"]).ok();
    assert!(resources.contains("pods") && resources.contains("nodeagent.dev/v1"), "{resources}");
}

#[test]
fn describe_and_events_tell_what_happened() {
    let node = node();
    let page = kubectl(&node, &["describe", "pod", "web"]).ok();
    for text in ["Status:       Running", "Host Port:     8088/TCP", "Container started", "QoS Class:"] {
        assert!(page.contains(text), "{text:?} in {page}");
    }
    let page = kubectl(&node, &["describe", "node", "node"]).ok();
    assert!(page.contains("Non-terminated Pods:          (2 in total)"), "{page}");
    assert!(kubectl(&node, &["events"]).ok().contains("Container started"));
    assert!(kubectl(&node, &["events", "--for", "pod/twin"]).ok().contains("Container started"));
    assert!(kubectl(&node, &["top", "pod"]).fails().contains("Metrics API not available"));
}

#[test]
fn watch_follows_a_pod_through_its_life() {
    let node = node();
    let watching = Running::start(&mut command(&node, &["get", "pods", "-w"]));
    watching.says("web");
    node.put(&pod("late").runs("app", "sleep")).is_ready();
    watching.says("late");
    eventually("its run is shown", || {
        let output = watching.output();
        if output.lines().any(|l| l.starts_with("late ") && l.contains("Running")) { Ok(()) } else { Err(output) }
    });
    node.remove("late.yaml");
    watching.says("Terminating");
}

#[test]
fn logs_of_one_container_and_of_all() {
    let node = node();
    node.pod("web").container("client").logged("call 2:");
    let one = kubectl(&node, &["logs", "web", "-c", "client", "--tail", "1", "--timestamps"]).ok();
    assert!(one.lines().count() == 1 && one.starts_with("20") && one.contains("Z shop: call"), "{one}");
    let all = kubectl(&node, &["logs", "web", "--all-containers", "--since", "1h"]).ok();
    assert!(all.contains("listening on port 8080") && all.contains("shop: call 1:"), "{all}");
    assert!(kubectl(&node, &["logs", "web", "--previous"]).fails_with(1).contains("previous terminated container \"web\""));
    let following = Running::start(&mut command(&node, &["logs", "-f", "web", "-c", "client"]));
    following.says("call 1:");
    following.says("call 4:");
    node.put(&pod("brief").runs("app", "exit 3"));
    node.pod("brief").container("app").was_restarted(1);
    assert_eventually!(kubectl(&node, &["logs", "brief", "--previous"]).code == 0, "logs of the previous life");
}

#[test]
fn exec_gives_back_output_and_status_by_websocket_and_by_spdy() {
    let node = node();
    let spdy = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS";
    let file = node.folder().join("input");
    node.inside("sh", &["-c", &format!("head -c 104857600 /dev/urandom >{}", file.display())]).ok();
    for transport in ["true", "false"] {
        let exec = |words: &[&str]| run(&mut by(&node, &format!("{spdy}={transport}"), words));
        assert_eq!(exec(&["exec", "web", "-c", "web", "--", "/demo", "hostname"]).ok(), "shop\n");
        assert!(exec(&["exec", "web", "-c", "web", "--", "/demo", "exit", "7"]).fails_with(7).contains("exit code 7"));
        assert!(exec(&["exec", "web", "-c", "web", "--", "/nope"]).fails_with(127).contains("No such file or directory"));
        assert!(
            exec(&["exec", "web", "-c", "nope", "--", "/demo"]).fails_with(1).contains("container nope is not valid for pod web")
        );
        // Much comes back whole.
        let script = format!(
            "{spdy}={transport} kubectl --kubeconfig {kubeconfig} exec -i web -c web -- /demo cat <{file} | cmp - {file}",
            kubeconfig = node.folder().join("kubeconfig").display(),
            file = file.display()
        );
        node.inside("sh", &["-c", &script]).ok();
    }
    // A terminal, as `script` makes one.
    let words = format!("kubectl --kubeconfig {} exec -it web -c web -- /demo tty", node.folder().join("kubeconfig").display());
    assert!(node.inside("script", &["-qec", &words, "/dev/null"]).ok().contains("a terminal"));
    let plain = run(&mut by(&node, &format!("{spdy}=false"), &["exec", "web", "-c", "web", "--", "/demo", "tty"])).ok();
    assert_eq!(plain, "not a terminal\n");
}

#[test]
fn attach_joins_what_a_container_writes() {
    let node = node();
    let attached = Running::start(&mut command(&node, &["attach", "web", "-c", "client"]));
    attached.says("shop: call");
    let attached = Running::start(&mut by(&node, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", &["attach", "web", "-c", "client"]));
    attached.says("shop: call");
}

#[test]
fn port_forward_carries_many_connections_while_one_is_stuck() {
    let node = node();
    let doors = node.put(&pod("doors").runs("lively", "serve --quiet").runs("stuck", "serve --port 9000"));
    doors.is_ready();
    // Of a connection inside the pod the kernel keeps little.
    let pid = doors.container("stuck").host_pid().to_string();
    let small = ["net.ipv4.tcp_wmem=4096 16384 65536", "net.ipv4.tcp_rmem=4096 16384 65536"];
    node.inside("nsenter", &[&["--target", &pid, "--net", "sysctl", "--write"], &small[..]].concat()).ok();
    let signal = |name: &str| node.inside("kill", &[name, &pid]).ok();
    for (transport, port, stuck) in [("true", "18080", "19000"), ("false", "18081", "19001")] {
        let variable = format!("KUBECTL_PORT_FORWARD_WEBSOCKETS={transport}");
        let ports = [format!("{port}:8080"), format!("{stuck}:9000")];
        let mut forward = Running::start(&mut by(&node, &variable, &["port-forward", "doors", &ports[0], &ports[1]]));
        forward.says(&format!("Forwarding from 127.0.0.1:{stuck}"));
        signal("-STOP");
        // One says nothing and reads nothing, to the end. To another, more is sent than the kernel keeps.
        let idle = Running::start(node.command("bash").args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 1000")]));
        let floods = Running::start(
            node.command("bash").args(["-c", &format!("head -c 3M /dev/zero >/dev/tcp/127.0.0.1/{stuck}; sleep 1000")]),
        );
        let url = format!("http://127.0.0.1:{port}/json");
        let script = format!(
            "for i in $(seq 30); do curl -sSf --max-time 20 {url} -o /dev/null & p=\"$p $!\"; done; for q in $p; do wait $q || exit 1; done"
        );
        let asked = node.inside("sh", &["-c", &script]).result();
        assert!(asked.is_ok() && forward.is_alive(), "{asked:?}\n{}", forward.output());
        signal("-CONT");
        drop((idle, floods));
    }
}

#[test]
fn delete_ends_a_pod_and_waits_for_it() {
    let node = node();
    let pod = node.pod("web");
    let id = pod.container("web").id();
    // Its manifest is there: it begins again.
    let output = kubectl(&node, &["delete", "pod", "web", "--grace-period", "1"]);
    assert!(output.stderr.contains("Warning: the pod's manifest is still there"), "{output}");
    pod.until("is another", |pod_object| {
        let status = pod.container("web").status(pod_object);
        let another = status["state"]["running"].is_object() && status["containerID"] != id.as_str();
        if another { Ok(()) } else { Err(status.to_string()) }
    });
    // Dry runs touch nothing.
    let id = pod.container("web").id();
    kubectl(&node, &["delete", "pod", "web", "--dry-run=server"]).ok();
    assert_eq!(pod.container("web").id(), id);
    assert!(kubectl(&node, &["delete", "pod", "nope"]).fails_with(1).contains("not found"));
}

/// A node with a busybox that has a shell as its first process, waiting for what is typed.
fn node_with_shells() -> NodeBox {
    let node = NodeBox::builder().with_registry().argument("--listen").argument(PORT).start();
    node.run(&["kubeconfig", "--output", node.folder().join("kubeconfig").to_str().unwrap()]).ok();
    node.put(&pod("box").shell("sh", "busybox", "sleep 100000"));
    node.put(&pod("plain").image("sh", "busybox", "command: [sh]\nstdin: true"));
    node.put(&pod("terminal").image("sh", "busybox", "command: [sh]\nstdin: true\ntty: true"));
    for name in ["box", "plain", "terminal"] {
        node.pod(name).is_ready();
    }
    node
}

#[test]
fn cp_brings_files_in_and_out() {
    let node = node_with_shells();
    let file = node.folder().join("file");
    node.inside("sh", &["-c", &format!("head -c 5000000 /dev/urandom >{}", file.display())]).ok();
    kubectl(&node, &["cp", file.to_str().unwrap(), "box:/tmp/file"]).ok();
    let back = node.folder().join("back");
    kubectl(&node, &["cp", "box:/tmp/file", back.to_str().unwrap()]).ok();
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&back).unwrap(), "the file comes back as it was");
}

#[test]
fn attach_types_into_a_shell_with_and_without_a_terminal() {
    let node = node_with_shells();
    for (transport, number) in [("true", 1), ("false", 2)] {
        let variable = format!("KUBECTL_REMOTE_COMMAND_WEBSOCKETS={transport}");
        let mut plain = Running::start(&mut by(&node, &variable, &["attach", "-i", "plain"]));
        // What is typed before the agent has joined the streams is not lost: it waits in them.
        plain.write(&format!("echo plain-$(({number} + 10))\n"));
        plain.says(&format!("plain-{}", number + 10));
    }
    // `script` gives kubectl the terminal that it wants for -t.
    let words = format!("kubectl --kubeconfig {} attach -it terminal", node.folder().join("kubeconfig").display());
    let mut terminal = Running::start(node.command("script").args(["-qec", &words, "/dev/null"]));
    terminal.write("echo terminal-$((20 + 1)) $(tty)\n");
    terminal.says("terminal-21 /dev/");
}

#[test]
fn a_window_has_the_size_of_the_users() {
    let node = node_with_shells();
    let kubeconfig = node.folder().join("kubeconfig");
    for (transport, client) in [
        ("true", format!("kubectl --kubeconfig {} exec -it box", kubeconfig.display())),
        ("false", format!("kubectl --kubeconfig {} exec -it box", kubeconfig.display())),
        ("", format!("{} --root {} exec -it box", e2e::binary("nodeagent").display(), node.root().display())),
    ] {
        let words = format!(
            "stty rows 33 cols 99; KUBECTL_REMOTE_COMMAND_WEBSOCKETS={transport} {client} -- sh -c 'until stty size | grep \"33 99\"; do sleep 0.1; done'"
        );
        let mut script = Running::start(node.command("script").args(["-qec", &words, "/dev/null"]));
        script.says("33 99");
        assert_eq!(script.ends(), 0, "{}", script.output());
    }
}

#[test]
fn image_pull_says_lines_in_a_pipe_and_bars_on_a_terminal() {
    let node = NodeBox::builder().with_registry().start();
    let output = node.run(&["image", "pull", "busybox"]);
    assert!(output.code == 0 && output.stderr.contains("busybox: ") && output.stderr.contains("complete"), "{output}");
    assert!(output.stdout.contains("sha256:"), "{output}");
    let listed = node.run(&["image", "ls"]).ok();
    assert!(listed.contains("docker.io/library/busybox:latest"), "{listed}");
    node.run(&["image", "rm", "busybox"]).ok();
    let words = format!("{} --root {} image pull busybox", e2e::binary("nodeagent").display(), node.root().display());
    let output = node.inside("script", &["-qec", &words, "/dev/null"]).ok();
    assert!(output.contains('[') && output.contains("complete"), "{output}");
    assert!(node.run(&["image", "pull", "busybox:nope"]).fails_with(1).contains("busybox:nope"));
    node.run(&["image", "prune"]).ok();
    assert!(!node.run(&["image", "ls"]).ok().contains("busybox"));
}

#[test]
fn debug_starts_a_container_in_a_running_pod() {
    let node = node();
    let words =
        ["debug", "web", "-c", "look", "--image", e2e::DEMO, "--target", "web", "--profile", "general", "--", "/demo", "sleep"];
    kubectl(&node, &words).ok();
    let web = node.pod("web");
    web.container("look").is_running();
    assert_eq!(kubectl(&node, &["exec", "web", "-c", "look", "--", "/demo", "echo", "here"]).ok(), "here\n");
    let fed = e2e::run(&mut command(
        &node,
        &["debug", "web", "-c", "said", "--image", e2e::DEMO, "--attach=false", "--", "/demo", "echo", "something"],
    ));
    fed.ok();
    web.container("said").exited_with(0);
    assert_eq!(kubectl(&node, &["logs", "web", "-c", "said"]).ok(), "something\n");
    assert!(kubectl(&node, &["describe", "pod", "web"]).ok().contains("Ephemeral Containers"));
    let patch = r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#;
    kubectl(&node, &["patch", "pod", "web", "--subresource=status", "-p", patch]).ok();
    let told =
        kubectl(&node, &["get", "pod", "web", "-o", "jsonpath={.status.conditions[?(@.type=='example.com/gate')].status}"]);
    assert_eq!(told.ok(), "True");
}
