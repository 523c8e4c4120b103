//! What the API server fills in before anyone sees a pod, so that `get pod -o yaml` shows what it would show there.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EphemeralContainer, HTTPGetAction, LifecycleHandler,
    PersistentVolumeClaimSpec, Pod, PodSpec, Probe, ResourceRequirements, ServiceSpec, Volume,
};
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use ring::digest;

use super::Body;
use super::load::Defaults;
use super::quantity::Quantity;

/// Gives an object beside pods its namespace, its UID and its type's defaults.
pub fn object(body: Body, defaults: &Defaults) -> Body {
    match body {
        Body::ConfigMap(mut object) => {
            object_metadata(&mut Arc::make_mut(&mut object).metadata, "configmaps", defaults);
            Body::ConfigMap(object)
        }
        Body::Secret(mut object) => {
            let secret = Arc::make_mut(&mut object);
            object_metadata(&mut secret.metadata, "secrets", defaults);
            set(&mut secret.type_, "Opaque");
            Body::Secret(object)
        }
        Body::PersistentVolumeClaim(mut object) => {
            let claim = Arc::make_mut(&mut object);
            object_metadata(&mut claim.metadata, "persistentvolumeclaims", defaults);
            claim.status = None;
            if let Some(spec) = &mut claim.spec {
                self::claim(spec);
            }
            Body::PersistentVolumeClaim(object)
        }
        Body::Service(mut object) => {
            let service = Arc::make_mut(&mut object);
            object_metadata(&mut service.metadata, "services", defaults);
            service.status = None;
            if let Some(spec) = &mut service.spec {
                set(&mut spec.type_, "ClusterIP");
                service_spec(spec);
            }
            Body::Service(object)
        }
        Body::NetworkPolicy(mut object) => {
            let policy = Arc::make_mut(&mut object);
            object_metadata(&mut policy.metadata, "networkpolicies", defaults);
            policy.spec.iter_mut().for_each(policy_spec);
            Body::NetworkPolicy(object)
        }
        Body::Namespace(mut object) => {
            let namespace = Arc::make_mut(&mut object);
            object_metadata(&mut namespace.metadata, "namespaces", defaults);
            let name = namespace.metadata.name.clone().unwrap_or_default();
            let labels = namespace.metadata.labels.get_or_insert_default();
            labels.insert("kubernetes.io/metadata.name".into(), name);
            namespace.metadata.namespace = None;
            namespace.status = None;
            Body::Namespace(object)
        }
        defaulted @ (Body::PersistentVolume(_) | Body::RuntimeClass(_) | Body::CsiDriver(_) | Body::VolumeAttachment(_)) => {
            defaulted
        }
    }
}

fn service_spec(spec: &mut ServiceSpec) {
    const STAY: i32 = 3 * 60 * 60;
    set(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec.session_affinity_config.get_or_insert_default();
        config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(STAY);
    }
    if spec.type_.as_deref() != Some("ExternalName") {
        set(&mut spec.internal_traffic_policy, "Cluster");
    }
    if matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
        set(&mut spec.external_traffic_policy, "Cluster");
    }
    for port in spec.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        if port.target_port.is_none() {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
}

fn policy_spec(spec: &mut NetworkPolicySpec) {
    if spec.policy_types.as_deref().unwrap_or_default().is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()).then_some("Egress");
        spec.policy_types = Some(std::iter::once("Ingress").chain(egress).map(str::to_owned).collect());
    }
    let ingress = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    let egress = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    ingress.chain(egress).for_each(|port| set(&mut port.protocol, "TCP"));
}

pub(super) fn object_metadata(meta: &mut ObjectMeta, resource: &str, defaults: &Defaults) {
    let name = meta.name.clone().unwrap_or_default();
    metadata(meta, &format!("{resource}/{name}"), defaults);
}

/// Fills in what is missing. Twice is the same as once.
pub fn apply(pod: &mut Pod, defaults: &Defaults) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    metadata(&mut pod.metadata, &name, defaults);
    pod.status = None;
    if let Some(spec) = &mut pod.spec {
        // As the API server has it: of a pod, not of a template.
        if let Some(seconds) = spec.termination_grace_period_seconds.as_mut().filter(|seconds| **seconds < 0) {
            *seconds = 1;
        }
        spec.node_name = Some(defaults.node_name.clone()).filter(|n| !n.is_empty()).or(spec.node_name.take());
        pod_spec(spec);
        of_pod(spec);
    }
}

/// `name`: what makes the UID differ from those of others in the namespace.
fn metadata(meta: &mut ObjectMeta, name: &str, defaults: &Defaults) {
    let namespace = meta.namespace.take().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    if meta.uid.as_deref().is_none_or(str::is_empty) {
        meta.uid = Some(derived_uid(&namespace, name, &defaults.node_name));
    }
    meta.namespace = Some(namespace);
    // What the server of a manifest that was exported knew; none of it holds here.
    meta.resource_version = None;
    meta.owner_references = None;
    meta.generation = None;
    meta.creation_timestamp = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.managed_fields = None;
    meta.self_link = None;
}

/// The same pod file on the same node has the same UID, whenever it is read.
fn derived_uid(namespace: &str, name: &str, node: &str) -> String {
    let digest = digest::digest(&digest::SHA256, format!("{namespace}/{name}@{node}").as_bytes());
    let mut hex: Vec<u8> = digest.as_ref().iter().take(16).flat_map(|b| format!("{b:02x}").into_bytes()).collect();
    // RFC 9562: version 8 (made by a rule of one's own), variant 10.
    hex[12] = b'8';
    hex[16] = b"89ab"[usize::from(hex[16] % 4)];
    let hex = String::from_utf8_lossy(&hex);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What only a pod gets, also one that is made of a template, when it is made.
pub(crate) fn of_pod(spec: &mut PodSpec) {
    spec.enable_service_links.get_or_insert(true);
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    containers.filter_map(|container| container.resources.as_mut()).for_each(requests);
}

/// What a pod and a template of pods get.
pub(super) fn pod_spec(spec: &mut PodSpec) {
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    if spec.priority.is_none() {
        spec.priority = spec.priority_class_name.as_deref().and_then(system_priority);
    }
    // The same field's old and new name.
    if spec.service_account_name.as_ref().is_none_or(String::is_empty) {
        spec.service_account_name = spec.service_account.clone();
    }
    spec.service_account.clone_from(&spec.service_account_name);
    spec.volumes.iter_mut().flatten().for_each(volume);
    let host_network = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        self::container(container);
        if host_network {
            container.ports.iter_mut().flatten().for_each(host_port);
        }
    }
    spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral_container);
    if let Some(resources) = &mut spec.resources {
        canonical(resources.limits.as_mut());
        canonical(resources.requests.as_mut());
    }
    canonical(spec.overhead.as_mut());
}

/// What the two classes stand for that every cluster has,
/// <https://kubernetes.io/docs/tasks/administer-cluster/guaranteed-scheduling-critical-addon-pods/>.
fn system_priority(class: &str) -> Option<i32> {
    match class {
        "system-cluster-critical" => Some(super::SYSTEM_CRITICAL),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    }
}

pub(super) fn set(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.into());
    }
}

fn container(c: &mut Container) {
    set(&mut c.image_pull_policy, pull_policy(c.image.as_deref()));
    set(&mut c.termination_message_path, "/dev/termination-log");
    set(&mut c.termination_message_policy, "File");
    c.ports.iter_mut().flatten().for_each(|p| set(&mut p.protocol, "TCP"));
    c.env.iter_mut().flatten().for_each(env);
    [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten().for_each(probe);
    if let Some(lifecycle) = &mut c.lifecycle {
        lifecycle.post_start.iter_mut().chain(&mut lifecycle.pre_stop).for_each(handler);
    }
    if let Some(resources) = &mut c.resources {
        canonical(resources.limits.as_mut());
        canonical(resources.requests.as_mut());
    }
}

fn ephemeral_container(c: &mut EphemeralContainer) {
    set(&mut c.image_pull_policy, pull_policy(c.image.as_deref()));
    set(&mut c.termination_message_path, "/dev/termination-log");
    set(&mut c.termination_message_policy, "File");
    c.env.iter_mut().flatten().for_each(env);
}

/// `Always` for `:latest`, said or meant; `IfNotPresent` for any other tag and for a digest.
pub fn pull_policy(image: Option<&str>) -> &'static str {
    let image = image.unwrap_or_default();
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn host_port(port: &mut ContainerPort) {
    if port.host_port.unwrap_or(0) == 0 {
        port.host_port = Some(port.container_port);
    }
}

fn env(env: &mut EnvVar) {
    // It is the same as none, and is shown so.
    env.value = env.value.take().filter(|value| !value.is_empty());
    let Some(from) = &mut env.value_from else { return };
    if let Some(field) = &mut from.field_ref {
        set(&mut field.api_version, "v1");
    }
    if let Some(resource) = &mut from.resource_field_ref {
        divisor(&mut resource.divisor);
    }
}

fn divisor(divisor: &mut Option<ApiQuantity>) {
    canonical_one(divisor.get_or_insert_with(|| ApiQuantity("0".into())));
}

fn probe(probe: &mut Probe) {
    let positive = |field: &mut Option<i32>, value| {
        if field.unwrap_or(0) == 0 {
            *field = Some(value);
        }
    };
    positive(&mut probe.timeout_seconds, 1);
    positive(&mut probe.period_seconds, 10);
    positive(&mut probe.success_threshold, 1);
    positive(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        http_get(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn handler(handler: &mut LifecycleHandler) {
    if let Some(get) = &mut handler.http_get {
        http_get(get);
    }
}

fn http_get(get: &mut HTTPGetAction) {
    set(&mut get.path, "/");
    set(&mut get.scheme, "HTTP");
}

/// A limit without a request asks for as much.
fn requests(resources: &mut ResourceRequirements) {
    if let Some(limits) = resources.limits.as_ref().filter(|l| !l.is_empty()) {
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
}

/// The server keeps quantities by value and writes them in their canonical form.
fn canonical(map: Option<&mut BTreeMap<String, ApiQuantity>>) {
    map.into_iter().flat_map(BTreeMap::values_mut).for_each(canonical_one);
}

fn canonical_one(quantity: &mut ApiQuantity) {
    if let Ok(value) = quantity.0.parse::<Quantity>() {
        quantity.0 = value.to_string();
    }
}

/// Of a claim's spec, or of a template for claims.
pub(super) fn claim(spec: &mut PersistentVolumeClaimSpec) {
    set(&mut spec.volume_mode, "Filesystem");
    if let Some(resources) = &mut spec.resources {
        canonical(resources.limits.as_mut());
        canonical(resources.requests.as_mut());
    }
}

fn volume(v: &mut Volume) {
    const FILE_MODE: i32 = 0o644;
    if let Some(source) = &mut v.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut v.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut v.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut v.empty_dir
        && let Some(limit) = &mut source.size_limit
    {
        canonical_one(limit);
    }
    if let Some(source) = &mut v.image {
        set(&mut source.pull_policy, pull_policy(source.reference.as_deref()));
    }
    if let Some(source) = &mut v.iscsi {
        set(&mut source.iscsi_interface, "default");
    }
    if let Some(template) = v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        claim(&mut template.spec);
    }
    if let Some(source) = &mut v.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        downward_items(source.items.as_mut());
    }
    if let Some(projected) = &mut v.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            downward_items(source.downward_api.as_mut().and_then(|d| d.items.as_mut()));
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
        }
    }
    if super::validate::volume_sources(v).is_empty() {
        v.empty_dir = Some(EmptyDirVolumeSource::default());
    }
}

fn downward_items(items: Option<&mut Vec<k8s_openapi::api::core::v1::DownwardAPIVolumeFile>>) {
    for item in items.into_iter().flatten() {
        if let Some(field) = &mut item.field_ref {
            set(&mut field.api_version, "v1");
        }
        if let Some(resource) = &mut item.resource_field_ref {
            divisor(&mut resource.divisor);
        }
    }
}
