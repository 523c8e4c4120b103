//! Volumes of every kind, as a container sees them, and what becomes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2e::{Manifest, NodeBox, Pod, assert_eventually, eventually, pod};
use rstest::rstest;

/// A pod with volume `v` at /v.
fn with_volume(name: &str, volume: &str, mount: &str) -> Manifest {
    let mounts = format!("volumeMounts: [{{name: v, mountPath: /v{mount}}}]");
    pod(name).spec(&format!("volumes: [{{name: v, {volume}}}]")).runs_with("main", "sleep", &mounts)
}

fn listed(pod: &Pod<'_>, folder: &str) -> Vec<String> {
    let names = pod.container("main").demo(&format!("list {folder}"));
    names.lines().filter(|name| !name.starts_with("..")).map(str::to_owned).collect()
}

#[rstest]
#[case::empty_dir("emptyDir: {}", "0:0 777")]
#[case::mode("emptyDir: {mode: 0750}", "0:0 750")]
#[case::memory("emptyDir: {medium: Memory, sizeLimit: 1Mi}", "0:0 777")]
#[case::ephemeral(
    "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}",
    "0:0 777"
)]
#[case::image("image: {reference: 'localhost/nodeagent-demo:latest'}", "0:0 755")]
fn a_folder_of_its_own(#[case] volume: &str, #[case] rights: &str) {
    let node = NodeBox::start();
    let one = node.put(&with_volume("one", volume, ""));
    one.is_ready();
    let own = one.container("main").demo("own /v");
    assert!(own.starts_with(rights), "{own}");
    if volume.starts_with("image") {
        assert!(listed(&one, "/v").contains(&"demo".to_owned()));
        one.container("main").exec(&["/demo", "write", "/v/x", "y"]).fails();
    } else {
        one.container("main").demo("write /v/x kept");
    }
    node.remove("one.yaml");
    one.is_gone();
    let left = node.inside("find", &[node.root().to_str().unwrap(), "-path", "*/volumes/*"]);
    assert_eq!(left.ok(), "");
}

#[test]
fn the_pods_own_fields_are_files_and_follow_its_labels() {
    let node = NodeBox::start();
    let volume = "downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, \
                  {path: deep/name, mode: 0440, fieldRef: {fieldPath: metadata.name}}, \
                  {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}]}";
    let manifest = |color: &str| {
        let mounts = "resources: {limits: {cpu: 250m}}\nvolumeMounts: [{name: v, mountPath: /v}]";
        pod("web")
            .metadata(&format!("labels: {{color: {color}}}"))
            .spec(&format!("volumes: [{{name: v, {volume}}}]"))
            .runs_with("main", "sleep", mounts)
    };
    let web = node.put(&manifest("blue"));
    web.is_ready();
    let main = web.container("main");
    assert_eq!(main.demo("read /v/labels"), "color=\"blue\"");
    assert_eq!(main.demo("read /v/deep/name"), "web");
    assert_eq!(main.demo("read /v/cpu"), "250");
    node.put(&manifest("red"));
    assert_eventually!(main.demo("read /v/labels") == "color=\"red\"", "the new label is seen");
    assert_eq!(main.restarts(), 0);
}

#[test]
fn a_projected_volume_gathers_its_sources() {
    let node = NodeBox::start();
    node.apply(
        "objects.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\ndata: {a: '1', b: '2'}\nbinaryData: {c: /w==}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: login}\nstringData: {password: p}\n",
    );
    let sources = "projected: {defaultMode: 0400, sources: [{configMap: {name: app, items: [{key: a, path: sub/one, mode: 0444}]}}, \
                   {secret: {name: login}}, {configMap: {name: none, optional: true}}, \
                   {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}";
    let all = node.put(&with_volume("all", sources, ""));
    all.is_ready();
    assert_eq!(listed(&all, "/v"), ["name", "password", "sub"]);
    let main = all.container("main");
    assert_eq!(main.demo("read /v/sub/one"), "1");
    assert_eq!(main.demo("read /v/password"), "p");
    assert!(main.demo("own /v/..data/password").starts_with("0:0 400"));
    assert!(main.demo("own /v/..data/sub/one").starts_with("0:0 444"));
}

#[test]
fn a_claim_outlives_its_pods_and_its_file() {
    let node = NodeBox::start();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n\
                 spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    let volume = "persistentVolumeClaim: {claimName: data}";
    let first = node.put(&with_volume("first", volume, ""));
    first.tells(&["FailedMount", "persistentvolumeclaim \"data\" not found"]);
    node.apply("claim.yaml", claim);
    first.is_ready();
    first.container("main").demo("write /v/x kept");
    node.remove("first.yaml");
    first.is_gone();
    node.remove("claim.yaml");
    node.apply("claim.yaml", claim);
    let second = node.put(&with_volume("second", volume, ", readOnly: true"));
    second.is_ready();
    assert_eq!(second.container("main").demo("read /v/x"), "kept");
    second.container("main").exec(&["/demo", "write", "/v/x", "y"]).fails();
    let folder = node.root().join("var/lib/nodeagent/claims/default/data/x");
    assert_eq!(std::fs::read_to_string(folder).unwrap().trim_end(), "kept");
}

#[test]
fn a_group_owns_what_is_in_the_volumes() {
    let node = NodeBox::start();
    node.apply("login.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\nstringData: {password: p}\n");
    node.apply(
        "claim.yaml",
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
    );
    let volumes = "volumes: [{name: s, secret: {secretName: login, defaultMode: 0400}}, {name: e, emptyDir: {}}, {name: p, persistentVolumeClaim: {claimName: data}}]";
    let mounts = "volumeMounts: [{name: s, mountPath: /s}, {name: e, mountPath: /e}, {name: p, mountPath: /p}]";
    let grouped = pod("grouped")
        .spec(volumes)
        .spec("securityContext: {fsGroup: 4242, runsAsUser: 1000}".replace("runsAsUser", "runAsUser").as_str())
        .runs_with("main", "sleep", mounts);
    let grouped = node.put(&grouped);
    grouped.is_ready();
    let main = grouped.container("main");
    assert!(main.demo("own /s/..data/password").starts_with("0:4242 440"));
    assert_eq!(main.demo("read /s/password"), "p");
    for folder in ["/e", "/p"] {
        assert!(main.demo(&format!("own {folder}")).starts_with("0:4242 2777"), "{}", main.demo(&format!("own {folder}")));
        main.demo(&format!("write {folder}/x y"));
        assert!(main.demo(&format!("own {folder}/x")).starts_with("1000:4242 "));
    }
}

#[test]
fn a_sub_path_can_be_made_of_variables() {
    let node = NodeBox::start();
    let name = "env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]";
    let mounts = "volumeMounts: [{name: v, mountPath: /own, subPathExpr: $(WHO)/logs}, {name: v, mountPath: /all}]";
    let manifest = pod("web").spec("volumes: [{name: v, emptyDir: {}}]").runs_with("main", "sleep", &format!("{name}\n{mounts}"));
    let web = node.put(&manifest);
    web.is_ready();
    web.container("main").demo("write /own/x y");
    assert_eq!(web.container("main").demo("read /all/web/logs/x"), "y");
}

#[test]
fn what_an_init_container_writes_can_be_the_environment_of_the_others() {
    let node = NodeBox::start();
    node.apply(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: data-base}\nspec: {clusterIP: 10.96.0.7, ports: [{port: 5432}]}\n",
    );
    let file = "env: [{name: COLOR, valueFrom: {fileKeyRef: {volumeName: v, path: config.env, key: COLOR}}}, \
                {name: NONE, valueFrom: {fileKeyRef: {volumeName: v, path: none, key: COLOR, optional: true}}}, \
                {name: URL, value: 'db://$(DATA_BASE_SERVICE_HOST)/$(COLOR)/$$(COLOR)'}]";
    let manifest = pod("web")
        .spec("volumes: [{name: v, emptyDir: {}}]")
        .first_runs("setup", "write /v/config.env COLOR='blue'", "volumeMounts: [{name: v, mountPath: /v}]")
        .runs_with("main", "sleep", file);
    let web = node.put(&manifest);
    web.is_ready();
    let env = web.container("main").demo("env");
    let lines: Vec<&str> = env.lines().collect();
    for expected in ["COLOR=blue", "URL=db://10.96.0.7/blue/$(COLOR)", "DATA_BASE_PORT_5432_TCP_ADDR=10.96.0.7"] {
        assert!(lines.contains(&expected), "{expected} is not in\n{env}");
    }
    assert!(!env.contains("NONE"), "{env}");
}

#[rstest]
#[case("csi: {driver: x.example.org}", "driver name x.example.org not found in the list of registered CSI drivers")]
#[case("gitRepo: {repository: 'https://example.org/x'}", "spec.volumes[0].gitRepo: Forbidden")]
#[case(
    "projected: {sources: [{serviceAccountToken: {path: token}}]}",
    "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: only an API server can issue it"
)]
fn what_cannot_be_here_says_why(#[case] volume: &str, #[case] expected: &str) {
    let node = NodeBox::start();
    node.put(&with_volume("refused", volume, ""));
    eventually("the reason is told", || {
        let said = node.agent_output();
        if said.contains(expected) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn an_empty_dir_beyond_its_limit_is_the_end_of_the_pod() {
    let node = NodeBox::start();
    let limited = |name: &str| with_volume(name, "emptyDir: {sizeLimit: 1Mi}", "").runs("calm", "sleep");
    let modest = node.put(&limited("modest"));
    let greedy = node.put(&limited("greedy"));
    modest.is_ready();
    greedy.is_ready();
    let volume = node.root().join("var/lib/nodeagent/pods").join(greedy.uid()).join("volumes/empty-dir/v/big");
    std::fs::write(volume, vec![1; 2 << 20]).unwrap();
    greedy.becomes("Failed");
    let status = greedy.get().unwrap()["status"].clone();
    assert_eq!(status["reason"], "Evicted", "{status}");
    assert_eq!(status["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
    greedy.tells(&["Evicted", "exceeds the limit"]);
    modest.is_ready();
    // It stays so.
    node.kill_agent();
    node.start_agent();
    greedy.becomes("Failed");
    assert_eq!(greedy.get().unwrap()["status"]["reason"], "Evicted");
    node.remove("greedy.yaml");
    greedy.is_gone();
}

#[test]
fn a_claims_data_goes_when_it_asks_for_that_and_nobody_uses_it() {
    let node = NodeBox::start();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data, annotations: {nodeagent.dev/reclaim-policy: Delete}}\n\
                 spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    node.apply("claim.yaml", claim);
    let user = node.put(&with_volume("user", "persistentVolumeClaim: {claimName: data}", ""));
    user.is_ready();
    user.container("main").demo("write /v/x y");
    let folder = node.root().join("var/lib/nodeagent/claims/default/data");
    node.remove("claim.yaml");
    let late = node.put(&with_volume("late", "persistentVolumeClaim: {claimName: data}", ""));
    late.tells(&["FailedMount", "persistentvolumeclaim \"data\" not found"]);
    assert!(folder.join("x").exists(), "a pod uses it");
    node.remove("late.yaml");
    late.is_gone();
    node.remove("user.yaml");
    user.is_gone();
    assert_eventually!(!folder.exists(), "nobody uses it");
}

#[rstest]
#[case("nfs: {server: 192.0.2.7, path: /export}", "this node has no mount.nfs: install it (Debian: nfs-common)")]
#[case(
    "iscsi: {targetPortal: 192.0.2.7, iqn: 'iqn.2001-04.com.example:disk', lun: 0}",
    "this node has no iscsiadm: install it (Debian: open-iscsi)"
)]
fn without_the_nodes_client_it_is_said_what_to_install(#[case] volume: &str, #[case] words: &str) {
    let node = NodeBox::builder().environment("PATH=/nowhere".into()).start();
    let web = node.put(&with_volume("web", volume, ""));
    web.tells(&["FailedMount", words]);
    // It holds up no other, and nothing of it is left.
    node.put(&pod("good").runs("main", "sleep")).is_ready();
    node.remove("web.yaml");
    web.is_gone();
}

#[test]
fn nfs_is_mounted_by_the_nodes_own_client() {
    use std::os::unix::fs::PermissionsExt;

    let node = NodeBox::start();
    let volume = "nfs: {server: 192.0.2.7, path: /export/data}";
    let web = node.put(&with_volume("web", volume, ""));
    // A client that knows one server: the test's own folder.
    let (bin, data) = (node.folder().join("bin"), node.folder().join("data"));
    for folder in [&bin, &data] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(data.join("x"), "from afar").unwrap();
    let client = bin.join("mount.nfs");
    let script =
        format!("#!/bin/sh\n[ \"$1 $3 $4\" = '192.0.2.7:/export/data -o rw' ] && mount --bind {} \"$2\"\n", data.display());
    std::fs::write(&client, script).unwrap();
    std::fs::set_permissions(&client, std::fs::Permissions::from_mode(0o755)).unwrap();
    if !node.inside("which", &["mount.nfs"]).all().contains("mount.nfs") {
        web.tells(&["FailedMount", "this node has no mount.nfs: install it (Debian: nfs-common)"]);
    }
    node.inside("mount", &["--bind", bin.to_str().unwrap(), "/usr/local/sbin"]).ok();
    web.is_ready();
    assert_eq!(web.container("main").demo("read /v/x"), "from afar");
    node.remove("web.yaml");
    web.is_gone();
    assert!(data.join("x").exists(), "it was unmounted, not deleted");
}

#[test]
fn iscsi_is_attached_and_let_go_by_the_nodes_own_client() {
    use std::os::unix::fs::PermissionsExt;

    let node = NodeBox::builder().without_agent().start();
    let (bin, words) = (node.folder().join("bin"), node.folder().join("words"));
    std::fs::create_dir(&bin).unwrap();
    // A client that writes down what it is told. The disk that its login makes appear is a file, which mount makes a loop device of.
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {words}\ncase \"$*\" in\n\
         *-p\\ 192.0.2.8:3260*--login) truncate -s 16M {disk} && mkfs.ext4 -q {disk} ;;\n*--logout) rm -f {disk} ;;\nesac\n",
        words = words.display(),
        disk = "/dev/disk/by-path/ip-192.0.2.8:3260-iscsi-iqn.2001-04.com.example:disk-lun-3"
    );
    std::fs::write(bin.join("iscsiadm"), script).unwrap();
    std::fs::set_permissions(bin.join("iscsiadm"), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The box gets a /dev of its own: the machine's stays as it is.
    let dev = "mkdir $0 && mount -t tmpfs dev $0 && cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/loop* $0 \
               && mkdir -p $0/disk/by-path $0/pts $0/shm $0/mqueue && mount --move $0 /dev && mount --bind $1 /usr/local/sbin";
    node.inside("sh", &["-c", dev, node.folder().join("dev").to_str().unwrap(), bin.to_str().unwrap()]).ok();
    node.start_agent();
    let volume =
        "iscsi: {targetPortal: 192.0.2.7, portals: ['192.0.2.8'], iqn: 'iqn.2001-04.com.example:disk', lun: 3, fsType: ext4}";
    let web = node.put(&with_volume("web", volume, ""));
    web.is_ready();
    web.container("main").demo("write /v/x y");
    assert!(web.container("main").demo("mounts").lines().any(|line| line.starts_with("/v ext4 rw")));
    node.remove("web.yaml");
    web.is_gone();
    let said = std::fs::read_to_string(&words).unwrap();
    let target = |portal: &str| format!("-m node -p {portal}:3260 -T iqn.2001-04.com.example:disk -I default");
    let (one, two) = (target("192.0.2.7"), target("192.0.2.8"));
    let expected =
        [&one, &two].map(|t| format!("{t} -o new\n{t} --login\n")).concat() + &format!("{one} --logout\n{two} --logout\n");
    assert_eq!(said, expected);
    // What would need a cluster's or the node's secrets says where they belong.
    node.put(&with_volume(
        "chap",
        "iscsi: {targetPortal: 192.0.2.7, iqn: 'iqn.2001-04.com.example:disk', lun: 3, chapAuthSession: true}",
        "",
    ));
    assert_eventually!(
        node.agent_output().contains("chapAuthSession: Forbidden: put the node's logins into /etc/iscsi/iscsid.conf")
    );
}

#[test]
fn volumes_keep_their_owners_in_a_pod_with_its_own_users() {
    let node = NodeBox::start();
    node.apply("login.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\nstringData: {password: p}\n");
    let volumes = "volumes: [{name: s, secret: {secretName: login, defaultMode: 0400}}, {name: e, emptyDir: {}}, \
                   {name: m, emptyDir: {medium: Memory}}, {name: i, image: {reference: 'localhost/nodeagent-demo:latest'}}]";
    let mounts =
        "volumeMounts: [{name: s, mountPath: /s}, {name: e, mountPath: /e}, {name: m, mountPath: /m}, {name: i, mountPath: /i}]";
    let web = node.put(&pod("web").spec(volumes).spec("hostUsers: false").runs_with("main", "sleep", mounts));
    web.is_ready();
    let main = web.container("main");
    assert!(main.demo("own /s/..data/password").starts_with("0:0 400"));
    assert_eq!(main.demo("read /s/password"), "p");
    for folder in ["/e", "/m"] {
        assert!(main.demo(&format!("own {folder}")).starts_with("0:0 777"));
        main.demo(&format!("write {folder}/x y"));
    }
    let volume = node.root().join("var/lib/nodeagent/pods").join(web.uid()).join("volumes/empty-dir/e/x");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume).unwrap());
    assert_eq!(owner, 0, "on the disk as in the pod: another pod can have the volume next");
    assert!(main.demo("list /i").contains("demo"));
}

#[test]
fn memory_is_limited_and_may_be_huge_pages() {
    let node = NodeBox::start();
    let volumes =
        "volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 64Ki}}, {name: h, emptyDir: {medium: HugePages-2Mi}}]";
    let mounts = "volumeMounts: [{name: m, mountPath: /m}, {name: h, mountPath: /h}]";
    let web = node.put(&pod("web").spec(volumes).runs_with("main", "sleep", mounts));
    web.is_ready();
    let main = web.container("main");
    let mounts = main.demo("mounts");
    let of = |path: &str| mounts.lines().find(|line| line.starts_with(&format!("{path} "))).unwrap_or_default();
    assert!(of("/m").contains("tmpfs") && of("/m").contains("size=64k"), "{mounts}");
    assert!(of("/h").contains("hugetlbfs") && of("/h").contains("pagesize=2M"), "{mounts}");
    let volume = node.root().join("var/lib/nodeagent/pods").join(web.uid()).join("volumes/empty-dir/m/big");
    let full = node.inside("dd", &["if=/dev/zero", &format!("of={}", volume.display()), "bs=1k", "count=100"]);
    assert!(full.all().contains("No space left on device"), "{full}");
    web.is_ready();
    let none = node.put(&with_volume("none", "emptyDir: {medium: HugePages-4Mi}", ""));
    none.tells(&["FailedMount", "this machine has no huge pages of 4Mi"]);
    let which = node.put(&with_volume("which", "emptyDir: {medium: HugePages}", ""));
    which.tells(&["FailedMount", "no container of the pod asks for huge pages"]);
}

#[test]
fn claims_are_where_the_configuration_says() {
    let disk = tempfile::tempdir().unwrap();
    let claims = disk.path().join("claims");
    let config = format!("apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nclaimsRoot: {}\n", claims.display());
    let node = NodeBox::builder().config(&config).start();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data, namespace: shop}\n\
                 spec: {accessModes: [ReadWriteOnce], storageClassName: fast, resources: {requests: {storage: 1Gi}}}\n";
    node.apply("claim.yaml", claim);
    let volume = "persistentVolumeClaim: {claimName: data}";
    let one = with_volume("one", volume, "").metadata("namespace: shop");
    node.put(&one);
    node.pod("shop/one").is_ready();
    node.pod("shop/one").container("main").demo("write /v/x y");
    assert!(claims.join("shop/data/x").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&claims).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "others on the machine have no business there");
    assert!(node.agent_output().contains("spec.storageClassName: chooses nothing here"), "{}", node.agent_output());
    // The claim of another namespace is another.
    let stranger = node.put(&with_volume("stranger", volume, ""));
    stranger.tells(&["FailedMount", "persistentvolumeclaim \"data\" not found"]);
}
