//! Events as the API serves them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::ApiError;
use super::human;
use super::list::{Changes, Served};
use super::table::{Column, column, wide};
use crate::pod::node::Node;
use crate::pod::store::{Change, Expired, Snapshot};

impl Served for Event {
    const RESOURCE: &'static str = "events";
    const KIND: &'static str = "Event";
    const API_VERSION: &'static str = "v1";
    const COLUMNS: &'static [Column] = &[
        column("Last Seen"),
        column("Type"),
        column("Reason"),
        column("Object"),
        wide("Subobject"),
        wide("Source"),
        column("Message"),
        wide("First Seen"),
        Column { name: "Count", kind: "integer", priority: 1 },
        wide("Name"),
    ];
    const FIELDS: &'static [&'static str] = &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, name: &str) -> String {
        let object = &self.involved_object;
        let found = match name {
            "involvedObject.kind" => &object.kind,
            "involvedObject.namespace" => &object.namespace,
            "involvedObject.name" => &object.name,
            "involvedObject.uid" => &object.uid,
            "involvedObject.apiVersion" => &object.api_version,
            "involvedObject.resourceVersion" => &object.resource_version,
            "involvedObject.fieldPath" => &object.field_path,
            "reason" => &self.reason,
            "reportingComponent" => &self.reporting_component,
            "source" => return component(self).to_owned(),
            "type" => &self.type_,
            _ => &None,
        };
        found.clone().unwrap_or_default()
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let seen = Seen::of(self);
        let object = &self.involved_object;
        let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
        let target = match object.name.as_deref() {
            Some(name) if !name.is_empty() => format!("{kind}/{name}"),
            _ => kind,
        };
        let host = self.source.as_ref().and_then(|s| s.host.as_deref()).or(self.reporting_instance.as_deref());
        let source = match host {
            Some(host) if !host.is_empty() => format!("{}, {host}", component(self)),
            _ => component(self).to_owned(),
        };
        vec![
            json!(human::since(seen.last, now)),
            json!(self.type_.as_deref().unwrap_or_default()),
            json!(self.reason.as_deref().unwrap_or_default()),
            json!(target),
            json!(object.field_path.as_deref().unwrap_or_default()),
            json!(source),
            json!(self.message.as_deref().unwrap_or_default().trim()),
            json!(human::since(seen.first, now)),
            json!(seen.count),
            json!(self.metadata.name),
        ]
    }

    async fn snapshot(node: &dyn Node) -> Result<Snapshot<Self>, ApiError> {
        Ok(node.store().events())
    }

    fn since(node: &dyn Node, version: u64) -> Result<(Vec<Change<Self>>, Changes<Self>), Expired> {
        node.store().events_since(version)
    }
}

fn component(event: &Event) -> &str {
    let source = event.source.as_ref().and_then(|s| s.component.as_deref()).filter(|c| !c.is_empty());
    source.or(event.reporting_component.as_deref()).unwrap_or_default()
}

/// When, and how often.
pub struct Seen {
    /// The first time.
    pub first: Option<Timestamp>,
    /// The last time.
    pub last: Option<Timestamp>,
    /// At least 1.
    pub count: i32,
}

/// From whichever of an event's fields are set.
pub fn seen(event: &Event) -> Seen {
    Seen::of(event)
}

impl Seen {
    fn of(event: &Event) -> Self {
        let at = event.event_time.as_ref().map(|t| t.0);
        let first = event.first_timestamp.as_ref().map(|t| t.0).or(at);
        let last = event.last_timestamp.as_ref().map(|t| t.0).or(first);
        match &event.series {
            Some(series) => {
                Self { first, last: series.last_observed_time.as_ref().map(|t| t.0).or(last), count: series.count.unwrap_or(1) }
            }
            None => Self { first, last, count: event.count.filter(|c| *c > 0).unwrap_or(1) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_a_repeated_event() {
        let event: Event = serde_json::from_value(json!({
            "metadata": { "name": "web.1", "namespace": "default" }, "type": "Warning", "reason": "BackOff", "count": 4,
            "message": "Back-off restarting failed container\n", "involvedObject": { "kind": "Pod", "name": "web", "fieldPath": "spec.containers{app}" },
            "source": { "component": "nodeagent", "host": "edge-1" },
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:00Z",
        }))
        .unwrap();
        let cells = event.cells("2026-01-01T01:00:00Z".parse().unwrap());
        let expected = json!([
            "60s",
            "Warning",
            "BackOff",
            "pod/web",
            "spec.containers{app}",
            "nodeagent, edge-1",
            "Back-off restarting failed container",
            "60m",
            4,
            "web.1"
        ]);
        assert_eq!(Value::Array(cells), expected);
    }
}
