//! The configuration file: a `NodeAgentConfiguration`, as strict as a manifest: an unknown field is an error with its place.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use serde::Deserialize;

use super::DEFAULT_FILE;
use super::cluster::TaintSection;
use super::flags::{LogFormat, LogLevel, Wiring};
use super::kubelet::{AuthenticationSection, AuthorizationSection};
use super::shutdown::PrioritySection;
use crate::model::decode::decode;
use crate::model::yaml::{self, Node};
use crate::model::{FileError, Path, Position};

const API_VERSION: &str = "nodeagent.dev/v1";
const KIND: &str = "NodeAgentConfiguration";

/// What a configuration file says. Nothing in it must be there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Declared {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) manifests: Vec<PathBuf>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) bootstrap_kubeconfig: Option<PathBuf>,
    pub(super) root: Option<PathBuf>,
    pub(super) node_name: Option<String>,
    /// The kubelet has them as a flag.
    pub(super) node_labels: BTreeMap<String, String>,
    pub(super) cgroup_parent: Option<String>,
    pub(super) bridge: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Vec<String>,
    /// As podCIDRs, with gateways and exclusions.
    pub(super) pod_ranges: Vec<RangeSection>,
    /// A duration.
    pub(super) address_reuse_after: Option<String>,
    /// A duration.
    pub(super) address_probe: Option<String>,
    pub(super) masquerade: Option<bool>,
    /// Pods whose packets nothing has to see hand them to each other past the host's rules; on by default.
    pub(super) direct_path: Option<bool>,
    pub(super) masquerade_except: Vec<String>,
    pub(super) nft_table: Option<String>,
    #[serde(rename = "serviceCIDRs")]
    pub(super) service_cidrs: Vec<String>,
    /// Services, NetworkPolicies and the resolver; on unless a cluster has its own.
    pub(super) services: Option<bool>,
    /// The resolver; on unless clusterDNS names another.
    pub(super) dns: Option<bool>,
    pub(super) mtu: Option<u32>,
    pub(super) network: Option<Wiring>,
    pub(super) cni: CniSection,
    pub(super) drain_on_stop: Option<bool>,
    pub(super) crash_loop_back_off: BackoffSection,
    /// A quantity of bytes.
    pub(super) container_log_max_size: Option<String>,
    pub(super) container_log_max_files: Option<u32>,
    pub(super) images: ImageSection,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) api: ApiSection,
    pub(super) user_namespaces: UsernsSection,
    pub(super) seccomp_default_profile: Option<PathBuf>,
    pub(super) logging: LogSection,
    /// The folder of PersistentVolumeClaims.
    pub(super) claims_root: Option<PathBuf>,
    /// What opens `*.yaml.age`.
    pub(super) age_identity_file: Option<PathBuf>,
    // From here on the kubelet's own names and meanings.
    pub(super) max_pods: Option<u32>,
    pub(super) pod_pids_limit: Option<i64>,
    pub(super) system_reserved: Amounts,
    pub(super) kube_reserved: Amounts,
    pub(super) eviction_hard: Option<Amounts>,
    pub(super) eviction_soft: Amounts,
    pub(super) eviction_soft_grace_period: Amounts,
    pub(super) eviction_minimum_reclaim: Amounts,
    pub(super) eviction_pressure_transition_period: Option<String>,
    pub(super) eviction_max_pod_grace_period: Option<u32>,
    pub(super) shutdown_grace_period: Option<String>,
    pub(super) shutdown_grace_period_critical_pods: Option<String>,
    pub(super) shutdown_grace_period_by_pod_priority: Vec<PrioritySection>,
    /// The kubelet's is fixed: 10 seconds.
    pub(super) eviction_monitoring_period: Option<String>,
    pub(super) allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "clusterDNS")]
    pub(super) cluster_dns: Vec<String>,
    pub(super) cluster_domain: Option<String>,
    pub(super) seccomp_default: Option<bool>,
    /// The folder of `Localhost` profiles; the kubelet's is fixed: `seccomp` below its root.
    pub(super) seccomp_root: Option<PathBuf>,
    #[serde(rename = "memoryQoS")]
    pub(super) memory_qos: Option<bool>,
    pub(super) memory_throttling_factor: Option<f64>,
    #[serde(rename = "singleProcessOOMKill")]
    pub(super) single_process_oom_kill: Option<bool>,
    /// Folders of CDI specs; the later overrules.
    pub(super) cdi_spec_dirs: Option<Vec<PathBuf>>,
    /// Where plugins look for the kubelet; the kubelet has it as a flag, `--root-dir`.
    pub(super) kubelet_root: Option<PathBuf>,
    pub(super) address: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) read_only_port: Option<u16>,
    pub(super) authentication: AuthenticationSection,
    pub(super) authorization: AuthorizationSection,
    #[serde(rename = "serverTLSBootstrap")]
    pub(super) server_tls_bootstrap: Option<bool>,
    #[serde(rename = "providerID")]
    pub(super) provider_id: Option<String>,
    pub(super) register_with_taints: Vec<TaintSection>,
    pub(super) tls_cert_file: Option<PathBuf>,
    pub(super) tls_private_key_file: Option<PathBuf>,
}

/// Names and quantities, or durations.
pub(super) type Amounts = BTreeMap<String, String>;

/// `crashLoopBackOff`; durations are Go's: `10s`, `5m`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackoffSection {
    pub(super) initial: Option<String>,
    pub(super) max: Option<String>,
    pub(super) reset_after: Option<String>,
}

/// One of `podRanges`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeSection {
    pub(super) subnet: String,
    pub(super) gateway: Option<String>,
    /// Addresses, runs of them (`10.85.0.5-10.85.0.9`), or subnets.
    pub(super) exclude: Vec<String>,
}

/// `cni`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniSection {
    pub(super) conf_dir: Option<PathBuf>,
    pub(super) bin_dirs: Vec<PathBuf>,
    pub(super) cache_dir: Option<PathBuf>,
    /// A duration.
    pub(super) timeout: Option<String>,
}

/// `images`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageSection {
    #[serde(rename = "gcHighThresholdPercent")]
    pub(super) gc_high: Option<u8>,
    #[serde(rename = "gcLowThresholdPercent")]
    pub(super) gc_low: Option<u8>,
    pub(super) max_parallel_pulls: Option<u32>,
    pub(super) registries_conf: Option<PathBuf>,
    pub(super) auth_file: Option<PathBuf>,
    /// The kubelet has both as flags.
    pub(super) credential_provider_config: Option<PathBuf>,
    pub(super) credential_provider_bin_dir: Option<PathBuf>,
}

/// `api`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiSection {
    pub(super) socket_group: Option<String>,
    pub(super) listen: Option<String>,
    #[serde(rename = "clientCAFile")]
    pub(super) client_ca_file: Option<PathBuf>,
}

/// `userNamespaces`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UsernsSection {
    #[serde(rename = "firstHostID")]
    pub(super) first_host_id: Option<u32>,
    #[serde(rename = "idsPerPod")]
    pub(super) ids_per_pod: Option<u32>,
    pub(super) max_pods: Option<u32>,
}

/// `logging`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogSection {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<LogLevel>,
}

/// Where a setting was read from, for errors.
#[derive(Debug)]
pub(super) struct Source {
    name: PathBuf,
    root: Node,
}

impl Source {
    fn none() -> Self {
        let at = Position::default();
        Self { name: DEFAULT_FILE.into(), root: Node { at, value: yaml::Value::Null } }
    }

    /// An error about a field.
    pub(super) fn error(&self, path: &Path<'_>, message: String) -> FileError {
        let Position { line, column } = path.position(&self.root);
        FileError { file: self.name.clone(), line, column, field: path.to_string(), message }
    }
}

/// Reads the file that was named, or the one at its usual place if there is one.
pub(super) fn read(named: Option<&FilePath>) -> Result<(Declared, Source), Vec<FileError>> {
    let path = named.unwrap_or(FilePath::new(DEFAULT_FILE));
    match std::fs::read(path) {
        Ok(text) => parse(path, &text),
        Err(e) if named.is_none() && e.kind() == io::ErrorKind::NotFound => Ok((Declared::default(), Source::none())),
        Err(e) => Err(vec![FileError::whole(path, format!("read the configuration: {e}"))]),
    }
}

pub(super) fn parse(name: &FilePath, text: &[u8]) -> Result<(Declared, Source), Vec<FileError>> {
    let placed =
        |problems: Vec<crate::model::Problem>| problems.into_iter().map(|p| p.of(name.to_path_buf())).collect::<Vec<_>>();
    let parsed = yaml::parse(text);
    let mut documents = parsed.documents.into_iter();
    let first = documents.next();
    let mut problems: Vec<_> = first.iter().flat_map(|d| d.problems.clone()).chain(parsed.broken).collect();
    if let Some(second) = documents.next() {
        problems.push(crate::model::Problem::text(second.root.at, "the configuration is one document, this is a second"));
    }
    if !problems.is_empty() {
        return Err(placed(problems));
    }
    let Some(document) = first else { return Ok((Declared::default(), Source::none())) };
    let declared: Declared = decode(&document.root).map_err(placed)?;
    let source = Source { name: name.to_path_buf(), root: document.root };
    let errors: Vec<FileError> = [
        must_be(&source, "apiVersion", declared.api_version.as_deref(), API_VERSION),
        must_be(&source, "kind", declared.kind.as_deref(), KIND),
    ]
    .into_iter()
    .flatten()
    .collect();
    if errors.is_empty() { Ok((declared, source)) } else { Err(errors) }
}

fn must_be(source: &Source, field: &str, value: Option<&str>, wanted: &str) -> Option<FileError> {
    let message = match value {
        Some(value) if value == wanted => return None,
        Some(value) => format!("Unsupported value: {value:?}: supported values: {wanted:?}"),
        None => format!("Required value: {wanted:?}"),
    };
    Some(source.error(&Path::ROOT.child(field), message))
}
