//! Volumes of CSI drivers, by a real one: CSI's own messages and grpc-go (e2e/plugins).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use e2e::{NodeBox, Running, eventually, pod};

const DRIVER: &str = "disk.example.com";

fn root(node: &NodeBox) -> PathBuf {
    node.root().join("var/lib/kubelet")
}

/// What the agent asked of the driver, by this call.
fn asked(driver: &Running, call: &str) -> Vec<String> {
    driver.output().lines().filter(|line| line.split(' ').next() == Some(call)).map(str::to_owned).collect()
}

fn asks(name: &str, more: &str) -> e2e::Manifest {
    let volumes = format!("volumes: [{{name: data, csi: {{driver: {DRIVER}, volumeAttributes: {{size: small}}{more}}}}}]");
    pod(name).spec(&volumes).runs_with("main", "sleep", "volumeMounts: [{name: data, mountPath: /data}]")
}

#[test]
fn a_files_pod_has_a_volume_of_a_driver_as_long_as_it_lives() {
    let node = NodeBox::start();
    node.apply("key.yaml", "{apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {password: hunter2}}");
    let manifest = asks("web", ", fsType: ext4, nodePublishSecretRef: {name: key}")
        .spec("securityContext: {fsGroup: 4242}")
        .spec("serviceAccountName: robot");
    let web = node.put(&manifest);
    // There is no driver yet.
    let waits = "MountVolume.SetUp failed for volume \"data\" : driver name disk.example.com not found in the list of registered CSI drivers";
    web.tells(&["FailedMount", waits]);
    let mut driver = node.csi_driver(DRIVER, &[]);
    web.is_ready();
    let uid = web.uid();
    let request = asked(&driver, "publish").pop().unwrap();
    assert!(request.contains("readonly=false block=false fs=ext4 flags= group= mode=1 secrets=[password:hunter2]"), "{request}");
    let context =
        format!("context=[ephemeral:true,pod.name:web,pod.namespace:default,pod.uid:{uid},serviceAccount.name:robot,size:small]");
    assert!(request.contains(&context), "{request}");
    assert!(!node.agent_output().contains("hunter2"), "a secret must not get into the log");
    // The volume is the container's to write, by the pod's group.
    web.container("main").demo("write /data/file words");
    let handle = request.split(' ').nth(1).unwrap().to_owned();
    let folder = root(&node).join(format!("driver-{DRIVER}")).join(&handle);
    assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap().trim(), "words");
    let rights = std::fs::metadata(&folder).unwrap();
    assert_eq!((rights.gid(), rights.permissions().mode() & 0o2070), (4242, 0o2070));

    // Its end waits until the driver has let go of it.
    driver.write("refuse unpublish\n");
    driver.says("did refuse");
    node.remove("web.yaml");
    web.tells(&["FailedKillPod", "UnmountVolume.TearDown failed for volume \"data\"", "the disk is on fire"]);
    assert!(web.get().is_some() && folder.exists());
    // Also for an agent that comes after.
    node.kill_agent();
    node.start_agent();
    driver.write("allow unpublish\n");
    web.is_gone();
    eventually("the driver has its folder back", || if folder.exists() { Err(driver.output()) } else { Ok(()) });
    eventually("nothing is left of the pod in the kubelet's folder and in the agent's", || {
        let places = [root(&node).join("pods").join(&uid), node.root().join("var/lib/nodeagent/csi").join(&uid)];
        let left: Vec<_> = places.iter().filter(|place| place.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn a_volume_is_mounted_once_however_often_containers_start() {
    let node = NodeBox::start();
    let driver = node.csi_driver(DRIVER, &["MOUNT_GROUP=1"]);
    let web = node.put(&asks("web", ", readOnly: true").spec("securityContext: {fsGroup: 4242}"));
    web.is_ready();
    let main = web.container("main");
    let refused = main.exec(&["/demo", "write", "/data/file", "words"]).fails();
    assert!(refused.contains("Read-only file system"), "{refused}");
    let request = asked(&driver, "publish").pop().unwrap();
    // The driver sees to the group itself.
    assert!(request.contains("readonly=true") && request.contains("group=4242"), "{request}");
    node.kill_agent();
    node.start_agent();
    web.is_ready();
    node.inside("kill", &["-KILL", &main.host_pid().to_string()]).ok();
    main.was_restarted(1);
    web.is_ready();
    assert_eq!(asked(&driver, "publish").len(), 1, "{}", driver.output());
    // After a reboot nothing is mounted: it is asked for again, by the same name.
    drop(driver);
    let target = root(&node).join("pods").join(web.uid()).join("volumes/kubernetes.io~csi/data/mount");
    node.reboot();
    node.inside("umount", &[target.to_str().unwrap()]).ok();
    node.start_agent();
    let driver = node.csi_driver(DRIVER, &["MOUNT_GROUP=1"]);
    web.is_ready();
    let again = asked(&driver, "publish").pop().unwrap();
    assert_eq!(again.split(' ').nth(1), request.split(' ').nth(1));
}

#[test]
fn a_driver_that_refuses_is_quoted_and_asked_again() {
    let node = NodeBox::start();
    let mut driver = node.csi_driver(DRIVER, &[]);
    driver.write("refuse publish\n");
    driver.says("did refuse");
    let web = node.put(&asks("web", ""));
    let words = "MountVolume.SetUp failed for volume \"data\" : rpc error: code = Internal desc = publish: the disk is on fire";
    web.tells(&["FailedMount", words]);
    driver.write("allow publish\n");
    web.is_ready();
    // Let go of before there was ever a container with it.
    driver.write("refuse publish\n");
    let other = node.put(&asks("other", ""));
    other.tells(&["FailedMount", "the disk is on fire"]);
    node.remove("other.yaml");
    other.is_gone();
    assert_eq!(asked(&driver, "unpublish").len(), 1);
}

#[test]
fn a_pod_that_has_completed_gives_its_volumes_back_and_is_still_shown() {
    let node = NodeBox::start();
    let driver = node.csi_driver(DRIVER, &[]);
    let volumes = format!("volumes: [{{name: data, csi: {{driver: {DRIVER}}}}}]");
    let once = pod("once").spec(&volumes).spec("restartPolicy: Never");
    let once = node.put(&once.runs_with("main", "write /data/file words", "volumeMounts: [{name: data, mountPath: /data}]"));
    once.becomes("Succeeded");
    driver.says("unpublish csi-");
    assert!(once.get().is_some());
}
