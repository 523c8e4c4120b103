//! An edit of a running pod's amounts: promised by the node, then told to the kernel, then in force.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::{Level, Outcome, Worker};
use crate::model::{ValidPod, change};
use crate::pod::observed::{Allocated, Attempt, Container, Resize};
use crate::pod::resize;
use crate::runtime::resources::{Qos, Totals};

/// What a container is to have, and what its pod as a whole.
pub(super) type Wanted = (ResourceRequirements, Option<ResourceRequirements>);

/// Between two tries to tell the kernel what it refused, such as a limit below what is used.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(3);

impl Worker {
    /// What an edit asks for. A pod's QoS class, and with it its place among the cgroups, is for life.
    pub(super) fn change_to(&self, new: &ValidPod) -> change::Change {
        let change = change::between(&self.pod, new);
        if Qos::of(self.pod.spec()) == Qos::of(new.spec()) { change } else { change::Change::Recreate }
    }

    /// The spec is new: asks the node for other amounts than `old`'s, if they are others.
    pub(super) fn resize_from(&mut self, old: &ValidPod) {
        if Totals::of_pod(old.spec()) == Totals::of_pod(self.pod.spec()) && self.observed.resize.is_none() {
            return;
        }
        let in_force = match self.observed.resize.take() {
            Some(Resize::Pending { allocated, .. }) => allocated,
            _ => Allocated {
                containers: old.all_containers().filter_map(|c| Some((c.name.clone(), c.resources.clone()?))).collect(),
                pod: old.spec().resources.clone(),
            },
        };
        self.ask_for_room(in_force);
    }

    /// Something became better: a deferred resize may be possible.
    pub(super) fn resize_again(&mut self) {
        if let Some(Resize::Pending { allocated, .. }) = self.observed.resize.take() {
            self.ask_for_room(allocated);
        }
    }

    fn ask_for_room(&mut self, allocated: Allocated) {
        let better = self.node.admission.better();
        self.deferred = None;
        let Err(rejection) = self.node.admission.resize(&self.pod) else { return };
        let (reason, message) = (rejection.reason, rejection.message);
        self.say(None, Level::Warning, &format!("Resize{reason}"), &format!("Pod resize {}: {message}", reason.to_lowercase()));
        self.observed.resize = Some(Resize::Pending { reason, message, allocated });
        self.deferred = Some(better);
    }

    /// Tells the kernel.
    pub(super) fn resize(&mut self, name: &str) {
        let (Some(sandbox), Some(mut container)) = (self.sandbox.clone(), self.container(name).cloned()) else { return };
        let Some(attempt) = self.observed.containers.get(name).and_then(Container::running).cloned() else { return };
        container.resources = self.observed.resources(&container).cloned();
        self.observed.resize = Some(Resize::InProgress);
        let whole = self.observed.pod_resources(self.pod.spec()).cloned();
        let (node, pod, name) = (self.node.clone(), self.pod.clone(), name.to_owned());
        self.outcomes.push(Box::pin(async move {
            let wanted = (container.resources.clone().unwrap_or_default(), whole);
            let id = attempt.id.clone();
            let told =
                tokio::task::spawn_blocking(move || node.runtime.resize_container(&sandbox, &pod, &container, &attempt.id));
            let result = told.await.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.message()));
            Outcome::Resized { name, id, wanted, result }
        }));
    }

    pub(super) fn resized(&mut self, name: &str, id: &str, wanted: Wanted, result: Result<(), String>) {
        let attempt: Option<&mut Attempt> = self.observed.containers.get_mut(name).and_then(|c| c.last.as_mut());
        match (result, attempt.filter(|a| a.id == id)) {
            (Ok(()), Some(attempt)) => {
                (attempt.note.resources, attempt.note.pod_resources) = (Some(wanted.0), wanted.1);
                self.observed.resize = None;
                self.remember(name);
                if !resize::is_under_way(&self.pod, &self.observed) {
                    self.say(None, Level::Normal, "ResizeCompleted", "Pod resize completed");
                }
            }
            // It has ended meanwhile: its next run begins with the new amounts.
            (_, None) => self.observed.resize = None,
            (Err(message), Some(_)) => {
                self.say(Some(name), Level::Warning, "ResizeError", &format!("Pod resize error: {message}"));
                let retry_at = Timestamp::now().checked_add(TRY_AGAIN_AFTER).unwrap_or(Timestamp::MAX);
                self.observed.resize = Some(Resize::Failed { message, retry_at });
            }
        }
    }
}
