//! `adopt`: a file's pod becomes the API server's while it runs, and back. The node may not create pods there: that is done here, by the
//! right of whoever calls.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client as Cluster};
use serde_json::{Value, json};

use super::client::{Client, own_path, pod_name};
use super::get::show;
use super::{CliError, Namespace};
use crate::cluster::{answer, client_of};
use crate::model::change::{Change, between};
use crate::model::{Origin, ValidPod};
use crate::pod::adoption::different;
use crate::pod::node::Offer;

/// Adopting.
#[derive(Debug, Args)]
#[command(
    after_help = "The pod runs on: its containers, restarts, address and logs stay. ConfigMaps and Secrets of files that it refers to are created, too.\n\nExamples:\n  nodeagent adopt web --kubeconfig ~/.kube/config\n  nodeagent adopt --back web"
)]
pub struct AdoptArgs {
    /// The pods
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Who may create pods at the API server [default: ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The other way: write a manifest of the API server's pod, which goes there and runs on here
    #[arg(long, conflicts_with = "kubeconfig")]
    back: bool,
}

/// Adopts.
pub async fn run(client: &Client, args: AdoptArgs) -> Result<ExitCode, CliError> {
    let namespace = &args.namespace.namespace;
    if args.back {
        for pod in &args.pods {
            let name = pod_name(pod)?;
            let answer = client.act(Method::DELETE, &own_path(namespace, name, "/adoption")).await?;
            let file = answer["details"]["file"].as_str().unwrap_or_default();
            show(&format!("pod \"{name}\" is of {file} now\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = cluster(args.kubeconfig).await?;
    for pod in &args.pods {
        let name = pod_name(pod)?;
        let path = own_path(namespace, name, "/adoption");
        let offer = client.act(Method::POST, &path).await?;
        let offer: Offer = serde_json::from_value(offer)
            .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })?;
        create(&cluster, &offer).await?;
        client.act(Method::GET, &path).await?;
        show(&format!("pod \"{name}\" is the API server's now\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn cluster(kubeconfig: Option<PathBuf>) -> Result<Cluster, CliError> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    let file = kubeconfig.or_else(home).ok_or_else(|| CliError::Usage("say by --kubeconfig who may create pods".into()))?;
    client_of(&file).await.map_err(|error| CliError::Usage(error.to_string()))
}

/// What it refers to, then the pod; nothing, if the API server would have another pod of it.
async fn create(cluster: &Cluster, offer: &Offer) -> Result<(), CliError> {
    let namespace = offer.pod.metadata.namespace.as_deref().unwrap_or("default");
    let pods: Api<Pod> = Api::namespaced(cluster.clone(), namespace);
    let tried = answer(pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &offer.pod)).await;
    let tried = tried.map_err(|failure| refused("try the pod at the API server", &failure))?;
    let (ours, theirs) = (of(&offer.pod), of(&tried));
    if between(&ours, &theirs) != Change::Keep {
        let message =
            format!("the API server would make another pod of it, which couldn't run on: {}", different(&ours, &theirs));
        return Err(CliError::Broken { doing: "adopt the pod", message });
    }
    for object in &offer.objects {
        create_object(cluster, namespace, object).await?;
    }
    answer(pods.create(&PostParams::default(), &offer.pod))
        .await
        .map(drop)
        .map_err(|f| refused("create the pod at the API server", &f))
}

fn of(pod: &Pod) -> ValidPod {
    ValidPod::trusted(pod.clone(), Origin::Api)
}

/// One that is there must say the same.
async fn create_object(cluster: &Cluster, namespace: &str, object: &Value) -> Result<(), CliError> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind));
    let objects: Api<DynamicObject> = Api::namespaced_with(cluster.clone(), namespace, &resource);
    let wish = serde_json::from_value(object.clone())
        .map_err(|error| CliError::Broken { doing: "read the agent's answer", message: error.to_string() })?;
    let Err(failure) = answer(objects.create(&PostParams::default(), &wish)).await else { return Ok(()) };
    if failure.code != 409 {
        return Err(refused("create what the pod refers to", &failure));
    }
    let there = answer(objects.get(name)).await.map_err(|failure| refused("look at what the pod refers to", &failure))?;
    let there = json!(there);
    let same = ["data", "binaryData"].iter().all(|field| object[field] == there[field]);
    let message = || format!("{kind} {namespace}/{name} is there and says something else than the file");
    if same { Ok(()) } else { Err(CliError::Broken { doing: "create what the pod refers to", message: message() }) }
}

fn refused(doing: &'static str, failure: &crate::cluster::Failure) -> CliError {
    CliError::Broken { doing, message: failure.to_string() }
}
