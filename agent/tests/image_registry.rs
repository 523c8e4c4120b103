//! The image store against Debian's docker-registry, and against files that skopeo wrote.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod image_support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Mutex;

use image_support::{Made, Node, Packing, Registry, names_in, noise, read, run, settings, sha256, small, tar_of};
use nodeagent::image::{Credential, Embedded, Error, Images, Progress, PullPolicy, Thresholds};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn pulls_every_packing_and_keeps_it() {
    let registry = Registry::plain();
    let made = Made::new(&[
        (tar_of(&[("etc/", b""), ("etc/a", b"one"), ("etc/b", b"two")]), Packing::Gzip),
        (tar_of(&[("etc/", b""), ("etc/.wh.a", b""), ("etc/c", &noise(3_000_000, 1))]), Packing::Zstd),
        (tar_of(&[("etc/", b""), ("etc/b", b"three")]), Packing::Plain),
    ]);
    registry.push(&made, "library/web:1");
    let node = Node::new();
    let name = format!("{}/library/web:1", registry.host);
    let steps = Mutex::new(Vec::new());
    let image = node.images.pull(&name, &[], &|step| steps.lock().unwrap().push(step)).await.unwrap();
    assert_eq!((image.id.clone(), image.layers.len()), (made.id(), 3));
    assert_eq!(&*image.names, std::slice::from_ref(&name));
    assert_eq!(&*image.repo_digests, [format!("{}/library/web@{}", registry.host, made.digest())]);
    assert_eq!(read(&image, "etc/b"), "three");
    let whiteout = std::fs::symlink_metadata(image.layers[1].join("etc/a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    let steps = steps.into_inner().unwrap();
    assert!(matches!(steps.first(), Some(Progress::Resolving { .. })) && matches!(steps.last(), Some(Progress::Done { .. })));
    assert_eq!(steps.iter().filter(|step| matches!(step, Progress::Unpacked { .. })).count(), 3);

    // By name, by digest, by id, by the id's start; and in a new process's life.
    let root = node.images.clone();
    drop(node.images);
    drop(root);
    let images = Images::open(settings(node.dir.path())).unwrap();
    for asked in [name.clone(), format!("{}/library/web@{}", registry.host, made.digest()), made.id(), made.id()[7..19].into()] {
        assert_eq!(images.resolve(&asked).map(|image| image.id), Some(made.id()), "{asked}");
    }
    drop(registry);
    // Nobody is asked for what is here; but Always asks.
    images.ensure(&name, PullPolicy::IfNotPresent, &[], &|_| ()).await.unwrap();
    images.ensure(&name, PullPolicy::Never, &[], &|_| ()).await.unwrap();
    let error = images.ensure(&name, PullPolicy::Always, &[], &|_| ()).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnavailable", "{error}");
    let error = images.ensure("elsewhere", PullPolicy::Never, &[], &|_| ()).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImageNeverPull", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_takes_the_layers_as_they_are() {
    let registry = Registry::plain();
    let made = Made::new(&[
        (tar_of(&[("d/", b""), ("d/old", b"1"), ("gone", b"1"), ("keep", b"1"), ("o/", b""), ("o/hidden", b"1")]), Packing::Gzip),
        (
            tar_of(&[("d/", b""), ("d/new", b"2"), (".wh.gone", b""), ("o/", b""), ("o/.wh..wh..opq", b""), ("o/seen", b"2")]),
            Packing::Gzip,
        ),
        (tar_of(&[]), Packing::Gzip),
        (tar_of(&[("top", b"4")]), Packing::Gzip),
        // The same layer twice: overlayfs would refuse it.
        (tar_of(&[]), Packing::Gzip),
    ]);
    registry.push(&made, "app:1");
    let node = Node::new();
    let image = node.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    let lower = image.layers.iter().rev().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
    let at = node.dir.path().join("merged");
    std::fs::create_dir(&at).unwrap();
    let script =
        format!("mount -t overlay overlay -o ro,lowerdir={lower} {0} && cd {0} && find . -mindepth 1 | sort", at.display());
    let seen = run("unshare", &["-m", "sh", "-c", &script]);
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["./d", "./d/new", "./d/old", "./keep", "./o", "./o/seen", "./top"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_login() {
    let registry = Registry::with_tls_and_login();
    let made = small("private");
    registry.push(&made, "team/app:1");
    // By another name than 127.0.0.1's, which needs no certificate.
    let host = registry.host.clone();
    let conf = format!("[[registry]]\nprefix = 'private.example'\nlocation = '{host}'\n");
    let node = Node::with(|_, dir| {
        std::fs::write(dir.join("registries.conf"), conf).unwrap();
        let certs = dir.join("certs.d").join(&host);
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::copy(registry.dir.path().join("ca.crt"), certs.join("ca.crt")).unwrap();
    });
    let name = "private.example/team/app:1";
    let error = node.pull(name).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let wrong = [Credential::basic(host.as_str(), "tester", "wrong")];
    let error = node.images.pull(name, &wrong, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let right = [wrong[0].clone(), Credential::basic(host.as_str(), "tester", "secret")];
    let image = node.images.pull(name, &right, &|_| ()).await.unwrap();
    assert_eq!(read(&image, "etc/motd"), "private");
    node.images.remove(name).await.unwrap();
    // From config.json.
    let auths = json!({"auths": {&host: {"auth": "dGVzdGVyOnNlY3JldA=="}}});
    std::fs::write(node.dir.path().join("config.json"), auths.to_string()).unwrap();
    node.pull(name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_what_skopeo_writes() {
    let made = Made::new(&[
        (tar_of(&[("etc/", b""), ("etc/a", b"one")]), Packing::Gzip),
        (tar_of(&[("etc/", b""), ("etc/b", b"two")]), Packing::Gzip),
    ]);
    let work = tempfile::tempdir().unwrap();
    let oci = work.path().join("oci");
    made.write_oci(&oci, "docker.io/team/app:3");
    let source = format!("oci:{}:docker.io/team/app:3", oci.display());
    let file = |name: &str| work.path().join(name).display().to_string();
    let copy = |to: String| run("skopeo", &["--insecure-policy", "copy", &source, &to]);
    copy(format!("docker-archive:{}:team/app:3", file("docker.tar")));
    copy(format!("oci-archive:{}:team/app:3", file("oci.tar")));
    run("gzip", &["-k", &file("docker.tar")]);
    run("zstd", &["-q", &file("oci.tar")]);
    for path in [oci.display().to_string(), file("docker.tar"), file("oci.tar"), file("docker.tar.gz"), file("oci.tar.zst")] {
        let node = Node::new();
        let steps = Mutex::new(0);
        let images =
            node.images.load(&path, &|_| *steps.lock().unwrap() += 1).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(images.len(), 1, "{path}");
        assert_eq!(&*images[0].names, ["docker.io/team/app:3"], "{path}");
        assert_eq!((read(&images[0], "etc/a"), read(&images[0], "etc/b")), ("one".into(), "two".into()));
        assert!(*steps.lock().unwrap() >= 5);
        assert_eq!(node.images.resolve("team/app:3").unwrap().layers.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeds_once_and_keeps_it() {
    let node = Node::new();
    let program = noise(100_000, 7);
    let entries = [Embedded::File("/demo".into(), 0o755, &program), Embedded::Directory("/tmp".into(), 0o1777)];
    let config = || oci_spec::image::ConfigBuilder::default().cmd(vec!["/demo".to_owned()]).build().unwrap();
    let first = node.images.embed("nodeagent.local/demo", &entries, config()).await.unwrap();
    let index = || std::fs::metadata(node.dir.path().join("images/index.json")).unwrap().ino();
    let before = index();
    let second = node.images.embed("nodeagent.local/demo", &entries, config()).await.unwrap();
    assert_eq!((first.id.clone(), index()), (second.id, before), "the second time writes nothing");
    assert!(first.embedded);
    assert_eq!(std::fs::metadata(first.layers[0].join("demo")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(std::fs::metadata(first.layers[0].join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    node.images.prune_unused().await.unwrap();
    let all = Thresholds { high_percent: 0.0, low_percent: 0.0, min_age: std::time::Duration::ZERO };
    node.images.gc(all).await.unwrap();
    assert!(matches!(node.images.remove("nodeagent.local/demo").await, Err(Error::InUse { .. })));
    assert!(node.images.resolve("nodeagent.local/demo").is_some_and(|image| image.layers[0].join("demo").exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_up_spares_what_is_needed() {
    let registry = Registry::plain();
    for name in ["used", "idle", "kept"] {
        registry.push(&small(name), &format!("{name}:1"));
    }
    let node = Node::new();
    let name = |name: &str| format!("{}/{name}:1", registry.host);
    let used = node.pull(&name("used")).await.unwrap();
    node.pull(&name("idle")).await.unwrap();
    node.pull(&name("kept")).await.unwrap();
    node.images.set_pinned(&name("kept"), true).await.unwrap();
    let pin = node.images.pin(&used);
    assert!(matches!(node.images.remove(&name("used")).await, Err(Error::InUse { .. })));
    let all = Thresholds { high_percent: 0.0, low_percent: 0.0, min_age: std::time::Duration::from_secs(3600) };
    assert_eq!(node.images.gc(all).await.unwrap().images, Vec::<String>::new(), "too young");
    let all = Thresholds { min_age: std::time::Duration::ZERO, ..all };
    let freed = node.images.gc(all).await.unwrap();
    assert_eq!(freed.images, [name("idle")]);
    assert!(freed.bytes > 0);
    assert_eq!(names_in(&node.dir.path().join("images/layers/sha256")).len(), 2);
    drop(pin);
    assert_eq!(node.images.gc(all).await.unwrap().images, [name("used")]);
    assert_eq!(names_in(&node.dir.path().join("images/configs/sha256")).len(), 1);

    // A tag that moves on leaves an image without names.
    let kept = node.images.resolve(&name("kept")).unwrap();
    node.images.set_pinned(&name("kept"), false).await.unwrap();
    registry.push(&small("newer"), "kept:1");
    let newer = node.images.ensure(&name("kept"), PullPolicy::Always, &[], &|_| ()).await.unwrap();
    assert_ne!(kept.id, newer.id);
    assert!(node.images.resolve(&kept.id).unwrap().names.is_empty());
    node.images.tag(&newer.id, "mine:2").await.unwrap();
    assert_eq!(node.images.prune().await.unwrap().images, [kept.id]);
    node.images.remove(&name("kept")).await.unwrap();
    assert_eq!(node.images.resolve("mine:2").unwrap().id, newer.id);
    let inspected = node.images.inspect("mine:2").await.unwrap();
    assert_eq!(inspected["config"]["config"]["Cmd"][0], "/bin/true");
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 1);
    node.images.remove("mine:2").await.unwrap();
    for left in ["layers/sha256", "configs/sha256", "manifests/sha256", "tmp"] {
        assert_eq!(names_in(&node.dir.path().join("images").join(left)), Vec::<String>::new(), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_a_usable_store() {
    let registry = Registry::plain();
    registry.push(&small("a"), "a:1");
    registry.push(&small("b"), "b:1");
    let node = Node::new();
    let (a, b) = (format!("{}/a:1", registry.host), format!("{}/b:1", registry.host));
    let broken = node.pull(&a).await.unwrap();
    node.pull(&b).await.unwrap();
    drop(node.images);
    // What crashes leave: half-made things in tmp, a layer that no index names, a layer that is gone.
    let root = node.dir.path().join("images");
    std::fs::create_dir_all(root.join("tmp/7/fs/deep")).unwrap();
    std::fs::write(root.join("tmp/8"), "half").unwrap();
    std::fs::create_dir_all(root.join("layers/sha256").join(&sha256(b"orphan")[7..])).unwrap();
    std::fs::remove_dir_all(&broken.layers[0]).unwrap();
    let images = Images::open(settings(node.dir.path())).unwrap();
    assert!(images.resolve(&a).is_none() && images.resolve(&b).is_some());
    assert_eq!(names_in(&root.join("tmp")), Vec::<String>::new());
    assert_eq!(names_in(&root.join("layers/sha256")).len(), 1);
    images.pull(&a, &[], &|_| ()).await.unwrap();
    drop(images);
    std::fs::write(root.join("index.json"), "{ not JSON").unwrap();
    let images = Images::open(settings(node.dir.path())).unwrap();
    assert!(images.list().is_empty());
    images.pull(&a, &[], &|_| ()).await.unwrap();
}
