//! What a container's variables come from, in tables.
// `json!(…)` as an argument reads better without an &.
#![allow(clippy::needless_pass_by_value)]

use std::collections::HashMap;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::model::Origin;
use crate::runtime::known::Known;

/// ConfigMap `app`, Secret `login`, both of namespace shop, and Services that are named `namespace/name`.
fn known(services: &[&str]) -> Known {
    let metadata = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
    let service = |name: &&str| {
        let (namespace, name) = name.split_once('/').unwrap();
        let ip = if namespace == "default" { "10.0.0.1" } else { "10.0.0.2" };
        let spec = json!({"clusterIP": ip, "ports": [{"port": 443}]});
        json!({"kind": "Service", "metadata": metadata(namespace, name), "spec": spec})
    };
    let data = json!({"color": "blue", "dotted.key": "d"});
    let map = json!({"kind": "ConfigMap", "metadata": metadata("shop", "app"), "data": data, "binaryData": {"raw": "AAEC"}});
    let secret = json!({"kind": "Secret", "metadata": metadata("shop", "login"), "data": {"password": "cGFzcw=="}});
    Known([map, secret].into_iter().chain(services.iter().map(service)).collect())
}

fn settings() -> Settings {
    let mut settings = Settings::below(std::path::Path::new("/nowhere"), "x");
    settings.node_ips = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    settings.allocatable.cpu_millis = 4000;
    settings.allocatable.memory = 8 << 30;
    settings.allocatable.ephemeral_storage = 100 << 30;
    settings
}

fn pod(spec: Value) -> ValidPod {
    let metadata =
        json!({"name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "x"}, "annotations": {"a/b": "line\n\"two\""}});
    let mut pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "main"}]}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    ValidPod::trusted(serde_json::from_value(pod).unwrap(), Origin::Stdin)
}

/// The environment of a container with these `env` and `envFrom`.
fn resolved(pod: &ValidPod, container: Value, services: &'static [&'static str]) -> Result<HashMap<String, String>, String> {
    let mut container = container;
    container["name"] = json!("main");
    let container: Container = serde_json::from_value(container).unwrap();
    let ips = ["10.9.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    let context = Context {
        pod,
        container: &container,
        pod_ips: if pod.spec().host_network == Some(true) { &[] } else { &ips },
        settings: &settings(),
        objects: &known(services),
        env_file: &|volume, path| match (volume, path) {
            ("v", "file") => Ok(Some(b"KEY='from the file'\n".to_vec())),
            ("v", "binary") => Ok(Some(vec![0xff])),
            ("v", "broken") => Ok(Some(b"KEY=unquoted\n".to_vec())),
            _ => Ok(None),
        },
    };
    resolve(&context).map(|list| list.into_iter().collect()).map_err(|error| error.message)
}

/// One value of `X`; `None`: it isn't set.
fn value_of(spec: Value, var: Value) -> Result<Option<String>, String> {
    resolved(&pod(spec), json!({"env": [var]}), &[]).map(|env| env.get("X").cloned())
}

#[rstest]
#[case("metadata.name", "web")]
#[case("metadata.namespace", "shop")]
#[case("metadata.uid", "u")]
#[case("metadata.labels['app']", "x")]
#[case("metadata.labels['none']", "")]
#[case("metadata.annotations['a/b']", "line\n\"two\"")]
#[case("spec.nodeName", "node")]
#[case("spec.serviceAccountName", "default")]
#[case("status.hostIP", "192.0.2.1")]
#[case("status.hostIPs", "192.0.2.1,2001:db8::1")]
#[case("status.podIP", "10.9.0.5")]
#[case("status.podIPs", "10.9.0.5,fd00::5")]
fn fields(#[case] path: &str, #[case] expected: &str) {
    let var = json!({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}});
    assert_eq!(value_of(json!({}), var).unwrap().unwrap(), expected);
}

#[test]
fn on_the_hosts_network_the_pods_addresses_are_the_nodes() {
    let var = json!({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}});
    assert_eq!(value_of(json!({"hostNetwork": true}), var).unwrap().unwrap(), "192.0.2.1");
}

/// Divisors round up; a limit that isn't there, or is 0, is the node's all; a request falls back to the limit.
#[rstest]
#[case("limits.cpu", None, "1")]
#[case("limits.cpu", Some("1m"), "250")]
#[case("requests.cpu", Some("1m"), "250")]
#[case("limits.memory", None, "134217728")]
#[case("limits.memory", Some("1Mi"), "128")]
#[case("limits.memory", Some("1M"), "135")]
#[case("limits.memory", Some("1Gi"), "1")]
#[case("limits.memory", Some("0"), "134217728")]
#[case("requests.memory", Some("1Ki"), "65537")]
#[case("limits.ephemeral-storage", Some("1Gi"), "100")]
#[case("requests.ephemeral-storage", None, "0")]
#[case("limits.hugepages-2Mi", None, "0")]
fn resources(#[case] resource: &str, #[case] divisor: Option<&str>, #[case] expected: &str) {
    let limits = json!({"cpu": "250m", "memory": "128Mi", "ephemeral-storage": "0"});
    let resources = json!({"limits": limits, "requests": {"memory": "67108865"}});
    let mut selector = json!({"resource": resource});
    if let Some(divisor) = divisor {
        selector["divisor"] = json!(divisor);
    }
    let var = json!({"name": "X", "valueFrom": {"resourceFieldRef": selector}});
    let spec = json!({"containers": [{"name": "main", "resources": resources}]});
    assert_eq!(value_of(spec, var).unwrap().unwrap(), expected);
}

#[test]
fn a_resource_of_another_container() {
    let spec =
        json!({"containers": [{"name": "main"}], "initContainers": [{"name": "other", "resources": {"limits": {"cpu": "3"}}}]});
    let from =
        |name: &str| json!({"name": "X", "valueFrom": {"resourceFieldRef": {"containerName": name, "resource": "limits.cpu"}}});
    assert_eq!(value_of(spec.clone(), from("other")).unwrap().unwrap(), "3");
    assert_eq!(value_of(spec.clone(), from("")).unwrap().unwrap(), "4");
    assert_eq!(value_of(spec, from("none")).unwrap_err(), "resourceFieldRef: container none not found");
    // What the pod as a whole is given comes before what the node has.
    let spec = json!({"resources": {"limits": {"cpu": "2"}}, "containers": [{"name": "main"}],
        "initContainers": [{"name": "other", "resources": {"limits": {"cpu": "3"}}}]});
    assert_eq!(value_of(spec.clone(), from("other")).unwrap().unwrap(), "3");
    assert_eq!(value_of(spec, from("")).unwrap().unwrap(), "2");
}

#[rstest]
#[case(json!({"configMapKeyRef": {"name": "app", "key": "color"}}), Ok(Some("blue")))]
#[case(json!({"configMapKeyRef": {"name": "app", "key": "none"}}), Err("couldn't find key none in ConfigMap shop/app"))]
#[case(json!({"configMapKeyRef": {"name": "app", "key": "none", "optional": true}}), Ok(None))]
#[case(json!({"configMapKeyRef": {"name": "none", "key": "color"}}), Err("configmap \"none\" not found"))]
#[case(json!({"configMapKeyRef": {"name": "none", "key": "color", "optional": true}}), Ok(None))]
#[case(json!({"configMapKeyRef": {"name": "app", "key": "raw"}}), Err("couldn't find key raw in ConfigMap shop/app"))]
#[case(json!({"secretKeyRef": {"name": "login", "key": "password"}}), Ok(Some("pass")))]
#[case(json!({"secretKeyRef": {"name": "login", "key": "none"}}), Err("couldn't find key none in Secret shop/login"))]
#[case(json!({"secretKeyRef": {"name": "none", "key": "none"}}), Err("secret \"none\" not found"))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "file", "key": "KEY"}}), Ok(Some("from the file")))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "file", "key": "NONE"}}), Err("env X: file file of volume v: couldn't find key NONE"))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "file", "key": "NONE", "optional": true}}), Ok(None))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "none", "key": "KEY"}}), Err("env X: file none of volume v: there is no such file"))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "none", "key": "KEY", "optional": true}}), Ok(None))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "binary", "key": "KEY"}}), Err("env X: file binary of volume v: it is not UTF-8"))]
#[case(json!({"fileKeyRef": {"volumeName": "v", "path": "broken", "key": "KEY", "optional": true}}), Err("env X: file broken of volume v: line 1: the value must be in single quotes"))]
fn value_from(#[case] source: Value, #[case] expected: Result<Option<&str>, &str>) {
    let expected = expected.map(|value| value.map(str::to_owned)).map_err(str::to_owned);
    assert_eq!(value_of(json!({}), json!({"name": "X", "valueFrom": source})), expected);
    // A value that is empty is as good as none.
    assert_eq!(value_of(json!({}), json!({"name": "X", "value": "", "valueFrom": source})), expected);
}

/// Values of `X` after `env`, with envFrom of ConfigMap `app` and, prefixed by `S_`, Secret `login`.
#[rstest]
#[case::a_source(json!([]), "color", Some("blue"))]
#[case::keys_need_not_be_words(json!([]), "dotted.key", Some("d"))]
#[case::a_prefix(json!([]), "S_password", Some("pass"))]
#[case::no_prefix(json!([]), "password", None)]
#[case::binary_data_is_no_variable(json!([]), "raw", None)]
#[case::env_wins_over_env_from(json!([{"name": "color", "value": "red"}]), "color", Some("red"))]
#[case::of_what_it_replaces(json!([{"name": "color", "value": "$(color)ish"}]), "color", Some("blueish"))]
#[case::of_env_from(json!([{"name": "X", "value": "$(S_password)"}]), "X", Some("pass"))]
#[case::of_an_earlier_one(json!([{"name": "A", "value": "1"}, {"name": "X", "value": "$(A)$(A)"}]), "X", Some("11"))]
#[case::not_of_a_later_one(json!([{"name": "X", "value": "$(A)"}, {"name": "A", "value": "1"}]), "X", Some("$(A)"))]
#[case::not_twice(json!([{"name": "A", "value": "$$(color)"}, {"name": "X", "value": "$(A)"}]), "X", Some("$(color)"))]
#[case::the_last_wins(json!([{"name": "X", "value": "1"}, {"name": "X", "value": "$(X)2"}]), "X", Some("12"))]
#[case::a_circle_of_one(json!([{"name": "X", "value": "$(X)"}]), "X", Some("$(X)"))]
#[case::a_circle_of_two(json!([{"name": "X", "value": "$(Y)"}, {"name": "Y", "value": "$(X)"}]), "X", Some("$(Y)"))]
#[case::seen_from_the_other_side(json!([{"name": "X", "value": "$(Y)"}, {"name": "Y", "value": "$(X)"}]), "Y", Some("$(Y)"))]
#[case::of_a_link(json!([{"name": "X", "value": "$(DB_SERVICE_HOST)"}]), "X", Some("10.0.0.2"))]
#[case::wins_over_a_link(json!([{"name": "DB_SERVICE_HOST", "value": "mine"}]), "DB_SERVICE_HOST", Some("mine"))]
#[case::set_to_nothing(json!([{"name": "X"}]), "X", Some(""))]
fn precedence(#[case] env: Value, #[case] name: &str, #[case] expected: Option<&str>) {
    let from = json!([{"configMapRef": {"name": "app"}}, {"prefix": "S_", "secretRef": {"name": "login"}}, {"secretRef": {"name": "none", "optional": true}}]);
    let env = resolved(&pod(json!({})), json!({"env": env, "envFrom": from}), &["shop/db"]).unwrap();
    assert_eq!(env.get(name).map(String::as_str), expected);
}

#[rstest]
#[case("configMapRef", "configmap \"none\" not found")]
#[case("secretRef", "secret \"none\" not found")]
fn a_source_that_is_not_there(#[case] kind: &str, #[case] expected: &str) {
    let from = json!([{kind: {"name": "none"}}]);
    assert_eq!(resolved(&pod(json!({})), json!({"envFrom": from}), &[]).unwrap_err(), expected);
}

/// The API server's Service is told to all; the namespace's own of that name comes first, and the others follow enableServiceLinks.
#[rstest]
#[case(true, &["shop/db", "default/other", "default/kubernetes"], Some("10.0.0.1"), true)]
#[case(true, &["shop/db", "shop/kubernetes", "default/kubernetes"], Some("10.0.0.2"), true)]
#[case(false, &["shop/db", "shop/kubernetes", "default/kubernetes"], Some("10.0.0.1"), false)]
#[case(false, &["shop/db"], None, false)]
fn service_links(#[case] enabled: bool, #[case] services: &'static [&'static str], #[case] api: Option<&str>, #[case] own: bool) {
    let env = resolved(&pod(json!({"enableServiceLinks": enabled})), json!({}), services).unwrap();
    assert_eq!(env.get("KUBERNETES_SERVICE_HOST").map(String::as_str), api);
    assert_eq!(env.contains_key("DB_SERVICE_HOST"), own);
    assert!(!env.contains_key("OTHER_SERVICE_HOST"));
}

#[test]
fn all_labels_are_lines_that_can_be_read_back() {
    let selector = |path: &str| serde_json::from_value(json!({"fieldPath": path})).unwrap();
    let text = |path: &str| field(&pod(json!({})), &settings(), &[], &selector(path)).unwrap();
    assert_eq!(text("metadata.labels"), "app=\"x\"");
    assert_eq!(text("metadata.annotations"), "a/b=\"line\\n\\\"two\\\"\"");
}

#[rstest]
#[case("$(A)", "1")]
#[case("x$(A)y$(B)z", "x1y$(B)z")]
#[case("$$(A)", "$(A)")]
#[case("$$$(A)", "$1")]
#[case("$$$$(A)", "$$(A)")]
#[case("$(A", "$(A")]
#[case("$A $", "$A $")]
#[case("$()", "$()")]
#[case("$(A))", "1)")]
#[case("ä$(A)ö", "ä1ö")]
#[case("", "")]
fn expansion(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(expand(text, |name| (name == "A").then_some("1")), expected);
}

#[test]
fn the_containers_values_overrule_the_images() {
    let image = ["PATH=/bin".to_owned(), "A=image".into(), "junk".into()];
    let own = [("A".to_owned(), "own".to_owned()), ("B".into(), String::new())];
    assert_eq!(merge(&image, &own), ["PATH=/bin", "A=own", "B="]);
}

proptest::proptest! {
    #[test]
    fn any_text_expands_without_panic(text in ".*") {
        expand(&text, |name| (name.len() > 2).then_some("v"));
    }
}
