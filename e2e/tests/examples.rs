//! The examples below manifests/, as a user runs them, and what their comments promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{NodeBox, assert_eventually, workspace};

/// A file of an example.
fn text(path: &str) -> String {
    std::fs::read_to_string(workspace().join("manifests").join(path)).unwrap()
}

#[test]
fn config() {
    let node = NodeBox::start();
    node.apply_folder("config");
    let configured = node.pod("configured");
    configured.is_ready();
    let main = configured.container("main");
    assert_eq!(main.demo("read /etc/configured/text"), "Good morning");
    assert_eq!(main.demo("read /etc/configured/labels"), "app=\"configured\"");
    assert!(main.demo("env").lines().any(|line| line == "DATABASE_PASSWORD=change-me"));
    main.demo("write /var/visitors/first me");
}

#[test]
fn a_projected_volume() {
    let node = NodeBox::start();
    let yaml = text("volumes/projected.yaml");
    node.apply("projected.yaml", &yaml);
    let projected = node.pod("projected");
    projected.is_ready();
    let main = projected.container("main");
    let read = |file: &str| main.demo(&format!("read {file}"));
    assert_eq!(read("/etc/shop/currency"), "EUR");
    assert_eq!(read("/etc/shop/web/theme.json"), "{\"color\": \"green\"}");
    assert_eq!(read("/theme.json"), "{\"color\": \"green\"}");
    assert_eq!(read("/etc/shop/login/username"), "shop");
    assert!(main.demo("own /etc/shop/login/password").starts_with("0:0 400"));
    assert!(main.demo("own /etc/shop/currency").starts_with("0:0 777"), "it is a link");
    assert!(main.demo("own /etc/shop/..data/currency").starts_with("0:0 444"));
    assert_eq!(read("/etc/shop/pod/labels"), "app=\"shop\"\ntier=\"front\"");
    main.exec(&["/demo", "read", "/etc/shop/not-for-this-pod"]).fails();

    // All sources change with one edit, and the reader sees them change together; a subPath stays.
    let edited =
        yaml.replace("EUR", "CHF").replace("green", "red").replace("change-me", "changed").replace("tier: front", "tier: back");
    node.apply("projected.yaml", &edited);
    assert_eventually!(read("/etc/shop/pod/labels").contains("back") && read("/etc/shop/currency") == "CHF");
    assert_eq!(read("/etc/shop/web/theme.json"), "{\"color\": \"red\"}");
    assert_eq!(read("/etc/shop/login/password"), "changed");
    assert_eq!(read("/theme.json"), "{\"color\": \"green\"}");
    // What was optional appears.
    node.apply("extras.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop-extras}\ndata: {more: here}\n");
    assert_eventually!(main.exec(&["/demo", "read", "/etc/shop/more"]).stdout == "here");
    assert_eq!(main.restarts(), 0);
}

#[test]
fn the_downward_api() {
    let node = NodeBox::start();
    let yaml = text("volumes/downward-api.yaml");
    node.apply("downward-api.yaml", &yaml);
    let pod = node.pod("downward-api");
    pod.is_ready();
    let main = pod.container("main");
    let env = main.demo("env");
    let ip = format!("POD_IP={}", pod.ip());
    let expected = [
        "POD_NAME=downward-api",
        "POD_NAMESPACE=default",
        &ip,
        "NODE_NAME=node",
        "ZONE=north",
        "CPU_LIMIT=1",
        "MEMORY_LIMIT=64",
        "WHERE=default/downward-api on node, not $(POD_NAME)",
    ];
    for line in expected {
        assert!(env.lines().any(|l| l == line), "{line} is not in\n{env}");
    }
    let read = |file: &str| main.demo(&format!("read /etc/about/{file}"));
    assert_eq!(read("labels"), "app=\"shop\"\nzone=\"north\"");
    assert!(read("annotations").contains("note=\"two\\nlines\\n\""), "{}", read("annotations"));
    assert_eq!((read("build"), read("limits/cpu"), read("limits/memory")), ("42".into(), "250".into(), "64".into()));
    assert!(main.demo("own /etc/about/..data/limits/cpu").starts_with("0:0 440"));
    main.demo("write /data/x y");
    node.apply("downward-api.yaml", &yaml.replace("zone: north", "zone: south").replace("\"42\"", "\"43\""));
    assert_eventually!(read("labels").contains("south") && read("build") == "43", "the files follow");
    assert!(main.demo("env").contains("ZONE=north"), "variables stay");
    assert_eq!(main.restarts(), 0);
}

#[test]
fn volumes_of_other_kinds() {
    let node = NodeBox::start();
    node.apply("kinds.yaml", &text("volumes/kinds.yaml"));
    let pod = node.pod("volume-kinds");
    pod.is_ready();
    let main = pod.container("main");
    assert!(main.demo("env").lines().any(|line| line == "GREETING=hello"));
    assert!(main.demo("id").starts_with("uid=1000 gid=1000"));
    for folder in ["/disk", "/memory", "/scratch"] {
        main.demo(&format!("write {folder}/x y"));
        assert!(main.demo(&format!("own {folder}/x")).starts_with("1000:2000 "), "{}", main.demo(&format!("own {folder}/x")));
    }
    assert!(main.demo("list /tools").contains("demo"));
}

#[test]
fn lifecycle() {
    let node = NodeBox::start();
    node.apply_folder("lifecycle");
    let probed = node.pod("probed");
    probed.container("web").is_running();
    probed.tells(&["Unhealthy", "Readiness probe failed"]);
    probed.container("web").demo("write /tmp/ready yes");
    probed.is_ready();
    let hooked = node.pod("hooked");
    hooked.is_ready();
    assert_eq!(hooked.container("main").demo("read /shared/diary"), "started");
    let said = hooked.container("main").follow(&[]);
    said.says("listening");
    node.remove("hooks.yaml");
    said.says("the preStop hook was here");
    said.says("SIGTERM: bye");
    hooked.is_gone();
    let ruled = node.pod("ruled");
    ruled.container("worker").was_restarted(1);
    ruled.container("watcher").is_running();
}
