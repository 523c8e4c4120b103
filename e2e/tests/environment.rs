//! Every source of an environment variable, and every place that variables can be used in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Container, NodeBox, assert_eventually, pod};

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {color: blue, Dotted.key: d}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: pass-word}
---
apiVersion: v1
kind: Service
metadata: {name: data-base}
spec: {clusterIP: 10.96.0.7, ports: [{name: sql, port: 5432}, {name: more, port: 5433, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: elsewhere}
spec: {clusterIP: 10.96.0.8, ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: kubernetes}
spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]}
";

#[track_caller]
fn has(container: &Container<'_>, expected: &[&str]) {
    let env = container.demo("env");
    let lines: Vec<&str> = env.lines().collect();
    for line in expected {
        assert!(lines.contains(line), "{line} is not in\n{env}");
    }
}

#[test]
fn a_variable_can_come_from_everywhere() {
    let node = NodeBox::start();
    node.apply("objects.yaml", OBJECTS);
    let field = |name: &str, path: &str| format!("{{name: {name}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}");
    let resource = |name: &str, which: &str, divisor: &str| {
        format!("{{name: {name}, valueFrom: {{resourceFieldRef: {{resource: {which}, divisor: {divisor}}}}}}}")
    };
    let vars = [
        field("NAME", "metadata.name"),
        field("SPACE", "metadata.namespace"),
        field("UID_", "metadata.uid"),
        field("LABEL", "\"metadata.labels['app']\""),
        field("NOTE", "\"metadata.annotations['example.org/note']\""),
        field("NODE", "spec.nodeName"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("IP", "status.podIP"),
        field("IPS", "status.podIPs"),
        field("HOST_IP", "status.hostIP"),
        resource("CPU", "limits.cpu", "1m"),
        resource("CPUS", "limits.cpu", "'1'"),
        resource("MEMORY", "limits.memory", "1Mi"),
        resource("ASKED", "requests.memory", "1Mi"),
        "{name: KEY, valueFrom: {configMapKeyRef: {name: app, key: color}}}".into(),
        "{name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}".into(),
        "{name: FILE, valueFrom: {fileKeyRef: {volumeName: v, path: some.env, key: FILE}}}".into(),
        "{name: ALL, value: '$(NAME).$(color).$(CM_color).$(PASSWORD).$(DATA_BASE_PORT_5433_UDP_PORT).$$(NAME).$(LATER).$(ALL)'}"
            .into(),
        "{name: LATER, value: here}".into(),
    ];
    let fields = format!(
        "resources: {{limits: {{cpu: 250m, memory: 64Mi}}, requests: {{memory: 33000Ki}}}}\n\
         envFrom: [{{configMapRef: {{name: app}}}}, {{prefix: CM_, configMapRef: {{name: app}}}}, {{secretRef: {{name: none, optional: true}}}}]\n\
         env: [{}]\n\
         volumeMounts: [{{name: v, mountPath: /v, subPathExpr: $(NAME)/$(LABEL)}}]",
        vars.join(", ")
    );
    let manifest = pod("web")
        .metadata("labels: {app: shop}\n  annotations: {example.org/note: 'two words'}")
        .spec("volumes: [{name: v, emptyDir: {}}]")
        .first_runs("setup", "write /v/some.env FILE='of-init'", "volumeMounts: [{name: v, mountPath: /v}]")
        .runs_with("main", "sleep", &fields)
        .runs_with("all", "sleep", "volumeMounts: [{name: v, mountPath: /v}]");
    let web = node.put(&manifest);
    web.is_ready();
    let main = web.container("main");
    let ip = web.ip();
    let status = web.get().unwrap()["status"].clone();
    let joined: Vec<&str> = status["podIPs"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();
    let expected = [
        "NAME=web".into(),
        "SPACE=default".into(),
        format!("UID_={}", web.uid()),
        "LABEL=shop".into(),
        "NOTE=two words".into(),
        "NODE=node".into(),
        "ACCOUNT=default".into(),
        format!("IP={ip}"),
        format!("IPS={}", joined.join(",")),
        format!("HOST_IP={}", status["hostIP"].as_str().unwrap()),
        "CPU=250".into(),
        "CPUS=1".into(),
        "MEMORY=64".into(),
        "ASKED=33".into(),
        "KEY=blue".into(),
        "Dotted.key=d".into(),
        "CM_Dotted.key=d".into(),
        "PASSWORD=pass-word".into(),
        "FILE=of-init".into(),
        "ALL=web.blue.blue.pass-word.5433.$(NAME).$(LATER).$(ALL)".into(),
        "DATA_BASE_SERVICE_PORT_SQL=5432".into(),
        "DATA_BASE_PORT_5432_TCP=tcp://10.96.0.7:5432".into(),
        "KUBERNETES_SERVICE_HOST=10.96.0.1".into(),
    ];
    has(&main, &expected.each_ref().map(String::as_str));
    assert!(!main.demo("env").contains("OTHER_SERVICE"), "it is of another namespace");
    main.demo("write /v/x y");
    assert_eq!(web.container("all").demo("read /v/web/shop/x"), "y");
}

#[test]
fn commands_and_arguments_are_expanded_and_the_pod_may_refuse_links() {
    let node = NodeBox::start();
    node.apply("objects.yaml", OBJECTS);
    let fields = "env: [{name: WHO, value: world}, {name: WORDS, value: a b}]";
    let said = node.put(
        &pod("said")
            .spec("restartPolicy: Never")
            .spec("enableServiceLinks: false")
            .runs_with("main", "echo hello $(WHO) $$(WHO) $$$(WHO) $(WORDS) $(NONE) $(WHO $WHO", fields)
            .runs_with("env", "env", fields),
    );
    said.becomes("Succeeded");
    assert_eq!(said.container("main").logs(&[]), "hello world $(WHO) $world a b $(NONE) $(WHO $WHO\n");
    let env = said.container("env").logs(&[]);
    assert!(!env.contains("DATA_BASE"), "{env}");
    assert!(env.contains("KUBERNETES_SERVICE_PORT=443"), "the API server's is told to all:\n{env}");
}

#[test]
fn what_cannot_be_resolved_says_what_and_goes_on_when_it_can() {
    let node = NodeBox::start();
    let mounts = "volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(NONE)/x}]";
    let path = node.put(&pod("path").spec("volumes: [{name: v, emptyDir: {}}]").runs_with("main", "sleep", mounts));
    let message = path.container("main").waits_because("CreateContainerConfigError");
    assert_eq!(message, "subPathExpr $(NONE)/x: no variable is named NONE");

    let up = "env: [{name: UP, value: '../..'}]\nvolumeMounts: [{name: v, mountPath: /v, subPathExpr: $(UP)/x}]";
    let escape = node.put(&pod("escape").spec("volumes: [{name: v, emptyDir: {}}]").runs_with("main", "sleep", up));
    let message = escape.container("main").waits_because("CreateContainerConfigError");
    assert_eq!(message, "subPath \"../../x\" must be a relative path and must not contain '..'");

    let secret = node.put(&pod("secret").runs_with("main", "sleep", "envFrom: [{secretRef: {name: login}}]"));
    let message = secret.container("main").waits_because("CreateContainerConfigError");
    assert_eq!(message, "secret \"login\" not found");
    node.apply("objects.yaml", OBJECTS);
    secret.is_ready();
    has(&secret.container("main"), &["password=pass-word"]);
    // A new start has the new value; until then nothing changes.
    node.apply("objects.yaml", &OBJECTS.replace("pass-word", "new-word"));
    assert_eventually!(node.run(&["get", "pods"]).ok().contains("secret"));
    has(&secret.container("main"), &["password=pass-word"]);
    assert_eq!(secret.container("main").restarts(), 0);
}
