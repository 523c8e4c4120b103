//! Workloads as the API serves them: fields, and the tables' cells by the API server's own rules.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use serde_json::{Value, json};

use super::ApiError;
use super::human;
use super::list::{Changes, Served};
use super::table::{Column, column, wide};
use crate::pod::node::Node;
use crate::pod::store::{Change, Expired, Snapshot};

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0 }
}

/// What all kinds answer alike.
macro_rules! served {
    ($kind:ident, $resource:literal, $version:literal, $columns:expr, $fields:expr, $field:expr, $cells:expr) => {
        impl Served for $kind {
            const RESOURCE: &'static str = $resource;
            const KIND: &'static str = stringify!($kind);
            const API_VERSION: &'static str = $version;
            const COLUMNS: &'static [Column] = $columns;
            const FIELDS: &'static [&'static str] = $fields;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn field(&self, name: &str) -> String {
                let field: fn(&Self, &str) -> String = $field;
                field(self, name)
            }
            fn cells(&self, now: Timestamp) -> Vec<Value> {
                let cells: fn(&Self, Timestamp) -> Vec<Value> = $cells;
                cells(self, now)
            }
            async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
                Ok(node.store().workloads())
            }
            fn since(node: &dyn Node, version: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
                node.store().workloads_since(version)
            }
        }
    };
}
pub(super) use served;

served!(
    Deployment,
    "deployments",
    "apps/v1",
    &[
        column("Name"),
        column("Ready"),
        number("Up-to-date"),
        number("Available"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    &[],
    |_, _| String::new(),
    |o, now| {
        let status = o.status.clone().unwrap_or_default();
        let ready = format!("{}/{}", status.ready_replicas.unwrap_or(0), o.spec.replicas.unwrap_or(0));
        let mut cells = vec![
            json!(o.metadata.name),
            json!(ready),
            json!(status.updated_replicas.unwrap_or(0)),
            json!(status.available_replicas.unwrap_or(0)),
            json!(age(&o.metadata, now)),
        ];
        cells.extend(made_of(Some(&o.spec.template)));
        cells.push(json!(selector(Some(&o.spec.selector))));
        cells
    }
);

served!(
    ReplicaSet,
    "replicasets",
    "apps/v1",
    &[
        column("Name"),
        number("Desired"),
        number("Current"),
        number("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    &["status.replicas"],
    |o, _| o.status.as_ref().map_or(0, |s| s.replicas).to_string(),
    |o, now| {
        let status = o.status.clone().unwrap_or_default();
        let mut cells = vec![
            json!(o.metadata.name),
            json!(o.spec.replicas.unwrap_or(0)),
            json!(status.replicas),
            json!(status.ready_replicas.unwrap_or(0)),
            json!(age(&o.metadata, now)),
        ];
        cells.extend(made_of(o.spec.template.as_ref()));
        cells.push(json!(selector(Some(&o.spec.selector))));
        cells
    }
);

served!(
    StatefulSet,
    "statefulsets",
    "apps/v1",
    &[column("Name"), column("Ready"), column("Age"), wide("Containers"), wide("Images")],
    &[],
    |_, _| String::new(),
    |o, now| {
        let ready = o.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
        let mut cells = vec![
            json!(o.metadata.name),
            json!(format!("{ready}/{}", o.spec.replicas.unwrap_or(0))),
            json!(age(&o.metadata, now)),
        ];
        cells.extend(made_of(Some(&o.spec.template)));
        cells
    }
);

served!(
    DaemonSet,
    "daemonsets",
    "apps/v1",
    &[
        column("Name"),
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        column("Node Selector"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    &[],
    |_, _| String::new(),
    |o, now| {
        let status = o.status.clone().unwrap_or_default();
        let nodes = o.spec.template.spec.as_ref().and_then(|s| s.node_selector.as_ref());
        let nodes: Vec<String> = nodes.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let mut cells = vec![
            json!(o.metadata.name),
            json!(status.desired_number_scheduled),
            json!(status.current_number_scheduled),
            json!(status.number_ready),
            json!(status.updated_number_scheduled.unwrap_or(0)),
            json!(status.number_available.unwrap_or(0)),
            json!(or_none(nodes.join(","))),
            json!(age(&o.metadata, now)),
        ];
        cells.extend(made_of(Some(&o.spec.template)));
        cells.push(json!(selector(Some(&o.spec.selector))));
        cells
    }
);

served!(
    Job,
    "jobs",
    "batch/v1",
    &[
        column("Name"),
        column("Status"),
        column("Completions"),
        column("Duration"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    &["status.successful"],
    |o, _| o.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0).to_string(),
    |o, now| {
        let status = o.status.clone().unwrap_or_default();
        let spec = o.spec.clone().unwrap_or_default();
        let succeeded = status.succeeded.unwrap_or(0);
        let completions = match (spec.completions, spec.parallelism.unwrap_or(0)) {
            (Some(completions), _) => format!("{succeeded}/{completions}"),
            (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let end = status.completion_time.as_ref().map_or(now, |t| t.0);
        let duration = status.start_time.as_ref().map(|start| human::since(Some(start.0), end)).unwrap_or_default();
        let mut cells = vec![
            json!(o.metadata.name),
            json!(job_word(o, &status)),
            json!(completions),
            json!(duration),
            json!(age(&o.metadata, now)),
        ];
        cells.extend(made_of(Some(&spec.template)));
        cells.push(json!(selector(spec.selector.as_ref())));
        cells
    }
);

served!(
    CronJob,
    "cronjobs",
    "batch/v1",
    &[
        column("Name"),
        column("Schedule"),
        column("Timezone"),
        column("Suspend"),
        number("Active"),
        column("Last Schedule"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    &[],
    |_, _| String::new(),
    |o, now| {
        let status = o.status.clone().unwrap_or_default();
        let last = status.last_schedule_time.as_ref().map(|t| human::since(Some(t.0), now)).unwrap_or_default();
        let mut cells = vec![
            json!(o.metadata.name),
            json!(o.spec.schedule),
            json!(or_none(o.spec.time_zone.clone().unwrap_or_default())),
            json!(if o.spec.suspend == Some(true) { "True" } else { "False" }),
            json!(status.active.map_or(0, |active| active.len())),
            json!(or_none(last)),
            json!(age(&o.metadata, now)),
        ];
        let job = o.spec.job_template.spec.as_ref();
        cells.extend(made_of(job.map(|s| &s.template)));
        cells.push(json!(selector(job.and_then(|s| s.selector.as_ref()))));
        cells
    }
);

fn job_word(job: &Job, status: &JobStatus) -> &'static str {
    let is = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    human::since(metadata.creation_timestamp.as_ref().map(|Time(at)| *at), now)
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

/// Names and images of the containers.
fn made_of(template: Option<&PodTemplateSpec>) -> [Value; 2] {
    let containers = template.and_then(|t| t.spec.as_ref()).map(|s| s.containers.as_slice()).unwrap_or_default();
    let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let images: Vec<&str> = containers.iter().filter_map(|c| c.image.as_deref()).collect();
    [json!(names.join(",")), json!(images.join(","))]
}

/// Labels and expressions, as tables show them.
pub(super) fn selector(selector: Option<&LabelSelector>) -> String {
    let labels = selector.into_iter().flat_map(|s| s.match_labels.iter().flatten()).map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.into_iter().flat_map(|s| s.match_expressions.iter().flatten()).map(|r| {
        let values = r.values.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(",");
        match r.operator.as_str() {
            "In" => format!("{} in ({values})", r.key),
            "NotIn" => format!("{} notin ({values})", r.key),
            "Exists" => r.key.clone(),
            _ => format!("!{}", r.key),
        }
    });
    or_none(labels.chain(expressions).collect::<Vec<_>>().join(","))
}
