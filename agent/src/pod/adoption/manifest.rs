//! The two forms of a pod: what the API server is asked to create of a file's, and the manifest of one of the API server's. Pure.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::TICKET;
use crate::model::change::{Change, between, fixed};
use crate::model::{Body, Defaults, ValidObject, ValidPod, difference, load, references, text};

/// A manifest to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
    /// A Secret is in it.
    pub secret: bool,
    /// It is the one that was moved aside.
    pub restored: bool,
}

/// The manifest that a pod was of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Where it is read from.
    pub path: PathBuf,
    /// As it is now.
    pub text: Vec<u8>,
    /// It was moved aside; else it is where it was.
    pub aside: bool,
}

/// Why a pod can't be a file's as it runs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAsItRuns {
    /// It has what only an API server gives.
    #[error("it has {0}, which no file can give")]
    Needs(String),
    /// The manifest would be another pod.
    #[error("its manifest would say something else: {0}")]
    Differs(String),
}

/// What the API server is to create of a file's pod on this node.
pub fn for_the_api_server(pod: &ValidPod, ticket: &str, node_name: &str) -> Pod {
    let mut spec = pod.spec().clone();
    spec.node_name = Some(node_name.into());
    // A token would be one more volume, which a running container can't get.
    spec.automount_service_account_token = Some(false);
    // They come by a subresource.
    spec.ephemeral_containers = None;
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(TICKET.into(), ticket.into());
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: Some(pod.namespace().into()),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// The manifest of a pod of the API server, with `objects`, to which it refers: what it was of before, where that says the same; else a
/// new one in `folder`.
pub fn manifest(
    pod: &ValidPod,
    objects: &[ValidObject],
    original: Option<Original>,
    folder: &Path,
    defaults: &Defaults,
) -> Result<Manifest, NotAsItRuns> {
    if references::tokens(pod).next().is_some() {
        return Err(NotAsItRuns::Needs("a token of its service account".into()));
    }
    let secret = objects.iter().any(|object| matches!(object.body(), Body::Secret(_)));
    if let Some(Original { path, text, aside }) = original
        && let Ok(text) = String::from_utf8(text)
    {
        let same = says(&path, &text, pod, objects, defaults);
        if same.is_ok() && aside {
            return Ok(Manifest { path, text, secret, restored: true });
        }
        if !aside {
            // Perhaps with other pods; it counts again as it is.
            let loaded = load(&path, text.as_bytes(), defaults);
            let new = loaded.pods.iter().find(|new| new.uid() == pod.uid());
            return match new {
                Some(new) if between(pod, new) == Change::Keep => Ok(Manifest { path, text, secret, restored: false }),
                Some(new) => Err(NotAsItRuns::Differs(format!("{}: {}", path.display(), different(pod, new)))),
                None => Err(NotAsItRuns::Differs(format!("{} has it no more", path.display()))),
            };
        }
    }
    let path = folder.join(format!("{}.yaml", pod.name()));
    let documents = objects.iter().filter_map(document).chain([pod_document(pod)]);
    let text: String = documents.map(|document| format!("---\n{}", text::write(&document))).collect();
    says(&path, &text, pod, objects, defaults)?;
    Ok(Manifest { path, text, secret, restored: false })
}

/// Whether the text is this pod, and nothing but it and these objects.
fn says(path: &Path, text: &str, pod: &ValidPod, objects: &[ValidObject], defaults: &Defaults) -> Result<(), NotAsItRuns> {
    let loaded = load(path, text.as_bytes(), defaults);
    let differs = |why: String| Err(NotAsItRuns::Differs(why));
    if let Some(error) = loaded.errors.first() {
        return differs(error.to_string());
    }
    let [new] = &loaded.pods[..] else { return differs("it has other pods".into()) };
    if !loaded.workloads.is_empty() {
        return differs("it has workloads".into());
    }
    if new.uid() != pod.uid() || between(pod, new) != Change::Keep {
        return differs(different(pod, new));
    }
    let (old, new) = (plain(&pod.metadata), plain(&new.metadata));
    if old.labels != new.labels || old.annotations != new.annotations {
        return differs("labels or annotations".into());
    }
    let data = |object: &ValidObject| document(object).map(|document| (object.key().clone(), document));
    let ours: Vec<_> = objects.iter().filter_map(data).collect();
    let same = |object: &ValidObject| data(object).is_none_or(|data| ours.contains(&data));
    let all = ours.iter().all(|(key, _)| loaded.objects.iter().any(|object| object.key() == key));
    if all && loaded.objects.iter().all(same) { Ok(()) } else { differs("it has other objects".into()) }
}

/// Where two specs differ.
pub fn different(old: &ValidPod, new: &ValidPod) -> String {
    let lines = difference::between(&json!(fixed(old.spec())), &json!(fixed(new.spec())));
    let places: Vec<String> = lines.iter().map(|one| one.path.clone()).collect();
    if places.is_empty() { "the identity".into() } else { places.join(", ") }
}

fn pod_document(pod: &ValidPod) -> Value {
    let mut spec: PodSpec = pod.spec().clone();
    (spec.node_name, spec.service_account, spec.priority, spec.preemption_policy) = (None, None, None, None);
    spec.service_account_name = spec.service_account_name.filter(|name| name != "default");
    spec.ephemeral_containers = None;
    let mut metadata = plain(&pod.metadata);
    metadata.uid = Some(pod.uid().as_str().into());
    json!(Pod { metadata, spec: Some(spec), status: None })
}

/// ConfigMaps and Secrets as a manifest has them, and as an API server is asked to create them; nothing of other kinds.
pub fn document(object: &ValidObject) -> Option<Value> {
    match object.body() {
        Body::ConfigMap(object) => Some(json!(ConfigMap { metadata: plain(&object.metadata), ..ConfigMap::clone(object) })),
        Body::Secret(object) => {
            Some(json!(Secret { metadata: plain(&object.metadata), string_data: None, ..Secret::clone(object) }))
        }
        _ => None,
    }
}

/// Metadata without what a server says.
fn plain(metadata: &ObjectMeta) -> ObjectMeta {
    let annotations = metadata.annotations.clone().map(|mut annotations| {
        annotations.remove(TICKET);
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        annotations
    });
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        labels: metadata.labels.clone(),
        annotations: annotations.filter(|annotations| !annotations.is_empty()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Origin;

    fn loaded(text: &str) -> (ValidPod, Vec<ValidObject>) {
        let mut loaded = load(Path::new("web.yaml"), text.as_bytes(), &Defaults::default());
        assert_eq!(loaded.errors, [], "{text}");
        (loaded.pods.remove(0), loaded.objects)
    }

    const TEXT: &str = "# by hand
apiVersion: v1
kind: Pod
metadata: {name: web, uid: here, labels: {app: web}}
spec:
  containers:
  - {name: main, image: 'registry.test/web:1', envFrom: [{secretRef: {name: key}}], securityContext: {runAsUser: 5}}
  volumes: [{name: v, emptyDir: {}}, {name: c, configMap: {name: app, defaultMode: 0400}}]
---
{apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {A: b}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: app}, data: {GREETING: \"yes\"}}
";

    /// As an API server gives it back.
    fn of_the_api_server(pod: &ValidPod) -> ValidPod {
        let mut there = for_the_api_server(pod, "t", "node");
        there.metadata.uid = Some("here".into());
        there.metadata.resource_version = Some("7".into());
        if let Some(spec) = &mut there.spec {
            spec.service_account_name = Some("default".into());
            spec.service_account = Some("default".into());
            spec.priority = Some(0);
            spec.preemption_policy = Some("PreemptLowerPriority".into());
        }
        ValidPod::trusted(there, Origin::Api)
    }

    fn write(pod: &ValidPod, objects: &[ValidObject], original: Option<Original>) -> Result<Manifest, NotAsItRuns> {
        manifest(pod, objects, original, Path::new("/m"), &Defaults::default())
    }

    #[test]
    fn there_and_back_it_is_the_same_pod() {
        let (pod, objects) = loaded(TEXT);
        let there = of_the_api_server(&pod);
        assert_eq!(between(&pod, &there), Change::Keep);
        let manifest = write(&there, &objects, None).unwrap();
        assert_eq!((manifest.path.to_str(), manifest.secret), (Some("/m/web.yaml"), true));
        assert!(!manifest.text.contains(TICKET) && !manifest.text.contains("resourceVersion"), "{}", manifest.text);
        let (back, their) = loaded(&manifest.text);
        assert_eq!((between(&there, &back), back.uid().as_str(), their.len()), (Change::Keep, "here", 2));
        assert_eq!(back.metadata.labels, pod.metadata.labels);
    }

    #[test]
    fn what_was_written_by_hand_comes_back_if_it_is_true_still() {
        let (pod, mut objects) = loaded(TEXT);
        let original = Some(Original { path: "/m/mine.yaml".into(), text: TEXT.into(), aside: true });
        let manifest = write(&of_the_api_server(&pod), &objects, original.clone()).unwrap();
        assert_eq!((manifest.text.as_str(), manifest.restored), (TEXT, true));
        // Another image: nobody would want it to run the old one.
        let mut edited = Pod::clone(of_the_api_server(&pod).object());
        edited.spec.as_mut().unwrap().containers[0].image = Some("registry.test/web:2".into());
        let edited = ValidPod::trusted(edited, Origin::Api);
        assert!(write(&edited, &objects, original.clone()).unwrap().text.contains("web:2"));
        // So with what it refers to.
        let at = objects.iter().position(|object| matches!(object.body(), Body::ConfigMap(_))).unwrap();
        let Body::ConfigMap(map) = objects[at].body() else { unreachable!("it is one") };
        let mut map = ConfigMap::clone(map);
        map.data = Some([("GREETING".to_owned(), "no".to_owned())].into());
        objects[at] = ValidObject::trusted(Body::ConfigMap(Arc::new(map)), Origin::Api);
        assert!(!write(&of_the_api_server(&pod), &objects, original).unwrap().restored);
    }

    #[test]
    fn one_that_stayed_where_it_was_has_to_be_true() {
        let (pod, _) = loaded(TEXT);
        let original = |text: String| Some(Original { path: "/m/mine.yaml".into(), text: text.into(), aside: false });
        assert!(write(&of_the_api_server(&pod), &[], original(TEXT.into())).is_ok());
        let error = write(&of_the_api_server(&pod), &[], original(TEXT.replace("runAsUser: 5", "runAsUser: 6"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "its manifest would say something else: /m/mine.yaml: containers[0].securityContext.runAsUser"
        );
    }

    #[test]
    fn a_pod_with_a_token_stays_the_api_servers() {
        let token = "{name: t, projected: {sources: [{serviceAccountToken: {path: token}}]}}";
        let pod: Pod = serde_yaml::from_str(&format!(
            "{{metadata: {{name: web, uid: u}}, spec: {{containers: [{{name: a, image: i}}], volumes: [{token}]}}}}"
        ))
        .unwrap();
        let error = write(&ValidPod::trusted(pod, Origin::Api), &[], None).unwrap_err();
        assert_eq!(error.to_string(), "it has a token of its service account, which no file can give");
    }
}
