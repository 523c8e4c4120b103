//! What may be written besides manifests: `pods/ephemeralcontainers` and the conditions in `pods/status`. By PATCH (strategic or JSON
//! merge) or PUT, as kubectl sends them.

use std::path::Path;

use hyper::Method;
use hyper::header::CONTENT_TYPE;
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod, PodCondition};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::call::{Call, Target};
use super::{ApiError, Response, reply};
use crate::model::{self, Defaults};
use crate::pod::node::Edit;
use crate::pod::status::is_others;

/// How a body changes a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its elements are merged by their key.
    Merge,
    /// It is the new list.
    Replace,
}

impl Way {
    fn of(call: &Call) -> Result<Self, ApiError> {
        let kind = call.request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match (call.request.method(), kind) {
            (&Method::PATCH, "application/strategic-merge-patch+json") => Ok(Self::Merge),
            (&Method::PATCH, "application/merge-patch+json") => Ok(Self::Replace),
            (&Method::PATCH, other) => Err(ApiError::unsupported(format!(
                "the body of the request was in an unknown format {other:?} - accepted media types include: \
                 application/strategic-merge-patch+json, application/merge-patch+json"
            ))),
            _ => Ok(Self::Replace),
        }
    }
}

/// PATCH or PUT of a pod's ephemeral containers.
pub async fn ephemeral_containers(mut call: Call, target: &Target) -> Result<Response, ApiError> {
    let way = Way::of(&call)?;
    let body = body(&mut call).await?;
    let present = target.pod.spec.as_ref().and_then(|s| s.ephemeral_containers.clone()).unwrap_or_default();
    let wanted = match body["spec"].get("ephemeralContainers") {
        Some(list) => merged(&present, list, "name", way)?,
        None => present.clone(),
    };
    let wanted = checked(target, wanted, &call.node.node().metadata.name.unwrap_or_default())?;
    for old in &present {
        match wanted.iter().find(|new| new.name == old.name) {
            Some(new) if new == old => {}
            Some(_) => return Err(forbidden(target, &old.name, "changed")),
            None => return Err(forbidden(target, &old.name, "removed")),
        }
    }
    if wanted != present && (call.query.get("dryRun") != Some("All")) {
        call.node.edit(&target.uid, Edit::Ephemeral(wanted)).await?;
    }
    answer(&call, target)
}

/// PATCH or PUT of a pod's status: of the conditions that aren't the agent's own.
pub async fn status(mut call: Call, target: &Target) -> Result<Response, ApiError> {
    let way = Way::of(&call)?;
    let body = body(&mut call).await?;
    let present = target.pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    if let Some(list) = body["status"].get("conditions") {
        let mut wanted: Vec<PodCondition> = merged(&present, list, "type", way)?;
        wanted.retain(|condition| is_others(&condition.type_));
        if let Some(wrong) = wanted.iter().find(|c| !["True", "False", "Unknown"].contains(&c.status.as_str())) {
            let message = format!(
                "status.conditions: Unsupported value: {:?}: supported values: \"True\", \"False\", \"Unknown\"",
                wrong.status
            );
            return Err(ApiError::invalid(message));
        }
        call.node.edit(&target.uid, Edit::Conditions(wanted)).await?;
    }
    answer(&call, target)
}

fn answer(call: &Call, target: &Target) -> Result<Response, ApiError> {
    let pod = call.node.store().pod(&target.uid).unwrap_or_else(|| target.pod.clone());
    let mut object = serde_json::to_value(&*pod).map_err(|error| ApiError::internal(error.to_string()))?;
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Pod");
    Ok(reply::json(&object))
}

async fn body(call: &mut Call) -> Result<Value, ApiError> {
    let body = call.body().await?;
    serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("the body is no JSON: {error}")))
}

fn forbidden(target: &Target, container: &str, what: &str) -> ApiError {
    let pod = target.pod.metadata.name.as_deref().unwrap_or_default();
    ApiError::invalid(format!(
        "Pod \"{pod}\" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers \"{container}\" may not be {what}"
    ))
}

/// The list as it is to be. Elements that a strategic patch names are merged with those that are there.
fn merged<T: serde::Serialize + DeserializeOwned>(present: &[T], list: &Value, key: &str, way: Way) -> Result<Vec<T>, ApiError> {
    let wrong = |error: serde_json::Error| ApiError::bad_request(format!("the body doesn't fit: {error}"));
    let Some(list) = list.as_array() else { return Err(ApiError::bad_request("the body doesn't fit: a list is wanted")) };
    let mut all: Vec<Value> = match way {
        Way::Merge => present.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(wrong)?,
        Way::Replace => Vec::new(),
    };
    for item in list {
        match all.iter_mut().find(|old| old.get(key).is_some_and(|name| Some(name) == item.get(key))) {
            _ if item["$patch"] == "delete" => all.retain(|old| old.get(key) != item.get(key)),
            Some(old) => merge(old, item),
            None => all.push(item.clone()),
        }
    }
    all.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().map_err(wrong)
}

/// RFC 7386.
fn merge(old: &mut Value, patch: &Value) {
    let (Some(old_fields), Some(fields)) = (old.as_object_mut(), patch.as_object()) else {
        old.clone_from(patch);
        return;
    };
    for (name, value) in fields {
        match value {
            Value::Null => drop(old_fields.remove(name)),
            value => merge(old_fields.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

/// With their defaults, and as right as in a manifest: the whole pod is read as one.
fn checked(target: &Target, wanted: Vec<EphemeralContainer>, node_name: &str) -> Result<Vec<EphemeralContainer>, ApiError> {
    let mut pod = Pod { status: None, ..Pod::clone(&target.pod) };
    if let Some(spec) = &mut pod.spec {
        spec.ephemeral_containers = Some(wanted);
    }
    let text = serde_json::to_vec(&pod).map_err(|error| ApiError::internal(error.to_string()))?;
    let loaded = model::load(Path::new("-"), &text, &Defaults { node_name: node_name.to_owned() });
    let name = target.pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(error) = loaded.errors.first() {
        return Err(ApiError::invalid(format!("Pod \"{name}\" is invalid: {}: {}", error.field, error.message)));
    }
    let pod = loaded.pods.into_iter().next().ok_or_else(|| ApiError::internal("the pod could not be read again"))?;
    Ok(pod.spec().ephemeral_containers.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn names(present: &Value, list: &Value, way: Way) -> Value {
        let present: Vec<Value> = present.as_array().unwrap().clone();
        Value::Array(merged(&present, list, "name", way).unwrap())
    }

    #[rstest]
    #[case::added(json!([{"name": "a", "x": 1}]), json!([{"name": "b"}]), Way::Merge, json!([{"name": "a", "x": 1}, {"name": "b"}]))]
    #[case::merged(json!([{"name": "a", "x": 1}]), json!([{"name": "a", "y": 2}]), Way::Merge, json!([{"name": "a", "x": 1, "y": 2}]))]
    #[case::unset(json!([{"name": "a", "x": 1}]), json!([{"name": "a", "x": null}]), Way::Merge, json!([{"name": "a"}]))]
    #[case::deleted(json!([{"name": "a"}]), json!([{"name": "a", "$patch": "delete"}]), Way::Merge, json!([]))]
    #[case::replaced(json!([{"name": "a"}]), json!([{"name": "b"}]), Way::Replace, json!([{"name": "b"}]))]
    fn lists_are_merged_by_their_key(#[case] present: Value, #[case] list: Value, #[case] way: Way, #[case] expected: Value) {
        assert_eq!(names(&present, &list, way), expected);
    }
}
