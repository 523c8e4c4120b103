//! Images of the world from a registry: by tag and by digest, in every format, and what becomes of a pod when they can't be had.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use e2e::{NodeBox, Pod, REGISTRY, eventually, pod, run};

/// Tries that tests can wait for.
const QUICK: &str =
    "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\ncrashLoopBackOff: {initial: 100ms, max: 400ms}\n";

#[test]
fn nginx_redis_busybox_and_debian_serve() {
    let node = NodeBox::builder().with_registry().start();
    let web = node.put(&pod("web").image("nginx", "nginx:1", "").shell("page", "busybox:1", SERVE));
    let data = node.put(&pod("data").image("redis", "redis", ""));
    let job =
        node.put(&pod("job").spec("restartPolicy: Never").shell("read", "debian:12", ". /etc/os-release; echo $NAME; id -un"));
    for pod in [&web, &data] {
        pod.is_ready();
    }

    let (web_ip, data_ip) = (web.ip(), data.ip());
    let page = eventually("nginx answers", || node.curl(&format!("http://{web_ip}")).result());
    assert!(page.contains("Welcome to nginx!"), "{page}");
    let page = eventually("busybox answers", || node.curl(&format!("http://{web_ip}:8000")).result());
    assert_eq!(page, "hello from busybox\n");
    // One container of a pod reaches another on localhost, and another pod by its address.
    let fetch = |url: &str| web.container("page").exec(&["wget", "-q", "-O", "-", url]).result();
    assert!(eventually("localhost answers", || fetch("http://127.0.0.1")).contains("Welcome to nginx!"));
    web.container("nginx").logged("GET / HTTP/1.1");

    let redis = data.container("redis");
    eventually("redis answers", || redis.exec(&["redis-cli", "ping"]).result());
    redis.exec(&["redis-cli", "set", "key", "value"]).ok();
    let client = pod("client").spec("restartPolicy: Never").shell("get", "redis:7", &format!("redis-cli -h {data_ip} get key"));
    let client = node.put(&client);
    client.becomes("Succeeded");
    assert_eq!(client.container("get").logs(&[]), "value\n");
    // The image's entry point has stepped down from root to its own account.
    assert!(redis.exec(&["sh", "-c", "grep Uid /proc/1/status"]).ok().split_whitespace().nth(1) != Some("0"));

    job.becomes("Succeeded");
    assert_eq!(job.container("read").logs(&[]), "Debian GNU/Linux\nroot\n");
}

const SERVE: &str = "mkdir /www; echo hello from busybox > /www/index.html; exec httpd -f -p 8000 -h /www";

#[test]
fn a_digest_names_exactly_one_image() {
    let node = NodeBox::builder().with_registry().start();
    let reference = format!("docker://{REGISTRY}/library/busybox:1");
    let digest = node.inside("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &reference]).ok();
    let image = format!("busybox@{}", digest.trim());
    let exact = node.put(&pod("exact").spec("restartPolicy: Never").shell("say", &image, "echo exactly"));
    exact.becomes("Succeeded");
    let status = exact.container("say").status(&exact.get().unwrap());
    assert!(status["imageID"].as_str().unwrap().ends_with(digest.trim()), "{status}");
    // The same by tag is the same image, and isn't pulled again.
    let tagged = node.put(&pod("tagged").spec("restartPolicy: Never").shell("say", "docker.io/library/busybox:1", "echo tagged"));
    tagged.becomes("Succeeded");
    let listed = node.run(&["image", "ls", "--wide"]).ok();
    assert!(listed.contains("docker.io/library/busybox"), "{listed}");
    let missing = node.put(&pod("missing").image("app", &format!("busybox@sha256:{}", "0".repeat(64)), ""));
    is_refused(&missing, "not found");
}

/// Waits until the pod's container `app` has no image; its status and events say these words.
#[track_caller]
fn is_refused(pod: &Pod<'_>, words: &str) {
    is_refused_in(pod, "app", words);
    pod.becomes("Pending");
}

#[track_caller]
fn is_refused_in(pod: &Pod<'_>, container: &str, words: &str) {
    let message = pod.container(container).until(&format!("has no image because of {words:?}"), |status| {
        let waiting = &status["state"]["waiting"];
        let reasons = ["ErrImagePull", "ImagePullBackOff"];
        let refused = reasons.iter().any(|reason| waiting["reason"] == *reason);
        refused.then(|| waiting["message"].as_str().unwrap_or_default().to_string())
    });
    assert!(message.contains(words), "{words:?} is not in {message:?}");
    pod.tells(&["Failed", words]);
}

#[test]
fn an_image_that_cannot_be_had_says_why_and_hurts_nobody() {
    let node = NodeBox::builder().with_registry().config(QUICK).start();
    let cases = [
        ("no-tag", "nginx:nope", "", "not found"),
        ("no-name", "no/such/image", "", "not found"),
        ("no-registry", "127.0.0.1:1/image", "", "127.0.0.1:1"),
        ("no-platform", "elsewhere", "", "arm64"),
    ];
    let refused: Vec<_> = cases
        .iter()
        .map(|(name, image, fields, words)| {
            // The neighbour's image is there: it doesn't run alone all the same, but nothing of it is lost.
            (node.put(&pod(name).image("app", image, fields).runs("neighbour", "sleep")), words)
        })
        .collect();
    let good = node.put(&pod("good").shell("sh", "busybox", "sleep 1000"));
    good.is_ready();
    for (pod, words) in refused {
        is_refused(&pod, words);
        pod.container("neighbour").is_running();
    }
    node.pod("no-tag").tells(&["BackOff", "nginx:nope"]);
    let never = node.put(&pod("never").image("app", "redis:7", "imagePullPolicy: Never").runs("neighbour", "sleep"));
    never.tells(&["ErrImageNeverPull", "\"redis:7\" is not present with pull policy of Never"]);
    never.container("app").waits_because("ErrImageNeverPull");
    never.container("neighbour").is_running();
    // An edit that names an image that is there is all it takes.
    node.put(&pod("no-tag").image("app", "nginx:1", "").runs("neighbour", "sleep"));
    node.pod("no-tag").is_ready();
    assert_eq!(node.pod("no-tag").container("neighbour").restarts(), 0);
}

#[test]
fn damaged_images_are_noticed_and_nothing_of_them_is_kept() {
    let node = NodeBox::builder().with_registry_after(damage).config(QUICK).start();
    let cases = [("changed", "busybox:1"), ("cut-short", "redis:7"), ("other-manifest", "nginx:1")];
    let pods: Vec<_> = cases.iter().map(|(name, image)| node.put(&pod(name).image("app", image, ""))).collect();
    for pod in &pods {
        let message = pod.container("app").until("has no image", |status| {
            let waiting = &status["state"]["waiting"];
            let refused = waiting["reason"] == "ErrImagePull" || waiting["reason"] == "ImagePullBackOff";
            refused.then(|| waiting["message"].as_str().unwrap_or_default().to_string())
        });
        assert!(message.contains("sha256:") || message.contains("bytes"), "{message}");
    }
    let listed = node.run(&["image", "ls"]).ok();
    assert!(!listed.contains("docker.io"), "{listed}");
    node.put(&pod("good").runs("a", "sleep")).is_ready();
}

/// A layer of other bytes, a layer of half the bytes, and a tag that leads to a manifest whose bytes aren't those of its digest.
fn damage(storage: &Path) {
    let layer = |name: &str, tag: &str| {
        let manifest = e2e::manifest(storage, name, tag);
        e2e::blob(storage, manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap())
    };
    let changed = layer("busybox", "1");
    let mut bytes = std::fs::read(&changed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    e2e::replace(&changed, &bytes);
    let half = layer("redis", "7");
    let bytes = std::fs::read(&half).unwrap();
    e2e::replace(&half, &bytes[..bytes.len() / 2]);
    let config = e2e::manifest(storage, "nginx", "1")["config"]["digest"].as_str().unwrap().to_string();
    let path = e2e::blob(storage, &config);
    let text = std::fs::read_to_string(&path).unwrap();
    e2e::replace(&path, text.replacen("amd64", "amd65", 1).as_bytes());
}

#[test]
fn an_edited_image_restarts_its_container_alone() {
    let node = NodeBox::builder().with_registry().config(QUICK).start();
    let manifest = |image: &str| pod("edited").shell("a", image, WHICH).shell("b", "busybox:1", WHICH);
    let edited = node.put(&manifest("busybox:1"));
    edited.container("a").logged("/bin/sh\n");
    let (uid, other) = (edited.uid(), edited.container("b").id());
    node.put(&manifest("debian:12"));
    edited.container("a").was_restarted(1);
    edited.container("a").logged("bin/dash\n");
    // One that isn't there, and back while it is still tried.
    node.put(&manifest("debian:nope"));
    is_refused_in(&edited, "a", "not found");
    node.put(&manifest("busybox:1"));
    edited.container("a").logged("/bin/sh\n");
    edited.is_ready();
    assert_eq!((edited.uid(), edited.container("b").id()), (uid, other));
}

/// Which shell it is: the images' differ.
const WHICH: &str = "readlink -f /bin/sh; trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[test]
fn images_are_pulled_loaded_listed_and_removed_by_hand() {
    let node = NodeBox::builder().with_registry().start();
    let pulled = node.run(&["image", "pull", "busybox:1"]).ok();
    assert!(pulled.contains("busybox"), "{pulled}");
    node.run(&["image", "pull", "busybox:nope"]).fails();
    assert!(node.run(&["image", "inspect", "busybox:1"]).ok().contains("\"architecture\""));

    // What skopeo saves in each of the archives' formats is loaded, and runs with no registry asked.
    for (format, name) in [("docker-archive", "docker"), ("oci-archive", "oci")] {
        let file = node.folder().join(format!("{name}.tar"));
        let target = format!("{format}:{}:example.org/saved/{name}:1", file.display());
        let source = format!("docker://{REGISTRY}/library/busybox:1");
        run(node.command("skopeo").args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", &source, &target]))
            .ok();
        node.run(&["image", "load", file.to_str().unwrap()]).ok();
        let image = format!("example.org/saved/{name}:1");
        let runs = node.put(&pod(name).spec("restartPolicy: Never").shell("say", &image, "echo loaded"));
        runs.becomes("Succeeded");
        assert_eq!(runs.container("say").logs(&[]), "loaded\n");
    }
    let torn = node.folder().join("torn.tar");
    let bytes = std::fs::read(node.folder().join("docker.tar")).unwrap();
    std::fs::write(&torn, &bytes[..bytes.len() / 3]).unwrap();
    node.run(&["image", "load", torn.to_str().unwrap()]).fails();

    // One that is in use stays.
    let uses = node.put(&pod("uses").shell("sh", "debian:12", "sleep 1000"));
    uses.is_ready();
    node.run(&["image", "pull", "redis:7"]).ok();
    node.run(&["image", "prune"]).ok();
    let listed = node.run(&["image", "ls"]).ok();
    assert!(listed.contains("debian") && listed.contains("nodeagent-demo") && !listed.contains("redis"), "{listed}");
    assert!(node.run(&["image", "rm", "debian:12"]).fails().contains("in use"));
    uses.container("sh").is_running();
}
