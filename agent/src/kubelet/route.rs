//! From a path of the kubelet API to what answers it. Streams and logs are the local API's own code: here their queries are translated.
//! Errors are plain text, as the kubelet's: the API server makes its own `Status` of them.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::metrics::{self, Exposition};
use super::server::Shared;
use super::{files, run, stats};
use crate::api::call::{Call, Place, Target, accept};
use crate::api::query::{Plus, Query, decode};
use crate::api::{ApiError, Response, logs, portforward, remote, reply};

/// What the kubelet calls otherwise than the API server.
const NAMES: &[(&str, &str)] =
    &[("input", "stdin"), ("output", "stdout"), ("error", "stderr"), ("port", "ports"), ("tail", "tailLines")];

/// Answers a request of somebody who may make it.
pub async fn answer(shared: &Arc<Shared>, request: Request<Incoming>, place: Place) -> Response {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let path: Vec<String> = request.uri().path().split('/').filter(|p| !p.is_empty()).map(|p| decode(p, Plus::Itself)).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let call = Call { node: shared.node.clone(), query, request, place };
    dispatch(shared, call, &path).await.unwrap_or_else(|error| plain(&error))
}

/// An error as the kubelet says it.
fn plain(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = reply::whole("text/plain; charset=utf-8", error.to_string());
    *response.status_mut() = code;
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

async fn dispatch(shared: &Arc<Shared>, call: Call, path: &[&str]) -> Result<Response, ApiError> {
    let method = call.request.method().clone();
    match path {
        ["run", names @ ..] if method == Method::POST => run::answer(&call, &target(&call, names)?, container(names)?).await,
        ["exec", names @ ..] if matches!(method, Method::GET | Method::POST) => {
            let target = target(&call, names)?;
            remote::exec(translated(call, container(names)?), &target)
        }
        ["attach", names @ ..] if matches!(method, Method::GET | Method::POST) => {
            let target = target(&call, names)?;
            remote::attach(translated(call, container(names)?), &target)
        }
        ["portForward", names @ ..] if matches!(method, Method::GET | Method::POST) => {
            let target = target(&call, &[names, &["of no container"]].concat())?;
            portforward::answer(translated(call, ""), &target)
        }
        ["checkpoint", ..] => {
            Err(ApiError::no_such_path_but("containers are not checkpointed by this node's runtime: /checkpoint is not served"))
        }
        ["debug", ..] => Err(ApiError::not_served("profiling and debug flags are not served")),
        _ if method != Method::GET => Err(ApiError::method_not_allowed()),
        ["containerLogs", namespace, name, container] => {
            let target = target(&call, &[namespace, name, container])?;
            let call = translated(call, container);
            logs::answer(&call, &target.pod)
        }
        ["pods"] => Ok(list(call.node.store().pods().objects.iter().map(|pod| Pod::clone(pod)))),
        ["runningpods"] => Ok(list(call.node.store().pods().objects.iter().filter_map(|pod| running(pod)))),
        ["stats", "summary"] => stats::summary(shared, &call.query).await,
        ["metrics", rest @ ..] => {
            let exposition = Exposition::wanted(accept(call.request.headers()));
            match rest {
                [] => metrics::own(shared, exposition),
                ["resource"] => metrics::resource(&shared.node, exposition).await,
                ["cadvisor"] => metrics::cadvisor(&shared.node, exposition).await,
                ["probes"] => metrics::probes(&shared.node, exposition),
                _ => Err(ApiError::no_such_path()),
            }
        }
        ["logs", rest @ ..] => files::answer(&shared.logs, &call, rest).await,
        ["configz"] => Ok(reply::json(&json!({ "kubeletconfig": shared.configuration }))),
        ["healthz", check @ ..] => healthz(&call, check).await,
        _ => Err(ApiError::no_such_path()),
    }
}

/// NAMESPACE/POD/CONTAINER or NAMESPACE/POD/UID/CONTAINER.
fn target(call: &Call, names: &[&str]) -> Result<Target, ApiError> {
    let (namespace, name, uid) = match *names {
        [namespace, name, _] => (namespace, name, None),
        [namespace, name, uid, _] => (namespace, name, Some(uid)),
        _ => return Err(ApiError::no_such_path()),
    };
    let find = |name: &str| Target::find(&call.node, namespace, name);
    // The API server knows a file's pod by its mirror's name.
    let mirrored = || {
        let node = call.node.node().metadata.name?;
        find(name.strip_suffix(&node)?.strip_suffix('-')?).ok()
    };
    let target = find(name).ok().or_else(mirrored).ok_or_else(|| not_there(namespace, name))?;
    // A pod of that name that came after the one that is meant.
    if uid.is_some_and(|uid| uid != target.uid.as_str()) { Err(not_there(namespace, name)) } else { Ok(target) }
}

fn not_there(namespace: &str, name: &str) -> ApiError {
    ApiError::no_such_path_but(format!("pod {namespace}/{name} does not exist"))
}

fn container<'a>(names: &[&'a str]) -> Result<&'a str, ApiError> {
    names.last().copied().ok_or_else(ApiError::no_such_path)
}

/// The call as the local API's handlers know it.
fn translated(call: Call, container: &str) -> Call {
    let query = call.query.translated(NAMES, ("container", container));
    // `tail=all` is the same as no tail.
    let query = if query.get("tailLines") == Some("all") { query.without("tailLines") } else { query };
    Call { query, ..call }
}

fn list(pods: impl Iterator<Item = Pod>) -> Response {
    let items: Vec<Pod> = pods.collect();
    reply::json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

/// What the runtime knows of a pod that has a running container; as the kubelet, no more than names and images.
fn running(pod: &Pod) -> Option<Pod> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let running = statuses.filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
    let containers: Vec<Container> =
        running.map(|s| Container { name: s.name.clone(), image: Some(s.image.clone()), ..Container::default() }).collect();
    if containers.is_empty() {
        return None;
    }
    let ObjectMeta { name, namespace, uid, .. } = pod.metadata.clone();
    let metadata = ObjectMeta { name, namespace, uid, ..ObjectMeta::default() };
    Some(Pod { metadata, spec: Some(PodSpec { containers, ..PodSpec::default() }), status: None })
}

/// `/healthz`, `/healthz/ping`, `/healthz/syncloop`.
async fn healthz(call: &Call, check: &[&str]) -> Result<Response, ApiError> {
    const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];
    match *check {
        [] => {}
        [one] if CHECKS.contains(&one) => {}
        _ => return Err(ApiError::no_such_path()),
    }
    let alive = call.node.alive().await;
    let syncloop = matches!(*check, [] | ["syncloop"]);
    if let (Err(error), true) = (&alive, syncloop) {
        return Err(ApiError::internal(format!("[+]ping ok\n[+]log ok\n[-]syncloop failed: {error}\nhealthz check failed\n")));
    }
    let text = if call.query.all("verbose").next().is_some() {
        CHECKS.map(|name| format!("[+]{name} ok\n")).concat() + "healthz check passed\n"
    } else {
        "ok".to_owned()
    };
    Ok(reply::whole("text/plain; charset=utf-8", text))
}
