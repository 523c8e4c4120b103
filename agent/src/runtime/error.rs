//! What went wrong with a pod or a container, as a sentence that names both, and the reason as Kubernetes' status has it.

use std::io;
use std::path::{Path, PathBuf};

use podholder::protocol::{Fault, Stage};

use super::cgroup::CgroupError;
use super::holder::CallError;
use super::redact::Redaction;

/// A runtime call came to nothing: `pod default/web: container app: mount config at /etc/app: No such file or directory`.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {}", .hidden.hide(.cause.to_string()))]
pub struct Error {
    place: Place,
    /// What happened there. For people it is [`Self::message`], which shows no Secret.
    pub cause: Cause,
    hidden: Box<Redaction>,
}

/// Which pod, and which container of it.
#[derive(Debug, Clone)]
pub struct Place {
    pod: String,
    container: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod {}", self.pod)?;
        self.container.iter().try_for_each(|name| write!(f, ": container {name}"))
    }
}

impl Place {
    /// A pod as a whole.
    pub fn pod(pod: impl std::fmt::Display) -> Self {
        Self { pod: pod.to_string(), container: None }
    }

    /// One of its containers.
    pub fn container(pod: impl std::fmt::Display, container: &str) -> Self {
        Self { pod: pod.to_string(), container: Some(container.into()) }
    }

    /// Says where something happened.
    pub fn error(&self, cause: impl Into<Cause>) -> Error {
        Error { place: self.clone(), cause: cause.into(), hidden: Box::default() }
    }
}

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The holder's word.
    #[error(transparent)]
    Holder(#[from] CallError),
    /// The cgroup tree's.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file or folder of ours.
    #[error("{action} {}: {source}", .path.display())]
    File {
        /// Such as `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The spec asks for what can't be, here or with this image.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A volume of the pod can't be made, now. The kubelet's sentence.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Volume {
        /// Its name in the pod.
        volume: String,
        /// Why.
        cause: Box<Cause>,
    },
    /// A cleanup met several obstacles; it went on past each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Many(Vec<Cause>),
}

/// The spec asks for what can't be: `field: message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// For people; names the field.
    pub message: String,
}

impl ConfigError {
    /// From a sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// For `map_err` on file operations.
pub fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Cause + 'a {
    move |source| Cause::File { action, path: path.into(), source }
}

impl Error {
    /// About a pod as a whole, because of something that isn't the runtime's.
    pub fn pod(pod: impl std::fmt::Display, message: impl Into<String>) -> Self {
        Place::pod(pod).error(ConfigError::new(message))
    }

    /// About one of its containers, because of something that isn't the runtime's.
    pub fn container(pod: impl std::fmt::Display, name: &str, message: impl Into<String>) -> Self {
        Place::container(pod, name).error(ConfigError::new(message))
    }

    /// A volume that can't be made, because of something that isn't the runtime's.
    pub fn volume(pod: impl std::fmt::Display, volume: &str, message: impl Into<String>) -> Self {
        let cause = Box::new(Cause::Config(ConfigError::new(message)));
        Place::pod(pod).error(Cause::Volume { volume: volume.into(), cause })
    }

    /// The holder's own words: stage, subject and errno.
    pub fn fault(&self) -> Option<&Fault> {
        match &self.cause {
            Cause::Holder(call) => call.fault(),
            _ => None,
        }
    }

    /// What happened, without the place: for a status that stands beside the pod's and the container's name already.
    pub fn message(&self) -> String {
        self.hidden.hide(self.cause.to_string())
    }

    /// The same, but these values are not shown.
    pub fn without(self, hidden: Redaction) -> Self {
        Self { hidden: Box::new(hidden), ..self }
    }

    /// Whether a disk, or what serves one, said no: nobody tells when that is over, so it is worth another try.
    pub fn may_pass(&self) -> bool {
        match &self.cause {
            Cause::Volume { cause, .. } => matches!(**cause, Cause::File { .. }),
            cause => matches!(cause, Cause::File { .. }),
        }
    }

    /// The reason of the container's waiting or terminated state, as the kubelet has it.
    pub fn reason(&self) -> &'static str {
        match (&self.cause, self.fault().map(|f| f.stage)) {
            (Cause::Config(_), _) => "CreateContainerConfigError",
            // The kubelet mounts all volumes before it makes a container.
            (Cause::Volume { .. }, _) => "ContainerCreating",
            (_, Some(Stage::Exec | Stage::WorkingDir | Stage::User)) => "StartError",
            (Cause::Holder(_), _) => "RunContainerError",
            _ => "CreateContainerError",
        }
    }

    /// The reason of the event that tells it, as the kubelet has it.
    pub fn event(&self) -> &'static str {
        if matches!(self.cause, Cause::Volume { .. }) { "FailedMount" } else { "Failed" }
    }

    /// 127 when the command isn't there, 126 when it can't be executed, else 128.
    pub fn exit_code(&self) -> i32 {
        match &self.cause {
            Cause::Holder(call) => call.exit_code(),
            _ => 128,
        }
    }
}
