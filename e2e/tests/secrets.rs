//! Secrets: whatever is asked, and whatever goes wrong, no value is shown but to who asks for a Secret by its name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Manifest, NodeBox, Output, assert_eventually, eventually, pod};
use rstest::rstest;

/// No test's output may have this.
const PASSWORD: &str = "correct-horse-battery-staple";
/// As `data` has it.
const ENCODED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ";

fn secret() -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\nstringData: {{password: {PASSWORD}}}\n")
}

/// Pods that have the value in every place where a pod can have one, and some that cannot start because of it.
fn users() -> Vec<Manifest> {
    let key = "{name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}";
    let env = format!(
        "env: [{key}, {{name: URL, value: 'db://$(PASSWORD)@db'}}, {{name: UP, value: '../..'}}]\nenvFrom: [{{prefix: ALL_, secretRef: {{name: login}}}}]"
    );
    let volumes = "volumes: [{name: s, secret: {secretName: login}}, {name: p, projected: {sources: [{secret: {name: login}}]}}, {name: e, emptyDir: {}}]";
    let mounts = "volumeMounts: [{name: s, mountPath: /s}, {name: p, mountPath: /p}, {name: s, mountPath: /one, subPath: password}, {name: e, mountPath: /e, subPathExpr: $(PASSWORD)}]";
    let mount = |volume: &str, expression: &str| {
        format!("{env}\nvolumeMounts: [{{name: {volume}, mountPath: /v, subPathExpr: {expression}}}]")
    };
    vec![
        pod("web").spec(volumes).runs_with("main", "sleep infinity --password=$(PASSWORD)", &format!("{env}\n{mounts}")),
        pod("no-command").runs_with("main", "", &format!("command: [/$(PASSWORD)]\n{env}")),
        pod("no-folder").spec(volumes).runs_with("main", "sleep", &mount("s", "$(PASSWORD)")),
        pod("no-way").spec(volumes).runs_with("main", "sleep", &mount("e", "$(PASSWORD)/$(UP)")),
        pod("no-key").runs_with("main", "sleep", "env: [{name: X, valueFrom: {secretKeyRef: {name: login, key: none}}}]"),
    ]
}

/// What the API answers to a GET.
fn get(node: &NodeBox, path: &str, accept: &str) -> Output {
    let socket = node.root().join("run/nodeagent/agent.sock");
    let header = format!("Accept: {accept}");
    let words = [
        "--silent",
        "--max-time",
        "20",
        "--unix-socket",
        socket.to_str().unwrap(),
        "-H",
        &header,
        &format!("http://agent{path}"),
    ];
    node.inside("curl", &words)
}

#[track_caller]
fn shows_none(what: &str, text: &str) {
    assert!(!text.contains(PASSWORD) && !text.contains(ENCODED), "{what}:\n{text}");
}

#[test]
fn no_answer_of_the_api_has_a_value() {
    let node = NodeBox::start();
    node.apply("login.yaml", &secret());
    for user in users() {
        node.put(&user);
    }
    node.pod("web").is_ready();
    node.pod("web").container("main").demo("read /s/password");
    for (name, why) in [
        ("no-command", "StartError"),
        ("no-folder", "RunContainerError"),
        ("no-way", "must not contain"),
        ("no-key", "couldn't find key none"),
    ] {
        node.pod(name).until("says why", |pod| {
            let said = pod["status"]["containerStatuses"].to_string();
            if said.contains(why) || said.contains("CrashLoopBackOff") { Ok(()) } else { Err(said) }
        });
        node.pod(name).tells(&["Failed"]);
    }
    let core = ["pods", "events", "nodes", "namespaces", "configmaps", "secrets", "services", "persistentvolumeclaims"];
    let mut lists: Vec<String> = core.iter().map(|kind| format!("/api/v1/{kind}")).collect();
    lists.extend(core.iter().filter(|kind| !kind.starts_with('n')).map(|kind| format!("/api/v1/namespaces/default/{kind}")));
    lists.extend(["apps/v1/deployments", "apps/v1/replicasets", "nodeagent.dev/v1/images"].map(|kind| format!("/apis/{kind}")));
    let mut paths: Vec<String> =
        ["/api", "/apis", "/api/v1", "/version", "/openapi/v2", "/metrics", "/apis/nodeagent.dev/v1/check"]
            .map(str::to_owned)
            .into();
    for user in users() {
        paths.push(format!("/api/v1/namespaces/default/pods/{}", user.name()));
        paths.extend(
            ["inspect", "explain"].map(|act| format!("/apis/nodeagent.dev/v1/namespaces/default/pods/{}/{act}", user.name())),
        );
    }
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for path in lists.iter().chain(&paths) {
        shows_none(path, &get(&node, path, "application/json").all());
        shows_none(path, &get(&node, &format!("{path}?includeObject=Object"), table).all());
    }
    // Each watch takes its second: all at once.
    std::thread::scope(|threads| {
        for path in &lists {
            for (accept, query) in [("application/json", ""), (table, "&includeObject=Object")] {
                let node = &node;
                threads.spawn(move || {
                    let watched = get(node, &format!("{path}?watch=true&timeoutSeconds=1{query}"), accept);
                    shows_none(path, &watched.all());
                });
            }
        }
    });
    // A Secret as a row of a table has none either, also by name and with its object.
    shows_none("a row", &get(&node, "/api/v1/namespaces/default/secrets/login?includeObject=Object", table).all());
    shows_none("the list of one", &get(&node, "/api/v1/secrets?fieldSelector=metadata.name%3Dlogin", "application/json").all());
}

#[test]
fn no_word_of_the_command_line_has_a_value() {
    let node = NodeBox::start();
    node.apply("login.yaml", &secret());
    for user in users() {
        node.put(&user);
    }
    let web = node.pod("web");
    web.is_ready();
    node.pod("no-command").tells(&["Failed", "<redacted>"]);
    for verb in ["describe", "inspect", "explain"] {
        for user in users() {
            shows_none(verb, &node.pod(user.name()).run(&[verb], &[]).all());
        }
    }
    let inspected = web.run(&["inspect"], &[]).ok();
    assert!(inspected.contains("--password=<redacted>"), "{inspected}");
    for words in [
        &["get", "pods,events,secrets,configmaps", "-A", "-o", "yaml"][..],
        &["get", "secrets", "-o", "json"],
        &["get", "secrets"],
        &["describe", "node"],
    ] {
        shows_none(&words.join(" "), &node.run(words).ok());
    }
    // What an edit would change, without what it would change to.
    let edited = node.folder().join("edited.yaml");
    std::fs::write(&edited, secret().replace("password:", "other:")).unwrap();
    let differs = node.run(&["diff", "-f", edited.to_str().unwrap()]);
    assert!(differs.all().contains("login"), "{differs}");
    shows_none("diff", &differs.all());
    let listed = node.run(&["get", "secrets"]).ok();
    assert!(listed.lines().any(|line| line.starts_with("login") && line.contains("Opaque") && line.contains('1')), "{listed}");
    assert!(node.run(&["get", "secrets", "-o", "json"]).ok().contains("nodeagent.dev/redacted"));
    // Who asks for it by name gets it.
    let named = node.run(&["get", "secret", "login", "-o", "json"]).ok();
    assert!(named.contains(ENCODED) && !named.contains("nodeagent.dev/redacted"), "{named}");
    shows_none("the agent's log", &node.agent_output());
    // Nothing of it is on the disk, but for the manifest and, in memory, what the pods have.
    let search = format!("find {} -xdev -type f -exec grep -l {PASSWORD} {{}} +", node.root().join("var").display());
    assert_eq!(node.inside("sh", &["-c", &search]).all(), "");
    let others = "find run -type f -perm /077 -exec grep -l";
    let search = format!("cd {}; {others} {PASSWORD} {{}} +", node.root().display());
    assert_eq!(node.inside("sh", &["-c", &search]).all(), "", "others can't read what is in /run");
}

/// Also when the agent tells all that it does, and a Secret is a login for a registry that isn't there.
#[test]
fn the_most_talkative_log_has_no_value() {
    let node = NodeBox::builder().argument("--log-level").argument("trace").start();
    node.apply("login.yaml", &secret());
    let login = format!("{{\"auths\": {{\"127.0.0.1:1\": {{\"username\": \"me\", \"password\": \"{PASSWORD}\"}}}}}}");
    node.apply(
        "registry.yaml",
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: registry}}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: '{login}'\n"
        ),
    );
    for user in users() {
        node.put(&user);
    }
    node.put(&pod("pulled").spec("imagePullSecrets: [{name: registry}]").image("main", "127.0.0.1:1/x:1", ""));
    node.pod("web").is_ready();
    node.pod("no-command").tells(&["Failed"]);
    let message = node.pod("pulled").until("says why", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().map(str::to_owned).ok_or_else(|| pod["status"].to_string())
    });
    shows_none("the status", &message);
    node.apply("login.yaml", &secret().replace("password:", "other:"));
    assert_eventually!(node.pod("web").container("main").exec(&["/demo", "read", "/s/other"]).stdout == PASSWORD);
    node.remove("web.yaml");
    node.pod("web").is_gone();
    let log = node.agent_output();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "it is talkative:\n{log}");
    shows_none("the agent's log", &log);
    // As a registry is told it.
    shows_none("the agent's log", &log.replace("bWU6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==", ENCODED));
}

/// Manifests that are wrong, each near the value.
#[rstest]
#[case::base64("data: {password: PASSWORD!}", "must be base64")]
#[case::a_list("stringData: {password: [PASSWORD]}", "must be a string, not a list")]
#[case::a_map("data: {password: {deep: PASSWORD}}", "must be a string, not a map")]
#[case::no_map("stringData: PASSWORD", "must be a map")]
#[case::a_list_of_them("data: [PASSWORD]", "must be a map")]
#[case::unknown_field("stringDate: {password: PASSWORD}", "unknown field")]
#[case::bad_key("stringData: {'not a key': PASSWORD}", "not a key")]
#[case::bad_json("type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: PASSWORD}", "must be a JSON object")]
#[case::broken_text("stringData: {password: PASSWORD", "wrong.yaml")]
#[case::broken_quotes("stringData: {password: \"PASSWORD}", "wrong.yaml")]
#[case::broken_indent("stringData:\n  password: PASSWORD\n more: x", "wrong.yaml")]
#[case::an_anchor("stringData: {password: *PASSWORD}", "wrong.yaml")]
#[case::a_tag("stringData: {password: !!int PASSWORD}", "wrong.yaml")]
#[case::twice("stringData: {password: PASSWORD, password: PASSWORD}", "wrong.yaml")]
#[case::bad_type("type: {a: PASSWORD}\nstringData: {password: PASSWORD}", "wrong.yaml")]
#[case::bad_immutable("immutable: PASSWORD\nstringData: {password: PASSWORD}", "wrong.yaml")]
fn a_wrong_secret_is_told_of_without_its_value(#[case] fields: &str, #[case] told: &str) {
    let node = NodeBox::start();
    let fields = fields.replace("PASSWORD", PASSWORD);
    node.apply("wrong.yaml", &format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\n{fields}\n"));
    eventually("the error is told", || {
        let said = node.agent_output();
        if said.contains("wrong.yaml:") && said.contains(told) { Ok(()) } else { Err(said) }
    });
    shows_none("the agent's log", &node.agent_output());
    node.tells(&["InvalidManifest", "wrong.yaml:"]);
    shows_none("the events", &node.events().join("\n"));
}

#[test]
fn a_secret_can_be_encrypted_on_the_disk() {
    use age::secrecy::ExposeSecret;
    use std::os::unix::fs::PermissionsExt;

    let key = age::x25519::Identity::generate();
    let keys = tempfile::tempdir().unwrap();
    let path = keys.path().join("key.txt");
    std::fs::write(&path, key.to_string().expose_secret()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nageIdentityFile: {}\n", path.display());
    let node = NodeBox::builder().config(&config).start();
    let volume = "volumes: [{name: login, secret: {secretName: login, defaultMode: 0400}}]";
    let mounts = "volumeMounts: [{name: login, mountPath: /etc/login}]";
    let web = node.put(&pod("web").spec(volume).runs_with("main", "sleep", mounts));
    let stranger = age::x25519::Identity::generate().to_public();
    node.apply("login.yaml.age", &age::encrypt_and_armor(&stranger, secret().as_bytes()).unwrap());
    assert_eventually!(node.agent_output().contains("login.yaml.age: decrypt with the keys of ageIdentityFile"), "it is refused");
    node.apply("login.yaml.age", &age::encrypt_and_armor(&key.to_public(), secret().as_bytes()).unwrap());
    web.is_ready();
    assert_eq!(web.container("main").demo("read /etc/login/password"), PASSWORD);
}
