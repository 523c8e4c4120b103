//! ConfigMaps and Secrets as files beside the pods: what a container gets of them, and when.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Manifest, NodeBox, assert_eventually, eventually, pod};

/// No test's output may have this.
const PASSWORD: &str = "correct-horse-battery-staple";

fn config_map(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: app}}\ndata: {data}\n")
}

fn secret() -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\nstringData: {{password: {PASSWORD}}}\ndata: {{user: YWRtaW4=}}\n"
    )
}

/// A pod that has ConfigMap `app` at /etc/app, its key `color` at /etc/color, and Secret `login` at /etc/login.
fn with_volumes() -> Manifest {
    pod("web")
        .spec("volumes: [{name: app, configMap: {name: app}}, {name: login, secret: {secretName: login, defaultMode: 0400}}]")
        .runs_with(
            "main",
            "sleep",
            "volumeMounts: [{name: app, mountPath: /etc/app}, {name: app, mountPath: /etc/color, subPath: color}, {name: login, mountPath: /etc/login}]",
        )
}

#[test]
fn environment_variables_come_from_config_maps_and_secrets() {
    let node = NodeBox::start();
    node.apply("app.yaml", &config_map("{color: blue, SIZE: '10'}"));
    node.apply("login.yaml", &secret());
    let web = node.put(&pod("web").runs_with(
        "main",
        "sleep",
        "envFrom: [{configMapRef: {name: app}}, {prefix: LOGIN_, secretRef: {name: login}}, {configMapRef: {name: none, optional: true}}]
         env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: app, key: color}}}, {name: SIZE, value: '$(SIZE)0'}, {name: NONE, valueFrom: {secretKeyRef: {name: login, key: none, optional: true}}}]",
    ));
    web.is_ready();
    let env = web.container("main").demo("env");
    let lines: Vec<&str> = env.lines().collect();
    let password = format!("LOGIN_password={PASSWORD}");
    for expected in ["color=blue", "COLOR=blue", "SIZE=100", "LOGIN_user=admin", &password] {
        assert!(lines.contains(&expected), "{expected} is not in\n{env}");
    }
    assert!(!env.contains("NONE="), "{env}");
    // exec has what the container has, also when the object says something else by now.
    node.apply("app.yaml", &config_map("{color: red}"));
    node.remove("login.yaml");
    assert_eventually!(!node.run(&["get", "pods"]).ok().is_empty());
    assert!(web.container("main").demo("env").contains("COLOR=blue"));
}

#[test]
fn a_volume_follows_its_config_map_and_a_sub_path_does_not() {
    let node = NodeBox::start();
    node.apply("app.yaml", &config_map("{color: blue, gone: x}"));
    node.apply("login.yaml", &secret());
    let web = node.put(&with_volumes());
    web.is_ready();
    let main = web.container("main");
    assert_eq!(main.demo("read /etc/app/color"), "blue");
    assert_eq!(main.demo("read /etc/login/password"), PASSWORD);
    assert_eq!(main.demo("read /etc/login/user"), "admin");
    assert!(main.demo("mounts").lines().any(|line| line.contains("/etc/login") && line.contains("tmpfs")));
    main.exec(&["/demo", "write", "/etc/app/color", "mine"]).fails();
    main.exec(&["/demo", "write", "/etc/login/password", "mine"]).fails();

    node.apply("app.yaml", &config_map("{color: red, new: why}"));
    assert_eventually!(main.demo("read /etc/app/color") == "red", "the edit is seen");
    assert_eq!(main.demo("read /etc/app/new"), "why");
    main.exec(&["/demo", "read", "/etc/app/gone"]).fails();
    assert_eq!(main.demo("read /etc/color"), "blue", "a subPath stays as it was when the container started");
    assert_eq!(main.restarts(), 0);

    // What is deleted under a running pod stays in its volumes.
    node.remove("app.yaml");
    web.tells(&["FailedMount", "configmap \"app\" not found"]);
    assert_eq!(main.demo("read /etc/app/color"), "red");
}

#[test]
fn an_agent_that_was_away_brings_the_volumes_up_to_date() {
    let node = NodeBox::start();
    node.apply("app.yaml", &config_map("{color: blue}"));
    node.apply("login.yaml", &secret());
    let web = node.put(&with_volumes());
    web.is_ready();
    node.kill_agent();
    node.apply("app.yaml", &config_map("{color: red}"));
    node.start_agent();
    assert_eventually!(web.container("main").demo("read /etc/app/color") == "red", "the edit is seen");
    assert_eq!(web.container("main").restarts(), 0);
}

#[test]
fn a_pod_waits_for_what_is_missing_and_says_what() {
    let node = NodeBox::start();
    let volume = node.put(&with_volumes());
    let from_key = node.put(&pod("key").runs_with(
        "main",
        "sleep",
        "env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: app, key: color}}}]",
    ));
    let message = from_key.container("main").waits_because("CreateContainerConfigError");
    assert_eq!(message, "configmap \"app\" not found");
    volume.tells(&["FailedMount", "MountVolume.SetUp failed for volume \"app\"", "configmap \"app\" not found"]);
    let message = volume.container("main").waits_because("ContainerCreating");
    assert!(message.contains("configmap \"app\" not found"), "{message}");

    node.apply("app.yaml", &config_map("{colour: blue}"));
    eventually("the missing key is told", || {
        let message = from_key.container("main").waits_because("CreateContainerConfigError");
        if message == "couldn't find key color in ConfigMap default/app" { Ok(()) } else { Err(message) }
    });
    volume.tells(&["FailedMount", "secret \"login\" not found"]);
    node.apply("app.yaml", &config_map("{color: blue}"));
    node.apply("login.yaml", &secret());
    for waiting in [&volume, &from_key] {
        waiting.is_ready();
        assert_eq!(waiting.container("main").restarts(), 0);
    }
}

#[test]
fn what_is_optional_may_come_later() {
    let node = NodeBox::start();
    let sources = "[{configMap: {name: app, optional: true}}, {secret: {name: login, optional: true, items: [{key: password, path: word}]}}]";
    let volumes = format!(
        "volumes: [{{name: app, configMap: {{name: app, optional: true}}}}, {{name: login, secret: {{secretName: login, optional: true}}}}, \
         {{name: all, projected: {{sources: {sources}}}}}]"
    );
    let fields = "volumeMounts: [{name: app, mountPath: /app}, {name: login, mountPath: /login}, {name: all, mountPath: /all}]\n\
                  env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: app, key: color, optional: true}}}]";
    let web = node.put(&pod("web").spec(&volumes).runs_with("main", "sleep", fields));
    web.is_ready();
    let main = web.container("main");
    for folder in ["/app", "/login", "/all"] {
        let listed = main.demo(&format!("list {folder}"));
        assert!(listed.lines().all(|name| name.starts_with("..")), "{listed}");
    }
    node.apply("app.yaml", &config_map("{color: blue}"));
    node.apply("login.yaml", &secret());
    for (file, text) in [("/app/color", "blue"), ("/login/password", PASSWORD), ("/all/color", "blue"), ("/all/word", PASSWORD)] {
        let read = || main.exec(&["/demo", "read", file]).stdout;
        assert_eventually!(read().trim_end() == text, "{file} appears");
    }
    assert!(!main.demo("env").contains("COLOR"), "the environment stays as it was");
    assert_eq!(main.restarts(), 0);
}

#[test]
fn a_wrong_object_says_where_and_its_last_good_version_goes_on() {
    let node = NodeBox::start();
    node.apply("app.yaml", &config_map("{color: blue}"));
    node.apply("login.yaml", &secret());
    let web = node.put(&with_volumes());
    web.is_ready();
    node.apply("app.yaml", &config_map("{color: 1}"));
    assert_eventually!(
        node.agent_output().contains("app.yaml:4:15: data[color]: Invalid value: 1: must be a string, not an integer"),
        "the error has its place:\n{}",
        node.agent_output()
    );
    assert_eq!(web.container("main").demo("read /etc/app/color"), "blue");
    let immutable = |color: &str| format!("{}immutable: true\n", config_map(&format!("{{color: {color}}}")));
    node.apply("app.yaml", &immutable("green"));
    assert_eventually!(web.container("main").demo("read /etc/app/color") == "green", "the edit is seen");
    node.apply("app.yaml", &immutable("red"));
    assert_eventually!(node.agent_output().contains("field is immutable when `immutable` is set"), "the refusal is told");
    assert_eq!(web.container("main").demo("read /etc/app/color"), "green");
}
