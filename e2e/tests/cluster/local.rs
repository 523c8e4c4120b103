//! Volumes that are the node's own disks: PersistentVolumes of the kind `local`, which the scheduler sends their pods after.

use std::os::unix::fs::MetadataExt as _;

use e2e::{ControlPlane, eventually};
use serde_json::json;

use super::{node, runs};

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
";

/// A disk of a node, the claim that gets it, and the claim's pod.
fn disk(name: &str, node: &str, path: &std::path::Path) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  volumeMode: Filesystem
  claimRef: {{namespace: default, name: {name}}}
  local: {{path: {path}}}
  nodeAffinity:
    required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: local, resources: {{requests: {{storage: 1Gi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 4242}}
  containers:
  - name: main
    image: localhost/nodeagent-demo:latest
    imagePullPolicy: Never
    args: [serve]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {name}}}}}]
",
        path = path.display()
    )
}

#[test]
fn a_local_disk_is_its_pods_and_one_that_is_missing_is_told_and_waited_for() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let [fast, absent] = ["fast", "absent"].map(|name| node.folder().join(name));
    std::fs::create_dir(&fast).unwrap();
    std::fs::write(fast.join("row"), "zero").unwrap();
    let disks = [disk("fast", "node", &fast), disk("absent", "node", &absent), disk("elsewhere", "another", &fast)];
    plane.apply(&[&[CLASS.to_owned()], &disks[..]].concat().concat());

    plane.until("pod", "fast", "runs", runs);
    let main = node.pod("fast").container("main");
    assert_eq!(main.demo("read /data/row"), "zero");
    main.demo("write /data/row one");
    assert_eq!(std::fs::read_to_string(fast.join("row")).unwrap().trim(), "one");
    assert_eq!(std::fs::metadata(fast.join("row")).unwrap().gid(), 4242);
    plane.until("pvc", "fast", "is bound", |claim| (claim["status"]["phase"] == "Bound").then_some(()));

    // A disk that isn't plugged in is not made up.
    node.pod("absent").tells(&["FailedMount", "data", absent.to_str().unwrap(), "No such file or directory"]);
    assert!(!absent.exists());
    std::fs::create_dir(&absent).unwrap();
    plane.until("pod", "absent", "runs", runs);
    // Another node's disk brings no pod here.
    plane.until("pod", "elsewhere", "has no node", |pod| {
        let scheduled = pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?;
        (scheduled["status"] == "False" && pod["spec"]["nodeName"].is_null()).then_some(())
    });
    // Nor is a folder here taken for it when somebody sends the pod all the same.
    let names = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "elsewhere"}, "target": {"kind": "Node", "name": "node"}});
    let binding = node.folder().join("binding.json");
    std::fs::write(&binding, names.to_string()).unwrap();
    let path = "/api/v1/namespaces/default/pods/elsewhere/binding";
    plane.kubectl(&["create", "--raw", path, "-f", binding.to_str().unwrap()]).ok();
    node.pod("elsewhere").tells(&["FailedMount", "PersistentVolume elsewhere is not for this node"]);

    // What is on it stays, for the next pod too.
    plane.kubectl(&["delete", "pod", "fast", "absent", "elsewhere"]).ok();
    eventually("the pods are gone from the node", || {
        let left = node.run(&["get", "pods", "-A", "-o", "name"]).ok();
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(std::fs::read_to_string(fast.join("row")).unwrap().trim(), "one");
    plane.apply(&[CLASS, &disks[0]].concat());
    plane.until("pod", "fast", "runs", runs);
    assert_eq!(node.pod("fast").container("main").demo("read /data/row").trim(), "one");
    plane.kubectl(&["delete", "pod", "fast"]).ok();
}
