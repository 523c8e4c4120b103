//! From a method and a path to what answers it. One table, top to bottom.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap};
use hyper::{Method, Request};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node as NodeObject, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::list::{Form, Selection, Served, list};
use super::nodes::Image;
use super::query::{Plus, Query, decode};
use super::server::Shared;
use super::watch::watch;
use super::{ApiError, GROUP, Response, discovery, edit, images, logs, objects, portforward, remote, reply, tls};
use crate::model::{self, Defaults, PodUid};
use crate::pod::node::Node;
use crate::workload::diff;

/// The largest body of a request, but for an image's archive.
const BODY_LIMIT: usize = 64 * 1024;
/// The largest manifest that is compared.
const MANIFEST_LIMIT: usize = 16 << 20;
/// In which a body must have come.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A request, its path and query taken apart.
pub struct Call {
    /// What all requests share.
    pub shared: Arc<Shared>,
    /// The query.
    pub query: Query,
    /// All else.
    pub request: Request<Incoming>,
}

impl Call {
    /// The agent.
    pub fn node(&self) -> &Arc<dyn Node> {
        &self.shared.node
    }
    /// Reads a small body.
    pub async fn body(&mut self) -> Result<bytes::Bytes, ApiError> {
        self.body_of(BODY_LIMIT).await
    }
    async fn body_of(&mut self, limit: usize) -> Result<bytes::Bytes, ApiError> {
        let whole = Limited::new(self.request.body_mut(), limit).collect();
        match tokio::time::timeout(BODY_TIME, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(ApiError::too_large(format!("the body is over {limit} bytes")))
            }
            Ok(Err(error)) => Err(ApiError::bad_request(format!("read the body: {error}"))),
            Err(_) => Err(ApiError::bad_request(format!("the body did not come within {} s", BODY_TIME.as_secs()))),
        }
    }
    fn form(&self) -> Form {
        Form::parse(accept(self.request.headers()), &self.query)
    }
}

fn accept(headers: &HeaderMap) -> &str {
    headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Answers a request, whatever comes.
pub async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path: Vec<String> = request.uri().path().split('/').filter(|p| !p.is_empty()).map(|p| decode(p, Plus::Itself)).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let call = Call { shared, query, request };
    dispatch(call, &path).await.unwrap_or_else(ApiError::into_response)
}

async fn dispatch(call: Call, path: &[&str]) -> Result<Response, ApiError> {
    let get = matches!(*call.request.method(), Method::GET | Method::HEAD);
    match path {
        ["api", "v1", rest @ ..] => core(call, rest).await,
        ["apis", GROUP, "v1", rest @ ..] => custom(call, rest).await,
        ["apis", group @ ("apps" | "batch" | "discovery.k8s.io" | "networking.k8s.io"), "v1", rest @ ..] if !rest.is_empty() => {
            workloads(&call, group, rest).await
        }
        _ if !get => Err(ApiError::method_not_allowed()),
        ["healthz" | "livez" | "readyz"] => Ok(reply::whole("text/plain", "ok")),
        _ => discovery::answer(accept(call.request.headers()), path),
    }
}

/// `/api/v1/…`.
async fn core(call: Call, path: &[&str]) -> Result<Response, ApiError> {
    match path {
        [] => discovery::answer(accept(call.request.headers()), &["api", "v1"]),
        ["pods"] => collection::<Pod>(&call, None).await,
        ["events"] => collection::<Event>(&call, None).await,
        ["nodes"] => collection::<NodeObject>(&call, None).await,
        ["namespaces"] => collection::<Namespace>(&call, None).await,
        ["nodes", name] => object::<NodeObject>(&call, None, name).await,
        ["namespaces", name] => object::<Namespace>(&call, None, name).await,
        ["namespaces", namespace, "pods"] => collection::<Pod>(&call, Some(namespace)).await,
        ["namespaces", namespace, "events"] => collection::<Event>(&call, Some(namespace)).await,
        ["namespaces", namespace, "events", name] => object::<Event>(&call, Some(namespace), name).await,
        [resource] => beside_pods(&call, None, resource, None).await,
        ["namespaces", namespace, resource @ ("configmaps" | "persistentvolumeclaims" | "secrets" | "services")] => {
            beside_pods(&call, Some(namespace), resource, None).await
        }
        ["namespaces", namespace, resource @ ("configmaps" | "persistentvolumeclaims" | "secrets" | "services"), name] => {
            beside_pods(&call, Some(namespace), resource, Some(name)).await
        }
        ["namespaces", namespace, "pods", name] => pod(call, namespace, name).await,
        ["namespaces", namespace, "pods", name, subresource] => {
            let target = Target::find(call.node(), namespace, name)?;
            let method = call.request.method().clone();
            match (*subresource, method) {
                ("log", Method::GET) => logs::answer(&call, &target.pod),
                ("exec", Method::GET | Method::POST) => remote::exec(call, &target),
                ("attach", Method::GET | Method::POST) => remote::attach(call, &target),
                ("portforward", Method::GET | Method::POST) => portforward::answer(call, &target),
                ("status" | "ephemeralcontainers", Method::GET) => object::<Pod>(&call, Some(namespace), name).await,
                ("status", Method::PATCH | Method::PUT) => edit::status(call, &target).await,
                ("ephemeralcontainers", Method::PATCH | Method::PUT) => edit::ephemeral_containers(call, &target).await,
                ("log" | "exec" | "attach" | "portforward" | "status" | "ephemeralcontainers", _) => {
                    Err(ApiError::method_not_allowed())
                }
                _ => Err(ApiError::no_such_path()),
            }
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// The objects that pods refer to.
async fn beside_pods(call: &Call, namespace: Option<&str>, resource: &str, name: Option<&str>) -> Result<Response, ApiError> {
    match (resource, name) {
        ("configmaps", _) => workload::<ConfigMap>(call, namespace, name).await,
        ("persistentvolumeclaims", _) => workload::<PersistentVolumeClaim>(call, namespace, name).await,
        ("services", _) => workload::<Service>(call, namespace, name).await,
        ("secrets", Some(name)) if *call.request.method() == Method::GET => {
            let listed = find::<Secret>(call, namespace, name).await?;
            Ok(reply::json(&objects::secret(&**call.node(), &listed, call.form())))
        }
        ("secrets", _) => workload::<Secret>(call, namespace, name).await,
        _ => Err(ApiError::no_such_path()),
    }
}

/// `/apis/apps/v1/…`, `/apis/batch/v1/…` and what Services and policies have.
async fn workloads(call: &Call, group: &str, path: &[&str]) -> Result<Response, ApiError> {
    let (namespace, resource, name) = match path {
        [resource] => (None, *resource, None),
        ["namespaces", namespace, resource] => (Some(*namespace), *resource, None),
        ["namespaces", namespace, resource, name] | ["namespaces", namespace, resource, name, "status"] => {
            (Some(*namespace), *resource, Some(*name))
        }
        _ => return Err(ApiError::no_such_path()),
    };
    match (group, resource) {
        ("apps", "daemonsets") => workload::<DaemonSet>(call, namespace, name).await,
        ("apps", "deployments") => workload::<Deployment>(call, namespace, name).await,
        ("apps", "replicasets") => workload::<ReplicaSet>(call, namespace, name).await,
        ("apps", "statefulsets") => workload::<StatefulSet>(call, namespace, name).await,
        ("batch", "cronjobs") => workload::<CronJob>(call, namespace, name).await,
        ("batch", "jobs") => workload::<Job>(call, namespace, name).await,
        ("discovery.k8s.io", "endpointslices") => workload::<EndpointSlice>(call, namespace, name).await,
        ("networking.k8s.io", "networkpolicies") => workload::<NetworkPolicy>(call, namespace, name).await,
        _ => Err(ApiError::no_such_path()),
    }
}

async fn workload<T: Served>(call: &Call, namespace: Option<&str>, name: Option<&str>) -> Result<Response, ApiError> {
    if *call.request.method() != Method::GET {
        return Err(ApiError::read_only(T::RESOURCE));
    }
    match name {
        Some(name) => object::<T>(call, namespace, name).await,
        None => collection::<T>(call, namespace).await,
    }
}

/// `/apis/nodeagent.dev/v1/…`: what Kubernetes lacks.
async fn custom(mut call: Call, path: &[&str]) -> Result<Response, ApiError> {
    match (path, call.request.method().clone()) {
        ([], Method::GET) => discovery::answer(accept(call.request.headers()), &["apis", GROUP, "v1"]),
        (["images"], Method::GET) => collection::<Image>(&call, None).await,
        (["images", act], _) if images::ACTS.contains(act) => images::answer(&mut call, act).await,
        (["images", name], Method::GET) => object::<Image>(&call, None, name).await,
        (["kubeconfig"], Method::GET) => kubeconfig(&call.shared),
        (["diff"], Method::POST) => diff(&mut call).await,
        (["check"], Method::GET) => Ok(reply::json(&json!({ "checks": call.node().check().await? }))),
        (["namespaces", namespace, "pods", name, "start"], Method::POST) => {
            call.node().start(namespace, name).await?;
            Ok(reply::success(&json!({ "name": name, "kind": "pods" })))
        }
        (["namespaces", namespace, "pods", name, act], method) => {
            let target = Target::find(call.node(), namespace, name)?;
            match (*act, method) {
                ("inspect", Method::GET) => Ok(reply::json(&call.node().inspect(&target.uid).await?)),
                ("explain", Method::GET) => Ok(reply::json(&call.node().explain(&target.uid).await?)),
                ("stop", Method::POST) => {
                    call.node().stop(&target.uid).await?;
                    Ok(reply::success(&json!({ "name": name, "kind": "pods", "uid": target.uid.as_str() })))
                }
                _ => Err(ApiError::no_such_path()),
            }
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// What a manifest would change. The query's `file` is its name, for what is wrong with it.
async fn diff(call: &mut Call) -> Result<Response, ApiError> {
    let manifest = call.body_of(MANIFEST_LIMIT).await?;
    let file = PathBuf::from(call.query.get("file").unwrap_or("-"));
    let node = call.node().clone();
    let answer = tokio::task::spawn_blocking(move || {
        let defaults = Defaults { node_name: node.node().metadata.name.unwrap_or_default() };
        let loaded = model::load(&file, &manifest, &defaults);
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        json!({ "errors": errors, "differences": diff::diff(&loaded, node.store(), node.objects()) })
    });
    answer.await.map(|answer| reply::json(&answer)).map_err(|error| ApiError::internal(error.to_string()))
}

/// A client's configuration with a certificate. Whoever asks has this API already.
fn kubeconfig(shared: &Shared) -> Result<Response, ApiError> {
    let address = shared.address.ok_or_else(|| {
        ApiError::bad_request("the agent serves no TLS port that kubectl could use: start it with --listen 127.0.0.1:6443")
    })?;
    let config = tls::kubeconfig(&shared.certificates, &format!("https://{address}"));
    Ok(reply::json(&config.map_err(|error| ApiError::internal(error.to_string()))?))
}

/// A pod that a path names.
pub struct Target {
    /// Its state when the request came.
    pub pod: Arc<Pod>,
    /// Its identity.
    pub uid: PodUid,
}

impl Target {
    fn find(node: &Arc<dyn Node>, namespace: &str, name: &str) -> Result<Self, ApiError> {
        let pod = node.store().pod_named(namespace, name).ok_or_else(|| ApiError::not_found("pods", name))?;
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        Ok(Self { pod, uid })
    }
}

async fn collection<T: Served>(call: &Call, namespace: Option<&str>) -> Result<Response, ApiError> {
    if *call.request.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    if call.query.flag("watch") {
        return watch::<T>(call.node(), call.shared.oldest, namespace, &call.query, call.form()).await;
    }
    list::<T>(&**call.node(), namespace, &call.query, call.form()).await
}

async fn object<T: Served>(call: &Call, namespace: Option<&str>, name: &str) -> Result<Response, ApiError> {
    if *call.request.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    Ok(reply::json(&call.form().object(&*find::<T>(call, namespace, name).await?, true)))
}

async fn find<T: Served>(call: &Call, namespace: Option<&str>, name: &str) -> Result<Arc<T>, ApiError> {
    let by_name = Query::parse(&format!("fieldSelector=metadata.name%3D{}", super::query::encode(name)));
    let selection = Selection::parse::<T>(namespace, &by_name)?;
    let snapshot = T::snapshot(&**call.node()).await?;
    let found = snapshot.objects.iter().find(|object| selection.matches(&***object));
    found.cloned().ok_or_else(|| ApiError::not_found(T::RESOURCE, name))
}

async fn pod(mut call: Call, namespace: &str, name: &str) -> Result<Response, ApiError> {
    let target = Target::find(call.node(), namespace, name)?;
    match *call.request.method() {
        Method::GET => Ok(reply::json(&call.form().object(&*target.pod, true))),
        Method::DELETE => delete(&mut call, &target).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn delete(call: &mut Call, target: &Target) -> Result<Response, ApiError> {
    let body = call.body().await?;
    let options: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("DeleteOptions: {error}")))?
    };
    let grace = match options.get("gracePeriodSeconds").and_then(Value::as_i64) {
        Some(seconds) => Some(seconds),
        None => call.query.number("gracePeriodSeconds")?,
    };
    if grace.is_some_and(|seconds| seconds < 0) {
        return Err(ApiError::bad_request("gracePeriodSeconds: must be 0 or more"));
    }
    if options["preconditions"]["uid"].as_str().is_some_and(|wanted| wanted != target.uid.as_str()) {
        return Err(ApiError::conflict(format!("Precondition failed: the pod's UID is {}", target.uid)));
    }
    let dry_run = call.query.get("dryRun") == Some("All") || options["dryRun"].as_array().is_some_and(|v| !v.is_empty());
    let deletion = if dry_run { crate::pod::node::Deletion::default() } else { call.node().delete(&target.uid, grace).await? };
    let mut response = match &deletion.warning {
        None => reply::json(&*call.node().store().pod(&target.uid).unwrap_or_else(|| target.pod.clone())),
        // Its successor has the same name and UID: a client that waits until that UID is gone would wait for ever.
        Some(_) => reply::success(&json!({ "name": target.pod.metadata.name, "kind": "pods" })),
    };
    if let Some(warning) = deletion.warning {
        reply::warn(&mut response, &warning);
    }
    Ok(response)
}
