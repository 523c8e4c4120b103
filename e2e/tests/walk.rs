//! The walk of a new user: quickstart, look around, edit, delete, and the machine is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{INSIDE, NodeBox, assert_eventually, eventually, workspace};

#[test]
fn quickstart_edit_logs_exec_delete_and_the_machine_is_as_before() {
    let node = NodeBox::builder().argument("--drain").without_agent().start();
    let before = node.snapshot();
    node.apply_folder("quickstart");
    node.start_agent();
    let (web, twin) = (node.pod("web"), node.pod("twin"));
    web.is_ready();
    twin.is_ready();

    // nodeagent get pods
    let table = node.run(&["get", "pods"]).ok();
    assert!(table.starts_with("NAME"), "{table}");
    for column in ["READY", "STATUS", "RESTARTS", "AGE"] {
        assert!(table.lines().next().unwrap().contains(column), "{table}");
    }
    assert!(table.lines().any(|line| line.starts_with("web ") && line.contains("2/2") && line.contains("Running")), "{table}");
    let wide = node.run(&["get", "pods", "-o", "wide"]).ok();
    assert!(wide.contains(&web.ip()) && wide.contains("node"), "{wide}");

    // The page, by curl: from the node, and by the hostPort from outside.
    let page = eventually("the page answers", || node.curl(&format!("http://{}:8080", web.ip())).result());
    assert!(page.starts_with("shop\n") && page.contains("Processes, IPC?"), "{page}");
    let outside = eventually("the hostPort answers", || node.curl_from_outside(&format!("http://{INSIDE}:8088")).result());
    assert!(outside.starts_with("shop\n"), "{outside}");
    // The client counts in memory that the page shows.
    assert_eventually!(
        !node.curl(&format!("http://{}:8080", web.ip())).ok().contains(" 0 calls counted"),
        "the page shows the client's calls"
    );

    // logs and exec
    web.container("client").logged("shop: call 1: http://127.0.0.1:8080/json answered");
    assert_eq!(web.container("web").demo("hostname"), "shop");
    let (inspected, pid) = (web.run(&["inspect"], &[]).ok(), web.container("web").host_pid());
    for shown in [
        "Holder:",
        &web.ip(),
        web.container("web").id().trim_start_matches("nodeagent://"),
        &format!("{pid}         1  /demo serve"),
        "overlay",
    ] {
        assert!(inspected.contains(shown), "{shown} is not in {inspected}");
    }
    let explained = web.run(&["explain"], &[]).ok();
    assert!(explained.contains("overlay") && explained.contains("It waits for nothing."), "{explained}");

    // An edit of a label keeps the pod; one of a command makes it anew.
    let (uid, id) = (web.uid(), web.container("web").id());
    let yaml = std::fs::read_to_string(workspace().join("manifests/quickstart/web.yaml")).unwrap();
    node.apply("web.yaml", &yaml.replace("app: shop", "app: market"));
    web.until("has the new label", |pod| {
        if pod["metadata"]["labels"]["app"] == "market" { Ok(()) } else { Err(pod["metadata"].to_string()) }
    });
    assert_eq!((web.uid(), web.container("web").id()), (uid, id.clone()));
    node.apply("web.yaml", &yaml.replace("hostname: shop", "hostname: market"));
    web.until("runs another container", |pod| {
        let status = web.container("web").status(pod);
        let other = status["state"]["running"].is_object() && status["containerID"] != id.as_str();
        if other { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eventually!(web.container("web").exec(&["/demo", "hostname"]).stdout.trim() == "market");
    assert_eq!(twin.container("web").restarts(), 0);

    // Delete the manifests: nothing of the pods is left.
    node.remove("web.yaml");
    node.remove("twin.yaml");
    web.is_gone();
    twin.is_gone();
    assert_eventually!(node.snapshot().facts("cgroup").iter().all(|path| !path.contains("pod")), "no pod's cgroup is left");
    assert_eventually!(node.snapshot().facts("process").is_empty(), "no process is left: {:?}", node.snapshot().facts("process"));

    // End the agent: the machine is as before.
    assert_eq!(node.stop_agent(), 0);
    node.is_as(&before);
}
