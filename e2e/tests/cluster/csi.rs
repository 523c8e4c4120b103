//! Volumes of a CSI driver that the cluster knows: claims, attachments, CSINode. The driver is e2e/plugins/csi.
//!
//! It is not the one that Kubernetes tests with (github.com/kubernetes-csi/csi-driver-host-path), since these tests take what they build from
//! the Go module proxy alone, and that has no version of this module for us: `go list -m -versions` of it ends with 403. From a checkout
//! (1f2b2e64, with its vendor folder) `CGO_ENABLED=0 go build ./cmd/hostpathplugin` takes a minute. Made so, and registered by hand, it was
//! tried once with this node, in November 2026: a mounted volume, a raw one and an inline one, with fsGroup, were staged and published, kept by
//! a second agent, and taken back.

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

const ROTATED: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: vault.example.com}
spec:
  attachRequired: false
  volumeLifecycleModes: [Ephemeral]
  requiresRepublish: true
  tokenRequests: [{audience: vault}]
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: first}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, csi: {driver: vault.example.com, readOnly: true, nodePublishSecretRef: {name: key}}}]
";

#[test]
fn a_driver_that_wants_it_is_told_anew_with_todays_secret_and_token() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let vault = node.csi_driver("vault.example.com", &[]);
    plane.apply(ROTATED);
    plane.until("pod", "reader", "runs", runs);
    let first = line(&vault, "publish csi-");
    assert!(first.contains("secrets=[password:first]"), "{first}");
    let main = node.pod("reader").container("main");
    let id = main.id();
    plane.apply("{apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {password: second}}");
    let again = eventually("the driver is told of the new secret", || {
        let said = vault.output();
        let found = said.lines().find(|line| line.starts_with("publish csi-") && line.contains("secrets=[password:second]"));
        found.map(str::to_owned).ok_or(said)
    });
    // The same volume, at the same place, with a token of its own.
    let token = |line: &str| line.split("\"token\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    assert_eq!(first.split(' ').nth(1), again.split(' ').nth(1));
    assert_ne!(token(&first), token(&again));
    assert_eq!((main.id(), main.restarts()), (id, 0));
    let asked = |call: &str| vault.output().lines().filter(|line| line.starts_with(call)).count();
    plane.kubectl(&["delete", "pod", "reader"]).ok();
    vault.says("unpublish csi-");
    assert_eq!(asked("unpublish csi-"), 1, "{}", vault.output());
}

const LOCKED: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: safe.example.com}
spec: {attachRequired: false, volumeLifecycleModes: [Persistent], requiresRepublish: true}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: old-wine}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: safe}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: safes
  csi: {driver: safe.example.com, volumeHandle: vol-safe, nodePublishSecretRef: {name: key, namespace: default}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: safe}
spec: {accessModes: [ReadWriteOnce], storageClassName: safes, volumeName: safe, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: owner}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, persistentVolumeClaim: {claimName: safe}}]
";

#[test]
fn a_persistent_volumes_secret_is_todays_when_its_driver_is_told_anew() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let safe = node.csi_driver("safe.example.com", &[]);
    plane.apply(LOCKED);
    plane.until("pod", "owner", "runs", runs);
    assert!(line(&safe, "publish vol-safe").contains("secrets=[password:old-wine]"), "{}", safe.output());
    plane.apply("{apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {password: new-wine}}");
    eventually("the driver is told of the new secret", || {
        let said = safe.output();
        let found = said.lines().any(|line| line.starts_with("publish vol-safe") && line.contains("secrets=[password:new-wine]"));
        if found { Ok(()) } else { Err(said) }
    });
    assert_eq!(node.pod("owner").container("main").restarts(), 0);
    let log = node.agent_output();
    assert!(!log.contains("old-wine") && !log.contains("new-wine"), "{log}");
    plane.kubectl(&["delete", "pod", "owner"]).ok();
    safe.says("unpublish vol-safe");
}

const SCRATCH: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example.com}
spec: {attachRequired: false, volumeLifecycleModes: [Persistent]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: scratch}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: scratch
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: disk.example.com, volumeHandle: vol-scratch}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: taken}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: taken, hostPath: {path: /var/empty}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: other-v}
spec: {accessModes: [ReadWriteOnce], storageClassName: taken, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: worker}
spec: &spec
  terminationGracePeriodSeconds: 1
  nodeName: node
  containers:
  - {name: main, image: localhost/nodeagent-demo:latest, imagePullPolicy: Never, args: [sleep], volumeMounts: [{name: v, mountPath: /v}]}
  volumes:
  - name: v
    ephemeral:
      volumeClaimTemplate:
        metadata: {labels: {of: worker}}
        spec: {accessModes: [ReadWriteOnce], storageClassName: scratch, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: *spec
";

#[test]
fn a_generic_ephemeral_volume_is_a_claim_that_comes_and_goes_with_its_pod() {
    let node = node();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    let driver = node.csi_driver("disk.example.com", &["STAGE=1"]);
    // YAML's anchors end with their document.
    let (_, rest) = SCRATCH.split_once("spec: &spec").unwrap();
    let (spec, _) = rest.split_once("---").unwrap();
    plane.apply(&SCRATCH.replace("&spec", "").replace("*spec", spec.trim_end()));
    plane.until("pod", "worker", "runs", runs);
    let uid = node.pod("worker").uid();
    plane.until("pvc", "worker-v", "is the pod's", |claim| {
        let owner = &claim["metadata"]["ownerReferences"][0];
        let fine = owner["uid"] == uid.as_str() && claim["metadata"]["labels"]["of"] == "worker";
        (fine && claim["spec"]["volumeName"] == "scratch").then_some(())
    });
    assert!(line(&driver, "publish vol-scratch").contains("mode=1"), "{}", driver.output());
    node.pod("worker").container("main").demo("write /v/file words");
    // A claim of that name that is somebody else's is not taken.
    node.pod("other").tells(&["FailedMount", "PVC default/other-v was not created for pod default/other (pod is not owner)"]);
    plane.kubectl(&["delete", "pod", "worker", "other"]).ok();
    driver.says("unstage vol-scratch");
    plane.is_gone("pvc", "worker-v");
    assert!(plane.get("pvc", "other-v").is_some());
}
