//! Volumes of a CSI driver that the cluster knows: claims, attachments, CSINode. The driver is e2e/plugins/csi.

use e2e::{ControlPlane, Running, eventually};

use super::{node, runs};

const DISK: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example.com}
spec: {attachRequired: true, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent]}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hunter2}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: disks
  mountOptions: [noatime]
  csi:
    driver: disk.example.com
    volumeHandle: vol-1
    fsType: ext4
    volumeAttributes: {size: small}
    nodeStageSecretRef: {name: key, namespace: default}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: disks, volumeName: disk, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4242}
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
";

/// The line in which a driver told of a call.
fn line(driver: &Running, call: &str) -> String {
    let said = driver.output();
    said.lines().find(|line| line.starts_with(call)).unwrap_or_else(|| panic!("no {call}: {said}")).to_owned()
}

#[test]
fn a_claim_is_attached_staged_and_published_and_all_of_it_is_taken_back() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let mut driver = node.csi_driver("disk.example.com", &["STAGE=1"]);
    plane.until("csinode", "node", "has the driver", |object| {
        let driver = &object["spec"]["drivers"][0];
        let fine = driver["nodeID"] == "id-of-node"
            && driver["allocatable"]["count"] == 7
            && driver["topologyKeys"][0] == "topology.disk.example.com/zone";
        fine.then_some(())
    });
    plane.until("node", "node", "is where the driver says", |object| {
        (object["metadata"]["labels"]["topology.disk.example.com/zone"] == "z1").then_some(())
    });

    plane.apply(DISK);
    let user = node.pod("user");
    user.tells(&["FailedMount", "volume vol-1 is not attached for volume attachment csi-"]);
    // The controller has asked for the attachment; the driver's attacher would do it.
    let name = eventually("there is an attachment", || {
        let names = plane.kubectl(&["get", "volumeattachments", "-o", "name"]).ok();
        names.lines().next().map(str::to_owned).ok_or(names)
    });
    let attached = r#"{"status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}}"#;
    driver.write("refuse publish\n");
    driver.says("did refuse");
    plane.kubectl(&["patch", &name, "--subresource=status", "--type=merge", "-p", attached]).ok();
    user.tells(&["FailedMount", "the disk is on fire"]);
    // An agent that comes when the volume is staged and not published goes on.
    node.kill_agent();
    driver.write("allow publish\n");
    driver.says("did allow");
    plane.joins(&node);
    plane.until("pod", "user", "runs", runs);
    let stage = line(&driver, "stage vol-1");
    assert!(
        stage.contains(
            "fs=ext4 flags=noatime group= mode=1 secrets=[password:hunter2] context=[size:small] attached=[device:/dev/x]"
        ),
        "{stage}"
    );
    let publish = line(&driver, "publish vol-1");
    assert!(publish.contains("ephemeral:false,pod.name:user") && publish.contains("secrets=[]"), "{publish}");
    user.container("main").demo("write /v/file words");
    plane.until("node", "node", "uses the volume", |object| {
        (object["status"]["volumesInUse"][0] == "kubernetes.io/csi/disk.example.com^vol-1").then_some(())
    });

    // A container that starts again, and an agent that does, ask for nothing.
    let published = driver.output().matches("publish vol-1").count();
    node.kill_agent();
    plane.joins(&node);
    node.inside("kill", &["-KILL", &user.container("main").host_pid().to_string()]).ok();
    user.container("main").was_restarted(1);
    assert_eq!(driver.output().matches("publish vol-1").count(), published, "{}", driver.output());

    plane.kubectl(&["delete", "pod", "user"]).ok();
    driver.says("unpublish vol-1");
    driver.says("unstage vol-1");
    eventually("the volume is detached", || {
        let left = plane.kubectl(&["get", "volumeattachments", "-o", "name"]).ok();
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
}

const VAULT: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: vault.example.com}
spec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral], tokenRequests: [{audience: vault}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, csi: {driver: vault.example.com, readOnly: true}}]
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example.com}
spec: {attachRequired: false}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep]}]
  volumes: [{name: v, csi: {driver: disk.example.com}}]
";

#[test]
fn a_driver_of_the_pods_own_volumes_gets_a_token_of_its_account() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let _disk = node.csi_driver("disk.example.com", &[]);
    let vault = node.csi_driver("vault.example.com", &[]);
    plane.apply(VAULT);
    plane.until("pod", "reader", "runs", runs);
    let publish = line(&vault, "publish csi-");
    assert!(publish.contains("ephemeral:true,pod.name:reader,pod.namespace:default"), "{publish}");
    assert!(
        publish.contains("serviceAccount.name:default,serviceAccount.tokens:{\"vault\":{\"expirationTimestamp\":\"2"),
        "{publish}"
    );
    assert!(publish.contains("\"token\":\"ey"), "{publish}");
    assert!(!node.agent_output().contains("\"ey"), "a token must not get into the log");
    let words = "volume mode \"Ephemeral\" not supported by driver disk.example.com (only supports [\"Persistent\"])";
    node.pod("wrong").tells(&["FailedMount", words]);
    plane.kubectl(&["delete", "pod", "reader", "--wait=false"]).ok();
    vault.says("unpublish csi-");
    plane.is_gone("pod", "reader");
}
