//! How volumes are mounted: what a hostPath must be, who may write, who sees what is mounted later, and in which groups.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::{NodeBox, pod};
use rstest::rstest;

fn mounted(path: &Path, kind: &str, more: &str) -> e2e::Manifest {
    let volume = format!("volumes: [{{name: v, hostPath: {{path: {}, type: '{kind}'}}}}]", path.display());
    pod("web").spec(&volume).runs_with("main", "sleep", &format!("volumeMounts: [{{name: v, mountPath: /v{more}}}]"))
}

/// What is made for a test at `here` below its folder.
fn make(kind: &str, path: &Path) -> Option<std::os::unix::net::UnixListener> {
    match kind {
        "folder" => std::fs::create_dir(path).unwrap(),
        "file" => std::fs::write(path, "x").unwrap(),
        "socket" => return Some(std::os::unix::net::UnixListener::bind(path).unwrap()),
        _ => {}
    }
    None
}

#[rstest]
#[case::any_folder("", "folder", "40755")]
#[case::any_file("", "file", "100644")]
#[case::any_is_made("", "nothing", "40755")]
#[case::folder("Directory", "folder", "40755")]
#[case::folder_is_made("DirectoryOrCreate", "nothing", "40755")]
#[case::folder_is_there("DirectoryOrCreate", "folder", "40755")]
#[case::file("File", "file", "100644")]
#[case::file_is_made("FileOrCreate", "nothing", "100644")]
#[case::file_is_there("FileOrCreate", "file", "100644")]
#[case::socket("Socket", "socket", "140755")]
fn a_host_path_is_what_it_should_be(#[case] kind: &str, #[case] there: &str, #[case] mode: &str) {
    let node = NodeBox::start();
    let path = node.folder().join("here");
    let _listener = make(there, &path);
    let web = node.put(&mounted(&path, kind, ""));
    web.is_ready();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(format!("{:o}", meta.mode()), mode);
    let own = web.container("main").demo("own /v");
    assert!(own.starts_with(&format!("0:0 {}", mode.get(mode.len() - 3..).unwrap())), "{own}");
    node.remove("web.yaml");
    web.is_gone();
    assert!(path.exists(), "it is the host's");
}

#[rstest]
#[case("Directory", "nothing", "No such file or directory")]
#[case("Directory", "file", "is not a directory")]
#[case("DirectoryOrCreate", "file", "is not a directory")]
#[case("File", "nothing", "No such file or directory")]
#[case("File", "folder", "is not a file")]
#[case("FileOrCreate", "folder", "is not a file")]
#[case("Socket", "file", "is not a socket")]
#[case("CharDevice", "file", "is not a character device")]
#[case("BlockDevice", "file", "is not a block device")]
fn a_host_path_that_is_something_else_says_so(#[case] kind: &str, #[case] there: &str, #[case] why: &str) {
    let node = NodeBox::start();
    let path = node.folder().join("here");
    make(there, &path);
    let web = node.put(&mounted(&path, kind, ""));
    web.tells(&["FailedMount", "MountVolume.SetUp failed for volume \"v\"", "hostPath type check failed", why]);
    assert_eq!(std::fs::exists(&path).unwrap(), there != "nothing", "nothing is made");
}

#[test]
fn a_device_is_a_host_path() {
    let node = NodeBox::start();
    let web = node.put(&mounted(Path::new("/dev/null"), "CharDevice", ""));
    web.is_ready();
    assert!(web.container("main").demo("own /v").starts_with("0:0 666"));
}

#[test]
fn a_mount_says_who_may_write_and_execute() {
    let node = NodeBox::start();
    let host = node.folder().join("host");
    std::fs::create_dir_all(&host).unwrap();
    let mount = |path: &str, more: &str| format!("{{name: v, mountPath: {path}{more}}}");
    let mounts = [
        mount("/plain", ""),
        mount("/read", ", readOnly: true"),
        mount("/deep", ", readOnly: true, recursiveReadOnly: IfPossible"),
        mount("/bare", ", bindMountOptions: [noexec, nosuid, nodev]"),
    ];
    let volume = format!("volumes: [{{name: v, hostPath: {{path: {}}}}}]", host.display());
    let web = node.put(&pod("web").spec(&volume).runs_with("main", "sleep", &format!("volumeMounts: [{}]", mounts.join(", "))));
    web.is_ready();
    let main = web.container("main");
    main.demo("write /plain/x y");
    for path in ["/read", "/deep"] {
        assert_eq!(main.demo(&format!("read {path}/x")), "y");
        main.exec(&["/demo", "write", &format!("{path}/x"), "z"]).fails();
    }
    std::fs::copy("/bin/true", host.join("true")).unwrap();
    std::fs::set_permissions(host.join("true"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = main.exec(&["/bare/true"]);
    assert_eq!(refused.code, 126, "{refused}");
    let options = main.demo("mounts");
    let of = |path: &str| options.lines().find(|line| line.starts_with(&format!("{path} "))).unwrap_or_default().to_owned();
    for option in ["noexec", "nosuid", "nodev"] {
        assert!(of("/bare").contains(option) && !of("/plain").contains(option), "{options}");
    }
    let status = main.status(&web.get().unwrap());
    let shown = |i: usize| status["volumeMounts"][i]["recursiveReadOnly"].as_str().map(str::to_owned);
    assert_eq!((shown(0), shown(1), shown(2)), (None, Some("Disabled".into()), Some("Enabled".into())), "{status}");
}

#[test]
fn what_a_privileged_container_mounts_can_be_seen_by_the_host() {
    let node = NodeBox::start();
    let host = node.folder().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    let path = host.to_str().unwrap();
    node.inside("mount", &["--bind", path, path]).ok();
    node.inside("mount", &["--make-shared", path]).ok();
    let fields = "securityContext: {privileged: true}\nvolumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]";
    let other = "volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]";
    let volume = format!("volumes: [{{name: v, hostPath: {{path: {path}}}}}]");
    let manifest = pod("web").spec(&volume).runs_with("main", "sleep", fields).runs_with("other", "sleep", other);
    let web = node.put(&manifest);
    web.is_ready();
    web.container("main").demo("mount-tmpfs /v/sub");
    web.container("main").demo("write /v/sub/x y");
    assert_eq!(node.inside("cat", &[&format!("{path}/sub/x")]).ok(), "y\n");
    assert_eq!(web.container("other").demo("read /v/sub/x"), "y");
    // Only who is privileged may do that.
    node.put(&pod("bad").spec(&volume).runs_with("main", "sleep", fields.lines().nth(1).unwrap()));
    e2e::assert_eventually!(
        node.agent_output().contains("Bidirectional mount propagation is available only to privileged containers"),
        "it is refused"
    );
}

#[test]
fn an_image_can_be_a_volume_in_parts() {
    let node = NodeBox::start();
    let image = "volumes: [{name: v, image: {reference: 'localhost/nodeagent-demo:latest'}}]";
    let mounts = "volumeMounts: [{name: v, mountPath: /file, subPath: demo}, {name: v, mountPath: /folder, subPath: etc}]";
    let web = node.put(&pod("web").spec(image).runs_with("main", "sleep", mounts));
    web.is_ready();
    let main = web.container("main");
    assert!(main.demo("own /file").starts_with("0:0 755"));
    main.exec(&["/demo", "write", "/folder/x", "y"]).fails();
    assert_eq!(main.exec(&["/file", "hostname"]).code, 126, "it is not to be executed");
    let missing = "volumeMounts: [{name: v, mountPath: /v, subPath: none}]";
    let missing = node.put(&pod("missing").spec(image).runs_with("main", "sleep", missing));
    missing.until("does not start", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        if waiting.as_str().is_some_and(|m| m.contains("none")) { Ok(()) } else { Err(pod["status"].to_string()) }
    });
}

/// The image says in its /etc/group that the user is in one more group.
#[rstest]
#[case::by_default("", "groups=3000,4000,5000")]
#[case::merge(", supplementalGroupsPolicy: Merge", "groups=3000,4000,5000")]
#[case::strict(", supplementalGroupsPolicy: Strict", "groups=3000,4000")]
fn groups_are_the_pods_and_unless_it_says_strict_the_images(#[case] policy: &str, #[case] groups: &str) {
    let node = NodeBox::start();
    node.apply(
        "accounts.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: accounts}\n\
         data: {passwd: \"bob:x:1000:1000::/:/bin/sh\\n\", group: \"extra:x:5000:bob\\n\"}\n",
    );
    let mounts =
        "volumeMounts: [{name: a, mountPath: /etc/passwd, subPath: passwd}, {name: a, mountPath: /etc/group, subPath: group}]";
    let security =
        format!("securityContext: {{runAsUser: 1000, runAsGroup: 1000, supplementalGroups: [3000], fsGroup: 4000{policy}}}");
    let manifest =
        pod("web").spec("volumes: [{name: a, configMap: {name: accounts}}]").spec(&security).runs_with("main", "sleep", mounts);
    let web = node.put(&manifest);
    web.is_ready();
    let id = web.container("main").demo("id");
    assert!(id.starts_with("uid=1000 gid=1000 "), "{id}");
    let mut seen: Vec<&str> = id.rsplit('=').next().unwrap().split(',').filter(|group| *group != "1000").collect();
    seen.sort_unstable();
    assert_eq!(format!("groups={}", seen.join(",")), groups);
}

/// A claim of which the root is the group's already, but not all that is in it.
#[test]
fn a_volume_is_given_to_its_group_as_the_policy_says() {
    let node = NodeBox::start();
    node.apply(
        "claim.yaml",
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
    );
    let pod_with = |name: &str, policy: &str, more: &str| {
        let volume = format!("volumes: [{{name: v, persistentVolumeClaim: {{claimName: data{more}}}}}]");
        let security = format!("securityContext: {{fsGroup: 4242, fsGroupChangePolicy: {policy}}}");
        node.put(&pod(name).spec(&volume).spec(&security).runs_with("main", "sleep", "volumeMounts: [{name: v, mountPath: /v}]"))
    };
    pod_with("first", "Always", "").is_ready();
    let file = node.root().join("var/lib/nodeagent/claims/default/data/late");
    std::fs::write(&file, "x").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
    let rights = || {
        let meta = std::fs::metadata(&file).unwrap();
        format!("{} {:o}", meta.gid(), meta.mode() & 0o7777)
    };
    pod_with("lazy", "OnRootMismatch", "").is_ready();
    assert_eq!(rights(), "0 600");
    pod_with("reader", "Always", ", readOnly: true").is_ready();
    assert_eq!(rights(), "0 600", "who only reads changes nothing");
    pod_with("thorough", "Always", "").is_ready();
    assert_eq!(rights(), "4242 660");
}

#[test]
fn mounts_show_what_is_mounted_later_only_where_that_is_asked_for() {
    let node = NodeBox::start();
    let host = node.folder().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    let path = host.to_str().unwrap();
    node.inside("mount", &["--bind", path, path]).ok();
    node.inside("mount", &["--make-shared", path]).ok();
    let volume = format!("volumes: [{{name: v, hostPath: {{path: {path}}}}}]");
    let mounts = |more: &str| format!("volumeMounts: [{{name: v, mountPath: /v{more}}}]");
    let manifest = pod("web")
        .spec(&volume)
        .runs_with("closed", "sleep", &mounts(""))
        .runs_with("open", "sleep", &mounts(", mountPropagation: HostToContainer"))
        .runs_with("deep", "sleep", &mounts(", readOnly: true, recursiveReadOnly: Enabled"));
    node.inside("mount", &["-t", "tmpfs", "before", &format!("{path}/sub")]).ok();
    let web = node.put(&manifest);
    web.is_ready();
    web.container("closed").demo("write /v/sub/x y");
    web.container("deep").exec(&["/demo", "write", "/v/sub/x", "y"]).fails();
    node.inside("mount", &["-t", "tmpfs", "after", &format!("{path}/sub")]).ok();
    node.inside("sh", &["-c", &format!("echo new > {path}/sub/new")]).ok();
    assert_eq!(web.container("open").demo("read /v/sub/new"), "new");
    web.container("closed").exec(&["/demo", "read", "/v/sub/new"]).fails();
}
