//! From a method and a path to what answers it. One table, top to bottom.

use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node as NodeObject, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::call::{Call, Place, Target, accept};
use super::list::{Form, Selection, Served, list};
use super::nodes::Image;
use super::query::{Plus, Query, decode};
use super::server::Shared;
use super::watch::watch;
use super::{ApiError, GROUP, Response, discovery, edit, images, logs, objects, portforward, remote, reply, tls};
use crate::model::{self, Defaults};
use crate::pod::node::Node;
use crate::workload::diff;

/// The largest manifest that is compared.
const MANIFEST_LIMIT: usize = 16 << 20;

/// A request to this API.
struct Asked {
    shared: Arc<Shared>,
    call: Call,
}

impl Asked {
    fn node(&self) -> &Arc<dyn Node> {
        &self.call.node
    }
    fn method(&self) -> &Method {
        self.call.request.method()
    }
    fn form(&self) -> Form {
        Form::parse(accept(self.call.request.headers()), &self.call.query)
    }
}

/// Answers a request, whatever comes.
pub async fn answer(shared: Arc<Shared>, request: Request<Incoming>, place: Place) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path: Vec<String> = request.uri().path().split('/').filter(|p| !p.is_empty()).map(|p| decode(p, Plus::Itself)).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let call = Call { node: shared.node.clone(), query, request, place };
    dispatch(Asked { shared, call }, &path).await.unwrap_or_else(ApiError::into_response)
}

async fn dispatch(asked: Asked, path: &[&str]) -> Result<Response, ApiError> {
    let get = matches!(*asked.method(), Method::GET | Method::HEAD);
    match path {
        ["api", "v1", rest @ ..] => core(asked, rest).await,
        ["apis", GROUP, "v1", rest @ ..] => custom(asked, rest).await,
        ["apis", group @ ("apps" | "batch" | "discovery.k8s.io" | "networking.k8s.io"), "v1", rest @ ..] if !rest.is_empty() => {
            workloads(&asked, group, rest).await
        }
        _ if !get => Err(ApiError::method_not_allowed()),
        ["healthz" | "livez" | "readyz"] => Ok(reply::whole("text/plain", "ok")),
        _ => discovery::answer(accept(asked.call.request.headers()), path),
    }
}

/// `/api/v1/…`.
async fn core(asked: Asked, path: &[&str]) -> Result<Response, ApiError> {
    match path {
        [] => discovery::answer(accept(asked.call.request.headers()), &["api", "v1"]),
        ["pods"] => collection::<Pod>(&asked, None).await,
        ["events"] => collection::<Event>(&asked, None).await,
        ["nodes"] => collection::<NodeObject>(&asked, None).await,
        ["namespaces"] => collection::<Namespace>(&asked, None).await,
        ["nodes", name] => object::<NodeObject>(&asked, None, name).await,
        ["namespaces", name] => object::<Namespace>(&asked, None, name).await,
        ["namespaces", namespace, "pods"] => collection::<Pod>(&asked, Some(namespace)).await,
        ["namespaces", namespace, "events"] => collection::<Event>(&asked, Some(namespace)).await,
        ["namespaces", namespace, "events", name] => object::<Event>(&asked, Some(namespace), name).await,
        [resource] => beside_pods(&asked, None, resource, None).await,
        ["namespaces", namespace, resource @ ("configmaps" | "persistentvolumeclaims" | "secrets" | "services")] => {
            beside_pods(&asked, Some(namespace), resource, None).await
        }
        ["namespaces", namespace, resource @ ("configmaps" | "persistentvolumeclaims" | "secrets" | "services"), name] => {
            beside_pods(&asked, Some(namespace), resource, Some(name)).await
        }
        ["namespaces", namespace, "pods", name] => pod(asked, namespace, name).await,
        ["namespaces", namespace, "pods", name, subresource] => {
            let target = Target::find(asked.node(), namespace, name)?;
            let method = asked.method().clone();
            match (*subresource, method) {
                ("log", Method::GET) => logs::answer(&asked.call, &target.pod),
                ("exec", Method::GET | Method::POST) => remote::exec(asked.call, &target),
                ("attach", Method::GET | Method::POST) => remote::attach(asked.call, &target),
                ("portforward", Method::GET | Method::POST) => portforward::answer(asked.call, &target),
                ("status" | "ephemeralcontainers", Method::GET) => object::<Pod>(&asked, Some(namespace), name).await,
                ("status", Method::PATCH | Method::PUT) => edit::status(asked.call, &target).await,
                ("ephemeralcontainers", Method::PATCH | Method::PUT) => edit::ephemeral_containers(asked.call, &target).await,
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
async fn beside_pods(asked: &Asked, namespace: Option<&str>, resource: &str, name: Option<&str>) -> Result<Response, ApiError> {
    match (resource, name) {
        ("configmaps", _) => workload::<ConfigMap>(asked, namespace, name).await,
        ("persistentvolumeclaims", _) => workload::<PersistentVolumeClaim>(asked, namespace, name).await,
        ("services", _) => workload::<Service>(asked, namespace, name).await,
        ("secrets", Some(name)) if *asked.method() == Method::GET => {
            let listed = find::<Secret>(asked, namespace, name).await?;
            Ok(reply::json(&objects::secret(&**asked.node(), &listed, asked.form())))
        }
        ("secrets", _) => workload::<Secret>(asked, namespace, name).await,
        _ => Err(ApiError::no_such_path()),
    }
}

/// `/apis/apps/v1/…`, `/apis/batch/v1/…` and what Services and policies have.
async fn workloads(asked: &Asked, group: &str, path: &[&str]) -> Result<Response, ApiError> {
    let (namespace, resource, name) = match path {
        [resource] => (None, *resource, None),
        ["namespaces", namespace, resource] => (Some(*namespace), *resource, None),
        ["namespaces", namespace, resource, name] | ["namespaces", namespace, resource, name, "status"] => {
            (Some(*namespace), *resource, Some(*name))
        }
        _ => return Err(ApiError::no_such_path()),
    };
    match (group, resource) {
        ("apps", "daemonsets") => workload::<DaemonSet>(asked, namespace, name).await,
        ("apps", "deployments") => workload::<Deployment>(asked, namespace, name).await,
        ("apps", "replicasets") => workload::<ReplicaSet>(asked, namespace, name).await,
        ("apps", "statefulsets") => workload::<StatefulSet>(asked, namespace, name).await,
        ("batch", "cronjobs") => workload::<CronJob>(asked, namespace, name).await,
        ("batch", "jobs") => workload::<Job>(asked, namespace, name).await,
        ("discovery.k8s.io", "endpointslices") => workload::<EndpointSlice>(asked, namespace, name).await,
        ("networking.k8s.io", "networkpolicies") => workload::<NetworkPolicy>(asked, namespace, name).await,
        _ => Err(ApiError::no_such_path()),
    }
}

async fn workload<T: Served>(asked: &Asked, namespace: Option<&str>, name: Option<&str>) -> Result<Response, ApiError> {
    if *asked.method() != Method::GET {
        return Err(ApiError::read_only(T::RESOURCE));
    }
    match name {
        Some(name) => object::<T>(asked, namespace, name).await,
        None => collection::<T>(asked, namespace).await,
    }
}

/// `/apis/nodeagent.dev/v1/…`: what Kubernetes lacks.
async fn custom(mut asked: Asked, path: &[&str]) -> Result<Response, ApiError> {
    match (path, asked.method().clone()) {
        ([], Method::GET) => discovery::answer(accept(asked.call.request.headers()), &["apis", GROUP, "v1"]),
        (["images"], Method::GET) => collection::<Image>(&asked, None).await,
        (["images", act], _) if images::ACTS.contains(act) => images::answer(&mut asked.call, &asked.shared.spool, act).await,
        (["images", name], Method::GET) => object::<Image>(&asked, None, name).await,
        (["kubeconfig"], Method::GET) => kubeconfig(&asked.shared),
        (["diff"], Method::POST) => diff(&mut asked).await,
        (["network"], Method::GET) => Ok(reply::json(&asked.node().network().await?)),
        (["check"], Method::GET) => Ok(reply::json(&json!({ "checks": asked.node().check().await? }))),
        (["namespaces", namespace, "pods", name, "start"], Method::POST) => {
            asked.node().start(namespace, name).await?;
            Ok(reply::success(&json!({ "name": name, "kind": "pods" })))
        }
        (["namespaces", namespace, "pods", name, act], method) => {
            let target = Target::find(asked.node(), namespace, name)?;
            match (*act, method) {
                ("inspect", Method::GET) => Ok(reply::json(&asked.node().inspect(&target.uid).await?)),
                ("explain", Method::GET) => Ok(reply::json(&asked.node().explain(&target.uid).await?)),
                ("trace", Method::GET) => trace(&asked, &target).await,
                ("adoption", Method::POST) => Ok(reply::json(&asked.node().offer(&target.uid).await?)),
                // Answered once it has come about.
                ("adoption", Method::GET) => {
                    asked.node().adopted(&target.uid).await?;
                    Ok(reply::success(&json!({ "name": name, "kind": "pods" })))
                }
                ("adoption", Method::DELETE) => {
                    let file = asked.node().give_back(&target.uid).await?;
                    Ok(reply::success(&json!({ "name": name, "kind": "pods", "file": file })))
                }
                ("stop", Method::POST) => {
                    asked.node().stop(&target.uid).await?;
                    Ok(reply::success(&json!({ "name": name, "kind": "pods", "uid": target.uid.as_str() })))
                }
                _ => Err(ApiError::no_such_path()),
            }
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// What would become of a connection: the query's `to` is HOST:PORT, `protocol` TCP unless it says another.
async fn trace(asked: &Asked, target: &Target) -> Result<Response, ApiError> {
    let to = asked.call.query.get("to").ok_or_else(|| ApiError::bad_request("trace: the query lacks to=HOST:PORT"))?;
    let protocol = asked.call.query.get("protocol").unwrap_or("TCP").to_ascii_uppercase().parse();
    let protocol = protocol.map_err(|wrong| ApiError::bad_request(format!("protocol: {wrong}")))?;
    Ok(reply::json(&asked.node().trace(&target.uid, to, protocol).await?))
}

/// What a manifest would change. The query's `file` is its name, for what is wrong with it.
async fn diff(asked: &mut Asked) -> Result<Response, ApiError> {
    let manifest = asked.call.body_of(MANIFEST_LIMIT).await?;
    let file = PathBuf::from(asked.call.query.get("file").unwrap_or("-"));
    let node = asked.node().clone();
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

async fn collection<T: Served>(asked: &Asked, namespace: Option<&str>) -> Result<Response, ApiError> {
    if *asked.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    if asked.call.query.flag("watch") {
        return watch::<T>(asked.node(), asked.shared.oldest, namespace, &asked.call.query, asked.form()).await;
    }
    list::<T>(&**asked.node(), namespace, &asked.call.query, asked.form()).await
}

async fn object<T: Served>(asked: &Asked, namespace: Option<&str>, name: &str) -> Result<Response, ApiError> {
    if *asked.method() != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    Ok(reply::json(&asked.form().object(&*find::<T>(asked, namespace, name).await?, true)))
}

async fn find<T: Served>(asked: &Asked, namespace: Option<&str>, name: &str) -> Result<Arc<T>, ApiError> {
    let by_name = Query::parse(&format!("fieldSelector=metadata.name%3D{}", super::query::encode(name)));
    let selection = Selection::parse::<T>(namespace, &by_name)?;
    let snapshot = T::snapshot(&**asked.node()).await?;
    let found = snapshot.objects.iter().find(|object| selection.matches(&***object));
    found.cloned().ok_or_else(|| ApiError::not_found(T::RESOURCE, name))
}

async fn pod(mut asked: Asked, namespace: &str, name: &str) -> Result<Response, ApiError> {
    let target = Target::find(asked.node(), namespace, name)?;
    match *asked.method() {
        Method::GET => Ok(reply::json(&asked.form().object(&*target.pod, true))),
        Method::DELETE => delete(&mut asked, &target).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn delete(asked: &mut Asked, target: &Target) -> Result<Response, ApiError> {
    let body = asked.call.body().await?;
    let options: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("DeleteOptions: {error}")))?
    };
    let grace = match options.get("gracePeriodSeconds").and_then(Value::as_i64) {
        Some(seconds) => Some(seconds),
        None => asked.call.query.number("gracePeriodSeconds")?,
    };
    if grace.is_some_and(|seconds| seconds < 0) {
        return Err(ApiError::bad_request("gracePeriodSeconds: must be 0 or more"));
    }
    if options["preconditions"]["uid"].as_str().is_some_and(|wanted| wanted != target.uid.as_str()) {
        return Err(ApiError::conflict(format!("Precondition failed: the pod's UID is {}", target.uid)));
    }
    let dry_run = asked.call.query.get("dryRun") == Some("All") || options["dryRun"].as_array().is_some_and(|v| !v.is_empty());
    let deletion = if dry_run { crate::pod::node::Deletion::default() } else { asked.node().delete(&target.uid, grace).await? };
    let mut response = match &deletion.warning {
        None => reply::json(&*asked.node().store().pod(&target.uid).unwrap_or_else(|| target.pod.clone())),
        // Its successor has the same name and UID: a client that waits until that UID is gone would wait for ever.
        Some(_) => reply::success(&json!({ "name": target.pod.metadata.name, "kind": "pods" })),
    };
    if let Some(warning) = deletion.warning {
        reply::warn(&mut response, &warning);
    }
    Ok(response)
}
