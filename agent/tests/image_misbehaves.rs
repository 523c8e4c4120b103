//! The registry client against registries by script: those that break off, lie, redirect in circles, want tokens or are slow.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod image_support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use image_support::{Answer, Made, Node, Packing, Request, Scripted, names_in, noise, read, sha256, small, tar_of};
use nodeagent::image::{Credential, Error, Progress};
use serde_json::json;

/// Nothing half-made stays: no layer, no image, nothing in tmp.
#[track_caller]
fn keeps_nothing(node: &Node) {
    for folder in ["layers/sha256", "configs/sha256", "tmp"] {
        assert_eq!(names_in(&node.dir.path().join("images").join(folder)), Vec::<String>::new(), "{folder}");
    }
    assert!(node.images.list().is_empty());
}

/// An image whose one layer has this many bytes that don't compress.
fn large(bytes: usize) -> Made {
    Made::new(&[(tar_of(&[("data", &noise(bytes, 3))]), Packing::Gzip)])
}

fn is_layer(request: &Request, made: &Made) -> bool {
    request.path.ends_with(&format!("blobs/{}", sha256(&made.layers[0])))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_is_resumed_where_it_broke() {
    let made = large(1_000_000);
    let (layer, play) = (made.layers[0].clone(), made.clone());
    // Each answer brings three hundred thousand bytes at most, then the line is dead.
    let registry = Scripted::of(vec![("app:1", made.clone())], move |request| {
        let start = request.header("range").map_or(0, |range| range[6..range.len() - 1].parse().unwrap());
        let rest = layer.len() - start;
        (is_layer(request, &play) && rest > 300_000).then(|| Answer {
            status: if start == 0 { 200 } else { 206 },
            headers: vec![("Content-Range".into(), format!("bytes {start}-{}/{}", layer.len() - 1, layer.len()))],
            body: layer[start..].to_vec(),
            cut: Some(300_000),
            length: None,
        })
    });
    let node = Node::new();
    let retries = Mutex::new(Vec::new());
    let listen = |step| {
        if let Progress::Retrying { why, .. } = step {
            retries.lock().unwrap().push(why);
        }
    };
    let image = node.images.pull(&format!("{}/app:1", registry.host), &[], &listen).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[0].join("data")).unwrap().len(), 1_000_000);
    let asked: Vec<Option<String>> = {
        let seen = registry.seen.lock().unwrap();
        seen.iter().filter(|request| is_layer(request, &made)).map(|request| request.header("range").map(str::to_owned)).collect()
    };
    let expected: Vec<_> = [None, Some(300_000), Some(600_000), Some(900_000)]
        .into_iter()
        .map(|start: Option<usize>| start.map(|start| format!("bytes={start}-")))
        .collect();
    assert_eq!(asked, expected, "every byte is asked for once");
    assert_eq!(retries.into_inner().unwrap().len(), 3, "who watches is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_sends_it_again_and_what_is_there_is_skipped() {
    let made = large(500_000);
    let (layer, play, times) = (made.layers[0].clone(), made.clone(), AtomicUsize::new(0));
    let registry = Scripted::of(vec![("app:1", made.clone())], move |request| {
        let cut = (times.fetch_add(usize::from(is_layer(request, &play)), Ordering::SeqCst) == 0).then_some(123_457);
        is_layer(request, &play).then(|| Answer { cut, ..Answer::ok(&layer) })
    });
    let node = Node::new();
    let image = node.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("data")).unwrap(), noise(500_000, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_always_breaks_off_is_given_up_and_nothing_is_kept() {
    let made = large(500_000);
    let play = made.clone();
    let registry = Scripted::of(vec![("app:1", made.clone())], move |request| {
        // Not one byte ever comes.
        is_layer(request, &play).then(|| Answer { cut: Some(0), length: Some(9), ..Answer::status(200) })
    });
    let node = Node::new();
    let error = node.pull(&format!("{}/app:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Network { why, .. } if why.contains("after 5 tries")), "{error}");
    assert_eq!(error.reason(), "RegistryUnavailable");
    keeps_nothing(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_but_not_in_circles() {
    let made = small("elsewhere");
    // As large registries do: blobs lie at another host.
    let store = Scripted::of(vec![("app:1", made.clone())], |_| None);
    let target = store.host.clone();
    let registry = Scripted::of(vec![("app:1", made.clone()), ("circle:1", made)], move |request| {
        let to = |place: String| Some(Answer::status(307).header("Location", &place));
        match request.path.strip_prefix("/v2/circle/") {
            Some(_) => to(format!("{}?again", request.path)),
            None if request.path.contains("/blobs/") => to(format!("http://{target}{}", request.path)),
            None => None,
        }
    });
    let node = Node::new();
    let error = node.pull(&format!("{}/circle:1", registry.host)).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { why, .. } if why.contains("more than 5 redirects")), "{error}");
    assert!(registry.count("circle") < 10, "it doesn't go on");
    keeps_nothing(&node);
    let image = node.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    assert_eq!(read(&image, "etc/motd"), "elsewhere");
    assert!(store.count("/blobs/") == 2 && registry.count("/blobs/") == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_does_not_follow_a_redirect_to_another_host() {
    let made = small("guarded");
    let store = Scripted::of(vec![("app:1", made.clone())], |_| None);
    // By another name, as another host has: 127.0.0.1 and localhost are two to whoever looks at names.
    let target = store.host.replace("127.0.0.1", "localhost");
    let registry = Scripted::of(vec![("app:1", made)], move |request| match request.header("authorization") {
        None => Some(Answer::status(401).header("WWW-Authenticate", "Basic realm=\"here\"")),
        Some(_) if request.path.contains("/blobs/") => {
            Some(Answer::status(307).header("Location", &format!("http://{target}{}", request.path)))
        }
        Some(_) => None,
    });
    let node = Node::new();
    let login = [Credential::basic(registry.host.as_str(), "tester", "secret")];
    node.images.pull(&format!("{}/app:1", registry.host), &login, &|_| ()).await.unwrap();
    let seen = store.seen.lock().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.header("authorization").is_none()), "{seen:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_patience_gets_it_and_who_fails_for_a_moment_is_asked_again() {
    let (made, times) = (small("late"), AtomicUsize::new(0));
    let registry = Scripted::of(vec![("app:1", made)], move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Some(Answer::status(429).header("Retry-After", "0")),
        1 => Some(Answer::status(503)),
        2 => Some(Answer { cut: Some(10), ..Answer::ok(&[b'x'; 100]) }),
        _ => None,
    });
    let node = Node::new();
    let image = node.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    assert_eq!(read(&image, "etc/motd"), "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_was_promised_is_refused_and_nothing_of_it_is_kept() {
    let made = small("true");
    // As many bytes, one of them another: what a proxy or a bad disk makes of it.
    let mut other = made.layers[0].clone();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    let right = made.clone();
    let layer = Scripted::of(vec![("app:1", made.clone())], move |r| is_layer(r, &right).then(|| Answer::ok(&other)));
    let longer = {
        let right = made.clone();
        let bytes = [made.layers[0].as_slice(), &[0; 4096]].concat();
        Scripted::of(vec![("app:1", made.clone())], move |r| is_layer(r, &right).then(|| Answer::ok(&bytes)))
    };
    let config = {
        let path = format!("blobs/{}", made.id());
        Scripted::of(vec![("app:1", made.clone())], move |r| r.path.ends_with(&path).then(|| Answer::ok(b"{}")))
    };
    let manifest = Scripted::of(vec![("app:1", made.clone())], |r| {
        r.path.contains("/manifests/").then(|| Answer::ok(b"{}").header("Docker-Content-Digest", &sha256(b"another")))
    });
    for (registry, what) in [(&layer, "layer"), (&longer, "layer"), (&config, "configuration"), (&manifest, "manifest")] {
        let node = Node::new();
        let error = node.pull(&format!("{}/app:1", registry.host)).await.unwrap_err();
        assert!(error.to_string().contains(what) && error.to_string().contains("sha256:"), "{what}: {error}");
        keeps_nothing(&node);
    }
    // The same by a name with a digest, whatever the registry says of itself.
    let node = Node::new();
    let honest = Scripted::of(vec![("app:1", made)], |_| None);
    let error = node.pull(&format!("{}/app@{}", honest.host, sha256(b"no such"))).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn monsters_are_refused_by_their_size() {
    let made = small("small");
    let huge = Scripted::of(vec![("app:1", made.clone())], |request| {
        request.path.contains("/manifests/").then(|| Answer { length: Some(u64::MAX / 2), cut: Some(0), ..Answer::ok(b"") })
    });
    let layers: Vec<_> = (0..600).map(|n| (tar_of(&[(&format!("f{n}"), b"x")]), Packing::Plain)).collect();
    let many = Scripted::of(vec![("app:1", Made::new(&layers))], |_| None);
    for registry in [&huge, &many] {
        let node = Node::new();
        let error = node.pull(&format!("{}/app:1", registry.host)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        keeps_nothing(&node);
    }
    // A small archive that grows without end: bounded by what the node allows a layer.
    let bomb = Made::new(&[(tar_of(&[("zeros", &vec![0; 50 << 20])]), Packing::Zstd)]);
    assert!(bomb.layers[0].len() < 1 << 20);
    let registry = Scripted::of(vec![("bomb:1", bomb)], |_| None);
    let node = Node::with(|settings, _| settings.limits.layer_bytes = 10 << 20);
    let error = node.pull(&format!("{}/bomb:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::Unpack { .. } | Error::TooLarge { .. }), "{error}");
    keeps_nothing(&node);
}

/// An index of variants, the manifest of each of which is the given one.
fn index(variants: &[(&str, &str, &Made)]) -> Vec<u8> {
    let entries: Vec<_> = variants
        .iter()
        .map(|(os, architecture, made)| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": made.digest(),
                   "size": made.manifest.len(), "platform": {"os": os, "architecture": architecture}})
        })
        .collect();
    serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variant_for_this_machine_is_taken_and_without_one_it_is_said_what_there_is() {
    let ours = small("ours");
    let layers = || vec![(tar_of(&[("etc/", b""), ("etc/motd", b"theirs")]), Packing::Gzip)];
    let theirs = Made::for_platform(&layers(), json!({"os": "linux", "architecture": "s390x"}));
    let both = index(&[
        ("linux", "s390x", &theirs),
        ("unknown", "unknown", &theirs),
        ("linux", image_support::host_architecture(), &ours),
    ]);
    let none = index(&[("linux", "s390x", &theirs), ("windows", "amd64", &theirs)]);
    let registry =
        Scripted::of(
            vec![("both:real", ours), ("both:other", theirs.clone()), ("plain:1", theirs)],
            move |request| match request.path.as_str() {
                "/v2/both/manifests/1" => Some(Answer::ok(&both)),
                "/v2/none/manifests/1" => Some(Answer::ok(&none)),
                _ => None,
            },
        );
    let node = Node::new();
    for (name, have) in [("none:1", "linux/s390x, windows/amd64"), ("plain:1", "linux/s390x")] {
        let error = node.pull(&format!("{}/{name}", registry.host)).await.unwrap_err();
        assert!(matches!(&error, Error::PlatformMismatch { have: said, .. } if said == have), "{error}");
    }
    keeps_nothing(&node);
    assert_eq!(read(&node.pull(&format!("{}/both:1", registry.host)).await.unwrap(), "etc/motd"), "ours");
}

/// A registry that wants a token of its own token server; the server knows tester's password and one refresh token.
fn with_tokens(made: Made) -> Scripted {
    let host = Arc::new(Mutex::new(String::new()));
    let own = host.clone();
    let valid = AtomicUsize::new(0);
    let registry = Scripted::of(vec![("team/app:1", made)], move |request| {
        let host = own.lock().unwrap().clone();
        if request.path.starts_with("/token") {
            let by_password = request.header("authorization") == Some("Basic dGVzdGVyOnNlY3JldA==")
                && request.path.contains("service=here")
                && request.path.contains("scope=repository%3Ateam%2Fapp%3Apull");
            let by_refresh =
                request.method == "POST" && String::from_utf8_lossy(&request.body).contains("refresh_token=long-lived");
            if !by_password && !by_refresh {
                return Some(Answer::status(401));
            }
            let token = format!("t{}", valid.fetch_add(1, Ordering::SeqCst) + 1);
            return Some(Answer::ok(json!({"access_token": token}).to_string().as_bytes()));
        }
        let bearer = format!("Bearer t{}", valid.load(Ordering::SeqCst));
        // A token is good for two requests: then the next one is wanted.
        let count = valid.load(Ordering::SeqCst);
        if count > 0 && request.header("authorization") == Some(&bearer) && !(request.path.contains("/blobs/") && count == 1) {
            return None;
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\",scope=\"repository:team/app:pull\"");
        Some(Answer::status(401).header("WWW-Authenticate", &challenge))
    });
    host.lock().unwrap().clone_from(&registry.host);
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_and_fetched_again_when_they_have_run_out() {
    let registry = with_tokens(small("by token"));
    let name = format!("{}/team/app:1", registry.host);
    let node = Node::new();
    let error = node.pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let login = [Credential::basic(registry.host.as_str(), "tester", "secret")];
    let image = node.images.pull(&name, &login, &|_| ()).await.unwrap();
    assert_eq!(read(&image, "etc/motd"), "by token");
}

/// A credential helper on PATH, as Docker has them; what it was asked lies beside it.
fn helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn credential_helpers_are_asked_as_docker_asks_them() {
    // They are looked up in PATH, which belongs to the whole process: this very test runs again in one of its own.
    const INSIDE: &str = "IMAGE_TEST_HELPERS";
    let Some(dir) = std::env::var_os(INSIDE) else {
        let dir = tempfile::tempdir().unwrap();
        helper(dir.path(), "login", r#"cat >"$0.asked"; echo '{"Username":"tester","Secret":"secret"}'"#);
        helper(dir.path(), "refresh", r#"echo '{"Username":"<token>","Secret":"long-lived"}'"#);
        helper(dir.path(), "none", "echo credentials not found in native keychain; exit 1");
        helper(dir.path(), "broken", "echo keychain is locked >&2; exit 2");
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "credential_helpers_are_asked_as_docker_asks_them", "--nocapture"])
            .env(INSIDE, dir.path())
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let registry = with_tokens(small("helped"));
        let name = format!("{}/team/app:1", registry.host);
        let with =
            |config: serde_json::Value| Node::with(|_, dir| std::fs::write(dir.join("config.json"), config.to_string()).unwrap());
        for helper in ["login", "refresh"] {
            let node = with(json!({"credHelpers": {&registry.host: helper}}));
            assert_eq!(read(&node.pull(&name).await.unwrap(), "etc/motd"), "helped", "{helper}");
        }
        let asked = std::fs::read_to_string(Path::new(&dir).join("docker-credential-login.asked")).unwrap();
        assert_eq!(asked, registry.host);
        // One store for all registries, which has nothing for this one: the file's own entry serves.
        let auths = json!({&registry.host: {"auth": "dGVzdGVyOnNlY3JldA=="}});
        let node = with(json!({"credsStore": "none", "auths": auths}));
        node.pull(&name).await.unwrap();
        for (store, words) in [("broken", "keychain is locked"), ("absent", "install it"), ("../evil", "slash")] {
            let error = with(json!({"credsStore": store})).pull(&name).await.unwrap_err();
            assert!(matches!(error, Error::Helper { .. }) && error.to_string().contains(words), "{store}: {error}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_another_place_goes_on_where_it_fails() {
    let made = large(600_000);
    let play = made.clone();
    // The mirror has the manifest and the first half of the layer.
    let mirror = Scripted::of(vec![("hub/library/app:1", made.clone())], move |request| {
        is_layer(request, &play).then(|| match request.header("range") {
            None => Answer { cut: Some(200_000), ..Answer::ok(&play.layers[0]) },
            Some(_) => Answer::status(404),
        })
    });
    let origin = Scripted::of(vec![("library/app:1", made.clone())], |_| None);
    let conf = format!(
        "[[registry]]\nprefix = 'docker.io'\nlocation = '{}'\ninsecure = true\n[[registry.mirror]]\nlocation = '{}/hub'\ninsecure = true\n\
         [[registry]]\nprefix = 'docker.io/evil'\nblocked = true\n",
        origin.host, mirror.host
    );
    let node = Node::with(|_, dir| std::fs::write(dir.join("registries.conf"), conf).unwrap());
    let image = node.pull("app:1").await.unwrap();
    assert_eq!(&*image.names, ["docker.io/library/app:1"]);
    assert_eq!(std::fs::read(image.layers[0].join("data")).unwrap(), noise(600_000, 3));
    assert_eq!((mirror.count("/manifests/"), origin.count("/manifests/")), (1, 0));
    let rest =
        origin.seen.lock().unwrap().iter().find(|request| is_layer(request, &made)).unwrap().header("range").map(str::to_owned);
    assert_eq!(rest.as_deref(), Some("bytes=200000-"), "what the mirror brought isn't fetched again");
    let error = node.pull("evil/app:1").await.unwrap_err();
    assert!(matches!(error, Error::Blocked { .. }), "{error}");
    // An image that the mirror lacks is the registry's.
    node.pull("other").await.unwrap_err();
    assert!(origin.count("/v2/library/other/") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_ask_for_at_once_is_fetched_once() {
    let registry = Scripted::of(vec![("app:1", large(2_000_000)), ("twin:1", large(2_000_000))], |_| None);
    let node = Node::new();
    let (one, two) = (format!("{}/app:1", registry.host), format!("{}/twin:1", registry.host));
    let pulls = (0..20).map(|n| node.pull(if n % 2 == 0 { &one } else { &two }));
    for image in futures::future::join_all(pulls).await {
        image.unwrap();
    }
    let layer = sha256(&large(2_000_000).layers[0]);
    assert_eq!(registry.count(&layer), 1, "two images, twenty pulls, one layer");
    assert_eq!(registry.count("/manifests/"), 2);
}

/// A tar file whose header says that its member is this long.
fn tar_claiming(size: u64) -> Vec<u8> {
    let mut tar = tar_of(&[("manifest.json", b"[]")]);
    let header = tar.first_chunk_mut::<512>().unwrap();
    // In base 256, as GNU has it: octal digits end at 8 GiB.
    header[124..136].fill(0);
    header[124] = 0x80;
    header[128..136].copy_from_slice(&size.to_be_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_lies_about_its_sizes_is_refused() {
    for size in [1 << 20, u64::MAX >> 1, u64::MAX] {
        let node = Node::new();
        let path = node.dir.path().join("lies.tar");
        std::fs::write(&path, tar_claiming(size)).unwrap();
        let error = node.images.load(&path, &|_| ()).await.unwrap_err();
        assert!(error.to_string().contains("lies.tar"), "{size}: {error}");
        keeps_nothing(&node);
    }
}
