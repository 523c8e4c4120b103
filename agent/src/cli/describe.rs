//! `describe`: a pod or the node in words, in kubectl's order, with its events at the end.

use std::fmt::{Display, Write};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Event, Node, Pod, Volume};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{Client, pod_name, pod_path};
use super::get::show;
use super::{CliError, Namespace, describe_workload};
use crate::api::{encode, human, seen, summarize};
use crate::model::ephemeral;

/// Describing.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nodeagent describe web\n  nodeagent describe pod web -n shop\n  nodeagent describe deployment web\n  nodeagent describe node"
)]
pub struct DescribeArgs {
    /// The pods, by name; a leading `pod` is allowed, as kubectl has it; or a workload's kind and name; or `node`
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
}

/// Describes.
pub async fn run(client: &Client, args: DescribeArgs) -> Result<ExitCode, CliError> {
    if let [kind, names @ ..] = &args.pods[..]
        && (matches!(kind.as_str(), "node" | "nodes" | "no") && names.len() < 2)
    {
        return node(client, names.first().map(String::as_str)).await;
    }
    if let Some(workload) = describe_workload::Wanted::parse(&args.pods) {
        return describe_workload::run(client, &args.namespace.namespace, &workload?).await;
    }
    let named = match &args.pods[..] {
        [kind, rest @ ..] if matches!(kind.as_str(), "pod" | "pods" | "po") && !rest.is_empty() => rest,
        all => all,
    };
    let mut texts = Vec::new();
    for argument in named {
        let name = pod_name(argument)?;
        let pod: Pod = read(client.get(&pod_path(&args.namespace.namespace, name, "")).await?)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let selector = encode(&format!("involvedObject.name={name},involvedObject.uid={uid}"));
        let path = format!("/api/v1/namespaces/{}/events?fieldSelector={selector}", encode(&args.namespace.namespace));
        let mut events = client.get(&path).await?;
        texts.push(describe(&pod, &read::<Vec<Event>>(events["items"].take())?, Timestamp::now()));
    }
    show(&texts.join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn node(client: &Client, name: Option<&str>) -> Result<ExitCode, CliError> {
    let object = match name {
        Some(name) => client.get(&format!("/api/v1/nodes/{}", encode(name))).await?,
        None => client.get("/api/v1/nodes").await?["items"][0].take(),
    };
    let pods: Vec<Pod> = read(client.get("/api/v1/pods").await?["items"].take())?;
    let selector = encode("involvedObject.kind=Node");
    let events: Vec<Event> = read(client.get(&format!("/api/v1/events?fieldSelector={selector}")).await?["items"].take())?;
    show(&describe_node(&read(object)?, &pods, &events, Timestamp::now()))?;
    Ok(ExitCode::SUCCESS)
}

fn describe_node(node: &Node, pods: &[Pod], events: &[Event], now: Timestamp) -> String {
    let mut page = Page(String::new());
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    page.line(0, "Name", node.metadata.name.as_deref().unwrap_or_default());
    page.list(0, "Labels", node.metadata.labels.iter().flatten().map(|(key, value)| format!("{key}={value}")));
    page.optional(0, "Created", node.metadata.creation_timestamp.as_ref().map(|t| t.0));
    page.list(0, "Addresses", status.addresses.iter().flatten().map(|a| format!("{} {}", a.type_, a.address)));
    describe_conditions(&mut page, status.conditions.iter().flatten().map(|c| (&c.type_, &c.status, [&c.reason, &c.message])));
    for (name, all) in [("Capacity", &status.capacity), ("Allocatable", &status.allocatable)] {
        page.list(0, name, all.iter().flatten().map(|(resource, quantity)| format!("{resource} {}", quantity.0)));
    }
    page.line(0, "Kernel", info.kernel_version);
    page.line(0, "OS Image", info.os_image);
    page.line(0, "Architecture", info.architecture);
    page.line(0, "Agent", info.kubelet_version);
    let names = pods.iter().map(|pod| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let namespace = text(&pod.metadata.namespace);
        format!("{namespace}/{} ({})", text(&pod.metadata.name), summarize(pod, now).reason)
    });
    page.list(0, "Pods", names);
    describe_events(&mut page, events, now);
    page.0
}

pub(super) fn describe_conditions<'a>(
    page: &mut Page,
    conditions: impl Iterator<Item = (&'a String, &'a String, [&'a Option<String>; 2])>,
) {
    for (index, (kind, status, detail)) in conditions.enumerate() {
        if index == 0 {
            page.text(0, "Conditions:");
            let _ = writeln!(page.0, "  {:28}Status", "Type");
        }
        let detail = detail.into_iter().flatten().cloned().collect::<Vec<_>>().join(": ");
        let _ = writeln!(page.0, "{}", format!("  {kind:28}{status:8}{detail}").trim_end());
    }
}

pub(super) fn read<T: DeserializeOwned>(object: Value) -> Result<T, CliError> {
    serde_json::from_value(object)
        .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })
}

/// Lines of `Name:  value`, indented.
pub(super) struct Page(pub(super) String);

impl Page {
    pub(super) fn line(&mut self, indent: usize, name: &str, value: impl Display) {
        let width = 20_usize.saturating_sub(indent);
        let label = format!("{name}:");
        // A long name still has a space after it.
        let width = width.max(label.len() + 1);
        let _ = writeln!(self.0, "{:indent$}{label:width$}{value}", "");
    }
    pub(super) fn optional(&mut self, indent: usize, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.line(indent, name, value);
        }
    }
    /// The first beside the name, the others below it.
    pub(super) fn list(&mut self, indent: usize, name: &str, values: impl IntoIterator<Item = String>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            self.line(indent, name, "<none>");
        }
        for (index, value) in values.enumerate() {
            if index == 0 {
                self.line(indent, name, value);
            } else {
                let _ = writeln!(self.0, "{:20}{value}", "");
            }
        }
    }
    pub(super) fn text(&mut self, indent: usize, text: impl Display) {
        let _ = writeln!(self.0, "{:indent$}{text}", "");
    }
}

fn describe(pod: &Pod, events: &[Event], now: Timestamp) -> String {
    let mut page = Page(String::new());
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    page.line(0, "Name", text(&metadata.name));
    page.line(0, "Namespace", text(&metadata.namespace));
    page.optional(0, "Priority Class", spec.priority_class_name.as_ref());
    page.line(0, "Node", format!("{}/{}", text(&spec.node_name), text(&status.host_ip)));
    page.optional(0, "Start Time", status.start_time.as_ref().map(|t| t.0));
    let pairs = |map: &Option<std::collections::BTreeMap<String, String>>, sign: &str| {
        map.iter().flatten().map(|(key, value)| format!("{key}{sign}{value}")).collect::<Vec<_>>()
    };
    page.list(0, "Labels", pairs(&metadata.labels, "="));
    page.list(0, "Annotations", pairs(&metadata.annotations, ": "));
    if let Some(at) = &metadata.deletion_timestamp {
        page.line(0, "Status", format!("Terminating (lasts {})", human::since(Some(at.0), now)));
        page.line(0, "Termination Grace Period", format!("{}s", metadata.deletion_grace_period_seconds.unwrap_or_default()));
    } else {
        let (phase, shown) = (text(&status.phase), summarize(pod, now).reason);
        page.line(0, "Status", if shown == phase { phase } else { format!("{phase} ({shown})") });
    }
    page.optional(0, "Reason", status.reason.as_ref());
    page.optional(0, "Message", status.message.as_ref());
    page.line(0, "IP", text(&status.pod_ip));
    let ips: Vec<String> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    page.line(0, "IPs", if ips.is_empty() { "<none>".to_owned() } else { ips.join(", ") });
    let ephemeral: Vec<Container> = ephemeral::of(&spec).collect();
    for (title, containers, statuses) in [
        ("Init Containers", spec.init_containers.as_deref(), status.init_container_statuses.as_deref()),
        ("Containers", Some(&spec.containers[..]), status.container_statuses.as_deref()),
        ("Ephemeral Containers", Some(&ephemeral[..]), status.ephemeral_container_statuses.as_deref()),
    ] {
        let Some(containers) = containers.filter(|all| !all.is_empty()) else { continue };
        page.text(0, format!("{title}:"));
        for container in containers {
            let status = statuses.unwrap_or_default().iter().find(|status| status.name == container.name);
            describe_container(&mut page, container, status);
        }
    }
    describe_conditions(&mut page, status.conditions.iter().flatten().map(|c| (&c.type_, &c.status, [&c.reason, &c.message])));
    let volumes = spec.volumes.iter().flatten().map(|volume| format!("{} ({})", volume.name, volume_kind(volume)));
    page.list(0, "Volumes", volumes);
    page.optional(0, "QoS Class", status.qos_class.as_ref());
    describe_events(&mut page, events, now);
    page.0
}

fn describe_container(page: &mut Page, container: &Container, status: Option<&ContainerStatus>) {
    page.text(2, format!("{}:", container.name));
    page.optional(4, "Container ID", status.and_then(|s| s.container_id.as_ref()));
    page.line(4, "Image", container.image.as_deref().unwrap_or_default());
    page.optional(4, "Image ID", status.map(|s| &s.image_id));
    let ports = container.ports.iter().flatten();
    let ports = ports.map(|port| {
        let host = port.host_port.map(|host| format!(" (host {host})")).unwrap_or_default();
        format!("{}/{}{host}", port.container_port, port.protocol.as_deref().unwrap_or("TCP"))
    });
    page.list(4, "Ports", ports);
    for (name, words) in [("Command", &container.command), ("Args", &container.args)] {
        if let Some(words) = words {
            page.text(4, format!("{name}:"));
            for line in words.iter().flat_map(|word| word.lines()) {
                page.text(6, line);
            }
        }
    }
    if let Some(status) = status {
        describe_state(page, "State", status.state.as_ref());
        if status.last_state.as_ref().is_some_and(|last| *last != ContainerState::default()) {
            describe_state(page, "Last State", status.last_state.as_ref());
        }
        page.line(4, "Ready", if status.ready { "True" } else { "False" });
        page.line(4, "Restart Count", status.restart_count);
    }
    if let Some(resources) = &container.resources {
        for (name, all) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
            if let Some(all) = all {
                page.text(4, format!("{name}:"));
                for (resource, quantity) in all {
                    page.line(6, resource, &quantity.0);
                }
            }
        }
    }
    let environment = container.env.iter().flatten().map(|variable| {
        let value = variable
            .value
            .clone()
            .unwrap_or_else(|| if variable.value_from.is_some() { "<from a reference>".to_owned() } else { String::new() });
        format!("{}={value}", variable.name)
    });
    page.list(4, "Environment", environment);
    let mounts = container.volume_mounts.iter().flatten().map(|mount| {
        let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
        let below = mount.sub_path.as_deref().map(|path| format!(", path={path}")).unwrap_or_default();
        format!("{} from {} ({mode}{below})", mount.mount_path, mount.name)
    });
    page.list(4, "Mounts", mounts);
}

fn describe_state(page: &mut Page, name: &str, state: Option<&ContainerState>) {
    let state = state.cloned().unwrap_or_default();
    if let Some(running) = state.running {
        page.line(4, name, "Running");
        page.optional(6, "Started", running.started_at.map(|t| t.0));
    } else if let Some(ended) = state.terminated {
        page.line(4, name, "Terminated");
        page.optional(6, "Reason", ended.reason);
        page.optional(6, "Message", ended.message.filter(|m| !m.is_empty()));
        page.line(6, "Exit Code", ended.exit_code);
        page.optional(6, "Signal", ended.signal.filter(|s| *s != 0));
        page.optional(6, "Started", ended.started_at.map(|t| t.0));
        page.optional(6, "Finished", ended.finished_at.map(|t| t.0));
    } else {
        let waiting = state.waiting.unwrap_or_default();
        page.line(4, name, "Waiting");
        page.optional(6, "Reason", waiting.reason);
        page.optional(6, "Message", waiting.message.filter(|m| !m.is_empty()));
    }
}

/// The field of a volume that is set, and the little that tells one from another.
fn volume_kind(volume: &Volume) -> String {
    let object = serde_json::to_value(volume).unwrap_or_default();
    let found = object.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
    let Some((kind, source)) = found else { return "emptyDir".to_owned() };
    let telling = ["path", "name", "secretName", "claimName", "medium", "reference"].iter().find_map(|key| source[key].as_str());
    telling.map_or_else(|| kind.clone(), |value| format!("{kind} {value}"))
}

pub(super) fn describe_events(page: &mut Page, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        page.line(0, "Events", "<none>");
        return;
    }
    let mut sorted: Vec<_> = events.iter().map(|event| (seen(event), event)).collect();
    // Times tell no more than the second; within it, as they came.
    let version = |event: &Event| event.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    sorted.sort_by_key(|(seen, event)| (seen.last, version(event)));
    page.text(0, "Events:");
    let _ = writeln!(page.0, "  {:8} {:20} {:20} Message", "Type", "Reason", "Age");
    for (seen, event) in sorted {
        let age = match seen.count {
            ..=1 => human::since(seen.last, now),
            count => format!("{} (x{count} over {})", human::since(seen.last, now), human::since(seen.first, now)),
        };
        let message: String =
            event.message.as_deref().unwrap_or_default().trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let word = |text: &Option<String>| text.clone().unwrap_or_default();
        let _ = writeln!(page.0, "  {:8} {:20} {age:20} {message}", word(&event.type_), word(&event.reason));
    }
}
