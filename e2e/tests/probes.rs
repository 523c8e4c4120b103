//! Probes, from the user's side: what they gate, what their failure costs, what is told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, Pod, SHARED, assert_eventually, pod};

const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";

fn quick() -> NodeBox {
    NodeBox::builder().config(QUICK).start()
}

fn fast(handler: &str) -> String {
    format!("{{{handler}, periodSeconds: 1}}")
}

fn condition(pod: &Pod<'_>, kind: &str) -> (String, String) {
    let pod = pod.get().unwrap();
    let found = pod["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).cloned().unwrap();
    (found["status"].as_str().unwrap().into(), found["message"].as_str().unwrap_or_default().into())
}

#[test]
fn readiness_comes_and_goes_and_costs_no_restart() {
    let node = quick();
    // Each row: what is probed, and how what it looks for comes to be and goes.
    let handlers = [
        ("exec", "serve", "exec: {command: [/demo, read, /shared/up]}", "Readiness probe failed: demo: /shared/up"),
        ("http", "serve", "httpGet: {path: /exists/shared/up, port: web}", "statuscode: 503"),
        ("grpc", "grpc-health --port 9090 /shared/up", "grpc: {port: 9090, service: a.B}", "responded with \"NOT_SERVING\""),
    ];
    let pods: Vec<_> = handlers
        .iter()
        .map(|(name, words, handler, told)| {
            let fields = format!("{SHARED}\nports: [{{name: web, containerPort: 8080}}]\nreadinessProbe: {}", fast(handler));
            (node.put(&pod(name).shares_a_folder().runs_with("main", words, &fields)), told)
        })
        .collect();
    for (pod, told) in &pods {
        let main = pod.container("main");
        main.is_running();
        pod.tells(&["Unhealthy", told]);
        let status = main.status(&pod.get().unwrap());
        assert_eq!((&status["ready"], &status["started"]), (&false.into(), &true.into()), "{status}");
        assert_eq!(condition(pod, "Ready"), ("False".into(), "containers with unready status: [main]".into()));
        main.demo("write /shared/up yes");
        pod.is_ready();
        assert_eq!(condition(pod, "ContainersReady").0, "True");
    }
    // An agent that comes after knows what was ready.
    node.kill_agent();
    node.start_agent();
    pods.iter().for_each(|(pod, _)| drop(pod.is_ready()));
    let files = format!("rm {}/var/lib/nodeagent/pods/*/volumes/*/shared/up", node.root().display());
    node.inside("sh", &["-c", &files]).ok();
    for (pod, _) in &pods {
        pod.container("main").until("is not ready any more", |status| (status["ready"] == false).then_some(()));
        assert_eq!(pod.container("main").restarts(), 0);
    }
}

#[test]
fn a_failed_liveness_probe_restarts_its_container_alone() {
    let node = quick();
    let handlers = [
        ("exec", "exec: {command: [/demo, read, /nothing]}", "Liveness probe failed: demo: /nothing"),
        ("http", "httpGet: {path: /missing, port: 8080}", "Liveness probe failed: HTTP probe failed with statuscode: 404"),
        ("tcp", "tcpSocket: {port: 81}", "connect: connection refused"),
    ];
    for (name, handler, told) in handlers {
        let probe = format!("{{{handler}, periodSeconds: 1, failureThreshold: 2, terminationGracePeriodSeconds: 1}}");
        // One that ends when it is told to, and one that has to be killed when the probe's own grace period is over.
        let main = if name == "tcp" { "stubborn" } else { "serve" };
        let manifest = pod(name)
            .spec("terminationGracePeriodSeconds: 3600")
            .runs_with("main", main, &format!("livenessProbe: {probe}"))
            .runs("calm", "sleep");
        let pod = node.put(&manifest);
        pod.container("main").was_restarted(2);
        pod.tells(&["Unhealthy", told]);
        pod.tells(&["Killing", "Container main failed liveness probe, will be restarted"]);
        assert_eq!(pod.container("calm").restarts(), 0);
    }
}

#[test]
fn a_program_that_lives_is_left_alone() {
    let node = quick();
    let lives =
        |handler: &str| format!("livenessProbe: {{{handler}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 2}}");
    let pods = [
        ("exec", lives("exec: {command: [/demo, echo, alive]}")),
        ("http", lives("httpGet: {path: /healthz, port: 8080}")),
        ("redirected", lives("httpGet: {path: '/redirect?/healthz', port: 8080}")),
        ("tcp", lives("tcpSocket: {port: 8080}")),
    ];
    let pods = pods.map(|(name, fields)| node.put(&pod(name).runs_with("main", "serve", &fields)));
    // As many requests as a failing one would have needed for a restart, and more.
    for pod in &pods[1..3] {
        pod.container("main").is_running();
        assert_eventually!(pod.container("main").logs(&[]).matches("GET /healthz 200").count() >= 3, "it is probed");
    }
    for pod in &pods {
        pod.is_ready();
        assert_eq!(pod.container("main").restarts(), 0);
        assert!(!pod.events().iter().any(|event| event.starts_with("Unhealthy")), "{:?}", pod.events());
    }
}

#[test]
fn a_redirect_to_another_host_is_a_success_with_a_warning() {
    let node = quick();
    let probe = "readinessProbe: {httpGet: {path: '/redirect?http://192.0.2.1/', port: 8080}, periodSeconds: 1}";
    let pod = node.put(&pod("away").runs_with("main", "serve", probe));
    pod.is_ready();
    pod.tells(&["ProbeWarning", "Readiness probe warning: Probe terminated redirects, Response body: elsewhere"]);
}

#[test]
fn probes_say_who_they_are_and_what_they_were_given_to_say() {
    let node = quick();
    let get = "path: /headers, port: 8080, httpHeaders: [{name: Host, value: shop.example}, {name: X-Key, value: abc}]";
    let pod =
        node.put(&pod("heard").runs_with("main", "serve", &format!("livenessProbe: {}", fast(&format!("httpGet: {{{get}}}")))));
    let log = pod.container("main").logged("x-key: abc");
    for expected in ["host: shop.example", "user-agent: kube-probe/1.", "accept: */*"] {
        assert!(log.contains(expected), "{log}");
    }
    // From inside the pod: nobody else's address is in its log.
    let ip = pod.ip();
    let other = log.lines().filter(|line| line.contains("GET /headers")).find(|line| !line.starts_with(&ip));
    assert_eq!(other, None);
}

#[test]
fn the_host_field_is_asked_from_the_node() {
    let node = quick();
    let web = node.put(&pod("web").runs("main", "serve"));
    web.is_ready();
    let probe = fast(&format!("httpGet: {{host: {}, path: /healthz, port: 8080}}", web.ip()));
    let other = node.put(&pod("other").runs_with("main", "sleep", &format!("readinessProbe: {probe}")));
    other.is_ready();
    let on_host = fast("httpGet: {host: 127.0.0.1, path: /healthz, port: 8081}");
    let fields = format!("readinessProbe: {on_host}\nlivenessProbe: {}", fast("tcpSocket: {port: 8081}"));
    let host = node.put(&pod("host").spec("hostNetwork: true").runs_with("main", "serve --port 8081", &fields));
    host.is_ready();
    assert_eq!(host.container("main").restarts(), 0);
}

#[test]
fn nothing_else_is_probed_before_the_startup_probe_succeeds() {
    let node = quick();
    let fields = format!(
        "{SHARED}\nstartupProbe: {}\nlivenessProbe: {}\nreadinessProbe: {}",
        "{exec: {command: [/demo, read, /shared/started]}, periodSeconds: 1, failureThreshold: 600}",
        "{exec: {command: [/demo, read, /shared/started]}, periodSeconds: 1, failureThreshold: 1}",
        fast("exec: {command: [/demo, append, /shared/asked, x]}"),
    );
    let slow = node.put(&pod("slow").shares_a_folder().runs_with("main", "sleep", &fields));
    slow.tells(&["Unhealthy", "Startup probe failed"]);
    let main = slow.container("main");
    let status = main.status(&slow.get().unwrap());
    assert_eq!((&status["ready"], &status["started"]), (&false.into(), &false.into()), "{status}");
    main.exec(&["/demo", "read", "/shared/asked"]).fails();
    // Also an agent that comes after waits for it.
    node.kill_agent();
    node.start_agent();
    main.demo("write /shared/started yes");
    slow.is_ready();
    assert_eq!(main.restarts(), 0);
    assert!(!slow.events().iter().any(|event| event.contains("Liveness")), "{:?}", slow.events());
}

#[test]
fn a_startup_probe_that_never_succeeds_restarts_the_container() {
    let node = quick();
    let probe = "startupProbe: {exec: {command: [/demo, exit, '1']}, periodSeconds: 1, failureThreshold: 2}";
    let pod = node.put(&pod("never").runs_with("main", "sleep", probe));
    pod.container("main").was_restarted(1);
    pod.tells(&["Killing", "Container main failed startup probe, will be restarted"]);
}

#[test]
fn a_sidecar_that_has_started_lets_the_next_begin() {
    let node = quick();
    let probe = "startupProbe: {exec: {command: [/demo, read, /shared/up]}, periodSeconds: 1, failureThreshold: 600}";
    let side = format!("restartPolicy: Always\n{SHARED}\n{probe}");
    let manifest = pod("gated").shares_a_folder().first_runs("side", "sleep", &side).runs_with("main", "sleep", SHARED);
    let gated = node.put(&manifest);
    gated.tells(&["Unhealthy", "Startup probe failed"]);
    assert_eq!(gated.container("main").waits_because("PodInitializing"), "");
    assert_eq!(condition(&gated, "Initialized"), ("False".into(), "containers with incomplete status: [side]".into()));
    gated.container("side").demo("write /shared/up yes");
    gated.is_ready();
}

#[test]
fn one_that_is_never_restarted_fails_with_its_probe() {
    let node = quick();
    let probe = "livenessProbe: {exec: {command: [/demo, exit, '7']}, periodSeconds: 1, failureThreshold: 1}";
    let pod = node.put(
        &pod("once").spec("restartPolicy: Never").spec("terminationGracePeriodSeconds: 1").runs_with("main", "stubborn", probe),
    );
    pod.becomes("Failed");
    pod.tells(&["Killing", "Container main failed liveness probe"]);
    assert_eq!(pod.container("main").exited_with(137)["exitCode"], 137);
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_counts_as_a_failure() {
    let node = quick();
    let probe = "readinessProbe: {exec: {command: [/demo, sleep, '600']}, periodSeconds: 1, timeoutSeconds: 1}";
    let pod = node.put(&pod("late").runs_with("main", "sleep", probe));
    pod.tells(&["Unhealthy", "Readiness probe failed: command timed out", "timed out after 1s"]);
    // One at a time, whatever they take; and none is left.
    let late = || node.snapshot().facts("process").iter().filter(|process| process.contains("sleep 600")).count();
    assert!(late() <= 1);
    node.remove("late.yaml");
    pod.is_gone();
    assert_eventually!(late() == 0, "no process is left");
}

#[test]
fn a_readiness_gate_is_opened_by_whoever_it_is_for() {
    let node = quick();
    let gated =
        node.put(&pod("gated").spec("readinessGates: [{conditionType: example.com/load-balancer}]").runs("main", "sleep"));
    gated.container("main").is_running();
    assert_eventually!(condition(&gated, "ContainersReady").0 == "True", "its containers are ready");
    let (status, message) = condition(&gated, "Ready");
    assert_eq!(
        (status.as_str(), message.as_str()),
        ("False", "corresponding condition of pod readiness gate \"example.com/load-balancer\" does not exist.")
    );
    let patch = |status: &str| {
        let body = format!(r#"{{"status":{{"conditions":[{{"type":"example.com/load-balancer","status":"{status}"}}]}}}}"#);
        let socket = format!("{}/run/nodeagent/agent.sock", node.root().display());
        let url = "http://nodeagent/api/v1/namespaces/default/pods/gated/status";
        let kind = "Content-Type: application/strategic-merge-patch+json";
        node.inside("curl", &["-sS", "--fail", "--unix-socket", &socket, "-X", "PATCH", "-H", kind, "-d", &body, url]).ok();
    };
    patch("False");
    assert!(condition(&gated, "Ready").1.contains("is not \"True\", but False"));
    patch("True");
    gated.is_ready();
    node.kill_agent();
    node.start_agent();
    gated.is_ready();
}
