//! A container's environment: sources, precedence, and `$(NAME)`. Pure.
//! <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, FileKeySelector, ObjectFieldSelector, PersistentVolumeClaim, ResourceFieldSelector,
    Secret, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{env_file, links};
use crate::model::{ObjectKind, ValidPod};
use crate::runtime::error::ConfigError;
use crate::runtime::resources::{self, nano};
use crate::runtime::settings::Settings;

/// Where the objects come from that pods refer to.
pub trait Objects: Sync {
    /// A ConfigMap by namespace and name.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;
    /// A Secret by namespace and name.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;
    /// A PersistentVolumeClaim by namespace and name.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    /// The Services of a namespace, by name.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
}

/// There are none.
#[derive(Debug, Clone, Copy)]
pub struct NoObjects;

impl Objects for NoObjects {
    fn config_map(&self, _: &str, _: &str) -> Option<Arc<ConfigMap>> {
        None
    }
    fn secret(&self, _: &str, _: &str) -> Option<Arc<Secret>> {
        None
    }
    fn claim(&self, _: &str, _: &str) -> Option<Arc<PersistentVolumeClaim>> {
        None
    }
    fn services(&self, _: &str) -> Vec<Arc<Service>> {
        Vec::new()
    }
}

/// What values may refer to.
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a ValidPod,
    /// The container.
    pub container: &'a Container,
    /// The pod's addresses, the main one first; empty for the host's network.
    pub pod_ips: &'a [IpAddr],
    /// The node.
    pub settings: &'a Settings,
    /// ConfigMaps, Secrets and Services.
    pub objects: &'a dyn Objects,
    /// Reads a file of a volume.
    pub env_file: &'a ReadFile<'a>,
}

/// Reads the file of this path in the volume of this name. `None`: there is none.
pub type ReadFile<'a> = dyn Fn(&str, &str) -> std::io::Result<Option<Vec<u8>>> + 'a;

/// The container's own variables, envFrom first, each name once, later ones winning, then those that tell of Services. Values may
/// refer to earlier names: a later one, or one of a circle, is not replaced.
pub fn resolve(context: &Context<'_>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut links = Env::default();
    for (name, value) in links::variables(linked_services(context).iter().map(AsRef::as_ref)) {
        links.set(&name, value);
    }
    let mut env = Env::default();
    env_from(context, &mut env)?;
    for var in context.container.env.iter().flatten() {
        // `value: ""` beside a valueFrom says nothing, as in Kubernetes.
        let value = match (var.value.as_deref().unwrap_or_default(), &var.value_from) {
            ("", Some(source)) => from_source(context, &var.name, source)?,
            (value, _) => Some(expand(value, |name| env.get(name).or_else(|| links.get(name)))),
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    // What the pod says itself is not overruled by a Service that happens to have the name.
    for (name, value) in links.list {
        if env.get(&name).is_none() {
            env.set(&name, value);
        }
    }
    Ok(env.list)
}

/// The Services of the pod's namespace, and that of the API server, which every pod is told of whatever it says: the namespace's
/// own of that name comes before it.
fn linked_services(context: &Context<'_>) -> Vec<Arc<Service>> {
    const API_SERVER: &str = "kubernetes";
    let named = |service: &Arc<Service>| service.metadata.name.as_deref() == Some(API_SERVER);
    let mut services = match context.pod.spec().enable_service_links {
        Some(false) => Vec::new(),
        _ => context.objects.services(context.pod.namespace()),
    };
    if !services.iter().any(named) {
        services.extend(context.objects.services("default").into_iter().find(named));
    }
    services
}

/// In the order of first appearance.
#[derive(Debug, Default)]
struct Env {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: &str, value: String) {
        if let Some(slot) = self.index.get(name).and_then(|at| self.list.get_mut(*at)) {
            slot.1 = value;
        } else {
            self.index.insert(name.into(), self.list.len());
            self.list.push((name.into(), value));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).and_then(|at| self.list.get(*at)).map(|(_, value)| value.as_str())
    }
}

/// The image's variables, then the container's over them.
pub fn merge(image: &[String], own: &[(String, String)]) -> Vec<String> {
    let mut env = Env::default();
    for (name, value) in image.iter().filter_map(|line| line.split_once('=')) {
        env.set(name, value.into());
    }
    for (name, value) in own {
        env.set(name, value.clone());
    }
    env.list.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn env_from(context: &Context<'_>, env: &mut Env) -> Result<(), ConfigError> {
    let namespace = context.pod.namespace();
    for from in context.container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match context.objects.config_map(namespace, &source.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(missing("configmap", &source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match context.objects.secret(namespace, &source.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(missing("secret", &source.name)),
            }
        }
    }
    Ok(())
}

fn missing(kind: &str, name: &str) -> ConfigError {
    ConfigError::new(format!("{kind} \"{name}\" not found"))
}

fn from_source(context: &Context<'_>, name: &str, source: &EnvVarSource) -> Result<Option<String>, ConfigError> {
    let namespace = context.pod.namespace();
    if let Some(selector) = &source.field_ref {
        return field(context.pod, context.settings, context.pod_ips, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let own = &context.container.name;
        return resource(context.pod, context.settings, own, selector).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let map = context.objects.config_map(namespace, &key.name);
        let value = map.as_ref().and_then(|m| m.data.as_ref()?.get(&key.key).cloned());
        return required(value, key.optional, ObjectKind::ConfigMap, (namespace, &key.name), &key.key, map.is_some());
    }
    if let Some(key) = &source.secret_key_ref {
        let secret = context.objects.secret(namespace, &key.name);
        let value = secret.as_ref().and_then(|s| s.data.as_ref()?.get(&key.key).cloned());
        let text = value.map(|v| String::from_utf8_lossy(&v.0).into_owned());
        return required(text, key.optional, ObjectKind::Secret, (namespace, &key.name), &key.key, secret.is_some());
    }
    match &source.file_key_ref {
        Some(selector) => from_file(context, name, selector),
        None => Err(ConfigError::new(format!("env {name}: this kind of valueFrom is not known to this agent"))),
    }
}

fn from_file(context: &Context<'_>, name: &str, from: &FileKeySelector) -> Result<Option<String>, ConfigError> {
    let FileKeySelector { key, optional, path, volume_name } = from;
    let failed =
        |why: &dyn std::fmt::Display| ConfigError::new(format!("env {name}: file {path} of volume {volume_name}: {why}"));
    let bytes = match (context.env_file)(volume_name, path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) if *optional == Some(true) => return Ok(None),
        Ok(None) => return Err(failed(&"there is no such file")),
        Err(error) => return Err(failed(&error)),
    };
    let text = String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8"))?;
    match env_file::value(&text, key).map_err(|wrong| failed(&wrong))? {
        Some(value) => Ok(Some(value.to_owned())),
        None if *optional == Some(true) => Ok(None),
        None => Err(failed(&format_args!("couldn't find key {key}"))),
    }
}

fn required(
    value: Option<String>,
    optional: Option<bool>,
    kind: ObjectKind,
    (namespace, object): (&str, &str),
    key: &str,
    exists: bool,
) -> Result<Option<String>, ConfigError> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if exists => Err(ConfigError::new(format!("couldn't find key {key} in {} {namespace}/{object}", kind.as_str()))),
        None => Err(missing(&kind.as_str().to_lowercase(), object)),
    }
}

/// A field of the pod, as the downward API names it.
pub fn field(
    pod: &ValidPod,
    settings: &Settings,
    pod_ips: &[IpAddr],
    selector: &ObjectFieldSelector,
) -> Result<String, ConfigError> {
    let ips = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let pod_ips = || if pod_ips.is_empty() { ips(&settings.node_ips) } else { ips(pod_ips) };
    let first = |list: Vec<String>| list.into_iter().next().unwrap_or_default();
    let path = selector.field_path.as_str();
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = keyed("metadata.labels") {
        return Ok(pod.metadata.labels.as_ref().and_then(|l| l.get(key).cloned()).unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(pod.metadata.annotations.as_ref().and_then(|a| a.get(key).cloned()).unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().into(),
        "metadata.namespace" => pod.namespace().into(),
        "metadata.uid" => pod.uid().to_string(),
        "metadata.labels" => formatted(pod.metadata.labels.as_ref()),
        "metadata.annotations" => formatted(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => settings.node_name.clone(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_else(|| "default".into()),
        "status.hostIP" => first(ips(&settings.node_ips)),
        "status.hostIPs" => ips(&settings.node_ips).join(","),
        "status.podIP" => first(pod_ips()),
        "status.podIPs" => pod_ips().join(","),
        other => return Err(ConfigError::new(format!("fieldRef: field label not supported: {other}"))),
    })
}

/// `key="value"` lines, as downwardAPI files have them.
fn formatted(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect::<Vec<_>>().join("\n")
}

/// As Go quotes a string, which is what readers of these files unquote.
fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => {
                // Writing to a string doesn't fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// A request or limit of a container, in units of the divisor, rounded up. A limit that isn't there is the pod's as a whole, or else the
/// node's all.
/// `own`: the container that is meant when the selector names none.
pub fn resource(pod: &ValidPod, settings: &Settings, own: &str, selector: &ResourceFieldSelector) -> Result<String, ConfigError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(own);
    let Some(container) = pod.all_containers().find(|c| c.name == name) else {
        return Err(ConfigError::new(format!("resourceFieldRef: container {name} not found")));
    };
    let unknown = || ConfigError::new(format!("resourceFieldRef: unsupported container resource: {}", selector.resource));
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(resource));
    let requests = resources.and_then(|r| r.requests.as_ref()).and_then(|r| r.get(resource));
    let all = &settings.allocatable;
    let node = match resource {
        "cpu" => i128::from(all.cpu_millis) * 1_000_000,
        "memory" => i128::from(all.memory) * 1_000_000_000,
        "ephemeral-storage" => i128::from(all.ephemeral_storage) * 1_000_000_000,
        _ if resource.starts_with("hugepages-") => 0,
        _ => return Err(unknown()),
    };
    let set = |quantity: &Quantity| nano(quantity).filter(|n| *n != 0);
    // Of what the pod as a whole is given: cpu, memory and huge pages.
    let whole = pod.spec().resources.as_ref().and_then(|r| r.limits.as_ref()?.get(resource)).filter(|_| node != 0);
    let value = match list {
        "limits" => limits.and_then(set).or(whole.and_then(set)).unwrap_or(node),
        "requests" => requests.and_then(nano).or(limits.and_then(nano)).unwrap_or_default(),
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.as_ref().and_then(set).unwrap_or(resources::UNIT);
    Ok((value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)).to_string())
}

/// Replaces `$(NAME)`; `$$` is `$`; what isn't known or isn't closed stays as it is.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// [`expand`] by a resolved environment.
pub fn expand_by(text: &str, env: &[(String, String)]) -> String {
    expand(text, |name| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()))
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
