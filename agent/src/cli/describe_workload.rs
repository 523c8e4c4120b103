//! `describe` of a workload: what it asks for, how far it is, what it owns, and its events.

use std::fmt::Write as _;
use std::process::ExitCode;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::Value;

use super::CliError;
use super::client::Client;
use super::describe::{Page, describe_conditions, describe_events, read};
use super::get::{Kind, show};
use crate::api::{encode, summarize};

/// A workload's kind and names.
#[derive(Debug)]
pub(super) struct Wanted {
    kind: Kind,
    names: Vec<String>,
}

impl Wanted {
    /// `deployment web`, `deploy/web`; nothing, where it is no workload that is asked for.
    pub(super) fn parse(words: &[String]) -> Option<Result<Self, CliError>> {
        let first = words.first()?;
        let (kind, name) = first.split_once('/').map_or((first.as_str(), None), |(kind, name)| (kind, Some(name.to_owned())));
        let kind = Kind::named(kind).ok().filter(|kind| matches!(kind.group(), Some("apps" | "batch")))?;
        let names: Vec<String> = name.into_iter().chain(words[1..].iter().cloned()).collect();
        let missing = || CliError::Usage(format!("which of the {}? describe {} NAME", kind.plural(), kind.plural()));
        // `describe job` may mean a pod of that name.
        (words.len() > 1 || first.contains('/')).then(|| if names.is_empty() { Err(missing()) } else { Ok(Self { kind, names }) })
    }
}

/// Describes.
pub(super) async fn run(client: &Client, namespace: &str, wanted: &Wanted) -> Result<ExitCode, CliError> {
    let below = format!("namespaces/{}", encode(namespace));
    let pods: Vec<Pod> = read(client.get(&format!("/api/v1/{below}/pods")).await?["items"].take())?;
    let mut texts = Vec::new();
    for name in &wanted.names {
        let (root, resource) = (wanted.kind.root(), wanted.kind.plural());
        let object = client.get(&format!("{root}/{below}/{resource}/{}", encode(name))).await?;
        let children = children(client, &below, &object).await?;
        let selector = encode(&format!("involvedObject.uid={}", object["metadata"]["uid"].as_str().unwrap_or_default()));
        let mut events = client.get(&format!("/api/v1/{below}/events?fieldSelector={selector}")).await?;
        let events: Vec<Event> = read(events["items"].take())?;
        texts.push(describe(&object, &children, &pods, &events, Timestamp::now()));
    }
    show(&texts.join("\n\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// ReplicaSets of a Deployment, Jobs of a CronJob.
async fn children(client: &Client, below: &str, object: &Value) -> Result<Vec<Value>, CliError> {
    let path = match object["kind"].as_str() {
        Some("Deployment") => format!("/apis/apps/v1/{below}/replicasets"),
        Some("CronJob") => format!("/apis/batch/v1/{below}/jobs"),
        _ => return Ok(Vec::new()),
    };
    let mut list = client.get(&path).await?;
    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(items.into_iter().filter(|child| is_owned(&child["metadata"], &object["metadata"]["uid"])).collect())
}

fn is_owned(metadata: &Value, uid: &Value) -> bool {
    metadata["ownerReferences"].as_array().is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == *uid))
}

fn describe(object: &Value, children: &[Value], pods: &[Pod], events: &[Event], now: Timestamp) -> String {
    let mut page = Page(String::new());
    let metadata = &object["metadata"];
    let (spec, status) = (&object["spec"], &object["status"]);
    page.line(0, "Name", plain(&metadata["name"]));
    page.line(0, "Namespace", plain(&metadata["namespace"]));
    page.line(0, "Created", plain(&metadata["creationTimestamp"]));
    page.list(0, "Labels", pairs(&metadata["labels"], "="));
    page.list(0, "Annotations", pairs(&metadata["annotations"], ": "));
    for owner in metadata["ownerReferences"].as_array().into_iter().flatten() {
        page.line(0, "Controlled By", format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])));
    }
    page.list(0, "Selector", pairs(&spec["selector"]["matchLabels"], "="));
    fields(&mut page, spec, &["selector", "template", "jobTemplate", "volumeClaimTemplates"]);
    page.text(0, "Status:");
    fields_at(&mut page, 2, status, &["conditions", "active", "observedGeneration", "collisionCount", "uncountedTerminatedPods"]);
    let template = if object["kind"] == "CronJob" { &spec["jobTemplate"]["spec"]["template"] } else { &spec["template"] };
    page.text(0, "Pod Template:");
    for container in template["spec"]["containers"].as_array().into_iter().flatten() {
        page.line(2, &plain(&container["name"]), plain(&container["image"]));
    }
    let conditions: Vec<(String, String, [Option<String>; 2])> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| (plain(&c["type"]), plain(&c["status"]), [&c["reason"], &c["message"]].map(|v| v.as_str().map(str::to_owned))))
        .collect();
    describe_conditions(&mut page, conditions.iter().map(|(kind, is, [reason, message])| (kind, is, [reason, message])));
    for (title, kind) in [("Replica Sets", "ReplicaSet"), ("Jobs", "Job")] {
        let of_kind = children.iter().filter(|child| child["kind"] == kind);
        let lines: Vec<String> = of_kind.map(child_line).collect();
        if !lines.is_empty() {
            page.list(0, title, lines);
        }
    }
    let owners: Vec<&Value> = std::iter::once(object).chain(children).map(|owner| &owner["metadata"]["uid"]).collect();
    let own = pods.iter().filter(|pod| {
        let references = pod.metadata.owner_references.iter().flatten();
        references.into_iter().any(|reference| owners.iter().any(|uid| **uid == reference.uid.as_str()))
    });
    page.list(
        0,
        "Pods",
        own.map(|pod| format!("{} ({})", pod.metadata.name.clone().unwrap_or_default(), summarize(pod, now).reason)),
    );
    describe_events(&mut page, events, now);
    page.0
}

fn child_line(child: &Value) -> String {
    let (spec, status) = (&child["spec"], &child["status"]);
    let name = plain(&child["metadata"]["name"]);
    if child["kind"] == "Job" {
        return format!("{name} ({} succeeded, {} failed)", count(&status["succeeded"]), count(&status["failed"]));
    }
    let revision = plain(&child["metadata"]["annotations"]["deployment.kubernetes.io/revision"]);
    format!("{name} (revision {revision}, {}/{} replicas created)", count(&status["replicas"]), count(&spec["replicas"]))
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn fields(page: &mut Page, object: &Value, but: &[&str]) {
    fields_at(page, 0, object, but);
}

/// The fields that hold a word or a number, under names for people: `minReadySeconds` is `Min Ready Seconds`.
fn fields_at(page: &mut Page, indent: usize, object: &Value, but: &[&str]) {
    for (key, value) in object.as_object().into_iter().flatten().filter(|(key, _)| !but.contains(&key.as_str())) {
        match value {
            Value::Object(_) | Value::Array(_) => page.line(indent, &title(key), value),
            value => page.line(indent, &title(key), plain(value)),
        }
    }
}

fn title(key: &str) -> String {
    let mut title = String::new();
    for (i, letter) in key.chars().enumerate() {
        if i == 0 {
            title.extend(letter.to_uppercase());
        } else if letter.is_ascii_uppercase() {
            let _ = write!(title, " {letter}");
        } else {
            title.push(letter);
        }
    }
    title
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn pairs(map: &Value, sign: &str) -> Vec<String> {
    map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}{sign}{}", plain(value))).collect()
}
