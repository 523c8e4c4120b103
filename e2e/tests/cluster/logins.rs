//! Credential providers that want to know whose pod it is that an image is pulled for.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use e2e::{ControlPlane, eventually};
use serde_json::Value;

/// The node may ask for tokens for this audience: since v1.33 it needs a right to it.
const CLUSTER: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: registry-tokens}
rules: [{apiGroups: [''], resources: [registry.example.com], verbs: [request-serviceaccounts-token-audience]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: registry-tokens}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: registry-tokens}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:nodes'}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, annotations: {example.com/role: reader, example.com/other: nobody's business}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  serviceAccountName: robot
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 127.0.0.1:5000/team/app:1}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 127.0.0.1:5000/team/other:1}]
";

/// A program that notes what it is asked, and has no logins.
fn provider(folder: &Path) {
    let program = folder.join("give");
    let answer = "{\"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"kind\": \"CredentialProviderResponse\", \"cacheKeyType\": \"Image\"}";
    std::fs::write(&program, format!("#!/bin/sh\ncat >> {0}/asked; echo >> {0}/asked\necho '{answer}'\n", folder.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = "
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: give
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['127.0.0.1:5000']
  defaultCacheDuration: 1m
  tokenAttributes:
    serviceAccountTokenAudience: registry.example.com
    cacheType: ServiceAccount
    requireServiceAccount: true
    requiredServiceAccountAnnotationKeys: [example.com/role]
";
    std::fs::write(folder.join("providers.yaml"), config).unwrap();
}

#[test]
fn a_provider_gets_the_token_and_the_annotations_of_the_pods_service_account() {
    let folder = tempfile::Builder::new().prefix("nodeagent-e2e-logins-").tempdir().unwrap();
    provider(folder.path());
    let dir = folder.path().display();
    let images = format!("images: {{credentialProviderConfig: {dir}/providers.yaml, credentialProviderBinDir: {dir}}}\n");
    let configuration = format!("{}{images}", super::CONFIGURATION);
    let node = super::builder().config(&configuration).start();
    let plane = ControlPlane::beside(&node);
    plane.joins(&node);
    plane.apply(CLUSTER);
    // There is no such registry.
    node.pod("web").tells(&["Failed to pull image"]);
    node.pod("plain").tells(&["Failed to pull image"]);
    let asked: Vec<Value> = eventually("the program is asked", || {
        let text = std::fs::read_to_string(folder.path().join("asked")).unwrap_or_default();
        if text.is_empty() { Err(text) } else { Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()) }
    });
    // The account of the other pod lacks the annotation: the program isn't asked about it.
    assert!(asked.iter().all(|question| question["image"] == "127.0.0.1:5000/team/app"), "{asked:?}");
    assert_eq!(asked[0]["serviceAccountAnnotations"], serde_json::json!({"example.com/role": "reader"}));
    let token = asked[0]["serviceAccountToken"].as_str().unwrap();
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(claims["aud"], serde_json::json!(["registry.example.com"]));
    assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "robot");
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], node.pod("web").uid());
    assert!(!node.agent_output().contains(token), "a token must not get into the log");
}
