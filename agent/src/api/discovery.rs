//! What the server has, in the forms by which clients find out: `/version`, `/api`, `/apis` and the groups' resources, in the
//! old form and the aggregated one (one request each instead of one a group), and as little OpenAPI as kubectl needs.

use serde_json::{Value, json};

use super::{ApiError, GROUP, Response, reply};

/// The Kubernetes whose types are served.
const KUBERNETES: (&str, &str) = ("1", "37");

struct Resource {
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short: &'static [&'static str],
    subresources: &'static [(&'static str, &'static str, &'static [&'static str])],
}

const READ: &[&str] = &["get", "list", "watch"];
const STREAM: &[&str] = &["create", "get"];

const CORE: &[Resource] = &[
    workload("configmaps", "configmap", "ConfigMap", &["cm"]),
    Resource {
        name: "events",
        singular: "event",
        kind: "Event",
        namespaced: true,
        verbs: READ,
        short: &["ev"],
        subresources: &[],
    },
    Resource {
        name: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        namespaced: false,
        verbs: READ,
        short: &["ns"],
        subresources: &[],
    },
    Resource { name: "nodes", singular: "node", kind: "Node", namespaced: false, verbs: READ, short: &["no"], subresources: &[] },
    workload("persistentvolumeclaims", "persistentvolumeclaim", "PersistentVolumeClaim", &["pvc"]),
    Resource {
        name: "pods",
        singular: "pod",
        kind: "Pod",
        namespaced: true,
        verbs: &["delete", "get", "list", "watch"],
        short: &["po"],
        subresources: &[
            ("attach", "PodAttachOptions", STREAM),
            ("ephemeralcontainers", "Pod", &["get", "patch", "update"]),
            ("exec", "PodExecOptions", STREAM),
            ("log", "Pod", &["get"]),
            ("portforward", "PodPortForwardOptions", STREAM),
            ("status", "Pod", &["get", "patch", "update"]),
        ],
    },
    workload("secrets", "secret", "Secret", &[]),
    workload("services", "service", "Service", &["svc"]),
];

const OWN: &[Resource] = &[Resource {
    name: "images",
    singular: "image",
    kind: "Image",
    namespaced: false,
    verbs: READ,
    short: &["img"],
    subresources: &[],
}];

const fn workload(name: &'static str, singular: &'static str, kind: &'static str, short: &'static [&'static str]) -> Resource {
    Resource { name, singular, kind, namespaced: true, verbs: READ, short, subresources: &[] }
}

const APPS: &[Resource] = &[
    workload("daemonsets", "daemonset", "DaemonSet", &["ds"]),
    workload("deployments", "deployment", "Deployment", &["deploy"]),
    workload("replicasets", "replicaset", "ReplicaSet", &["rs"]),
    workload("statefulsets", "statefulset", "StatefulSet", &["sts"]),
];

const BATCH: &[Resource] = &[workload("cronjobs", "cronjob", "CronJob", &["cj"]), workload("jobs", "job", "Job", &[])];

const DISCOVERY: &[Resource] = &[workload("endpointslices", "endpointslice", "EndpointSlice", &[])];

const NETWORKING: &[Resource] = &[workload("networkpolicies", "networkpolicy", "NetworkPolicy", &["netpol"])];

/// The groups beside the core.
const GROUPS: &[(&str, &[Resource])] =
    &[("apps", APPS), ("batch", BATCH), ("discovery.k8s.io", DISCOVERY), ("networking.k8s.io", NETWORKING), (GROUP, OWN)];

/// Answers a GET.
pub fn answer(accept: &str, path: &[&str]) -> Result<Response, ApiError> {
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;")
        || accept.contains("as=APIGroupDiscoveryList") && accept.split(',').any(|kind| kind.trim_end().ends_with("v=v2"));
    let body = match path {
        ["version"] => version(),
        ["api"] if aggregated => return Ok(discovery_list(&[("", CORE)])),
        ["apis"] if aggregated => return Ok(discovery_list(GROUPS)),
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ["apis"] => {
            let groups: Vec<Value> = GROUPS.iter().map(|(name, _)| group(name)).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["apis", name] if resources(name).is_some() => group(name),
        ["api", "v1"] => resource_list("v1", CORE),
        ["apis", name, "v1"] => match resources(name) {
            Some(resources) => resource_list(&format!("{name}/v1"), resources),
            None => return Err(ApiError::no_such_path()),
        },
        ["openapi", "v2"] => {
            json!({ "swagger": "2.0", "info": { "title": "nodeagent", "version": "v1" }, "paths": {}, "definitions": {} })
        }
        ["openapi", "v3"] => json!({ "paths": {} }),
        [] => {
            json!({ "paths": ["/api", "/api/v1", "/apis", "/apis/apps/v1", "/apis/batch/v1", "/apis/discovery.k8s.io/v1", "/apis/networking.k8s.io/v1", format!("/apis/{GROUP}/v1"), "/healthz", "/openapi/v2", "/openapi/v3", "/version"] })
        }
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(reply::json(&body))
}

fn version() -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0+nodeagent.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn resources(group: &str) -> Option<&'static [Resource]> {
    GROUPS.iter().find(|(name, _)| *name == group).map(|(_, resources)| *resources)
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version })
}

fn resource_list(group_version: &str, resources: &[Resource]) -> Value {
    let one = |r: &Resource| {
        let main = json!({
            "name": r.name, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs, "shortNames": r.short,
        });
        let sub = |(name, kind, verbs): &(&str, &str, &[&str])| json!({ "name": format!("{}/{name}", r.name), "singularName": "", "namespaced": r.namespaced, "kind": kind, "verbs": verbs });
        [main].into_iter().chain(r.subresources.iter().map(sub)).collect::<Vec<_>>()
    };
    let all: Vec<Value> = resources.iter().flat_map(one).collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": all })
}

fn discovery_list(groups: &[(&str, &[Resource])]) -> Response {
    let one = |group: &str, r: &Resource| {
        let kind = |kind: &str| json!({ "group": group, "version": "v1", "kind": kind });
        let subresources: Vec<Value> = r
            .subresources
            .iter()
            .map(|(name, k, verbs)| json!({ "subresource": name, "responseKind": kind(k), "verbs": verbs }))
            .collect();
        json!({
            "resource": r.name, "singularResource": r.singular, "responseKind": kind(r.kind), "verbs": r.verbs,
            "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "shortNames": r.short, "subresources": subresources,
        })
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, resources)| {
            let resources: Vec<Value> = resources.iter().map(|r| one(group, r)).collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": [{ "version": "v1", "resources": resources, "freshness": "Current" }] })
        })
        .collect();
    let list = json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items });
    let body = serde_json::to_vec(&list).unwrap_or_default();
    // Clients tell the two forms apart by the content type alone.
    reply::whole("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", body)
}
