//! Programs that give logins for images, by the kubelet's protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::{Builder, NodeBox, REGISTRY, Running, eventually, pod, run};
use serde_json::Value;

const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// A configuration with one program, `give`, that notes what it is asked and answers with the login that it is called with.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(provider: &str) -> Self {
        let folder = Self(tempfile::Builder::new().prefix("nodeagent-e2e-login-").tempdir().unwrap());
        let (dir, program) = (folder.path().display(), folder.path().join("give"));
        let script = format!(
            "#!/bin/sh\ncat >> {dir}/asked; echo >> {dir}/asked\n\
             printf '{{\"apiVersion\": \"{VERSION}\", \"kind\": \"CredentialProviderResponse\", \"cacheKeyType\": \"Registry\", \
             \"auth\": {{\"{REGISTRY}\": {{\"username\": \"%s\", \"password\": \"%s\"}}}}}}' \"$1\" \"$SECRET\"\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config =
            format!("apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- {{{provider}}}\n");
        std::fs::write(folder.path().join("providers.yaml"), config).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn node(&self) -> Builder {
        let dir = self.path().display();
        NodeBox::builder().config(&format!(
            "apiVersion: nodeagent.dev/v1\nkind: NodeAgentConfiguration\nimages: {{gcHighThresholdPercent: 100, \
             credentialProviderConfig: {dir}/providers.yaml, credentialProviderBinDir: {dir}}}\n"
        ))
    }

    /// The images that the program was asked about.
    fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path().join("asked")).unwrap_or_default();
        let questions = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        questions.map(|question| question["image"].as_str().unwrap().to_owned()).collect()
    }
}

const GIVE: &str = "name: give, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ['127.0.0.1:5000/library'], \
    defaultCacheDuration: 10m, args: [tester], env: [{name: SECRET, value: hunter2}]";

/// A registry that lets nobody in but `tester`.
fn registry(node: &NodeBox, folder: &Path) -> Running {
    let passwords = run(std::process::Command::new("htpasswd").args(["-Bbn", "-C4", "tester", "hunter2"])).ok();
    std::fs::write(folder.join("htpasswd"), passwords).unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n\
         auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n",
        e2e::storage().display(),
        folder.display()
    );
    let configuration = folder.join("registry.yml");
    std::fs::write(&configuration, text).unwrap();
    let registry = Running::start(node.command("docker-registry").arg("serve").arg(&configuration));
    eventually("the registry answers", || {
        let answer = node.inside("curl", &["--silent", "--write-out", "%{http_code}", &format!("http://{REGISTRY}/v2/")]);
        if answer.stdout.contains("401") { Ok(()) } else { Err(answer.to_string()) }
    });
    registry
}

#[test]
fn an_image_is_pulled_with_the_login_that_a_program_gives() {
    let folder = Folder::new(GIVE);
    let node = folder.node().start();
    let _registry = registry(&node, folder.path());
    let image = |name: &str| format!("{REGISTRY}/library/{name}");
    node.put(&pod("one").shell("main", &image("busybox:1"), "sleep 1000")).is_ready();
    assert_eq!(folder.asked(), [image("busybox")]);
    // The answer counts for the registry; an image that is there is nobody's question.
    node.run(&["image", "pull", &image("debian:12")]).ok();
    node.put(&pod("two").shell("main", &image("busybox:1"), "sleep 1000")).is_ready();
    assert_eq!(folder.asked(), [image("busybox")]);
    // An agent that comes after knows no answer any more.
    node.kill_agent();
    node.start_agent();
    node.run(&["image", "pull", &image("nginx:1")]).ok();
    assert_eq!(folder.asked(), [image("busybox"), image("nginx")]);
    assert!(!node.agent_output().contains("hunter2"), "a password must not get into the log");
}

#[test]
fn a_login_that_is_wrong_is_the_registrys_to_refuse_and_others_images_are_not_asked_for() {
    let folder = Folder::new(&GIVE.replace("hunter2", "wrong"));
    let node = folder.node().start();
    let _registry = registry(&node, folder.path());
    let one = node.put(&pod("one").shell("main", &format!("{REGISTRY}/library/busybox:1"), "sleep 1000"));
    one.tells(&["Failed to pull image", "refused access"]);
    node.put(&pod("two").shell("main", &format!("{REGISTRY}/other/busybox:1"), "sleep 1000")).tells(&["Failed to pull image"]);
    assert!(folder.asked().iter().all(|image| image.contains("/library/")), "{:?}", folder.asked());
}

#[test]
fn a_configuration_that_is_wrong_is_told_at_the_start() {
    for (provider, why) in [
        (GIVE.replace("defaultCacheDuration: 10m, ", ""), "providers.defaultCacheDuration: Required value"),
        (GIVE.replace("name: give", "name: take"), "take is no program"),
    ] {
        let folder = Folder::new(&provider);
        let node = folder.node().without_agent().start();
        let said = run(&mut node.agent_command()).fails();
        assert!(said.contains("providers.yaml") && said.contains(why), "{said}");
    }
}
