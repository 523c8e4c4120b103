//! Edits of a running pod that don't come from its manifest: ephemeral containers, and conditions that others tell.

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::oneshot;

use super::{Container, Edit, Worker};
use crate::model::{ValidPod, ephemeral};
use crate::pod::SandboxNote;

impl Worker {
    pub(super) fn edit(&mut self, edit: Edit, done: oneshot::Sender<Result<(), String>>) {
        let result = self.try_edit(edit);
        // Whoever asked sees it in the object at once.
        self.publish();
        // Nobody waits any more.
        let _ = done.send(result);
    }

    fn try_edit(&mut self, edit: Edit) -> Result<(), String> {
        if self.observed.ending.is_some() {
            return Err(format!("pod {} is ending", self.pod.name()));
        }
        match edit {
            Edit::Ephemeral(containers) => {
                if crate::pod::plan::is_complete(&self.pod, &self.observed) {
                    return Err(format!("pod {} has completed: nothing can be started in it", self.pod.name()));
                }
                self.pod = self.pod.with_ephemeral(Some(containers));
                if self.sandbox.is_some() {
                    self.node.runtime.save_pod(&self.pod).map_err(|error| error.to_string())?;
                }
            }
            Edit::Conditions(conditions) => {
                self.observed.conditions = conditions;
                self.note_sandbox();
            }
        }
        Ok(())
    }

    /// What a manifest says, with the ephemeral containers that were added to the running pod.
    pub(super) fn with_what_was_added(&self, declared: &ValidPod) -> ValidPod {
        let mut pod = Pod::clone(declared.object());
        if let Some(spec) = &mut pod.spec {
            ephemeral::keep(self.pod.spec(), spec);
        }
        ValidPod::trusted(pod, declared.origin().clone())
    }

    /// The running container that an ephemeral one is to be beside, by its ID.
    pub(super) fn target_of(&self, name: &str) -> Option<String> {
        let mut containers = self.pod.spec().ephemeral_containers.iter().flatten();
        let target = containers.find(|e| e.name == name)?.target_container_name.as_deref().filter(|t| !t.is_empty())?;
        let running = self.observed.containers.get(target).and_then(Container::running);
        // Of one that doesn't run the holder says so.
        Some(running.map_or_else(|| target.to_owned(), |attempt| attempt.id.clone()))
    }

    /// Leaves what the sandbox's note has to remember.
    fn note_sandbox(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let super::SandboxState::Ready { ips, .. } = &self.observed.sandbox else { return };
        let note =
            SandboxNote { ips: ips.clone(), start_time: Some(self.start_time), conditions: self.observed.conditions.clone() };
        let (name, note) = (String::new(), serde_json::to_value(&note).unwrap_or_default());
        self.outcomes.push(Box::pin(async move {
            let result = sandbox.holder.note(note).await.map_err(|e| e.to_string());
            super::Outcome::Noted { name, result }
        }));
    }
}
