//! Disks of a CSI driver: as devices, and as they grow. The driver is e2e/plugins/csi; the test stands for the resizer, which is a controller of
//! the driver's and lets the disk grow where it is kept.

use e2e::{ControlPlane, NodeBox, Running, eventually};
use serde_json::{Value, json};

use super::{node, runs};

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: disks}
provisioner: disk.example.com
allowVolumeExpansion: true
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example.com}
spec: {attachRequired: false, fsGroupPolicy: File}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hunter2}
";

/// A PersistentVolume of 16 MiB and the claim that has it.
fn disk(name: &str, mode: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 16Mi}}
  accessModes: [ReadWriteOnce]
  storageClassName: disks
  volumeMode: {mode}
  csi: {{driver: disk.example.com, volumeHandle: vol-{name}, nodeExpandSecretRef: {{name: key, namespace: default}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: disks
  volumeName: {name}
  volumeMode: {mode}
  resources: {{requests: {{storage: 16Mi}}}}
"
    )
}

const DEVICES: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: database}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4242}
  containers:
  - name: main
    image: localhost/nodeagent-demo:latest
    imagePullPolicy: Never
    args: [sleep]
    volumeDevices: [{name: v, devicePath: /dev/xvda}, {name: w, devicePath: /disks/only-read}]
  - {name: side, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}
  volumes:
  - {name: v, persistentVolumeClaim: {claimName: raw}}
  - {name: w, persistentVolumeClaim: {claimName: plate, readOnly: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]
";

/// What a resizer does when somebody asks for a larger claim.
fn grows(plane: &ControlPlane<'_>, name: &str) {
    let size = json!({"storage": "32Mi"});
    let patch = |words: &[&str], patch: Value| {
        plane.kubectl(&[&["patch"], words, &["--type=merge", "-p", &patch.to_string()]].concat()).ok();
    };
    plane.until("pvc", name, "is bound", |claim| (claim["status"]["phase"] == "Bound").then_some(()));
    patch(&["pvc", name], json!({"spec": {"resources": {"requests": size}}}));
    patch(&["pv", name], json!({"spec": {"capacity": size}}));
    let pending = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    let status =
        json!({"allocatedResources": size, "allocatedResourceStatuses": {"storage": "NodeResizePending"}, "conditions": pending});
    patch(&["pvc", name, "--subresource=status"], json!({"status": status}));
}

fn has_grown(plane: &ControlPlane<'_>, name: &str) {
    plane.until("pvc", name, "is as large as it should be", |claim| {
        let status = &claim["status"];
        let of_size = |condition: &Value| condition["type"].as_str().is_some_and(|type_| type_.contains("Resize"));
        let done =
            !status["conditions"].as_array().into_iter().flatten().any(of_size) && status["allocatedResourceStatuses"].is_null();
        (status["capacity"]["storage"] == "32Mi" && done).then_some(())
    });
}

fn asked<'a>(said: &'a str, call: &str) -> Vec<&'a str> {
    said.lines().filter(|line| line.starts_with(call)).collect()
}

fn said(driver: &Running, words: &str) {
    eventually("the driver was asked", || {
        let said = driver.output();
        if said.contains(words) { Ok(()) } else { Err(said) }
    });
}

fn bytes(node: &NodeBox, program: &str, words: &[&str]) -> u64 {
    let said = node.inside(program, words).ok();
    said.lines().last().unwrap().trim().parse().unwrap()
}

#[test]
fn a_raw_block_volume_is_a_device_and_grows_in_use() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let driver = node.csi_driver("disk.example.com", &["STAGE=1", "EXPAND=1"]);
    plane.apply(&[CLASS, &disk("raw", "Block"), &disk("plate", "Block"), DEVICES].concat());
    plane.until("pod", "database", "runs", runs);
    let output = driver.output();
    assert!(asked(&output, "stage vol-raw")[0].contains("block=true fs= flags= group= mode=1"), "{output}");
    assert!(asked(&output, "publish vol-raw")[0].contains("readonly=false block=true"), "{output}");
    assert!(asked(&output, "publish vol-plate")[0].contains("readonly=true block=true"), "{output}");
    let uid = node.pod("database").uid();
    let device = node.root().join("var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/raw").join(&uid);
    let device = device.to_str().unwrap();

    // The container has the disk, under a device node of its own; the one beside it doesn't.
    let main = node.pod("database").container("main");
    main.demo("write /dev/xvda words");
    assert_eq!(node.inside("head", &["-c", "5", device]).ok(), "words");
    let refused = main.exec(&["/demo", "write", "/disks/only-read", "words"]).fails();
    assert!(refused.contains("Operation not permitted"), "{refused}");
    let refused = node.pod("database").container("side").exec(&["/demo", "read", "/dev/xvda"]).fails();
    assert!(refused.contains("No such file"), "{refused}");
    node.pod("wrong").tells(&["FailedMount", "volume v has volumeMode Block, but is specified in volumeMounts"]);

    // It grows as the pod runs, and an agent that starts again asks for nothing.
    grows(&plane, "raw");
    has_grown(&plane, "raw");
    said(&driver, "expand vol-raw size=33554432 block=true");
    let expand = asked(&driver.output(), "expand vol-raw")[0].to_owned();
    assert!(expand.contains("secrets=[password:hunter2]"), "{expand}");
    assert_eq!(bytes(&node, "blockdev", &["--getsize64", device]), 32 << 20);
    node.pod("database").tells(&["FileSystemResizeSuccessful", "MountVolume.NodeExpandVolume succeeded for volume \"raw\" node"]);
    node.kill_agent();
    plane.joins(&node);
    node.inside("kill", &["-KILL", &main.host_pid().to_string()]).ok();
    main.was_restarted(1);
    plane.until("pod", "database", "runs", runs);
    main.demo("write /dev/xvda again");
    let output = driver.output();
    assert_eq!((asked(&output, "publish vol-raw").len(), asked(&output, "expand vol-raw").len()), (1, 1), "{output}");

    plane.kubectl(&["delete", "pod", "database", "wrong"]).ok();
    said(&driver, "unstage vol-raw");
    said(&driver, "unstage vol-plate");
    eventually("nothing is left of the devices", || {
        let folder = node.root().join("var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/raw");
        if folder.exists() { Err(driver.output()) } else { Ok(()) }
    });
}

const SHELF: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
";

#[test]
fn a_file_system_has_grown_before_a_container_has_it() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let mut driver = node.csi_driver("disk.example.com", &["DISK=1", "EXPAND=1"]);
    plane.apply(&[CLASS, &disk("data", "Filesystem")].concat());
    grows(&plane, "data");
    driver.write("refuse expand\n");
    driver.says("did refuse");
    plane.apply(SHELF);
    node.pod("user").tells(&["FailedMount", "failed while expanding volume: Expander.NodeExpand failed to expand the volume"]);
    plane.until("pvc", "data", "says why it doesn't grow", |claim| {
        let conditions = claim["status"]["conditions"].as_array()?;
        let failed = conditions.iter().find(|condition| condition["type"] == "NodeResizeError")?;
        let fine = failed["message"].as_str()?.contains("the disk is on fire")
            && claim["status"]["allocatedResourceStatuses"]["storage"] == "NodeResizeInProgress";
        fine.then_some(())
    });
    driver.write("allow expand\n");
    plane.until("pod", "user", "runs", runs);
    has_grown(&plane, "data");
    let uid = node.pod("user").uid();
    let mount = node.root().join("var/lib/kubelet/pods").join(uid).join("volumes/kubernetes.io~csi/data/mount");
    let size = bytes(&node, "df", &["-B1", "--output=size", mount.to_str().unwrap()]);
    assert!(size > 24 << 20, "{size}");
    node.pod("user").container("main").demo("write /v/file words");

    plane.kubectl(&["delete", "pod", "user"]).ok();
    driver.says("unpublish vol-data");
}

#[test]
fn a_disk_that_can_never_be_so_large_is_told_and_left_alone() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let mut driver = node.csi_driver("disk.example.com", &["EXPAND=1"]);
    plane.apply(&[CLASS, &disk("data", "Filesystem"), SHELF].concat());
    plane.until("pod", "user", "runs", runs);
    driver.write("refuse expand OUT_OF_RANGE\n");
    driver.says("did refuse");
    grows(&plane, "data");
    plane.until("pvc", "data", "says that it can't", |claim| {
        let infeasible = claim["status"]["allocatedResourceStatuses"]["storage"] == "NodeResizeInfeasible";
        (infeasible && claim["status"]["capacity"]["storage"] == "16Mi").then_some(())
    });
    node.pod("user").tells(&["VolumeResizeFailed", "code = OutOfRange desc = expand: the disk is on fire"]);
    plane.kubectl(&["delete", "pod", "user"]).ok();
    driver.says("unpublish vol-data");
}

#[test]
fn a_driver_that_never_lets_a_volume_grow_on_the_node_is_told_of_on_the_claim() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let driver = node.csi_driver("disk.example.com", &[]);
    plane.apply(&[CLASS, &disk("data", "Filesystem")].concat());
    grows(&plane, "data");
    plane.apply(SHELF);
    let why = "NodeExpand is not supported by the CSI driver disk.example.com";
    node.pod("user").tells(&["FailedMount", &format!("failed while expanding volume: {why}")]);
    plane.until("pvc", "data", "says why it doesn't grow", |claim| {
        let status = &claim["status"];
        let failed = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "NodeResizeError")?;
        let fine = failed["message"] == format!("failed to expand pvc with {why}")
            && status["allocatedResourceStatuses"]["storage"] == "NodeResizeInProgress"
            && status["capacity"]["storage"] == "16Mi";
        fine.then_some(())
    });
    assert!(!driver.output().contains("expand"), "{}", driver.output());
    // Who let it grow sees that the node has nothing to do for it.
    let done = json!({"status": {"capacity": {"storage": "32Mi"}, "allocatedResourceStatuses": null}});
    plane.kubectl(&["patch", "pvc", "data", "--subresource=status", "--type=merge", "-p", &done.to_string()]).ok();
    plane.until("pod", "user", "runs", runs);
    plane.kubectl(&["delete", "pod", "user"]).ok();
    driver.says("unpublish vol-data");
}
