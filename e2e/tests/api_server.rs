//! A node whose API server answers wrongly: what is said, and that nothing is lost by it.
#![allow(clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::{ApiServer, Asked, Builder, NodeBox, Trouble, eventually, pod};
use rstest::rstest;
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/node";

fn node() -> NodeBox {
    builder().start()
}

fn builder() -> Builder {
    NodeBox::builder().argument("--network").argument("bridge").argument("--pod-cidr").argument("10.85.0.0/16").without_agent()
}

/// Starts the agent as a node of that cluster.
fn join(node: &NodeBox, server: &ApiServer) {
    let mut command = node.agent_command();
    command.arg("--kubeconfig").arg(server.kubeconfig("{token: t}"));
    node.start_agent_with(command, "");
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn a_pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}")},
        "spec": {"nodeName": "node", "restartPolicy": "Always", "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "containers": [{"name": "main", "image": "localhost/nodeagent-demo:latest", "imagePullPolicy": "Never", "args": ["sleep"]}]}})
}

/// Waits until the API server was told that the pod runs.
fn is_told(server: &ApiServer, name: &str) {
    eventually(&format!("the API server knows that {name} runs"), || match server.get(&path(name)) {
        Some(pod) if pod["status"]["phase"] == "Running" => Ok(()),
        pod => Err(format!("{pod:?}")),
    });
}

fn says(node: &NodeBox, words: &str) {
    eventually(&format!("the agent says {words:?}"), || {
        let output = node.agent_output();
        if output.contains(words) { Ok(()) } else { Err(output) }
    });
}

#[test]
fn labels_and_taints_that_others_gave_the_node_count() {
    let node = node();
    let server = ApiServer::beside(&node);
    let taints = json!([{"key": "flood", "effect": "NoExecute"}]);
    server.put(NODE, json!({"metadata": {"name": "node", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}}));
    let wants = |name: &str, label: Value, tolerations: Value| {
        let mut pod = a_pod(name);
        (pod["spec"]["nodeSelector"], pod["spec"]["tolerations"]) = (label, tolerations);
        server.put(&path(name), pod);
    };
    let all = json!([{"operator": "Exists"}]);
    wants("fast", json!({"disk": "ssd"}), all.clone());
    wants("slow", json!({"disk": "hdd"}), all.clone());
    wants("dry", json!({}), json!([]));
    join(&node, &server);
    is_told(&server, "fast");
    assert_eq!(is_over(&node, &server, "slow", "Failed")["reason"], "NodeAffinity");
    assert_eq!(is_over(&node, &server, "dry", "Failed")["reason"], "TaintToleration");
    // Files' pods are here whatever the taints.
    node.put(&pod("ours").spec("nodeSelector: {disk: ssd}").runs("main", "sleep")).is_ready();

    // This server tells nobody that the Node has changed: it is looked at when a pod comes for a label that isn't known.
    let mut labelled = server.get(NODE).expect("the Node is there");
    labelled["metadata"]["labels"]["gpu"] = json!("yes");
    server.put(NODE, labelled);
    wants("late", json!({"gpu": "yes"}), all);
    is_told(&server, "late");
    // What runs is left alone when a label goes.
    let mut bare = server.get(NODE).expect("the Node is there");
    bare["metadata"]["labels"] = json!({});
    server.put(NODE, bare);
    let id = node.pod("late").container("main").id();
    node.kill_agent();
    join(&node, &server);
    is_told(&server, "late");
    assert_eq!(node.pod("late").container("main").id(), id);
}

#[rstest]
#[case::who_are_you(Trouble::Status(401), "scripted: Unauthorized (401)")]
#[case::you_may_not(Trouble::Status(403), "scripted: Forbidden (403)")]
#[case::not_so_fast(Trouble::Status(429), "scripted: TooManyRequests (429)")]
#[case::out_of_order(Trouble::Status(500), "scripted: InternalError (500)")]
#[case::behind_a_proxy(Trouble::Status(503), "scripted: InternalError (503)")]
#[case::half_an_answer(Trouble::Cut("{\"kind\": \"Node\", \"meta"), "could not be registered")]
#[case::another_kind_of_server(Trouble::Body("<html>welcome</html>"), "could not be registered")]
#[case::nothing(Trouble::Nothing, "could not be registered")]
#[case::silence(Trouble::Silence, "could not be registered")]
fn files_run_whatever_the_api_server_says_and_its_pods_when_it_is_right_again(#[case] trouble: Trouble, #[case] words: &str) {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("theirs"), a_pod("theirs"));
    server.rule(move |_| Some(trouble.clone()));
    let ours = node.put(&pod("ours").runs("main", "sleep"));
    join(&node, &server);
    ours.is_ready();
    says(&node, words);
    assert!(node.pod("theirs").get().is_none());
    server.behave();
    is_told(&server, "theirs");
    assert!(server.get(NODE).is_some());
    ours.is_ready();
}

#[rstest]
#[case::conflict(409)]
#[case::not_so_fast(429)]
#[case::out_of_order(500)]
fn a_state_that_is_refused_is_told_again(#[case] code: u16) {
    let node = node();
    let server = ApiServer::beside(&node);
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    let first = move |asked: &Asked| {
        let concerned = asked.is("PATCH", &path("web")) && count.fetch_add(1, Ordering::Relaxed) < 2;
        concerned.then_some(Trouble::Status(code))
    };
    server.rule(first);
    server.put(&path("web"), a_pod("web"));
    join(&node, &server);
    is_told(&server, "web");
    assert!(refused.load(Ordering::Relaxed) > 2);
    says(&node, "it is tried again");
    assert_eq!(node.pod("web").container("main").restarts(), 0);
}

#[rstest]
#[case::cut(Trouble::Cut("{\"type\": \"ADDED\", \"object\": {\"kind\": \"Po"))]
#[case::garbage(Trouble::Cut("hello\n"))]
#[case::expired(Trouble::Cut(
    "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n"
))]
#[case::gone(Trouble::Status(410))]
fn a_watch_that_breaks_is_begun_anew_and_misses_nothing(#[case] trouble: Trouble) {
    let node = node();
    let server = ApiServer::beside(&node);
    for name in ["stays", "goes"] {
        server.put(&path(name), a_pod(name));
    }
    join(&node, &server);
    for name in ["stays", "goes"] {
        is_told(&server, name);
    }
    let id = node.pod("stays").container("main").id();
    // What happens while nobody can listen: one pod goes, one comes.
    let broken = Arc::new(AtomicUsize::new(0));
    let count = broken.clone();
    server.rule(move |asked| {
        let concerned = asked.is("GET", "/api/v1/pods?") && asked.watches() && count.fetch_add(1, Ordering::Relaxed) < 2;
        concerned.then(|| trouble.clone())
    });
    node.kill_agent();
    server.lose(&path("goes"));
    server.put(&path("comes"), a_pod("comes"));
    join(&node, &server);
    is_told(&server, "comes");
    node.pod("goes").is_gone();
    eventually("the watch was broken twice", || {
        let times = broken.load(Ordering::Relaxed);
        if times > 2 { Ok(()) } else { Err(times.to_string()) }
    });
    server.put(&path("late"), a_pod("late"));
    is_told(&server, "late");
    assert_eq!(node.pod("stays").container("main").id(), id);
}

#[test]
fn a_newer_api_servers_fields_do_no_harm() {
    let node = node();
    let server = ApiServer::beside(&node);
    let mut pod = a_pod("new");
    pod["spec"]["quantumPlacement"] = json!({"superposed": true});
    pod["spec"]["containers"][0]["aura"] = json!(["blue"]);
    pod["status"] = json!({"phase": "Pending", "mood": "fine"});
    server.put(&path("new"), pod);
    join(&node, &server);
    is_told(&server, "new");
    assert_eq!(server.get(&path("new")).expect("it is there")["status"]["mood"], "fine");
}

/// The pod as somebody has asked it to end.
fn ending(name: &str, finalizers: &Value) -> Value {
    let mut pod = asked_to_end(a_pod(name));
    pod["metadata"]["finalizers"] = finalizers.clone();
    pod
}

fn asked_to_end(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    pod
}

#[test]
fn a_deletion_is_told_until_it_is_heard() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    join(&node, &server);
    is_told(&server, "web");
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    server.rule(move |asked| {
        (asked.is("DELETE", &path("web")) && count.fetch_add(1, Ordering::Relaxed) < 2).then_some(Trouble::Status(500))
    });
    server.put(&path("web"), ending("web", &json!([])));
    eventually("the pod is gone from the API server", || match server.get(&path("web")) {
        None => Ok(()),
        Some(pod) => Err(pod.to_string()),
    });
    node.pod("web").is_gone();
    let deletion = server.asked().into_iter().rfind(|asked| asked.is("DELETE", &path("web"))).expect("it was asked");
    assert_eq!(deletion.body["gracePeriodSeconds"], 0);
    assert_eq!(deletion.body["preconditions"]["uid"], "uid-of-web");
}

/// Whoever has a finalizer on a pod waits for the last word about it: a phase that it stays in, whatever its restart policy.
#[rstest]
#[case::runs_and_ignores_its_signal("stubborn", "Failed")]
#[case::ends_well("sleep", "Succeeded")]
fn a_pod_that_others_keep_is_over_and_begins_no_more(#[case] command: &str, #[case] phase: &str) {
    let node = node();
    let server = ApiServer::beside(&node);
    let mut pod = a_pod("kept");
    pod["spec"]["containers"][0]["args"] = json!([command]);
    server.put(&path("kept"), pod);
    join(&node, &server);
    is_told(&server, "kept");
    let mut pod = ending("kept", &json!(["example.com/mine"]));
    pod["spec"]["containers"][0]["args"] = json!([command]);
    pod["status"] = server.get(&path("kept")).expect("it is there")["status"].clone();
    server.put(&path("kept"), pod);
    let is_over = || {
        eventually("the pod is over and kept", || {
            let pod = server.get(&path("kept")).ok_or("it is gone")?;
            let over = pod["status"]["phase"] == phase && pod["metadata"]["deletionGracePeriodSeconds"] == 0;
            if over { Ok(pod["status"].clone()) } else { Err(pod.to_string()) }
        })
    };
    let told = is_over();
    assert!(told["containerStatuses"][0]["state"]["terminated"].is_object() && told["hostIP"].is_string(), "{told}");
    node.pod("kept").is_gone();

    let lists = || server.asked().iter().filter(|asked| asked.is("GET", "/api/v1/pods?") && !asked.watches()).count();
    let (deletions, listed) = (|| server.asked().iter().filter(|asked| asked.is("DELETE", &path("kept"))).count(), lists());
    let before = deletions();
    node.kill_agent();
    join(&node, &server);
    eventually("another agent has heard of it, and asks that it go", || {
        if lists() > listed && deletions() > before { Ok(()) } else { Err(node.agent_output()) }
    });
    assert_eq!(is_over(), told, "what was told of it stays");
    assert!(node.pod("kept").get().is_none());
    assert!(!server.asked().iter().any(|asked| asked.method == "PATCH" && asked.body["metadata"].get("finalizers").is_some()));
    let mut pod = server.get(&path("kept")).expect("it is there");
    pod["metadata"]["finalizers"] = json!([]);
    server.put(&path("kept"), pod);
    assert!(server.get(&path("kept")).is_none());
}

/// Nobody saw the end of what ran when the machine went down.
#[test]
fn a_pod_that_was_asked_to_end_while_its_machine_was_down_has_failed() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("kept"), a_pod("kept"));
    join(&node, &server);
    is_told(&server, "kept");
    node.reboot();
    let mut pod = ending("kept", &json!(["example.com/mine"]));
    pod["status"] = server.get(&path("kept")).expect("it is there")["status"].clone();
    server.put(&path("kept"), pod);
    join(&node, &server);
    let status = eventually("the pod has failed", || {
        let pod = server.get(&path("kept")).ok_or("it is gone")?;
        if pod["status"]["phase"] == "Failed" { Ok(pod["status"].clone()) } else { Err(pod.to_string()) }
    });
    let end = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("ContainerStatusUnknown"), &json!(137)), "{status}");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_told_with_its_path() {
    let node = node();
    let tells = |file: &str, words: &[&str]| {
        let mut command = node.agent_command();
        command.arg("--kubeconfig").arg(node.folder().join(file));
        let output = e2e::run(&mut command);
        assert_eq!(output.code, 1, "{output}");
        assert!(words.iter().all(|word| output.stderr.contains(word)) && output.stderr.contains(file), "{output}");
    };
    tells("missing.kubeconfig", &["--kubeconfig", "No such file"]);
    std::fs::write(node.folder().join("text.kubeconfig"), "hello").expect("the folder can be written");
    tells("text.kubeconfig", &["--kubeconfig"]);
    std::fs::write(node.folder().join("none.kubeconfig"), "apiVersion: v1\nkind: Config\n").expect("the folder can be written");
    tells("none.kubeconfig", &["--kubeconfig", "context"]);
}

#[test]
fn a_certificate_that_has_expired_is_told_and_its_replacement_is_taken() {
    let node = node();
    let server = ApiServer::beside(&node);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(2025, 1, 1));
    let (certificate, key_file) = (node.folder().join("client.pem"), node.folder().join("client.key"));
    std::fs::write(&certificate, params.self_signed(&key).expect("a certificate").pem()).expect("the folder can be written");
    std::fs::write(&key_file, key.serialize_pem()).expect("the folder can be written");
    server.rule(|_| Some(Trouble::Status(401)));
    let mut command = node.agent_command();
    let user = format!("{{client-certificate: {}, client-key: {}}}", certificate.display(), key_file.display());
    command.arg("--kubeconfig").arg(server.kubeconfig(&user));
    node.start_agent_with(command, "");
    says(&node, "expired");
    says(&node, "2025-01-01T00:00:00Z");
    says(&node, "Unauthorized");
    // Somebody renews it.
    server.behave();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(2124, 1, 1));
    std::fs::write(&certificate, params.self_signed(&key).expect("a certificate").pem()).expect("the folder can be written");
    says(&node, "the way to the API server was read again");
    eventually("the node is registered", || server.get(NODE).map(drop).ok_or_else(|| node.agent_output()));
}

/// Starts the agent with this kubeconfig.
fn join_by(node: &NodeBox, kubeconfig: &std::path::Path) {
    let mut command = node.agent_command();
    command.arg("--kubeconfig").arg(kubeconfig);
    node.start_agent_with(command, "");
}

#[test]
fn a_kubeconfig_with_another_server_is_followed() {
    let node = node();
    let mut server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    join_by(&node, &server.kubeconfig_to(1, "{token: t}"));
    says(&node, "could not be registered");
    server.kubeconfig("{token: t}");
    is_told(&server, "web");
    let pid = node.agent_pid();
    // It moves, and who listens at the old place hears nothing there.
    server.moves(&node);
    server.kubeconfig("{token: t}");
    server.put(&path("new"), a_pod("new"));
    is_told(&server, "new");
    assert_eq!((node.agent_pid(), node.pod("web").container("main").restarts()), (pid, 0));
}

#[test]
fn a_kubeconfig_with_another_token_is_followed() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    server.rule(|asked| (asked.authorization != "Bearer right").then_some(Trouble::Status(401)));
    join_by(&node, &server.kubeconfig("{token: wrong}"));
    says(&node, "Unauthorized");
    server.kubeconfig("{token: right}");
    is_told(&server, "web");
    // And once more, as it works.
    server.rule(|asked| (asked.authorization != "Bearer other").then_some(Trouble::Status(401)));
    server.kubeconfig("{token: other}");
    server.put(&path("late"), a_pod("late"));
    is_told(&server, "late");
}

/// A pod with a token of its service account.
fn with_token(name: &str) -> Value {
    let mut pod = a_pod(name);
    pod["spec"]["serviceAccountName"] = json!("default");
    pod["spec"]["volumes"] =
        json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "t", "mountPath": "/t"}]);
    pod
}

fn tokens(server: &ApiServer) -> usize {
    server.asked().iter().filter(|asked| asked.method == "POST" && asked.path.contains("/token")).count()
}

#[test]
fn a_token_is_another_in_the_running_pod_before_it_ends() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.tokens_live(10);
    server.put(&path("web"), with_token("web"));
    join(&node, &server);
    is_told(&server, "web");
    let read = || node.pod("web").container("main").demo("read /t/token");
    let first = read();
    assert!(first.starts_with("eyJ"), "{first}");
    let id = node.pod("web").container("main").id();
    let second =
        eventually("the token in the pod is another", || Some(read()).filter(|now| *now != first).ok_or_else(|| first.clone()));
    assert!(second.starts_with("eyJ"), "{second}");
    assert_eq!((node.pod("web").container("main").restarts(), node.pod("web").container("main").id()), (0, id));
}

#[rstest]
#[case::behind(7200, "behind")]
#[case::ahead(-7200, "ahead")]
fn a_clock_that_is_not_the_api_servers_is_told_and_harms_no_token(#[case] ahead: i64, #[case] way: &str) {
    let node = node();
    let server = ApiServer::beside(&node);
    server.clock_is_ahead(ahead);
    server.rule(|_| Some(Trouble::Status(401)));
    server.put(&path("web"), with_token("web"));
    join(&node, &server);
    // Why it isn't let in, perhaps.
    says(&node, "s off from the API server's");
    node.tells(&["ClockSkewed", "this machine's clock is 7", way]);
    server.behave();
    is_told(&server, "web");
    // Tokens have ended or begin tomorrow, by the clock here.
    let leases = || server.asked().iter().filter(|asked| asked.is("PUT", "/apis/coordination.k8s.io/")).count();
    let before = leases();
    eventually("the lease was renewed twice", || if leases() >= before + 2 { Ok(()) } else { Err(node.agent_output()) });
    assert_eq!(tokens(&server), 1);
    server.clock_is_ahead(0);
    node.tells(&["ClockMended"]);
}

/// What was true when the first word was on its way isn't written over what is true now.
#[test]
fn an_older_state_is_never_told_over_a_newer_one() {
    let node = node();
    let server = ApiServer::beside(&node);
    let first = Arc::new(AtomicUsize::new(0));
    let count = first.clone();
    server.rule(move |asked| {
        (asked.is("PATCH", &path("web")) && count.fetch_add(1, Ordering::Relaxed) == 0).then_some(Trouble::Held)
    });
    let mut pod = a_pod("web");
    pod["spec"]["restartPolicy"] = json!("Never");
    server.put(&path("web"), pod);
    join(&node, &server);
    let told = || -> Vec<String> {
        let patches = server.asked().into_iter().filter(|asked| asked.is("PATCH", &path("web")));
        patches.map(|asked| asked.body["status"]["phase"].as_str().unwrap_or_default().to_owned()).collect()
    };
    node.pod("web").container("main").is_running();
    eventually("the first word is on its way", || if told().is_empty() { Err(node.agent_output()) } else { Ok(()) });
    let pid = node.pod("web").container("main").host_pid().to_string();
    node.inside("kill", &["-KILL", &pid]).ok();
    node.pod("web").becomes("Failed");
    // Another pod's word goes its own way, and hears that ours waits.
    server.put(&path("other"), a_pod("other"));
    is_told(&server, "other");
    assert_eq!(told().len(), 1, "one word about a pod at a time: {:?}", told());
    server.release();
    eventually("the last word stands", || match server.get(&path("web")) {
        Some(pod) if pod["status"]["phase"] == "Failed" => Ok(()),
        pod => Err(format!("{pod:?}")),
    });
    server.put(&path("more"), a_pod("more"));
    is_told(&server, "more");
    assert_eq!(told().last().map(String::as_str), Some("Failed"), "{:?}", told());
    assert_eq!(server.get(&path("web")).expect("it is there")["status"]["phase"], "Failed");
}

#[test]
fn a_start_is_told_in_the_kubelets_words_also_of_a_files_pod() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    node.put(&pod("ours").runs_with("main", "sleep", "imagePullPolicy: Never"));
    join(&node, &server);
    is_told(&server, "web");
    let told = |name: &str| -> Vec<(String, String, String)> {
        let posted = server.asked().into_iter().filter(|asked| asked.is("POST", "/api/v1/namespaces/default/events"));
        let about = posted.map(|asked| asked.body).filter(|event| event["involvedObject"]["name"] == name);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        about.map(|event| (text(&event["reason"]), text(&event["message"]), text(&event["involvedObject"]["uid"]))).collect()
    };
    let image = "Container image \"localhost/nodeagent-demo:latest\" already present on machine and can be accessed by the pod";
    let expected = [("Pulled", image), ("Created", "Container created"), ("Started", "Container started")];
    let all = |name: &str| {
        eventually(&format!("the API server has the events of {name}"), || {
            let told = told(name);
            let words: Vec<(&str, &str)> = told.iter().map(|(reason, message, _)| (reason.as_str(), message.as_str())).collect();
            if words == expected { Ok(told) } else { Err(format!("{words:?}\n{}", node.agent_output())) }
        })
    };
    assert!(all("web").iter().all(|(_, _, uid)| uid == "uid-of-web"));
    // Those of a file's pod are about its mirror, by the version that kubectl looks for.
    let mirror = eventually("the mirror is there", || server.get(&path("ours-node")).ok_or_else(|| node.agent_output()));
    let version = &mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"];
    assert!(all("ours-node").iter().all(|(_, _, uid)| version == uid.as_str()), "{version}");
}

/// How often the node has said that it is alive.
fn renewals(server: &ApiServer) -> usize {
    server.asked().iter().filter(|asked| renews(asked)).count()
}

fn renews(asked: &Asked) -> bool {
    asked.is("PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node")
}

#[test]
fn a_start_is_told_in_few_words_and_an_idle_node_says_no_more_than_that_it_is_alive() {
    let node = builder().with_registry().start();
    let server = ApiServer::beside(&node);
    let names: Vec<String> = (0..10).map(|number| format!("web-{number}")).collect();
    for name in &names {
        server.put(&path(name), with_token(name));
    }
    join(&node, &server);
    for name in &names {
        is_told(&server, name);
    }
    let wait = |more: usize| {
        let until = renewals(&server) + more;
        eventually("the lease is renewed", || if renewals(&server) >= until { Ok(()) } else { Err(node.agent_output()) });
    };
    // Until events and what the node has found out of itself are told.
    wait(2);
    let before = server.asked().len();
    wait(3);
    let asked = server.asked().split_off(before);
    let others = |asked: &[Asked]| -> Vec<String> {
        asked.iter().filter(|asked| !renews(asked)).map(|asked| format!("{} {}", asked.method, asked.path)).collect()
    };
    assert_eq!(others(&asked), [""; 0], "the node and its pods are as they were");

    // What is new of the node is told, once.
    let before = server.asked().len();
    node.run(&["image", "pull", "busybox"]).ok();
    wait(2);
    let asked = server.asked().split_off(before);
    let states: Vec<&Asked> = asked.iter().filter(|asked| asked.is("PATCH", "/api/v1/nodes/node/status")).collect();
    assert_eq!(states.len(), 1, "{:?}", others(&asked));
    assert!(states[0].body["status"]["images"].to_string().contains("busybox"), "{}", states[0].body);

    for name in &names {
        let patches = server.asked().into_iter().filter(|asked| asked.is("PATCH", &path(name)));
        let told: Vec<Value> = patches.map(|asked| asked.body["status"].clone()).collect();
        // That it begins, and that it has an address, where these take a moment; that it runs.
        let phases: Vec<&Value> = told.iter().map(|status| &status["phase"]).collect();
        assert!(phases.len() <= 3 && phases.iter().filter(|phase| ***phase == "Running").count() == 1, "{name}: {told:#?}");
        assert!(told.iter().all(|status| told.iter().filter(|other| *other == status).count() == 1), "{name}: {told:#?}");
    }
}

/// Waits until the API server has heard that it is over, and gives what it was told.
fn is_over(node: &NodeBox, server: &ApiServer, name: &str, phase: &str) -> Value {
    eventually(&format!("the API server knows that {name} is {phase}"), || match server.get(&path(name)) {
        Some(pod) if pod["status"]["phase"] == phase => Ok(pod["status"].clone()),
        pod => Err(format!("{pod:?}\n{}", node.agent_output())),
    })
}

#[test]
fn a_pod_of_the_api_server_is_not_stopped_here() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    join(&node, &server);
    is_told(&server, "web");
    let refused = node.run(&["stop", "web"]).fails_with(1);
    assert!(refused.contains("is the API server's"), "{refused}");
    is_told(&server, "web");
    assert_eq!(node.pod("web").container("main").restarts(), 0);
}

/// A phase that a pod of the API server stays in: a controller has made another in its place.
#[test]
fn a_pod_that_was_turned_away_has_failed_for_good() {
    let node = node();
    let server = ApiServer::beside(&node);
    let greedy = |name: &str| {
        let mut pod = a_pod(name);
        let half = std::thread::available_parallelism().expect("a number").get() * 600;
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{half}m")}});
        pod
    };
    server.put(&path("first"), greedy("first"));
    join(&node, &server);
    is_told(&server, "first");
    server.put(&path("second"), greedy("second"));
    let told = is_over(&node, &server, "second", "Failed");
    assert_eq!(told["reason"], "OutOfcpu", "{told}");
    server.put(&path("first"), asked_to_end(greedy("first")));
    node.pod("first").is_gone();
    // There is room for another by now.
    server.put(&path("third"), greedy("third"));
    is_told(&server, "third");
    assert_eq!(is_over(&node, &server, "second", "Failed"), told);
    node.kill_agent();
    join(&node, &server);
    is_told(&server, "third");
    server.put(&path("more"), a_pod("more"));
    is_told(&server, "more");
    assert_eq!(is_over(&node, &server, "second", "Failed"), told);
    assert_eq!(node.pod("second").get().expect("it is there")["status"]["reason"], "OutOfcpu");
    server.put(&path("second"), asked_to_end(greedy("second")));
    eventually("it is gone from the API server", || server.get(&path("second")).map_or(Ok(()), |pod| Err(pod.to_string())));
    let left = node.root().join("var/lib/nodeagent/pods/uid-of-second");
    eventually("nothing is left of it", || if left.exists() { Err(left.display().to_string()) } else { Ok(()) });
}

fn never(name: &str, words: &Value) -> Value {
    let mut pod = a_pod(name);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["args"] = words.clone();
    pod
}

#[test]
fn what_has_completed_is_no_more_run_whatever_becomes_of_its_image() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("job"), never("job", &json!(["exit", "0"])));
    join(&node, &server);
    let told = is_over(&node, &server, "job", "Succeeded");
    let mut pod = server.get(&path("job")).expect("it is there");
    pod["spec"]["containers"][0]["image"] = json!("localhost/other:latest");
    server.put(&path("job"), pod);
    for agent in ["this", "another"] {
        // Whoever has heard of this pod has heard of that edit.
        server.put(&path(agent), a_pod(agent));
        is_told(&server, agent);
        let status = is_over(&node, &server, "job", "Succeeded");
        let here = node.pod("job").get().expect("it is there")["status"].clone();
        for status in [status, here] {
            assert_eq!(status["phase"], "Succeeded", "{status}");
            assert_eq!(status["containerStatuses"][0]["state"], told["containerStatuses"][0]["state"]);
        }
        if agent == "this" {
            node.kill_agent();
            join(&node, &server);
        }
    }
}

#[test]
fn what_never_restarts_has_failed_when_its_machine_went_down() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("never"), never("never", &json!(["sleep"])));
    server.put(&path("always"), a_pod("always"));
    join(&node, &server);
    is_told(&server, "never");
    is_told(&server, "always");
    node.reboot();
    join(&node, &server);
    let told = is_over(&node, &server, "never", "Failed");
    let status = &told["containerStatuses"][0];
    let end = &status["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"], &status["restartCount"]),
        (&json!("ContainerStatusUnknown"), &json!(137), &json!(0))
    );
    node.pod("always").container("main").was_restarted(1);
    is_told(&server, "always");
}

#[test]
fn what_another_agent_tells_has_the_times_of_before() {
    let node = node();
    let server = ApiServer::beside(&node);
    server.put(&path("web"), a_pod("web"));
    server.put(&path("job"), never("job", &json!(["exit", "3"])));
    join(&node, &server);
    is_told(&server, "web");
    is_over(&node, &server, "job", "Failed");
    let told = |name: &str| server.asked().iter().filter(|asked| asked.is("PATCH", &path(name))).count();
    let of_the_job = told("job");
    let scheduled = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let of = conditions.into_iter().find(|c| c["type"] == "PodScheduled").unwrap_or_default();
        of["lastTransitionTime"].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok()).expect("a time")
    };
    let was = scheduled(&server.get(&path("web")).expect("it is there"));
    // Times are told in seconds.
    std::thread::sleep(std::time::Duration::from_secs(3));
    node.kill_agent();
    join(&node, &server);
    let pid = node.pod("web").container("main").host_pid().to_string();
    node.inside("kill", &["-KILL", &pid]).ok();
    let is = eventually("its restart is told", || {
        let pod = server.get(&path("web")).ok_or("it is gone")?;
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        if restarts >= Some(1) { Ok(scheduled(&pod)) } else { Err(pod.to_string()) }
    });
    assert!(is.duration_since(was).abs() <= jiff::SignedDuration::from_secs(1), "{was} is {is}");
    // Of the other one nothing has changed.
    server.put(&path("more"), a_pod("more"));
    is_told(&server, "more");
    assert_eq!(told("job"), of_the_job);
}
